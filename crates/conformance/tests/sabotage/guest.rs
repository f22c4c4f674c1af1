//! A guest that passes everything on to an honest one, except for its defects.

use crate::{Defect, Defects, trees};
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::{StreamExt, stream};
use stacyvm_provider::{
    ByteStream, ChangeStream, DiskUsage, Error, ExtractTarget, Extracted, FileEntry, FileKind, Guest,
    Outcome, OutputEvent, OutputStream, ProcessInfo, ProcessSpec, PtySize, ReadRange, Result, Signal,
    StdStream, StdinAck, WriteFile,
};
use std::{
    collections::HashSet,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

/// Offset of the output byte that gets lost.
const LOST: u64 = 3_000_000;
/// The same behind a pause.
const LOST_IN_PAUSE: u64 = 300;
/// Argument of a process that ends as if it had no memory.
const FOR_MEMORY: &str = "for-want-of-memory";
/// Uploads longer than this are cut by one byte.
const LARGE: usize = 8 << 20;

/// An honest guest behind its defects.
pub(crate) struct BrokenGuest {
    inner: Arc<dyn Guest>,
    defects: Defects,
    resumed: bool,
    started: Mutex<HashSet<String>>,
    timed_out: Arc<Mutex<HashSet<String>>>,
    forkers: Mutex<HashSet<String>>,
    uploads: AtomicUsize,
    twice: AtomicUsize,
}

impl BrokenGuest {
    /// `resumed`: it was paused before.
    pub(crate) fn new(inner: Arc<dyn Guest>, defects: Defects, resumed: bool) -> Self {
        let (started, timed_out, forkers) = Default::default();
        let (uploads, twice) = Default::default();
        Self { inner, defects, resumed, started, timed_out, forkers, uploads, twice }
    }

    fn info(&self, info: ProcessInfo) -> ProcessInfo {
        distort(self.defects, &self.timed_out, info)
    }

    async fn start_twice(&self, spec: &ProcessSpec) -> Result<ProcessInfo> {
        if self.started.lock().unwrap().insert(spec.id.clone()) {
            return self.begin(spec).await;
        }
        let id = format!("{}-{}", spec.id, self.twice.fetch_add(1, Ordering::Relaxed));
        self.begin(&ProcessSpec { id, ..spec.clone() }).await
    }

    /// Starts a process; with the defect, its deadline kills the leader and nothing below it.
    async fn begin(&self, spec: &ProcessSpec) -> Result<ProcessInfo> {
        let spec = &self.limited(spec).await?;
        if !self.defects.has(Defect::DeadlineLeavesGrandchild) {
            return self.inner.start(spec).await;
        }
        let info = self.inner.start(&ProcessSpec { deadline: None, ..spec.clone() }).await?;
        if let Some(deadline) = spec.deadline {
            let (guest, timed_out, id) = (self.inner.clone(), self.timed_out.clone(), spec.id.clone());
            tokio::spawn(async move {
                tokio::time::sleep(deadline).await;
                if guest.process(&id).await.is_ok_and(|info| info.outcome.is_none()) {
                    timed_out.lock().unwrap().insert(id.clone());
                    let _ = guest.signal(&id, Signal::KILL, false).await;
                }
            });
        }
        Ok(info)
    }

    /// What becomes of a process where limits hold: the mock has none, and whoever hides that one was hit has one.
    async fn limited(&self, spec: &ProcessSpec) -> Result<ProcessSpec> {
        let mut spec = spec.clone();
        let word = |index: usize| spec.argv.get(index).map(String::as_str);
        let number = word(2).and_then(|word| word.parse().ok()).unwrap_or(0);
        let holds = |hides, claims| self.defects.has(hides) && !self.defects.has(claims);
        if holds(Defect::HidesOom, Defect::ClaimsMemoryLimit) && word(1) == Some("alloc") && number > 40 {
            spec.argv.splice(1.., ["self-signal", "9", FOR_MEMORY].map(str::to_owned));
        } else if holds(Defect::HidesDiskFull, Defect::ClaimsDiskLimit)
            && word(1) == Some("fill")
            && number > 40
        {
            spec.argv.splice(1.., ["exit", "126"].map(str::to_owned));
        } else if holds(Defect::HidesPidsHit, Defect::ClaimsPidsLimit) {
            let forkers: Vec<_> = self.forkers.lock().unwrap().iter().cloned().collect();
            for forker in forkers {
                if self.inner.process(&forker).await?.outcome.is_none() {
                    return Err(Error::resource_limit("no room for another process"));
                }
            }
            if word(1) == Some("fork-many") && number >= 200 {
                spec.argv[2] = "20".to_owned();
                self.forkers.lock().unwrap().insert(spec.id.clone());
            }
        }
        Ok(spec)
    }

    /// Where a file of the sandbox is on this host, if no directory of its path is a link now.
    async fn checked_path(&self, path: &str) -> Result<PathBuf> {
        let known = self.inner.processes().await?;
        let running = known.iter().find(|process| process.outcome.is_none()).ok_or_else(gone)?;
        let workspace = std::fs::read_link(format!("/proc/{}/cwd", running.pid)).map_err(|_| gone())?;
        let file = workspace.parent().ok_or_else(gone)?.join(path.trim_start_matches('/'));
        if file.ancestors().any(std::path::Path::is_symlink) {
            return Err(gone());
        }
        // Longer than such a gap is, so that a busy host runs the other side of the race within it.
        tokio::time::sleep(Duration::from_millis(20)).await;
        Ok(file)
    }

    async fn check_then_read(&self, path: &str) -> Result<(FileEntry, ByteStream)> {
        let content = std::fs::read(self.checked_path(path).await?).map_err(|_| gone())?;
        let entry = FileEntry { path: path.to_owned(), ..self.inner.stat("/workspace", true).await? };
        Ok((entry, stream::iter([Ok(Bytes::from(content))]).boxed()))
    }

    /// Rewrites the file with every piece of the first ones that come, so that readers see it grow.
    async fn write_in_place(&self, file: &WriteFile, mut content: ByteStream) -> Result<FileEntry> {
        let mut so_far = BytesMut::new();
        let mut entry = self.inner.write_file(file, stream::empty().boxed()).await?;
        while let Some(piece) = content.next().await {
            so_far.extend_from_slice(&piece?);
            if so_far.len() < 1 << 20 {
                entry = self.inner.write_file(file, whole(&so_far)).await?;
            }
        }
        if so_far.len() >= 1 << 20 {
            entry = self.inner.write_file(file, whole(&so_far)).await?;
        }
        Ok(entry)
    }
}

fn gone() -> Error {
    Error::not_found("it is not there")
}

pub(crate) fn whole(content: &[u8]) -> ByteStream {
    let pieces: Vec<_> = content.chunks(64 << 10).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
    stream::iter(pieces).boxed()
}

fn spoil_chunk(defects: Defects, resumed: bool, stream: StdStream, offset: u64, data: Bytes) -> OutputEvent {
    let stream = if defects.has(Defect::MixesStderrIn) { StdStream::Stdout } else { stream };
    let mut data = data;
    let in_pause = resumed && defects.has(Defect::PauseDropsOutput);
    for (loses, place) in [(defects.has(Defect::LosesOutputByte), LOST), (in_pause, LOST_IN_PAUSE)] {
        let lost = usize::try_from(place.saturating_sub(offset)).unwrap_or(usize::MAX);
        if loses && offset <= place && lost < data.len() {
            data = [&data[..lost], &data[lost + 1..]].concat().into();
        }
    }
    OutputEvent::Chunk { stream, offset, data }
}

fn distort(defects: Defects, timed_out: &Mutex<HashSet<String>>, mut info: ProcessInfo) -> ProcessInfo {
    if let Some(Outcome::Exited(code)) = info.outcome
        && code > 128
        && defects.has(Defect::HighExitCodesAreSignals)
    {
        info.outcome = Some(Outcome::Signaled(code - 128));
    }
    if defects.has(Defect::DeadlineLeavesGrandchild) {
        info.timed_out = timed_out.lock().unwrap().contains(&info.id);
    }
    info.oom_killed |= info.argv.last().is_some_and(|word| word == FOR_MEMORY) && info.outcome.is_some();
    info.timed_out &= !defects.has(Defect::DeadlineIsNotReported);
    info
}

#[async_trait]
impl Guest for BrokenGuest {
    async fn ping(&self) -> Result<()> {
        while self.defects.has(Defect::ControlWaitsForUploads) && self.uploads.load(Ordering::SeqCst) > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let answer = self.inner.ping().await;
        if answer.is_err() && self.defects.has(Defect::HangsWhenGone) {
            return std::future::pending().await;
        }
        answer
    }

    async fn start(&self, spec: &ProcessSpec) -> Result<ProcessInfo> {
        let mut spec = spec.clone();
        if self.defects.has(Defect::DropsEmptyArguments) && spec.argv.len() > 1 {
            spec.argv.retain(|word| !word.is_empty());
        }
        if self.defects.has(Defect::LeaksServerEnvironment) {
            spec.env.insert("STACYVM_API_KEY".to_owned(), "secret".to_owned());
        }
        if self.defects.has(Defect::PipesForTerminals) && spec.pty.take().is_some() {
            spec.stdin = true;
        }
        let twice = self.defects.has(Defect::StartsTwice);
        let started = if twice { self.start_twice(&spec).await } else { self.begin(&spec).await };
        started.map(|info| self.info(info))
    }

    async fn run(&self, spec: &ProcessSpec) -> Result<(ProcessInfo, OutputStream)> {
        let process = self.start(spec).await?;
        let late = self.defects.has(Defect::RunAttachesLate) && spec.argv.iter().any(|word| word == "5000");
        if late {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        let from = if late { self.inner.process(&spec.id).await?.output_end } else { 0 };
        let output = self.attach(&spec.id, from, true, true).await?;
        Ok((process, output))
    }

    async fn attach(&self, id: &str, offset: u64, follow: bool, pace: bool) -> Result<OutputStream> {
        let from =
            if self.defects.has(Defect::RepeatsByteOnReattach) { offset.saturating_sub(1) } else { offset };
        let mut output = self.inner.attach(id, from, follow, pace).await?;
        if self.defects.has(Defect::InventsExitOnLoss) {
            let mut template = self.inner.process(id).await?;
            template.outcome = Some(Outcome::Exited(0));
            let invented = move |_| OutputEvent::Exit(Box::new(template.clone()));
            output = output.map(move |event| event.or_else(|error| Ok(invented(error)))).boxed();
        }
        let (defects, resumed, timed_out) = (self.defects, self.resumed, self.timed_out.clone());
        let spoil = move |event| {
            let event = match event {
                Ok(OutputEvent::Gap { .. }) if defects.has(Defect::HidesGap) => None,
                Ok(OutputEvent::Exit(info)) => {
                    Some(OutputEvent::Exit(Box::new(distort(defects, &timed_out, *info))))
                }
                Ok(OutputEvent::Chunk { stream, offset, data }) => {
                    Some(spoil_chunk(defects, resumed, stream, offset, data))
                }
                Ok(event) => Some(event),
                Err(error) => return futures::future::ready(Some(Err(error))),
            };
            futures::future::ready(event.map(Ok))
        };
        Ok(output.filter_map(spoil).boxed())
    }

    async fn write_stdin_as(
        &self,
        id: &str,
        writer: &str,
        offset: u64,
        data: Bytes,
        eof: bool,
    ) -> Result<StdinAck> {
        let writer = if self.defects.has(Defect::WritersShareACount) { "" } else { writer };
        if self.defects.has(Defect::SwallowsInterrupt) && &*data == b"\x03" {
            return Ok(StdinAck { accepted: offset + 1, closed: false });
        }
        let ignores = self.defects.has(Defect::StdinIgnoresPosition);
        let offset = if ignores { self.inner.process(id).await?.stdin_offset } else { offset };
        self.inner.write_stdin_as(id, writer, offset, data, eof).await
    }

    async fn resize(&self, id: &str, size: PtySize) -> Result<()> {
        if self.defects.has(Defect::ForgetsTerminalSize) {
            return self.inner.process(id).await.map(drop);
        }
        self.inner.resize(id, size).await
    }

    async fn signal(&self, id: &str, signal: Signal, tree: bool) -> Result<bool> {
        self.inner.signal(id, signal, tree && !self.defects.has(Defect::KillsLeaderOnly)).await
    }

    async fn wait(&self, id: &str, timeout: Duration) -> Result<ProcessInfo> {
        self.inner.wait(id, timeout).await.map(|info| self.info(info))
    }

    async fn process(&self, id: &str) -> Result<ProcessInfo> {
        self.inner.process(id).await.map(|info| self.info(info))
    }

    async fn processes(&self) -> Result<Vec<ProcessInfo>> {
        self.inner.processes().await
    }

    async fn logs(&self, lines: u32) -> Result<Vec<String>> {
        self.inner.logs(lines).await
    }

    async fn write_file(&self, file: &WriteFile, mut content: ByteStream) -> Result<FileEntry> {
        // The suite's own program must arrive whole, or every check fails.
        let program = file.path.ends_with("/.probe");
        let mut file = file.clone();
        if self.defects.has(Defect::IgnoresMode) && !program {
            file.mode = 0o644;
        }
        if self.defects.has(Defect::CutsLargeUploads) {
            let mut left = LARGE;
            let cut = move |piece: Result<Bytes>| {
                let mut piece = piece?;
                piece.truncate(left);
                left -= piece.len();
                Ok(piece)
            };
            content = content.map(cut).boxed();
        }
        let races = self.defects.has(Defect::ChecksThenWrites) && file.path.contains("on_write/swapped/");
        // There is no race before it begins.
        if races && let Ok(path) = self.checked_path(&file.path).await {
            std::fs::write(path, b"inside").map_err(|_| gone())?;
            return self.inner.stat("/workspace", true).await;
        }
        if self.defects.has(Defect::WritesInPlace) && !program {
            return self.write_in_place(&file, content).await;
        }
        let counted = Counted::new(&self.uploads);
        let written = self.inner.write_file(&file, content).await;
        drop(counted);
        written
    }

    async fn read_file(&self, path: &str, mut range: ReadRange) -> Result<(FileEntry, ByteStream)> {
        if self.defects.has(Defect::IgnoresRangeEnd) {
            range.length = None;
        }
        if self.defects.has(Defect::FollowsLinkOutOnRead)
            && let Ok(entry) = self.inner.stat(path, false).await
            && let Some(target) = entry.link_target.clone().filter(|target| target.starts_with('/'))
            && let Ok(content) = std::fs::read(target)
        {
            return Ok((entry, stream::iter([Ok(Bytes::from(content))]).boxed()));
        }
        if self.defects.has(Defect::ChecksThenReads) && path.contains("on_read/swapped/") {
            return self.check_then_read(path).await;
        }
        self.inner.read_file(path, range).await
    }

    async fn stat(&self, path: &str, follow: bool) -> Result<FileEntry> {
        self.inner.stat(path, follow).await
    }

    async fn list_dir(&self, path: &str) -> Result<Vec<FileEntry>> {
        let mut entries = self.inner.list_dir(path).await?;
        if self.defects.has(Defect::HidesDotFiles) {
            entries.retain(|entry| !entry.path.contains("/."));
        }
        Ok(entries)
    }

    async fn glob(&self, pattern: &str) -> Result<Vec<FileEntry>> {
        self.inner.glob(pattern).await
    }

    async fn move_file(&self, from: &str, to: &str) -> Result<()> {
        self.inner.move_file(from, to).await
    }

    async fn chmod(&self, path: &str, mode: u32) -> Result<()> {
        self.inner.chmod(path, mode).await
    }

    async fn mkdir(&self, path: &str, mode: u32, parents: bool) -> Result<()> {
        self.inner.mkdir(path, mode, parents).await
    }

    async fn remove(&self, path: &str, recursive: bool) -> Result<()> {
        if self.defects.has(Defect::ChecksThenRemoves) && path.contains("on_remove/swapped/") {
            return std::fs::remove_file(self.checked_path(path).await?).map_err(|_| gone());
        }
        if self.defects.has(Defect::RemovesLinkTarget)
            && let Ok(entry) = self.inner.stat(path, false).await
            && entry.kind == FileKind::Symlink
            && let Some((parent, _)) = path.rsplit_once('/')
        {
            let target = format!("{parent}/{}", entry.link_target.unwrap_or_default());
            let _: Result<(), Error> = self.inner.remove(&target, true).await;
        }
        self.inner.remove(path, recursive).await
    }

    async fn archive(&self, path: &str) -> Result<ByteStream> {
        Ok(trees::archive(self.defects, self.inner.archive(path).await?))
    }

    async fn extract(&self, target: &ExtractTarget, content: ByteStream) -> Result<Extracted> {
        trees::extract(self.defects, &*self.inner, target, content).await
    }

    async fn watch(&self, path: &str, recursive: bool) -> Result<ChangeStream> {
        Ok(trees::watch(self.defects, self.inner.watch(path, recursive).await?))
    }

    async fn usage(&self, path: &str) -> Result<DiskUsage> {
        self.inner.usage(path).await
    }
}

/// One upload under way, also when it is given up.
struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}
