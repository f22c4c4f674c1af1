//! Listing a directory: names first, all of them, then metadata in batches as the reader takes them.

use super::{MOST_FILES, MOST_NAMES, info, path::SandboxPath, resolve::Root};
use crate::fail::{Fail, Result};
use rustix::{
    fs::{Dir, Mode, OFlags},
    io::Errno,
};
use stacyvm_guest::{
    limits,
    proto::{FileInfo, FileInfos},
};
use std::{ffi::CString, os::fd::OwnedFd, vec};

/// Bytes of one batch: well within a protocol message.
const BATCH: usize = 512 << 10;

/// Collects files until a batch is full.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    files: Vec<FileInfo>,
    size: usize,
}

impl Batch {
    /// Adds a file and says whether the batch is full now.
    pub(crate) fn push(&mut self, file: FileInfo) -> bool {
        self.size += prost::Message::encoded_len(&file) + 8;
        self.files.push(file);
        self.files.len() >= limits::FILES_PER_MESSAGE || self.size >= BATCH
    }

    /// The batch, unless it is empty.
    pub(crate) fn finish(self) -> Option<FileInfos> {
        (!self.files.is_empty()).then_some(FileInfos { files: self.files })
    }
}

/// A directory whose entries are being told.
#[derive(Debug)]
pub(crate) struct Listing {
    directory: OwnedFd,
    path: SandboxPath,
    names: vec::IntoIter<CString>,
}

/// Opens a directory and reads its names.
///
/// # Errors
/// `NotFound`; `InvalidArgument` if it is no directory; `ResourceExhausted` for more than [`MOST_FILES`] entries.
pub(crate) fn open(root: &Root, path: &SandboxPath) -> Result<Listing> {
    let fail = |errno| match errno {
        Errno::NOTDIR if info::stat(root, path, true).is_ok() => {
            Fail::invalid(format!("{} is not a directory", path.as_str()))
        }
        errno => Fail::errno(path.as_str(), errno),
    };
    let directory = root.open(path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).map_err(fail)?;
    let mut names = Vec::new();
    let mut size = 0;
    for entry in Dir::read_from(&directory).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        size += name.to_bytes().len();
        if names.len() == MOST_FILES || size > MOST_NAMES {
            let message = format!("{} has more than {MOST_FILES} entries", path.as_str());
            return Err(Fail::exhausted(message));
        }
        names.push(name.to_owned());
    }
    names.sort_unstable();
    Ok(Listing { directory, path: path.clone(), names: names.into_iter() })
}

impl Listing {
    /// The next entries; `None` behind the last one.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn next(&mut self) -> Result<Option<FileInfos>> {
        let mut batch = Batch::default();
        for name in self.names.by_ref() {
            let path = self.path.entry(name.to_bytes());
            // What was removed meanwhile is left out.
            if let Some(file) = info::entry(&self.directory, &name, path)?
                && batch.push(file)
            {
                break;
            }
        }
        Ok(batch.finish())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, os::unix::ffi::OsStrExt};
    use tonic::Code;

    fn all(root: &Root, path: &str) -> Vec<String> {
        let mut listing = open(root, &SandboxPath::parse(path).unwrap()).unwrap();
        let mut paths = Vec::new();
        while let Some(batch) = listing.next().unwrap() {
            assert!(!batch.files.is_empty() && batch.files.len() <= limits::FILES_PER_MESSAGE);
            paths.extend(batch.files.into_iter().map(|file| file.path));
        }
        paths
    }

    #[test]
    fn entries_are_sorted_and_complete() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new(Some(directory.path())).unwrap();
        assert!(all(&root, "/").is_empty());
        for number in 0..600 {
            fs::write(directory.path().join(format!("f{number:03}")), "").unwrap();
        }
        fs::write(directory.path().join(std::ffi::OsStr::from_bytes(b"\xff")), "").unwrap();
        let mut expected: Vec<String> = (0..600).map(|number| format!("/f{number:03}")).collect();
        expected.push("/\u{fffd}".to_owned());
        assert_eq!(all(&root, "/"), expected);
    }

    #[test]
    fn what_is_no_directory_is_named() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("file"), "").unwrap();
        let root = Root::new(Some(directory.path())).unwrap();
        let code = |path: &str| open(&root, &SandboxPath::parse(path).unwrap()).unwrap_err().code();
        assert_eq!(code("/file"), Code::InvalidArgument);
        assert_eq!(code("/none"), Code::NotFound);
    }

    #[test]
    fn what_vanishes_is_left_out() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("a"), "").unwrap();
        fs::write(directory.path().join("b"), "").unwrap();
        let root = Root::new(Some(directory.path())).unwrap();
        let mut listing = open(&root, &SandboxPath::parse("/").unwrap()).unwrap();
        fs::remove_file(directory.path().join("a")).unwrap();
        assert_eq!(listing.next().unwrap().unwrap().files[0].path, "/b");
    }
}
