//! Installations that live as long as one `stacyvm run`: `<data_dir>/run/<id>`, each with a lock of its own.
//!
//! Whoever ends normally removes its own. After `kill -9`, the native spawner removes the sandbox and then the directory.
//! If that dies too (a power cut, say), the next run finds a directory whose lock is free and removes what is left.
//!
//! `<data_dir>/run/lock` is held while one of them is made or looked at, so that none is taken for left over between its
//! making and its locking.

use crate::{
    failure::{Failure, Result},
    installation::{make_private, new_id},
    lock::{Lock, Refused},
    providers,
};
use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use stacyvm_provider::Provider;
use std::{
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

/// An installation for one run.
#[derive(Debug)]
pub(crate) struct Scratch {
    directory: PathBuf,
    lock: Lock,
    id: String,
}

impl Scratch {
    /// Makes and locks one below `data_dir`. Also returns those that were left over, locked, for [`Scratch::clean`].
    pub(crate) fn make(data_dir: &Path) -> Result<(Self, Vec<Self>)> {
        let runs = data_dir.join("run");
        let failed = |error: io::Error| {
            let what = format!("the data directory {} cannot be used: {error}", data_dir.display());
            Failure::new(what, "choose another with --data-dir (STACYVM_DATA_DIR)")
        };
        make_private(&runs).map_err(failed)?;
        let _turn = turn(&runs).map_err(failed)?;
        let left = left_over(&runs).map_err(failed)?;
        let id = new_id();
        let directory = runs.join(&id);
        make_private(&directory).map_err(failed)?;
        let lock = Lock::try_take(&directory).map_err(|refused| match refused {
            Refused::Held { .. } => failed(io::Error::other("two runs have the same name")),
            Refused::Failed(error) => failed(error),
        })?;
        Ok((Self { directory, lock, id }, left))
    }

    /// Its directory.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Its lock.
    pub(crate) fn lock(&self) -> &Lock {
        &self.lock
    }

    /// Its name: no other installation has it.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// Removes the directory, which holds nothing alive any more.
    pub(crate) fn remove(&self) {
        if let Err(error) = remove(&self.directory) {
            tracing::warn!(directory = %self.directory.display(), %error, "a directory of ours is left");
        }
    }

    /// Destroys what an earlier run left and removes its directory. What cannot be destroyed stays for the next run.
    pub(crate) async fn clean(self, agent: &'static [u8]) {
        let outcome = async {
            // A higher generation than any: whatever the dead run's agent still listens to, it listens to us first.
            let native =
                providers::native(&self.directory, &self.id, u64::from(u32::MAX), agent, &self.lock, None)?;
            for sandbox in native.list().await? {
                native.destroy(&sandbox.id).await?;
            }
            Ok::<(), Failure>(())
        };
        match outcome.await {
            Ok(()) => self.remove(),
            Err(failure) => {
                tracing::warn!(directory = %self.directory.display(), failure = failure.what, "an earlier run is left");
            }
        }
    }
}

/// Waits for our turn to make or look at directories. Others hold it for moments only.
fn turn(runs: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = rustix::fs::open(runs.join(crate::lock::NAME), flags, Mode::from_raw_mode(0o600))?;
    rustix::io::retry_on_intr(|| flock(&file, FlockOperation::LockExclusive))?;
    Ok(file)
}

/// Directories whose run is over, locked by us now. Names that are none of ours are left alone.
fn left_over(runs: &Path) -> io::Result<Vec<Scratch>> {
    let mut left = Vec::new();
    for entry in fs::read_dir(runs)? {
        let entry = entry?;
        let Some(id) = entry.file_name().to_str().filter(|name| is_id(name)).map(str::to_owned) else {
            continue;
        };
        if !entry.file_type()?.is_dir() {
            continue;
        }
        match Lock::try_take(&entry.path()) {
            Ok(lock) => left.push(Scratch { directory: entry.path(), lock, id }),
            Err(Refused::Held { .. }) => {}
            // It went away while we looked.
            Err(Refused::Failed(error)) if error.kind() == io::ErrorKind::NotFound => {}
            Err(Refused::Failed(error)) => return Err(error),
        }
    }
    Ok(left)
}

fn is_id(name: &str) -> bool {
    name.len() == 12 && name.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// Removes a directory of a run. The lock goes last, so that a removal that is cut short is found and finished.
fn remove(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_name() == crate::lock::NAME {
            continue;
        }
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    fs::remove_dir_all(directory)
}

/// What the spawner does last: removes the directory of a run that was killed, if nothing is alive in it.
pub(crate) fn remove_after_spawner(directory: &Path) {
    // Ours by shape, whatever the argument says.
    if !directory.is_absolute() || !directory.file_name().and_then(|name| name.to_str()).is_some_and(is_id) {
        return;
    }
    let Ok(_lock) = Lock::try_take(directory) else { return };
    // A sandbox that could not be destroyed still needs its records; the next run tries again.
    let empty =
        |name: &str| fs::read_dir(directory.join(name)).map_or(true, |mut entries| entries.next().is_none());
    if empty("sandboxes") {
        let _ = remove(directory);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_over_is_found_and_what_is_in_use_is_not() {
        let data_dir = tempfile::tempdir().unwrap();
        let (first, left) = Scratch::make(data_dir.path()).unwrap();
        assert!(left.is_empty());
        let (second, left) = Scratch::make(data_dir.path()).unwrap();
        assert!(left.is_empty());
        fs::create_dir(data_dir.path().join("run/other")).unwrap();
        let directory = first.directory().to_owned();
        drop(first);
        let (third, left) = Scratch::make(data_dir.path()).unwrap();
        assert_eq!(left.iter().map(Scratch::directory).collect::<Vec<_>>(), [directory]);
        left.iter().chain([&second, &third]).for_each(Scratch::remove);
        let mut names: Vec<_> =
            fs::read_dir(data_dir.path().join("run")).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["lock", "other"]);
    }

    #[test]
    fn the_spawner_removes_only_a_run_that_is_over_and_empty() {
        let data_dir = tempfile::tempdir().unwrap();
        let (scratch, _) = Scratch::make(data_dir.path()).unwrap();
        let directory = scratch.directory().to_owned();
        remove_after_spawner(&directory);
        assert!(directory.exists(), "it is in use");
        drop(scratch);
        fs::create_dir_all(directory.join("sandboxes/sb-1")).unwrap();
        remove_after_spawner(&directory);
        assert!(directory.exists(), "a sandbox is left");
        fs::remove_dir(directory.join("sandboxes/sb-1")).unwrap();
        fs::create_dir_all(directory.join("images/host")).unwrap();
        remove_after_spawner(&directory);
        assert!(!directory.exists());
        let other = data_dir.path().join("other");
        fs::create_dir(&other).unwrap();
        remove_after_spawner(&other);
        assert!(other.exists());
    }
}
