//! Output of a process as JSON objects, in each of the ways that clients read it: what is said of bytes, gaps, silence and
//! the end. How the objects travel is for others to know.

use crate::{error::ApiError, exec_guard::KillGuard, text::Utf8Decoder, wire};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use futures::StreamExt;
use serde::Serialize;
use stacyvm_provider::{OutputEvent, OutputStream, ProcessInfo, StdStream};
use stacyvm_types::{
    Encoding, OutputChunk, SocketOutput, SocketRecord, StreamChunk, StreamName, StreamRecord,
};
use std::{collections::VecDeque, io, time::Duration};
use tokio_util::sync::CancellationToken;

/// What the objects look like. Each is a line.
pub(crate) enum Format {
    /// `{"stream","data"}`.
    Simple {
        /// How `data` is spelt.
        encoding: Encoding,
        /// Named when the deadline kills the command.
        sandbox: String,
        /// Longest silence. The sign of life is an empty line, which published clients pass over.
        heartbeat: Duration,
    },
    /// [`StreamRecord`]s.
    Full {
        /// Named in the first record.
        process: String,
        /// Longest silence.
        heartbeat: Duration,
    },
    /// [`SocketRecord`]s. A connection has signs of life of its own.
    Socket {
        /// How `data` is spelt.
        encoding: Encoding,
    },
}

/// The objects, one after the other. The guard's process is killed if this is dropped before the end.
pub(crate) struct Records {
    output: OutputStream,
    lines: Lines,
    guard: Option<KillGuard>,
    stop: CancellationToken,
}

impl Records {
    pub(crate) fn new(
        output: OutputStream,
        format: Format,
        guard: Option<KillGuard>,
        stop: CancellationToken,
    ) -> Self {
        let mut lines =
            Lines { lines: VecDeque::new(), format, text: Default::default(), gaps: false, ending: None };
        if let Format::Full { process, .. } = &lines.format {
            let record = StreamRecord::Start { process_id: process.clone() };
            lines.push(&record);
        }
        Self { output, lines, guard, stop }
    }

    /// The next one with the end of its line; `None` behind the last; an error where it was cut. Dropping the future loses
    /// nothing.
    pub(crate) async fn next(&mut self) -> Option<io::Result<Bytes>> {
        loop {
            if let Some(line) = self.lines.lines.pop_front() {
                return Some(Ok(line));
            }
            match self.lines.ending.take() {
                Some(Ending::Well) => {
                    self.lines.ending = Some(Ending::Well);
                    return None;
                }
                Some(Ending::Cut) => {
                    self.lines.ending = Some(Ending::Well);
                    return Some(Err(io::Error::other("the output stream was cut")));
                }
                None => {}
            }
            let heartbeat = match self.lines.format {
                Format::Full { heartbeat, .. } | Format::Simple { heartbeat, .. } => heartbeat,
                Format::Socket { .. } => Duration::MAX,
            };
            tokio::select! {
                biased;
                // First, or a command that never falls silent would never be noticed to outlast the server.
                () = self.stop.cancelled() => {
                    self.lines.broken(&ApiError::unavailable("the server is stopping; attach again at the next offset"));
                }
                event = self.output.next() => self.take(event),
                () = tokio::time::sleep(heartbeat), if heartbeat != Duration::MAX => self.lines.heartbeat(),
            }
        }
    }

    fn take(&mut self, event: Option<stacyvm_provider::Result<OutputEvent>>) {
        match event {
            Some(Ok(OutputEvent::Chunk { stream, offset, data })) => self.lines.chunk(stream, offset, &data),
            Some(Ok(OutputEvent::Gap { offset, length })) => self.lines.gap(offset, length),
            Some(Ok(OutputEvent::Exit(info))) => {
                self.lines.exit(&info);
                self.disarm();
            }
            Some(Err(error)) => {
                self.lines.broken(&ApiError::from(error));
                // Who knows the process and where its output stopped can attach again.
                if !matches!(self.lines.format, Format::Simple { .. }) {
                    self.disarm();
                }
            }
            // Without following, the end of what is there.
            None => {
                self.lines.ending = Some(Ending::Well);
                self.disarm();
            }
        }
    }

    fn disarm(&mut self) {
        if let Some(guard) = self.guard.take() {
            guard.disarm();
        }
    }
}

enum Ending {
    Well,
    Cut,
}

/// Lines that wait to be sent, and what is needed to make the next ones.
struct Lines {
    lines: VecDeque<Bytes>,
    format: Format,
    text: [Utf8Decoder; 2],
    gaps: bool,
    ending: Option<Ending>,
}

impl Lines {
    fn push<T: Serialize>(&mut self, record: &T) {
        match serde_json::to_vec(record) {
            Ok(mut line) => {
                line.push(b'\n');
                self.lines.push_back(line.into());
            }
            Err(error) => {
                tracing::error!(%error, "an output record could not be written as JSON");
                self.ending = Some(Ending::Cut);
            }
        }
    }

    fn heartbeat(&mut self) {
        match self.format {
            Format::Full { .. } => self.push(&StreamRecord::Heartbeat),
            Format::Simple { .. } => self.lines.push_back(Bytes::from_static(b"\n")),
            Format::Socket { .. } => {}
        }
    }

    fn chunk(&mut self, stream: StdStream, offset: u64, data: &[u8]) {
        match self.format {
            Format::Full { .. } => {
                let chunk = OutputChunk { offset, data: STANDARD.encode(data) };
                self.push(&match stream {
                    StdStream::Stdout => StreamRecord::Stdout(chunk),
                    StdStream::Stderr => StreamRecord::Stderr(chunk),
                });
            }
            Format::Simple { encoding, .. } | Format::Socket { encoding } => {
                let text = match encoding {
                    Encoding::Base64 => STANDARD.encode(data),
                    Encoding::Utf8 => self.text[index(stream)].push(data),
                };
                self.say(stream, offset, text);
            }
        }
    }

    fn say(&mut self, stream: StdStream, offset: u64, data: String) {
        if data.is_empty() {
            return;
        }
        match (&self.format, stream) {
            (Format::Socket { .. }, StdStream::Stdout) => {
                self.push(&SocketRecord::Stdout(SocketOutput { offset, data }));
            }
            (Format::Socket { .. }, StdStream::Stderr) => {
                self.push(&SocketRecord::Stderr(SocketOutput { offset, data }));
            }
            (_, StdStream::Stdout) => self.push(&StreamChunk { stream: StreamName::Stdout, data }),
            (_, StdStream::Stderr) => self.push(&StreamChunk { stream: StreamName::Stderr, data }),
        }
    }

    fn gap(&mut self, offset: u64, length: u64) {
        self.gaps = true;
        match self.format {
            Format::Full { .. } => self.push(&StreamRecord::Gap { offset, length }),
            Format::Socket { .. } => self.push(&SocketRecord::Gap { offset, length }),
            Format::Simple { .. } => self.notice(&format!("{length} bytes of output were lost here")),
        }
    }

    fn exit(&mut self, info: &ProcessInfo) {
        match &self.format {
            Format::Full { .. } => self.push(&StreamRecord::Exit(wire::exit(info, self.gaps))),
            Format::Simple { sandbox, .. } => {
                let timeout = format!("exec timeout: {sandbox}");
                self.rest(info.output_end);
                if info.timed_out {
                    self.notice(&timeout);
                }
            }
            Format::Socket { .. } => {
                self.rest(info.output_end);
                self.push(&SocketRecord::Exit(wire::exit(info, self.gaps)));
            }
        }
        self.ending.get_or_insert(Ending::Well);
    }

    /// What was held back for the rest of a character.
    fn rest(&mut self, end: u64) {
        for stream in [StdStream::Stdout, StdStream::Stderr] {
            let text = self.text[index(stream)].finish();
            self.say(stream, end, text);
        }
    }

    /// A sentence of ours among the output of the command.
    fn notice(&mut self, text: &str) {
        let data = match self.format {
            Format::Simple { encoding: Encoding::Base64, .. } => STANDARD.encode(text),
            _ => text.to_owned(),
        };
        self.say(StdStream::Stderr, 0, data);
    }

    fn broken(&mut self, error: &ApiError) {
        match self.format {
            Format::Full { .. } => {
                self.push(&StreamRecord::Error(error.body()));
                self.ending.get_or_insert(Ending::Well);
            }
            Format::Socket { .. } => {
                self.push(&SocketRecord::Error(error.body()));
                self.ending.get_or_insert(Ending::Well);
            }
            Format::Simple { .. } => self.ending = Some(Ending::Cut),
        }
    }
}

fn index(stream: StdStream) -> usize {
    match stream {
        StdStream::Stdout => 0,
        StdStream::Stderr => 1,
    }
}
