//! A sandbox as the engine knows it, and its two other spellings: the stored row and the wire object.

use crate::{Error, Result};
use jiff::Timestamp;
use stacyvm_provider::{SandboxId, SandboxSpec};
use stacyvm_store::SandboxRow;
use stacyvm_types::{LimitsHit, Sandbox, SandboxState};

/// A sandbox at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct SandboxRecord {
    /// Its name.
    pub id: SandboxId,
    /// Where it stands in its life.
    pub state: SandboxState,
    /// Why it is in state `error` or `unhealthy`, or why `destroying` takes long; else empty.
    pub reason: String,
    /// Provider that runs it.
    pub provider: String,
    /// The backend's own id, when it has one.
    pub runtime_id: Option<String>,
    /// What it is made of.
    pub spec: SandboxSpec,
    /// Who it belongs to; empty: nobody.
    pub owner: String,
    /// When it was asked for.
    pub created_at: Timestamp,
    /// When it first ran; `None` while it is being made, and for ever if that fails.
    pub running_at: Option<Timestamp>,
    /// When it was last changed.
    pub updated_at: Timestamp,
    /// When it will be destroyed.
    pub expires_at: Timestamp,
    /// Domain under which previews are served.
    pub preview_domain: String,
    /// Limits that it hit, as far as that became known.
    pub limits_hit: LimitsHit,
}

impl SandboxRecord {
    /// The record of a stored row.
    ///
    /// # Errors
    /// `InternalError` for a row that this version cannot read.
    pub(crate) fn from_row(row: &SandboxRow, preview_domain: &str) -> Result<Self> {
        let unreadable =
            |what: &str| Error::internal(format!("stored sandbox {} has an unreadable {what}", row.id));
        Ok(Self {
            id: row.id.parse().map_err(|_| unreadable("id"))?,
            state: row.state,
            reason: row.reason.clone(),
            provider: row.provider.clone(),
            runtime_id: row.runtime_id.clone(),
            spec: serde_json::from_str(&row.spec).map_err(|_| unreadable("spec"))?,
            owner: row.owner.clone(),
            created_at: row.created_at,
            running_at: row.running_at,
            updated_at: row.updated_at,
            expires_at: row.expires_at,
            preview_domain: preview_domain.to_owned(),
            // A count is no reason to do without the sandbox.
            limits_hit: serde_json::from_str(&row.limits_hit).unwrap_or_default(),
        })
    }
}

impl From<SandboxRecord> for Sandbox {
    fn from(record: SandboxRecord) -> Self {
        Self {
            id: record.id.into(),
            state: record.state,
            provider: record.provider,
            image: record.spec.image,
            memory_mb: record.spec.memory_mb,
            vcpus: record.spec.vcpus,
            network_mode: record.spec.network,
            created_at: record.created_at,
            expires_at: record.expires_at,
            owner_id: record.owner,
            worker_id: "local".into(),
            metadata: record.spec.metadata,
            preview_domain: record.preview_domain,
            reason: record.reason,
            disk_size_mb: (record.spec.disk_mb > 0).then_some(record.spec.disk_mb),
            limits_hit: record.limits_hit,
        }
    }
}
