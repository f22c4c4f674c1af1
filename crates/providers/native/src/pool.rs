//! Things that take a moment to make, a few of them made before they are asked for.

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    time::Duration,
};

/// How long after one was taken the next is made: whoever took it is busy with it now, and others may come.
const PAUSE: Duration = Duration::from_millis(20);

/// A few ready things, and a thread that makes more of them when some were taken. They exist in this process only, so the
/// end of the process is the end of them.
#[derive(Debug)]
pub(crate) struct Pool<T> {
    ready: Arc<Mutex<Vec<T>>>,
    /// Wakes the thread; its end is the thread's.
    wanted: mpsc::Sender<()>,
}

impl<T: Send + 'static> Pool<T> {
    /// A pool of up to `size`, empty until [`Pool::fill`] or the first [`Pool::take`]. Where `make` gives `None`, the pool is
    /// left as it is until the next is taken.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub(crate) fn start(
        name: &str,
        size: usize,
        mut make: impl FnMut() -> Option<T> + Send + 'static,
    ) -> io::Result<Self> {
        let (wanted, requests) = mpsc::channel();
        let ready = Arc::new(Mutex::new(Vec::with_capacity(size)));
        let pool = Self { ready: Arc::clone(&ready), wanted };
        let work = move || {
            while requests.recv().is_ok() {
                std::thread::sleep(PAUSE);
                while requests.try_recv().is_ok() {}
                while lock(&ready).len() < size {
                    let Some(one) = make() else { break };
                    lock(&ready).push(one);
                }
            }
        };
        std::thread::Builder::new().name(name.to_owned()).spawn(work)?;
        Ok(pool)
    }

    /// One that is ready, if there is one.
    pub(crate) fn take(&self) -> Option<T> {
        let one = lock(&self.ready).pop();
        self.fill();
        one
    }

    /// Has it filled, soon.
    pub(crate) fn fill(&self) {
        // The thread ends with this pool only.
        let _ = self.wanted.send(());
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A vector that is pushed to or popped from is whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        time::Instant,
    };

    fn until(what: impl Fn() -> bool) -> bool {
        let start = Instant::now();
        while !what() && start.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(1));
        }
        what()
    }

    #[test]
    fn what_was_taken_is_made_again_and_no_more() {
        let made = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&made);
        let pool = Pool::start("test-pool", 3, move || Some(count.fetch_add(1, Ordering::SeqCst))).unwrap();
        assert_eq!(made.load(Ordering::SeqCst), 0, "nothing is made before anybody wants it");
        pool.fill();
        assert!(until(|| lock(&pool.ready).len() == 3));
        let taken: Vec<_> = (0..3).filter_map(|_| pool.take()).collect();
        assert_eq!(taken.len(), 3);
        assert!(until(|| lock(&pool.ready).len() == 3));
        assert_eq!(made.load(Ordering::SeqCst), 6);
    }

    #[test]
    fn where_nothing_can_be_made_there_is_nothing() {
        let tries = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&tries);
        let make = move || -> Option<()> {
            count.fetch_add(1, Ordering::SeqCst);
            None
        };
        let pool = Pool::start("test-pool", 3, make).unwrap();
        assert!(pool.take().is_none());
        assert!(until(|| tries.load(Ordering::SeqCst) == 1));
        pool.fill();
        assert!(until(|| tries.load(Ordering::SeqCst) == 2));
    }

    #[test]
    fn the_end_of_the_pool_is_the_end_of_what_is_in_it() {
        let one = Arc::new(());
        let held = Arc::clone(&one);
        let pool = Pool::start("test-pool", 2, move || Some(Arc::clone(&held))).unwrap();
        pool.fill();
        assert!(until(|| lock(&pool.ready).len() == 2));
        drop(pool);
        assert!(until(|| Arc::strong_count(&one) == 1));
    }
}
