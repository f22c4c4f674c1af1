//! Installations that live as long as one `stacyvm run`: `<data_dir>/run/<id>`.
//!
//! Whoever ends normally removes its own. After `kill -9`, the native spawner removes the sandbox and then the directory.
//! If that dies too (a power cut, say), the next run finds a directory whose lock is free and removes what is left. Run
//! and spawner share the lock, so that it is free when both are gone.
//!
//! What the image `host` is built into is the same for all of them and takes longer to build than a sandbox takes to
//! start, so it stays, in `<data_dir>/run/images`. `<data_dir>/run/lock` is held while a directory is made or looked at,
//! so that none is taken for left over between its making and its locking.

use crate::{
    failure::{Failure, Result},
    installation::{make_private, new_id},
    lock::{Lock, Refused},
    providers,
};
use rustix::{
    fs::{FlockOperation, Mode, OFlags, flock},
    io::Errno,
};
use stacyvm_provider::Provider;
use std::{
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Longest wait for others that make a directory.
const TURN: Duration = Duration::from_secs(15);

/// Where built images are, below the directory of all runs and, as a link, in each of them.
const IMAGES: &str = "images";

/// An installation for one run.
#[derive(Debug)]
pub(crate) struct Scratch {
    directory: PathBuf,
    _lock: Lock,
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
        make_private(&runs.join(IMAGES)).map_err(failed)?;
        let _turn = turn(&runs).map_err(failed)?;
        let (left, alone) = left_over(&runs).map_err(failed)?;
        if alone {
            remove_old_images(&runs.join(IMAGES));
        }
        let id = new_id();
        let directory = runs.join(&id);
        make_private(&directory).map_err(failed)?;
        let lock = Lock::share(&directory).map_err(|refused| match refused {
            Refused::Held { .. } => failed(io::Error::other("two runs have the same name")),
            Refused::Failed(error) => failed(error),
        })?;
        std::os::unix::fs::symlink(Path::new("..").join(IMAGES), directory.join(IMAGES)).map_err(failed)?;
        Ok((Self { directory, _lock: lock, id }, left))
    }

    /// Its directory.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Its name: no other installation has it.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// Removes the directory, unless something in it could not be destroyed.
    pub(crate) fn remove(&self) {
        if let Err(error) = remove(&self.directory) {
            tracing::warn!(directory = %self.directory.display(), %error, "a directory of ours is left");
        }
    }

    /// Destroys what an earlier run left and removes its directory. What cannot be destroyed stays for the next run.
    pub(crate) async fn clean(self, agent: &'static [u8]) {
        let outcome = async {
            // A higher generation than any: whatever the dead run's agent still listens to, it listens to us first.
            let native = providers::native(
                &self.directory,
                &self.id,
                u64::from(u32::MAX),
                agent,
                providers::Native::default(),
            )?;
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

/// Waits for our turn to make or look at directories. Others hold it for moments only, unless they are stopped.
fn turn(runs: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = rustix::fs::open(runs.join(crate::lock::NAME), flags, Mode::from_raw_mode(0o600))?;
    let started = Instant::now();
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(Errno::WOULDBLOCK) if started.elapsed() < TURN => {
                std::thread::sleep(Duration::from_millis(2));
            }
            Err(Errno::WOULDBLOCK) => {
                return Err(io::Error::other("another run has kept its lock for long; is one stopped?"));
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Directories whose run is over, locked by us now, and whether there is none whose run is not. Names that are none of
/// ours are left alone.
fn left_over(runs: &Path) -> io::Result<(Vec<Scratch>, bool)> {
    let mut left = Vec::new();
    let mut alone = true;
    for entry in fs::read_dir(runs)? {
        let entry = entry?;
        let Some(id) = entry.file_name().to_str().filter(|name| is_id(name)).map(str::to_owned) else {
            continue;
        };
        if !entry.file_type()?.is_dir() {
            continue;
        }
        match Lock::try_take(&entry.path()) {
            Ok(lock) => left.push(Scratch { directory: entry.path(), _lock: lock, id }),
            Err(Refused::Held { .. }) => alone = false,
            // It went away while we looked.
            Err(Refused::Failed(error)) if error.kind() == io::ErrorKind::NotFound => {}
            Err(Refused::Failed(error)) => return Err(error),
        }
    }
    Ok((left, alone))
}

/// Keeps the newest image and removes the others: they are of a host that was different then. To be called while no run
/// uses any.
fn remove_old_images(images: &Path) {
    let Ok(entries) = fs::read_dir(images) else { return };
    let age = |entry: &fs::DirEntry| entry.metadata().and_then(|metadata| metadata.modified()).ok();
    let (complete, mut old): (Vec<_>, Vec<_>) = entries
        .flatten()
        .partition(|entry| entry.file_name().to_str().is_some_and(|name| !name.starts_with('.')));
    let newest = complete.iter().filter_map(age).max();
    old.extend(complete.into_iter().filter(|entry| age(entry) != newest));
    for entry in old {
        let _ = fs::remove_dir_all(entry.path());
    }
}

fn is_id(name: &str) -> bool {
    name.len() == 12 && name.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// Removes a directory of a run, unless something in it could not be destroyed and still needs its records. The lock goes
/// last, so that a removal that is cut short is found and finished.
fn remove(directory: &Path) -> io::Result<()> {
    let sandboxes = directory.join("sandboxes");
    match fs::remove_dir(&sandboxes) {
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => return Err(error),
        _ => {}
    }
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

/// What the spawner does around its work: it keeps the directory of its run from being taken for left over, and removes
/// it when the run was killed and nothing in it is alive.
#[derive(Debug)]
pub(crate) struct Spawned {
    directory: PathBuf,
    shared: Option<Lock>,
}

impl Spawned {
    /// Of a directory of a run; of nothing if the path has not the shape of one.
    pub(crate) fn of(directory: PathBuf) -> Option<Self> {
        let ours = directory.is_absolute()
            && directory.file_name().and_then(|name| name.to_str()).is_some_and(is_id);
        let shared = Lock::share(&directory).ok();
        ours.then_some(Self { directory, shared })
    }

    /// The spawner is done.
    pub(crate) fn finish(mut self) {
        self.shared = None;
        if let Ok(_lock) = Lock::try_take(&self.directory) {
            // What is left is for the next run.
            let _ = remove(&self.directory);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

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
        assert_eq!(names(&data_dir.path().join("run")), ["images", "lock", "other"]);
    }

    #[test]
    fn images_are_shared_and_old_ones_go_when_nobody_uses_them() {
        let data_dir = tempfile::tempdir().unwrap();
        let images = data_dir.path().join("run/images");
        let (first, _) = Scratch::make(data_dir.path()).unwrap();
        for name in ["host-1", "host-2", ".host-half"] {
            fs::create_dir(first.directory().join("images").join(name)).unwrap();
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        let (second, _) = Scratch::make(data_dir.path()).unwrap();
        assert_eq!(names(&images), [".host-half", "host-1", "host-2"], "somebody may be using them");
        first.remove();
        second.remove();
        drop((first, second));
        let (third, _) = Scratch::make(data_dir.path()).unwrap();
        assert_eq!(names(&images), ["host-2"]);
        third.remove();
    }

    #[test]
    fn the_spawner_removes_only_a_run_that_is_over_and_empty() {
        let data_dir = tempfile::tempdir().unwrap();
        let (scratch, _) = Scratch::make(data_dir.path()).unwrap();
        let directory = scratch.directory().to_owned();
        let spawned = || Spawned::of(directory.clone()).unwrap();
        spawned().finish();
        assert!(directory.exists(), "it is in use");
        let waiting = spawned();
        drop(scratch);
        assert!(Scratch::make(data_dir.path()).unwrap().1.is_empty(), "the spawner is at work");
        fs::create_dir_all(directory.join("sandboxes/sb-1")).unwrap();
        waiting.finish();
        assert!(directory.exists(), "a sandbox is left");
        fs::remove_dir(directory.join("sandboxes/sb-1")).unwrap();
        fs::create_dir_all(directory.join("trash/x")).unwrap();
        spawned().finish();
        assert!(!directory.exists() && data_dir.path().join("run/images").exists());
        assert!(Spawned::of(data_dir.path().join("other")).is_none());
    }
}
