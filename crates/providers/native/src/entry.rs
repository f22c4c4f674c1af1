//! What the provider keeps about a running sandbox while it watches it: nothing that is not on disk or in the kernel.

use crate::{
    layout::{self, Layout},
    process,
    record::State,
    sys,
};
use async_trait::async_trait;
use rustix::fd::{AsFd, OwnedFd};
use stacyvm_provider::{AgentEndpoint, AgentGuest, Duplex, Error, Guest, Result, SandboxId};
use std::{
    io,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};
use tokio::{io::unix::AsyncFd, net::UnixStream};

/// A sandbox that ran when it was looked at.
pub(crate) struct Entry {
    pub(crate) state: State,
    pidfd: AsyncFd<OwnedFd>,
    pub(crate) guest: Arc<AgentGuest>,
    /// Its guest has answered once.
    answered: AtomicBool,
}

impl Entry {
    /// To be called within the runtime that is to watch the process.
    pub(crate) fn new(state: State, pidfd: OwnedFd, guest: AgentGuest) -> io::Result<Self> {
        Ok(Self {
            state,
            pidfd: sys::watch(pidfd)?,
            guest: Arc::new(guest),
            answered: AtomicBool::new(false),
        })
    }

    /// Whether its first process still runs.
    pub(crate) fn runs(&self) -> bool {
        // What the kernel cannot answer about a descriptor that we hold is no end.
        !process::ended(self.pidfd.get_ref().as_fd()).unwrap_or(false)
    }

    /// Makes sure that its guest has answered at least once; true if this was the first time.
    ///
    /// # Errors
    /// `Destroyed` if it has ended, else the guest's own.
    pub(crate) async fn answers(&self) -> Result<bool> {
        if self.answered.load(Ordering::Relaxed) {
            return Ok(false);
        }
        let pong = tokio::select! {
            pong = self.guest.ping() => pong,
            () = self.wait() => Err(Error::unavailable("its process has ended")),
        };
        if !self.runs() {
            return Err(Error::destroyed(format!("the sandbox has ended: {}", self.reason())));
        }
        pong?;
        Ok(!self.answered.swap(true, Ordering::Relaxed))
    }

    /// Returns when its first process has ended.
    pub(crate) async fn wait(&self) {
        while self.runs() {
            // Readiness is kept and not cleared: a process ends once, and everybody who waits is to see it.
            if self.pidfd.readable().await.is_err() {
                // The reactor is shutting down, and this task with it.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Why it ended, as far as can be known.
    pub(crate) fn reason(&self) -> String {
        describe_end(&self.state, process::how_it_ended(self.pidfd.get_ref().as_fd()))
    }
}

/// Why a sandbox ended, in words.
pub(crate) fn describe_end(state: &State, how: Option<String>) -> String {
    let how = how.map_or_else(|| "its agent has ended".to_owned(), |how| format!("its agent was {how}"));
    let how = how.replace("was exited", "exited");
    match state.cgroups.oom_kills() {
        0 => how,
        1 => format!("{how}; out of memory: the kernel killed 1 process of it"),
        n => format!("{how}; out of memory: the kernel killed {n} processes of it"),
    }
}

/// Dials the agent of one sandbox.
#[derive(Debug)]
pub(crate) struct SocketEndpoint {
    id: SandboxId,
    directory: PathBuf,
}

impl SocketEndpoint {
    pub(crate) fn new(layout: &Layout, id: &SandboxId) -> Self {
        Self { id: id.clone(), directory: layout.sandbox(id) }
    }
}

#[async_trait]
impl AgentEndpoint for SocketEndpoint {
    async fn dial(&self) -> Result<Box<dyn Duplex>> {
        let gone = |e: io::Error| match e.raw_os_error() {
            Some(libc::ENOENT | libc::ENOTDIR) => {
                Error::not_found(format!("sandbox {} does not exist", self.id))
            }
            // Nobody holds the listening end: the agent is gone, and so is the sandbox.
            Some(libc::ECONNREFUSED) => Error::destroyed(format!("sandbox {} has ended", self.id)),
            _ => Error::unavailable(format!("the agent of sandbox {} cannot be reached", self.id)).because(e),
        };
        // Through a handle: the path may be longer than an address can be.
        let directory = layout::open_dir(&self.directory).map_err(gone)?;
        let stream = UnixStream::connect(layout::socket_path(&directory)).await.map_err(gone)?;
        Ok(Box::new(stream))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::Identity;
    use stacyvm_provider::ErrorKind;
    use std::time::Duration;

    fn state(pid: i32) -> State {
        State {
            process: Identity::of(pid).unwrap(),
            cgroups: Default::default(),
            lower: "/".into(),
            ids: None,
            network: None,
        }
    }

    fn guest(layout: &Layout, id: &SandboxId) -> AgentGuest {
        let identity = stacyvm_provider::Identity {
            installation_id: "i".to_owned(),
            generation: 1,
            sandbox_id: id.to_string(),
        };
        AgentGuest::new(Arc::new(SocketEndpoint::new(layout, id)), identity)
    }

    #[tokio::test]
    async fn everybody_who_waits_sees_the_end() {
        let tmp = tempfile::tempdir().unwrap();
        let layout = Layout::new(tmp.path().to_owned());
        let id: SandboxId = "sb-1".parse().unwrap();
        let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        let state = state(child.id() as i32);
        let pidfd = state.process.open().unwrap().unwrap();
        let entry = Arc::new(Entry::new(state, pidfd, guest(&layout, &id)).unwrap());
        assert!(entry.runs());
        assert!(tokio::time::timeout(Duration::from_millis(20), entry.wait()).await.is_err());
        let waits: Vec<_> = (0..3)
            .map(|_| {
                let entry = Arc::clone(&entry);
                tokio::spawn(async move { entry.wait().await })
            })
            .collect();
        child.kill().unwrap();
        for wait in waits {
            tokio::time::timeout(Duration::from_secs(10), wait).await.unwrap().unwrap();
        }
        child.wait().unwrap();
        assert!(!entry.runs());
        assert!(entry.reason().contains("agent"), "{}", entry.reason());
    }

    #[tokio::test]
    async fn an_agent_that_is_gone_is_not_one_that_may_come_back() {
        let tmp = tempfile::tempdir().unwrap();
        let layout = Layout::new(tmp.path().to_owned());
        let id: SandboxId = "sb-1".parse().unwrap();
        let endpoint = SocketEndpoint::new(&layout, &id);
        let kind = async || endpoint.dial().await.err().map(|e| e.kind());
        assert_eq!(kind().await, Some(ErrorKind::NotFound));
        std::fs::create_dir_all(layout.sandbox(&id)).unwrap();
        let listener =
            std::os::unix::net::UnixListener::bind(layout.sandbox(&id).join("agent.sock")).unwrap();
        assert_eq!(kind().await, None);
        drop(listener);
        assert_eq!(kind().await, Some(ErrorKind::Destroyed));
    }
}
