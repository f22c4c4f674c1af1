//! Locks that end with the process that has them, whatever it died of.

use rustix::{
    fs::{FlockOperation, Mode, OFlags},
    io::Errno,
};
use stacyvm_provider::{Error, Result};
use std::{
    fs::File,
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

/// Longest pause between two tries.
const PAUSE: Duration = Duration::from_millis(20);

/// A file that only one has locked, among all threads and processes.
#[derive(Debug)]
pub(super) struct Lock {
    path: PathBuf,
    _file: File,
}

impl Lock {
    /// Waits for the lock `path`, whose file is made if it is missing. `what` is what it protects, for the error.
    ///
    /// # Errors
    /// `Unavailable` if another one has it for `patience`.
    pub(super) fn wait(path: &Path, patience: Duration, what: &str) -> Result<Self> {
        let started = Instant::now();
        let mut pause = Duration::from_millis(1);
        loop {
            match Self::attempt(path).map_err(|e| crate::unpack::failed(format_args!("lock {what}"), e))? {
                Some(lock) => return Ok(lock),
                None if started.elapsed() > patience => {
                    return Err(Error::unavailable(format!(
                        "{what} is used by another process for more than {} s: wait for it or end it, then try again",
                        patience.as_secs()
                    )));
                }
                None => thread::sleep(pause),
            }
            pause = (pause * 2).min(PAUSE);
        }
    }

    /// Takes the lock if nobody has it.
    pub(super) fn attempt(path: &Path) -> io::Result<Option<Self>> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        loop {
            let file = File::from(rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR)?);
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => return Ok(None),
                Err(Errno::INTR) => continue,
                Err(e) => return Err(e.into()),
            }
            // Whoever had it may have removed the file, and another one may have made and locked a new one.
            let ours = file.metadata()?;
            match std::fs::symlink_metadata(path) {
                Ok(there) if (there.dev(), there.ino()) == (ours.dev(), ours.ino()) => {
                    return Ok(Some(Self { path: path.to_owned(), _file: file }));
                }
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    if path.parent().is_none_or(|parent| !parent.exists()) {
                        return Err(e);
                    }
                }
                Err(e) => return Err(e),
            }
        }
    }

    /// The same lock, whose file goes when it is given back.
    pub(super) fn temporary(self) -> Temporary {
        Temporary(self)
    }
}

/// A lock that leaves no file.
#[derive(Debug)]
pub(super) struct Temporary(Lock);

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_also_when_the_file_goes() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("lock");
        let inside = std::sync::atomic::AtomicU32::new(0);
        thread::scope(|scope| {
            for thread in 0..8 {
                let (path, inside) = (&path, &inside);
                scope.spawn(move || {
                    for round in 0..50 {
                        let lock = Lock::wait(path, Duration::from_secs(60), "a test").unwrap();
                        assert_eq!(inside.fetch_add(1, std::sync::atomic::Ordering::SeqCst), 0);
                        inside.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
                        if (thread + round) % 3 == 0 {
                            drop(lock.temporary());
                        }
                    }
                });
            }
        });
    }

    #[test]
    fn who_waits_too_long_is_told_for_what() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("lock");
        let _held = Lock::attempt(&path).unwrap().unwrap();
        assert!(Lock::attempt(&path).unwrap().is_none());
        let error = Lock::wait(&path, Duration::from_millis(30), "the layer x").unwrap_err();
        assert_eq!(error.kind(), stacyvm_provider::ErrorKind::Unavailable);
        assert!(error.message().starts_with("the layer x is used by another process"), "{error}");
        assert!(Lock::attempt(&tmp.path().join("gone/lock")).is_err());
    }
}
