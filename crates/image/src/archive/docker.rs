//! What `docker save` writes: `manifest.json` lists images, each with the names of its configuration and layers. Old versions
//! have them in directories and link layers that images share, new ones have them as the blobs of an OCI layout.

use super::{Import, broken, files::Files, names};
use crate::{
    Digest, ImageConfig, LARGEST, MOST_LAYERS, Reference,
    store::{Image, Origin, Work},
    unpack::path::shown,
};
use serde::Deserialize;
use stacyvm_provider::Result;

/// Images of one archive.
const MOST: usize = 256;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

/// Imports all images; none if there is no `manifest.json`.
pub(super) fn import(work: &Work, files: &Files, wanted: &Import) -> Result<Option<Vec<Image>>> {
    let Some(bytes) = files.read("manifest.json", LARGEST)? else { return Ok(None) };
    let entries: Vec<Entry> = serde_json::from_slice(&bytes)
        .map_err(|e| broken(format_args!("its manifest.json cannot be read ({e})")).because(e))?;
    if entries.is_empty() || entries.len() > MOST {
        return Err(broken(format_args!("it has {} images, from 1 to {MOST} are read", entries.len())));
    }
    let count = entries.len();
    // All that can be wrong with what was asked for, before anything is unpacked.
    let mut images = Vec::with_capacity(count);
    for entry in entries {
        let tags = entry.repo_tags.as_deref().unwrap_or_default();
        let own = tags.iter().map(|tag| tag.parse()).collect::<Result<Vec<Reference>>>()?;
        let config = config(files, &entry)?;
        images.push((entry, config, names(wanted, own, count)?));
    }
    images
        .into_iter()
        .map(|(entry, config, names)| image(work, files, wanted, entry, &config, &names))
        .collect::<Result<_>>()
        .map(Some)
}

/// The configuration, which is what its file is named after.
fn config(files: &Files, entry: &Entry) -> Result<Vec<u8>> {
    let name = shown(entry.config.as_bytes());
    let bytes = files
        .read(&entry.config, LARGEST)?
        .ok_or_else(|| broken(format_args!("the configuration {name} is not in it")))?;
    if named(&entry.config).is_some_and(|digest| digest != Digest::of(&bytes)) {
        return Err(broken(format_args!("the configuration {name} is not the one that it is named after")));
    }
    Ok(bytes)
}

fn image(
    work: &Work,
    files: &Files,
    wanted: &Import,
    entry: Entry,
    config: &[u8],
    names: &[Reference],
) -> Result<Image> {
    let label = names.first().map_or_else(|| Digest::of(config).short().to_owned(), ToString::to_string);
    let parsed = ImageConfig::parse(config, &label)?;
    parsed.runs_on(&wanted.platform, &label)?;
    let layers = entry.layers.unwrap_or_default();
    if layers.len() != parsed.diff_ids.len() || layers.is_empty() || layers.len() > MOST_LAYERS {
        return Err(broken(format_args!(
            "the image {label} has {} layers, its configuration {}, and from 1 to {MOST_LAYERS} can be",
            layers.len(),
            parsed.diff_ids.len()
        )));
    }
    for (layer, diff_id) in layers.iter().zip(&parsed.diff_ids) {
        let section = files.open(layer)?.ok_or_else(|| {
            broken(format_args!("the layer {} of {label} is not in it", shown(layer.as_bytes())))
        })?;
        work.layer(diff_id, section)?;
    }
    let origin = Origin { manifest: None, source: "an archive of docker save".to_owned() };
    work.image(config, &origin, names)
}

/// The digest in the name of a configuration: `<digits>.json`, or `blobs/sha256/<digits>`.
fn named(path: &str) -> Option<Digest> {
    let name = path.rsplit('/').next()?;
    format!("sha256:{}", name.strip_suffix(".json").unwrap_or(name)).parse().ok()
}
