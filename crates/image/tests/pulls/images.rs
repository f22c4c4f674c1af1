//! Small images, and a shelf of them that answers as a registry does.

use crate::fake::{Answer, Asked};
use stacyvm_image::{Digest, ImageConfig, Platform};
use std::collections::HashMap;

pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const TAR: &str = "application/vnd.oci.image.layer.v1.tar";

/// Bytes that look like nothing, the same for the same seed.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// The archive of a layer with one file.
pub(crate) fn layer(name: &str, content: &[u8]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    archive.append_data(&mut header, name, content).unwrap();
    archive.into_inner().unwrap()
}

/// An image whose layers are not compressed, so that a blob's digest is the layer's.
#[derive(Debug, Clone)]
pub(crate) struct Image {
    pub(crate) manifest: Vec<u8>,
    pub(crate) config: Vec<u8>,
    pub(crate) layers: Vec<Vec<u8>>,
}

impl Image {
    pub(crate) fn of(layers: Vec<Vec<u8>>) -> Self {
        Self::for_platform(layers, &Platform::host())
    }

    pub(crate) fn for_platform(layers: Vec<Vec<u8>>, platform: &Platform) -> Self {
        let text = platform.to_string();
        let mut words = text.split('/').map(str::to_owned);
        let config = ImageConfig {
            os: words.next().unwrap(),
            architecture: words.next().unwrap(),
            variant: words.next(),
            cmd: vec!["/bin/sh".to_owned()],
            diff_ids: layers.iter().map(|layer| Digest::of(layer)).collect(),
            ..ImageConfig::default()
        };
        Self::with_config(layers, config.to_json().unwrap())
    }

    pub(crate) fn with_config(layers: Vec<Vec<u8>>, config: Vec<u8>) -> Self {
        let entry = |media: &str, bytes: &[u8]| {
            format!(r#"{{"mediaType":"{media}","digest":"{}","size":{}}}"#, Digest::of(bytes), bytes.len())
        };
        let listed: Vec<String> = layers.iter().map(|layer| entry(TAR, layer)).collect();
        let manifest = format!(
            r#"{{"schemaVersion":2,"mediaType":"{MANIFEST}","config":{},"layers":[{}]}}"#,
            entry(CONFIG, &config),
            listed.join(",")
        );
        Self { manifest: manifest.into_bytes(), config, layers }
    }

    /// One with a layer of a few bytes and one of so many.
    pub(crate) fn sized(seed: u64, length: usize) -> Self {
        Self::of(vec![layer("etc/name", &seed.to_le_bytes()), layer("big", &noise(seed, length))])
    }

    /// One with a single layer of so many bytes.
    pub(crate) fn single(seed: u64, length: usize) -> Self {
        Self::of(vec![layer("big", &noise(seed, length))])
    }

    pub(crate) fn digest(&self) -> Digest {
        Digest::of(&self.manifest)
    }
}

/// An index of manifests with their platforms.
pub(crate) fn index(entries: &[(&str, &[u8], Option<&Platform>)]) -> Vec<u8> {
    let listed: Vec<String> = entries
        .iter()
        .map(|(media, bytes, platform)| {
            let platform = platform.map_or_else(String::new, |platform| {
                let text = platform.to_string();
                let (os, architecture) = text.split_once('/').unwrap();
                format!(r#","platform":{{"os":"{os}","architecture":"{architecture}"}}"#)
            });
            format!(
                r#"{{"mediaType":"{media}","digest":"{}","size":{}{platform}}}"#,
                Digest::of(bytes),
                bytes.len()
            )
        })
        .collect();
    format!(r#"{{"schemaVersion":2,"mediaType":"{INDEX}","manifests":[{}]}}"#, listed.join(",")).into_bytes()
}

/// What a registry has.
#[derive(Debug, Clone, Default)]
pub(crate) struct Shelf {
    /// By repository and tag or digest: media type and bytes.
    manifests: HashMap<(String, String), (String, Vec<u8>)>,
    blobs: HashMap<String, Vec<u8>>,
}

impl Shelf {
    pub(crate) fn with(mut self, repository: &str, tag: &str, image: &Image) -> Self {
        self.put(repository, tag, image);
        self
    }

    pub(crate) fn put(&mut self, repository: &str, tag: &str, image: &Image) {
        self.put_manifest(repository, tag, MANIFEST, &image.manifest);
        for blob in image.layers.iter().chain([&image.config]) {
            self.blobs.insert(Digest::of(blob).to_string(), blob.clone());
        }
    }

    pub(crate) fn put_manifest(&mut self, repository: &str, tag: &str, media: &str, bytes: &[u8]) {
        for version in [tag.to_owned(), Digest::of(bytes).to_string()] {
            let key = (repository.to_owned(), version);
            self.manifests.insert(key, (media.to_owned(), bytes.to_vec()));
        }
    }

    pub(crate) fn answer(&self, asked: &Asked) -> Answer {
        let path = asked.path.split('?').next().unwrap();
        let Some(rest) = path.strip_prefix("/v2/") else { return Answer::of(404, "page not found") };
        let known = |repository: &str| self.manifests.keys().any(|(known, _)| known == repository);
        if let Some((repository, version)) = rest.split_once("/manifests/") {
            return match self.manifests.get(&(repository.to_owned(), version.to_owned())) {
                Some((media, bytes)) => Answer::of(200, bytes.clone())
                    .with("Content-Type", media)
                    .with("Docker-Content-Digest", Digest::of(bytes).to_string()),
                None => Answer::error(404, "MANIFEST_UNKNOWN"),
            };
        }
        if let Some(repository) = rest.strip_suffix("/tags/list") {
            let code = if known(repository) { 200 } else { 404 };
            return Answer::error(code, "NAME_UNKNOWN");
        }
        let Some((_, digest)) = rest.split_once("/blobs/") else { return Answer::of(404, "page not found") };
        let Some(blob) = self.blobs.get(digest) else { return Answer::error(404, "BLOB_UNKNOWN") };
        let answer = Answer::of(200, blob.clone()).with("Content-Type", "application/octet-stream");
        let from = asked.header("range").map(|range| {
            range
                .strip_prefix("bytes=")
                .and_then(|range| range.strip_suffix('-'))
                .unwrap()
                .parse::<usize>()
                .unwrap()
        });
        match from {
            None => answer,
            Some(from) if from >= blob.len() => Answer::of(416, ""),
            Some(from) => Answer::of(206, &blob[from..])
                .with("Content-Range", format!("bytes {from}-{}/{}", blob.len() - 1, blob.len())),
        }
    }
}
