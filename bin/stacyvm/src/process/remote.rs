//! A process behind the API. It survives lost connections and restarts of the server, and so does this attachment.

use super::{Attached, Control};
use crate::failure::Result;
use bytes::Bytes;
use stacyvm_client::{Attachment, Client, Error, Output};
use stacyvm_types::{Process, PtySize, StartProcess, StdinAck};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

/// How long a server that is gone is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

/// A process in a sandbox of a server.
#[derive(Debug)]
pub(crate) struct Remote {
    attachment: Attachment,
    control: RemoteControl,
}

/// A handle to it.
#[derive(Debug, Clone)]
pub(crate) struct RemoteControl {
    client: Client,
    sandbox: Arc<str>,
    process: Arc<str>,
    /// Our name where others may write to the process, too.
    writer: Arc<str>,
}

impl Remote {
    /// Starts a process under an id of ours, so that asking twice starts it once.
    ///
    /// # Errors
    /// As the server says.
    pub(crate) async fn start(client: &Client, sandbox: &str, mut spec: StartProcess) -> Result<Self, Error> {
        spec.id = Some(format!("p-{:016x}", uuid::Uuid::new_v4().as_u64_pair().0));
        let Process { id, .. } = retry(false, || client.start_process(sandbox, &spec)).await?;
        Ok(Self::attach(client, sandbox, &id, 0))
    }

    /// Attaches to a process that is there, from `offset` on.
    pub(crate) fn attach(client: &Client, sandbox: &str, process: &str, offset: u64) -> Self {
        let control = RemoteControl {
            client: client.clone(),
            sandbox: sandbox.into(),
            process: process.into(),
            writer: format!("w-{:016x}", uuid::Uuid::new_v4().as_u64_pair().0).into(),
        };
        Self { attachment: client.attach(sandbox, process, offset, PATIENCE), control }
    }
}

impl Remote {
    /// The id of the process.
    pub(crate) fn id(&self) -> &str {
        &self.control.process
    }
}

impl Attached for Remote {
    type Control = RemoteControl;

    fn control(&self) -> RemoteControl {
        self.control.clone()
    }

    async fn next(&mut self) -> Result<Output> {
        Ok(self.attachment.next().await?)
    }
}

impl Control for RemoteControl {
    async fn signal(&self, signal: i32) -> Result<()> {
        retry(true, || self.client.signal(&self.sandbox, &self.process, signal, true)).await?;
        Ok(())
    }

    async fn resize(&self, size: PtySize) -> Result<()> {
        Ok(retry(true, || self.client.resize(&self.sandbox, &self.process, size)).await?)
    }

    async fn write_stdin(&self, offset: u64, data: Bytes, eof: bool) -> Result<StdinAck> {
        let part = || (offset, data.clone(), eof);
        let write = || self.client.write_stdin(&self.sandbox, &self.process, &self.writer, part());
        Ok(retry(true, write).await?)
    }
}

/// Repeats a call that may be repeated while the server is away. A server that was not `reached` before and cannot be
/// reached now was never there.
async fn retry<T, F: Future<Output = Result<T, Error>>>(
    mut reached: bool,
    call: impl Fn() -> F,
) -> Result<T, Error> {
    let started = Instant::now();
    loop {
        let error = match call().await {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        reached |= !matches!(error, Error::Connect { .. });
        if !error.is_transient() || !reached || started.elapsed() >= PATIENCE {
            return Err(error);
        }
        tokio::time::sleep((started.elapsed() / 4).clamp(Duration::from_millis(50), Duration::from_secs(2)))
            .await;
    }
}
