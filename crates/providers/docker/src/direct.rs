//! The short way to an agent on this machine: its socket, through the kernel's view of its process.
//!
//! A bridge is an exec, which takes a daemon tens of milliseconds, and carries every byte through it. Where the daemon's
//! processes are processes here, and root of the sandbox is root here, the socket can be reached without either. Nothing
//! is taken for granted: no link is followed beyond the process, and who listens must be that process.

use crate::container::{HOME, SOCKET};
use rustix::{
    fd::{AsRawFd, OwnedFd},
    fs::{Mode, OFlags, ResolveFlags, open, openat, openat2, readlinkat},
    io::Errno,
    process::geteuid,
};
use std::{io, time::Duration};
use tokio::{net::UnixStream, time::Instant};

/// Time for a process that was just started to listen.
const LISTEN: Duration = Duration::from_secs(10);
/// Pause between attempts.
const PAUSE: Duration = Duration::from_millis(1);

/// What came of the short way.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// A connection.
    Reached(UnixStream),
    /// Not this time.
    Failed,
    /// There is none: this process, its users or its files are not to be seen from here.
    Absent,
}

/// Tries to connect to the agent that is process `pid`.
pub(crate) async fn dial(pid: i32) -> Outcome {
    match Way::find(pid) {
        Ok(way) => way.reach(pid).await.map_or(Outcome::Failed, Outcome::Reached),
        Err(error) => {
            tracing::trace!(pid, %error, "no short way");
            Outcome::Absent
        }
    }
}

impl Way {
    /// Waits for the agent to listen.
    async fn reach(&self, pid: i32) -> Option<UnixStream> {
        let until = Instant::now() + LISTEN;
        loop {
            match self.connect().await {
                Ok(stream) => {
                    let peer = stream.peer_cred().ok()?;
                    return (peer.pid() == Some(pid) && peer.uid() == 0).then_some(stream);
                }
                // It does not listen yet.
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
                        && self.is_alive()
                        && Instant::now() < until =>
                {
                    tokio::time::sleep(PAUSE).await;
                }
                Err(_) => return None,
            }
        }
    }
}

/// The place of a socket, held open.
struct Way {
    process: OwnedFd,
    volume: OwnedFd,
}

impl Way {
    fn find(pid: i32) -> io::Result<Self> {
        let process = open(format!("/proc/{pid}"), PLACE | OFlags::DIRECTORY, Mode::empty())?;
        let own = open("/proc/self", PLACE | OFlags::DIRECTORY, Mode::empty())?;
        // The agent wants a caller of its own user: root, and the same one.
        let same = readlinkat(&process, "ns/user", [])? == readlinkat(&own, "ns/user", [])?;
        if !same || !geteuid().is_root() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let root = openat(&process, "root", PLACE | OFlags::DIRECTORY, Mode::empty())?;
        let volume = beneath(&root, HOME.trim_start_matches('/'), OFlags::DIRECTORY)?;
        Ok(Self { process, volume })
    }

    async fn connect(&self) -> io::Result<UnixStream> {
        let path = SOCKET.strip_prefix(HOME).unwrap_or(SOCKET).trim_start_matches('/');
        let socket = beneath(&self.volume, path, OFlags::empty())?;
        UnixStream::connect(format!("/proc/self/fd/{}", socket.as_raw_fd())).await
    }

    fn is_alive(&self) -> bool {
        readlinkat(&self.process, "root", []).is_ok()
    }
}

/// Only a place, not what is there.
const PLACE: OFlags = OFlags::PATH.union(OFlags::CLOEXEC);

fn beneath(directory: &OwnedFd, path: &str, kind: OFlags) -> Result<OwnedFd, Errno> {
    let strictly = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    openat2(directory, path, PLACE | kind, Mode::empty(), strictly)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_process_that_is_no_agent_is_not_reached() {
        let started = Instant::now();
        let pid = std::process::id().try_into().unwrap();
        assert!(matches!(dial(pid).await, Outcome::Absent));
        assert!(matches!(dial(i32::MAX).await, Outcome::Absent));
        assert!(started.elapsed() < LISTEN, "nobody waits where there is no volume");
    }
}
