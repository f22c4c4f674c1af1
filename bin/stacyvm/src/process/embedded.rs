//! A process in a sandbox of an engine within this program.

use super::{Attached, Control};
use crate::failure::{Failure, Result};
use bytes::Bytes;
use futures::StreamExt;
use stacyvm_client::Output;
use stacyvm_engine::{Engine, ExecRequest};
use stacyvm_provider::{Guest, Outcome, OutputEvent, OutputStream, ProcessInfo, Signal, StdStream};
use stacyvm_types::{ExitRecord, PtySize, StdinAck, StreamName};
use std::sync::Arc;

/// A process in a sandbox of our own.
pub(crate) struct Embedded {
    output: OutputStream,
    control: EmbeddedControl,
    truncated: bool,
}

/// A handle to it.
#[derive(Clone)]
pub(crate) struct EmbeddedControl {
    guest: Arc<dyn Guest>,
    process: Arc<str>,
}

impl Embedded {
    /// Starts a process and attaches to it.
    ///
    /// # Errors
    /// As the engine says.
    pub(crate) async fn start(engine: &Engine, sandbox: &str, request: ExecRequest) -> Result<Self> {
        let process = engine.start_process(sandbox, request).await?;
        let output = engine.attach(sandbox, &process.id, 0, true, true).await?;
        let guest = engine.guest(sandbox).await?;
        Ok(Self { output, control: EmbeddedControl { guest, process: process.id.into() }, truncated: false })
    }
}

impl Attached for Embedded {
    type Control = EmbeddedControl;

    fn control(&self) -> EmbeddedControl {
        self.control.clone()
    }

    async fn next(&mut self) -> Result<Output> {
        let lost = || Failure::new("the output of the command ended before the command did", "");
        Ok(match self.output.next().await.ok_or_else(lost)?? {
            OutputEvent::Chunk { stream, data, .. } => {
                let stream = match stream {
                    StdStream::Stdout => StreamName::Stdout,
                    StdStream::Stderr => StreamName::Stderr,
                };
                Output::Data { stream, data }
            }
            OutputEvent::Gap { length, .. } => {
                self.truncated = true;
                Output::Gap { length }
            }
            OutputEvent::Exit(process) => Output::Exit(exit_record(&process, self.truncated)),
        })
    }
}

impl Control for EmbeddedControl {
    async fn signal(&self, signal: i32) -> Result<()> {
        self.guest.signal(&self.process, Signal(signal), true).await?;
        Ok(())
    }

    async fn resize(&self, size: PtySize) -> Result<()> {
        Ok(self.guest.resize(&self.process, size).await?)
    }

    async fn write_stdin(&self, offset: u64, data: Bytes, eof: bool) -> Result<StdinAck> {
        let ack = self.guest.write_stdin(&self.process, offset, data, eof).await?;
        Ok(StdinAck { accepted: ack.accepted, closed: ack.closed })
    }
}

fn exit_record(process: &ProcessInfo, truncated: bool) -> ExitRecord {
    let outcome = process.outcome.as_ref();
    ExitRecord {
        exit_code: outcome.and_then(Outcome::shell_code),
        signal: match outcome {
            Some(Outcome::Signaled(signal)) => Some(*signal),
            _ => None,
        },
        timed_out: process.timed_out,
        oom_killed: process.oom_killed,
        limits_hit: process.limits_hit.clone(),
        truncated,
        reason: match outcome {
            Some(Outcome::Lost(reason)) => reason.clone(),
            _ => String::new(),
        },
    }
}
