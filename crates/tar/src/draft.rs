//! A file that takes its place only when it is complete.

use rustix::{
    fs::{AtFlags, Mode, OFlags, openat, renameat, unlinkat},
    io::Errno,
    rand::{GetRandomFlags, getrandom},
};
use std::{
    fs::File,
    os::fd::{AsFd, OwnedFd},
};

/// Beginning of the names of files that are not complete yet.
const PREFIX: &str = ".stacyvm-upload-";

/// A file beside the target, removed when dropped unless it was renamed.
#[derive(Debug)]
pub struct Draft {
    /// The open file.
    pub file: File,
    directory: OwnedFd,
    name: String,
    renamed: bool,
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.renamed {
            // Gone already, or the directory is: nothing is left either way.
            let _ = unlinkat(&self.directory, &*self.name, AtFlags::empty());
        }
    }
}

impl Draft {
    /// Makes a draft in `directory`.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new(directory: impl AsFd) -> Result<Self, Errno> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = rustix::io::fcntl_dupfd_cloexec(directory.as_fd(), 0)?;
        loop {
            let name = unused_name()?;
            match openat(&directory, &*name, flags, Mode::from_raw_mode(0o600)) {
                Ok(file) => {
                    return Ok(Self { file: file.into(), directory, name, renamed: false });
                }
                Err(Errno::EXIST | Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
    }

    /// Puts it in the place of `name` in `directory`.
    ///
    /// # Errors
    /// The kernel's.
    pub fn rename(&mut self, directory: impl AsFd, name: &[u8]) -> Result<(), Errno> {
        renameat(&self.directory, &*self.name, directory, name)?;
        self.renamed = true;
        Ok(())
    }
}

/// Whether a file of this name is one that is not complete yet.
pub fn is_draft(name: &[u8]) -> bool {
    name.starts_with(PREFIX.as_bytes())
}

/// A name that nothing has, with overwhelming probability.
pub(crate) fn unused_name() -> Result<String, Errno> {
    let mut random = [0u8; 8];
    getrandom(&mut random, GetRandomFlags::empty())?;
    Ok(format!("{PREFIX}{:016x}", u64::from_ne_bytes(random)))
}
