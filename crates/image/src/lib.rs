//! Images: root filesystems that come from registries and archives, for every runtime that has no image store of its own.
//!
//! Nothing that comes from outside is believed: each byte is hashed before it is used, and each name in an archive is
//! resolved beneath the directory that it is unpacked into. `docs/design/007-images.md` says how the parts fit.

pub mod archive;
mod auth;
mod describe;
mod digest;
mod images;
mod manifest;
mod pull;
mod reference;
mod registry;
mod sink;
pub mod store;
pub mod unpack;

pub use archive::Import;
pub use auth::{Credentials, Secret};
pub use digest::{Digest, Hasher};
pub use images::{Images, ImagesConfig};
pub use manifest::{
    Blob, Descriptor, Document, ImageConfig, Index, LARGEST, Layer, LayerMedia, MEDIA_TYPES, MOST_LAYERS,
    Manifest, Platform, Search,
};
pub use pull::{PullPolicy, Puller};
pub use reference::Reference;
pub use registry::Settings;
pub(crate) use registry::{Fetched, Registry};
pub use sink::{Claim, Pulled, Sink};
pub use store::{Image, Rootfs, Store};
