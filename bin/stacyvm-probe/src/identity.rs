//! Commands that show who the process is, what it sees, and what it is kept from.
#![expect(unsafe_code, reason = "if_nameindex, ptrace and signal state have no safe form")]

use crate::{Args, Failure, Result, files::slurp, streams::say};
use rustix::{
    fs::{CWD, FileType, Mode, OFlags},
    io::Errno,
};
use std::{ffi::CStr, os::unix::ffi::OsStrExt};

/// `id`: `key=value` lines: ids, groups, capabilities, signals and seccomp. What `/proc/self/status` of some kernels lacks
/// is asked of the kernel itself.
pub(crate) fn id() -> Result {
    let groups = rustix::process::getgroups().map_err(|e| Failure::System("getgroups", e))?;
    let groups: Vec<String> = groups.iter().map(|group| group.as_raw().to_string()).collect();
    let mut text = format!(
        "uid={}\neuid={}\ngid={}\negid={}\ngroups={}\n",
        rustix::process::getuid().as_raw(),
        rustix::process::geteuid().as_raw(),
        rustix::process::getgid().as_raw(),
        rustix::process::getegid().as_raw(),
        groups.join(","),
    );
    let status = slurp(b"/proc/self/status")?;
    let wanted = ["CapInh", "CapPrm", "CapEff", "CapBnd", "Seccomp", "Umask"];
    for line in String::from_utf8_lossy(&status).lines() {
        if let Some((key, value)) = line.split_once(':')
            && wanted.contains(&key)
        {
            text.push_str(&format!("{key}={}\n", value.trim()));
        }
    }
    let (blocked, ignored) = signal_state();
    let no_new_privs = i32::from(rustix::thread::no_new_privs().map_err(|e| Failure::System("prctl", e))?);
    text.push_str(&format!("CapAmb={:016x}\nNoNewPrivs={no_new_privs}\n", ambient_capabilities()));
    text.push_str(&format!("SigBlk={blocked:016x}\nSigIgn={ignored:016x}\n"));
    say(text.as_bytes())?;
    Ok(0)
}

/// The ambient set; empty on a kernel that has none.
fn ambient_capabilities() -> u64 {
    let is_set = |bit: &u32| {
        let capability = rustix::thread::CapabilitySet::from_bits_retain(1 << bit);
        rustix::thread::capability_is_in_ambient_set(capability).unwrap_or(false)
    };
    (0..u64::BITS).filter(is_set).map(|bit| 1 << bit).sum()
}

/// Blocked and ignored signals, as bits from signal 1 on.
fn signal_state() -> (u64, u64) {
    let (mut blocked, mut ignored) = (0, 0);
    // SAFETY: both calls only read into memory of this function, which is valid for them.
    unsafe {
        let mut mask: libc::sigset_t = std::mem::zeroed();
        libc::sigprocmask(libc::SIG_BLOCK, std::ptr::null(), &raw mut mask);
        for signal in 1..=64 {
            if libc::sigismember(&raw const mask, signal) == 1 {
                blocked |= 1_u64 << (signal - 1);
            }
            let mut action: libc::sigaction = std::mem::zeroed();
            let known = libc::sigaction(signal, std::ptr::null(), &raw mut action) == 0;
            if known && action.sa_sigaction == libc::SIG_IGN {
                ignored |= 1_u64 << (signal - 1);
            }
        }
    }
    (blocked, ignored)
}

/// `env`: each variable as `KEY=VALUE` with a NUL behind it.
pub(crate) fn env() -> Result {
    for (key, value) in std::env::vars_os() {
        say(&[key.as_bytes(), b"=", value.as_bytes(), b"\0"].concat())?;
    }
    Ok(0)
}

/// `cwd`: the working directory.
pub(crate) fn cwd() -> Result {
    let path = rustix::process::getcwd(Vec::new()).map_err(|e| Failure::System("getcwd", e))?;
    say(&[path.as_bytes(), b"\n"].concat())?;
    Ok(0)
}

/// `hostname`.
pub(crate) fn hostname() -> Result {
    say(&[rustix::system::uname().nodename().to_bytes(), b"\n"].concat())?;
    Ok(0)
}

/// `net`: the name of each network interface, a line each.
pub(crate) fn net() -> Result {
    // SAFETY: the list ends with an entry of index 0 and stays valid until it is freed; names are C strings in it.
    unsafe {
        let list = libc::if_nameindex();
        if list.is_null() {
            return Err(Failure::System("if_nameindex", Errno::IO));
        }
        let mut entry = list;
        while (*entry).if_index != 0 {
            let name = CStr::from_ptr((*entry).if_name).to_bytes().to_vec();
            say(&[name.as_slice(), b"\n"].concat())?;
            entry = entry.add(1);
        }
        libc::if_freenameindex(list);
    }
    Ok(0)
}

/// Numbers of the processes that `/proc` shows.
pub(crate) fn visible_processes() -> Result<Vec<u32>> {
    let entries = std::fs::read_dir("/proc").map_err(|_| Failure::Usage("there is no /proc"))?;
    Ok(entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
}

/// `ps`: `PID STATE COMMAND LINE` for each visible process.
pub(crate) fn ps() -> Result {
    for pid in visible_processes()? {
        let Ok(stat) = slurp(format!("/proc/{pid}/stat").as_bytes()) else { continue };
        let stat = String::from_utf8_lossy(&stat).into_owned();
        let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next()).unwrap_or('?');
        let line = slurp(format!("/proc/{pid}/cmdline").as_bytes()).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace(['\0', '\n'], " ");
        say(format!("{pid} {state} {line}\n").as_bytes())?;
    }
    Ok(0)
}

/// `fds`: `NUMBER TARGET` for each open descriptor.
pub(crate) fn fds() -> Result {
    let entries = std::fs::read_dir("/proc/self/fd").map_err(|_| Failure::Usage("there is no /proc"))?;
    // Collected first: only then is the descriptor of the listing closed.
    let names: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    for path in names {
        let Ok(target) = std::fs::read_link(&path) else { continue };
        let number = path.file_name().unwrap_or_default();
        say(&[number.as_bytes(), b" ", target.as_os_str().as_bytes(), b"\n"].concat())?;
    }
    Ok(0)
}

/// Prints `ok` or `errno N`.
pub(crate) fn report(outcome: std::result::Result<(), i32>) -> Result {
    match outcome {
        Ok(()) => say(b"ok\n")?,
        Err(errno) => say(format!("errno {errno}\n").as_bytes())?,
    }
    Ok(0)
}

/// `try WHAT [PATH]`: whether something that a sandbox must forbid is possible; prints `ok` or `errno N`.
///
/// WHAT: `read PATH`, `write PATH` (opened only, nothing is written), `mknod PATH`, `mount PATH`, `hostname` (sets the
/// name it has), `trace` (attaches to process 1), `setuid`.
pub(crate) fn attempt(args: &Args) -> Result {
    let open = |flags| -> Result {
        let opened = rustix::fs::open(args.bytes(1)?, flags | OFlags::CLOEXEC, Mode::empty());
        let outcome = opened.and_then(|file| {
            // Some files of /proc refuse only when they are read.
            let mut byte = [0];
            if flags == OFlags::RDONLY { rustix::io::read(file, &mut byte).map(drop) } else { Ok(()) }
        });
        report(outcome.map_err(Errno::raw_os_error))
    };
    let code = |outcome: i64| match outcome {
        -1 => Err(std::io::Error::last_os_error().raw_os_error().unwrap_or_default()),
        _ => Ok(()),
    };
    match args.text(0)? {
        "read" => open(OFlags::RDONLY),
        "write" => open(OFlags::WRONLY),
        "mknod" => {
            let device = rustix::fs::makedev(1, 1);
            let mode = Mode::from_raw_mode(0o600);
            let made = rustix::fs::mknodat(CWD, args.bytes(1)?, FileType::CharacterDevice, mode, device);
            report(made.map_err(Errno::raw_os_error))
        }
        "mount" => {
            let none: Option<&CStr> = None;
            let flags = rustix::mount::MountFlags::empty();
            let mounted = rustix::mount::mount("none", args.bytes(1)?, "tmpfs", flags, none);
            report(mounted.map_err(Errno::raw_os_error))
        }
        "hostname" => {
            let name = rustix::system::uname().nodename().to_bytes().to_vec();
            report(rustix::system::sethostname(&name).map_err(Errno::raw_os_error))
        }
        "trace" => {
            let nothing = std::ptr::null_mut::<libc::c_void>();
            // SAFETY: no address in this process is involved; an attached process is let go when this one ends.
            report(code(unsafe { libc::ptrace(libc::PTRACE_SEIZE, 1, nothing, nothing) }))
        }
        "setuid" => {
            // SAFETY: a system call with a plain number.
            report(code(i64::from(unsafe { libc::setuid(0) })))
        }
        _ => Err(Failure::Usage("there is no such attempt")),
    }
}
