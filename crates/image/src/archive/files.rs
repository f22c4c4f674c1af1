//! The files of an archive of images by name, be it an archive or a directory.

use super::broken;
use crate::{
    Digest, Hasher,
    unpack::{
        Limits,
        blocks::{Blocks, FileBlocks},
        entries::{Entries, Kind},
        failed, path,
    },
};
use rustix::{
    fs::{Mode, OFlags, ResolveFlags},
    io::Errno,
};
use stacyvm_provider::Result;
use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read},
    os::unix::fs::FileExt,
};

/// Files of one archive: more than an image has parts, many times over.
const MOST: usize = 100_000;
/// Links that lead to links.
const LINKS: usize = 8;

/// The files.
pub(super) enum Files {
    Archive { file: File, members: HashMap<Vec<u8>, Member> },
    Directory(File),
}

/// What an archive has under a name.
pub(super) enum Member {
    At {
        offset: u64,
        length: u64,
    },
    /// A symbolic link: `docker save` wrote them for layers that two images share.
    Link(Vec<u8>),
}

/// A part of a file.
#[derive(Debug)]
pub(super) struct Section {
    file: File,
    at: u64,
    left: u64,
}

impl Files {
    /// The files of an archive without compression.
    pub(super) fn archive(file: File, limits: &Limits) -> Result<Self> {
        let mut members = HashMap::new();
        let blocks = FileBlocks::new(&file).map_err(|e| failed("read the archive", e))?;
        let mut entries = Entries::new(blocks, limits);
        while let Some(entry) = entries.next()? {
            let name = path::parts(&entry.path, limits)?.join(&b'/');
            let member = match entry.kind {
                Kind::File if entry.sparse.is_none() => {
                    Member::At { offset: entries.blocks.position(), length: entry.stored }
                }
                Kind::SymbolicLink | Kind::HardLink if entry.link.len() <= limits.path_bytes => {
                    let from = if entry.kind == Kind::HardLink { &b""[..] } else { &name };
                    Member::Link(resolved(from, &entry.link).ok_or_else(|| {
                        broken(format_args!("{} is a link out of it", path::shown(&entry.path)))
                    })?)
                }
                Kind::Directory => continue,
                _ => return Err(broken(format_args!("{} is no plain file", path::shown(&entry.path)))),
            };
            if members.len() >= MOST {
                return Err(broken(format_args!("it has more than {MOST} files")));
            }
            if members.insert(name, member).is_some() {
                return Err(broken(format_args!("{} is in it twice", path::shown(&entry.path))));
            }
        }
        // The last file may be cut where nothing follows.
        let length = file.metadata().map_err(|e| failed("read the archive", e))?.len();
        let cut =
            members.values().any(|m| matches!(m, Member::At { offset, length: l } if offset + l > length));
        if cut { Err(broken("its end is missing")) } else { Ok(Self::Archive { file, members }) }
    }

    /// The files of a directory.
    pub(super) fn directory(directory: File) -> Self {
        Self::Directory(directory)
    }

    /// Whether these are of an archive of images.
    pub(super) fn has_images(&self) -> Result<bool> {
        let oci = self.open("oci-layout")?.is_some() && self.open("index.json")?.is_some();
        // Alone, these names are in many other directories, too.
        Ok(oci || (self.open("manifest.json")?.is_some() && self.open("repositories")?.is_some()))
    }

    /// Opens a file.
    pub(super) fn open(&self, name: &str) -> Result<Option<Section>> {
        match self {
            Self::Archive { file, members } => {
                let mut name = name
                    .split('/')
                    .filter(|p| !p.is_empty() && *p != ".")
                    .collect::<Vec<_>>()
                    .join("/")
                    .into_bytes();
                for _ in 0..LINKS {
                    match members.get(&name) {
                        Some(Member::At { offset, length }) => {
                            let file = file.try_clone().map_err(|e| failed("read the archive", e))?;
                            return Ok(Some(Section { file, at: *offset, left: *length }));
                        }
                        Some(Member::Link(target)) => name.clone_from(target),
                        None => return Ok(None),
                    }
                }
                Err(broken(format_args!("{} is a link that leads to links", path::shown(&name))))
            }
            Self::Directory(directory) => {
                let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
                let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
                let opened = rustix::fs::openat2(directory, name, flags, Mode::empty(), beneath);
                let file = match opened {
                    Ok(fd) => File::from(fd),
                    Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
                    Err(e) => return Err(failed(format_args!("open {}", path::shown(name.as_bytes())), e)),
                };
                let metadata = file.metadata().map_err(|e| failed("read a directory of images", e))?;
                if !metadata.is_file() {
                    return Ok(None);
                }
                Ok(Some(Section { file, at: 0, left: metadata.len() }))
            }
        }
    }

    /// All of a file that has `most` bytes at most.
    pub(super) fn read(&self, name: &str, most: usize) -> Result<Option<Vec<u8>>> {
        let Some(section) = self.open(name)? else { return Ok(None) };
        if section.left > most as u64 {
            return Err(broken(format_args!("{} has more than {most} bytes", path::shown(name.as_bytes()))));
        }
        let mut bytes = Vec::new();
        section.take(most as u64).read_to_end(&mut bytes).map_err(|e| failed("read the archive", e))?;
        Ok(Some(bytes))
    }
}

impl Section {
    /// Bytes that are left.
    pub(super) fn left(&self) -> u64 {
        self.left
    }

    /// Whether its bytes have this digest. It can be read afterwards.
    pub(super) fn is(&self, digest: &Digest) -> Result<bool> {
        let file = self.file.try_clone().map_err(|e| failed("read the archive", e))?;
        let mut all = Section { file, at: self.at, left: self.left };
        let mut hasher = Hasher::default();
        let mut buffer = vec![0; 1 << 20];
        loop {
            match all.read(&mut buffer).map_err(|e| failed("read the archive", e))? {
                0 => return Ok(hasher.finish() == *digest),
                read => hasher.update(&buffer[..read]),
            }
        }
    }
}

impl Read for Section {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let read = self.file.read_at(&mut buffer[..most], self.at)?;
        self.at += read as u64;
        self.left -= read as u64;
        Ok(read)
    }
}

/// The name that a link at `from` leads to; none if it leads out.
fn resolved(from: &[u8], target: &[u8]) -> Option<Vec<u8>> {
    let mut parts: Vec<&[u8]> = from.split(|b| *b == b'/').collect();
    parts.pop();
    if target.starts_with(b"/") {
        return None;
    }
    for part in target.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    Some(parts.join(&b'/'))
}

#[cfg(test)]
mod tests {
    #[test]
    fn links_stay_in_the_archive() {
        let resolved = |from: &str, to: &str| super::resolved(from.as_bytes(), to.as_bytes());
        assert_eq!(resolved("a/layer.tar", "../b/layer.tar"), Some(b"b/layer.tar".to_vec()));
        assert_eq!(resolved("a", "./b//c"), Some(b"b/c".to_vec()));
        for (from, to) in [("a/b", "../../c"), ("a", "../c"), ("a", "/c")] {
            assert_eq!(resolved(from, to), None, "{to}");
        }
    }
}
