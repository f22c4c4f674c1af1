//! How streams learn that the server is stopping: each request carries the token of the server that took it.

use crate::ApiState;
use axum::extract::FromRequestParts;
use http::request::Parts;
use std::convert::Infallible;
use tokio_util::sync::CancellationToken;

/// Cancelled when the server stops taking requests. Requests that came in another way never see it cancelled.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stop(pub(crate) CancellationToken);

impl FromRequestParts<ApiState> for Stop {
    type Rejection = Infallible;
    async fn from_request_parts(parts: &mut Parts, _: &ApiState) -> Result<Self, Infallible> {
        Ok(parts.extensions.get::<Self>().cloned().unwrap_or_default())
    }
}
