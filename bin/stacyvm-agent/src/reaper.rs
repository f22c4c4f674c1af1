//! The duties of a first process: reap whatever loses its parent, and end at once when told to.
//!
//! The only place in this program's main process that reaps. Exit statuses of processes that were asked for are the
//! supervisors' business; what arrives here are orphans of supervisors that were killed, and the zygote.

use crate::{confine, killtree, signals};
use rustix::{
    io::Errno,
    process::{Pid, WaitId, WaitIdOptions, getpid, waitid},
};
use std::{
    os::fd::OwnedFd,
    time::{Duration, Instant},
};
use tokio::io::Interest;

/// Longest time that the processes of a sandbox without isolation are given to be gone.
const KILL: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(5);

/// What this process listens to.
///
/// # Errors
/// The kernel's.
pub(crate) fn descriptor() -> Result<OwnedFd, Errno> {
    signals::descriptor(&[libc::SIGCHLD, libc::SIGTERM])
}

/// Reaps until a `SIGTERM` comes. With `first_process`, this process's end is then that of all others; without, they are
/// killed here.
///
/// # Errors
/// The runtime's.
pub(crate) async fn run(descriptor: OwnedFd, first_process: bool) -> std::io::Result<()> {
    let descriptor = confine::watch(descriptor, Interest::READABLE)?;
    loop {
        let mut ready = descriptor.readable().await?;
        while let Some(signal) = signals::next(descriptor.get_ref()) {
            // Whoever is in the sandbox with this process's user may send it what he likes.
            if signal.number == libc::SIGTERM && (signal.from_outside || !first_process) {
                if !first_process {
                    kill_everything();
                }
                return Ok(());
            }
        }
        ready.clear_ready();
        reap();
    }
}

/// Reaps what has ended; true when this process has no children at all.
fn reap() -> bool {
    loop {
        match waitid(WaitId::All, WaitIdOptions::EXITED | WaitIdOptions::NOHANG) {
            Ok(Some(_)) | Err(Errno::INTR) => {}
            Ok(None) => return false,
            Err(_) => return true,
        }
    }
}

fn kill_everything() {
    let me: Pid = getpid();
    let patience = Instant::now() + KILL;
    loop {
        killtree::kill_all(|| killtree::descendants(me));
        if reap() || Instant::now() > patience {
            return;
        }
        std::thread::sleep(PAUSE);
    }
}
