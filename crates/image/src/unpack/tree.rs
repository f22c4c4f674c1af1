//! The directory that becomes a layer, and where in it we are.
//!
//! Open is always one chain of directories, from the layer's own down to the one that was worked in last: archives are
//! sorted, so that the next entry is nearly always in it or next to it. Each is opened by its one name beneath its parent's
//! handle. A link of the archive is never followed by the kernel: it is read here, and resolved as a process would whose
//! root is the layer. Docker and containerd do the same, and images need it (`lib -> usr/lib`, then `lib/x`).
//!
//! Times of a directory are set when we leave it. One that is entered again had its time read before it changed, so that
//! nothing needs to be remembered, however many directories an archive has.

use super::{Limits, exceeded, failed, path, refused, space::Space};
use rustix::{
    fd::{AsFd, BorrowedFd, OwnedFd},
    fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Timespec, Timestamps, XattrFlags},
    io::Errno,
};
use stacyvm_provider::{Error, Result};
use std::{collections::VecDeque, fs, path::Path};

/// Links resolved for one path, as the kernel has it.
const LINKS: usize = 40;

/// How a directory is opened: its one name, beneath its parent.
const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// What the kernel may do with a name of the archive.
const BENEATH: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

/// A directory on the way to where we are.
pub(super) struct Open {
    pub(super) fd: OwnedFd,
    name: Vec<u8>,
    /// The time it gets when we leave it, if it changed.
    mtime: Timespec,
    changed: bool,
    /// Whether what is made in it gets its group.
    gives_group: bool,
    /// Whether it says already that whiteouts are in it.
    has_whiteouts: bool,
}

impl Open {
    /// Sets the time that it gets in the end.
    pub(super) fn set_mtime(&mut self, mtime: Timespec) {
        (self.mtime, self.changed) = (mtime, true);
    }

    /// Something was made or removed in it.
    pub(super) fn touch(&mut self) {
        self.changed = true;
    }

    /// Whether what is made in it gets its group.
    pub(super) fn gives_group(&self) -> bool {
        self.gives_group
    }

    /// Says what its permissions are now.
    pub(super) fn set_gives_group(&mut self, gives: bool) {
        self.gives_group = gives;
    }
}

/// The tree, as far as it is open.
pub(super) struct Tree<'a> {
    /// The layer's own directory.
    top: Open,
    /// Those below it, one in the other.
    open: Vec<Open>,
    /// Where what is replaced goes before it is removed.
    aside: &'a Path,
    aside_fd: OwnedFd,
    replaced: u64,
    limits: &'a Limits,
    /// Whether owners and attributes of the system can be set.
    pub(super) root: bool,
    pub(super) space: Space<'a>,
    /// Whether the layer's own directory is opaque.
    pub(super) opaque: bool,
}

impl<'a> Tree<'a> {
    pub(super) fn new(fd: OwnedFd, aside: &'a Path, aside_fd: OwnedFd, limits: &'a Limits) -> Result<Self> {
        // What the archive says about its top is not taken, as nowhere else: a directory that `mktemp` made is
        // closed to everybody.
        rustix::fs::fchmod(&fd, Mode::from_raw_mode(0o755)).map_err(|e| failed("open a layer to all", e))?;
        let top = Open {
            fd,
            name: Vec::new(),
            mtime: EPOCH,
            changed: true,
            gives_group: false,
            has_whiteouts: false,
        };
        let watched = top.fd.try_clone().map_err(|e| failed("open a layer", e))?;
        Ok(Self {
            top,
            open: Vec::new(),
            aside,
            aside_fd,
            replaced: 0,
            limits,
            root: rustix::process::geteuid().is_root(),
            space: Space::new(limits, watched),
            opaque: false,
        })
    }

    /// The directory that was entered last.
    pub(super) fn here(&self) -> &Open {
        self.open.last().unwrap_or(&self.top)
    }

    /// The same, to be changed.
    pub(super) fn here_mut(&mut self) -> &mut Open {
        self.open.last_mut().unwrap_or(&mut self.top)
    }

    /// Handle of the directory that was entered last.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.here().fd.as_fd()
    }

    /// Whether the layer's own directory is the one that was entered last.
    pub(super) fn at_top(&self) -> bool {
        self.open.is_empty()
    }

    /// Enters the directory `parts`, making what is missing. `entry` is whose directory it is, for errors.
    pub(super) fn enter(&mut self, parts: &[&[u8]], entry: &[u8]) -> Result<()> {
        self.go(parts, entry, true).map(|_| ())
    }

    /// Enters the directory `parts` if it is there.
    pub(super) fn enter_existing(&mut self, parts: &[&[u8]], entry: &[u8]) -> Result<bool> {
        self.go(parts, entry, false)
    }

    fn go(&mut self, parts: &[&[u8]], entry: &[u8], make: bool) -> Result<bool> {
        let same = self.open.iter().zip(parts).take_while(|(open, part)| open.name == **part).count();
        self.leave_to(same)?;
        let mut rest: VecDeque<Vec<u8>> = parts.iter().skip(same).map(|p| p.to_vec()).collect();
        let mut links = 0;
        while let Some(name) = rest.pop_front() {
            match name.as_slice() {
                b"" | b"." => continue,
                b".." => {
                    self.leave_to(self.open.len().saturating_sub(1))?;
                    continue;
                }
                _ => {}
            }
            // Through links, a path can become deeper than it is long.
            if self.open.len() >= self.limits.depth {
                return Err(exceeded(
                    entry,
                    format_args!("is in more than {} directories", self.limits.depth),
                ));
            }
            match self.open_child(&name) {
                Ok(()) => {}
                Err(Errno::NOENT) if !make => return Ok(false),
                Err(Errno::NOENT) => self.make_implied(&name, entry)?,
                Err(Errno::LOOP | Errno::NOTDIR) => {
                    let Some(target) = self.obstacle(&name, entry, make)? else {
                        if make {
                            continue;
                        }
                        return Ok(false);
                    };
                    links += 1;
                    if links > LINKS {
                        return Err(refused(entry, "is behind links that lead in a circle"));
                    }
                    if target.starts_with(b"/") {
                        self.leave_to(0)?;
                    }
                    let mut through: VecDeque<_> = target.split(|b| *b == b'/').map(<[u8]>::to_vec).collect();
                    through.append(&mut rest);
                    rest = through;
                }
                Err(Errno::NOSYS) => {
                    return Err(Error::unsupported(
                        "unpacking images needs the system call openat2: Linux 5.6 or newer, and a container runtime that lets it through",
                    ));
                }
                Err(e) => return Err(self.failed("enter the directory of", entry, e)),
            }
        }
        Ok(true)
    }

    /// What stands where a directory should be: the target of a link; none if it was a whiteout, which is a directory
    /// now if `make` is set.
    fn obstacle(&mut self, name: &[u8], entry: &[u8], make: bool) -> Result<Option<Vec<u8>>> {
        match self.kind(name, entry)? {
            Some(FileType::Symlink) => {
                let target = rustix::fs::readlinkat(self.fd(), name, Vec::new());
                target
                    .map(|t| Some(t.into_bytes()))
                    .map_err(|e| self.failed("read a link on the way to", entry, e))
            }
            Some(FileType::CharacterDevice) => {
                if make {
                    self.remove(name, entry)?;
                    self.make_implied(name, entry)?;
                    self.make_opaque(entry)?;
                }
                Ok(None)
            }
            _ => Err(refused(entry, format_args!("is below {}, which is no directory", path::shown(name)))),
        }
    }

    /// What has this name here.
    pub(super) fn kind(&self, name: &[u8], entry: &[u8]) -> Result<Option<FileType>> {
        match rustix::fs::statat(self.fd(), name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(FileType::from_raw_mode(stat.st_mode))),
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(self.failed("look at the place of", entry, e)),
        }
    }

    /// Makes a directory that is in no archive, because something is in it.
    fn make_implied(&mut self, name: &[u8], entry: &[u8]) -> Result<()> {
        self.make_new_directory(name, entry)?;
        let here = self.here_mut();
        here.set_mtime(EPOCH);
        let changed = rustix::fs::fchmod(&here.fd, Mode::from_raw_mode(0o755));
        changed.map_err(|e| self.failed("make the directory of", entry, e))
    }

    /// Makes an opaque directory of something else.
    pub(super) fn replace_by_directory(&mut self, name: &[u8], entry: &[u8]) -> Result<()> {
        self.remove(name, entry)?;
        self.make_new_directory(name, entry)?;
        self.make_opaque(entry)
    }

    /// Makes a directory here, where nothing is, and enters it.
    fn make_new_directory(&mut self, name: &[u8], entry: &[u8]) -> Result<()> {
        let made = self.make_directory(name, entry)?;
        if made { Ok(()) } else { Err(self.failed("make the directory of", entry, Errno::EXIST)) }
    }

    /// Makes a directory here and enters it; false if something is there. Its permissions are its owner's only.
    pub(super) fn make_directory(&mut self, name: &[u8], entry: &[u8]) -> Result<bool> {
        self.space.entry(entry)?;
        match rustix::fs::mkdirat(self.fd(), name, Mode::RWXU) {
            Ok(()) => {}
            Err(Errno::EXIST) => return Ok(false),
            Err(e) => return Err(self.failed("make the directory of", entry, e)),
        }
        self.space.bytes(entry, 1)?;
        self.here_mut().touch();
        self.open_child(name).map_err(|e| self.failed("make the directory of", entry, e))?;
        // A bit that it has from its parent.
        if self.here().gives_group {
            let here = self.here_mut();
            here.gives_group = false;
            let fd = here.fd.as_fd();
            let set = rustix::fs::fchmod(fd, Mode::RWXU)
                .and_then(|()| rustix::fs::fchown(fd, None, Some(rustix::process::getegid())));
            set.map_err(|e| self.failed("make the directory of", entry, e))?;
        }
        Ok(true)
    }

    /// Enters a directory that is here.
    pub(super) fn open_child(&mut self, name: &[u8]) -> Result<(), Errno> {
        let fd = rustix::fs::openat2(self.fd(), name, DIRECTORY, Mode::empty(), BENEATH)?;
        let stat = rustix::fs::fstat(&fd)?;
        let mtime = Timespec { tv_sec: stat.st_mtime, tv_nsec: stat.st_mtime_nsec as _ };
        let gives_group = stat.st_mode & Mode::SGID.as_raw_mode() != 0;
        self.open.push(Open {
            fd,
            name: name.to_vec(),
            mtime,
            changed: false,
            gives_group,
            has_whiteouts: false,
        });
        Ok(())
    }

    /// Removes what has this name here.
    pub(super) fn remove(&mut self, name: &[u8], entry: &[u8]) -> Result<()> {
        self.here_mut().touch();
        match rustix::fs::unlinkat(self.fd(), name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(Errno::ISDIR | Errno::PERM) => {}
            Err(e) => return Err(self.failed("replace", entry, e)),
        }
        let aside = self.replaced.to_string();
        self.replaced += 1;
        rustix::fs::renameat(self.fd(), name, &self.aside_fd, aside.as_str())
            .map_err(|e| self.failed("replace", entry, e))?;
        fs::remove_dir_all(self.aside.join(aside)).map_err(|e| self.failed("replace", entry, e))
    }

    /// Hides what layers below have in this directory.
    pub(super) fn make_opaque(&mut self, entry: &[u8]) -> Result<()> {
        if self.at_top() {
            self.opaque = true;
        }
        self.mark("opaque", b"y", entry)
    }

    /// Hides what layers below have here with this name.
    pub(super) fn whiteout(&mut self, name: &[u8], entry: &[u8]) -> Result<()> {
        self.space.entry(entry)?;
        // A directory that has no counterpart below is listed by the kernel as it is, whiteouts included, unless it has
        // an origin: an empty one means that it is not known which.
        if !self.here().has_whiteouts {
            self.mark("origin", b"", entry)?;
            self.here_mut().has_whiteouts = true;
        }
        let device = rustix::fs::makedev(0, 0);
        match rustix::fs::mknodat(self.fd(), name, FileType::CharacterDevice, Mode::empty(), device) {
            Ok(()) => {
                self.here_mut().touch();
                Ok(())
            }
            // A whiteout is about layers below: what this one has there stays, and hides them already.
            Err(Errno::EXIST) => {
                if self.kind(name, entry)? == Some(FileType::Directory) {
                    self.open_child(name).map_err(|e| self.failed("hide what was below", entry, e))?;
                    self.make_opaque(entry)?;
                }
                Ok(())
            }
            Err(e) => Err(self.failed("remove what was below", entry, e)),
        }
    }

    /// Sets an attribute that overlayfs reads.
    fn mark(&mut self, name: &str, value: &[u8], entry: &[u8]) -> Result<()> {
        let name = format!("{}.overlay.{name}", if self.root { "trusted" } else { "user" });
        self.set_xattr(self.fd(), name.as_bytes(), value, entry)
    }

    /// Sets an extended attribute.
    pub(super) fn set_xattr(
        &self,
        fd: BorrowedFd<'_>,
        name: &[u8],
        value: &[u8],
        entry: &[u8],
    ) -> Result<()> {
        match rustix::fs::fsetxattr(fd, name, value, XattrFlags::empty()) {
            Err(e @ (Errno::OPNOTSUPP | Errno::PERM)) => Err(Error::unsupported(format!(
                "the filesystem of the images does not take the extended attribute {}: use ext4, xfs or btrfs for it, outside of user namespaces",
                path::shown(name)
            ))
            .because(e)),
            // Or the disk is full; what is written next tells.
            Err(Errno::NOSPC) => Err(exceeded(entry, "has extended attributes for which the filesystem has no room")),
            Err(Errno::INVAL | Errno::RANGE | Errno::TOOBIG) => {
                Err(refused(entry, format_args!("has an extended attribute {} that Linux refuses", path::shown(name))))
            }
            result => result.map_err(|e| self.failed("set an extended attribute of", entry, e)),
        }
    }

    /// Leaves directories until `depth` are open below the layer's own.
    fn leave_to(&mut self, depth: usize) -> Result<()> {
        while self.open.len() > depth {
            let Some(left) = self.open.pop() else { break };
            restore(&left)?;
        }
        Ok(())
    }

    /// Leaves all directories, the layer's own, too.
    pub(super) fn finish(mut self) -> Result<Made> {
        self.leave_to(0)?;
        restore(&self.top)?;
        Ok(Made { entries: self.space.entries, disk_bytes: self.space.disk_bytes, opaque: self.opaque })
    }

    /// An operation on `entry` that failed.
    pub(super) fn failed(&self, doing: &str, entry: &[u8], error: impl Into<std::io::Error>) -> Error {
        failed(format_args!("{doing} {}", path::shown(entry)), error)
    }
}

/// What became of an archive.
pub(super) struct Made {
    pub(super) entries: u64,
    pub(super) disk_bytes: u64,
    pub(super) opaque: bool,
}

/// The time of what no archive gives a time.
const EPOCH: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// Both times of a file: nobody cares when it was read last.
pub(super) fn times(mtime: Timespec) -> Timestamps {
    Timestamps { last_access: mtime, last_modification: mtime }
}

fn restore(left: &Open) -> Result<()> {
    if !left.changed {
        return Ok(());
    }
    rustix::fs::futimens(&left.fd, &times(left.mtime)).map_err(|e| failed("set the time of a directory", e))
}
