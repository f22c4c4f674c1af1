//! Events: what happened, numbered, replayable.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

/// One event, as `GET /events` sends it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// `evt-` and a number that only grows, also across restarts.
    pub id: String,
    /// What happened.
    #[serde(rename = "type")]
    pub kind: EventType,
    /// Sandbox it happened to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox_id: Option<String>,
    /// When.
    #[schema(value_type = String, format = DateTime)]
    pub timestamp: Timestamp,
    /// Details.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    #[schema(value_type = Object)]
    pub data: Map<String, Value>,
}

/// Said on the event stream, as an event named `missed`, when events that were asked for are not there any more: the
/// client was away for too long, or is too slow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MissedEvents {
    /// The last event before the gap.
    pub after: String,
    /// The first event that is still kept; absent if `after` was never given out here, as in another installation, and
    /// then only new events follow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
    /// How many are missing, before any filter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
}

macro_rules! event_types {
    ($($variant:ident = $name:literal, $doc:literal;)+) => {
        /// Kinds of events.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
        pub enum EventType {$(
            #[doc = $doc]
            #[serde(rename = $name)]
            $variant,
        )+}
        impl EventType {
            /// Every kind.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];
            /// The kind as stored and sent: a group and a word, as in `sandbox.created`.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }
        }
    };
}

event_types! {
    SandboxCreated = "sandbox.created", "It was asked for and stored.";
    SandboxRunning = "sandbox.running", "It takes commands.";
    SandboxPaused = "sandbox.paused", "It is frozen; its time to live runs on.";
    SandboxResumed = "sandbox.resumed", "It goes on where it was paused.";
    SandboxUnhealthy = "sandbox.unhealthy", "Its guest or runtime stopped answering.";
    SandboxError = "sandbox.error", "It failed for good; `reason` says why.";
    SandboxExpired = "sandbox.expired", "Its time is over.";
    SandboxDestroyed = "sandbox.destroyed", "It is gone.";
    SandboxExtended = "sandbox.extended", "Its deadline changed.";
    SandboxLimit = "sandbox.limit", "A limit of it was hit: `limit` (`oom`, `disk_full`, `pids`), `process_id` if a process did, `count` of all so far.";
    ExecStarted = "exec.started", "A command started.";
    ExecCompleted = "exec.completed", "A command ended by itself.";
    ExecFailed = "exec.failed", "A command could not be run.";
    ExecTimeout = "exec.timeout", "A command was killed at its deadline.";
    FileWritten = "file.written", "A file was written.";
    FileRead = "file.read", "A file was read.";
    OperationFailed = "operation.failed", "An operation failed.";
    ImagePull = "image.pull", "Progress of an image pull: `image`, `status` (`pulling`, `done`, `failed`), `layers`, `layers_done`, `bytes`, `bytes_done`, `error`.";
    ProviderFailed = "provider.failed", "A runtime failed an operation.";
    ReconcileAction = "reconcile.action", "Recovery, or a runtime by itself, decided about something that it found; `action` says what.";
}

impl EventType {
    /// What stands before the dot: events of a group are asked for by it.
    pub fn group(self) -> &'static str {
        self.as_str().split('.').next().unwrap_or_default()
    }
}

impl std::str::FromStr for EventType {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .iter()
            .copied()
            .find(|t| t.as_str() == text)
            .ok_or_else(|| format!("unknown event type {text:?}"))
    }
}
