//! Numbers for dashboards and for support.

use crate::{
    ApiState,
    error::{ApiError, json},
    host, prometheus,
    routes::{providers::infos, system::uptime},
};
use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use http::{StatusCode, header};
use jiff::Timestamp;
use stacyvm_engine::{ListFilter, SandboxState};
use stacyvm_types::{
    BuildInfo, Diagnostics, EventCounts, LimitsInfo, Metrics, ProviderCounts, QuotaSummary, SandboxCounts,
    WireDuration,
};

/// Numbers as JSON
#[utoipa::path(get, path = "/api/v1/metrics", tag = "system", responses((status = 200, body = Metrics)))]
pub(crate) async fn metrics(State(state): State<ApiState>) -> Result<Response, ApiError> {
    Ok(json(StatusCode::OK, &collect(&state).await?))
}

/// Numbers for Prometheus
#[utoipa::path(get, path = "/api/v1/metrics/prometheus", tag = "system", responses((status = 200, body = String, content_type = "text/plain")))]
pub(crate) async fn metrics_prometheus(State(state): State<ApiState>) -> Result<Response, ApiError> {
    let text = prometheus::text(&collect(&state).await?, state.started().elapsed());
    Ok(([(header::CONTENT_TYPE, prometheus::CONTENT_TYPE)], text).into_response())
}

/// What support asks for first, without secrets
#[utoipa::path(get, path = "/api/v1/diagnostics", tag = "system", responses((status = 200, body = Diagnostics)))]
pub(crate) async fn diagnostics(State(state): State<ApiState>) -> Result<Response, ApiError> {
    let metrics = collect(&state).await?;
    let limits = &state.engine().config().limits;
    let text = |duration: std::time::Duration| WireDuration::from(duration).to_string();
    let now = Timestamp::now();
    let diagnostics = Diagnostics {
        generated_at: Timestamp::from_second(now.as_second()).unwrap_or(now),
        build: BuildInfo {
            version: state.config().version.clone(),
            goos: std::env::consts::OS.into(),
            goarch: goarch().into(),
        },
        uptime: metrics.uptime,
        limits: LimitsInfo {
            max_sandboxes: limits.max_sandboxes,
            max_sandboxes_per_owner: limits.max_sandboxes_per_owner,
            default_exec_timeout: text(limits.default_exec_timeout),
            max_exec_timeout: text(limits.max_exec_timeout),
            max_ttl: text(limits.max_ttl),
        },
        providers: metrics.providers.items,
        sandboxes: metrics.sandboxes,
        events: metrics.events,
        operations: metrics.operations,
        redactions: ["keys", "environment variables", "commands", "file contents"]
            .map(str::to_owned)
            .to_vec(),
    };
    Ok(json(StatusCode::OK, &diagnostics))
}

/// Numbers as JSON
#[utoipa::path(get, path = "/api/v1/admin/metrics", tag = "system", responses((status = 200, body = Metrics)))]
pub(crate) async fn admin_metrics(state: State<ApiState>) -> Result<Response, ApiError> {
    metrics(state).await
}

/// Numbers for Prometheus
#[utoipa::path(get, path = "/api/v1/admin/metrics/prometheus", tag = "system", responses((status = 200, body = String, content_type = "text/plain")))]
pub(crate) async fn admin_metrics_prometheus(state: State<ApiState>) -> Result<Response, ApiError> {
    metrics_prometheus(state).await
}

/// What support asks for first, without secrets
#[utoipa::path(get, path = "/api/v1/admin/diagnostics", tag = "system", responses((status = 200, body = Diagnostics)))]
pub(crate) async fn admin_diagnostics(state: State<ApiState>) -> Result<Response, ApiError> {
    diagnostics(state).await
}

async fn collect(state: &ApiState) -> Result<Metrics, ApiError> {
    let engine = state.engine();
    let mut sandboxes = SandboxCounts::default();
    for record in engine.list(ListFilter::default()).await? {
        sandboxes.total += 1;
        sandboxes.active += u64::from(record.state == SandboxState::Running);
        *sandboxes.by_state.entry(record.state.as_str().into()).or_default() += 1;
        *sandboxes.by_provider.entry(record.provider).or_default() += 1;
        *sandboxes.by_worker.entry("local".into()).or_default() += 1;
    }
    let items = infos(state).await;
    let memory = host::own_memory();
    Ok(Metrics {
        uptime: uptime(state),
        goroutines: tokio::runtime::Handle::current().metrics().num_alive_tasks() as u64,
        memory_alloc: memory.anonymous,
        memory_sys: memory.resident,
        memory_heap_alloc: memory.data,
        gc_cycles: 0,
        sandboxes,
        providers: ProviderCounts {
            total: items.len() as u64,
            healthy: items.iter().filter(|item| item.healthy).count() as u64,
            items,
        },
        events: EventCounts {
            subscribers: engine.events().subscribers() as u64,
            events_total: engine.events().total(),
        },
        operations: engine.operations(),
        quotas: QuotaSummary::default(),
    })
}

/// The architecture in the words that the key has always used.
fn goarch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
