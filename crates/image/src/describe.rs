//! Images in the words of the API.

use crate::{
    Image,
    store::{Collected, Removed},
};
use stacyvm_types::{ImageSettings, PrunedImages, RemovedImage};
use std::time::SystemTime;

impl From<Image> for stacyvm_types::Image {
    fn from(image: Image) -> Self {
        let config = image.config;
        let mut notes = Vec::new();
        if !config.volumes.is_empty() {
            notes.push(format!(
                "volumes are ordinary directories of each sandbox and go with it: {}",
                config.volumes.join(", ")
            ));
        }
        if !config.entrypoint.is_empty() {
            notes.push(format!(
                "nothing is started by itself; the image would start {}",
                config.entrypoint.join(" ")
            ));
        }
        Self {
            id: image.id.to_string(),
            names: image.names.iter().map(ToString::to_string).collect(),
            platform: image.platform.to_string(),
            size_bytes: image.disk_bytes,
            layers: image.layers.len() as u64,
            source: image.source,
            manifest: image.manifest.map(|digest| digest.to_string()),
            added_at: timestamp(image.added),
            used_at: timestamp(image.used),
            in_use: image.held_by.len() as u64,
            config: ImageSettings {
                user: config.user,
                env: config.env,
                workdir: config.working_dir,
                entrypoint: config.entrypoint,
                cmd: config.cmd,
                exposed_ports: config.exposed_ports,
                volumes: config.volumes,
                labels: config.labels,
            },
            notes,
        }
    }
}

impl From<Removed> for RemovedImage {
    fn from(removed: Removed) -> Self {
        Self {
            names: removed.names.iter().map(ToString::to_string).collect(),
            id: removed.image.map(|id| id.to_string()),
            layers: removed.layers as u64,
            bytes: removed.bytes,
        }
    }
}

impl From<Collected> for PrunedImages {
    fn from(collected: Collected) -> Self {
        Self {
            images: collected.images as u64,
            layers: collected.layers as u64,
            downloads: collected.partial as u64,
            bytes: collected.bytes,
        }
    }
}

/// To the second: the filesystem's nanoseconds say nothing to people.
fn timestamp(at: SystemTime) -> jiff::Timestamp {
    let at = jiff::Timestamp::try_from(at).unwrap_or_default();
    jiff::Timestamp::from_second(at.as_second()).unwrap_or(at)
}
