//! A subscriber's view of the events: first what the store still has, then what is sent as it happens, and from the store
//! again whenever the subscriber is too slow for that. What is gone from the store meanwhile is told, never skipped.

use super::{Inner, PAGE};
use futures::{Stream, StreamExt, stream, stream::BoxStream};
use stacyvm_store::{EventRow, StoreError};
use stacyvm_types::Event;
use std::{
    collections::VecDeque,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};
use tokio::sync::broadcast;

/// What a subscriber hears.
#[derive(Debug, Clone, PartialEq)]
pub enum Heard {
    /// Something happened; with its number.
    Event(u64, Event),
    /// Events that were asked for are not there.
    Missed(Missed),
    /// What follows is there and could not be read. Nothing comes after this: the subscriber comes back with the last number
    /// that it saw.
    Cut,
}

/// Events that are not kept any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Missed {
    /// Number of the last event before them.
    pub after: u64,
    /// Number of the first event behind them; `None` if `after` was never given out, and so nothing is known.
    pub next: Option<u64>,
}

/// A subscriber's stream of events; see [`super::EventBus::subscribe`].
pub struct Subscription {
    heard: BoxStream<'static, Heard>,
    start: Option<u64>,
}

impl Subscription {
    pub(super) fn new(inner: Arc<Inner>, after: Option<u64>, follow: bool) -> Self {
        // Subscribed first, then looked at the newest, which the writer publishes before it sends: an event is either sent
        // to this receiver or known to be in the store.
        let live = inner.live.subscribe();
        let newest = *inner.published.borrow();
        let seen = after.filter(|after| *after <= newest).unwrap_or(newest);
        let unknown = after.filter(|after| *after > newest);
        let told = unknown.map(|after| Heard::Missed(Missed { after, next: None }));
        let until = if follow { None } else { Some(newest) };
        let reader = Reader { inner, live, seen, page: VecDeque::new(), replay: seen < newest, until };
        let start = if after.is_some() && unknown.is_none() { None } else { Some(newest) };
        Self { heard: stream::iter(told).chain(stream::unfold(Some(reader), Reader::next)).boxed(), start }
    }

    /// Number of the newest event before this subscription, unless the subscriber named one that it starts from.
    pub fn start(&self) -> Option<u64> {
        self.start
    }
}

impl Stream for Subscription {
    type Item = Heard;
    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Heard>> {
        self.heard.poll_next_unpin(context)
    }
}

impl std::fmt::Debug for Subscription {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Subscription")
    }
}

struct Reader {
    inner: Arc<Inner>,
    live: broadcast::Receiver<Arc<EventRow>>,
    /// Number of the last event handed out, or known to be missing.
    seen: u64,
    page: VecDeque<EventRow>,
    /// There may be more in the store than was sent to `live`.
    replay: bool,
    /// Number of the last event that is wanted.
    until: Option<u64>,
}

impl Reader {
    async fn next(reader: Option<Self>) -> Option<(Heard, Option<Self>)> {
        let mut reader = reader?;
        let heard = reader.hear().await?;
        let goes_on = heard != Heard::Cut;
        Some((heard, goes_on.then_some(reader)))
    }

    async fn hear(&mut self) -> Option<Heard> {
        loop {
            if self.until.is_some_and(|until| self.seen >= until) {
                return None;
            }
            if let Some(row) = self.page.pop_front() {
                self.seen = row.seq;
                return Some(Heard::Event(row.seq, wire(&row)));
            }
            if self.replay {
                match self.turn_page().await {
                    Ok(Some(missed)) => return Some(Heard::Missed(missed)),
                    Ok(None) => {}
                    Err(error) => {
                        // Going on would be a gap, and an end would look like that of what was asked for.
                        tracing::warn!(%error, "events could not be replayed");
                        return Some(Heard::Cut);
                    }
                }
                continue;
            }
            if self.until.is_some() {
                return None;
            }
            let received = tokio::select! {
                received = self.live.recv() => received,
                () = self.inner.closed.cancelled() => return None,
            };
            match received {
                Ok(row) if row.seq <= self.seen => {}
                Ok(row) => {
                    self.seen = row.seq;
                    return Some(Heard::Event(row.seq, wire(&row)));
                }
                Err(broadcast::error::RecvError::Lagged(_)) => self.replay = true,
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }

    /// Reads on from the store. What was pruned before it could be read is returned.
    async fn turn_page(&mut self) -> Result<Option<Missed>, StoreError> {
        let rows = self.inner.store.events_after(self.seen, PAGE).await?;
        self.replay = !rows.is_empty();
        self.page = rows.into();
        let Some(first) = self.page.front().map(|row| row.seq).filter(|first| *first > self.seen + 1) else {
            return Ok(None);
        };
        if self.seen == 0 {
            // Whoever asks from the beginning asks for all that is kept.
            return Ok(None);
        }
        // A hole in front of the page is either what was pruned, or kinds that this version does not know.
        let next = self.inner.store.first_event().await?.min(first);
        if next <= self.seen + 1 {
            return Ok(None);
        }
        let missed = Missed { after: self.seen, next: Some(next) };
        self.seen = next - 1;
        Ok(Some(missed))
    }
}

fn wire(row: &EventRow) -> Event {
    Event {
        id: super::event_id(row.seq),
        kind: row.kind,
        sandbox_id: row.sandbox_id.clone(),
        timestamp: row.at,
        data: serde_json::from_str(&row.data).unwrap_or_default(),
    }
}
