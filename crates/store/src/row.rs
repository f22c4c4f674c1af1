//! Rows as the store's callers see them.

use jiff::Timestamp;
use stacyvm_types::SandboxState;

/// One sandbox as stored. Times are kept in whole microseconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxRow {
    /// Its name.
    pub id: String,
    /// Where it stands in its life.
    pub state: SandboxState,
    /// Why it is in that state; empty: nothing to say.
    pub reason: String,
    /// Provider that runs it.
    pub provider: String,
    /// The backend's own id, when it has one.
    pub runtime_id: Option<String>,
    /// Image, also in `spec`: here to be queried.
    pub image: String,
    /// What it is made of, in JSON; the engine's business.
    pub spec: String,
    /// Who it belongs to; empty: nobody.
    pub owner: String,
    /// The caller's labels in JSON, also in `spec`: here to be queried.
    pub metadata: String,
    /// When it was asked for.
    pub created_at: Timestamp,
    /// When it first ran.
    pub running_at: Option<Timestamp>,
    /// When it was last changed.
    pub updated_at: Timestamp,
    /// When it will be destroyed.
    pub expires_at: Timestamp,
    /// When it was gone.
    pub destroyed_at: Option<Timestamp>,
    /// Key of the request that made it, unique per owner as long as it is held.
    pub idempotency_key: Option<String>,
    /// Digest of that request.
    pub fingerprint: Option<String>,
    /// Limits that were hit, in JSON; the engine's business.
    pub limits_hit: String,
}

/// What changes in a row; `None` leaves a field as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SandboxChange {
    /// New state.
    pub state: Option<SandboxState>,
    /// New reason.
    pub reason: Option<String>,
    /// The backend's own id.
    pub runtime_id: Option<String>,
    /// It runs for the first time.
    pub running_at: Option<Timestamp>,
    /// New deadline.
    pub expires_at: Option<Timestamp>,
    /// It is gone.
    pub destroyed_at: Option<Timestamp>,
    /// Limits that were hit.
    pub limits_hit: Option<String>,
    /// Free the idempotency key for another request.
    pub release_key: bool,
}
