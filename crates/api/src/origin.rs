//! Keeps web pages out of a listener that asks for no key. A page can make a browser send requests to loopback, and by
//! changing what its name resolves to it can even become same-origin; so the name in `Host` must be one of ours, an
//! `Origin` must not be foreign, and a body must be declared as JSON, which makes a browser ask (and be refused) first.
//! With a key configured none of this is needed: a page does not have it.

use crate::{ApiState, config::ApiConfig, error::ApiError};
use axum::{
    extract::{MatchedPath, Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, Method, Uri, header, uri::Authority};
use std::net::IpAddr;

/// The check, ready to be asked.
#[derive(Debug, Clone)]
pub(crate) struct Guard {
    hosts: Vec<String>,
    origins: Vec<String>,
    any_address: bool,
}

impl Guard {
    /// `None` when a key is configured.
    pub(crate) fn new(config: &ApiConfig) -> Option<Self> {
        if config.has_key() {
            return None;
        }
        let lower = |texts: &[String]| -> Vec<String> {
            texts.iter().map(|text| text.trim().to_ascii_lowercase()).filter(|text| text != "*").collect()
        };
        Some(Self {
            hosts: lower(&config.allowed_hosts),
            origins: lower(&config.cors_allowed_origins),
            any_address: !config.loopback,
        })
    }

    /// Whether a request may come in.
    pub(crate) fn check(
        &self,
        method: &Method,
        uri: &Uri,
        headers: &HeaderMap,
        raw: bool,
    ) -> Result<(), ApiError> {
        let host = host(uri, headers)?;
        if !self.ours(host.host()) {
            return Err(ApiError::forbidden(format!(
                "host {:?} is not allowed while no API key is configured: configure a key, or allow the host",
                host.host()
            )));
        }
        let named = self.check_origin(headers)?;
        let site = headers.get("sec-fetch-site").map(|site| site.as_bytes());
        if !named && site.is_some_and(|site| site.eq_ignore_ascii_case(b"cross-site")) {
            return Err(ApiError::forbidden(
                "requests from other web sites are not allowed while no API key is configured",
            ));
        }
        if !raw && has_body(headers) && !matches!(*method, Method::GET | Method::HEAD) && !is_json(headers) {
            return Err(ApiError::bad_request(
                "Content-Type must be application/json while no API key is configured",
            ));
        }
        Ok(())
    }

    /// Refuses foreign origins; true if the origin is one that the operator named.
    fn check_origin(&self, headers: &HeaderMap) -> Result<bool, ApiError> {
        let mut named = false;
        for origin in headers.get_all(header::ORIGIN) {
            let origin = origin.to_str().unwrap_or("null").to_ascii_lowercase();
            if self.origins.contains(&origin) {
                named = true;
                continue;
            }
            let authority = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
            let ours = authority
                .and_then(|text| text.parse::<Authority>().ok())
                .is_some_and(|authority| self.ours(authority.host()));
            if !ours {
                return Err(ApiError::forbidden(format!(
                    "origin {origin:?} is not allowed while no API key is configured"
                )));
            }
        }
        Ok(named)
    }

    /// Exactly our names. `x.localhost` is not one: previews of sandboxes, whose content is foreign, are served there.
    fn ours(&self, host: &str) -> bool {
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        if let Ok(address) = bare.parse::<IpAddr>() {
            return address.to_canonical().is_loopback()
                || self.any_address
                || self.hosts.iter().any(|h| h == bare);
        }
        bare.eq_ignore_ascii_case("localhost")
            || self.hosts.iter().any(|known| known.eq_ignore_ascii_case(bare))
    }
}

/// The one name under which the server was called.
fn host(uri: &Uri, headers: &HeaderMap) -> Result<Authority, ApiError> {
    let missing = || ApiError::bad_request("exactly one valid Host header is required");
    if let Some(authority) = uri.authority() {
        return Ok(authority.clone());
    }
    let mut values = headers.get_all(header::HOST).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => Authority::try_from(value.as_bytes())
            .ok()
            .filter(|authority| !authority.as_str().contains('@'))
            .ok_or_else(missing),
        _ => Err(missing()),
    }
}

fn has_body(headers: &HeaderMap) -> bool {
    let length = headers.get(header::CONTENT_LENGTH);
    headers.contains_key(header::TRANSFER_ENCODING) || length.is_some_and(|length| length.as_bytes() != b"0")
}

fn is_json(headers: &HeaderMap) -> bool {
    let mut values = headers.get_all(header::CONTENT_TYPE).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return false };
    let essence =
        value.to_str().unwrap_or_default().split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence == "application/json"
}

/// Runs the check on every request when no key is configured.
pub(crate) async fn guard(State(state): State<ApiState>, request: Request, next: Next) -> Response {
    if let Some(guard) = state.guard() {
        let path = request.extensions().get::<MatchedPath>().map_or("", MatchedPath::as_str);
        // What is no route has no body either: it gets its 404 or 405.
        let raw = state.access().get(path, request.method()).is_none_or(|access| access.raw_body);
        if let Err(error) = guard.check(request.method(), request.uri(), request.headers(), raw) {
            return error.into_response();
        }
    }
    next.run(request).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request as HttpRequest;
    use proptest::prelude::*;

    fn guard() -> Guard {
        Guard::new(&ApiConfig {
            allowed_hosts: vec!["dev.box".into()],
            cors_allowed_origins: vec!["*".into(), "https://ui.example".into()],
            ..ApiConfig::default()
        })
        .unwrap()
    }

    fn status(method: Method, headers: &[(&str, &str)], raw: bool) -> u16 {
        let mut request = HttpRequest::builder().method(method).uri("/api/v1/sandboxes");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (parts, ()) = request.body(()).unwrap().into_parts();
        guard()
            .check(&parts.method, &parts.uri, &parts.headers, raw)
            .map_or_else(|error| error.code().status(), |()| 200)
    }

    #[test]
    fn only_our_names_are_hosts() {
        for host in [
            "localhost:7423",
            "LOCALHOST",
            "127.0.0.1:7423",
            "127.9.9.9",
            "[::1]:7423",
            "dev.box",
            "Dev.Box:80",
        ] {
            assert_eq!(status(Method::GET, &[("host", host)], false), 200, "{host}");
        }
        for host in [
            "evil.example",
            "localhost.evil.example",
            "3000-sb-1.localhost",
            "10.0.0.5",
            "0.0.0.0",
            "127.0.0.1.nip.io",
            "[::]",
        ] {
            assert_eq!(status(Method::GET, &[("host", host)], false), 403, "{host}");
        }
        for host in ["", "a b", "localhost@evil"] {
            assert_eq!(status(Method::GET, &[("host", host)], false), 400, "{host}");
        }
        assert_eq!(status(Method::GET, &[], false), 400);
        assert_eq!(status(Method::GET, &[("host", "localhost"), ("host", "evil")], false), 400);
    }

    #[test]
    fn an_open_listener_is_called_by_address_but_not_by_foreign_names() {
        let guard = Guard::new(&ApiConfig { loopback: false, ..ApiConfig::default() }).unwrap();
        assert!(guard.ours("10.0.0.5") && guard.ours("[fd00::1]"));
        assert!(!guard.ours("evil.example"));
    }

    #[test]
    fn foreign_origins_are_refused() {
        for (origin, expected) in [
            ("http://localhost:7423", 200),
            ("http://localhost:3000", 200),
            ("http://127.0.0.1", 200),
            ("https://ui.example", 200),
            ("https://ui.example:444", 403),
            ("https://evil.example", 403),
            ("http://3000-sb-1.localhost:7423", 403),
            ("null", 403),
            ("file://localhost", 403),
            ("", 403),
            ("*", 403),
        ] {
            let got = status(Method::DELETE, &[("host", "localhost"), ("origin", origin)], false);
            assert_eq!(got, expected, "{origin}");
        }
    }

    #[test]
    fn other_sites_are_refused_unless_named() {
        let cross = ("sec-fetch-site", "cross-site");
        assert_eq!(status(Method::GET, &[("host", "localhost"), cross], false), 403);
        assert_eq!(status(Method::PUT, &[("host", "localhost"), cross], true), 403);
        assert_eq!(
            status(Method::GET, &[("host", "localhost"), ("origin", "https://ui.example"), cross], false),
            200
        );
        for site in ["same-origin", "none", "same-site"] {
            assert_eq!(status(Method::GET, &[("host", "localhost"), ("sec-fetch-site", site)], false), 200);
        }
    }

    #[test]
    fn bodies_must_be_declared_as_json() {
        for (kind, expected) in [
            ("application/json", 200),
            ("Application/JSON; charset=utf-8", 200),
            ("text/plain", 400),
            ("application/x-www-form-urlencoded", 400),
            ("text/plain; x=application/json", 400),
        ] {
            let headers = [("host", "localhost"), ("content-length", "2"), ("content-type", kind)];
            assert_eq!(status(Method::POST, &headers, false), expected, "{kind}");
        }
        let chunked = [("host", "localhost"), ("transfer-encoding", "chunked")];
        assert_eq!(status(Method::POST, &chunked, false), 400);
        assert_eq!(status(Method::PUT, &chunked, true), 200);
        assert_eq!(status(Method::DELETE, &[("host", "localhost")], false), 200);
        assert_eq!(status(Method::POST, &[("host", "localhost"), ("content-length", "0")], false), 200);
    }

    #[test]
    fn a_key_makes_the_guard_unnecessary() {
        assert!(Guard::new(&ApiConfig { api_key: Some("k".into()), ..ApiConfig::default() }).is_none());
    }

    proptest! {
        #[test]
        fn no_name_that_is_not_ours_gets_in(host in "[a-z0-9.\\-:@\\[\\]]{0,40}") {
            if status(Method::GET, &[("host", &host)], false) == 200 {
                let name = host.parse::<Authority>().unwrap().host().trim_matches(['[', ']']).to_owned();
                let loopback = name.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback());
                prop_assert!(loopback || name == "localhost" || name == "dev.box", "{}", host);
            }
        }
    }
}
