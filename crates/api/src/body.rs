//! Request bodies in bounded memory and time. What is held in memory has a size and a deadline; what is streamed has
//! neither, but may not fall silent.

use crate::{ApiState, config::BodyLimits, error::ApiError};
use axum::{
    body::{Body, HttpBody},
    extract::{FromRequest, Request},
};
use bytes::{Bytes, BytesMut};
use futures::{StreamExt, stream};
use http_body_util::BodyExt;
use serde::de::DeserializeOwned;
use stacyvm_provider::ByteStream;
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::sync::OwnedSemaphorePermit;

/// Largest piece handed on at once, in bytes: what one message to a guest carries.
const PIECE: usize = 64 << 10;

/// A JSON body, whatever its `Content-Type`: clients of every age forget it. Anything after the first value is ignored.
pub(crate) struct Json<T>(pub(crate) T);

/// A JSON body that may be as large as a file write. Only so many of the large ones are held in memory at once.
pub(crate) struct FileJson<T> {
    value: T,
    /// Given back when the handler is done with the content.
    room: Option<OwnedSemaphorePermit>,
}

impl<T> FileJson<T> {
    /// The value, and what to keep until it is dropped.
    pub(crate) fn into_parts(self) -> (T, Option<OwnedSemaphorePermit>) {
        (self.value, self.room)
    }
}

impl<T: DeserializeOwned> FromRequest<ApiState> for Json<T> {
    type Rejection = ApiError;
    async fn from_request(request: Request, state: &ApiState) -> Result<Self, ApiError> {
        let limits = &state.config().limits;
        decode(&buffered(request.into_body(), limits.json, limits).await?).map(Self)
    }
}

impl<T: DeserializeOwned> FromRequest<ApiState> for FileJson<T> {
    type Rejection = ApiError;
    async fn from_request(request: Request, state: &ApiState) -> Result<Self, ApiError> {
        let limits = &state.config().limits;
        let body = request.into_body();
        let small = body.size_hint().upper().is_some_and(|most| most <= limits.json as u64);
        let room = if small { None } else { state.large_bodies().acquire_owned().await.ok() };
        let value = decode(&buffered(body, limits.file_json, limits).await?)?;
        Ok(Self { value, room })
    }
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    let bytes = bytes.trim_ascii_start();
    // A list would otherwise pass for an object whose fields come in the order of their declaration.
    if !bytes.is_empty() && !bytes.starts_with(b"{") {
        return Err(ApiError::bad_request("invalid request body: expected a JSON object"));
    }
    T::deserialize(&mut serde_json::Deserializer::from_slice(bytes))
        .map_err(|error| ApiError::bad_request(format!("invalid request body: {error}")))
}

/// The whole body, at most `limit` bytes.
pub(crate) async fn buffered(body: Body, limit: usize, limits: &BodyLimits) -> Result<Bytes, ApiError> {
    let too_large = || ApiError::payload_too_large(format!("the request body is larger than {limit} bytes"));
    if body.size_hint().lower() > limit as u64 {
        return Err(too_large());
    }
    let read = async {
        let (mut body, mut bytes) = (body, BytesMut::new());
        while let Some(data) = next(&mut body, limits.idle).await? {
            if bytes.len() + data.len() > limit {
                return Err(too_large());
            }
            bytes.extend_from_slice(&data);
        }
        Ok(bytes.freeze())
    };
    tokio::time::timeout(limits.buffered, read)
        .await
        .unwrap_or_else(|_| Err(ApiError::timeout("the request body did not arrive in time")))
}

/// The next bytes of a body, or `None` at its proper end.
async fn next(body: &mut Body, idle: Duration) -> Result<Option<Bytes>, ApiError> {
    loop {
        let frame = tokio::time::timeout(idle, body.frame()).await.map_err(|_| stalled(idle))?;
        let Some(frame) = frame else { return Ok(None) };
        let frame = frame.map_err(|error| {
            tracing::debug!(%error, "a request body was cut");
            ApiError::bad_request("the request body ended early")
        })?;
        if let Ok(data) = frame.into_data() {
            return Ok(Some(data));
        }
    }
}

fn stalled(idle: Duration) -> ApiError {
    ApiError::timeout(format!("the request body stalled for {} s", idle.as_secs()))
}

/// Why an upload broke off on the client's side, for an answer in its words rather than in those of the guest.
#[derive(Clone, Default)]
pub(crate) struct BrokenOff(Arc<Mutex<Option<ApiError>>>);

impl BrokenOff {
    pub(crate) fn take(&self) -> Option<ApiError> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Keeps the reason; what the guest gets only has to end the content.
    fn keep(&self, error: ApiError) -> stacyvm_provider::Error {
        let content_error = stacyvm_provider::Error::invalid_argument(error.body().message);
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
        content_error
    }
}

/// The body as file content in pieces. It ends with an error if the client stalls, goes away or sends more than
/// `limit` bytes, so that a file is replaced by all of the content or not at all.
pub(crate) fn streamed(body: Body, limit: Option<u64>, idle: Duration) -> (ByteStream, BrokenOff) {
    let broken = BrokenOff::default();
    let start = (Some(body), Bytes::new(), 0_u64, broken.clone());
    let content = stream::unfold(start, move |(mut body, mut left, mut sent, broken)| async move {
        if left.is_empty() {
            match next(body.as_mut()?, idle).await {
                Ok(Some(data)) => left = data,
                Ok(None) => return None,
                Err(error) => return Some((Err(broken.keep(error)), (None, left, sent, broken))),
            }
        }
        let piece = left.split_to(left.len().min(PIECE));
        sent += piece.len() as u64;
        if let Some(limit) = limit.filter(|limit| sent > *limit) {
            let error = ApiError::payload_too_large(format!("the upload is larger than {limit} bytes"));
            return Some((Err(broken.keep(error)), (None, Bytes::new(), sent, broken)));
        }
        Some((Ok(piece), (body, left, sent, broken)))
    });
    (content.boxed(), broken)
}

/// File content held in memory, in pieces.
pub(crate) fn pieces(mut bytes: Bytes) -> ByteStream {
    stream::iter(std::iter::from_fn(move || {
        (!bytes.is_empty()).then(|| Ok(bytes.split_to(bytes.len().min(PIECE))))
    }))
    .boxed()
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::TryStreamExt;
    use stacyvm_types::ErrorCode;

    fn limits() -> BodyLimits {
        BodyLimits {
            idle: Duration::from_millis(20),
            buffered: Duration::from_millis(60),
            ..BodyLimits::default()
        }
    }

    fn chunks(count: usize, pause: Duration) -> Body {
        Body::from_stream(stream::unfold(0, move |n| async move {
            if n == count {
                return None;
            }
            tokio::time::sleep(pause).await;
            Some((Ok::<_, std::io::Error>(Bytes::from_static(b"12345678")), n + 1))
        }))
    }

    fn broken() -> Body {
        Body::from_stream(stream::iter([Ok(Bytes::from_static(b"12")), Err(std::io::Error::other("gone"))]))
    }

    #[tokio::test]
    async fn a_body_of_the_limit_fits_and_one_byte_more_does_not() {
        let limits = limits();
        assert_eq!(buffered(Body::from("12345678"), 8, &limits).await.unwrap(), "12345678");
        for body in [Body::from("123456789"), chunks(2, Duration::ZERO)] {
            assert_eq!(buffered(body, 8, &limits).await.unwrap_err().code(), ErrorCode::PayloadTooLarge);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn silent_and_slow_bodies_end() {
        let limits = limits();
        for pause in [Duration::from_secs(1), Duration::from_millis(19)] {
            let error = buffered(chunks(50, pause), 1 << 20, &limits).await.unwrap_err();
            assert_eq!(error.code(), ErrorCode::Timeout);
        }
    }

    /// The content, or why it broke off.
    async fn content(body: Body, limit: Option<u64>) -> Result<Vec<Bytes>, ErrorCode> {
        let (stream, broken) = streamed(body, limit, limits().idle);
        let content = stream.try_collect().await;
        content.map_err(|_| broken.take().unwrap().code())
    }

    #[tokio::test]
    async fn a_cut_body_is_an_error_and_never_a_short_file() {
        assert_eq!(buffered(broken(), 8, &limits()).await.unwrap_err().code(), ErrorCode::BadRequest);
        assert_eq!(content(broken(), None).await, Err(ErrorCode::BadRequest));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stalled_upload_ends_and_a_slow_one_goes_on() {
        assert_eq!(content(chunks(2, Duration::from_secs(1)), None).await, Err(ErrorCode::Timeout));
        assert_eq!(content(chunks(50, Duration::from_millis(19)), None).await.unwrap().concat().len(), 400);
    }

    #[tokio::test]
    async fn uploads_come_in_pieces_and_stop_at_the_limit() {
        let bytes: Bytes = (0..200_000).map(|n| n as u8).collect::<Vec<_>>().into();
        let sent = content(Body::from(bytes.clone()), Some(200_000)).await.unwrap();
        for parts in [sent, pieces(bytes.clone()).try_collect().await.unwrap()] {
            assert!(parts.iter().all(|part: &Bytes| !part.is_empty() && part.len() <= PIECE));
            assert_eq!(parts.concat(), bytes);
        }
        assert_eq!(content(Body::from(bytes), Some(199_999)).await, Err(ErrorCode::PayloadTooLarge));
    }

    #[test]
    fn json_ends_with_its_first_value() {
        type Map = std::collections::BTreeMap<String, u8>;
        assert_eq!(decode::<Map>(b" {\"a\":1} garbage").unwrap()["a"], 1);
        for body in [&b"{"[..], b"", b"[]", b"null", b"{\"a\":\"x\"}"] {
            let error = decode::<Map>(body).unwrap_err();
            assert_eq!(error.code(), ErrorCode::BadRequest);
            assert!(error.body().message.starts_with("invalid request body: "));
        }
    }
}
