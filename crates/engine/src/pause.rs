//! Pausing and resuming, in states running and paused. The runtime's part goes on beside the mailbox, so that one which
//! hangs over it keeps nobody from destroying the sandbox, and its deadline and its end still count.
//!
//! The runtime is asked every time, also for what the record says already: both calls are idempotent, and the record may
//! be behind a runtime that others use, too. While one is under way nothing else looks at the sandbox, as its runtime may
//! say the one or the other; afterwards a look settles what a call that failed has left.

use crate::{
    Engine, Error, Operation, Result, SandboxRecord,
    guard::guarded,
    reach::{find, refusal},
    sandbox::{Actor, Message, not_configured},
};
use futures::future::BoxFuture;
use stacyvm_fault::{Point, hit};
use stacyvm_provider::ErrorKind;
use stacyvm_types::SandboxState;
use std::time::Instant;
use tokio::sync::oneshot;

/// Where the answer goes.
pub(crate) type Reply = oneshot::Sender<Result<SandboxRecord>>;

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    Pause,
    Resume,
}

/// One that is under way.
pub(crate) struct Turning {
    turn: Turn,
    call: BoxFuture<'static, stacyvm_provider::Result<()>>,
    askers: Vec<Reply>,
}

impl Engine {
    /// Freezes every process of a sandbox: memory and files stay, no processor time is used, commands are refused. Its
    /// time to live runs on. Output streams wait, and go on when it is resumed, with every byte. A deadline of a command
    /// is kept by the guest, by whose clock the pause may count. Returns at once for one that is paused.
    ///
    /// # Errors
    /// `NotFound`; `Unsupported` if its provider cannot; `Conflict` or `Unavailable` if it does not run (now).
    pub async fn pause(&self, id: &str) -> Result<SandboxRecord> {
        self.turn(id, Turn::Pause).await
    }

    /// Lets a paused sandbox go on where it was. Returns at once for one that runs.
    ///
    /// # Errors
    /// As [`Engine::pause`].
    pub async fn resume(&self, id: &str) -> Result<SandboxRecord> {
        self.turn(id, Turn::Resume).await
    }

    /// Returns once the sandbox is not paused (any more), for what has to be done in it then; at once if there is none.
    pub async fn awake(&self, id: &str) {
        if let Ok(handle) = find(&self.core, id).await {
            handle.awake().await;
        }
    }

    async fn turn(&self, id: &str, turn: Turn) -> Result<SandboxRecord> {
        let started = Instant::now();
        let handle = find(&self.core, id).await?;
        handle.settled(id).await?;
        let provider = handle.record().provider.clone();
        let result = self.ask(&handle, |reply| Message::Turn(turn, reply)).await;
        let operation = if turn == Turn::Pause { Operation::Pause } else { Operation::Resume };
        self.observe(operation, &provider, &result, started);
        result
    }
}

impl Actor {
    /// Takes a request up: refused, joined to the one under way, or begun. True: begun, and what was seen before is stale.
    pub(crate) fn turn(&self, under_way: &mut Option<Turning>, turn: Turn, reply: Reply) -> bool {
        let refused = match (self.record.state, &mut *under_way) {
            (SandboxState::Running | SandboxState::Paused, None) => {
                *under_way = Some(Turning { turn, call: self.runtime_turn(turn), askers: vec![reply] });
                return true;
            }
            (SandboxState::Running | SandboxState::Paused, Some(turning)) if turning.turn == turn => {
                // Those that went away need no answer.
                turning.askers.retain(|asker| !asker.is_closed());
                turning.askers.push(reply);
                return false;
            }
            (SandboxState::Running | SandboxState::Paused, Some(turning)) => {
                let doing = if turning.turn == Turn::Pause { "paused" } else { "resumed" };
                Error::conflict(format!("sandbox {} is just being {doing}: try again", self.id))
            }
            _ => self.not_now(),
        };
        // The asker may have gone away.
        let _ = reply.send(Err(refused));
        false
    }

    /// Why it can be neither paused nor resumed in the state it is in.
    pub(crate) fn not_now(&self) -> Error {
        match self.record.state {
            // Stored before a start, and its runtime was not asked yet.
            SandboxState::Running | SandboxState::Paused => None,
            _ => refusal(&self.record),
        }
        .unwrap_or_else(|| Error::unavailable(format!("sandbox {} is being recovered; try again", self.id)))
    }

    /// What the runtime made of it.
    pub(crate) async fn turned(&mut self, turning: Turning, result: stacyvm_provider::Result<()>) {
        let (state, operation) = match turning.turn {
            Turn::Pause => (SandboxState::Paused, "pause"),
            Turn::Resume => (SandboxState::Running, "resume"),
        };
        let answer = match result {
            Ok(()) => {
                if turning.turn == Turn::Pause {
                    hit(Point::PauseMade);
                }
                self.found(state, false).await;
                Ok(self.record.clone())
            }
            Err(error) => {
                if error.kind() != ErrorKind::Unsupported {
                    self.emit_provider_failed(operation, &error);
                }
                Err(error.into())
            }
        };
        for asker in turning.askers {
            let _ = asker.send(answer.clone());
        }
    }

    fn runtime_turn(&self, turn: Turn) -> BoxFuture<'static, stacyvm_provider::Result<()>> {
        let (slot, id, name) = (self.slot.clone(), self.id.clone(), self.record.provider.clone());
        let deadline = self.core.config.provider_deadline;
        Box::pin(async move {
            let Some(slot) = slot else { return Err(not_configured(&name)) };
            match turn {
                Turn::Pause => guarded(deadline, slot.provider.pause(&id)).await,
                Turn::Resume => guarded(deadline, slot.provider.resume(&id)).await,
            }
        })
    }
}

/// The one that was under way, with its result. Never returns while none is.
pub(crate) async fn over(under_way: &mut Option<Turning>) -> (Turning, stacyvm_provider::Result<()>) {
    if let Some(turning) = under_way.as_mut() {
        let result = (&mut turning.call).await;
        if let Some(turning) = under_way.take() {
            return (turning, result);
        }
    }
    std::future::pending().await
}
