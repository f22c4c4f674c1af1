//! A host of its own for each test: a data directory, an installation name, and a look at what is left at the end.

#![expect(dead_code, reason = "each test program uses its own part of this")]
#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

use futures::StreamExt;
use stacyvm_provider::{
    Guest, Outcome, OutputEvent, ProcessInfo, ProcessSpec, Provider, SandboxId, SandboxSpec, StdStream,
};
use stacyvm_provider_native::{NativeConfig, NativeProvider, SpawnerCommand};
use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

/// One installation.
pub(crate) struct Host {
    pub(crate) data_dir: PathBuf,
    pub(crate) installation: String,
    /// Ours to remove.
    tmp: Option<PathBuf>,
}

/// Also behind a test that failed: no process, no cgroup, no file.
impl Drop for Host {
    fn drop(&mut self) {
        let Some(tmp) = &self.tmp else { return };
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            for pid in self.processes().into_iter().filter_map(rustix::process::Pid::from_raw) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
            self.cgroups().iter().for_each(|c| remove_cgroups(c));
            // Not at the first go if a provider's thread is still at work in it.
            let removed = fs::remove_dir_all(tmp).is_ok() || !tmp.exists();
            let done = removed && self.processes().is_empty() && self.cgroups().is_empty();
            if done || Instant::now() > deadline {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn remove_cgroups(path: &Path) {
    let children = fs::read_dir(path).into_iter().flatten().flatten();
    children.filter(|c| c.path().is_dir()).for_each(|c| remove_cgroups(&c.path()));
    // One that is frozen does not end.
    for (file, value) in [("freezer.state", "THAWED"), ("cgroup.freeze", "0")] {
        if path.join(file).exists() {
            let _ = fs::write(path.join(file), value);
        }
    }
    let _ = fs::remove_dir(path);
}

impl Host {
    pub(crate) fn new() -> Self {
        Self::beneath("data")
    }

    /// With a data directory of this name in a temporary one.
    pub(crate) fn beneath(name: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        // On disk: an overlay needs a filesystem that can carry it.
        let tmp = tempfile::Builder::new().prefix("native-").tempdir_in("/var/tmp").unwrap();
        let installation = format!("test-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        Self { data_dir: tmp.path().join(name), installation, tmp: Some(tmp.keep()) }
    }

    /// One that somebody else made and removes.
    pub(crate) fn at(data_dir: &Path, installation: &str) -> Self {
        Self { data_dir: data_dir.to_owned(), installation: installation.to_owned(), tmp: None }
    }

    pub(crate) fn config(&self, generation: u64) -> NativeConfig {
        NativeConfig {
            data_dir: self.data_dir.clone(),
            installation_id: self.installation.clone(),
            generation,
            spawner: SpawnerCommand {
                program: env!("CARGO_BIN_EXE_native-spawner").into(),
                args: Vec::new(),
            },
            agent: stacyvm_guest_binaries::AGENT,
            image_dirs: vec!["/var/tmp".into()],
            images: None,
            network: Default::default(),
            lock: None,
        }
    }

    pub(crate) fn provider(&self, generation: u64) -> NativeProvider {
        NativeProvider::start(self.config(generation)).unwrap()
    }

    /// A provider that has this directory to itself, once nobody else has.
    pub(crate) fn exclusive_provider(&self, generation: u64) -> NativeProvider {
        fs::create_dir_all(&self.data_dir).unwrap();
        let lock = fs::File::create(self.data_dir.join("lock")).unwrap();
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
        NativeProvider::start(NativeConfig { lock: Some(lock.into()), ..self.config(generation) }).unwrap()
    }

    /// Processes that carry the name of this installation, and the spawners of its data directory.
    pub(crate) fn processes(&self) -> Vec<i32> {
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<i32>().ok()) else { continue };
            let arguments = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let mut arguments = arguments.split(|b| *b == 0);
            if arguments.any(|a| a == self.installation.as_bytes()) {
                found.push(pid);
            }
        }
        found
    }

    /// What is left of sandboxes: processes, mounts, cgroups, files. Waits a little, because the end of the last process
    /// is reported before the kernel has tidied up behind it.
    #[track_caller]
    pub(crate) fn assert_nothing_left(&self) {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let left = self.left();
            if left.is_empty() {
                return;
            }
            assert!(Instant::now() < deadline, "left behind: {left:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn left(&self) -> Vec<String> {
        let mut left: Vec<String> = self.processes().iter().map(|p| format!("process {p}")).collect();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let data_dir = self.data_dir.to_str().unwrap();
        left.extend(mounts.lines().filter(|m| m.contains(data_dir)).map(|m| format!("mount {m}")));
        left.extend(self.loop_devices().iter().map(|l| format!("loop device of {l}")));
        left.extend(self.cgroups().iter().map(|c| format!("cgroup {}", c.display())));
        for directory in ["sandboxes", "trash"] {
            let entries = fs::read_dir(self.data_dir.join(directory)).into_iter().flatten().flatten();
            left.extend(entries.map(|e| format!("file {}", e.path().display())));
        }
        left
    }

    /// Files of this installation that are behind loop devices.
    pub(crate) fn loop_devices(&self) -> Vec<String> {
        let devices = fs::read_dir("/sys/block").into_iter().flatten().flatten();
        devices
            .filter_map(|device| fs::read_to_string(device.path().join("loop/backing_file")).ok())
            .filter(|file| file.contains(self.data_dir.to_str().unwrap()))
            .collect()
    }

    /// Cgroups of this installation.
    pub(crate) fn cgroups(&self) -> Vec<PathBuf> {
        let hierarchies = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|e| e.path());
        let name = format!("stacyvm-{}", self.installation);
        hierarchies.chain(["/sys/fs/cgroup".into()]).map(|h| h.join(&name)).filter(|c| c.exists()).collect()
    }
}

pub(crate) fn id(name: &str) -> SandboxId {
    format!("sb-{name}").parse().unwrap()
}

/// The image `host` without limits.
pub(crate) fn spec() -> SandboxSpec {
    SandboxSpec::new("host")
}

/// How a command went.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) info: ProcessInfo,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ran {
    /// Its output, if it succeeded.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.info.outcome, Some(Outcome::Exited(0)), "{self:?}");
        self.stdout
    }
}

/// Runs a command to its end.
pub(crate) async fn run(guest: &dyn Guest, argv: &[&str]) -> Ran {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let process = format!("p-{}", COUNT.fetch_add(1, Ordering::Relaxed));
    let spec = ProcessSpec {
        id: process.clone(),
        argv: argv.iter().map(|a| (*a).to_owned()).collect(),
        deadline: Some(Duration::from_secs(60)),
        ..ProcessSpec::default()
    };
    guest.start(&spec).await.unwrap();
    collect(guest, &process, 0).await
}

/// Reads a process from `offset` to its end.
pub(crate) async fn collect(guest: &dyn Guest, process: &str, offset: u64) -> Ran {
    let mut stream = guest.attach(process, offset, true, true).await.unwrap();
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    while let Some(event) = stream.next().await {
        match event.unwrap() {
            OutputEvent::Chunk { stream: StdStream::Stdout, data, .. } => stdout.extend_from_slice(&data),
            OutputEvent::Chunk { stream: StdStream::Stderr, data, .. } => stderr.extend_from_slice(&data),
            OutputEvent::Gap { offset, length } => panic!("{length} bytes are missing at {offset}"),
            OutputEvent::Exit(info) => {
                let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                return Ran { info: *info, stdout: text(&stdout), stderr: text(&stderr) };
            }
        }
    }
    panic!("the stream of {process} ended without an exit");
}

/// Runs a shell command and returns what it printed, if it succeeded.
pub(crate) async fn sh(guest: &dyn Guest, script: &str) -> String {
    run(guest, &["sh", "-c", script]).await.ok()
}

/// The number of the first process of a sandbox, from its record.
pub(crate) fn first_process(host: &Host, id: &SandboxId) -> i32 {
    let path = host.data_dir.join("sandboxes").join(id.as_str()).join("state.json");
    let state: serde_json::Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    i32::try_from(state["process"]["pid"].as_i64().unwrap()).unwrap()
}

/// Children of this program that run the spawner.
pub(crate) fn spawners() -> Vec<i32> {
    let me = std::process::id().to_string();
    let of = |pid: &i32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.starts_with("Name:\tnative-spawner\n") && status.contains(&format!("\nPPid:\t{me}\n"))
    };
    let pids = fs::read_dir("/proc").unwrap().flatten();
    pids.filter_map(|e| e.file_name().to_str()?.parse().ok()).filter(of).collect()
}

/// Kills a process of this test's own.
pub(crate) fn kill(pid: i32) {
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

/// Creates and connects.
pub(crate) async fn sandbox(
    provider: &NativeProvider,
    id: &SandboxId,
    spec: &SandboxSpec,
) -> std::sync::Arc<dyn Guest> {
    provider.create(id, spec).await.unwrap();
    provider.connect(id).await.unwrap()
}
