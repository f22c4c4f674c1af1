//! A tree as an archive, piece by piece as they are asked for.
//!
//! Files, directories, symbolic links and hard links are in it, with permissions and times to the nanosecond. Sockets,
//! pipes and devices are left out. A file that grows meanwhile is cut at the size that it had; one that shrinks ends the
//! archive with an error, since zeros in its place would look like content.

use crate::{BLOCK, END, Entry, Error, Found, Kind, Result, Walk, Why, encode};
use rustix::{
    fd::{AsFd, OwnedFd},
    fs::{FileType, Mode, OFlags, Stat, fstat, openat, readlinkat},
    io::{Errno, pread},
};
use std::collections::HashMap;

/// Bytes of a piece, roughly.
const PIECE: usize = 64 << 10;
/// Files with several names that are remembered, and bytes of their paths; the names of others become files of their own.
const LINKED: (usize, usize) = (10_000, 1 << 20);
/// How a file is opened: it may be a pipe by then.
pub(crate) const FILE: OFlags = OFlags::RDONLY
    .union(OFlags::NOFOLLOW)
    .union(OFlags::NONBLOCK)
    .union(OFlags::NOCTTY)
    .union(OFlags::CLOEXEC);

/// A file whose data is being written.
#[derive(Debug)]
struct Open {
    file: OwnedFd,
    at: u64,
    size: u64,
}

/// Makes an archive of a tree.
pub struct Packer {
    walk: Option<Walk>,
    /// Name of the only file, where there is no tree.
    name: Vec<u8>,
    file: Option<Open>,
    out: Vec<u8>,
    /// Where files with several names were written first.
    links: HashMap<(u64, u64), Vec<u8>>,
    link_bytes: usize,
    /// Whether what is mounted somewhere in the tree is a part of it.
    takes: fn(&OwnedFd) -> bool,
    ended: bool,
}

impl std::fmt::Debug for Packer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Packer").field("walk", &self.walk).finish_non_exhaustive()
    }
}

impl Packer {
    /// What is in `top`, which is itself the first entry, `./`. Of what is mounted in it, only what `takes` says yes to.
    ///
    /// # Errors
    /// The kernel's.
    pub fn directory(top: OwnedFd, takes: fn(&OwnedFd) -> bool) -> Result<Self> {
        let stat = fstat(&top).map_err(|errno| Error::system(b".", errno))?;
        let mut packer = Self::empty(takes);
        encode(&entry(&stat, Kind::Directory, b".", Vec::new(), 0), &mut packer.out);
        packer.walk = Some(Walk::new(top)?);
        Ok(packer)
    }

    /// One file, called `name` in the archive.
    ///
    /// # Errors
    /// The kernel's.
    pub fn file(file: OwnedFd, name: &[u8]) -> Result<Self> {
        let stat = fstat(&file).map_err(|errno| Error::system(name, errno))?;
        let mut packer = Self::empty(|_| false);
        packer.name = name.to_vec();
        packer.begin(file, &stat, name);
        Ok(packer)
    }

    fn empty(takes: fn(&OwnedFd) -> bool) -> Self {
        Self {
            walk: None,
            name: Vec::new(),
            file: None,
            out: Vec::new(),
            links: HashMap::new(),
            link_bytes: 0,
            takes,
            ended: false,
        }
    }

    /// The next piece; `None` behind the last one.
    ///
    /// # Errors
    /// With the entry at fault. The archive has no end mark then.
    pub fn piece(&mut self) -> Result<Option<Vec<u8>>> {
        while self.out.len() < PIECE && !self.ended {
            if self.file.is_some() {
                self.data()?;
            } else if !self.entry()? {
                self.out.extend_from_slice(&END);
                self.ended = true;
            }
        }
        let piece = std::mem::take(&mut self.out);
        Ok((!piece.is_empty()).then_some(piece))
    }

    /// Some data of the file that is open.
    fn data(&mut self) -> Result<()> {
        let Some(open) = self.file.as_mut() else { return Ok(()) };
        let most = usize::try_from(open.size - open.at).unwrap_or(usize::MAX);
        let start = self.out.len();
        let most = most.min((PIECE - start).max(BLOCK));
        self.out.resize(start + most, 0);
        let read = match pread(&open.file, &mut self.out[start..], open.at) {
            Err(Errno::INTR) => {
                self.out.truncate(start);
                return Ok(());
            }
            result => result,
        };
        self.out.truncate(start + *read.as_ref().unwrap_or(&0));
        let path = self.walk.as_ref().map_or(&*self.name, Walk::path);
        let read = read.map_err(|errno| Error::system(path, errno))?;
        if read == 0 && most > 0 {
            let why = Why::Changed("became shorter while it was read");
            return Err(Error { path: path.to_vec(), why });
        }
        open.at += read as u64;
        if open.at == open.size {
            let padding = (BLOCK as u64 - open.size % BLOCK as u64) % BLOCK as u64;
            self.out.resize(self.out.len() + padding as usize, 0);
            self.file = None;
        }
        Ok(())
    }

    /// The headers of the next entry; false when there is none.
    fn entry(&mut self) -> Result<bool> {
        let Some(walk) = self.walk.as_mut() else { return Ok(false) };
        let Some(Found { name, stat, directory, mounted }) = walk.step()? else { return Ok(false) };
        let path = walk.path().to_vec();
        let system = |errno| Error::system(&path, errno);
        if let Some(fd) = directory {
            encode(&entry(&stat, Kind::Directory, &path, Vec::new(), 0), &mut self.out);
            if !mounted || (self.takes)(&fd) {
                walk.enter(fd)?;
            }
            return Ok(true);
        }
        let kind = FileType::from_raw_mode(stat.st_mode);
        if !matches!(kind, FileType::RegularFile | FileType::Symlink) {
            return Ok(true);
        }
        if kind == FileType::RegularFile && self.link(&stat, &path) {
            return Ok(true);
        }
        let Some(walk) = self.walk.as_ref() else { return Ok(false) };
        let here = walk.here()?;
        if kind == FileType::Symlink {
            match readlinkat(here, &name, Vec::new()) {
                Ok(target) => {
                    let target = target.into_bytes();
                    encode(&entry(&stat, Kind::Symlink, &path, target, 0), &mut self.out);
                }
                // It is gone, or no link any more.
                Err(Errno::NOENT | Errno::INVAL) => {}
                Err(errno) => return Err(system(errno)),
            }
            return Ok(true);
        }
        let file = match openat(here.as_fd(), &name, FILE, Mode::empty()) {
            Ok(file) => file,
            Err(Errno::NOENT | Errno::LOOP | Errno::NXIO) => return Ok(true),
            Err(errno) => return Err(system(errno)),
        };
        // It may be another one by now.
        let stat = fstat(&file).map_err(system)?;
        let regular = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        if regular && (!mounted || (self.takes)(&file)) {
            self.begin(file, &stat, &path);
        }
        Ok(true)
    }

    fn begin(&mut self, file: OwnedFd, stat: &Stat, path: &[u8]) {
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        encode(&entry(stat, Kind::File, path, Vec::new(), size), &mut self.out);
        self.file = (size > 0).then_some(Open { file, at: 0, size });
        if stat.st_nlink > 1 && self.links.len() < LINKED.0 && self.link_bytes + path.len() <= LINKED.1 {
            self.link_bytes += path.len();
            self.links.insert((stat.st_dev, stat.st_ino), path.to_vec());
        }
    }

    /// Writes another name of a file that is in the archive already. False if it is not.
    fn link(&mut self, stat: &Stat, path: &[u8]) -> bool {
        let Some(first) = self.links.get(&(stat.st_dev, stat.st_ino)) else { return false };
        encode(&entry(stat, Kind::HardLink, path, first.clone(), 0), &mut self.out);
        true
    }
}

fn entry(stat: &Stat, kind: Kind, path: &[u8], link: Vec<u8>, size: u64) -> Entry {
    Entry {
        kind,
        path: path.to_vec(),
        link,
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        // The kernel keeps nanoseconds between 0 and 999,999,999, also before 1970.
        mtime: (stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or(0)),
        size,
    }
}
