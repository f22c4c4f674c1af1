//! What every scenario may use: the binary, the tools that were found, and servers that go away whatever happens.

use crate::{Options, engine::Engine, rivals::Tools, server::Server};
use anyhow::{Result, bail, ensure};
use serde::Serialize;
use std::path::PathBuf;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// An image that Docker Engines and podman are expected to have.
pub(crate) const IMAGE: &str = "alpine:latest";

/// A kind of runtime that can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Provider {
    /// Namespaces and cgroups, without a daemon.
    Native,
    /// Containers of a Docker Engine.
    Docker,
}

/// A server that somebody else runs.
#[derive(Debug, Clone)]
pub struct Foreign {
    /// Its address.
    pub url: String,
    /// The key for it.
    pub api_key: Option<String>,
}

/// What makes and isolates the sandboxes of a scenario.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) provider: Provider,
    /// Of the Docker Engine.
    pub(crate) runtime: Option<&'static str>,
    /// It cannot be measured here.
    pub(crate) why_not: Option<String>,
}

impl Target {
    /// All that were asked for, in the order of the report.
    pub(crate) fn all(options: &Options, context: &Context) -> Vec<Self> {
        let native = Self { provider: Provider::Native, runtime: None, why_not: None };
        let containers = ["runc", "runsc"].map(|runtime| {
            // Of an engine behind somebody else's server nothing is known here: the server says it.
            let why_not = match &context.engine {
                _ if options.server.is_some() => None,
                Ok(engine) => engine.why_not(runtime),
                Err(why) => Some(why.clone()),
            };
            Self { provider: Provider::Docker, runtime: Some(runtime), why_not }
        });
        let all = std::iter::once(native).chain(containers);
        all.filter(|target| options.provider.is_none_or(|only| only == target.provider)).collect()
    }

    /// As the report names it.
    pub(crate) fn label(&self) -> String {
        match self.runtime {
            None => "native".to_owned(),
            Some(runtime) => format!("docker, {runtime}"),
        }
    }

    /// Image of its sandboxes.
    pub(crate) fn image(&self) -> &'static str {
        match self.provider {
            Provider::Native => "host",
            Provider::Docker => IMAGE,
        }
    }

    /// One of these numbers: containers cost an engine much more, so there are fewer.
    pub(crate) fn pick(&self, native: usize, docker: usize) -> usize {
        match self.provider {
            Provider::Native => native,
            Provider::Docker => docker,
        }
    }
}

/// What every scenario may use.
pub(crate) struct Context {
    pub(crate) binary: PathBuf,
    pub(crate) samples: usize,
    pub(crate) foreign: Option<Foreign>,
    pub(crate) engine: Result<Engine, String>,
    pub(crate) tools: Tools,
    /// Command lines of rivals, which are waited for whatever happens.
    pub(crate) commands: TaskTracker,
    stop: CancellationToken,
}

impl Context {
    /// Looks for what there is.
    pub(crate) async fn new(options: &Options, stop: CancellationToken) -> Result<Self> {
        let engine = Engine::find().await.map_err(|why| format!("{why:#}"));
        let tools = Tools::find(engine.as_ref().map_err(String::as_str))?;
        let (binary, foreign) = (options.binary.clone(), options.server.clone());
        Ok(Self {
            binary,
            samples: options.samples,
            foreign,
            engine,
            tools,
            commands: TaskTracker::new(),
            stop,
        })
    }

    /// Rounds of something slow: a part of the samples, and at least one.
    pub(crate) fn rounds(&self, one_in: usize, most: usize) -> usize {
        self.samples.div_ceil(one_in).min(most).max(1)
    }

    /// For scenarios without a server: fails once somebody wants us to stop.
    pub(crate) fn go_on(&self) -> Result<()> {
        ensure!(!self.stop.is_cancelled(), "interrupted");
        Ok(())
    }

    /// Runs a scenario against a server with these settings. Afterwards the server and all its sandboxes are gone, be it
    /// because the scenario ended, because it failed, or because somebody wants us to stop.
    pub(crate) async fn with_server<T>(
        &self,
        target: &Target,
        settings: &[(&str, &str)],
        scenario: impl AsyncFnOnce(&mut Server) -> Result<T>,
    ) -> Result<T> {
        let mut server = match &self.foreign {
            Some(foreign) => Server::of(foreign, target)?,
            None => {
                let engine = self.engine.as_ref().map(Engine::settings).unwrap_or_default();
                Server::launch(&self.binary, target, &[&engine[..], settings].concat())?
            }
        };
        let work = async {
            server.ready().await?;
            scenario(&mut server).await
        };
        let outcome = tokio::select! {
            outcome = Box::pin(work) => outcome,
            () = self.stop.cancelled() => Err(anyhow::anyhow!("interrupted")),
        };
        // None of them knows how to stop halfway, and all end by themselves.
        self.commands.close();
        self.commands.wait().await;
        self.commands.reopen();
        let closed = server.close(self.engine.as_ref().ok()).await;
        match (outcome, closed) {
            (outcome, Ok(())) => outcome,
            (Ok(_), Err(error)) => Err(error.context("cleaning up")),
            (Err(first), Err(second)) => bail!("{first:#}; and cleaning up: {second:#}"),
        }
    }
}
