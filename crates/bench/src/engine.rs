//! A Docker Engine as its API shows it to a program. It is asked by the same HTTP client as our server, with connections
//! kept.

use crate::{context::IMAGE, rivals};
use anyhow::{Context, Result, ensure};
use reqwest::{Client, Url};
use serde_json::{Value, json};
use std::{
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

/// Name the daemon, the first one that is set; without them it is the usual one.
const VARIABLES: [&str; 2] = ["STACYVM_TEST_DOCKER_HOST", "DOCKER_HOST"];
/// The usual one.
const USUAL: &str = "unix:///var/run/docker.sock";

/// The daemon that scenarios may use.
pub(crate) struct Engine {
    http: Client,
    address: String,
    info: Value,
    has_image: bool,
}

impl Engine {
    /// The daemon that [`VARIABLES`] name.
    ///
    /// # Errors
    /// Why there is none.
    pub(crate) async fn find() -> Result<Self> {
        let named = VARIABLES.iter().filter_map(|name| std::env::var(name).ok());
        let address = named.into_iter().find(|address| !address.is_empty());
        let address = address.unwrap_or_else(|| USUAL.to_owned());
        let socket = address.strip_prefix("unix://").with_context(|| format!("{address} is no socket"))?;
        ensure!(Path::new(socket).exists(), "no Docker Engine: {socket} is not there");
        let http = Client::builder().unix_socket(socket).timeout(Duration::from_secs(60)).build()?;
        let mut engine = Self { http, address, info: Value::Null, has_image: false };
        engine.info = engine.get(at("/info")?).await.context("the Docker Engine does not answer")?;
        let image = engine.http.get(at(&format!("/images/{IMAGE}/json"))?).send().await?;
        engine.has_image = image.status().is_success();
        Ok(engine)
    }

    /// What a server of ours has to know to use it.
    pub(crate) fn settings(&self) -> Vec<(&str, &str)> {
        vec![
            ("STACYVM_PROVIDERS_DOCKER_SOCKET", &self.address),
            ("STACYVM_PROVIDERS_DOCKER_NETWORK_MODE", "none"),
            ("STACYVM_PROVIDERS_DOCKER_ALLOWED_RUNTIMES", "runc,runsc"),
        ]
    }

    /// Why sandboxes cannot be made with this runtime.
    pub(crate) fn why_not(&self, runtime: &str) -> Option<String> {
        if self.info["Runtimes"][runtime].is_null() {
            return Some(format!("the Docker Engine has no runtime {runtime}"));
        }
        (!self.has_image).then(|| format!("the Docker Engine has no {IMAGE}: docker pull {IMAGE}"))
    }

    /// What it says of itself.
    pub(crate) fn info(&self) -> &Value {
        &self.info
    }

    /// `docker` for this daemon.
    pub(crate) fn cli(&self, arguments: &[&str]) -> Command {
        let mut docker = rivals::command("docker");
        docker.args(["--host", &self.address]).args(arguments);
        docker
    }

    /// Runs a command in a container to its end, as a program does that wants its output and its exit code.
    pub(crate) async fn exec(&self, container: &str, command: &[&str]) -> Result<()> {
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
    pub(crate) async fn see_gone(&self, container: &str) -> Result<()> {
        let (start, address) = (Instant::now(), at(&format!("/containers/{container}/json"))?);
        while self.http.get(address.clone()).send().await?.status() != 404 {
            ensure!(start.elapsed().as_secs() < 60, "the container {container} stays");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    /// Removes every container and volume of an installation.
    pub(crate) async fn clear(&self, installation: &str) -> Result<()> {
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
