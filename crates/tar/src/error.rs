//! What can be wrong with an archive or a tree, always with the entry that it is about.

use crate::shown;
use rustix::io::Errno;
use std::fmt;

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a tree was not packed or unpacked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// Path of the entry in the archive, or below the top of the tree; empty where none is at fault.
    pub path: Vec<u8>,
    /// What happened.
    pub why: Why,
}

/// What happened to an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    /// The archive cannot be read.
    Damaged(&'static str),
    /// The entry is one that nothing is made of.
    Refused(&'static str),
    /// A file changed while it was read.
    Changed(&'static str),
    /// The system refused.
    System(Errno),
}

impl Error {
    pub(crate) fn damaged(path: &[u8], why: &'static str) -> Self {
        Self { path: path.to_vec(), why: Why::Damaged(why) }
    }

    pub(crate) fn refused(path: &[u8], why: &'static str) -> Self {
        Self { path: path.to_vec(), why: Why::Refused(why) }
    }

    pub(crate) fn system(path: &[u8], errno: Errno) -> Self {
        Self { path: path.to_vec(), why: Why::System(errno) }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = shown(&self.path);
        match self.why {
            Why::Damaged(why) if self.path.is_empty() => write!(f, "the archive {why}"),
            Why::Damaged(why) => write!(f, "the archive {why}, at or behind its entry {at}"),
            Why::Refused(why) => write!(f, "the entry {at} {why}"),
            Why::Changed(why) => write!(f, "{at} {why}"),
            Why::System(errno) => write!(f, "{at}: {errno}"),
        }
    }
}

impl std::error::Error for Error {}
