//! All that is in a directory, depth first, without following a link and without holding a directory's names in memory.
//! Whoever is in the tree may change it meanwhile: what is gone is left out, and nothing outside is ever looked at.

use crate::{DEPTH, Error, Result};
use rustix::{
    fd::{AsFd, BorrowedFd, OwnedFd},
    fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, fstat, openat, statat},
    io::Errno,
    path::Arg,
};
use std::ffi::CString;

/// Opens a directory in another one; `LOOP` for a symbolic link.
///
/// # Errors
/// The kernel's.
// In two steps, since gVisor follows a link that is asked for with `DIRECTORY` and `NOFOLLOW` together.
pub fn open_directory(directory: impl AsFd, name: impl Arg) -> Result<OwnedFd, Errno> {
    let itself = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let found = openat(directory, name, itself, Mode::empty())?;
    match FileType::from_raw_mode(fstat(&found)?.st_mode) {
        FileType::Directory => {
            openat(&found, c".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        }
        FileType::Symlink => Err(Errno::LOOP),
        _ => Err(Errno::NOTDIR),
    }
}

/// Something in the tree.
#[derive(Debug)]
pub struct Found {
    /// Its name in the directory that [`Walk::here`] is.
    pub name: CString,
    /// What it is.
    pub stat: Stat,
    /// Of a directory: what [`Walk::enter`] takes.
    pub directory: Option<OwnedFd>,
    /// It is in another filesystem than the directory that it is in.
    pub mounted: bool,
}

struct Level {
    entries: Dir,
    device: u64,
    /// Length of its path.
    length: usize,
}

/// A walk through a tree.
pub struct Walk {
    levels: Vec<Level>,
    path: Vec<u8>,
}

impl std::fmt::Debug for Walk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Walk").field("path", &crate::shown(&self.path)).finish_non_exhaustive()
    }
}

impl Walk {
    /// A walk through what is in `top`.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new(top: OwnedFd) -> Result<Self> {
        let mut walk = Self { levels: Vec::new(), path: Vec::new() };
        walk.enter(top)?;
        Ok(walk)
    }

    /// Path of what was found last, below the top.
    pub fn path(&self) -> &[u8] {
        &self.path
    }

    /// The directory that what was found last is in.
    ///
    /// # Errors
    /// At the end of the walk.
    pub fn here(&self) -> Result<BorrowedFd<'_>> {
        let level = self.levels.last().ok_or_else(|| Error::system(&self.path, Errno::NOENT))?;
        level.entries.fd().map_err(|errno| Error::system(&self.path, errno))
    }

    /// The next thing, `None` at the end. A directory is passed by unless it is entered before the next call.
    ///
    /// # Errors
    /// The kernel's.
    pub fn step(&mut self) -> Result<Option<Found>> {
        loop {
            let Some(level) = self.levels.last_mut() else { return Ok(None) };
            self.path.truncate(level.length);
            let entry = match level.entries.read() {
                Some(Ok(entry)) => entry,
                // The directory itself was removed.
                None | Some(Err(Errno::NOENT)) => {
                    self.levels.pop();
                    continue;
                }
                Some(Err(errno)) => return Err(Error::system(&self.path, errno)),
            };
            let name = entry.file_name().to_owned();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let device = level.device;
            if !self.path.is_empty() {
                self.path.push(b'/');
            }
            self.path.extend_from_slice(name.to_bytes());
            match look(self.here()?, &name, device) {
                Ok(found) => return Ok(Some(Found { name, ..found })),
                // Removed, or replaced by something else, between one look and the next.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(errno) => return Err(Error::system(&self.path, errno)),
            }
        }
    }

    /// Goes on with what is in `directory`, which was found last.
    ///
    /// # Errors
    /// The kernel's; `Refused` for too many directories within one another.
    pub fn enter(&mut self, directory: OwnedFd) -> Result<()> {
        if self.levels.len() >= DEPTH {
            return Err(Error::refused(&self.path, "is in too many directories within one another"));
        }
        let system = |errno| Error::system(&self.path, errno);
        let device = fstat(&directory).map_err(system)?.st_dev;
        let entries = Dir::new(directory).map_err(system)?;
        self.levels.push(Level { entries, device, length: self.path.len() });
        Ok(())
    }
}

fn look(directory: BorrowedFd<'_>, name: &CString, device: u64) -> Result<Found, Errno> {
    let mut stat = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let mut opened = None;
    if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        let fd = open_directory(directory, name)?;
        stat = fstat(&fd)?;
        opened = Some(fd);
    }
    Ok(Found { name: CString::default(), mounted: stat.st_dev != device, stat, directory: opened })
}
