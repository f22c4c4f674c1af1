//! Small files that are there as a whole or not at all.

use crate::{Digest, unpack::failed};
use serde::{Serialize, de::DeserializeOwned};
use stacyvm_provider::{Error, Result};
use std::{
    fs::{self, DirBuilder, File},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};

/// Largest record that is read: an image's configuration as large as may be, escaped.
const LARGEST: u64 = 32 << 20;

/// Tells apart what one process does at the same time.
static COUNTER: AtomicU64 = AtomicU64::new(0);

/// A number that this process has not used yet.
pub(super) fn next() -> u64 {
    COUNTER.fetch_add(1, Ordering::Relaxed)
}

/// Makes a directory that is its owner's only. `Ok` if it is there.
pub(super) fn make_private(path: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        result => result,
    }
}

/// Whether a record survives that the host loses power.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Durable {
    Yes,
    /// It says something about what runs, which ends with the host.
    No,
}

/// Writes `record` as `to`, by way of a file in `aside`, which is on the same filesystem.
pub(super) fn write(record: &impl Serialize, to: &Path, aside: &Path, durable: Durable) -> Result<()> {
    let json =
        serde_json::to_vec(record).map_err(|e| Error::internal("a record cannot be written").because(e))?;
    let write = || {
        let temporary = aside.join(format!("record-{}", next()));
        let mut options = fs::OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(&json)?;
        if durable == Durable::Yes {
            file.sync_all()?;
        }
        fs::rename(&temporary, to)?;
        if durable == Durable::Yes { sync_parent(to) } else { Ok(()) }
    };
    write().map_err(|e| failed(format_args!("write {}", to.display()), e))
}

/// Makes a name that was given or taken away survive a loss of power.
pub(super) fn sync_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}

/// Reads a record. None if there is none, or if it is no record: those are written as a whole, so something else broke it.
pub(super) fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let read = || {
        let mut bytes = Vec::new();
        File::open(path)?.take(LARGEST).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    match read() {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
        Err(e) if is_gone(&e) => Ok(None),
        Err(e) => Err(failed(format_args!("read {}", path.display()), e)),
    }
}

/// Removes a file, which may be gone already.
pub(super) fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if !is_gone(&e) => Err(failed(format_args!("remove {}", path.display()), e)),
        _ => Ok(()),
    }
}

/// Names in a directory; those that are no text are not ours.
pub(super) fn names(directory: &Path) -> Result<Vec<String>> {
    let list = || fs::read_dir(directory)?.map(|e| Ok(e?.file_name())).collect::<io::Result<Vec<_>>>();
    match list() {
        Ok(names) => Ok(names.into_iter().filter_map(|n| n.into_string().ok()).collect()),
        Err(e) if is_gone(&e) => Ok(Vec::new()),
        Err(e) => Err(failed(format_args!("list {}", directory.display()), e)),
    }
}

/// The digest that a file or directory is named by.
pub(super) fn digest_of(name: &str) -> Option<Digest> {
    format!("sha256:{}", name.strip_suffix(".json").unwrap_or(name)).parse().ok()
}

fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}
