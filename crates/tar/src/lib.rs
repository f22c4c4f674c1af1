//! The tar format, and directories as archives.
//!
//! The agent packs and unpacks trees of a sandbox with it, the command line those of the machine that it runs on, and the
//! images read their layers by its headers. Whoever wrote an archive is never believed: names are checked, everything is
//! made through the handle of its directory, and no symbolic link is followed below the top. Memory is bounded whatever an
//! archive says.

mod draft;
mod error;
mod header;
mod name;
mod pack;
mod pax;
mod read;
mod unpack;
mod walk;
mod write;

#[cfg(test)]
mod tests;

pub use draft::{Draft, is_draft};
pub use error::{Error, Result, Why};
pub use header::{Header, NoHeader, more_pieces};
pub use name::{leads_out, parts, shown};
pub use pack::Packer;
pub use pax::{Reason, Records, Sparse};
pub use read::{Event, Reader};
pub use unpack::{Links, Options, Summary, Unpacker};
pub use walk::{Found, Walk, open_directory};
pub use write::{END, append, decimal, encode};

/// Bytes of a block. Headers are one block, data is filled up to one.
pub const BLOCK: usize = 512;
/// Directories within one another. Each takes an open file while it is worked in.
pub const DEPTH: usize = 255;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// Another name of a file that the archive has already.
    HardLink,
    /// A symbolic link.
    Symlink,
    /// A directory.
    Directory,
    /// A device, a pipe, or what only some program knows; the letter of its header.
    Other(u8),
}

/// One entry: what its headers say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What it is.
    pub kind: Kind,
    /// As it stands in the archive.
    pub path: Vec<u8>,
    /// What a link refers to.
    pub link: Vec<u8>,
    /// Permissions, with the bits for set-user-ID, set-group-ID and sticky.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Seconds since 1970, and nanoseconds.
    pub mtime: (i64, u32),
    /// Bytes of data.
    pub size: u64,
}
