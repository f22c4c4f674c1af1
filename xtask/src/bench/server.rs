//! The server under measurement, and the few calls that scenarios need. Plain HTTP on purpose: what is measured is what
//! any client would see.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::path::Path;

/// A server that is as quiet as it would be in production.
pub(super) struct Server(pub(super) stacyvm_testkit::Server);

impl Server {
    /// Starts one with the native runtime and waits until it is ready.
    pub(super) async fn start(binary: &Path) -> Result<Self> {
        Self::start_with(binary, &[("STACYVM_PROVIDERS_DEFAULT", "native")]).await
    }

    /// Starts one with these settings and waits until it is ready.
    pub(super) async fn start_with(binary: &Path, settings: &[(&str, &str)]) -> Result<Self> {
        let environment = [&[("STACYVM_LOGGING_LEVEL", "warn")], settings].concat();
        Ok(Self(stacyvm_testkit::Server::start_binary(binary, &environment).await?))
    }

    /// Creates a sandbox with the default limits on memory, processors and processes.
    pub(super) async fn create(&self) -> Result<String> {
        self.create_from(&json!({"image": "host", "ttl": "30m"})).await
    }

    /// Creates the sandbox that this body asks for.
    pub(super) async fn create_from(&self, body: &Value) -> Result<String> {
        let reply = self.0.post("/sandboxes", body).await?;
        Ok(reply["id"].as_str().context("no id")?.to_owned())
    }

    /// Runs a command to its end and returns its stdout.
    pub(super) async fn exec(&self, id: &str, argv: &[&str]) -> Result<String> {
        let body = json!({"command": argv[0], "args": &argv[1..], "mode": "argv"});
        let reply = self.0.post(&format!("/sandboxes/{id}/exec"), &body).await?;
        ensure!(reply["exit_code"] == 0, "{argv:?}: {reply}");
        Ok(reply["stdout"].as_str().unwrap_or_default().to_owned())
    }

    /// Destroys a sandbox.
    pub(super) async fn destroy(&self, id: &str) -> Result<()> {
        self.0.delete(&format!("/sandboxes/{id}")).await.map(drop)
    }
}
