//! Signals that ask this program to end.

use std::io;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Number of SIGINT.
pub(crate) const INT: i32 = 2;
/// Number of SIGKILL.
pub(crate) const KILL: i32 = 9;

/// Number of SIGHUP.
const HUP: i32 = 1;

/// SIGINT, SIGTERM and SIGHUP from now on.
#[derive(Debug)]
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    /// `None` under `nohup`: who asks for it to be ignored means it.
    hangup: Option<Signal>,
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
            hangup: if ignored(HUP) { None } else { Some(signal(SignalKind::hangup())?) },
        })
    }

    /// The number of the next one. Dropping the future loses none.
    pub(crate) async fn next(&mut self) -> i32 {
        tokio::select! {
            _ = self.interrupt.recv() => INT,
            _ = self.terminate.recv() => 15,
            () = hung_up(&mut self.hangup) => HUP,
        }
    }
}

async fn hung_up(hangup: &mut Option<Signal>) {
    match hangup {
        Some(hangup) => drop(hangup.recv().await),
        None => std::future::pending().await,
    }
}

/// This process was started with the signal ignored.
fn ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    mask >> (signal - 1) & 1 == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_ignored_is_known() {
        // Rust ignores SIGPIPE at start, and nothing ignores SIGURG's neighbour SIGXCPU.
        assert!(ignored(13) && !ignored(24));
    }
}
