//! The provider: the contract's calls, in terms of the steps that the other modules know.

use crate::{
    bridge,
    config::DockerConfig,
    daemon::Daemon,
    failure::{failed, is_conflict, is_internal, is_missing},
    health, network,
    pull::Pulls,
    reference,
    runtime::{self, Family},
    state::{Ending, Seen, listed, look},
    stats,
    volume::AgentVolume,
    watch::Watch,
};
use async_trait::async_trait;
use bollard::{
    Docker,
    container::LogOutput,
    models::SystemInfo,
    query_parameters::{ListContainersOptions, LogsOptions, RemoveContainerOptions, StatsOptions},
};
use futures::{StreamExt, stream, stream::BoxStream};
use stacyvm_fault::{Point, hit};
use stacyvm_provider::{
    AgentGuest, CONSOLE_BYTES, CONSOLE_LINES, Capabilities, Created, Error, ErrorKind, Guest, Health, Limit,
    Locks, Notice, NoticeKind, Provider, Result, RuntimeSandbox, RuntimeState, RuntimeStats, SandboxId,
    SandboxSpec,
};
use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use tokio::{sync::broadcast, task::JoinHandle};
use tokio_util::sync::CancellationToken;

/// Longest time of a look at the daemon's health; the contract allows 5 s.
const LOOK: Duration = Duration::from_millis(4500);
/// How long what the daemon says of itself is taken for true.
const INFO_AGE: Duration = Duration::from_secs(10);
/// Time between two looks for what earlier builds left.
const COLLECT: Duration = Duration::from_secs(3600);
/// Notices that may wait for the engine.
const NOTICES: usize = 1024;
/// Longest wait between two looks at a container whose end is waited for.
const RELOOK: Duration = Duration::from_secs(60);
/// Pause between looks at a container that is being removed by somebody else.
const REMOVAL: Duration = Duration::from_millis(100);
/// How often a daemon is asked that fails at a removal. Each time it may wait ten seconds for processes to end.
const REMOVAL_TRIES: u32 = 3;

/// Sandboxes as containers of a Docker Engine.
///
/// Dropping it leaves sandboxes running.
pub struct DockerProvider {
    inner: Arc<Inner>,
    family: Family,
    root_user: bool,
    tasks: Vec<JoinHandle<()>>,
}

/// What the provider's calls and tasks share.
pub(crate) struct Inner {
    pub(crate) config: DockerConfig,
    pub(crate) daemon: Arc<Daemon>,
    pub(crate) pulls: Pulls,
    pub(crate) volume: AgentVolume,
    /// Of those that may make the network of this installation.
    pub(crate) network_turn: tokio::sync::Mutex<()>,
    watch: Arc<Watch>,
    locks: Locks,
    /// Creates under way, to be given up when a destroy comes.
    making: Mutex<HashMap<SandboxId, CancellationToken>>,
    guests: Mutex<HashMap<SandboxId, Arc<AgentGuest>>>,
    info: Mutex<Option<(Instant, SystemInfo)>>,
    notices: broadcast::Sender<Notice>,
    /// Hears from the first notice on, until the engine takes it.
    heard: Mutex<Option<broadcast::Receiver<Notice>>>,
}

impl DockerProvider {
    /// Whether there is a daemon to be expected: its socket exists, or its address is that of another machine.
    pub fn is_there(config: &DockerConfig) -> bool {
        Daemon::new(config.daemon.as_deref(), config.bridges_only).may_be_there()
    }

    /// A provider for the daemon that `config` names. It need not be there yet; [`Provider::health`] says what is wrong.
    ///
    /// Waits at most five seconds for the daemon, to learn what its runtimes are.
    pub async fn start(config: DockerConfig) -> Self {
        let daemon = Arc::new(Daemon::new(config.daemon.as_deref(), config.bridges_only));
        let (notices, heard) = broadcast::channel(NOTICES);
        let inner = Arc::new(Inner {
            pulls: Pulls::new(notices.clone(), config.auth_file.clone(), config.platform.clone()),
            volume: AgentVolume::new(&config.installation_id, config.agent),
            network_turn: tokio::sync::Mutex::default(),
            watch: Arc::default(),
            locks: Locks::default(),
            making: Mutex::default(),
            guests: Mutex::default(),
            info: Mutex::default(),
            daemon: Arc::clone(&daemon),
            config,
            notices,
            heard: Mutex::new(Some(heard)),
        });
        let info =
            tokio::time::timeout(LOOK, async { inner.info(daemon.client().await.ok()?).await.ok() }).await;
        let info = info.ok().flatten();
        let family = Family::of(&inner.config.runtime, info.as_ref());
        let listening = Arc::clone(&inner.watch).listen(daemon, inner.config.installation_id.clone());
        let tasks = vec![tokio::spawn(listening), tokio::spawn(collect(Arc::clone(&inner)))];
        let root_user = !family.shares_kernel() || info.as_ref().is_some_and(runtime::remaps_users);
        Self { inner, family, root_user, tasks }
    }
}

impl Drop for DockerProvider {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// Removes what earlier builds left, once nothing uses it any more, and says so.
async fn collect(inner: Arc<Inner>) {
    loop {
        let collected = async { inner.volume.collect(inner.daemon.client().await?).await };
        match collected.await {
            Ok(removed) => {
                for what in removed {
                    let data = [
                        ("action", "removed"),
                        ("what", &what),
                        ("reason", "left by an earlier build or start"),
                    ];
                    let data = data.map(|(key, value)| (key.to_owned(), value.into())).into();
                    let _ = inner.notices.send(Notice { kind: NoticeKind::Reconcile, sandbox: None, data });
                }
                tokio::time::sleep(COLLECT).await;
            }
            Err(error) => {
                tracing::debug!(error = error.chain(), "what earlier builds left is not removed yet");
                tokio::time::sleep(Duration::from_secs(30)).await;
            }
        }
    }
}

impl Inner {
    /// What the daemon says of itself, at most some seconds old.
    pub(crate) async fn info(&self, client: &Docker) -> Result<SystemInfo> {
        let known = self.info.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((_, info)) = known.filter(|(at, _)| at.elapsed() < INFO_AGE) {
            return Ok(info);
        }
        let info = client.info().await.map_err(|error| failed("describe itself", error))?;
        *self.info.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), info.clone()));
        Ok(info)
    }

    /// Memory of the daemon's host in bytes, as far as it is known.
    fn host_memory(&self) -> u64 {
        let info = self.info.lock().unwrap_or_else(PoisonError::into_inner);
        info.as_ref().and_then(|(_, info)| u64::try_from(info.mem_total?).ok()).unwrap_or(u64::MAX)
    }

    /// Keeps the guest of a sandbox that runs.
    pub(crate) fn remember(&self, id: &SandboxId, guest: Arc<AgentGuest>) {
        self.guests.lock().unwrap_or_else(PoisonError::into_inner).insert(id.clone(), guest);
    }

    fn known_guest(&self, id: &SandboxId) -> Option<Arc<AgentGuest>> {
        self.guests.lock().unwrap_or_else(PoisonError::into_inner).get(id).cloned()
    }

    fn forget(&self, id: &SandboxId) {
        self.guests.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }

    pub(crate) async fn look(&self, id: &SandboxId) -> Result<Seen> {
        look(self.daemon.client().await?, &self.config.installation_id, id).await
    }

    /// The state of a sandbox, with the best reason there is for its end.
    async fn state(&self, id: &SandboxId) -> Result<Option<RuntimeState>> {
        let seen = self.look(id).await?;
        if let Seen::Ended(ending) = &seen {
            self.forget(id);
            let live_restore = {
                let info = self.info.lock().unwrap_or_else(PoisonError::into_inner);
                info.as_ref().and_then(|(_, info)| info.live_restore_enabled).unwrap_or(false)
            };
            if !live_restore
                && !ending.oom_killed
                && ending.at.is_some_and(|at| self.watch.was_around_a_restart(at))
            {
                let reason = "the docker daemon was restarted, which ends its containers: set \"live-restore\": true in its daemon.json".to_owned();
                return Ok(Some(RuntimeState::Ended { reason }));
            }
        }
        Ok(seen.state())
    }

    async fn connect(&self, id: &SandboxId) -> Result<Arc<AgentGuest>> {
        if let Some(guest) = self.known_guest(id) {
            return Ok(guest);
        }
        let _turn = self.locks.lock(id).await;
        if let Some(guest) = self.known_guest(id) {
            return Ok(guest);
        }
        match self.look(id).await? {
            Seen::Running { pids_limit, lent } => {
                if lent && pids_limit > 0 {
                    // An earlier server ended while a bridge squeezed in.
                    bridge::limit_processes(self.daemon.client().await?, id, pids_limit).await?;
                }
                let guest = self.guest(id, pids_limit, false);
                // Kept also if it does not answer yet: what was begun to reach it goes on, and the next call finds it.
                self.remember(id, Arc::clone(&guest));
                guest.ping().await?;
                Ok(guest)
            }
            Seen::Absent => Err(absent(id)),
            Seen::Paused => Err(Error::unavailable(format!("sandbox {id} is paused"))),
            Seen::Created => Err(Error::destroyed(format!("sandbox {id} was never started"))),
            Seen::Ended(ending) => {
                Err(Error::destroyed(format!("sandbox {id} has ended: {}", ending.reason())))
            }
        }
    }

    /// Removes the container and what belongs to it.
    async fn destroy(&self, id: &SandboxId) -> Result<()> {
        let client = self.daemon.client().await?;
        self.forget(id);
        let mut tries = REMOVAL_TRIES;
        loop {
            if look(client, &self.config.installation_id, id).await? == Seen::Absent {
                self.watch.forget(id);
                return Ok(());
            }
            let options = RemoveContainerOptions { force: true, v: true, link: false };
            match client.remove_container(id.as_str(), Some(options)).await {
                Ok(()) => hit(Point::DockerRemoved),
                Err(error) if is_missing(&error) => {}
                // Somebody else removes it: see it go.
                Err(error) if is_conflict(&error) => tokio::time::sleep(REMOVAL).await,
                // It did not see the end of a process that it had killed (gVisor, paused): the next time it does.
                Err(error) if is_internal(&error) && tries > 1 => {
                    tries -= 1;
                    tracing::debug!(sandbox = %id, %error, "a container could not be removed yet");
                    tokio::time::sleep(REMOVAL).await;
                }
                Err(error) => return Err(failed("remove a container", error)),
            }
        }
    }

    /// The last lines that the agent logged.
    pub(crate) async fn console(&self, id: &SandboxId, lines: u32) -> Result<Vec<String>> {
        let client = self.daemon.client().await?;
        if look(client, &self.config.installation_id, id).await? == Seen::Absent {
            return Err(absent(id));
        }
        let options = LogsOptions {
            stdout: true,
            stderr: true,
            tail: lines.min(CONSOLE_LINES).to_string(),
            ..LogsOptions::default()
        };
        let mut output = client.logs(id.as_str(), Some(options));
        let mut text = Vec::new();
        while let Some(message) = output.next().await {
            match message.map_err(|error| failed("show a container's log", error))? {
                LogOutput::StdOut { message }
                | LogOutput::StdErr { message }
                | LogOutput::Console { message } => {
                    text.extend_from_slice(&message);
                }
                LogOutput::StdIn { .. } => {}
            }
            if text.len() > CONSOLE_BYTES {
                text.drain(..text.len() - CONSOLE_BYTES);
            }
        }
        let clean = |line: &str| line.chars().filter(|c| !c.is_control()).collect();
        Ok(String::from_utf8_lossy(&text).lines().map(clean).collect())
    }
}

pub(crate) fn absent(id: &SandboxId) -> Error {
    Error::not_found(format!("sandbox {id} does not exist"))
}

#[async_trait]
impl Provider for DockerProvider {
    fn name(&self) -> &str {
        "docker"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            isolation: self.family.isolation(),
            survives_restart: true,
            memory_limit: true,
            cpu_limit: true,
            pids_limit: self.family.shares_kernel(),
            root_user: self.root_user,
            isolated: true,
            stats: true,
            pause: true,
            oom_ends_sandbox: self.family == Family::Gvisor,
            // Depends on the daemon's storage, which says so when it is asked for.
            disk_limit: false,
            pty: true,
            pty_signals: self.family.shares_kernel(),
        }
    }

    fn offers(&self, image: &str) -> bool {
        reference::check(image).is_ok()
    }

    fn network(&self, asked: Option<&str>) -> Result<Option<String>> {
        network::chosen(&self.inner.config, asked).map(|network| Some(network.to_string()))
    }

    async fn health(&self) -> Health {
        let started = Instant::now();
        let inner = &self.inner;
        let looked = tokio::time::timeout(LOOK, async {
            let client = inner.daemon.client().await?;
            let info = client.info().await.map_err(|error| failed("describe itself", error))?;
            *inner.info.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), info.clone()));
            let problem = health::problem(client, &inner.config, &info).await?;
            Ok::<_, Error>((problem, health::warnings(&inner.config, &info, inner.daemon.is_here())))
        });
        let (problem, warnings) = match looked.await {
            Ok(Ok(found)) => found,
            Ok(Err(error)) => (Some(error.message().to_owned()), Vec::new()),
            Err(_) => (
                Some(
                    "the docker daemon did not answer within 4 s: look at its log and its host's load"
                        .to_owned(),
                ),
                Vec::new(),
            ),
        };
        Health { healthy: problem.is_none(), problem, warnings, latency: started.elapsed() }
    }

    async fn create(&self, id: &SandboxId, spec: &SandboxSpec) -> Result<Created> {
        // The turn is taken by the caller, so that a create that was given up before it began never begins behind a later
        // destroy. The work is a task of its own: what the daemon was asked for is seen through or given up between steps,
        // and a destroy that comes meanwhile waits for that.
        let turn = self.inner.locks.lock(id).await;
        let (inner, id, spec) = (Arc::clone(&self.inner), id.clone(), spec.clone());
        let unwanted = CancellationToken::new();
        let making = || inner.making.lock().unwrap_or_else(PoisonError::into_inner);
        making().insert(id.clone(), unwanted.clone());
        let task = tokio::spawn({
            let (inner, id) = (Arc::clone(&inner), id.clone());
            async move {
                let _turn = turn;
                let result = inner.create(&id, &spec, &unwanted).await;
                inner.making.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
                result
            }
        });
        let id = id.to_string();
        finish(task).await.map(|()| Created { runtime_id: Some(id) })
    }

    async fn connect(&self, id: &SandboxId) -> Result<Arc<dyn Guest>> {
        Ok(self.inner.connect(id).await? as Arc<dyn Guest>)
    }

    async fn destroy(&self, id: &SandboxId) -> Result<()> {
        if let Some(making) = self.inner.making.lock().unwrap_or_else(PoisonError::into_inner).get(id) {
            making.cancel();
        }
        let turn = self.inner.locks.lock(id).await;
        let (inner, id) = (Arc::clone(&self.inner), id.clone());
        finish(tokio::spawn(async move {
            let _turn = turn;
            inner.destroy(&id).await
        }))
        .await
    }

    async fn status(&self, id: &SandboxId) -> Result<RuntimeState> {
        self.inner.state(id).await?.ok_or_else(|| absent(id))
    }

    async fn ended(&self, id: &SandboxId) -> String {
        loop {
            let mut changed = self.inner.watch.of(id);
            match self.inner.state(id).await {
                Ok(None) => return "its container was removed by somebody else".to_owned(),
                Ok(Some(RuntimeState::Ended { reason })) => {
                    // Who removes a container kills it first.
                    tokio::time::sleep(REMOVAL * 3).await;
                    match self.inner.state(id).await {
                        Ok(None) => continue,
                        _ => return reason,
                    }
                }
                Ok(Some(_)) | Err(_) => {}
            }
            // However it ends, the next look tells.
            let _ = tokio::time::timeout(RELOOK, changed.changed()).await;
        }
    }

    async fn ended_by(&self, id: &SandboxId) -> Vec<Limit> {
        match self.inner.look(id).await {
            Ok(Seen::Ended(Ending { oom_killed: true, .. })) => vec![Limit::Oom],
            _ => Vec::new(),
        }
    }

    async fn list(&self) -> Result<Vec<RuntimeSandbox>> {
        let client = self.inner.daemon.client().await?;
        let label = format!("{}={}", crate::container::INSTALLATION, self.inner.config.installation_id);
        let options = ListContainersOptions {
            all: true,
            filters: Some(HashMap::from([("label".to_owned(), vec![label])])),
            ..ListContainersOptions::default()
        };
        let entries =
            client.list_containers(Some(options)).await.map_err(|error| failed("list containers", error))?;
        Ok(entries.into_iter().filter_map(listed).collect())
    }

    async fn stats(&self, id: &SandboxId) -> Result<RuntimeStats> {
        match self.inner.look(id).await? {
            Seen::Absent => return Err(absent(id)),
            Seen::Running { .. } | Seen::Paused => {}
            Seen::Created => return Err(Error::destroyed(format!("sandbox {id} was never started"))),
            Seen::Ended(ending) => {
                return Err(Error::destroyed(format!("sandbox {id} has ended: {}", ending.reason())));
            }
        }
        let client = self.inner.daemon.client().await?;
        let options = StatsOptions { stream: false, one_shot: true };
        match client.stats(id.as_str(), Some(options)).next().await {
            Some(Ok(found)) => Ok(stats::from(&found, self.inner.host_memory())),
            Some(Err(error)) if is_missing(&error) => Err(absent(id)),
            Some(Err(error)) => Err(failed("measure a container", error)),
            None => Err(Error::unavailable("the docker daemon gave no statistics")),
        }
    }

    async fn pause(&self, id: &SandboxId) -> Result<()> {
        self.freeze(id, true).await
    }

    async fn resume(&self, id: &SandboxId) -> Result<()> {
        self.freeze(id, false).await
    }

    async fn console(&self, id: &SandboxId, lines: u32) -> Result<Vec<String>> {
        self.inner.console(id, lines).await
    }

    fn notices(&self) -> BoxStream<'static, Notice> {
        let first = self.inner.heard.lock().unwrap_or_else(PoisonError::into_inner).take();
        let heard = first.unwrap_or_else(|| self.inner.notices.subscribe());
        let next = |mut heard: broadcast::Receiver<Notice>| async move {
            loop {
                match heard.recv().await {
                    Ok(notice) => return Some((notice, heard)),
                    // Progress that nobody took in time is of no interest any more.
                    Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => return None,
                }
            }
        };
        stream::unfold(heard, next).boxed()
    }

    fn settings(&self) -> BTreeMap<String, String> {
        let config = &self.inner.config;
        let mut settings: BTreeMap<_, _> = [
            ("type", "docker".to_owned()),
            ("runtime", config.runtime.clone()),
            ("network", config.network.to_string()),
            ("daemon", self.inner.daemon.address().to_owned()),
            ("agent_volume", self.inner.volume.name().to_owned()),
            ("installation", config.installation_id.clone()),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .into();
        if !config.allowed_runtimes.is_empty() {
            settings.insert("allowed_runtimes".to_owned(), config.allowed_runtimes.join(" "));
        }
        if let Some((_, info)) = &*self.inner.info.lock().unwrap_or_else(PoisonError::into_inner) {
            let mut names: Vec<_> = runtime::registered(info).keys().cloned().collect();
            names.sort_unstable();
            settings.insert("runtimes".to_owned(), names.join(" "));
            let facts = [
                ("daemon_version", &info.server_version),
                ("storage_driver", &info.driver),
                ("kernel", &info.kernel_version),
            ];
            settings
                .extend(facts.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value.clone()?))));
        }
        settings
    }
}

impl DockerProvider {
    async fn freeze(&self, id: &SandboxId, freeze: bool) -> Result<()> {
        let turn = self.inner.locks.lock(id).await;
        let (inner, id) = (Arc::clone(&self.inner), id.clone());
        finish(tokio::spawn(async move {
            let _turn = turn;
            inner.freeze(&id, freeze).await
        }))
        .await
    }
}

async fn finish(task: JoinHandle<Result<()>>) -> Result<()> {
    match task.await {
        Ok(result) => result,
        Err(error) if error.is_cancelled() => {
            Err(Error::unavailable("the server is shutting down").because(error))
        }
        Err(error) => Err(Error::new(ErrorKind::Internal, "a defect in the docker provider").because(error)),
    }
}
