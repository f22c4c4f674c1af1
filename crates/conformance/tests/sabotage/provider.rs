//! The mock with defects in its life cycle, and with a guest that has some.

use crate::{Defect, Defects, guest::BrokenGuest};
use async_trait::async_trait;
use stacyvm_provider::{
    Capabilities, Created, Error, ErrorKind, Guest, Health, Provider, Result, RuntimeSandbox, RuntimeState,
    RuntimeStats, SandboxId, SandboxSpec,
    mock::{MISSING_IMAGE, MockProvider},
};
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    io::Write,
    os::unix::fs::OpenOptionsExt,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

/// The mock, made wrong.
pub(crate) struct Broken {
    inner: MockProvider,
    defects: Defects,
    /// Spec of every sandbox that was ever asked for.
    asked: Mutex<HashMap<SandboxId, SandboxSpec>>,
    connected: Mutex<HashSet<SandboxId>>,
    leaked: Mutex<Vec<Child>>,
    paused: Mutex<HashSet<SandboxId>>,
    resumed: Mutex<HashSet<SandboxId>>,
    refused: Mutex<HashSet<SandboxId>>,
    oom_ends_sandbox: bool,
    scratch: tempfile::TempDir,
}

impl Broken {
    pub(crate) fn new(inner: MockProvider, defects: Defects) -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let probe = scratch.path().join("probe");
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o755)
            .open(probe)
            .unwrap();
        file.write_all(stacyvm_guest_binaries::PROBE).unwrap();
        let (asked, connected, leaked) = Default::default();
        let (paused, resumed, refused) = Default::default();
        Self {
            inner,
            defects,
            asked,
            connected,
            leaked,
            paused,
            resumed,
            refused,
            oom_ends_sandbox: false,
            scratch,
        }
    }

    /// The same, and it says that running out of memory ends its sandboxes.
    pub(crate) fn that_ends_of_its_memory(mut self) -> Self {
        self.oom_ends_sandbox = true;
        self
    }

    fn claims_memory_limit(&self) -> bool {
        self.defects.has(Defect::ClaimsMemoryLimit) || self.defects.has(Defect::HidesOom)
    }

    fn claims_disk_limit(&self) -> bool {
        self.defects.has(Defect::ClaimsDiskLimit) || self.defects.has(Defect::HidesDiskFull)
    }

    async fn pause_wrongly(&self, id: &SandboxId) -> Result<()> {
        if self.defects.has(Defect::SecondPauseFails) && self.paused.lock().unwrap().contains(id) {
            return Err(Error::invalid_argument("it is paused already"));
        }
        if self.defects.has(Defect::PausesInNameOnly) {
            return self.inner.status(id).await.map(drop);
        }
        if self.defects.has(Defect::PausesAgentOnly) {
            self.inner.status(id).await?;
            let directory = self.inner.settings()["directory"].clone();
            let record = std::fs::read(format!("{directory}/{id}/agent.json")).unwrap();
            let record: serde_json::Value = serde_json::from_slice(&record).unwrap();
            let agent = rustix::process::Pid::from_raw(record["pid"].as_i64().unwrap() as i32).unwrap();
            rustix::process::kill_process(agent, rustix::process::Signal::STOP).unwrap();
            // On a busy host that takes a moment, and its own defect is to be seen, not that. Nothing may come between.
            let stat = format!("/proc/{}/stat", agent.as_raw_nonzero());
            let stopped = || std::fs::read_to_string(&stat).is_ok_and(|stat| stat.contains(") T "));
            for _ in 0..200 {
                if stopped() {
                    break;
                }
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            return Ok(());
        }
        self.inner.pause(id).await
    }

    /// What is said of a sandbox that is really in this state.
    fn said(&self, id: &SandboxId, state: RuntimeState) -> RuntimeState {
        let in_name = self.defects.has(Defect::PausesInNameOnly) && self.paused.lock().unwrap().contains(id);
        match state {
            RuntimeState::Paused if self.defects.has(Defect::PausedLooksRunning) => RuntimeState::Running,
            RuntimeState::Running if in_name && !self.defects.has(Defect::PausedLooksRunning) => {
                RuntimeState::Paused
            }
            state => state,
        }
    }

    /// Whether the defect lets a call for an unknown sandbox succeed.
    fn pretends(&self, result: &Result<()>) -> bool {
        let unknown = result.as_ref().is_err_and(|error| error.kind() == ErrorKind::NotFound);
        unknown && self.defects.has(Defect::PauseOfUnknownWorks)
    }

    /// Starts, outside the sandbox, a double of a process that runs in it: as if that one had got away.
    async fn let_one_get_away(&self, id: &SandboxId) {
        let Ok(guest) = self.inner.connect(id).await else { return };
        let processes = guest.processes().await.unwrap_or_default();
        let Some(argv) =
            processes.iter().map(|p| &p.argv).find(|argv| argv.len() > 2 && argv[1] == "ignore-term")
        else {
            return;
        };
        let mut command = Command::new(self.scratch.path().join("probe"));
        command.args(&argv[1..]).stdin(Stdio::null()).stdout(Stdio::null()).env_clear();
        for _ in 0..100 {
            if let Ok(child) = command.spawn() {
                self.leaked.lock().unwrap().push(child);
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

impl Drop for Broken {
    fn drop(&mut self) {
        for child in self.leaked.get_mut().unwrap() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[async_trait]
impl Provider for Broken {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn capabilities(&self) -> Capabilities {
        let honest = self.inner.capabilities();
        Capabilities {
            memory_limit: honest.memory_limit || self.claims_memory_limit(),
            pids_limit: honest.pids_limit
                || self.defects.has(Defect::ClaimsPidsLimit)
                || self.defects.has(Defect::HidesPidsHit),
            disk_limit: honest.disk_limit || self.claims_disk_limit(),
            oom_ends_sandbox: self.oom_ends_sandbox,
            ..honest
        }
    }

    async fn health(&self) -> Health {
        self.inner.health().await
    }

    async fn create(&self, id: &SandboxId, spec: &SandboxSpec) -> Result<Created> {
        let before = self.asked.lock().unwrap().insert(id.clone(), spec.clone());
        if self.defects.has(Defect::CreateStartsOver) && before.is_some() {
            self.inner.destroy(id).await?;
        }
        // The mock refuses a limit that it does not keep.
        let disk_mb = if self.claims_disk_limit() { 0 } else { spec.disk_mb };
        let spec = &SandboxSpec { disk_mb, ..spec.clone() };
        if self.defects.has(Defect::SubstitutesImage) && spec.image == MISSING_IMAGE {
            let spec = SandboxSpec { image: "host".to_owned(), ..spec.clone() };
            return self.inner.create(id, &spec).await;
        }
        self.inner.create(id, spec).await
    }

    async fn connect(&self, id: &SandboxId) -> Result<Arc<dyn Guest>> {
        let known = self.asked.lock().unwrap().contains_key(id);
        if self.defects.has(Defect::UnknownConnectUnavailable) && !known {
            return Err(Error::unavailable("the guest does not answer"));
        }
        let guest = self.inner.connect(id).await?;
        self.connected.lock().unwrap().insert(id.clone());
        let resumed = self.resumed.lock().unwrap().contains(id);
        Ok(Arc::new(BrokenGuest::new(guest, self.defects, resumed)))
    }

    async fn destroy(&self, id: &SandboxId) -> Result<()> {
        if self.defects.has(Defect::LeaksProcessOnDestroy) {
            self.let_one_get_away(id).await;
        }
        if self.defects.has(Defect::UnknownDestroyFails) && !self.asked.lock().unwrap().contains_key(id) {
            return Err(Error::not_found(format!("sandbox {id} does not exist")));
        }
        let paused = self.defects.has(Defect::PausedIsNotDestroyed)
            && self.inner.status(id).await.is_ok_and(|state| self.said(id, state) == RuntimeState::Paused);
        if paused && self.refused.lock().unwrap().insert(id.clone()) {
            return Err(Error::unavailable("it is paused"));
        }
        self.paused.lock().unwrap().remove(id);
        self.inner.destroy(id).await
    }

    async fn pause(&self, id: &SandboxId) -> Result<()> {
        let result = self.pause_wrongly(id).await;
        if self.pretends(&result) {
            return Ok(());
        }
        result?;
        self.paused.lock().unwrap().insert(id.clone());
        Ok(())
    }

    async fn resume(&self, id: &SandboxId) -> Result<()> {
        let result = self.inner.resume(id).await;
        if self.pretends(&result) {
            return Ok(());
        }
        result?;
        self.paused.lock().unwrap().remove(id);
        self.resumed.lock().unwrap().insert(id.clone());
        Ok(())
    }

    async fn status(&self, id: &SandboxId) -> Result<RuntimeState> {
        self.inner.status(id).await.map(|state| self.said(id, state))
    }

    async fn ended(&self, id: &SandboxId) -> String {
        if self.defects.has(Defect::EndedReturnsEarly) {
            return "it may have ended".to_owned();
        }
        if self.defects.has(Defect::EndedNeverReturns) {
            return std::future::pending().await;
        }
        self.inner.ended(id).await
    }

    async fn list(&self) -> Result<Vec<RuntimeSandbox>> {
        let mut listed = self.inner.list().await?;
        for entry in &mut listed {
            entry.state = self.said(&entry.id, entry.state.clone());
        }
        if self.defects.has(Defect::ListOmitsUnconnected) {
            let connected = self.connected.lock().unwrap();
            listed.retain(|entry| connected.contains(&entry.id));
        }
        Ok(listed)
    }

    async fn stats(&self, id: &SandboxId) -> Result<RuntimeStats> {
        let mut stats = match self.inner.stats(id).await {
            Err(error) if error.kind() == ErrorKind::NotFound => return Err(error),
            _ if self.defects.has(Defect::StatsAreMadeUp) => {
                RuntimeStats { cpu_time: Duration::ZERO, memory_bytes: 1, memory_limit_bytes: 0, pids: 1 }
            }
            other => other?,
        };
        if self.claims_memory_limit() {
            let asked = self.asked.lock().unwrap();
            stats.memory_limit_bytes = asked.get(id).map_or(0, |spec| u64::from(spec.memory_mb) << 20);
        }
        Ok(stats)
    }

    fn settings(&self) -> BTreeMap<String, String> {
        self.inner.settings()
    }
}
