//! A connection to the agent: an exec in the container whose standard streams carry it, or its socket, if that is within
//! reach.
//!
//! A bridge is disposable. When its client goes, the daemon closes its stdin and it ends; when the daemon is killed, it
//! ends by itself after a minute of silence, which is why idle connections are kept alive. A new connection is a new exec.

use crate::{
    container::{AGENT, SOCKET},
    daemon::Daemon,
    direct::{self, Outcome},
    failure::{failed, is_conflict, is_missing, words},
};
use async_trait::async_trait;
use bollard::{
    Docker as Client,
    container::LogOutput,
    errors::Error as Docker,
    exec::{StartExecOptions, StartExecResults},
    models::{ContainerStateStatusEnum, ContainerUpdateBody, ExecConfig},
    query_parameters::InspectContainerOptions,
};
use bytes::{Buf, Bytes};
use futures::{Stream, StreamExt};
use stacyvm_guest::hello::BRIDGE_GREETING;
use stacyvm_provider::{AgentEndpoint, Duplex, Error, Result, SandboxId};
use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes taken from the daemon at once.
const PIECE: usize = 64 << 10;
/// Processes that a full sandbox is lent for the time in which a bridge starts.
const LENT: i64 = 32;
/// Most of a bridge's last words that are kept, in bytes.
const WORDS: usize = 1024;

/// Dials the agent of one sandbox.
#[derive(Debug, Clone)]
pub(crate) struct BridgeEndpoint {
    pub(crate) daemon: Arc<Daemon>,
    pub(crate) id: SandboxId,
    /// Processes that the container may have, 0 without a limit.
    pub(crate) pids_limit: i64,
    /// It should be within reach without a bridge.
    pub(crate) near: bool,
}

#[async_trait]
impl AgentEndpoint for BridgeEndpoint {
    async fn dial(&self) -> Result<Box<dyn Duplex>> {
        let mut absent = false;
        if self.daemon.has_short_way() {
            match self.short_way().await {
                Outcome::Reached(stream) => return Ok(Box::new(stream)),
                Outcome::Failed => {}
                Outcome::Absent => absent = true,
            }
        }
        match self.exec().await {
            Ok(bridge) => {
                if self.near && absent {
                    self.daemon.lose_short_way();
                }
                Ok(Box::new(bridge))
            }
            // A sandbox that is full of processes must still be reached, not least to end some of them.
            Err(error) if self.pids_limit > 0 && is_full(&error) => {
                let squeezed = tokio::spawn(self.clone().squeeze_in()).await;
                let gone = |error| Error::unavailable("the server is shutting down").because(error);
                Ok(Box::new(squeezed.map_err(gone)??))
            }
            Err(error) => Err(self.explain(error)),
        }
    }

    fn keeps_alive_while_idle(&self) -> bool {
        true
    }
}

impl BridgeEndpoint {
    /// A connection without a bridge, if the sandbox runs and is within reach.
    async fn short_way(&self) -> Outcome {
        let running = async {
            let client = self.daemon.client().await.ok()?;
            let found = client.inspect_container(self.id.as_str(), None::<InspectContainerOptions>).await;
            let state = found.ok()?.state?;
            let runs = state.status == Some(ContainerStateStatusEnum::RUNNING);
            i32::try_from(state.pid?).ok().filter(|pid| runs && *pid > 0)
        };
        match running.await {
            Some(pid) => direct::dial(pid).await,
            None => Outcome::Failed,
        }
    }

    /// A bridge in a sandbox that is full of processes: it is lent some room for the time in which the bridge starts. To be
    /// seen through once begun, or the sandbox keeps what it was lent.
    async fn squeeze_in(self) -> Result<Bridge> {
        self.limit_processes(self.pids_limit + LENT).await?;
        let bridge = self.exec().await;
        self.limit_processes(self.pids_limit).await?;
        bridge.map_err(|error| self.explain(error))
    }

    async fn exec(&self) -> Result<Bridge, Docker> {
        let client =
            self.daemon.client().await.map_err(|error| Docker::IOError { err: io::Error::other(error) })?;
        let config = ExecConfig {
            attach_stdin: Some(true),
            attach_stdout: Some(true),
            attach_stderr: Some(true),
            user: Some("0:0".to_owned()),
            working_dir: Some("/".to_owned()),
            cmd: Some([AGENT, "bridge", SOCKET].map(str::to_owned).to_vec()),
            ..ExecConfig::default()
        };
        let exec = client.create_exec(self.id.as_str(), config).await?;
        let options = StartExecOptions { output_capacity: Some(PIECE), ..StartExecOptions::default() };
        match client.start_exec(&exec.id, Some(options)).await? {
            StartExecResults::Attached { output, input } => {
                let mut bridge = Bridge { output, input, rest: Bytes::new(), words: Vec::new() };
                bridge.wait_until_it_runs().await?;
                Ok(bridge)
            }
            StartExecResults::Detached => {
                Err(Docker::IOError { err: io::Error::other("the daemon detached") })
            }
        }
    }

    async fn limit_processes(&self, most: i64) -> Result<()> {
        limit_processes(self.daemon.client().await?, &self.id, most).await
    }

    fn explain(&self, error: Docker) -> Error {
        let id = &self.id;
        if is_missing(&error) {
            return Error::not_found(format!("sandbox {id} does not exist")).because(error);
        }
        if is_conflict(&error) {
            let paused = words(&error).contains("paused");
            return if paused {
                Error::unavailable(format!("sandbox {id} is paused")).because(error)
            } else {
                Error::destroyed(format!("sandbox {id} has ended")).because(error)
            };
        }
        match failed("reach into a container", error) {
            error if error.kind() == stacyvm_provider::ErrorKind::Unavailable => error,
            error => {
                Error::unavailable(format!("the agent of sandbox {id} cannot be reached")).because(error)
            }
        }
    }
}

/// Sets a container's limit of processes.
///
/// # Errors
/// The daemon's.
pub(crate) async fn limit_processes(client: &Client, id: &SandboxId, most: i64) -> Result<()> {
    let body = ContainerUpdateBody { pids_limit: Some(most), ..ContainerUpdateBody::default() };
    let updated = client.update_container(id.as_str(), body).await;
    updated.map_err(|error| failed("change a container's limit of processes", error))
}

/// Whether an exec failed because the container may have no more processes.
fn is_full(error: &Docker) -> bool {
    let said = words(error);
    said.contains("resource temporarily unavailable")
        || said.contains("cannot allocate")
        || said.contains("eagain")
}

/// The standard streams of a bridge as one stream.
struct Bridge {
    output: Pin<Box<dyn Stream<Item = Result<LogOutput, Docker>> + Send>>,
    input: Pin<Box<dyn AsyncWrite + Send>>,
    rest: Bytes,
    /// What it wrote to stderr: why it ends.
    words: Vec<u8>,
}

impl Bridge {
    /// Returns at its first byte. A bridge greets with a line as soon as it is connected, and the daemon reports a program
    /// that could not be started as output.
    async fn wait_until_it_runs(&mut self) -> Result<(), Docker> {
        let mut greeting = Vec::new();
        while !greeting.ends_with(b"\n") {
            match self.output.next().await {
                Some(Ok(LogOutput::StdOut { message })) => {
                    let end = message.iter().position(|b| *b == b'\n').map_or(message.len(), |at| at + 1);
                    greeting.extend_from_slice(&message[..end]);
                    self.rest = message.slice(end..);
                }
                Some(Ok(LogOutput::StdErr { message } | LogOutput::Console { message })) => {
                    self.hear(&message);
                }
                Some(Ok(LogOutput::StdIn { .. })) => {}
                Some(Err(error)) => return Err(error),
                None => return Err(Docker::IOError { err: self.end() }),
            }
            if greeting.len() > WORDS {
                break;
            }
        }
        if greeting == BRIDGE_GREETING {
            return Ok(());
        }
        self.hear(&greeting);
        Err(Docker::IOError { err: self.end() })
    }

    fn hear(&mut self, message: &[u8]) {
        let room = WORDS.saturating_sub(self.words.len());
        self.words.extend_from_slice(&message[..message.len().min(room)]);
    }

    fn end(&self) -> io::Error {
        let words = String::from_utf8_lossy(&self.words).trim().to_owned();
        io::Error::other(if words.is_empty() { "the bridge ended".to_owned() } else { words })
    }
}

impl AsyncRead for Bridge {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.rest.is_empty() {
            match ready!(self.output.poll_next_unpin(cx)) {
                Some(Ok(LogOutput::StdOut { message })) => self.rest = message,
                Some(Ok(LogOutput::StdErr { message } | LogOutput::Console { message })) => {
                    self.hear(&message);
                }
                Some(Ok(LogOutput::StdIn { .. })) => {}
                Some(Err(error)) => return Poll::Ready(Err(io::Error::other(error))),
                None if self.words.is_empty() => return Poll::Ready(Ok(())),
                None => return Poll::Ready(Err(self.end())),
            }
        }
        let take = self.rest.len().min(buffer.remaining());
        buffer.put_slice(&self.rest[..take]);
        self.rest.advance(take);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Bridge {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.input.as_mut().poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.input.as_mut().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.input.as_mut().poll_shutdown(cx)
    }
}
