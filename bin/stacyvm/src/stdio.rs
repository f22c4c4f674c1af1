//! Bytes of the command between this process's standard streams and the sandbox.
//!
//! Writing must not block the one thread that also forwards signals: what does not fit into a pipe now is written on
//! another thread. Reading happens on a thread of its own, as there is no other way to read any kind of stdin.

use bytes::Bytes;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{FileType, fstat},
    io::Errno,
};
use stacyvm_types::StreamName;
use std::{
    io::{self, Read},
    os::fd::BorrowedFd,
};
use tokio::sync::mpsc;

/// Bytes that a pipe takes whole once it says that it takes any (`PIPE_BUF`).
const PIECE: usize = 4096;
/// Bytes read from stdin at once: the most that a guest takes in one write.
const READ: usize = 64 << 10;
/// Pieces of stdin read ahead.
const AHEAD: usize = 4;

/// Where the output of a command goes.
#[derive(Debug)]
pub(crate) enum Sink {
    /// Our own standard output and error, as it comes.
    Streams,
    /// Memory, the first bytes of each stream.
    Memory(Captured),
}

/// Output kept in memory.
#[derive(Debug, Default)]
pub(crate) struct Captured {
    /// Standard output.
    pub(crate) stdout: Kept,
    /// Standard error.
    pub(crate) stderr: Kept,
}

/// The first bytes of a stream.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    /// The bytes.
    pub(crate) bytes: Vec<u8>,
    /// There were more.
    pub(crate) truncated: bool,
}

impl Kept {
    /// Most bytes kept.
    pub(crate) const MOST: usize = 16 << 20;

    fn push(&mut self, data: &[u8]) {
        let room = Self::MOST - self.bytes.len();
        self.truncated |= data.len() > room;
        self.bytes.extend_from_slice(&data[..data.len().min(room)]);
    }
}

impl Sink {
    /// Takes a piece.
    ///
    /// # Errors
    /// Of writing, `BrokenPipe` when nobody reads any more.
    pub(crate) async fn write(&mut self, stream: StreamName, data: Bytes) -> io::Result<()> {
        match (self, stream) {
            (Self::Streams, StreamName::Stdout) => write(rustix::stdio::stdout(), data).await,
            (Self::Streams, StreamName::Stderr) => write(rustix::stdio::stderr(), data).await,
            (Self::Memory(captured), StreamName::Stdout) => {
                captured.stdout.push(&data);
                Ok(())
            }
            (Self::Memory(captured), StreamName::Stderr) => {
                captured.stderr.push(&data);
                Ok(())
            }
        }
    }
}

async fn write(fd: BorrowedFd<'static>, mut data: Bytes) -> io::Result<()> {
    let regular = fstat(fd).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile);
    while !data.is_empty() {
        if !regular && !writable(fd) {
            let rest = std::mem::take(&mut data);
            let written = tokio::task::spawn_blocking(move || write_all(fd, rest)).await;
            return written.unwrap_or_else(|e| Err(io::Error::other(e)));
        }
        let length = if regular { data.len() } else { data.len().min(PIECE) };
        match rustix::io::write(fd, &data[..length]) {
            Ok(written) => drop(data.split_to(written)),
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// A write of one piece would not block.
fn writable(fd: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::OUT)];
    // An error is found by the write.
    !matches!(poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })), Ok(0))
}

fn write_all(fd: BorrowedFd<'_>, mut data: Bytes) -> io::Result<()> {
    while !data.is_empty() {
        match rustix::io::write(fd, &data) {
            Ok(written) => drop(data.split_to(written)),
            Err(Errno::INTR) => {}
            // Somebody who shares it made it non-blocking.
            Err(Errno::AGAIN) => {
                let _ = poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::OUT)], None);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Stdin has something to say that a command may want: it is there, not a terminal, and not `/dev/null`.
pub(crate) fn stdin_is_piped() -> bool {
    let stdin = rustix::stdio::stdin();
    let Ok(stat) = fstat(stdin) else { return false };
    let null = rustix::fs::stat("/dev/null").map(|null| null.st_rdev);
    let is_null = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
        && null.is_ok_and(|rdev| rdev == stat.st_rdev);
    !is_null && !rustix::termios::isatty(stdin)
}

/// Stdin is a terminal.
pub(crate) fn stdin_is_terminal() -> bool {
    rustix::termios::isatty(rustix::stdio::stdin())
}

/// Pieces of stdin, read on a thread of its own; the channel closes at its end.
pub(crate) fn read_stdin() -> mpsc::Receiver<Bytes> {
    let (sender, receiver) = mpsc::channel(AHEAD);
    // The thread may sit in a read for ever; it ends with the process.
    std::thread::spawn(move || {
        let mut stdin = io::stdin().lock();
        let mut buffer = vec![0; READ];
        loop {
            match stdin.read(&mut buffer) {
                Ok(0) => break,
                Ok(length) => {
                    if sender.blocking_send(Bytes::copy_from_slice(&buffer[..length])).is_err() {
                        break;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    crate::output::note(format_args!("stacyvm: cannot read standard input: {error}"));
                    break;
                }
            }
        }
    });
    receiver
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_keeps_the_first_bytes() {
        let mut kept = Kept::default();
        kept.push(&vec![1; Kept::MOST - 1]);
        kept.push(&[2, 3]);
        assert_eq!((kept.bytes.len(), kept.bytes.last(), kept.truncated), (Kept::MOST, Some(&2), true));
        kept.push(&[4]);
        assert_eq!(kept.bytes.len(), Kept::MOST);
    }
}
