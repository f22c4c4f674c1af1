//! The server itself: is it there, can it work, what does the host have left.

use crate::{
    ApiState,
    error::{ApiError, json},
    routes::providers::infos,
};
use axum::{extract::State, response::Response};
use http::StatusCode;
use stacyvm_types::{Health, PoolStatus, QuotaSummary, Ready, SystemStats, WireDuration};
use std::time::Duration;

/// The server answers
#[utoipa::path(get, path = "/api/v1/health", tag = "system", responses((status = 200, body = Health)))]
pub(crate) async fn health(State(state): State<ApiState>) -> Response {
    json(StatusCode::OK, &with_status(&state, "ok"))
}

/// The server is alive
#[utoipa::path(get, path = "/api/v1/live", tag = "system", responses((status = 200, body = Health)))]
pub(crate) async fn live(State(state): State<ApiState>) -> Response {
    json(StatusCode::OK, &with_status(&state, "alive"))
}

/// A sandbox could be made
#[utoipa::path(get, path = "/api/v1/ready", tag = "system", responses((status = 200, body = Ready), (status = 503, description = "No provider is healthy", body = Ready)))]
pub(crate) async fn ready(State(state): State<ApiState>) -> Response {
    let providers = infos(&state).await;
    let ready_providers = providers.iter().filter(|provider| provider.healthy).count() as u64;
    let (code, word) = if ready_providers > 0 {
        (StatusCode::OK, "ready")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not_ready")
    };
    let health = with_status(&state, word);
    let body = Ready {
        status: health.status,
        version: health.version,
        uptime: health.uptime,
        ready_providers,
        total_providers: providers.len() as u64,
        providers,
    };
    json(code, &body)
}

fn with_status(state: &ApiState, status: &str) -> Health {
    Health { status: status.into(), version: state.config().version.clone(), uptime: uptime(state) }
}

/// Time since the start, in whole seconds.
pub(crate) fn uptime(state: &ApiState) -> String {
    WireDuration::from(Duration::from_secs(state.started().elapsed().as_secs())).to_string()
}

/// Resource use of the host
#[utoipa::path(get, path = "/api/v1/system/stats", tag = "system", responses((status = 200, body = SystemStats)))]
pub(crate) async fn system_stats(State(state): State<ApiState>) -> Response {
    json(StatusCode::OK, &state.host().stats().await)
}

/// Whether sandboxes share machines: they do not
#[utoipa::path(get, path = "/api/v1/pool/status", tag = "system", responses((status = 200, body = PoolStatus)))]
pub(crate) async fn pool_status() -> Result<Response, ApiError> {
    Ok(json(StatusCode::OK, &PoolStatus::default()))
}

/// How many owners have quotas of their own: none, there are no such quotas
#[utoipa::path(get, path = "/api/v1/quotas/summary", tag = "system", responses((status = 200, body = QuotaSummary)))]
pub(crate) async fn quota_summary() -> Result<Response, ApiError> {
    Ok(json(StatusCode::OK, &QuotaSummary::default()))
}
