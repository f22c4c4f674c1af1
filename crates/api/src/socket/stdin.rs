//! From what a client says to the stdin of its process: in order, each byte once, for as long as it takes.

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
    /// Its position; `None`: behind everything before it.
    pub(super) offset: Option<u64>,
}

/// Stdin of one process.
pub(super) struct Stdin {
    engine: Engine,
    sandbox: String,
    process: String,
    /// Where the next part belongs; `None` where others write too, so that only the guest knows.
    next: Option<u64>,
}

impl Stdin {
    /// `offset`: where it continues, if nobody else writes to it.
    pub(super) fn new(engine: Engine, sandbox: String, process: String, offset: Option<u64>) -> Self {
        Self { engine, sandbox, process, next: offset }
    }

    /// Writes all of it, however long the process takes to read, unless it is closed.
    ///
    /// # Errors
    /// The position is ahead of what was accepted, there is no stdin, or nobody to write to.
    pub(super) async fn write(&mut self, mut part: Part) -> Result<StdinAck, ApiError> {
        let mut offset = match part.offset.or(self.next) {
            Some(offset) => offset,
            None => self.ask(Instant::now() + PATIENCE, None).await?.accepted,
        };
        loop {
            let piece = part.data.slice(..part.data.len().min(PIECE));
            let last = piece.len() == part.data.len();
            let piece_end = offset.saturating_add(piece.len() as u64);
            let write = Some((offset, piece, part.eof && last));
            let ack = self.ask(Instant::now() + PATIENCE, write).await?;
            // What is behind the end of this piece was said before, by somebody who repeats what may be lost.
            let taken = ack.accepted.min(piece_end).saturating_sub(offset);
            part.data = part.data.slice(usize::try_from(taken).unwrap_or(0)..);
            offset += taken;
            if ack.closed || part.data.is_empty() {
                self.next = self.next.map(|next| next.max(ack.accepted));
                return Ok(ack);
            }
            if taken == 0 {
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    /// One write, or a look where it continues.
    async fn ask(&self, until: Instant, write: Option<(u64, Bytes, bool)>) -> Result<StdinAck, ApiError> {
        loop {
            let attempt = async {
                let guest = self.engine.guest(&self.sandbox).await?;
                Ok::<_, ApiError>(match write.clone() {
                    Some((offset, data, eof)) => {
                        let ack = guest.write_stdin(&self.process, offset, data, eof).await?;
                        StdinAck { accepted: ack.accepted, closed: ack.closed }
                    }
                    None => {
                        let process = guest.process(&self.process).await?;
                        StdinAck { accepted: process.stdin_offset, closed: !process.stdin_open }
                    }
                })
            };
            match attempt.await {
                // Out of reach for a moment; the offset makes it safe to say it again.
                Err(error) if error.code() == ErrorCode::Unavailable && Instant::now() < until => {
                    // A sandbox that is paused takes its time.
                    self.engine.awake(&self.sandbox).await;
                    tokio::time::sleep(PAUSE).await;
                }
                answer => return answer,
            }
        }
    }
}
