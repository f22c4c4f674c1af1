//! What every task of an engine shares, and how those tasks end.

use crate::{EngineConfig, EventBus, admission::Registry, operations::Operations, providers::Providers};
use stacyvm_store::Store;
use std::{future::Future, sync::Arc};
use tokio::{sync::Semaphore, task::JoinHandle};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Processes whose end is watched for an event at once.
const WATCHED_PROCESSES: usize = 4096;

/// Shared state. Nothing in it is locked across an await.
pub(crate) struct Core {
    pub(crate) config: Arc<EngineConfig>,
    pub(crate) store: Store,
    pub(crate) providers: Providers,
    pub(crate) registry: Registry,
    pub(crate) events: EventBus,
    pub(crate) operations: Operations,
    pub(crate) watched: Arc<Semaphore>,
    /// Graceful stop: tasks come to an end at the next point where nothing is half done.
    pub(crate) stopping: CancellationToken,
    /// Hard stop: tasks end where they are, as if the process were killed.
    pub(crate) halted: CancellationToken,
    /// Tasks that own a sandbox; a graceful stop waits for them.
    pub(crate) actors: TaskTracker,
}

impl Core {
    pub(crate) fn new(config: EngineConfig, store: Store, providers: Providers, events: EventBus) -> Self {
        Self {
            config: Arc::new(config),
            store,
            providers,
            registry: Registry::default(),
            events,
            operations: Operations::default(),
            watched: Arc::new(Semaphore::new(WATCHED_PROCESSES)),
            stopping: CancellationToken::new(),
            halted: CancellationToken::new(),
            actors: TaskTracker::new(),
        }
    }

    /// Runs a task that ends with the engine, wherever it is then.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) -> JoinHandle<()> {
        tokio::spawn(self.until_halted(task))
    }

    /// Runs a task that owns a sandbox.
    pub(crate) fn spawn_actor(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.actors.spawn(self.until_halted(task));
    }

    fn until_halted(
        &self,
        task: impl Future<Output = ()> + Send + 'static,
    ) -> impl Future<Output = ()> + Send + 'static {
        let halted = self.halted.clone();
        async move {
            tokio::select! {
                biased;
                () = halted.cancelled() => {}
                () = task => {}
            }
        }
    }
}
