//! Makes of each entry what it says, in the order of the archive: a later entry replaces an earlier one of the same path.

use super::{
    Limits,
    blocks::Blocks,
    entries::{Entries, Entry, Kind},
    path::{self, Target},
    refused,
    tree::{Made, Tree, times},
    write,
};
use rustix::{
    fd::{AsFd, BorrowedFd},
    fs::{AtFlags, FileType, Gid, Mode, OFlags, Timespec, Uid},
    io::Errno,
};
use stacyvm_provider::Result;
use std::fs::File;

/// Applies the archive that `blocks` are of; true with what was made if it has an end mark.
pub(super) fn apply(blocks: impl Blocks, tree: Tree<'_>, limits: &Limits) -> Result<(Made, bool)> {
    let mut entries = Entries::new(blocks, limits);
    let mut layer = Layer { tree, limits };
    while let Some(entry) = entries.next()? {
        match path::target(&entry.path, limits)? {
            Target::Root | Target::Nothing => {}
            Target::Opaque(directory) => {
                layer.tree.enter(&directory, &entry.path)?;
                layer.tree.make_opaque(&entry.path)?;
            }
            Target::Whiteout(directory, hidden) => {
                layer.tree.enter(&directory, &entry.path)?;
                layer.tree.whiteout(hidden, &entry.path)?;
            }
            Target::Entry(directory, name) => layer.entry(&mut entries, &entry, &directory, name)?,
        }
    }
    let ended = entries.ended();
    Ok((layer.tree.finish()?, ended))
}

struct Layer<'a> {
    tree: Tree<'a>,
    limits: &'a Limits,
}

impl Layer<'_> {
    fn entry<B: Blocks>(
        &mut self,
        entries: &mut Entries<'_, B>,
        entry: &Entry,
        directory: &[&[u8]],
        name: &[u8],
    ) -> Result<()> {
        match entry.kind {
            // The devices of a sandbox are its runtime's.
            Kind::Device if directory.first() == Some(&&b"dev"[..]) => Ok(()),
            Kind::Device => {
                Err(refused(&entry.path, "is a device outside of /dev: images may not bring any"))
            }
            Kind::HardLink => self.hard_link(entry, directory, name),
            Kind::File => {
                self.prepare(entry, directory)?;
                self.file(entries, entry, name)
            }
            Kind::Directory => {
                self.prepare(entry, directory)?;
                self.directory(entry, name)
            }
            Kind::SymbolicLink => {
                self.prepare(entry, directory)?;
                self.symbolic_link(entry, name)
            }
            Kind::Fifo => {
                self.prepare(entry, directory)?;
                self.fifo(entry, name)
            }
        }
    }

    /// Checks whose it is, and goes to where it will be.
    fn prepare(&mut self, entry: &Entry, directory: &[&[u8]]) -> Result<()> {
        for (what, id) in [("user", entry.uid), ("group", entry.gid)] {
            if !(0..=i64::from(self.limits.highest_id)).contains(&id) {
                let highest = self.limits.highest_id;
                return Err(refused(
                    &entry.path,
                    format_args!("belongs to the {what} {id}: sandboxes have those from 0 to {highest} only"),
                ));
            }
        }
        self.tree.enter(directory, &entry.path)
    }

    /// Makes something that can be there once, after removing what is there.
    fn replacing(
        &mut self,
        entry: &Entry,
        name: &[u8],
        make: impl Fn(BorrowedFd<'_>) -> Result<(), Errno>,
    ) -> Result<()> {
        self.tree.space.entry(&entry.path)?;
        let made = match make(self.tree.fd()) {
            Err(Errno::EXIST) => {
                self.tree.remove(name, &entry.path)?;
                make(self.tree.fd())
            }
            made => made,
        };
        made.map_err(|e| match e {
            // Something was there a moment ago.
            Errno::NOENT => refused(&entry.path, "needs what it replaces"),
            e => self.tree.failed("make", &entry.path, e),
        })?;
        self.tree.here_mut().touch();
        Ok(())
    }

    fn file<B: Blocks>(&mut self, entries: &mut Entries<'_, B>, entry: &Entry, name: &[u8]) -> Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // Those of its permissions that no change of its owner takes away.
        let plain = self.mode(entry) & (Mode::RWXU | Mode::RWXG | Mode::RWXO);
        let made = std::cell::OnceCell::new();
        self.replacing(entry, name, |directory| {
            let fd = rustix::fs::openat(directory, name, flags, plain)?;
            let _ = made.set(File::from(fd));
            Ok(())
        })?;
        let Some(file) = made.into_inner() else { return Ok(()) };
        write::data(entries, entry, &file, &mut self.tree.space)?;
        // What the process's mask left of them. To look costs a tenth of changing them.
        let has = rustix::fs::fstat(&file).map(|stat| Mode::from_raw_mode(stat.st_mode));
        let has = has.map_err(|e| self.tree.failed("look at", &entry.path, e))?;
        self.attributes(file.as_fd(), entry, self.tree.here().gives_group(), has)?;
        rustix::fs::futimens(&file, &times(mtime(entry)))
            .map_err(|e| self.tree.failed("set the time of", &entry.path, e))
    }

    fn directory(&mut self, entry: &Entry, name: &[u8]) -> Result<()> {
        let gives_group = self.tree.here().gives_group();
        if !self.tree.make_directory(name, &entry.path)? {
            if self.tree.kind(name, &entry.path)? == Some(FileType::Directory) {
                let opened = self.tree.open_child(name);
                opened.map_err(|e| self.tree.failed("open", &entry.path, e))?;
            } else {
                // It hid what the layers below have, and so does what comes in its place.
                self.tree.replace_by_directory(name, &entry.path)?;
            }
        }
        self.attributes(self.tree.fd(), entry, gives_group, Mode::empty())?;
        let gives = self.mode(entry).contains(Mode::SGID);
        let here = self.tree.here_mut();
        here.set_mtime(mtime(entry));
        here.set_gives_group(gives);
        Ok(())
    }

    fn symbolic_link(&mut self, entry: &Entry, name: &[u8]) -> Result<()> {
        let target = entry.link.as_slice();
        if target.is_empty() || target.len() > self.limits.path_bytes || target.contains(&0) {
            return Err(refused(&entry.path, "is a link whose target is empty, too long or no path"));
        }
        self.replacing(entry, name, |directory| rustix::fs::symlinkat(target, directory, name))?;
        self.attributes_by_name(entry, name)
    }

    fn fifo(&mut self, entry: &Entry, name: &[u8]) -> Result<()> {
        self.replacing(entry, name, |directory| {
            rustix::fs::mknodat(directory, name, FileType::Fifo, Mode::RUSR, 0)
        })?;
        let changed = rustix::fs::chmodat(self.tree.fd(), name, self.mode(entry), AtFlags::empty());
        changed.map_err(|e| self.tree.failed("set the mode of", &entry.path, e))?;
        self.attributes_by_name(entry, name)
    }

    /// Links to a file of the same layer. The layers below are other directories, and each is kept once for all images:
    /// a link into one of them cannot be, here or elsewhere.
    fn hard_link(&mut self, entry: &Entry, directory: &[&[u8]], name: &[u8]) -> Result<()> {
        let missing = || {
            refused(
                &entry.path,
                format_args!("links to {}, which is not in this layer", path::shown(&entry.link)),
            )
        };
        let mut source = path::parts(&entry.link, self.limits)?;
        let target = source.pop().ok_or_else(missing)?;
        if !self.tree.enter_existing(&source, &entry.path)? {
            return Err(missing());
        }
        match self.tree.kind(target, &entry.path)? {
            Some(FileType::Directory) => return Err(refused(&entry.path, "is a hard link to a directory")),
            // A whiteout.
            None | Some(FileType::CharacterDevice) => return Err(missing()),
            Some(_) => {}
        }
        let from =
            self.tree.fd().try_clone_to_owned().map_err(|e| self.tree.failed("link", &entry.path, e))?;
        self.tree.enter(directory, &entry.path)?;
        let of = |fd: BorrowedFd<'_>, name: &[u8]| {
            rustix::fs::statat(fd, name, AtFlags::SYMLINK_NOFOLLOW).ok().map(|s| (s.st_dev, s.st_ino))
        };
        // A second link of the same name, or one to itself: it is there.
        if of(self.tree.fd(), name) == of(from.as_fd(), target) {
            return self.tree.space.entry(&entry.path);
        }
        self.replacing(entry, name, |directory| {
            rustix::fs::linkat(&from, target, directory, name, AtFlags::empty())
        })
    }

    /// Owner, permissions and extended attributes of a file or directory whose permissions are `has`.
    fn attributes(&self, fd: BorrowedFd<'_>, entry: &Entry, gives_group: bool, has: Mode) -> Result<()> {
        if self.tree.root && (gives_group || (entry.uid, entry.gid) != (0, 0)) {
            let (uid, gid) = owner(entry);
            rustix::fs::fchown(fd, Some(uid), Some(gid))
                .map_err(|e| self.tree.failed("set the owner of", &entry.path, e))?;
        }
        // After the owner, whose change takes bits and capabilities away.
        let mode = self.mode(entry);
        if mode != has {
            rustix::fs::fchmod(fd, mode).map_err(|e| self.tree.failed("set the mode of", &entry.path, e))?;
        }
        for (name, value) in &entry.xattrs {
            if self.takes(name) {
                self.tree.set_xattr(fd, name, value, &entry.path)?;
            }
        }
        Ok(())
    }

    /// Whether an extended attribute of an archive is set. Not those that overlayfs reads: an image could hide files of
    /// other layers with them or show them elsewhere. The others of the system are this host's matter, not an image's.
    fn takes(&self, name: &[u8]) -> bool {
        let users = name.starts_with(b"user.") && !name.starts_with(b"user.overlay.");
        users || (self.tree.root && name == b"security.capability")
    }

    /// Owner and time of what cannot be opened. Linux has no extended attributes of users there.
    fn attributes_by_name(&self, entry: &Entry, name: &[u8]) -> Result<()> {
        let directory = self.tree.fd();
        let nofollow = AtFlags::SYMLINK_NOFOLLOW;
        if self.tree.root && (self.tree.here().gives_group() || (entry.uid, entry.gid) != (0, 0)) {
            let (uid, gid) = owner(entry);
            rustix::fs::chownat(directory, name, Some(uid), Some(gid), nofollow)
                .map_err(|e| self.tree.failed("set the owner of", &entry.path, e))?;
        }
        rustix::fs::utimensat(directory, name, &times(mtime(entry)), nofollow)
            .map_err(|e| self.tree.failed("set the time of", &entry.path, e))
    }

    /// Permissions. Without root, directories stay open to their owner, or nobody could remove them.
    fn mode(&self, entry: &Entry) -> Mode {
        let mode = Mode::from_raw_mode(entry.mode);
        if entry.kind == Kind::Directory && !self.tree.root { mode | Mode::RWXU } else { mode }
    }
}

/// Its numbers, which were checked against the highest before.
fn owner(entry: &Entry) -> (Uid, Gid) {
    (Uid::from_raw(entry.uid as u32), Gid::from_raw(entry.gid as u32))
}

/// Its time; what is beyond a filesystem's first and last moment becomes that.
fn mtime(entry: &Entry) -> Timespec {
    let (tv_sec, nanoseconds) = entry.mtime;
    Timespec { tv_sec, tv_nsec: nanoseconds.into() }
}
