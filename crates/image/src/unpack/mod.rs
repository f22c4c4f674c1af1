//! A layer's archive becomes a directory in the form that overlayfs reads.
//!
//! The archive is hostile until proven otherwise, and this program is often root: every entry is made through the handle
//! of its directory, links of the archive are resolved here and never by the kernel, and everything that an archive can
//! make grow has a limit. One thread reads, decompresses and hashes; the other makes files.
//!
//! The archive format is read by our own code: the reader of the `tar` crate holds extension headers of any length, knows
//! no sparse files in the format that GNU tar writes today, no times before 1970, and copies all data once more.

mod apply;
pub(crate) mod blocks;
mod compression;
pub(crate) mod entries;
mod feed;
pub(crate) mod path;
pub(crate) mod space;
mod sparse;
mod tree;
mod write;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
pub(crate) mod tests;

pub(crate) use compression::{Compression, Decoder};

use crate::Digest;
use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
};
use stacyvm_provider::{Error, Result};
use std::{
    fs,
    io::{self, Read},
    os::unix::fs::DirBuilderExt,
    path::Path,
};

/// What an archive may make of a host. The defaults let through every image that we know of.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Entries, counting directories that are made because an entry is in them, and extension headers.
    pub entries: u64,
    /// Bytes of the archive once decompressed.
    pub stream_bytes: u64,
    /// How many decompressed bytes there may be for one compressed byte,
    pub ratio: u64,
    /// once there are more than this many: small files of zeros compress as well as any bomb.
    pub ratio_above: u64,
    /// Bytes of disk that the files may take.
    pub disk_bytes: u64,
    /// Apparent size of one file, holes included.
    pub file_bytes: u64,
    /// Bytes of a path, and of a link's target.
    pub path_bytes: usize,
    /// Directories within one another.
    pub depth: usize,
    /// Bytes of one extension header: long names, extended attributes, maps of sparse files.
    pub extension_bytes: usize,
    /// Highest number of a user or group. Runtimes map as many into a sandbox.
    pub highest_id: u32,
    /// Bytes of the filesystem that are left free.
    pub reserve_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            entries: 1_000_000,
            stream_bytes: 64 << 30,
            ratio: 250,
            ratio_above: 1 << 30,
            disk_bytes: 64 << 30,
            file_bytes: 1 << 40,
            path_bytes: 4095,
            depth: 128,
            extension_bytes: 1 << 20,
            highest_id: 65_535,
            reserve_bytes: 256 << 20,
        }
    }
}

/// What was unpacked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unpacked {
    /// Digest of the archive without its compression, all bytes of it, also those behind its end mark.
    pub diff_id: Digest,
    /// Bytes of the archive without its compression.
    pub stream_bytes: u64,
    /// Bytes of disk that the files take, as far as it can be known from their lengths.
    pub disk_bytes: u64,
    /// Entries, as [`Limits::entries`] counts them.
    pub entries: u64,
    /// Whether nothing of the layers below shows through, anywhere. The kernel does not ask the top directory of a layer
    /// whether it is opaque: whoever stacks layers has to leave out those below.
    pub opaque: bool,
    /// Whether the archive has its end mark. One without it may have been cut between two entries.
    pub ended: bool,
}

/// Name of the layer's directory in the directory given to [`unpack`].
pub(crate) const TREE: &str = "fs";
/// Name of a directory beside it for what later entries replaced.
const REPLACED: &str = "replaced";

/// Unpacks `archive`, a tar archive that may be compressed with gzip or zstd, as `fs` in the directory `into`.
///
/// With root, owners and `security.capability` are the archive's and opaque directories are marked for an overlay of the
/// system; without, everything belongs to the caller and the marks are those of an overlay mounted with `userxattr`.
/// Attributes of the archive that overlayfs would obey are left out, as are device nodes below `dev`.
///
/// Nothing is synced, and after an error `into` is left as it is: both are for the caller, who made it.
///
/// # Errors
/// `InvalidArgument`, with the entry named, for an archive that is damaged or hostile or that is not understood;
/// `ResourceLimit` for one that exceeds `limits` and for a disk without room; `Unsupported` for a filesystem that cannot
/// carry layers.
pub fn unpack(archive: impl Read + Send, into: &Path, limits: &Limits) -> Result<Unpacked> {
    let made = |name: &str| {
        let path = into.join(name);
        fs::DirBuilder::new().mode(0o700).create(&path).map(|()| path)
    };
    let open = |path: &Path| {
        rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
    };
    let prepare = || -> io::Result<_> {
        let tree = open(&made(TREE)?)?;
        let aside = made(REPLACED)?;
        let aside_fd = open(&aside)?;
        Ok((tree, aside, aside_fd))
    };
    let (tree, aside, aside_fd) = prepare().map_err(|e| failed("make a directory for a layer", e))?;
    let result = feed::fed(archive, limits, |feed| {
        let tree = tree::Tree::new(tree, &aside, aside_fd, limits)?;
        apply::apply(feed, tree, limits)
    });
    let _ = fs::remove_dir(&aside);
    let ((made, ended), read) = result?;
    Ok(Unpacked {
        diff_id: read.digest,
        stream_bytes: read.bytes,
        disk_bytes: made.disk_bytes,
        entries: made.entries,
        opaque: made.opaque,
        ended,
    })
}

/// A refusal of one entry.
pub(crate) fn refused(path: &[u8], why: impl std::fmt::Display) -> Error {
    Error::invalid_argument(format!("the archive's entry {} {why}", path::shown(path)))
}

/// A limit that one entry exceeds.
pub(crate) fn exceeded(path: &[u8], why: impl std::fmt::Display) -> Error {
    Error::resource_limit(format!("the archive's entry {} {why}", path::shown(path)))
}

/// An operation that failed on the host.
pub(crate) fn failed(doing: impl std::fmt::Display, error: impl Into<io::Error>) -> Error {
    let error = error.into();
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::NOSPC | Errno::DQUOT) => Error::resource_limit(format!(
            "the disk of the images is full, could not {doing}: make room there or remove images that are not used"
        ))
        .because(error),
        _ => Error::internal(format!("could not {doing}: {error}")).because(error),
    }
}
