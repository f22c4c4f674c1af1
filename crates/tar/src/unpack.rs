//! An archive that nobody vouches for becomes files below one directory, and nowhere else.
//!
//! Every entry is made through the handle of its directory. A name is opened one component at a time and never through a
//! symbolic link, whether the archive made that link or it was there before. What is refused ends the work; what was made
//! before stays.

use crate::{
    Draft, Entry, Error, Event, Kind, Reader, Result, draft::unused_name, leads_out, name::PATH_MAX,
    pack::FILE, parts, walk::open_directory,
};
use rustix::{
    fd::OwnedFd,
    fs::{
        AtFlags, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, chownat, fchmod, fchown,
        fstat, futimens, linkat, mkdirat, openat, renameat, statat, symlinkat, unlinkat, utimensat,
    },
    io::{Errno, fcntl_dupfd_cloexec},
};
use std::{collections::HashSet, io::Write};

/// Paths of links that were left out, as far as they are told.
const TOLD: usize = 100;
/// Directories that an archive may list behind what is in them, at once.
const IMPLIED: usize = 4096;

/// What becomes of symbolic links.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Links {
    /// Each is made as it stands: only a text, which is not followed here.
    AsTheyAre,
    /// One whose text leads out of the directory is left out.
    WithinOnly,
}

/// How files are made.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// User and group of everything that is made; `None`: whoever this process runs as.
    pub owner: Option<(u32, u32)>,
    /// The permission bits that an entry can have.
    pub mode_mask: u32,
    /// What becomes of symbolic links.
    pub links: Links,
    /// Whether something may be made in a directory that was there before.
    pub takes: fn(&OwnedFd) -> bool,
}

/// What was made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    /// Regular files, hard links included.
    pub files: u64,
    /// Directories that were not there before and that the archive lists.
    pub directories: u64,
    /// Symbolic links.
    pub links: u64,
    /// Bytes of the files.
    pub bytes: u64,
    /// Symbolic links that were left out.
    pub left_out: u64,
    /// Their paths, at most the first hundred.
    pub left_out_paths: Vec<Vec<u8>>,
}

/// A directory on the way to where we are.
#[derive(Debug)]
struct Level {
    name: Vec<u8>,
    fd: OwnedFd,
    /// Mode and time that it gets when we leave it, if we made it.
    last: Option<(u32, (i64, u32))>,
}

/// A file under way.
#[derive(Debug)]
struct Open {
    draft: Draft,
    entry: Entry,
    name: Vec<u8>,
}

/// Makes files of an archive that comes in pieces.
#[derive(Debug)]
pub struct Unpacker {
    reader: Reader,
    top: Level,
    /// Whether the top is ours to set mode and time of.
    top_is_new: bool,
    /// From the top down to the directory of the last entry.
    levels: Vec<Level>,
    file: Option<Open>,
    /// Directories that were made for what is in them and that the archive has not listed yet, by device and number; a
    /// bounded number of them.
    implied: HashSet<(u64, u64)>,
    options: Options,
    summary: Summary,
}

impl Unpacker {
    /// Makes files below `top`. With `new`, what the archive says of the top itself is done to it.
    pub fn new(top: OwnedFd, new: bool, options: Options) -> Self {
        Self {
            reader: Reader::new(),
            top: Level { name: Vec::new(), fd: top, last: None },
            top_is_new: new,
            levels: Vec::new(),
            file: None,
            implied: HashSet::new(),
            options,
            summary: Summary::default(),
        }
    }

    /// Takes the next bytes of the archive.
    ///
    /// # Errors
    /// With the entry at fault; nothing can be pushed then.
    pub fn push(&mut self, mut bytes: &[u8]) -> Result<()> {
        while let Some(event) = self.reader.next(&mut bytes)? {
            match event {
                Event::Entry(entry) => self.entry(entry)?,
                Event::Data(data) => {
                    if let Some(open) = self.file.as_mut() {
                        let written = open.draft.file.write_all(data);
                        written.map_err(|error| {
                            let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
                            Error::system(&open.entry.path, errno)
                        })?;
                        self.summary.bytes += data.len() as u64;
                    }
                }
                Event::FileEnd => self.finish_file()?,
                Event::End => {}
            }
        }
        Ok(())
    }

    /// The archive is over: directories get their times.
    ///
    /// # Errors
    /// For an archive that was cut.
    pub fn finish(mut self) -> Result<Summary> {
        self.reader.finish()?;
        self.leave_to(0)?;
        finish_directory(&self.top.fd, self.top.last.take()).map_err(|errno| Error::system(b".", errno))?;
        Ok(std::mem::take(&mut self.summary))
    }

    fn entry(&mut self, entry: Entry) -> Result<()> {
        let refused = |why| Error::refused(&entry.path, why);
        let mut way = parts(&entry.path).map_err(refused)?;
        let mode = entry.mode & self.options.mode_mask;
        let Some(name) = way.pop() else {
            if entry.kind != Kind::Directory {
                return Err(refused("has no name"));
            }
            if self.top_is_new {
                self.top.last = Some((mode, entry.mtime));
            }
            return Ok(());
        };
        match entry.kind {
            Kind::Directory => self.directory(&entry, &way, name, mode),
            Kind::File => {
                self.enter(&way, &entry.path)?;
                let draft = Draft::new(self.here());
                let draft = draft.map_err(|errno| Error::system(&entry.path, errno))?;
                let name = name.to_vec();
                self.file = Some(Open { draft, entry, name });
                Ok(())
            }
            Kind::Symlink => self.symlink(&entry, &way, name),
            Kind::HardLink => self.hard_link(&entry, &way, name),
            Kind::Other(_) => Err(refused("is a device, a pipe or something else that is no file")),
        }
    }

    fn here(&self) -> &OwnedFd {
        &self.levels.last().unwrap_or(&self.top).fd
    }

    /// Leaves directories until so many are left.
    fn leave_to(&mut self, depth: usize) -> Result<()> {
        while self.levels.len() > depth {
            let Some(level) = self.levels.pop() else { break };
            finish_directory(&level.fd, level.last).map_err(|errno| Error::system(&level.name, errno))?;
        }
        Ok(())
    }

    /// Goes to a directory; what is missing of it is made.
    fn enter(&mut self, way: &[&[u8]], path: &[u8]) -> Result<()> {
        let common = self.levels.iter().zip(way).take_while(|(level, name)| level.name == **name).count();
        self.leave_to(common)?;
        for name in &way[common..] {
            let fd = match self.open_existing(name, path)? {
                Some(fd) => fd,
                None => {
                    let fd = self.make(name, path)?;
                    let imply = || {
                        fchmod(&fd, Mode::from_raw_mode(0o755))?;
                        identity(&fd)
                    };
                    let identity = imply().map_err(|errno| Error::system(path, errno))?;
                    if self.implied.len() < IMPLIED {
                        self.implied.insert(identity);
                    }
                    fd
                }
            };
            self.levels.push(Level { name: name.to_vec(), fd, last: None });
        }
        Ok(())
    }

    /// Opens a directory that is there.
    fn open_existing(&self, name: &[u8], path: &[u8]) -> Result<Option<OwnedFd>> {
        match open_directory(self.here(), name) {
            Ok(fd) if (self.options.takes)(&fd) => Ok(Some(fd)),
            Ok(_) => Err(Error::refused(path, "is in a file system of the kernel")),
            Err(Errno::NOENT) => Ok(None),
            Err(Errno::LOOP | Errno::NOTDIR) => {
                let stat = statat(self.here(), name, AtFlags::SYMLINK_NOFOLLOW);
                let link = stat.is_ok_and(|s| FileType::from_raw_mode(s.st_mode) == FileType::Symlink);
                let why = if link {
                    "leads through a symbolic link, which is not followed"
                } else {
                    "leads through something that is no directory"
                };
                Err(Error::refused(path, why))
            }
            Err(errno) => Err(Error::system(path, errno)),
        }
    }

    /// Makes a directory that only its owner may enter yet.
    fn make(&self, name: &[u8], path: &[u8]) -> Result<OwnedFd> {
        let make = || {
            mkdirat(self.here(), name, Mode::RWXU)?;
            let fd = open_directory(self.here(), name)?;
            self.give(&fd)?;
            Ok(fd)
        };
        make().map_err(|errno| Error::system(path, errno))
    }

    fn give(&self, file: &OwnedFd) -> Result<(), Errno> {
        match self.options.owner {
            Some((uid, gid)) => fchown(file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid))),
            None => Ok(()),
        }
    }

    fn directory(&mut self, entry: &Entry, way: &[&[u8]], name: &[u8], mode: u32) -> Result<()> {
        self.enter(way, &entry.path)?;
        // One that was there keeps its owner, mode and time.
        let existing = self.open_existing(name, &entry.path)?;
        let ours = match &existing {
            None => true,
            Some(fd) => {
                let identity = identity(fd).map_err(|errno| Error::system(&entry.path, errno))?;
                self.implied.remove(&identity)
            }
        };
        let last = ours.then_some((mode, entry.mtime));
        self.summary.directories += u64::from(last.is_some());
        let fd = match existing {
            Some(fd) => fd,
            None => self.make(name, &entry.path)?,
        };
        self.levels.push(Level { name: name.to_vec(), fd, last });
        Ok(())
    }

    fn finish_file(&mut self) -> Result<()> {
        let Some(Open { mut draft, entry, name }) = self.file.take() else { return Ok(()) };
        let mut finish = || {
            let file: OwnedFd = fcntl_dupfd_cloexec(&draft.file, 0)?;
            self.give(&file)?;
            // After owner and content, whose changes clear the bits that change the user.
            fchmod(&file, Mode::from_raw_mode(entry.mode & self.options.mode_mask))?;
            futimens(&file, &times(entry.mtime))?;
            draft.rename(self.here(), &name)
        };
        finish().map_err(|errno| Error::system(&entry.path, errno))?;
        self.summary.files += 1;
        Ok(())
    }

    fn symlink(&mut self, entry: &Entry, way: &[&[u8]], name: &[u8]) -> Result<()> {
        let target = entry.link.as_slice();
        if target.is_empty() || target.len() > PATH_MAX || target.contains(&0) {
            return Err(Error::refused(&entry.path, "is a link whose target is no path"));
        }
        let all: Vec<&[u8]> = way.iter().copied().chain([name]).collect();
        if self.options.links == Links::WithinOnly && leads_out(&all, target) {
            self.summary.left_out += 1;
            if self.summary.left_out_paths.len() < TOLD {
                self.summary.left_out_paths.push(entry.path.clone());
            }
            return Ok(());
        }
        self.enter(way, &entry.path)?;
        self.in_place_of(name, &entry.path, |here, draft| {
            symlinkat(target, here, draft)?;
            // Through a handle, since the name may be something else by now. A link without them is as good.
            let itself = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            if let (Ok(link), Some((uid, gid))) =
                (openat(here, draft, itself, Mode::empty()), self.options.owner)
            {
                let _ = chownat(
                    &link,
                    c"",
                    Some(Uid::from_raw(uid)),
                    Some(Gid::from_raw(gid)),
                    AtFlags::EMPTY_PATH,
                );
            }
            let _ = utimensat(here, draft, &times(entry.mtime), AtFlags::SYMLINK_NOFOLLOW);
            Ok(())
        })?;
        self.summary.links += 1;
        Ok(())
    }

    fn hard_link(&mut self, entry: &Entry, way: &[&[u8]], name: &[u8]) -> Result<()> {
        let refused = |why| Error::refused(&entry.path, why);
        let system = |errno| Error::system(&entry.path, errno);
        let outside = |_| refused("is a hard link that leads out of the directory");
        let mut source = parts(&entry.link).map_err(outside)?;
        let missing = "is a hard link to something that is no file in the directory";
        let Some(target) = source.pop() else { return Err(refused(missing)) };
        let mut from = fcntl_dupfd_cloexec(&self.top.fd, 0).map_err(system)?;
        for name in source {
            from = match open_directory(&from, name) {
                Ok(fd) if (self.options.takes)(&fd) => fd,
                Ok(_) | Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR) => return Err(refused(missing)),
                Err(errno) => return Err(system(errno)),
            };
        }
        let stat = statat(&from, target, AtFlags::SYMLINK_NOFOLLOW).map_err(|_| refused(missing))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(refused(missing));
        }
        self.enter(way, &entry.path)?;
        self.in_place_of(name, &entry.path, |here, draft| {
            linkat(&from, target, here, draft, AtFlags::empty())?;
            self.keep_owner(here, draft, &stat)
        })?;
        self.summary.files += 1;
        Ok(())
    }

    /// Leaves a file to whom it belonged: gVisor gives one that gets another name to whoever asked for that.
    fn keep_owner(&self, here: &OwnedFd, name: &str, before: &Stat) -> Result<(), Errno> {
        if self.options.owner.is_none() {
            return Ok(());
        }
        let file = openat(here, name, FILE, Mode::empty())?;
        let now = fstat(&file)?;
        let owner = |stat: &Stat| (stat.st_uid, stat.st_gid);
        let inode = |stat: &Stat| (stat.st_dev, stat.st_ino);
        if inode(&now) != inode(before) || owner(&now) == owner(before) {
            return Ok(());
        }
        fchown(&file, Some(Uid::from_raw(before.st_uid)), Some(Gid::from_raw(before.st_gid)))?;
        fchmod(&file, Mode::from_raw_mode(before.st_mode & 0o7777))
    }

    /// Makes something under another name and puts it in the place of what is there.
    fn in_place_of(
        &self,
        name: &[u8],
        path: &[u8],
        make: impl FnOnce(&OwnedFd, &str) -> Result<(), Errno>,
    ) -> Result<()> {
        let here = self.here();
        let work = || {
            let draft = unused_name()?;
            make(here, &draft)?;
            let renamed = renameat(here, &*draft, here, name);
            // Of two names of one file, a rename removes none.
            let _ = unlinkat(here, &*draft, AtFlags::empty());
            renamed
        };
        work().map_err(|errno| Error::system(path, errno))
    }
}

impl Drop for Unpacker {
    fn drop(&mut self) {
        // After an error: what was made so far is as usable as it can be. A draft is removed before its directory may become
        // one that nothing can be removed from.
        self.file = None;
        let _ = self.leave_to(0);
    }
}

/// What tells a directory from all others.
fn identity(fd: &OwnedFd) -> Result<(u64, u64), Errno> {
    let stat = fstat(fd)?;
    Ok((stat.st_dev, stat.st_ino))
}

fn finish_directory(fd: &OwnedFd, last: Option<(u32, (i64, u32))>) -> Result<(), Errno> {
    let Some((mode, mtime)) = last else { return Ok(()) };
    fchmod(fd, Mode::from_raw_mode(mode))?;
    futimens(fd, &times(mtime))
}

fn times((seconds, nanoseconds): (i64, u32)) -> Timestamps {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds.into() };
    Timestamps { last_access: time, last_modification: time }
}
