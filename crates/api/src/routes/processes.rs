//! Processes as objects: start, list, read from any offset, feed, signal, await.

use crate::{
    ApiState, body,
    body::Json,
    command,
    error::{ApiError, json},
    extract::{Path, Query},
    ndjson,
    records::Format,
    stop::Stop,
    wire,
};
use axum::{extract::Request, extract::State, response::Response};
use bytes::Bytes;
use http::StatusCode;
use serde::Deserialize;
use stacyvm_provider::Signal;
use stacyvm_types::{
    Encoding, Process, PtySize, Records, SignalReply, SignalRequest, StartProcess, StdinAck, StreamRecord,
    WireDuration,
};
use std::time::Duration;
use tokio::time::Instant;
use utoipa::IntoParams;

/// Largest piece of stdin in one call to a guest, in bytes.
const STDIN_PIECE: usize = 64 << 10;
/// Longest wait in one call to a guest.
const WAIT_STEP: Duration = Duration::from_secs(30);

/// List live and recently ended processes, oldest first
#[utoipa::path(get, path = "/api/v1/sandboxes/{id}/processes", tag = "processes", params(("id" = String, Path)), responses((status = 200, body = Vec<Process>)))]
pub(crate) async fn list_processes(
    State(state): State<ApiState>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let processes = state.engine().guest(&id).await?.processes().await?;
    Ok(json(StatusCode::OK, &processes.into_iter().map(wire::process).collect::<Vec<_>>()))
}

/// Start a process
///
/// It belongs to no connection: it goes on until it ends, its timeout or a signal ends it, or its sandbox goes.
#[utoipa::path(post, path = "/api/v1/sandboxes/{id}/processes", tag = "processes", params(("id" = String, Path)), request_body = StartProcess, responses((status = 201, body = Process)))]
pub(crate) async fn start_process(
    State(state): State<ApiState>,
    Path(id): Path<String>,
    Json(body): Json<StartProcess>,
) -> Result<Response, ApiError> {
    let process = state.engine().start_process(&id, command::from_start(body)?).await?;
    Ok(json(StatusCode::CREATED, &wire::process(process)))
}

/// Look at a process
#[utoipa::path(get, path = "/api/v1/sandboxes/{id}/processes/{process}", tag = "processes", params(("id" = String, Path), ("process" = String, Path)), responses((status = 200, body = Process)))]
pub(crate) async fn get_process(
    State(state): State<ApiState>,
    Path((id, process)): Path<(String, String)>,
) -> Result<Response, ApiError> {
    let process = state.engine().guest(&id).await?.process(&process).await?;
    Ok(json(StatusCode::OK, &wire::process(process)))
}

/// Which output, and how.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct OutputQuery {
    /// First byte; default 0. What is not kept any more comes as a `gap`.
    #[serde(default)]
    offset: u64,
    /// Go on until the process has ended (default), or stop at what is there now.
    follow: Option<bool>,
    /// The process waits for this reader rather than lose output; default: as `follow`.
    pace: Option<bool>,
    /// `full` (default) or `simple`.
    records: Option<Records>,
    /// For `simple` records.
    #[serde(default)]
    encoding: Encoding,
}

/// Read the output of a process from any offset
#[utoipa::path(get, path = "/api/v1/sandboxes/{id}/processes/{process}/output", tag = "processes", params(("id" = String, Path), ("process" = String, Path), OutputQuery), responses((status = 200, body = StreamRecord, content_type = "application/x-ndjson")))]
pub(crate) async fn process_output(
    State(state): State<ApiState>,
    Path((id, process)): Path<(String, String)>,
    Query(query): Query<OutputQuery>,
    Stop(stop): Stop,
) -> Result<Response, ApiError> {
    let follow = query.follow.unwrap_or(true);
    let pace = query.pace.unwrap_or(follow);
    let output = state.engine().attach(&id, &process, query.offset, follow, pace).await?;
    let heartbeat = state.config().limits.heartbeat;
    let format = match query.records.unwrap_or(Records::Full) {
        Records::Full => Format::Full { process, heartbeat },
        Records::Simple => Format::Simple { encoding: query.encoding, sandbox: id, heartbeat },
    };
    Ok(ndjson::response(output, format, None, stop))
}

/// Where stdin bytes belong.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct StdinQuery {
    /// Absolute position of the first byte. Bytes that were accepted already are skipped, so a retry writes nothing
    /// twice. Default: behind what was accepted so far.
    offset: Option<u64>,
    /// A name (at most 64 bytes) of whoever writes, where several do: positions count their bytes alone.
    #[serde(default)]
    writer: String,
    /// Nothing follows: the process reads end of file.
    #[serde(default)]
    eof: bool,
}

/// Write to the stdin of a process
///
/// Answers with what was taken: less than was sent if the process does not read.
#[utoipa::path(post, path = "/api/v1/sandboxes/{id}/processes/{process}/stdin", tag = "processes", params(("id" = String, Path), ("process" = String, Path), StdinQuery), request_body(content = crate::routes::raw_files::FileContent, content_type = "application/octet-stream"), responses((status = 200, body = StdinAck)))]
pub(crate) async fn write_stdin(
    State(state): State<ApiState>,
    Path((id, process)): Path<(String, String)>,
    Query(query): Query<StdinQuery>,
    request: Request,
) -> Result<Response, ApiError> {
    let limits = &state.config().limits;
    let mut data = body::buffered(request.into_body(), limits.stdin, limits).await?;
    let guest = state.engine().guest(&id).await?;
    let writer = query.writer.as_str();
    let mut offset = match query.offset {
        Some(offset) => offset,
        // Nothing, at the beginning: the answer says where it goes on.
        None => guest.write_stdin_as(&process, writer, 0, Bytes::new(), false).await?.accepted,
    };
    loop {
        let piece = data.split_to(data.len().min(STDIN_PIECE));
        let (end, last) = (offset.saturating_add(piece.len() as u64), data.is_empty());
        let ack = guest.write_stdin_as(&process, writer, offset, piece, query.eof && last).await?;
        if last || ack.closed || ack.accepted < end {
            return Ok(json(StatusCode::OK, &StdinAck { accepted: ack.accepted, closed: ack.closed }));
        }
        offset = end;
    }
}

/// Send a signal to a process
#[utoipa::path(post, path = "/api/v1/sandboxes/{id}/processes/{process}/signal", tag = "processes", params(("id" = String, Path), ("process" = String, Path)), request_body = SignalRequest, responses((status = 200, body = SignalReply)))]
pub(crate) async fn signal_process(
    State(state): State<ApiState>,
    Path((id, process)): Path<(String, String)>,
    Json(body): Json<SignalRequest>,
) -> Result<Response, ApiError> {
    let unknown = || ApiError::bad_request("unknown signal: use a name as SIGTERM or a number from 1 to 64");
    let signal = Signal(body.signal.number().ok_or_else(unknown)?);
    let delivered = state.engine().guest(&id).await?.signal(&process, signal, body.tree).await?;
    Ok(json(StatusCode::OK, &SignalReply { delivered }))
}

/// Give the terminal of a process another size
#[utoipa::path(post, path = "/api/v1/sandboxes/{id}/processes/{process}/resize", tag = "processes", params(("id" = String, Path), ("process" = String, Path)), request_body = PtySize, responses((status = 200, body = PtySize)))]
pub(crate) async fn resize_process(
    State(state): State<ApiState>,
    Path((id, process)): Path<(String, String)>,
    Json(size): Json<PtySize>,
) -> Result<Response, ApiError> {
    state.engine().guest(&id).await?.resize(&process, size).await?;
    Ok(json(StatusCode::OK, &size))
}

/// How long to wait.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct WaitQuery {
    /// Longest wait, as `30s`; default: until it ends.
    timeout: Option<String>,
}

/// Wait until a process has ended, or answer with it as it is after `timeout`
#[utoipa::path(get, path = "/api/v1/sandboxes/{id}/processes/{process}/wait", tag = "processes", params(("id" = String, Path), ("process" = String, Path), WaitQuery), responses((status = 200, body = Process)))]
pub(crate) async fn wait_process(
    State(state): State<ApiState>,
    Path((id, process)): Path<(String, String)>,
    Query(query): Query<WaitQuery>,
    Stop(stop): Stop,
) -> Result<Response, ApiError> {
    let deadline =
        wait_timeout(query.timeout.as_deref())?.and_then(|timeout| Instant::now().checked_add(timeout));
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let guest = state.engine().guest(&id).await?;
        let step = guest.wait(&process, left.map_or(WAIT_STEP, |left| left.min(WAIT_STEP)));
        let info = tokio::select! {
            info = step => info?,
            () = stop.cancelled() => return Err(ApiError::unavailable("the server is stopping; wait again")),
        };
        let over = deadline.is_some_and(|deadline| Instant::now() >= deadline);
        if info.outcome.is_some() || over {
            return Ok(json(StatusCode::OK, &wire::process(info)));
        }
    }
}

fn wait_timeout(text: Option<&str>) -> Result<Option<Duration>, ApiError> {
    let Some(text) = text.map(str::trim).filter(|text| !text.is_empty()) else { return Ok(None) };
    let timeout: WireDuration =
        text.parse().map_err(|error| ApiError::bad_request(format!("timeout: {error}")))?;
    timeout.to_std().map(Some).ok_or_else(|| ApiError::bad_request("timeout must not be negative"))
}
