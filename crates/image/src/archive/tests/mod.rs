//! Tests of imports.

mod directory;
mod hostile;
mod kinds;

use super::{Import, Kind, Source};
use crate::{
    Digest, ImageConfig, Platform,
    store::{Image, Store, StoreLimits},
    unpack::testing::{Archive, Thing, gzip, things},
};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

fn store() -> (tempfile::TempDir, Store) {
    let tmp = tempfile::tempdir().unwrap();
    let store = Store::open(&tmp.path().join("images"), StoreLimits::default()).unwrap();
    (tmp, store)
}

fn import(store: &Store, archive: &[u8]) -> stacyvm_provider::Result<Vec<Image>> {
    store.import(Source::Stream(Box::new(archive)), &Import::default())
}

/// An image that tools would save: two layers and a configuration.
struct Saved {
    layers: Vec<Vec<u8>>,
    config: Vec<u8>,
}

impl Saved {
    fn new(word: &str, platform: &str) -> Self {
        let base = Archive::default().directory("bin").file("bin/sh", b"shell").file("gone", b"").end();
        let top = Archive::default().file("word", word.as_bytes()).file(".wh.gone", b"").end();
        let layers = vec![base, top];
        let (os, architecture) = platform.split_once('/').unwrap();
        let config = ImageConfig {
            os: os.to_owned(),
            architecture: architecture.to_owned(),
            cmd: vec!["/bin/sh".to_owned()],
            diff_ids: layers.iter().map(|l| Digest::of(l)).collect(),
            ..ImageConfig::default()
        };
        Self { layers, config: config.to_json().unwrap() }
    }

    fn here(word: &str) -> Self {
        Self::new(word, &Platform::host().to_string())
    }

    fn id(&self) -> Digest {
        Digest::of(&self.config)
    }

    fn diff_ids(&self) -> Vec<Digest> {
        self.layers.iter().map(|l| Digest::of(l)).collect()
    }

    /// As `docker save` did before version 25: a directory for each layer, the second time as a link.
    fn old_docker(images: &[(&Self, &[&str])]) -> Archive {
        let mut archive = Archive::default();
        let mut manifest = Vec::new();
        let mut known: BTreeMap<Digest, String> = BTreeMap::new();
        for (image, tags) in images {
            let mut names = Vec::new();
            for (number, layer) in image.layers.iter().enumerate() {
                let directory =
                    Digest::of(&[image.id().hex().as_bytes(), &[number as u8]].concat()).hex().to_owned();
                let name = format!("{directory}/layer.tar");
                archive =
                    archive.directory(&format!("{directory}/")).file(&format!("{directory}/VERSION"), b"1.0");
                archive = match known.get(&Digest::of(layer)) {
                    Some(first) => archive.symlink(&name, &format!("../{first}")),
                    None => archive.file(&name, layer),
                };
                known.entry(Digest::of(layer)).or_insert_with(|| name.clone());
                names.push(name);
            }
            let config = format!("{}.json", image.id().hex());
            archive = archive.file(&config, &image.config);
            manifest.push(json!({ "Config": config, "RepoTags": tags, "Layers": names }));
        }
        archive
            .file("manifest.json", Value::from(manifest).to_string().as_bytes())
            .file("repositories", b"{}")
    }

    /// Blobs of an OCI layout with layers made by `pack`, and the descriptor of the manifest.
    fn blobs(
        &self,
        blobs: &mut BTreeMap<String, Vec<u8>>,
        media: &str,
        pack: impl Fn(&[u8]) -> Vec<u8>,
    ) -> Value {
        let mut put = |bytes: Vec<u8>, media: &str| {
            let (digest, size) = (Digest::of(&bytes), bytes.len());
            blobs.insert(format!("blobs/sha256/{}", digest.hex()), bytes);
            json!({ "mediaType": media, "digest": digest, "size": size })
        };
        let layers: Vec<Value> = self
            .layers
            .iter()
            .map(|l| put(pack(l), &format!("application/vnd.oci.image.layer.v1.{media}")))
            .collect();
        let config = put(self.config.clone(), "application/vnd.oci.image.config.v1+json");
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers
        });
        put(manifest.to_string().into_bytes(), MANIFEST)
    }
}

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

fn named(mut descriptor: Value, annotation: &str, name: &str) -> Value {
    descriptor["annotations"] = json!({ annotation: name });
    descriptor
}

fn on(mut descriptor: Value, platform: &str) -> Value {
    let (os, architecture) = platform.split_once('/').unwrap();
    descriptor["platform"] = json!({ "os": os, "architecture": architecture });
    descriptor
}

/// The files of a layout.
fn layout(mut blobs: BTreeMap<String, Vec<u8>>, manifests: &[Value]) -> BTreeMap<String, Vec<u8>> {
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": manifests });
    blobs.insert("index.json".to_owned(), index.to_string().into_bytes());
    blobs.insert("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec());
    blobs
}

fn archived(files: &BTreeMap<String, Vec<u8>>) -> Vec<u8> {
    files.iter().fold(Archive::default(), |archive, (name, bytes)| archive.file(name, bytes)).end()
}

fn written(files: &BTreeMap<String, Vec<u8>>, directory: &Path) {
    for (name, bytes) in files {
        let path = directory.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
}

/// What a process in the image sees.
fn seen(image: &Image) -> BTreeMap<PathBuf, Thing> {
    let tmp = tempfile::tempdir().unwrap();
    let mounted = crate::unpack::tests::overlay::Mounted::overlay(tmp.path(), &image.layers);
    things(mounted.path())
}
