//! Who calls and what they may do. Every route declares a [`Scope`] when it is registered; a route that is not in the
//! table is denied to everybody, so forgetting one is noticed at once and opens nothing.

use crate::{ApiState, config::ApiConfig, error::ApiError};
use axum::{
    extract::{MatchedPath, Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, Method};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use subtle::{Choice, ConstantTimeEq};

/// What a route asks of its callers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// Nothing.
    Public,
    /// Any key; changes nothing.
    Read,
    /// Any key; changes something.
    Write,
    /// The admin key.
    Admin,
}

impl Scope {
    /// The scope as the API description names it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Public => "public",
            Self::Read => "read",
            Self::Write => "write",
            Self::Admin => "admin",
        }
    }
}

/// Who calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// No key is configured: whoever reaches the listener.
    Local,
    /// Holder of the API key.
    Api,
    /// Holder of the admin key.
    Admin,
}

/// The configured keys, as digests: comparing those takes the same time whatever is sent, its length included.
#[derive(Clone)]
pub(crate) struct Keys {
    api: Option<[u8; 32]>,
    admin: Option<[u8; 32]>,
    admin_fallback: bool,
}

impl Keys {
    pub(crate) fn new(config: &ApiConfig) -> Self {
        let digest = |key: &Option<String>| {
            key.as_deref().filter(|key| !key.is_empty()).map(|key| sha256(key.as_bytes()))
        };
        Self {
            api: digest(&config.api_key),
            admin: digest(&config.admin_api_key),
            admin_fallback: config.admin_fallback_enabled,
        }
    }

    /// Who sent these headers. Either key is taken in either header; the admin key wins.
    pub(crate) fn authenticate(&self, headers: &HeaderMap) -> Result<Role, ApiError> {
        if self.api.is_none() && self.admin.is_none() {
            return Ok(Role::Local);
        }
        let (mut admin, mut api) = (Choice::from(0), Choice::from(0));
        for name in ["x-admin-api-key", "x-api-key"] {
            for value in headers.get_all(name) {
                let sent = sha256(value.as_bytes());
                admin |= matches(self.admin.as_ref(), &sent);
                api |= matches(self.api.as_ref(), &sent);
            }
        }
        match (bool::from(admin), bool::from(api)) {
            (true, _) => Ok(Role::Admin),
            (false, true) => Ok(Role::Api),
            (false, false) => Err(ApiError::unauthorized("invalid or missing API key")),
        }
    }

    /// Whether that caller may use a route of that scope.
    pub(crate) fn authorize(&self, role: Role, scope: Scope) -> Result<(), ApiError> {
        let promoted = role == Role::Api && self.admin.is_none() && self.admin_fallback;
        match scope {
            Scope::Public | Scope::Read | Scope::Write => Ok(()),
            Scope::Admin if role == Role::Admin || role == Role::Local || promoted => Ok(()),
            Scope::Admin => Err(ApiError::forbidden("admin API key required")),
        }
    }
}

fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

fn matches(key: Option<&[u8; 32]>, sent: &[u8; 32]) -> Choice {
    key.map_or(Choice::from(0), |key| key.ct_eq(sent))
}

/// What a route declared when it was registered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Access {
    /// What it asks of its callers.
    pub(crate) scope: Scope,
    /// Its body is bytes, not JSON.
    pub(crate) raw_body: bool,
}

/// What every route declared, by path template and method.
#[derive(Debug, Default)]
pub(crate) struct AccessTable(HashMap<String, HashMap<Method, Access>>);

impl AccessTable {
    pub(crate) fn insert(&mut self, path: impl Into<String>, method: Method, access: Access) {
        self.0.entry(path.into()).or_default().insert(method, access);
    }

    /// `HEAD` is answered by the handler of `GET` unless it has one of its own.
    pub(crate) fn get(&self, path: &str, method: &Method) -> Option<Access> {
        let methods = self.0.get(path)?;
        let get = || if method == Method::HEAD { methods.get(&Method::GET) } else { None };
        methods.get(method).or_else(get).copied()
    }

    /// Whether any method of the path is declared.
    pub(crate) fn knows(&self, path: &str) -> bool {
        self.0.contains_key(path)
    }
}

/// Lets a request through to its route, or answers 401 or 403.
pub(crate) async fn require_scope(State(state): State<ApiState>, request: Request, next: Next) -> Response {
    let path = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let scope = path
        .as_deref()
        .and_then(|path| state.access().get(path, request.method()))
        .map(|access| access.scope);
    if scope == Some(Scope::Public) {
        return next.run(request).await;
    }
    let verdict =
        state.keys().authenticate(request.headers()).and_then(|role| match (scope, path.as_deref()) {
            (Some(scope), _) => state.keys().authorize(role, scope),
            // No such route, or another method of a declared one: the router answers 404 or 405, to authenticated callers.
            (None, None) => Ok(()),
            (None, Some(path)) if state.access().knows(path) => Ok(()),
            (None, Some(path)) => {
                tracing::error!(path, "a route was registered without a scope");
                Err(ApiError::forbidden("required authorization scope missing"))
            }
        });
    match verdict {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use stacyvm_types::ErrorCode;

    fn keys(api: &str, admin: &str, fallback: bool) -> Keys {
        Keys::new(&ApiConfig {
            api_key: Some(api.into()),
            admin_api_key: Some(admin.into()),
            admin_fallback_enabled: fallback,
            ..ApiConfig::default()
        })
    }

    fn headers(name: &'static str, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(http::HeaderName::from_static(name), HeaderValue::from_str(value).unwrap())])
    }

    /// Status on an ordinary and on an admin route.
    fn outcome(keys: &Keys, headers: &HeaderMap) -> (u16, u16) {
        let status = |scope| {
            keys.authenticate(headers)
                .and_then(|role| keys.authorize(role, scope))
                .map_or_else(|error| error.code().status(), |()| 200)
        };
        (status(Scope::Write), status(Scope::Admin))
    }

    #[test]
    fn the_outcome_matrix_of_the_contract() {
        let (none, api, admin) =
            (HeaderMap::new(), headers("x-api-key", "k"), headers("x-admin-api-key", "a"));
        for (keys, expected) in [
            (keys("", "", true), [(200, 200), (200, 200), (200, 200)]),
            (keys("k", "", true), [(401, 401), (200, 200), (401, 401)]),
            (keys("k", "", false), [(401, 401), (200, 403), (401, 401)]),
            (keys("k", "a", true), [(401, 401), (200, 403), (200, 200)]),
            (keys("", "a", true), [(401, 401), (401, 401), (200, 200)]),
        ] {
            assert_eq!([&none, &api, &admin].map(|headers| outcome(&keys, headers)), expected);
        }
    }

    #[test]
    fn either_key_is_taken_in_either_header() {
        let keys = keys("k", "a", true);
        assert_eq!(keys.authenticate(&headers("x-admin-api-key", "k")).unwrap(), Role::Api);
        assert_eq!(keys.authenticate(&headers("x-api-key", "a")).unwrap(), Role::Admin);
        let mut both = headers("x-admin-api-key", "wrong");
        both.extend(headers("x-api-key", "k"));
        assert_eq!(keys.authenticate(&both).unwrap(), Role::Api);
    }

    #[test]
    fn wrong_and_empty_keys_are_refused_with_the_words_of_the_contract() {
        let keys = keys("k", "", true);
        for value in ["", "K", "k ", "kk"] {
            let error = keys.authenticate(&headers("x-api-key", value)).unwrap_err();
            assert_eq!(error.code(), ErrorCode::Unauthorized, "{value:?}");
            assert_eq!(error.body().message, "invalid or missing API key");
        }
    }

    #[test]
    fn head_falls_back_to_get_and_nothing_else_does() {
        let mut table = AccessTable::default();
        let access = Access { scope: Scope::Read, raw_body: false };
        table.insert("/x", Method::GET, access);
        assert_eq!(table.get("/x", &Method::HEAD), Some(access));
        assert_eq!(table.get("/x", &Method::POST), None);
        assert_eq!(table.get("/y", &Method::GET), None);
        assert!(table.knows("/x") && !table.knows("/y"));
    }
}
