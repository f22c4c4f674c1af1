//! Directories as tar archives, both ways, in bounded memory. The guest packs and unpacks; compression is ours.

use crate::{
    ApiState,
    body::streamed,
    coding::{Coding, compressed, decompressed, sniffed},
    error::{ApiError, json},
    extract::{Path, Query},
    paths::absolute,
    routes::{files::PathQuery, measure::Call, raw_files::FileContent},
};
use axum::{
    body::Body,
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use serde::Deserialize;
use stacyvm_engine::{EventType, Operation};
use stacyvm_provider::{ByteStream, ExtractTarget};
use stacyvm_types::ExtractedArchive;
use utoipa::IntoParams;

/// Ways to compress that one upload may be wrapped in: each more multiplies what a few bytes can become.
const LAYERS: usize = 1;

/// Where to, and whose.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct ArchiveQuery {
    /// The directory; a relative path starts in `/workspace`.
    #[serde(default)]
    #[param(required)]
    path: String,
    /// Owner of what is made: a name, `uid` or `uid:gid`; default: the sandbox user.
    user: Option<String>,
}

/// Download a directory as a tar archive
///
/// What is in the directory, by its path below it, and the directory itself as `./`; or one file by its name. With
/// permissions, times, symbolic links (never followed) and hard links; without sockets, pipes and devices. `Accept:
/// application/gzip` or `application/zstd` makes it a compressed file; else `Accept-Encoding: gzip` or `zstd` compresses it on
/// its way. A connection that is cut, for a file that shrank meanwhile say, leaves an archive without its end mark.
#[utoipa::path(
    get, path = "/api/v1/sandboxes/{id}/files/archive", tag = "files",
    params(("id" = String, Path), PathQuery),
    responses((status = 200, content((FileContent = "application/x-tar"), (FileContent = "application/gzip"), (FileContent = "application/zstd"))))
)]
pub(crate) async fn download_archive(
    State(state): State<ApiState>,
    Path(id): Path<String>,
    Query(query): Query<PathQuery>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let path = absolute(&query.path)?;
    let call = Call::start(&state, &id, Operation::FileRead).await?;
    let result = call.guest.archive(&path).await;
    let content = call.end(result)?;
    state.engine().events().emit(EventType::FileRead, Some(&id), serde_json::Map::new());
    let as_file = accepted(&headers, header::ACCEPT, Coding::of_type);
    let on_its_way = accepted(&headers, header::ACCEPT_ENCODING, Coding::named).filter(|_| as_file.is_none());
    let content = match as_file.or(on_its_way) {
        Some(coding) => compressed(content, coding)?,
        None => content,
    };
    let mut response = Body::from_stream(content).into_response();
    let headers = response.headers_mut();
    let kind = as_file.map_or("application/x-tar", Coding::content_type);
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    if let Some(coding) = on_its_way {
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static(coding.name()));
    }
    headers.insert(header::VARY, HeaderValue::from_static("Accept, Accept-Encoding"));
    // Content of a sandbox must never be taken for a page of this server.
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    Ok(response)
}

/// Unpack a tar archive in a directory
///
/// The body is a tar archive: plain, or compressed with gzip or zstd, as `Content-Type` or `Content-Encoding` says or its
/// first bytes show. The directory is made if it is missing; what is there and not in the archive stays. Files are replaced
/// in one step each; a directory that is there keeps its mode. Permissions and times are the archive's, the owner is not.
///
/// Nothing is made outside the directory: absolute paths, `..`, paths through symbolic links, hard links to elsewhere,
/// devices and pipes are refused with the entry named. What was unpacked before a refused entry, or before an upload broke
/// off, stays; every file of it is whole.
#[utoipa::path(
    put, path = "/api/v1/sandboxes/{id}/files/archive", tag = "files",
    params(("id" = String, Path), ArchiveQuery, ("Content-Encoding" = Option<String>, Header, description = "`gzip` or `zstd`")),
    request_body(content((FileContent = "application/x-tar"), (FileContent = "application/gzip"), (FileContent = "application/zstd"))),
    responses((status = 200, body = ExtractedArchive))
)]
pub(crate) async fn upload_archive(
    State(state): State<ApiState>,
    Path(id): Path<String>,
    Query(query): Query<ArchiveQuery>,
    request: Request,
) -> Result<Response, ApiError> {
    let path = absolute(&query.path)?;
    let target = ExtractTarget { path: path.clone(), user: query.user.filter(|user| !user.is_empty()) };
    let layers = layers(request.headers())?;
    let limits = &state.config().limits;
    let (content, broken) = streamed(request.into_body(), limits.upload, limits.idle);
    let call = Call::start(&state, &id, Operation::FileWrite).await?;
    let result = match plain(content, layers).await {
        Ok(content) => call.guest.extract(&target, content).await,
        Err(error) => Err(error),
    };
    let made = call.end(result).map_err(|error| broken.take().unwrap_or(error))?;
    state.engine().events().emit(EventType::FileWritten, Some(&id), serde_json::Map::new());
    let answer = ExtractedArchive {
        status: "extracted".into(),
        path,
        files: made.files,
        directories: made.directories,
        links: made.links,
        bytes: made.bytes,
    };
    Ok(json(StatusCode::OK, &answer))
}

/// The way to compress that the client prefers among those that it names in a header.
fn accepted(headers: &HeaderMap, name: HeaderName, known: fn(&str) -> Option<Coding>) -> Option<Coding> {
    let mut best: Option<(f32, Coding)> = None;
    for value in headers.get_all(name) {
        for item in value.to_str().unwrap_or_default().split(',') {
            let mut parts = item.split(';').map(str::trim);
            let Some(coding) = known(&parts.next().unwrap_or_default().to_ascii_lowercase()) else {
                continue;
            };
            let weight = parts.find_map(|part| part.strip_prefix("q=")).map_or(Ok(1.0), str::parse);
            let weight = weight.unwrap_or(0.0);
            if weight > best.map_or(0.0, |(best, _)| best) {
                best = Some((weight, coding));
            }
        }
    }
    best.map(|(_, coding)| coding)
}

/// What the body is wrapped in as its headers say, the outermost first; `None` where they do not say what is inside.
fn layers(headers: &HeaderMap) -> Result<(Vec<Coding>, Option<Coding>), ApiError> {
    let mut layers = Vec::new();
    for value in headers.get_all(header::CONTENT_ENCODING) {
        for name in value.to_str().unwrap_or_default().split(',').map(str::trim) {
            let name = name.to_ascii_lowercase();
            match Coding::named(&name) {
                Some(coding) => layers.push(coding),
                None if name.is_empty() || name == "identity" => {}
                None => {
                    let name: String = name.chars().take(40).collect();
                    return Err(ApiError::bad_request(format!(
                        "content encoding {name:?} is not understood: use gzip, zstd or none"
                    )));
                }
            }
        }
    }
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let inner = Coding::of_type(&essence);
    if layers.len() + usize::from(inner.is_some()) > LAYERS {
        return Err(ApiError::bad_request("the content is compressed more than once: once is enough"));
    }
    Ok((layers, inner))
}

/// The archive without what it is wrapped in.
async fn plain(
    mut content: ByteStream,
    (layers, inner): (Vec<Coding>, Option<Coding>),
) -> stacyvm_provider::Result<ByteStream> {
    let is_wrapped = !layers.is_empty();
    for coding in layers {
        content = decompressed(content, coding)?;
    }
    let (seen, content) = match inner {
        Some(inner) => (Some(inner), content),
        None if is_wrapped => (None, content),
        None => sniffed(content).await,
    };
    match seen {
        Some(coding) => decompressed(content, coding),
        None => Ok(content),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(all: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in all {
            map.append(*name, HeaderValue::from_static(value));
        }
        map
    }

    #[test]
    fn the_client_chooses() {
        for (value, expected) in [
            ("gzip", Some(Coding::Gzip)),
            ("gzip, zstd", Some(Coding::Gzip)),
            ("gzip;q=0.5, zstd", Some(Coding::Zstd)),
            ("br, GZIP;q=0.1", Some(Coding::Gzip)),
            ("gzip;q=0, br", None),
            ("gzip;q=x", None),
            ("*", None),
            ("", None),
        ] {
            assert_eq!(
                accepted(&headers(&[("a", value)]), HeaderName::from_static("a"), Coding::named),
                expected,
                "{value}"
            );
        }
    }

    #[test]
    fn layers_come_off_from_the_outside() {
        let (gzip, zstd) = (Coding::Gzip, Coding::Zstd);
        for (all, expected) in [
            (&[][..], (vec![], None)),
            (&[("content-type", "application/gzip; x=y")], (vec![], Some(gzip))),
            (&[("content-encoding", "identity"), ("content-type", "application/x-tar")], (vec![], None)),
            (&[("content-encoding", "zstd")], (vec![zstd], None)),
        ] {
            assert_eq!(layers(&headers(all)).unwrap(), expected, "{all:?}");
        }
        assert!(layers(&headers(&[("content-encoding", "br")])).is_err());
        assert!(layers(&headers(&[("content-encoding", "gzip,gzip")])).is_err());
        let twice = [("content-encoding", "gzip"), ("content-type", "application/zstd")];
        assert!(layers(&headers(&twice)).is_err());
    }
}
