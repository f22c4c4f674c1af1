//! What an operator can set, with the defaults of the product.

use std::time::Duration;

/// Settings of an engine. Times and sizes have product defaults; `generation` must come from the store.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// What a create request gets that does not say otherwise.
    pub defaults: Defaults,
    /// Domain under which previews are served; shown with each sandbox.
    pub preview_domain: String,
    /// What nobody may exceed.
    pub limits: Limits,
    /// Number of this start of the control plane (`Store::next_generation`), for the log.
    pub generation: u64,
    /// Destroy what a runtime holds for this installation and the store does not know. Off for an engine that shares its
    /// installation id with another one (an embedded engine next to a server, say).
    pub remove_orphans: bool,
    /// Longest time that a runtime may take to make a sandbox, image pull included.
    pub create_deadline: Duration,
    /// Longest time for one attempt of a runtime to remove a sandbox; then it is tried again.
    pub destroy_attempt: Duration,
    /// How long a caller of destroy waits before it is told that removal goes on in the background.
    pub destroy_wait: Duration,
    /// Longest time for any other question to a runtime (status, connect, stats).
    pub provider_deadline: Duration,
    /// First and longest pause between attempts at something that fails.
    pub retry: (Duration, Duration),
    /// How often a running sandbox's guest is asked whether it is there.
    pub probe_interval: Duration,
    /// How often a provider's health is looked at.
    pub health_interval: Duration,
    /// How long an attachment tries to reach its guest again before it gives up.
    pub reconnect_window: Duration,
    /// How long a graceful stop waits for creates and destroys under way.
    pub shutdown_grace: Duration,
    /// How long rows of destroyed sandboxes are kept.
    pub keep_destroyed: Duration,
    /// How many rows of destroyed sandboxes are kept at most.
    pub keep_destroyed_rows: u64,
    /// How many events are kept for replay.
    pub keep_events: u64,
}

/// What a create request gets that does not say otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Defaults {
    /// Image.
    pub image: String,
    /// Memory limit in MiB; 0: none.
    pub memory_mb: u32,
    /// Processor limit; 0: none.
    pub vcpus: u32,
    /// Processes and threads at once; 0: no limit.
    pub pids: u32,
    /// Disk limit in MiB; 0: none.
    pub disk_mb: u32,
    /// Time to live.
    pub ttl: Duration,
    /// Name of the provider.
    pub provider: String,
}

/// What nobody may exceed. Zero means no limit, except for `max_output_bytes`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Longest time to live.
    pub max_ttl: Duration,
    /// Timeout of an exec that names none.
    pub default_exec_timeout: Duration,
    /// Longest timeout of an exec, and of a process that names one. An exec without one gets this; a process does not.
    pub max_exec_timeout: Duration,
    /// Sandboxes at once, in every state but destroyed.
    pub max_sandboxes: u64,
    /// The same per owner; sandboxes without an owner are not counted.
    pub max_sandboxes_per_owner: u64,
    /// Bytes kept of each output stream of a synchronous exec; more is read and dropped, and reported as truncated.
    pub max_output_bytes: u64,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            defaults: Defaults::default(),
            preview_domain: "localhost".into(),
            limits: Limits::default(),
            generation: 0,
            remove_orphans: true,
            create_deadline: Duration::from_secs(300),
            destroy_attempt: Duration::from_secs(60),
            destroy_wait: Duration::from_secs(20),
            provider_deadline: Duration::from_secs(10),
            retry: (Duration::from_millis(200), Duration::from_secs(30)),
            probe_interval: Duration::from_secs(30),
            health_interval: Duration::from_secs(15),
            reconnect_window: Duration::from_secs(30),
            shutdown_grace: Duration::from_secs(10),
            keep_destroyed: Duration::from_secs(7 * 24 * 3600),
            keep_destroyed_rows: 10_000,
            keep_events: 10_000,
        }
    }
}

impl Default for Defaults {
    fn default() -> Self {
        Self {
            image: "alpine:latest".into(),
            memory_mb: 1024,
            vcpus: 1,
            pids: 1024,
            disk_mb: 0,
            ttl: Duration::from_secs(30 * 60),
            provider: "native".into(),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_ttl: Duration::ZERO,
            default_exec_timeout: Duration::ZERO,
            max_exec_timeout: Duration::ZERO,
            max_sandboxes: 0,
            max_sandboxes_per_owner: 0,
            max_output_bytes: 16 << 20,
        }
    }
}
