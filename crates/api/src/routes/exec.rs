//! Exec: start, attach and wait in one request.

use crate::{
    ApiState,
    body::Json,
    command,
    error::{ApiError, json},
    exec_guard,
    extract::{Path, Query},
    ndjson,
    records::Format,
    stop::Stop,
    text,
};
use axum::{extract::State, response::Response};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{HeaderMap, StatusCode, header};
use serde::Deserialize;
use stacyvm_engine::ExecOutcome;
use stacyvm_provider::Outcome;
use stacyvm_types::{Encoding, ExecRequest, ExecResult, Records, StreamChunk, StreamRecord};
use utoipa::IntoParams;

/// What can be said in the query as well as in the body.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct ExecQuery {
    /// With `stream`: `full` records.
    records: Option<Records>,
}

/// Run a command
///
/// Waits for it, or with `stream` answers with NDJSON while it runs: `{"stream","data"}` lines, or `StreamRecord`s with
/// `records: full` (in the body, the query, or as `Accept: application/x-ndjson; records=full`). Where a command is silent,
/// an empty line (a `heartbeat` record) is sent now and then, so that no proxy cuts the stream. A command whose client
/// goes away is killed, unless it is streamed with `detach`. A command that fails is a success of the request.
#[utoipa::path(
    post, path = "/api/v1/sandboxes/{id}/exec", tag = "exec", params(("id" = String, Path), ExecQuery),
    request_body = ExecRequest,
    responses(
        (status = 200, content((ExecResult = "application/json"), (StreamChunk = "application/x-ndjson"), (StreamRecord = "application/x-ndjson;records=full"))),
        (status = 408, description = "The deadline killed it", body = stacyvm_types::ErrorBody),
    )
)]
pub(crate) async fn exec(
    State(state): State<ApiState>,
    Path(id): Path<String>,
    Query(query): Query<ExecQuery>,
    Stop(stop): Stop,
    headers: HeaderMap,
    Json(body): Json<ExecRequest>,
) -> Result<Response, ApiError> {
    let (streamed, detach, encoding, partial) = (body.stream, body.detach, body.encoding, body.partial);
    let full = [Some(body.records), query.records].contains(&Some(Records::Full)) || accepts_full(&headers);
    let request = command::from_exec(body)?;
    if !streamed {
        let outcome = state.engine().exec(&id, request).await?;
        if outcome.process.timed_out && !partial {
            return Err(ApiError::timeout(format!("exec timeout: {id}")));
        }
        return Ok(json(StatusCode::OK, &result(outcome, encoding)?));
    }
    let (process, guard) = exec_guard::start(state.engine(), &id, request, stop.clone()).await?;
    let output = state.engine().attach(&id, &process.id, 0, true, true).await?;
    let format = if full {
        Format::Full { process: process.id, heartbeat: state.config().limits.heartbeat }
    } else {
        Format::Simple { encoding, sandbox: id, heartbeat: state.config().limits.heartbeat }
    };
    let guard = if detach {
        guard.disarm();
        None
    } else {
        Some(guard)
    };
    Ok(ndjson::response(output, format, guard, stop))
}

/// `Accept: application/x-ndjson; records=full`.
fn accepts_full(headers: &HeaderMap) -> bool {
    let values = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    values
        .flat_map(|value| value.split([',', ';']))
        .any(|part| part.trim().eq_ignore_ascii_case("records=full"))
}

fn result(outcome: ExecOutcome, encoding: Encoding) -> Result<ExecResult, ApiError> {
    let code = outcome.process.outcome.as_ref().and_then(Outcome::shell_code);
    let exit_code = code.ok_or_else(|| ApiError::internal("the exit status of the command is not known"))?;
    let spell = |bytes: Vec<u8>| match encoding {
        Encoding::Utf8 => text::decode(bytes),
        Encoding::Base64 => (STANDARD.encode(bytes), false),
    };
    let (stdout, stdout_replaced) = spell(outcome.stdout);
    let (stderr, stderr_replaced) = spell(outcome.stderr);
    Ok(ExecResult {
        exit_code,
        stdout,
        stderr,
        duration: outcome.duration.into(),
        signal: match outcome.process.outcome {
            Some(Outcome::Signaled(signal)) => Some(signal),
            _ => None,
        },
        timed_out: outcome.process.timed_out,
        oom_killed: outcome.process.oom_killed,
        limits_hit: outcome.process.limits_hit,
        stdout_truncated: outcome.stdout_truncated,
        stderr_truncated: outcome.stderr_truncated,
        stdout_replaced,
        stderr_replaced,
        encoding: (encoding == Encoding::Base64).then_some(encoding),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn full_records_can_be_asked_for_in_accept() {
        for (value, expected) in [
            ("application/x-ndjson; records=full", true),
            ("text/html, application/x-ndjson;Records=Full;q=1", true),
            ("application/x-ndjson", false),
            ("*/*", false),
        ] {
            let headers = HeaderMap::from_iter([(header::ACCEPT, HeaderValue::from_static(value))]);
            assert_eq!(accepts_full(&headers), expected, "{value}");
        }
    }
}
