//! The one error shape of the API: `{"code":"NOT_FOUND","message":"…"}`.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Body of every answer with a status of 400 or more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// What kind of error, for programs.
    pub code: ErrorCode,
    /// What happened and what to do, for people.
    pub message: String,
}

/// Error codes on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ErrorCode {
    /// 400: the request is wrong.
    BadRequest,
    /// 401: no valid credentials.
    Unauthorized,
    /// 403: valid credentials without the right.
    Forbidden,
    /// 404: no such sandbox (or it is destroyed), process, file, provider, route.
    NotFound,
    /// 405: the route exists with other methods.
    MethodNotAllowed,
    /// 408: the deadline of an exec ran out.
    Timeout,
    /// 409: it exists already, or the state does not allow it.
    Conflict,
    /// 413: the body is larger than allowed.
    PayloadTooLarge,
    /// 416: the range lies outside the file.
    RangeNotSatisfiable,
    /// 429: a limit was hit.
    ResourceLimit,
    /// 500: a defect.
    InternalError,
    /// 501: this runtime cannot do that.
    Unsupported,
    /// 503: the runtime or the guest cannot be reached now.
    Unavailable,
}

impl ErrorCode {
    /// HTTP status of the answer that carries this code.
    pub fn status(self) -> u16 {
        match self {
            Self::BadRequest => 400,
            Self::Unauthorized => 401,
            Self::Forbidden => 403,
            Self::NotFound => 404,
            Self::MethodNotAllowed => 405,
            Self::Timeout => 408,
            Self::Conflict => 409,
            Self::PayloadTooLarge => 413,
            Self::RangeNotSatisfiable => 416,
            Self::ResourceLimit => 429,
            Self::InternalError => 500,
            Self::Unsupported => 501,
            Self::Unavailable => 503,
        }
    }
}
