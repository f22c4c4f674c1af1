//! A copy of this program from before it had threads and memory of its own: the only one that can be forked cheaply and
//! safely. It makes one supervisor for each message.
//!
//! Where processes of the sandbox have its user, they may end it (`kill -9 -1` does): then this program is started again
//! in its place, as `zygote`.
#![expect(unsafe_code, reason = "fork")]

use crate::{
    confine,
    fail::errno_of,
    log, oom, signals,
    supervisor::{
        self, Parts,
        wire::{Report, Step},
    },
};
use rustix::{
    cmsg_space,
    io::Errno,
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recv, recvmsg, send, sendmsg, socketpair,
    },
    process::{Pid, Resource, Rlimit, getrlimit, setrlimit},
};
use std::{
    collections::HashSet,
    fs::File,
    io::{IoSlice, IoSliceMut, Write},
    mem::MaybeUninit,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};
use tokio::io::{Interest, unix::AsyncFd};

/// A zygote that was forked and not yet attached to a runtime.
#[derive(Debug)]
pub(crate) struct Fresh {
    socket: OwnedFd,
    pid: Pid,
}

/// The way to the zygote.
#[derive(Debug)]
pub(crate) struct Zygote {
    link: Mutex<Arc<Link>>,
    /// Supervisors that live. Those of a zygote that was ended are children of PID 1, as orphans are.
    supervisors: Mutex<HashSet<Pid>>,
    work: Vec<File>,
}

/// A supervisor that lives, for as long as this does.
#[derive(Debug)]
pub(crate) struct Supervised {
    pid: Pid,
    zygote: Arc<Zygote>,
}

impl Supervised {
    pub(crate) fn new(zygote: &Arc<Zygote>, pid: i32) -> Option<Self> {
        let pid = Pid::from_raw(pid)?;
        lock(&zygote.supervisors).insert(pid);
        Some(Self { pid, zygote: Arc::clone(zygote) })
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        lock(&self.zygote.supervisors).remove(&self.pid);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is behind these is replaced, inserted or removed as a whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The way to one zygote, which may have ended.
#[derive(Debug)]
struct Link {
    socket: AsyncFd<OwnedFd>,
    pid: Pid,
}

/// Limit of open files of processes where this program was started without one.
const FEW_FILES: u64 = 1024;
/// Limit of open files that processes start with, for a zygote that comes later: by then, this program's own is another.
static OPEN_FILES: OnceLock<Rlimit> = OnceLock::new();

/// Forks the zygote. To be called while this process has one thread.
///
/// # Errors
/// The kernel's.
pub(crate) fn fork() -> Result<Fresh, Errno> {
    let (ours, theirs) = sockets()?;
    let _ = OPEN_FILES.set(getrlimit(Resource::Nofile));
    // SAFETY: the caller has one thread, so the child's memory is in a consistent state.
    match unsafe { libc::fork() } {
        -1 => Err(errno_of(&std::io::Error::last_os_error())),
        0 => serve(&theirs),
        pid => Ok(Fresh { socket: ours, pid: Pid::from_raw(pid).ok_or(Errno::CHILD)? }),
    }
}

fn sockets() -> Result<(OwnedFd, OwnedFd), Errno> {
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    rustix::io::ioctl_fionbio(&ours, true)?;
    Ok((ours, theirs))
}

/// Starts this program as a zygote, among the work: what it starts is limited as what its predecessor started.
fn again(work: &[File]) -> std::io::Result<Link> {
    let (ours, theirs) = sockets()?;
    let open_files = OPEN_FILES.get().and_then(|limit| limit.current).unwrap_or(FEW_FILES);
    let child = std::process::Command::new("/proc/self/exe")
        .args([WORD, &open_files.to_string()])
        .env_clear()
        .stdin(theirs)
        .stdout(std::process::Stdio::null())
        .spawn()?;
    // Reaped by the loop that reaps all others.
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or(Errno::CHILD)?;
    // It does nothing before it is asked to.
    let joined =
        work.iter().try_for_each(|mut file| file.write_all(pid.as_raw_nonzero().to_string().as_bytes()));
    if let Err(error) = joined {
        let _ = signals::send(pid, libc::SIGKILL);
        return Err(error);
    }
    Fresh { socket: ours, pid }.link()
}

/// First argument of a program that is a zygote from the beginning. Its socket is its standard input.
pub(crate) const WORD: &str = "zygote";

/// The whole of such a program. `open_files`: the limit that processes start with.
///
/// # Errors
/// It was not started by an agent, or the kernel's.
pub(crate) fn run(open_files: Option<u64>) -> Result<(), Errno> {
    confine::hide()?;
    let current = Some(open_files.ok_or(Errno::INVAL)?);
    setrlimit(Resource::Nofile, Rlimit { current, ..getrlimit(Resource::Nofile) })?;
    let socket = confine::inherit(0)?;
    signals::block_all()?;
    // Its parent is what the kernel is to spare.
    oom::volunteer()?;
    serve(&socket)
}

impl Fresh {
    /// Attaches it to the current runtime. `work`: by these a process joins the cgroups of the work.
    ///
    /// # Errors
    /// The runtime's.
    pub(crate) fn attach(self, work: Vec<OwnedFd>) -> std::io::Result<Zygote> {
        let work = work.into_iter().map(File::from).collect();
        Ok(Zygote { link: Mutex::new(Arc::new(self.link()?)), supervisors: Mutex::default(), work })
    }

    fn link(self) -> std::io::Result<Link> {
        Ok(Link { socket: confine::watch(self.socket, Interest::WRITABLE)?, pid: self.pid })
    }
}

impl Zygote {
    /// Has a supervisor started. How that went is told on the other end of `parts.control`. Returns what was asked.
    ///
    /// # Errors
    /// The zygote is gone and there can be no other, or the kernel's.
    pub(crate) async fn start(&self, parts: &Parts) -> Result<Asked, Errno> {
        let mut link = self.link();
        if let Err(errno) = link.start(parts).await {
            if !matches!(errno, Errno::PIPE | Errno::CONNRESET) {
                return Err(errno);
            }
            self.replace(&link).map_err(|error| errno_of(&error))?;
            link = self.link();
            link.start(parts).await?;
        }
        Ok(Asked(link))
    }

    fn link(&self) -> Arc<Link> {
        Arc::clone(&lock(&self.link))
    }

    /// Starts another zygote, unless somebody has done that.
    fn replace(&self, ended: &Arc<Link>) -> std::io::Result<()> {
        let mut current = lock(&self.link);
        if Arc::ptr_eq(&current, ended) {
            log("what starts processes was ended from inside, and is started again");
            *current = Arc::new(again(&self.work)?);
        }
        Ok(())
    }

    /// Calls `work` with those children of PID 1 that are ours. No zygote is started meanwhile.
    pub(crate) fn with_ours<T>(&self, work: impl FnOnce(&HashSet<Pid>) -> T) -> T {
        let link = lock(&self.link);
        let mut ours = lock(&self.supervisors).clone();
        ours.insert(link.pid);
        work(&ours)
    }
}

/// The zygote that was asked for a process.
#[derive(Debug)]
pub(crate) struct Asked(Arc<Link>);

impl Asked {
    /// Whether it is gone, so that what it was asked for last will not happen.
    pub(crate) fn has_ended(&self) -> bool {
        let mut none = [0; 1];
        let peek = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        !matches!(recv(self.0.socket.get_ref(), &mut none, peek), Err(Errno::AGAIN | Errno::INTR))
    }
}

impl Link {
    async fn start(&self, parts: &Parts) -> Result<(), Errno> {
        let descriptors = [
            parts.request.as_fd(),
            parts.control.as_fd(),
            parts.cwd.as_fd(),
            parts.stdin.as_fd(),
            parts.stdout.as_fd(),
            parts.stderr.as_fd(),
        ];
        let sent = self.socket.async_io(Interest::WRITABLE, |socket| {
            let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(Parts::COUNT))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            control.push(SendAncillaryMessage::ScmRights(&descriptors));
            Ok(sendmsg(socket, &[IoSlice::new(&[1])], &mut control, SendFlags::NOSIGNAL)?)
        });
        sent.await.map(drop).map_err(|error| errno_of(&error))
    }
}

/// The zygote's own life: until the agent's end of the socket is closed.
fn serve(socket: &OwnedFd) -> ! {
    // SAFETY: this process never returns from here, and none of its older descriptors is used again.
    unsafe { confine::close_all_but(&[socket.as_raw_fd()]) };
    signals::discard_children();
    let borrow = supervisor::spawn::may_borrow();
    loop {
        match receive(socket) {
            Ok(Some(parts)) => fork_supervisor(parts, borrow),
            Ok(None) | Err(Errno::INTR | Errno::NOBUFS | Errno::NOMEM) => {}
            // SAFETY: ends the process at once, without the parent's exit handlers.
            Err(_) => unsafe { libc::_exit(0) },
        }
    }
}

fn fork_supervisor(parts: Parts, borrow: bool) {
    // SAFETY: the zygote has one thread, so the child's memory is in a consistent state.
    let report = match unsafe { libc::fork() } {
        -1 => Report::failed(Step::Fork, errno_of(&std::io::Error::last_os_error())),
        0 => supervisor::run(parts, borrow),
        pid => Report::Forked { pid },
    };
    // Without an agent there is nobody to tell.
    let _ = send(&parts.control, &report.encode(), SendFlags::NOSIGNAL);
}

/// The next request; `None` for one that did not arrive whole, which its sender sees by its closed socket.
fn receive(socket: &OwnedFd) -> Result<Option<Parts>, Errno> {
    let mut byte = [0];
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(Parts::COUNT))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let message = recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    if message.bytes == 0 {
        return Err(Errno::PIPE);
    }
    let mut descriptors = Vec::with_capacity(Parts::COUNT);
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    let Ok(descriptors) = <[OwnedFd; Parts::COUNT]>::try_from(descriptors) else { return Ok(None) };
    let [request, control, cwd, stdin, stdout, stderr] = descriptors;
    Ok(Some(Parts { request, control, cwd, stdin, stdout, stderr }))
}
