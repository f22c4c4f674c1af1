//! One small process above each process that was asked for: it starts it, adopts its orphans, enforces its deadline, and
//! reports the one true exit status.
//!
//! It is the agent's and not the sandbox user's: other uid, not dumpable, no signal handlers. It stays while any
//! descendant lives, so that a whole tree can still be ended when its leader is gone.
//!
//! ```text
//!  agent ──request──► zygote ──fork──► supervisor ──fork──► leader ──► children, setsid'd ones too
//!    ▲                                   │  ▲ adopts whatever loses its parent
//!    └──── Started | Failed, Ended ──────┘  └ leaves last, saying that the tree is empty
//! ```
#![expect(unsafe_code, reason = "a child that borrows memory; descriptors closed by number")]

mod leader;
pub(crate) mod request;
pub(crate) mod spawn;
pub(crate) mod wire;

use crate::{confine, killtree, signals};
use leader::Leader;
use request::Request;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::{RecvFlags, SendFlags, recv, send},
    process::{Pid, WaitOptions, WaitStatus, getpid, wait},
    time::{ClockId, clock_gettime},
};
use std::os::fd::{AsRawFd, OwnedFd};
use wire::{Command, Ending, FRAME, Report, Step};

/// Time between two looks at a tree that is being killed, in milliseconds.
const KILL_PAUSE_MS: u64 = 10;
/// Longest time that the answer to a tree kill waits for the tree to be gone, in milliseconds.
const KILL_ANSWER_MS: u64 = 2_000;
/// Longest sleep, in milliseconds: time that passes while the machine is suspended counts for deadlines and not for sleeps.
const LONGEST_SLEEP_MS: u64 = 30_000;

/// What the agent hands over for one process.
#[derive(Debug)]
pub(crate) struct Parts {
    /// Memory file with a [`Request`].
    pub(crate) request: OwnedFd,
    /// Stream of [`wire`] frames.
    pub(crate) control: OwnedFd,
    /// Working directory.
    pub(crate) cwd: OwnedFd,
    pub(crate) stdin: OwnedFd,
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
}

impl Parts {
    /// How many descriptors these are.
    pub(crate) const COUNT: usize = 6;

    /// Closes all but the way to the agent: the supervisor must not be one more that holds a process's output open.
    fn into_control(self) -> OwnedFd {
        self.control
    }
}

/// Runs in a fresh single-threaded child of the zygote, until no descendant is left. `borrow`: as of [`spawn::spawn`].
pub(crate) fn run(parts: Parts, borrow: bool) -> ! {
    let kept = [&parts.request, &parts.control, &parts.cwd, &parts.stdin, &parts.stdout, &parts.stderr];
    // SAFETY: this process never returns from here, and none of its older descriptors is used again.
    unsafe { confine::close_all_but(&kept.map(AsRawFd::as_raw_fd)) };
    match Supervisor::start(&parts, borrow) {
        Ok(started) => Supervisor::new(parts.into_control(), started).supervise(),
        Err((step, errno)) => tell(&parts.control, Report::failed(step, errno)),
    }
    exit()
}

fn exit() -> ! {
    // SAFETY: ends the process at once, without the parent's exit handlers.
    unsafe { libc::_exit(0) }
}

fn tell(control: &OwnedFd, report: Report) {
    // Without an agent there is nobody to tell. The socket takes far more frames than one process causes at once.
    let _ = send(control, &report.encode(), SendFlags::NOSIGNAL);
}

fn now_ms() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1000 + u64::try_from(now.tv_nsec).unwrap_or(0) / 1_000_000
}

/// The answer to a tree kill, held back until the tree is gone.
struct Pending {
    sequence: u32,
    delivered: bool,
    give_up_ms: u64,
}

struct Supervisor {
    me: Pid,
    leader: Pid,
    /// Until it is reaped.
    leader_lives: bool,
    control: OwnedFd,
    agent_gone: bool,
    children: OwnedFd,
    /// Instant of the kill.
    deadline_ms: Option<u64>,
    timed_out: bool,
    killing: bool,
    sent_kill: bool,
    pending: Vec<Pending>,
    /// A command that has not arrived in full.
    partial: Vec<u8>,
}

/// A leader that has become its program.
struct Started {
    leader: Pid,
    children: OwnedFd,
    deadline_ms: Option<u64>,
}

impl Supervisor {
    fn start(parts: &Parts, borrow: bool) -> Result<Started, (Step, Errno)> {
        let at = |step| move |errno| (step, errno);
        signals::block_all().map_err(at(Step::Prepare))?;
        rustix::process::set_child_subreaper(Some(getpid())).map_err(at(Step::Prepare))?;
        let children = signals::descriptor(&[libc::SIGCHLD]).map_err(at(Step::Prepare))?;
        let request = request::read(&parts.request).map_err(at(Step::Prepare))?;
        let request = Request::decode(&request).ok_or((Step::Prepare, Errno::BADMSG))?;
        let deadline_ms = match request.deadline_ms {
            0 => None,
            after => Some(now_ms().saturating_add(after)),
        };
        let leader = Leader::new(parts, &request);
        // SAFETY: this process has one thread; the leader makes system calls and reads what was prepared.
        let spawned = unsafe { spawn::spawn(borrow, || leader.become_program()) };
        match spawned.map_err(at(Step::Fork))? {
            (_, Some(failure)) => Err(failure),
            // Also one that was killed before it got there, which is reported as any other end.
            (leader, None) => Ok(Started { leader, children, deadline_ms }),
        }
    }

    fn new(control: OwnedFd, started: Started) -> Self {
        let Started { leader, children, deadline_ms } = started;
        tell(&control, Report::Started { pid: leader.as_raw_nonzero().get() });
        Self {
            me: getpid(),
            leader,
            leader_lives: true,
            control,
            agent_gone: false,
            children,
            deadline_ms,
            timed_out: false,
            killing: false,
            sent_kill: false,
            pending: Vec::new(),
            partial: Vec::new(),
        }
    }

    fn supervise(&mut self) {
        loop {
            self.sleep();
            while signals::next(&self.children).is_some() {}
            // Before any command, so that one that comes too late is not taken for the cause of an end.
            let childless = self.reap();
            self.take_commands();
            let now = now_ms();
            if self.deadline_ms.is_some_and(|deadline| deadline <= now) {
                self.deadline_ms = None;
                self.timed_out = self.leader_lives;
                self.killing = true;
            }
            if self.killing && !childless {
                self.sent_kill = true;
                killtree::kill_all(|| self.members());
            }
            self.answer(childless, now);
            if childless {
                return tell(&self.control, Report::Done);
            }
        }
    }

    fn sleep(&self) {
        let until_deadline =
            self.deadline_ms.map(|deadline| deadline.saturating_sub(now_ms()).min(LONGEST_SLEEP_MS));
        let until_next_kill = self.killing.then_some(KILL_PAUSE_MS);
        let timeout = until_deadline.into_iter().chain(until_next_kill).min().map(|left| Timespec {
            tv_sec: i64::try_from(left / 1000).unwrap_or(0),
            tv_nsec: i64::try_from(left % 1000 * 1_000_000).unwrap_or(0),
        });
        let mut watched = vec![PollFd::new(&self.children, PollFlags::IN)];
        if !self.agent_gone {
            watched.push(PollFd::new(&self.control, PollFlags::IN));
        }
        // Whatever it says, everything is looked at again.
        let _ = poll(&mut watched, timeout.as_ref());
    }

    /// Reaps what has ended; true when there is nothing left that could.
    fn reap(&mut self) -> bool {
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) if pid == self.leader && self.leader_lives => {
                    self.leader_lives = false;
                    self.report_end(status);
                }
                Ok(Some(_)) | Err(Errno::INTR) => {}
                Ok(None) => return false,
                Err(_) => return true,
            }
        }
    }

    fn report_end(&self, status: WaitStatus) {
        let ending = match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => Ending::Exited(code),
            (None, Some(signal)) => Ending::Signaled(signal),
            (None, None) => return,
        };
        let report = Report::Ended { ending, timed_out: self.timed_out, ours: self.sent_kill };
        tell(&self.control, report);
    }

    /// Everything that lives in the tree. The leader is among it even if `/proc` cannot be read.
    fn members(&self) -> Vec<Pid> {
        let mut members = killtree::descendants(self.me);
        if self.leader_lives && !members.contains(&self.leader) {
            members.push(self.leader);
        }
        members
    }

    fn take_commands(&mut self) {
        let mut bytes = [0; 32 * FRAME];
        while !self.agent_gone {
            match recv(&self.control, &mut bytes, RecvFlags::DONTWAIT) {
                // Nobody is left who could end this tree later, or read what it writes.
                Ok((0, _)) => {
                    self.agent_gone = true;
                    self.killing = true;
                }
                Ok((read, _)) => {
                    self.partial.extend_from_slice(&bytes[..read]);
                    let commands = std::mem::take(&mut self.partial);
                    let mut frames = commands.chunks_exact(FRAME);
                    for frame in frames.by_ref() {
                        if let Some(command) = frame.try_into().ok().and_then(Command::decode) {
                            self.obey(command);
                        }
                    }
                    self.partial.extend_from_slice(frames.remainder());
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(_) => {
                    self.agent_gone = true;
                    self.killing = true;
                }
            }
        }
    }

    fn obey(&mut self, Command { sequence, signal, tree }: Command) {
        let delivered = match (tree, signal) {
            (false, signal) => {
                self.sent_kill |= signal == libc::SIGKILL && self.leader_lives;
                self.leader_lives && signals::send(self.leader, signal).is_ok()
            }
            (true, libc::SIGKILL) => {
                self.killing = true;
                self.sent_kill = true;
                let delivered = killtree::kill_all(|| self.members()) > 0;
                self.pending.push(Pending { sequence, delivered, give_up_ms: now_ms() + KILL_ANSWER_MS });
                return;
            }
            (true, signal) => killtree::signal_all(|| self.members(), signal) > 0,
        };
        tell(&self.control, Report::Signalled { sequence, delivered });
    }

    fn answer(&mut self, childless: bool, now: u64) {
        let control = &self.control;
        self.pending.retain(|pending| {
            let due = childless || pending.give_up_ms <= now;
            if due {
                let Pending { sequence, delivered, .. } = *pending;
                tell(control, Report::Signalled { sequence, delivered });
            }
            !due
        });
    }
}
