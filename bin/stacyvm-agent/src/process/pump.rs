//! From a process's pipes, or its terminal, into its log, for as long as anything holds them open.
//!
//! The one place that decides when output counts as complete: both pipes are at their end, or the leader is gone, the
//! drain time is over, and every byte that was in the pipes at its end is in the log. A process's own output is in the
//! pipes when it ends; what comes later is from children it left, and goes on being logged.

use super::{DRAIN, Process, Source};
use std::{cell::RefCell, io::ErrorKind, sync::Arc};
use tokio::{net::unix::pipe, sync::watch, time::Instant};

/// Most bytes in one read: what a pipe holds by default.
const READ: usize = 64 << 10;

/// Most bytes of output that are in a terminal beyond those that it counts.
const IN_TERMINAL: usize = 16 << 10;

thread_local! {
    /// Shared by all pumps: they run on one thread, and none is suspended while it uses it.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// One of the two pipes.
struct Input {
    source: Source,
    pipe: Option<pipe::Receiver>,
    /// Bytes that were in the pipe when the leader had ended, and are not in the log yet.
    owed: usize,
}

impl Input {
    /// Waits for bytes or the end of the pipe; for ever if it is closed already.
    async fn ready(&self) {
        match &self.pipe {
            // A failure shows at the read that follows.
            Some(pipe) => drop(pipe.readable().await),
            None => std::future::pending().await,
        }
    }

    /// Reads what is owed as far as there is room, until there is nothing or the end: that there is nothing is not told.
    fn read_owed(&mut self, process: &Process) {
        while self.owed > 0 && process.room() > 0 {
            let before = self.owed;
            self.read(process, process.room().min(self.owed));
            if self.owed == before {
                return;
            }
        }
    }

    /// Reads once, at most `most` bytes. Without bytes or at the end, nothing happens or the pipe is closed.
    fn read(&mut self, process: &Process, most: usize) {
        let Some(pipe) = &self.pipe else { return };
        let read = BUFFER.with_borrow_mut(|buffer| {
            buffer.resize(READ, 0);
            let read = pipe.try_read(&mut buffer[..most.min(READ)]);
            if let Ok(read) = read {
                process.append(self.source, &buffer[..read]);
            }
            read
        });
        match read {
            Ok(read) if read > 0 => self.owed = self.owed.saturating_sub(read),
            Err(error) if error.kind() == ErrorKind::WouldBlock => self.owed = 0,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // The end, which a terminal without anybody at it reports as an error.
            _ => {
                self.pipe = None;
                self.owed = 0;
            }
        }
    }
}

/// Moves output until both pipes are closed or the process is forgotten.
pub(super) async fn run(
    process: Arc<Process>,
    stdout: pipe::Receiver,
    stderr: Option<pipe::Receiver>,
    on_growth: impl Fn(),
) {
    let mut changes = process.changed.subscribe();
    let terminal = stderr.is_none();
    let pipes = [(Source::Stdout, Some(stdout)), (Source::Stderr, stderr)];
    let mut inputs = pipes.map(|(source, pipe)| Input { source, pipe, owed: 0 });
    // Instant from which the output may count as complete, once the leader has ended.
    let mut drained_at = None;
    let mut settled = false;
    let mut told_closed = false;
    loop {
        changes.borrow_and_update();
        if process.state().forgotten {
            // Whoever still reads gets what there is, and an end.
            if !settled {
                settle(&process);
            }
            return;
        }
        if drained_at.is_none() {
            drained_at = leader_end(&process).map(|ended| {
                for input in &mut inputs {
                    let waiting = input.pipe.as_ref().map(rustix::io::ioctl_fionread);
                    let waiting = waiting.and_then(Result::ok).map_or(0, |n| usize::try_from(n).unwrap_or(0));
                    // What a terminal says is not all that is on its way through it.
                    input.owed = waiting + if terminal { IN_TERMINAL } else { 0 };
                }
                ended + DRAIN
            });
        }
        let over = drained_at.is_some_and(|at| at <= Instant::now());
        if terminal && over && !settled {
            inputs[0].read_owed(&process);
        }
        let closed = inputs.iter().all(|input| input.pipe.is_none());
        let nothing_owed = inputs.iter().all(|input| input.owed == 0);
        if !settled && drained_at.is_some() && (closed || (over && nothing_owed)) {
            settled = true;
            settle(&process);
        }
        if closed && !told_closed {
            told_closed = true;
            process.update(|state| state.output_open = false);
        }
        if closed && settled {
            return;
        }
        let room = process.room();
        let timer = async {
            match drained_at {
                Some(at) if !settled && !over => tokio::time::sleep_until(at).await,
                _ => std::future::pending().await,
            }
        };
        let [stdout, stderr] = &mut inputs;
        tokio::select! {
            () = stdout.ready(), if room > 0 => stdout.read(&process, room),
            () = stderr.ready(), if room > 0 => stderr.read(&process, room),
            () = timer => continue,
            () = changed(&mut changes) => continue,
        }
        on_growth();
        // A process that floods its output must not keep the one thread from anything else for more than one read.
        tokio::task::yield_now().await;
    }
}

async fn changed(changes: &mut watch::Receiver<()>) {
    // The sender is in the process, which we hold.
    let _ = changes.changed().await;
}

fn leader_end(process: &Process) -> Option<Instant> {
    process.state().ended_at
}

fn settle(process: &Process) {
    process.shared.recent().finish(process.facts.number);
    process.update(|state| {
        state.settled = Some(state.log.end());
        state.log.shrink();
    });
}
