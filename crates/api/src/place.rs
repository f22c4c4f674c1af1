//! What a connection keeps when it stops being HTTP: its place among the connections that there may be, and the server's
//! attention when that stops.

use crate::ApiState;
use axum::extract::FromRequestParts;
use http::request::Parts;
use std::{convert::Infallible, sync::Arc};
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::task::task_tracker::TaskTrackerToken;

/// See the module. Empty for requests that came in another way than through a server.
#[derive(Debug, Clone, Default)]
pub(crate) struct Place {
    _permit: Option<Arc<OwnedSemaphorePermit>>,
    _token: Option<TaskTrackerToken>,
}

impl Place {
    pub(crate) fn new(permit: Arc<OwnedSemaphorePermit>, token: TaskTrackerToken) -> Self {
        Self { _permit: Some(permit), _token: Some(token) }
    }
}

impl FromRequestParts<ApiState> for Place {
    type Rejection = Infallible;
    async fn from_request_parts(parts: &mut Parts, _: &ApiState) -> Result<Self, Infallible> {
        Ok(parts.extensions.get::<Self>().cloned().unwrap_or_default())
    }
}
