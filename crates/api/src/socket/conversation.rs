//! One conversation, from the first message to the close.

use super::{
    DONE, FAILED, INVALID, RESTART, close, message,
    stdin::{Part, Stdin},
};
use crate::{error::ApiError, place::Place, records::Records};
use axum::extract::ws::{CloseCode, Message, WebSocket};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use futures::{SinkExt, StreamExt, stream::SplitSink};
use serde_json::json;
use stacyvm_engine::Engine;
use stacyvm_provider::Signal;
use stacyvm_types::{Encoding, ErrorCode, SocketRecord, SocketRequest, SocketStarted, SocketStdin};
use std::{
    convert::Infallible,
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;

/// Longest wait for the answer to a close.
const GOODBYE: Duration = Duration::from_secs(5);
/// Answers that wait to be sent.
const REPLIES: usize = 16;
/// Bytes of stdin that wait for the process to read, at most. More of them are refused, as what else the client says must
/// be heard: a signal, above all.
const TYPED_AHEAD: usize = 4 << 20;
/// So many heartbeats without a sign of a client that is asked for one: it is gone.
const MISSED: u32 = 8;

/// Which of the two protocols is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Voice {
    /// One message in, lines of two keys out, `{"type":"done"}` last.
    Old,
    /// [`SocketRequest`] and [`SocketRecord`].
    Typed,
}

/// What a conversation is about.
pub(crate) struct Conversation {
    pub(crate) voice: Voice,
    pub(crate) engine: Engine,
    pub(crate) sandbox: String,
    pub(crate) process: SocketStarted,
    pub(crate) records: Records,
    /// Longest silence.
    pub(crate) heartbeat: Duration,
    pub(crate) stop: CancellationToken,
    /// Held until the end.
    pub(crate) place: Place,
}

/// Says why there will be no conversation, as the client expects to hear it.
pub(crate) async fn refuse(mut socket: WebSocket, voice: Voice, error: &ApiError) {
    let record = match voice {
        Voice::Old => message(&json!({ "error": error.body().message })),
        Voice::Typed => message(&SocketRecord::Error(error.body())),
    };
    let (code, reason) = match (voice, error.code()) {
        (Voice::Typed, ErrorCode::BadRequest) => (INVALID, "invalid request"),
        _ => (FAILED, "exec failed"),
    };
    let goodbye = async {
        socket.send(record).await?;
        socket.send(close(code, reason)).await?;
        // The answer to it, so that nothing that was sent is lost to a reset.
        while let Some(Ok(_)) = socket.recv().await {}
        Ok::<_, axum::Error>(())
    };
    // Whoever does not listen any more need not be told.
    let _ = tokio::time::timeout(GOODBYE, goodbye).await;
}

/// How it ended.
enum End {
    /// With the last record.
    Done,
    /// Somewhere in the output.
    Cut,
    /// The client is gone, or does not take anything any more.
    Gone,
}

impl Conversation {
    /// Carries it on to its end. If the client goes first, the guard in the records does what is to be done.
    pub(crate) async fn hold(self, socket: WebSocket) {
        let Self { voice, engine, sandbox, process, records, heartbeat, stop, place } = self;
        let (mut sink, mut stream) = socket.split();
        let (reply, replies) = mpsc::channel(REPLIES);
        let (type_in, typed) = mpsc::unbounded_channel();
        let id = process.process_id.clone();
        let stdin = Stdin::new(engine.clone(), sandbox.clone(), id, process.stdin_offset);
        let waiting = Arc::new(AtomicUsize::new(0));
        let heard = Mutex::new(Instant::now());
        let mut listener = Listener {
            voice,
            engine,
            sandbox,
            process: process.process_id.clone(),
            reply,
            type_in,
            waiting: Arc::clone(&waiting),
        };
        let typist = type_all(stdin, typed, listener.reply.clone(), waiting);
        let listen = async {
            while let Some(Ok(message)) = stream.next().await {
                *heard.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
                listener.hear(message).await;
            }
        };
        if voice == Voice::Typed && sink.send(message(&SocketRecord::Started(process))).await.is_err() {
            return;
        }
        let end = tokio::select! {
            end = speak(&mut sink, records, replies, heartbeat, &heard) => end,
            () = listen => End::Gone,
            never = typist => match never {},
        };
        let (code, reason): (CloseCode, _) = match end {
            End::Gone => return,
            _ if stop.is_cancelled() => (RESTART, "the server is stopping"),
            End::Done => (DONE, ""),
            End::Cut => (FAILED, "exec failed"),
        };
        let last = voice == Voice::Old && code == DONE;
        let goodbye = async {
            if last {
                sink.send(message(&json!({ "type": "done" }))).await?;
            }
            sink.send(close(code, reason)).await?;
            // The answer to it, so that nothing that was sent is lost to a reset.
            while let Some(Ok(_)) = stream.next().await {}
            Ok::<_, axum::Error>(())
        };
        // A client that does not answer is not waited for.
        let _ = tokio::time::timeout(GOODBYE, goodbye).await;
        drop(place);
    }
}

/// Sends records and answers as they come, and a ping into silence.
async fn speak(
    sink: &mut SplitSink<WebSocket, Message>,
    mut records: Records,
    mut replies: mpsc::Receiver<SocketRecord>,
    heartbeat: Duration,
    heard: &Mutex<Instant>,
) -> End {
    let mut silence = tokio::time::interval(heartbeat);
    silence.set_missed_tick_behavior(MissedTickBehavior::Delay);
    silence.reset();
    loop {
        let next = tokio::select! {
            Some(reply) = replies.recv() => message(&reply),
            record = records.next() => match record {
                Some(Ok(line)) => match text(line) {
                    Ok(text) => text,
                    Err(_) => return End::Cut,
                },
                Some(Err(_)) => return End::Cut,
                None => return End::Done,
            },
            // Only with nothing left to send: a client that is busy with what was sent is not asked.
            _ = silence.tick() => {
                let last = *heard.lock().unwrap_or_else(PoisonError::into_inner);
                if last.elapsed() > heartbeat * MISSED {
                    return End::Gone;
                }
                Message::Ping(Bytes::new())
            }
        };
        if sink.send(next).await.is_err() {
            return End::Gone;
        }
        silence.reset();
    }
}

/// A line as a message.
fn text(line: Bytes) -> io::Result<Message> {
    let line = match line.strip_suffix(b"\n") {
        Some(text) => line.slice_ref(text),
        None => line,
    };
    let text = axum::extract::ws::Utf8Bytes::try_from(line).map_err(io::Error::other)?;
    Ok(Message::Text(text))
}

async fn type_all(
    mut stdin: Stdin,
    mut typed: mpsc::UnboundedReceiver<Part>,
    reply: mpsc::Sender<SocketRecord>,
    waiting: Arc<AtomicUsize>,
) -> Infallible {
    while let Some(part) = typed.recv().await {
        waiting.fetch_sub(part.data.len(), Ordering::Relaxed);
        let record = match stdin.write(part).await {
            Ok(ack) => SocketRecord::Stdin(ack),
            Err(error) => SocketRecord::Error(error.body()),
        };
        if reply.send(record).await.is_err() {
            break;
        }
    }
    std::future::pending().await
}

/// Does what the client says.
struct Listener {
    voice: Voice,
    engine: Engine,
    sandbox: String,
    process: String,
    reply: mpsc::Sender<SocketRecord>,
    type_in: mpsc::UnboundedSender<Part>,
    /// Bytes on their way to the typist.
    waiting: Arc<AtomicUsize>,
}

impl Listener {
    async fn hear(&mut self, message: Message) {
        if self.voice == Voice::Old {
            // Its client has said what it had to say.
            return;
        }
        let obeyed = match message {
            Message::Text(text) => self.obey(&text).await,
            Message::Binary(data) => self.feed(Part { data, ..Part::default() }),
            Message::Ping(_) | Message::Pong(_) | Message::Close(_) => Ok(()),
        };
        if let Err(error) = obeyed {
            // Without anybody to send it, the conversation is over.
            let _ = self.reply.send(SocketRecord::Error(error.body())).await;
        }
    }

    async fn obey(&mut self, text: &str) -> Result<(), ApiError> {
        let request = serde_json::from_str(text)
            .map_err(|error| ApiError::bad_request(format!("this is no message: {error}")))?;
        match request {
            SocketRequest::Start(_) => Err(ApiError::bad_request("a process has been started already")),
            SocketRequest::Stdin(stdin) => self.feed(part(stdin)?),
            SocketRequest::Resize(size) => {
                Ok(self.engine.guest(&self.sandbox).await?.resize(&self.process, size).await?)
            }
            SocketRequest::Signal(request) => {
                let number = request.signal.number();
                let signal = number.ok_or_else(|| ApiError::bad_request("there is no such signal"))?;
                let guest = self.engine.guest(&self.sandbox).await?;
                guest.signal(&self.process, Signal(signal), request.tree).await?;
                Ok(())
            }
        }
    }

    fn feed(&mut self, part: Part) -> Result<(), ApiError> {
        let waiting = self.waiting.load(Ordering::Relaxed);
        if waiting > 0 && waiting.saturating_add(part.data.len()) > TYPED_AHEAD {
            return Err(ApiError::resource_limit(
                "the process does not read its stdin: this part was not taken; say it again behind what was",
            ));
        }
        self.waiting.fetch_add(part.data.len(), Ordering::Relaxed);
        // The typist lives as long as the conversation.
        let _ = self.type_in.send(part);
        Ok(())
    }
}

fn part(stdin: SocketStdin) -> Result<Part, ApiError> {
    let data = match stdin.encoding {
        Encoding::Utf8 => stdin.data.into_bytes(),
        Encoding::Base64 => {
            let bad = |error| ApiError::bad_request(format!("data is no base64: {error}"));
            STANDARD.decode(stdin.data).map_err(bad)?
        }
    };
    Ok(Part { data: data.into(), eof: stdin.eof, offset: stdin.offset })
}
