//! Listens to a supervisor until it leaves.

use super::{Process, limits::Limits};
use crate::{
    supervisor::wire::{Ending, FRAME, Report},
    zygote::{Supervised, Zygote},
};
use std::sync::Arc;
use tokio::{io::AsyncReadExt, net::unix::OwnedReadHalf};

/// Exit code with which a shell says that `SIGKILL` ended what it ran.
const SHELL_KILLED: i32 = 128 + libc::SIGKILL;

/// The next frame; `None` when the supervisor is gone.
pub(super) async fn next(control: &mut OwnedReadHalf) -> Option<Report> {
    let mut frame = [0; FRAME];
    control.read_exact(&mut frame).await.ok()?;
    Report::decode(frame)
}

/// How a supervisor left.
pub(super) enum Departure {
    /// With nothing left to do.
    Done,
    /// Killed; which it was, as far as it is known.
    Killed(Option<Supervised>),
}

/// Keeps `process` up to date until its supervisor leaves.
pub(super) async fn run(
    process: Arc<Process>,
    mut control: OwnedReadHalf,
    mut supervisor: Option<Supervised>,
    zygote: &Arc<Zygote>,
    limits: Arc<Limits>,
) -> Departure {
    let mut done = false;
    while let Some(report) = next(&mut control).await {
        match report {
            Report::Forked { pid } => supervisor = Supervised::new(zygote, pid),
            Report::Done => done = true,
            Report::Ended { ending, timed_out, ours } => {
                let killed = matches!(ending, Ending::Signaled(libc::SIGKILL) | Ending::Exited(SHELL_KILLED));
                let mut hit = process.hit(&limits);
                hit.disk_full = ending != Ending::Exited(0) && limits.disk_full();
                process.leader_ended(ending, timed_out, killed && !ours && hit.oom, hit);
            }
            Report::Signalled { sequence, delivered } => process.signal_answered(sequence, delivered),
            // Only ever before a process is known.
            Report::Started { .. } | Report::Failed { .. } => {}
        }
    }
    // One whose end nobody told may have been killed for memory, supervisor and all.
    process.look(&limits);
    process.supervisor_gone();
    if done { Departure::Done } else { Departure::Killed(supervisor) }
}
