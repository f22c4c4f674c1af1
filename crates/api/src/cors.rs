//! Which web pages may call the API from a browser.

use crate::config::ApiConfig;
use http::{HeaderName, HeaderValue, Method, header};
use tower_http::cors::{AllowOrigin, CorsLayer};

/// Without a key a wildcard would hand the machine to every web page, so only origins that are named count then.
pub(crate) fn layer(config: &ApiConfig) -> CorsLayer {
    let origins = &config.cors_allowed_origins;
    let all = origins.is_empty() || origins.iter().any(|origin| origin.trim() == "*");
    let named =
        || origins.iter().filter(|o| o.trim() != "*").filter_map(|o| HeaderValue::from_str(o.trim()).ok());
    let allow = if all && config.has_key() { AllowOrigin::any() } else { AllowOrigin::list(named()) };
    let name = HeaderName::from_static;
    CorsLayer::new()
        .allow_origin(allow)
        .allow_methods([
            Method::GET,
            Method::HEAD,
            Method::POST,
            Method::PUT,
            Method::PATCH,
            Method::DELETE,
            Method::OPTIONS,
        ])
        .allow_headers([
            header::CONTENT_TYPE,
            name("x-api-key"),
            name("x-admin-api-key"),
            name("x-request-id"),
            name("x-user-id"),
            name("x-tenant-id"),
            header::AUTHORIZATION,
            name("idempotency-key"),
            name("last-event-id"),
            header::RANGE,
            header::IF_RANGE,
        ])
        .expose_headers([
            name("x-request-id"),
            header::CONTENT_RANGE,
            header::CONTENT_LENGTH,
            header::ACCEPT_RANGES,
            header::LAST_MODIFIED,
            header::ETAG,
        ])
}
