//! Several files in one form, as browsers and `curl -F` send them. Each is streamed to its place as it comes: nothing is
//! held here but a piece of the one that is under way.

use crate::{
    ApiState,
    body::streamed,
    error::{ApiError, json},
    extract::{Path, Query},
    paths::{absolute, mode},
    routes::measure::Call,
    wire,
};
use axum::{
    extract::{Request, State},
    response::Response,
};
use futures::StreamExt;
use http::{StatusCode, header};
use multer::{Field, Multipart};
use serde::Deserialize;
use stacyvm_engine::{EventType, Operation};
use stacyvm_provider::{ByteStream, Error, WriteFile};
use stacyvm_types::UploadedFiles;
use utoipa::{IntoParams, ToSchema};

/// Most files in one form: the answer lists them.
const MOST: usize = 1_000;

/// Where to, and how.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct FormQuery {
    /// Directory that the files go to; a relative path starts in `/workspace`, which is also the default.
    path: Option<String>,
    /// Permission bits of the files in octal; default `0644`.
    mode: Option<String>,
    /// Owner of the files: a name, `uid` or `uid:gid`; default: the sandbox user.
    user: Option<String>,
}

/// A form with files, as the description of the API shows it.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only described, never made")]
pub(crate) struct FileForm {
    /// Any number of files.
    #[schema(value_type = Vec<String>, format = Binary)]
    file: Vec<Vec<u8>>,
}

/// Upload files in a form
///
/// Where a file goes is said by the name of its field if that has a slash in it (`curl -F src/a.txt=@a.txt`), else by its
/// file name. Both are paths below the directory; `..` is refused. Fields without a file name and without a slash are
/// ignored. Each file is replaced in one step; those before one that fails stay.
#[utoipa::path(post, path = "/api/v1/sandboxes/{id}/files/upload", tag = "files", params(("id" = String, Path), FormQuery), request_body(content = FileForm, content_type = "multipart/form-data"), responses((status = 200, body = UploadedFiles)))]
pub(crate) async fn upload_form(
    State(state): State<ApiState>,
    Path(id): Path<String>,
    Query(query): Query<FormQuery>,
    request: Request,
) -> Result<Response, ApiError> {
    let directory = absolute(query.path.as_deref().filter(|path| !path.is_empty()).unwrap_or("/workspace"))?;
    let bits = mode(query.mode.as_deref(), 0o644)?;
    let user = query.user.filter(|user| !user.is_empty());
    let boundary = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let boundary = boundary.and_then(|kind| multer::parse_boundary(kind).ok());
    let boundary = boundary.ok_or_else(|| {
        ApiError::bad_request("expected a form: Content-Type: multipart/form-data with a boundary")
    })?;
    let limits = &state.config().limits;
    let (content, broken) = streamed(request.into_body(), limits.upload, limits.idle);
    let mut form = Multipart::new(content, boundary);
    let mut files = Vec::new();
    let malformed = |error: &multer::Error| {
        broken.take().unwrap_or_else(|| ApiError::bad_request(format!("the form cannot be read: {error}")))
    };
    while let Some(field) = form.next_field().await.map_err(|error| malformed(&error))? {
        let Some(name) = target(&field)? else { continue };
        if files.len() >= MOST {
            return Err(ApiError::bad_request(format!(
                "more than {MOST} files in one form: send several, or an archive"
            )));
        }
        let path = absolute(&format!("{}/{name}", directory.trim_end_matches('/')))?;
        let file = WriteFile { path, mode: bits, user: user.clone() };
        let call = Call::start(&state, &id, Operation::FileWrite).await?;
        let result = call.guest.write_file(&file, pieces(field)).await;
        let entry = call.end(result).map_err(|error| broken.take().unwrap_or(error))?;
        state.engine().events().emit(EventType::FileWritten, Some(&id), serde_json::Map::new());
        files.push(wire::file(entry));
    }
    if files.is_empty() {
        return Err(ApiError::bad_request("the form has no files"));
    }
    Ok(json(StatusCode::OK, &UploadedFiles { files }))
}

/// Where below the directory the content of a field goes; `None` if it is no file.
fn target(field: &Field<'_>) -> Result<Option<String>, ApiError> {
    let by_field = field.name().filter(|name| name.contains('/'));
    let Some(name) = by_field.or(field.file_name()).filter(|name| !name.is_empty()) else { return Ok(None) };
    let outside = name.split('/').any(|part| part == "..");
    if outside || name.starts_with('/') || name.ends_with('/') {
        let name: String = name.chars().take(200).collect();
        return Err(ApiError::bad_request(format!("{name:?} is no path of a file below the directory")));
    }
    Ok(Some(name.to_owned()))
}

fn pieces(field: Field<'static>) -> ByteStream {
    field
        .map(|piece| {
            piece.map_err(|error| {
                Error::invalid_argument(format!("the form cannot be read: {error}")).because(error)
            })
        })
        .boxed()
}
