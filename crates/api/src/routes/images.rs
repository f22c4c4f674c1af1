//! Images of the host's store. The docker provider's are its daemon's business.

use crate::{
    ApiState,
    body::{Json, streamed},
    error::{ApiError, json},
    extract::Query,
    routes::raw_files::FileContent,
};
use axum::{
    extract::{Request, State},
    response::Response,
};
use futures::TryStreamExt;
use http::StatusCode;
use serde::Deserialize;
use stacyvm_image::{Images, Import, Reference, store::Collect};
use stacyvm_types::{Image, PruneImages, PrunedImages, PullImage, RemovedImage};
use std::{io, time::Duration};
use tokio_util::io::{StreamReader, SyncIoBridge};
use utoipa::IntoParams;

/// List images, those used last first
#[utoipa::path(get, path = "/api/v1/images", tag = "images", responses((status = 200, body = Vec<Image>)))]
pub(crate) async fn list_images(State(state): State<ApiState>) -> Result<Response, ApiError> {
    let images: Vec<Image> = store(&state)?.list().await?.into_iter().map(Image::from).collect();
    Ok(json(StatusCode::OK, &images))
}

/// Pull an image
///
/// Answers when it is here; layers that are here already are not fetched again. Progress comes as events `image.pull`. It goes
/// on when the caller goes away.
#[utoipa::path(post, path = "/api/v1/images/pull", tag = "images", request_body = PullImage, responses((status = 200, body = Image)))]
pub(crate) async fn pull_image(
    State(state): State<ApiState>,
    Json(body): Json<PullImage>,
) -> Result<Response, ApiError> {
    let image = store(&state)?.pull(&body.image).await?;
    Ok(json(StatusCode::OK, &Image::from(image)))
}

/// What an imported image is called.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct ImportQuery {
    /// Its name; default: those in the archive. Without either it can be found by its id.
    name: Option<String>,
}

/// Import images
///
/// The body is an archive: of `docker save`, an OCI layout as tar, or a root filesystem as tar; each may be compressed with
/// gzip or zstd. What it is, is found by its content.
#[utoipa::path(post, path = "/api/v1/images/import", tag = "images", params(ImportQuery), request_body(content = FileContent, content_type = "application/octet-stream"), responses((status = 201, body = Vec<Image>)))]
pub(crate) async fn import_images(
    State(state): State<ApiState>,
    Query(query): Query<ImportQuery>,
    request: Request,
) -> Result<Response, ApiError> {
    let images = store(&state)?;
    let name = query.name.filter(|name| !name.is_empty());
    let names: Vec<Reference> = name.map(|name| name.parse()).transpose()?.into_iter().collect();
    let limits = &state.config().limits;
    let (content, broken) = streamed(request.into_body(), limits.upload, limits.idle);
    let content = StreamReader::new(Box::pin(content.map_err(io::Error::other)));
    let imported = images.import(SyncIoBridge::new(content), Import { names, ..Import::default() }).await;
    let imported = imported.map_err(|error| broken.take().unwrap_or_else(|| error.into()))?;
    Ok(json(StatusCode::CREATED, &imported.into_iter().map(Image::from).collect::<Vec<_>>()))
}

/// Which image.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct ImageQuery {
    /// Its name, its id, or the first seven or more digits of that.
    #[serde(default)]
    #[param(required)]
    image: String,
}

/// Look at an image
#[utoipa::path(get, path = "/api/v1/images/inspect", tag = "images", params(ImageQuery), responses((status = 200, body = Image)))]
pub(crate) async fn inspect_image(
    State(state): State<ApiState>,
    Query(query): Query<ImageQuery>,
) -> Result<Response, ApiError> {
    let found = store(&state)?.find(&query.image).await?;
    let image = found.ok_or_else(|| ApiError::not_found(format!("image not found: {}", query.image)))?;
    Ok(json(StatusCode::OK, &Image::from(image)))
}

/// Which image to remove, and how.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct RemoveQuery {
    /// Its name, its id, or the first seven or more digits of that.
    #[serde(default)]
    #[param(required)]
    image: String,
    /// Also if sandboxes have it: they keep its files, new ones do not get it.
    #[serde(default)]
    force: bool,
}

/// Remove a name, and the image with its last name
#[utoipa::path(delete, path = "/api/v1/images", tag = "images", params(RemoveQuery), responses((status = 200, body = RemovedImage)))]
pub(crate) async fn remove_image(
    State(state): State<ApiState>,
    Query(query): Query<RemoveQuery>,
) -> Result<Response, ApiError> {
    let removed = store(&state)?.remove(&query.image, query.force).await?;
    Ok(json(StatusCode::OK, &RemovedImage::from(removed)))
}

/// Remove what nothing needs
///
/// Images without a name, with `all` every image that no sandbox has; layers and downloads that nothing needs.
#[utoipa::path(post, path = "/api/v1/images/prune", tag = "images", request_body = PruneImages, responses((status = 200, body = PrunedImages)))]
pub(crate) async fn prune_images(
    State(state): State<ApiState>,
    Json(body): Json<PruneImages>,
) -> Result<Response, ApiError> {
    let unused_for = body.all.then_some(Duration::ZERO);
    let pruned = store(&state)?.collect(Collect { unused_for, ..Collect::default() }).await?;
    Ok(json(StatusCode::OK, &PrunedImages::from(pruned)))
}

fn store(state: &ApiState) -> Result<&Images, ApiError> {
    state.images().ok_or_else(|| {
        ApiError::unavailable("this server keeps no images: none of its providers takes them from here")
    })
}
