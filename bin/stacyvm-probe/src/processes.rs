//! Commands about processes, signals, memory and processor time.
#![expect(unsafe_code, reason = "fork, signal dispositions and kill(-1) have no safe form")]

use crate::{Args, Failure, LONGEST, Result, identity, streams::say};
use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
};
use std::{
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

fn last_error(what: &'static str) -> Failure {
    let code = std::io::Error::last_os_error().raw_os_error().unwrap_or_default();
    Failure::System(what, Errno::from_raw_os_error(code))
}

/// Forks; `true` in the child.
fn fork() -> Result<bool> {
    // SAFETY: this program has one thread, so the child may go on as the parent could.
    match unsafe { libc::fork() } {
        -1 => Err(last_error("fork")),
        0 => Ok(true),
        _ => Ok(false),
    }
}

fn set_handler(signal: i32, handler: libc::sighandler_t) {
    // SAFETY: only the dispositions SIG_IGN and SIG_DFL are ever passed, so no code of ours runs in a handler.
    unsafe { libc::signal(signal, handler) };
}

/// `exit N`: ends with that status.
pub(crate) fn exit(args: &Args) -> Result {
    i32::try_from(args.number(0)?).map_err(|_| Failure::Usage("no status has this number"))
}

/// `sleep MS`.
pub(crate) fn sleep(args: &Args) -> Result {
    std::thread::sleep(args.millis(0)?);
    Ok(0)
}

/// `self-signal N`: ends by that signal, without a core file.
pub(crate) fn self_signal(args: &Args) -> Result {
    let none = rustix::process::Rlimit { current: Some(0), maximum: Some(0) };
    let _ = rustix::process::setrlimit(rustix::process::Resource::Core, none);
    crash(args)
}

/// `crash N`: ends by that signal, with whatever this system does about a crash.
pub(crate) fn crash(args: &Args) -> Result {
    let signal = args.signal(0)?;
    set_handler(signal, libc::SIG_DFL);
    // SAFETY: a signal to ourselves, no memory is involved.
    unsafe { libc::kill(libc::getpid(), signal) };
    std::thread::sleep(Duration::from_secs(5));
    Err(Failure::Usage("the signal does not end a process"))
}

/// `bomb MS`: this process and all that it makes fork as fast as they can, for that long, or until there are as many as no
/// sandbox of the suite may have: a runtime without a limit must not take the host with it.
pub(crate) fn bomb(args: &Args) -> Result {
    const MOST: u32 = 150;
    let until = Instant::now() + args.millis(0)?;
    set_handler(libc::SIGCHLD, libc::SIG_IGN);
    // SAFETY: a fresh page, shared with all children, that stays mapped as long as any of them lives.
    let made = unsafe {
        let flags = rustix::mm::MapFlags::SHARED;
        let access = rustix::mm::ProtFlags::READ | rustix::mm::ProtFlags::WRITE;
        let page = rustix::mm::mmap_anonymous(std::ptr::null_mut(), size_of::<AtomicU32>(), access, flags);
        &*page.map_err(|e| Failure::System("mmap", e))?.cast::<AtomicU32>()
    };
    while Instant::now() < until {
        if made.load(Ordering::Relaxed) >= MOST {
            // Nothing holds here: it is enough to be there.
            std::thread::sleep(until.saturating_duration_since(Instant::now()));
        } else if fork().is_ok_and(|child| child) {
            // Both go on; without room for another, one tries again.
            made.fetch_add(1, Ordering::Relaxed);
        }
    }
    Ok(0)
}

/// `ignore-term`: prints `ready` and lives on through SIGTERM, SIGINT and SIGHUP.
pub(crate) fn ignore_term() -> Result {
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
        set_handler(signal, libc::SIG_IGN);
    }
    say(b"ready\n")?;
    std::thread::sleep(LONGEST);
    Ok(0)
}

/// `await-term`: prints `ready`, waits for SIGTERM, prints `term`, ends with 43.
pub(crate) fn await_term() -> Result {
    let mut received = 0;
    // SAFETY: `set` is plain data that sigemptyset initialises before any use, and every pointer outlives its call.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGTERM);
        libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
        say(b"ready\n")?;
        libc::alarm(u32::try_from(LONGEST.as_secs()).unwrap_or(120));
        libc::sigwait(&raw const set, &raw mut received);
    }
    say(b"term\n")?;
    Ok(43)
}

/// Appends a byte to `file` every `interval` until the time is over or the file cannot be written any more.
fn beat_on(file: &[u8], interval: Duration) -> Result {
    let until = Instant::now() + LONGEST;
    while Instant::now() < until {
        let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE | OFlags::CLOEXEC;
        let beat = rustix::fs::open(file, flags, Mode::from_raw_mode(0o644));
        let beat = beat.map_err(|e| Failure::System("open", e))?;
        rustix::io::write(beat, b".").map_err(|e| Failure::System("write", e))?;
        std::thread::sleep(interval);
    }
    Ok(0)
}

/// `beat FILE INTERVAL_MS`: one more byte in FILE each time, as a sign of life.
pub(crate) fn beat(args: &Args) -> Result {
    beat_on(args.bytes(0)?, args.millis(1)?)
}

/// `spawn HOW THEN FILE`: a child that beats into FILE every 10 ms.
///
/// HOW: `child` (same session, holds our output), `session` (a session of its own, holds our output), `daemon` (double
/// fork, own session, holds nothing of ours), `stubborn` (a session of its own, ignores SIGTERM). THEN: `exit` ends with
/// 0 once the child beats, `stay` prints `ready` and sleeps.
pub(crate) fn spawn(args: &Args) -> Result {
    let (how, file) = (args.text(0)?, args.bytes(2)?);
    if fork()? {
        if how != "child" {
            let _ = rustix::process::setsid();
        }
        if how == "stubborn" {
            set_handler(libc::SIGTERM, libc::SIG_IGN);
        }
        if how == "daemon" {
            if !fork()? {
                return Ok(0);
            }
            let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
            let null = null.map_err(|e| Failure::System("open /dev/null", e))?;
            for outcome in [
                rustix::stdio::dup2_stdin(&null),
                rustix::stdio::dup2_stdout(&null),
                rustix::stdio::dup2_stderr(&null),
            ] {
                outcome.map_err(|e| Failure::System("dup2", e))?;
            }
        }
        return beat_on(file, Duration::from_millis(10));
    }
    let until = Instant::now() + Duration::from_secs(10);
    while rustix::fs::stat(file).is_err() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(1));
    }
    match args.text(1)? {
        "exit" => Ok(0),
        "stay" => {
            say(b"ready\n")?;
            std::thread::sleep(LONGEST);
            Ok(0)
        }
        _ => Err(Failure::Usage("THEN is exit or stay")),
    }
}

/// `fork-many N MS`: N children that sleep MS; prints `forked K` when they run, and waits for them.
pub(crate) fn fork_many(args: &Args) -> Result {
    let (wanted, life) = (args.number(0)?, args.millis(1)?);
    let mut made = 0;
    while made < wanted {
        match fork() {
            Ok(true) => {
                std::thread::sleep(life);
                return Ok(0);
            }
            Ok(false) => made += 1,
            Err(_) => break,
        }
    }
    say(format!("forked {made}\n").as_bytes())?;
    std::thread::sleep(life);
    Ok(0)
}

/// `orphans N`: N grandchildren that lose their parent and end at once with statuses nobody asked for.
pub(crate) fn orphans(args: &Args) -> Result {
    for status in 0..args.number(0)? {
        if fork()? {
            if fork()? {
                std::thread::sleep(Duration::from_millis(5));
                return Ok(i32::try_from(status % 256).unwrap_or_default());
            }
            return Ok(0);
        }
    }
    Ok(0)
}

/// `churn MS`: for MS, a child that leaves a short-lived orphan and ends, and then the next one, as fast as that goes.
pub(crate) fn churn(args: &Args) -> Result {
    let until = Instant::now() + args.millis(0)?;
    while Instant::now() < until {
        if fork()? {
            if fork()? {
                std::thread::sleep(Duration::from_millis(2));
            }
            return Ok(0);
        }
        // The orphan is waited for by somebody else.
        // SAFETY: a null status is documented to mean that nobody wants it.
        unsafe { libc::wait(std::ptr::null_mut()) };
    }
    Ok(0)
}

/// `alloc MIB MS`: touches that much memory, printing how much it has after every 8 MiB, then holds it for MS.
pub(crate) fn alloc(args: &Args) -> Result {
    let (wanted, hold) = (args.number(0)?, args.millis(1)?);
    let mut held: Vec<Vec<u8>> = Vec::new();
    for mib in 1..=wanted {
        let mut piece = Vec::new();
        piece.try_reserve_exact(1 << 20).map_err(|_| Failure::System("allocate", Errno::NOMEM))?;
        // Other than zero, so that no page can be shared with the zero page.
        piece.resize(1 << 20, 0xa5);
        held.push(piece);
        if mib % 8 == 0 || mib == wanted {
            say(format!("{mib}\n").as_bytes())?;
        }
    }
    std::thread::sleep(hold);
    Ok(i32::from(std::hint::black_box(&held).is_empty()))
}

/// `spin MS`: keeps a processor busy; prints how many ms of processor time that took.
pub(crate) fn spin(args: &Args) -> Result {
    let until = Instant::now() + args.millis(0)?;
    let mut work = 0_u64;
    while Instant::now() < until {
        work = std::hint::black_box(work.wrapping_add(1));
    }
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    say(format!("{}\n", used.tv_sec * 1000 + used.tv_nsec / 1_000_000).as_bytes())?;
    Ok(0)
}

/// `kill PID SIGNAL`: prints `ok` or `errno N`.
pub(crate) fn kill(args: &Args) -> Result {
    let pid = i32::try_from(args.number(0)?).map_err(|_| Failure::Usage("no process has this number"))?;
    let signal = args.signal(1)?;
    // SAFETY: a system call with plain numbers.
    let outcome = match unsafe { libc::kill(pid, signal) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error().raw_os_error().unwrap_or_default()),
    };
    identity::report(outcome)
}

/// `kill-all SIGNAL`: signals everything that may be signalled. Refused where that looks like a whole machine.
pub(crate) fn kill_all(args: &Args) -> Result {
    let signal = args.signal(0)?;
    if identity::visible_processes()?.len() > 64 || rustix::process::getuid().is_root() {
        return Err(Failure::Usage("this does not look like a sandbox"));
    }
    // SAFETY: a system call with plain numbers; the look around above keeps it off a real machine.
    let outcome = match unsafe { libc::kill(-1, signal) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error().raw_os_error().unwrap_or_default()),
    };
    identity::report(outcome)
}
