//! Every route with the scope that it asks for. One file per group; this one only lists them.

mod archives;
mod events;
mod exec;
mod files;
mod forms;
mod images;
mod measure;
mod metrics;
mod processes;
mod providers;
mod raw_files;
mod sandboxes;
mod sockets;
mod system;
mod watch;

use crate::{
    auth::{AccessTable, Scope},
    error::ApiError,
    openapi,
    registry::Routes,
};
use axum::{extract::Request, response::IntoResponse};
use stacyvm_types::ErrorCode;
use utoipa::openapi::OpenApi;
use utoipa_axum::routes;

#[cfg(test)]
mod tests;

/// The routes of the API.
pub(crate) fn all() -> Routes {
    Routes::new(openapi::base())
        .add(Scope::Public, routes!(openapi::openapi_json))
        .add(Scope::Public, routes!(openapi::swagger_json))
        .add(Scope::Read, routes!(sandboxes::list_sandboxes))
        .add(Scope::Write, routes!(sandboxes::create_sandbox, sandboxes::prune_sandboxes))
        .add(Scope::Read, routes!(sandboxes::sandbox_admission))
        .add(Scope::Read, routes!(sandboxes::get_sandbox))
        .add(Scope::Write, routes!(sandboxes::destroy_sandbox))
        .add(Scope::Write, routes!(sandboxes::extend_sandbox))
        .add(Scope::Write, routes!(sandboxes::pause_sandbox))
        .add(Scope::Write, routes!(sandboxes::resume_sandbox))
        .add(Scope::Read, routes!(sandboxes::sandbox_logs))
        .add(Scope::Read, routes!(sandboxes::sandbox_stats))
        .add(Scope::Write, routes!(exec::exec))
        .add(Scope::Write, routes!(sockets::exec_socket))
        .add(Scope::Write, routes!(sockets::process_socket))
        .add(Scope::Read, routes!(processes::list_processes))
        .add(Scope::Write, routes!(processes::start_process))
        .add(Scope::Read, routes!(processes::get_process))
        .add(Scope::Read, routes!(processes::process_output))
        .add_raw(Scope::Write, routes!(processes::write_stdin))
        .add(Scope::Write, routes!(processes::signal_process))
        .add(Scope::Write, routes!(processes::resize_process))
        .add(Scope::Read, routes!(processes::wait_process))
        .add(Scope::Read, routes!(raw_files::read_file, raw_files::head_file))
        .add_raw(Scope::Write, routes!(raw_files::upload_file))
        .add(Scope::Write, routes!(files::write_file, files::delete_file))
        .add(Scope::Read, routes!(files::list_files))
        .add(Scope::Read, routes!(files::stat_file))
        .add(Scope::Read, routes!(files::glob_files))
        .add(Scope::Write, routes!(files::move_file))
        .add(Scope::Write, routes!(files::chmod_file))
        .add(Scope::Write, routes!(files::make_directory))
        .add(Scope::Read, routes!(events::events))
        .add(Scope::Read, routes!(images::list_images))
        .add(Scope::Write, routes!(images::remove_image))
        .add(Scope::Read, routes!(images::inspect_image))
        .add(Scope::Write, routes!(images::pull_image))
        .add_raw(Scope::Write, routes!(images::import_images))
        .add(Scope::Write, routes!(images::prune_images))
        .add(Scope::Read, routes!(providers::list_providers))
        .add(Scope::Read, routes!(providers::get_provider))
        .add(Scope::Write, routes!(providers::test_providers))
        .add(Scope::Admin, routes!(providers::admin_list_providers))
        .add(Scope::Admin, routes!(providers::admin_get_provider))
        .add(Scope::Admin, routes!(providers::admin_test_providers))
        .add(Scope::Read, routes!(system::health))
        .add(Scope::Read, routes!(system::live))
        .add(Scope::Read, routes!(system::ready))
        .add(Scope::Read, routes!(system::system_stats))
        .add(Scope::Read, routes!(system::pool_status))
        .add(Scope::Read, routes!(system::quota_summary))
        .add(Scope::Read, routes!(metrics::metrics))
        .add(Scope::Read, routes!(metrics::metrics_prometheus))
        .add(Scope::Read, routes!(metrics::diagnostics))
        .add(Scope::Admin, routes!(metrics::admin_metrics))
        .add(Scope::Admin, routes!(metrics::admin_metrics_prometheus))
        .add(Scope::Admin, routes!(metrics::admin_diagnostics))
        .add(Scope::Read, routes!(archives::download_archive))
        .add_raw(Scope::Write, routes!(archives::upload_archive))
        .add_raw(Scope::Write, routes!(forms::upload_form))
        .add(Scope::Read, routes!(watch::watch_files))
        .add(Scope::Read, routes!(watch::disk_usage))
}

/// What every route declared, and the description of the API.
pub(crate) fn description() -> (AccessTable, OpenApi) {
    let (_, access, openapi) = all().into_parts();
    (access, openapi)
}

/// Answer to a path that is none.
pub(crate) async fn no_such_route() -> impl IntoResponse {
    ApiError::not_found("no such route")
}

/// Answer to a method that a path does not have; the router adds `Allow`.
pub(crate) async fn no_such_method(request: Request) -> impl IntoResponse {
    ApiError::new(ErrorCode::MethodNotAllowed, format!("method {} is not allowed here", request.method()))
}
