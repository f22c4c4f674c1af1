//! The sandbox object and what creates and changes it.

use crate::{LimitsHit, WireDuration};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt, str::FromStr};
use utoipa::ToSchema;

/// Where a sandbox stands in its life (drawn in `crates/engine/src/sandbox.rs`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum SandboxState {
    /// The runtime is making it.
    Creating,
    /// It takes commands.
    Running,
    /// Frozen.
    Paused,
    /// Its guest or runtime does not answer; tried again until it does.
    Unhealthy,
    /// Its time is over; it is about to be destroyed.
    Expired,
    /// Being removed.
    Destroying,
    /// Gone.
    Destroyed,
    /// It failed and will not run again; `reason` says why. It can be destroyed.
    Error,
}

impl SandboxState {
    /// Every state.
    pub const ALL: [Self; 8] = [
        Self::Creating,
        Self::Running,
        Self::Paused,
        Self::Unhealthy,
        Self::Expired,
        Self::Destroying,
        Self::Destroyed,
        Self::Error,
    ];

    /// The state as stored and sent.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Unhealthy => "unhealthy",
            Self::Expired => "expired",
            Self::Destroying => "destroying",
            Self::Destroyed => "destroyed",
            Self::Error => "error",
        }
    }
}

impl fmt::Display for SandboxState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for SandboxState {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|s| s.as_str() == text)
            .ok_or_else(|| format!("unknown sandbox state {text:?}"))
    }
}

/// A sandbox.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Sandbox {
    /// Name, `sb-` and lower-case letters or digits.
    pub id: String,
    /// Where it stands in its life.
    pub state: SandboxState,
    /// Provider that runs it.
    pub provider: String,
    /// Image it was made from.
    pub image: String,
    /// Memory limit in MiB; 0: none.
    pub memory_mb: u32,
    /// Processor limit; 0: none.
    pub vcpus: u32,
    /// Its network (`none`, `internet`, …), as far as the provider says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_mode: Option<String>,
    /// When it was asked for.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// When it will be destroyed.
    #[schema(value_type = String, format = DateTime)]
    pub expires_at: Timestamp,
    /// Who it belongs to.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub owner_id: String,
    /// Machine that runs it; `local` on a single node.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub worker_id: String,
    /// The caller's labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
    /// Domain under which previews are served.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub preview_domain: String,
    /// Why it is in state `error` or `unhealthy`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Disk limit in MiB; absent: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_size_mb: Option<u32>,
    /// Limits that were hit, by name (`oom`, `disk_full`, `pids`).
    #[serde(default, skip_serializing_if = "LimitsHit::is_empty")]
    #[schema(value_type = BTreeMap<String, crate::LimitHits>)]
    pub limits_hit: LimitsHit,
}

/// Body of `POST /sandboxes`. Unknown fields are ignored, as old clients send some.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct CreateSandbox {
    /// Image; default: `defaults.image`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Provider; default: `providers.default`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider: Option<String>,
    /// What isolates it, where the provider offers a choice (`runc`, `runsc`, …); default: the provider's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime: Option<String>,
    /// Network, where the provider offers a choice (`none`, `internet`); default: `network_mode` of the provider.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_mode: Option<String>,
    /// Memory limit in MiB; default: `defaults.memory_mb`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mb: Option<i64>,
    /// Disk limit in MiB; default: `defaults.disk_size_mb`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_size_mb: Option<i64>,
    /// Processor limit; default: `defaults.vcpus`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vcpus: Option<i64>,
    /// Time to live, as `30m`; default: `defaults.ttl`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<String>,
    /// Template to start from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    /// Owner; the `X-User-ID` header wins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner_id: Option<String>,
    /// The caller's labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<BTreeMap<String, String>>,
}

/// Body of `POST /sandboxes/{id}/extend`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExtendSandbox {
    /// New time to live, counted from now.
    #[schema(value_type = Option<String>)]
    pub ttl: Option<WireDuration>,
}

/// Answer to requests that change something and have nothing else to say: `{"status":"destroyed"}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StatusReply {
    /// What was done, in a word.
    pub status: String,
}

/// Answer to `DELETE /sandboxes`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Pruned {
    /// How many expired sandboxes were destroyed.
    pub pruned: u64,
}

/// Answer to `POST /sandboxes/admission`. Exactly these keys: a published client builds a fixed object from them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Admission {
    /// It would be created now.
    pub allowed: bool,
    /// It would wait in the queue.
    pub queueable: bool,
    /// Which limit says no.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Sandboxes now.
    pub active_sandboxes: u64,
    /// Most at once; 0: no limit.
    pub max_sandboxes: u64,
    /// The owner's sandboxes now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active_owner_sandboxes: Option<u64>,
    /// Most per owner.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_owner_sandboxes: Option<u64>,
    /// Longest time to live.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_ttl: Option<String>,
}
