//! All processes by id: those being started, those alive, and the last ones that ended.

use super::{
    ALL_LOGS, LEAST_LOG, Process, Shared,
    launch::{self, Launched, Launcher},
    watcher::Departure,
};
use crate::fail::{Fail, Result};
use stacyvm_guest::{
    limits,
    proto::{self, StartRequest},
};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
};
use tokio::sync::watch;

/// Most processes with anything alive in their tree.
const LIVE: usize = 512;
/// Most bytes of one list: it fits a protocol message with room to spare.
const LIST: usize = 900 << 10;

/// How a start went, once that is known.
type Start = Option<Result<Arc<Process>>>;

#[derive(Debug)]
enum Slot {
    Starting(watch::Receiver<Start>),
    Known(Arc<Process>),
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Table {
    launcher: Launcher,
    shared: Arc<Shared>,
    slots: Mutex<Slots>,
}

#[derive(Debug, Default)]
struct Slots {
    by_id: HashMap<String, Slot>,
    next: u64,
}

impl Slots {
    fn known(&self) -> impl Iterator<Item = &Arc<Process>> {
        self.by_id.values().filter_map(|slot| match slot {
            Slot::Known(process) => Some(process),
            Slot::Starting(_) => None,
        })
    }
}

fn unknown(id: &str) -> Fail {
    let id: String = id.chars().take(64).collect();
    Fail::not_found(format!("process {id} is not known in this sandbox"))
}

impl Table {
    pub(crate) fn new(launcher: Launcher) -> Arc<Self> {
        Arc::new(Self { launcher, shared: Arc::default(), slots: Mutex::default() })
    }

    fn slots(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a process, or finds the one that has this id already.
    ///
    /// The start goes on when the caller leaves: a second call then finds how it went.
    ///
    /// # Errors
    /// As `Guest::start` of the provider contract.
    pub(crate) async fn start(self: &Arc<Self>, request: StartRequest) -> Result<Arc<Process>> {
        let mut outcome = match self.reserve(&request)? {
            Reserved::Known(process) => return Ok(process),
            Reserved::Starting(outcome) => outcome,
            Reserved::New { number, sender, outcome } => {
                tokio::spawn(Arc::clone(self).carry_out(request, number, sender));
                outcome
            }
        };
        match outcome.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(result)) => result.clone(),
            _ => Err(Fail::internal("the start was given up")),
        }
    }

    fn reserve(&self, request: &StartRequest) -> Result<Reserved> {
        let mut slots = self.slots();
        match slots.by_id.get(&request.id) {
            Some(Slot::Known(process)) => return Ok(Reserved::Known(Arc::clone(process))),
            Some(Slot::Starting(outcome)) => return Ok(Reserved::Starting(outcome.clone())),
            None => launch::validate(request)?,
        }
        let starting = slots.by_id.values().filter(|slot| matches!(slot, Slot::Starting(_))).count();
        if self.shared.live.load(Ordering::Relaxed) + starting >= LIVE {
            return Err(Fail::exhausted(format!("{LIVE} processes run in this sandbox already")));
        }
        let number = slots.next;
        slots.next += 1;
        let (sender, outcome) = watch::channel(None);
        slots.by_id.insert(request.id.clone(), Slot::Starting(outcome.clone()));
        Ok(Reserved::New { number, sender, outcome })
    }

    async fn carry_out(self: Arc<Self>, request: StartRequest, number: u64, sender: watch::Sender<Start>) {
        let id = request.id.clone();
        let launched = self.launcher.launch(request, number, &self.shared).await;
        let result = launched.as_ref().map(|launched| Arc::clone(&launched.process)).map_err(Clone::clone);
        {
            let mut slots = self.slots();
            match &result {
                Ok(process) => slots.by_id.insert(id, Slot::Known(Arc::clone(process))),
                Err(_) => slots.by_id.remove(&id),
            };
        }
        sender.send_replace(Some(result));
        if let Ok(launched) = launched {
            self.look_after(launched).await;
        }
    }

    async fn look_after(self: Arc<Self>, launched: Launched) {
        let table = Arc::clone(&self);
        if let Departure::Killed(supervisor) = launched.serve(move || table.limit_logs()).await {
            self.launcher.end_orphans(supervisor).await;
        }
        self.forget_oldest();
    }

    /// Forgets the processes that ended longest ago, beyond the number remembered.
    fn forget_oldest(&self) {
        let mut slots = self.slots();
        let mut ended: Vec<_> = slots.known().filter(|process| process.gone()).cloned().collect();
        let excess = ended.len().saturating_sub(limits::ENDED_PROCESSES);
        ended.sort_by_key(|process| process.ended_order());
        for process in ended.drain(..excess) {
            slots.by_id.remove(&process.facts.id);
            process.update(|state| state.forgotten = true);
        }
    }

    /// Keeps the memory of all logs together within its bound: first what ended processes wrote, oldest first, goes; then
    /// everybody keeps their share.
    fn limit_logs(&self) {
        let total = || self.shared.log_bytes.load(Ordering::Relaxed);
        if total() <= ALL_LOGS {
            return;
        }
        let mut all: Vec<_> = self.slots().known().cloned().collect();
        all.sort_by_key(|process| (!process.gone(), process.ended_order()));
        for process in &all {
            if process.gone() && !process.paced() {
                process.give_up_output(0);
            }
            if total() <= ALL_LOGS {
                return;
            }
        }
        // Less than all for the processes of now, so that this is not needed again at once.
        let share = (self.shared.share() / 2).max(LEAST_LOG / 2);
        for process in all.iter().filter(|process| !process.paced()) {
            process.give_up_output(share);
        }
    }

    /// The process with this id, with what it hit until now.
    ///
    /// # Errors
    /// `NotFound`.
    pub(crate) fn look(&self, id: &str) -> Result<Arc<Process>> {
        let process = self.get(id)?;
        self.look_at(&process);
        Ok(process)
    }

    /// Brings up to date what `process` hit.
    pub(crate) fn look_at(&self, process: &Process) {
        process.look(&self.launcher.limits);
    }

    /// The process with this id.
    ///
    /// # Errors
    /// `NotFound`.
    pub(crate) fn get(&self, id: &str) -> Result<Arc<Process>> {
        match self.slots().by_id.get(id) {
            Some(Slot::Known(process)) => Ok(Arc::clone(process)),
            _ => Err(unknown(id)),
        }
    }

    /// All processes, oldest first. What does not fit one message is left out, ended ones first.
    pub(crate) fn list(&self) -> Vec<proto::Process> {
        let mut all: Vec<_> = self.slots().known().cloned().collect();
        // Most wanted first: alive, then newest.
        all.sort_by_key(|process| (process.ended(), std::cmp::Reverse(process.facts.number)));
        let short = |process: &Process| {
            let mut described = process.describe();
            let words = described.argv.iter().map(String::len).sum::<usize>();
            if all.len() > 64 && words > 256 {
                described.argv.truncate(1);
                if let Some(program) = described.argv.first_mut() {
                    *program = program.chars().take(64).chain(['…']).collect();
                }
            }
            described
        };
        let mut size = 0;
        let mut listed = Vec::new();
        for process in &all {
            let described = short(process);
            size += prost::Message::encoded_len(&described) + 8;
            if size > LIST {
                break;
            }
            listed.push((process.facts.number, described));
        }
        listed.sort_by_key(|(number, _)| *number);
        listed.into_iter().map(|(_, described)| described).collect()
    }

    /// How many processes have not ended, and how many have.
    pub(crate) fn count(&self) -> (u32, u32) {
        let slots = self.slots();
        let ended = slots.known().filter(|process| process.ended()).count();
        let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        (number(slots.by_id.len() - ended), number(ended))
    }

    /// The last lines of output of all processes.
    pub(crate) fn lines(&self, count: u32) -> Vec<String> {
        self.shared.recent().last(usize::try_from(count).unwrap_or(usize::MAX))
    }
}

enum Reserved {
    Known(Arc<Process>),
    Starting(watch::Receiver<Start>),
    New { number: u64, sender: watch::Sender<Start>, outcome: watch::Receiver<Start> },
}
