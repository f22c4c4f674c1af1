//! After a start: every stored sandbox gets its task back, and what a runtime holds without a row goes.
//!
//! | row says | what is done |
//! |---|---|
//! | creating | undone: whoever asked got no answer, and asks again |
//! | running, paused, unhealthy | the runtime is asked: running → adopted; ended or unknown → error; no answer → unhealthy, asked again until it answers |
//! | the same, ephemeral | destroyed: it was not to outlive its engine |
//! | expired, destroying | removal goes on |
//! | error | kept; what the runtime still holds is removed |
//!
//! Each decision is an event `reconcile.action`. A runtime that does not answer holds up its own sandboxes only.

use crate::{
    SandboxRecord,
    core::Core,
    destroy::revival,
    events::details,
    guard::{Backoff, guarded},
    providers::Slot,
    sandbox::{Actor, Phase},
    ttl,
};
use futures::{StreamExt, stream};
use stacyvm_provider::{ErrorKind, RuntimeSandbox};
use stacyvm_types::{EventType, SandboxState};
use std::{collections::HashSet, sync::Arc, time::Duration};

/// Longest time for a runtime to list what it holds.
const LIST: Duration = Duration::from_secs(30);
/// Orphans removed at once.
const REMOVALS: usize = 8;
/// Health looks between two inventories.
const INVENTORY_EVERY: u32 = 4;

/// What the task of a stored sandbox starts with, and what that decision is called.
pub(crate) fn first_phase(record: &SandboxRecord) -> (Phase, Option<&'static str>) {
    match record.state {
        SandboxState::Creating => (Phase::Destroy, Some("undone_create")),
        SandboxState::Running | SandboxState::Paused | SandboxState::Unhealthy => {
            if record.spec.ephemeral {
                (Phase::Destroy, Some("removed_ephemeral"))
            } else if ttl::over(record.expires_at) {
                (Phase::Expired, Some("marked_expired"))
            } else {
                (Phase::Live(true), None)
            }
        }
        SandboxState::Expired | SandboxState::Destroying | SandboxState::Destroyed => {
            (Phase::Destroy, Some("resumed_destroy"))
        }
        SandboxState::Error if record.running_at.is_none() => (Phase::Failed, Some("undone_create")),
        SandboxState::Error => (Phase::Failed, None),
    }
}

/// Starts the task of a stored sandbox.
pub(crate) fn resume(core: &Arc<Core>, record: SandboxRecord, key: Option<(String, String)>) {
    let (phase, action) = first_phase(&record);
    let settled = !matches!(phase, Phase::Live(_));
    let (actor, handle) = Actor::new(core.clone(), record, true, settled);
    if let Some(action) = action {
        actor.reconciled(action, "");
    }
    core.registry.restore(&actor.record, key, handle);
    core.spawn_actor(actor.run(phase));
}

/// Counts what a runtime holds and removes what it should not, now and again as long as the engine runs.
pub(crate) async fn inventory(core: Arc<Core>, slot: Slot) {
    let name = slot.provider.name().to_owned();
    let mut backoff = Backoff::new(core.config.retry);
    let mut revived = Some(slot.revived.clone());
    let mut told = String::new();
    let mut reported = HashSet::new();
    loop {
        let pause = match guarded(LIST, slot.provider.list()).await {
            Ok(held) => {
                slot.holds(Some(held.len() as u64));
                told.clear();
                backoff.reset();
                if core.config.remove_orphans {
                    remove_orphans(&core, &slot, held, &mut reported).await;
                }
                core.config.health_interval * INVENTORY_EVERY
            }
            Err(error) => {
                slot.holds(None);
                if told != error.message() {
                    error.message().clone_into(&mut told);
                    tracing::warn!(
                        provider = name,
                        error = error.chain(),
                        "a runtime could not list what it holds"
                    );
                    let data = details([
                        ("operation", "reconcile.runtime_inventory".into()),
                        ("provider", name.as_str().into()),
                        ("error", told.as_str().into()),
                    ]);
                    core.events.emit(EventType::ProviderFailed, None, data);
                }
                backoff.pause()
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = revival(&mut revived) => {}
            () = core.stopping.cancelled() => return,
        }
    }
}

/// `reported`: orphans whose removal failed before and was said to have.
async fn remove_orphans(core: &Core, slot: &Slot, held: Vec<RuntimeSandbox>, reported: &mut HashSet<String>) {
    // A sandbox is in the registry before its runtime hears of it, and stays there until the runtime says that it is gone.
    let orphans: Vec<_> = held.into_iter().filter(|held| !core.registry.contains(held.id.as_str())).collect();
    reported.retain(|id| orphans.iter().any(|orphan| orphan.id.as_str() == id));
    let results: Vec<_> = stream::iter(orphans)
        .map(|orphan| async move {
            // One that was destroyed since the list was made is none.
            let status = guarded(core.config.provider_deadline, slot.provider.status(&orphan.id)).await;
            if status.is_err_and(|error| error.kind() == ErrorKind::NotFound) {
                return None;
            }
            let removed = guarded(core.config.destroy_attempt, slot.provider.destroy(&orphan.id)).await;
            Some((orphan, removed))
        })
        .buffer_unordered(REMOVALS)
        .collect()
        .await;
    for (orphan, removed) in results.into_iter().flatten() {
        let id = orphan.id.as_str();
        let (action, reason) = match &removed {
            Ok(()) => ("removed_orphan", String::new()),
            Err(error) => {
                tracing::warn!(sandbox = id, error = error.chain(), "an orphan could not be removed yet");
                ("orphan_not_removed", error.message().to_owned())
            }
        };
        if removed.is_ok() || reported.insert(id.to_owned()) {
            let data = details([
                ("action", action.into()),
                ("provider", slot.provider.name().into()),
                ("image", orphan.image.clone().into()),
                ("reason", reason.into()),
            ]);
            core.events.emit(EventType::ReconcileAction, Some(id), data);
        }
    }
}
