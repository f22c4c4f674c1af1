//! Writing a file so that it is either the old one or the new one, whatever happens in between.

use super::{
    info,
    path::SandboxPath,
    resolve::{Entry, Root},
};
use crate::{
    fail::{Fail, Result, errno_of},
    users::Account,
};
use rustix::fs::{Mode, fchmod, fstat};
use stacyvm_guest::proto::FileInfo;
use stacyvm_tar::Draft;
use std::{io::Write, os::fd::OwnedFd};

/// A file under way. Dropped before [`Upload::finish`], it leaves nothing.
#[derive(Debug)]
pub(crate) struct Upload {
    target: Entry,
    draft: Draft,
    path: String,
    mode: Mode,
}

impl Upload {
    /// Makes the missing directories and a draft in the one where `path` leads.
    ///
    /// # Errors
    /// `InvalidArgument` when anything but a regular file is in the way, `ResourceExhausted` for a full disk.
    pub(crate) fn begin(
        root: &Root,
        path: &SandboxPath,
        mode: u32,
        owner: &Account,
        parents_owner: &Account,
    ) -> Result<Self> {
        if mode > 0o7777 {
            return Err(Fail::invalid(format!("{mode:o} is not a file mode")));
        }
        let target = root.write_target(path, parents_owner)?;
        let fail = |errno| Fail::errno(path.as_str(), errno);
        let draft = Draft::new(&target.directory).map_err(fail)?;
        let file: OwnedFd = draft.file.try_clone().map_err(|e| Fail::internal(e.to_string()))?.into();
        root.give(&file, owner).map_err(fail)?;
        Ok(Self { target, draft, path: path.as_str().to_owned(), mode: Mode::from_raw_mode(mode) })
    }

    /// Adds to the content.
    ///
    /// # Errors
    /// `ResourceExhausted` for a full disk.
    pub(crate) fn write(&mut self, data: &[u8]) -> Result<()> {
        self.draft.file.write_all(data).map_err(|error| self.fail(&error))
    }

    /// Puts the new file in the old one's place.
    ///
    /// # Errors
    /// `InvalidArgument` when a directory is there by now.
    pub(crate) fn finish(mut self) -> Result<FileInfo> {
        let fail = |errno| Fail::errno(&self.path, errno);
        // After the content, as writing clears the bits that change the user.
        fchmod(&self.draft.file, self.mode).map_err(fail)?;
        self.draft.rename(&self.target.directory, self.target.name.as_bytes()).map_err(fail)?;
        let stat = fstat(&self.draft.file).map_err(fail)?;
        Ok(info::from_stat(self.path.clone(), &stat, String::new()))
    }

    fn fail(&self, error: &std::io::Error) -> Fail {
        Fail::errno(&self.path, errno_of(error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, os::unix::fs::PermissionsExt, path::Path};
    use tonic::Code;

    fn owner() -> Account {
        Account { uid: 1, gid: 1, groups: vec![], name: "x".into(), home: "/".into() }
    }

    fn begin(root: &Root, path: &str) -> Result<Upload> {
        Upload::begin(root, &SandboxPath::parse(path).unwrap(), 0o640, &owner(), &owner())
    }

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn the_old_file_stays_until_the_new_one_is_complete() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new(Some(directory.path())).unwrap();
        fs::write(directory.path().join("file"), "old").unwrap();
        let mut upload = begin(&root, "/file").unwrap();
        upload.write(b"half").unwrap();
        assert_eq!(names(directory.path()).len(), 2);
        drop(upload);
        assert_eq!(names(directory.path()), ["file"]);
        assert_eq!(fs::read(directory.path().join("file")).unwrap(), b"old");

        let mut upload = begin(&root, "/file").unwrap();
        upload.write(b"new").unwrap();
        let info = upload.finish().unwrap();
        assert_eq!((info.size, info.mode, info.path.as_str()), (3, 0o640, "/file"));
        assert_eq!(names(directory.path()), ["file"]);
        assert_eq!(fs::read(directory.path().join("file")).unwrap(), b"new");
        let mode = fs::metadata(directory.path().join("file")).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o640);
    }

    #[test]
    fn a_directory_in_the_way_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new(Some(directory.path())).unwrap();
        fs::create_dir(directory.path().join("d")).unwrap();
        assert_eq!(begin(&root, "/d").unwrap_err().code(), Code::InvalidArgument);
        let upload = begin(&root, "/late").unwrap();
        fs::create_dir(directory.path().join("late")).unwrap();
        assert_eq!(upload.finish().unwrap_err().code(), Code::InvalidArgument);
        assert_eq!(names(directory.path()).len(), 2, "the draft is gone");
    }

    #[test]
    fn a_directory_that_vanishes_is_no_crash() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new(Some(directory.path())).unwrap();
        let mut upload = begin(&root, "/a/b/file").unwrap();
        fs::remove_dir_all(directory.path().join("a")).unwrap();
        upload.write(b"x").unwrap();
        assert_eq!(upload.finish().unwrap_err().code(), Code::NotFound);
        assert_eq!(begin(&root, "/").unwrap_err().code(), Code::InvalidArgument);
    }
}
