//! The engine's public face. It validates, admits, and hands requests to the tasks that own the sandboxes.

use crate::{
    CreateRequest, EngineConfig, Error, EventBus, ListFilter, Operation, ProviderStatus, Result,
    SandboxRecord,
    admission::{Admitted, Plan, check_max_ttl, check_ttl, expiry, now},
    core::Core,
    create::Birth,
    guard::guarded,
    operations::Operations,
    pause::Reply,
    providers::{Providers, Slot},
    reach::{Target, find},
    recovery,
    sandbox::{Actor, Handle, Message, Phase, destroyed, not_configured},
    ttl,
};
use futures::{StreamExt, stream};
use jiff::Timestamp;
use stacyvm_provider::{CONSOLE_LINES, Guest, Limit, NoticeKind, Provider, RuntimeStats, SandboxId};
use stacyvm_store::{SandboxRow, Store};
use stacyvm_types::{Admission, EventType, LimitsHit, OperationCounts, SandboxState};
use std::{
    cmp::Reverse,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::oneshot;
use tokio_util::sync::{CancellationToken, DropGuard};

/// Expired sandboxes that `prune` destroys at once.
const PRUNE_AT_ONCE: usize = 32;
/// Time between two prunings of destroyed rows.
const RETENTION_EVERY: Duration = Duration::from_secs(600);
/// How long a graceful stop waits for the last events to be stored.
const FLUSH: Duration = Duration::from_secs(2);

/// The engine. Clones share it; when the last one is dropped without [`Engine::shutdown`], everything ends where it is, as
/// if the process were killed.
#[derive(Clone)]
pub struct Engine {
    pub(crate) core: Arc<Core>,
    _alive: Arc<DropGuard>,
}

impl Engine {
    /// Starts an engine on what the store knows. Returns when every stored sandbox has its task; that a runtime is down
    /// shows later, on its own sandboxes and in [`Engine::provider_status`].
    ///
    /// # Errors
    /// `InternalError` or `Unavailable` if the store cannot be read; `Conflict` if two providers have the same name.
    pub async fn start(
        config: EngineConfig,
        store: Store,
        providers: Vec<Arc<dyn Provider>>,
    ) -> Result<Self> {
        let Some(providers) = Providers::new(providers) else {
            return Err(Error::conflict("two providers have the same name"));
        };
        let rows = store.live_sandboxes().await?;
        let mut stored = Vec::with_capacity(rows.len());
        for row in rows {
            let record = SandboxRecord::from_row(&row, &config.preview_domain)?;
            stored.push((record, row.idempotency_key.zip(row.fingerprint)));
        }
        let events = EventBus::open(store.clone(), config.keep_events).await?;
        let core = Arc::new(Core::new(config, store, providers, events));
        let alive = Arc::new(core.halted.clone().drop_guard());
        tracing::info!(generation = core.config.generation, sandboxes = stored.len(), "engine starts");
        core.spawn(core.events.clone().write());
        for (record, key) in stored {
            recovery::resume(&core, record, key);
        }
        for slot in core.providers.all() {
            core.spawn(slot.clone().watch_health(core.config.clone()));
            core.spawn(recovery::inventory(core.clone(), slot.clone()));
            core.spawn(notices(core.clone(), slot.clone()));
        }
        core.spawn(retention(core.clone()));
        Ok(Self { core, _alive: alive })
    }

    /// Creates a sandbox and returns when it runs, image pull included. A caller that goes away does not stop it.
    ///
    /// # Errors
    /// `BadRequest`, `NotFound` (provider, image), `ResourceLimit`, `Conflict` (an idempotency key that was used for
    /// another request), or what the runtime said; then nothing is left of it, or its removal goes on.
    pub async fn create(&self, request: CreateRequest) -> Result<SandboxRecord> {
        let started = Instant::now();
        let plan = self.plan(&request)?;
        let provider = plan.provider.clone();
        let result = self.create_planned(plan).await;
        self.observe(Operation::Spawn, &provider, &result, started);
        result
    }

    fn plan(&self, request: &CreateRequest) -> Result<Plan> {
        let mut plan = Plan::new(request, &self.core.config)?;
        if request.provider.as_deref().is_none_or(|name| name.trim().is_empty())
            && let Some(name) = self.core.providers.for_image(&plan.provider, &plan.spec.image)
        {
            plan.provider = name;
        }
        let Some(slot) = self.core.providers.get(&plan.provider) else {
            let shown: String = plan.provider.chars().take(64).collect();
            return Err(Error::not_found(format!("provider not found: {shown}")));
        };
        // The default is written down, so that it stays what it was when the sandbox was made.
        plan.spec.network = slot.provider.network(plan.spec.network.as_deref())?;
        Ok(plan)
    }

    async fn create_planned(&self, plan: Plan) -> Result<SandboxRecord> {
        let id: SandboxId = format!("sb-{:016x}", rand::random::<u64>()).parse().map_err(|error| {
            Error::internal("no id could be made")
                .because(Box::<dyn std::error::Error + Send + Sync>::from(error))
        })?;
        let at = now();
        let record = SandboxRecord {
            id: id.clone(),
            state: SandboxState::Creating,
            reason: String::new(),
            provider: plan.provider.clone(),
            runtime_id: None,
            spec: plan.spec.clone(),
            owner: plan.owner.clone(),
            created_at: at,
            running_at: None,
            updated_at: at,
            // Until it runs; then it counts from that moment.
            expires_at: expiry(plan.ttl),
            preview_domain: self.core.config.preview_domain.clone(),
            limits_hit: LimitsHit::new(),
        };
        let birth = Birth { row: row(&record, &plan)?, ttl: plan.ttl };
        let (actor, handle) = Actor::new(self.core.clone(), record, false, true);
        let handle = match self.core.registry.admit(&plan, &id, handle.clone(), &self.core.config)? {
            Admitted::Known(first) => first,
            Admitted::New => {
                self.core.spawn_actor(actor.run(Phase::Create(Box::new(birth))));
                handle
            }
        };
        let mut view = handle.view.clone();
        let view = view.wait_for(|view| view.birth.is_some()).await.map_err(|_| stopping())?;
        match &view.birth {
            Some(Err(error)) => Err(error.clone()),
            _ => Ok(view.record.as_ref().clone()),
        }
    }

    /// One sandbox.
    ///
    /// # Errors
    /// `NotFound` for unknown and destroyed ones.
    pub async fn get(&self, id: &str) -> Result<SandboxRecord> {
        Ok(find(&self.core, id).await?.record().as_ref().clone())
    }

    /// Whose a sandbox is or was, as long as that is kept; `None` if it is not known, empty for nobody's.
    ///
    /// # Errors
    /// `Unavailable` when the store cannot be read.
    pub async fn owner_of(&self, id: &str) -> Result<Option<String>> {
        if let Some(handle) = self.core.registry.get(id) {
            return Ok(Some(handle.record().owner.clone()));
        }
        Ok(self.core.store.sandbox(id).await?.map(|row| row.owner))
    }

    /// Sandboxes that are not destroyed, newest first.
    ///
    /// # Errors
    /// None today; listing may have to ask a store that other machines write.
    pub async fn list(&self, filter: ListFilter) -> Result<Vec<SandboxRecord>> {
        let wanted = |record: &SandboxRecord| {
            filter.owner.as_ref().is_none_or(|owner| record.owner == *owner)
                && filter.state.is_none_or(|state| record.state == state)
                && filter.provider.as_ref().is_none_or(|provider| record.provider == *provider)
        };
        let mut records: Vec<_> =
            self.core.registry.all().iter().map(Handle::record).filter(|r| wanted(r)).collect();
        records.sort_by_key(|record| Reverse((record.created_at, record.id.clone())));
        records.truncate(filter.limit.unwrap_or(usize::MAX));
        Ok(records.iter().map(|record| record.as_ref().clone()).collect())
    }

    /// Whether such a sandbox would be let in now.
    ///
    /// # Errors
    /// `BadRequest`, `NotFound` (provider).
    pub async fn admission(&self, request: &CreateRequest) -> Result<Admission> {
        Ok(self.core.registry.verdict(&self.plan(request)?, &self.core.config))
    }

    /// Destroys a sandbox and returns when nothing is left of it; at once for one that is unknown or destroyed.
    ///
    /// # Errors
    /// `Unavailable` if that takes longer than `destroy_wait`; it goes on in the background, also after a restart.
    pub async fn destroy(&self, id: &str) -> Result<()> {
        let started = Instant::now();
        let Some(handle) = self.core.registry.get(id) else { return Ok(()) };
        let provider = handle.record().provider.clone();
        let result = self.destroy_known(&handle).await;
        self.observe(Operation::Destroy, &provider, &result, started);
        result
    }

    async fn destroy_known(&self, handle: &Handle) -> Result<()> {
        let mut view = handle.view.clone();
        let done = async {
            // An error means that its task ended: destroyed, as the view says then, or because the engine stops.
            let _ = handle.mailbox.send(Message::Destroy).await;
            view.wait_for(|view| view.record.state == SandboxState::Destroyed)
                .await
                .map(drop)
                .map_err(|_| stopping())
        };
        match tokio::time::timeout(self.core.config.destroy_wait, done).await {
            Ok(result) => result,
            Err(_) => {
                let record = handle.record();
                let reason =
                    if record.reason.is_empty() { "its runtime is not done yet" } else { &record.reason };
                Err(Error::unavailable(format!("sandbox {} is still being destroyed: {reason}", record.id)))
            }
        }
    }

    /// Lets a sandbox live `ttl` from now on, more or less than before.
    ///
    /// # Errors
    /// `BadRequest`, `ResourceLimit`, `NotFound`; `Conflict` while it is being created.
    pub async fn extend(&self, id: &str, ttl: Duration) -> Result<SandboxRecord> {
        check_ttl(ttl)?;
        check_max_ttl(ttl, self.core.config.limits.max_ttl)?;
        let handle = find(&self.core, id).await?;
        self.ask(&handle, |reply| Message::Extend(ttl, reply)).await
    }

    /// Asks the task of a sandbox for something that it answers.
    pub(crate) async fn ask(
        &self,
        handle: &Handle,
        message: impl FnOnce(Reply) -> Message,
    ) -> Result<SandboxRecord> {
        let (reply, answer) = oneshot::channel();
        // A task that is not there to answer has ended with its sandbox, or with the engine.
        let gone =
            || if self.core.stopping.is_cancelled() { stopping() } else { destroyed(&handle.record().id) };
        handle.mailbox.send(message(reply)).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }

    /// Destroys every sandbox whose time is over and says how many that were. Normally there are none: each one's own
    /// task is in time.
    ///
    /// # Errors
    /// None today.
    pub async fn prune(&self) -> Result<u64> {
        let expired = self.core.registry.all().into_iter().filter(|handle| {
            let record = handle.record();
            record.state != SandboxState::Creating && ttl::over(record.expires_at)
        });
        let expired: Vec<_> = expired.collect();
        let results: Vec<_> = stream::iter(expired)
            .map(|handle| async move { self.destroy_known(&handle).await })
            .buffer_unordered(PRUNE_AT_ONCE)
            .collect()
            .await;
        Ok(results.iter().filter(|result| result.is_ok()).count() as u64)
    }

    /// The guest of a running sandbox: files, signals, processes.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` or `Unavailable` if it does not take commands (now).
    pub async fn guest(&self, id: &str) -> Result<Arc<dyn Guest>> {
        let target = Target::find(&self.core, id).await?;
        target.guest().await.map_err(|error| target.explain(error))
    }

    /// Resource use of a running sandbox.
    ///
    /// # Errors
    /// `Unsupported`; else as [`Engine::guest`], except that a paused one is fine.
    pub async fn stats(&self, id: &str) -> Result<RuntimeStats> {
        let target = Target::find_or_paused(&self.core, id).await?;
        let deadline = self.core.config.provider_deadline;
        guarded(deadline, target.slot.provider.stats(&target.id)).await.map_err(|error| target.explain(error))
    }

    /// The last `lines` lines of the runtime's own console of a sandbox, oldest first, whatever its state: it is where
    /// the reason of a failure may stand. Empty if the runtime keeps none.
    ///
    /// # Errors
    /// `NotFound`; `Unavailable` if its runtime cannot be asked.
    pub async fn console(&self, id: &str, lines: u32) -> Result<Vec<String>> {
        let record = find(&self.core, id).await?.record();
        let slot = self.core.providers.get(&record.provider);
        let slot = slot.ok_or_else(|| not_configured(&record.provider))?;
        let lines = lines.min(CONSOLE_LINES);
        let console = slot.provider.console(&record.id, lines);
        let mut console = guarded(self.core.config.provider_deadline, console).await?;
        let extra = console.len().saturating_sub(lines as usize);
        console.drain(..extra);
        Ok(console)
    }

    /// Says that a file operation through [`Engine::guest`] failed because of a limit of the sandbox, for its record and an
    /// event. Sandboxes that are gone are ignored.
    pub fn limit_hit(&self, id: &str, limit: Limit) {
        if let Some(handle) = self.core.registry.get(id) {
            handle.hits.add(None, &[limit]);
        }
    }

    /// The event bus.
    pub fn events(&self) -> &EventBus {
        &self.core.events
    }

    /// Every provider with its health as last looked at, sorted by name. Waits at most 2 s, and only right after a start.
    pub async fn provider_status(&self) -> Vec<ProviderStatus> {
        self.core.providers.statuses(&self.core.config.defaults.provider).await
    }

    /// The configured providers, sorted by name.
    pub fn providers(&self) -> Vec<Arc<dyn Provider>> {
        self.core.providers.all().map(|slot| slot.provider.clone()).collect()
    }

    /// The settings it was started with.
    pub fn config(&self) -> &EngineConfig {
        &self.core.config
    }

    /// Counters per operation and provider since the start.
    pub fn operations(&self) -> Vec<OperationCounts> {
        self.core.operations.snapshot()
    }

    /// Counts an operation that the caller did itself through [`Engine::guest`]: how it ended (the error's message) and
    /// how long it took. Names of providers that are not configured are ignored.
    pub fn record(&self, operation: Operation, provider: &str, outcome: Result<(), &str>, took: Duration) {
        if self.core.providers.get(provider).is_some() {
            self.operation_counts().record(operation, provider, outcome, took);
        }
    }

    pub(crate) fn observe<T>(
        &self,
        operation: Operation,
        provider: &str,
        result: &Result<T>,
        started: Instant,
    ) {
        let outcome = result.as_ref().map(drop).map_err(Error::message);
        self.operation_counts().record(operation, provider, outcome, started.elapsed());
    }

    fn operation_counts(&self) -> &Operations {
        &self.core.operations
    }

    /// Stops gracefully: sandboxes and their processes go on, ephemeral ones are destroyed, creates and destroys under way
    /// get `shutdown_grace` to end and are otherwise finished after the next start. Closes the store.
    pub async fn shutdown(&self) {
        self.core.registry.close();
        self.core.stopping.cancel();
        self.core.actors.close();
        if tokio::time::timeout(self.core.config.shutdown_grace, self.core.actors.wait()).await.is_err() {
            tracing::warn!("stopping with creates or destroys under way; the next start finishes them");
        }
        if tokio::time::timeout(FLUSH, self.core.events.flush()).await.is_err() {
            tracing::warn!("the last events could not be stored");
        }
        self.core.events.close();
        self.core.halted.cancel();
        self.core.store.close().await;
    }

    /// Ends everything where it is, as if the process were killed, except that the store stays open: for tests of what the
    /// next start makes of it.
    pub fn halt(&self) {
        self.core.registry.close();
        self.core.halted.cancel();
    }

    /// Cancelled once [`Engine::shutdown`] begins: streams that never end by themselves should end then.
    pub fn stopping(&self) -> CancellationToken {
        self.core.stopping.clone()
    }
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("generation", &self.core.config.generation).finish_non_exhaustive()
    }
}

fn stopping() -> Error {
    Error::unavailable("the server is stopping")
}

fn row(record: &SandboxRecord, plan: &Plan) -> Result<SandboxRow> {
    let json =
        |error: serde_json::Error| Error::internal("a sandbox could not be written as JSON").because(error);
    let (key, fingerprint) = plan.key.clone().unzip();
    Ok(SandboxRow {
        id: record.id.to_string(),
        state: record.state,
        reason: String::new(),
        provider: record.provider.clone(),
        runtime_id: None,
        image: record.spec.image.clone(),
        spec: serde_json::to_string(&record.spec).map_err(json)?,
        owner: record.owner.clone(),
        metadata: serde_json::to_string(&record.spec.metadata).map_err(json)?,
        created_at: record.created_at,
        running_at: None,
        updated_at: record.updated_at,
        expires_at: record.expires_at,
        destroyed_at: None,
        idempotency_key: key,
        fingerprint,
        limits_hit: "{}".to_owned(),
    })
}

/// Makes events of what a runtime tells.
async fn notices(core: Arc<Core>, slot: Slot) {
    let mut notices = slot.provider.notices();
    while let Some(notice) = notices.next().await {
        let kind = match notice.kind {
            NoticeKind::ImagePull => EventType::ImagePull,
            NoticeKind::Reconcile => EventType::ReconcileAction,
        };
        let mut data: serde_json::Map<_, _> = notice.data.into_iter().collect();
        data.insert("provider".to_owned(), slot.provider.name().into());
        core.events.emit(kind, notice.sandbox.as_ref().map(SandboxId::as_str), data);
    }
}

/// Forgets sandboxes that were destroyed long ago.
async fn retention(core: Arc<Core>) {
    loop {
        let before = Timestamp::now().checked_sub(core.config.keep_destroyed).unwrap_or(Timestamp::MIN);
        match core.store.prune_destroyed(before, core.config.keep_destroyed_rows).await {
            Ok(0) => {}
            Ok(rows) => tracing::info!(rows, "rows of destroyed sandboxes pruned"),
            Err(error) => tracing::warn!(%error, "rows of destroyed sandboxes could not be pruned"),
        }
        tokio::time::sleep(RETENTION_EVERY).await;
    }
}
