//! What is written down about layers, images, names and holders.

use crate::{Digest, ImageConfig, Reference};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// A layer, beside its files.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct LayerRecord {
    /// Bytes that its files take on disk.
    pub(super) disk_bytes: u64,
    /// Bytes of its archive without compression.
    pub(super) stream_bytes: u64,
    /// Whether it hides all layers below it.
    pub(super) opaque: bool,
}

/// An image. Its file is named by its id.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct ImageRecord {
    /// The configuration as it came: the id is the digest of these bytes.
    pub(super) config: String,
    /// Digest of the manifest it came with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) manifest: Option<Digest>,
    /// Where it came from, for people.
    pub(super) source: String,
    /// When it came, in seconds since 1970.
    pub(super) added: u64,
}

impl ImageRecord {
    /// The configuration, if it is the one that `id` names and can be read.
    pub(super) fn parsed(&self, id: &Digest) -> Option<ImageConfig> {
        let same = Digest::of(self.config.as_bytes()) == *id;
        same.then(|| ImageConfig::parse(self.config.as_bytes(), id.short()).ok()).flatten()
    }
}

/// A name. Its file is named by the digest of the whole name.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct NameRecord {
    pub(super) name: Reference,
    pub(super) image: Digest,
}

/// Somebody who uses an image.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct HolderRecord {
    /// A directory; when it is gone, the image is not used any more.
    pub(super) holder: PathBuf,
    pub(super) image: Digest,
    /// They are kept even if the image's record goes.
    pub(super) layers: Vec<Digest>,
}
