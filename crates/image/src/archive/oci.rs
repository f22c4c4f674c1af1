//! OCI layouts: an index, and blobs that are named by their digests.

use super::{Import, broken, files::Files, names};
use crate::{
    Descriptor, Digest, Document, ImageConfig, LARGEST, LayerMedia, Manifest, Reference, Search,
    store::{Image, Origin, Work},
};
use serde_json::{Value, json};
use stacyvm_provider::{Error, Result};
use std::collections::BTreeMap;

/// Images of one layout.
const MOST: usize = 256;
/// Annotations that name an image. The first is always a whole name, the second can be a tag only.
const WHOLE_NAME: &str = "io.containerd.image.name";
const NAME: &str = "org.opencontainers.image.ref.name";

/// Imports all images, of each the one for the wanted platform; none if there is no `index.json`.
pub(super) fn import(work: &Work, files: &Files, wanted: &Import) -> Result<Option<Vec<Image>>> {
    let Some(bytes) = files.read("index.json", LARGEST)? else { return Ok(None) };
    let groups = groups(&bytes)?;
    let count = groups.len();
    if count == 0 || count > MOST {
        return Err(broken(format_args!("it has {count} images, from 1 to {MOST} are read")));
    }
    let mut images = Vec::with_capacity(count);
    for (name, manifests) in groups {
        let own = Vec::from_iter(name);
        let names = names(wanted, own, count)?;
        images.push((names, manifests));
    }
    images
        .into_iter()
        .map(|(names, manifests)| image(work, files, wanted, &names, &manifests))
        .collect::<Result<_>>()
        .map(Some)
}

/// The entries of the index by the name that they have: several of one name are one image for several platforms.
fn groups(index: &[u8]) -> Result<BTreeMap<Option<Reference>, Vec<Value>>> {
    let index: Value = serde_json::from_slice(index)
        .map_err(|e| broken(format_args!("its index.json cannot be read ({e})")).because(e))?;
    let manifests = index.get("manifests").and_then(Value::as_array);
    let manifests = manifests.ok_or_else(|| broken("its index.json lists no manifests"))?;
    let mut groups: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for manifest in manifests {
        groups.entry(name(manifest)?).or_default().push(manifest.clone());
    }
    Ok(groups)
}

fn name(manifest: &Value) -> Result<Option<Reference>> {
    let annotation = |key: &str| manifest.get("annotations")?.get(key)?.as_str();
    match (annotation(WHOLE_NAME), annotation(NAME)) {
        (Some(name), _) => name.parse().map(Some),
        // A word alone is a tag of nobody knows what.
        (None, Some(name)) if name.contains(['/', ':']) => name.parse().map(Some),
        _ => Ok(None),
    }
}

fn image(
    work: &Work,
    files: &Files,
    wanted: &Import,
    names: &[Reference],
    manifests: &[Value],
) -> Result<Image> {
    let label = names.first().map_or_else(|| "of the archive".to_owned(), ToString::to_string);
    let index = json!({ "schemaVersion": 2, "manifests": manifests }).to_string().into_bytes();
    let (digest, manifest, raw, config) = search(files, wanted, &label, &index)?;
    for (diff_id, layer) in manifest.with(&config, &label)? {
        if work.need(diff_id)? {
            continue;
        }
        let blob = &layer.blob;
        let section = files
            .open(&path(&blob.digest))?
            .ok_or_else(|| broken(format_args!("the layer {} of {label} is not in it", blob.digest)))?;
        // Of a layer without compression this is what is checked when it is unpacked.
        let checked_later = layer.media == LayerMedia::Tar && blob.digest == *diff_id;
        if section.left() != blob.size || !(checked_later || section.is(&blob.digest)?) {
            return Err(broken(format_args!(
                "the layer {} of {label} has other bytes than its digest says",
                blob.digest
            )));
        }
        work.layer(diff_id, section)?;
    }
    let origin = Origin { manifest: Some(digest), source: "an OCI layout".to_owned() };
    work.image(&raw, &origin, names)
}

/// The manifest and configuration for the wanted platform.
fn search(
    files: &Files,
    wanted: &Import,
    label: &str,
    index: &[u8],
) -> Result<(Digest, Manifest, Vec<u8>, ImageConfig)> {
    let mut search = Search::new(wanted.platform.clone(), label);
    let top = match Document::parse(index, None, label)? {
        Document::Index(top) => top,
        Document::Manifest(_) => return Err(Error::internal("an index was read as a manifest")),
    };
    search.take(&Digest::of(index), &top)?;
    let mut first = None;
    loop {
        // The first thing that was wrong says more than that nothing is left.
        let descriptor = search.next().map_err(|e| first.take().unwrap_or(e))?;
        match look(files, &descriptor, wanted, label) {
            Ok(Looked::Index(index)) => search.take(&descriptor.digest, &index)?,
            Ok(Looked::Image(image)) => {
                let (manifest, raw, config) = *image;
                return Ok((descriptor.digest, manifest, raw, config));
            }
            Err(e) => first = first.or(Some(e)),
        }
    }
}

enum Looked {
    Index(crate::Index),
    Image(Box<(Manifest, Vec<u8>, ImageConfig)>),
}

fn look(files: &Files, descriptor: &Descriptor, wanted: &Import, label: &str) -> Result<Looked> {
    let bytes = blob(files, &descriptor.digest, descriptor.size, label)?;
    match Document::parse(&bytes, Some(&descriptor.media_type), label)? {
        Document::Index(index) => Ok(Looked::Index(index)),
        Document::Manifest(manifest) => {
            let raw = blob(files, &manifest.config.digest, manifest.config.size, label)?;
            let config = ImageConfig::parse(&raw, label)?;
            config.runs_on(&wanted.platform, label)?;
            Ok(Looked::Image(Box::new((manifest, raw, config))))
        }
    }
}

/// A blob that fits in memory, checked.
fn blob(files: &Files, digest: &Digest, size: u64, label: &str) -> Result<Vec<u8>> {
    let bytes = files
        .read(&path(digest), LARGEST)?
        .ok_or_else(|| broken(format_args!("{digest}, which is a part of {label}, is not in it")))?;
    if bytes.len() as u64 != size || Digest::of(&bytes) != *digest {
        return Err(broken(format_args!(
            "{digest}, which is a part of {label}, has other bytes than its digest says"
        )));
    }
    Ok(bytes)
}

fn path(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}
