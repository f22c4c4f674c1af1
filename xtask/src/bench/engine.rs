//! A Docker Engine as its API shows it to a program. It is asked by the same HTTP client as our server, with connections
//! kept.

use super::rivals;
use anyhow::{Context, Result, ensure};
use reqwest::{Client, Url};
use serde_json::{Value, json};
use std::{
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// Names the daemon.
const VARIABLE: &str = "STACYVM_TEST_DOCKER_HOST";

/// The daemon that scenarios may use.
pub(super) struct Engine {
    http: Client,
    address: String,
    runtimes: Vec<String>,
}

impl Engine {
    /// The daemon that [`VARIABLE`] names.
    ///
    /// # Errors
    /// Why there is none.
    pub(super) async fn find() -> Result<Self> {
        let address = std::env::var(VARIABLE).ok().filter(|address| !address.is_empty());
        let address = address.with_context(|| {
            format!("no Docker Engine: {VARIABLE} is not set, see scripts/setup-test-host.sh")
        })?;
        let socket = address.strip_prefix("unix://").with_context(|| format!("{address} is no socket"))?;
        let http = Client::builder().unix_socket(socket).timeout(Duration::from_secs(60)).build()?;
        let mut engine = Self { http, address, runtimes: Vec::new() };
        let info = engine.get(at("/info")?).await.context("the Docker Engine does not answer")?;
        let runtimes = info["Runtimes"].as_object().into_iter().flatten();
        engine.runtimes = runtimes.map(|(name, _)| name.clone()).collect();
        Ok(engine)
    }

    /// Where it is.
    pub(super) fn address(&self) -> &str {
        &self.address
    }

    /// Whether it has a runtime of this name.
    pub(super) fn has(&self, runtime: &str) -> bool {
        self.runtimes.iter().any(|name| name == runtime)
    }

    /// `docker` for this daemon, if it is here.
    pub(super) fn cli(&self, arguments: &[&str]) -> Option<Command> {
        rivals::present("docker").then(|| {
            let mut docker = Command::new("docker");
            docker.args(["--host", &self.address]).args(arguments).stdin(Stdio::null());
            docker
        })
    }

    /// Runs a command in a container to its end, as a program does that wants its output and its exit code.
    pub(super) async fn exec(&self, container: &str, command: &[&str]) -> Result<()> {
        let body = json!({"AttachStdout": true, "AttachStderr": true, "Cmd": command});
        let made = self.post(&format!("/containers/{container}/exec"), &body).await?;
        let made: Value = serde_json::from_slice(&made)?;
        let exec = made["Id"].as_str().context("no id")?;
        let output =
            self.post(&format!("/exec/{exec}/start"), &json!({"Detach": false, "Tty": false})).await?;
        let ended = self.get(at(&format!("/exec/{exec}/json"))?).await?;
        ensure!(ended["ExitCode"] == 0, "{command:?}: {ended}: {}", String::from_utf8_lossy(&output));
        Ok(())
    }

    /// Waits until a container is gone.
    pub(super) async fn see_gone(&self, container: &str) -> Result<()> {
        let (start, address) = (Instant::now(), at(&format!("/containers/{container}/json"))?);
        while self.http.get(address.clone()).send().await?.status() != 404 {
            ensure!(start.elapsed().as_secs() < 60, "the container {container} stays");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    /// Removes every container and volume of an installation.
    pub(super) async fn clear(&self, installation: &str) -> Result<()> {
        let filters = json!({"label": [format!("stacyvm.installation={installation}")]}).to_string();
        let mut containers = at("/containers/json?all=1")?;
        containers.query_pairs_mut().append_pair("filters", &filters);
        for entry in self.get(containers).await?.as_array().into_iter().flatten() {
            let id = entry["Id"].as_str().context("no id")?;
            self.http.delete(at(&format!("/containers/{id}?force=1&v=1"))?).send().await?;
            self.see_gone(id).await?;
        }
        let mut volumes = at("/volumes")?;
        volumes.query_pairs_mut().append_pair("filters", &filters);
        for entry in self.get(volumes).await?["Volumes"].as_array().into_iter().flatten() {
            let name = entry["Name"].as_str().context("no name")?;
            self.http.delete(at(&format!("/volumes/{name}"))?).send().await?.error_for_status()?;
        }
        Ok(())
    }

    async fn get(&self, address: Url) -> Result<Value> {
        Ok(self.http.get(address).send().await?.error_for_status()?.json().await?)
    }

    async fn post(&self, path: &str, body: &Value) -> Result<bytes::Bytes> {
        let reply = self.http.post(at(path)?).json(body).send().await?;
        let (status, answer) = (reply.status(), reply.bytes().await?);
        ensure!(status.is_success(), "{path}: {status}: {}", String::from_utf8_lossy(&answer));
        Ok(answer)
    }
}

fn at(path: &str) -> Result<Url> {
    Ok(Url::parse(&format!("http://docker{path}"))?)
}
