//! Making a sandbox, and undoing that at whatever point it fails.
//!
//! The caller only waits: when it goes away, the sandbox is made all the same and can be found by its idempotency key or
//! in the list. A caller that is told of a failure is told after the first attempt to undo it, so that normally nothing is
//! left by then.

use crate::{
    Error,
    admission::{expiry, now},
    guard::{Backoff, guarded},
    sandbox::{Actor, Message, Phase, destroyed, not_configured},
    ttl,
};
use stacyvm_fault::{Point, hit};
use stacyvm_provider::Created;
use stacyvm_store::{SandboxChange, SandboxRow};
use stacyvm_types::{EventType, SandboxState, WireDuration};
use std::time::Duration;

/// What a create request leaves to be stored and done.
pub(crate) struct Birth {
    pub(crate) row: SandboxRow,
    /// Time to live, counted from when it runs.
    pub(crate) ttl: Duration,
}

enum Made {
    Yes(Created),
    No(Error),
    /// Destroy came first.
    Unwanted,
}

impl Actor {
    pub(crate) async fn create(&mut self, birth: Birth) -> Phase {
        if let Err(error) = self.core.store.insert_sandbox(&birth.row).await {
            return self.never_stored(error.into()).await;
        }
        hit(Point::CreateStored);
        self.emit(
            EventType::SandboxCreated,
            [
                ("provider", self.record.provider.as_str().into()),
                ("image", self.record.spec.image.as_str().into()),
            ],
        );
        match self.make().await {
            Made::Yes(created) => {
                hit(Point::CreateMade);
                match self.made(created, birth.ttl).await {
                    Ok(()) => Phase::Live(false),
                    Err(error) => self.undo(error).await,
                }
            }
            Made::No(error) => self.undo(error).await,
            Made::Unwanted => {
                self.born(Err(destroyed(&self.id)));
                Phase::Destroy
            }
        }
    }

    /// The runtime's part, with the mailbox open.
    async fn make(&mut self) -> Made {
        let Some(slot) = self.slot.clone() else {
            return Made::No(not_configured(&self.record.provider).into());
        };
        let (id, spec) = (self.id.clone(), self.record.spec.clone());
        let deadline = self.core.config.create_deadline;
        let mut call = Box::pin(guarded(deadline, slot.provider.create(&id, &spec)));
        let deadline = WireDuration::from(deadline);
        loop {
            tokio::select! {
                result = &mut call => return match result {
                    Ok(created) => Made::Yes(created),
                    Err(error) => {
                        tracing::warn!(sandbox = %self.id, %deadline, "not made");
                        self.emit_provider_failed("spawn", &error);
                        Made::No(error.into())
                    }
                },
                message = self.mailbox.recv() => match message {
                    Some(Message::Destroy) => return Made::Unwanted,
                    other => {
                        // Nothing else ends a creation: extending is refused, a hint means nothing yet.
                        self.take(other).await;
                    }
                },
            }
        }
    }

    async fn made(&mut self, created: Created, ttl: Duration) -> Result<(), Error> {
        let (running_at, expires_at) = (now(), expiry(ttl));
        let change = SandboxChange {
            state: Some(SandboxState::Running),
            runtime_id: created.runtime_id.clone(),
            running_at: Some(running_at),
            expires_at: Some(expires_at),
            ..SandboxChange::default()
        };
        self.store(&change).await?;
        hit(Point::CreateRunning);
        self.record.state = SandboxState::Running;
        self.record.runtime_id = created.runtime_id;
        self.record.running_at = Some(running_at);
        self.record.expires_at = expires_at;
        self.emit(EventType::SandboxRunning, [("provider", self.record.provider.as_str().into())]);
        self.born(Ok(()));
        Ok(())
    }

    /// It is to be as if it had never been asked for.
    async fn undo(&mut self, error: Error) -> Phase {
        self.enter(SandboxState::Error, error.message()).await;
        self.emit(EventType::SandboxError, [("reason", error.message().into())]);
        let phase = match self.remove_once().await {
            Some(Ok(())) => return self.finish(Some(error)).await,
            Some(Err(failure)) => {
                self.emit_provider_failed("destroy", &failure);
                Phase::Failed
            }
            None => Phase::Done,
        };
        self.born(Err(error));
        phase
    }

    /// The row could not be stored, as far as is known: an I/O error may have come after the fact.
    async fn never_stored(&mut self, error: Error) -> Phase {
        let at = now();
        let change = SandboxChange {
            state: Some(SandboxState::Destroyed),
            destroyed_at: Some(at),
            ..SandboxChange::default()
        };
        if !matches!(error.code(), stacyvm_types::ErrorCode::Conflict)
            && let Err(error) = self.store(&change).await
        {
            tracing::error!(sandbox = %self.id, %error, "a sandbox that was not made may be in the store as creating");
        }
        self.core.registry.remove(self.id.as_str());
        self.record.state = SandboxState::Destroyed;
        self.born(Err(error));
        Phase::Done
    }

    /// State `error`: what the runtime still holds is freed; the row of one that ran stays, for its reason to be read,
    /// until it is destroyed or its time is over. One that never ran is gone with its last trace in the runtime.
    pub(crate) async fn failed(&mut self) -> Phase {
        let never_ran = self.record.running_at.is_none();
        let mut backoff = Backoff::new(self.core.config.retry);
        let mut removal = Some(Box::pin(self.removal()));
        let mut pause = Box::pin(tokio::time::sleep(Duration::ZERO));
        let mut waiting = false;
        let stopping = self.core.stopping.clone();
        loop {
            let expires_at = self.record.expires_at;
            tokio::select! {
                result = async { match removal.as_mut() { Some(call) => call.await, None => std::future::pending().await } } => {
                    removal = None;
                    match result {
                        Ok(()) if never_ran => return self.finish(None).await,
                        Ok(()) => {}
                        Err(error) => {
                            tracing::warn!(sandbox = %self.id, error = error.chain(), "what is left of a failed sandbox could not be removed yet");
                            pause.as_mut().reset(tokio::time::Instant::now() + backoff.pause());
                            waiting = true;
                        }
                    }
                }
                () = pause.as_mut(), if waiting => {
                    waiting = false;
                    removal = Some(Box::pin(self.removal()));
                }
                message = self.mailbox.recv() => if let Some(phase) = self.take(message).await { return phase },
                () = ttl::until(expires_at), if !never_ran => return Phase::Expired,
                () = stopping.cancelled() => return if self.record.spec.ephemeral { Phase::Destroy } else { Phase::Done },
            }
        }
    }
}
