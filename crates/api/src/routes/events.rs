//! Events as they happen, and those missed since.

use crate::{
    ApiState, error::ApiError, event_filter::Filter, extract::Query, ndjson::UNBUFFERED, stop::Stop,
};
use axum::{
    extract::State,
    response::{IntoResponse, Response, Sse, sse::Event as SseEvent},
};
use futures::{FutureExt, Stream, StreamExt, stream};
use http::HeaderMap;
use serde::Deserialize;
use stacyvm_engine::{Engine, Heard, Missed, Subscription, event_id, event_number};
use stacyvm_types::{Event, MissedEvents};
use std::time::Duration;
use utoipa::IntoParams;

/// How long a look at what is there waits for events that are on their way to the store.
const SETTLE: Duration = Duration::from_secs(1);

/// Which events.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct EventQuery {
    /// Only of this sandbox, or these, separated by commas.
    sandbox_id: Option<String>,
    /// Only of these types, separated by commas; a group (`exec`, or `exec.*`) stands for all of its types.
    #[serde(rename = "type")]
    #[param(rename = "type")]
    kind: Option<String>,
    /// Only of sandboxes of this owner.
    owner: Option<String>,
    /// Only from this time on (`2026-01-31T10:00:00Z`), or from so long ago (`10m`), as far as they are kept.
    since: Option<String>,
    /// First what happened after this event (`evt-7`; `evt-0`: all that is kept); the header `Last-Event-ID` does the
    /// same.
    after: Option<String>,
    /// Go on with what happens from now on (default), or end with what happened until now, from the oldest that is kept
    /// unless `after` is named.
    follow: Option<bool>,
}

/// Events as server-sent events
///
/// Each has its id, so a client that comes back with `Last-Event-ID` misses nothing that is still kept. If it was away for
/// longer than that, an event named `missed` (`MissedEvents`) says so first. Comments keep the connection alive; they carry
/// the id of the newest event that a filter left out, so that a client comes back from there.
#[utoipa::path(
    get, path = "/api/v1/events", tag = "system",
    params(EventQuery, ("Last-Event-ID" = Option<String>, Header, description = "The last event that was seen")),
    responses((status = 200, content((Event = "text/event-stream"), (MissedEvents = "text/event-stream;event=missed"))))
)]
pub(crate) async fn events(
    State(state): State<ApiState>,
    Query(query): Query<EventQuery>,
    headers: HeaderMap,
    Stop(stop): Stop,
) -> Result<Response, ApiError> {
    let [kind, sandboxes, owner, since] =
        [&query.kind, &query.sandbox_id, &query.owner, &query.since].map(Option::as_deref);
    let filter = Filter::new(kind, sandboxes, owner, since)?;
    let seen = headers.get("last-event-id").and_then(|id| id.to_str().ok()).or(query.after.as_deref());
    let seen = seen.and_then(number).or(filter.looks_back().then_some(0));
    let bus = state.engine().events();
    let follow = query.follow.unwrap_or(true);
    let events = if follow {
        bus.subscribe(seen)
    } else {
        // A store that does not take events now has them later.
        let _ = tokio::time::timeout(SETTLE, bus.flush()).await;
        bus.history(seen.unwrap_or(0))
    };
    let engine = state.engine().clone();
    let heartbeat = state.config().limits.heartbeat;
    let lines = Lines { heartbeat, passed_over: None, start: events.start(), events, filter, engine };
    let lines = stream::unfold(lines, |mut lines| async move {
        let line = lines.next().await?;
        Some((line, lines))
    });
    Ok(([UNBUFFERED], Sse::new(until(lines, stop.cancelled_owned(), follow))).into_response())
}

type Line = Result<SseEvent, axum::Error>;

/// Lines until the server stops or one is an error. With `follow` that is an end as any other; of a look at the past, it
/// would pass for the end of what was asked for, so the answer is cut.
fn until(
    lines: impl Stream<Item = Line> + Send + 'static,
    stop: impl Future<Output = ()> + Send + 'static,
    follow: bool,
) -> impl Stream<Item = Line> + Send + 'static {
    let stop = stop.map(|()| Err(axum::Error::new("the server is stopping")));
    stream::unfold(Some((lines.boxed(), stop.boxed())), move |state| async move {
        let (mut lines, mut stop) = state?;
        let line = tokio::select! {
            biased;
            stopped = &mut stop => stopped,
            line = lines.next() => line?,
        };
        match line {
            Ok(line) => Some((Ok(line), Some((lines, stop)))),
            Err(_) if follow => None,
            Err(error) => Some((Err(error), None)),
        }
    })
}

struct Lines {
    /// Number of the newest event when the client came without a position: it has to know where to come back to.
    start: Option<u64>,
    events: Subscription,
    filter: Filter,
    engine: Engine,
    heartbeat: Duration,
    /// Number of the newest event that the filter left out and that the client does not know of.
    passed_over: Option<u64>,
}

impl Lines {
    async fn next(&mut self) -> Option<Line> {
        if let Some(start) = self.start.take() {
            return Some(Ok(SseEvent::default().comment("from here").id(event_id(start))));
        }
        let mut silence = std::pin::pin!(tokio::time::sleep(self.heartbeat));
        loop {
            let heard = tokio::select! {
                heard = self.events.next() => heard?,
                () = &mut silence => {
                    let line = SseEvent::default().comment("keep-alive");
                    return Some(Ok(match self.passed_over.take() {
                        Some(number) => line.id(event_id(number)),
                        None => line,
                    }));
                }
            };
            match heard {
                Heard::Missed(missed) => return Some(told(missed)),
                Heard::Cut => return Some(Err(axum::Error::new("events could not be read"))),
                Heard::Event(number, event) => match self.filter.passes(&event, &self.engine).await {
                    Ok(true) => {
                        self.passed_over = None;
                        return Some(SseEvent::default().id(event.id.clone()).json_data(&event));
                    }
                    Ok(false) => self.passed_over = Some(number),
                    Err(error) => {
                        // Ending here lets the client come back; to guess would be to leave an event out.
                        tracing::warn!(error = error.body().message, "events could not be filtered");
                        return Some(Err(axum::Error::new("events could not be filtered")));
                    }
                },
            }
        }
    }
}

fn told(missed: Missed) -> Line {
    let line = SseEvent::default().event("missed");
    let line = match missed.next {
        Some(next) => line.id(event_id(next - 1)),
        None => line,
    };
    line.json_data(MissedEvents {
        after: event_id(missed.after),
        next: missed.next.map(event_id),
        count: missed.next.map(|next| next - missed.after - 1),
    })
}

/// `evt-7` or `7`; what is neither is as good as nothing.
fn number(id: &str) -> Option<u64> {
    let id = id.trim();
    event_number(id).or_else(|| id.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;

    #[tokio::test]
    async fn what_is_missing_is_counted_and_passed_over() {
        let all = [Missed { after: 5, next: Some(10) }, Missed { after: 99, next: None }].map(told);
        let body =
            Sse::new(stream::iter(all)).into_response().into_body().collect().await.unwrap().to_bytes();
        assert_eq!(
            std::str::from_utf8(&body).unwrap(),
            "event: missed\nid: evt-9\ndata: {\"after\":\"evt-5\",\"next\":\"evt-10\",\"count\":4}\n\n\
             event: missed\ndata: {\"after\":\"evt-99\"}\n\n"
        );
    }

    /// The text of the answer, and whether it was cut.
    async fn answer(lines: Vec<Line>, stops: bool, follow: bool) -> (String, bool) {
        let lines = stream::iter(lines).chain(match stops {
            true => stream::pending().boxed(),
            false => stream::empty().boxed(),
        });
        let stop = async move {
            match stops {
                true => tokio::time::sleep(Duration::from_secs(1)).await,
                false => std::future::pending().await,
            }
        };
        let (mut text, mut cut) = (String::new(), false);
        let mut body = Sse::new(until(lines, stop, follow)).into_response().into_body();
        while let Some(frame) = body.frame().await {
            match frame {
                Ok(frame) => text += std::str::from_utf8(&frame.into_data().unwrap()).unwrap(),
                Err(_) => cut = true,
            }
        }
        (text, cut)
    }

    #[tokio::test(start_paused = true)]
    async fn a_past_that_did_not_come_to_its_end_is_cut() {
        let one = || Ok(SseEvent::default().data("1"));
        let broken = || vec![one(), Err(axum::Error::new("the store is gone")), one()];
        for (lines, stops, follow, cut) in [
            (vec![one()], false, false, false),
            (broken(), false, false, true),
            (vec![one()], true, false, true),
            (broken(), false, true, false),
            (vec![one()], true, true, false),
        ] {
            let got = answer(lines, stops, follow).await;
            assert_eq!(got, ("data: 1\n\n".to_owned(), cut), "{stops} {follow}");
        }
    }

    #[test]
    fn positions_in_both_spellings() {
        assert_eq!(
            (number(" evt-7 "), number("7"), number("evt-x"), number("")),
            (Some(7), Some(7), None, None)
        );
    }
}
