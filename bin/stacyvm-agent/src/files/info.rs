//! Metadata of files, as the protocol shows it.

use super::{open::without_links, path::SandboxPath, resolve::Root};
use crate::fail::{Fail, Result};
use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags, Stat, fstat, readlinkat, statat},
    io::Errno,
};
use stacyvm_guest::proto::{FileInfo, FileKind};
use std::os::fd::{AsFd, OwnedFd};

/// From the kernel's words to the protocol's.
pub(crate) fn from_stat(path: String, stat: &Stat, link_target: String) -> FileInfo {
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => FileKind::File,
        FileType::Directory => FileKind::Directory,
        FileType::Symlink => FileKind::Symlink,
        _ => FileKind::Other,
    };
    // The kernel keeps nanoseconds between 0 and 999,999,999, also before 1970.
    let nanoseconds = i64::try_from(stat.st_mtime_nsec).unwrap_or(0);
    let modified_unix_ms = stat.st_mtime.saturating_mul(1000).saturating_add(nanoseconds / 1_000_000);
    FileInfo {
        path,
        size: u64::try_from(stat.st_size).unwrap_or(0),
        mode: stat.st_mode & 0o7777,
        kind: kind.into(),
        modified_unix_ms,
        uid: stat.st_uid,
        gid: stat.st_gid,
        link_target,
    }
}

/// Metadata of `path`, of its target when `follow`.
///
/// # Errors
/// `NotFound`.
pub(crate) fn stat(root: &Root, path: &SandboxPath, follow: bool) -> Result<FileInfo> {
    let flags = if follow { OFlags::PATH } else { OFlags::PATH | OFlags::NOFOLLOW };
    let fail = |errno| Fail::errno(path.as_str(), errno);
    let file = root.open(path, flags, Mode::empty()).map_err(fail)?;
    let stat = fstat(&file).map_err(fail)?;
    let target = target(&file, c"", &stat).map_err(fail)?;
    Ok(from_stat(path.as_str().to_owned(), &stat, target))
}

/// Metadata of something below a directory, not through symbolic links and not of their targets; `None` if it is gone.
///
/// # Errors
/// The kernel's.
pub(crate) fn below(directory: &OwnedFd, name: &std::ffi::CStr, path: String) -> Result<Option<FileInfo>> {
    let look = || {
        let file = without_links(directory, name.to_bytes(), OFlags::PATH | OFlags::NOFOLLOW)?;
        let stat = fstat(&file)?;
        let target = target(&file, c"", &stat)?;
        Ok((stat, target))
    };
    match look() {
        Ok((stat, target)) => Ok(Some(from_stat(path, &stat, target))),
        // Removed, or a directory on the way was replaced, meanwhile.
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
        Err(errno) => Err(Fail::errno(&path, errno)),
    }
}

/// Metadata of a directory's entry, itself and not its target; `None` if it is gone.
///
/// # Errors
/// The kernel's.
pub(crate) fn entry(directory: &OwnedFd, name: &std::ffi::CStr, path: String) -> Result<Option<FileInfo>> {
    let look = || {
        let stat = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let target = target(directory, name, &stat)?;
        Ok((stat, target))
    };
    match look() {
        Ok((stat, target)) => Ok(Some(from_stat(path, &stat, target))),
        // Removed, or replaced by something that is no link, meanwhile.
        Err(Errno::NOENT | Errno::INVAL) => Ok(None),
        Err(errno) => Err(Fail::errno(&path, errno)),
    }
}

fn target(directory: impl AsFd, name: &std::ffi::CStr, stat: &Stat) -> Result<String, Errno> {
    if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
        return Ok(String::new());
    }
    Ok(readlinkat(directory, name, Vec::new())?.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, os::unix::fs::symlink};

    #[test]
    fn links_are_shown_or_followed() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("file"), "abc").unwrap();
        symlink("file", directory.path().join("link")).unwrap();
        let root = Root::new(Some(directory.path())).unwrap();
        let path = SandboxPath::parse("/link").unwrap();
        let link = stat(&root, &path, false).unwrap();
        assert_eq!((link.kind(), link.link_target.as_str()), (FileKind::Symlink, "file"));
        let file = stat(&root, &path, true).unwrap();
        assert_eq!((file.kind(), file.size, file.path.as_str()), (FileKind::File, 3, "/link"));
        let root_itself = stat(&root, &SandboxPath::parse("/").unwrap(), true).unwrap();
        assert_eq!(root_itself.kind(), FileKind::Directory);
    }

    #[test]
    fn times_before_1970_are_right() {
        let directory = tempfile::tempdir().unwrap();
        let file = fs::File::create(directory.path().join("old")).unwrap();
        let before = std::time::UNIX_EPOCH - std::time::Duration::from_millis(1500);
        file.set_modified(before).unwrap();
        let root = Root::new(Some(directory.path())).unwrap();
        let info = stat(&root, &SandboxPath::parse("/old").unwrap(), true).unwrap();
        assert_eq!(info.modified_unix_ms, -1500);
    }
}
