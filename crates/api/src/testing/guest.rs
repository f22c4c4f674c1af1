//! A guest in memory: files in a map, and processes that are played from a script instead of run.
//!
//! The last argument of a process is its script, words as `out=text`, `err=text`, `hex=ff00` (to stdout),
//! `hang`, `deaf` (takes no stdin), `exit=3`, `signal=9`, `timeout`, `lost`; anything else is ignored.

use super::trees;
use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, stream};
use stacyvm_provider::{
    ByteStream, ChangeStream, DiskUsage, Error, ExtractTarget, Extracted, FileChange, FileEntry, FileKind,
    Guest, Outcome, OutputEvent, OutputStream, ProcessInfo, ProcessSpec, PtySize, ReadRange, Result, Signal,
    StdStream, StdinAck, WriteFile,
};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};
use tokio::sync::watch;

/// The guest.
#[derive(Default)]
pub(crate) struct FakeGuest {
    files: Mutex<BTreeMap<String, File>>,
    processes: Mutex<BTreeMap<String, Arc<Playing>>>,
}

#[derive(Clone)]
struct File {
    content: Option<Bytes>,
    mode: u32,
    modified: SystemTime,
}

struct Playing {
    deadline: Option<Duration>,
    chunks: Vec<(StdStream, u64, Bytes)>,
    stdin: Mutex<Vec<u8>>,
    /// How much of it came from whom.
    writers: Mutex<BTreeMap<String, u64>>,
    reads_nothing: bool,
    info: watch::Sender<ProcessInfo>,
}

impl FakeGuest {
    /// Signals and stdin of a process, for assertions.
    pub(crate) fn outcome(&self, id: &str) -> Option<Outcome> {
        self.processes.lock().unwrap().get(id).and_then(|p| p.info.borrow().outcome.clone())
    }

    pub(crate) fn process_ids(&self) -> Vec<String> {
        self.processes.lock().unwrap().keys().cloned().collect()
    }

    pub(crate) fn deadline(&self, id: &str) -> Option<Duration> {
        self.processes.lock().unwrap()[id].deadline
    }

    pub(crate) fn stdin(&self, id: &str) -> Vec<u8> {
        self.processes.lock().unwrap()[id].stdin.lock().unwrap().clone()
    }

    fn playing(&self, id: &str) -> Result<Arc<Playing>> {
        self.processes
            .lock()
            .unwrap()
            .get(id)
            .cloned()
            .ok_or_else(|| Error::not_found(format!("no process {id}")))
    }

    fn entry(&self, path: &str) -> Result<(FileEntry, Option<Bytes>)> {
        let files = self.files.lock().unwrap();
        let file = files.get(path).ok_or_else(|| Error::not_found(format!("no such file: {path}")))?;
        let entry = FileEntry {
            path: path.to_owned(),
            size: file.content.as_ref().map_or(0, |content| content.len() as u64),
            mode: file.mode,
            kind: if file.content.is_some() { FileKind::File } else { FileKind::Directory },
            modified: file.modified,
            uid: 1000,
            gid: 1000,
            link_target: None,
        };
        Ok((entry, file.content.clone()))
    }

    fn put(&self, path: &str, content: Option<Bytes>, mode: u32) {
        let file = File { content, mode, modified: SystemTime::now() };
        self.files.lock().unwrap().insert(path.to_owned(), file);
    }
}

fn outcome(script: &str) -> (Option<Outcome>, bool) {
    let mut end = (Some(Outcome::Exited(0)), false);
    for word in script.split(' ') {
        match word.split_once('=') {
            Some(("exit", code)) => end.0 = Some(Outcome::Exited(code.parse().unwrap())),
            Some(("signal", signal)) => end.0 = Some(Outcome::Signaled(signal.parse().unwrap())),
            None if word == "timeout" => end = (Some(Outcome::Signaled(9)), true),
            None if word == "lost" => end.0 = Some(Outcome::Lost("the supervisor was killed".into())),
            None if word == "hang" => end.0 = None,
            _ => {}
        }
    }
    end
}

fn chunks(script: &str) -> Vec<(StdStream, u64, Bytes)> {
    let (mut chunks, mut offset) = (Vec::new(), 0);
    for word in script.split(' ') {
        let (stream, data) = match word.split_once('=') {
            Some(("out", text)) => (StdStream::Stdout, text.as_bytes().to_vec()),
            Some(("err", text)) => (StdStream::Stderr, text.as_bytes().to_vec()),
            Some(("hex", hex)) => {
                let byte = |i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap();
                (StdStream::Stdout, (0..hex.len()).step_by(2).map(byte).collect())
            }
            _ => continue,
        };
        let length = data.len() as u64;
        chunks.push((stream, offset, Bytes::from(data)));
        offset += length;
    }
    chunks
}

#[async_trait]
impl Guest for FakeGuest {
    async fn ping(&self) -> Result<()> {
        Ok(())
    }

    async fn start(&self, spec: &ProcessSpec) -> Result<ProcessInfo> {
        if let Ok(known) = self.playing(&spec.id) {
            return Ok(known.info.borrow().clone());
        }
        let script = spec.argv.last().cloned().unwrap_or_default();
        if script == "missing" {
            return Err(Error::not_found("no such command: missing"));
        }
        let (outcome, timed_out) = outcome(&script);
        let chunks = chunks(&script);
        let info = ProcessInfo {
            id: spec.id.clone(),
            pid: 7,
            argv: spec.argv.clone(),
            cwd: spec.cwd.clone().unwrap_or_else(|| "/workspace".into()),
            user: spec.user.clone().unwrap_or_else(|| "sandbox".into()),
            tag: spec.tag.clone(),
            started: SystemTime::now(),
            ended: outcome.as_ref().map(|_| SystemTime::now()),
            outcome,
            timed_out,
            oom_killed: false,
            limits_hit: Vec::new(),
            output_start: 0,
            output_end: chunks.last().map_or(0, |(_, offset, data)| offset + data.len() as u64),
            output_open: false,
            stdin_open: spec.stdin || spec.pty.is_some(),
            stdin_offset: 0,
            pty: spec.pty,
        };
        let playing = Playing {
            deadline: spec.deadline,
            chunks,
            stdin: Mutex::default(),
            writers: Mutex::default(),
            reads_nothing: script.contains("deaf"),
            info: watch::Sender::new(info.clone()),
        };
        self.processes.lock().unwrap().insert(spec.id.clone(), Arc::new(playing));
        Ok(info)
    }

    async fn attach(&self, id: &str, offset: u64, follow: bool, _pace: bool) -> Result<OutputStream> {
        let playing = self.playing(id)?;
        let chunks: Vec<_> = playing
            .chunks
            .iter()
            .filter(|(_, start, data)| start + data.len() as u64 > offset)
            .map(|(stream, start, data)| {
                let skip = offset.saturating_sub(*start);
                let data = data.slice(usize::try_from(skip).unwrap()..);
                Ok(OutputEvent::Chunk { stream: *stream, offset: start + skip, data })
            })
            .collect();
        let end = stream::once(async move {
            let mut info = playing.info.subscribe();
            let info = info.wait_for(|info| info.outcome.is_some()).await.unwrap().clone();
            Ok(OutputEvent::Exit(Box::new(info)))
        });
        let output = stream::iter(chunks);
        Ok(if follow { output.chain(end).boxed() } else { output.boxed() })
    }

    async fn write_stdin_as(
        &self,
        id: &str,
        writer: &str,
        offset: u64,
        data: Bytes,
        eof: bool,
    ) -> Result<StdinAck> {
        assert!(data.len() <= 64 << 10);
        let playing = self.playing(id)?;
        if playing.reads_nothing {
            return Ok(StdinAck { accepted: offset, closed: false });
        }
        let mut stdin = playing.stdin.lock().unwrap();
        let mut writers = playing.writers.lock().unwrap();
        let own = writers.entry(writer.to_owned()).or_default();
        let accepted = if writer.is_empty() { stdin.len() as u64 } else { *own };
        if offset > accepted {
            return Err(Error::invalid_argument("offset is ahead"));
        }
        let known = usize::try_from(accepted - offset).unwrap().min(data.len());
        stdin.extend_from_slice(&data[known..]);
        *own += (data.len() - known) as u64;
        let own = *own;
        let accepted = stdin.len() as u64;
        playing.info.send_modify(|info| {
            info.stdin_offset = accepted;
            info.stdin_open &= !eof;
        });
        Ok(StdinAck { accepted: if writer.is_empty() { accepted } else { own }, closed: eof })
    }

    async fn resize(&self, id: &str, size: PtySize) -> Result<()> {
        let playing = self.playing(id)?;
        let resized =
            playing.info.send_if_modified(|info| info.pty.is_some() && info.pty.replace(size) != Some(size));
        if resized || playing.info.borrow().pty == Some(size) {
            Ok(())
        } else {
            Err(Error::invalid_argument("the process has no terminal"))
        }
    }

    async fn signal(&self, id: &str, signal: Signal, _tree: bool) -> Result<bool> {
        let playing = self.playing(id)?;
        Ok(playing.info.send_if_modified(|info| {
            let alive = info.outcome.is_none();
            if alive {
                info.outcome = Some(Outcome::Signaled(signal.0));
                info.ended = Some(SystemTime::now());
            }
            alive
        }))
    }

    async fn wait(&self, id: &str, timeout: Duration) -> Result<ProcessInfo> {
        let mut info = self.playing(id)?.info.subscribe();
        let _ = tokio::time::timeout(timeout, info.wait_for(|info| info.outcome.is_some())).await;
        let now = info.borrow().clone();
        Ok(now)
    }

    async fn process(&self, id: &str) -> Result<ProcessInfo> {
        Ok(self.playing(id)?.info.borrow().clone())
    }

    async fn processes(&self) -> Result<Vec<ProcessInfo>> {
        Ok(self.processes.lock().unwrap().values().map(|p| p.info.borrow().clone()).collect())
    }

    async fn logs(&self, lines: u32) -> Result<Vec<String>> {
        Ok(vec![format!("asked for {lines}")])
    }

    async fn write_file(&self, file: &WriteFile, mut content: ByteStream) -> Result<FileEntry> {
        let mut bytes = Vec::new();
        while let Some(piece) = content.next().await {
            bytes.extend_from_slice(&piece?);
        }
        self.put(&file.path, Some(bytes.into()), file.mode);
        Ok(self.entry(&file.path)?.0)
    }

    async fn read_file(&self, path: &str, range: ReadRange) -> Result<(FileEntry, ByteStream)> {
        let (entry, content) = self.entry(path)?;
        let content = content.ok_or_else(|| Error::invalid_argument(format!("{path} is a directory")))?;
        let start = usize::try_from(range.offset).unwrap().min(content.len());
        let length = range.length.map_or(usize::MAX, |length| usize::try_from(length).unwrap_or(usize::MAX));
        let end = start.saturating_add(length).min(content.len());
        let pieces: Vec<_> =
            content.slice(start..end).chunks(5).map(|c| Ok(Bytes::copy_from_slice(c))).collect();
        Ok((entry, stream::iter(pieces).boxed()))
    }

    async fn stat(&self, path: &str, _follow: bool) -> Result<FileEntry> {
        Ok(self.entry(path)?.0)
    }

    async fn list_dir(&self, path: &str) -> Result<Vec<FileEntry>> {
        let prefix = format!("{}/", path.trim_end_matches('/'));
        let paths: Vec<String> = self.files.lock().unwrap().keys().cloned().collect();
        let inside =
            |p: &&String| p.strip_prefix(&prefix).is_some_and(|rest| !rest.is_empty() && !rest.contains('/'));
        paths.iter().filter(inside).map(|path| Ok(self.entry(path)?.0)).collect()
    }

    async fn glob(&self, pattern: &str) -> Result<Vec<FileEntry>> {
        let (before, after) =
            pattern.split_once('*').ok_or_else(|| Error::invalid_argument("malformed pattern"))?;
        let paths: Vec<String> = self.files.lock().unwrap().keys().cloned().collect();
        let matches = |p: &&String| p.starts_with(before) && p.ends_with(after);
        paths.iter().filter(matches).map(|path| Ok(self.entry(path)?.0)).collect()
    }

    async fn move_file(&self, from: &str, to: &str) -> Result<()> {
        let mut files = self.files.lock().unwrap();
        let file = files.remove(from).ok_or_else(|| Error::not_found(format!("no such file: {from}")))?;
        files.insert(to.to_owned(), file);
        Ok(())
    }

    async fn chmod(&self, path: &str, mode: u32) -> Result<()> {
        let mut files = self.files.lock().unwrap();
        files.get_mut(path).ok_or_else(|| Error::not_found(format!("no such file: {path}")))?.mode = mode;
        Ok(())
    }

    async fn mkdir(&self, path: &str, mode: u32, _parents: bool) -> Result<()> {
        self.put(path, None, mode);
        Ok(())
    }

    async fn remove(&self, path: &str, _recursive: bool) -> Result<()> {
        let removed = self.files.lock().unwrap().remove(path);
        removed.map(|_| ()).ok_or_else(|| Error::not_found(format!("no such file: {path}")))
    }

    async fn archive(&self, path: &str) -> Result<ByteStream> {
        let mut archive = Vec::new();
        for (name, file) in &*self.files.lock().unwrap() {
            let Some(name) = name.strip_prefix(&format!("{path}/")) else { continue };
            let content = file.content.clone().unwrap_or_default();
            trees::add(&mut archive, name, &content);
        }
        if archive.is_empty() {
            return Err(Error::not_found(format!("{path} does not exist")));
        }
        archive.extend_from_slice(&stacyvm_tar::END);
        let mut pieces: Vec<_> = archive.chunks(1000).map(|c| Ok(Bytes::copy_from_slice(c))).collect();
        if path.ends_with("shrinks") {
            pieces.truncate(1);
            pieces.push(Err(Error::internal("a file became shorter while it was read")));
        }
        Ok(stream::iter(pieces).boxed())
    }

    async fn extract(&self, target: &ExtractTarget, content: ByteStream) -> Result<Extracted> {
        let files = trees::read(content).await?;
        let mut made = Extracted::default();
        for (name, content) in files {
            made.files += 1;
            made.bytes += content.len() as u64;
            self.put(&format!("{}/{name}", target.path), Some(content.into()), 0o644);
        }
        Ok(made)
    }

    async fn watch(&self, path: &str, recursive: bool) -> Result<ChangeStream> {
        if path.ends_with("none") {
            return Err(Error::not_found(format!("{path} does not exist")));
        }
        let changes = vec![
            Ok(FileChange::Created { path: format!("{path}/a"), directory: recursive }),
            Ok(FileChange::Moved { from: format!("{path}/a"), path: format!("{path}/b"), directory: false }),
            Ok(FileChange::Overflow),
        ];
        let end = vec![Err(Error::unavailable("the guest is gone"))];
        Ok(if path.ends_with("breaks") {
            stream::iter(changes.into_iter().chain(end)).boxed()
        } else {
            stream::iter(changes).chain(stream::pending()).boxed()
        })
    }

    async fn usage(&self, path: &str) -> Result<DiskUsage> {
        self.entry(path)?;
        Ok(DiskUsage { bytes: 8192, apparent_bytes: 5, files: 1, directories: 1, counted_twice: false })
    }
}
