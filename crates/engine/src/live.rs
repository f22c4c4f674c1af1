//! States running, paused and unhealthy: see that the sandbox lives, and find it again when it is out of reach.
//!
//! Three things make the task look at its sandbox: the runtime says that it ended, somebody had trouble with its guest, or
//! it is time for a probe. A look decides; the runtime's word that it ended does not, so that a runtime which is merely
//! confused while it restarts costs nobody a sandbox.

use crate::{
    destroy::revival,
    exec,
    guard::{Backoff, guarded},
    hits::Pace,
    pause,
    providers::Slot,
    sandbox::{Actor, Message, Phase, not_configured},
    ttl,
};
use futures::future::BoxFuture;
use stacyvm_provider::{Error, ErrorKind, RuntimeState, SandboxId};
use stacyvm_types::{EventType, SandboxState};
use std::time::Duration;
use tokio::time::Instant;

/// A question during recovery that takes longer gives its turn to the next sandbox, and goes on.
const TURN: Duration = Duration::from_millis(500);
/// Time for a guest to say that it is there. Calls have more: two looks are to be over before one of them is given up.
const PING: Duration = Duration::from_secs(5);
/// Looks in a row that must fail before a running sandbox counts as unhealthy: one may be a moment of load.
const MISSES: u32 = 2;

/// What a look at a sandbox found.
#[derive(Debug)]
enum Seen {
    Running,
    Paused,
    Ended(String),
    /// Its runtime cannot be asked.
    Away(String),
    /// Its runtime says that it runs, and its guest does not answer: dead, wedged, or starved on a busy host.
    Silent(String),
}

impl Actor {
    pub(crate) async fn live(&mut self, mut recovering: bool) -> Phase {
        let config = self.core.config.clone();
        let stopping = self.core.stopping.clone();
        let mut backoff = Backoff::new(config.retry);
        let mut false_alarms = Backoff::new(config.retry);
        let mut missed = 0;
        let mut looked = Instant::now();
        let mut looking: Option<BoxFuture<'static, Seen>> = None;
        let mut ended = if recovering { None } else { self.watch() };
        let mut alarm: Option<String> = None;
        let mut turning = None;
        let mut revived = self.slot.as_ref().map(|slot| slot.revived.clone());
        let (hits, mut pace) = (self.hits.clone(), Pace::default());
        let first = if recovering { Duration::ZERO } else { spread(config.probe_interval) };
        let mut next = Box::pin(tokio::time::sleep(first));
        loop {
            let unhealthy = self.record.state == SandboxState::Unhealthy;
            let expires_at = self.record.expires_at;
            tokio::select! {
                seen = maybe(&mut looking) => {
                    looking = None;
                    looked = Instant::now();
                    let silent = matches!(seen, Seen::Silent(_));
                    let pause = match seen {
                        Seen::Ended(reason) => return self.lost(&alarm.unwrap_or(reason), recovering).await,
                        Seen::Running | Seen::Paused => {
                            missed = 0;
                            backoff.reset();
                            let state =
                                if matches!(seen, Seen::Paused) { SandboxState::Paused } else { SandboxState::Running };
                            self.found(state, recovering).await;
                            recovering = false;
                            if alarm.take().is_some() {
                                // The runtime said that it ended, and it did not: look again before listening again.
                                false_alarms.pause()
                            } else {
                                if ended.is_none() {
                                    ended = self.watch();
                                }
                                spread(config.probe_interval)
                            }
                        }
                        Seen::Away(reason) | Seen::Silent(reason) => {
                            missed += 1;
                            let known = recovering && !silent || unhealthy || alarm.is_some();
                            if known || missed >= MISSES {
                                self.out_of_reach(&reason, recovering).await;
                                recovering = false;
                                ended = None;
                            }
                            backoff.pause()
                        }
                    };
                    self.looked();
                    next.as_mut().reset(Instant::now() + pause);
                }
                (turned, result) = pause::over(&mut turning) => {
                    self.turned(turned, result).await;
                    missed = 0;
                    next.as_mut().reset(Instant::now());
                }
                () = next.as_mut(), if looking.is_none() && turning.is_none() => looking = Some(self.look(recovering)),
                () = pace.turn(&hits) => self.count_hits().await,
                reason = maybe(&mut ended) => {
                    ended = None;
                    alarm = Some(reason);
                    next.as_mut().reset(Instant::now());
                }
                () = revival(&mut revived), if unhealthy => next.as_mut().reset(Instant::now()),
                message = self.mailbox.recv() => match message {
                    Some(Message::Check) => {
                        // At once, except that callers who keep trying must not make it look all the time.
                        let soon = (looked + config.retry.0).max(Instant::now());
                        if looking.is_none() && soon < next.deadline() {
                            next.as_mut().reset(soon);
                        }
                    }
                    Some(Message::Turn(turn, reply)) if !recovering => {
                        if self.turn(&mut turning, turn, reply) {
                            looking = None;
                        }
                    }
                    other => if let Some(phase) = self.take(other).await { return phase },
                },
                () = ttl::until(expires_at) => return Phase::Expired,
                () = stopping.cancelled() => return if self.record.spec.ephemeral { Phase::Destroy } else { Phase::Done },
            }
        }
    }

    pub(crate) async fn found(&mut self, state: SandboxState, recovering: bool) {
        let was = self.record.state;
        self.enter(state, "").await;
        self.settled();
        if recovering {
            self.reconciled("adopted", "");
            self.core.spawn(exec::watch_adopted(self.core.clone(), self.id.clone()));
        }
        let kind = match (was, state) {
            (SandboxState::Paused, SandboxState::Paused) => return,
            (_, SandboxState::Paused) => EventType::SandboxPaused,
            (SandboxState::Paused, SandboxState::Running) => EventType::SandboxResumed,
            (SandboxState::Unhealthy, SandboxState::Running) if !recovering => EventType::SandboxRunning,
            _ => return,
        };
        self.emit(kind, [("provider", self.record.provider.as_str().into())]);
    }

    async fn out_of_reach(&mut self, reason: &str, recovering: bool) {
        let known = self.record.state == SandboxState::Unhealthy;
        self.enter(SandboxState::Unhealthy, reason).await;
        self.settled();
        if recovering {
            self.reconciled("marked_unhealthy", reason);
        }
        if !known {
            self.emit(EventType::SandboxUnhealthy, [("reason", reason.into())]);
        }
    }

    async fn lost(&mut self, reason: &str, recovering: bool) -> Phase {
        // Counted before the state says that it is over, so that whoever sees that sees the limits, too.
        if let Some(slot) = &self.slot
            && let Ok(limits) = tokio::time::timeout(PING, slot.provider.ended_by(&self.id)).await
        {
            self.hits.add(None, &limits);
        }
        self.count_hits().await;
        self.enter(SandboxState::Error, reason).await;
        self.settled();
        if recovering {
            self.reconciled("marked_error", reason);
        }
        self.emit(EventType::SandboxError, [("reason", reason.into())]);
        Phase::Failed
    }

    /// Says what recovery decided.
    pub(crate) fn reconciled(&self, action: &str, reason: &str) {
        let pairs = [
            ("action", action.into()),
            ("provider", self.record.provider.as_str().into()),
            ("image", self.record.spec.image.as_str().into()),
            ("reason", reason.into()),
        ];
        self.emit(EventType::ReconcileAction, pairs);
    }

    fn watch(&self) -> Option<BoxFuture<'static, String>> {
        let slot = self.slot.clone()?;
        Some(Box::pin(slot.ended(self.id.clone())))
    }

    fn look(&self, recovering: bool) -> BoxFuture<'static, Seen> {
        let deadline = self.core.config.provider_deadline;
        let id = self.id.clone();
        match self.slot.clone() {
            None => {
                let reason = not_configured(&self.record.provider).message().to_owned();
                Box::pin(async move { Seen::Away(reason) })
            }
            Some(slot) if recovering => Box::pin(look_in_turn(slot, id, deadline)),
            Some(slot) => Box::pin(look(slot, id, deadline)),
        }
    }
}

/// After a start every stored sandbox is looked at at once: a few at a time, except that a slow answer holds up nobody.
async fn look_in_turn(slot: Slot, id: SandboxId, deadline: Duration) -> Seen {
    let turn = slot.recovery.clone().acquire_owned().await;
    let mut looking = Box::pin(look(slot, id, deadline));
    if let Ok(seen) = tokio::time::timeout(TURN, &mut looking).await {
        return seen;
    }
    drop(turn);
    looking.await
}

async fn look(slot: Slot, id: SandboxId, deadline: Duration) -> Seen {
    match guarded(deadline, slot.provider.status(&id)).await {
        Ok(RuntimeState::Running) => {}
        Ok(RuntimeState::Paused) => return Seen::Paused,
        Ok(RuntimeState::Ended { reason }) => return Seen::Ended(reason),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Seen::Ended("its runtime does not have it any more".into());
        }
        Err(error) if error.kind() == ErrorKind::Destroyed => return Seen::Ended(error.message().into()),
        Err(error) => return Seen::Away(reason(&id, &error)),
    }
    // The runtime says that it runs: that its guest cannot be reached is never the end of it.
    let connected = guarded(deadline, slot.provider.connect(&id)).await;
    let answered = match connected {
        Ok(guest) => guarded(deadline.min(PING), guest.ping()).await,
        Err(error) => Err(error),
    };
    match answered {
        Ok(()) => Seen::Running,
        Err(error) => Seen::Silent(reason(&id, &error)),
    }
}

fn reason(id: &SandboxId, error: &Error) -> String {
    tracing::debug!(sandbox = %id, error = error.chain(), "out of reach");
    error.message().into()
}

async fn maybe<T>(future: &mut Option<BoxFuture<'static, T>>) -> T {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}

/// Probes of many sandboxes made together are spread out.
fn spread(interval: Duration) -> Duration {
    interval.mul_f64(rand::random_range(0.75..1.25))
}
