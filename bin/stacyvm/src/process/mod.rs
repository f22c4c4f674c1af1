//! One process in a sandbox, driven from a command line: its output to our streams, our stdin to it, signals through, and
//! its end as our exit code. Whether the engine is in this program or behind the API makes no difference here.

mod embedded;
mod input;
mod remote;
mod watch;

pub(crate) use embedded::Embedded;
pub(crate) use input::Input;
pub(crate) use remote::Remote;
pub(crate) use watch::{Left, watch};

use crate::{
    failure::{Failure, Result, code},
    output,
    signals::{INT, KILL, Signals},
    stdio::Sink,
};
use bytes::Bytes;
use stacyvm_client::Output;
use stacyvm_types::{ErrorCode, ExitRecord, Limit, PtySize, StdinAck};
use std::time::Duration;

/// Time for a process to be reported dead after it was killed.
const DEATH: Duration = Duration::from_secs(15);

/// A started process, as an attachment to its output.
pub(crate) trait Attached {
    /// What can be done to it besides.
    type Control: Control;

    /// A handle for signals and stdin.
    fn control(&self) -> Self::Control;

    /// The next output, or its end. Dropping the future loses nothing.
    async fn next(&mut self) -> Result<Output>;
}

/// A handle to a started process.
pub(crate) trait Control: Clone + Send + Sync + 'static {
    /// Sends a signal to it and its descendants.
    fn signal(&self, signal: i32) -> impl Future<Output = Result<()>> + Send;

    /// Gives its terminal another size.
    fn resize(&self, size: PtySize) -> impl Future<Output = Result<()>> + Send;

    /// Writes at a position of its stdin, counted from the first byte that this handle wrote.
    fn write_stdin(
        &self,
        offset: u64,
        data: Bytes,
        eof: bool,
    ) -> impl Future<Output = Result<StdinAck>> + Send;
}

/// How following a process came to an end.
#[derive(Debug)]
pub(crate) enum End {
    /// It has ended.
    Exited(ExitRecord),
    /// It was left to itself.
    Detached,
}

impl End {
    /// For a process that cannot be left.
    ///
    /// # Errors
    /// It was.
    pub(crate) fn exited(self) -> Result<ExitRecord> {
        match self {
            Self::Exited(exit) => Ok(exit),
            Self::Detached => Err(Failure::new("the command was left", "").exit(code::OURS)),
        }
    }
}

/// Follows a process to its end, or until it is left.
///
/// The first SIGINT, SIGTERM or SIGHUP is passed on, the second one kills, the third one gives up. When our own output
/// cannot be written, the process is killed.
///
/// # Errors
/// The process cannot be followed, or output cannot be written.
pub(crate) async fn drive<A: Attached>(
    process: &mut A,
    input: Input,
    signals: &mut Signals,
    sink: &mut Sink,
) -> Result<End> {
    let control = process.control();
    let exit = follow(process, &control, signals, sink);
    Ok(input.attended(&control, exit, |_| false).await?.map_or(End::Detached, End::Exited))
}

async fn follow<A: Attached>(
    process: &mut A,
    control: &A::Control,
    signals: &mut Signals,
    sink: &mut Sink,
) -> Result<ExitRecord> {
    let mut received = 0;
    loop {
        let output = tokio::select! {
            output = process.next() => output?,
            signal = signals.next() => {
                received += 1;
                pass_on(control, signal, received)?;
                continue;
            }
        };
        match output {
            Output::Exit(exit) => return Ok(exit),
            Output::Gap { length } => {
                output::note(format_args!("stacyvm: {length} bytes of output are lost"));
            }
            Output::Reconnecting { reason } => {
                output::note(format_args!("stacyvm: {reason}; the command goes on, trying again"));
            }
            Output::Data { stream, data } => {
                let mut write = std::pin::pin!(sink.write(stream, data));
                let written = loop {
                    tokio::select! {
                        written = &mut write => break written,
                        signal = signals.next() => {
                            received += 1;
                            pass_on(control, signal, received)?;
                        }
                    }
                };
                if let Err(error) = written {
                    let _ = tokio::time::timeout(DEATH, control.signal(KILL)).await;
                    return Err(Failure::from(error).exit(code::OURS));
                }
            }
        }
    }
}

/// Passes a signal on in the background: whoever does not answer must not keep us from hearing the next one.
fn pass_on(control: &impl Control, signal: i32, received: u32) -> Result<()> {
    if received > 2 {
        let code = u8::try_from(128 + signal).unwrap_or(code::OURS);
        return Err(Failure::new("given up on the third signal", "").exit(code));
    }
    let control = control.clone();
    let passed = if received == 1 { signal } else { KILL };
    if received == 1 && signal == INT {
        output::note("stacyvm: interrupting the command; once more to kill it");
    }
    tokio::spawn(async move {
        if let Err(failure) = control.signal(passed).await {
            output::note(format_args!("stacyvm: signal {passed} was not delivered: {}", failure.what));
        }
    });
    Ok(())
}

/// The exit code that stands for an end.
pub(crate) fn exit_code(exit: &ExitRecord) -> Result<u8> {
    if exit.timed_out {
        return Ok(code::TIMED_OUT);
    }
    match exit.exit_code {
        // Exit codes are bytes everywhere that our agent runs.
        Some(exit_code) => Ok(u8::try_from(exit_code & 0xff).unwrap_or(code::OURS)),
        None => {
            let reason = if exit.reason.is_empty() { "its status was lost" } else { &exit.reason };
            Err(Failure::new(format!("how the command ended is not known: {reason}"), "").exit(code::OURS))
        }
    }
}

/// Says on standard error what an exit code alone does not. `memory_mb`: the sandbox's limit, 0 if there is none or it is not
/// known.
pub(crate) fn explain(exit: &ExitRecord, memory_mb: u32) {
    if exit.timed_out {
        output::note("stacyvm: killed at its deadline");
    }
    if exit.exit_code != Some(0) {
        for limit in &exit.limits_hit {
            output::note(format_args!("stacyvm: {}", in_words(*limit, memory_mb)));
        }
    }
}

fn in_words(limit: Limit, memory_mb: u32) -> String {
    match limit {
        Limit::Oom if memory_mb == 0 => "the sandbox's memory limit was hit".to_owned(),
        Limit::Oom => format!("the sandbox's memory limit ({memory_mb} MiB) was hit"),
        Limit::DiskFull => "the sandbox's disk is full".to_owned(),
        Limit::Pids => "the sandbox's limit of processes was hit".to_owned(),
    }
}

/// The failure of a start: the command is not there, or cannot be executed, or it is about us.
pub(crate) fn start_failure(failure: Failure, sandbox_exists: bool) -> Failure {
    match failure.kind {
        Some(ErrorCode::NotFound) if sandbox_exists => failure.exit(code::NOT_FOUND),
        Some(ErrorCode::BadRequest) => failure.exit(code::NOT_EXECUTABLE),
        _ => failure.exit(code::OURS),
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
