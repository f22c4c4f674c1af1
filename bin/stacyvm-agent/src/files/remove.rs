//! Removing files and trees while whoever is in the sandbox may be rearranging them.
//!
//! Only names in directories that are open are ever removed, and a directory is entered without following links, so
//! nothing outside the tree can be reached. One descriptor is open at a time: the way back up is `..`, believed only if it
//! is the very directory that was left. Depth is therefore bounded by nothing.

use super::{
    Cancel,
    open::without_links,
    path::SandboxPath,
    resolve::{Root, is_kernel_view, refuse_kernel_view},
};
use crate::fail::{Fail, Result, errno_of};
use rustix::{
    fs::{AtFlags, Dir, FileType, Mode, OFlags, fstat, openat, statat, unlinkat},
    io::Errno,
};
use std::{ffi::CString, os::fd::OwnedFd};

/// Times that a directory may turn out not to be empty after all, in one removal.
const REFILLS: usize = 1_000;

/// Removes a file, a link or an empty directory; a whole tree if `recursive`.
///
/// # Errors
/// `NotFound`; `InvalidArgument` for the root, and for a directory with content without `recursive`.
pub(crate) fn remove(root: &Root, path: &SandboxPath, recursive: bool, cancel: &Cancel) -> Result<()> {
    let fail = |errno| Fail::errno(path.as_str(), errno);
    let entry = root.entry(path)?;
    refuse_kernel_view(&entry.directory, path.as_str())?;
    let stat = statat(&entry.directory, &*entry.name, AtFlags::SYMLINK_NOFOLLOW).map_err(fail)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        return unlinkat(&entry.directory, &*entry.name, AtFlags::empty()).map_err(fail);
    }
    if recursive {
        let name = CString::new(entry.name.as_str()).map_err(|_| fail(Errno::INVAL))?;
        let mut walk = Walk { cancel, refills: 0 };
        return walk.remove_tree(&entry.directory, &name).map_err(|stop| match stop {
            Stop::Cancelled(fail) => fail,
            Stop::KernelView => {
                Fail::invalid(format!("{} has a file system of the kernel in it", path.as_str()))
            }
            Stop::Errno(Errno::NOTEMPTY) => {
                Fail::invalid(format!("{} cannot be removed: something keeps writing to it", path.as_str()))
            }
            Stop::Errno(errno) => fail(errno),
        });
    }
    unlinkat(&entry.directory, &*entry.name, AtFlags::REMOVEDIR).map_err(fail)
}

/// Why a walk ended early.
enum Stop {
    Errno(Errno),
    Cancelled(Fail),
    KernelView,
}

impl From<Errno> for Stop {
    fn from(errno: Errno) -> Self {
        Self::Errno(errno)
    }
}

/// A directory on the way down.
struct Level {
    name: CString,
    /// Device and inode of the directory that holds it.
    parent: (u64, u64),
}

struct Walk<'a> {
    cancel: &'a Cancel,
    refills: usize,
}

impl Walk<'_> {
    fn remove_tree(&mut self, top: &OwnedFd, name: &CString) -> Result<(), Stop> {
        let mut levels = vec![Level { name: name.clone(), parent: identity(top)? }];
        let mut current = enter(top, name)?;
        loop {
            self.cancel.check().map_err(Stop::Cancelled)?;
            if let Some(below) = self.clear(&current)? {
                let parent = identity(&current)?;
                match enter(&current, &below) {
                    Ok(directory) => {
                        // A mount: its files are as good as any, unless they are the kernel's.
                        if identity(&directory)?.0 != parent.0 && is_kernel_view(&directory)? {
                            return Err(Stop::KernelView);
                        }
                        levels.push(Level { name: below, parent });
                        current = directory;
                    }
                    // Replaced by something else since; the next round sees what it is.
                    Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => self.refill()?,
                    Err(errno) => return Err(errno.into()),
                }
                continue;
            }
            let Some(level) = levels.pop() else { return Ok(()) };
            // At the top the descriptor that we came from is at hand, and a directory that was moved is not followed.
            let above = if levels.is_empty() {
                top.try_clone().map_err(|error| errno_of(&error))?
            } else {
                up(&current)?
            };
            if identity(&above)? != level.parent {
                return Err(Errno::NOTEMPTY.into());
            }
            match unlinkat(&above, &level.name, AtFlags::REMOVEDIR) {
                Ok(()) | Err(Errno::NOENT) => {
                    if levels.is_empty() {
                        return Ok(());
                    }
                    current = above;
                }
                Err(Errno::NOTEMPTY | Errno::EXIST) => {
                    self.refill()?;
                    levels.push(level);
                }
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Removes everything in a directory that is not a directory itself, up to the first one that is, and returns that.
    fn clear(&self, directory: &OwnedFd) -> Result<Option<CString>, Stop> {
        // A descriptor of its own, as reading moves its position.
        let mut entries = Dir::read_from(directory)?;
        let mut seen = 0u32;
        while let Some(entry) = entries.read() {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            seen = seen.wrapping_add(1);
            if seen.is_multiple_of(256) {
                self.cancel.check().map_err(Stop::Cancelled)?;
            }
            if entry.file_type() == FileType::Directory {
                return Ok(Some(name.to_owned()));
            }
            match unlinkat(directory, name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                // The type was not known, or is another by now.
                Err(Errno::ISDIR) => return Ok(Some(name.to_owned())),
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(None)
    }

    fn refill(&mut self) -> Result<(), Stop> {
        self.refills += 1;
        if self.refills > REFILLS { Err(Errno::NOTEMPTY.into()) } else { Ok(()) }
    }
}

fn identity(directory: &OwnedFd) -> Result<(u64, u64), Errno> {
    let stat = fstat(directory)?;
    Ok((stat.st_dev, stat.st_ino))
}

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

fn enter(parent: &OwnedFd, name: &CString) -> Result<OwnedFd, Errno> {
    without_links(parent, name.to_bytes(), DIRECTORY | OFlags::NOFOLLOW)
}

fn up(directory: &OwnedFd) -> Result<OwnedFd, Errno> {
    openat(directory, c"..", DIRECTORY, Mode::empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, os::unix::fs::symlink, path::Path};
    use tonic::Code;

    fn run(root: &Path, path: &str, recursive: bool) -> Result<()> {
        let root = Root::new(Some(root)).unwrap();
        remove(&root, &SandboxPath::parse(path).unwrap(), recursive, &Cancel::default())
    }

    #[test]
    fn a_tree_goes_and_what_its_links_point_to_stays() {
        let directory = tempfile::tempdir().unwrap();
        let top = directory.path();
        for inner in ["t/a/b/c", "t/a/d", "t/e", "kept"] {
            fs::create_dir_all(top.join(inner)).unwrap();
            fs::write(top.join(inner).join("file"), "x").unwrap();
        }
        symlink(top.join("kept"), top.join("t/a/link")).unwrap();
        symlink("../../kept", top.join("t/e/relative")).unwrap();
        assert_eq!(run(top, "/t", false).unwrap_err().code(), Code::InvalidArgument);
        run(top, "/t", true).unwrap();
        assert!(!top.join("t").exists());
        assert!(top.join("kept/file").exists());
        assert_eq!(run(top, "/t", true).unwrap_err().code(), Code::NotFound);
    }

    #[test]
    fn a_link_is_removed_and_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        let top = directory.path();
        fs::create_dir(top.join("d")).unwrap();
        symlink("d", top.join("link")).unwrap();
        run(top, "/link", true).unwrap();
        assert!(top.join("d").exists() && !top.join("link").exists());
        run(top, "/d", false).unwrap();
        for root in ["/", "/.", "/..", "/d/.."] {
            assert!(run(top, root, true).is_err(), "{root}");
        }
    }

    #[test]
    fn depth_beyond_any_path_is_no_obstacle() {
        let directory = tempfile::tempdir().unwrap();
        let mut current = OwnedFd::from(fs::File::open(directory.path()).unwrap());
        rustix::fs::mkdirat(&current, "top", Mode::from_raw_mode(0o755)).unwrap();
        current = openat(&current, "top", DIRECTORY, Mode::empty()).unwrap();
        let name = "n".repeat(200);
        for _ in 0..200 {
            rustix::fs::mkdirat(&current, &*name, Mode::from_raw_mode(0o755)).unwrap();
            current = openat(&current, &*name, DIRECTORY, Mode::empty()).unwrap();
        }
        run(directory.path(), "/top", true).unwrap();
        assert!(!directory.path().join("top").exists());
    }

    #[test]
    fn a_caller_that_left_ends_it() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir_all(directory.path().join("t/a")).unwrap();
        let cancel = Cancel::default();
        drop(cancel.guard());
        let root = Root::new(Some(directory.path())).unwrap();
        assert!(remove(&root, &SandboxPath::parse("/t").unwrap(), true, &cancel).is_err());
        assert!(directory.path().join("t/a").exists());
    }
}
