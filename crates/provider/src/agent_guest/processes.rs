//! Processes of an [`AgentGuest`]: start, attach with checked offsets, stdin.

use super::{AgentGuest, PROMPT, convert};
use crate::{
    Error, ErrorKind, Guest, OutputEvent, OutputStream, ProcessInfo, ProcessSpec, PtySize, Result, Signal,
    StdStream, StdinAck,
};
use bytes::Bytes;
use futures::{StreamExt, stream};
use prost::Message;
use stacyvm_guest::{
    limits,
    proto::{self, output_event::Event},
};
use std::time::Duration;
use tonic::Streaming;

/// Time for a start: the agent forks, the sandbox may be short of processor time.
const START: Duration = Duration::from_secs(30);
/// Most bytes that a request to start takes beyond itself where it is part of another one.
const ENVELOPE: usize = 16;

impl AgentGuest {
    pub(super) async fn start_process(&self, spec: &ProcessSpec) -> Result<ProcessInfo> {
        let request = start_request(spec)?;
        let mut control = self.control.clone();
        let reply = self.call(START, control.start(request)).await?;
        self.started(spec, reply).await
    }

    /// The process that the guest says it has started.
    async fn started(&self, spec: &ProcessSpec, reply: proto::Process) -> Result<ProcessInfo> {
        let process = convert::process(reply).map_err(|how| self.broke_protocol(how))?;
        if process.id != spec.id {
            return Err(self.broke_protocol("another process than asked for"));
        }
        if spec.pty.is_some() && process.pty.is_none() {
            // An agent from before there were terminals has started it without one.
            self.signal(&spec.id, Signal::KILL, true).await?;
            return Err(Error::unsupported(
                "this sandbox is older than terminals are in this product; make a new one",
            ));
        }
        Ok(process)
    }

    pub(super) async fn resize_pty(&self, id: &str, size: PtySize) -> Result<()> {
        let request = proto::ResizeRequest { id: id.to_owned(), size: Some(convert::size(size)) };
        let mut control = self.control.clone();
        self.call(PROMPT, control.resize(request)).await.map(drop)
    }

    pub(super) async fn run_process(&self, spec: &ProcessSpec) -> Result<(ProcessInfo, OutputStream)> {
        let request = proto::RunRequest { start: Some(start_request(spec)?), pace: true };
        let mut bulk = self.bulk.clone();
        let answer = async {
            let mut events = bulk.run(request).await?.into_inner();
            let first = events.message().await?;
            Ok(tonic::Response::new((first, events)))
        };
        let (first, events) = match self.call(START, answer).await {
            // The agent of a sandbox is as old as the sandbox. If it was the user that is not offered, it says so again.
            Err(error) if error.kind() == ErrorKind::Unsupported => {
                let process = self.start_process(spec).await?;
                return Ok((process, self.attach_output(&spec.id, 0, true, true).await?));
            }
            answer => answer?,
        };
        let Some(proto::OutputEvent { event: Some(Event::Started(process)) }) = first else {
            return Err(self.broke_protocol("output of a process that was not said to have started"));
        };
        Ok((self.started(spec, process).await?, self.checked(events, 0)))
    }

    pub(super) async fn attach_output(
        &self,
        id: &str,
        offset: u64,
        follow: bool,
        pace: bool,
    ) -> Result<OutputStream> {
        let request = proto::AttachRequest { id: id.to_owned(), offset, follow, pace };
        let mut bulk = self.bulk.clone();
        let events = self.call(PROMPT, bulk.attach(request)).await?;
        Ok(self.checked(events, offset))
    }

    /// What the guest says, as far as it keeps the promise.
    fn checked(&self, events: Streaming<proto::OutputEvent>, offset: u64) -> OutputStream {
        let state = (events, self.clone(), offset, false);
        let checked = stream::unfold(state, |(mut events, guest, expected, ended)| async move {
            if ended {
                return None;
            }
            let item = match events.message().await {
                Ok(Some(event)) => check(event, expected).map_err(|how| guest.broke_protocol(how)),
                Ok(None) => return None,
                Err(status) => Err(convert::error(&guest.identity.sandbox_id, &status)),
            };
            match item {
                Ok((event, next)) => {
                    let last = matches!(event, OutputEvent::Exit(_));
                    Some((Ok(event), (events, guest, next, last)))
                }
                Err(error) => Some((Err(error), (events, guest, expected, true))),
            }
        });
        checked.boxed()
    }

    pub(super) async fn send_stdin(
        &self,
        id: &str,
        writer: &str,
        offset: u64,
        data: Bytes,
        eof: bool,
    ) -> Result<StdinAck> {
        if data.len() > limits::STDIN_BYTES {
            return Err(Error::invalid_argument(format!(
                "at most {} bytes of stdin in one write",
                limits::STDIN_BYTES
            )));
        }
        let request = proto::StdinRequest { id: id.to_owned(), offset, data, eof, writer: writer.to_owned() };
        let mut bulk = self.bulk.clone();
        let reply = self.call(PROMPT, bulk.write_stdin(request)).await?;
        // Not compared with what was sent here: an earlier call, of an earlier control plane even, may have sent more.
        Ok(StdinAck { accepted: reply.accepted, closed: reply.closed })
    }
}

fn start_request(spec: &ProcessSpec) -> Result<proto::StartRequest> {
    let deadline_ms = spec.deadline.map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX).max(1));
    let request = proto::StartRequest {
        id: spec.id.clone(),
        argv: spec.argv.clone(),
        env: spec.env.clone().into_iter().collect(),
        cwd: spec.cwd.clone().unwrap_or_default(),
        user: spec.user.clone().unwrap_or_default(),
        stdin: spec.stdin,
        deadline_ms,
        log_bytes: spec.log_bytes.unwrap_or_default(),
        tag: spec.tag.clone(),
        pty: spec.pty.map(convert::size),
    };
    let size = request.encoded_len() + ENVELOPE;
    if size > limits::MESSAGE_BYTES {
        return Err(Error::invalid_argument(format!(
            "command and environment take {size} bytes; at most {} fit. Pass large input in a file or through stdin",
            limits::MESSAGE_BYTES
        )));
    }
    Ok(request)
}

/// The event and the offset behind it, or how it breaks the promise "every byte once, in order".
fn check(event: proto::OutputEvent, expected: u64) -> Result<(OutputEvent, u64), &'static str> {
    match event.event.ok_or("an empty event")? {
        Event::Chunk(chunk) => {
            let stream = match chunk.stream() {
                proto::Stream::Stdout => StdStream::Stdout,
                proto::Stream::Stderr => StdStream::Stderr,
                proto::Stream::Unspecified => return Err("output of no stream"),
            };
            if chunk.offset != expected || chunk.data.is_empty() {
                return Err("output out of order");
            }
            let next = expected.checked_add(chunk.data.len() as u64).ok_or("an impossible offset")?;
            Ok((OutputEvent::Chunk { stream, offset: chunk.offset, data: chunk.data }, next))
        }
        Event::Gap(gap) => {
            if gap.offset != expected || gap.length == 0 {
                return Err("a gap out of order");
            }
            let next = expected.checked_add(gap.length).ok_or("an impossible offset")?;
            Ok((OutputEvent::Gap { offset: gap.offset, length: gap.length }, next))
        }
        Event::Exit(process) => {
            let process = convert::process(process)?;
            if process.outcome.is_none() {
                return Err("an exit without an outcome");
            }
            Ok((OutputEvent::Exit(Box::new(process)), expected))
        }
        Event::Started(_) => Err("a start in the middle of output"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::output_event::Event;

    fn event(event: Event) -> proto::OutputEvent {
        proto::OutputEvent { event: Some(event) }
    }

    fn chunk(offset: u64, data: &'static [u8]) -> proto::OutputEvent {
        event(Event::Chunk(proto::OutputChunk { stream: 1, offset, data: Bytes::from_static(data) }))
    }

    #[test]
    fn every_byte_once_in_order_or_an_error() {
        let (_, next) = check(chunk(5, b"abc"), 5).unwrap();
        assert_eq!(next, 8);
        assert!(check(chunk(5, b"abc"), 6).is_err(), "repeats a byte");
        assert!(check(chunk(7, b"abc"), 6).is_err(), "skips a byte");
        assert!(check(chunk(5, b""), 5).is_err(), "could go on for ever");
        let (_, next) = check(event(Event::Gap(proto::OutputGap { offset: 8, length: 4 })), 8).unwrap();
        assert_eq!(next, 12);
        assert!(
            check(event(Event::Gap(proto::OutputGap { offset: u64::MAX, length: 4 })), u64::MAX).is_err()
        );
        assert!(check(event(Event::Exit(proto::Process::default())), 0).is_err(), "no outcome");
    }
}
