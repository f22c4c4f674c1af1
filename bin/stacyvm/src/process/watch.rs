//! Watching a process that somebody else started: nothing that happens to us happens to it. A signal, a reader of our output
//! that goes away, the end of this program: it goes on.

use super::{Attached, Input};
use crate::{failure::Result, output, signals::Signals, stdio::Sink};
use stacyvm_client::Output;
use stacyvm_types::ExitRecord;

/// Why nothing is watched any more.
#[derive(Debug)]
pub(crate) enum Left {
    /// The process ended, and its output is complete.
    Exit(ExitRecord),
    /// Whoever is at our terminal wants to leave.
    Detached,
    /// We were told to leave.
    Signal {
        /// By this signal.
        signal: i32,
        /// How much of the output was passed on until then, in bytes.
        passed: u64,
    },
}

/// Passes the output on until the process ends, a signal comes or it is left.
///
/// # Errors
/// The process cannot be followed, or output cannot be written.
pub(crate) async fn watch<A: Attached>(
    process: &mut A,
    input: Input,
    signals: &mut Signals,
    sink: &mut Sink,
) -> Result<Left> {
    let control = process.control();
    let mut passed = 0;
    let follows = async {
        tokio::select! {
            exit = follow(process, sink, &mut passed) => exit.map(Ok),
            signal = signals.next() => Ok(Err(signal)),
        }
    };
    let left = input.attended(&control, follows, Result::is_err).await?;
    Ok(match left {
        None => Left::Detached,
        Some(Ok(exit)) => Left::Exit(exit),
        Some(Err(signal)) => Left::Signal { signal, passed },
    })
}

async fn follow(process: &mut impl Attached, sink: &mut Sink, passed: &mut u64) -> Result<ExitRecord> {
    loop {
        match process.next().await? {
            Output::Exit(exit) => return Ok(exit),
            Output::Gap { length } => {
                output::note(format_args!("stacyvm: {length} bytes of output are lost"));
                *passed += length;
            }
            Output::Reconnecting { reason } => {
                output::note(format_args!("stacyvm: {reason}; the process goes on, trying again"));
            }
            Output::Data { stream, data } => {
                let length = data.len() as u64;
                sink.write(stream, data).await?;
                *passed += length;
            }
        }
    }
}
