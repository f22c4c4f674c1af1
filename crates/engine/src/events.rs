//! The event bus: one writer numbers events, stores them, then tells subscribers.
//!
//! Order of things: `emit` puts an event into a bounded queue and returns; the writer takes what has gathered there, numbers
//! it, stores it as one batch and only then sends it. So what a subscriber has seen is in the store, ids never change or
//! repeat, and a subscriber that comes back with the last id it saw misses nothing that is still kept. When the store does
//! not take events (disk full), the writer keeps trying and the queue fills; then new events are dropped and counted.
//! Events that are queued when the process is killed are lost: they report, the sandbox rows decide.

mod subscription;

pub use subscription::{Heard, Missed, Subscription};

use jiff::Timestamp;
use serde_json::{Map, Value};
use stacyvm_store::{EventRow, Store, StoreError};
use stacyvm_types::EventType;
use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::sync::{Notify, broadcast, watch};
use tokio_util::sync::CancellationToken;

/// Events that may wait for the store.
const QUEUE: usize = 16_384;
/// Events stored at once.
const BATCH: usize = 512;
/// How long the first event of a batch waits for others: a transaction for each takes processor time from the very commands
/// that cause them, and nobody watches events at this pace.
const GATHER: Duration = Duration::from_millis(20);
/// Events that a subscriber may be behind before it has to read from the store.
const LIVE: usize = 1024;
/// Events read from the store at once.
const PAGE: u32 = 256;
/// Events stored between two prunings.
const PRUNE_EVERY: u64 = 1000;
/// Largest details of an event, in bytes of JSON.
const DATA_BYTES: usize = 8192;
/// Pauses between attempts to store a batch.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

/// Where events are put and where they come from. Clones share it.
#[derive(Debug, Clone)]
pub struct EventBus {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    store: Store,
    queue: Mutex<VecDeque<Pending>>,
    wake: Notify,
    live: broadcast::Sender<Arc<EventRow>>,
    /// Number of the newest event that is stored and being sent.
    published: watch::Sender<u64>,
    accepted: AtomicU64,
    dropped: AtomicU64,
    /// Events of this process that left the queue for good.
    written: watch::Sender<u64>,
    closed: CancellationToken,
    keep: u64,
}

#[derive(Debug)]
struct Pending {
    kind: EventType,
    sandbox_id: Option<String>,
    at: Timestamp,
    data: String,
}

impl EventBus {
    /// A bus that goes on numbering where the store ends. Its writer is [`EventBus::write`].
    pub(crate) async fn open(store: Store, keep: u64) -> Result<Self, StoreError> {
        let newest = store.last_event().await?;
        let inner = Inner {
            store,
            queue: Mutex::default(),
            wake: Notify::new(),
            live: broadcast::Sender::new(LIVE),
            published: watch::Sender::new(newest),
            accepted: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            written: watch::Sender::new(0),
            closed: CancellationToken::new(),
            keep,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Reports that something happened, to a sandbox or not. Returns at once; never fails.
    pub fn emit(&self, kind: EventType, sandbox_id: Option<&str>, data: Map<String, Value>) {
        let data = match Value::Object(data).to_string() {
            text if text.len() <= DATA_BYTES => text,
            _ => r#"{"data_omitted":"too large"}"#.into(),
        };
        let pending = Pending { kind, sandbox_id: sandbox_id.map(str::to_owned), at: Timestamp::now(), data };
        {
            let mut queue = self.inner.queue.lock().unwrap_or_else(PoisonError::into_inner);
            if queue.len() >= QUEUE {
                drop(queue);
                if self.inner.dropped.fetch_add(1, Ordering::Relaxed).is_power_of_two() {
                    tracing::warn!(kind = kind.as_str(), "the store does not keep up: events are dropped");
                }
                return;
            }
            queue.push_back(pending);
            self.inner.accepted.fetch_add(1, Ordering::Relaxed);
        }
        self.inner.wake.notify_one();
    }

    /// Events with a number greater than `after` as far as they are kept, then each new one; without `after` (or with
    /// one that was never given out, which is said), only new ones. In order and without duplicate; a subscriber that is
    /// slow reads from the store what it missed, and what is not kept any more is said to be missing. Ends when the engine
    /// stops.
    pub fn subscribe(&self, after: Option<u64>) -> Subscription {
        Subscription::new(self.inner.clone(), after, true)
    }

    /// The same without new ones: ends at the newest event that is stored now.
    pub fn history(&self, after: u64) -> Subscription {
        Subscription::new(self.inner.clone(), Some(after), false)
    }

    /// How many subscribe now.
    pub fn subscribers(&self) -> usize {
        self.inner.live.receiver_count()
    }

    /// Number of the newest event: how many there were since the installation was made.
    pub fn total(&self) -> u64 {
        *self.inner.published.borrow()
    }

    /// Events of this process that were dropped because the store did not keep up.
    pub fn dropped(&self) -> u64 {
        self.inner.dropped.load(Ordering::Relaxed)
    }

    /// Waits until all events emitted before the call are stored.
    pub async fn flush(&self) {
        let target = self.inner.accepted.load(Ordering::Relaxed);
        let mut written = self.inner.written.subscribe();
        // An error means that the bus is gone, and then nothing can be waited for.
        let _ = written.wait_for(|written| *written >= target).await;
    }

    /// Ends every subscription.
    pub(crate) fn close(&self) {
        self.inner.closed.cancel();
    }

    /// The one writer; runs as long as the engine.
    pub(crate) async fn write(self) {
        let inner = self.inner;
        let mut since_pruning = PRUNE_EVERY;
        loop {
            let pending: Vec<_> = {
                let mut queue = inner.queue.lock().unwrap_or_else(PoisonError::into_inner);
                let count = queue.len().min(BATCH);
                queue.drain(..count).collect()
            };
            if pending.is_empty() {
                inner.wake.notified().await;
                tokio::time::sleep(GATHER).await;
                continue;
            }
            let rows = inner.store_batch(pending).await;
            since_pruning += rows.len() as u64;
            let count = rows.len() as u64;
            for row in rows {
                let seq = row.seq;
                inner.published.send_replace(seq);
                // No subscriber is no error.
                let _ = inner.live.send(Arc::new(row));
            }
            inner.written.send_modify(|written| *written += count);
            if since_pruning >= PRUNE_EVERY {
                since_pruning = 0;
                if let Err(error) = inner.store.prune_events(inner.keep).await {
                    tracing::warn!(%error, "old events could not be pruned");
                }
            }
        }
    }
}

impl Inner {
    /// Numbers and stores a batch, however often that takes.
    async fn store_batch(&self, pending: Vec<Pending>) -> Vec<EventRow> {
        let mut newest = *self.published.borrow();
        let mut rows: Vec<_> = pending
            .into_iter()
            .map(|p| EventRow { seq: 0, kind: p.kind, sandbox_id: p.sandbox_id, at: p.at, data: p.data })
            .collect();
        let mut pause = RETRY.0;
        loop {
            for (row, seq) in rows.iter_mut().zip(newest + 1..) {
                row.seq = seq;
            }
            let error = match self.store.append_events(&rows).await {
                Ok(()) => return rows,
                // An earlier attempt reported an error and was stored all the same.
                Err(StoreError::Duplicate) => match self.store.last_event().await {
                    Ok(stored) if stored == newest + rows.len() as u64 => return rows,
                    Ok(stored) => {
                        newest = newest.max(stored);
                        StoreError::Duplicate
                    }
                    Err(error) => error,
                },
                Err(error) => error,
            };
            tracing::warn!(%error, events = rows.len(), "events could not be stored, trying again");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RETRY.1);
        }
    }
}

/// The id of the event with this number.
pub fn event_id(number: u64) -> String {
    format!("evt-{number}")
}

/// The number in an event id (`evt-7`), or `None` for what is no event id.
pub fn event_number(id: &str) -> Option<u64> {
    id.strip_prefix("evt-")?.parse().ok()
}

/// Details of an event from pairs; empty texts are left out.
pub(crate) fn details<'a>(pairs: impl IntoIterator<Item = (&'a str, Value)>) -> Map<String, Value> {
    let filled = pairs.into_iter().filter(|(_, value)| !value.is_null() && value.as_str() != Some(""));
    filled.map(|(key, value)| (key.to_owned(), value)).collect()
}
