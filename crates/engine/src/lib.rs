//! Life cycle of sandboxes: one task owns one sandbox.
//!
//! [`Engine`] is the only face: it validates, admits and hands each request to the task that owns the sandbox
//! (`sandbox.rs`, where the state machine is drawn). The store is the truth for existence, owner, spec and deadline; the
//! runtime is the truth for liveness.

mod admission;
mod attach;
mod config;
mod core;
mod create;
mod destroy;
mod engine;
mod error;
mod events;
mod exec;
mod guard;
mod hits;
mod live;
mod operations;
mod pause;
mod providers;
mod reach;
mod record;
mod recovery;
mod request;
mod sandbox;
mod ttl;

pub use config::{Defaults, EngineConfig, Limits};
pub use engine::Engine;
pub use error::{Error, Result};
pub use events::{EventBus, Heard, Missed, Subscription, event_id, event_number};
pub use operations::Operation;
pub use providers::ProviderStatus;
pub use record::SandboxRecord;
pub use request::{CreateRequest, ExecOutcome, ExecRequest, ListFilter};
pub use stacyvm_store::Store;
pub use stacyvm_types::{Admission, Event, EventType, OperationCounts, SandboxState};
