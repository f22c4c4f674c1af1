//! The way into a sandbox: from an id to its guest, or to the words why not.

use crate::{
    Error, Result, SandboxRecord,
    core::Core,
    events::details,
    guard::guarded,
    providers::Slot,
    sandbox::{Handle, destroyed, not_configured},
};
use serde_json::Value;
use stacyvm_provider::{ErrorKind, Guest, SandboxId};
use stacyvm_types::{EventType, SandboxState};
use std::{sync::Arc, time::Duration};

/// A sandbox that took commands when it was looked up.
#[derive(Clone)]
pub(crate) struct Target {
    pub(crate) id: SandboxId,
    pub(crate) handle: Handle,
    pub(crate) slot: Slot,
    core: Arc<Core>,
}

impl Target {
    /// # Errors
    /// `NotFound`; `Conflict` or `Unavailable` if it does not take commands (now).
    pub(crate) async fn find(core: &Arc<Core>, id: &str) -> Result<Self> {
        Self::find_in(core, id, |state| state == SandboxState::Running).await
    }

    /// The same, and a paused one is fine: the caller will wait.
    ///
    /// # Errors
    /// As [`Target::find`].
    pub(crate) async fn find_or_paused(core: &Arc<Core>, id: &str) -> Result<Self> {
        Self::find_in(core, id, |state| matches!(state, SandboxState::Running | SandboxState::Paused)).await
    }

    async fn find_in(core: &Arc<Core>, id: &str, fine: impl Fn(SandboxState) -> bool) -> Result<Self> {
        let handle = find(core, id).await?;
        handle.settled(id).await?;
        handle.looked_again().await;
        let record = handle.record();
        let slot = core.providers.get(&record.provider).cloned();
        let Some(slot) = slot else { return Err(not_configured(&record.provider).into()) };
        let target = Self { id: record.id.clone(), handle: handle.clone(), slot, core: core.clone() };
        match refusal(&record) {
            Some(error) if !fine(record.state) => {
                handle.check();
                Err(error)
            }
            _ => Ok(target),
        }
    }

    /// Why it does not take commands now, if so.
    pub(crate) fn refusal(&self) -> Option<Error> {
        refusal(&self.handle.record())
    }

    /// Its guest.
    ///
    /// # Errors
    /// As [`stacyvm_provider::Provider::connect`].
    pub(crate) async fn guest(&self) -> stacyvm_provider::Result<Arc<dyn Guest>> {
        let deadline = self.core.config.provider_deadline;
        let result = guarded(deadline, self.slot.provider.connect(&self.id)).await;
        if result.is_err() {
            self.handle.check();
        }
        result
    }

    /// Longest time for one question to it.
    pub(crate) fn deadline(&self) -> Duration {
        self.core.config.provider_deadline
    }

    /// Reports that something happened to it.
    pub(crate) fn emit<const N: usize>(&self, kind: EventType, data: [(&str, Value); N]) {
        self.core.events.emit(kind, Some(self.id.as_str()), details(data));
    }

    /// What a failure in it means for the caller: once it is gone or paused, that is the reason, whatever the guest's last
    /// words were.
    pub(crate) fn explain(&self, error: stacyvm_provider::Error) -> Error {
        if matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Destroyed | ErrorKind::Timeout) {
            self.handle.check();
        }
        let passing = matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Timeout);
        match self.refusal() {
            Some(refusal) if self.handle.gone.is_cancelled() => refusal.because(error),
            // Not refused: it was under way, and may have had its effect.
            Some(refusal) if passing && self.handle.is_paused() => {
                Error::unavailable(refusal.message()).because(error)
            }
            _ => error.into(),
        }
    }
}

/// Why a sandbox does not take commands in the state it is in, if so.
pub(crate) fn refusal(record: &SandboxRecord) -> Option<Error> {
    let (id, reason) = (&record.id, &record.reason);
    match record.state {
        SandboxState::Running => None,
        SandboxState::Creating => {
            Some(Error::unavailable(format!("sandbox {id} is still being created; try again")))
        }
        SandboxState::Unhealthy => {
            Some(Error::unavailable(format!("sandbox {id} is out of reach: {reason}")))
        }
        SandboxState::Paused => Some(Error::conflict(format!("sandbox {id} is paused: resume it"))),
        SandboxState::Error => Some(Error::conflict(format!("sandbox {id} has failed: {reason}"))),
        SandboxState::Expired | SandboxState::Destroying | SandboxState::Destroyed => Some(destroyed(id)),
    }
}

/// The task of a sandbox that is not destroyed.
///
/// # Errors
/// `NotFound`, with different words for one that was.
pub(crate) async fn find(core: &Core, id: &str) -> Result<Handle> {
    if let Some(handle) = core.registry.get(id) {
        return Ok(handle);
    }
    let Ok(id) = id.parse::<SandboxId>() else {
        let shown: String = id.chars().take(64).collect();
        return Err(Error::not_found(format!("sandbox not found: {shown}")));
    };
    // Gone is gone, also when the store cannot say how it was.
    match core.store.sandbox(id.as_str()).await {
        Ok(Some(_)) => Err(destroyed(&id)),
        Ok(None) | Err(_) => Err(Error::not_found(format!("sandbox not found: {id}"))),
    }
}
