//! `syscalls [DIRECTORY]`: which system calls and features this kernel has, refuses or emulates, out of those that real
//! workloads need and that sandboxes differ in.
//!
//! Every one is tried for real, each in a process of its own, and harmlessly, also for root of a whole machine: what
//! would change more than that process is asked with arguments that are refused behind the check of permissions, and
//! then `works` means that it would be permitted. Files are made in a directory of their own in DIRECTORY (`/tmp`), as
//! some answers depend on the filesystem.
//!
//! Lines of `#key TAB value` come first, then `name TAB outcome TAB detail` for each, and `#end` when all were tried.
//! Outcomes: `works`; `refused`, a
//! policy said no; `absent`, this kernel does not have it; `differs`, it answers, but not as Linux does; `failed`.

mod attempt;
mod files;
mod locks;
mod memory;
mod namespaces;
mod network;
mod privileged;
mod processes;
mod scheduling;
mod security;
mod surface;
mod views;

use crate::{Args, Failure, Result, files::slurp, streams::say};
use attempt::{Attempt, at_mut, call};
use rustix::io::Errno;
use std::{ffi::OsString, fs, path::Path};

pub(crate) use surface::surface;

/// Something to try, by the name that it has in the report.
type Entry = (&'static str, fn() -> Attempt);

/// All of them.
const TABLES: [&[Entry]; 10] = [
    processes::TABLE,
    scheduling::TABLE,
    namespaces::TABLE,
    security::TABLE,
    privileged::TABLE,
    memory::TABLE,
    files::TABLE,
    locks::TABLE,
    network::TABLE,
    views::TABLE,
];

pub(crate) fn syscalls(args: &Args) -> Result {
    let parent = args.0.first().cloned().unwrap_or_else(|| OsString::from("/tmp"));
    in_directory(Path::new(&parent), report)
}

/// Does it in a new directory in `parent`, which is removed.
fn in_directory(parent: &Path, report: impl FnOnce() -> Result) -> Result {
    let directory = parent.join(format!(".stacyvm-probe-{}", std::process::id()));
    let errno = |e: std::io::Error| Errno::from_io_error(&e).unwrap_or(Errno::IO);
    fs::create_dir(&directory).map_err(|e| Failure::System("mkdir", errno(e)))?;
    std::env::set_current_dir(&directory).map_err(|e| Failure::System("chdir", errno(e)))?;
    // Whoever is killed for an attempt leaves no core file.
    let none = rustix::process::Rlimit { current: Some(0), maximum: Some(0) };
    let _ = rustix::process::setrlimit(rustix::process::Resource::Core, none);

    let outcome = report();
    let _ = std::env::set_current_dir("/");
    fs::remove_dir_all(&directory).map_err(|e| Failure::System("remove the directory", errno(e)))?;
    outcome
}

/// `attempt NAME`: one of them, as `outcome TAB detail`.
pub(crate) fn one(args: &Args) -> Result {
    let name = args.text(0)?;
    let entry = TABLES.into_iter().flatten().find(|(known, _)| *known == name);
    let (_, attempt) = entry.ok_or(Failure::Usage("there is no such attempt"))?;
    let _ = std::env::set_current_dir("/tmp");
    let verdict = attempt::run(*attempt);
    let (outcome, detail) = attempt::words(&verdict);
    say(format!("{outcome}\t{detail}\n").as_bytes())?;
    Ok(0)
}

fn report() -> Result {
    let kernel = rustix::system::uname();
    let release = kernel.release().to_string_lossy();
    let version = kernel.version().to_string_lossy();
    let gvisor = if is_gvisor() { "yes" } else { "no" };
    let status = slurp(b"/proc/self/status").unwrap_or_default();
    let status = String::from_utf8_lossy(&status).into_owned();
    let seccomp = match status.lines().find_map(|line| line.strip_prefix("Seccomp:")).map(str::trim) {
        Some("0") => "none",
        Some("1") => "strict",
        Some("2") => "filter",
        _ => "unknown",
    };
    say(format!("#release\t{release}\n#version\t{version}\n#gvisor\t{gvisor}\n#seccomp\t{seccomp}\n")
        .as_bytes())?;
    let mut count = 0;
    for (name, attempt) in TABLES.into_iter().flatten() {
        count += 1;
        let verdict = attempt::run(*attempt);
        let (outcome, detail) = attempt::words(&verdict);
        say(format!("{name}\t{outcome}\t{detail}\n").as_bytes())?;
    }
    say(format!("#end\t{count}\n").as_bytes())?;
    Ok(0)
}

/// gVisor says so in its kernel log, which it shows to everybody, and claims to be a Linux of one fixed build.
fn is_gvisor() -> bool {
    const READ_ALL: usize = 3;
    let mut log = vec![0; 64 << 10];
    let length = call(libc::SYS_syslog, [READ_ALL, at_mut(log.as_mut_slice()), log.len()]).unwrap_or(0);
    let says = |text: &[u8], what: &[u8]| text.windows(what.len()).any(|window| window == what);
    says(log.get(..length).unwrap_or_default(), b"gVisor")
        || says(&slurp(b"/proc/version").unwrap_or_default(), b"#1 SMP Sun Jan 10 15:06:54 PST 2016")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_fit_into_a_line() {
        let mut names: Vec<_> = TABLES.into_iter().flatten().map(|(name, _)| *name).collect();
        assert!(names.iter().all(|name| !name.contains(['\t', '\n', '|']) && !name.starts_with('#')));
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn the_documentation_has_them_all() {
        let document = include_str!("../../../docs/runtimes.md");
        let (table, line) = document.split_once("\nWorks with each of them: ").unwrap();
        let line: Vec<_> = line.lines().next().unwrap().trim_end_matches('.').split(", ").collect();
        for (name, _) in TABLES.into_iter().flatten() {
            let row = table.contains(&format!("\n| {name} | "));
            assert!(row || line.contains(name), "{name}: run `cargo run -p xtask -- runtimes-doc`");
        }
    }
}
