//! From what a client says to the stdin of its process: in order, each byte once, for as long as it takes, whoever else
//! writes to it.

use crate::error::ApiError;
use bytes::Bytes;
use stacyvm_engine::Engine;
use stacyvm_types::{ErrorCode, StdinAck};
use std::time::Duration;
use tokio::time::Instant;

/// Largest piece in one call to a guest, in bytes.
const PIECE: usize = 64 << 10;
/// Pause when the process took nothing, or cannot be reached.
const PAUSE: Duration = Duration::from_millis(20);
/// Longest time that a guest out of reach is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

/// A part of stdin.
#[derive(Debug, Default)]
pub(super) struct Part {
    pub(super) data: Bytes,
    pub(super) eof: bool,
    /// Its position among the bytes of all who write; `None`: behind what this connection said before.
    pub(super) offset: Option<u64>,
}

/// Stdin of one process, as one connection writes to it.
pub(super) struct Stdin {
    engine: Engine,
    sandbox: String,
    process: String,
    /// The name of this connection.
    writer: String,
    /// How many bytes were accepted from it.
    own: u64,
    /// What is added to that to say where it is among all, if nobody else writes meanwhile.
    base: u64,
    /// A write failed, so that only the guest knows `own`.
    unsure: bool,
}

impl Stdin {
    /// `base`: how much was written before.
    pub(super) fn new(engine: Engine, sandbox: String, process: String, base: u64) -> Self {
        let writer = format!("ws-{:016x}", uuid::Uuid::new_v4().as_u64_pair().1);
        Self { engine, sandbox, process, writer, own: 0, base, unsure: false }
    }

    /// Writes all of it, however long the process takes to read, unless it is closed.
    ///
    /// # Errors
    /// The position is ahead of what was accepted, there is no stdin, or nobody to write to.
    pub(super) async fn write(&mut self, part: Part) -> Result<StdinAck, ApiError> {
        if self.unsure {
            self.own = self.ask(true, 0, Bytes::new(), false).await?.accepted;
            self.unsure = false;
        }
        let Part { mut data, eof, offset } = part;
        // At a position among all, it is said in nobody's name.
        let (named, mut at) = match offset {
            Some(offset) => (false, offset),
            None => (true, self.own),
        };
        loop {
            let piece = data.slice(..data.len().min(PIECE));
            let (end, last) = (at.saturating_add(piece.len() as u64), piece.len() == data.len());
            let answer = self.ask(named, at, piece, eof && last).await;
            let ack = match answer {
                Ok(ack) => ack,
                Err(error) => {
                    self.unsure = true;
                    return Err(error);
                }
            };
            // What is behind the end of this piece was said before, by somebody who repeats what may be lost.
            let taken = ack.accepted.min(end).saturating_sub(at);
            data = data.slice(usize::try_from(taken).unwrap_or(0)..);
            at += taken;
            if named {
                self.own = self.own.max(at);
            }
            if ack.closed || (data.is_empty() && !eof) {
                return Ok(self.place(!named, ack));
            }
            if taken == 0 {
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    /// An answer as the client counts.
    fn place(&mut self, among_all: bool, ack: StdinAck) -> StdinAck {
        if among_all {
            self.base = ack.accepted.saturating_sub(self.own);
            return ack;
        }
        StdinAck { accepted: self.base.saturating_add(ack.accepted), ..ack }
    }

    /// One write, in the name of this connection or in nobody's.
    async fn ask(&self, named: bool, offset: u64, data: Bytes, eof: bool) -> Result<StdinAck, ApiError> {
        let writer = if named { self.writer.as_str() } else { "" };
        let until = Instant::now() + PATIENCE;
        loop {
            let attempt = async {
                let guest = self.engine.guest(&self.sandbox).await?;
                let ack = guest.write_stdin_as(&self.process, writer, offset, data.clone(), eof).await?;
                Ok::<_, ApiError>(StdinAck { accepted: ack.accepted, closed: ack.closed })
            };
            match attempt.await {
                // The position makes it safe to say it again.
                Err(error) if passes(error.code()) && Instant::now() < until => {
                    // A sandbox that is paused takes its time.
                    self.engine.awake(&self.sandbox).await;
                    tokio::time::sleep(PAUSE).await;
                }
                answer => return answer,
            }
        }
    }
}

/// Whether it may be otherwise in a moment: out of reach, slow to answer, paused.
fn passes(code: ErrorCode) -> bool {
    matches!(code, ErrorCode::Unavailable | ErrorCode::Timeout | ErrorCode::Conflict)
}
