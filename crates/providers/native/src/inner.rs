//! What the provider is made of, and the life of one sandbox: look, make, start, watch, remove.

use crate::{
    NativeConfig,
    cgroup::{self, Controller, FREEZE, Freezer, SandboxCgroups},
    console,
    create::{Made, Maker},
    destroy::{destroy, empty_trash},
    disk::{Disks, Terms},
    entry::{Entry, SocketEndpoint},
    failure::Doing,
    health,
    image::{self, Image, host::HostImage},
    layout::Layout,
    network::Network,
    record::{Record, State},
    sandboxes::{Look, look},
    settle::Settler,
    spawner::{MAX_REPORT, Report, Spawner},
    usage::TimeSeen,
    user_namespaces::UserNamespaces,
};
use rustix::fd::OwnedFd;
use stacyvm_image::Images;
use stacyvm_provider::{
    AgentGuest, Error, ErrorKind, Identity, Locks, Result, RuntimeState, SandboxId, SandboxSpec,
};
use std::{
    collections::{BTreeSet, HashMap, HashSet},
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::io::AsyncReadExt;

/// Time for a new sandbox to set itself up and answer.
const START: Duration = Duration::from_secs(30);

/// A provider, shared by its calls and their tasks.
pub(crate) struct Inner {
    pub(crate) layout: Layout,
    pub(crate) installation_id: String,
    generation: u64,
    pub(crate) cgroups: cgroup::Host,
    /// Before the spawner, which takes the rules away once it is alone: fields are dropped in this order.
    pub(crate) network: Network,
    pub(crate) spawner: Arc<Spawner>,
    pub(crate) disks: Disks,
    pub(crate) user_namespaces: UserNamespaces,
    image_dirs: Vec<PathBuf>,
    pub(crate) images: Option<Images>,
    host_image: HostImage,
    settler: Settler,
    pub(crate) locks: Locks,
    /// Sandboxes that run and were looked at.
    entries: Mutex<HashMap<SandboxId, Arc<Entry>>>,
    /// Sandboxes that are being made now: half made on disk, and not to be taken for what a dead server left.
    making: Mutex<HashSet<SandboxId>>,
    pub(crate) upper_in_memory: AtomicBool,
    pub(crate) time_seen: TimeSeen,
    /// Paths of the host whose files belong to nobody in sandboxes with a user namespace.
    not_mapped: Mutex<BTreeSet<PathBuf>>,
}

impl Inner {
    /// Takes over what is in the data directory. The configuration was checked.
    pub(crate) fn start(config: NativeConfig) -> Result<Arc<Self>> {
        let layout = Layout::new(config.data_dir);
        let exclusive = config.lock.is_some();
        let network = Network::new(&config.installation_id, &config.network)?;
        let spawner = Arc::new(Spawner::new(
            config.spawner,
            layout.data_dir().to_owned(),
            config.installation_id.clone(),
            config.agent,
            config.lock,
        )?);
        let cgroups = cgroup::Host::discover(&config.installation_id);
        let user_namespaces = UserNamespaces::start(layout.clone(), Arc::clone(&spawner))?;
        let terms = Terms {
            limits_memory: cgroups.has(Controller::Memory),
            user_namespaces: user_namespaces.has_ranges(),
        };
        let inner = Arc::new(Self {
            disks: Disks::new(&layout, &config.installation_id, terms),
            cgroups,
            user_namespaces,
            layout,
            installation_id: config.installation_id,
            generation: config.generation,
            spawner,
            network,
            image_dirs: config.image_dirs,
            images: config.images,
            host_image: HostImage::default(),
            settler: Settler::start().doing(|| "start a thread".to_owned())?,
            locks: Locks::default(),
            entries: Mutex::default(),
            making: Mutex::default(),
            upper_in_memory: AtomicBool::new(false),
            time_seen: TimeSeen::default(),
            not_mapped: Mutex::default(),
        });
        if let Err(error) = inner.layout.prepare() {
            // The rest of the server may well work: health says what is wrong here.
            tracing::warn!(%error, "native sandboxes have no place");
            return Ok(inner);
        }
        if exclusive {
            inner.disks.tidy();
            inner.remove_ephemeral();
        }
        inner.network.start(&inner.layout, exclusive).doing(|| "start a thread".to_owned())?;
        let worker = Arc::clone(&inner);
        std::thread::Builder::new()
            .name("native-start".to_owned())
            .spawn(move || worker.warm_up(exclusive))
            .doing(|| "start a thread".to_owned())?;
        Ok(inner)
    }

    /// Removes ephemeral sandboxes whose server and spawner both died. The lock says that nobody else's are here.
    fn remove_ephemeral(&self) {
        for id in self.layout.ids().unwrap_or_default() {
            let record = Record::read(&self.layout.sandbox(&id)).unwrap_or_default();
            if record.spec.is_some_and(|s| s.ephemeral)
                && let Err(error) = destroy(&self.layout, &self.cgroups, &id)
            {
                tracing::warn!(sandbox = %id, %error, "an ephemeral sandbox of an earlier run is left");
            }
        }
    }

    /// What the first create would otherwise have to wait for, and what an earlier server left.
    fn warm_up(&self, exclusive: bool) {
        if let Err(error) = self.spawner.start() {
            tracing::warn!(%error, "the native spawner does not start");
        }
        self.user_namespaces.prepare();
        self.disks.method();
        match self.host_image.get(&self.layout) {
            Ok(current) if exclusive => {
                let ids = self.layout.ids().unwrap_or_default();
                let records = ids.iter().filter_map(|id| Record::read(&self.layout.sandbox(id)).ok());
                let mut used: HashSet<_> = records.filter_map(|r| r.state.map(|s| s.lower)).collect();
                used.insert(current.path.clone());
                image::host::remove_unused(&self.layout, &used);
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "the image host cannot be built"),
        }
        if let Err(error) = empty_trash(&self.layout, None) {
            tracing::warn!(%error, "the trash cannot be emptied");
        }
    }

    /// Runs something that may wait for the disk or the kernel.
    pub(crate) async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let inner = Arc::clone(self);
        match tokio::task::spawn_blocking(move || work(&inner)).await {
            Ok(result) => result,
            Err(e) => Err(Error::unavailable("the server is shutting down").because(e)),
        }
    }

    /// Looks at the sandbox on disk and in the kernel.
    pub(crate) async fn look(self: &Arc<Self>, id: &SandboxId) -> Result<Look> {
        let id = id.clone();
        self.blocking(move |inner| look(&inner.layout, &id)).await
    }

    fn guest(&self, id: &SandboxId) -> AgentGuest {
        let identity = Identity {
            installation_id: self.installation_id.clone(),
            generation: self.generation,
            sandbox_id: id.to_string(),
        };
        AgentGuest::new(Arc::new(SocketEndpoint::new(&self.layout, id)), identity)
    }

    /// The entry of a running sandbox, made if this is the first look at it.
    pub(crate) async fn entry(self: &Arc<Self>, id: &SandboxId) -> Result<Arc<Entry>> {
        let known = lock(&self.entries).get(id).cloned();
        if let Some(entry) = known {
            if entry.runs() {
                return Ok(entry);
            }
            lock(&self.entries).retain(|_, e| !Arc::ptr_eq(e, &entry));
        }
        if self.is_making(id) {
            return Err(Error::unavailable(format!("sandbox {id} is being made")));
        }
        match self.look(id).await? {
            Look::Absent => Err(Error::not_found(format!("sandbox {id} does not exist"))),
            Look::Ended { reason, .. } => Err(Error::destroyed(format!("sandbox {id} has ended: {reason}"))),
            Look::Running { state, pidfd, .. } => {
                let entry = self.watch(id, state, pidfd)?;
                Ok(Arc::clone(lock(&self.entries).entry(id.clone()).or_insert(entry)))
            }
        }
    }

    /// Makes sure that the guest of this sandbox has answered.
    ///
    /// The first answer says that the agent has made what its processes will descend from, which is when it can be taken
    /// out of their limits. For a sandbox of an earlier server that is done again, in case that one was killed before.
    pub(crate) async fn reach(&self, entry: &Entry) -> Result<()> {
        if entry.answers().await? {
            self.settler.settle(entry.state.clone());
        }
        Ok(())
    }

    /// Asks until the agent answers or its process has ended.
    async fn first_answer(&self, entry: &Entry) -> Result<()> {
        let mut pause = Duration::from_millis(1);
        loop {
            match self.reach(entry).await {
                Err(e) if e.kind() == ErrorKind::Unavailable && entry.runs() => {
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_millis(100));
                }
                result => return result,
            }
        }
    }

    fn watch(&self, id: &SandboxId, state: State, pidfd: OwnedFd) -> Result<Arc<Entry>> {
        let entry = Entry::new(state, pidfd, self.guest(id)).doing(|| format!("watch sandbox {id}"))?;
        Ok(Arc::new(entry))
    }

    /// Makes the sandbox, or what is missing of it. The caller has its turn.
    pub(crate) async fn create(self: &Arc<Self>, id: &SandboxId, spec: &SandboxSpec) -> Result<()> {
        // Until it has started, it is being made.
        let (made, _making) = match self.look_or_make(id, spec).await? {
            Found::Made(made, making) => (made, making),
            Found::There(Look::Running { spec: Some(there), .. }) if there != *spec => {
                return Err(Error::invalid_argument(format!("sandbox {id} exists and is another one")));
            }
            Found::There(Look::Running { .. }) => {
                let entry = self.entry(id).await?;
                match tokio::time::timeout(START, self.first_answer(&entry)).await {
                    // The first process of a server that died just now, about to notice.
                    Ok(Err(_)) if !entry.runs() => self.make_again(id, spec).await?,
                    Ok(result) => return result,
                    Err(_) => return Err(not_ready(id)),
                }
            }
            Found::There(_) => self.make_again(id, spec).await?,
        };
        let started = match made {
            Ok(made) => self.started(id, made).await,
            Err(e) => Err(e),
        };
        match started {
            Ok(entry) => {
                lock(&self.entries).insert(id.clone(), entry);
                Ok(())
            }
            Err(error) => {
                // The caller may try again or destroy; either works from here, and nothing runs meanwhile.
                if let Err(leftover) = self.remove(id).await {
                    tracing::warn!(sandbox = %id, error = %leftover.chain(), "a sandbox that failed is not removed yet");
                }
                Err(error)
            }
        }
    }

    /// Paths of the host whose files belong to nobody in sandboxes.
    pub(crate) fn not_mapped(&self) -> BTreeSet<PathBuf> {
        lock(&self.not_mapped).clone()
    }

    /// Sandboxes that are being made now.
    pub(crate) fn making(&self) -> HashSet<SandboxId> {
        lock(&self.making).clone()
    }

    /// Whether this sandbox is being made now.
    pub(crate) fn is_making(&self, id: &SandboxId) -> bool {
        lock(&self.making).contains(id)
    }

    /// Makes the sandbox, if there is nothing of it. In one piece of work, because handing work over takes a good part of the
    /// time that it takes itself.
    async fn look_or_make(self: &Arc<Self>, id: &SandboxId, spec: &SandboxSpec) -> Result<Found> {
        let stored = match &self.images {
            Some(images) if image::is_stored(&spec.image) => {
                // Nothing is pulled for a sandbox that is there.
                match self.look(id).await? {
                    Look::Absent => Some((images.clone(), images.obtain(&spec.image).await?)),
                    there => return Ok(Found::There(there)),
                }
            }
            _ => None,
        };
        let (inner, id, spec) = (Arc::clone(self), id.clone(), spec.clone());
        self.blocking(move |_| match look(&inner.layout, &id)? {
            Look::Absent => {
                // Only now: what existed was somebody's before, and is looked at as such.
                let making = Making::start(&inner, &id);
                let image = match stored {
                    Some((images, found)) => {
                        image::stored(&spec.image, &found, &images, inner.has_one_user())
                    }
                    None => image::resolve(&spec.image, &inner.layout, &inner.image_dirs, &inner.host_image),
                };
                Ok(Found::Made(image.and_then(|image| inner.make(&id, &spec, &image)), making))
            }
            there => Ok(Found::There(there)),
        })
        .await
    }

    /// Whether sandboxes have no users but the sandbox user.
    fn has_one_user(&self) -> bool {
        !self.user_namespaces.has_ranges()
    }

    /// Removes what is left of it, and makes it.
    async fn make_again(
        self: &Arc<Self>,
        id: &SandboxId,
        spec: &SandboxSpec,
    ) -> Result<(Result<Made>, Making)> {
        self.remove(id).await?;
        match self.look_or_make(id, spec).await? {
            Found::Made(made, making) => Ok((made, making)),
            Found::There(_) => {
                Err(Error::unavailable(format!("sandbox {id} is being made by somebody else")))
            }
        }
    }

    fn make(&self, id: &SandboxId, spec: &SandboxSpec, image: &Image) -> Result<Made> {
        self.disks.check(spec.disk_mb)?;
        let maker = Maker {
            layout: &self.layout,
            cgroups: &self.cgroups,
            spawner: &self.spawner,
            network: &self.network,
            disks: &self.disks,
            installation_id: &self.installation_id,
        };
        let mut user_namespace = self.user_namespaces.take()?;
        if let Some(namespace) = &mut user_namespace {
            namespace.give(id);
        }
        maker.make(id, spec, image, user_namespace.as_ref()).map_err(|error| {
            match health::tried(&self.spawner) {
                Some(problem) => Error::unavailable(problem).because(error),
                None => error,
            }
        })
    }

    /// Waits until the first process has become the agent and the agent answers.
    async fn started(self: &Arc<Self>, id: &SandboxId, made: Made) -> Result<Arc<Entry>> {
        let entry = self.watch(id, made.state, made.pidfd)?;
        // Whoever makes a sandbox runs something in it next. Nothing waits for this.
        let guest = Arc::clone(&entry.guest);
        tokio::spawn(async move { guest.warm_up().await });
        let reports = async { tokio::time::timeout(START, read_reports(made.status)).await };
        let answer = async { tokio::time::timeout(START, self.first_answer(&entry)).await };
        // Both at once: the agent listens before it runs, so the connection waits for it and not the other way round.
        let (reports, answer) = tokio::join!(reports, answer);
        for report in reports.unwrap_or_default() {
            match report {
                Report::UpperInMemory => self.upper_in_memory.store(true, Ordering::Relaxed),
                Report::NotMapped(path) => drop(lock(&self.not_mapped).insert(path)),
                Report::Failed(failure) => return Err(failure.into()),
            }
        }
        match answer {
            Ok(Ok(())) => Ok(entry),
            Ok(Err(error)) => {
                let log = self.layout.sandbox(id).join("agent.log");
                let log = self.blocking(move |_| Ok(log_tail(&log))).await.unwrap_or_default();
                Err(Error::internal(format!("the agent of sandbox {id} did not start"))
                    .because(format!("{}; its log: {log}", error.chain())))
            }
            Err(_) => Err(not_ready(id)),
        }
    }

    /// Where a sandbox that runs is frozen, and its cgroups.
    fn freezer(&self, id: &SandboxId) -> Result<(Freezer, SandboxCgroups)> {
        match look(&self.layout, id)? {
            Look::Absent => Err(Error::not_found(format!("sandbox {id} does not exist"))),
            Look::Ended { reason, .. } => Err(Error::destroyed(format!("sandbox {id} has ended: {reason}"))),
            Look::Running { state, .. } => match self.cgroups.freezer(id.as_str(), &state.cgroups) {
                Some(freezer) => Ok((freezer, state.cgroups)),
                None => Err(Error::unsupported(
                    "this host cannot pause native sandboxes: it offers no writable cgroup controller freezer",
                )),
            },
        }
    }

    /// Stops all its processes. The caller has its turn.
    pub(crate) async fn pause(self: &Arc<Self>, id: &SandboxId) -> Result<()> {
        let id = id.clone();
        self.blocking(move |inner| {
            let (freezer, cgroups) = inner.freezer(&id)?;
            if freezer.freeze(&cgroups)? {
                return Ok(());
            }
            Err(Error::unavailable(format!(
                "sandbox {id} goes on: some of its processes did not stop within {} s; try again",
                FREEZE.as_secs()
            )))
        })
        .await
    }

    /// Lets its processes go on. The caller has its turn.
    pub(crate) async fn resume(self: &Arc<Self>, id: &SandboxId) -> Result<()> {
        let id = id.clone();
        self.blocking(move |inner| Ok(inner.freezer(&id)?.0.thaw()?)).await
    }

    /// State of a sandbox whose first process runs.
    pub(crate) fn running_state(&self, id: &SandboxId, state: &State) -> Result<RuntimeState> {
        let Some(freezer) = self.cgroups.freezer(id.as_str(), &state.cgroups) else {
            return Ok(RuntimeState::Running);
        };
        let unknown = |e: std::io::Error| {
            Error::unavailable(format!("whether sandbox {id} is paused cannot be read")).because(e)
        };
        Ok(if freezer.is_frozen().map_err(unknown)? { RuntimeState::Paused } else { RuntimeState::Running })
    }

    /// Removes the sandbox, or what is left of it. The caller has its turn.
    pub(crate) async fn remove(self: &Arc<Self>, id: &SandboxId) -> Result<()> {
        lock(&self.entries).remove(id);
        let removed = id.clone();
        self.blocking(move |inner| {
            destroy(&inner.layout, &inner.cgroups, &removed)?;
            inner.spawner.forget(&removed);
            inner.user_namespaces.release(&removed);
            inner.time_seen.forget(&removed);
            Ok(())
        })
        .await
    }
}

/// What a create came upon.
enum Found {
    /// It exists, or did.
    There(Look),
    /// There was nothing, so it was made, as far as that went.
    Made(Result<Made>, Making),
}

/// Marks a sandbox as being made, for as long as it lives.
struct Making {
    inner: Arc<Inner>,
    id: SandboxId,
}

impl Making {
    fn start(inner: &Arc<Inner>, id: &SandboxId) -> Self {
        lock(&inner.making).insert(id.clone());
        Self { inner: Arc::clone(inner), id: id.clone() }
    }
}

impl Drop for Making {
    fn drop(&mut self) {
        lock(&self.inner.making).remove(&self.id);
    }
}

fn not_ready(id: &SandboxId) -> Error {
    Error::timeout(format!("sandbox {id} did not answer within {} s", START.as_secs()))
}

async fn read_reports(status: OwnedFd) -> Vec<Report> {
    let mut text = Vec::new();
    if let Ok(pipe) = tokio::net::unix::pipe::Receiver::from_owned_fd(status) {
        // What cannot be read was not written.
        let _ = pipe.take(MAX_REPORT).read_to_end(&mut text).await;
    }
    Report::parse(&text)
}

/// The last lines of an agent's log, for ours.
fn log_tail(path: &std::path::Path) -> String {
    const BYTES: usize = 2048;
    let (bytes, _) = console::tail(path, BYTES).unwrap_or_default();
    String::from_utf8_lossy(&bytes).trim().to_owned()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No critical section here can leave its value half changed.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
