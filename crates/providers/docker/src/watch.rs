//! What the daemon tells without being asked: events of our containers, each passed on to whoever watches that sandbox.
//!
//! An event is a reason to look and never the answer. After the daemon was away everybody looks, since nobody knows what
//! was missed.

use crate::{
    container::{INSTALLATION, SANDBOX},
    daemon::Daemon,
};
use bollard::query_parameters::EventsOptions;
use futures::StreamExt;
use jiff::Timestamp;
use stacyvm_provider::SandboxId;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::sync::watch;

/// Pause between attempts to reach the daemon.
const RETRY: Duration = Duration::from_millis(500);
/// How long before it goes away, and after it comes back, a daemon may end containers.
const AROUND: Duration = Duration::from_secs(20);

/// Who watches which sandbox, and when the daemon was last away.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    sandboxes: Mutex<HashMap<SandboxId, watch::Sender<()>>>,
    away: Mutex<Option<(Timestamp, Timestamp)>>,
}

impl Watch {
    /// Changes when there is a reason to look at `id`.
    pub(crate) fn of(&self, id: &SandboxId) -> watch::Receiver<()> {
        let mut sandboxes = self.sandboxes.lock().unwrap_or_else(PoisonError::into_inner);
        sandboxes.entry(id.clone()).or_insert_with(|| watch::Sender::new(())).subscribe()
    }

    /// Forgets a sandbox that is gone.
    pub(crate) fn forget(&self, id: &SandboxId) {
        self.sandboxes.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }

    fn changed(&self, id: &SandboxId) {
        if let Some(sender) = self.sandboxes.lock().unwrap_or_else(PoisonError::into_inner).get(id) {
            sender.send_replace(());
        }
    }

    fn all_changed(&self) {
        for sender in self.sandboxes.lock().unwrap_or_else(PoisonError::into_inner).values() {
            sender.send_replace(());
        }
    }

    /// Whether something that ended then may have been ended by a restart of the daemon.
    pub(crate) fn was_around_a_restart(&self, at: Timestamp) -> bool {
        let away = *self.away.lock().unwrap_or_else(PoisonError::into_inner);
        away.is_some_and(|(from, to)| from - AROUND <= at && at <= to + AROUND)
    }

    /// Listens to the daemon for ever.
    pub(crate) async fn listen(self: Arc<Self>, daemon: Arc<Daemon>, installation_id: String) {
        let mut lost: Option<Timestamp> = None;
        loop {
            let Ok(client) = daemon.client().await else {
                tokio::time::sleep(RETRY).await;
                continue;
            };
            let filters = HashMap::from([
                ("type".to_owned(), vec!["container".to_owned()]),
                ("label".to_owned(), vec![format!("{INSTALLATION}={installation_id}")]),
            ]);
            // From a moment before everybody looks: the request itself goes out with the first wait for an event.
            let since = (Timestamp::now().as_second() - 1).to_string();
            let options =
                EventsOptions { filters: Some(filters), since: Some(since), ..EventsOptions::default() };
            let mut events = client.events(Some(options));
            if client.ping().await.is_ok() {
                let now = Timestamp::now();
                if let Some(from) = lost.take() {
                    tracing::info!(seconds = now.duration_since(from).as_secs(), "the docker daemon is back");
                    *self.away.lock().unwrap_or_else(PoisonError::into_inner) = Some((from, now));
                }
                self.all_changed();
                while let Some(Ok(event)) = events.next().await {
                    let sandbox = event.actor.and_then(|actor| actor.attributes?.remove(SANDBOX));
                    if let Some(id) = sandbox.and_then(|id| id.parse().ok()) {
                        self.changed(&id);
                    }
                }
            }
            if lost.is_none() {
                tracing::warn!(daemon = daemon.address(), "the docker daemon went away");
                lost = Some(Timestamp::now());
                self.all_changed();
            }
            tokio::time::sleep(RETRY).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_one_that_changed_is_looked_at() {
        let watch = Watch::default();
        let (a, b) = ("sb-a".parse().unwrap(), "sb-b".parse().unwrap());
        let (of_a, of_b) = (watch.of(&a), watch.of(&b));
        watch.changed(&a);
        assert!(of_a.has_changed().unwrap() && !of_b.has_changed().unwrap());
        watch.forget(&b);
        assert!(of_b.has_changed().is_err());
    }

    #[test]
    fn an_end_near_a_restart_is_recognised() {
        let watch = Watch::default();
        let second = |s| Timestamp::from_second(s).unwrap();
        assert!(!watch.was_around_a_restart(second(1000)));
        *watch.away.lock().unwrap() = Some((second(1000), second(1010)));
        for (at, around) in [(985, true), (1005, true), (1025, true), (900, false), (1100, false)] {
            assert_eq!(watch.was_around_a_restart(second(at)), around, "{at}");
        }
    }
}
