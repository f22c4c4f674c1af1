//! The inside half of the contract: processes and files of one sandbox.
//!
//! A **process** belongs to no connection: it goes on when a client, a connection or the control plane goes away. Its
//! output is a log of bytes with absolute offsets (stdout and stderr share one count); attaching names an offset and
//! yields every byte from there once, or says which bytes are not kept any more.
//!
//! Rules that hold for every method: a guest that hangs, lies or floods cannot hang the caller (every call has a
//! deadline of its own except streams, which end when the guest is unreachable) and cannot make it grow (every message,
//! list and window is bounded). `Unavailable` means that the guest cannot be reached now; `Destroyed` that it is gone.

use crate::{ChangeStream, DiskUsage, Error, ExtractTarget, Extracted, Result};
use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use stacyvm_types::{Limit, PtySize};
use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

/// Output events of one attachment, in order. After an `Err` the stream ends.
pub type OutputStream = BoxStream<'static, Result<OutputEvent>>;
/// File content, in order. After an `Err` the stream ends.
pub type ByteStream = BoxStream<'static, Result<Bytes>>;

/// What works inside one sandbox.
#[async_trait]
pub trait Guest: Send + Sync + 'static {
    /// Answers at once if the guest is alive, whatever else it is doing.
    async fn ping(&self) -> Result<()>;

    /// Starts a process. Idempotent in `spec.id`: a known id returns that process unchanged.
    ///
    /// # Errors
    /// `NotFound` if the command or the working directory does not exist, `InvalidArgument` for a bad spec (also a file
    /// that cannot be executed), `ResourceLimit` if the sandbox has no room for another process, `Unsupported` for a
    /// user that this runtime does not offer, or a terminal.
    async fn start(&self, spec: &ProcessSpec) -> Result<ProcessInfo>;

    /// Output of a process from `offset` on. With `follow`, ends with [`OutputEvent::Exit`] once the process has ended
    /// and its output is drained; without, at the bytes that are there now. With `pace`, the process waits for this
    /// reader rather than lose output, as long as the reader is attached. For its first reader, and for a pacing one that
    /// was cut off, a process waits about three seconds.
    ///
    /// # Errors
    /// `NotFound` for an unknown process.
    async fn attach(&self, id: &str, offset: u64, follow: bool, pace: bool) -> Result<OutputStream>;

    /// [`Guest::start`], and at once [`Guest::attach`] from the first byte with `follow` and `pace`: in one question where
    /// the guest can, which saves a short command a round trip.
    ///
    /// # Errors
    /// As of both. `Unavailable` does not say whether the process was started; asking again is safe.
    async fn run(&self, spec: &ProcessSpec) -> Result<(ProcessInfo, OutputStream)> {
        let process = self.start(spec).await?;
        let output = self.attach(&spec.id, 0, true, true).await?;
        Ok((process, output))
    }

    /// [`Guest::write_stdin_as`] nobody in particular.
    ///
    /// # Errors
    /// As there.
    async fn write_stdin(&self, id: &str, offset: u64, data: Bytes, eof: bool) -> Result<StdinAck> {
        self.write_stdin_as(id, "", offset, data, eof).await
    }

    /// Writes to stdin at the absolute position `offset`; bytes before what was accepted already are skipped, so a retry
    /// writes nothing twice. `data` is at most 64 KiB. Returns after at most a second, also when nothing was taken.
    ///
    /// Where several write, each has a name as `writer` (at most 64 bytes), and `offset` and what was accepted count their bytes
    /// alone. Without a name the bytes of all count. The 64 that wrote last are remembered.
    ///
    /// In a terminal `eof` types the end of input, so that what was typed before is read first; the terminal stays, and takes
    /// more. Asked for again by the same writer at the same offset, it is not typed again.
    ///
    /// # Errors
    /// `NotFound`; `InvalidArgument` if the process has no stdin or `offset` is ahead of what was accepted.
    async fn write_stdin_as(
        &self,
        id: &str,
        writer: &str,
        offset: u64,
        data: Bytes,
        eof: bool,
    ) -> Result<StdinAck>;

    /// Gives the terminal of a process another size; what runs in its foreground gets `SIGWINCH`. Nothing happens to one
    /// that has ended.
    ///
    /// # Errors
    /// `NotFound`; `InvalidArgument` if the process has no terminal, or for a size without room.
    async fn resize(&self, id: &str, size: PtySize) -> Result<()>;

    /// Sends a signal to the leader, or with `tree` to it and all its descendants (also those in other sessions);
    /// `SIGKILL` to a tree repeats until none is left. False if it had ended already.
    ///
    /// # Errors
    /// `NotFound`; `InvalidArgument` for a number that is no signal.
    async fn signal(&self, id: &str, signal: Signal, tree: bool) -> Result<bool>;

    /// The process once it has ended, or as it is after `timeout` (at most 60 s).
    ///
    /// # Errors
    /// `NotFound`.
    async fn wait(&self, id: &str, timeout: Duration) -> Result<ProcessInfo>;

    /// One process.
    ///
    /// # Errors
    /// `NotFound`.
    async fn process(&self, id: &str) -> Result<ProcessInfo>;

    /// Live and recently ended processes, oldest first.
    async fn processes(&self) -> Result<Vec<ProcessInfo>>;

    /// The last `lines` lines that processes of the sandbox wrote, oldest first.
    async fn logs(&self, lines: u32) -> Result<Vec<String>>;

    /// Writes a file of any size: parents are made, the old file is replaced in one step when all content has arrived,
    /// and stays untouched if `content` ends early or with an error.
    ///
    /// # Errors
    /// `InvalidArgument` (a directory is in the way, a path that is not absolute), `ResourceLimit` (disk full).
    async fn write_file(&self, file: &WriteFile, content: ByteStream) -> Result<FileEntry>;

    /// Metadata first, then the bytes of `range`. A file that shrinks meanwhile ends the stream with an error.
    ///
    /// # Errors
    /// `NotFound`; `InvalidArgument` for what is not a regular file.
    async fn read_file(&self, path: &str, range: ReadRange) -> Result<(FileEntry, ByteStream)>;

    /// Metadata; of the target when `follow`.
    ///
    /// # Errors
    /// `NotFound`.
    async fn stat(&self, path: &str, follow: bool) -> Result<FileEntry>;

    /// Entries of a directory, sorted by path. More than 100,000 is `ResourceLimit`.
    ///
    /// # Errors
    /// `NotFound`; `InvalidArgument` if it is not a directory.
    async fn list_dir(&self, path: &str) -> Result<Vec<FileEntry>>;

    /// Paths that match an absolute pattern (`*`, `?`, `[]`, `{}` within a component, `**` across), sorted, symbolic
    /// links not entered. More than 100,000 is `ResourceLimit`.
    ///
    /// # Errors
    /// `InvalidArgument` for a malformed pattern.
    async fn glob(&self, pattern: &str) -> Result<Vec<FileEntry>>;

    /// Renames; parents of `to` are made and an existing file there is replaced.
    ///
    /// # Errors
    /// `NotFound`; `InvalidArgument`.
    async fn move_file(&self, from: &str, to: &str) -> Result<()>;

    /// Sets permission bits.
    ///
    /// # Errors
    /// `NotFound`.
    async fn chmod(&self, path: &str, mode: u32) -> Result<()>;

    /// Makes a directory; with `parents` also the ones above, and an existing one is fine.
    ///
    /// # Errors
    /// `InvalidArgument` if something else is there.
    async fn mkdir(&self, path: &str, mode: u32, parents: bool) -> Result<()>;

    /// Removes a file or empty directory, with `recursive` a tree. Symbolic links are removed, not followed.
    ///
    /// # Errors
    /// `NotFound`; `InvalidArgument` for a directory with content and no `recursive`.
    async fn remove(&self, path: &str, recursive: bool) -> Result<()>;

    /// A tree as a tar archive: the directory `path` itself as `./`, then everything in it by its path below `path`, in no
    /// order but that a directory comes before what is in it; or one regular file by its name.
    ///
    /// Bytes, permissions, times to the nanosecond, symbolic links (as they are, never followed) and hard links are in it.
    /// Sockets, pipes and devices are left out, as are file systems of the kernel. What is removed meanwhile is left out; a
    /// file that grows is cut at the size that it had when its turn came; one that shrinks ends the stream with an error.
    /// The stream ends without an error only behind the archive's end mark. Pieces are at most 128 KiB.
    ///
    /// # Errors
    /// `NotFound`; `InvalidArgument` for what is neither directory nor file; `Unsupported` where the guest cannot.
    async fn archive(&self, path: &str) -> Result<ByteStream> {
        Err(cannot(&format!("pack {path}")))
    }

    /// Unpacks a tar archive, not compressed, in a directory, which is made with its parents if it is missing.
    ///
    /// What is there and not in the archive stays. A file or link is replaced in one step, also where it is a symbolic link
    /// itself; a directory that is there keeps its owner, mode and time; a directory in the place of a file, or a file in that
    /// of a directory, is `InvalidArgument`. Everything that is made belongs to the user asked for, whatever the archive says,
    /// and has the archive's permissions and times.
    ///
    /// Below the directory no symbolic link is followed, be it of the archive or there before. `InvalidArgument` with the
    /// entry named is the answer to: an absolute path, a path with `..`, one that leads through a symbolic link, a hard link
    /// to anything but a regular file in the directory, a device, pipe or unknown kind, a sparse file. A symbolic link is made
    /// as it stands, wherever it points.
    ///
    /// The first entry that is refused ends the call. What was made before it stays, and nothing behind it is made; a file is
    /// whole or not there. The same holds when `content` ends with an error or before the archive's end mark.
    ///
    /// # Errors
    /// `InvalidArgument`; `ResourceLimit` (disk full); `Unsupported` where the guest cannot.
    async fn extract(&self, target: &ExtractTarget, content: ByteStream) -> Result<Extracted> {
        drop(content);
        Err(cannot(&format!("unpack in {}", target.path)))
    }

    /// Changes in a directory, with `recursive` also in those below it. Everything that happens once this has returned is
    /// told, or else [`crate::FileChange::Overflow`] is; nothing is lost in silence.
    ///
    /// A directory that appears below is watched too, and what is in it by then is told as created. Changes of one path
    /// within a short time (50 ms or so) become one event of each kind; a file that was just created is not told to be
    /// modified as well. A file that is uploaded is told as created when it takes its place, also where it replaces another. A move within the tree is one event, or now and then a deletion and a creation. The stream ends behind
    /// the deletion of the directory itself, and with an error when the guest is lost or more directories appear than can
    /// be watched. Symbolic links are not followed.
    ///
    /// # Errors
    /// `NotFound`; `InvalidArgument` if it is not a directory; `ResourceLimit` for more directories than can be watched;
    /// `Unsupported` where the guest or its kernel cannot.
    async fn watch(&self, path: &str, recursive: bool) -> Result<ChangeStream> {
        Err(cannot(&format!("watch {path}{}", if recursive { " and below" } else { "" })))
    }

    /// How much disk a file or tree takes: each file with several names once, symbolic links not followed, file systems of
    /// the kernel left out.
    ///
    /// # Errors
    /// `NotFound`; `Unsupported` where the guest cannot.
    async fn usage(&self, path: &str) -> Result<DiskUsage> {
        Err(cannot(&format!("measure {path}")))
    }
}

fn cannot(what: &str) -> Error {
    Error::unsupported(format!("this runtime cannot {what}"))
}

/// A signal number, 1 to 64.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signal(pub i32);

impl Signal {
    /// Ends a process, no questions asked.
    pub const KILL: Self = Self(9);
    /// Asks a process to end.
    pub const TERM: Self = Self(15);
    /// Ctrl-C.
    pub const INT: Self = Self(2);
}

/// What to run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProcessSpec {
    /// Chosen by the caller, unique in the sandbox, at most 64 bytes.
    pub id: String,
    /// Program and arguments; the program is looked up in `PATH`.
    pub argv: Vec<String>,
    /// Added to the base environment (`PATH`, `HOME`, `USER`, `LANG`, `TERM`).
    pub env: BTreeMap<String, String>,
    /// Working directory; `None`: `/workspace`.
    pub cwd: Option<String>,
    /// `None`: the sandbox user; else a name, `uid` or `uid:gid`.
    pub user: Option<String>,
    /// Open a pipe to stdin; else `/dev/null`.
    pub stdin: bool,
    /// Kill the process and all its descendants after this time.
    pub deadline: Option<Duration>,
    /// Output kept for late attachers, in bytes; `None`: 2 MiB.
    pub log_bytes: Option<u64>,
    /// The caller's words.
    pub tag: String,
    /// Instead of pipes, a terminal of this size that controls the process's session. Stdout and stderr are one then
    /// ([`StdStream::Stdout`]), and stdin is open.
    pub pty: Option<PtySize>,
}

/// A process as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessInfo {
    /// The caller's id.
    pub id: String,
    /// Number inside the sandbox.
    pub pid: u32,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Working directory.
    pub cwd: String,
    /// User name or number.
    pub user: String,
    /// The caller's words.
    pub tag: String,
    /// Start, by the guest's clock.
    pub started: SystemTime,
    /// End, by the guest's clock.
    pub ended: Option<SystemTime>,
    /// How it ended; `None` while it runs.
    pub outcome: Option<Outcome>,
    /// Its deadline killed it.
    pub timed_out: bool,
    /// The kernel killed it for memory.
    pub oom_killed: bool,
    /// Limits of the sandbox that were hit while it ran, each once, in order: also by others that ran at the same time, as
    /// nobody can tell. `DiskFull`: it did not end well, and then a disk of the sandbox was full. Of one that runs, those
    /// until now; [`Guest::start`] need not look.
    pub limits_hit: Vec<Limit>,
    /// Offset of the oldest output byte that is kept.
    pub output_start: u64,
    /// Offset behind the newest output byte.
    pub output_end: u64,
    /// Something still holds its output open (a background child, say).
    pub output_open: bool,
    /// Stdin can be written.
    pub stdin_open: bool,
    /// Stdin bytes accepted so far.
    pub stdin_offset: u64,
    /// Its terminal, as large as it was made last.
    pub pty: Option<PtySize>,
}

/// How a process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It exited with this code.
    Exited(i32),
    /// A signal ended it.
    Signaled(i32),
    /// The true status is unknown (its supervisor was killed); none is invented.
    Lost(String),
}

impl Outcome {
    /// The code a shell would show: the exit code, or 128 + signal; `None` if it is not known.
    pub fn shell_code(&self) -> Option<i32> {
        match self {
            Self::Exited(code) => Some(*code),
            Self::Signaled(signal) => Some(128 + signal),
            Self::Lost(_) => None,
        }
    }
}

/// Which output a byte came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StdStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// One event of an attachment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OutputEvent {
    /// Bytes, at most 64 KiB.
    Chunk {
        /// Where they came from.
        stream: StdStream,
        /// Offset of the first byte.
        offset: u64,
        /// The bytes.
        data: Bytes,
    },
    /// Bytes that are not kept any more.
    Gap {
        /// Offset of the first.
        offset: u64,
        /// How many.
        length: u64,
    },
    /// Last event: the process ended and its output is drained.
    Exit(Box<ProcessInfo>),
}

/// Answer to a stdin write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StdinAck {
    /// Offset behind the last byte taken.
    pub accepted: u64,
    /// No more can be written.
    pub closed: bool,
}

/// What a path is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A device, socket or pipe.
    Other,
}

/// Metadata of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileEntry {
    /// Absolute path.
    pub path: String,
    /// Size in bytes.
    pub size: u64,
    /// Permission bits.
    pub mode: u32,
    /// What it is.
    pub kind: FileKind,
    /// Last change of content, by the guest's clock.
    pub modified: SystemTime,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Target of a symbolic link.
    pub link_target: Option<String>,
}

/// Where and how a file is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WriteFile {
    /// Absolute path.
    pub path: String,
    /// Permission bits.
    pub mode: u32,
    /// Owner; `None`: the sandbox user.
    pub user: Option<String>,
}

/// Part of a file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ReadRange {
    /// First byte.
    pub offset: u64,
    /// How many at most; `None`: to the end.
    pub length: Option<u64>,
}
