//! Changes in a directory as they happen, and how much disk one takes.

use crate::{
    ApiState,
    error::{ApiError, json},
    extract::{Path, Query},
    paths::absolute,
    routes::{files::PathQuery, measure::Call},
    stop::Stop,
};
use axum::{
    extract::State,
    response::{
        IntoResponse, Response, Sse,
        sse::{Event as SseEvent, KeepAlive},
    },
};
use futures::{StreamExt, stream};
use http::{HeaderMap, StatusCode};
use serde::Deserialize;
use stacyvm_engine::Operation;
use stacyvm_provider::FileChange;
use stacyvm_types::{DiskUsage, FileEvent, FileEventKind};
use utoipa::IntoParams;

/// What to watch.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct WatchQuery {
    /// The directory; a relative path starts in `/workspace`.
    #[serde(default)]
    #[param(required)]
    path: String,
    /// `false`: only what is directly in it; default: everything below.
    recursive: Option<String>,
}

/// Watch a directory
///
/// Changes as server-sent events. The first is `ready`: everything that happens from then on is told, or `overflow` is, and
/// then some of it is lost and the directory has to be looked at again. Changes of one path within a short time are one
/// event. Whoever comes back with `Last-Event-ID` may have missed something, and is told `overflow` first. Comments keep
/// the connection alive. The stream ends behind the deletion of the directory, and with an `error` when it cannot go on.
#[utoipa::path(
    get, path = "/api/v1/sandboxes/{id}/files/watch", tag = "files",
    params(("id" = String, Path), WatchQuery, ("Last-Event-ID" = Option<String>, Header, description = "The last event of a connection that broke")),
    responses((status = 200, body = FileEvent, content_type = "text/event-stream"))
)]
pub(crate) async fn watch_files(
    State(state): State<ApiState>,
    Path(id): Path<String>,
    Query(query): Query<WatchQuery>,
    headers: HeaderMap,
    Stop(stop): Stop,
) -> Result<Response, ApiError> {
    let path = absolute(&query.path)?;
    let recursive = !query.recursive.as_deref().is_some_and(|text| matches!(text, "false" | "0"));
    let call = Call::start(&state, &id, Operation::FileList).await?;
    let result = call.guest.watch(&path, recursive).await;
    let changes = call.end(result)?;
    let mut first = vec![FileEvent { path, is_dir: true, ..bare(FileEventKind::Ready) }];
    if headers.contains_key("last-event-id") {
        first.push(bare(FileEventKind::Overflow));
    }
    let changes = changes.map(|change| match change {
        Ok(change) => event(change),
        Err(error) => FileEvent { error: Some(ApiError::from(error).body()), ..bare(FileEventKind::Error) },
    });
    let lines = stream::iter(first)
        .chain(changes)
        .enumerate()
        .map(|(number, event)| SseEvent::default().id((number + 1).to_string()).json_data(&event))
        .take_until(stop.cancelled_owned());
    let heartbeat = KeepAlive::new().interval(state.config().limits.heartbeat).text("keep-alive");
    Ok(Sse::new(lines).keep_alive(heartbeat).into_response())
}

fn bare(kind: FileEventKind) -> FileEvent {
    FileEvent { kind, path: String::new(), from: None, is_dir: false, error: None }
}

fn event(change: FileChange) -> FileEvent {
    match change {
        FileChange::Created { path, directory } => {
            FileEvent { path, is_dir: directory, ..bare(FileEventKind::Create) }
        }
        FileChange::Modified { path } => FileEvent { path, ..bare(FileEventKind::Modify) },
        FileChange::Attributes { path, directory } => {
            FileEvent { path, is_dir: directory, ..bare(FileEventKind::Attribute) }
        }
        FileChange::Deleted { path, directory } => {
            FileEvent { path, is_dir: directory, ..bare(FileEventKind::Delete) }
        }
        FileChange::Moved { from, path, directory } => {
            FileEvent { path, from: Some(from), is_dir: directory, ..bare(FileEventKind::Move) }
        }
        FileChange::Overflow => bare(FileEventKind::Overflow),
    }
}

/// Disk usage of a file or directory
///
/// As `du` counts it: blocks of disk, each file with several names once, symbolic links not followed.
#[utoipa::path(get, path = "/api/v1/sandboxes/{id}/files/usage", tag = "files", params(("id" = String, Path), PathQuery), responses((status = 200, body = DiskUsage)))]
pub(crate) async fn disk_usage(
    State(state): State<ApiState>,
    Path(id): Path<String>,
    Query(query): Query<PathQuery>,
) -> Result<Response, ApiError> {
    let path = absolute(&query.path)?;
    let call = Call::start(&state, &id, Operation::FileStat).await?;
    let result = call.guest.usage(&path).await;
    let usage = call.end(result)?;
    let answer = DiskUsage {
        path,
        bytes: usage.bytes,
        apparent_bytes: usage.apparent_bytes,
        files: usage.files,
        directories: usage.directories,
        counted_twice: usage.counted_twice,
    };
    Ok(json(StatusCode::OK, &answer))
}
