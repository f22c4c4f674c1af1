//! Signals that ask this program to end.

use std::io;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Number of SIGINT.
pub(crate) const INT: i32 = 2;
/// Number of SIGKILL.
pub(crate) const KILL: i32 = 9;

/// SIGINT, SIGTERM and SIGHUP from now on.
#[derive(Debug)]
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    /// Starts to listen: none of them ends this process any more.
    ///
    /// # Errors
    /// The system refuses.
    pub(crate) fn listen() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// The number of the next one. Dropping the future loses none.
    pub(crate) async fn next(&mut self) -> i32 {
        tokio::select! {
            _ = self.interrupt.recv() => INT,
            _ = self.terminate.recv() => 15,
            _ = self.hangup.recv() => 1,
        }
    }
}
