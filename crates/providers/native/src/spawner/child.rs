//! The first process of a sandbox, from `clone3` to `execve` of the agent.
//!
//! Runs on a copy of the spawner's memory and never returns to it.

use super::{
    mounts, privileges,
    protocol::{CloneFds, Report, Setup},
};
use crate::{
    cgroup::Join,
    failure::{Doing, Failure},
    seccomp, sys,
};
use rustix::{
    fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    fs::{Mode, OFlags},
    io::Errno,
};
use std::{convert::Infallible, ffi::CString, fs, io::Write, panic::AssertUnwindSafe};

/// Number of the agent's listening socket.
pub(crate) const LISTENER: u32 = 3;
/// Number of the file in which the agent finds out what was killed for memory.
pub(crate) const MEMORY_EVENTS: u32 = 4;
/// Number of the file in which it finds out that no more processes were let be made.
pub(crate) const PIDS_EVENTS: u32 = 5;
/// Number of the first of those files by which a process joins the cgroups of the work, if there are any.
pub(crate) const WORK: u32 = 6;
/// Descriptors are first moved to here or above, out of the way of the numbers that the agent gets.
const ABOVE: i32 = 16;
/// Environment of the agent itself, where the image has none for processes.
const ENVIRONMENT: &[&str] = &["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"];

/// Sets the sandbox up, waits for the word to go, becomes the agent. On failure, reports it and ends. `mapped`: one byte
/// comes once this process is somebody.
pub(super) fn run(
    setup: &Setup,
    fds: CloneFds<OwnedFd>,
    agent: BorrowedFd<'_>,
    mapped: Option<OwnedFd>,
) -> ! {
    if mapped.is_some_and(|pipe| !word(pipe.as_fd())) {
        sys::exit_now(0);
    }
    let Ok(status) = above(&fds.status) else { sys::exit_now(1) };
    // A panic must not unwind into the spawner's loop, of which this process has a copy.
    let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| try_run(setup, fds, agent, status.as_fd())));
    let failure = match outcome {
        Ok(Ok(never)) => match never {},
        Ok(Err(failure)) => failure,
        Err(_) => Failure::plain("set up the sandbox: a defect in its set-up code"),
    };
    report(status.as_fd(), &Report::Failed(failure));
    sys::exit_now(1)
}

fn try_run(
    setup: &Setup,
    fds: CloneFds<OwnedFd>,
    agent: BorrowedFd<'_>,
    status: BorrowedFd<'_>,
) -> Result<Infallible, Failure> {
    let move_up = |fd: &dyn AsFd| above(fd).doing(|| "move a descriptor".to_owned());
    let (lower, listener, log) = (move_up(&fds.lower)?, move_up(&fds.listener)?, move_up(&fds.log)?);
    let (go, agent) = (move_up(&fds.go)?, move_up(&agent)?);
    let memory_events = fds.memory_events.as_ref().map(|fd| move_up(fd)).transpose()?;
    let user_namespace = fds.user_namespace.as_ref().map(|fd| move_up(fd)).transpose()?;
    let pids_events = fds.pids_events.as_ref().map(|fd| move_up(fd)).transpose()?;
    drop(fds);
    // The lock, the server's socket and other sandboxes' descriptors are not this one's to keep open.
    let mut own = [&lower, &listener, &log, &go, &agent].map(AsRawFd::as_raw_fd).to_vec();
    own.extend(memory_events.iter().chain(&user_namespace).chain(&pids_events).map(AsRawFd::as_raw_fd));
    own.push(status.as_raw_fd());
    sys::close_all_except(&own).doing(|| "close descriptors".to_owned())?;
    sys::default_signals();
    rustix::process::umask(Mode::empty());
    let _ = rustix::process::setsid();
    sys::plain_scheduling();
    if rustix::process::nice(0).is_ok_and(|nice| nice < 0) {
        let _ = rustix::process::setpriority_process(None, 0);
    }

    let work = join_cgroups(setup)?;
    sys::new_session_keyring();
    rustix::system::sethostname(setup.id.as_str().as_bytes()).doing(|| "set the host name".to_owned())?;
    if !setup.has_network {
        bring_up_loopback()?;
    }
    let map = user_namespace.as_ref().map(AsFd::as_fd);
    mounts::enter_root(setup, lower.as_fd(), map, &mut |what| report(status, &what))?;
    drop(lower);
    privileges::set_oom_score();
    privileges::set_resource_limits()?;
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .and_then(|fd| above(&fd))
        .doing(|| "open /dev/null".to_owned())?;
    let argv = c_strings(setup.argv.iter().map(String::as_str))?;
    let environment = match &setup.environment[..] {
        [] => c_strings(ENVIRONMENT.iter().copied())?,
        own => c_strings(own.iter().map(String::as_str))?,
    };

    if !word(go.as_fd()) {
        // The server died or gave up. There is nobody to report to.
        sys::exit_now(0);
    }
    rustix::process::umask(Mode::from_raw_mode(0o022));
    if let Some(user_namespace) = &user_namespace {
        privileges::enter(user_namespace.as_fd())?;
    }
    privileges::reduce(user_namespace.is_some())?;
    // The last thing but exec: the set-up itself needs what is closed here.
    seccomp::enter().doing(|| "restrict the system calls".to_owned())?;
    let mut placed = vec![(&null, 0), (&null, 1), (&log, 2), (&listener, LISTENER)];
    placed.extend(memory_events.as_ref().map(|fd| (fd, MEMORY_EVENTS)));
    placed.extend(pids_events.as_ref().map(|fd| (fd, PIDS_EVENTS)));
    placed.extend(work.iter().zip(WORK..));
    let numbers: Vec<u32> = placed.iter().map(|(_, at)| *at).collect();
    for (fd, at) in placed {
        sys::place_fd(fd.as_fd(), at).doing(|| "place a descriptor".to_owned())?;
    }
    sys::close_on_exec_except(&numbers).doing(|| "close descriptors".to_owned())?;
    Err(sys::exec_fd(agent.as_fd(), &argv, &environment)).doing(|| "start the agent".to_owned())
}

fn above(fd: &(impl AsFd + ?Sized)) -> rustix::io::Result<OwnedFd> {
    rustix::io::fcntl_dupfd_cloexec(fd, ABOVE)
}

/// Joins the cgroups of version 1, for free because it is this process itself and has one thread. On version 2 it was
/// cloned into its cgroup. Whichever it is becomes the root of what the sandbox sees of cgroups. Returned are the files by
/// which others join, for the agent, which is moved out.
fn join_cgroups(setup: &Setup) -> Result<Vec<OwnedFd>, Failure> {
    let mut work = Vec::with_capacity(setup.join.len());
    for Join { file, by_hand } in &setup.join {
        let join = || -> std::io::Result<OwnedFd> {
            let mut open = fs::OpenOptions::new().write(true).open(file)?;
            if *by_hand {
                open.write_all(b"0")?;
            }
            Ok(above(&open)?)
        };
        work.push(join().doing(|| format!("join the cgroup of {}", file.display()))?);
    }
    match sys::new_cgroup_namespace() {
        // A kernel without such namespaces.
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {}
        result => result.doing(|| "make a cgroup namespace".to_owned())?,
    }
    Ok(work)
}

fn bring_up_loopback() -> Result<(), Failure> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
    let up = || -> std::io::Result<()> {
        let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
        sys::loopback_up(socket.as_fd())
    };
    up().doing(|| "bring up the loopback interface".to_owned())
}

/// Waits for a byte; false if it will not come.
fn word(pipe: BorrowedFd<'_>) -> bool {
    let mut byte = [0];
    loop {
        match rustix::io::read(pipe, &mut byte) {
            Err(Errno::INTR) => {}
            result => return result == Ok(1),
        }
    }
}

fn report(status: BorrowedFd<'_>, report: &Report) {
    if let Ok(mut line) = serde_json::to_vec(report) {
        line.push(b'\n');
        // If the server is gone, nobody wants to know.
        let _ = rustix::io::write(status, &line);
    }
}

fn c_strings<'a>(texts: impl Iterator<Item = &'a str>) -> Result<Vec<CString>, Failure> {
    texts
        .map(|text| CString::new(text).map_err(|_| Failure::plain("pass an argument with a zero byte")))
        .collect()
}
