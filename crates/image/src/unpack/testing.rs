//! Archives for tests, also such as no tool writes; what a directory holds, to be compared.

use super::{Limits, Unpacked, unpack};
use rustix::fs::{AtFlags, CWD};
use stacyvm_provider::Result;
use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
};
use tar::{EntryType, Header};

/// An archive under construction.
#[derive(Default, Clone)]
pub(crate) struct Archive(pub(crate) Vec<u8>);

/// A header with these bytes in it, whatever they mean.
pub(crate) fn header(kind: u8, path: &[u8], link: &[u8], size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::new(kind));
    let bytes = header.as_mut_bytes();
    bytes[..path.len().min(100)].copy_from_slice(&path[..path.len().min(100)]);
    bytes[157..157 + link.len().min(100)].copy_from_slice(&link[..link.len().min(100)]);
    header.set_size(size);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_700_000_000);
    header.set_cksum();
    header
}

impl Archive {
    /// Any header, with data behind it.
    pub(crate) fn put(mut self, header: &Header, data: &[u8]) -> Self {
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    /// An entry of any kind.
    pub(crate) fn entry(mut self, kind: u8, path: &[u8], link: &[u8], data: &[u8]) -> Self {
        for (letter, long) in [(b'L', path), (b'K', link)] {
            if long.len() > 100 {
                self = self.put(&header(letter, b"././@LongLink", b"", long.len() as u64), long);
            }
        }
        self.put(&header(kind, path, link, data.len() as u64), data)
    }

    pub(crate) fn file(self, path: &str, data: &[u8]) -> Self {
        self.entry(b'0', path.as_bytes(), b"", data)
    }

    pub(crate) fn directory(self, path: &str) -> Self {
        let mut header = header(b'5', path.as_bytes(), b"", 0);
        header.set_mode(0o755);
        header.set_cksum();
        self.put(&header, b"")
    }

    pub(crate) fn symlink(self, path: &str, target: &str) -> Self {
        self.entry(b'2', path.as_bytes(), target.as_bytes(), b"")
    }

    pub(crate) fn hard_link(self, path: &str, target: &str) -> Self {
        self.entry(b'1', path.as_bytes(), target.as_bytes(), b"")
    }

    /// Records for the next entry.
    pub(crate) fn records(self, records: &[(&str, &[u8])]) -> Self {
        let mut builder = tar::Builder::new(Vec::new());
        builder.append_pax_extensions(records.iter().copied()).unwrap();
        let mut bytes = builder.into_inner().unwrap();
        bytes.truncate(bytes.len() - 1024);
        Self([self.0, bytes].concat())
    }

    /// The archive with its end mark.
    pub(crate) fn end(mut self) -> Vec<u8> {
        self.0.extend_from_slice(&[0; 1024]);
        self.0
    }
}

/// Unpacks into a directory of its own.
pub(crate) fn unpacked(archive: &[u8], limits: &Limits) -> (tempfile::TempDir, Result<Unpacked>) {
    let tmp = tempfile::tempdir().unwrap();
    let result = unpack(archive, tmp.path(), limits);
    (tmp, result)
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// One thing in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Thing {
    pub(crate) mode: u32,
    pub(crate) owner: (u32, u32),
    pub(crate) mtime: (i64, i64),
    pub(crate) device: u64,
    /// Bytes of a file, target of a link.
    pub(crate) content: Vec<u8>,
    pub(crate) xattrs: Vec<(String, Vec<u8>)>,
    /// The first path of the same file.
    pub(crate) same_as: PathBuf,
}

/// All that is in `top`, by path.
pub(crate) fn things(top: &Path) -> BTreeMap<PathBuf, Thing> {
    let mut found = BTreeMap::new();
    let mut inodes = BTreeMap::new();
    let mut open = vec![PathBuf::new()];
    while let Some(directory) = open.pop() {
        let mut children: Vec<_> =
            fs::read_dir(top.join(&directory)).unwrap().map(|e| e.unwrap().file_name()).collect();
        children.sort();
        for name in children {
            let path = directory.join(name);
            let full = top.join(&path);
            let stat = rustix::fs::statat(CWD, &full, AtFlags::SYMLINK_NOFOLLOW).unwrap();
            let metadata = fs::symlink_metadata(&full).unwrap();
            let content = match metadata.file_type() {
                t if t.is_file() => fs::read(&full).unwrap(),
                t if t.is_symlink() => fs::read_link(&full).unwrap().as_os_str().as_bytes().to_vec(),
                _ => Vec::new(),
            };
            if metadata.is_dir() {
                open.push(path.clone());
            }
            let xattrs = if metadata.is_file() || metadata.is_dir() { xattrs(&full) } else { Vec::new() };
            let thing = Thing {
                mode: stat.st_mode,
                owner: (stat.st_uid, stat.st_gid),
                mtime: (metadata.mtime(), metadata.mtime_nsec()),
                device: stat.st_rdev,
                content,
                xattrs,
                same_as: PathBuf::new(),
            };
            inodes.entry(stat.st_ino).or_insert_with(Vec::new).push(path.clone());
            found.insert(path, thing);
        }
    }
    for mut same in inodes.into_values() {
        same.sort();
        for path in &same {
            found.get_mut(path).unwrap().same_as.clone_from(&same[0]);
        }
    }
    found
}

pub(crate) fn xattrs(path: &Path) -> Vec<(String, Vec<u8>)> {
    let mut names = vec![0; 64 << 10];
    let length = rustix::fs::llistxattr(path, names.as_mut_slice()).unwrap();
    let names = names[..length].split(|b| *b == 0).filter(|n| !n.is_empty());
    let mut all: Vec<_> = names
        .map(|name| {
            let mut value = vec![0; 64 << 10];
            let length = rustix::fs::lgetxattr(path, name, value.as_mut_slice()).unwrap();
            value.truncate(length);
            (String::from_utf8(name.to_vec()).unwrap(), value)
        })
        .collect();
    all.sort();
    all
}
