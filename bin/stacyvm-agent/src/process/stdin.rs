//! Stdin of a process: bounded, acknowledged writes at absolute offsets, so that a retry writes nothing twice and a process
//! that does not read holds up nobody.
//!
//! A terminal is never at its end: closing it would hang it up. There the end is typed, as a person does it.

use crate::fail::{Fail, Result};
use rustix::termios::{LocalModes, SpecialCodeIndex};
use std::{
    io::ErrorKind,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{net::unix::pipe, sync::Semaphore, time::Instant};

/// Longest wait for a process to read, below the second that the protocol promises.
const PATIENCE: Duration = Duration::from_millis(900);

/// See the module.
#[derive(Debug)]
pub(crate) struct Stdin {
    /// The process has `/dev/null` instead.
    absent: bool,
    terminal: bool,
    state: Mutex<State>,
    /// One writer at a time.
    turn: Semaphore,
}

#[derive(Debug)]
struct State {
    /// `None` once closed, by either side.
    pipe: Option<std::sync::Arc<pipe::Sender>>,
    accepted: u64,
    /// The last byte accepted.
    last: Option<u8>,
}

impl Stdin {
    /// Stdin of a process; `None` for one that was started without.
    pub(crate) fn new(pipe: Option<pipe::Sender>) -> Self {
        let absent = pipe.is_none();
        let state = State { pipe: pipe.map(std::sync::Arc::new), accepted: 0, last: None };
        Self { absent, terminal: false, state: Mutex::new(state), turn: Semaphore::new(1) }
    }

    /// Stdin that is typed into a terminal.
    pub(crate) fn of_terminal(ours: pipe::Sender) -> Self {
        Self { terminal: true, ..Self::new(Some(ours)) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether more can be written, and how much was.
    pub(crate) fn status(&self) -> (bool, u64) {
        let state = self.state();
        (state.pipe.is_some(), state.accepted)
    }

    /// Closes our end.
    pub(crate) fn close(&self) {
        self.state().pipe = None;
    }

    fn reply(&self) -> stacyvm_guest::proto::StdinReply {
        let state = self.state();
        stacyvm_guest::proto::StdinReply { accepted: state.accepted, closed: state.pipe.is_none() }
    }

    /// Writes what of `data`, which begins at `offset`, was not accepted before, and closes behind it with `eof`. Waits a
    /// bounded time for the process to read.
    ///
    /// # Errors
    /// `InvalidArgument` without stdin, for an offset ahead of what was accepted, and for too much data.
    pub(crate) async fn write(
        &self,
        offset: u64,
        data: &[u8],
        eof: bool,
    ) -> Result<stacyvm_guest::proto::StdinReply> {
        if self.absent {
            return Err(Fail::invalid("the process was started without stdin"));
        }
        if data.len() > stacyvm_guest::limits::STDIN_BYTES {
            return Err(Fail::invalid("too much stdin in one write"));
        }
        let deadline = Instant::now() + PATIENCE;
        let Ok(Ok(_turn)) = tokio::time::timeout_at(deadline, self.turn.acquire()).await else {
            return Ok(self.reply());
        };
        let accepted = self.state().accepted;
        if offset > accepted {
            return Err(Fail::invalid(format!("stdin continues at {accepted}, not at {offset}")));
        }
        let known = usize::try_from(accepted - offset).unwrap_or(usize::MAX).min(data.len());
        let rest = self.pass(&data[known..], deadline, true).await;
        if eof && rest == 0 && (!self.terminal || self.pass(&self.end(), deadline, false).await == 0) {
            self.close();
        }
        Ok(self.reply())
    }

    /// Writes until all is written, it is closed or the deadline is over. Returns how much is left.
    async fn pass(&self, mut rest: &[u8], deadline: Instant, counted: bool) -> usize {
        while !rest.is_empty() {
            let Some(pipe) = self.state().pipe.clone() else { break };
            match pipe.try_write(rest) {
                Ok(written) => {
                    let mut state = self.state();
                    if counted {
                        state.accepted += written as u64;
                        state.last = rest[..written].last().copied().or(state.last);
                    }
                    rest = &rest[written..];
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if tokio::time::timeout_at(deadline, pipe.writable()).await.is_err() {
                        break;
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // The process closed its end, or is gone.
                Err(_) => self.close(),
            }
        }
        rest.len()
    }

    /// What is typed for the end of input: once where a line begins, twice within one, since there the first one only hands
    /// over what there is of it.
    fn end(&self) -> Vec<u8> {
        let (pipe, last) = {
            let state = self.state();
            (state.pipe.clone(), state.last)
        };
        let Some(Ok(modes)) = pipe.as_deref().map(rustix::termios::tcgetattr) else { return Vec::new() };
        let within =
            modes.local_modes.contains(LocalModes::ICANON) && !matches!(last, None | Some(b'\n' | b'\r'));
        vec![modes.special_codes[SpecialCodeIndex::VEOF]; 1 + usize::from(within)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::pty::{Pty, Size};
    use std::{fs::File, io::Read};

    fn pair() -> (Stdin, File) {
        let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        rustix::io::ioctl_fionbio(&writer, true).unwrap();
        (Stdin::new(Some(pipe::Sender::from_owned_fd(writer).unwrap())), File::from(reader))
    }

    fn reply(accepted: u64, closed: bool) -> stacyvm_guest::proto::StdinReply {
        stacyvm_guest::proto::StdinReply { accepted, closed }
    }

    #[tokio::test]
    async fn a_retry_writes_nothing_twice() {
        let (stdin, mut reader) = pair();
        assert_eq!(stdin.write(0, b"hello", false).await.unwrap(), reply(5, false));
        assert_eq!(stdin.write(0, b"hello wor", false).await.unwrap(), reply(9, false));
        assert!(stdin.write(10, b"d", false).await.is_err());
        assert_eq!(stdin.write(9, b"ld", true).await.unwrap(), reply(11, true));
        assert_eq!(stdin.write(9, b"ld", true).await.unwrap(), reply(11, true));
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello world");
    }

    #[tokio::test]
    async fn a_process_that_does_not_read_takes_a_part() {
        let (stdin, reader) = pair();
        let capacity = rustix::pipe::fcntl_getpipe_size(&reader).unwrap() as u64;
        let data = vec![7; 64 << 10];
        let mut offset = 0;
        while offset < capacity {
            offset = stdin.write(offset, &data, false).await.unwrap().accepted;
        }
        // With eof, which must wait for the data before it.
        assert_eq!(stdin.write(offset, b"x", true).await.unwrap(), reply(capacity, false));
        drop(reader);
        assert_eq!(stdin.write(offset, b"x", false).await.unwrap(), reply(capacity, true));
    }

    fn terminal() -> (Stdin, Pty, File) {
        let size = Size::new(stacyvm_guest::proto::PtySize { rows: 24, cols: 80 }).unwrap();
        let (pty, [writer, _], theirs) = Pty::open(size).unwrap();
        (Stdin::of_terminal(pipe::Sender::from_owned_fd_unchecked(writer).unwrap()), pty, File::from(theirs))
    }

    #[tokio::test]
    async fn the_end_of_what_is_typed_ends_the_input_and_not_the_terminal() {
        for (typed, read) in [("whole\n", "whole\n"), ("half", "half"), ("", ""), ("return\r", "return\n")] {
            let (stdin, mut pty, mut theirs) = terminal();
            let end = reply(typed.len() as u64, true);
            assert_eq!(stdin.write(0, typed.as_bytes(), true).await.unwrap(), end, "{typed:?}");
            // A retry types nothing more.
            assert_eq!(stdin.write(0, typed.as_bytes(), true).await.unwrap(), end);
            let mut text = String::new();
            theirs.read_to_string(&mut text).unwrap();
            assert_eq!(text, read);
            pty.resize(Size::new(stacyvm_guest::proto::PtySize { rows: 1, cols: 1 }).unwrap()).unwrap();
            assert_eq!(rustix::io::ioctl_fionread(&theirs).unwrap(), 0);
        }
    }

    #[tokio::test]
    async fn without_stdin_a_write_is_a_mistake() {
        assert!(Stdin::new(None).write(0, b"", true).await.is_err());
    }
}
