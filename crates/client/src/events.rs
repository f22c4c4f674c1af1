//! The event stream: over one connection, or over as many as it takes.

use crate::{
    client::{Client, PROMPT, SILENCE},
    error::{Error, Result},
    lines::Lines,
};
use bytes::{Bytes, BytesMut};
use reqwest::Method;
use stacyvm_types::{Event, MissedEvents, WireDuration};
use std::time::{Duration, SystemTime};
use tokio::time::Instant;

/// Longest event.
const LONGEST: usize = 1 << 20;
/// Losses shorter than this are nobody's business, and connections shorter than this are no success.
const MOMENT: Duration = Duration::from_secs(1);

/// Which events. What is empty is not looked at.
#[derive(Debug, Clone, Default)]
pub struct EventQuery {
    /// First those that followed the event of this id, as far as they are kept; `evt-0`: all.
    pub after: Option<String>,
    /// Only from this time on, or from so long ago (`10m`).
    pub since: Option<String>,
    /// Only of these types or groups of types.
    pub types: Vec<String>,
    /// Only of these sandboxes.
    pub sandboxes: Vec<String>,
    /// Only of sandboxes of this owner.
    pub owner: Option<String>,
    /// End with what happened until now.
    pub past: bool,
}

/// What is heard on the event stream.
#[derive(Debug, Clone, PartialEq)]
pub enum Heard {
    /// Something happened.
    Event(Event),
    /// Events that were asked for are not kept any more.
    Missed(MissedEvents),
    /// The connection was lost a moment ago and is being made again. No event is missing.
    Reconnecting {
        /// Why it was lost.
        reason: String,
    },
}

/// Events of one connection, as they come.
#[derive(Debug)]
pub struct EventStream {
    lines: Lines,
    opened: Instant,
    last: Option<String>,
    /// The block that is being read, so that a dropped future loses none of it.
    block: Block,
}

#[derive(Debug, Default)]
struct Block {
    data: BytesMut,
    name: Option<Bytes>,
    /// Counts from the end of the block on: what is cut comes again.
    id: Option<String>,
}

impl EventStream {
    /// The next event; `None` when the connection ended. Dropping the future loses nothing.
    ///
    /// # Errors
    /// [`Error::Broken`], [`Error::Protocol`].
    pub async fn next(&mut self) -> Result<Option<Event>> {
        while let Some(heard) = self.hear().await? {
            if let Heard::Event(event) = heard {
                return Ok(Some(event));
            }
        }
        Ok(None)
    }

    /// The same with what is said beside events.
    ///
    /// # Errors
    /// [`Error::Broken`], [`Error::Protocol`].
    pub async fn hear(&mut self) -> Result<Option<Heard>> {
        while let Some(line) = self.lines.next().await? {
            if line.is_empty() {
                let mut block = std::mem::take(&mut self.block);
                self.last = block.id.take().or(self.last.take());
                if let Some(heard) = block.end()? {
                    return Ok(Some(heard));
                }
                continue;
            }
            let (field, value) = match line.iter().position(|byte| *byte == b':') {
                Some(at) => (&line[..at], line.slice(at + 1..)),
                None => (&line[..], Bytes::new()),
            };
            let value = if value.first() == Some(&b' ') { value.slice(1..) } else { value };
            match field {
                b"data" => self.block.push(&value)?,
                b"event" => self.block.name = Some(value),
                b"id" => self.block.id = Some(String::from_utf8_lossy(&value).into_owned()),
                _ => {}
            }
        }
        Ok(None)
    }

    /// Id of the last event, also of one that a filter left out: where another connection goes on.
    pub fn last(&self) -> Option<&str> {
        self.last.as_deref()
    }
}

impl Block {
    fn push(&mut self, value: &[u8]) -> Result<()> {
        if !self.data.is_empty() {
            self.data.extend_from_slice(b"\n");
        }
        self.data.extend_from_slice(value);
        if self.data.len() > LONGEST {
            return Err(Error::Protocol("an event without end".to_owned()));
        }
        Ok(())
    }

    /// What it says, if anything: names that this version does not know are passed over.
    fn end(self) -> Result<Option<Heard>> {
        let wrong = |e: serde_json::Error| Error::Protocol(format!("{e} in an event"));
        Ok(match self.name.as_deref() {
            _ if self.data.is_empty() => None,
            None | Some(b"message") => Some(Heard::Event(serde_json::from_slice(&self.data).map_err(wrong)?)),
            Some(b"missed") => Some(Heard::Missed(serde_json::from_slice(&self.data).map_err(wrong)?)),
            Some(_) => None,
        })
    }
}

/// Events over lost connections and restarts of the server; see [`Client::watch_events`].
#[derive(Debug)]
pub struct EventWatch {
    client: Client,
    query: EventQuery,
    patience: Duration,
    stream: Option<EventStream>,
    /// When the connection was lost that is not replaced yet.
    lost: Option<Instant>,
    /// That it was lost has been told.
    told: bool,
    /// There was a connection: a server that cannot be reached was there before.
    reached: bool,
    /// When a connection was first asked for.
    began: Option<SystemTime>,
}

impl EventWatch {
    /// What is heard next; `None` at the end of a query for the past. Dropping the future loses nothing.
    ///
    /// # Errors
    /// As the server says; [`Error::Broken`] or [`Error::Connect`] when patience is over.
    pub async fn next(&mut self) -> Result<Option<Heard>> {
        loop {
            let error = match self.step().await {
                Ok(Some(heard)) => return Ok(Some(heard)),
                Ok(None) if self.query.past => return Ok(None),
                Ok(None) => Error::Broken("the server ended the stream".to_owned()),
                Err(error) => error,
            };
            if let Some(stream) = self.stream.take() {
                if stream.opened.elapsed() >= MOMENT {
                    // It was good, even if nothing happened meanwhile.
                    self.lost = None;
                    self.told = false;
                }
                self.query.after = stream.last.or(self.query.after.take());
            }
            let lost = *self.lost.get_or_insert_with(Instant::now);
            if !error.is_transient() || !self.reached || lost.elapsed() >= self.patience {
                return Err(error);
            }
            if lost.elapsed() >= MOMENT && !self.told {
                self.told = true;
                return Ok(Some(Heard::Reconnecting { reason: error.to_string() }));
            }
            let pause = lost.elapsed() / 4;
            tokio::time::sleep(pause.clamp(Duration::from_millis(50), Duration::from_secs(2))).await;
        }
    }

    async fn step(&mut self) -> Result<Option<Heard>> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            None => {
                let began = *self.began.get_or_insert_with(SystemTime::now);
                let mut query = self.query.clone();
                query.since = query.since.map(|since| later(since, began.elapsed().unwrap_or_default()));
                let stream = self.client.events(&query).await?;
                self.reached = true;
                self.stream.insert(stream)
            }
        };
        let heard = stream.hear().await?;
        if heard.is_some() {
            self.lost = None;
            self.told = false;
        }
        Ok(heard)
    }
}

/// The same moment, said `elapsed` later: the server reads a duration as one before its own now.
fn later(since: String, elapsed: Duration) -> String {
    match since.trim().parse::<WireDuration>().ok().and_then(WireDuration::to_std) {
        // A little more, for the way to the server.
        Some(ago) if elapsed >= MOMENT => WireDuration::from(ago + elapsed + MOMENT).to_string(),
        _ => since,
    }
}

impl Client {
    /// Events over one connection.
    ///
    /// # Errors
    /// As the server says.
    pub async fn events(&self, query: &EventQuery) -> Result<EventStream> {
        let mut request = self.request(Method::GET, &["events"]);
        if let Some(after) = &query.after {
            request = request.header("last-event-id", after);
        }
        let lists = [("type", query.types.join(",")), ("sandbox_id", query.sandboxes.join(","))];
        let words = [("since", query.since.clone()), ("owner", query.owner.clone())];
        let words = words.map(|(name, value)| (name, value.unwrap_or_default()));
        let mut parameters: Vec<_> =
            lists.into_iter().chain(words).filter(|(_, value)| !value.is_empty()).collect();
        if query.past {
            parameters.push(("follow", "false".to_owned()));
        }
        let response = tokio::time::timeout(PROMPT, self.send(request.query(&parameters))).await;
        let response = response.map_err(|_| Error::Broken("no answer in time".to_owned()))??;
        let last = query.after.clone();
        let lines = Lines::new(response, SILENCE);
        Ok(EventStream { lines, opened: Instant::now(), last, block: Block::default() })
    }

    /// Events over as many connections as it takes: one that is lost is made again for up to `patience`.
    pub fn watch_events(&self, query: EventQuery, patience: Duration) -> EventWatch {
        EventWatch {
            client: self.clone(),
            query,
            patience,
            stream: None,
            lost: None,
            told: false,
            reached: false,
            began: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn since_stays_where_it_was() {
        let later = |since: &str, elapsed| later(since.to_owned(), Duration::from_secs(elapsed));
        assert_eq!(later("10m", 0), "10m");
        assert_eq!(later(" 10m", 3600), "1h10m1s");
        assert_eq!(later("2026-01-31T10:00:00Z", 3600), "2026-01-31T10:00:00Z");
        assert_eq!(later("yesterday", 3600), "yesterday", "the server says what is wrong with it");
    }
}
