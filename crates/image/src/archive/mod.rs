//! Images from archives and directories: what `docker save` writes, OCI layouts, and plain root filesystems.
//!
//! Which of them it is, is found by content. A layer goes from its place in the archive straight to where it is unpacked, and
//! is only read if it is not there yet. Each part is checked against the digest that something above it gives, down to the
//! configuration, whose own digest is the image's id: so the same image is the same layers, whichever way it came.

mod classify;
mod docker;
mod files;
mod oci;
mod rootfs;
mod spool;

#[cfg(test)]
mod tests;

use crate::{
    Digest, ImageConfig, Platform, Reference,
    store::{Image, Origin, Store, Work},
    unpack::failed,
};
use files::Files;
use stacyvm_provider::{Error, Result};
use std::{
    fs::File,
    io::{self, Read, Seek},
    os::unix::fs::FileTypeExt,
    path::Path,
};

/// Where an import comes from.
pub enum Source<'a> {
    /// A file, a directory, or a pipe of this name.
    Path(&'a Path),
    /// An archive as bytes, whose number need not be known.
    Stream(Box<dyn Read + Send + 'a>),
}

/// What an archive or a directory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Images: of `docker save` or in an OCI layout.
    Images,
    /// One root filesystem.
    Rootfs,
}

/// What is wanted of an import.
#[derive(Debug, Clone)]
pub struct Import {
    /// Names for the image instead of those in the archive, which has one image only then.
    pub names: Vec<Reference>,
    /// Which of several platforms.
    pub platform: Platform,
    /// What it is, if its content is not to decide.
    pub kind: Option<Kind>,
    /// Bytes that a stream, or a compressed archive of images once decompressed, may have.
    pub bytes: u64,
}

impl Default for Import {
    fn default() -> Self {
        Self { names: Vec::new(), platform: Platform::host(), kind: None, bytes: 64 << 30 }
    }
}

impl Store {
    /// Imports all images of an archive, or makes one of a root filesystem. Blocks.
    ///
    /// # Errors
    /// `NotFound` if there is nothing at the path; `InvalidArgument`, with the part named, for what is damaged, contradicts
    /// itself or is for another platform; `ResourceLimit` for what is too large or a disk that is full. Images that were
    /// complete before that stay.
    pub fn import(&self, source: Source<'_>, wanted: &Import) -> Result<Vec<Image>> {
        let work = self.work()?;
        let file = match source {
            Source::Stream(stream) => spool::spool(stream, &work, wanted.bytes)?,
            Source::Path(path) => {
                let file = open(path)?;
                let kind = file
                    .metadata()
                    .map_err(|e| failed(format_args!("look at {}", path.display()), e))?
                    .file_type();
                if kind.is_dir() {
                    return directory(&work, path, file, wanted);
                }
                if kind.is_file() {
                    file
                } else if kind.is_fifo() || kind.is_char_device() {
                    spool::spool(file, &work, wanted.bytes)?
                } else {
                    let path = path.display();
                    return Err(Error::invalid_argument(format!(
                        "{path} is neither an archive nor a directory"
                    )));
                }
            }
        };
        archive(&work, file, wanted)
    }
}

fn open(path: &Path) -> Result<File> {
    File::open(path).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => Error::not_found(format!("there is no {}", path.display())),
        _ => failed(format_args!("open {}", path.display()), e),
    })
}

fn directory(work: &Work, path: &Path, file: File, wanted: &Import) -> Result<Vec<Image>> {
    let files = Files::directory(file);
    let kind = match wanted.kind {
        Some(kind) => kind,
        None if files.has_images()? => Kind::Images,
        None => Kind::Rootfs,
    };
    match kind {
        Kind::Images => images(work, &files, wanted),
        Kind::Rootfs => {
            let source = format!("the directory {}", path.display());
            rootfs::directory(work, path).and_then(|layer| rootfs_image(work, layer, &source, wanted))
        }
    }
}

fn archive(work: &Work, mut file: File, wanted: &Import) -> Result<Vec<Image>> {
    let limits = &work.store().limits().layer;
    let (found, compression) = classify::classify(&file, limits)?;
    let rewind = |file: &mut File| file.rewind().map_err(|e| failed("read the archive", e));
    rewind(&mut file)?;
    match wanted.kind.unwrap_or(found) {
        Kind::Images => {
            let plain = spool::plain(file, compression, work, wanted.bytes)?;
            images(work, &Files::archive(plain, limits)?, wanted)
        }
        Kind::Rootfs => {
            let layer = work.unknown_layer(file)?;
            rootfs_image(work, layer, "the archive of a root filesystem", wanted)
        }
    }
}

fn images(work: &Work, files: &Files, wanted: &Import) -> Result<Vec<Image>> {
    if let Some(images) = docker::import(work, files, wanted)? {
        return Ok(images);
    }
    if let Some(images) = oci::import(work, files, wanted)? {
        return Ok(images);
    }
    Err(Error::invalid_argument(
        "this has neither a manifest.json nor an index.json: it is no archive of images",
    ))
}

/// The image of a root filesystem: one layer, and a configuration that says nothing but what it runs on.
fn rootfs_image(work: &Work, layer: Digest, source: &str, wanted: &Import) -> Result<Vec<Image>> {
    let platform = wanted.platform.to_string();
    let mut words = platform.split('/').map(str::to_owned);
    let config = ImageConfig {
        os: words.next().unwrap_or_default(),
        architecture: words.next().unwrap_or_default(),
        variant: words.next(),
        diff_ids: vec![layer],
        ..ImageConfig::default()
    };
    let origin = Origin { manifest: None, source: source.to_owned() };
    Ok(vec![work.image(&config.to_json()?, &origin, &wanted.names)?])
}

/// The names of one image out of `count`: those that are wanted, else those that the archive has.
fn names(wanted: &Import, own: Vec<Reference>, count: usize) -> Result<Vec<Reference>> {
    match (wanted.names.is_empty(), count) {
        (true, _) => Ok(own),
        (false, 1) => Ok(wanted.names.clone()),
        (false, _) => Err(Error::invalid_argument(format!(
            "the archive has {count} images, which cannot all have the name {}: import it without a name",
            wanted.names.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
        ))),
    }
}

/// The error for an archive that contradicts itself.
fn broken(what: impl std::fmt::Display) -> Error {
    Error::invalid_argument(format!("the archive of images is broken: {what}; save it again"))
}
