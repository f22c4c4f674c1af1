//! What [`crate::Guest`] says of trees: what became of an archive, what changes, how much disk they take.

use crate::Result;
use futures::stream::BoxStream;

/// Changes of a tree, in order. After an `Err` the stream ends.
pub type ChangeStream = BoxStream<'static, Result<FileChange>>;

/// Where and how an archive is unpacked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExtractTarget {
    /// Absolute path of the directory.
    pub path: String,
    /// Owner of everything that is made; `None`: the sandbox user.
    pub user: Option<String>,
}

/// What was made of an archive.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Extracted {
    /// Regular files, hard links included.
    pub files: u64,
    /// Directories that were not there before.
    pub directories: u64,
    /// Symbolic links.
    pub links: u64,
    /// Bytes of the files.
    pub bytes: u64,
}

/// A change in a tree that is watched. Paths are absolute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileChange {
    /// It is there now; also moved in from outside the tree.
    Created {
        /// What.
        path: String,
        /// It is a directory.
        directory: bool,
    },
    /// Its content changed.
    Modified {
        /// What.
        path: String,
    },
    /// Its mode, owner or time changed.
    Attributes {
        /// What.
        path: String,
        /// It is a directory.
        directory: bool,
    },
    /// It is gone; also moved to outside the tree.
    Deleted {
        /// What.
        path: String,
        /// It was a directory.
        directory: bool,
    },
    /// It has another name.
    Moved {
        /// Where it was.
        from: String,
        /// Where it is.
        path: String,
        /// It is a directory, and so everything in it has moved.
        directory: bool,
    },
    /// Changes are lost: whoever needs to know looks at the tree again.
    Overflow,
}

/// How much disk a tree takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiskUsage {
    /// Bytes of disk.
    pub bytes: u64,
    /// Lengths of the regular files.
    pub apparent_bytes: u64,
    /// Everything that is no directory.
    pub files: u64,
    /// Directories, the path itself included.
    pub directories: u64,
    /// There are so many files with several names that some are counted twice.
    pub counted_twice: bool,
}
