//! What an archive is, by the names in it.

use super::Kind;
use crate::unpack::{
    Compression, Decoder, Limits,
    blocks::{Blocks, FileBlocks, ReadBlocks},
    entries::Entries,
    failed,
};
use stacyvm_provider::Result;
use std::fs::File;

/// Tells images from a root filesystem, and how they are compressed. Reads from the beginning, as far as it must: a file
/// that only archives of images have decides, and so does one that they do not have.
pub(super) fn classify(file: &File, limits: &Limits) -> Result<(Kind, Compression)> {
    let decoder = Decoder::new(file)?;
    let compression = decoder.compression();
    let kind = match compression {
        Compression::None => {
            let blocks = FileBlocks::new(file).map_err(|e| failed("read the archive", e))?;
            by_names(Entries::new(blocks, limits))?
        }
        _ => by_names(Entries::new(ReadBlocks::new(decoder, limits.stream_bytes), limits))?,
    };
    Ok((kind, compression))
}

fn by_names(mut entries: Entries<'_, impl Blocks>) -> Result<Kind> {
    while let Some(entry) = entries.next()? {
        let parts: Vec<&[u8]> =
            entry.path.split(|b| *b == b'/').filter(|p| !p.is_empty() && *p != b".").collect();
        match parts.as_slice() {
            [b"manifest.json" | b"index.json" | b"oci-layout"] => return Ok(Kind::Images),
            // What `docker save` and others write before those.
            [] | [b"repositories" | b"blobs"] => {}
            [b"blobs", rest @ ..] if rest.len() <= 2 => {}
            [name] | [name, b"json" | b"VERSION" | b"layer.tar"] if is_id(name) => {}
            _ => return Ok(Kind::Rootfs),
        }
    }
    // Nothing decided: an empty archive is an empty root filesystem.
    Ok(Kind::Rootfs)
}

fn is_id(name: &[u8]) -> bool {
    let name = name.strip_suffix(b".json").or(name.strip_suffix(b".tar")).unwrap_or(name);
    name.len() == 64 && name.iter().all(u8::is_ascii_hexdigit)
}
