//! Images as files beneath one directory, shared by all processes that open it.
//!
//! ```text
//! layers/<diff id>/    layer.json and fs/, an unpacked layer; never changed
//! images/<id>.json     configuration and origin; its time is that of the last use
//! names/<digest>.json  a name, and the image that it leads to
//! held/<digest>.json   a directory whose owner uses an image
//! partial/             downloads that may be gone on with
//! staging/<any>/       what one process is making; it has the lock of it
//! locks/, lock         locks, by flock: they end with their process
//! form                 whether root made this
//! ```
//!
//! What has its place is complete: it was made in `staging/`, synced and renamed. Whoever is killed leaves things in
//! `staging/` only, which the next one removes whose try for the lock in it succeeds.
//!
//! **What is needed** is decided with `lock` held, and only then. Under it are made: a name, a record, a holder, and a *need*,
//! which is a file in `staging/<any>/needs/` for a layer that a pull or an import is going to use, made before it looks whether
//! the layer is there. Garbage collection reads all of them and moves what none needs to its own staging directory under the
//! same lock, so either it sees the need, or who has the need sees that the layer is gone. Deleting files, which takes long,
//! comes after. Nothing else waits under `lock`: layers are unpacked before with the layer's own lock held, so that of several
//! who want a layer one unpacks it and the others find it.
//!
//! An image in use stays: **holders** are files that name a directory of the holder, because sandboxes outlive this program.
//! They count while that directory exists, and list the layers themselves, so that those stay even if the image is removed
//! with force. They are not synced: no sandbox survives what loses them.

mod collect;
mod files;
mod hold;
mod image;
mod lock;
mod pulls;
mod records;
mod room;
mod work;

#[cfg(test)]
mod tests;

pub use collect::{Collect, Collected, Removed};
pub use image::{Image, Rootfs};
pub use work::{Origin, Work};

use crate::{
    Digest,
    unpack::{Limits, failed},
};
use lock::Lock;
use stacyvm_provider::{Error, Result};
use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

/// What a store may take.
#[derive(Debug, Clone)]
pub struct StoreLimits {
    /// Bytes of disk for all layers together. Images that nobody holds go when it is reached, longest unused first.
    pub bytes: Option<u64>,
    /// What one layer may be.
    pub layer: Limits,
    /// How long to wait for others that unpack the same layer.
    pub patience: Duration,
}

impl Default for StoreLimits {
    fn default() -> Self {
        Self { bytes: None, layer: Limits::default(), patience: Duration::from_secs(1800) }
    }
}

/// How long the lock over all may be held by others: they do nothing that takes long.
const PATIENCE: Duration = Duration::from_secs(60);

/// A store of images. Clones are the same store; all methods block.
#[derive(Debug, Clone)]
pub struct Store(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    root: PathBuf,
    limits: StoreLimits,
    /// What pulls of this process share.
    pulls: Mutex<Weak<Work>>,
}

impl Store {
    /// Opens the store in the directory `root`, which is made if it is missing; what else is in there is left alone. What
    /// killed processes left half made is removed.
    ///
    /// # Errors
    /// `InvalidArgument` if the store was made with root and is opened without, or the other way round: owners and marks of
    /// its layers would be wrong.
    pub fn open(root: &Path, limits: StoreLimits) -> Result<Self> {
        let store = Self(Arc::new(Inner { root: root.to_owned(), limits, pulls: Mutex::default() }));
        let make = || -> io::Result<()> {
            fs::create_dir_all(root)?;
            for name in ["layers", "images", "names", "held", "partial", "staging", "locks"] {
                files::make_private(&root.join(name))?;
            }
            Ok(())
        };
        make().map_err(|e| failed(format_args!("make the image store {}", root.display()), e))?;
        let form = if rustix::process::geteuid().is_root() { "root" } else { "user" };
        let work = store.work()?;
        {
            let _lock = store.lock()?;
            let path = root.join("form");
            match files::read::<String>(&path)? {
                Some(there) if there == form => {}
                Some(there) => {
                    let by = if there == "root" { "root" } else { "a user without root" };
                    return Err(Error::invalid_argument(format!(
                        "the image store {} was made by {by}: open it as that user, or use another directory",
                        root.display()
                    )));
                }
                None => files::write(&form, &path, work.directory(), files::Durable::Yes)?,
            }
        }
        store.sweep(&work)?;
        Ok(store)
    }

    /// The directory it is in.
    pub fn root(&self) -> &Path {
        &self.0.root
    }

    /// What it may take.
    pub fn limits(&self) -> &StoreLimits {
        &self.0.limits
    }

    /// The directory of downloads.
    fn partials(&self) -> PathBuf {
        self.0.root.join("partial")
    }

    /// Whether the layer is there. It may go at any time if it is not needed.
    fn is_there(&self, diff_id: &Digest) -> bool {
        self.layer(diff_id).join("layer.json").exists()
    }

    /// The lock over what is needed.
    fn lock(&self) -> Result<Lock> {
        Lock::wait(&self.0.root.join("lock"), PATIENCE, "the image store")
    }

    fn layer(&self, diff_id: &Digest) -> PathBuf {
        self.0.root.join("layers").join(diff_id.hex())
    }

    fn record(&self, id: &Digest) -> PathBuf {
        self.0.root.join("images").join(format!("{}.json", id.hex()))
    }

    fn staging(&self) -> PathBuf {
        self.0.root.join("staging")
    }
}
