//! A scripted runtime: it holds sandboxes in memory, outlives engines, and does as it is told: fail, hang, half do things.

use async_trait::async_trait;
use futures::{StreamExt, stream, stream::BoxStream};
use stacyvm_provider::{
    Capabilities, Created, Error, ErrorKind, Guest, Health, Limit, Notice, ProcessInfo, Provider, Result,
    RuntimeSandbox, RuntimeState, RuntimeStats, SandboxId, SandboxSpec,
};
use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};
use tokio::sync::watch;

/// What can be scripted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Op {
    Create,
    Destroy,
    Pause,
    Resume,
    Status,
    Connect,
    List,
    Ping,
    Start,
    Attach,
    Signal,
    /// A question how a process is, or a wait for its end.
    Watch,
}

/// How a call goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Act {
    Pass,
    /// Without any effect.
    Fail(ErrorKind),
    /// With half the effect of a create or destroy.
    Half(ErrorKind),
    /// With the full effect.
    FailAfter(ErrorKind),
    Hang,
    HangAfter,
    Wait(Duration),
    Panic,
    /// An attachment that breaks after so many bytes.
    Cut(usize),
    /// An attachment that begins so many bytes too early.
    Early(usize),
    /// An attachment that leaves out so many bytes without a word.
    Skip(usize),
    /// An attachment whose first chunk lies about its place.
    Absurd,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Cell {
    Half,
    Running,
    Paused,
    Ended(String),
}

pub(crate) struct Held {
    pub(crate) cell: Cell,
    pub(crate) processes: BTreeMap<String, Process>,
}

#[derive(Clone)]
pub(crate) struct Process {
    pub(crate) info: ProcessInfo,
    pub(crate) log: Vec<u8>,
}

#[derive(Default)]
pub(crate) struct World {
    pub(crate) held: BTreeMap<SandboxId, Held>,
    pub(crate) calls: Vec<(Op, SandboxId)>,
    once: HashMap<Op, VecDeque<Act>>,
    always: HashMap<(Op, Option<SandboxId>), Act>,
    pub(crate) down: bool,
    /// What the next engine is told at once.
    pub(crate) notices: Vec<Notice>,
}

/// The runtime; clones are the same one.
#[derive(Clone)]
pub(crate) struct Fake {
    name: &'static str,
    world: Arc<Mutex<World>>,
    change: watch::Sender<u64>,
}

impl Fake {
    pub(crate) fn new(name: &'static str) -> Self {
        Self { name, world: Arc::default(), change: watch::Sender::new(0) }
    }

    pub(crate) fn provider(&self) -> Arc<dyn Provider> {
        Arc::new(self.clone())
    }

    pub(crate) fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }

    /// The next call goes like this.
    pub(crate) fn once(&self, op: Op, act: Act) {
        self.world().once.entry(op).or_default().push_back(act);
    }

    /// Every call goes like this.
    pub(crate) fn always(&self, op: Op, act: Act) {
        self.world().always.insert((op, None), act);
    }

    /// Every call for one sandbox goes like this.
    pub(crate) fn always_for(&self, id: &SandboxId, op: Op, act: Act) {
        self.world().always.insert((op, Some(id.clone())), act);
    }

    /// Everything passes again.
    pub(crate) fn heal(&self) {
        let mut world = self.world();
        world.once.clear();
        world.always.clear();
        world.down = false;
    }

    pub(crate) fn put(&self, id: &str, cell: Cell) {
        let held = Held { cell, processes: BTreeMap::new() };
        self.world().held.insert(id.parse().unwrap(), held);
        self.changed();
    }

    /// The sandbox's guest ends behind everybody's back.
    pub(crate) fn kill(&self, id: &SandboxId, reason: &str) {
        if let Some(held) = self.world().held.get_mut(id) {
            held.cell = Cell::Ended(reason.into());
        }
        self.changed();
    }

    pub(crate) fn changed(&self) {
        self.change.send_modify(|count| *count += 1);
    }

    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.change.subscribe()
    }

    pub(crate) fn ids(&self) -> Vec<String> {
        self.world().held.keys().map(ToString::to_string).collect()
    }

    pub(crate) fn count(&self, op: Op) -> usize {
        self.world().calls.iter().filter(|(called, _)| *called == op).count()
    }

    fn act(&self, op: Op, id: &SandboxId) -> Act {
        let mut world = self.world();
        world.calls.push((op, id.clone()));
        if world.down
            && matches!(
                op,
                Op::Create | Op::Destroy | Op::Pause | Op::Resume | Op::Status | Op::Connect | Op::List
            )
        {
            return Act::Fail(ErrorKind::Unavailable);
        }
        if let Some(act) = world.always.get(&(op, Some(id.clone()))) {
            return *act;
        }
        if let Some(act) = world.once.get_mut(&op).and_then(VecDeque::pop_front) {
            return act;
        }
        world.always.get(&(op, None)).copied().unwrap_or(Act::Pass)
    }

    /// Does `effect` as scripted.
    pub(crate) async fn play<T>(
        &self,
        op: Op,
        id: &SandboxId,
        half: impl FnOnce(&mut World),
        effect: impl FnOnce(&mut World) -> Result<T>,
    ) -> Result<T> {
        let act = self.act(op, id);
        let failed = |kind: ErrorKind| Error::new(kind, format!("scripted {op:?} failure"));
        let result = match act {
            Act::Fail(kind) => return Err(failed(kind)),
            Act::Half(kind) => {
                half(&mut self.world());
                Err(failed(kind))
            }
            Act::Hang => {
                half(&mut self.world());
                self.changed();
                std::future::pending().await
            }
            Act::Panic => panic!("scripted panic"),
            Act::Wait(time) => {
                tokio::time::sleep(time).await;
                effect(&mut self.world())
            }
            Act::FailAfter(kind) => effect(&mut self.world()).and(Err(failed(kind))),
            Act::HangAfter => {
                let _ = effect(&mut self.world());
                self.changed();
                std::future::pending().await
            }
            Act::Pass | Act::Cut(_) | Act::Early(_) | Act::Skip(_) | Act::Absurd => effect(&mut self.world()),
        };
        self.changed();
        result
    }

    /// Notes that the question was asked.
    pub(crate) fn watched(&self, id: &SandboxId) {
        self.world().calls.push((Op::Watch, id.clone()));
    }

    /// A process of the sandbox ends by itself, having hit a limit.
    pub(crate) fn hits_alone(&self, id: &SandboxId, limit: Limit) {
        let mut world = self.world();
        let processes = &mut world.held.get_mut(id).unwrap().processes;
        let mut process = processes.values().next().unwrap().clone();
        process.info.id = "p-alone".into();
        process.info.limits_hit = vec![limit];
        process.info.ended = Some(std::time::SystemTime::now());
        processes.insert("p-alone".into(), process);
    }

    /// How far an attachment goes, if not to its end.
    pub(crate) fn cut(&self, id: &SandboxId) -> Act {
        self.act(Op::Attach, id)
    }
}

fn missing(id: &SandboxId) -> Error {
    Error::not_found(format!("no sandbox {id}"))
}

#[async_trait]
impl Provider for Fake {
    fn name(&self) -> &str {
        self.name
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            isolation: "test_provider",
            survives_restart: true,
            memory_limit: false,
            cpu_limit: false,
            pids_limit: false,
            root_user: false,
            isolated: false,
            stats: true,
            pause: true,
            oom_ends_sandbox: false,
            disk_limit: false,
            pty: false,
            pty_signals: false,
        }
    }

    async fn health(&self) -> Health {
        let healthy = !self.world().down;
        let problem = (!healthy).then(|| "the scripted runtime is down".to_owned());
        Health { healthy, problem, warnings: Vec::new(), latency: Duration::ZERO }
    }

    async fn create(&self, id: &SandboxId, _: &SandboxSpec) -> Result<Created> {
        let put = |world: &mut World, cell| {
            world.held.entry(id.clone()).or_insert(Held { cell, processes: BTreeMap::new() });
        };
        self.play(
            Op::Create,
            id,
            |world| put(world, Cell::Half),
            |world| {
                put(world, Cell::Running);
                Ok(Created { runtime_id: Some(format!("rt-{id}")) })
            },
        )
        .await
    }

    async fn connect(&self, id: &SandboxId) -> Result<Arc<dyn Guest>> {
        let guest = crate::guest::FakeGuest { fake: self.clone(), id: id.clone() };
        self.play(
            Op::Connect,
            id,
            |_| {},
            |world| match world.held.get(id).map(|held| &held.cell) {
                None => Err(missing(id)),
                Some(Cell::Paused) => Err(Error::unavailable("it is frozen")),
                Some(Cell::Running) => Ok(Arc::new(guest) as Arc<dyn Guest>),
                Some(_) => Err(Error::destroyed("it has ended")),
            },
        )
        .await
    }

    async fn destroy(&self, id: &SandboxId) -> Result<()> {
        let half = |world: &mut World| {
            if let Some(held) = world.held.get_mut(id) {
                held.cell = Cell::Half;
            }
        };
        self.play(Op::Destroy, id, half, |world| {
            world.held.remove(id);
            Ok(())
        })
        .await
    }

    async fn status(&self, id: &SandboxId) -> Result<RuntimeState> {
        self.play(Op::Status, id, |_| {}, |world| world.held.get(id).map(state).ok_or_else(|| missing(id)))
            .await
    }

    async fn ended(&self, id: &SandboxId) -> String {
        let mut changes = self.changes();
        loop {
            match self.world().held.get(id).map(|held| held.cell.clone()) {
                None => return "removed".into(),
                Some(Cell::Ended(reason)) => return reason,
                Some(_) => {}
            }
            changes.changed().await.unwrap();
        }
    }

    async fn list(&self) -> Result<Vec<RuntimeSandbox>> {
        let nobody: SandboxId = "sb-0".parse().unwrap();
        self.play(
            Op::List,
            &nobody,
            |_| {},
            |world| {
                let entry = |(id, held): (&SandboxId, &Held)| RuntimeSandbox {
                    id: id.clone(),
                    state: state(held),
                    image: None,
                };
                Ok(world.held.iter().map(entry).collect())
            },
        )
        .await
    }

    async fn pause(&self, id: &SandboxId) -> Result<()> {
        self.play(Op::Pause, id, |_| {}, |world| turn(world, id, Cell::Paused)).await
    }

    async fn resume(&self, id: &SandboxId) -> Result<()> {
        self.play(Op::Resume, id, |_| {}, |world| turn(world, id, Cell::Running)).await
    }

    async fn console(&self, id: &SandboxId, lines: u32) -> Result<Vec<String>> {
        if !self.world().held.contains_key(id) {
            return Err(missing(id));
        }
        // More than was asked for, as a runtime may.
        Ok((0..=lines).map(|line| format!("line {line}")).collect())
    }

    fn notices(&self) -> BoxStream<'static, Notice> {
        let told = std::mem::take(&mut self.world().notices);
        stream::iter(told).chain(stream::pending()).boxed()
    }

    async fn stats(&self, _: &SandboxId) -> Result<RuntimeStats> {
        Ok(RuntimeStats { cpu_time: Duration::ZERO, memory_bytes: 1, memory_limit_bytes: 2, pids: 1 })
    }
}

fn turn(world: &mut World, id: &SandboxId, cell: Cell) -> Result<()> {
    let held = world.held.get_mut(id).ok_or_else(|| missing(id))?;
    if !matches!(held.cell, Cell::Running | Cell::Paused) {
        return Err(Error::destroyed("it has ended"));
    }
    held.cell = cell;
    Ok(())
}

fn state(held: &Held) -> RuntimeState {
    match &held.cell {
        Cell::Running => RuntimeState::Running,
        Cell::Paused => RuntimeState::Paused,
        Cell::Half => RuntimeState::Ended { reason: "half made".into() },
        Cell::Ended(reason) => RuntimeState::Ended { reason: reason.clone() },
    }
}
