//! Extractors whose rejections are errors of ours, and who the caller says it acts for.

use crate::{ApiState, error::ApiError};
use axum::extract::{FromRequestParts, Path as AxumPath, Query as AxumQuery};
use http::{HeaderMap, request::Parts};
use serde::de::DeserializeOwned;

/// Parts of the path.
pub(crate) struct Path<T>(pub(crate) T);

impl<T: DeserializeOwned + Send> FromRequestParts<ApiState> for Path<T> {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, state: &ApiState) -> Result<Self, ApiError> {
        let path = AxumPath::<T>::from_request_parts(parts, state).await;
        path.map(|AxumPath(value)| Self(value)).map_err(|error| ApiError::bad_request(error.body_text()))
    }
}

/// The query; unknown parameters are ignored.
pub(crate) struct Query<T>(pub(crate) T);

impl<T: DeserializeOwned> FromRequestParts<ApiState> for Query<T> {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, state: &ApiState) -> Result<Self, ApiError> {
        let query = AxumQuery::<T>::from_request_parts(parts, state).await;
        query.map(|AxumQuery(value)| Self(value)).map_err(|error| ApiError::bad_request(error.body_text()))
    }
}

/// The owner that `X-User-ID` names.
pub(crate) struct Owner(pub(crate) Option<String>);

impl FromRequestParts<ApiState> for Owner {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, _: &ApiState) -> Result<Self, ApiError> {
        let Some(value) = parts.headers.get("x-user-id") else { return Ok(Self(None)) };
        let text = std::str::from_utf8(value.as_bytes()).map_err(|_| invalid_owner())?;
        owner(text).map(Self)
    }
}

/// An owner id as it may be stored; blank is none.
pub(crate) fn owner(text: &str) -> Result<Option<String>, ApiError> {
    let text = text.trim();
    let legal = |c: char| !c.is_whitespace() && !c.is_control() && c != '/' && c != '\\';
    if text.chars().count() > 128 || !text.chars().all(legal) {
        return Err(invalid_owner());
    }
    Ok((!text.is_empty()).then(|| text.to_owned()))
}

fn invalid_owner() -> ApiError {
    ApiError::bad_request("invalid owner id: at most 128 characters, without whitespace, '/' and '\\'")
}

/// The text of a header that identifies a repeated request.
pub(crate) fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let Some(value) = headers.get("idempotency-key") else { return Ok(None) };
    let bytes = value.as_bytes();
    let legal = (1..=255).contains(&bytes.len()) && bytes.iter().all(|b| (0x20..0x7f).contains(b));
    match value.to_str() {
        Ok(text) if legal => Ok(Some(text.to_owned())),
        _ => Err(ApiError::bad_request("invalid Idempotency-Key: 1 to 255 printable ASCII characters")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn owners_are_trimmed_and_checked() {
        assert_eq!(owner(" team-a ").unwrap().as_deref(), Some("team-a"));
        assert_eq!(owner("  ").unwrap(), None);
        assert_eq!(owner("Zoë@x").unwrap().as_deref(), Some("Zoë@x"));
        for text in ["a b", "a/b", "a\\b", "a\u{7}b", &"x".repeat(129)] {
            assert!(owner(text).is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_accepted_is_safe_to_store(text in "\\PC{0,140}") {
            if let Ok(Some(owner)) = owner(&text) {
                prop_assert!(!owner.is_empty() && owner.chars().count() <= 128 && !owner.contains(['/', '\\', ' ']));
            }
        }
    }
}
