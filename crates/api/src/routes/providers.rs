//! Providers and their health, as looked at in the background: asking never waits for a runtime that hangs.

use crate::{
    ApiState,
    error::{ApiError, json},
    extract::Path,
};
use axum::{extract::State, response::Response};
use http::StatusCode;
use jiff::Timestamp;
use stacyvm_engine::{ListFilter, ProviderStatus};
use stacyvm_provider::Capabilities;
use stacyvm_types::{ProviderDetail, ProviderInfo};
use std::collections::BTreeMap;

/// List providers, by name
#[utoipa::path(get, path = "/api/v1/providers", tag = "providers", responses((status = 200, body = Vec<ProviderInfo>)))]
pub(crate) async fn list_providers(State(state): State<ApiState>) -> Result<Response, ApiError> {
    Ok(json(StatusCode::OK, &infos(&state).await))
}

/// Look at a provider
#[utoipa::path(get, path = "/api/v1/providers/{name}", tag = "providers", params(("name" = String, Path)), responses((status = 200, body = ProviderDetail)))]
pub(crate) async fn get_provider(
    State(state): State<ApiState>,
    Path(name): Path<String>,
) -> Result<Response, ApiError> {
    let statuses = state.engine().provider_status().await;
    let status = statuses
        .into_iter()
        .find(|status| status.name == name)
        .ok_or_else(|| ApiError::not_found(format!("provider not found: {name}")))?;
    let filter = ListFilter { provider: Some(name), ..ListFilter::default() };
    let sandbox_count = state.engine().list(filter).await?.len() as u64;
    let mut config = status.settings.clone();
    config.entry("type".into()).or_insert_with(|| kind(&status).into());
    let health = info(status);
    let detail = ProviderDetail {
        name: health.name.clone(),
        healthy: health.healthy,
        default: health.default,
        sandbox_count,
        health,
        config,
    };
    Ok(json(StatusCode::OK, &detail))
}

/// Which providers are healthy
#[utoipa::path(post, path = "/api/v1/providers/test", tag = "providers", responses((status = 200, body = BTreeMap<String, bool>)))]
pub(crate) async fn test_providers(State(state): State<ApiState>) -> Result<Response, ApiError> {
    let infos = infos(&state).await;
    let health: BTreeMap<String, bool> = infos.into_iter().map(|info| (info.name, info.healthy)).collect();
    Ok(json(StatusCode::OK, &health))
}

/// List providers, by name
#[utoipa::path(get, path = "/api/v1/admin/providers", tag = "providers", responses((status = 200, body = Vec<ProviderInfo>)))]
pub(crate) async fn admin_list_providers(state: State<ApiState>) -> Result<Response, ApiError> {
    list_providers(state).await
}

/// Look at a provider
#[utoipa::path(get, path = "/api/v1/admin/providers/{name}", tag = "providers", params(("name" = String, Path)), responses((status = 200, body = ProviderDetail)))]
pub(crate) async fn admin_get_provider(
    state: State<ApiState>,
    name: Path<String>,
) -> Result<Response, ApiError> {
    get_provider(state, name).await
}

/// Which providers are healthy
#[utoipa::path(post, path = "/api/v1/admin/providers/test", tag = "providers", responses((status = 200, body = BTreeMap<String, bool>)))]
pub(crate) async fn admin_test_providers(state: State<ApiState>) -> Result<Response, ApiError> {
    test_providers(state).await
}

/// Every provider as the API shows it.
pub(crate) async fn infos(state: &ApiState) -> Vec<ProviderInfo> {
    state.engine().provider_status().await.into_iter().map(info).collect()
}

fn info(status: ProviderStatus) -> ProviderInfo {
    ProviderInfo {
        capabilities: capabilities(&status.capabilities),
        name: status.name,
        healthy: status.healthy,
        default: status.default,
        latency_ms: u64::try_from(status.latency.as_millis()).unwrap_or(u64::MAX),
        last_checked: Timestamp::from_second(status.last_checked.as_second()).unwrap_or(status.last_checked),
        error: if status.healthy { None } else { status.problem },
        runtime_count: status.runtime_count,
        warnings: status.warnings,
    }
}

/// The type that old clients know, for a runtime that does not say.
fn kind(status: &ProviderStatus) -> &str {
    match status.name.as_str() {
        name @ ("docker" | "firecracker" | "proot" | "mock" | "native") => name,
        _ => "other",
    }
}

/// What a provider can do in the words of the contract, and in new ones for what has no old word.
fn capabilities(capabilities: &Capabilities) -> Vec<String> {
    // Every field is named, so that a new one cannot be forgotten here.
    let Capabilities {
        isolation,
        survives_restart,
        memory_limit,
        cpu_limit,
        pids_limit,
        root_user,
        isolated,
        stats,
        pause,
        oom_ends_sandbox,
        disk_limit,
        pty,
        pty_signals,
    } = *capabilities;
    let mut words: Vec<&str> =
        vec!["spawn", "exec", "exec_stream", "files", "console", "health", "runtime_inventory", isolation];
    for (word, has) in [
        ("survives_restart", survives_restart),
        ("memory_limit", memory_limit),
        ("cpu_limit", cpu_limit),
        ("pids_limit", pids_limit),
        ("root_user", root_user),
        ("isolated", isolated),
        ("stats", stats),
        ("pause", pause),
        ("oom_ends_sandbox", oom_ends_sandbox),
        ("disk_limit", disk_limit),
        ("pty", pty),
        ("pty_signals", pty_signals),
    ] {
        if has {
            words.push(word);
        }
    }
    words.into_iter().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_begin_with_the_words_of_the_contract() {
        let words = capabilities(&Capabilities {
            isolation: "test_provider",
            survives_restart: false,
            memory_limit: false,
            cpu_limit: false,
            pids_limit: false,
            root_user: false,
            isolated: false,
            stats: true,
            pause: false,
            oom_ends_sandbox: false,
            disk_limit: false,
            pty: false,
            pty_signals: false,
        });
        let expected = [
            "spawn",
            "exec",
            "exec_stream",
            "files",
            "console",
            "health",
            "runtime_inventory",
            "test_provider",
            "stats",
        ];
        assert_eq!(words, expected);
    }
}
