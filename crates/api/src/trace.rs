//! Request ids and the access log: method, route template, status, time. Never the URL itself (queries may hold secrets)
//! and never a header but the request id.

use axum::{
    extract::{MatchedPath, Request},
    middleware::Next,
    response::Response,
};
use http::HeaderValue;
use std::time::Instant;
use uuid::Uuid;

const HEADER: &str = "x-request-id";
/// Longest id taken over from a caller.
const LONGEST: usize = 128;

/// Gives every request an id (the caller's, if it is harmless) and logs its answer.
pub(crate) async fn trace(request: Request, next: Next) -> Response {
    let started = Instant::now();
    let id = request.headers().get(HEADER).filter(|id| harmless(id)).cloned().unwrap_or_else(generated);
    let method = request.method().clone();
    let route = request.extensions().get::<MatchedPath>().cloned();
    let mut response = next.run(request).await;
    let (status, path) = (response.status().as_u16(), route.as_ref().map_or("(none)", MatchedPath::as_str));
    let (took, request_id) = (started.elapsed().as_secs_f64() * 1e3, id.to_str().unwrap_or_default());
    if status >= 500 {
        tracing::warn!(%method, path, status, duration_ms = took, request_id, "request");
    } else {
        tracing::info!(%method, path, status, duration_ms = took, request_id, "request");
    }
    response.headers_mut().insert(HEADER, id);
    response
}

fn harmless(id: &HeaderValue) -> bool {
    let bytes = id.as_bytes();
    (1..=LONGEST).contains(&bytes.len())
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || b"-_.:/+=@".contains(b))
}

fn generated() -> HeaderValue {
    HeaderValue::try_from(Uuid::new_v4().to_string()).unwrap_or_else(|_| HeaderValue::from_static("-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_that_could_forge_log_lines_are_not_taken_over() {
        for (id, expected) in
            [("a-1", true), ("", false), ("a b", false), ("<x>", false), (&"x".repeat(129), false)]
        {
            assert_eq!(harmless(&HeaderValue::from_str(id).unwrap()), expected, "{id}");
        }
        assert!(!harmless(&HeaderValue::from_bytes(b"a\xff").unwrap()));
        assert!(harmless(&generated()));
    }
}
