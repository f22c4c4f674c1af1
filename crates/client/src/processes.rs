//! Processes: start, attach, feed, signal, wait. And the streamed exec, whose records are the same.

use crate::{
    client::{Client, PROMPT, SILENCE},
    error::{Error, Result},
    lines::Lines,
};
use bytes::Bytes;
use reqwest::{Method, header::CONTENT_TYPE};
use stacyvm_types::{
    ExecRequest, Process, PtySize, Records, SignalName, SignalReply, SignalRequest, StartProcess, StdinAck,
    StreamRecord,
};
use std::time::Duration;

/// Records of one connection, as they come.
#[derive(Debug)]
pub struct RecordStream {
    lines: Lines,
}

impl RecordStream {
    /// The next record, heartbeats left out; `None` when the connection ended without a last word.
    ///
    /// # Errors
    /// [`Error::Broken`], [`Error::Protocol`].
    pub async fn next(&mut self) -> Result<Option<StreamRecord>> {
        while let Some(line) = self.lines.next().await? {
            if line.is_empty() {
                continue;
            }
            let record =
                serde_json::from_slice(&line).map_err(|e| Error::Protocol(format!("{e} in a record")))?;
            if !matches!(record, StreamRecord::Heartbeat) {
                return Ok(Some(record));
            }
        }
        Ok(None)
    }
}

impl Client {
    /// Runs a command and streams its output in full records. The first record names the process.
    ///
    /// # Errors
    /// As the server says.
    pub async fn exec_stream(&self, id: &str, request: &ExecRequest) -> Result<RecordStream> {
        let request = ExecRequest { stream: true, records: Records::Full, ..request.clone() };
        let response =
            self.send(self.request(Method::POST, &["sandboxes", id, "exec"]).json(&request)).await?;
        Ok(RecordStream { lines: Lines::new(response, SILENCE) })
    }

    /// Starts a process. With an id of the caller's, a repeated request starts nothing twice.
    ///
    /// # Errors
    /// As the server says.
    pub async fn start_process(&self, id: &str, process: &StartProcess) -> Result<Process> {
        self.post(&["sandboxes", id, "processes"], process).await
    }

    /// Live and recently ended processes, oldest first.
    ///
    /// # Errors
    /// As the server says.
    pub async fn processes(&self, id: &str) -> Result<Vec<Process>> {
        self.get(&["sandboxes", id, "processes"]).await
    }

    /// One process.
    ///
    /// # Errors
    /// As the server says.
    pub async fn process(&self, id: &str, process: &str) -> Result<Process> {
        self.get(&["sandboxes", id, "processes", process]).await
    }

    /// Its output from `offset` on, over one connection; see [`Client::attach`] for what survives a lost one.
    ///
    /// # Errors
    /// As the server says.
    pub async fn output(&self, id: &str, process: &str, offset: u64) -> Result<RecordStream> {
        let request = self.request(Method::GET, &["sandboxes", id, "processes", process, "output"]);
        let request = request.query(&[("offset", offset.to_string())]);
        let response = tokio::time::timeout(PROMPT, self.send(request)).await;
        let response = response.map_err(|_| Error::Broken("no answer in time".to_owned()))??;
        Ok(RecordStream { lines: Lines::new(response, SILENCE) })
    }

    /// Writes to its stdin at the absolute position `offset`, so that a repeated write writes nothing twice. What it
    /// did not take must be sent again. With a name as `writer`, positions count what was written under it alone, so that
    /// several may write.
    ///
    /// # Errors
    /// As the server says.
    pub async fn write_stdin(
        &self,
        id: &str,
        process: &str,
        writer: &str,
        (offset, data, eof): (u64, Bytes, bool),
    ) -> Result<StdinAck> {
        let request = self
            .request(Method::POST, &["sandboxes", id, "processes", process, "stdin"])
            .query(&[("offset", offset.to_string()), ("eof", eof.to_string()), ("writer", writer.to_owned())])
            .header(CONTENT_TYPE, "application/octet-stream")
            .body(data);
        self.json(request, PROMPT).await
    }

    /// Sends a signal, with `tree` also to everything that it started. False if it had ended.
    ///
    /// # Errors
    /// As the server says.
    pub async fn signal(&self, id: &str, process: &str, signal: i32, tree: bool) -> Result<bool> {
        let request = SignalRequest { signal: SignalName::Number(signal), tree };
        let reply: SignalReply =
            self.post(&["sandboxes", id, "processes", process, "signal"], &request).await?;
        Ok(reply.delivered)
    }

    /// Gives its terminal another size.
    ///
    /// # Errors
    /// As the server says.
    pub async fn resize(&self, id: &str, process: &str, size: PtySize) -> Result<()> {
        let _: PtySize = self.post(&["sandboxes", id, "processes", process, "resize"], &size).await?;
        Ok(())
    }

    /// The process once it has ended, or as it is after `timeout` (at most 60 s).
    ///
    /// # Errors
    /// As the server says.
    pub async fn wait(&self, id: &str, process: &str, timeout: Duration) -> Result<Process> {
        let timeout = timeout.min(Duration::from_secs(60));
        let request = self
            .request(Method::GET, &["sandboxes", id, "processes", process, "wait"])
            .query(&[("timeout", stacyvm_types::WireDuration::from(timeout).to_string())]);
        self.json(request, timeout + PROMPT).await
    }
}
