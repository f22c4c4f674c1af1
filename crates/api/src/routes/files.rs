//! Files by JSON: the routes that clients have always used. Content of any size and any bytes is `raw_files.rs`.

use crate::{
    ApiState,
    body::{FileJson, Json, pieces},
    error::{ApiError, json},
    extract::{Path, Query},
    paths::{absolute, mode},
    routes::{
        measure::{Call, tell_limit},
        sandboxes::status,
    },
    wire,
};
use axum::{extract::State, response::Response};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::StatusCode;
use serde::Deserialize;
use stacyvm_engine::{EventType, Operation};
use stacyvm_types::{
    ChmodFile, Encoding, FileInfo, MakeDirectory, MoveFile, StatusReply, WriteFile, WrittenFile,
};
use utoipa::IntoParams;

/// Which path.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct PathQuery {
    /// The path; a relative one starts in `/workspace`.
    #[serde(default)]
    #[param(required)]
    pub(crate) path: String,
}

/// Write a file
///
/// Parents are made; an existing file is replaced in one step.
#[utoipa::path(post, path = "/api/v1/sandboxes/{id}/files", tag = "files", params(("id" = String, Path)), request_body = WriteFile, responses((status = 200, body = WrittenFile)))]
pub(crate) async fn write_file(
    State(state): State<ApiState>,
    Path(id): Path<String>,
    body: FileJson<WriteFile>,
) -> Result<Response, ApiError> {
    let (body, _room) = body.into_parts();
    let file = stacyvm_provider::WriteFile {
        path: absolute(&body.path)?,
        mode: mode(body.mode.as_deref(), 0o644)?,
        user: None,
    };
    let content = match body.encoding {
        Encoding::Utf8 => body.content.into_bytes(),
        Encoding::Base64 => STANDARD
            .decode(body.content)
            .map_err(|error| ApiError::bad_request(format!("content is not base64: {error}")))?,
    };
    let call = Call::start(&state, &id, Operation::FileWrite).await?;
    let result = call.guest.write_file(&file, pieces(content.into())).await;
    let entry = call.end(result)?;
    state.engine().events().emit(EventType::FileWritten, Some(&id), serde_json::Map::new());
    Ok(written(entry))
}

/// Answer to a write.
pub(crate) fn written(entry: stacyvm_provider::FileEntry) -> Response {
    json(StatusCode::OK, &WrittenFile { status: "written".into(), file: wire::file(entry) })
}

/// What to delete.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct DeleteQuery {
    /// The path; a relative one starts in `/workspace`.
    #[serde(default)]
    #[param(required)]
    path: String,
    /// `true`: a directory with everything in it.
    recursive: Option<String>,
}

/// Delete a file or directory
///
/// Also answers 200 if there is none.
#[utoipa::path(delete, path = "/api/v1/sandboxes/{id}/files", tag = "files", params(("id" = String, Path), DeleteQuery), responses((status = 200, body = StatusReply)))]
pub(crate) async fn delete_file(
    State(state): State<ApiState>,
    Path(id): Path<String>,
    Query(query): Query<DeleteQuery>,
) -> Result<Response, ApiError> {
    let path = absolute(&query.path)?;
    let recursive = query.recursive.as_deref() == Some("true");
    let call = Call::start(&state, &id, Operation::FileDelete).await?;
    let result = match call.guest.remove(&path, recursive).await {
        Err(error) if error.kind() == stacyvm_provider::ErrorKind::NotFound => Ok(()),
        other => other,
    };
    call.end(result)?;
    Ok(status("deleted"))
}

/// Which directory.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct DirectoryQuery {
    /// The directory; default `/`.
    #[serde(default)]
    path: String,
}

/// List a directory
#[utoipa::path(get, path = "/api/v1/sandboxes/{id}/files/list", tag = "files", params(("id" = String, Path), DirectoryQuery), responses((status = 200, body = Vec<FileInfo>)))]
pub(crate) async fn list_files(
    State(state): State<ApiState>,
    Path(id): Path<String>,
    Query(query): Query<DirectoryQuery>,
) -> Result<Response, ApiError> {
    let path = if query.path.trim().is_empty() { "/".to_owned() } else { absolute(&query.path)? };
    let call = Call::start(&state, &id, Operation::FileList).await?;
    let result = call.guest.list_dir(&path).await;
    let entries = call.end(result)?;
    Ok(json(StatusCode::OK, &entries.into_iter().map(wire::file).collect::<Vec<_>>()))
}

/// What to look at.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct StatQuery {
    /// The path; a relative one starts in `/workspace`.
    #[serde(default)]
    #[param(required)]
    path: String,
    /// `false`: a symbolic link itself instead of its target.
    follow: Option<bool>,
}

/// Metadata of a file or directory
#[utoipa::path(get, path = "/api/v1/sandboxes/{id}/files/stat", tag = "files", params(("id" = String, Path), StatQuery), responses((status = 200, body = FileInfo)))]
pub(crate) async fn stat_file(
    State(state): State<ApiState>,
    Path(id): Path<String>,
    Query(query): Query<StatQuery>,
) -> Result<Response, ApiError> {
    let (path, follow) = (absolute(&query.path)?, query.follow.unwrap_or(true));
    let call = Call::start(&state, &id, Operation::FileStat).await?;
    let result = call.guest.stat(&path, follow).await;
    let entry = call.end(result)?;
    Ok(json(StatusCode::OK, &wire::file(entry)))
}

/// Which files.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct GlobQuery {
    /// `*`, `?`, `[]` and `{}` within a component, `**` across; a relative pattern starts in `/workspace`.
    #[serde(default)]
    #[param(required)]
    pattern: String,
}

/// Paths that match a pattern, sorted
#[utoipa::path(get, path = "/api/v1/sandboxes/{id}/files/glob", tag = "files", params(("id" = String, Path), GlobQuery), responses((status = 200, body = Vec<String>)))]
pub(crate) async fn glob_files(
    State(state): State<ApiState>,
    Path(id): Path<String>,
    Query(query): Query<GlobQuery>,
) -> Result<Response, ApiError> {
    if query.pattern.trim().is_empty() {
        return Err(ApiError::bad_request("pattern is required"));
    }
    let pattern = absolute(&query.pattern)?;
    let call = Call::start(&state, &id, Operation::FileGlob).await?;
    let result = call.guest.glob(&pattern).await;
    let entries = call.end(result)?;
    Ok(json(StatusCode::OK, &entries.into_iter().map(|entry| entry.path).collect::<Vec<_>>()))
}

/// Rename a file or directory
#[utoipa::path(post, path = "/api/v1/sandboxes/{id}/files/move", tag = "files", params(("id" = String, Path)), request_body = MoveFile, responses((status = 200, body = StatusReply)))]
pub(crate) async fn move_file(
    State(state): State<ApiState>,
    Path(id): Path<String>,
    Json(body): Json<MoveFile>,
) -> Result<Response, ApiError> {
    let (from, to) = (absolute(&body.old_path)?, absolute(&body.new_path)?);
    let call = Call::start(&state, &id, Operation::FileMove).await?;
    let result = call.guest.move_file(&from, &to).await;
    call.end(result)?;
    Ok(status("moved"))
}

/// Set permission bits
#[utoipa::path(post, path = "/api/v1/sandboxes/{id}/files/chmod", tag = "files", params(("id" = String, Path)), request_body = ChmodFile, responses((status = 200, body = StatusReply)))]
pub(crate) async fn chmod_file(
    State(state): State<ApiState>,
    Path(id): Path<String>,
    Json(body): Json<ChmodFile>,
) -> Result<Response, ApiError> {
    if body.mode.trim().is_empty() {
        return Err(ApiError::bad_request("mode is required"));
    }
    let (path, bits) = (absolute(&body.path)?, mode(Some(&body.mode), 0)?);
    let call = Call::start(&state, &id, Operation::FileChmod).await?;
    let result = call.guest.chmod(&path, bits).await;
    call.end(result)?;
    Ok(status("chmod applied"))
}

/// Make a directory
#[utoipa::path(post, path = "/api/v1/sandboxes/{id}/files/mkdir", tag = "files", params(("id" = String, Path)), request_body = MakeDirectory, responses((status = 200, body = StatusReply)))]
pub(crate) async fn make_directory(
    State(state): State<ApiState>,
    Path(id): Path<String>,
    Json(body): Json<MakeDirectory>,
) -> Result<Response, ApiError> {
    let (path, bits) = (absolute(&body.path)?, mode(body.mode.as_deref(), 0o755)?);
    let result = state.engine().guest(&id).await?.mkdir(&path, bits, body.parents).await;
    tell_limit(state.engine(), &id, &result);
    result?;
    Ok(status("created"))
}
