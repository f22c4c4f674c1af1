//! Where the blocks of an archive come from: a stream that another thread decompresses, or a file that can be skipped in.

use super::failed;
use stacyvm_provider::{Error, Result};
use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::FileExt,
};

/// Bytes of a block. Headers are one block, data is filled up to one.
pub(crate) const BLOCK: usize = 512;

/// A sequence of blocks, read from the front.
pub(crate) trait Blocks {
    /// The bytes that follow, at least one and at most `most`; none at the end. They are taken by [`Blocks::take`].
    fn peek(&mut self, most: usize) -> Result<&[u8]>;

    /// Goes on behind `bytes` of those that the last [`Blocks::peek`] showed.
    fn take(&mut self, bytes: usize);

    /// Goes on behind `bytes`.
    fn skip(&mut self, mut bytes: u64) -> Result<()> {
        while bytes > 0 {
            let most = usize::try_from(bytes).unwrap_or(usize::MAX);
            let seen = self.peek(most)?.len();
            if seen == 0 {
                return Err(truncated());
            }
            self.take(seen);
            bytes -= seen as u64;
        }
        Ok(())
    }

    /// Bytes taken so far.
    fn position(&self) -> u64;

    /// The next block; none at the end.
    fn block(&mut self) -> Result<Option<[u8; BLOCK]>> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            let seen = self.peek(BLOCK - filled)?;
            let count = seen.len();
            block[filled..filled + count].copy_from_slice(seen);
            match count {
                0 if filled == 0 => return Ok(None),
                0 => return Err(truncated()),
                _ => self.take(count),
            }
            filled += count;
        }
        Ok(Some(block))
    }
}

impl<B: Blocks> Blocks for &mut B {
    fn peek(&mut self, most: usize) -> Result<&[u8]> {
        (**self).peek(most)
    }

    fn take(&mut self, bytes: usize) {
        (**self).take(bytes);
    }

    fn skip(&mut self, bytes: u64) -> Result<()> {
        (**self).skip(bytes)
    }

    fn position(&self) -> u64 {
        (**self).position()
    }
}

/// The error for an archive that ends within an entry.
pub(crate) fn truncated() -> Error {
    Error::invalid_argument(
        "the archive ends in the middle of an entry: it was cut, transfer or export it again",
    )
}

/// Blocks of a file that is not compressed.
pub(crate) struct FileBlocks<'a> {
    file: &'a File,
    length: u64,
    at: u64,
    buffer: Vec<u8>,
    /// Where `buffer` begins in the file.
    start: u64,
}

impl<'a> FileBlocks<'a> {
    pub(crate) fn new(file: &'a File) -> io::Result<Self> {
        Ok(Self { file, length: file.metadata()?.len(), at: 0, buffer: Vec::new(), start: 0 })
    }
}

impl Blocks for FileBlocks<'_> {
    fn peek(&mut self, most: usize) -> Result<&[u8]> {
        let held = |this: &Self| this.at.checked_sub(this.start).filter(|o| *o < this.buffer.len() as u64);
        if held(self).is_none() {
            self.buffer.resize(64 << 10, 0);
            let read =
                self.file.read_at(&mut self.buffer, self.at).map_err(|e| failed("read the archive", e))?;
            self.buffer.truncate(read);
            self.start = self.at;
        }
        let offset = held(self).map_or(self.buffer.len(), |o| o as usize);
        let seen = &self.buffer[offset..];
        Ok(&seen[..seen.len().min(most)])
    }

    fn take(&mut self, bytes: usize) {
        self.at += bytes as u64;
    }

    fn skip(&mut self, bytes: u64) -> Result<()> {
        self.at = self.at.checked_add(bytes).filter(|end| *end <= self.length).ok_or_else(truncated)?;
        Ok(())
    }

    fn position(&self) -> u64 {
        self.at
    }
}

/// Blocks of a stream, for who looks at its entries only.
pub(crate) struct ReadBlocks<R> {
    inner: R,
    /// Bytes that it may have.
    limit: u64,
    buffer: Vec<u8>,
    at: usize,
    before: u64,
}

impl<R: Read> ReadBlocks<R> {
    pub(crate) fn new(inner: R, limit: u64) -> Self {
        Self { inner, limit, buffer: Vec::new(), at: 0, before: 0 }
    }
}

impl<R: Read> Blocks for ReadBlocks<R> {
    fn peek(&mut self, most: usize) -> Result<&[u8]> {
        if self.at == self.buffer.len() {
            self.before += self.buffer.len() as u64;
            if self.before > self.limit {
                let limit = self.limit;
                return Err(Error::resource_limit(format!(
                    "the archive unpacks to more than the {limit} bytes allowed"
                )));
            }
            self.at = 0;
            self.buffer.resize(64 << 10, 0);
            let read = loop {
                match self.inner.read(&mut self.buffer) {
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    result => break result,
                }
            };
            let read = read.map_err(|e| {
                let text =
                    format!("the archive cannot be read: {e}: it is damaged or was cut, transfer it again");
                Error::invalid_argument(text).because(e)
            });
            self.buffer.truncate(*read.as_ref().unwrap_or(&0));
            read?;
        }
        let seen = &self.buffer[self.at..];
        Ok(&seen[..seen.len().min(most)])
    }

    fn take(&mut self, bytes: usize) {
        self.at += bytes;
    }

    fn position(&self) -> u64 {
        self.before + self.at as u64
    }
}
