//! What stands between the engine and a runtime that hangs or panics, and between attempts that fail.

use futures::FutureExt;
use stacyvm_provider::{Error, Result};
use std::{future::Future, panic::AssertUnwindSafe, time::Duration};

/// Runs a call into a runtime with a deadline. A deadline that runs out is `Unavailable`; a panic is `Internal` and ends
/// only this call.
pub(crate) async fn guarded<T>(deadline: Duration, call: impl Future<Output = Result<T>>) -> Result<T> {
    match tokio::time::timeout(deadline, AssertUnwindSafe(call).catch_unwind()).await {
        Ok(Ok(result)) => result,
        Ok(Err(_)) => Err(Error::internal("the runtime failed in an unforeseen way")),
        Err(_) => Err(Error::unavailable(format!(
            "the runtime did not answer within {}",
            stacyvm_types::WireDuration::from(deadline)
        ))),
    }
}

/// Growing pauses, each spread over half its length so that many sandboxes of one failing runtime do not ask in step.
#[derive(Debug, Clone)]
pub(crate) struct Backoff {
    first: Duration,
    longest: Duration,
    next: Duration,
}

impl Backoff {
    pub(crate) fn new((first, longest): (Duration, Duration)) -> Self {
        Self { first, longest, next: first }
    }

    pub(crate) fn pause(&mut self) -> Duration {
        let pause = self.next;
        self.next = (self.next * 2).min(self.longest);
        pause.mul_f64(rand::random_range(0.75..1.25))
    }

    pub(crate) fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use stacyvm_provider::ErrorKind;

    #[tokio::test(start_paused = true)]
    async fn a_call_that_hangs_is_unavailable() {
        let hang = std::future::pending::<Result<()>>();
        let error = guarded(Duration::from_secs(10), hang).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(error.message().contains("10s"), "{error}");
    }

    #[tokio::test]
    async fn a_panic_ends_only_the_call() {
        let call = async { panic!("a runtime with a defect") };
        let result: Result<()> = guarded(Duration::from_secs(1), call).await;
        assert_eq!(result.unwrap_err().kind(), ErrorKind::Internal);
    }

    #[test]
    fn pauses_grow_to_the_longest() {
        let mut backoff = Backoff::new((Duration::from_millis(100), Duration::from_secs(1)));
        let pauses: Vec<_> = (0..8).map(|_| backoff.pause()).collect();
        assert!(pauses[0] < Duration::from_millis(130), "{pauses:?}");
        assert!(
            pauses[7] > Duration::from_millis(700) && pauses[7] < Duration::from_millis(1300),
            "{pauses:?}"
        );
        backoff.reset();
        assert!(backoff.pause() < Duration::from_millis(130));
    }
}
