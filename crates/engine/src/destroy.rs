//! Taking a sandbox away: stored first, then asked of the runtime again and again until it says that nothing is left.

use crate::{
    Error,
    admission::now,
    guard::Backoff,
    sandbox::{Actor, Phase},
};
use stacyvm_fault::{Point, hit};
use stacyvm_store::SandboxChange;
use stacyvm_types::{EventType, SandboxState};
use std::time::Duration;

impl Actor {
    pub(crate) async fn destroy(&mut self) -> Phase {
        // Whoever waits for its runtime after a start, or for its creation, need not any more.
        self.settled();
        let reason =
            if self.record.state == SandboxState::Error { self.record.reason.clone() } else { String::new() };
        self.enter(SandboxState::Destroying, &reason).await;
        hit(Point::DestroyStored);
        let mut backoff = Backoff::new(self.core.config.retry);
        let mut told = String::new();
        loop {
            let error = match self.remove_once().await {
                Some(Ok(())) => break,
                Some(Err(error)) => error,
                None => return Phase::Done,
            };
            if told != error.message() {
                // Once per problem, not once per attempt.
                error.message().clone_into(&mut told);
                self.emit_provider_failed("destroy", &error);
                self.enter(SandboxState::Destroying, &told).await;
            }
            if self.pause(backoff.pause()).await {
                return Phase::Done;
            }
        }
        hit(Point::DestroyUnmade);
        self.finish(None).await
    }

    /// One attempt of the runtime to remove it, with the mailbox open; `None` if the engine is gone.
    pub(crate) async fn remove_once(&mut self) -> Option<stacyvm_provider::Result<()>> {
        let mut removal = Box::pin(self.removal());
        loop {
            tokio::select! {
                result = &mut removal => return Some(result),
                // More askers have nothing to wait for but the view; extending is refused.
                message = self.mailbox.recv() => if let Some(Phase::Done) = self.take(message).await { return None },
            }
        }
    }

    /// The runtime holds nothing any more: so says the row, however often that has to be tried. `unborn`: why it was never
    /// made, for whoever waits for that.
    pub(crate) async fn finish(&mut self, unborn: Option<Error>) -> Phase {
        let mut backoff = Backoff::new(self.core.config.retry);
        loop {
            let at = now();
            let change = SandboxChange {
                state: Some(SandboxState::Destroyed),
                destroyed_at: Some(at),
                release_key: true,
                ..SandboxChange::default()
            };
            let Err(error) = self.store(&change).await else { break };
            tracing::error!(sandbox = %self.id, %error, "a destroyed sandbox could not be stored as such");
            // Whoever asked for its creation does not wait for a store that recovers.
            if let Some(error) = &unborn {
                self.born(Err(error.clone()));
            }
            if self.pause(backoff.pause()).await {
                return Phase::Done;
            }
        }
        hit(Point::DestroyDone);
        self.record.state = SandboxState::Destroyed;
        self.core.registry.remove(self.id.as_str());
        self.emit(EventType::SandboxDestroyed, []);
        self.publish();
        if let Some(error) = unborn {
            self.born(Err(error));
        }
        Phase::Done
    }

    /// Waits until the next attempt, or until the provider is healthy again, with the mailbox open. True if the engine
    /// stops: what is not done yet goes on after the next start.
    async fn pause(&mut self, pause: Duration) -> bool {
        let stopping = self.core.stopping.clone();
        let mut revived = self.slot.as_ref().map(|slot| slot.revived.clone());
        if let Some(revived) = revived.as_mut() {
            revived.mark_unchanged();
        }
        let mut sleep = Box::pin(tokio::time::sleep(pause));
        loop {
            tokio::select! {
                () = &mut sleep => return false,
                () = stopping.cancelled() => return true,
                () = revival(&mut revived) => return false,
                message = self.mailbox.recv() => if let Some(Phase::Done) = self.take(message).await { return true },
            }
        }
    }
}

/// Returns when the provider became healthy again.
pub(crate) async fn revival(revived: &mut Option<tokio::sync::watch::Receiver<u64>>) {
    if let Some(revived) = revived
        && revived.changed().await.is_ok()
    {
        return;
    }
    std::future::pending::<()>().await;
}
