//! What registries and archives say an image is made of: indexes and manifests, OCI's and Docker's.
//!
//! Read with serde itself: `oci-spec` is stricter than what builders write (`null` for empty lists) and would be believed in
//! what must be checked here anyway: digests, sizes, counts.

mod config;
mod platform;
mod search;

pub use config::ImageConfig;
pub use platform::Platform;
pub use search::Search;

use crate::Digest;
use serde::{Deserialize, de::DeserializeOwned};
use stacyvm_provider::{Error, Result};
use std::collections::HashMap;

/// Largest manifest, index or configuration, in bytes: as much as registries take.
pub const LARGEST: usize = 4 << 20;
/// Most layers of an image: as many as overlays of other tools take.
pub const MOST_LAYERS: usize = 127;

const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const DOCKER_SCHEMA1: &str = "application/vnd.docker.distribution.manifest.v1";

/// The media types that [`Document::parse`] reads, to ask a registry for.
pub const MEDIA_TYPES: [&str; 4] = [OCI_INDEX, DOCKER_LIST, OCI_MANIFEST, DOCKER_MANIFEST];

/// What a name or a digest leads to.
#[derive(Debug, Clone)]
pub enum Document {
    /// Manifests for several platforms.
    Index(Index),
    /// One image.
    Manifest(Manifest),
}

/// A list of manifests.
#[derive(Debug, Clone)]
pub struct Index(Vec<Descriptor>);

/// What one image is made of.
#[derive(Debug, Clone)]
pub struct Manifest {
    /// Its configuration.
    pub config: Blob,
    /// Its layers, lowest first: at least one, at most [`MOST_LAYERS`].
    pub layers: Vec<Layer>,
}

/// Something that is kept under its digest.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Blob {
    /// Digest of its bytes.
    pub digest: Digest,
    /// Number of its bytes; not 0.
    pub size: u64,
}

/// A layer as it is kept in a registry or an archive.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Layer {
    /// The archive, as it is sent.
    pub blob: Blob,
    /// How it is packed.
    pub media: LayerMedia,
}

/// How the archive of a layer is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LayerMedia {
    /// Not at all.
    Tar,
    /// With gzip.
    Gzip,
    /// With zstd.
    Zstd,
}

/// An entry of an index.
#[derive(Debug, Clone)]
pub struct Descriptor {
    /// What it says it is.
    pub media_type: String,
    /// Digest of the manifest or index.
    pub digest: Digest,
    /// Number of its bytes; at most [`LARGEST`].
    pub size: u64,
    /// What it is built for, if the index says so.
    pub platform: Option<Platform>,
    /// `org.opencontainers.image.ref.name`, by which archives name their images.
    pub name: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Index,
    Manifest,
    Other,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDocument {
    schema_version: Option<u64>,
    media_type: Option<String>,
    manifests: Option<Vec<RawDescriptor>>,
    config: Option<RawDescriptor>,
    layers: Option<Vec<RawDescriptor>>,
    fs_layers: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDescriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: i128,
    platform: Option<RawPlatform>,
    annotations: Option<HashMap<String, String>>,
}

#[derive(Deserialize)]
struct RawPlatform {
    os: Option<String>,
    architecture: Option<String>,
    variant: Option<String>,
}

impl Document {
    /// Reads an index or a manifest. `media_type` is what a registry says it is; `image` is the name in messages.
    ///
    /// # Errors
    /// `InvalidArgument` for what is neither, contradicts itself or has impossible sizes; `ResourceLimit` for more than
    /// [`LARGEST`] bytes or [`MOST_LAYERS`] layers; `Unsupported` for manifests of the first schema, artifacts, and
    /// layers of a kind that is not read here.
    pub fn parse(bytes: &[u8], media_type: Option<&str>, image: &str) -> Result<Self> {
        let said = media_type.map(essence);
        let raw: RawDocument = document(bytes, "manifest", image)?;
        let own = raw.media_type.as_deref().map(essence);
        let schema1 = |of: Option<&str>| of.is_some_and(|of| of.starts_with(DOCKER_SCHEMA1));
        if raw.schema_version == Some(1) || raw.fs_layers.is_some() || schema1(said) || schema1(own) {
            return Err(Error::unsupported(format!(
                "the image {image} has a manifest of Docker's first schema, which nothing writes any more: pull it with an old docker and push it again"
            )));
        }
        let is_index = match (&raw.manifests, &raw.config, &raw.layers) {
            (Some(_), None, None) => true,
            (None, Some(_), Some(_)) => false,
            _ => return Err(broken(image, "it is neither a manifest nor an index")),
        };
        // A document that is one thing by its name and another by its content would be read differently by others.
        for said in [own, said].into_iter().flatten() {
            match (kind(said), is_index) {
                (Kind::Index, true) | (Kind::Manifest, false) => {}
                (Kind::Other, _) if !said.starts_with("application/vnd.") => {}
                _ => {
                    return Err(broken(
                        image,
                        &format!("it is not the {} that it is said to be", shown(said)),
                    ));
                }
            }
        }
        if let Some(manifests) = raw.manifests {
            let entries = manifests.into_iter().filter_map(|entry| entry.entry(image).transpose());
            return Ok(Self::Index(Index(entries.collect::<Result<_>>()?)));
        }
        let (Some(config), Some(layers)) = (raw.config, raw.layers) else {
            return Err(broken(image, "it is neither a manifest nor an index"));
        };
        Manifest::of(&config, &layers, image).map(Self::Manifest)
    }
}

impl Index {
    /// Its entries, in their order. Those whose digest is no SHA-256 are left out.
    pub fn manifests(&self) -> &[Descriptor] {
        &self.0
    }
}

impl Manifest {
    fn of(config: &RawDescriptor, layers: &[RawDescriptor], image: &str) -> Result<Self> {
        if !matches!(essence(&config.media_type), OCI_CONFIG | DOCKER_CONFIG) {
            return Err(Error::unsupported(format!(
                "{image} is no image but an artifact of the type {}: name an image",
                shown(&config.media_type)
            )));
        }
        let config = config.blob("configuration", image)?;
        if config.size > LARGEST as u64 {
            return Err(too_large(image, "configuration", config.size));
        }
        if layers.is_empty() {
            return Err(broken(image, "it has no layers, so there is nothing to run"));
        }
        if layers.len() > MOST_LAYERS {
            return Err(Error::resource_limit(format!(
                "the image {image} has {} layers, {MOST_LAYERS} are allowed: build it with fewer, as with `docker build --squash`",
                layers.len()
            )));
        }
        let layers: Vec<Layer> = layers
            .iter()
            .map(|layer| Ok(Layer { media: layer.media(image)?, blob: layer.blob("layer", image)? }))
            .collect::<Result<_>>()?;
        let mut sizes = HashMap::from([(&config.digest, config.size)]);
        for Layer { blob, .. } in &layers {
            if *sizes.entry(&blob.digest).or_insert(blob.size) != blob.size {
                return Err(broken(image, &format!("it gives the blob {} two sizes", blob.digest.short())));
            }
        }
        Ok(Self { config, layers })
    }

    /// Bytes of all its layers, as they are sent. Layers that it has twice are counted once.
    pub fn size(&self) -> u64 {
        let sizes: HashMap<&Digest, u64> =
            self.layers.iter().map(|l| (&l.blob.digest, l.blob.size)).collect();
        sizes.values().fold(0, |sum, size| sum.saturating_add(*size))
    }

    /// Refuses an image of more than `limit` bytes as it is sent.
    ///
    /// # Errors
    /// `ResourceLimit` with both numbers.
    pub fn bounded(&self, limit: u64, image: &str) -> Result<()> {
        let size = self.size();
        if size <= limit {
            return Ok(());
        }
        Err(Error::resource_limit(format!(
            "the image {image} has {size} bytes, {limit} are allowed: name a smaller one, or raise the limit of images"
        )))
    }

    /// Its layers with the digests that `config` gives their uncompressed archives, lowest first.
    ///
    /// # Errors
    /// `InvalidArgument` if they are not equally many.
    pub fn with<'a>(&'a self, config: &'a ImageConfig, image: &str) -> Result<Vec<(&'a Digest, &'a Layer)>> {
        let (layers, ids) = (self.layers.len(), config.diff_ids.len());
        if layers != ids {
            let what = format!("it has {layers} layers, its configuration {ids}");
            return Err(broken(image, &what));
        }
        Ok(config.diff_ids.iter().zip(&self.layers).collect())
    }
}

impl Descriptor {
    fn kind(&self) -> Kind {
        kind(&self.media_type)
    }
}

impl RawDescriptor {
    /// The entry of an index; `None` if its digest is not one that is read here.
    fn entry(self, image: &str) -> Result<Option<Descriptor>> {
        let Ok(digest) = self.digest.parse() else { return Ok(None) };
        let size = match u64::try_from(self.size) {
            Ok(size) if size > 0 => size,
            _ => return Err(broken(image, &format!("it gives a manifest {} bytes", self.size))),
        };
        if size > LARGEST as u64 {
            return Err(too_large(image, "manifest", size));
        }
        let platform = self.platform.map(|platform| {
            let (os, architecture) =
                (platform.os.unwrap_or_default(), platform.architecture.unwrap_or_default());
            Platform::new(&os, &architecture, platform.variant.as_deref())
        });
        let name = self.annotations.and_then(|mut all| all.remove("org.opencontainers.image.ref.name"));
        Ok(Some(Descriptor { media_type: self.media_type, digest, size, platform, name }))
    }

    fn blob(&self, what: &str, image: &str) -> Result<Blob> {
        let digest = self.digest.parse().map_err(|error| {
            broken(image, &format!("its {what} has the digest {}", shown(&self.digest))).because(error)
        })?;
        match u64::try_from(self.size) {
            Ok(size) if size > 0 && i64::try_from(size).is_ok() => Ok(Blob { digest, size }),
            _ => Err(broken(image, &format!("it gives a {what} {} bytes", self.size))),
        }
    }

    fn media(&self, image: &str) -> Result<LayerMedia> {
        let said = essence(&self.media_type);
        let oci = said.strip_prefix("application/vnd.oci.image.layer.v1.");
        let docker = said.strip_prefix("application/vnd.docker.image.rootfs.diff.");
        match (oci, docker) {
            (Some("tar"), _) | (_, Some("tar")) => Ok(LayerMedia::Tar),
            (Some("tar+gzip"), _) | (_, Some("tar.gzip")) => Ok(LayerMedia::Gzip),
            (Some("tar+zstd"), _) | (_, Some("tar.zstd")) => Ok(LayerMedia::Zstd),
            _ if said.contains(".foreign.") || said.contains(".nondistributable.") => {
                Err(Error::unsupported(format!(
                    "the image {image} has a layer that its registry may not hand out ({}), as those of Windows have: name another image",
                    shown(said)
                )))
            }
            _ => Err(Error::unsupported(format!(
                "the image {image} has a layer of the type {}, which is not read here: build it with layers of tar, gzip or zstd",
                shown(said)
            ))),
        }
    }
}

fn kind(media_type: &str) -> Kind {
    match essence(media_type) {
        OCI_INDEX | DOCKER_LIST => Kind::Index,
        OCI_MANIFEST | DOCKER_MANIFEST => Kind::Manifest,
        _ => Kind::Other,
    }
}

/// A media type without its parameters.
fn essence(media_type: &str) -> &str {
    media_type.split(';').next().unwrap_or_default().trim()
}

/// Text from outside, as a message may show it.
fn shown(text: &str) -> String {
    let text: String = text.chars().filter(|c| !c.is_control()).take(100).collect();
    if text.is_empty() { "(none)".to_owned() } else { text }
}

fn broken(image: &str, what: &str) -> Error {
    Error::invalid_argument(format!(
        "the manifest of the image {image} is broken: {what}; build and push it anew, or name another"
    ))
}

fn too_large(image: &str, what: &str, size: u64) -> Error {
    Error::resource_limit(format!(
        "a {what} of the image {image} has {size} bytes, {LARGEST} are allowed: name another image"
    ))
}

/// Reads JSON of a bounded size.
fn document<T: DeserializeOwned>(bytes: &[u8], what: &str, image: &str) -> Result<T> {
    if bytes.len() > LARGEST {
        return Err(too_large(image, what, bytes.len() as u64));
    }
    serde_json::from_slice(bytes).map_err(|error| {
        // Not the error's own words: they may quote what was read.
        let (line, column) = (error.line(), error.column());
        Error::invalid_argument(format!(
            "the {what} of the image {image} is not understood (line {line}, column {column}): build and push it anew, or name another"
        ))
        .because(error)
    })
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
