//! The guest of the scripted runtime. Its commands: `echo TEXT`, `err TEXT`, `exit N`, `flood N`, `sleep`, `lose`,
//! `hit LIMIT…`, `crowded`.

use crate::fake::{Act, Cell, Fake, Op, Process};
use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, stream};
use stacyvm_provider::SandboxId;
use stacyvm_provider::{
    ByteStream, Error, FileEntry, Guest, Limit, Outcome, OutputEvent, OutputStream, ProcessInfo, ProcessSpec,
    PtySize, ReadRange, Result, Signal, StdStream, StdinAck, WriteFile,
};
use std::time::{Duration, SystemTime};

#[derive(Clone)]
pub(crate) struct FakeGuest {
    pub(crate) fake: Fake,
    pub(crate) id: SandboxId,
}

const CHUNK: usize = 1000;

impl FakeGuest {
    fn with<T>(&self, id: &str, change: impl FnOnce(&mut Process) -> T) -> Result<T> {
        let mut world = self.fake.world();
        let held = world.held.get_mut(&self.id).filter(|held| held.cell == Cell::Running);
        let held = held.ok_or_else(|| Error::unavailable("the guest does not answer"))?;
        let process =
            held.processes.get_mut(id).ok_or_else(|| Error::not_found(format!("no process {id}")))?;
        Ok(change(process))
    }

    fn end(&self, id: &str, outcome: Outcome, timed_out: bool) -> bool {
        let ended = self.with(id, |process| {
            if process.info.outcome.is_some() {
                return false;
            }
            process.info.outcome = Some(outcome);
            process.info.timed_out = timed_out;
            process.info.ended = Some(SystemTime::now());
            true
        });
        self.fake.changed();
        ended.unwrap_or(false)
    }
}

/// The limits that a command hits.
fn limits(argv: &[String]) -> Vec<Limit> {
    let words = argv.iter().skip(1).filter(|_| argv[0] == "hit");
    words.map(|word| serde_json::from_value(word.as_str().into()).unwrap()).collect()
}

fn unused<T>() -> Result<T> {
    Err(Error::unsupported("the scripted guest has no such thing"))
}

#[async_trait]
impl Guest for FakeGuest {
    async fn ping(&self) -> Result<()> {
        self.fake.play(Op::Ping, &self.id, |_| {}, |_| Ok(())).await
    }

    async fn start(&self, spec: &ProcessSpec) -> Result<ProcessInfo> {
        let argument = spec.argv.get(1).cloned().unwrap_or_default();
        let (stream, log, outcome) = match spec.argv[0].as_str() {
            "echo" => (StdStream::Stdout, argument.into_bytes(), Some(Outcome::Exited(0))),
            "err" => (StdStream::Stderr, argument.into_bytes(), Some(Outcome::Exited(0))),
            "exit" => (StdStream::Stdout, Vec::new(), Some(Outcome::Exited(argument.parse().unwrap()))),
            "flood" => {
                let bytes = (0..argument.parse().unwrap()).map(|n: usize| (n % 251) as u8).collect();
                (StdStream::Stdout, bytes, Some(Outcome::Exited(0)))
            }
            "sleep" => (StdStream::Stdout, b"sleeping".to_vec(), None),
            "lose" => (StdStream::Stdout, Vec::new(), Some(Outcome::Lost("supervisor killed".into()))),
            // Hits the limits that it names.
            "hit" => (StdStream::Stdout, Vec::new(), Some(Outcome::Exited(1))),
            "crowded" => return Err(Error::resource_limit("no room for a process").of_limit(Limit::Pids)),
            _ => return Err(Error::not_found("no such command")),
        };
        let info = ProcessInfo {
            id: spec.id.clone(),
            pid: 2,
            argv: spec.argv.clone(),
            // The scripted guest keeps one stream per process and remembers here which.
            cwd: if stream == StdStream::Stdout { "out" } else { "err" }.into(),
            user: "sandbox".into(),
            tag: spec.tag.clone(),
            started: SystemTime::now(),
            ended: outcome.is_some().then(SystemTime::now),
            outcome,
            timed_out: false,
            oom_killed: false,
            limits_hit: limits(&spec.argv),
            output_start: 0,
            output_end: log.len() as u64,
            output_open: false,
            stdin_open: false,
            stdin_offset: 0,
            pty: None,
        };
        let info = self
            .fake
            .play(
                Op::Start,
                &self.id,
                |_| {},
                |world| {
                    let held = world.held.get_mut(&self.id).ok_or_else(|| Error::destroyed("gone"))?;
                    let process = held.processes.entry(spec.id.clone()).or_insert(Process { info, log });
                    Ok(process.info.clone())
                },
            )
            .await?;
        if let (Some(deadline), None) = (spec.deadline, &info.outcome) {
            let (guest, id) = (self.clone(), spec.id.clone());
            tokio::spawn(async move {
                tokio::time::sleep(deadline).await;
                guest.end(&id, Outcome::Signaled(9), true);
            });
        }
        Ok(info)
    }

    async fn resize(&self, _id: &str, _size: PtySize) -> Result<()> {
        unused()
    }

    async fn attach(&self, id: &str, offset: u64, follow: bool, _pace: bool) -> Result<OutputStream> {
        self.with(id, |_| ())?;
        let mut offset = usize::try_from(offset).unwrap();
        let mut cut = None;
        match self.fake.cut(&self.id) {
            Act::Cut(bytes) => cut = Some(bytes),
            Act::Fail(kind) => return Err(Error::new(kind, "scripted Attach failure")),
            Act::Early(bytes) => offset = offset.saturating_sub(bytes),
            Act::Skip(bytes) => offset += bytes,
            Act::Absurd => {
                let data = Bytes::from_static(b"lies");
                let lie = OutputEvent::Chunk { stream: StdStream::Stdout, offset: u64::MAX - 1, data };
                return Ok(stream::iter([Ok(lie)]).boxed());
            }
            _ => {}
        }
        let state = (self.clone(), id.to_owned(), offset, cut, false);
        Ok(stream::unfold(state, move |(guest, id, offset, mut cut, over)| async move {
            let mut changes = guest.fake.changes();
            loop {
                if over {
                    return None;
                }
                changes.borrow_and_update();
                let process = match guest.with(&id, |process| process.clone()) {
                    Ok(process) => process,
                    Err(error) => return Some((Err(error), (guest, id, offset, cut, true))),
                };
                let stream = if process.info.cwd == "out" { StdStream::Stdout } else { StdStream::Stderr };
                if cut == Some(0) {
                    let error = Error::unavailable("the connection broke");
                    return Some((Err(error), (guest, id, offset, cut, true)));
                }
                let rest = &process.log[offset..];
                if !rest.is_empty() {
                    let length = rest.len().min(CHUNK).min(cut.unwrap_or(CHUNK));
                    cut = cut.map(|cut| cut - length);
                    let data = Bytes::copy_from_slice(&rest[..length]);
                    let chunk = OutputEvent::Chunk { stream, offset: offset as u64, data };
                    return Some((Ok(chunk), (guest, id, offset + length, cut, false)));
                }
                if !follow {
                    return None;
                }
                if process.info.outcome.is_some() {
                    let exit = OutputEvent::Exit(Box::new(process.info));
                    return Some((Ok(exit), (guest, id, offset, cut, true)));
                }
                changes.changed().await.unwrap();
            }
        })
        .boxed())
    }

    async fn write_stdin_as(&self, _: &str, _: &str, _: u64, _: Bytes, _: bool) -> Result<StdinAck> {
        unused()
    }

    async fn signal(&self, id: &str, signal: Signal, _tree: bool) -> Result<bool> {
        self.fake.play(Op::Signal, &self.id, |_| {}, |_| Ok(())).await?;
        self.with(id, |_| ())?;
        Ok(self.end(id, Outcome::Signaled(signal.0), false))
    }

    async fn wait(&self, id: &str, timeout: Duration) -> Result<ProcessInfo> {
        self.fake.watched(&self.id);
        let mut changes = self.fake.changes();
        let waiting = async {
            loop {
                changes.borrow_and_update();
                let info = self.with(id, |process| process.info.clone())?;
                if info.outcome.is_some() {
                    return Ok(info);
                }
                changes.changed().await.unwrap();
            }
        };
        match tokio::time::timeout(timeout, waiting).await {
            Ok(result) => result,
            Err(_) => self.process(id).await,
        }
    }

    async fn process(&self, id: &str) -> Result<ProcessInfo> {
        self.fake.watched(&self.id);
        self.with(id, |process| process.info.clone())
    }

    async fn processes(&self) -> Result<Vec<ProcessInfo>> {
        let world = self.fake.world();
        let held = world.held.get(&self.id).ok_or_else(|| Error::destroyed("gone"))?;
        Ok(held.processes.values().map(|process| process.info.clone()).collect())
    }

    async fn logs(&self, _: u32) -> Result<Vec<String>> {
        unused()
    }

    async fn write_file(&self, _: &WriteFile, _: ByteStream) -> Result<FileEntry> {
        unused()
    }

    async fn read_file(&self, _: &str, _: ReadRange) -> Result<(FileEntry, ByteStream)> {
        unused()
    }

    async fn stat(&self, _: &str, _: bool) -> Result<FileEntry> {
        unused()
    }

    async fn list_dir(&self, _: &str) -> Result<Vec<FileEntry>> {
        unused()
    }

    async fn glob(&self, _: &str) -> Result<Vec<FileEntry>> {
        unused()
    }

    async fn move_file(&self, _: &str, _: &str) -> Result<()> {
        unused()
    }

    async fn chmod(&self, _: &str, _: u32) -> Result<()> {
        unused()
    }

    async fn mkdir(&self, _: &str, _: u32, _: bool) -> Result<()> {
        unused()
    }

    async fn remove(&self, _: &str, _: bool) -> Result<()> {
        unused()
    }
}
