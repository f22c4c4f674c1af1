//! Sandboxes: make, look at, extend, pause, destroy.

use crate::{
    ApiState,
    body::Json,
    error::{ApiError, json},
    extract::{Owner, Path, Query, idempotency_key, owner},
};
use axum::{extract::State, response::Response};
use http::{HeaderMap, StatusCode};
use serde::Deserialize;
use stacyvm_engine::{CreateRequest, ListFilter};
use stacyvm_types::{
    Admission, CreateSandbox, ErrorCode, ExtendSandbox, Pruned, Sandbox, SandboxState, SandboxStats,
    StatusReply, WireDuration,
};
use std::time::Duration;
use utoipa::{IntoParams, ToSchema};

/// Lines of log that a request gets which does not say how many, and the most.
const LOG_LINES: u32 = 100;
const MOST_LOG_LINES: u32 = 10_000;
/// Time over which processor use is measured.
const CPU_SAMPLE: Duration = Duration::from_millis(250);

/// Which sandboxes to list.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct ListQuery {
    /// Only of this owner.
    owner: Option<String>,
    /// Only in this state.
    state: Option<SandboxState>,
    /// Only on this provider.
    provider: Option<String>,
    /// At most this many.
    limit: Option<usize>,
}

/// List sandboxes, newest first
#[utoipa::path(get, path = "/api/v1/sandboxes", tag = "sandboxes", params(ListQuery), responses((status = 200, body = Vec<Sandbox>)))]
pub(crate) async fn list_sandboxes(
    State(state): State<ApiState>,
    Query(query): Query<ListQuery>,
) -> Result<Response, ApiError> {
    let filter =
        ListFilter { owner: query.owner, state: query.state, provider: query.provider, limit: query.limit };
    let records = state.engine().list(filter).await?;
    Ok(json(StatusCode::OK, &records.into_iter().map(Sandbox::from).collect::<Vec<_>>()))
}

/// Make a sandbox
///
/// Answers when it takes commands. `Idempotency-Key` makes a repeated request answer with the same sandbox.
#[utoipa::path(
    post, path = "/api/v1/sandboxes", tag = "sandboxes", request_body = CreateSandbox,
    params(
        ("X-User-ID" = Option<String>, Header, description = "Owner; wins over `owner_id`"),
        ("Idempotency-Key" = Option<String>, Header, description = "1 to 255 printable characters"),
    ),
    responses((status = 201, body = Sandbox))
)]
pub(crate) async fn create_sandbox(
    State(state): State<ApiState>,
    Owner(owner): Owner,
    headers: HeaderMap,
    Json(body): Json<CreateSandbox>,
) -> Result<Response, ApiError> {
    let mut request = create_request(body, owner)?;
    request.idempotency_key = idempotency_key(&headers)?;
    let record = state.engine().create(request).await?;
    Ok(json(StatusCode::CREATED, &Sandbox::from(record)))
}

/// Ask whether a sandbox could be made now
#[utoipa::path(post, path = "/api/v1/sandboxes/admission", tag = "sandboxes", request_body = CreateSandbox, responses((status = 200, body = Admission)))]
pub(crate) async fn sandbox_admission(
    State(state): State<ApiState>,
    Owner(owner): Owner,
    Json(body): Json<CreateSandbox>,
) -> Result<Response, ApiError> {
    let request = create_request(body, owner)?;
    Ok(json(StatusCode::OK, &state.engine().admission(&request).await?))
}

/// Destroy sandboxes whose time is over
#[utoipa::path(delete, path = "/api/v1/sandboxes", tag = "sandboxes", responses((status = 200, body = Pruned)))]
pub(crate) async fn prune_sandboxes(State(state): State<ApiState>) -> Result<Response, ApiError> {
    Ok(json(StatusCode::OK, &Pruned { pruned: state.engine().prune().await? }))
}

/// Look at a sandbox
#[utoipa::path(get, path = "/api/v1/sandboxes/{id}", tag = "sandboxes", params(("id" = String, Path)), responses((status = 200, body = Sandbox)))]
pub(crate) async fn get_sandbox(
    State(state): State<ApiState>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    Ok(json(StatusCode::OK, &Sandbox::from(state.engine().get(&id).await?)))
}

/// Destroy a sandbox
///
/// Also answers 200 for one that is gone or never was.
#[utoipa::path(delete, path = "/api/v1/sandboxes/{id}", tag = "sandboxes", params(("id" = String, Path)), responses((status = 200, body = StatusReply)))]
pub(crate) async fn destroy_sandbox(
    State(state): State<ApiState>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    state.engine().destroy(&id).await?;
    Ok(status("destroyed"))
}

/// Set a sandbox's deadline anew, counted from now
#[utoipa::path(post, path = "/api/v1/sandboxes/{id}/extend", tag = "sandboxes", params(("id" = String, Path)), request_body = ExtendSandbox, responses((status = 200, body = Sandbox)))]
pub(crate) async fn extend_sandbox(
    State(state): State<ApiState>,
    Path(id): Path<String>,
    Json(body): Json<Extend>,
) -> Result<Response, ApiError> {
    let ttl = ttl(body.ttl.as_deref())?.ok_or_else(|| ApiError::bad_request("ttl is required"))?;
    Ok(json(StatusCode::OK, &Sandbox::from(state.engine().extend(&id, ttl).await?)))
}

/// An [`ExtendSandbox`] whose time to live has not been read yet, so that a bad one gets the words of the contract.
#[derive(Debug, Deserialize)]
pub(crate) struct Extend {
    ttl: Option<String>,
}

/// Pause a sandbox
///
/// Every process is frozen: memory and files stay, no processor time is used. Its time to live runs on. Commands are
/// answered with 409 meanwhile, open output streams wait. Pausing a paused one changes nothing. Needs the provider's
/// capability `pause`.
#[utoipa::path(post, path = "/api/v1/sandboxes/{id}/pause", tag = "sandboxes", params(("id" = String, Path)), responses((status = 200, body = Sandbox)))]
pub(crate) async fn pause_sandbox(
    State(state): State<ApiState>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    Ok(json(StatusCode::OK, &Sandbox::from(state.engine().pause(&id).await?)))
}

/// Let a paused sandbox go on where it was
///
/// Resuming one that runs changes nothing.
#[utoipa::path(post, path = "/api/v1/sandboxes/{id}/resume", tag = "sandboxes", params(("id" = String, Path)), responses((status = 200, body = Sandbox)))]
pub(crate) async fn resume_sandbox(
    State(state): State<ApiState>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    Ok(json(StatusCode::OK, &Sandbox::from(state.engine().resume(&id).await?)))
}

/// Which lines, and how many.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct LogQuery {
    /// How many lines, at most 10000; default 100.
    lines: Option<String>,
    /// `processes` (default) or `console`.
    #[serde(default)]
    source: LogSource,
}

/// Who wrote the lines.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogSource {
    /// The processes in the sandbox.
    #[default]
    Processes,
    /// The runtime: its agent, boot messages. There in every state of the sandbox.
    Console,
}

/// The last lines that processes of a sandbox, or its runtime, wrote, oldest first
#[utoipa::path(get, path = "/api/v1/sandboxes/{id}/logs", tag = "sandboxes", params(("id" = String, Path), LogQuery), responses((status = 200, body = Vec<String>)))]
pub(crate) async fn sandbox_logs(
    State(state): State<ApiState>,
    Path(id): Path<String>,
    Query(query): Query<LogQuery>,
) -> Result<Response, ApiError> {
    let lines = log_lines(query.lines.as_deref());
    let text = match query.source {
        LogSource::Processes => state.engine().guest(&id).await?.logs(lines).await?,
        LogSource::Console => state.engine().console(&id, lines).await?,
    };
    Ok(json(StatusCode::OK, &text))
}

/// Resource use of a sandbox
#[utoipa::path(get, path = "/api/v1/sandboxes/{id}/stats", tag = "sandboxes", params(("id" = String, Path)), responses((status = 200, body = SandboxStats)))]
pub(crate) async fn sandbox_stats(
    State(state): State<ApiState>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let before = match state.engine().stats(&id).await {
        Ok(stats) => stats,
        Err(error) if error.code() == ErrorCode::Unsupported => {
            return Ok(json(StatusCode::OK, &SandboxStats::default()));
        }
        Err(error) => return Err(error.into()),
    };
    let started = tokio::time::Instant::now();
    tokio::time::sleep(CPU_SAMPLE).await;
    let now = state.engine().stats(&id).await?;
    let used = now.cpu_time.saturating_sub(before.cpu_time).as_secs_f64();
    let pct = used / started.elapsed().as_secs_f64().max(0.001) * 100.0;
    let stats = SandboxStats {
        supported: true,
        cpu_pct: Some((pct * 10.0).round() / 10.0),
        mem_bytes: Some(now.memory_bytes),
        mem_limit_bytes: Some(now.memory_limit_bytes),
        cpu_time_ms: Some(u64::try_from(now.cpu_time.as_millis()).unwrap_or(u64::MAX)),
        pids: Some(now.pids),
    };
    Ok(json(StatusCode::OK, &stats))
}

/// `{"status":"…"}`.
pub(crate) fn status(word: &str) -> Response {
    json(StatusCode::OK, &StatusReply { status: word.into() })
}

fn create_request(body: CreateSandbox, caller: Option<String>) -> Result<CreateRequest, ApiError> {
    if let Some(template) = body.template.as_deref().map(str::trim).filter(|name| !name.is_empty()) {
        return Err(ApiError::not_found(format!("not found: template {template:?}")));
    }
    let body_owner = owner(body.owner_id.as_deref().unwrap_or_default())?;
    Ok(CreateRequest {
        image: body.image,
        provider: body.provider,
        runtime: body.runtime,
        network: body.network_mode,
        memory_mb: body.memory_mb,
        disk_mb: body.disk_size_mb,
        vcpus: body.vcpus,
        ttl: ttl(body.ttl.as_deref())?,
        owner: caller.or(body_owner),
        metadata: body.metadata.unwrap_or_default(),
        ephemeral: false,
        idempotency_key: None,
    })
}

/// A time to live; blank is none.
fn ttl(text: Option<&str>) -> Result<Option<Duration>, ApiError> {
    let Some(text) = text.map(str::trim).filter(|text| !text.is_empty()) else { return Ok(None) };
    let ttl: WireDuration =
        text.parse().map_err(|error| ApiError::bad_request(format!("invalid ttl format: {error}")))?;
    match ttl.to_std() {
        Some(ttl) if !ttl.is_zero() => Ok(Some(ttl)),
        _ => Err(ApiError::bad_request("ttl must be positive")),
    }
}

fn log_lines(text: Option<&str>) -> u32 {
    let lines = text.and_then(|text| text.parse().ok()).filter(|lines| *lines > 0);
    lines.unwrap_or(LOG_LINES).min(MOST_LOG_LINES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_ttl_is_told_in_the_words_of_the_contract() {
        let message = |text| ttl(Some(text)).unwrap_err().body().message;
        assert!(message("soon").starts_with("invalid ttl format: "));
        assert_eq!(message("-1s"), "ttl must be positive");
        assert_eq!(message("0"), "ttl must be positive");
        assert_eq!(ttl(Some("30m")).unwrap(), Some(Duration::from_secs(1800)));
        assert_eq!(ttl(Some(" ")).unwrap(), None);
    }

    #[test]
    fn log_lines_default_and_are_bounded() {
        for (text, lines) in
            [(None, 100), (Some("x"), 100), (Some("-5"), 100), (Some("0"), 100), (Some("7"), 7)]
        {
            assert_eq!(log_lines(text), lines);
        }
        assert_eq!(log_lines(Some("4000000000")), MOST_LOG_LINES);
    }

    #[test]
    fn the_header_wins_over_the_body_and_both_are_checked() {
        let body = |owner: &str| CreateSandbox { owner_id: Some(owner.into()), ..CreateSandbox::default() };
        let request = create_request(body("b"), Some("h".into())).unwrap();
        assert_eq!(request.owner.as_deref(), Some("h"));
        assert_eq!(create_request(body("b"), None).unwrap().owner.as_deref(), Some("b"));
        assert!(create_request(body("a b"), Some("h".into())).is_err());
    }

    #[test]
    fn a_template_that_is_not_there_is_not_ignored() {
        let body = CreateSandbox { template: Some("py".into()), ..CreateSandbox::default() };
        let error = create_request(body, None).unwrap_err();
        assert_eq!(
            (error.code(), error.body().message.as_str()),
            (ErrorCode::NotFound, "not found: template \"py\"")
        );
        let body = CreateSandbox { template: Some(String::new()), ..CreateSandbox::default() };
        assert!(create_request(body, None).is_ok());
    }
}
