//! What goes into a process: our standard input, and whoever sits at our terminal.

use super::Control;
use crate::{
    failure::Result,
    stdio,
    terminal::{self, Session, Terminal, keys::DetachKeys},
};
use bytes::{Buf, Bytes};
use stacyvm_types::{ErrorCode, StdinAck};
use std::{convert::Infallible, time::Duration};
use tokio::{sync::mpsc, task::JoinHandle};

/// Pause after a write of stdin of which nothing was taken.
const PAUSE: Duration = Duration::from_millis(20);
/// Pause after a write of stdin that failed.
const RETRY: Duration = Duration::from_millis(500);
/// Time for what was typed before somebody left.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// What we have for a process.
#[derive(Debug, Default)]
pub(crate) struct Input {
    /// Bytes for its stdin.
    pub(crate) stdin: Option<mpsc::Receiver<Bytes>>,
    /// Somebody at a terminal that is passed on.
    pub(crate) session: Option<Session>,
}

impl Input {
    /// Our own standard input, if it is wanted, as somebody at `terminal` types it or as it is.
    pub(crate) fn from_here(stdin: bool, terminal: Option<Terminal>, keys: &DetachKeys) -> Self {
        let stdin = stdin.then(stdio::read_stdin);
        match (terminal, stdin) {
            (Some(terminal), Some(typed)) => {
                let (session, stdin) = Session::begin(terminal, keys, typed);
                Self { stdin: Some(stdin), session: Some(session) }
            }
            (_, stdin) => Self { stdin, ..Self::default() },
        }
    }

    /// Feeds a process from here while somebody `follows` it. `None`: whoever is at our terminal has left.
    ///
    /// Where it `goes_on` without us, the terminal is taken out of whatever the process had made of it.
    pub(super) async fn attended<T>(
        self,
        control: &impl Control,
        follows: impl Future<Output = Result<T>>,
        goes_on: impl Fn(&T) -> bool,
    ) -> Result<Option<T>> {
        let Self { stdin, mut session } = self;
        let pump = stdin.map(|stdin| tokio::spawn(pump(control.clone(), stdin, session.is_none())));
        let outcome = tokio::select! {
            done = follows => done.map(Some),
            () = at_terminal(control, session.as_mut()) => Ok(None),
        };
        stop(pump, matches!(outcome, Ok(None))).await;
        let over = matches!(&outcome, Ok(Some(done)) if !goes_on(done));
        if let Some(session) = session.filter(|_| !over) {
            session.terminal.leave();
        }
        outcome
    }
}

/// Passes the sizes of our terminal on, if it is passed on at all, until whoever sits there wants to leave.
async fn at_terminal(control: &impl Control, session: Option<&mut Session>) {
    let Some(Session { terminal, left }) = session else { return std::future::pending().await };
    tokio::select! {
        never = pass_sizes_on(control, terminal) => match never {},
        // A sender that is dropped has not seen the keys.
        Ok(()) = left => {}
    }
}

/// Each size that the terminal gets, the last one in any case.
async fn pass_sizes_on(control: &impl Control, terminal: &mut Terminal) -> Infallible {
    // It may have changed since the process was started.
    let mut size = terminal::size();
    loop {
        let passed = async {
            if let Err(failure) = control.resize(size).await {
                tracing::debug!(failure = failure.what, "the size of the terminal was not passed on");
            }
            std::future::pending::<Infallible>().await
        };
        size = tokio::select! {
            next = terminal.resized() => next,
            never = passed => match never {},
        };
    }
}

/// Stops feeding stdin; what was typed before somebody `left` is delivered first, if that is possible soon.
async fn stop(pump: Option<JoinHandle<()>>, left: bool) {
    let Some(mut pump) = pump else { return };
    if left {
        let _ = tokio::time::timeout(LAST_WORDS, &mut pump).await;
    }
    pump.abort();
}

/// Feeds stdin, every byte once, until it ends or there is nobody to feed. `ends`: its end is the end of the process's, too,
/// which it is not where it is a terminal: that only ever hangs up.
async fn pump(control: impl Control, mut stdin: mpsc::Receiver<Bytes>, ends: bool) {
    let mut offset = 0;
    loop {
        let piece = stdin.recv().await;
        let eof = piece.is_none();
        if eof && !ends {
            return;
        }
        let mut rest = piece.unwrap_or_default();
        loop {
            let length = rest.len() as u64;
            match control.write_stdin(offset, rest.clone(), eof).await {
                Ok(StdinAck { closed: true, .. }) if ends => return,
                Ok(ack) => {
                    let taken = ack.accepted.saturating_sub(offset).min(length);
                    rest.advance(usize::try_from(taken).unwrap_or(0));
                    offset += taken;
                    if rest.is_empty() && !eof {
                        break;
                    }
                    // A closed terminal takes nothing any more, and its process is about to end.
                    if taken == 0 {
                        tokio::time::sleep(PAUSE).await;
                    }
                }
                Err(failure) => {
                    tracing::debug!(failure = failure.what, "stdin was not delivered");
                    match failure.kind {
                        // A process that has ended is the usual reason, and its exit says more.
                        Some(ErrorCode::NotFound | ErrorCode::BadRequest) => return,
                        // Paused, out of reach: as long as it is followed, it may come back.
                        _ => tokio::time::sleep(RETRY).await,
                    }
                }
            }
        }
    }
}
