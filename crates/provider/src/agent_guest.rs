//! [`Guest`] over the guest protocol: the one client half for every runtime that runs our agent.
//!
//! The agent is not trusted: every call has a deadline, every answer is checked and bounded, every message that reaches
//! a user is cut and cleaned. Connections are made when first needed and made again when lost; a lost connection fails
//! the calls that were on it with `Unavailable` and no others.

mod convert;
mod files;
mod processes;
mod trees;

use crate::{
    Error, Guest, OutputStream, ProcessInfo, ProcessSpec, PtySize, ReadRange, Result, Signal, StdinAck,
    WriteFile,
    guest::{ByteStream, FileEntry},
    trees::{ChangeStream, DiskUsage, ExtractTarget, Extracted},
};
use async_trait::async_trait;
use bytes::Bytes;
pub use stacyvm_guest::host::{Duplex, Identity};
use stacyvm_guest::{
    host, limits,
    proto::{self, Role, bulk_client::BulkClient, control_client::ControlClient},
};
use std::{future::Future, sync::Arc, time::Duration};
use tonic::transport::Channel;

/// How a runtime reaches an agent: each call opens one more raw stream to it.
#[async_trait]
pub trait AgentEndpoint: Send + Sync + 'static {
    /// A fresh stream to the agent's listening socket. Called for each new connection, also after losses.
    ///
    /// # Errors
    /// `NotFound` or `Destroyed` when there is no such sandbox any more, `Unavailable` when it may come back.
    async fn dial(&self) -> Result<Box<dyn Duplex>>;

    /// Whether an idle connection is to be kept alive: whoever carries it may vanish without closing it.
    fn keeps_alive_while_idle(&self) -> bool {
        false
    }
}

/// Time for an answer that needs neither disk nor process: seconds, where the host has too much to do.
const PROMPT: Duration = Duration::from_secs(10);
/// Time for an answer that may need the disk, and for the next piece of a file.
const DISK: Duration = Duration::from_secs(60);

/// The guest of one sandbox. Clones of its channels share two connections, one for control and one for bulk.
#[derive(Clone)]
pub struct AgentGuest {
    identity: Arc<Identity>,
    control: ControlClient<Channel>,
    bulk: BulkClient<Channel>,
}

impl AgentGuest {
    /// A guest behind `endpoint`. Connects when first used; [`Guest::ping`] tells whether it answers.
    pub fn new(endpoint: Arc<dyn AgentEndpoint>, identity: Identity) -> Self {
        let caller = identity.clone();
        let idle = endpoint.keeps_alive_while_idle();
        let channel = move |role| {
            let endpoint = Arc::clone(&endpoint);
            host::channel(caller.clone(), role, idle, move || {
                let endpoint = Arc::clone(&endpoint);
                async move { endpoint.dial().await.map_err(Into::into) }
            })
        };
        let control =
            ControlClient::new(channel(Role::Control)).max_decoding_message_size(limits::MESSAGE_BYTES);
        let bulk = BulkClient::new(channel(Role::Bulk)).max_decoding_message_size(limits::MESSAGE_BYTES);
        Self { identity: Arc::new(identity), control, bulk }
    }

    /// Opens both connections, where opening one takes its time and both are about to be needed.
    ///
    /// # Errors
    /// `Unavailable` if the guest does not answer (yet); what the endpoint said.
    pub async fn open(&self) -> Result<()> {
        tokio::try_join!(self.ping(), self.stat("/", true)).map(drop)
    }

    /// Opens the connection that commands and files take, so that the first of them need not. What comes of it is seen by them.
    pub async fn warm_up(&self) {
        // There is no process of this name, and to find that out takes the agent nothing.
        let nothing = proto::AttachRequest::default();
        let _ = self.call(PROMPT, self.bulk.clone().attach(nothing)).await;
    }

    /// Runs a call under a deadline and translates what comes back.
    async fn call<T>(
        &self,
        deadline: Duration,
        call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>> + Send,
    ) -> Result<T> {
        match tokio::time::timeout(deadline, call).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(convert::error(&self.identity.sandbox_id, &status)),
            Err(_) => Err(self.silent()),
        }
    }

    fn silent(&self) -> Error {
        Error::unavailable(format!("the guest of sandbox {} does not answer", self.identity.sandbox_id))
    }

    fn broke_protocol(&self, how: &str) -> Error {
        Error::internal(format!(
            "the guest of sandbox {} broke the protocol: {how}",
            self.identity.sandbox_id
        ))
    }
}

#[async_trait]
impl Guest for AgentGuest {
    async fn ping(&self) -> Result<()> {
        let mut control = self.control.clone();
        self.call(PROMPT, control.ping(proto::PingRequest {})).await.map(drop)
    }

    async fn start(&self, spec: &ProcessSpec) -> Result<ProcessInfo> {
        self.start_process(spec).await
    }

    async fn run(&self, spec: &ProcessSpec) -> Result<(ProcessInfo, OutputStream)> {
        self.run_process(spec).await
    }

    async fn attach(&self, id: &str, offset: u64, follow: bool, pace: bool) -> Result<OutputStream> {
        self.attach_output(id, offset, follow, pace).await
    }

    async fn write_stdin_as(
        &self,
        id: &str,
        writer: &str,
        offset: u64,
        data: Bytes,
        eof: bool,
    ) -> Result<StdinAck> {
        self.send_stdin(id, writer, offset, data, eof).await
    }

    async fn resize(&self, id: &str, size: PtySize) -> Result<()> {
        self.resize_pty(id, size).await
    }

    async fn signal(&self, id: &str, signal: Signal, tree: bool) -> Result<bool> {
        let mut control = self.control.clone();
        let request = proto::SignalRequest { id: id.to_owned(), signal: signal.0, tree };
        Ok(self.call(PROMPT, control.signal(request)).await?.delivered)
    }

    async fn wait(&self, id: &str, timeout: Duration) -> Result<ProcessInfo> {
        let timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX).min(limits::WAIT_MS);
        let request = proto::WaitRequest { id: id.to_owned(), timeout_ms };
        let mut control = self.control.clone();
        let deadline = Duration::from_millis(timeout_ms) + PROMPT;
        convert::process(self.call(deadline, control.wait(request)).await?)
            .map_err(|how| self.broke_protocol(how))
    }

    async fn process(&self, id: &str) -> Result<ProcessInfo> {
        let mut control = self.control.clone();
        let request = proto::GetRequest { id: id.to_owned() };
        convert::process(self.call(PROMPT, control.get(request)).await?)
            .map_err(|how| self.broke_protocol(how))
    }

    async fn processes(&self) -> Result<Vec<ProcessInfo>> {
        let mut control = self.control.clone();
        let reply = self.call(PROMPT, control.list(proto::ListRequest {})).await?;
        let processes: Result<_, _> = reply.processes.into_iter().map(convert::process).collect();
        processes.map_err(|how| self.broke_protocol(how))
    }

    async fn logs(&self, lines: u32) -> Result<Vec<String>> {
        let mut control = self.control.clone();
        Ok(self.call(PROMPT, control.logs(proto::LogsRequest { lines })).await?.lines)
    }

    async fn write_file(&self, file: &WriteFile, content: ByteStream) -> Result<FileEntry> {
        self.upload(file, content).await
    }

    async fn read_file(&self, path: &str, range: ReadRange) -> Result<(FileEntry, ByteStream)> {
        self.download(path, range).await
    }

    async fn stat(&self, path: &str, follow: bool) -> Result<FileEntry> {
        let mut bulk = self.bulk.clone();
        let request = proto::PathRequest { path: path.to_owned(), follow };
        convert::file(self.call(DISK, bulk.stat(request)).await?).map_err(|how| self.broke_protocol(how))
    }

    async fn list_dir(&self, path: &str) -> Result<Vec<FileEntry>> {
        let mut bulk = self.bulk.clone();
        let stream = self.call(DISK, bulk.list_dir(proto::ListDirRequest { path: path.to_owned() })).await?;
        self.collect_files(stream).await
    }

    async fn glob(&self, pattern: &str) -> Result<Vec<FileEntry>> {
        let mut bulk = self.bulk.clone();
        let request = proto::GlobRequest { pattern: pattern.to_owned(), limit: files::MOST_FILES };
        let stream = self.call(DISK, bulk.glob(request)).await?;
        self.collect_files(stream).await
    }

    async fn move_file(&self, from: &str, to: &str) -> Result<()> {
        let mut bulk = self.bulk.clone();
        let request = proto::MoveRequest { from: from.to_owned(), to: to.to_owned() };
        self.call(DISK, bulk.r#move(request)).await.map(drop)
    }

    async fn chmod(&self, path: &str, mode: u32) -> Result<()> {
        let mut bulk = self.bulk.clone();
        self.call(DISK, bulk.chmod(proto::ChmodRequest { path: path.to_owned(), mode })).await.map(drop)
    }

    async fn mkdir(&self, path: &str, mode: u32, parents: bool) -> Result<()> {
        let mut bulk = self.bulk.clone();
        self.call(DISK, bulk.mkdir(proto::MkdirRequest { path: path.to_owned(), mode, parents }))
            .await
            .map(drop)
    }

    async fn remove(&self, path: &str, recursive: bool) -> Result<()> {
        let mut bulk = self.bulk.clone();
        // A tree of any size: bounded all the same, since an agent may never answer.
        let deadline = if recursive { DISK * 10 } else { DISK };
        self.call(deadline, bulk.remove(proto::RemoveRequest { path: path.to_owned(), recursive }))
            .await
            .map(drop)
    }

    async fn archive(&self, path: &str) -> Result<ByteStream> {
        self.pack(path).await
    }

    async fn extract(&self, target: &ExtractTarget, content: ByteStream) -> Result<Extracted> {
        self.unpack(target, content).await
    }

    async fn watch(&self, path: &str, recursive: bool) -> Result<ChangeStream> {
        self.watch_tree(path, recursive).await
    }

    async fn usage(&self, path: &str) -> Result<DiskUsage> {
        self.measure(path).await
    }
}
