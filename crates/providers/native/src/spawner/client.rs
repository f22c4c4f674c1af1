//! The server's side of the spawner: starts it, talks to it, replaces it when it dies.

use super::protocol::{CloneFds, Reply, Request, Setup, receive, send, socket_pair};
use crate::{
    config::SpawnerCommand,
    failure::{Doing, Failure},
    ids::IdRange,
};
use rustix::{
    fd::{AsFd, BorrowedFd, OwnedFd},
    fs::{MemfdFlags, SealFlags},
    io::Errno,
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};
use stacyvm_provider::SandboxId;
use std::{
    collections::{BTreeSet, HashMap},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    time::Duration,
};

/// Time for the spawner to clone a process. It does nothing that waits, so more than this is a spawner that hangs.
const ANSWER: Duration = Duration::from_secs(10);

/// The spawner of one server, started when needed.
#[derive(Debug)]
pub(crate) struct Spawner {
    command: SpawnerCommand,
    data_dir: PathBuf,
    installation_id: String,
    /// The agent's program as a sealed file in memory: nothing inside a sandbox can change it, and all sandboxes share
    /// its pages.
    agent: OwnedFd,
    lock: Option<OwnedFd>,
    connection: Mutex<Option<Arc<Connection>>>,
    /// Ephemeral sandboxes that are not known to be gone, for the next spawner.
    ephemeral: Mutex<BTreeSet<SandboxId>>,
}

/// A first process that waits for the word to go.
#[derive(Debug)]
pub(crate) struct ClonedChild {
    pub(crate) pid: i32,
    pub(crate) pidfd: OwnedFd,
}

/// What the spawner says to one request.
type Answer = (Reply, Vec<OwnedFd>);

/// One spawner process.
#[derive(Debug)]
struct Connection {
    socket: OwnedFd,
    process: OwnedFd,
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    /// `None` once the spawner has died.
    answers: Option<HashMap<u64, mpsc::Sender<Answer>>>,
}

impl Spawner {
    pub(crate) fn new(
        command: SpawnerCommand,
        data_dir: PathBuf,
        installation_id: String,
        agent: &[u8],
        lock: Option<OwnedFd>,
    ) -> Result<Self, Failure> {
        let agent = sealed_program(agent).doing(|| "put the agent into memory".to_owned())?;
        Ok(Self {
            command,
            data_dir,
            installation_id,
            agent,
            lock,
            connection: Mutex::new(None),
            ephemeral: Mutex::new(BTreeSet::new()),
        })
    }

    /// Starts the spawner unless it runs.
    pub(crate) fn start(&self) -> Result<(), Failure> {
        self.connect().map(drop)
    }

    /// Clones the first process of a sandbox. Blocks for about a millisecond, ten seconds at worst.
    ///
    /// # Errors
    /// What the spawner met; [`Gone`] if it died, which may have happened before or after the clone: a child that it
    /// made ends by itself once the other end of `fds.go` is closed.
    pub(crate) fn clone_child(
        &self,
        setup: Setup,
        fds: &CloneFds<BorrowedFd<'_>>,
    ) -> Result<Result<ClonedChild, Failure>, Gone> {
        if setup.ephemeral {
            lock(&self.ephemeral).insert(setup.id.clone());
        }
        let setup = Box::new(setup);
        let answer = self.ask(|sequence| Request::Clone { sequence, setup }, &fds.to_packet())?;
        Ok(answer.and_then(|answer| match answer {
            (Reply::Cloned { pid, .. }, fds) => Ok(ClonedChild { pid, pidfd: only(fds)? }),
            other => Err(unexpected(other)),
        }))
    }

    /// Makes a user namespace in which the ids from 0 on are those of `ids`; without, one with one user, to see whether that
    /// can be done.
    ///
    /// # Errors
    /// What the spawner met, also that it died.
    pub(crate) fn user_namespace(&self, ids: Option<IdRange>) -> Result<OwnedFd, Failure> {
        let answer = self.ask(|sequence| Request::UserNamespace { sequence, ids }, &[]);
        let answer = answer.map_err(|Gone| Failure::plain("make a user namespace: the spawner ended"))?;
        match answer? {
            (Reply::UserNamespace { .. }, fds) => only(fds),
            other => Err(unexpected(other)),
        }
    }

    /// Sends a request and waits for the answer.
    fn ask(
        &self,
        request: impl FnOnce(u64) -> Request,
        fds: &[BorrowedFd<'_>],
    ) -> Result<Result<Answer, Failure>, Gone> {
        let connection = match self.connect() {
            Ok(connection) => connection,
            Err(failure) => return Ok(Err(failure)),
        };
        let (sequence, answer) = connection.expect_answer().ok_or(Gone)?;
        match send(connection.socket.as_fd(), &request(sequence), fds) {
            Ok(()) => {}
            Err(e) if matches!(e.raw_os_error(), Some(libc::EPIPE | libc::ECONNRESET | libc::ENOTCONN)) => {
                return Err(Gone);
            }
            Err(e) => return Ok(Err(e).doing(|| "ask the spawner".to_owned())),
        }
        match answer.recv_timeout(ANSWER) {
            Ok(answer) => Ok(Ok(answer)),
            Err(mpsc::RecvTimeoutError::Disconnected) => Err(Gone),
            Err(mpsc::RecvTimeoutError::Timeout) => {
                connection.kill();
                Err(Gone)
            }
        }
    }

    /// This sandbox is gone, so the spawner has nothing to remove when we are gone.
    pub(crate) fn forget(&self, id: &SandboxId) {
        if !lock(&self.ephemeral).remove(id) {
            return;
        }
        if let Some(connection) = lock(&self.connection).as_ref() {
            // A spawner that died is told by the list that its successor gets.
            let _ = send(connection.socket.as_fd(), &Request::Forget { id: id.clone() }, &[]);
        }
    }

    fn connect(&self) -> Result<Arc<Connection>, Failure> {
        let mut current = lock(&self.connection);
        if let Some(connection) = current.as_ref().filter(|c| c.is_alive()) {
            return Ok(Arc::clone(connection));
        }
        let connection =
            self.launch().doing(|| format!("start the spawner {}", self.command.program.display()))?;
        *current = Some(Arc::clone(&connection));
        Ok(connection)
    }

    fn launch(&self) -> std::io::Result<Arc<Connection>> {
        let (ours, theirs) = socket_pair()?;
        let mut child = Command::new(&self.command.program)
            .args(&self.command.args)
            // Nothing of the server's environment, secrets included, comes near a sandbox.
            .env_clear()
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .spawn()?;
        let process = i32::try_from(child.id())
            .ok()
            .and_then(Pid::from_raw)
            .ok_or(Errno::SRCH)
            .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()));
        let process = match process {
            Ok(process) => process,
            Err(e) => {
                child.kill()?;
                child.wait()?;
                return Err(e.into());
            }
        };
        // A spawner that was stopped must not stop us: rather an error than a wait for room in its queue.
        rustix::net::sockopt::set_socket_timeout(&ours, rustix::net::sockopt::Timeout::Send, Some(ANSWER))?;
        let connection = Arc::new(Connection {
            socket: ours,
            process,
            waiting: Mutex::new(Waiting { next: 0, answers: Some(HashMap::new()) }),
        });
        let init = Request::Init {
            data_dir: self.data_dir.clone(),
            installation_id: self.installation_id.clone(),
            ephemeral: lock(&self.ephemeral).iter().cloned().collect(),
        };
        let mut fds = vec![self.agent.as_fd()];
        fds.extend(self.lock.as_ref().map(AsFd::as_fd));
        let reader = connection.socket.try_clone()?;
        let waiting = Arc::downgrade(&connection);
        std::thread::Builder::new().name("native-spawner".to_owned()).spawn(move || {
            while let Ok(Some((reply, fds))) = receive::<Reply>(reader.as_fd()) {
                let Some(connection) = waiting.upgrade() else { break };
                connection.deliver(reply, fds);
            }
            if let Some(connection) = waiting.upgrade() {
                connection.bury();
            }
            drop(reader);
            reap(&mut child);
        })?;
        send(connection.socket.as_fd(), &init, &fds)?;
        Ok(connection)
    }
}

/// The spawner died before it answered.
#[derive(Debug)]
pub(crate) struct Gone;

/// The descriptor that comes with an answer.
fn only(fds: Vec<OwnedFd>) -> Result<OwnedFd, Failure> {
    fds.into_iter().next().ok_or_else(|| Failure::plain("get a descriptor from the spawner"))
}

fn unexpected((reply, _): Answer) -> Failure {
    match reply {
        Reply::Failed { failure, .. } => failure,
        _ => Failure::plain("understand the spawner: it answered something else"),
    }
}

impl Connection {
    fn is_alive(&self) -> bool {
        lock(&self.waiting).answers.is_some()
    }

    fn expect_answer(&self) -> Option<(u64, mpsc::Receiver<Answer>)> {
        let mut waiting = lock(&self.waiting);
        let sequence = waiting.next;
        waiting.next += 1;
        let (sender, receiver) = mpsc::channel();
        waiting.answers.as_mut()?.insert(sequence, sender);
        Some((sequence, receiver))
    }

    fn deliver(&self, reply: Reply, fds: Vec<OwnedFd>) {
        let sender = lock(&self.waiting).answers.as_mut().and_then(|a| a.remove(&reply.sequence()));
        if let Some(sender) = sender {
            // Whoever asked has given up; dropping the descriptors is all there is to do.
            let _ = sender.send((reply, fds));
        }
    }

    /// The spawner has died: everybody who waits is told by the end of their channel.
    fn bury(&self) {
        lock(&self.waiting).answers = None;
    }

    fn kill(&self) {
        self.bury();
        let _ = pidfd_send_signal(&self.process, Signal::KILL);
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // The reader thread has a descriptor of its own; this ends it, and the spawner.
        let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both);
    }
}

/// Waits for the end of the spawner, which may be cleaning up.
fn reap(child: &mut Child) {
    if let Err(error) = child.wait() {
        tracing::warn!(%error, "the native spawner could not be waited for");
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every critical section here leaves the value whole, so a panic elsewhere in one says nothing about it.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn sealed_program(bytes: &[u8]) -> std::io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = match rustix::fs::memfd_create("stacyvm-agent", flags | MemfdFlags::EXEC) {
        // Before Linux 6.3 every such file could be executed.
        Err(Errno::INVAL) => rustix::fs::memfd_create("stacyvm-agent", flags)?,
        result => result?,
    };
    let mut file = std::fs::File::from(file);
    std::io::Write::write_all(&mut file, bytes)?;
    let file = OwnedFd::from(file);
    rustix::fs::fchmod(&file, rustix::fs::Mode::from_raw_mode(0o555))?;
    rustix::fs::fcntl_add_seals(
        &file,
        SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE,
    )?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn the_agent_in_memory_cannot_be_changed() {
        let fd = sealed_program(b"#!/bin/true\n").unwrap();
        assert!(rustix::io::write(&fd, b"x").is_err());
        let mut text = String::new();
        let mut file =
            std::fs::File::open(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&fd))).unwrap();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "#!/bin/true\n");
    }

    #[test]
    fn a_spawner_that_cannot_be_started_is_named() {
        let command = SpawnerCommand { program: "/no/such/program".into(), args: Vec::new() };
        let spawner = Spawner::new(command, "/".into(), "i".to_owned(), b"x", None).unwrap();
        let failure = spawner.start().unwrap_err();
        assert!(failure.to_string().contains("/no/such/program"), "{failure}");
    }

    #[test]
    fn a_spawner_that_ends_at_once_is_gone_and_not_waited_for() {
        let command = SpawnerCommand { program: "/bin/true".into(), args: Vec::new() };
        let spawner = Spawner::new(command, "/".into(), "i".to_owned(), b"x", None).unwrap();
        let setup = Setup::example(false, false);
        let null: OwnedFd = std::fs::File::open("/dev/null").unwrap().into();
        let null = null.as_fd();
        let fds = CloneFds {
            lower: null,
            listener: null,
            log: null,
            go: null,
            status: null,
            cgroup: None,
            memory_events: None,
            user_namespace: None,
            pids_events: None,
            network: None,
        };
        // Either the packet could not be sent, or its answer never comes.
        match spawner.clone_child(setup, &fds) {
            Err(Gone) => {}
            Ok(answer) => {
                answer.unwrap_err();
            }
        }
    }
}
