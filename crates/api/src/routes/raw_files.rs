//! Files as bytes: uploads of any size in bounded memory that replace a file in one step or not at all, and downloads
//! with ranges, so that a broken transfer can go on where it stopped.

use crate::{
    ApiState,
    body::streamed,
    error::ApiError,
    extract::{Path, Query},
    paths::{absolute, mode},
    range::ByteRange,
    routes::{
        files::{PathQuery, written},
        measure::Call,
    },
    wire,
};
use axum::{
    body::Body,
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures::{StreamExt, stream};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::Deserialize;
use stacyvm_engine::{EventType, Operation};
use stacyvm_provider::{ByteStream, FileEntry, FileKind, Guest, ReadRange, WriteFile};
use stacyvm_types::{ErrorCode, WrittenFile};
use std::time::UNIX_EPOCH;
use utoipa::{IntoParams, ToSchema};

/// How often a file may change between looking at it and opening it before the read gives up.
const ATTEMPTS: u32 = 3;

/// Where and how to write.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct UploadQuery {
    /// The path; a relative one starts in `/workspace`.
    #[serde(default)]
    #[param(required)]
    path: String,
    /// Permission bits in octal; default `0644`.
    mode: Option<String>,
    /// Owner: a name, `uid` or `uid:gid`; default: the sandbox user.
    user: Option<String>,
}

/// Bytes, as the description of the API shows them.
#[derive(ToSchema)]
#[schema(value_type = String, format = Binary)]
#[expect(dead_code, reason = "only described, never made")]
pub(crate) struct FileContent(Vec<u8>);

/// Upload a file
///
/// The body is the content: any bytes, any size. Parents are made; an existing file is replaced in one step when all of
/// the content has arrived, and stays as it is if the upload breaks off.
#[utoipa::path(put, path = "/api/v1/sandboxes/{id}/files", tag = "files", params(("id" = String, Path), UploadQuery), request_body(content = FileContent, content_type = "application/octet-stream"), responses((status = 200, body = WrittenFile)))]
pub(crate) async fn upload_file(
    State(state): State<ApiState>,
    Path(id): Path<String>,
    Query(query): Query<UploadQuery>,
    request: Request,
) -> Result<Response, ApiError> {
    let file = WriteFile {
        path: absolute(&query.path)?,
        mode: mode(query.mode.as_deref(), 0o644)?,
        user: query.user.filter(|user| !user.is_empty()),
    };
    let limits = &state.config().limits;
    let (content, broken) = streamed(request.into_body(), limits.upload, limits.idle);
    let call = Call::start(&state, &id, Operation::FileWrite).await?;
    let result = call.guest.write_file(&file, content).await;
    let entry = call.end(result).map_err(|error| broken.take().unwrap_or(error))?;
    state.engine().events().emit(EventType::FileWritten, Some(&id), serde_json::Map::new());
    Ok(written(entry))
}

/// Download a file, or part of it
#[utoipa::path(
    get, path = "/api/v1/sandboxes/{id}/files", tag = "files",
    params(("id" = String, Path), PathQuery, ("Range" = Option<String>, Header, description = "One range of bytes"), ("If-Range" = Option<String>, Header, description = "`ETag` or `Last-Modified` of the file that the range is meant for")),
    responses(
        (status = 200, content_type = "application/octet-stream", body = FileContent),
        (status = 206, content_type = "application/octet-stream", body = FileContent),
        (status = 416, body = stacyvm_types::ErrorBody),
    )
)]
pub(crate) async fn read_file(
    State(state): State<ApiState>,
    Path(id): Path<String>,
    Query(query): Query<PathQuery>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let path = absolute(&query.path)?;
    let asked = headers.get(header::RANGE).and_then(|range| range.to_str().ok()).and_then(ByteRange::parse);
    let call = Call::start(&state, &id, Operation::FileRead).await?;
    let result = open(&*call.guest, &path, asked, headers.get(header::IF_RANGE)).await;
    let opened = call.end(result)?;
    state.engine().events().emit(EventType::FileRead, Some(&id), serde_json::Map::new());
    match opened {
        Opened::Whole(entry, content) => whole(&entry, content).await,
        Opened::Part { entry, first, length, content } => {
            let mut response = (StatusCode::PARTIAL_CONTENT, limited(content, length)).into_response();
            describe(&entry, response.headers_mut());
            let range = format!("bytes {first}-{}/{}", first + length - 1, entry.size);
            insert(response.headers_mut(), header::CONTENT_RANGE, &range);
            insert(response.headers_mut(), header::CONTENT_LENGTH, &length.to_string());
            Ok(response)
        }
        Opened::Outside(size) => {
            let error = ApiError::new(ErrorCode::RangeNotSatisfiable, format!("the file has {size} bytes"));
            let range = HeaderValue::try_from(format!("bytes */{size}"))
                .map_err(|_| ApiError::internal("bad size"))?;
            Err(error.with_header(header::CONTENT_RANGE, range))
        }
    }
}

/// Size and times of a file, without its content
#[utoipa::path(head, path = "/api/v1/sandboxes/{id}/files", tag = "files", params(("id" = String, Path), PathQuery), responses((status = 200, description = "Headers as of a download")))]
pub(crate) async fn head_file(
    State(state): State<ApiState>,
    Path(id): Path<String>,
    Query(query): Query<PathQuery>,
) -> Result<Response, ApiError> {
    let path = absolute(&query.path)?;
    let call = Call::start(&state, &id, Operation::FileStat).await?;
    let result = call.guest.stat(&path, true).await;
    let entry = call.end(result)?;
    if entry.kind != FileKind::File {
        return Err(ApiError::bad_request(format!("{path} is not a regular file")));
    }
    let mut response = StatusCode::OK.into_response();
    describe(&entry, response.headers_mut());
    insert(response.headers_mut(), header::CONTENT_LENGTH, &entry.size.to_string());
    Ok(response)
}

enum Opened {
    Whole(FileEntry, ByteStream),
    Part {
        entry: FileEntry,
        first: u64,
        length: u64,
        content: ByteStream,
    },
    /// The range lies outside a file of this size.
    Outside(u64),
}

/// Opens what was asked for. A range depends on the size, and the file may change between looking and opening: what was
/// opened decides, and a mismatch looks again.
async fn open(
    guest: &dyn Guest,
    path: &str,
    asked: Option<ByteRange>,
    if_range: Option<&HeaderValue>,
) -> stacyvm_provider::Result<Opened> {
    let whole = ReadRange::default();
    let Some(asked) = asked else {
        let (entry, content) = guest.read_file(path, whole).await?;
        return Ok(Opened::Whole(entry, content));
    };
    for _ in 0..ATTEMPTS {
        let entry = guest.stat(path, true).await?;
        if entry.kind != FileKind::File || !if_range.is_none_or(|wanted| is_version(&entry, wanted)) {
            let (entry, content) = guest.read_file(path, whole).await?;
            return Ok(Opened::Whole(entry, content));
        }
        let Ok((first, length)) = asked.resolve(entry.size) else { return Ok(Opened::Outside(entry.size)) };
        let (opened, content) =
            guest.read_file(path, ReadRange { offset: first, length: Some(length) }).await?;
        if tag(&opened) == tag(&entry) {
            return Ok(Opened::Part { entry: opened, first, length, content });
        }
    }
    Err(stacyvm_provider::Error::unavailable("the file keeps changing; try again"))
}

/// The whole file. Its length is announced; a file that says 0 may be one whose size nobody knows (`/proc`), so its
/// first bytes decide.
async fn whole(entry: &FileEntry, mut content: ByteStream) -> Result<Response, ApiError> {
    let mut response = if entry.size > 0 {
        let mut response = limited(content, entry.size).into_response();
        insert(response.headers_mut(), header::CONTENT_LENGTH, &entry.size.to_string());
        response
    } else {
        match content.next().await {
            None => Body::empty().into_response(),
            Some(first) => {
                let first = first?;
                Body::from_stream(stream::iter([Ok(first)]).chain(content)).into_response()
            }
        }
    };
    describe(entry, response.headers_mut());
    Ok(response)
}

/// At most `length` bytes: a file that grows while it is read must not outgrow what was announced.
fn limited(content: ByteStream, length: u64) -> Body {
    let bytes = content.scan(length, |left, piece| {
        let piece = piece.map(|mut piece: Bytes| {
            let take = usize::try_from(*left).unwrap_or(usize::MAX).min(piece.len());
            piece.truncate(take);
            *left -= take as u64;
            piece
        });
        let over = piece.as_ref().is_ok_and(Bytes::is_empty);
        std::future::ready(if over { None } else { Some(piece) })
    });
    Body::from_stream(bytes)
}

fn describe(entry: &FileEntry, headers: &mut HeaderMap) {
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    // Content of a sandbox must never be taken for a page of this server.
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    insert(headers, header::ETAG, &tag(entry));
    insert(headers, header::LAST_MODIFIED, &http_date(entry));
}

fn insert(headers: &mut HeaderMap, name: http::HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

/// Names a version of a file by size and time of change.
fn tag(entry: &FileEntry) -> String {
    let nanos = entry.modified.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    format!("\"{:x}-{nanos:x}\"", entry.size)
}

fn http_date(entry: &FileEntry) -> String {
    wire::time(entry.modified).strftime("%a, %d %b %Y %H:%M:%S GMT").to_string()
}

fn is_version(entry: &FileEntry, wanted: &HeaderValue) -> bool {
    wanted.as_bytes() == tag(entry).as_bytes() || wanted.as_bytes() == http_date(entry).as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;
    use std::time::{Duration, SystemTime};

    fn entry(size: u64) -> FileEntry {
        FileEntry {
            path: "/workspace/a".into(),
            size,
            mode: 0o644,
            kind: FileKind::File,
            modified: SystemTime::UNIX_EPOCH + Duration::from_secs(1_777_890_734),
            uid: 1000,
            gid: 1000,
            link_target: None,
        }
    }

    fn content(pieces: &'static [&'static [u8]]) -> ByteStream {
        stream::iter(pieces.iter().map(|piece| Ok(Bytes::from_static(piece)))).boxed()
    }

    async fn bytes(body: Body) -> Vec<u8> {
        body.collect().await.unwrap().to_bytes().to_vec()
    }

    #[tokio::test]
    async fn a_growing_file_does_not_outgrow_its_length() {
        assert_eq!(bytes(limited(content(&[b"abc", b"def", b"ghi"]), 4)).await, b"abcd");
        assert_eq!(bytes(limited(content(&[b"abc"]), 3)).await, b"abc");
    }

    #[tokio::test]
    async fn a_file_of_unknown_size_is_sent_without_a_length() {
        let response = whole(&entry(0), content(&[b"MemTotal"])).await.unwrap();
        assert!(!response.headers().contains_key(header::CONTENT_LENGTH));
        assert_eq!(bytes(response.into_body()).await, b"MemTotal");
        let response = whole(&entry(0), content(&[])).await.unwrap();
        assert_eq!(bytes(response.into_body()).await, b"");
    }

    #[test]
    fn versions_are_told_apart() {
        let (a, mut b) = (entry(1), entry(1));
        assert_eq!(http_date(&a), "Mon, 04 May 2026 10:32:14 GMT");
        assert!(is_version(&a, &HeaderValue::from_str(&tag(&a)).unwrap()));
        assert!(is_version(&a, &HeaderValue::from_str(&http_date(&a)).unwrap()));
        b.modified += Duration::from_nanos(1);
        assert!(!is_version(&b, &HeaderValue::from_str(&tag(&a)).unwrap()));
    }
}
