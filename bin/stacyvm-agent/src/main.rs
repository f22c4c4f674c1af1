//! PID 1 of every sandbox: processes, files, output logs.
//!
//! Order of the start, which is what keeps the rest safe: the network is restricted before there is a way in; privileges are
//! dropped, signals blocked and the zygote forked while there is one thread and next to no memory; only then does the
//! runtime begin.

mod args;
mod bridge;
mod confine;
mod container;
mod fail;
mod files;
mod killtree;
mod oom;
mod process;
mod reaper;
mod restrict;
mod serve;
mod signals;
mod supervisor;
mod users;
mod zygote;

use args::{Config, Listen};
use files::resolve::Root;
use process::{
    launch::Launcher,
    limits::{Inherited, Limits},
    table::Table,
};
use rustix::process::{Resource, getrlimit, setrlimit};
use std::{
    io::Write,
    os::{fd::OwnedFd, unix::net::UnixListener},
    process::ExitCode,
    sync::{Arc, Barrier},
    time::Duration,
};

/// Threads for file work. Each takes its stack only while there is work.
const FILE_THREADS: usize = 8;
/// Their stacks, in bytes: nothing that they do recurses.
const FILE_STACK: usize = 256 << 10;
/// How long an idle one stays.
const FILE_IDLE: Duration = Duration::from_secs(2);
/// Threads for file work in a container: they count among its processes, and must be there when no more can be made.
const CONTAINER_FILE_THREADS: usize = 2;

fn main() -> ExitCode {
    match start() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            log(&failure.words);
            ExitCode::from(failure.code)
        }
    }
}

/// Why this program ends, for people and for the runtime.
struct Failure {
    words: String,
    code: u8,
}

impl<T: Into<String>> From<T> for Failure {
    fn from(words: T) -> Self {
        Self { words: words.into(), code: 1 }
    }
}

/// Says something to whoever reads this program's log, if that can be done.
fn log(message: &str) {
    // Not `eprintln`, which ends the program when the log is full or gone.
    let _ = writeln!(std::io::stderr(), "stacyvm-agent: {message}");
}

fn start() -> Result<(), Failure> {
    let said = |what: &'static str| move |error: rustix::io::Errno| format!("{what}: {error}");
    let mut arguments = std::env::args_os().skip(1).peekable();
    if arguments.next_if(|word| word == "bridge").is_some() {
        return Ok(bridge::run(&arguments.next().ok_or("bridge needs the path of a socket")?)?);
    }
    if arguments.next_if(|word| word == zygote::WORD).is_some() {
        let open_files = arguments.next().and_then(|number| number.to_str()?.parse().ok());
        return zygote::run(open_files)
            .map_err(|error| format!("this is started by an agent, not by hand: {error}").into());
    }
    let mut config = Config::parse(arguments)?;
    if config.restrict_network {
        let blocked = std::env::var(stacyvm_guest::start::BLOCKED_VARIABLE).unwrap_or_default();
        restrict::run(blocked.split_whitespace())
            .map_err(|words| Failure { words, code: stacyvm_guest::start::UNRESTRICTED })?;
    }
    if config.container {
        container::prepare(&config);
    }
    if config.takes_environment {
        config.environment = container::image_environment(std::env::vars_os());
    }
    let listener = match &config.listen {
        Listen::Fd(number) => confine::inherit(*number).map_err(said("--listen-fd"))?,
        Listen::Path(path) => serve::accept::listen(path)
            .map_err(|error| format!("cannot listen on {}: {error}", path.display()))?
            .into(),
    };
    let inherit = |number: Option<_>| number.map(confine::inherit).transpose();
    let inherited = Inherited {
        memory_events: inherit(config.memory_events_fd).map_err(said("--memory-events-fd"))?,
        pids_events: inherit(config.pids_events_fd).map_err(said("--pids-events-fd"))?,
    };

    let work = config.work_fds.iter().map(|number| confine::inherit(*number));
    let work = work.collect::<Result<Vec<_>, _>>().map_err(said("--work-fds"))?;

    confine::hide().map_err(said("cannot hide from the sandbox's processes"))?;
    let isolated = config.root.is_none();
    if isolated {
        let missing = confine::keep_only_needed(config.root_user).map_err(said("cannot drop privileges"))?;
        if !missing.is_empty() {
            log(&format!("capabilities {missing:?} are missing; some operations will be refused"));
        }
    }
    signals::block_all().map_err(said("cannot block signals"))?;
    // Orphans must end up here, where they are reaped. PID 1 has them anyway.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .map_err(said("cannot become a reaper"))?;
    let zygote = zygote::fork().map_err(said("cannot fork"))?;
    raise_open_files();

    let (threads, idle) =
        if config.container { (CONTAINER_FILE_THREADS, Duration::MAX) } else { (FILE_THREADS, FILE_IDLE) };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(threads)
        .thread_stack_size(FILE_STACK)
        .thread_keep_alive(idle)
        .build()
        .map_err(|error| format!("cannot start: {error}"))?;
    if config.container {
        // Each waits for the others, so that all are made.
        let all = Arc::new(Barrier::new(threads));
        for _ in 0..threads {
            let all = Arc::clone(&all);
            runtime.spawn_blocking(move || all.wait());
        }
    }
    let result = runtime.block_on(serve(config, listener, inherited, zygote, work));
    // Threads may be in the middle of file work; nothing waits for them.
    runtime.shutdown_background();
    Ok(result.map_err(|error| error.to_string())?)
}

/// Serves until told to end.
async fn serve(
    config: Config,
    listener: OwnedFd,
    inherited: Inherited,
    zygote: zygote::Fresh,
    work: Vec<OwnedFd>,
) -> std::io::Result<()> {
    let isolated = config.root.is_none();
    let descriptor = reaper::descriptor()?;
    let listener = UnixListener::from(listener);
    listener.set_nonblocking(true)?;
    let listener = tokio::net::UnixListener::from_std(listener)?;
    let root = Arc::new(Root::new(config.root.as_deref())?);
    let config = Arc::new(config);
    let limits = if isolated { Limits::new(&root, inherited) } else { Limits::without_cgroup(&root) };
    let launcher = Launcher {
        config: Arc::clone(&config),
        root: Arc::clone(&root),
        zygote: Arc::new(zygote.attach(work)?),
        limits: Arc::new(limits),
    };
    let table = Table::new(launcher);
    let sandbox = serve::Sandbox { config, root, table };
    tokio::select! {
        result = reaper::run(descriptor, rustix::process::getpid().is_init()) => result,
        never = serve::accept::run(listener, sandbox) => match never {},
    }
}

/// Allows as many open files as the hard limit does, after the zygote was forked with the usual limit for processes.
fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    // With less, fewer processes fit, and that is said when it happens.
    let _ = setrlimit(Resource::Nofile, rustix::process::Rlimit { current: limit.maximum, ..limit });
}
