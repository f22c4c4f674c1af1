//! Naming a process so that a recycled number is never mistaken for it, across restarts of the server and the host.

use crate::sys;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fd::{AsFd, BorrowedFd, OwnedFd},
    io::Errno,
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};
use serde::{Deserialize, Serialize};
use std::{
    fs, io,
    sync::OnceLock,
    time::{Duration, Instant},
};

/// One process, for good: its number, when it started, and in which run of the kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    pub(crate) pid: i32,
    /// Clock ticks after boot, as in `/proc/<pid>/stat`.
    pub(crate) start_time: u64,
    pub(crate) boot_id: String,
}

/// What `/proc/<pid>/stat` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stat {
    pub(crate) state: u8,
    pub(crate) start_time: u64,
    /// Processor time of the process and of its children that ended and were waited for, in clock ticks.
    pub(crate) ticks: u64,
    pub(crate) threads: u64,
    pub(crate) resident_pages: u64,
}

impl Identity {
    /// The process that has this number now.
    ///
    /// The caller must know that it has not ended (it holds its descriptor, say).
    pub(crate) fn of(pid: i32) -> io::Result<Self> {
        let stat = stat(pid)?;
        Ok(Self { pid, start_time: stat.start_time, boot_id: boot_id()?.to_owned() })
    }

    /// A descriptor of the process if it still runs.
    ///
    /// # Errors
    /// Only if the system cannot tell; a process that has ended is `Ok(None)`.
    pub(crate) fn open(&self) -> io::Result<Option<OwnedFd>> {
        if self.boot_id != boot_id()? {
            return Ok(None);
        }
        let Some(pid) = Some(self.pid).filter(|p| *p > 1).and_then(Pid::from_raw) else { return Ok(None) };
        // Descriptor first, comparison second: if the number was recycled before the descriptor was made, the start
        // time differs; if it is recycled afterwards, the descriptor stays with the process that had it.
        let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            Err(Errno::SRCH) => return Ok(None),
            Err(e) => return Err(e.into()),
        };
        match stat(self.pid) {
            Ok(stat) if stat.start_time == self.start_time && !ended(pidfd.as_fd())? => Ok(Some(pidfd)),
            Ok(_) => Ok(None),
            Err(e) if gone(&e) => Ok(None),
            Err(e) => Err(e),
        }
    }
}

fn gone(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::ESRCH | libc::ENOENT))
}

/// The kernel's name for its current run.
pub(crate) fn boot_id() -> io::Result<&'static str> {
    static BOOT_ID: OnceLock<String> = OnceLock::new();
    if let Some(id) = BOOT_ID.get() {
        return Ok(id);
    }
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned();
    Ok(BOOT_ID.get_or_init(|| id))
}

/// Reads `/proc/<pid>/stat`.
pub(crate) fn stat(pid: i32) -> io::Result<Stat> {
    let bytes = fs::read(format!("/proc/{pid}/stat"))?;
    parse_stat(&bytes).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
}

fn parse_stat(bytes: &[u8]) -> Option<Stat> {
    // The command name is in parentheses and may hold anything, more parentheses included.
    let end = bytes.iter().rposition(|b| *b == b')')?;
    let rest = std::str::from_utf8(bytes.get(end + 1..)?).ok()?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    // `fields[0]` is field 3 of proc_pid_stat(5).
    let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
    Some(Stat {
        state: *fields.first()?.as_bytes().first()?,
        ticks: [14, 15, 16, 17].into_iter().map(|f| number(f).unwrap_or(0)).sum(),
        threads: number(20)?,
        start_time: number(22)?,
        resident_pages: number(24)?,
    })
}

/// Whether the process has ended (a zombie has).
pub(crate) fn ended(pidfd: BorrowedFd<'_>) -> io::Result<bool> {
    wait(pidfd, Duration::ZERO)
}

/// Waits for the end of the process; false if it has not ended within `limit`.
pub(crate) fn wait(pidfd: BorrowedFd<'_>, limit: Duration) -> io::Result<bool> {
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec {
            tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        };
        match poll(&mut [PollFd::from_borrowed_fd(pidfd, PollFlags::IN)], Some(&timeout)) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// Kills the process.
pub(crate) fn kill(pidfd: BorrowedFd<'_>) -> io::Result<()> {
    match pidfd_send_signal(pidfd, Signal::KILL) {
        Ok(()) | Err(Errno::SRCH) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// Kills the process and waits for its end; false if it has not ended within `limit`.
pub(crate) fn kill_and_wait(pidfd: BorrowedFd<'_>, limit: Duration) -> io::Result<bool> {
    kill(pidfd)?;
    wait(pidfd, limit)
}

/// How a process ended, in words, where the kernel still knows.
pub(crate) fn how_it_ended(pidfd: BorrowedFd<'_>) -> Option<String> {
    let status = sys::exit_status(pidfd)?;
    Some(if libc::WIFSIGNALED(status) {
        format!("killed by signal {}", libc::WTERMSIG(status))
    } else {
        format!("exited with status {}", libc::WEXITSTATUS(status))
    })
}

/// Numbers of a process and all its descendants, at most `limit` of them.
///
/// In a process that is the first of its namespace these are all processes of the namespace.
pub(crate) fn tree(pid: i32, limit: usize) -> Vec<i32> {
    let mut found = vec![pid];
    let mut next = 0;
    while next < found.len() && found.len() < limit {
        let Ok(threads) = fs::read_dir(format!("/proc/{}/task", found[next])) else {
            next += 1;
            continue;
        };
        for thread in threads.flatten() {
            let children = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
            found.extend(children.split_ascii_whitespace().filter_map(|p| p.parse::<i32>().ok()));
        }
        next += 1;
    }
    found.truncate(limit);
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::process::Command;

    fn sleeper() -> std::process::Child {
        Command::new("sleep").arg("600").spawn().unwrap()
    }

    #[test]
    fn a_running_process_is_found_and_an_ended_one_is_not() {
        let mut child = sleeper();
        let identity = Identity::of(child.id() as i32).unwrap();
        let pidfd = identity.open().unwrap().unwrap();
        assert!(!ended(pidfd.as_fd()).unwrap());
        assert!(kill_and_wait(pidfd.as_fd(), Duration::from_secs(10)).unwrap());
        // A zombie, not waited for yet, has ended too.
        assert!(identity.open().unwrap().is_none());
        child.wait().unwrap();
        assert!(identity.open().unwrap().is_none());
    }

    #[test]
    fn a_recycled_number_is_another_process() {
        let mut child = sleeper();
        let real = Identity::of(child.id() as i32).unwrap();
        let recycled = Identity { start_time: real.start_time + 1, ..real.clone() };
        let mut other_boot = real.clone();
        other_boot.boot_id = "00000000-0000-0000-0000-000000000000".to_owned();
        assert!(recycled.open().unwrap().is_none());
        assert!(other_boot.open().unwrap().is_none());
        assert!(real.open().unwrap().is_some());
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn numbers_that_mean_groups_or_init_are_never_opened() {
        for pid in [i32::MIN, -1, 0, 1] {
            let identity = Identity { pid, start_time: 0, boot_id: boot_id().unwrap().to_owned() };
            assert!(identity.open().unwrap().is_none());
        }
    }

    #[test]
    fn a_command_name_cannot_forge_fields() {
        let line = b"42 (a) S 1 (b)) R 1 42 42 0 -1 4194304 1 0 0 0 3 4 5 6 20 0 7 0 12345 1000 99 0";
        let stat = parse_stat(line).unwrap();
        assert_eq!((stat.state, stat.start_time, stat.ticks, stat.threads), (b'R', 12345, 18, 7));
        assert_eq!(stat.resident_pages, 99);
    }

    #[test]
    fn a_tree_holds_grandchildren() {
        let mut child = Command::new("sh").args(["-c", "sleep 600 & wait"]).spawn().unwrap();
        let pid = child.id() as i32;
        let deadline = Instant::now() + Duration::from_secs(10);
        let tree = loop {
            let tree = tree(pid, 100);
            if tree.len() == 2 || Instant::now() > deadline {
                break tree;
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        assert_eq!(tree.len(), 2);
        assert_eq!(tree[0], pid);
        let grandchild = Identity::of(tree[1]).unwrap().open().unwrap().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(kill_and_wait(grandchild.as_fd(), Duration::from_secs(10)).unwrap());
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse_stat(&bytes);
        }
    }
}
