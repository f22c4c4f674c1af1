//! The only way to a file: beneath the sandbox's root, where no symbolic link leads out and no magic link in.

use super::{
    open::{in_root, without_links},
    path::SandboxPath,
};
use crate::{
    fail::{Fail, Result},
    users::Account,
};
use rustix::{
    fs::{
        AtFlags, FileType, Gid, Mode, OFlags, Uid, fchown, fstat, fstatfs, mkdirat, open, readlinkat, statat,
    },
    io::Errno,
};
use std::{
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

/// Symbolic links that are followed one after another, as in the kernel.
const LINKS: usize = 40;
/// Tries when somebody renames directories under way.
const RACES: usize = 32;
/// The proc file system.
const PROC: u64 = 0x9fa0;
/// File systems that are a view of the kernel: proc, sysfs, cgroup, cgroup2, debugfs, tracefs, securityfs, bpf.
const KERNEL_VIEWS: [u64; 8] =
    [PROC, 0x6265_6572, 0x0027_e0eb, 0x6367_7270, 0x6462_6720, 0x7472_6163, 0x7363_6673, 0xcafe_4a11];

/// The root directory of the sandbox.
#[derive(Debug)]
pub(crate) struct Root {
    directory: OwnedFd,
    /// Its path for the kernel, without a slash at its end.
    host: PathBuf,
    /// Files can be given to others.
    pub(crate) owners: bool,
}

/// A name in a directory; what is there may change at any time.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) directory: OwnedFd,
    pub(crate) name: String,
}

impl Root {
    /// The directory `beneath`, or the root of this process.
    ///
    /// # Errors
    /// The directory cannot be opened.
    pub(crate) fn new(beneath: Option<&Path>) -> std::io::Result<Self> {
        let host = match beneath {
            Some(path) => std::fs::canonicalize(path)?,
            None => PathBuf::from("/"),
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self { directory: open(&host, flags, Mode::empty())?, host, owners: beneath.is_none() })
    }

    /// `path` as programs outside any `chroot` write it.
    pub(crate) fn host_path(&self, path: &str) -> PathBuf {
        self.host.join(path.trim_start_matches('/'))
    }

    /// Opens `path`; following symbolic links unless `flags` say otherwise.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn open(&self, path: &SandboxPath, flags: OFlags, mode: Mode) -> Result<OwnedFd, Errno> {
        for _ in 0..RACES {
            match in_root(&self.directory, path.relative().as_bytes(), flags, mode) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                result => return result,
            }
        }
        Err(Errno::AGAIN)
    }

    /// The directory and name of an existing or future entry.
    ///
    /// # Errors
    /// `InvalidArgument` for the root and `..`; `NotFound` if the directory does not exist.
    pub(crate) fn entry(&self, path: &SandboxPath) -> Result<Entry> {
        let (parent, name) = split(path)?;
        let directory = self
            .open(&parent, OFlags::PATH | OFlags::DIRECTORY, Mode::empty())
            .map_err(|errno| Fail::errno(path.as_str(), errno))?;
        Ok(Entry { directory, name: name.to_owned() })
    }

    /// The same, with the missing directories made and given to `owner`.
    ///
    /// # Errors
    /// `InvalidArgument` if something else is in the way.
    pub(crate) fn make_entry(&self, path: &SandboxPath, owner: &Account) -> Result<Entry> {
        let (parent, name) = split(path)?;
        let directory = self.make_directories(&parent, Mode::from_raw_mode(0o755), owner)?;
        Ok(Entry { directory, name: name.to_owned() })
    }

    /// Opens the directory `path`, making it and the ones above as far as they are missing.
    ///
    /// # Errors
    /// `InvalidArgument` if something else is in the way.
    pub(crate) fn make_directories(
        &self,
        path: &SandboxPath,
        mode: Mode,
        owner: &Account,
    ) -> Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let fail = |errno| in_the_way(path, errno);
        // Up to what exists, then down again.
        let mut missing = Vec::new();
        let mut existing = path.clone();
        let mut directory = loop {
            match self.open(&existing, flags, Mode::empty()) {
                Err(Errno::NOENT) => {
                    let (parent, name) = split(&existing)?;
                    missing.push(name.to_owned());
                    existing = parent;
                }
                result => break result.map_err(fail)?,
            }
        };
        while let Some(name) = missing.pop() {
            existing = existing.join(&name)?;
            let mode = if missing.is_empty() { mode } else { Mode::from_raw_mode(0o755) };
            refuse_kernel_view(&directory, path.as_str())?;
            directory = match mkdirat(&directory, &*name, Mode::from_raw_mode(0o700)) {
                // Made by somebody else at the same time, or a link to nowhere: opening it tells.
                Err(Errno::EXIST) => self.open(&existing, flags, Mode::empty()).map_err(fail)?,
                Err(errno) => return Err(fail(errno)),
                Ok(()) => self.finish_directory(&directory, &name, mode, owner).map_err(fail)?,
            };
        }
        Ok(directory)
    }

    /// Gives a directory just made its owner and mode: through a descriptor, in case the name is something else by now.
    fn finish_directory(
        &self,
        parent: &OwnedFd,
        name: &str,
        mode: Mode,
        owner: &Account,
    ) -> Result<OwnedFd, Errno> {
        let made = without_links(parent, name.as_bytes(), OFlags::RDONLY | OFlags::DIRECTORY)?;
        self.give(&made, owner)?;
        rustix::fs::fchmod(&made, mode)?;
        Ok(made)
    }

    /// Makes `owner` the owner of an open file.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn give(&self, file: &OwnedFd, owner: &Account) -> Result<(), Errno> {
        if !self.owners {
            return Ok(());
        }
        fchown(file, Some(Uid::from_raw(owner.uid)), Some(Gid::from_raw(owner.gid)))
    }

    /// Where an ordinary write to `path` would end up: through symbolic links, with missing directories made.
    ///
    /// # Errors
    /// `InvalidArgument` for anything there but a regular file or nothing.
    pub(crate) fn write_target(&self, path: &SandboxPath, owner: &Account) -> Result<Entry> {
        let fail = |errno| in_the_way(path, errno);
        let mut current = path.clone();
        for _ in 0..LINKS {
            let entry = self.make_entry(&current, owner)?;
            refuse_kernel_view(&entry.directory, path.as_str())?;
            match statat(&entry.directory, &*entry.name, AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::NOENT) => return Ok(entry),
                Err(errno) => return Err(fail(errno)),
                Ok(stat) => match FileType::from_raw_mode(stat.st_mode) {
                    FileType::RegularFile => return Ok(entry),
                    FileType::Symlink => {
                        let target = readlinkat(&entry.directory, &*entry.name, Vec::new()).map_err(fail)?;
                        let target = target.into_string().map_err(|_| fail(Errno::INVAL))?;
                        let (parent, _) = split(&current)?;
                        current = parent.join(&target)?;
                    }
                    FileType::Directory => return Err(fail(Errno::ISDIR)),
                    _ => return Err(Fail::invalid(format!("{} is not a regular file", path.as_str()))),
                },
            }
        }
        Err(fail(Errno::LOOP))
    }

    /// The beginning of a small text file, empty if there is none: for files that others may have written.
    pub(crate) fn read_small(&self, path: &str, most: usize) -> String {
        let read = || {
            let path = SandboxPath::parse(path).ok()?;
            let file =
                self.open(&path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY, Mode::empty()).ok()?;
            let stat = fstat(&file).ok()?;
            if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
                return None;
            }
            let mut text = Vec::new();
            let most = u64::try_from(most).unwrap_or(u64::MAX);
            std::io::Read::read_to_end(&mut std::io::Read::take(std::fs::File::from(file), most), &mut text)
                .ok()?;
            Some(String::from_utf8_lossy(&text).into_owned())
        };
        read().unwrap_or_default()
    }
}

fn split(path: &SandboxPath) -> Result<(SandboxPath, &str)> {
    path.split().ok_or_else(|| Fail::invalid(format!("{} cannot be made or removed", path.as_str())))
}

/// A failure to make something: a missing or wrong part of the path is in the way then.
fn in_the_way(path: &SandboxPath, errno: Errno) -> Fail {
    match errno {
        Errno::NOTDIR => Fail::invalid(format!("{}: a part of the path is not a directory", path.as_str())),
        Errno::NOENT => Fail::invalid(format!("{}: a symbolic link on the way leads nowhere", path.as_str())),
        errno => Fail::errno(path.as_str(), errno),
    }
}

/// Whether `file` is in a file system that is a view of the kernel.
///
/// # Errors
/// The kernel's.
pub(crate) fn is_kernel_view(file: &OwnedFd) -> Result<bool, Errno> {
    Ok(KERNEL_VIEWS.contains(&filesystem(file)?))
}

/// Whether `file` is in a proc file system.
///
/// # Errors
/// The kernel's.
pub(crate) fn is_proc(file: &OwnedFd) -> Result<bool, Errno> {
    Ok(filesystem(file)? == PROC)
}

fn filesystem(file: &OwnedFd) -> Result<u64, Errno> {
    Ok(u64::try_from(fstatfs(file)?.f_type).unwrap_or(0) & 0xffff_ffff)
}

/// Keeps the agent's privileges out of the kernel's settings.
///
/// # Errors
/// `InvalidArgument`.
pub(crate) fn refuse_kernel_view(file: &OwnedFd, path: &str) -> Result<()> {
    match is_kernel_view(file) {
        Ok(false) => Ok(()),
        Ok(true) => {
            Err(Fail::invalid(format!("{path} is in a file system of the kernel; use a command instead")))
        }
        Err(errno) => Err(Fail::errno(path, errno)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::users::Account;
    use std::{fs, os::unix::fs::symlink};
    use tonic::Code;

    fn owner() -> Account {
        Account { uid: 1, gid: 1, groups: vec![], name: "x".into(), home: "/".into() }
    }

    fn path(text: &str) -> SandboxPath {
        SandboxPath::parse(text).unwrap()
    }

    fn root() -> (tempfile::TempDir, Root) {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new(Some(directory.path())).unwrap();
        (directory, root)
    }

    #[test]
    fn no_link_leads_out() {
        let (directory, root) = root();
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("secret"), "x").unwrap();
        symlink(outside.path(), directory.path().join("absolute")).unwrap();
        symlink("../../../../../..", directory.path().join("up")).unwrap();
        let flags = OFlags::PATH;
        let open = |p: &str| root.open(&path(p), flags, Mode::empty());
        assert_eq!(open("/absolute/secret").unwrap_err(), Errno::NOENT);
        // Up from the root is the root.
        assert!(open("/up/up").is_ok());
        assert_eq!(open(&format!("/../../{}", outside.path().display())).unwrap_err(), Errno::NOENT);
        // What a write through the link makes is made inside.
        let entry = root.write_target(&path("/absolute/secret"), &owner());
        assert!(entry.is_err() || !outside.path().join("made").exists());
        assert_eq!(fs::read_to_string(outside.path().join("secret")).unwrap(), "x");
    }

    #[test]
    fn a_write_follows_links_inside() {
        let (directory, root) = root();
        fs::create_dir(directory.path().join("d")).unwrap();
        symlink("d/file", directory.path().join("relative")).unwrap();
        symlink("/d/file", directory.path().join("absolute")).unwrap();
        symlink("loop", directory.path().join("loop")).unwrap();
        for link in ["/relative", "/absolute"] {
            let entry = root.write_target(&path(link), &owner()).unwrap();
            assert_eq!(entry.name, "file");
            let inside = fs::metadata(directory.path().join("d")).unwrap();
            assert_eq!(fstat(&entry.directory).unwrap().st_ino, std::os::unix::fs::MetadataExt::ino(&inside));
        }
        assert_eq!(root.write_target(&path("/loop"), &owner()).unwrap_err().code(), Code::InvalidArgument);
        assert_eq!(root.write_target(&path("/d"), &owner()).unwrap_err().code(), Code::InvalidArgument);
    }

    #[test]
    fn missing_directories_are_made_and_obstacles_named() {
        let (directory, root) = root();
        root.make_entry(&path("/a/b/c/file"), &owner()).unwrap();
        assert!(directory.path().join("a/b/c").is_dir());
        fs::write(directory.path().join("a/file"), "").unwrap();
        let fail = root.make_entry(&path("/a/file/x"), &owner()).unwrap_err();
        assert_eq!(fail.code(), Code::InvalidArgument);
        symlink("nowhere", directory.path().join("dangling")).unwrap();
        let fail = root.make_entry(&path("/dangling/x"), &owner()).unwrap_err();
        assert_eq!(fail.code(), Code::InvalidArgument);
    }

    #[test]
    fn the_kernels_files_are_recognised() {
        let proc = open("/proc", OFlags::PATH, Mode::empty()).unwrap();
        assert!(refuse_kernel_view(&proc, "/proc").is_err());
        let (_directory, root) = root();
        assert!(refuse_kernel_view(&root.directory, "/").is_ok());
    }

    #[test]
    fn a_fifo_is_no_small_file() {
        let (directory, root) = root();
        let fifo = directory.path().join("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        assert_eq!(root.read_small("/fifo", 10), "");
        fs::write(directory.path().join("file"), "0123456789abc").unwrap();
        assert_eq!(root.read_small("/file", 10), "0123456789");
    }
}
