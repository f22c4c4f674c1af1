//! The server under measurement, and the few calls that scenarios need: over HTTP, as any client would make them.

use crate::{
    context::{Foreign, Provider, Target},
    engine::Engine,
};
use anyhow::{Context, Result, bail, ensure};
use futures::{StreamExt, TryStreamExt, stream};
use rustix::process::{Pid, Signal, kill_process};
use stacyvm_client::{Client, CreateOptions, Options};
use stacyvm_types::{CreateSandbox, ExecRequest, ExecResult};
use std::{
    collections::BTreeMap,
    fs::File,
    net::TcpListener,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// How long a server may take to become ready or to stop.
const PATIENCE: Duration = Duration::from_secs(60);
/// Marks sandboxes of ours on a server that others use, too.
const MARK: &str = "stacyvm-bench";

/// A server, with what a scenario makes on it.
pub(crate) struct Server {
    client: Client,
    http: reqwest::Client,
    url: String,
    key: Option<String>,
    process: Option<Process>,
    request: CreateSandbox,
    mark: String,
}

/// A server of our own: one that is as quiet as it would be in production.
struct Process {
    child: Child,
    binary: PathBuf,
    home: tempfile::TempDir,
    port: u16,
    settings: Vec<(String, String)>,
}

impl Server {
    /// Starts one on a free port, with a data directory that goes away with it.
    pub(crate) fn launch(binary: &Path, target: &Target, settings: &[(&str, &str)]) -> Result<Self> {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let home = scratch()?;
        let settings: Vec<_> = settings.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let child = start(binary, home.path(), port, &settings)?;
        let process = Process { child, binary: binary.to_owned(), home, port, settings };
        let foreign = Foreign { url: format!("http://127.0.0.1:{port}"), api_key: None };
        Ok(Self { process: Some(process), ..Self::of(&foreign, target)? })
    }

    /// One that somebody else runs.
    pub(crate) fn of(foreign: &Foreign, target: &Target) -> Result<Self> {
        let client = Client::new(&Options {
            server: foreign.url.clone(),
            api_key: foreign.api_key.clone(),
            user: None,
            agent: Some(concat!("stacyvm-bench/", env!("CARGO_PKG_VERSION")).to_owned()),
        })?;
        let provider = match target.provider {
            Provider::Native => "native",
            Provider::Docker => "docker",
        };
        let mark = format!("{}-{}", std::process::id(), jiff::Timestamp::now().as_nanosecond());
        let request = CreateSandbox {
            image: Some(target.image().to_owned()),
            provider: Some(provider.to_owned()),
            runtime: target.runtime.map(str::to_owned),
            // Should nobody be there to destroy it.
            ttl: Some("30m".to_owned()),
            metadata: Some(BTreeMap::from([(MARK.to_owned(), mark.clone())])),
            ..CreateSandbox::default()
        };
        let http = reqwest::Client::builder().tcp_nodelay(true).no_proxy().build()?;
        let (url, key) = (client.server(), foreign.api_key.clone());
        Ok(Self { client, http, url, key, process: None, request, mark })
    }

    /// The client of all calls but [`Server::raw_exec`].
    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// Waits until it can make sandboxes.
    pub(crate) async fn ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let Err(error) = self.client.ready().await else { return Ok(()) };
            if let Some(process) = &mut self.process
                && let Some(status) = process.child.try_wait()?
            {
                bail!("the server ended with {status}:\n{}", process.log());
            }
            ensure!(self.process.is_some() && Instant::now() < deadline, "the server is not ready: {error}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Creates a sandbox with what the server gives those who ask for nothing.
    pub(crate) async fn create(&self) -> Result<String> {
        self.create_as(|_| {}).await
    }

    /// Creates a sandbox that is changed like this.
    pub(crate) async fn create_as(&self, change: impl FnOnce(&mut CreateSandbox)) -> Result<String> {
        let mut request = self.request.clone();
        change(&mut request);
        Ok(self.client.create(&request, &CreateOptions::default()).await?.id)
    }

    /// Runs a command to its end and returns its stdout.
    pub(crate) async fn exec(&self, id: &str, argv: &[&str]) -> Result<String> {
        let (command, args) = argv.split_first().context("no command")?;
        let request: ExecRequest =
            serde_json::from_value(serde_json::json!({"command": command, "args": args, "mode": "argv"}))?;
        let result: ExecResult = self.client.exec(id, &request).await?;
        ensure!(result.exit_code == 0, "{argv:?} ended with {}: {}", result.exit_code, result.stderr);
        Ok(result.stdout)
    }

    /// Runs a shell command whose output is streamed, and returns what comes as it comes: what a client does with it is
    /// not what is measured.
    pub(crate) async fn raw_exec(&self, id: &str, command: &str) -> Result<reqwest::Response> {
        let mut request = self.http.post(format!("{}/api/v1/sandboxes/{id}/exec", self.url));
        if let Some(key) = &self.key {
            request = request.header("x-api-key", key);
        }
        let body = serde_json::json!({"command": command, "stream": true});
        Ok(request.json(&body).send().await?.error_for_status()?)
    }

    /// Creates, runs `echo` and reads what it says: until then, a sandbox is of no use to anybody.
    pub(crate) async fn create_and_hear(&self) -> Result<String> {
        let id = self.create().await?;
        ensure!(self.exec(&id, &["/bin/echo", "hi"]).await? == "hi\n", "echo said something else");
        Ok(id)
    }

    /// Destroys a sandbox.
    pub(crate) async fn destroy(&self, id: &str) -> Result<()> {
        self.client.destroy(id).await?;
        Ok(())
    }

    /// Destroys these sandboxes.
    pub(crate) async fn destroy_all(&self, ids: Vec<String>) -> Result<()> {
        stream::iter(ids)
            .map(async |id| self.destroy(&id).await)
            .buffer_unordered(8)
            .try_for_each(|()| async { Ok(()) })
            .await
    }

    /// `kill -9`, and the server again as it was.
    pub(crate) fn kill_and_start(&mut self) -> Result<()> {
        let process = self.process.as_mut().context("this server is not ours")?;
        process.child.kill()?;
        process.child.wait()?;
        process.start()
    }

    /// Destroys what was made here; a server of our own is stopped and its directory removed, and what it left with a
    /// Docker Engine.
    pub(crate) async fn close(mut self, engine: Option<&Engine>) -> Result<()> {
        if let Some(process) = &mut self.process
            && process.child.try_wait()?.is_some()
        {
            process.start()?;
        }
        self.ready().await?;
        let marked = |sandbox: &stacyvm_types::Sandbox| sandbox.metadata.get(MARK) == Some(&self.mark);
        // What is being created as we are told to stop is not in the list yet.
        loop {
            let all = self.client.list().await?;
            let ids: Vec<_> = all.into_iter().filter(marked).map(|sandbox| sandbox.id).collect();
            if ids.is_empty() {
                break;
            }
            for id in ids {
                match self.client.destroy(&id).await {
                    Err(error) if !error.is_not_found() => return Err(error.into()),
                    _ => {}
                }
            }
        }
        let Some(mut process) = self.process.take() else { return Ok(()) };
        process.stop().await?;
        if let Some(engine) = engine {
            let installation = std::fs::read_to_string(process.home.path().join("data/installation"))?;
            engine.clear(installation.trim()).await?;
        }
        process.home.path().exists().then(|| std::fs::remove_dir_all(process.home.path())).transpose()?;
        Ok(())
    }
}

impl Process {
    fn start(&mut self) -> Result<()> {
        self.child = start(&self.binary, self.home.path(), self.port, &self.settings)?;
        Ok(())
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.home.path().join("server.log")).unwrap_or_default()
    }

    async fn stop(&mut self) -> Result<()> {
        kill_process(Pid::from_child(&self.child), Signal::TERM)?;
        let deadline = Instant::now() + PATIENCE;
        while self.child.try_wait()?.is_none() {
            ensure!(Instant::now() < deadline, "the server does not stop:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Only where stopping it has failed is there anything left to kill.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A directory for what a scenario makes.
pub(crate) fn scratch() -> Result<tempfile::TempDir> {
    Ok(tempfile::Builder::new().prefix("stacyvm-bench-").tempdir()?)
}

fn start(binary: &Path, home: &Path, port: u16, settings: &[(String, String)]) -> Result<Child> {
    let log = File::options().create(true).append(true).open(home.join("server.log"))?;
    let mut command = Command::new(binary);
    command.arg("serve").current_dir(home).env_clear();
    command.env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("HOME", home);
    command.env("STACYVM_DATA_DIR", home.join("data")).env("STACYVM_LOGGING_LEVEL", "warn");
    command.env("STACYVM_SERVER_HOST", "127.0.0.1").env("STACYVM_SERVER_PORT", port.to_string());
    command.envs(settings.iter().map(|(key, value)| (key, value)));
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    // Ctrl-C is for us: the server is still needed to take away what it made.
    command.process_group(0);
    command.spawn().with_context(|| format!("cannot start {}", binary.display()))
}
