//! Waiting for a stored instant. Each sandbox's task sleeps on the runtime's timer wheel; nobody sweeps rows.

use jiff::Timestamp;
use std::time::Duration;

/// A deadline is compared with the wall clock at least this often, so that a clock that was set takes effect.
const RECHECK: Duration = Duration::from_secs(60);

/// Returns once the wall clock says that `deadline` is over.
pub(crate) async fn until(deadline: Timestamp) {
    wait(deadline, Timestamp::now).await;
}

/// Whether `deadline` is over.
pub(crate) fn over(deadline: Timestamp) -> bool {
    deadline <= Timestamp::now()
}

async fn wait(deadline: Timestamp, now: impl Fn() -> Timestamp) {
    loop {
        let left = deadline.duration_since(now());
        if !left.is_positive() {
            return;
        }
        // Timers have millisecond grain; the extra one saves a second, empty-handed wake-up.
        tokio::time::sleep(left.unsigned_abs().saturating_add(Duration::from_millis(1)).min(RECHECK)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        sync::{Arc, Mutex},
        time::Duration,
    };
    use tokio::time::Instant;

    fn second(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    /// A wall clock that goes with tokio's paused time and can be set.
    #[derive(Clone)]
    struct Clock(Arc<Mutex<(Timestamp, Instant)>>);

    impl Clock {
        fn set(&self, now: Timestamp) {
            *self.0.lock().unwrap() = (now, Instant::now());
        }
        fn now(&self) -> Timestamp {
            let (set, since) = *self.0.lock().unwrap();
            set.checked_add(since.elapsed()).unwrap()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_far_deadline_is_met() {
        let clock = Clock(Arc::new(Mutex::new((second(0), Instant::now()))));
        wait(second(3600), || clock.now()).await;
        assert_eq!(clock.now().as_second(), 3600);
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_set_forward_is_noticed_within_a_minute() {
        let clock = Clock(Arc::new(Mutex::new((second(0), Instant::now()))));
        let started = Instant::now();
        let waiting = tokio::spawn({
            let clock = clock.clone();
            async move { wait(second(3600), || clock.now()).await }
        });
        tokio::time::sleep(Duration::from_secs(10)).await;
        clock.set(second(7200));
        waiting.await.unwrap();
        assert!(started.elapsed() <= Duration::from_secs(61), "{:?}", started.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_set_back_lengthens_the_wait() {
        let clock = Clock(Arc::new(Mutex::new((second(1000), Instant::now()))));
        let started = Instant::now();
        let waiting = tokio::spawn({
            let clock = clock.clone();
            async move { wait(second(1100), || clock.now()).await }
        });
        tokio::time::sleep(Duration::from_secs(10)).await;
        clock.set(second(0));
        waiting.await.unwrap();
        assert!(started.elapsed() >= Duration::from_secs(1100), "{:?}", started.elapsed());
    }
}
