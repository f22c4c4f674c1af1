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
        Self { inner, defects, asked, connected, leaked, scratch }
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
            memory_limit: honest.memory_limit || self.defects.has(Defect::ClaimsMemoryLimit),
            pids_limit: honest.pids_limit || self.defects.has(Defect::ClaimsPidsLimit),
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
        Ok(Arc::new(BrokenGuest::new(guest, self.defects)))
    }

    async fn destroy(&self, id: &SandboxId) -> Result<()> {
        if self.defects.has(Defect::LeaksProcessOnDestroy) {
            self.let_one_get_away(id).await;
        }
        if self.defects.has(Defect::UnknownDestroyFails) && !self.asked.lock().unwrap().contains_key(id) {
            return Err(Error::not_found(format!("sandbox {id} does not exist")));
        }
        self.inner.destroy(id).await
    }

    async fn status(&self, id: &SandboxId) -> Result<RuntimeState> {
        self.inner.status(id).await
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
        if self.defects.has(Defect::ClaimsMemoryLimit) {
            let asked = self.asked.lock().unwrap();
            stats.memory_limit_bytes = asked.get(id).map_or(0, |spec| u64::from(spec.memory_mb) << 20);
        }
        Ok(stats)
    }

    fn settings(&self) -> BTreeMap<String, String> {
        self.inner.settings()
    }
}
