//! The thread that reads, decompresses and hashes an archive while the other one makes files of it.

use super::{Decoder, Limits, blocks::Blocks, compression::Compression};
use crate::{Digest, Hasher};
use stacyvm_provider::{Error, Result};
use std::{
    io::Read,
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread,
};

/// Bytes handed over at a time; whole blocks, so that no header is ever in two of them.
const CHUNK: usize = 1 << 20;
/// Chunks between the two.
const CHUNKS: usize = 4;

/// What was read in the end.
pub(super) struct Fed {
    pub(super) digest: Digest,
    pub(super) bytes: u64,
}

/// The side that takes.
pub(super) struct Feed {
    full: Receiver<Result<Vec<u8>>>,
    empty: SyncSender<Vec<u8>>,
    chunk: Vec<u8>,
    at: usize,
    before: u64,
    ended: bool,
}

/// Runs `take` with a feed of `archive`; what it leaves is read and hashed, too.
pub(super) fn fed<T>(
    archive: impl Read + Send,
    limits: &Limits,
    take: impl FnOnce(&mut Feed) -> Result<T>,
) -> Result<(T, Fed)> {
    let (full, filled) = sync_channel(CHUNKS);
    let (empty, emptied) = sync_channel(CHUNKS);
    for _ in 0..CHUNKS {
        let _ = empty.send(Vec::new());
    }
    let mut feed = Feed { full: filled, empty, chunk: Vec::new(), at: 0, before: 0, ended: false };
    thread::scope(|scope| {
        let reader = thread::Builder::new().name("image-read".to_owned());
        let reader = reader
            .spawn_scoped(scope, move || read(archive, limits, &full, &emptied))
            .map_err(|e| super::failed("start a thread", e))?;
        let taken = take(&mut feed).and_then(|taken| feed.drain().map(|()| taken));
        // Without its other end the reader stops at the next chunk.
        drop(feed);
        let read = reader.join().map_err(|_| Error::internal("reading an archive panicked"))?;
        let taken = taken?;
        let fed = read.ok_or_else(|| Error::internal("an archive was not read to its end"))?;
        Ok((taken, fed))
    })
}

/// Fills chunks until the archive ends, the other side has gone, or an error was handed over.
fn read(
    archive: impl Read,
    limits: &Limits,
    full: &SyncSender<Result<Vec<u8>>>,
    emptied: &Receiver<Vec<u8>>,
) -> Option<Fed> {
    let mut decoder = match Decoder::new(archive) {
        Ok(decoder) => decoder,
        Err(e) => {
            let _ = full.send(Err(e));
            return None;
        }
    };
    let mut hasher = Hasher::default();
    let mut bytes = 0;
    loop {
        let mut chunk = emptied.recv().ok()?;
        let ended = match fill(&mut decoder, &mut chunk) {
            Ok(ended) => ended,
            Err(e) => {
                let _ = full.send(Err(e));
                return None;
            }
        };
        hasher.update(&chunk);
        bytes += chunk.len() as u64;
        let (taken, compressed) = (decoder.taken(), decoder.compression() != Compression::None);
        let bomb = compressed && bytes > limits.ratio_above && bytes / limits.ratio.max(1) > taken;
        if bytes > limits.stream_bytes || bomb {
            let _ = full.send(Err(Error::resource_limit(format!(
                "the archive unpacks to more than {bytes} bytes from {taken}: more than is allowed for one layer"
            ))));
            return None;
        }
        full.send(Ok(chunk)).ok()?;
        if ended {
            return Some(Fed { digest: hasher.finish(), bytes });
        }
    }
}

/// Fills one chunk; true at the end of the archive.
fn fill(decoder: &mut impl Read, chunk: &mut Vec<u8>) -> Result<bool> {
    chunk.resize(CHUNK, 0);
    let mut filled = 0;
    while filled < CHUNK {
        match decoder.read(&mut chunk[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => {
                let text =
                    format!("the archive cannot be read: {e}: it is damaged or was cut, transfer it again");
                return Err(Error::invalid_argument(text).because(e));
            }
        }
    }
    chunk.truncate(filled);
    Ok(filled < CHUNK)
}

impl Feed {
    /// Takes all that is left, so that it is hashed.
    fn drain(&mut self) -> Result<()> {
        loop {
            let seen = self.peek(usize::MAX)?.len();
            if seen == 0 {
                return Ok(());
            }
            self.take(seen);
        }
    }
}

impl Blocks for Feed {
    fn peek(&mut self, most: usize) -> Result<&[u8]> {
        while self.at == self.chunk.len() && !self.ended {
            self.before += self.chunk.len() as u64;
            // The reader may have ended already; then nobody needs the chunk.
            let _ = self.empty.try_send(std::mem::take(&mut self.chunk));
            self.at = 0;
            match self.full.recv() {
                Ok(chunk) => self.chunk = chunk?,
                Err(_) => self.ended = true,
            }
        }
        let seen = &self.chunk[self.at..];
        Ok(&seen[..seen.len().min(most)])
    }

    fn take(&mut self, bytes: usize) {
        self.at += bytes;
    }

    fn position(&self) -> u64 {
        self.before + self.at as u64
    }
}
