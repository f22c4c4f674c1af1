//! What server, spawner and the first process of a sandbox say to one another. Packets of JSON on a sequenced socket,
//! descriptors along with them: all three are the same build, so there are no versions.

use crate::{
    cgroup::Join,
    disk::Sized,
    failure::Failure,
    ids::IdRange,
    image::{Bind, profile::SandboxUser},
};
use rustix::{
    fd::{BorrowedFd, OwnedFd},
    io::{Errno, IoSlice, IoSliceMut},
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
    },
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use stacyvm_provider::SandboxId;
use std::{io, mem::MaybeUninit, path::PathBuf};

/// Longest packet, in bytes.
const MAX_PACKET: usize = 128 << 10;
/// Most descriptors in one packet.
const MAX_FDS: usize = 12;

/// From the server.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    /// First packet. Descriptors: the agent's program, then the lock if the server has one.
    Init {
        data_dir: PathBuf,
        installation_id: String,
        /// Ephemeral sandboxes that an earlier spawner of this server made.
        ephemeral: Vec<SandboxId>,
    },
    /// Make the first process of a sandbox. Descriptors: see [`CloneFds`].
    Clone { sequence: u64, setup: Box<Setup> },
    /// Make a user namespace with the ids of this range; without, with the one user that anybody may have in one.
    UserNamespace { sequence: u64, ids: Option<IdRange> },
    /// This sandbox is gone; its name may mean another one later.
    Forget { id: SandboxId },
}

/// To the server.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Reply {
    /// It exists and waits. Descriptor: its pidfd.
    Cloned { sequence: u64, pid: i32 },
    /// Here it is. Descriptor: the user namespace.
    UserNamespace { sequence: u64 },
    /// It could not be made.
    Failed { sequence: u64, failure: Failure },
}

impl Reply {
    /// Which request is answered.
    pub(crate) fn sequence(&self) -> u64 {
        match self {
            Self::Cloned { sequence, .. }
            | Self::UserNamespace { sequence }
            | Self::Failed { sequence, .. } => *sequence,
        }
    }
}

/// What a sandbox's first process has to set up.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Setup {
    pub(crate) id: SandboxId,
    /// Must not outlive the server.
    pub(crate) ephemeral: bool,
    /// The sandbox's directory. By path, because a handle of another mount namespace cannot be mounted from.
    pub(crate) directory: PathBuf,
    /// Lower layer of its root, or what holds its layers; must be the same directory as the descriptor that comes along.
    pub(crate) lower: PathBuf,
    /// Names of its layers in there, the lowest first; none: it is the only one.
    pub(crate) layers: Vec<String>,
    /// Directories of the host to show.
    pub(crate) binds: Vec<Bind>,
    /// Its cgroups.
    pub(crate) join: Vec<Join>,
    /// Size of `/dev/shm` and of a root in memory, in MiB; 0: half of the host's memory.
    pub(crate) memory_mb: u32,
    /// The limit of its disk, if it has one.
    pub(crate) disk: Option<Sized>,
    /// Whom its processes run as.
    pub(crate) user: SandboxUser,
    /// Arguments of the agent, its name first.
    pub(crate) argv: Vec<String>,
    /// Environment of the agent, which hands it to processes; empty: that of a plain system.
    pub(crate) environment: Vec<String>,
    /// Its user ids on the host, those of the user namespace that comes along; without, it has none of its own.
    pub(crate) ids: Option<IdRange>,
    /// Which of the optional descriptors come along.
    pub(crate) clones_into_cgroup: bool,
    pub(crate) has_memory_events: bool,
    pub(crate) has_pids_events: bool,
    pub(crate) has_network: bool,
    /// Text of `/etc/resolv.conf`; `None`: the image's.
    pub(crate) resolv_conf: Option<String>,
}

/// Descriptors of a `Clone` request, in this order.
#[derive(Debug)]
pub(crate) struct CloneFds<T> {
    /// Lower layer of its root, as it was checked.
    pub(crate) lower: T,
    /// The socket on which its agent is to listen.
    pub(crate) listener: T,
    /// Where its agent's log goes.
    pub(crate) log: T,
    /// One byte, then the child goes on; the end, then it ends.
    pub(crate) go: T,
    /// For [`Report`]s.
    pub(crate) status: T,
    /// Cgroup to clone into (version 2).
    pub(crate) cgroup: Option<T>,
    /// Where the kernel counts what it killed for memory, for the agent.
    pub(crate) memory_events: Option<T>,
    /// Its user namespace.
    pub(crate) user_namespace: Option<T>,
    /// Where it counts the processes that it did not let them make, for the agent.
    pub(crate) pids_events: Option<T>,
    /// Its network namespace; `None`: it gets one that nothing leads into.
    pub(crate) network: Option<T>,
}

impl CloneFds<OwnedFd> {
    /// Those that came with a packet.
    pub(crate) fn from_packet(setup: &Setup, fds: Vec<OwnedFd>) -> Option<Self> {
        let mut fds = fds.into_iter();
        Some(Self {
            lower: fds.next()?,
            listener: fds.next()?,
            log: fds.next()?,
            go: fds.next()?,
            status: fds.next()?,
            cgroup: if setup.clones_into_cgroup { Some(fds.next()?) } else { None },
            memory_events: if setup.has_memory_events { Some(fds.next()?) } else { None },
            user_namespace: if setup.ids.is_some() { Some(fds.next()?) } else { None },
            pids_events: if setup.has_pids_events { Some(fds.next()?) } else { None },
            network: if setup.has_network { Some(fds.next()?) } else { None },
        })
    }
}

impl<'fd> CloneFds<BorrowedFd<'fd>> {
    /// In the order of a packet.
    pub(crate) fn to_packet(&self) -> Vec<BorrowedFd<'fd>> {
        let mut fds = vec![self.lower, self.listener, self.log, self.go, self.status];
        fds.extend(self.cgroup);
        fds.extend(self.memory_events);
        fds.extend(self.user_namespace);
        fds.extend(self.pids_events);
        fds.extend(self.network);
        fds
    }
}

/// What a first process writes to its status pipe, one JSON text per line. The end of the pipe without a `Failed`
/// means that the agent was started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Report {
    /// The sandbox's files are in memory: the filesystem of the data directory cannot carry an overlay.
    UpperInMemory,
    /// Files of this path of the host belong to nobody inside: it cannot be shown with the sandbox's own ids.
    NotMapped(PathBuf),
    /// It could not be set up.
    Failed(Failure),
}

/// Longest text of reports that is read, in bytes.
pub(crate) const MAX_REPORT: u64 = 16 << 10;

impl Report {
    /// The reports in what was read from a status pipe. What is cut off or garbled is left out.
    pub(crate) fn parse(text: &[u8]) -> Vec<Self> {
        text.split(|b| *b == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect()
    }
}

/// Sends one packet.
pub(crate) fn send(
    socket: BorrowedFd<'_>,
    message: &impl Serialize,
    fds: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let bytes = serde_json::to_vec(message)?;
    if bytes.len() > MAX_PACKET || fds.len() > MAX_FDS {
        return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
    }
    loop {
        match sendmsg(socket, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL) {
            Err(Errno::INTR) => {}
            result => return result.map(drop).map_err(Into::into),
        }
    }
}

/// Receives one packet; `None` at the end.
pub(crate) fn receive<T: DeserializeOwned>(socket: BorrowedFd<'_>) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut bytes = vec![0; MAX_PACKET];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        let mut buffers = [IoSliceMut::new(&mut bytes)];
        match recvmsg(socket, &mut buffers, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => {}
            result => break result?,
        }
    };
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    if received.bytes == 0 {
        return Ok(None);
    }
    if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
    }
    bytes.truncate(received.bytes);
    Ok(Some((serde_json::from_slice(&bytes)?, fds)))
}

/// A pair of connected sockets that keep packets apart.
pub(crate) fn socket_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

#[cfg(test)]
impl Setup {
    /// Enough to be sent.
    pub(crate) fn example(clones_into_cgroup: bool, has_memory_events: bool) -> Self {
        Self {
            id: "sb-1".parse().unwrap(),
            ephemeral: false,
            directory: "/".into(),
            lower: "/".into(),
            layers: Vec::new(),
            binds: Vec::new(),
            join: Vec::new(),
            memory_mb: 0,
            disk: None,
            user: SandboxUser::default(),
            argv: Vec::new(),
            environment: Vec::new(),
            ids: None,
            clones_into_cgroup,
            has_memory_events,
            has_pids_events: has_memory_events,
            has_network: true,
            resolv_conf: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fd::AsFd;

    #[test]
    fn packets_keep_their_bounds_and_descriptors() {
        let (a, b) = socket_pair().unwrap();
        let (read, write) = rustix::pipe::pipe().unwrap();
        send(a.as_fd(), &Reply::Cloned { sequence: 1, pid: 2 }, &[write.as_fd()]).unwrap();
        send(a.as_fd(), &Request::Forget { id: "sb-1".parse().unwrap() }, &[]).unwrap();
        drop((a, write));
        let (reply, fds) = receive::<Reply>(b.as_fd()).unwrap().unwrap();
        assert!(matches!(reply, Reply::Cloned { sequence: 1, pid: 2 }));
        rustix::io::write(&fds[0], b"x").unwrap();
        let mut byte = [0];
        assert_eq!(rustix::io::read(&read, &mut byte).unwrap(), 1);
        let (request, fds) = receive::<Request>(b.as_fd()).unwrap().unwrap();
        assert!(matches!(request, Request::Forget { .. }) && fds.is_empty());
        assert!(receive::<Request>(b.as_fd()).unwrap().is_none());
    }

    #[test]
    fn what_is_too_long_is_refused_and_garbage_is_an_error() {
        let (a, b) = socket_pair().unwrap();
        assert!(send(a.as_fd(), &"x".repeat(MAX_PACKET + 1), &[]).is_err());
        send(a.as_fd(), &"not a request", &[]).unwrap();
        assert!(receive::<Request>(b.as_fd()).is_err());
    }

    #[test]
    fn the_order_of_descriptors_is_the_same_on_both_sides() {
        let tmp = tempfile::tempdir().unwrap();
        let files: Vec<OwnedFd> =
            (0..10).map(|n| std::fs::File::create(tmp.path().join(n.to_string())).unwrap().into()).collect();
        let b: Vec<BorrowedFd<'_>> = files.iter().map(AsFd::as_fd).collect();
        let inode = |fd: BorrowedFd<'_>| rustix::fs::fstat(fd).unwrap().st_ino;
        for cgroup in [None, Some(b[5])] {
            let sent = CloneFds {
                lower: b[0],
                listener: b[1],
                log: b[2],
                go: b[3],
                status: b[4],
                cgroup,
                memory_events: Some(b[6]),
                user_namespace: Some(b[7]),
                pids_events: Some(b[8]),
                network: Some(b[9]),
            };
            let packet = || sent.to_packet().iter().map(|fd| fd.try_clone_to_owned().unwrap()).collect();
            let setup = Setup { ids: Some(IdRange::nth(0)), ..Setup::example(cgroup.is_some(), true) };
            let got = CloneFds::from_packet(&setup, packet()).unwrap();
            assert_eq!(inode(got.listener.as_fd()), inode(sent.listener));
            assert_eq!(inode(got.status.as_fd()), inode(sent.status));
            assert_eq!(got.cgroup.map(|fd| inode(fd.as_fd())), cgroup.map(inode));
            assert_eq!(inode(got.memory_events.unwrap().as_fd()), inode(b[6]));
            assert_eq!(inode(got.user_namespace.unwrap().as_fd()), inode(b[7]));
            assert_eq!(inode(got.pids_events.unwrap().as_fd()), inode(b[8]));
            assert_eq!(inode(got.network.unwrap().as_fd()), inode(b[9]));
            let mut short: Vec<OwnedFd> = packet();
            short.pop();
            assert!(CloneFds::from_packet(&setup, short).is_none());
        }
    }
}
