//! The entries of an archive that comes in pieces: nobody waits here for the next one, so no thread is held meanwhile.

use crate::{BLOCK, Entry, Error, Header, Kind, Records, Result};

/// Most bytes of one extension header. A path has 4 KiB; programs put attributes beside it.
const EXTENSION: u64 = 256 << 10;
/// Most bytes behind the end mark. Tapes had blocks, and their files are still filled up to one.
const BEHIND: u64 = 1 << 20;

/// What a piece of an archive holds.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// An entry begins. Behind that of a file come its data and [`Event::FileEnd`].
    Entry(Entry),
    /// Data of the file.
    Data(&'a [u8]),
    /// The file is complete.
    FileEnd,
    /// The end mark. What stands behind it is no part of the archive.
    End,
}

/// What the next bytes are.
#[derive(Debug)]
enum State {
    /// A header.
    Header,
    /// An extension header's data of this kind, of which so much is to come.
    Extension(u8, u64),
    /// Data of a file.
    Data(u64),
    /// Bytes that mean nothing.
    Skip(u64),
    Ended,
}

/// Reads an archive.
#[derive(Debug)]
pub struct Reader {
    state: State,
    /// A header that is not complete, or the data of an extension.
    buffer: Vec<u8>,
    /// Bytes that fill the data up to a block.
    padding: u64,
    records: Records,
    long_path: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
    /// A header said something about the entry that must follow.
    extended: bool,
    /// Path of the last header, to say where an archive is damaged.
    last: Vec<u8>,
    /// Bytes behind the end mark.
    behind: u64,
}

impl Default for Reader {
    fn default() -> Self {
        Self::new()
    }
}

impl Reader {
    /// A reader at the start of an archive.
    pub fn new() -> Self {
        Self {
            state: State::Header,
            buffer: Vec::new(),
            padding: 0,
            records: Records::default(),
            long_path: None,
            long_link: None,
            extended: false,
            last: Vec::new(),
            behind: 0,
        }
    }

    /// What the front of `input` holds; it is taken off. `None` when all of it was taken and more is needed.
    ///
    /// # Errors
    /// For an archive that is damaged or uses what is not read here.
    pub fn next<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Event<'a>>> {
        loop {
            match self.state {
                State::Ended => {
                    self.behind += input.len() as u64;
                    *input = &[];
                    if self.behind > BEHIND {
                        return Err(Error::damaged(
                            &self.last,
                            "is the last entry, and more than 1 MiB follows",
                        ));
                    }
                    return Ok(None);
                }
                State::Skip(0) => self.state = State::Header,
                State::Skip(left) => {
                    if input.is_empty() {
                        return Ok(None);
                    }
                    self.state = State::Skip(left - front(input, left).len() as u64);
                }
                State::Data(0) => {
                    self.state = State::Skip(self.padding);
                    return Ok(Some(Event::FileEnd));
                }
                State::Data(left) => {
                    if input.is_empty() {
                        return Ok(None);
                    }
                    let data = front(input, left);
                    self.state = State::Data(left - data.len() as u64);
                    return Ok(Some(Event::Data(data)));
                }
                State::Extension(kind, 0) => {
                    self.extension(kind)?;
                    self.state = State::Skip(self.padding);
                }
                State::Extension(kind, left) => {
                    if input.is_empty() {
                        return Ok(None);
                    }
                    let data = front(input, left);
                    self.buffer.extend_from_slice(data);
                    self.state = State::Extension(kind, left - data.len() as u64);
                }
                State::Header => {
                    self.buffer.extend_from_slice(front(input, (BLOCK - self.buffer.len()) as u64));
                    let Ok(block) = <[u8; BLOCK]>::try_from(&*self.buffer) else { return Ok(None) };
                    self.buffer.clear();
                    if let Some(event) = self.header(block)? {
                        return Ok(Some(event));
                    }
                }
            }
        }
    }

    /// Says that nothing more comes.
    ///
    /// # Errors
    /// For an archive that does not end here.
    pub fn finish(&self) -> Result<()> {
        match self.state {
            State::Ended => Ok(()),
            _ => Err(Error::damaged(&self.last, "was cut: its end mark is missing")),
        }
    }

    fn header(&mut self, block: [u8; BLOCK]) -> Result<Option<Event<'static>>> {
        if block == [0; BLOCK] {
            if self.extended {
                return Err(Error::damaged(&self.last, "ends with a header that belongs to no entry"));
            }
            self.state = State::Ended;
            return Ok(Some(Event::End));
        }
        let no_header = |_| Error::damaged(&self.last, "is no tar archive, or it is damaged");
        let header = Header::new(block).map_err(no_header)?;
        self.last = header.path();
        let size = header.size().ok_or_else(|| Error::damaged(&self.last, "has a size that is no number"))?;
        self.padding = (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64;
        if matches!(header.kind(), b'x' | b'L' | b'K' | b'g') && size > EXTENSION {
            return Err(Error::damaged(&self.last, "has an extension header of more than 256 KiB"));
        }
        match header.kind() {
            kind @ (b'x' | b'L' | b'K') => {
                self.extended = true;
                self.state = State::Extension(kind, size);
                Ok(None)
            }
            // For all that follow: comments, as `git archive` writes them.
            b'g' => {
                self.state = State::Skip(size.saturating_add(self.padding));
                Ok(None)
            }
            _ => self.entry(&header, size).map(|entry| Some(Event::Entry(entry))),
        }
    }

    fn extension(&mut self, kind: u8) -> Result<()> {
        let bytes = std::mem::take(&mut self.buffer);
        // A name is ended by a zero byte.
        let name = || Some(bytes.split(|byte| *byte == 0).next().unwrap_or_default().to_vec());
        match kind {
            b'L' => self.long_path = name(),
            b'K' => self.long_link = name(),
            _ => {
                self.records.read(&bytes).map_err(|why| Error::damaged(&self.last, why))?;
                // Nothing is made of them, and any number of headers may come.
                self.records.xattrs.clear();
            }
        }
        Ok(())
    }

    fn entry(&mut self, header: &Header, size: u64) -> Result<Entry> {
        let records = std::mem::take(&mut self.records);
        let (long_path, long_link) = (self.long_path.take(), self.long_link.take());
        self.extended = false;
        let path = records.path.or(long_path).unwrap_or_else(|| header.path());
        let link = records.link.or(long_link).unwrap_or_else(|| header.link());
        let sparse = records.sparse;
        if header.kind() == b'S' || sparse.major.is_some() || sparse.outdated {
            return Err(Error::refused(&path, "is a sparse file: pack it without --sparse"));
        }
        let kind = match header.kind() {
            // Before POSIX, a directory was a file whose name ends with a slash.
            b'0' | 0 if path.ends_with(b"/") => Kind::Directory,
            b'0' | 0 | b'7' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'5' => Kind::Directory,
            other => Kind::Other(other),
        };
        // What is no file has no data, whatever size it gives.
        let size = if matches!(header.kind(), b'0' | 0 | b'7') { records.size.unwrap_or(size) } else { 0 };
        self.padding = (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64;
        self.state = match kind {
            Kind::File => State::Data(size),
            _ if size > EXTENSION => return Err(Error::damaged(&path, "has data and is no file")),
            _ => State::Skip(size.saturating_add(self.padding)),
        };
        let no_number = || Error::damaged(&path, "has a mode or a time that is no number");
        let mode = header.mode().ok_or_else(no_number)?;
        let mtime = records.mtime.or(header.mtime().map(|seconds| (seconds, 0))).ok_or_else(no_number)?;
        // Nobody is made owner by these; the numbers are for who shows them.
        let id = |number: Option<i64>| number.and_then(|number| u32::try_from(number).ok()).unwrap_or(0);
        Ok(Entry {
            kind,
            link,
            mode: (mode & 0o7777) as u32,
            uid: id(records.uid.or(header.uid())),
            gid: id(records.gid.or(header.gid())),
            mtime,
            size,
            path,
        })
    }
}

/// At most `most` bytes from the front of `input`, which loses them.
fn front<'a>(input: &mut &'a [u8], most: u64) -> &'a [u8] {
    let (front, rest) = input.split_at(usize::try_from(most).unwrap_or(usize::MAX).min(input.len()));
    *input = rest;
    front
}
