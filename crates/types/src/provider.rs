//! Providers as the API shows them.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// One provider with its health as last checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProviderInfo {
    /// Name under which it is configured.
    pub name: String,
    /// A sandbox could be created.
    pub healthy: bool,
    /// Sandboxes that name no provider are made here.
    pub default: bool,
    /// How long the last check took, in milliseconds.
    pub latency_ms: u64,
    /// When it was checked last, in whole seconds.
    #[schema(value_type = String, format = DateTime)]
    pub last_checked: Timestamp,
    /// Why it is not healthy, and what to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What it can do, each in a word.
    pub capabilities: Vec<String>,
    /// Sandboxes that the runtime holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime_count: Option<u64>,
    /// Guarantees that this host cannot give, each in a sentence.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// Answer to `GET /providers/{name}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProviderDetail {
    /// Name under which it is configured.
    pub name: String,
    /// A sandbox could be created.
    pub healthy: bool,
    /// Sandboxes that name no provider are made here.
    pub default: bool,
    /// Sandboxes of ours on it.
    pub sandbox_count: u64,
    /// The last check.
    pub health: ProviderInfo,
    /// Settings that an operator may see.
    pub config: BTreeMap<String, String>,
}
