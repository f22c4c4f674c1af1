//! Events as they happen, and those missed since.

use crate::{ApiState, extract::Query, stop::Stop};
use axum::{
    extract::State,
    response::{
        IntoResponse, Response, Sse,
        sse::{Event as SseEvent, KeepAlive},
    },
};
use futures::StreamExt;
use http::HeaderMap;
use serde::Deserialize;
use stacyvm_engine::event_number;
use stacyvm_types::Event;
use utoipa::IntoParams;

/// Which events.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct EventQuery {
    /// Only of this sandbox.
    sandbox_id: Option<String>,
    /// First what happened after this event (`evt-7`); the header `Last-Event-ID` does the same.
    after: Option<String>,
}

/// Events as server-sent events
///
/// Each has its id, so a client that comes back with `Last-Event-ID` misses nothing that is still kept. Comments keep the
/// connection alive.
#[utoipa::path(
    get, path = "/api/v1/events", tag = "system",
    params(EventQuery, ("Last-Event-ID" = Option<String>, Header, description = "The last event that was seen")),
    responses((status = 200, body = Event, content_type = "text/event-stream"))
)]
pub(crate) async fn events(
    State(state): State<ApiState>,
    Query(query): Query<EventQuery>,
    headers: HeaderMap,
    Stop(stop): Stop,
) -> Response {
    let seen = headers.get("last-event-id").and_then(|id| id.to_str().ok()).or(query.after.as_deref());
    let events = state.engine().events().subscribe(seen.and_then(number));
    let wanted = query.sandbox_id.filter(|id| !id.is_empty());
    let lines = events
        .filter(move |event| {
            let passes = wanted.is_none() || event.sandbox_id == wanted;
            std::future::ready(passes)
        })
        .map(|event| SseEvent::default().id(event.id.clone()).json_data(&event))
        .take_until(stop.cancelled_owned());
    let heartbeat = KeepAlive::new().interval(state.config().limits.heartbeat).text("keep-alive");
    Sse::new(lines).keep_alive(heartbeat).into_response()
}

/// `evt-7` or `7`; what is neither is as good as nothing.
fn number(id: &str) -> Option<u64> {
    let id = id.trim();
    event_number(id).or_else(|| id.parse().ok())
}
