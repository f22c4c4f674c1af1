//! What end-to-end tests say: `host.spawn()`, `sandbox.exec("echo ok")`. Everything goes through the real binary, over
//! real HTTP, against a real runtime.

pub mod counters;
pub mod faults;
pub mod probe;
pub mod proxy;
pub mod tmux;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use stacyvm_conformance::{Options, Report};
use stacyvm_provider::Provider;
use stacyvm_testkit::{LeakCheck, Server, binary};
use std::{
    process::{Command, Output, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

/// Runs the conformance suite, shows its report, and keeps it under `name` for the summary at the end of `make test`.
///
/// # Errors
/// Names the promises that were broken.
pub async fn conforms(name: &str, provider: Arc<dyn Provider>, options: Options) -> Result<()> {
    let report = stacyvm_conformance::run(provider, options).await;
    println!("{report}");
    keep_report(name, &report)?;
    let (failures, left) = (report.failures(), &report.left_behind);
    ensure!(report.is_success(), "{name} broke promises: {failures:?}, left: {left:?}");
    Ok(())
}

/// Keeps a report of the suite under `name` for the summary at the end of `make test`.
///
/// # Errors
/// It cannot be written.
pub fn keep_report(name: &str, report: &Report) -> Result<()> {
    let Some(directory) = std::env::var_os("STACYVM_TEST_REPORT") else { return Ok(()) };
    let path = std::path::Path::new(&directory).join(format!("{name}.json"));
    std::fs::write(&path, serde_json::to_vec_pretty(report)?).with_context(|| path.display().to_string())
}

/// A server under test that checks, when it is finished with, that nothing of it is left on the host.
pub struct Host {
    /// The server.
    pub server: Server,
    /// Image of sandboxes that a test does not choose.
    image: String,
    leaks: LeakCheck,
}

impl Host {
    /// A server with the native runtime and a data directory of its own.
    pub async fn start() -> Result<Self> {
        Self::start_with(&[]).await
    }

    /// The same with more environment variables.
    pub async fn start_with(environment: &[(&str, &str)]) -> Result<Self> {
        Self::start_on("host", environment).await
    }

    /// The same with another image, for another provider.
    pub async fn start_on(image: &str, environment: &[(&str, &str)]) -> Result<Self> {
        let leaks = LeakCheck::before();
        let server = Server::start(environment).await?;
        Ok(Self { server, image: image.to_owned(), leaks })
    }

    /// A sandbox.
    pub async fn spawn(&self) -> Result<Sandbox<'_>> {
        self.spawn_as(&self.request()).await
    }

    /// What [`Host::spawn`] asks for.
    pub fn request(&self) -> Value {
        json!({"image": self.image, "ttl": "10m"})
    }

    /// A sandbox made to measure.
    pub async fn spawn_as(&self, request: &Value) -> Result<Sandbox<'_>> {
        let made = self.server.post("/sandboxes", request).await?;
        self.sandbox(made["id"].as_str().context("no id")?)
    }

    /// A sandbox that exists.
    pub fn sandbox(&self, id: &str) -> Result<Sandbox<'_>> {
        Ok(Sandbox { server: &self.server, id: id.to_owned() })
    }

    /// Ids and states of all sandboxes.
    pub async fn states(&self) -> Result<Vec<(String, String)>> {
        let list = self.server.get("/sandboxes").await?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Ok(list.as_array().context("no list")?.iter().map(|s| (text(&s["id"]), text(&s["state"]))).collect())
    }

    /// Waits until `done` holds for the states of all sandboxes.
    pub async fn until(&self, what: &str, done: impl Fn(&[(String, String)]) -> bool) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let states = self.states().await?;
            if done(&states) {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "waited in vain until {what}: {states:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// `stacyvm` as a client of this server, with nothing else of this environment.
    pub fn cli_command(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = Command::new(binary()?);
        command.env_clear().args(["--server", &self.server.base_url()]).args(arguments).stdin(Stdio::null());
        Ok(command)
    }

    /// Runs it to its end.
    pub fn cli(&self, arguments: &[&str]) -> Result<Output> {
        Ok(self.cli_command(arguments)?.output()?)
    }

    /// Destroys what is left, stops the server and checks that the host is as it was.
    pub async fn finish(self) -> Result<()> {
        for (id, _) in self.states().await? {
            self.server.delete(&format!("/sandboxes/{id}")).await?;
        }
        self.server.stop().await?;
        self.leaks.check().await
    }
}

/// A sandbox under test.
pub struct Sandbox<'a> {
    server: &'a Server,
    /// Its id.
    pub id: String,
}

impl Sandbox<'_> {
    /// Route below this sandbox.
    pub fn path(&self, tail: &str) -> String {
        format!("/sandboxes/{}{tail}", self.id)
    }

    /// Runs a shell command to its end.
    pub async fn exec(&self, command: &str) -> Result<Value> {
        self.server.post(&self.path("/exec"), &json!({ "command": command })).await
    }

    /// stdout of a shell command that must succeed.
    pub async fn stdout(&self, command: &str) -> Result<String> {
        let result = self.exec(command).await?;
        ensure!(result["exit_code"] == 0, "{command}: {result}");
        Ok(result["stdout"].as_str().unwrap_or_default().to_owned())
    }

    /// Starts a shell command as a process and returns its id.
    pub async fn start(&self, command: &str, stdin: bool) -> Result<String> {
        let body = json!({"command": command, "stdin": stdin});
        let process = self.server.post(&self.path("/processes"), &body).await?;
        Ok(process["id"].as_str().context("no process id")?.to_owned())
    }

    /// Destroys it.
    pub async fn destroy(&self) -> Result<()> {
        self.server.delete(&self.path("")).await.map(drop)
    }
}
