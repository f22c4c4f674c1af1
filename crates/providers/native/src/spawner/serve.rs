//! The spawner's main loop.

use super::{
    child,
    protocol::{CloneFds, Reply, Request, Setup, receive, send},
    user_namespace,
};
use crate::{
    cgroup,
    destroy::destroy,
    failure::{Doing, Failure},
    ids::IdRange,
    layout::Layout,
    network::remove_if_unused,
    process, rights, seccomp,
    sys::{self, Cloned},
};
use rustix::{
    fd::{AsFd, BorrowedFd, OwnedFd},
    pipe::{PipeFlags, pipe_with},
};
use stacyvm_provider::SandboxId;
use std::{collections::HashMap, process::ExitCode, time::Duration};

/// Time for a first process that waits or mounts to end once it is killed.
const END: Duration = Duration::from_secs(10);

/// What the spawner knows.
struct Spawner {
    socket: OwnedFd,
    agent: OwnedFd,
    layout: Layout,
    installation_id: String,
    /// The host's network namespace.
    network: OwnedFd,
    /// Ephemeral sandboxes, with their first process where this spawner made it.
    ephemeral: HashMap<SandboxId, Option<OwnedFd>>,
    /// Held as long as there may be something to clean up.
    _lock: Option<OwnedFd>,
}

/// The whole of the spawner program. To be called before anything has started a thread; descriptor 0 is the socket to
/// the server. Returns when the server is gone and what was ephemeral is removed.
pub fn spawner_main() -> ExitCode {
    // A session of its own: no terminal, no signals from one. Refused only if we lead a process group, as when started
    // from a shell by hand, which is harmless.
    let _ = rustix::process::setsid();
    sys::ignore_signals(&[
        libc::SIGINT,
        libc::SIGQUIT,
        libc::SIGHUP,
        libc::SIGTSTP,
        libc::SIGTTIN,
        libc::SIGTTOU,
    ]);
    // Ended sandboxes are nobody's zombies: the kernel reaps them.
    sys::ignore_signals(&[libc::SIGCHLD, libc::SIGPIPE]);
    // Not to keep a directory of the user's busy.
    let _ = std::env::set_current_dir("/");
    match Spawner::start().map(Spawner::run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("stacyvm spawner: {failure}");
            ExitCode::FAILURE
        }
    }
}

impl Spawner {
    fn start() -> Result<Self, Failure> {
        let socket = sys::inherited_fd(0).doing(|| "take over the socket to the server".to_owned())?;
        rustix::io::fcntl_setfd(&socket, rustix::io::FdFlags::CLOEXEC)
            .doing(|| "keep the socket to ourselves".to_owned())?;
        let first = receive::<Request>(socket.as_fd()).doing(|| "read the first packet".to_owned())?;
        let Some((Request::Init { data_dir, installation_id, ephemeral }, fds)) = first else {
            return Err(Failure::plain("start: this program is started by the server, not by hand"));
        };
        seccomp::prepare();
        let mut fds = fds.into_iter();
        let agent = fds.next().ok_or_else(|| Failure::plain("start: no agent came with the first packet"))?;
        Ok(Self {
            socket,
            agent,
            layout: Layout::new(data_dir),
            installation_id,
            network: sys::own_network().doing(|| "open the host's network namespace".to_owned())?,
            ephemeral: ephemeral.into_iter().map(|id| (id, None)).collect(),
            _lock: fds.next(),
        })
    }

    fn run(mut self) {
        loop {
            match receive::<Request>(self.socket.as_fd()) {
                Ok(Some((Request::Clone { sequence, setup }, fds))) => self.clone(sequence, &setup, fds),
                Ok(Some((Request::UserNamespace { sequence, ids }, _))) => self.user_namespace(sequence, ids),
                Ok(Some((Request::Forget { id }, _))) => drop(self.ephemeral.remove(&id)),
                Ok(Some((Request::Init { .. }, _))) => {}
                Ok(None) => break,
                // The server speaks the same build's protocol, so this is its death in the middle of a packet.
                Err(_) => break,
            }
        }
        self.clean_up();
    }

    fn clone(&mut self, sequence: u64, setup: &Setup, fds: Vec<OwnedFd>) {
        let sent = match self.try_clone(setup, fds) {
            Ok((pid, pidfd)) => {
                let sent = send(self.socket.as_fd(), &Reply::Cloned { sequence, pid }, &[pidfd.as_fd()]);
                if setup.ephemeral {
                    self.ephemeral.insert(setup.id.clone(), Some(pidfd));
                }
                sent
            }
            Err(failure) => send(self.socket.as_fd(), &Reply::Failed { sequence, failure }, &[]),
        };
        // A server that cannot be told is gone: the next receive says so, and the child ends by itself.
        drop(sent);
    }

    fn user_namespace(&self, sequence: u64, ids: Option<IdRange>) {
        let sent = match user_namespace::make(ids) {
            Ok(namespace) => {
                send(self.socket.as_fd(), &Reply::UserNamespace { sequence }, &[namespace.as_fd()])
            }
            Err(failure) => send(self.socket.as_fd(), &Reply::Failed { sequence, failure }, &[]),
        };
        drop(sent);
    }

    fn try_clone(&self, setup: &Setup, fds: Vec<OwnedFd>) -> Result<(i32, OwnedFd), Failure> {
        let fds = CloneFds::from_packet(setup, fds)
            .ok_or_else(|| Failure::plain("clone: descriptors are missing from the request"))?;
        let cgroup = fds.cgroup.as_ref().map(AsFd::as_fd);
        let doing = || "make the namespaces of the sandbox".to_owned();
        if !rights::rootless() {
            return match self.clone_in_network(fds.network.as_ref(), cgroup)? {
                Cloned::Parent { pid, pidfd } => Ok((pid, pidfd)),
                Cloned::Child => child::run(setup, fds, self.agent.as_fd(), None),
            };
        }
        let (mapped, tell_mapped) = pipe_with(PipeFlags::CLOEXEC).doing(doing)?;
        match sys::clone_sandbox(cgroup, true, true).doing(doing)? {
            Cloned::Parent { pid, pidfd } => {
                // Without it the child ends, as the pipe does.
                user_namespace::map_one(pid)?;
                rustix::io::write(&tell_mapped, b"m").doing(doing)?;
                Ok((pid, pidfd))
            }
            Cloned::Child => {
                drop(tell_mapped);
                child::run(setup, fds, self.agent.as_fd(), Some(mapped))
            }
        }
    }

    /// Clones in a network that was made before, or with one of its own.
    fn clone_in_network(
        &self,
        network: Option<&OwnedFd>,
        cgroup: Option<BorrowedFd<'_>>,
    ) -> Result<Cloned, Failure> {
        let doing = || "make the namespaces of the sandbox".to_owned();
        let Some(network) = network else { return sys::clone_sandbox(cgroup, false, true).doing(doing) };
        // The child is born in it: later, as root of a user namespace, it could not enter one that is the host's.
        sys::enter_network(network.as_fd()).doing(|| "enter the network of the sandbox".to_owned())?;
        let cloned = sys::clone_sandbox(cgroup, false, false);
        if !matches!(cloned, Ok(Cloned::Child)) {
            // Here, the sandbox's would be kept alive behind its end.
            let back = sys::enter_network(self.network.as_fd());
            back.doing(|| "leave the network of the sandbox".to_owned())?;
        }
        cloned.doing(doing)
    }

    /// The server is gone, and what must not outlive it with it.
    fn clean_up(self) {
        self.destroy_ephemeral();
        // With the last sandbox that has a network the rules go, too.
        if let Err(error) = remove_if_unused(&self.layout, &self.installation_id) {
            eprintln!("stacyvm spawner: the rules of the packet filter are left: {error}");
        }
    }

    fn destroy_ephemeral(&self) {
        if self.ephemeral.is_empty() {
            return;
        }
        let cgroups = cgroup::Host::discover(&self.installation_id);
        for (id, pidfd) in &self.ephemeral {
            if let Some(pidfd) = pidfd {
                // Also one that was never recorded. What fails here is found again by the next server.
                let _ = process::kill_and_wait(pidfd.as_fd(), END);
            }
            if let Err(failure) = destroy(&self.layout, &cgroups, id) {
                eprintln!("stacyvm spawner: sandbox {id}: {failure}");
            }
        }
    }
}
