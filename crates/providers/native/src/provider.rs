//! The provider: the contract's calls, in terms of the steps that the other modules know.

use crate::{
    NativeConfig,
    cgroup::Controller,
    console,
    disk::Method,
    health, image,
    inner::Inner,
    sandboxes::{Look, look},
    usage,
};
use async_trait::async_trait;
use futures::{
    StreamExt,
    stream::{self, BoxStream},
};
use stacyvm_image::Images;
use stacyvm_provider::{
    CONSOLE_BYTES, Capabilities, Created, Error, ErrorKind, Guest, Health, Notice, Provider, Result,
    RuntimeSandbox, RuntimeState, RuntimeStats, SandboxId, SandboxSpec, console_lines,
};
use std::{
    collections::BTreeMap,
    io,
    sync::Arc,
    time::{Duration, Instant},
};

/// Sandboxes made by this program itself, with the kernel's namespaces, overlay and cgroups.
///
/// Everything that it must know again after a restart is on disk; dropping it leaves sandboxes running, except
/// ephemeral ones, which its spawner removes.
pub struct NativeProvider {
    inner: Arc<Inner>,
}

impl NativeProvider {
    /// Takes over what is in `config.data_dir`. Where the host cannot carry sandboxes this succeeds too, and
    /// [`Provider::health`] says what is missing.
    ///
    /// # Errors
    /// `InvalidArgument` for an installation id that cannot be part of a cgroup's name; `Internal` and `ResourceLimit`
    /// if the provider's own threads or files cannot be had.
    pub fn start(config: NativeConfig) -> Result<Self> {
        let legal = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        let id = &config.installation_id;
        if !(1..=64).contains(&id.len()) || !id.bytes().all(legal) {
            return Err(Error::invalid_argument(
                "an installation id has 1 to 64 letters, digits, '-' or '_'",
            ));
        }
        if !config.data_dir.is_absolute() {
            return Err(Error::invalid_argument("the data directory must be an absolute path"));
        }
        Inner::start(config).map(|inner| Self { inner })
    }
}

#[async_trait]
impl Provider for NativeProvider {
    fn name(&self) -> &str {
        "native"
    }

    fn capabilities(&self) -> Capabilities {
        let has = |controller| self.inner.cgroups.has(controller);
        Capabilities {
            isolation: "container",
            survives_restart: true,
            memory_limit: has(Controller::Memory),
            cpu_limit: has(Controller::Cpu),
            pids_limit: has(Controller::Pids),
            // Root of a user namespace, which is nobody outside it.
            root_user: self.inner.user_namespaces.has_ranges(),
            isolated: true,
            stats: true,
            // All processes of a sandbox are found where their time is counted.
            pause: has(Controller::Freezer) && has(Controller::Cpuacct),
            oom_ends_sandbox: false,
            disk_limit: *self.inner.disks.method() != Method::None,
            pty: true,
            pty_signals: true,
        }
    }

    fn offers(&self, image: &str) -> bool {
        !image::is_stored(image) || (self.inner.images.is_some() && Images::check(image).is_ok())
    }

    fn network(&self, asked: Option<&str>) -> Result<Option<String>> {
        self.inner.network.mode(asked).map(|mode| Some(mode.as_str().to_owned()))
    }

    async fn health(&self) -> Health {
        let started = Instant::now();
        let looked = self.inner.blocking(|inner| {
            let problem = health::problem(&inner.layout).or_else(|| {
                inner.spawner.start().err().map(|e| format!("the native spawner does not start: {e}"))
            });
            let problem = problem.or_else(|| health::tried(&inner.spawner));
            let mut warnings = health::warnings(inner);
            if problem.is_none() {
                warnings.extend(inner.disks.warning());
            }
            Ok((problem, warnings))
        });
        let (problem, warnings) = match tokio::time::timeout(Duration::from_secs(5), looked).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => (Some(error.message().to_owned()), Vec::new()),
            Err(_) => (Some("the host did not answer within 5 s: look at its disks".to_owned()), Vec::new()),
        };
        Health { healthy: problem.is_none(), problem, warnings, latency: started.elapsed() }
    }

    async fn create(&self, id: &SandboxId, spec: &SandboxSpec) -> Result<Created> {
        spec.refuse_runtime(self.name())?;
        if let Some(problem) = health::problem(&self.inner.layout) {
            return Err(Error::unavailable(problem));
        }
        let spec = SandboxSpec { network: self.network(spec.network.as_deref())?, ..spec.clone() };
        let (inner, id) = (Arc::clone(&self.inner), id.clone());
        // The turn is taken by the caller, so that a create that was given up before it began never begins behind a later
        // destroy. The work is a task of its own: a caller that goes away during it leaves a finished sandbox or none.
        let turn = inner.locks.lock(&id).await;
        let task = tokio::spawn(async move {
            let _turn = turn;
            inner.create(&id, &spec).await
        });
        finish(task).await.map(|()| Created { runtime_id: None })
    }

    async fn connect(&self, id: &SandboxId) -> Result<Arc<dyn Guest>> {
        let entry = self.inner.entry(id).await?;
        self.inner.reach(&entry).await?;
        Ok(Arc::clone(&entry.guest) as Arc<dyn Guest>)
    }

    async fn destroy(&self, id: &SandboxId) -> Result<()> {
        let (inner, id) = (Arc::clone(&self.inner), id.clone());
        let turn = inner.locks.lock(&id).await;
        let task = tokio::spawn(async move {
            let _turn = turn;
            inner.remove(&id).await
        });
        finish(task).await
    }

    async fn status(&self, id: &SandboxId) -> Result<RuntimeState> {
        if self.inner.is_making(id) {
            return Ok(RuntimeState::Running);
        }
        let id = id.clone();
        self.inner
            .blocking(move |inner| match look(&inner.layout, &id)? {
                Look::Absent => Err(Error::not_found(format!("sandbox {id} does not exist"))),
                Look::Ended { reason, .. } => Ok(RuntimeState::Ended { reason }),
                Look::Running { state, .. } => inner.running_state(&id, &state),
            })
            .await
    }

    async fn ended(&self, id: &SandboxId) -> String {
        loop {
            match self.inner.entry(id).await {
                Ok(entry) => {
                    entry.wait().await;
                    return entry.reason();
                }
                // Not to be told from here, or being made: ask again.
                Err(e) if e.kind() == ErrorKind::Unavailable || e.kind() == ErrorKind::ResourceLimit => {
                    tokio::time::sleep(Duration::from_millis(250)).await;
                }
                Err(e) => return e.message().to_owned(),
            }
        }
    }

    async fn list(&self) -> Result<Vec<RuntimeSandbox>> {
        let making = self.inner.making();
        self.inner
            .blocking(move |inner| {
                let ids = inner.layout.ids().map_err(|e| {
                    Error::unavailable("the sandboxes of the data directory cannot be listed").because(e)
                })?;
                let mut sandboxes = Vec::with_capacity(ids.len());
                for id in ids {
                    let (state, spec) = match look(&inner.layout, &id)? {
                        // Destroyed since the directory was read.
                        Look::Absent => continue,
                        Look::Ended { spec, .. } if making.contains(&id) => (RuntimeState::Running, spec),
                        Look::Ended { reason, spec } => (RuntimeState::Ended { reason }, spec),
                        Look::Running { state, spec, .. } => (inner.running_state(&id, &state)?, spec),
                    };
                    sandboxes.push(RuntimeSandbox { id, state, image: spec.map(|s| s.image) });
                }
                Ok(sandboxes)
            })
            .await
    }

    async fn stats(&self, id: &SandboxId) -> Result<RuntimeStats> {
        let id = id.clone();
        self.inner
            .blocking(move |inner| match look(&inner.layout, &id)? {
                Look::Absent => Err(Error::not_found(format!("sandbox {id} does not exist"))),
                Look::Ended { reason, .. } => {
                    Err(Error::destroyed(format!("sandbox {id} has ended: {reason}")))
                }
                Look::Running { state, spec, .. } => {
                    let stats = usage::measure(&state, spec.as_ref());
                    let cpu_time = inner.time_seen.most(&id, stats.cpu_time);
                    Ok(RuntimeStats { cpu_time, ..stats })
                }
            })
            .await
    }

    async fn pause(&self, id: &SandboxId) -> Result<()> {
        let (inner, id) = (Arc::clone(&self.inner), id.clone());
        let turn = inner.locks.lock(&id).await;
        let task = tokio::spawn(async move {
            let _turn = turn;
            inner.pause(&id).await
        });
        finish(task).await
    }

    async fn resume(&self, id: &SandboxId) -> Result<()> {
        let (inner, id) = (Arc::clone(&self.inner), id.clone());
        let turn = inner.locks.lock(&id).await;
        let task = tokio::spawn(async move {
            let _turn = turn;
            inner.resume(&id).await
        });
        finish(task).await
    }

    async fn console(&self, id: &SandboxId, lines: u32) -> Result<Vec<String>> {
        let id = id.clone();
        self.inner
            .blocking(move |inner| {
                let directory = inner.layout.sandbox(&id);
                match console::tail(&directory.join("agent.log"), CONSOLE_BYTES) {
                    Ok((text, cut)) => Ok(console_lines(&text, cut, lines)),
                    // It is being made: nothing was said yet.
                    Err(e) if e.kind() == io::ErrorKind::NotFound && directory.exists() => Ok(Vec::new()),
                    Err(e) if e.kind() == io::ErrorKind::NotFound => {
                        Err(Error::not_found(format!("sandbox {id} does not exist")))
                    }
                    Err(e) => {
                        Err(Error::unavailable(format!("the log of sandbox {id} cannot be read")).because(e))
                    }
                }
            })
            .await
    }

    fn notices(&self) -> BoxStream<'static, Notice> {
        let Some(images) = &self.inner.images else { return stream::pending().boxed() };
        let heard = tokio_stream::wrappers::BroadcastStream::new(images.notices());
        // Progress that nobody took in time is of no interest any more.
        heard.filter_map(|notice| std::future::ready(notice.ok())).boxed()
    }

    fn settings(&self) -> BTreeMap<String, String> {
        let cgroups: Vec<_> = self.inner.cgroups.subtrees().iter().map(|p| p.display().to_string()).collect();
        let own = [
            ("data_dir", self.inner.layout.data_dir().display().to_string()),
            ("installation", self.inner.installation_id.clone()),
            ("cgroups", cgroups.join(" ")),
            ("disk_limit", self.inner.disks.describe().to_owned()),
        ];
        let all = own.into_iter().chain(self.inner.network.settings());
        all.map(|(key, value)| (key.to_owned(), value)).collect()
    }
}

async fn finish(task: tokio::task::JoinHandle<Result<()>>) -> Result<()> {
    match task.await {
        Ok(result) => result,
        Err(e) if e.is_cancelled() => Err(Error::unavailable("the server is shutting down").because(e)),
        Err(e) => Err(Error::internal("a defect in the native provider").because(e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{NetworkConfig, SpawnerCommand};

    fn config(installation_id: &str, data_dir: &str) -> NativeConfig {
        NativeConfig {
            data_dir: data_dir.into(),
            installation_id: installation_id.to_owned(),
            generation: 1,
            spawner: SpawnerCommand { program: "/bin/false".into(), args: Vec::new() },
            agent: b"",
            image_dirs: Vec::new(),
            images: None,
            network: NetworkConfig::default(),
            lock: None,
        }
    }

    #[tokio::test]
    async fn a_host_without_a_place_for_sandboxes_is_unhealthy_and_says_so() {
        let provider = NativeProvider::start(config("a", "/dev/null/data")).unwrap();
        let health = provider.health().await;
        assert!(!health.healthy && health.problem.is_some(), "{health:?}");
        let spec = SandboxSpec::new("host");
        let error = provider.create(&"sb-1".parse().unwrap(), &spec).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
    }

    #[test]
    fn names_that_could_leave_our_cgroup_are_refused() {
        for id in ["", "a/b", "..", "a b", "ü", &"x".repeat(65)] {
            assert!(NativeProvider::start(config(id, "/tmp")).is_err(), "{id}");
        }
        assert!(NativeProvider::start(config("a", "relative")).is_err());
    }
}
