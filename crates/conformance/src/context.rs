//! What a check works with: sandboxes of its own or the shared one, and short ways to run and to move bytes.

use crate::{
    Options,
    check::{During, Failure, Verdict, ensure},
};
use bytes::Bytes;
use futures::{StreamExt, stream};
use rand::Rng;
use stacyvm_provider::{
    ByteStream, ErrorKind, FileEntry, Guest, Outcome, OutputEvent, OutputStream, ProcessInfo, ProcessSpec,
    Provider, ReadRange, Result, SandboxId, SandboxSpec, StdStream, WriteFile,
};
use std::{
    collections::BTreeMap,
    ops::Deref,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::sync::OnceCell;

/// Where the probe lies in every sandbox of the suite. Commands name it relative to the working directory, because a
/// provider without isolation has no root of its own.
const PROBE_PATH: &str = "/workspace/.probe";
/// How a command names the probe.
pub(crate) const PROBE: &str = "./.probe";
/// Memory of a sandbox, where the check does not ask for another, in MiB.
const MEMORY_MB: u32 = 256;

/// What counts as an answer at once. A call that waits for something it must not wait for would wait for ever.
pub(crate) const PROMPT: Duration = Duration::from_secs(10);

/// What all checks of a run have in common.
pub(crate) struct Run {
    pub(crate) provider: Arc<dyn Provider>,
    pub(crate) options: Options,
    shared: OnceCell<Sandbox>,
    /// Sandboxes made for sharing: one, and those of attempts that failed.
    shared_made: Arc<Mutex<Vec<SandboxId>>>,
    counter: Arc<AtomicU64>,
    token: String,
}

impl Run {
    pub(crate) fn new(provider: Arc<dyn Provider>, options: Options) -> Self {
        let token = format!("{:08x}", rand::rng().random::<u32>());
        Self {
            provider,
            options,
            shared: OnceCell::new(),
            shared_made: Arc::default(),
            counter: Arc::default(),
            token,
        }
    }

    /// Sandboxes made for sharing, for the runner to destroy.
    pub(crate) fn shared_left(&self) -> Vec<SandboxId> {
        std::mem::take(&mut *self.shared_made.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What one check works with.
#[derive(Clone)]
pub(crate) struct Context {
    run: Arc<Run>,
    name: &'static str,
    /// Sandboxes that this check asked for and did not destroy.
    made: Arc<Mutex<Vec<SandboxId>>>,
}

impl Deref for Context {
    type Target = Run;
    fn deref(&self) -> &Run {
        &self.run
    }
}

impl Context {
    pub(crate) fn new(run: Arc<Run>, name: &'static str) -> Self {
        Self { run, name, made: Arc::default() }
    }

    /// A text that occurs nowhere else on the host, to recognise a process or a file by.
    pub(crate) fn unique(&self, what: &str) -> String {
        format!("{what}-{}-{}", self.token, self.counter.fetch_add(1, Ordering::Relaxed))
    }

    /// An id that was never used. It is destroyed behind the check whatever happens.
    pub(crate) fn new_id(&self) -> Verdict<SandboxId> {
        let id: SandboxId = format!("sb-{:016x}", rand::rng().random::<u64>())
            .parse()
            .map_err(|e| Failure(format!("the suite's own sandbox id: {e}")))?;
        self.made().push(id.clone());
        Ok(id)
    }

    fn made(&self) -> std::sync::MutexGuard<'_, Vec<SandboxId>> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A spec that any provider can meet.
    pub(crate) fn spec(&self) -> SandboxSpec {
        SandboxSpec {
            memory_mb: MEMORY_MB,
            pids: 128,
            metadata: BTreeMap::from([("suite".to_owned(), "conformance".to_owned())]),
            ..SandboxSpec::new(self.options.image.clone())
        }
    }

    /// A sandbox of this check alone, with the probe in it.
    pub(crate) async fn sandbox(&self) -> Verdict<Sandbox> {
        self.sandbox_with(self.spec()).await
    }

    /// A sandbox of this check alone, made to measure.
    pub(crate) async fn sandbox_with(&self, spec: SandboxSpec) -> Verdict<Sandbox> {
        let id = self.new_id()?;
        self.provider.create(&id, &spec).await.during("create")?;
        self.enter(&id).await
    }

    /// The sandbox that harmless checks share, in a directory of this check's own.
    pub(crate) async fn shared(&self) -> Verdict<Sandbox> {
        let made = self.run.shared.get_or_try_init(|| async {
            let made = Arc::clone(&self.run.shared_made);
            Self { run: Arc::clone(&self.run), name: "shared", made }.sandbox().await
        });
        let sandbox = made.await?.clone();
        sandbox.guest.mkdir(&self.dir(), 0o755, true).await.during("mkdir of the check's own directory")?;
        Ok(sandbox)
    }

    /// Directory of this check in the sandbox, absolute.
    pub(crate) fn dir(&self) -> String {
        format!("/workspace/{}", self.name)
    }

    /// The same directory as commands name it.
    pub(crate) fn relative(&self, name: &str) -> String {
        format!("{}/{name}", self.name)
    }

    /// A path in it, as the files API names it.
    pub(crate) fn path(&self, name: &str) -> String {
        format!("{}/{name}", self.dir())
    }

    /// Connects to a sandbox and puts the probe in it.
    pub(crate) async fn enter(&self, id: &SandboxId) -> Verdict<Sandbox> {
        let guest = self.provider.connect(id).await.during("connect")?;
        let sandbox = Sandbox { id: id.clone(), guest, counter: Arc::clone(&self.run.counter) };
        let file = WriteFile { path: PROBE_PATH.to_owned(), mode: 0o755, user: None };
        let content = pieces(stacyvm_guest_binaries::PROBE, 64 << 10);
        sandbox.guest.write_file(&file, content).await.during("upload of the probe")?;
        Ok(sandbox)
    }

    /// Destroys a sandbox as part of the check.
    pub(crate) async fn destroy(&self, id: &SandboxId) -> Verdict {
        self.provider.destroy(id).await.during("destroy")?;
        self.made().retain(|made| made != id);
        Ok(())
    }

    /// Sandboxes that are left for the runner to destroy.
    pub(crate) fn left(&self) -> Vec<SandboxId> {
        std::mem::take(&mut *self.made())
    }

    /// `duration` times the patience asked for.
    pub(crate) fn patient(&self, duration: Duration) -> Duration {
        duration * self.options.patience.max(1)
    }

    /// Demands an answer in time.
    pub(crate) async fn prompt<T>(&self, what: &str, answer: impl Future<Output = T>) -> Verdict<T> {
        let limit = self.patient(PROMPT);
        tokio::time::timeout(limit, answer)
            .await
            .map_err(|_| Failure(format!("{what}: no answer within {limit:?}")))
    }
}

/// A running sandbox with the probe in it.
#[derive(Clone)]
pub(crate) struct Sandbox {
    pub(crate) id: SandboxId,
    pub(crate) guest: Arc<dyn Guest>,
    /// Of the run. Not the run itself, which holds the shared sandbox and would never be freed.
    counter: Arc<AtomicU64>,
}

/// A process that has ended, with all it wrote.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) info: ProcessInfo,
}

impl Done {
    /// Stdout as text.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Demands exit status 0.
    pub(crate) fn ok(self) -> Verdict<Self> {
        let said = String::from_utf8_lossy(&self.stderr);
        let (argv, outcome) = (&self.info.argv, &self.info.outcome);
        ensure!(*outcome == Some(Outcome::Exited(0)), "{argv:?} ended with {outcome:?}, saying {said:?}");
        Ok(self)
    }
}

impl Sandbox {
    /// The same through another connection.
    pub(crate) fn through(&self, guest: Arc<dyn Guest>) -> Self {
        Self { guest, ..self.clone() }
    }

    /// A process of the probe, not started yet, with an id that was never used.
    pub(crate) fn probe_spec(&self, words: &[&str]) -> ProcessSpec {
        let id = format!("p-{}", self.counter.fetch_add(1, Ordering::Relaxed));
        let argv = std::iter::once(PROBE).chain(words.iter().copied()).map(str::to_owned).collect();
        ProcessSpec { id, argv, ..ProcessSpec::default() }
    }

    /// Starts a process of the probe; its id is in the answer.
    pub(crate) async fn start(&self, words: &[&str]) -> Verdict<ProcessInfo> {
        self.guest.start(&self.probe_spec(words)).await.during(&format!("start of {words:?}"))
    }

    /// Runs `spec` to its end.
    pub(crate) async fn run(&self, spec: &ProcessSpec) -> Verdict<Done> {
        let (_, output) = self.guest.run(spec).await.during(&format!("start of {:?}", spec.argv))?;
        collect(output).await.during(&format!("{:?}", spec.argv))
    }

    /// Runs the probe to its end.
    pub(crate) async fn probe(&self, words: &[&str]) -> Verdict<Done> {
        self.run(&self.probe_spec(words)).await
    }

    /// Runs the probe to its end and demands success.
    pub(crate) async fn probe_ok(&self, words: &[&str]) -> Verdict<Done> {
        self.probe(words).await?.ok()
    }

    /// All output of a process from the first byte on, and its end.
    pub(crate) async fn finish(&self, id: &str) -> Verdict<Done> {
        collect(self.guest.attach(id, 0, true, true).await.during("attach")?).await
    }

    /// The process once it has ended.
    pub(crate) async fn wait(&self, id: &str) -> Verdict<ProcessInfo> {
        loop {
            let info = self.guest.wait(id, Duration::from_secs(10)).await.during("wait")?;
            if info.outcome.is_some() {
                return Ok(info);
            }
        }
    }

    /// Kills a process and everything below it.
    pub(crate) async fn kill(&self, id: &str) -> Verdict<bool> {
        self.guest.signal(id, stacyvm_provider::Signal::KILL, true).await.during("kill")
    }

    /// Writes a file with mode 0644.
    pub(crate) async fn write(&self, path: &str, content: &[u8]) -> Verdict<FileEntry> {
        self.write_mode(path, content, 0o644).await.during(&format!("write of {path:?}"))
    }

    /// Writes a file; errors are the caller's.
    pub(crate) async fn write_mode(&self, path: &str, content: &[u8], mode: u32) -> Result<FileEntry> {
        let file = WriteFile { path: path.to_owned(), mode, user: None };
        self.guest.write_file(&file, pieces(content, 64 << 10)).await
    }

    /// Reads a whole file.
    pub(crate) async fn read(&self, path: &str) -> Verdict<Vec<u8>> {
        self.read_range(path, ReadRange::default()).await.during(&format!("read of {path:?}"))
    }

    /// Reads part of a file; errors are the caller's.
    pub(crate) async fn read_range(&self, path: &str, range: ReadRange) -> Result<Vec<u8>> {
        let (_, mut content) = self.guest.read_file(path, range).await?;
        let mut all = Vec::new();
        while let Some(piece) = content.next().await {
            all.extend_from_slice(&piece?);
        }
        Ok(all)
    }

    /// Size of a file, 0 without one.
    pub(crate) async fn size(&self, path: &str) -> Verdict<u64> {
        match self.guest.stat(path, true).await {
            Ok(entry) => Ok(entry.size),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(0),
            Err(error) => Err(error).during(&format!("stat of {path:?}")),
        }
    }
}

/// All of an attachment from the first byte to the end of the process.
pub(crate) async fn collect(mut output: OutputStream) -> Verdict<Done> {
    let mut collected = Collected::from(0);
    loop {
        if let Some(info) = collected.next(&mut output).await? {
            return Ok(Done { stdout: collected.stdout, stderr: collected.stderr, info });
        }
    }
}

/// What an attachment gave so far, checked while it comes.
pub(crate) struct Collected {
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    /// Offset behind the last byte.
    pub(crate) offset: u64,
}

impl Collected {
    /// Ready for an attachment at `offset`.
    pub(crate) fn from(offset: u64) -> Self {
        Self { stdout: Vec::new(), stderr: Vec::new(), offset }
    }

    /// Takes one event; the process once it has ended. A gap, a jump or a repeat fails.
    pub(crate) async fn next(&mut self, output: &mut OutputStream) -> Verdict<Option<ProcessInfo>> {
        match output.next().await {
            Some(Ok(OutputEvent::Chunk { stream, offset, data })) => {
                ensure!(
                    offset == self.offset,
                    "output continues at offset {offset}, expected {}",
                    self.offset
                );
                ensure!(data.len() <= 64 << 10, "a chunk of {} bytes is larger than 64 KiB", data.len());
                ensure!(!data.is_empty(), "an empty chunk at offset {offset}");
                self.offset += data.len() as u64;
                match stream {
                    StdStream::Stdout => self.stdout.extend_from_slice(&data),
                    StdStream::Stderr => self.stderr.extend_from_slice(&data),
                }
                Ok(None)
            }
            Some(Ok(OutputEvent::Gap { offset, length })) => {
                Err(Failure(format!("{length} bytes of output at offset {offset} were lost")))
            }
            Some(Ok(OutputEvent::Exit(info))) => {
                let left = output.next().await;
                ensure!(left.is_none(), "output goes on behind the exit: {left:?}");
                Ok(Some(*info))
            }
            Some(Err(error)) => Err(error).during("output"),
            None => Err(Failure("output ended without an exit".to_owned())),
        }
    }
}

/// `content` as a stream of pieces of at most `size` bytes.
pub(crate) fn pieces(content: &[u8], size: usize) -> ByteStream {
    let all: Vec<Result<Bytes>> =
        content.chunks(size).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
    stream::iter(all).boxed()
}
