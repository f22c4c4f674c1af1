//! What a mock sandbox leaves on the host: its directory, and its processes as `/proc` shows them.
//!
//! Processes are recognised by any of: the agent's command line, a home directory, working directory or program inside
//! the sandbox's directory, or a parent that is recognised. A process that escapes all five is beyond a provider
//! without isolation.

use super::agent::Owner;
use crate::{Error, Result, RuntimeStats, SandboxSpec};
use rustix::process::{Pid, Signal, kill_process};
use std::{
    collections::{HashMap, HashSet},
    fs, io,
    os::unix::{ffi::OsStrExt, fs::PermissionsExt},
    path::Path,
    time::{Duration, Instant},
};

/// Makes the sandbox's directory, private to us, with its root and the spec it was made from.
pub(super) fn make_root(directory: &Path, spec: &[u8]) -> io::Result<()> {
    for inner in ["root/workspace", "root/home/sandbox", "root/tmp"] {
        fs::create_dir_all(directory.join(inner))?;
    }
    fs::set_permissions(directory, fs::Permissions::from_mode(0o700))?;
    write_atomically(&directory.join("spec.json"), spec)
}

/// Replaces a file in one step.
pub(super) fn write_atomically(path: &Path, content: &[u8]) -> io::Result<()> {
    let draft = path.with_extension("draft");
    fs::write(&draft, content)?;
    fs::rename(&draft, path)
}

/// The spec that the sandbox in `directory` was made from.
pub(super) fn stored_spec(directory: &Path) -> Option<SandboxSpec> {
    serde_json::from_slice(&fs::read(directory.join("spec.json")).ok()?).ok()
}

/// Removes a tree, also one with directories that its owner may not enter. Nothing there is fine.
pub(super) fn remove_tree(directory: &Path) -> io::Result<()> {
    for _ in 0..3 {
        match fs::remove_dir_all(directory) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(_) => open_up(directory),
        }
    }
    fs::remove_dir_all(directory)
}

fn open_up(directory: &Path) {
    let _ = fs::set_permissions(directory, fs::Permissions::from_mode(0o700));
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            open_up(&entry.path());
        }
    }
}

/// The fields of `/proc/<pid>/stat` behind the command name, which may itself contain anything.
fn stat_fields(pid: i32) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    Some(text.rsplit_once(')')?.1.split_whitespace().map(str::to_owned).collect())
}

/// When the process started, in clock ticks since boot.
pub(super) fn start_time(pid: i32) -> Option<u64> {
    stat_fields(pid)?.get(19)?.parse().ok()
}

/// Live processes of a sandbox. A zombie holds nothing and is not counted.
fn processes(owner: &Owner) -> Vec<i32> {
    let mut parents = HashMap::new();
    let mut ours = HashSet::new();
    let me = rustix::process::getpid().as_raw_nonzero().get();
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    for entry in entries.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let Some(fields) = stat_fields(pid).filter(|_| pid != me) else { continue };
        if matches!(fields.first().map(String::as_str), Some("Z" | "X")) {
            continue;
        }
        parents.insert(pid, fields.get(1).and_then(|p| p.parse::<i32>().ok()).unwrap_or_default());
        if belongs(pid, owner) {
            ours.insert(pid);
        }
    }
    let descends = |mut pid: i32| {
        for _ in 0..parents.len() {
            if ours.contains(&pid) {
                return true;
            }
            match parents.get(&pid) {
                Some(parent) => pid = *parent,
                None => return false,
            }
        }
        false
    };
    parents.keys().copied().filter(|pid| descends(*pid)).collect()
}

fn belongs(pid: i32, owner: &Owner) -> bool {
    let link = |name: &str| fs::read_link(format!("/proc/{pid}/{name}"));
    let program = link("exe");
    // A thread of the kernel: most of what there is, and never ours.
    if program.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
        return false;
    }
    let inside = |path: &Path| path.starts_with(&owner.directory);
    if program.is_ok_and(|path| inside(&path)) || link("cwd").is_ok_and(|path| inside(&path)) {
        return true;
    }
    let home = [b"HOME=", owner.directory.as_os_str().as_bytes(), b"/"].concat();
    let parts = |file: &str| fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
    if parts("environ").split(|b| *b == 0).any(|variable| variable.starts_with(&home)) {
        return true;
    }
    let words = parts("cmdline");
    let words: Vec<&[u8]> = words.split(|b| *b == 0).collect();
    let has = |name: &str, value: &str| words.windows(2).any(|w| w == [name.as_bytes(), value.as_bytes()]);
    has("--sandbox", owner.sandbox.as_str()) && has("--installation", &owner.installation_id)
}

/// Kills every process of the sandbox that is there now and says how many there were.
pub(super) fn kill_once(owner: &Owner) -> usize {
    let found = processes(owner);
    for pid in found.iter().filter_map(|pid| Pid::from_raw(*pid)) {
        let _ = kill_process(pid, Signal::KILL);
    }
    found.len()
}

/// Kills until nothing of the sandbox runs.
pub(super) async fn kill_all(owner: &Owner, patience: Duration) -> Result<()> {
    let deadline = Instant::now() + patience;
    loop {
        match kill_once(owner) {
            0 => return Ok(()),
            left if Instant::now() > deadline => {
                let message = format!("{left} processes of sandbox {} cannot be killed yet", owner.sandbox);
                return Err(Error::unavailable(message));
            }
            _ => tokio::time::sleep(Duration::from_millis(2)).await,
        }
    }
}

/// Stops every process of the sandbox, by signals, until none is found that runs. A parent that asks for it can see that
/// its child was stopped, and a process that had stopped itself goes on with the others: a runtime has better means.
pub(super) async fn stop_all(owner: &Owner, patience: Duration) -> Result<()> {
    let deadline = Instant::now() + patience;
    let mut quiet = 0;
    while quiet < 2 {
        let running: Vec<_> = processes(owner).into_iter().filter(|pid| !is_stopped(*pid)).collect();
        // Who waits within the kernel, for a child that borrows its memory, say, stops before it runs on.
        let moving = running.iter().filter(|pid| state(**pid).is_some_and(|state| state != "D")).count();
        quiet = if moving == 0 { quiet + 1 } else { 0 };
        if moving > 0 && Instant::now() > deadline {
            continue_all(owner);
            let message = format!("{moving} processes of sandbox {} do not stop yet", owner.sandbox);
            return Err(Error::unavailable(message));
        }
        for pid in running.into_iter().filter_map(Pid::from_raw) {
            let _ = kill_process(pid, Signal::STOP);
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok(())
}

/// Lets every process of the sandbox go on.
pub(super) fn continue_all(owner: &Owner) {
    for pid in processes(owner).into_iter().filter_map(Pid::from_raw) {
        let _ = kill_process(pid, Signal::CONT);
    }
}

/// Whether the process was stopped by a signal.
pub(super) fn is_stopped(pid: i32) -> bool {
    state(pid).is_some_and(|state| state == "T")
}

/// What the kernel says that a process does, as a letter.
fn state(pid: i32) -> Option<String> {
    stat_fields(pid)?.into_iter().next()
}

/// Processor time by process, so that the sum does not shrink when one ends.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// By number and start: clock ticks used when last looked at.
    live: HashMap<(i32, u64), u64>,
    /// Clock ticks of those that have ended since, as far as they were looked at.
    ended: u64,
}

/// Resource use of the sandbox's processes. What a process uses between the last look and its end is not counted.
pub(super) fn usage(owner: &Owner, ledger: &mut Ledger) -> RuntimeStats {
    let (mut live, mut pages, mut threads) = (HashMap::new(), 0, 0);
    for pid in processes(owner) {
        let Some(fields) = stat_fields(pid) else { continue };
        let number = |index: usize| fields.get(index).and_then(|f| f.parse::<u64>().ok()).unwrap_or_default();
        live.insert((pid, number(19)), number(11) + number(12));
        threads += number(17);
        pages += number(21);
    }
    ledger.ended +=
        ledger.live.iter().filter(|(process, _)| !live.contains_key(process)).map(|(_, t)| t).sum::<u64>();
    let ticks = ledger.ended + live.values().sum::<u64>();
    ledger.live = live;
    let per_second = rustix::param::clock_ticks_per_second().max(1);
    RuntimeStats {
        cpu_time: Duration::from_millis(ticks * 1000 / per_second),
        memory_bytes: pages * rustix::param::page_size() as u64,
        memory_limit_bytes: 0,
        pids: threads,
    }
}
