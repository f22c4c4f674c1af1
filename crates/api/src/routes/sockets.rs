//! Conversations with a process over a WebSocket: one that it is started for, or one with a process that is there.

use crate::{
    ApiState, command,
    error::ApiError,
    exec_guard,
    extract::{Path, Query},
    place::Place,
    records::{Format, Records},
    socket::{self, Conversation, Voice},
    stop::Stop,
};
use axum::{
    extract::{
        State,
        ws::{Message, WebSocket, WebSocketUpgrade, rejection::WebSocketUpgradeRejection},
    },
    response::Response,
};
use http::{HeaderMap, header};
use serde::Deserialize;
use stacyvm_engine::ExecRequest as EngineExec;
use stacyvm_provider::ProcessInfo;
use stacyvm_types::{Encoding, ExecRequest, SocketRecord, SocketRequest, SocketStarted};
use std::time::Duration;
use utoipa::IntoParams;

/// Longest wait for the first message.
const FIRST: Duration = Duration::from_secs(30);

type Upgrade = Result<WebSocketUpgrade, WebSocketUpgradeRejection>;

/// Run a command and talk to it over a WebSocket
///
/// The first message is a `start`; then `stdin`, `resize` and `signal`. Answers: `started`, `stdout`, `stderr`, `gap`,
/// `stdin`, `exit`, `error`. The command is killed when the connection ends, unless `detach` was said. An exec request
/// without a `type`, which earlier clients send, is answered as they expect: `{"stream","data"}` objects, then
/// `{"type":"done"}`.
#[utoipa::path(get, path = "/api/v1/sandboxes/{id}/exec/ws", tag = "exec", params(("id" = String, Path)), responses((status = 101, body = SocketRecord, description = "A WebSocket: the client says `SocketRequest`s and hears `SocketRecord`s")))]
pub(crate) async fn exec_socket(
    State(state): State<ApiState>,
    Path(id): Path<String>,
    headers: HeaderMap,
    Stop(stop): Stop,
    place: Place,
    upgrade: Upgrade,
) -> Result<Response, ApiError> {
    let upgrade = checked(&state, &headers, upgrade)?;
    // What is not there is said in HTTP.
    state.engine().get(&id).await?;
    Ok(upgrade.on_upgrade(move |socket| exec(state, id, Stop(stop), place, socket)))
}

async fn exec(state: ApiState, id: String, Stop(stop): Stop, place: Place, mut socket: WebSocket) {
    let first = tokio::select! {
        first = tokio::time::timeout(FIRST, first(&mut socket)) => first,
        () = stop.cancelled() => return,
    };
    let (voice, wanted) = match first {
        Ok(Some(Ok(Message::Text(text)))) => wanted(&text),
        Ok(Some(Ok(Message::Close(_)) | Err(_)) | None) => return,
        Ok(Some(Ok(_))) => (Voice::Typed, Err(ApiError::bad_request("the first message is text: a start"))),
        Err(_) => (Voice::Typed, Err(ApiError::bad_request("the first message did not come"))),
    };
    let started = async {
        let Wanted { request, encoding, detach } = wanted?;
        let (process, guard) = exec_guard::start(state.engine(), &id, request, stop.clone()).await?;
        let output = state.engine().attach(&id, &process.id, 0, true, true).await?;
        let format = match voice {
            Voice::Old => Format::Simple { encoding, sandbox: id.clone(), heartbeat: Duration::MAX },
            Voice::Typed => Format::Socket { encoding },
        };
        let guard = if detach {
            guard.disarm();
            None
        } else {
            Some(guard)
        };
        Ok((process, Records::new(output, format, guard, stop.clone())))
    };
    let (process, records) = match started.await {
        Ok(started) => started,
        Err(error) => return socket::refuse(socket, voice, &error).await,
    };
    let conversation = Conversation {
        voice,
        engine: state.engine().clone(),
        sandbox: id,
        process: named(process),
        records,
        heartbeat: state.config().limits.heartbeat,
        stop,
        place,
    };
    conversation.hold(socket).await;
}

/// The first message that says anything.
async fn first(socket: &mut WebSocket) -> Option<Result<Message, axum::Error>> {
    loop {
        match socket.recv().await {
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
            message => return message,
        }
    }
}

struct Wanted {
    request: EngineExec,
    encoding: Encoding,
    detach: bool,
}

/// What the first message asks for, and in which protocol.
fn wanted(text: &str) -> (Voice, Result<Wanted, ApiError>) {
    let invalid = |error: serde_json::Error| ApiError::bad_request(format!("invalid request: {error}"));
    let typed = serde_json::from_str::<serde_json::Value>(text).map(|value| value.get("type").is_some());
    match typed {
        Ok(false) => match serde_json::from_str::<ExecRequest>(text) {
            Ok(exec) => {
                let (encoding, detach) = (exec.encoding, exec.detach);
                let request = command::from_exec(exec);
                (Voice::Old, request.map(|request| Wanted { request, encoding, detach }))
            }
            // Closed as ever, with a word of why.
            Err(error) => (Voice::Typed, Err(invalid(error))),
        },
        Ok(true) => {
            let request = match serde_json::from_str(text).map_err(invalid) {
                Ok(SocketRequest::Start(start)) => {
                    let (encoding, detach) = (start.exec.encoding, start.exec.detach);
                    command::from_socket(*start).map(|request| Wanted { request, encoding, detach })
                }
                Ok(_) => Err(ApiError::bad_request("the first message is a start")),
                Err(error) => Err(error),
            };
            (Voice::Typed, request)
        }
        Err(error) => (Voice::Typed, Err(invalid(error))),
    }
}

/// Where in the output to begin, and how it is spelt.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct SocketQuery {
    /// First byte; default 0. What is not kept any more comes as a `gap`.
    #[serde(default)]
    offset: u64,
    /// The process waits for this reader rather than lose output; default: yes.
    pace: Option<bool>,
    /// How output is spelt: `utf8` (default) or `base64`.
    #[serde(default)]
    encoding: Encoding,
}

/// Talk to a process over a WebSocket
///
/// As `exec/ws` from its `started` on. The process goes on when the connection ends: another one can take its place, at
/// the offset behind the last byte.
#[utoipa::path(get, path = "/api/v1/sandboxes/{id}/processes/{process}/ws", tag = "processes", params(("id" = String, Path), ("process" = String, Path), SocketQuery), responses((status = 101, body = SocketRecord, description = "A WebSocket: the client says `SocketRequest`s and hears `SocketRecord`s")))]
pub(crate) async fn process_socket(
    State(state): State<ApiState>,
    Path((id, process)): Path<(String, String)>,
    Query(query): Query<SocketQuery>,
    headers: HeaderMap,
    Stop(stop): Stop,
    place: Place,
    upgrade: Upgrade,
) -> Result<Response, ApiError> {
    let upgrade = checked(&state, &headers, upgrade)?;
    let found = state.engine().guest(&id).await?.process(&process).await?;
    let pace = query.pace.unwrap_or(true);
    let output = state.engine().attach(&id, &process, query.offset, true, pace).await?;
    let format = Format::Socket { encoding: query.encoding };
    let conversation = Conversation {
        voice: Voice::Typed,
        engine: state.engine().clone(),
        sandbox: id,
        process: named(found),
        records: Records::new(output, format, None, stop.clone()),
        heartbeat: state.config().limits.heartbeat,
        stop,
        place,
    };
    Ok(upgrade.on_upgrade(move |socket| conversation.hold(socket)))
}

fn named(process: ProcessInfo) -> SocketStarted {
    SocketStarted { process_id: process.id, pid: process.pid, stdin_offset: process.stdin_offset }
}

/// The upgrade, if it was asked for as it should be and from where it may.
fn checked(state: &ApiState, headers: &HeaderMap, upgrade: Upgrade) -> Result<WebSocketUpgrade, ApiError> {
    let upgrade = upgrade.map_err(|rejection| {
        ApiError::bad_request(format!("this is a WebSocket, and the request is for none: {rejection}"))
    })?;
    // A browser asks for one whatever the page's origin; the rule for answers that pages may read is a rule for this.
    if let Some(origin) = headers.get(header::ORIGIN) {
        let origin = origin.to_str().unwrap_or("null");
        if !state.config().may_read(origin, headers.get(header::HOST).and_then(|host| host.to_str().ok())) {
            return Err(ApiError::forbidden(format!(
                "origin {origin:?} is not allowed: name it in server.cors_allowed_origins"
            )));
        }
    }
    Ok(upgrade.max_message_size(socket::MESSAGE).max_frame_size(socket::MESSAGE))
}
