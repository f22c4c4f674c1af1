//! The entries of an archive, one after the other, each with all that its headers say about it.

use super::{
    Limits,
    blocks::{BLOCK, Blocks, truncated},
    exceeded,
    path::shown,
    refused,
    sparse::{self, Map},
};
use stacyvm_provider::{Error, Result};
use stacyvm_tar::{Header, Records};

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    HardLink,
    SymbolicLink,
    Directory,
    Fifo,
    Device,
}

/// One entry.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) kind: Kind,
    /// As it stands in the archive.
    pub(crate) path: Vec<u8>,
    /// What a link refers to.
    pub(crate) link: Vec<u8>,
    /// Permissions with the bits for set-user-ID, set-group-ID and sticky.
    pub(crate) mode: u32,
    pub(crate) uid: i64,
    pub(crate) gid: i64,
    /// Seconds and nanoseconds.
    pub(crate) mtime: (i64, u32),
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Bytes of data that the archive holds for it.
    pub(crate) stored: u64,
    /// Where they belong, if not one behind the other.
    pub(crate) sparse: Option<Map>,
}

impl Entry {
    /// Length of the file.
    pub(crate) fn size(&self) -> u64 {
        self.sparse.as_ref().map_or(self.stored, |map| map.size)
    }
}

/// A reader of entries.
pub(crate) struct Entries<'a, B> {
    pub(crate) blocks: B,
    limits: &'a Limits,
    /// Data of the current entry that was not taken, and what fills it up to a block.
    left: u64,
    padding: u64,
    headers: u64,
    /// Path of the last header, to say where an archive is damaged.
    last: Vec<u8>,
    ended: bool,
}

impl<'a, B: Blocks> Entries<'a, B> {
    pub(crate) fn new(blocks: B, limits: &'a Limits) -> Self {
        Self { blocks, limits, left: 0, padding: 0, headers: 0, last: Vec::new(), ended: false }
    }

    /// Whether the end mark was found.
    pub(crate) fn ended(&self) -> bool {
        self.ended
    }

    /// The next entry. What was not taken of the one before is skipped.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>> {
        let mut records = Records::default();
        let (mut long_path, mut long_link) = (None, None);
        let mut extended = false;
        loop {
            self.blocks.skip(self.left + self.padding)?;
            (self.left, self.padding) = (0, 0);
            let Some(header) = self.header()? else {
                return if extended { Err(truncated()) } else { Ok(None) };
            };
            let path = header.path();
            self.last.clone_from(&path);
            let size = header.size().ok_or_else(|| refused(&path, "has a size that is no number"))?;
            match header.kind() {
                b'x' => {
                    let bytes = self.extension(&path, size)?;
                    records.read(&bytes).map_err(|reason| refused(&path, reason))?;
                }
                b'L' => long_path = Some(self.name(&path, size)?),
                b'K' => long_link = Some(self.name(&path, size)?),
                // For all that follow: comments, as `git archive` writes them. Nothing that an image needs.
                b'g' => self.data_follows(size),
                _ => {
                    let path =
                        records.sparse.name.clone().or(records.path.clone()).or(long_path).unwrap_or(path);
                    let link = records.link.clone().or(long_link).unwrap_or_else(|| header.link());
                    return self.entry(&header, records, path, link, size).map(Some);
                }
            }
            extended = true;
        }
    }

    /// The next header, none at the end of the archive.
    fn header(&mut self) -> Result<Option<Header>> {
        let Some(block) = self.blocks.block()? else { return Ok(None) };
        if block == [0; BLOCK] {
            // Two blocks of zeros are the end mark.
            match self.blocks.block()? {
                Some(second) if second != [0; BLOCK] => {
                    return Err(Error::invalid_argument(
                        "the archive has data behind its end: it is damaged, export it again",
                    ));
                }
                second => self.ended = second.is_some(),
            }
            return Ok(None);
        }
        self.headers += 1;
        let header = Header::new(block).map_err(|why| {
            let at = self.blocks.position() - BLOCK as u64;
            let behind =
                if self.last.is_empty() { String::new() } else { format!(" behind {}", shown(&self.last)) };
            let why = why.0;
            Error::invalid_argument(format!(
                "this is no tar archive, or it is damaged: there is no header at byte {at}{behind} ({why})"
            ))
        })?;
        if self.headers > self.limits.entries {
            let most = self.limits.entries;
            return Err(exceeded(&header.path(), format_args!("is one too many: {most} are allowed")));
        }
        Ok(Some(header))
    }

    fn entry(
        &mut self,
        header: &Header,
        records: Records,
        path: Vec<u8>,
        link: Vec<u8>,
        size: u64,
    ) -> Result<Entry> {
        let kind = match header.kind() {
            // Before POSIX, a directory was a file whose name ends with a slash.
            b'0' | 0 if path.ends_with(b"/") => Kind::Directory,
            b'0' | 0 | b'7' | b'S' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::SymbolicLink,
            b'3' | b'4' => Kind::Device,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            other => {
                let letter = char::from(other);
                return Err(refused(&path, format_args!("is of the kind {letter:?}, which no image has")));
            }
        };
        let bad = |what: &str| refused(&path, format_args!("has {what} that is no number"));
        let mode = header.mode().ok_or_else(|| bad("a mode"))?;
        let uid = records.uid.or(header.uid()).ok_or_else(|| bad("an owner"))?;
        let gid = records.gid.or(header.gid()).ok_or_else(|| bad("a group"))?;
        let mtime = records.mtime.or(header.mtime().map(|s| (s, 0))).ok_or_else(|| bad("a time"))?;
        // What is no file has no data, whatever size it gives.
        let may_have_data = matches!(header.kind(), b'0' | 0 | b'7' | b'S');
        let size = if may_have_data { records.size.unwrap_or(size) } else { 0 };
        let mut entry = Entry {
            kind,
            link,
            mode: (mode & 0o7777) as u32,
            uid,
            gid,
            mtime,
            xattrs: records.xattrs.into_iter().collect(),
            stored: size,
            sparse: None,
            path,
        };
        if kind == Kind::File {
            let pax = records.sparse;
            if header.kind() == b'S' {
                let map = sparse::gnu(&mut self.blocks, header, &entry.path, size, self.limits)?;
                entry.sparse = Some(map);
            } else if pax.major.as_deref() == Some(b"1") && pax.minor.as_deref() == Some(b"0") {
                let real =
                    pax.real_size.ok_or_else(|| refused(&entry.path, "is a sparse file without its size"))?;
                let (map, taken) = sparse::pax(&mut self.blocks, &entry.path, real, size, self.limits)?;
                entry.stored -= taken;
                entry.sparse = Some(map);
            } else if pax.major.is_some() || pax.outdated {
                return Err(refused(
                    &entry.path,
                    "is a sparse file in a format that is not read: use that of GNU tar, 1.0",
                ));
            }
            if entry.size() > self.limits.file_bytes {
                let most = self.limits.file_bytes;
                return Err(exceeded(&entry.path, format_args!("is larger than the {most} bytes allowed")));
            }
        }
        self.data_follows(entry.stored);
        Ok(entry)
    }

    fn data_follows(&mut self, size: u64) {
        self.left = size;
        self.padding = (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64;
    }

    /// More data of the current entry; nothing when there is no more.
    pub(crate) fn data(&mut self) -> Result<&[u8]> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX);
        if most == 0 {
            return Ok(&[]);
        }
        let seen = self.blocks.peek(most)?;
        if seen.is_empty() {
            return Err(truncated());
        }
        Ok(seen)
    }

    /// Goes on behind `bytes` of the data that [`Entries::data`] showed.
    pub(crate) fn taken(&mut self, bytes: usize) {
        self.blocks.take(bytes);
        self.left -= bytes as u64;
    }

    /// All data of a header that belongs to the next entry.
    fn extension(&mut self, path: &[u8], size: u64) -> Result<Vec<u8>> {
        if size > self.limits.extension_bytes as u64 {
            let most = self.limits.extension_bytes;
            return Err(exceeded(path, format_args!("is an extension header of more than {most} bytes")));
        }
        self.data_follows(size);
        let mut bytes = Vec::new();
        while self.left > 0 {
            let seen = self.data()?;
            let count = seen.len();
            bytes.extend_from_slice(seen);
            self.taken(count);
        }
        Ok(bytes)
    }

    /// A long name, which a zero byte ends.
    fn name(&mut self, path: &[u8], size: u64) -> Result<Vec<u8>> {
        let mut bytes = self.extension(path, size)?;
        let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
        bytes.truncate(end);
        Ok(bytes)
    }
}
