//! Archives in, trees out, and the other way round.

mod format;
mod hostile;
mod trees;

use crate::{END, Entry, Error, Kind, Links, Options, Packer, Summary, Unpacker, append, encode};
use rustix::{
    fd::OwnedFd,
    fs::{Mode, OFlags},
};
use std::path::Path;

pub(crate) const OPTIONS: Options =
    Options { owner: None, mode_mask: 0o7777, links: Links::AsTheyAre, takes: |_| true };

pub(crate) fn open(path: &Path) -> OwnedFd {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap()
}

pub(crate) fn packed(path: &Path) -> Vec<u8> {
    let mut packer = Packer::directory(open(path), |_| true).unwrap();
    let mut all = Vec::new();
    while let Some(piece) = packer.piece().unwrap() {
        assert!(!piece.is_empty() && piece.len() < 80 << 10, "{}", piece.len());
        all.extend_from_slice(&piece);
    }
    all
}

/// Unpacks in pieces of `size` bytes.
pub(crate) fn unpacked(archive: &[u8], into: &Path, size: usize, options: Options) -> Result<Summary, Error> {
    let mut unpacker = Unpacker::new(open(into), false, options);
    for piece in archive.chunks(size) {
        unpacker.push(piece)?;
    }
    unpacker.finish()
}

/// An archive under construction, with entries as no honest program writes them.
#[derive(Default)]
pub(crate) struct Archive(Vec<u8>);

impl Archive {
    pub(crate) fn entry(mut self, kind: Kind, path: &str, link: &str, data: &[u8]) -> Self {
        let entry = Entry {
            kind,
            path: path.into(),
            link: link.into(),
            mode: if kind == Kind::Directory { 0o755 } else { 0o644 },
            uid: 0,
            gid: 0,
            mtime: (1_700_000_000, 0),
            size: data.len() as u64,
        };
        append(&entry, data, &mut self.0);
        self
    }

    pub(crate) fn file(self, path: &str, data: &[u8]) -> Self {
        self.entry(Kind::File, path, "", data)
    }

    pub(crate) fn directory(self, path: &str) -> Self {
        self.entry(Kind::Directory, path, "", b"")
    }

    pub(crate) fn symlink(self, path: &str, target: &str) -> Self {
        self.entry(Kind::Symlink, path, target, b"")
    }

    pub(crate) fn hard_link(self, path: &str, target: &str) -> Self {
        self.entry(Kind::HardLink, path, target, b"")
    }

    pub(crate) fn end(mut self) -> Vec<u8> {
        self.0.extend_from_slice(&END);
        self.0
    }
}
