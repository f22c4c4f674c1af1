//! Processes: started once, belonging to no connection, remembered for a while after their end.

pub(crate) mod attach;
mod ends;
pub(crate) mod launch;
pub(crate) mod limits;
mod log;
pub(crate) mod pty;
mod pump;
mod recent;
mod stdin;
pub(crate) mod table;
mod watcher;

use crate::{
    fail::{Fail, Result},
    supervisor::wire::{Command, Ending},
};
use limits::{Counts, Hit, Limits};
use log::{Log, Piece, Source};
use pty::{Pty, Size};
use recent::Recent;
use stacyvm_guest::proto;
use std::{
    collections::HashMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use stdin::Stdin;
use tokio::{
    io::AsyncWriteExt,
    net::unix::OwnedWriteHalf,
    sync::{oneshot, watch},
    time::Instant,
};

/// Memory for the output of all processes together, in bytes.
const ALL_LOGS: usize = 32 << 20;
/// What a process may keep of its output however many there are, in bytes.
const LEAST_LOG: usize = 64 << 10;
/// Time that output may still arrive after the leader's end, from children it left.
const DRAIN: Duration = Duration::from_millis(200);
/// Longest wait for a supervisor to answer.
const SIGNAL_ANSWER: Duration = Duration::from_secs(4);

/// What all processes share.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    recent: Mutex<Recent>,
    /// Memory that all logs take now.
    log_bytes: AtomicUsize,
    /// Processes whose tree lives.
    live: AtomicUsize,
}

impl Shared {
    fn recent(&self) -> MutexGuard<'_, Recent> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What one process's log may take now.
    fn share(&self) -> usize {
        (ALL_LOGS / self.live.load(Ordering::Relaxed).max(1)).max(LEAST_LOG)
    }
}

/// How long a process waits for its first reader, and for one that was cut off, rather than lose output.
const HOLD: Duration = Duration::from_secs(3);
/// Most bytes that a connection may have taken and not delivered: its window, and what the control plane has in hand.
const IN_FLIGHT: usize = 1 << 20;

/// What was asked for, and what the start made of it.
#[derive(Debug)]
struct Facts {
    id: String,
    /// Cut to a bounded length: for people to recognise it.
    argv: Vec<String>,
    cwd: String,
    user: String,
    tag: String,
    pid: u32,
    started_ms: i64,
    log_capacity: usize,
    /// Distinguishes processes in the shared lines.
    number: u64,
    /// The counters of limits before it started.
    counts: Counts,
}

/// How a process ended.
#[derive(Debug, Clone)]
enum Outcome {
    Exited(i32),
    Signaled(i32),
    Lost(String),
}

#[derive(Debug)]
struct State {
    log: Log,
    /// What `log` was last counted as.
    counted: usize,
    /// Positions of the readers that the process waits for, by number.
    pacers: HashMap<u64, u64>,
    /// Those of `pacers` whose reader is not there: not yet, or not any more.
    held: Vec<u64>,
    next_pacer: u64,
    outcome: Option<Outcome>,
    ended_ms: i64,
    ended_at: Option<Instant>,
    timed_out: bool,
    oom_killed: bool,
    limits_hit: Hit,
    /// End of the output that belongs to the process's life, once that is known.
    settled: Option<u64>,
    output_open: bool,
    /// The supervisor lives: something of the tree does.
    supervised: bool,
    /// Taken out of the table.
    forgotten: bool,
    signals: HashMap<u32, oneshot::Sender<bool>>,
    next_signal: u32,
}

/// A process and everything known about it.
#[derive(Debug)]
pub(crate) struct Process {
    facts: Facts,
    state: Mutex<State>,
    /// Told after every change of `state`.
    changed: watch::Sender<()>,
    stdin: Stdin,
    pty: Option<Mutex<Pty>>,
    control: tokio::sync::Mutex<OwnedWriteHalf>,
    shared: std::sync::Arc<Shared>,
}

fn unix_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

impl State {
    fn new() -> Self {
        Self {
            log: Log::new(),
            counted: 0,
            pacers: HashMap::new(),
            held: Vec::new(),
            next_pacer: 0,
            outcome: None,
            ended_ms: 0,
            ended_at: None,
            timed_out: false,
            oom_killed: false,
            limits_hit: Hit::default(),
            settled: None,
            output_open: true,
            supervised: true,
            forgotten: false,
            signals: HashMap::new(),
            next_signal: 0,
        }
    }

    /// First offset that a reader may still want. What was handed to a connection may be lost with it, so a part of the
    /// log behind the reader is kept for its return.
    fn keep_from(&self, capacity: usize) -> u64 {
        let on_the_way = IN_FLIGHT.min(capacity / 2) as u64;
        self.pacers.values().min().map_or(u64::MAX, |position| position.saturating_sub(on_the_way))
    }

    /// Makes the process wait for a reader at `position`.
    fn pace(&mut self, position: u64) -> u64 {
        let number = self.next_pacer;
        self.next_pacer += 1;
        self.pacers.insert(number, position);
        number
    }

    /// Stops waiting for readers that are not there.
    fn release_held(&mut self) {
        for number in self.held.drain(..) {
            self.pacers.remove(&number);
        }
    }

    fn end(&mut self, outcome: Outcome) {
        self.outcome = Some(outcome);
        self.ended_ms = unix_ms();
        self.ended_at = Some(Instant::now());
    }
}

impl Process {
    fn new(
        facts: Facts,
        stdin: Stdin,
        pty: Option<Pty>,
        control: OwnedWriteHalf,
        shared: &std::sync::Arc<Shared>,
    ) -> Self {
        shared.live.fetch_add(1, Ordering::Relaxed);
        Self {
            facts,
            state: Mutex::new(State::new()),
            changed: watch::Sender::new(()),
            stdin,
            pty: pty.map(Mutex::new),
            control: tokio::sync::Mutex::new(control),
            shared: std::sync::Arc::clone(shared),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state, counts what the log takes, and wakes everybody.
    fn update<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state();
        let result = change(&mut state);
        let size = state.log.size();
        self.shared.log_bytes.fetch_add(size, Ordering::Relaxed);
        self.shared.log_bytes.fetch_sub(state.counted, Ordering::Relaxed);
        state.counted = size;
        drop(state);
        self.changed.send_replace(());
        result
    }

    /// What the log may take now.
    fn capacity(&self) -> usize {
        self.facts.log_capacity.min(self.shared.share())
    }

    /// How many more bytes may be read from the process now. 0: somebody it waits for is behind.
    fn room(&self) -> usize {
        let (state, capacity) = (self.state(), self.capacity());
        state.log.room(capacity, state.keep_from(capacity))
    }

    /// Waits, for a while, for a reader at `position` that has not attached yet or was cut off.
    fn hold(self: &std::sync::Arc<Self>, position: u64) {
        let number = self.update(|state| {
            let number = state.pace(position);
            state.held.push(number);
            number
        });
        let process = std::sync::Arc::downgrade(self);
        tokio::spawn(async move {
            tokio::time::sleep(HOLD).await;
            if let Some(process) = process.upgrade() {
                process.update(|state| {
                    state.held.retain(|held| *held != number);
                    state.pacers.remove(&number);
                });
            }
        });
    }

    fn append(&self, source: Source, data: &[u8]) {
        let capacity = self.capacity();
        self.update(|state| state.log.append(source, data, capacity));
        self.shared.recent().append(self.facts.number, source, data);
    }

    /// The leader ended.
    fn leader_ended(&self, ending: Ending, timed_out: bool, oom_killed: bool, hit: Hit) {
        self.update(|state| {
            state.timed_out = timed_out;
            state.oom_killed = oom_killed;
            state.limits_hit = state.limits_hit.and(hit);
            state.end(match ending {
                Ending::Exited(code) => Outcome::Exited(code),
                Ending::Signaled(signal) => Outcome::Signaled(signal),
            });
        });
    }

    /// What was hit since it started, as the kernel counts it.
    fn hit(&self, limits: &Limits) -> Hit {
        self.facts.counts.until(limits.counts())
    }

    /// Brings what was hit up to date, unless it has ended.
    pub(crate) fn look(&self, limits: &Limits) {
        let hit = self.hit(limits);
        let mut state = self.state();
        // Nobody waits for this alone: whoever wants to know looks.
        if state.outcome.is_none() {
            state.limits_hit = state.limits_hit.and(hit);
        }
    }

    /// The terminal, if it has one.
    fn pty(&self) -> Option<MutexGuard<'_, Pty>> {
        self.pty.as_ref().map(|pty| pty.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Gives its terminal another size.
    ///
    /// # Errors
    /// `InvalidArgument` without a terminal; the kernel's.
    pub(crate) fn resize(&self, size: Size) -> Result<()> {
        let mut pty = self.pty().ok_or_else(|| Fail::invalid("the process has no terminal"))?;
        pty.resize(size).map_err(|errno| Fail::errno("the terminal", errno))
    }

    /// The supervisor is gone. If it did not tell how its leader ended, nobody knows.
    fn supervisor_gone(&self) {
        self.stdin.close();
        if let Some(mut pty) = self.pty() {
            pty.close();
        }
        self.shared.live.fetch_sub(1, Ordering::Relaxed);
        self.update(|state| {
            state.supervised = false;
            // Dropping the senders tells those who wait.
            state.signals.clear();
            if state.outcome.is_none() {
                let why = "its supervisor was killed; the exit status is not known";
                state.end(Outcome::Lost(why.to_owned()));
            }
        });
    }

    fn signal_answered(&self, sequence: u32, delivered: bool) {
        let waiting = self.state().signals.remove(&sequence);
        if let Some(waiting) = waiting {
            // Whoever asked may have left.
            let _ = waiting.send(delivered);
        }
    }

    /// Sends a signal by way of the supervisor. False if there was nothing left to send it to.
    pub(crate) async fn signal(&self, signal: i32, tree: bool) -> Result<bool> {
        let late = || Fail::timeout("the process did not take the signal in time");
        let (sequence, answer) = {
            let mut state = self.state();
            if !state.supervised {
                return Ok(false);
            }
            let sequence = state.next_signal;
            state.next_signal = sequence.wrapping_add(1);
            let (sender, answer) = oneshot::channel();
            state.signals.insert(sequence, sender);
            (sequence, answer)
        };
        let frame = Command { sequence, signal, tree }.encode();
        let exchange = async {
            // A failure to write means that the supervisor just left; then its answer never comes either.
            let _ = self.control.lock().await.write_all(&frame).await;
            answer.await.unwrap_or(false)
        };
        let result = tokio::time::timeout(SIGNAL_ANSWER, exchange).await.map_err(|_| late());
        self.state().signals.remove(&sequence);
        result
    }

    /// Waits until the leader has ended and its output is in the log, at most until `deadline`.
    pub(crate) async fn wait(&self, deadline: Instant) {
        let mut changes = self.changed.subscribe();
        loop {
            changes.borrow_and_update();
            // A paced reader that is behind can hold up the output for ever, and must not hold up this.
            let until = {
                let state = self.state();
                match state.ended_at {
                    Some(_) if state.settled.is_some() => return,
                    Some(ended) => deadline.min(ended + DRAIN + DRAIN / 4),
                    None => deadline,
                }
            };
            if tokio::time::timeout_at(until, changes.changed()).await.is_err() {
                return;
            }
        }
    }

    /// The leader has ended.
    fn ended(&self) -> bool {
        self.state().outcome.is_some()
    }

    /// Nothing of the tree is left.
    fn gone(&self) -> bool {
        !self.state().supervised
    }

    /// Sorts by the time of the end.
    fn ended_order(&self) -> (Option<Instant>, u64) {
        (self.state().ended_at, self.facts.number)
    }

    /// More output may come.
    fn may_say_more(&self) -> bool {
        self.state().output_open
    }

    /// Somebody reads whom the process waits for. A reader that is not there does not count.
    fn paced(&self) -> bool {
        let state = self.state();
        state.pacers.len() > state.held.len()
    }

    /// Gives up all but `size` bytes of output that nobody reads, and waiting for readers that are not there.
    fn give_up_output(&self, size: usize) {
        self.update(|state| {
            state.release_held();
            state.log.trim(size);
        });
    }

    /// What is at `offset` for a reader, at most `most` bytes of it.
    fn read(&self, offset: u64, most: usize) -> Piece {
        self.state().log.read(offset, most)
    }

    /// The process as it is now.
    pub(crate) fn describe(&self) -> proto::Process {
        let (stdin_open, stdin_offset) = self.stdin.status();
        let pty = self.pty().map(|pty| pty.size().into());
        let facts = &self.facts;
        let state = self.state();
        proto::Process {
            id: facts.id.clone(),
            pid: facts.pid,
            argv: facts.argv.clone(),
            cwd: facts.cwd.clone(),
            user: facts.user.clone(),
            tag: facts.tag.clone(),
            started_unix_ms: facts.started_ms,
            ended_unix_ms: state.ended_ms,
            output_end: state.log.end(),
            output_start: state.log.start(),
            stdin_open,
            timed_out: state.timed_out,
            oom_killed: state.oom_killed,
            output_open: state.output_open,
            stdin_offset,
            pty,
            limits_hit: state.limits_hit.numbers(),
            outcome: state.outcome.as_ref().map(|outcome| match outcome {
                Outcome::Exited(code) => proto::process::Outcome::ExitCode(*code),
                Outcome::Signaled(signal) => proto::process::Outcome::Signal(*signal),
                Outcome::Lost(why) => proto::process::Outcome::Lost(why.clone()),
            }),
        }
    }

    /// Writes to stdin; see [`Stdin::write`].
    pub(crate) async fn write_stdin(&self, request: &proto::StdinRequest) -> Result<proto::StdinReply> {
        let reply = self.stdin.write(request).await;
        self.changed.send_replace(());
        reply
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let counted = self.state().counted;
        self.shared.log_bytes.fetch_sub(counted, Ordering::Relaxed);
    }
}
