//! What was made so far, and whether there is room for more: on the disk, and within the limits.

use super::{Limits, exceeded, failed};
use rustix::{
    fd::{AsFd, OwnedFd},
    fs::StatVfs,
};
use stacyvm_provider::{Error, Result};

/// Bytes of data, and entries, between two looks at the filesystem. Less than is kept free.
const BYTES: u64 = 64 << 20;
const ENTRIES: u64 = 4096;
/// Files that a filesystem with a fixed number of them is left.
const RESERVE_FILES: u64 = 4096;
/// What data takes a multiple of, on most filesystems.
const BLOCK: u64 = 4096;

/// Counts what is made.
pub(super) struct Space<'a> {
    limits: &'a Limits,
    /// A directory of the filesystem.
    directory: OwnedFd,
    pub(super) entries: u64,
    pub(super) disk_bytes: u64,
    looked_at: Option<(u64, u64)>,
}

impl<'a> Space<'a> {
    pub(super) fn new(limits: &'a Limits, directory: OwnedFd) -> Self {
        Self { limits, directory, entries: 0, disk_bytes: 0, looked_at: None }
    }

    /// One more entry is about to be made.
    pub(super) fn entry(&mut self, path: &[u8]) -> Result<()> {
        self.entries += 1;
        if self.entries > self.limits.entries {
            let most = self.limits.entries;
            return Err(exceeded(path, format_args!("is one too many: {most} are allowed")));
        }
        self.look()
    }

    /// So many bytes are about to be written.
    pub(super) fn bytes(&mut self, path: &[u8], bytes: u64) -> Result<()> {
        self.disk_bytes = self.disk_bytes.saturating_add(bytes.next_multiple_of(BLOCK));
        if self.disk_bytes > self.limits.disk_bytes {
            let most = self.limits.disk_bytes;
            return Err(exceeded(
                path,
                format_args!("makes the layer larger than the {most} bytes there are for it"),
            ));
        }
        self.look()
    }

    fn look(&mut self) -> Result<()> {
        let recent = |(entries, bytes)| self.entries - entries < ENTRIES && self.disk_bytes - bytes < BYTES;
        if self.looked_at.is_some_and(recent) {
            return Ok(());
        }
        self.looked_at = Some((self.entries, self.disk_bytes));
        let there = room(&self.directory, self.limits.reserve_bytes)?;
        // Filesystems that make inodes as they need them report none.
        if there.f_files > 0 && there.f_favail < RESERVE_FILES {
            return Err(Error::resource_limit(
                "the disk of the images has no room for more files: remove files or images that are not used",
            ));
        }
        Ok(())
    }
}

/// Checks that the filesystem of `file` has more than `reserve` bytes left.
///
/// # Errors
/// `ResourceLimit` if it has not.
pub(crate) fn room(file: impl AsFd, reserve: u64) -> Result<StatVfs> {
    let there = rustix::fs::fstatvfs(file).map_err(|e| failed("look at the disk of the images", e))?;
    let free = there.f_bavail.saturating_mul(there.f_frsize);
    if free < reserve {
        return Err(Error::resource_limit(format!(
            "the disk of the images has {} MiB left, of which {} MiB are kept free: make room there or remove images that are not used",
            free >> 20,
            reserve >> 20
        )));
    }
    Ok(there)
}
