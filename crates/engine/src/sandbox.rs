//! One task owns one sandbox and is the only writer of its state. Requests reach it through a bounded mailbox; it reads
//! the mailbox in every state, also while its runtime works or hangs, and answers by publishing what it did ([`View`]).
//!
//! ```text
//!            create                     guest away                TTL over      destroy asked
//!  (asked) ─────────► creating ─ok─► running ◄──────► unhealthy   (any state)   (any state)
//!                        │             ▲ │  found again   │            │             │
//!                        │       pause │ │ resume         │            ▼             │
//!                        │             ▼ │                │            │             │
//!                        │           paused               │         expired ──► destroying ──► destroyed
//!                        │             │ ended            │ ended                 ▲
//!                        ▼             ▼                  ▼                       │
//!                      error ◄───────────────────────────            (again until the runtime says gone)
//! ```
//!
//! | transition | stored | when it fails |
//! |---|---|---|
//! | asked → creating | before the runtime is asked | the caller gets the error, nothing exists |
//! | creating → running | before the caller is told | undone as below |
//! | creating → error | before the undo | the undo goes on regardless; a restart undoes `creating` rows too |
//! | error (never ran) → destroyed | when the runtime says gone | tried again for ever; the caller was told after the first attempt |
//! | running ⇄ unhealthy, paused | after the fact | memory goes ahead; a restart asks the runtime anyway |
//! | running, unhealthy → error | after the fact | as above; the runtime's leftovers are removed, the row stays to be read |
//! | any → expired, destroying | before the runtime is asked | goes on without (a full disk must not keep a sandbox alive) |
//! | destroying → destroyed | when the runtime says gone | tried again for ever |
//!
//! A row that says `destroyed` is never said to exist again, and nothing that a runtime holds is forgotten: the row stays
//! until the runtime says that it is gone, and what has no row is removed as an orphan (`recovery.rs`).

use crate::{
    Error, Result, SandboxRecord,
    admission::{check_max_ttl, check_ttl, expiry, now},
    core::Core,
    events::details,
    guard::guarded,
    hits::Hits,
    pause::{Reply, Turn},
    providers::Slot,
    ttl,
};
use serde_json::Value;
use stacyvm_provider::SandboxId;
use stacyvm_store::{SandboxChange, StoreError};
use stacyvm_types::{EventType, SandboxState};
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::{Semaphore, mpsc, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

/// Requests that may wait for one sandbox.
const MAILBOX: usize = 64;
/// Longest time that a caller is kept waiting for a sandbox that is being found again after a start: two looks at a guest
/// that does not answer.
const SETTLE: Duration = Duration::from_secs(20);
/// Longest time that a caller is kept waiting for one more look: one at a guest that does not answer.
const LOOK: Duration = Duration::from_secs(6);
/// Waits for a process's end, of the engine's own, that one guest is asked for at once.
const WAITS: usize = 16;

/// What a sandbox's task can be asked for.
#[derive(Debug)]
pub(crate) enum Message {
    /// Destroy it; the view says when it is done.
    Destroy,
    /// Live that long from now on.
    Extend(Duration, Reply),
    /// Pause or resume it.
    Turn(Turn, Reply),
    /// Somebody had trouble with its guest: look at it now.
    Check,
}

/// What a sandbox's task makes known.
#[derive(Debug, Clone)]
pub(crate) struct View {
    pub(crate) record: Arc<SandboxRecord>,
    /// Result of its creation, once there is one.
    pub(crate) birth: Option<Result<()>>,
    /// False after a start until the runtime was asked about it once.
    pub(crate) settled: bool,
    /// Looks at it so far (`live.rs`).
    pub(crate) looks: u64,
}

/// The way to a sandbox's task.
#[derive(Debug, Clone)]
pub(crate) struct Handle {
    pub(crate) mailbox: mpsc::Sender<Message>,
    pub(crate) view: watch::Receiver<View>,
    /// Cancelled when it will never take commands again.
    pub(crate) gone: CancellationToken,
    /// Bounds the questions to its guest that take long to be answered: they share a connection with those that must not.
    pub(crate) waits: Arc<Semaphore>,
    /// Limits that it hit, for its task to count.
    pub(crate) hits: Arc<Hits>,
}

impl Handle {
    pub(crate) fn record(&self) -> Arc<SandboxRecord> {
        self.view.borrow().record.clone()
    }

    /// Returns once its runtime was asked about it, which after a start takes a moment that callers need not see.
    ///
    /// # Errors
    /// `Unavailable` if that takes too long.
    pub(crate) async fn settled(&self, id: &str) -> Result<()> {
        let mut view = self.view.clone();
        let _ = tokio::time::timeout(SETTLE, view.wait_for(|view| view.settled)).await;
        if self.view.borrow().settled {
            return Ok(());
        }
        Err(Error::unavailable(format!("sandbox {id} is being recovered; try again")))
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.view.borrow().record.state == SandboxState::Paused
    }

    /// Returns once it is not paused (any more), whatever it is instead; false if that is not to be learnt, as the engine
    /// stops.
    pub(crate) async fn awake(&self) -> bool {
        let awake = |view: &View| view.record.state != SandboxState::Paused;
        self.view.clone().wait_for(awake).await.is_ok()
    }

    /// Sleeps for `left` without the time that it is paused.
    pub(crate) async fn sleep_awake(&self, mut left: Duration) {
        let mut view = self.view.clone();
        loop {
            if !self.awake().await {
                return std::future::pending().await;
            }
            let started = Instant::now();
            let paused = |view: &View| view.record.state == SandboxState::Paused;
            tokio::select! {
                () = tokio::time::sleep(left) => return,
                Ok(_) = view.wait_for(paused) => left = left.saturating_sub(started.elapsed()),
            }
        }
    }

    /// Has it looked at once more if it is out of reach: what its state says is as old as the last look. Returns when that
    /// is done, or does not get done soon.
    pub(crate) async fn looked_again(&self) {
        let mut view = self.view.clone();
        let seen = {
            let view = view.borrow_and_update();
            if view.record.state != SandboxState::Unhealthy {
                return;
            }
            view.looks
        };
        self.check();
        let news = |view: &View| view.looks != seen || view.record.state != SandboxState::Unhealthy;
        let _ = tokio::time::timeout(LOOK, view.wait_for(news)).await;
    }

    /// Hints that its guest is in trouble. A full mailbox means that it has enough to do.
    pub(crate) fn check(&self) {
        let _ = self.mailbox.try_send(Message::Check);
    }
}

/// What a sandbox's task does next.
pub(crate) enum Phase {
    /// Store it and make it.
    Create(Box<crate::create::Birth>),
    /// See that it lives. True: after a start, the runtime was not asked yet.
    Live(bool),
    /// It failed for good: free what the runtime holds.
    Failed,
    /// Its time is over.
    Expired,
    /// Remove it.
    Destroy,
    /// Nothing more: the engine stops, or it is destroyed.
    Done,
}

/// The task's own state.
pub(crate) struct Actor {
    pub(crate) core: Arc<Core>,
    pub(crate) id: SandboxId,
    /// `None`: its provider is not configured (any more).
    pub(crate) slot: Option<Slot>,
    pub(crate) record: SandboxRecord,
    pub(crate) mailbox: mpsc::Receiver<Message>,
    pub(crate) hits: Arc<Hits>,
    view: watch::Sender<View>,
    gone: CancellationToken,
}

impl Actor {
    /// A task for `record`, to be run by [`Actor::run`], and the way to it.
    pub(crate) fn new(core: Arc<Core>, record: SandboxRecord, born: bool, settled: bool) -> (Self, Handle) {
        let (sender, mailbox) = mpsc::channel(MAILBOX);
        let view =
            View { record: Arc::new(record.clone()), birth: born.then_some(Ok(())), settled, looks: 0 };
        let (publisher, view) = watch::channel(view);
        let gone = CancellationToken::new();
        let (waits, hits) = (Arc::new(Semaphore::new(WAITS)), Arc::<Hits>::default());
        let handle = Handle { mailbox: sender, view, gone: gone.clone(), waits, hits: hits.clone() };
        let slot = core.providers.get(&record.provider).cloned();
        (Self { core, id: record.id.clone(), slot, record, mailbox, hits, view: publisher, gone }, handle)
    }

    /// Lives the sandbox's life from `phase` on.
    pub(crate) async fn run(mut self, mut phase: Phase) {
        loop {
            phase = match phase {
                Phase::Create(birth) => Box::pin(self.create(*birth)).await,
                Phase::Live(recovering) => {
                    let next = Box::pin(self.live(recovering)).await;
                    self.count_hits().await;
                    next
                }
                Phase::Failed => Box::pin(self.failed()).await,
                Phase::Expired => self.expired().await,
                Phase::Destroy => Box::pin(self.destroy()).await,
                Phase::Done => return,
            };
        }
    }

    /// What a message means where nothing special is going on; the phase to go to, if it ends this one.
    pub(crate) async fn take(&mut self, message: Option<Message>) -> Option<Phase> {
        match message {
            Some(Message::Destroy) => Some(Phase::Destroy),
            Some(Message::Extend(ttl, reply)) => {
                let result = self.extend(ttl).await;
                // The asker may have gone away.
                let _ = reply.send(result);
                None
            }
            Some(Message::Turn(_, reply)) => {
                let _ = reply.send(Err(self.not_now()));
                None
            }
            Some(Message::Check) => None,
            None => Some(Phase::Done),
        }
    }

    async fn extend(&mut self, ttl: Duration) -> Result<SandboxRecord> {
        check_ttl(ttl)?;
        check_max_ttl(ttl, self.core.config.limits.max_ttl)?;
        match self.record.state {
            SandboxState::Creating => {
                return Err(Error::conflict(format!("sandbox {} is still being created", self.id)));
            }
            SandboxState::Expired | SandboxState::Destroying | SandboxState::Destroyed => {
                return Err(destroyed(&self.id));
            }
            SandboxState::Running | SandboxState::Paused | SandboxState::Unhealthy | SandboxState::Error => {}
        }
        // The timer may be due and not have been served yet: what is over stays over.
        if ttl::over(self.record.expires_at) {
            return Err(destroyed(&self.id));
        }
        let expires_at = expiry(ttl);
        self.store(&SandboxChange { expires_at: Some(expires_at), ..SandboxChange::default() }).await?;
        self.record.expires_at = expires_at;
        self.publish();
        self.emit(EventType::SandboxExtended, [("expires_at", expires_at.to_string().into())]);
        Ok(self.record.clone())
    }

    async fn expired(&mut self) -> Phase {
        self.enter(SandboxState::Expired, "").await;
        self.emit(EventType::SandboxExpired, []);
        Phase::Destroy
    }

    /// Writes to the row.
    pub(crate) async fn store(&mut self, change: &SandboxChange) -> Result<(), StoreError> {
        self.record.updated_at = now();
        self.core.store.change_sandbox(self.id.as_str(), self.record.updated_at, change).await.map(drop)
    }

    /// Changes the state, in the store if that works.
    pub(crate) async fn enter(&mut self, state: SandboxState, reason: &str) {
        if self.record.state == state && self.record.reason == reason {
            return;
        }
        tracing::info!(sandbox = %self.id, from = %self.record.state, to = %state, reason, "state");
        let leaving = matches!(state, SandboxState::Expired | SandboxState::Destroying | SandboxState::Error);
        let ends = leaving && (state != SandboxState::Error || self.record.running_at.is_none());
        if ends {
            // Whoever asks for it from now on must get another one, not one that is on its way out.
            self.core.registry.release_key(self.id.as_str());
        }
        let change = SandboxChange {
            state: Some(state),
            reason: Some(reason.to_owned()),
            release_key: ends,
            ..SandboxChange::default()
        };
        if let Err(error) = self.store(&change).await {
            tracing::error!(sandbox = %self.id, to = %state, %error, "a state could not be stored");
        }
        self.record.state = state;
        self.record.reason = reason.to_owned();
        if leaving {
            self.gone.cancel();
        }
        self.publish();
    }

    /// Makes the record known as it is now.
    pub(crate) fn publish(&self) {
        self.view.send_modify(|view| view.record = Arc::new(self.record.clone()));
    }

    /// Tells whoever asked for it how its creation ended.
    pub(crate) fn born(&self, result: Result<()>) {
        self.view.send_modify(|view| {
            view.record = Arc::new(self.record.clone());
            view.birth.get_or_insert(result);
        });
    }

    /// Says that the runtime was asked about it.
    pub(crate) fn settled(&self) {
        self.view.send_if_modified(|view| !std::mem::replace(&mut view.settled, true));
    }

    /// Says that it was looked at.
    pub(crate) fn looked(&self) {
        self.view.send_modify(|view| view.looks += 1);
    }

    pub(crate) fn emit<const N: usize>(&self, kind: EventType, data: [(&str, Value); N]) {
        self.core.events.emit(kind, Some(self.id.as_str()), details(data));
    }

    /// Says that a runtime failed at something.
    pub(crate) fn emit_provider_failed(&self, operation: &str, error: &stacyvm_provider::Error) {
        tracing::warn!(sandbox = %self.id, provider = self.record.provider, operation, error = error.chain(), "runtime failed");
        let pairs = [
            ("operation", operation.into()),
            ("provider", self.record.provider.as_str().into()),
            ("error", error.message().into()),
        ];
        self.emit(EventType::ProviderFailed, pairs);
    }

    /// One attempt of the runtime to remove it. Owns all it needs, so that the mailbox can be read meanwhile.
    pub(crate) fn removal(&self) -> impl Future<Output = stacyvm_provider::Result<()>> + Send + use<> {
        let (slot, id, name) = (self.slot.clone(), self.id.clone(), self.record.provider.clone());
        let deadline = self.core.config.destroy_attempt;
        async move {
            let Some(slot) = slot else { return Err(not_configured(&name)) };
            guarded(deadline, slot.provider.destroy(&id)).await
        }
    }
}

/// What there is to say about a sandbox that is, or is about to be, destroyed.
pub(crate) fn destroyed(id: &SandboxId) -> Error {
    Error::not_found(format!("sandbox destroyed: {id}"))
}

pub(crate) fn not_configured(provider: &str) -> stacyvm_provider::Error {
    stacyvm_provider::Error::unavailable(format!("provider {provider:?} is not configured on this server"))
}
