//! From a `Start` request to a running program, or to the reason why there is none.

use super::{
    Facts, Process, Shared,
    ends::{Ends, Ours, Theirs},
    limits::{Hit, Limits},
    pump, unix_ms,
    watcher::{self, Departure},
};
use crate::{
    args::Config,
    fail::{Fail, Result, errno_of},
    files::{path::SandboxPath, resolve::Root},
    killtree, signals,
    supervisor::{
        Parts,
        request::Request,
        wire::{Report, Step},
    },
    users::{self, Account},
    zygote::{Asked, Supervised, Zygote},
};
use rustix::{
    fs::{MemfdFlags, Mode, OFlags, memfd_create},
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, socketpair},
};
use stacyvm_guest::{
    limits,
    proto::{Limit, StartRequest},
};
use std::{
    collections::BTreeMap,
    fs::File,
    io::Write,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    sync::Arc,
    time::Duration,
};
use tokio::{
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf, pipe},
    },
    time::Instant,
};

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Longest id, in bytes.
const ID: usize = 64;
/// Longest tag, in bytes.
const TAG: usize = 1024;
/// How much of the arguments is remembered, in bytes.
const ARGV: usize = 4096;
/// Least and most output that a process may ask to be kept, in bytes.
const LOG: (u64, u64) = (4 << 10, 16 << 20);

/// Longest time for ending what a killed supervisor left.
const ORPHANS: Duration = Duration::from_secs(10);
const ORPHANS_PAUSE: Duration = Duration::from_millis(5);

/// What every start needs.
#[derive(Debug)]
pub(crate) struct Launcher {
    pub(crate) config: Arc<Config>,
    pub(crate) root: Arc<Root>,
    pub(crate) zygote: Arc<Zygote>,
    pub(crate) limits: Arc<Limits>,
}

/// A process that runs, and the ends of it that somebody has to serve.
pub(super) struct Launched {
    pub(super) process: Arc<Process>,
    control: OwnedReadHalf,
    supervisor: Option<Supervised>,
    zygote: Arc<Zygote>,
    stdout: pipe::Receiver,
    stderr: Option<pipe::Receiver>,
    limits: Arc<Limits>,
}

impl Launched {
    /// Serves the process until its supervisor left.
    pub(super) async fn serve(self, on_growth: impl Fn() + Send + 'static) -> Departure {
        tokio::spawn(pump::run(Arc::clone(&self.process), self.stdout, self.stderr, on_growth));
        watcher::run(self.process, self.control, self.supervisor, &self.zygote, self.limits).await
    }
}

/// Refuses what no process can have.
///
/// # Errors
/// `InvalidArgument`.
pub(super) fn validate(request: &StartRequest) -> Result<()> {
    let bad = |what: &str| Err(Fail::invalid(what));
    if request.id.is_empty() || request.id.len() > ID || request.id.chars().any(char::is_control) {
        return bad("a process id has 1 to 64 bytes and no control characters");
    }
    if request.argv.first().is_none_or(String::is_empty) {
        return bad("there is no command");
    }
    if request.argv.iter().any(|argument| argument.contains('\0')) {
        return bad("an argument contains a NUL byte");
    }
    for (name, value) in &request.env {
        if name.is_empty() || name.contains(['=', '\0']) {
            return Err(Fail::invalid(format!("{name:?} cannot be the name of an environment variable")));
        }
        if value.contains('\0') {
            return Err(Fail::invalid(format!("the environment variable {name} contains a NUL byte")));
        }
    }
    if request.tag.len() > TAG {
        return bad("the tag is longer than 1024 bytes");
    }
    Ends::of(request).map(drop)
}

impl Launcher {
    /// Starts the process that `request` asks for.
    ///
    /// # Errors
    /// As `Guest::start` of the provider contract.
    pub(super) async fn launch(
        &self,
        request: StartRequest,
        number: u64,
        shared: &Arc<Shared>,
    ) -> Result<Launched> {
        let account = self.account(&request.user)?;
        let cwd = if request.cwd.is_empty() { self.config.workdir.clone() } else { request.cwd.clone() };
        let cwd_path = SandboxPath::parse(&cwd)?;
        let ends = Ends::of(&request)?;
        let encoded = self.encode(&request, &account);
        let counts = self.limits.counts();
        let mut again = true;
        let (begun, pid) = loop {
            let directory = self
                .root
                .open(&cwd_path, OFlags::PATH | OFlags::DIRECTORY, Mode::empty())
                .map_err(|errno| Fail::errno(&format!("the working directory {cwd}"), errno))?;
            let (mut begun, first) = self.begin(&encoded, directory, &account, &ends).await?;
            match first {
                First::Started { pid } => break (begun, pid),
                First::Failed { step, errno } => return Err(refusal(&request.argv[0], &cwd, step, errno)),
                // Nobody has read the request: whoever should have was being ended.
                First::Nothing if again && begun.supervisor.is_none() && begun.asked.has_ended() => {
                    again = false;
                }
                First::Nothing => {
                    self.end_orphans(begun.supervisor.take()).await;
                    let killed = "the process was killed before it could start";
                    return Err(match counts.until(self.limits.counts()) {
                        Hit { oom: true, .. } => Fail::of_limit(Limit::Oom, killed),
                        _ => Fail::exhausted(killed),
                    });
                }
            }
        };
        let Begun { ours, reports, commands, supervisor, .. } = begun;
        let wanted = if request.log_bytes == 0 { limits::LOG_BYTES } else { request.log_bytes };
        let facts = Facts {
            id: request.id,
            argv: shorten(request.argv),
            cwd,
            user: account.name,
            tag: request.tag,
            pid: u32::try_from(pid).unwrap_or(0),
            started_ms: unix_ms(),
            log_capacity: usize::try_from(wanted.clamp(LOG.0, LOG.1)).unwrap_or(usize::MAX),
            number,
            counts,
        };
        let process = Arc::new(Process::new(facts, ours.stdin, ours.pty, commands, shared));
        // Whoever started it has yet to attach.
        process.hold(0);
        Ok(Launched {
            process,
            control: reports,
            supervisor,
            zygote: Arc::clone(&self.zygote),
            stdout: ours.stdout,
            stderr: ours.stderr,
            limits: Arc::clone(&self.limits),
        })
    }

    /// Has a supervisor made and waits for the first that is heard of its process.
    async fn begin(
        &self,
        request: &[u8],
        cwd: OwnedFd,
        account: &Account,
        ends: &Ends,
    ) -> Result<(Begun, First)> {
        let trouble = |errno| Fail::errno("starting a process", errno);
        let (parts, control, ours) = self.descriptors(request, cwd, account, ends).map_err(trouble)?;
        let asked = self.zygote.start(&parts).await;
        // The process must be the only one to hold its ends, or the end of its output would never be seen.
        drop(parts);
        let asked = asked.map_err(|errno| {
            Fail::internal(format!("this sandbox can start no more processes (its zygote is gone: {errno})"))
        })?;
        let (reports, commands) = control.into_split();
        let mut begun = Begun { ours, reports, commands, asked, supervisor: None };
        loop {
            match watcher::next(&mut begun.reports).await {
                Some(Report::Forked { pid }) => {
                    begun.supervisor = Supervised::new(&self.zygote, pid);
                }
                Some(Report::Started { pid }) => return Ok((begun, First::Started { pid })),
                Some(Report::Failed { step, errno }) => {
                    return Ok((begun, First::Failed { step, errno: Errno::from_raw_os_error(errno) }));
                }
                Some(_) => {}
                None => return Ok((begun, First::Nothing)),
            }
        }
    }

    /// Ends what a supervisor left behind when it was killed: nobody enforces its deadlines any more, and its processes are
    /// now children of this one, as are no others but the zygote, and supervisors whose zygote is gone.
    pub(super) async fn end_orphans(&self, supervisor: Option<Supervised>) {
        let until = Instant::now() + ORPHANS;
        // Its descriptors are closed before its children are passed on.
        while supervisor.as_ref().is_some_and(|one| signals::send(one.pid(), 0).is_ok())
            && Instant::now() < until
        {
            tokio::time::sleep(ORPHANS_PAUSE).await;
        }
        drop(supervisor);
        loop {
            let (me, zygote) = (rustix::process::getpid(), Arc::clone(&self.zygote));
            let orphans = move || zygote.with_ours(|ours| killtree::descendants_except(me, ours));
            let killed = tokio::task::spawn_blocking(move || killtree::kill_all(orphans)).await;
            if !matches!(killed, Ok(1..)) || Instant::now() >= until {
                return;
            }
            tokio::time::sleep(ORPHANS_PAUSE).await;
        }
    }

    fn account(&self, user: &str) -> Result<Account> {
        let account = users::find(&self.config, &self.root, user)?;
        if account.uid == 0 && self.config.root.is_none() && !self.config.root_user {
            return Err(Fail::unsupported("this runtime does not run processes as root"));
        }
        Ok(account)
    }

    fn encode(&self, request: &StartRequest, account: &Account) -> Vec<u8> {
        let home = self.root.host_path(&account.home);
        let terminal: &[u8] = if request.pty.is_some() { b"xterm-256color" } else { b"xterm" };
        let mut env: BTreeMap<&str, &[u8]> =
            BTreeMap::from([("PATH", PATH.as_bytes()), ("LANG", b"C.UTF-8"), ("TERM", terminal)]);
        env.extend(self.config.environment.iter().map(|(name, value)| (name.as_str(), value.as_bytes())));
        env.extend([("HOME", home.as_os_str().as_bytes()), ("USER", account.name.as_bytes())]);
        env.extend(request.env.iter().map(|(name, value)| (name.as_str(), value.as_bytes())));
        let path = env.get("PATH").copied().unwrap_or_default().to_vec();
        let change = self.config.root.is_none() && !self.config.single_user;
        let encoded = Request {
            deadline_ms: request.deadline_ms,
            user: change.then(|| (account.uid, account.gid, account.groups.clone())),
            program: self.program(&request.argv[0]),
            path,
            argv: request.argv.iter().map(|argument| argument.as_bytes().to_vec()).collect(),
            env: env.iter().map(|(name, value)| [name.as_bytes(), b"=", value].concat()).collect(),
            terminal: request.pty.is_some(),
        };
        encoded.encode()
    }

    /// The program's path or name. Where paths of the sandbox are not paths of the kernel, an absolute one is translated if
    /// the file is in the sandbox, and left alone if it can only be meant for the host.
    fn program(&self, name: &str) -> Vec<u8> {
        let inside = SandboxPath::parse(name)
            .ok()
            .filter(|_| self.config.root.is_some())
            .and_then(|path| self.root.open(&path, OFlags::PATH, Mode::empty()).ok())
            .and_then(|file| std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).ok());
        inside.map_or_else(|| name.as_bytes().to_vec(), |path| path.as_os_str().as_bytes().to_vec())
    }

    fn descriptors(
        &self,
        request: &[u8],
        cwd: OwnedFd,
        account: &Account,
        ends: &Ends,
    ) -> Result<(Parts, UnixStream, Ours), Errno> {
        let mut file = File::from(memfd_create("request", MemfdFlags::CLOEXEC)?);
        file.write_all(request).map_err(|error| errno_of(&error))?;
        let (control, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        let control = std::os::unix::net::UnixStream::from(control);
        let control = control.set_nonblocking(true).and_then(|()| UnixStream::from_std(control));
        // Where paths of the sandbox are not paths of the kernel, everybody is the user that we are.
        let owner = self.config.root.is_none().then_some((account.uid, account.gid));
        let (Theirs { stdin, stdout, stderr }, ours) = ends.make(owner)?;
        let parts = Parts { request: file.into(), control: theirs, cwd, stdin, stdout, stderr };
        Ok((parts, control.map_err(|error| errno_of(&error))?, ours))
    }
}

/// A process that is being started.
struct Begun {
    ours: Ours,
    reports: OwnedReadHalf,
    commands: OwnedWriteHalf,
    asked: Asked,
    supervisor: Option<Supervised>,
}

/// The first that is heard of it.
enum First {
    Started { pid: i32 },
    Failed { step: Step, errno: Errno },
    Nothing,
}

/// What a failed step means to whoever asked for the process.
fn refusal(program: &str, cwd: &str, step: Step, errno: Errno) -> Fail {
    let program: String = program.chars().take(200).collect();
    match (step, errno) {
        (Step::Execute, Errno::NOENT | Errno::NOTDIR) => {
            Fail::not_found(format!("command not found: {program}"))
        }
        (Step::Execute, Errno::ACCESS | Errno::PERM) => {
            Fail::invalid(format!("{program}: permission denied; it may not be executable"))
        }
        (Step::Execute, Errno::NOEXEC) => Fail::invalid(format!(
            "{program}: neither a program for this machine nor a script with a #! line"
        )),
        (Step::Execute, Errno::TOOBIG) => {
            Fail::invalid(format!("{program}: the arguments and the environment are too long"))
        }
        (Step::Execute, errno) => Fail::errno(&program, errno),
        (Step::Interpreter, _) => {
            Fail::invalid(format!("{program}: the interpreter that it needs does not exist"))
        }
        (Step::Directory, errno) => Fail::errno(&format!("the working directory {cwd}"), errno),
        (Step::Fork, Errno::AGAIN) => Fail::of_limit(
            Limit::Pids,
            "no room for another process: the sandbox's limit of processes is reached",
        ),
        (Step::Fork, Errno::NOMEM) => Fail::of_limit(
            Limit::Oom,
            "no room for another process: the sandbox's limit of memory is reached",
        ),
        (_, Errno::AGAIN | Errno::NOMEM | Errno::NFILE | Errno::MFILE) => Fail::exhausted(
            "no room for another process: the sandbox's limit of processes or memory is reached",
        ),
        (Step::User, Errno::INVAL) => Fail::invalid("that user does not exist in this runtime"),
        (step, errno) => Fail::internal(format!("starting a process failed ({step:?}: {errno})")),
    }
}

/// The beginning of `argv`, as much of it as is remembered.
fn shorten(argv: Vec<String>) -> Vec<String> {
    let mut left = ARGV;
    let mut short = Vec::new();
    for mut argument in argv {
        if argument.len() + 1 > left {
            argument.truncate(
                (0..=left.min(argument.len())).rev().find(|i| argument.is_char_boundary(*i)).unwrap_or(0),
            );
            argument.push('…');
            short.push(argument);
            break;
        }
        left -= argument.len() + 1;
        short.push(argument);
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;
    use stacyvm_guest::proto::PtySize;
    use tonic::Code;

    #[test]
    fn what_no_process_can_have_is_refused() {
        let good = || StartRequest { id: "p-1".into(), argv: vec!["a".into()], ..StartRequest::default() };
        assert!(validate(&good()).is_ok());
        let env = |name: &str, value: &str| StartRequest {
            env: [(name.to_owned(), value.to_owned())].into(),
            ..good()
        };
        for bad in [
            StartRequest { id: String::new(), ..good() },
            StartRequest { id: "x".repeat(65), ..good() },
            StartRequest { id: "a\nb".into(), ..good() },
            StartRequest { argv: vec![], ..good() },
            StartRequest { argv: vec![String::new()], ..good() },
            StartRequest { argv: vec!["a".into(), "b\0".into()], ..good() },
            StartRequest { tag: "t".repeat(1025), ..good() },
            env("", "x"),
            env("A=B", "x"),
            env("A", "x\0"),
            StartRequest { pty: Some(PtySize { rows: 0, cols: 80 }), ..good() },
            StartRequest { pty: Some(PtySize { rows: 24, cols: 65_536 }), ..good() },
        ] {
            assert_eq!(validate(&bad).unwrap_err().code(), Code::InvalidArgument, "{bad:?}");
        }
    }

    #[test]
    fn long_arguments_are_remembered_in_part() {
        let argv = vec!["short".to_owned(), "ä".repeat(10_000), "never seen".to_owned()];
        let short = shorten(argv);
        assert_eq!(short.len(), 2);
        assert!(short[1].ends_with("ä…") && short[1].len() <= ARGV + 4, "{}", short[1].len());
        assert_eq!(shorten(vec!["a".into(), "b".into()]), ["a", "b"]);
    }

    #[test]
    fn each_refusal_has_the_kind_that_the_contract_names() {
        let code = |step, errno| refusal("prog", "/w", step, errno).code();
        assert_eq!(code(Step::Execute, Errno::NOENT), Code::NotFound);
        assert_eq!(code(Step::Execute, Errno::ACCESS), Code::InvalidArgument);
        assert_eq!(code(Step::Execute, Errno::NOEXEC), Code::InvalidArgument);
        assert_eq!(code(Step::Interpreter, Errno::NOENT), Code::InvalidArgument);
        assert_eq!(code(Step::Directory, Errno::NOENT), Code::NotFound);
        assert_eq!(code(Step::Directory, Errno::ACCESS), Code::InvalidArgument);
        assert_eq!(code(Step::Fork, Errno::AGAIN), Code::ResourceExhausted);
        assert_eq!(code(Step::Privileges, Errno::PERM), Code::Internal);
    }
}
