//! The agent process of one mock sandbox: started here, or found again by the record of an earlier provider value.

use super::host;
use crate::{AgentEndpoint, AgentGuest, Error, Guest, Result, RuntimeState, SandboxId};
use async_trait::async_trait;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};
use serde::{Deserialize, Serialize};
use stacyvm_guest::host::{Duplex, Identity};
use std::{
    fs,
    io::{self, Write},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{fs::OpenOptionsExt, net::UnixListener},
    },
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};
use tokio::{net::UnixStream, process::Command, sync::watch};

/// Time for a fresh agent to answer.
const START: Duration = Duration::from_secs(5);
/// Time for an agent to end its processes and itself when asked.
const POLITE: Duration = Duration::from_secs(2);
/// How often an adopted agent, which is nobody's child here, is looked at.
const WATCH: Duration = Duration::from_millis(20);

/// Which sandbox of which installation, and where it lives.
#[derive(Debug, Clone)]
pub(super) struct Owner {
    pub(super) installation_id: String,
    pub(super) generation: u64,
    pub(super) sandbox: SandboxId,
    /// Holds `root`, `agent.sock`, `agent.json`, `agent.log` and `spec.json`.
    pub(super) directory: PathBuf,
}

/// Names the process for good: a number alone may belong to another one by now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    pid: i32,
    start_time: u64,
}

/// A running or ended agent.
#[derive(Clone)]
pub(super) struct Agent {
    guest: Arc<AgentGuest>,
    pid: i32,
    process: Arc<OwnedFd>,
    /// Why it ended; `None` while it runs.
    end: watch::Receiver<Option<String>>,
}

/// Dials the socket in the sandbox's directory.
struct Endpoint {
    directory: PathBuf,
    sandbox: SandboxId,
}

#[async_trait]
impl AgentEndpoint for Endpoint {
    async fn dial(&self) -> Result<Box<dyn Duplex>> {
        let gone = |e: io::Error| Error::destroyed(format!("sandbox {} has ended", self.sandbox)).because(e);
        // Through a descriptor, as socket addresses end at 108 bytes and directories do not.
        let directory = fs::File::open(&self.directory).map_err(gone)?;
        let stream = UnixStream::connect(format!("/proc/self/fd/{}/agent.sock", directory.as_raw_fd())).await;
        stream.map(|stream| Box::new(stream) as Box<dyn Duplex>).map_err(gone)
    }
}

/// Writes the agent's program to `<base>/stacyvm-agent` unless it is there already.
pub(super) fn install(base: &Path, program: &[u8]) -> io::Result<PathBuf> {
    let path = base.join("stacyvm-agent");
    if !fs::read(&path).is_ok_and(|stored| stored == program) {
        let draft = base.join(format!(".stacyvm-agent.{}", uuid::Uuid::new_v4().simple()));
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o700).open(&draft)?;
        file.write_all(program)?;
        drop(file);
        fs::rename(&draft, &path)?;
    }
    Ok(path)
}

impl Agent {
    /// Starts an agent for `owner` in its own process group, with nothing of this process's environment.
    pub(super) fn start(owner: &Owner, binary: &Path) -> io::Result<Self> {
        let directory = fs::File::open(&owner.directory)?;
        let socket = format!("/proc/self/fd/{}/agent.sock", directory.as_raw_fd());
        match fs::remove_file(&socket) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&socket)?;
        let log = fs::File::create(owner.directory.join("agent.log"))?;
        let root = owner.directory.join("root");
        let mut command = Command::new(binary);
        // The listener travels as stdin, the one way to hand over a descriptor that needs no code behind `fork`.
        command
            .args(["--listen-fd", "0", "--sandbox", owner.sandbox.as_str()])
            .args(["--installation", &owner.installation_id])
            .args(["--uid", &rustix::process::getuid().as_raw().to_string()])
            .args(["--gid", &rustix::process::getgid().as_raw().to_string()])
            .args(["--user-name", "sandbox", "--home", "/home/sandbox", "--workdir", "/workspace", "--root"])
            .arg(&root)
            .env_clear()
            .current_dir(&owner.directory)
            .process_group(0)
            .stdin(Stdio::from(OwnedFd::from(listener)))
            .stdout(Stdio::null())
            .stderr(Stdio::from(log));
        let mut child = spawn(&mut command)?;
        let pid =
            child.id().and_then(|pid| i32::try_from(pid).ok()).ok_or_else(|| io::Error::other("no pid"))?;
        let pidfd = open_process(pid)?;
        let record = Record { pid, start_time: host::start_time(pid).unwrap_or_default() };
        host::write_atomically(&owner.directory.join("agent.json"), &serde_json::to_vec(&record)?)?;
        let (told, end) = watch::channel(None);
        tokio::spawn(async move {
            let reason = match child.wait().await {
                Ok(status) => format!("its agent ended ({status})"),
                Err(error) => format!("its agent ended ({error})"),
            };
            let _ = told.send(Some(reason));
        });
        Ok(Self { guest: guest(owner), pid, process: Arc::new(pidfd), end })
    }

    /// Takes over the agent that the record in `owner`'s directory names, dead or alive; `None` without a record.
    pub(super) fn adopt(owner: &Owner) -> Option<Self> {
        let text = fs::read(owner.directory.join("agent.json")).ok()?;
        let record: Record = serde_json::from_slice(&text).ok()?;
        let (told, end) = watch::channel(None);
        // One that has ended may still be there to be waited for, by whoever started it.
        let pidfd = open_process(record.pid)
            .ok()
            .filter(|pidfd| host::start_time(record.pid) == Some(record.start_time) && runs(pidfd));
        let Some(pidfd) = pidfd else {
            let _ = told.send(Some("its agent ended while nobody watched".to_owned()));
            // Any descriptor will do: an ended agent is never signalled.
            let placeholder = OwnedFd::from(fs::File::open(&owner.directory).ok()?);
            return Some(Self { guest: guest(owner), pid: record.pid, process: Arc::new(placeholder), end });
        };
        let process = Arc::new(pidfd);
        let watched = Arc::clone(&process);
        tokio::spawn(async move {
            while runs(&watched) && !told.is_closed() {
                tokio::time::sleep(WATCH).await;
            }
            let _ = told.send(Some("its agent ended".to_owned()));
        });
        Some(Self { guest: guest(owner), pid: record.pid, process, end })
    }

    pub(super) fn guest(&self) -> Arc<AgentGuest> {
        Arc::clone(&self.guest)
    }

    /// Returns when the agent answers.
    pub(super) async fn ready(&self) -> Result<()> {
        let answered = async {
            loop {
                if let Some(reason) = self.end_reason() {
                    return Err(Error::internal(format!("the sandbox did not start: {reason}")));
                }
                match self.guest.ping().await {
                    Ok(()) => return Ok(()),
                    Err(_) => tokio::time::sleep(Duration::from_millis(2)).await,
                }
            }
        };
        let late = || Error::unavailable("the agent of the new sandbox does not answer");
        tokio::time::timeout(START, answered).await.unwrap_or_else(|_| Err(late()))
    }

    /// Why the agent ended; `None` while it runs.
    pub(super) fn end_reason(&self) -> Option<String> {
        self.end.borrow().clone()
    }

    pub(super) fn state(&self) -> RuntimeState {
        match self.end_reason() {
            Some(reason) => RuntimeState::Ended { reason },
            None if host::is_stopped(self.pid) => RuntimeState::Paused,
            None => RuntimeState::Running,
        }
    }

    /// Returns the reason once the agent has ended.
    pub(super) async fn ended(&self) -> String {
        let mut end = self.end.clone();
        match end.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or_default(),
            Err(_) => "its watcher ended".to_owned(),
        }
    }

    /// Asks the agent to end all its processes and itself; returns when it has, or after a while when it has not. One
    /// that is paused cannot be asked.
    pub(super) async fn terminate(&self) {
        if self.state() == RuntimeState::Running && pidfd_send_signal(&self.process, Signal::TERM).is_ok() {
            let _ = tokio::time::timeout(POLITE, self.ended()).await;
        }
    }
}

fn guest(owner: &Owner) -> Arc<AgentGuest> {
    let endpoint = Endpoint { directory: owner.directory.clone(), sandbox: owner.sandbox.clone() };
    let identity = Identity {
        installation_id: owner.installation_id.clone(),
        generation: owner.generation,
        sandbox_id: owner.sandbox.to_string(),
    };
    Arc::new(AgentGuest::new(Arc::new(endpoint), identity))
}

/// Whether the process behind `pidfd` still runs.
fn runs(pidfd: &OwnedFd) -> bool {
    let mut watched = [PollFd::new(pidfd, PollFlags::IN)];
    // An error tells nothing; the next look may.
    !matches!(poll(&mut watched, Some(&Timespec::default())), Ok(ready) if ready > 0)
}

fn open_process(pid: i32) -> io::Result<OwnedFd> {
    let pid = Pid::from_raw(pid).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    Ok(pidfd_open(pid, PidfdFlags::empty())?)
}

/// Starts `command`, again while the file just written counts as busy: a process that another thread forks at the wrong
/// moment holds our writing descriptor until it calls `exec`.
fn spawn(command: &mut Command) -> io::Result<tokio::process::Child> {
    let mut tries = 0;
    loop {
        match command.spawn() {
            Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy && tries < 200 => {
                tries += 1;
                std::thread::sleep(Duration::from_millis(2));
            }
            result => return result,
        }
    }
}
