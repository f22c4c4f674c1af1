//! `stacyvm run`: a sandbox for one command.

mod embedded;
mod served;

use crate::{
    cli::Global,
    complete,
    disposable::interrupted,
    failure::{Failure, Result, code},
    output, parse,
    process::{self, Attached, Input},
    result::RunResult,
    signals::Signals,
    stdio::{self, Captured, Sink},
    terminal::{self, Terminal, keys::DetachKeys},
    transfer::{self, Copy, Files},
};
use clap::Args;
use clap_complete::engine::ArgValueCompleter;
use stacyvm_types::WireDuration;
use std::{path::Path, time::Instant};

/// Run a command in a sandbox of its own, which is destroyed afterwards
///
/// Needs no server: the sandbox is made by this program with the native runtime (Linux, root). With --server or
/// STACYVM_SERVER it is made by that server. Standard input is passed on when it is a pipe or file, or with -i.
///
/// Without --image the sandbox shows this host's own programs, read-only, and nothing else of it.
///
/// --copy-in and --copy-out take files and directories, before and after the command; a target that is a directory, or ends
/// in /, takes the name of the source. What the command left is copied out however it ended.
///
/// Exit code: the command's, 128 + signal if a signal ended it, 123 if something could not be copied out, 124 if --timeout
/// ended it, 125 if we failed, 126 if it cannot be executed, 127 if there is no such command. Ctrl-C interrupts the command;
/// a second one kills it.
///
/// With --json, one object at the end and nothing else: {"id", "exit_code", "stdout", "stderr", "duration"}, and where
/// they apply "signal", "timed_out", "oom_killed", "limits_hit" (of "oom", "disk_full", "pids"), "stdout_truncated",
/// "stderr_truncated" (more than 16 MiB), "encoding": "base64" (the output is not UTF-8).
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  stacyvm run -- python3 -c 'print(40+2)'
  stacyvm run --timeout 30s --memory 512m --cpus 2 -- make -C /workspace
  cat data.csv | stacyvm run -- sort -u
  stacyvm run --copy-in src:/workspace --copy-out dist:. -- make -C src DESTDIR=/workspace/dist
  stacyvm run --image python:3.12-slim -- python3 script.py
  stacyvm run --image ./rootfs --env DEBUG=1 --workdir /srv -- ./start.sh
  stacyvm run -it --image debian:13-slim -- bash
  stacyvm run --json -- uname -a")]
pub(crate) struct Run {
    /// What the root filesystem comes from: host, a directory, or the name of an image, which is pulled if it is not here
    #[arg(long, value_name = "IMAGE", default_value = "host", add = ArgValueCompleter::new(complete::images))]
    image: String,
    /// Variable for the command: NAME=VALUE, or NAME for the value it has here
    #[arg(short, long = "env", value_name = "NAME=VALUE", value_parser = parse::variable)]
    env: Vec<(String, String)>,
    /// Working directory [default: /workspace]
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// Memory limit: a number of MiB, or 512m, 2g
    #[arg(long, value_name = "SIZE", value_parser = parse::memory)]
    memory: Option<i64>,
    /// Disk limit: a number of MiB, or 512m, 2g
    #[arg(long, value_name = "SIZE", value_parser = parse::memory)]
    disk: Option<i64>,
    /// Processor limit
    #[arg(long, visible_alias = "vcpus", value_name = "N", value_parser = parse::processors)]
    cpus: Option<i64>,
    /// Its network: none, or internet, which is that without private addresses and this host [default: as configured]
    #[arg(long, value_name = "NAME")]
    network: Option<String>,
    /// Kill the command and everything it started after this time [default: never]
    #[arg(long, value_name = "DURATION", value_parser = parse::duration)]
    timeout: Option<WireDuration>,
    /// User to run as
    #[arg(short, long, value_name = "USER")]
    user: Option<String>,
    /// Pass our standard input to the command, also from a terminal
    #[arg(short, long)]
    interactive: bool,
    /// Give the command a terminal; with -i, this one
    #[arg(short, long)]
    tty: bool,
    /// Copy a file or directory into the sandbox first; may be repeated
    #[arg(long, value_name = "SRC:DEST", value_parser = transfer::inward)]
    copy_in: Vec<Copy>,
    /// Copy a file or directory out of the sandbox afterwards; may be repeated
    #[arg(long, value_name = "SRC:DEST", value_parser = transfer::outward)]
    copy_out: Vec<Copy>,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    command: Vec<String>,
}

impl Run {
    pub(crate) fn execute(&self, global: &Global) -> Result<u8> {
        let possible = terminal::check(global.json, self.tty, self.interactive);
        let outcome = possible.and_then(|()| match global.named_server() {
            Some(_) => crate::block_on(served::run(self, global)),
            None => embedded::run(self, global),
        });
        // What is not about the command is about us.
        outcome
            .map_err(|failure| if matches!(failure.code, 1 | 2) { failure.exit(code::OURS) } else { failure })
    }

    /// This terminal, if the command is to have it.
    fn terminal(&self) -> Result<Option<Terminal>> {
        terminal::take_if(self.tty && self.interactive)
    }

    fn stdin(&self) -> bool {
        self.interactive || stdio::stdin_is_piped()
    }

    /// The image; a path that is relative to us is made absolute, as a runtime has a directory of its own.
    fn image(&self) -> Result<String> {
        if !self.image.starts_with("./") && !self.image.starts_with("../") && self.image != "." {
            return Ok(self.image.clone());
        }
        let path = Path::new(&self.image).canonicalize();
        let path = path.map_err(|e| {
            Failure::new(format!("image {}: {e}", self.image), "name a directory that exists")
        })?;
        path.into_os_string()
            .into_string()
            .map_err(|path| Failure::new(format!("image {} is not a name in UTF-8", path.display()), ""))
    }

    /// Follows the command that was `started` then to its end, in a sandbox with that id and memory limit.
    async fn follow(
        &self,
        global: &Global,
        (sandbox, memory_mb): (&str, u32),
        (process, terminal): (&mut impl Attached, Option<Terminal>),
        signals: &mut Signals,
        started: Instant,
    ) -> Result<Finished> {
        // Its sandbox goes with it, so it cannot be left.
        let input = Input::from_here(self.stdin(), terminal, &DetachKeys::none());
        let mut sink = if global.json { Sink::Memory(Captured::default()) } else { Sink::Streams };
        let exit = process::drive(process, input, signals, &mut sink).await?.exited()?;
        let code = process::exit_code(&exit)?;
        let json = match sink {
            Sink::Memory(captured) => Some(RunResult::new(sandbox, code, &exit, captured, started.elapsed())),
            Sink::Streams => {
                process::explain(&exit, memory_mb);
                None
            }
        };
        Ok(Finished { code, json, not_copied: None })
    }

    /// Copies in what was asked for.
    async fn bring_in(&self, files: &impl Files, signals: &mut Signals) -> Result<()> {
        for copy in &self.copy_in {
            tokio::select! {
                signal = signals.next() => return Err(interrupted(signal)),
                copied = transfer::copy_in(files, copy) => copied?,
            }
        }
        Ok(())
    }

    /// Copies out what was asked for: all of it that can be.
    async fn take_out(
        &self,
        files: &impl Files,
        mut finished: Finished,
        signals: &mut Signals,
    ) -> Result<Finished> {
        for copy in &self.copy_out {
            let copied = tokio::select! {
                signal = signals.next() => return Err(interrupted(signal)),
                copied = transfer::copy_out(files, copy) => copied,
            };
            if let Err(failure) = copied {
                let what = format!("{}; the command ended with {}", failure.what, finished.code);
                let failure = Failure { what, ..failure }.exit(code::NOT_COPIED);
                if let Some(earlier) = finished.not_copied.replace(failure) {
                    output::note(earlier);
                }
            }
        }
        Ok(finished)
    }
}

/// A command that ended; what is left to do is to take its sandbox away and to say so.
struct Finished {
    code: u8,
    json: Option<RunResult>,
    /// What could not be copied out.
    not_copied: Option<Failure>,
}

impl Finished {
    fn report(self) -> Result<u8> {
        if let Some(json) = &self.json {
            output::json(json)?;
        }
        self.not_copied.map_or(Ok(self.code), Err)
    }
}
