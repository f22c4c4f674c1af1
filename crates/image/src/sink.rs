//! Where what was pulled goes.

use crate::{Digest, ImageConfig, LayerMedia, Reference};
use stacyvm_provider::Result;
use std::path::{Path, PathBuf};

/// Something that is held until it is dropped.
pub type Claim = Box<dyn Send>;

/// What a name was found to lead to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pulled {
    /// The name that was asked for.
    pub reference: Reference,
    /// Digest of what the name leads to: an index or a manifest.
    pub digest: Digest,
    /// Digest of the manifest for the platform; the same if the name leads to a manifest.
    pub manifest: Digest,
    /// The configuration as it was sent; its digest is the image's.
    pub raw_config: Vec<u8>,
    /// The same, read. Its `diff_ids` are the layers, lowest first; one may be there twice.
    pub config: ImageConfig,
}

/// Where images go, and where it is known what is there already. Implemented by the store.
///
/// Every call may block: none is made from a task that must not.
pub trait Sink: Send + Sync + 'static {
    /// Keeps every layer that [`Self::has_layer`] reports or [`Self::add_layer`] adds from being collected, until what is
    /// returned is dropped. Called before either.
    ///
    /// # Errors
    /// Whatever keeps the store from working.
    fn begin(&self) -> Result<Claim>;

    /// Whether the image is there under this name.
    ///
    /// # Errors
    /// Whatever keeps the store from working.
    fn has_image(&self, reference: &Reference) -> Result<bool>;

    /// Whether the layer is there, complete.
    ///
    /// # Errors
    /// Whatever keeps the store from working.
    fn has_layer(&self, diff_id: &Digest) -> Result<bool>;

    /// Keeps other processes from bringing this blob until what is returned is dropped; `None` while one does. Within this
    /// process it is called by one at a time.
    ///
    /// # Errors
    /// Whatever keeps the store from working.
    fn claim(&self, blob: &Digest) -> Result<Option<Claim>>;

    /// Path at which the blob is (being) brought. It survives the process, and is removed when its layer is there.
    fn partial(&self, blob: &Digest) -> PathBuf;

    /// Unpacks a complete, verified blob as this layer. Does nothing if the layer is there.
    ///
    /// # Errors
    /// `InvalidArgument` for an archive that is hostile, or whose uncompressed digest is another; `ResourceLimit` for one
    /// that is too large, or a full disk.
    fn add_layer(&self, diff_id: &Digest, media: LayerMedia, blob: &Path) -> Result<()>;

    /// Records the image under its name. All its layers are there.
    ///
    /// # Errors
    /// Whatever keeps the store from working.
    fn add_image(&self, pulled: &Pulled) -> Result<()>;
}
