//! An attachment that outlives its connections: when the guest is lost for a moment it is attached to again at the offset
//! behind the last byte handed out, so that a reader gets every byte once, in order, or is told which are not kept. While
//! its sandbox is paused it waits, however long that takes.
//!
//! The guest is not believed: offsets that go back, jump or overflow are cut, reported as a gap, or end the stream.

use crate::{
    core::Core,
    guard::{Backoff, guarded},
    reach::Target,
};
use futures::{StreamExt, stream};
use stacyvm_provider::{Error, ErrorKind, OutputEvent, OutputStream, Result};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

/// First and longest pause between attempts to attach again: a guest that answers is found at once, others are not pressed.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// A connection that lasted this long was a real one.
const STABLE: Duration = Duration::from_secs(1);

/// What is attached to.
#[derive(Clone)]
pub(crate) struct Attach {
    pub(crate) target: Target,
    pub(crate) process: String,
    /// First byte wanted.
    pub(crate) offset: u64,
    pub(crate) follow: bool,
    pub(crate) pace: bool,
}

/// Attaches; the stream's first connection is tried before this returns, so that an unknown process is an error here.
///
/// # Errors
/// As [`stacyvm_provider::Guest::attach`].
pub(crate) async fn attach(core: &Arc<Core>, attach: Attach) -> Result<OutputStream> {
    let mut attachment = Attachment::new(core, attach, None);
    // Nobody answers while it is paused: whoever follows begins when it goes on.
    if !attachment.waits() {
        match attachment.connect().await {
            Err(error) if is_passing(&error) && attachment.waits() => {
                attachment.lost();
            }
            result => result?,
        }
    }
    Ok(attachment.stream())
}

/// The same for who is attached already.
pub(crate) fn attached(core: &Arc<Core>, attach: Attach, output: OutputStream) -> OutputStream {
    Attachment::new(core, attach, Some(output)).stream()
}

struct Attachment {
    core: Arc<Core>,
    attach: Attach,
    /// Offset behind the last byte handed out.
    next: u64,
    inner: Option<OutputStream>,
    connected: Instant,
    /// An event that a gap was handed out in front of.
    held: Option<OutputEvent>,
    lost_since: Option<Instant>,
    backoff: Backoff,
    over: bool,
}

impl Attachment {
    fn new(core: &Arc<Core>, attach: Attach, inner: Option<OutputStream>) -> Self {
        Self {
            core: core.clone(),
            next: attach.offset,
            attach,
            inner,
            connected: Instant::now(),
            held: None,
            lost_since: None,
            backoff: Backoff::new(RETRY),
            over: false,
        }
    }

    fn stream(self) -> OutputStream {
        stream::unfold(self, |mut attachment| async move {
            let event = attachment.next().await?;
            Some((event, attachment))
        })
        .boxed()
    }

    async fn connect(&mut self) -> Result<()> {
        let Attach { target, process, follow, pace, .. } = &self.attach;
        let guest = target.guest().await?;
        let attaching = guest.attach(process, self.next, *follow, *pace);
        self.inner = Some(guarded(self.core.config.provider_deadline, attaching).await?);
        self.connected = Instant::now();
        Ok(())
    }

    async fn next(&mut self) -> Option<Result<OutputEvent>> {
        if let Some(event) = self.held.take() {
            return Some(Ok(self.hand_out(event)));
        }
        while !self.over {
            let gone = self.attach.target.handle.gone.clone();
            let Some(inner) = self.inner.as_mut() else {
                let attempt = tokio::select! {
                    biased;
                    () = gone.cancelled() => Err(self.ended()),
                    result = self.reconnect() => result,
                };
                match attempt {
                    Ok(()) => continue,
                    Err(error) => return self.end(error),
                }
            };
            let event = tokio::select! {
                // What has arrived already is handed out before the end.
                biased;
                event = inner.next() => event,
                () = gone.cancelled() => return self.end(self.ended()),
            };
            match event {
                Some(Ok(event)) => match self.place(event) {
                    Ok(Some(event)) => return Some(Ok(event)),
                    Ok(None) => {}
                    Err(error) => return self.end(error),
                },
                Some(Err(error)) if is_passing(&error) => self.lost(),
                Some(Err(error)) => return self.end(error),
                None if self.attach.follow => self.lost(),
                None => self.over = true,
            }
        }
        None
    }

    fn waits(&self) -> bool {
        self.attach.follow && self.attach.target.handle.is_paused()
    }

    /// Whether the guest has been away for longer than anybody waits.
    fn hopeless(&self) -> bool {
        let window = self.core.config.reconnect_window;
        self.lost_since.is_some_and(|since| since.elapsed() > window)
    }

    fn lost(&mut self) {
        self.inner = None;
        // A guest that takes every connection and ends it at once is as good as away; a quiet process is not.
        if self.connected.elapsed() >= STABLE {
            self.lost_since = None;
            self.backoff.reset();
        }
        self.lost_since.get_or_insert_with(Instant::now);
        self.attach.target.handle.check();
    }

    /// One more attempt, after a pause; an error ends the stream.
    async fn reconnect(&mut self) -> Result<()> {
        if self.attach.target.handle.is_paused() {
            if !self.attach.target.handle.awake().await {
                return Err(Error::unavailable("the server is stopping"));
            }
            // That its guest was frozen does not mean that it is away. Soon: a process waits for its reader, but not long.
            self.lost_since = Some(Instant::now());
            self.backoff.reset();
        }
        self.lost_since.get_or_insert_with(Instant::now);
        if self.hopeless() {
            let id = &self.attach.target.id;
            return Err(Error::unavailable(format!("the guest of sandbox {id} cannot be reached")));
        }
        tokio::time::sleep(self.backoff.pause()).await;
        match self.connect().await {
            Err(error) if is_passing(&error) => Ok(()),
            result => result,
        }
    }

    /// Puts an event in its place behind what was handed out: `None` if it holds nothing new.
    fn place(&mut self, event: OutputEvent) -> Result<Option<OutputEvent>> {
        let (offset, length) = match &event {
            OutputEvent::Exit(_) => {
                self.over = true;
                return Ok(Some(event));
            }
            OutputEvent::Chunk { offset, data, .. } => (*offset, data.len() as u64),
            OutputEvent::Gap { offset, length } => (*offset, *length),
        };
        let Some(end) = offset.checked_add(length) else {
            return Err(Error::internal("the guest sent an impossible output offset"));
        };
        if end <= self.next {
            return Ok(None);
        }
        self.lost_since = None;
        self.backoff.reset();
        let event = match event {
            OutputEvent::Chunk { stream, data, .. } if offset < self.next => {
                let known = usize::try_from(self.next - offset).unwrap_or(usize::MAX).min(data.len());
                OutputEvent::Chunk { stream, offset: self.next, data: data.slice(known..) }
            }
            OutputEvent::Chunk { .. } if offset > self.next => {
                let gap = OutputEvent::Gap { offset: self.next, length: offset - self.next };
                self.held = Some(event);
                gap
            }
            OutputEvent::Gap { .. } => OutputEvent::Gap { offset: self.next, length: end - self.next },
            other => other,
        };
        Ok(Some(self.hand_out(event)))
    }

    fn hand_out(&mut self, event: OutputEvent) -> OutputEvent {
        match &event {
            OutputEvent::Chunk { offset, data, .. } => self.next = offset.saturating_add(data.len() as u64),
            OutputEvent::Gap { offset, length } => self.next = offset.saturating_add(*length),
            OutputEvent::Exit(_) => {}
        }
        event
    }

    fn end(&mut self, error: Error) -> Option<Result<OutputEvent>> {
        self.over = true;
        self.inner = None;
        Some(Err(error))
    }

    /// The sandbox itself is over.
    fn ended(&self) -> Error {
        let target = &self.attach.target;
        let message = target
            .refusal()
            .map_or_else(|| format!("sandbox destroyed: {}", target.id), |e| e.message().into());
        Error::destroyed(message)
    }
}

/// Whether the connection failed rather than the attachment.
fn is_passing(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Timeout)
}
