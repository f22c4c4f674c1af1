//! The configured runtimes and what is known about their health, looked at in the background so that nobody waits.

use crate::{config::EngineConfig, guard::guarded};
use futures::FutureExt;
use jiff::Timestamp;
use stacyvm_provider::{Capabilities, Health, Provider};
use std::{
    collections::BTreeMap,
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::{Semaphore, watch};

/// Recovery questions to one runtime at a time.
const RECOVERY_CALLS: usize = 32;
/// How long [`Providers::statuses`] waits for a first look that is not over.
const FIRST_LOOK: Duration = Duration::from_secs(2);
/// Longest look; the contract allows a provider 5 s.
const LOOK: Duration = Duration::from_secs(6);

/// A provider with its health as last looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProviderStatus {
    /// Name under which it is configured.
    pub name: String,
    /// Sandboxes that name no provider are made here.
    pub default: bool,
    /// A sandbox could be created.
    pub healthy: bool,
    /// Why not, and the fix.
    pub problem: Option<String>,
    /// Guarantees that this host cannot give.
    pub warnings: Vec<String>,
    /// How long the look took.
    pub latency: Duration,
    /// When it was.
    pub last_checked: Timestamp,
    /// What it can do.
    pub capabilities: Capabilities,
    /// Sandboxes that the runtime holds; `None`: it could not say.
    pub runtime_count: Option<u64>,
    /// Settings that an operator may see.
    pub settings: BTreeMap<String, String>,
}

/// One configured provider.
#[derive(Clone)]
pub(crate) struct Slot {
    pub(crate) provider: Arc<dyn Provider>,
    /// Bounds how many stored sandboxes ask it at once after a start.
    pub(crate) recovery: Arc<Semaphore>,
    /// Counts how often it became healthy again: unhealthy sandboxes need not wait for their next attempt then.
    pub(crate) revived: watch::Receiver<u64>,
    state: Arc<State>,
}

struct State {
    looked: watch::Sender<Option<Looked>>,
    held: watch::Sender<Option<u64>>,
    revive: watch::Sender<u64>,
}

#[derive(Clone)]
struct Looked {
    health: Health,
    at: Timestamp,
}

/// All configured providers, by name.
pub(crate) struct Providers {
    slots: BTreeMap<String, Slot>,
}

impl Providers {
    /// `None` if two have the same name.
    pub(crate) fn new(providers: Vec<Arc<dyn Provider>>) -> Option<Self> {
        let count = providers.len();
        let slots: BTreeMap<_, _> = providers
            .into_iter()
            .map(|provider| {
                let revive = watch::Sender::new(0);
                let revived = revive.subscribe();
                let state =
                    State { looked: watch::Sender::new(None), held: watch::Sender::new(None), revive };
                let recovery = Arc::new(Semaphore::new(RECOVERY_CALLS));
                (provider.name().to_owned(), Slot { provider, recovery, revived, state: Arc::new(state) })
            })
            .collect();
        (slots.len() == count).then_some(Self { slots })
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Slot> {
        self.slots.get(name)
    }

    /// The provider that an image which `default` does not take is meant for: `host` is for one, a name of a registry for
    /// another. Never one that does not isolate. `None`: the default takes it, or nobody does.
    pub(crate) fn for_image(&self, default: &str, image: &str) -> Option<String> {
        if self.get(default).is_none_or(|slot| slot.provider.offers(image)) {
            return None;
        }
        let takes = |slot: &&Slot| slot.provider.capabilities().isolated && slot.provider.offers(image);
        self.all().find(takes).map(|slot| slot.provider.name().to_owned())
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &Slot> {
        self.slots.values()
    }

    pub(crate) async fn statuses(&self, default: &str) -> Vec<ProviderStatus> {
        let looks = self.slots.values().map(|slot| async {
            let mut looked = slot.state.looked.subscribe();
            let _ = tokio::time::timeout(FIRST_LOOK, looked.wait_for(Option::is_some)).await;
            slot.status(default)
        });
        futures::future::join_all(looks).await
    }
}

impl Slot {
    fn status(&self, default: &str) -> ProviderStatus {
        let name = self.provider.name();
        let looked = self.state.looked.borrow().clone().unwrap_or_else(|| Looked {
            health: unhealthy("it has not answered its first health check yet", FIRST_LOOK),
            at: Timestamp::now(),
        });
        ProviderStatus {
            name: name.to_owned(),
            default: name == default,
            healthy: looked.health.healthy,
            problem: looked.health.problem,
            warnings: looked.health.warnings,
            latency: looked.health.latency,
            last_checked: looked.at,
            capabilities: self.provider.capabilities(),
            runtime_count: *self.state.held.borrow(),
            settings: self.provider.settings(),
        }
    }

    /// Says how many sandboxes the runtime holds.
    pub(crate) fn holds(&self, count: Option<u64>) {
        self.state.held.send_replace(count);
    }

    /// Looks at the provider's health for ever.
    pub(crate) async fn watch_health(self, config: Arc<EngineConfig>) {
        let mut was_healthy = true;
        loop {
            let started = Instant::now();
            let look = guarded(LOOK, async { Ok(self.provider.health().await) });
            let health = look.await.unwrap_or_else(|error| unhealthy(error.message(), started.elapsed()));
            if health.healthy != was_healthy {
                was_healthy = health.healthy;
                let problem = health.problem.as_deref().unwrap_or_default();
                tracing::info!(
                    provider = self.provider.name(),
                    healthy = was_healthy,
                    problem,
                    "provider health changed"
                );
                if was_healthy {
                    self.state.revive.send_modify(|count| *count += 1);
                }
            }
            self.state.looked.send_replace(Some(Looked { health, at: Timestamp::now() }));
            tokio::time::sleep(config.health_interval).await;
        }
    }

    /// [`Provider::ended`], with a defect in the runtime's code treated as an end to be examined.
    pub(crate) async fn ended(self, id: stacyvm_provider::SandboxId) -> String {
        AssertUnwindSafe(self.provider.ended(&id))
            .catch_unwind()
            .await
            .unwrap_or_else(|_| "watching it failed".to_owned())
    }
}

fn unhealthy(problem: &str, latency: Duration) -> Health {
    Health { healthy: false, problem: Some(problem.to_owned()), warnings: Vec::new(), latency }
}
