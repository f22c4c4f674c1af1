//! The one place where an error becomes an answer: status, `{"code","message"}`, and the log line that keeps the cause.

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use stacyvm_provider::ErrorKind;
use stacyvm_types::{ErrorBody, ErrorCode};
use std::borrow::Cow;

/// An error on its way to a client.
#[derive(Debug)]
pub(crate) struct ApiError {
    code: ErrorCode,
    message: Cow<'static, str>,
    /// Boxed because hardly any error has one.
    headers: Option<Box<HeaderMap>>,
}

macro_rules! constructors {
    ($($name:ident => $code:ident),+ $(,)?) => {$(
        pub(crate) fn $name(message: impl Into<Cow<'static, str>>) -> Self {
            Self::new(ErrorCode::$code, message)
        }
    )+};
}

impl ApiError {
    constructors! {
        bad_request => BadRequest, unauthorized => Unauthorized, forbidden => Forbidden, not_found => NotFound,
        timeout => Timeout, payload_too_large => PayloadTooLarge, resource_limit => ResourceLimit,
        internal => InternalError, unavailable => Unavailable,
    }

    pub(crate) fn new(code: ErrorCode, message: impl Into<Cow<'static, str>>) -> Self {
        Self { code, message: message.into(), headers: None }
    }

    /// The same error with a header.
    pub(crate) fn with_header(mut self, name: HeaderName, value: impl Into<HeaderValue>) -> Self {
        self.headers.get_or_insert_default().insert(name, value.into());
        self
    }

    pub(crate) fn code(&self) -> ErrorCode {
        self.code
    }

    /// The body, for streams that end with an error.
    pub(crate) fn body(&self) -> ErrorBody {
        ErrorBody { code: self.code, message: self.message.clone().into_owned() }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = json(status, &self.body());
        if let Some(headers) = self.headers {
            response.headers_mut().extend(*headers);
        }
        response
    }
}

impl From<stacyvm_engine::Error> for ApiError {
    fn from(error: stacyvm_engine::Error) -> Self {
        let code = error.code();
        log(code, &error);
        Self::new(code, error.message().to_owned())
    }
}

impl From<stacyvm_provider::Error> for ApiError {
    fn from(error: stacyvm_provider::Error) -> Self {
        let code = match error.kind() {
            ErrorKind::NotFound | ErrorKind::Destroyed => ErrorCode::NotFound,
            ErrorKind::Unavailable => ErrorCode::Unavailable,
            ErrorKind::Timeout => ErrorCode::Timeout,
            ErrorKind::ResourceLimit => ErrorCode::ResourceLimit,
            ErrorKind::InvalidArgument => ErrorCode::BadRequest,
            ErrorKind::Unsupported => ErrorCode::Unsupported,
            ErrorKind::Internal => ErrorCode::InternalError,
        };
        log(code, &error);
        Self::new(code, error.message().to_owned())
    }
}

/// Causes never reach a client, so those that an operator has to look into are kept here.
fn log(code: ErrorCode, error: &dyn std::error::Error) {
    if !matches!(code, ErrorCode::InternalError | ErrorCode::Unavailable) {
        return;
    }
    let mut chain = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        chain.push_str(": ");
        chain.push_str(&error.to_string());
        cause = error.source();
    }
    tracing::warn!(?code, error = %chain, "request failed");
}

/// Compact JSON with a newline at its end, as every answer has.
pub(crate) fn json<T: serde::Serialize>(status: StatusCode, value: &T) -> Response {
    let (status, body) = match serde_json::to_vec(value) {
        Ok(mut body) => {
            body.push(b'\n');
            (status, body)
        }
        Err(error) => {
            tracing::error!(%error, "an answer could not be written as JSON");
            let body = br#"{"code":"INTERNAL_ERROR","message":"the answer could not be encoded"}"#;
            (StatusCode::INTERNAL_SERVER_ERROR, body.to_vec())
        }
    };
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// Answer of a handler that panicked; the panic itself is in the log.
#[expect(clippy::needless_pass_by_value, reason = "the signature that the layer calls")]
pub(crate) fn panicked(panic: Box<dyn std::any::Any + Send>) -> Response {
    let text =
        panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    tracing::error!(panic = text.unwrap_or("(no text)"), "a request handler panicked");
    ApiError::internal("internal error").into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;

    async fn text(response: Response) -> String {
        String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
    }

    #[tokio::test]
    async fn an_error_is_compact_json_with_its_status() {
        let response = ApiError::not_found("no such thing").into_response();
        assert_eq!(response.status(), StatusCode::NOT_FOUND);
        assert_eq!(response.headers()[header::CONTENT_TYPE], "application/json");
        assert_eq!(text(response).await, "{\"code\":\"NOT_FOUND\",\"message\":\"no such thing\"}\n");
    }

    #[tokio::test]
    async fn causes_stay_inside() {
        let error = stacyvm_provider::Error::internal("the runtime failed").because("secret path");
        assert!(!text(ApiError::from(error).into_response()).await.contains("secret"));
    }

    #[tokio::test]
    async fn a_panic_is_a_500_without_its_text() {
        let response = panicked(Box::new("secret"));
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(text(response).await, "{\"code\":\"INTERNAL_ERROR\",\"message\":\"internal error\"}\n");
    }

    #[test]
    fn every_kind_of_provider_error_has_a_code_of_its_own_status() {
        for kind in ErrorKind::ALL {
            let error = ApiError::from(stacyvm_provider::Error::new(kind, "x"));
            assert!(error.code().status() >= 400, "{kind:?}");
        }
    }
}
