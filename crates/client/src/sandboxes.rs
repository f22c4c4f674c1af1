//! Sandboxes: create, look, extend, pause, destroy; and commands that are waited for.

use crate::{
    client::{Client, PROMPT, SLOW},
    error::Result,
};
use reqwest::Method;
use stacyvm_types::{
    Admission, CreateSandbox, ExecRequest, ExecResult, ExtendSandbox, Pruned, Sandbox, SandboxStats,
    StatusReply, WireDuration,
};

/// How a create request is sent.
#[derive(Debug, Clone, Default)]
pub struct CreateOptions {
    /// A repeated request with the same key answers with the same sandbox.
    pub idempotency_key: Option<String>,
}

impl Client {
    /// Creates a sandbox. Lasts as long as that takes, image pull included.
    ///
    /// # Errors
    /// As the server says.
    pub async fn create(&self, sandbox: &CreateSandbox, options: &CreateOptions) -> Result<Sandbox> {
        let mut request = self.request(Method::POST, &["sandboxes"]).json(sandbox);
        if let Some(key) = &options.idempotency_key {
            request = request.header("idempotency-key", key);
        }
        self.json(request, None).await
    }

    /// Whether a sandbox could be created.
    ///
    /// # Errors
    /// As the server says.
    pub async fn admission(&self, sandbox: &CreateSandbox) -> Result<Admission> {
        self.post(&["sandboxes", "admission"], sandbox).await
    }

    /// All sandboxes that are not destroyed, newest first.
    ///
    /// # Errors
    /// As the server says.
    pub async fn list(&self) -> Result<Vec<Sandbox>> {
        self.get(&["sandboxes"]).await
    }

    /// One sandbox.
    ///
    /// # Errors
    /// Not found if there is none, or it is destroyed.
    pub async fn sandbox(&self, id: &str) -> Result<Sandbox> {
        self.get(&["sandboxes", id]).await
    }

    /// Destroys a sandbox. One that does not exist is destroyed already.
    ///
    /// # Errors
    /// As the server says.
    pub async fn destroy(&self, id: &str) -> Result<StatusReply> {
        self.json(self.request(Method::DELETE, &["sandboxes", id]), SLOW).await
    }

    /// Sets the time to live, counted from now.
    ///
    /// # Errors
    /// As the server says.
    pub async fn extend(&self, id: &str, ttl: WireDuration) -> Result<Sandbox> {
        self.post(&["sandboxes", id, "extend"], &ExtendSandbox { ttl: Some(ttl) }).await
    }

    /// Freezes a sandbox: memory and files stay, no processor time is used, commands are refused.
    ///
    /// # Errors
    /// As the server says.
    pub async fn pause(&self, id: &str) -> Result<Sandbox> {
        self.json(self.request(Method::POST, &["sandboxes", id, "pause"]), PROMPT).await
    }

    /// Lets a paused sandbox go on where it was.
    ///
    /// # Errors
    /// As the server says.
    pub async fn resume(&self, id: &str) -> Result<Sandbox> {
        self.json(self.request(Method::POST, &["sandboxes", id, "resume"]), PROMPT).await
    }

    /// Destroys what has expired.
    ///
    /// # Errors
    /// As the server says.
    pub async fn prune(&self) -> Result<Pruned> {
        self.json(self.request(Method::DELETE, &["sandboxes"]), SLOW).await
    }

    /// Runs a command and waits for it, however long that takes.
    ///
    /// # Errors
    /// As the server says; a command that fails is no error.
    pub async fn exec(&self, id: &str, request: &ExecRequest) -> Result<ExecResult> {
        let request = ExecRequest { stream: false, ..request.clone() };
        self.json(self.request(Method::POST, &["sandboxes", id, "exec"]).json(&request), None).await
    }

    /// The last `lines` lines that processes of the sandbox wrote, oldest first.
    ///
    /// # Errors
    /// As the server says.
    pub async fn logs(&self, id: &str, lines: u32) -> Result<Vec<String>> {
        let request = self.request(Method::GET, &["sandboxes", id, "logs"]).query(&[("lines", lines)]);
        self.json(request, SLOW).await
    }

    /// The last `lines` lines of the runtime's own console of the sandbox, oldest first.
    ///
    /// # Errors
    /// As the server says.
    pub async fn console(&self, id: &str, lines: u32) -> Result<Vec<String>> {
        let request = self.request(Method::GET, &["sandboxes", id, "logs"]).query(&[("lines", lines)]);
        self.json(request.query(&[("source", "console")]), PROMPT).await
    }

    /// Resource use.
    ///
    /// # Errors
    /// As the server says.
    pub async fn stats(&self, id: &str) -> Result<SandboxStats> {
        self.get(&["sandboxes", id, "stats"]).await
    }
}
