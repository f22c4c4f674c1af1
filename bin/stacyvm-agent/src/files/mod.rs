//! Files of the sandbox. Everything here blocks and runs on the few threads set aside for it.

pub(crate) mod archive;
pub(crate) mod glob;
pub(crate) mod info;
pub(crate) mod list;
mod open;
pub(crate) mod path;
pub(crate) mod read;
pub(crate) mod remove;
pub(crate) mod resolve;
pub(crate) mod tree;
pub(crate) mod usage;
pub(crate) mod watch;
pub(crate) mod write;

use crate::fail::{Fail, Result};
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

/// Most files in one answer.
pub(crate) const MOST_FILES: usize = 100_000;
/// Most bytes of names or paths in one answer.
pub(crate) const MOST_NAMES: usize = 24 << 20;

/// Runs `work` on a thread that may block.
///
/// # Errors
/// What `work` says; `Internal` if it could not be run to its end.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(_) => Err(Fail::internal("a file operation was cut off")),
    }
}

/// Tells long work that nobody waits for it any more.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// # Errors
    /// When nobody waits any more; the message reaches nobody.
    pub(crate) fn check(&self) -> Result<()> {
        if self.0.load(Ordering::Relaxed) { Err(Fail::internal("the caller left")) } else { Ok(()) }
    }

    /// Cancels when dropped.
    pub(crate) fn guard(&self) -> CancelGuard {
        CancelGuard(self.clone())
    }
}

/// See [`Cancel::guard`].
#[derive(Debug)]
pub(crate) struct CancelGuard(Cancel);

impl Drop for CancelGuard {
    fn drop(&mut self) {
        self.0.0.store(true, Ordering::Relaxed);
    }
}
