//! A directory as an archive: written on one side of a pipe and unpacked on the other, so that a directory gives the layer
//! that `tar` of it would give, with the same checks.
//!
//! Entries are sorted and have nothing in them that differs from one reading to the next. Other filesystems mounted inside
//! are left out, as are sockets.

use crate::{
    Digest,
    store::Work,
    unpack::{Limits, failed, path},
};
use rustix::{
    fd::{AsFd, BorrowedFd, OwnedFd},
    fs::{AtFlags, Dir, FileType, Mode, OFlags, SeekFrom, Stat},
    io::Errno,
};
use stacyvm_provider::{Error, Result};
use stacyvm_tar::decimal;
use std::{
    collections::HashMap,
    fs::File,
    io::{self, BufWriter, PipeWriter, Read, Seek, Write},
    path::Path,
    thread,
};
use tar::{Builder, EntryType, Header};

/// The layer of the directory at `path`.
pub(super) fn directory(work: &Work, path: &Path) -> Result<Digest> {
    let open = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let top = rustix::fs::open(path, open, Mode::empty());
    let top = top.map_err(|e| failed(format_args!("open {}", path.display()), e))?;
    let (reader, writer) = io::pipe().map_err(|e| failed("make a pipe", e))?;
    let limits = &work.store().limits().layer;
    thread::scope(|scope| {
        let writing = thread::Builder::new().name("image-archive".to_owned());
        let writing = writing
            .spawn_scoped(scope, || write(top, writer, limits))
            .map_err(|e| failed("start a thread", e))?;
        let layer = work.unknown_layer(reader);
        let written = writing.join().map_err(|_| Error::internal("reading a directory panicked"))?;
        match (layer, written) {
            // If unpacking ended first, the writer only found that its pipe was gone.
            (Err(e), Err(Failure::Pipe)) => Err(e),
            (_, Err(Failure::Other(e))) => Err(e),
            (layer, _) => layer,
        }
    })
}

enum Failure {
    /// The other side is gone.
    Pipe,
    Other(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Other(error)
    }
}

fn sent(error: &io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::BrokenPipe => Failure::Pipe,
        _ => Failure::Other(Error::internal(format!("could not write an archive: {error}"))),
    }
}

/// A directory that is being read.
struct Level {
    fd: OwnedFd,
    /// What is left in it, last first.
    names: Vec<Vec<u8>>,
    /// Length of its path.
    length: usize,
}

struct Writer<'a> {
    out: Builder<BufWriter<PipeWriter>>,
    limits: &'a Limits,
    /// Path of the entry.
    path: Vec<u8>,
    /// Where files with several names were written first.
    links: HashMap<(u64, u64), Vec<u8>>,
    device: u64,
}

fn write(top: OwnedFd, pipe: PipeWriter, limits: &Limits) -> Result<(), Failure> {
    let stat = rustix::fs::fstat(&top).map_err(|e| failed("look at the directory", e))?;
    let out = Builder::new(BufWriter::with_capacity(256 << 10, pipe));
    let mut writer = Writer { out, limits, path: Vec::new(), links: HashMap::new(), device: stat.st_dev };
    let names = writer.names(&top)?;
    let mut levels = vec![Level { fd: top, names, length: 0 }];
    while let Some(level) = levels.last_mut() {
        writer.path.truncate(level.length);
        let Some(name) = level.names.pop() else {
            levels.pop();
            continue;
        };
        if !writer.path.is_empty() {
            writer.path.push(b'/');
        }
        writer.path.extend_from_slice(&name);
        let entered = writer.entry(level.fd.as_fd(), &name)?;
        if let Some(fd) = entered {
            if levels.len() >= limits.depth {
                return Err(writer.refused("is in too many directories").into());
            }
            let names = writer.names(&fd)?;
            levels.push(Level { fd, names, length: writer.path.len() });
        }
    }
    writer.out.finish().and_then(|()| writer.out.get_mut().flush()).map_err(|e| sent(&e))
}

impl Writer<'_> {
    /// Writes one entry; if it is a directory to go into, it is returned.
    fn entry(&mut self, directory: BorrowedFd<'_>, name: &[u8]) -> Result<Option<OwnedFd>, Failure> {
        if name.starts_with(b".wh.") {
            return Err(self
                .refused("would be taken for a whiteout: names of images do not begin with .wh.")
                .into());
        }
        let stat = match rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(e) => return Err(self.failed("look at", e).into()),
        };
        let kind = FileType::from_raw_mode(stat.st_mode);
        let (letter, link) = match kind {
            FileType::Socket => return Ok(None),
            FileType::RegularFile => (EntryType::Regular, None),
            FileType::Directory => (EntryType::Directory, None),
            FileType::Fifo => (EntryType::Fifo, None),
            FileType::CharacterDevice => (EntryType::Char, None),
            FileType::BlockDevice => (EntryType::Block, None),
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(directory, name, Vec::new());
                (EntryType::Symlink, Some(target.map_err(|e| self.failed("read the link", e))?.into_bytes()))
            }
            FileType::Unknown => return Err(self.refused("is nothing that Linux knows").into()),
        };
        if kind != FileType::Directory && stat.st_nlink > 1 {
            let first =
                self.links.entry((stat.st_dev, stat.st_ino)).or_insert_with(|| self.path.clone()).clone();
            if first != self.path {
                self.head(&stat, EntryType::Link, Some(&first), &[], 0)?;
                return Ok(None);
            }
        }
        let opened = if matches!(kind, FileType::RegularFile | FileType::Directory) {
            Some(self.open(directory, name, &stat)?)
        } else {
            None
        };
        let xattrs = opened.as_ref().map_or_else(|| Ok(Vec::new()), |fd| self.xattrs(fd.as_fd()))?;
        match (kind, opened) {
            (FileType::RegularFile, Some(fd)) => {
                self.file(&stat, File::from(fd), &xattrs)?;
                Ok(None)
            }
            (_, opened) => {
                self.head(&stat, letter, link.as_deref(), &xattrs, 0)?;
                // What is mounted there is not a part of it.
                Ok(opened.filter(|_| stat.st_dev == self.device))
            }
        }
    }

    /// Opens what `stat` is of, and nothing else.
    fn open(&self, directory: BorrowedFd<'_>, name: &[u8], stat: &Stat) -> Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let fd =
            rustix::fs::openat(directory, name, flags, Mode::empty()).map_err(|e| self.failed("open", e))?;
        let opened = rustix::fs::fstat(&fd).map_err(|e| self.failed("look at", e))?;
        if (opened.st_dev, opened.st_ino) != (stat.st_dev, stat.st_ino) {
            return Err(self.changed());
        }
        Ok(fd)
    }

    /// Writes a file, without its holes.
    fn file(&mut self, stat: &Stat, mut file: File, xattrs: &[(String, Vec<u8>)]) -> Result<(), Failure> {
        let size = stat.st_size.cast_unsigned();
        let pieces = if stat.st_blocks.cast_unsigned() * 512 < size {
            self.pieces(&file, size)?
        } else {
            vec![(0, size)]
        };
        let whole = pieces == [(0, size)];
        let mut map = Vec::new();
        let mut records = Vec::new();
        if !whole {
            map = format!("{}\n", pieces.len()).into_bytes();
            pieces.iter().for_each(|(at, length)| map.extend(format!("{at}\n{length}\n").into_bytes()));
            map.resize(map.len().next_multiple_of(512), 0);
            for (key, value) in
                [("major", "1".to_owned()), ("minor", "0".to_owned()), ("realsize", size.to_string())]
            {
                records.push((format!("GNU.sparse.{key}"), value.into_bytes()));
            }
        }
        records.extend_from_slice(xattrs);
        let stored = map.len() as u64 + pieces.iter().map(|(_, length)| length).sum::<u64>();
        let header = self.header(stat, EntryType::Regular, None, records, stored)?;
        let mut data = Data { map: &map, file: &mut file, pieces: &pieces, taken: 0 };
        let mut counted = data.by_ref().take(stored);
        self.out.append(&header, &mut counted).map_err(|e| sent(&e))?;
        // It got shorter; the archive is broken here, and that is the end of it.
        if counted.limit() > 0 { Err(self.changed().into()) } else { Ok(()) }
    }

    /// Where the data of a file with holes is.
    fn pieces(&self, file: &File, size: u64) -> Result<Vec<(u64, u64)>> {
        let mut pieces = Vec::new();
        let mut at = 0;
        while at < size {
            let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
                Ok(start) => start,
                // Nothing but a hole follows.
                Err(Errno::NXIO) => break,
                Err(_) => return Ok(vec![(0, size)]),
            };
            let end =
                rustix::fs::seek(file, SeekFrom::Hole(start)).map_err(|e| self.failed("read", e))?.min(size);
            if start >= end {
                break;
            }
            pieces.push((start, end - start));
            at = end;
        }
        Ok(pieces)
    }

    /// Writes headers of something without data.
    fn head(
        &mut self,
        stat: &Stat,
        kind: EntryType,
        link: Option<&[u8]>,
        xattrs: &[(String, Vec<u8>)],
        size: u64,
    ) -> Result<(), Failure> {
        let header = self.header(stat, kind, link, xattrs.to_vec(), size)?;
        self.out.append(&header, io::empty()).map_err(|e| sent(&e))
    }

    /// Writes an extended header, and returns the one that goes behind it.
    fn header(
        &mut self,
        stat: &Stat,
        kind: EntryType,
        link: Option<&[u8]>,
        mut records: Vec<(String, Vec<u8>)>,
        size: u64,
    ) -> Result<Header, Failure> {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(stat.st_mode & 0o7777);
        for (key, value) in [("uid", stat.st_uid), ("gid", stat.st_gid)] {
            records.push((key.to_owned(), value.to_string().into_bytes()));
        }
        records.push(("size".to_owned(), size.to_string().into_bytes()));
        header.set_size(size);
        let (seconds, nanoseconds) = (stat.st_mtime, stat.st_mtime_nsec);
        records.push(("mtime".to_owned(), decimal(seconds, nanoseconds).into_bytes()));
        records.push(("path".to_owned(), self.path.clone()));
        if let Some(link) = link {
            records.push(("linkpath".to_owned(), link.to_vec()));
        }
        // For tools that show names without reading records.
        let shown = self.path.len().min(100);
        header.as_mut_bytes()[..shown].copy_from_slice(&self.path[..shown]);
        header.set_cksum();
        let records = records.iter().map(|(key, value)| (key.as_str(), value.as_slice()));
        self.out.append_pax_extensions(records).map_err(|e| sent(&e))?;
        Ok(header)
    }

    /// Extended attributes that a layer keeps.
    fn xattrs(&self, fd: BorrowedFd<'_>) -> Result<Vec<(String, Vec<u8>)>> {
        let mut names = vec![0; 64 << 10];
        let length = match rustix::fs::flistxattr(fd, names.as_mut_slice()) {
            Ok(length) => length,
            Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
            Err(e) => return Err(self.failed("read extended attributes of", e)),
        };
        let mut xattrs = Vec::new();
        for name in names[..length].split(|b| *b == 0).filter_map(|name| std::str::from_utf8(name).ok()) {
            let kept = name == "security.capability"
                || (name.starts_with("user.") && !name.starts_with("user.overlay."));
            if kept {
                let mut value = vec![0; 64 << 10];
                let read = rustix::fs::fgetxattr(fd, name, value.as_mut_slice());
                value.truncate(read.map_err(|e| self.failed("read extended attributes of", e))?);
                xattrs.push((format!("SCHILY.xattr.{name}"), value));
            }
        }
        xattrs.sort();
        Ok(xattrs)
    }

    /// Names in a directory, in the reverse of their order.
    fn names(&self, fd: &OwnedFd) -> Result<Vec<Vec<u8>>> {
        // One more than there may be is refused where it is unpacked.
        let most = usize::try_from(self.limits.entries).unwrap_or(usize::MAX).saturating_add(3);
        let list = || -> Result<Vec<Vec<u8>>, Errno> {
            let names = Dir::read_from(fd)?.map(|e| e.map(|e| e.file_name().to_bytes().to_vec()));
            let mut names = names.take(most).collect::<Result<Vec<_>, _>>()?;
            names.retain(|name| name != b"." && name != b"..");
            names.sort_by(|a, b| b.cmp(a));
            Ok(names)
        };
        list().map_err(|e| self.failed("list", e))
    }

    fn refused(&self, why: &str) -> Error {
        Error::invalid_argument(format!("{} of the directory {why}", path::shown(&self.path)))
    }

    fn changed(&self) -> Error {
        Error::unavailable(format!(
            "{} of the directory changed while it was read: stop what writes there, then try again",
            path::shown(&self.path)
        ))
    }

    fn failed(&self, doing: &str, error: Errno) -> Error {
        failed(format_args!("{doing} {}", path::shown(&self.path)), error)
    }
}

/// The map of a file with holes, then its pieces.
struct Data<'a> {
    map: &'a [u8],
    file: &'a mut File,
    pieces: &'a [(u64, u64)],
    /// Bytes taken of the first piece.
    taken: u64,
}

impl Read for Data<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if !self.map.is_empty() {
            return self.map.read(buffer);
        }
        while let Some((at, length)) = self.pieces.first() {
            if self.taken == *length {
                (self.pieces, self.taken) = (&self.pieces[1..], 0);
                continue;
            }
            if self.taken == 0 {
                self.file.seek(io::SeekFrom::Start(*at))?;
            }
            let most = usize::try_from(length - self.taken).unwrap_or(usize::MAX).min(buffer.len());
            let read = self.file.read(&mut buffer[..most])?;
            self.taken += read as u64;
            return Ok(read);
        }
        Ok(0)
    }
}
