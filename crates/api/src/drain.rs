//! Request bodies that nobody wanted to the end. A client that is still sending when its answer comes (404 for the
//! sandbox of a large upload, say) would see a broken connection instead of the answer if the rest were not taken; so it
//! is, for a while, and thrown away.

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio_util::sync::CancellationToken;

/// How long and how much is thrown away at most.
const TIME: Duration = Duration::from_secs(5);
const BYTES: u64 = 1 << 30;

/// A body that is read to its end in the background when it is dropped before.
pub(crate) struct Drained {
    /// `None` at the end.
    body: Option<Incoming>,
    stop: CancellationToken,
}

impl Drained {
    pub(crate) fn new(body: Incoming, stop: CancellationToken) -> Self {
        Self { body: Some(body), stop }
    }
}

impl Body for Drained {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let frame = ready!(Pin::new(body).poll_frame(context));
        if !matches!(frame, Some(Ok(_))) {
            self.body = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

impl Drop for Drained {
    fn drop(&mut self) {
        let Some(mut body) = self.body.take().filter(|body| !body.is_end_stream()) else { return };
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let stop = self.stop.clone();
        runtime.spawn(async move {
            let drain = async {
                let mut left = BYTES;
                while let Some(Ok(frame)) = body.frame().await {
                    let length = frame.data_ref().map_or(0, |data| data.len() as u64);
                    left = left.saturating_sub(length);
                    if left == 0 {
                        break;
                    }
                }
            };
            tokio::select! {
                () = drain => {}
                () = tokio::time::sleep(TIME) => {}
                () = stop.cancelled() => {}
            }
        });
    }
}
