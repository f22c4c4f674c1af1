//! Images in the store of the server's host.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// An image that is on the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Image {
    /// `sha256:` and the digest of its configuration.
    pub id: String,
    /// Names that lead to it, as people type them.
    pub names: Vec<String>,
    /// What it is built for, as in `linux/amd64`.
    pub platform: String,
    /// Bytes of disk that its layers take; other images may share them.
    pub size_bytes: u64,
    /// Layers.
    pub layers: u64,
    /// Where it came from, in words.
    pub source: String,
    /// Digest of the manifest that it came with, if it came with one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest: Option<String>,
    /// When it came.
    #[schema(value_type = String, format = DateTime)]
    pub added_at: Timestamp,
    /// When something last ran from it, or when it came.
    #[schema(value_type = String, format = DateTime)]
    pub used_at: Timestamp,
    /// Sandboxes that have it.
    pub in_use: u64,
    /// What it says of the processes that run from it.
    pub config: ImageSettings,
    /// What is not done as it says, in words.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// What an image says of processes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct ImageSettings {
    /// User, or user and group, by name or number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Variables, `NAME=value`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// Directory in which commands start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
    /// What the image is made to start.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub entrypoint: Vec<String>,
    /// Arguments of it, or the command if there is none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cmd: Vec<String>,
    /// Ports on which it serves, as in `80/tcp`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub exposed_ports: Vec<String>,
    /// Directories that it keeps data in.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<String>,
    /// Labels.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// Which image to pull.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PullImage {
    /// Its name, as in `alpine`, `python:3.12-slim` or `ghcr.io/owner/image@sha256:…`.
    pub image: String,
}

/// What was removed by name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RemovedImage {
    /// Names that lead nowhere any more.
    pub names: Vec<String>,
    /// The image, if that was its last name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Layers that nothing else needed.
    pub layers: u64,
    /// Bytes of disk that are free now.
    pub bytes: u64,
}

/// Which images to prune.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct PruneImages {
    /// Also those that have a name, if nothing runs from them.
    pub all: bool,
}

/// What was pruned.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PrunedImages {
    /// Images.
    pub images: u64,
    /// Layers.
    pub layers: u64,
    /// Downloads that nobody went on with.
    pub downloads: u64,
    /// Bytes of disk that are free now.
    pub bytes: u64,
}
