//! Watching a tree: what the kernel says about directories becomes what happened to paths.
//!
//! ```text
//!  inotify ──► raw events ──► tree: which directory is where now ──► batch: each change once ──► stream
//!                 │                    │
//!            queue was full      new directory: a watch first, then what is in it already
//!                 └── OVERFLOW, and the tree is looked at again
//! ```
//!
//! A reader that does not read holds nothing up: the kernel keeps its queue, and says so when that was not enough.

mod batch;
mod raw;
mod tree;

pub(crate) use tree::Tree;

use super::{blocking, path::SandboxPath, resolve::Root};
use crate::{
    confine,
    fail::{Fail, Result},
};
use futures::{Stream, StreamExt, stream};
use stacyvm_guest::proto::WatchEvents;
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::io::Interest;

/// Trees that are watched at once.
const WATCHERS: usize = 16;
/// Time in which changes of one path become one event.
const TOGETHER: Duration = Duration::from_millis(50);

static ACTIVE: AtomicUsize = AtomicUsize::new(0);

/// One tree of those that may be watched at once.
#[derive(Debug)]
struct Place;

impl Place {
    fn take() -> Result<Self> {
        let taken =
            ACTIVE.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| (n < WATCHERS).then_some(n + 1));
        let full = |_| Fail::exhausted(format!("{WATCHERS} directories of the sandbox are watched already"));
        taken.map(|_| Self).map_err(full)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        ACTIVE.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Changes below `path`, from now on. The first batch is empty and comes when nothing can be missed any more.
///
/// # Errors
/// `NotFound`; `InvalidArgument` for what is no directory; `Unsupported` without inotify; `ResourceExhausted` for a tree
/// with too many directories.
pub(crate) async fn watch(
    root: Arc<Root>,
    path: SandboxPath,
    recursive: bool,
) -> Result<impl Stream<Item = Result<WatchEvents>> + Send + 'static> {
    let place = Place::take()?;
    let tree = blocking(move || Tree::new(root, path, recursive)).await?;
    let ready = confine::watch(tree.descriptor()?, Interest::READABLE)
        .map_err(|error| Fail::internal(error.to_string()))?;
    let first = stream::once(async { Ok(WatchEvents::default()) });
    let changes = stream::try_unfold(Some((tree, ready, place)), |state| async move {
        let Some((mut tree, ready, place)) = state else { return Ok(None) };
        loop {
            if !tree.has_more() {
                let mut guard = ready.readable().await.map_err(|error| Fail::internal(error.to_string()))?;
                // Before the queue is emptied: what comes later wakes us again.
                guard.clear_ready();
                drop(guard);
                tokio::time::sleep(TOGETHER).await;
            }
            let (back, messages) = blocking(move || {
                let messages = tree.changes()?;
                Ok((tree, messages))
            })
            .await?;
            tree = back;
            if !messages.is_empty() || tree.ended() {
                let state = (!tree.ended()).then_some((tree, ready, place));
                return Ok(Some((stream::iter(messages.into_iter().map(Ok)), state)));
            }
        }
    });
    let changes = changes.map(|batch: Result<_>| match batch {
        Ok(messages) => messages.boxed(),
        Err(fail) => stream::iter([Err(fail)]).boxed(),
    });
    Ok(first.chain(changes.flatten()))
}
