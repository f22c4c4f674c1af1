//! The server under measurement, and the few calls that scenarios need. Plain HTTP on purpose: what is measured is what
//! any client would see.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::{
    fs::File,
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// `stacyvm serve` with a data directory of its own, killed and removed on drop.
pub struct Server {
    child: Child,
    port: u16,
    data: tempfile::TempDir,
    binary: std::path::PathBuf,
    /// Keeps its connections open, as a client library would.
    pub http: reqwest::Client,
}

impl Server {
    /// Starts it and waits until it is ready.
    pub async fn start(binary: &Path) -> Result<Self> {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let data = tempfile::Builder::new().prefix("stacyvm-bench-").tempdir()?;
        let child = launch(binary, data.path(), port)?;
        let http = reqwest::Client::builder().build()?;
        let server = Self { child, port, data, binary: binary.to_owned(), http };
        server.ready().await?;
        Ok(server)
    }

    /// Kills the server as `kill -9` would and starts it again; returns when the API answers.
    pub async fn kill_and_restart(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        self.child = launch(&self.binary, self.data.path(), self.port)?;
        self.ready().await
    }

    async fn ready(&self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(30);
        while Instant::now() < deadline {
            if let Ok(reply) = self.http.get(self.url("/ready")).send().await
                && reply.status().is_success()
            {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let log = std::fs::read_to_string(self.data.path().join("server.log")).unwrap_or_default();
        anyhow::bail!("the server did not become ready:\n{log}")
    }

    /// Address of a route below `/api/v1`.
    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}/api/v1{path}", self.port)
    }

    /// Process id, for memory readings.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Creates a sandbox; `limits` false: without memory and processor limits.
    pub async fn create(&self, limits: bool) -> Result<String> {
        let mut body = json!({"image": "host", "ttl": "30m"});
        if !limits {
            body["memory_mb"] = json!(0);
            body["vcpus"] = json!(0);
        }
        let reply: Value = self.post("/sandboxes", &body).await?;
        Ok(reply["id"].as_str().context("no id")?.to_owned())
    }

    /// Runs a command to its end and returns its stdout.
    pub async fn exec(&self, id: &str, argv: &[&str]) -> Result<String> {
        let body = json!({"command": argv[0], "args": &argv[1..], "mode": "argv"});
        let reply = self.post(&format!("/sandboxes/{id}/exec"), &body).await?;
        ensure!(reply["exit_code"] == 0, "{argv:?}: {reply}");
        Ok(reply["stdout"].as_str().unwrap_or_default().to_owned())
    }

    /// Destroys a sandbox.
    pub async fn destroy(&self, id: &str) -> Result<()> {
        let reply = self.http.delete(self.url(&format!("/sandboxes/{id}"))).send().await?;
        ensure!(reply.status().is_success(), "destroy: {}", reply.text().await?);
        Ok(())
    }

    /// Posts JSON and reads JSON.
    pub async fn post(&self, path: &str, body: &Value) -> Result<Value> {
        let reply = self.http.post(self.url(path)).json(body).send().await?;
        let status = reply.status();
        let text = reply.text().await?;
        ensure!(status.is_success(), "{path}: {status} {text}");
        Ok(serde_json::from_str(&text)?)
    }

    /// All sandboxes.
    pub async fn list(&self) -> Result<Vec<Value>> {
        let reply = self.http.get(self.url("/sandboxes")).send().await?.text().await?;
        Ok(serde_json::from_str(&reply)?)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn launch(binary: &Path, data: &Path, port: u16) -> Result<Child> {
    let log = File::options().create(true).append(true).open(data.join("server.log"))?;
    Command::new(binary)
        .arg("serve")
        .current_dir(data)
        .env("HOME", data)
        .env("STACYVM_DATA_DIR", data.join("data"))
        .env("STACYVM_SERVER_HOST", "127.0.0.1")
        .env("STACYVM_SERVER_PORT", port.to_string())
        .env("STACYVM_LOGGING_LEVEL", "warn")
        .env_remove("STACYVM_API_KEY")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("cannot start {}", binary.display()))
}
