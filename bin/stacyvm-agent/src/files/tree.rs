//! Making directories, moving files, changing modes.

use super::{
    path::SandboxPath,
    resolve::{Entry, Root, refuse_kernel_view},
};
use crate::{
    fail::{Fail, Result, errno_of},
    users::Account,
};
use rustix::{
    fs::{
        AtFlags, CWD, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, chmodat, fchmod, fchown, fstat,
        futimens, openat, readlinkat, renameat, statat, symlinkat, unlinkat,
    },
    io::Errno,
};
use stacyvm_tar::Draft;
use std::{
    fs::File,
    io,
    os::fd::{AsRawFd, OwnedFd},
};

/// Makes a directory that belongs to `owner`; with `parents` also the ones above, and an existing one is fine.
///
/// # Errors
/// `InvalidArgument` if something is there, `NotFound` if the directory above is missing and not to be made.
pub(crate) fn mkdir(
    root: &Root,
    path: &SandboxPath,
    mode: u32,
    parents: bool,
    owner: &Account,
) -> Result<()> {
    if mode > 0o7777 {
        return Err(Fail::invalid(format!("{mode:o} is not a file mode")));
    }
    let mode = Mode::from_raw_mode(mode);
    if !parents {
        let entry = root.entry(path)?;
        if statat(&entry.directory, &*entry.name, AtFlags::SYMLINK_NOFOLLOW).is_ok() {
            return Err(Fail::errno(path.as_str(), Errno::EXIST));
        }
    }
    root.make_directories(path, mode, owner).map(drop)
}

/// Sets the permission bits of what `path` leads to.
///
/// # Errors
/// `NotFound`.
pub(crate) fn chmod(root: &Root, path: &SandboxPath, mode: u32) -> Result<()> {
    if mode > 0o7777 {
        return Err(Fail::invalid(format!("{mode:o} is not a file mode")));
    }
    let fail = |errno| Fail::errno(path.as_str(), errno);
    let file = root.open(path, OFlags::PATH, Mode::empty()).map_err(fail)?;
    refuse_kernel_view(&file, path.as_str())?;
    // The descriptor gives no other access, and opening the file for more could have effects or be forbidden.
    let name = format!("/proc/self/fd/{}", file.as_raw_fd());
    chmodat(CWD, name, Mode::from_raw_mode(mode), AtFlags::empty()).map_err(fail)
}

/// Renames `from` to `to`, whose missing parents are made; between file systems, a file or link is copied.
///
/// # Errors
/// `NotFound`; `InvalidArgument` for what cannot be replaced or moved.
pub(crate) fn rename(root: &Root, from: &SandboxPath, to: &SandboxPath, owner: &Account) -> Result<()> {
    let source = root.entry(from)?;
    refuse_kernel_view(&source.directory, from.as_str())?;
    // Before any directory is made for it.
    statat(&source.directory, &*source.name, AtFlags::SYMLINK_NOFOLLOW)
        .map_err(|errno| Fail::errno(from.as_str(), errno))?;
    let target = root.make_entry(to, owner)?;
    refuse_kernel_view(&target.directory, to.as_str())?;
    let moved = renameat(&source.directory, &*source.name, &target.directory, &*target.name);
    match moved {
        Ok(()) => Ok(()),
        Err(Errno::XDEV) => copy_and_remove(root, from, &source, to, &target),
        Err(Errno::INVAL) => Err(Fail::invalid(format!("{} cannot be moved into itself", from.as_str()))),
        Err(Errno::NOTDIR) => Err(Fail::invalid(format!("{} is not a directory", to.as_str()))),
        // The source may have gone, but not the target's directory, which is open.
        Err(Errno::NOENT) => Err(Fail::errno(from.as_str(), Errno::NOENT)),
        Err(errno) => Err(Fail::errno(to.as_str(), errno)),
    }
}

fn copy_and_remove(
    root: &Root,
    from: &SandboxPath,
    source: &Entry,
    to: &SandboxPath,
    target: &Entry,
) -> Result<()> {
    let from_fail = |errno| Fail::errno(from.as_str(), errno);
    let to_fail = |errno| Fail::errno(to.as_str(), errno);
    let stat = statat(&source.directory, &*source.name, AtFlags::SYMLINK_NOFOLLOW).map_err(from_fail)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => copy_file(root, source, target).map_err(to_fail)?,
        FileType::Symlink => {
            let link = readlinkat(&source.directory, &*source.name, Vec::new()).map_err(from_fail)?;
            match unlinkat(&target.directory, &*target.name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(errno) => return Err(to_fail(errno)),
            }
            symlinkat(&*link, &target.directory, &*target.name).map_err(to_fail)?;
        }
        _ => {
            let message = format!("{} cannot be moved to another file system", from.as_str());
            return Err(Fail::invalid(message));
        }
    }
    unlinkat(&source.directory, &*source.name, AtFlags::empty()).map_err(from_fail)
}

/// Copies content, mode, owner and time, and replaces the target in one step.
fn copy_file(root: &Root, source: &Entry, target: &Entry) -> Result<(), Errno> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let mut original = File::from(openat(&source.directory, &*source.name, flags, Mode::empty())?);
    let stat = fstat(&original)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(Errno::INVAL);
    }
    let mut draft = Draft::new(&target.directory)?;
    let error = |error: io::Error| errno_of(&error);
    io::copy(&mut original, &mut draft.file).map_err(error)?;
    let file: OwnedFd = draft.file.try_clone().map_err(error)?.into();
    if root.owners {
        fchown(&file, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
    }
    fchmod(&file, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
    let time = |seconds, nanoseconds: u64| Timespec {
        tv_sec: seconds,
        tv_nsec: i64::try_from(nanoseconds).unwrap_or(0),
    };
    let times = Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    };
    futimens(&file, &times)?;
    draft.rename(&target.directory, target.name.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        fs,
        os::unix::fs::{PermissionsExt, symlink},
    };
    use tonic::Code;

    fn owner() -> Account {
        Account { uid: 1, gid: 1, groups: vec![], name: "x".into(), home: "/".into() }
    }

    fn path(text: &str) -> SandboxPath {
        SandboxPath::parse(text).unwrap()
    }

    fn sandbox() -> (tempfile::TempDir, Root) {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new(Some(directory.path())).unwrap();
        (directory, root)
    }

    #[test]
    fn directories_are_made_once_or_calmly() {
        let (directory, root) = sandbox();
        let make = |p: &str, parents| mkdir(&root, &path(p), 0o700, parents, &owner());
        assert_eq!(make("/a/b", false).unwrap_err().code(), Code::NotFound);
        make("/a/b", true).unwrap();
        make("/a/b", true).unwrap();
        assert_eq!(make("/a/b", false).unwrap_err().code(), Code::InvalidArgument);
        make("/a/c", false).unwrap();
        let mode = |p: &str| fs::metadata(directory.path().join(p)).unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode("a"), mode("a/b"), mode("a/c")), (0o755, 0o700, 0o700));
        fs::write(directory.path().join("file"), "").unwrap();
        assert_eq!(make("/file", true).unwrap_err().code(), Code::InvalidArgument);
        assert_eq!(make("/file/x", true).unwrap_err().code(), Code::InvalidArgument);
        make("/", true).unwrap();
    }

    #[test]
    fn a_move_makes_parents_and_replaces() {
        let (directory, root) = sandbox();
        let rename = |from: &str, to: &str| rename(&root, &path(from), &path(to), &owner());
        fs::write(directory.path().join("a"), "new").unwrap();
        fs::create_dir_all(directory.path().join("d")).unwrap();
        fs::write(directory.path().join("d/old"), "old").unwrap();
        assert_eq!(rename("/none", "/made/x").unwrap_err().code(), Code::NotFound);
        assert!(!directory.path().join("made").exists());
        rename("/a", "/p/q/a").unwrap();
        rename("/p/q/a", "/d/old").unwrap();
        assert_eq!(fs::read_to_string(directory.path().join("d/old")).unwrap(), "new");
        assert_eq!(rename("/d", "/d/inside").unwrap_err().code(), Code::InvalidArgument);
        assert_eq!(rename("/d/old", "/p").unwrap_err().code(), Code::InvalidArgument);
        assert_eq!(rename("/d", "/").unwrap_err().code(), Code::InvalidArgument);
    }

    #[test]
    fn a_copy_between_file_systems_keeps_what_matters() {
        let (directory, root) = sandbox();
        let top = directory.path();
        fs::write(top.join("a"), "content").unwrap();
        fs::set_permissions(top.join("a"), fs::Permissions::from_mode(0o751)).unwrap();
        let then = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000);
        File::open(top.join("a")).unwrap().set_modified(then).unwrap();
        symlink("a", top.join("link")).unwrap();
        fs::create_dir(top.join("d")).unwrap();
        // What the kernel would refuse to rename is the same for the function that copies.
        let copy = |from: &str, to: &str| {
            let (from, to) = (path(from), path(to));
            let (source, target) = (root.entry(&from)?, root.entry(&to)?);
            copy_and_remove(&root, &from, &source, &to, &target)
        };
        copy("/link", "/d/link").unwrap();
        assert_eq!(fs::read_link(top.join("d/link")).unwrap().to_str(), Some("a"));
        copy("/a", "/d/b").unwrap();
        let metadata = fs::metadata(top.join("d/b")).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o7777, 0o751);
        assert_eq!(metadata.modified().unwrap(), then);
        assert!(!top.join("a").exists() && !top.join("link").is_symlink());
        assert_eq!(copy("/d", "/e").unwrap_err().code(), Code::InvalidArgument);
    }

    #[test]
    fn modes_reach_the_target_of_a_link() {
        let (directory, root) = sandbox();
        fs::write(directory.path().join("file"), "").unwrap();
        symlink("file", directory.path().join("link")).unwrap();
        chmod(&root, &path("/link"), 0o4711).unwrap();
        let mode = fs::metadata(directory.path().join("file")).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o4711);
        assert_eq!(chmod(&root, &path("/none"), 0o600).unwrap_err().code(), Code::NotFound);
        assert_eq!(chmod(&root, &path("/file"), 0o10000).unwrap_err().code(), Code::InvalidArgument);
        let proc = Root::new(Some(std::path::Path::new("/proc"))).unwrap();
        assert_eq!(chmod(&proc, &path("/version"), 0o444).unwrap_err().code(), Code::InvalidArgument);
    }
}
