//! Listens to a supervisor until it leaves.

use super::{Process, memory::OomKills};
use crate::supervisor::wire::{Ending, FRAME, Report};
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

/// Keeps `process` up to date. Returns true if its supervisor left without telling how the leader ended.
pub(super) async fn run(
    process: Arc<Process>,
    mut control: OwnedReadHalf,
    oom_kills: Arc<OomKills>,
    oom_kills_before: Option<u64>,
) -> bool {
    while let Some(report) = next(&mut control).await {
        match report {
            Report::Ended { ending, timed_out, ours } => {
                let killed = matches!(ending, Ending::Signaled(libc::SIGKILL) | Ending::Exited(SHELL_KILLED));
                let more = oom_kills_before.zip(oom_kills.count()).is_some_and(|(before, now)| now > before);
                process.leader_ended(ending, timed_out, killed && !ours && more);
            }
            Report::Signalled { sequence, delivered } => process.signal_answered(sequence, delivered),
            // Only ever before a process is known.
            Report::Started { .. } | Report::Failed { .. } => {}
        }
    }
    process.supervisor_gone()
}
