//! Stdin of a process: bounded, acknowledged writes at absolute offsets, so that a retry writes nothing twice and a process
//! that does not read holds up nobody.
//!
//! A terminal is never at its end: closing it would hang it up. There the end is typed, as a person does it.

use crate::fail::{Fail, Result};
use rustix::termios::{LocalModes, SpecialCodeIndex};
use stacyvm_guest::proto::{StdinReply, StdinRequest};
use std::{
    collections::VecDeque,
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

/// Longest name of a writer, in bytes.
const WRITER: usize = 64;
/// Writers that are remembered: those that wrote last.
const WRITERS: usize = 64;

#[derive(Debug)]
struct State {
    /// `None` once closed, by either side.
    pipe: Option<std::sync::Arc<pipe::Sender>>,
    accepted: u64,
    /// How much of it came from whom; who wrote last is last.
    writers: VecDeque<(String, u64)>,
    /// The last byte accepted.
    last: Option<u8>,
    /// What of the end of input is not typed yet.
    ending: Option<Vec<u8>>,
    /// Who ended the input of a terminal last, and where in their own count.
    ended: Option<(String, u64)>,
}

impl State {
    /// Where the next byte of a writer belongs; of all together without a name.
    fn accepted_from(&self, writer: &str) -> u64 {
        match self.writers.iter().find(|(name, _)| name == writer) {
            _ if writer.is_empty() => self.accepted,
            Some((_, accepted)) => *accepted,
            None => 0,
        }
    }

    fn accept(&mut self, writer: &str, data: &[u8]) {
        self.accepted += data.len() as u64;
        self.last = data.last().copied().or(self.last);
        self.ending = None;
        if writer.is_empty() {
            return;
        }
        let known = self.writers.iter().position(|(name, _)| name == writer);
        let before = known.and_then(|at| self.writers.remove(at)).map_or(0, |(_, accepted)| accepted);
        self.writers.push_back((writer.to_owned(), before + data.len() as u64));
        if self.writers.len() > WRITERS {
            self.writers.pop_front();
        }
    }
}

impl Stdin {
    /// Stdin of a process; `None` for one that was started without.
    pub(crate) fn new(pipe: Option<pipe::Sender>) -> Self {
        let absent = pipe.is_none();
        let state = State {
            pipe: pipe.map(std::sync::Arc::new),
            accepted: 0,
            writers: VecDeque::new(),
            last: None,
            ending: None,
            ended: None,
        };
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

    fn reply(&self, writer: &str) -> StdinReply {
        let state = self.state();
        StdinReply { accepted: state.accepted_from(writer), closed: state.pipe.is_none() }
    }

    /// Writes what of the data was not accepted before, and ends the input behind it if asked to. Waits a bounded time for
    /// the process to read.
    ///
    /// # Errors
    /// `InvalidArgument` without stdin, for an offset ahead of what was accepted, for too much data or too long a name.
    pub(crate) async fn write(&self, request: &StdinRequest) -> Result<StdinReply> {
        let StdinRequest { offset, data, eof, writer, .. } = request;
        if self.absent {
            return Err(Fail::invalid("the process was started without stdin"));
        }
        if data.len() > stacyvm_guest::limits::STDIN_BYTES {
            return Err(Fail::invalid("too much stdin in one write"));
        }
        if writer.len() > WRITER {
            return Err(Fail::invalid("the name of a writer has at most 64 bytes"));
        }
        let deadline = Instant::now() + PATIENCE;
        let Ok(Ok(_turn)) = tokio::time::timeout_at(deadline, self.turn.acquire()).await else {
            return Ok(self.reply(writer));
        };
        let accepted = self.state().accepted_from(writer);
        let known = accepted
            .checked_sub(*offset)
            .ok_or_else(|| Fail::invalid(format!("stdin continues at {accepted}, not at {offset}")))?;
        let known = usize::try_from(known).unwrap_or(usize::MAX).min(data.len());
        let all = self.pass(&data[known..], deadline, |state, data| state.accept(writer, data)).await;
        if !*eof || !all {
            return Ok(self.reply(writer));
        }
        if !self.terminal {
            self.close();
            return Ok(self.reply(writer));
        }
        let ended = self.type_end(writer, deadline).await;
        let reply = self.reply(writer);
        Ok(StdinReply { closed: reply.closed || ended, ..reply })
    }

    /// Writes until all is written, it is closed or the deadline is over. Whether all is.
    async fn pass(
        &self,
        mut rest: &[u8],
        deadline: Instant,
        mut taken: impl FnMut(&mut State, &[u8]),
    ) -> bool {
        while !rest.is_empty() {
            let Some(pipe) = self.state().pipe.clone() else { return false };
            match pipe.try_write(rest) {
                Ok(written) => {
                    let (done, left) = rest.split_at(written);
                    taken(&mut self.state(), done);
                    rest = left;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if tokio::time::timeout_at(deadline, pipe.writable()).await.is_err() {
                        return false;
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // The process closed its end, or is gone.
                Err(_) => self.close(),
            }
        }
        true
    }

    /// Types the end of input, once however often a writer asks for it at one place, and goes on where it could not be typed
    /// whole. Whether it is typed.
    async fn type_end(&self, writer: &str, deadline: Instant) -> bool {
        let here = (writer.to_owned(), self.state().accepted_from(writer));
        if self.state().ended.as_ref() == Some(&here) {
            return true;
        }
        let begun = self.state().ending.clone();
        let end = begun.unwrap_or_else(|| self.end());
        self.state().ending = Some(end.clone());
        let typed = self
            .pass(&end, deadline, |state, done| {
                if let Some(ending) = &mut state.ending {
                    ending.drain(..done.len().min(ending.len()));
                }
            })
            .await;
        let mut state = self.state();
        if typed {
            state.ending = None;
            state.ended = Some(here);
            // What follows begins a line.
            state.last = None;
        }
        typed
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

    fn reply(accepted: u64, closed: bool) -> StdinReply {
        StdinReply { accepted, closed }
    }

    impl Stdin {
        async fn put(&self, writer: &str, offset: u64, data: &[u8], eof: bool) -> Result<StdinReply> {
            let (data, writer) = (data.to_vec().into(), writer.to_owned());
            self.write(&StdinRequest { offset, data, eof, writer, ..StdinRequest::default() }).await
        }
    }

    #[tokio::test]
    async fn a_retry_writes_nothing_twice() {
        let (stdin, mut reader) = pair();
        assert_eq!(stdin.put("", 0, b"hello", false).await.unwrap(), reply(5, false));
        assert_eq!(stdin.put("", 0, b"hello wor", false).await.unwrap(), reply(9, false));
        assert!(stdin.put("", 10, b"d", false).await.is_err());
        assert_eq!(stdin.put("", 9, b"ld", true).await.unwrap(), reply(11, true));
        assert_eq!(stdin.put("", 9, b"ld", true).await.unwrap(), reply(11, true));
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
            offset = stdin.put("", offset, &data, false).await.unwrap().accepted;
        }
        // With eof, which must wait for the data before it.
        assert_eq!(stdin.put("", offset, b"x", true).await.unwrap(), reply(capacity, false));
        drop(reader);
        assert_eq!(stdin.put("", offset, b"x", false).await.unwrap(), reply(capacity, true));
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
            assert_eq!(stdin.put("", 0, typed.as_bytes(), true).await.unwrap(), end, "{typed:?}");
            // A retry types nothing more.
            assert_eq!(stdin.put("", 0, typed.as_bytes(), true).await.unwrap(), end);
            let mut text = String::new();
            theirs.read_to_string(&mut text).unwrap();
            assert_eq!(text, read);
            pty.resize(Size::new(stacyvm_guest::proto::PtySize { rows: 1, cols: 1 }).unwrap()).unwrap();
            assert_eq!(rustix::io::ioctl_fionread(&theirs).unwrap(), 0);
        }
    }

    #[tokio::test]
    async fn of_several_writers_none_loses_a_byte_to_another() {
        let (stdin, mut reader) = pair();
        assert_eq!(stdin.put("a", 0, b"one ", false).await.unwrap(), reply(4, false));
        assert_eq!(stdin.put("b", 0, b"two ", false).await.unwrap(), reply(4, false));
        assert_eq!(stdin.put("a", 4, b"three ", false).await.unwrap(), reply(10, false));
        // Said again, each by its own count.
        assert_eq!(stdin.put("b", 0, b"two four", false).await.unwrap(), reply(8, false));
        assert!(stdin.put("c", 1, b"x", false).await.is_err());
        assert_eq!(stdin.put("", 18, b"!", true).await.unwrap(), reply(19, true));
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "one two three four!");
        assert!(stdin.put(&"w".repeat(65), 0, b"", false).await.is_err());
    }

    #[tokio::test]
    async fn writers_are_remembered_as_long_as_there_is_room() {
        let (stdin, _reader) = pair();
        for number in 0..WRITERS + 1 {
            stdin.put(&format!("w{number}"), 0, b"x", false).await.unwrap();
        }
        assert_eq!(stdin.put("w1", 0, b"x", false).await.unwrap(), reply(1, false));
        assert_eq!(stdin.state().writers.len(), WRITERS);
        assert_eq!(stdin.status(), (true, WRITERS as u64 + 1));
    }

    #[tokio::test]
    async fn a_terminal_takes_more_behind_an_end_of_input() {
        let (stdin, _pty, mut theirs) = terminal();
        let mut read = || {
            let mut text = String::new();
            theirs.read_to_string(&mut text).unwrap();
            text
        };
        for (offset, text) in [(0, "one\n"), (4, "two"), (7, "")] {
            // The last one is another wish at the place of the one before, by somebody else.
            let writer = if text.is_empty() { "other" } else { "" };
            let at = if text.is_empty() { 0 } else { offset };
            let ended = stdin.put(writer, at, text.as_bytes(), true).await.unwrap();
            assert!(ended.closed && stdin.status().0, "{text:?}: {ended:?}");
            assert_eq!(read(), text);
        }
    }

    #[tokio::test]
    async fn an_end_that_does_not_fit_is_typed_when_it_does() {
        let (stdin, _pty, mut theirs) = terminal();
        let mut modes = rustix::termios::tcgetattr(&theirs).unwrap();
        modes.make_raw();
        rustix::termios::tcsetattr(&theirs, rustix::termios::OptionalActions::Now, &modes).unwrap();
        let (mut offset, data) = (0, vec![b'x'; 64 << 10]);
        loop {
            let taken = stdin.put("", offset, &data, false).await.unwrap().accepted;
            if taken == offset {
                break;
            }
            offset = taken;
        }
        assert_eq!(stdin.put("", offset, b"", true).await.unwrap(), reply(offset, false));
        let reading = std::thread::spawn(move || {
            let mut all = vec![0; usize::try_from(offset).unwrap() + 1];
            theirs.read_exact(&mut all).unwrap();
            all.pop()
        });
        while !stdin.put("", offset, b"", true).await.unwrap().closed {}
        assert_eq!(reading.join().unwrap(), Some(4));
    }

    #[tokio::test]
    async fn without_stdin_a_write_is_a_mistake() {
        assert!(Stdin::new(None).put("", 0, b"", true).await.is_err());
    }
}
