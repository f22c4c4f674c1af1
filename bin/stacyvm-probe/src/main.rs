//! Small static program that conformance checks run inside a sandbox, so that no image needs a shell or a tool.
//!
//! `probe WORD ARGS…` does one thing that a check observes from outside. Whatever keeps running ends by itself after
//! [`LONGEST`], so that a runtime which leaks processes does not leak them for ever. Words that a command does not use
//! are ignored: checks put a unique token there, to find the process by its command line. Exit status: 125 for a
//! command that is not understood, 126 for one that failed, with the reason on stderr.

mod files;
mod identity;
mod network;
mod processes;
mod streams;
mod syscalls;
mod terminal;

use std::{ffi::OsString, os::unix::ffi::OsStrExt, time::Duration};

/// Life of anything that would run for ever.
const LONGEST: Duration = Duration::from_secs(120);

/// Why a command did not do its work.
enum Failure {
    /// It was not understood.
    Usage(&'static str),
    /// The system said no.
    System(&'static str, rustix::io::Errno),
}

type Result<T = i32> = std::result::Result<T, Failure>;

/// The words behind the command.
struct Args(Vec<OsString>);

impl Args {
    fn bytes(&self, index: usize) -> Result<&[u8]> {
        self.0.get(index).map(|word| word.as_bytes()).ok_or(Failure::Usage("a word is missing"))
    }

    fn text(&self, index: usize) -> Result<&str> {
        self.0
            .get(index)
            .and_then(|word| word.to_str())
            .ok_or(Failure::Usage("a word is missing or not text"))
    }

    fn number(&self, index: usize) -> Result<u64> {
        self.text(index)?.parse().map_err(|_| Failure::Usage("a number is missing"))
    }

    fn millis(&self, index: usize) -> Result<Duration> {
        Ok(Duration::from_millis(self.number(index)?).min(LONGEST))
    }

    fn signal(&self, index: usize) -> Result<i32> {
        i32::try_from(self.number(index)?).map_err(|_| Failure::Usage("no signal has this number"))
    }
}

fn main() {
    let mut words = std::env::args_os().skip(1);
    let command = words.next().unwrap_or_default();
    let args = Args(words.collect());
    let status = match run(command.to_str().unwrap_or_default(), &args) {
        Ok(status) => status,
        Err(Failure::Usage(what)) => {
            streams::say_err(format!("probe {}: {what}\n", command.to_string_lossy()).as_bytes());
            125
        }
        Err(Failure::System(what, errno)) => {
            let text =
                format!("probe {}: {what}: errno {}\n", command.to_string_lossy(), errno.raw_os_error());
            streams::say_err(text.as_bytes());
            126
        }
    };
    std::process::exit(status);
}

fn run(command: &str, args: &Args) -> Result {
    match command {
        "echo" => streams::echo(args),
        "args" => streams::args(args),
        "terminal" => terminal::look(),
        "sizes" => terminal::sizes(),
        "cat" => streams::cat(),
        "stdin-hash" => streams::stdin_hash(),
        "bytes" => streams::bytes(args),
        "both" => streams::both(args),
        "count" => streams::count(args),
        "flood" => streams::flood(args),
        "exit" => processes::exit(args),
        "sleep" => processes::sleep(args),
        "crash" => processes::crash(args),
        "bomb" => processes::bomb(args),
        "self-signal" => processes::self_signal(args),
        "ignore-term" => processes::ignore_term(),
        "await-term" => processes::await_term(),
        "beat" => processes::beat(args),
        "spawn" => processes::spawn(args),
        "fork-many" => processes::fork_many(args),
        "churn" => processes::churn(args),
        "orphans" => processes::orphans(args),
        "alloc" => processes::alloc(args),
        "spin" => processes::spin(args),
        "kill" => processes::kill(args),
        "kill-all" => processes::kill_all(args),
        "id" => identity::id(),
        "env" => identity::env(),
        "cwd" => identity::cwd(),
        "hostname" => identity::hostname(),
        "net" => identity::net(),
        "connect" => network::connect(args),
        "connect-abstract" => network::connect_abstract(args),
        "listen-abstract" => network::listen_abstract(args),
        "ps" => identity::ps(),
        "fds" => identity::fds(),
        "try" => identity::attempt(args),
        "read" => files::read(args),
        "write" => files::write(args),
        "append" => files::append(args),
        "symlink" => files::symlink(args),
        "mkfifo" => files::mkfifo(args),
        "mkdir" => files::mkdir(args),
        "truncate" => files::truncate(args),
        "fill" => files::fill(args),
        "touch-many" => files::touch_many(args),
        "rename-many" => files::rename_many(args),
        "swap" => files::swap(args),
        "attempt" => syscalls::one(args),
        "syscalls" => syscalls::syscalls(args),
        "surface" => syscalls::surface(args),
        "raw-name" => files::raw_name(args),
        _ => Err(Failure::Usage("there is no such command")),
    }
}
