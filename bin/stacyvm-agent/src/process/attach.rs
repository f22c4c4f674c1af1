//! One reader of a process's output. It takes a piece from the log whenever its connection has room, so a reader that does
//! not read costs nothing but its place.

use super::{Process, log::Piece, log::Source};
use crate::fail::{Fail, Result};
use futures::Stream;
use stacyvm_guest::{
    limits,
    proto::{self, OutputEvent, output_event::Event},
};
use std::sync::Arc;
use tokio::sync::watch;

/// A reader that the process waits for, as long as it exists.
#[derive(Debug)]
struct Pacer {
    process: Arc<Process>,
    number: u64,
}

impl Pacer {
    fn new(process: &Arc<Process>, position: u64) -> Self {
        let number = process.update(|state| {
            // It is the one that was waited for, or as good.
            state.release_held();
            state.pace(position)
        });
        Self { process: Arc::clone(process), number }
    }

    fn advance(&self, position: u64) {
        self.process.update(|state| state.pacers.insert(self.number, position));
    }
}

impl Drop for Pacer {
    fn drop(&mut self) {
        let position = self.process.update(|state| state.pacers.remove(&self.number));
        // Its connection may have been lost, or the control plane is being replaced.
        if let Some(position) = position.filter(|_| self.process.may_say_more()) {
            self.process.hold(position);
        }
    }
}

/// A reader and how far it is.
#[derive(Debug)]
struct Attachment {
    process: Arc<Process>,
    changes: watch::Receiver<()>,
    position: u64,
    /// Where to stop: what was there at first, when that is all that is wanted or the process had ended.
    until: u64,
    follow: bool,
    pacer: Option<Pacer>,
    done: bool,
}

/// Output of `process` from `request.offset` on.
///
/// # Errors
/// `InvalidArgument` for an offset that the process has not reached.
pub(crate) fn attach(
    process: Arc<Process>,
    request: &proto::AttachRequest,
) -> Result<impl Stream<Item = OutputEvent> + Send + 'static> {
    let changes = process.changed.subscribe();
    let end = process.state().log.end();
    if request.offset > end {
        return Err(Fail::invalid(format!("the output ends at {end}, before {}", request.offset)));
    }
    let pacer = request.pace.then(|| Pacer::new(&process, request.offset));
    let attachment = Attachment {
        process,
        changes,
        position: request.offset,
        until: end,
        follow: request.follow,
        pacer,
        done: false,
    };
    Ok(futures::stream::unfold(attachment, |mut attachment| async move {
        let event = attachment.next().await?;
        Some((OutputEvent { event: Some(event) }, attachment))
    }))
}

impl Attachment {
    async fn next(&mut self) -> Option<Event> {
        while !self.done {
            self.changes.borrow_and_update();
            if let Some(end) = self.end() {
                self.done = true;
                self.pacer = None;
                return end;
            }
            match self.process.read(self.position, limits::CHUNK_BYTES) {
                Piece::Gap(length) => {
                    let offset = self.position;
                    self.advance(length);
                    return Some(Event::Gap(proto::OutputGap { offset, length }));
                }
                Piece::Chunk(source, data) => {
                    let offset = self.position;
                    self.advance(data.len() as u64);
                    let stream = match source {
                        Source::Stdout => proto::Stream::Stdout,
                        Source::Stderr => proto::Stream::Stderr,
                    };
                    return Some(Event::Chunk(proto::OutputChunk { stream: stream.into(), offset, data }));
                }
                // The sender is in the process, which we hold.
                Piece::End => drop(self.changes.changed().await),
            }
        }
        None
    }

    fn advance(&mut self, length: u64) {
        self.position += length;
        if let Some(pacer) = &self.pacer {
            pacer.advance(self.position);
        }
    }

    /// The last event, or its absence, when everything wanted was delivered.
    fn end(&self) -> Option<Option<Event>> {
        if self.position < self.until {
            return None;
        }
        let settled = self.process.state().settled;
        match settled {
            Some(end) if self.position >= end => Some(Some(Event::Exit(self.process.describe()))),
            _ if !self.follow => Some(None),
            _ => None,
        }
    }
}
