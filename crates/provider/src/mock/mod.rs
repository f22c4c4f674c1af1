//! A provider without isolation, for tests of everything above the contract and of the conformance suite itself.
//!
//! Each sandbox is a directory and a real agent that runs as an ordinary process of this host: processes, streams and
//! files behave exactly as elsewhere, because they are the same code. What a runtime adds (a filesystem, processes and a
//! network of one's own, limits) is missing, and [`Provider::capabilities`] says so. Never for untrusted work.

mod agent;
mod host;

use crate::{
    Capabilities, Created, Error, Guest, Health, Provider, Result, RuntimeSandbox, RuntimeState,
    RuntimeStats, SandboxId, SandboxSpec,
};
use agent::Agent;
use async_trait::async_trait;
use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// An image that this provider refuses to have, so that callers can see a refusal. It takes every other name.
pub const MISSING_IMAGE: &str = "stacyvm/no-such-image:none";

/// Time for processes to be gone after they were killed.
const GONE: Duration = Duration::from_secs(5);

/// Sandboxes that isolate nothing: directories and agents on this host.
pub struct MockProvider {
    installation_id: String,
    generation: u64,
    /// `<directory>/<installation>`; in it `stacyvm-agent` and one directory for each sandbox.
    base: PathBuf,
    /// The agent's program, an executable for this host.
    program: Cow<'static, [u8]>,
    slots: Mutex<HashMap<SandboxId, Arc<Slot>>>,
    /// Present when the sandboxes end with this value.
    private: Option<tempfile::TempDir>,
}

/// What is known about one sandbox. Exists for every id that was ever asked for and not destroyed.
#[derive(Default)]
struct Slot {
    /// Held through create and destroy, so that two at once take turns.
    life: tokio::sync::Mutex<()>,
    agent: Mutex<Option<Agent>>,
    usage: Mutex<host::Ledger>,
}

impl Slot {
    fn agent(&self) -> MutexGuard<'_, Option<Agent>> {
        self.agent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl MockProvider {
    /// A provider with a private temporary directory: its sandboxes are destroyed when the value is dropped. `program`
    /// is the agent, as embedded by `stacyvm_guest_binaries::AGENT`.
    ///
    /// # Errors
    /// The temporary directory cannot be made.
    pub fn new(
        installation_id: impl Into<String>,
        generation: u64,
        program: impl Into<Cow<'static, [u8]>>,
    ) -> io::Result<Self> {
        let private = tempfile::Builder::new().prefix("stacyvm-mock-").tempdir()?;
        let mut provider = Self::open(private.path(), installation_id, generation, program)?;
        provider.private = Some(private);
        Ok(provider)
    }

    /// A provider whose sandboxes live in `directory` and outlive it: opened again there, it finds them.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn open(
        directory: &Path,
        installation_id: impl Into<String>,
        generation: u64,
        program: impl Into<Cow<'static, [u8]>>,
    ) -> io::Result<Self> {
        let installation_id = installation_id.into();
        let base = directory.join(&installation_id);
        std::fs::create_dir_all(&base)?;
        let slots = Mutex::new(HashMap::new());
        let base = base.canonicalize()?;
        Ok(Self { installation_id, generation, base, program: program.into(), slots, private: None })
    }

    fn directory(&self, id: &SandboxId) -> PathBuf {
        self.base.join(id.as_str())
    }

    fn slot(&self, id: &SandboxId) -> Arc<Slot> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(slots.entry(id.clone()).or_default())
    }

    /// Lets the next caller start from what is on disk.
    fn forget(&self, id: &SandboxId) {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }

    fn owner(&self, id: &SandboxId) -> agent::Owner {
        agent::Owner {
            installation_id: self.installation_id.clone(),
            generation: self.generation,
            sandbox: id.clone(),
            directory: self.directory(id),
        }
    }

    /// The agent of a sandbox, adopted from its record when another value started it.
    ///
    /// # Errors
    /// `NotFound` without any trace of the sandbox, `Destroyed` when it is only half there.
    fn agent(&self, id: &SandboxId) -> Result<Agent> {
        if !self.directory(id).is_dir() {
            return Err(Error::not_found(format!("sandbox {id} does not exist")));
        }
        let slot = self.slot(id);
        let mut known = slot.agent();
        if known.is_none() {
            *known = Agent::adopt(&self.owner(id));
        }
        known.clone().ok_or_else(|| Error::destroyed(format!("sandbox {id} was never completed")))
    }

    /// The same, unless it has ended.
    fn living(&self, id: &SandboxId) -> Result<Agent> {
        let agent = self.agent(id)?;
        match agent.end_reason() {
            Some(reason) => Err(Error::destroyed(format!("sandbox {id} has ended: {reason}"))),
            None => Ok(agent),
        }
    }

    async fn create_locked(&self, id: &SandboxId, spec: &SandboxSpec, slot: &Slot) -> Result<()> {
        let owner = self.owner(id);
        let directory = owner.directory.clone();
        let known = slot.agent().clone().or_else(|| Agent::adopt(&owner));
        let agent = match known {
            Some(agent) => match agent.end_reason() {
                None => agent,
                Some(reason) => return Err(Error::destroyed(format!("sandbox {id} has ended: {reason}"))),
            },
            None => {
                // An earlier attempt may have been cut off behind the start of its agent.
                host::kill_all(&owner, GONE).await?;
                let text = serde_json::to_vec(spec)
                    .map_err(|e| Error::internal("cannot store the spec").because(e))?;
                host::make_root(&directory, &text)
                    .map_err(|e| failed(&format!("cannot make sandbox {id}"), e))?;
                let binary = agent::install(&self.base, &self.program)
                    .map_err(|e| failed("cannot store the agent", e))?;
                Agent::start(&owner, &binary).map_err(|e| failed(&format!("cannot start sandbox {id}"), e))?
            }
        };
        // Stored before the first wait: a caller that gives up now still finds it.
        *slot.agent() = Some(agent.clone());
        agent.ready().await
    }
}

#[async_trait]
impl Provider for MockProvider {
    fn name(&self) -> &str {
        "mock"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            isolation: "test_provider",
            survives_restart: self.private.is_none(),
            memory_limit: false,
            cpu_limit: false,
            pids_limit: false,
            root_user: false,
            isolated: false,
            stats: true,
            pause: true,
            oom_ends_sandbox: false,
            disk_limit: false,
            pty: true,
            pty_signals: true,
        }
    }

    async fn health(&self) -> Health {
        let started = Instant::now();
        let problem = (!self.base.is_dir())
            .then(|| format!("its directory {} is gone: restart the server", self.base.display()));
        let warnings = vec!["the mock provider isolates nothing: use it for tests only".to_owned()];
        Health { healthy: problem.is_none(), problem, warnings, latency: started.elapsed() }
    }

    async fn create(&self, id: &SandboxId, spec: &SandboxSpec) -> Result<Created> {
        spec.refuse_runtime(self.name())?;
        spec.refuse_network(self.name())?;
        if spec.disk_mb > 0 {
            return Err(Error::unsupported("the mock runtime limits nothing: leave disk_size_mb out"));
        }
        if spec.image.is_empty() {
            return Err(Error::invalid_argument("the image has no name"));
        }
        if spec.image == MISSING_IMAGE {
            return Err(Error::not_found(format!("image {MISSING_IMAGE} does not exist")));
        }
        let slot = self.slot(id);
        let turn = slot.life.lock().await;
        let made = self.create_locked(id, spec, &slot).await;
        drop(turn);
        made.map(|()| Created { runtime_id: None })
    }

    async fn connect(&self, id: &SandboxId) -> Result<Arc<dyn Guest>> {
        let agent = self.living(id)?;
        agent.guest().ping().await?;
        Ok(agent.guest())
    }

    async fn destroy(&self, id: &SandboxId) -> Result<()> {
        let slot = self.slot(id);
        let turn = slot.life.lock().await;
        let owner = self.owner(id);
        let agent = slot.agent().clone().or_else(|| Agent::adopt(&owner));
        if let Some(agent) = agent {
            agent.terminate().await;
        }
        host::kill_all(&owner, GONE).await?;
        let directory = owner.directory;
        let removed = tokio::task::spawn_blocking(move || host::remove_tree(&directory)).await;
        removed
            .map_err(|e| Error::internal(format!("cannot remove sandbox {id}")).because(e))?
            .map_err(|e| failed(&format!("cannot remove the files of sandbox {id}"), e))?;
        self.forget(id);
        drop(turn);
        Ok(())
    }

    async fn pause(&self, id: &SandboxId) -> Result<()> {
        self.living(id)?;
        let slot = self.slot(id);
        let _turn = slot.life.lock().await;
        self.living(id)?;
        host::stop_all(&self.owner(id), GONE).await
    }

    async fn resume(&self, id: &SandboxId) -> Result<()> {
        self.living(id)?;
        let slot = self.slot(id);
        let _turn = slot.life.lock().await;
        self.living(id)?;
        host::continue_all(&self.owner(id));
        Ok(())
    }

    async fn status(&self, id: &SandboxId) -> Result<RuntimeState> {
        match self.agent(id) {
            Ok(agent) => Ok(agent.state()),
            Err(error) if error.kind() == crate::ErrorKind::Destroyed => {
                Ok(RuntimeState::Ended { reason: error.message().to_owned() })
            }
            Err(error) => Err(error),
        }
    }

    async fn ended(&self, id: &SandboxId) -> String {
        match self.agent(id) {
            Ok(agent) => agent.ended().await,
            Err(error) => error.message().to_owned(),
        }
    }

    async fn list(&self) -> Result<Vec<RuntimeSandbox>> {
        let unreadable = |e: io::Error| Error::unavailable("cannot list the sandboxes").because(e);
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&self.base).map_err(unreadable)? {
            let name = entry.map_err(unreadable)?.file_name();
            let Some(id) = name.to_str().and_then(|name| name.parse::<SandboxId>().ok()) else { continue };
            // One that goes away meanwhile is not held any more.
            let Ok(state) = self.status(&id).await else { continue };
            let image = host::stored_spec(&self.directory(&id)).map(|spec| spec.image);
            found.push(RuntimeSandbox { id, state, image });
        }
        found.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(found)
    }

    async fn stats(&self, id: &SandboxId) -> Result<RuntimeStats> {
        self.living(id)?;
        let slot = self.slot(id);
        let mut ledger = slot.usage.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(host::usage(&self.owner(id), &mut ledger))
    }

    fn settings(&self) -> BTreeMap<String, String> {
        BTreeMap::from([("directory".to_owned(), self.base.display().to_string())])
    }
}

impl Drop for MockProvider {
    fn drop(&mut self) {
        if self.private.is_none() {
            return;
        }
        let Ok(entries) = std::fs::read_dir(&self.base) else { return };
        for name in entries.flatten().map(|entry| entry.file_name()) {
            if let Some(id) = name.to_str().and_then(|name| name.parse::<SandboxId>().ok()) {
                let owner = self.owner(&id);
                let deadline = Instant::now() + GONE;
                while host::kill_once(&owner) > 0 && Instant::now() < deadline {
                    std::thread::sleep(Duration::from_millis(2));
                }
                let _ = host::remove_tree(&owner.directory);
            }
        }
    }
}

fn failed(what: &str, error: io::Error) -> Error {
    let full = matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
    let message = if full { format!("{what}: the disk is full") } else { what.to_owned() };
    let kind = if full { crate::ErrorKind::ResourceLimit } else { crate::ErrorKind::Internal };
    Error::new(kind, message).because(error)
}
