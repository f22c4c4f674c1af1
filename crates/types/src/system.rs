//! Health, resource use and counters of the server and of one sandbox.

use crate::ProviderInfo;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// Answer to `GET /health` (`"status":"ok"`) and `GET /live` (`"status":"alive"`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Health {
    /// `ok` or `alive`.
    pub status: String,
    /// Version of the server.
    pub version: String,
    /// Time since it started, as `1h2m3s`.
    pub uptime: String,
}

/// Answer to `GET /ready`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Ready {
    /// `ready`, or `not_ready` (with status 503) while no provider is healthy.
    pub status: String,
    /// Version of the server.
    pub version: String,
    /// Time since it started, as `1h2m3s`.
    pub uptime: String,
    /// Every provider.
    pub providers: Vec<ProviderInfo>,
    /// How many are healthy.
    pub ready_providers: u64,
    /// How many there are.
    pub total_providers: u64,
}

/// Answer to `GET /sandboxes/{id}/stats`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SandboxStats {
    /// The runtime can say. If not, nothing else is given.
    pub supported: bool,
    /// Processor use over a short sample; 100 is one whole processor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_pct: Option<f64>,
    /// Memory in use, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mem_bytes: Option<u64>,
    /// Memory limit in bytes; 0: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mem_limit_bytes: Option<u64>,
    /// Processor time used since the sandbox was made, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_time_ms: Option<u64>,
    /// Processes and threads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pids: Option<u64>,
}

/// Answer to `GET /system/stats`: the host.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SystemStats {
    /// Processor use in percent of all processors, over a short sample.
    pub cpu_pct: f64,
    /// Memory in use in percent.
    pub mem_pct: f64,
    /// Space in use in percent, of the filesystem that holds the data directory.
    pub disk_pct: f64,
    /// Bytes received per second on all interfaces but loopback.
    pub net_rx_bps: f64,
    /// Bytes sent per second on all interfaces but loopback.
    pub net_tx_bps: f64,
    /// Load average over one minute.
    pub load1: f64,
}

/// Answer to `GET /pool/status`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PoolStatus {
    /// Sandboxes share machines of a pool.
    pub enabled: bool,
}

/// Answer to `GET /quotas/summary`. Exactly these keys: a published client builds a fixed object from them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct QuotaSummary {
    /// Owners with a quota of their own.
    pub total: u64,
    /// … of which with a limit on sandboxes.
    pub with_max_sandboxes: u64,
    /// … of which with a limit on time to live.
    pub with_max_ttl: u64,
    /// … of which with a limit on exec time.
    pub with_max_exec_timeout: u64,
}

/// Sandboxes by what they have in common.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SandboxCounts {
    /// All that are not destroyed.
    pub total: u64,
    /// Those that take commands.
    pub active: u64,
    /// By state.
    pub by_state: BTreeMap<String, u64>,
    /// By provider.
    pub by_provider: BTreeMap<String, u64>,
    /// By machine.
    pub by_worker: BTreeMap<String, u64>,
}

/// Providers in metrics.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProviderCounts {
    /// How many there are.
    pub total: u64,
    /// How many are healthy.
    pub healthy: u64,
    /// Every provider.
    pub items: Vec<ProviderInfo>,
}

/// The event stream in metrics.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EventCounts {
    /// Subscribers now.
    pub subscribers: u64,
    /// Events since the installation was made.
    pub events_total: u64,
}

/// One kind of operation on one provider, since the server started.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct OperationCounts {
    /// `spawn`, `exec`, `file_read`, …
    pub operation: String,
    /// The provider.
    pub provider: String,
    /// How often it worked.
    pub success_total: u64,
    /// How often it failed.
    pub failure_total: u64,
    /// How often it was timed.
    pub latency_count: u64,
    /// Sum of the times in milliseconds.
    pub latency_total_ms: f64,
    /// Shortest time in milliseconds.
    pub latency_min_ms: f64,
    /// Longest time in milliseconds.
    pub latency_max_ms: f64,
    /// Mean time in milliseconds.
    pub latency_avg_ms: f64,
    /// The last error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// When it was last seen, in seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_observed_unix: Option<i64>,
}

/// Answer to `GET /metrics`. The names of the memory keys are those that clients have always read; what they mean for
/// this server is said on each.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Metrics {
    /// Time since the server started, as `1h2m3s`.
    pub uptime: String,
    /// Tasks alive in the server's async runtime.
    pub goroutines: u64,
    /// Resident memory of the server in bytes, without file pages.
    pub memory_alloc: u64,
    /// Resident memory of the server in bytes.
    pub memory_sys: u64,
    /// Data segment of the server in bytes.
    pub memory_heap_alloc: u64,
    /// Always 0: nothing is garbage collected.
    pub gc_cycles: u64,
    /// Sandboxes.
    pub sandboxes: SandboxCounts,
    /// Providers.
    pub providers: ProviderCounts,
    /// Events.
    pub events: EventCounts,
    /// Operations.
    pub operations: Vec<OperationCounts>,
    /// Quotas.
    pub quotas: QuotaSummary,
}

/// Limits of this server. Times as `10m`; 0 and `0s`: no limit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LimitsInfo {
    /// Sandboxes at once.
    pub max_sandboxes: u64,
    /// Sandboxes at once per owner.
    pub max_sandboxes_per_owner: u64,
    /// Timeout of an exec that names none.
    pub default_exec_timeout: String,
    /// Longest timeout of an exec, and of a process that names one.
    pub max_exec_timeout: String,
    /// Longest time to live.
    pub max_ttl: String,
}

/// What was built.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BuildInfo {
    /// Version.
    pub version: String,
    /// Operating system.
    pub goos: String,
    /// Processor architecture.
    pub goarch: String,
}

/// Answer to `GET /diagnostics`: everything that support asks for first, without secrets.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Diagnostics {
    /// When, in whole seconds.
    #[schema(value_type = String, format = DateTime)]
    pub generated_at: Timestamp,
    /// What was built.
    pub build: BuildInfo,
    /// Time since the server started, as `1h2m3s`.
    pub uptime: String,
    /// Limits.
    pub limits: LimitsInfo,
    /// Every provider.
    pub providers: Vec<ProviderInfo>,
    /// Sandboxes.
    pub sandboxes: SandboxCounts,
    /// Events.
    pub events: EventCounts,
    /// Operations.
    pub operations: Vec<OperationCounts>,
    /// Kinds of values that never appear here.
    pub redactions: Vec<String>,
}
