//! The lock of a data directory: one control plane at a time.
//!
//! The lock is the kernel's, on an open file; it goes when the last process that has the file open ends, so a killed
//! server leaves none. The native spawner keeps it a little longer, while it cleans up behind a server that died.

use rustix::{
    fd::OwnedFd,
    fs::{FlockOperation, Mode, OFlags, flock},
    io::Errno,
};
use std::{
    io,
    path::Path,
    time::{Duration, Instant},
};

/// Name of the lock file in its directory.
pub(crate) const NAME: &str = "lock";
/// How long the spawner of a dead server is waited for.
const CLEAN_UP: Duration = Duration::from_secs(20);

/// A held lock.
#[derive(Debug)]
pub(crate) struct Lock(OwnedFd);

/// Why a lock was not had.
#[derive(Debug)]
pub(crate) enum Refused {
    /// A live process has it.
    Held {
        /// Which, as far as the file says.
        pid: Option<i32>,
    },
    /// The file cannot be opened or locked.
    Failed(io::Error),
}

impl Lock {
    /// Takes the lock of `directory` now, or not at all.
    pub(crate) fn try_take(directory: &Path) -> Result<Self, Refused> {
        let Self(file) = Self::open(directory, FlockOperation::NonBlockingLockExclusive)?;
        // Only for the message to whoever comes second, so a full disk is no reason to stop.
        let _ = rustix::fs::ftruncate(&file, 0);
        let _ = rustix::io::pwrite(&file, format!("{}\n", std::process::id()).as_bytes(), 0);
        Ok(Self(file))
    }

    /// Shares the lock of `directory` with others that share it: together they keep it from being taken.
    pub(crate) fn share(directory: &Path) -> Result<Self, Refused> {
        Self::open(directory, FlockOperation::NonBlockingLockShared)
    }

    fn open(directory: &Path, operation: FlockOperation) -> Result<Self, Refused> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = rustix::fs::open(directory.join(NAME), flags, Mode::from_raw_mode(0o600))
            .map_err(|e| Refused::Failed(e.into()))?;
        match flock(&file, operation) {
            Ok(()) => Ok(Self(file)),
            Err(Errno::WOULDBLOCK) => Err(Refused::Held { pid: holder(&file) }),
            Err(error) => Err(Refused::Failed(error.into())),
        }
    }

    /// Takes the lock of `directory`. One that a dead server's spawner still has is waited for.
    pub(crate) fn take(directory: &Path) -> Result<Self, Refused> {
        let started = Instant::now();
        loop {
            match Self::try_take(directory) {
                Err(Refused::Held { pid }) if !pid.is_some_and(is_alive) && started.elapsed() < CLEAN_UP => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                outcome => return outcome,
            }
        }
    }

    /// Another handle to the same lock: it is held until all handles are closed.
    pub(crate) fn handle(&self) -> io::Result<OwnedFd> {
        self.0.try_clone()
    }
}

fn holder(file: &OwnedFd) -> Option<i32> {
    let mut buffer = [0; 16];
    let length = rustix::io::pread(file, &mut buffer, 0).ok()?;
    std::str::from_utf8(&buffer[..length]).ok()?.trim().parse().ok()
}

fn is_alive(pid: i32) -> bool {
    let Some(pid) = rustix::process::Pid::from_raw(pid) else { return false };
    !matches!(rustix::process::test_kill_process(pid), Err(Errno::SRCH))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_and_the_second_learns_who() {
        let dir = tempfile::tempdir().unwrap();
        let first = Lock::take(dir.path()).unwrap();
        let us = i32::try_from(std::process::id()).unwrap();
        assert!(matches!(Lock::take(dir.path()), Err(Refused::Held { pid: Some(pid) }) if pid == us));
        let handle = first.handle().unwrap();
        drop(first);
        assert!(matches!(Lock::try_take(dir.path()), Err(Refused::Held { .. })));
        drop(handle);
        Lock::take(dir.path()).unwrap();
    }

    #[test]
    fn those_who_share_it_keep_it_from_being_taken() {
        let dir = tempfile::tempdir().unwrap();
        let first = Lock::share(dir.path()).unwrap();
        let second = Lock::share(dir.path()).unwrap();
        drop(first);
        assert!(matches!(Lock::try_take(dir.path()), Err(Refused::Held { .. })));
        drop(second);
        let _taken = Lock::try_take(dir.path()).unwrap();
        assert!(matches!(Lock::share(dir.path()), Err(Refused::Held { .. })));
    }

    #[test]
    fn a_directory_that_is_not_there() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(Lock::take(&dir.path().join("none")), Err(Refused::Failed(_))));
    }
}
