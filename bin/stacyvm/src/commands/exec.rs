//! `stacyvm exec`.

use crate::{
    cli::Global,
    complete,
    disposable::interrupted,
    failure::{Result, code},
    output, parse,
    process::{self, End, Input, Remote},
    remote::about_sandbox,
    result::RunResult,
    signals::Signals,
    stdio::{Captured, Sink},
    terminal::{self, keys::DetachKeys},
};
use clap::Args;
use clap_complete::engine::ArgValueCompleter;
use stacyvm_client::Client;
use stacyvm_types::{ExecMode, Limit, StartProcess, WireDuration};
use std::time::Instant;

/// Run a command in a sandbox, with its output as it comes and its exit code as ours
///
/// Exit code: the command's, 128 + signal if a signal ended it, 124 if --timeout did, 125 if we failed, 126 if it cannot
/// be executed, 127 if there is no such command. Ctrl-C interrupts the command; a second one kills it.
///
/// With -it the command has this terminal: Ctrl-C and all other keys are its own. It can be left with Ctrl-] d, and goes on;
/// `stacyvm attach -i` comes back to it.
///
/// With --json, one object at the end and nothing else: {"id", "exit_code", "stdout", "stderr", "duration"}, and where
/// they apply "signal", "timed_out", "oom_killed", "limits_hit" (of "oom", "disk_full", "pids"), "stdout_truncated",
/// "stderr_truncated" (more than 16 MiB), "encoding": "base64" (the output is not UTF-8).
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  stacyvm exec sb-0123456789abcdef -- ls -l /workspace
  stacyvm exec sb-0123456789abcdef --shell -- 'ls | wc -l'
  stacyvm exec sb-0123456789abcdef --timeout 30s --env N=3 -- python3 job.py
  stacyvm exec sb-0123456789abcdef -it -- bash
  tar c . | stacyvm exec sb-0123456789abcdef -i -- tar x")]
pub(crate) struct Exec {
    /// The sandbox
    #[arg(add = ArgValueCompleter::new(complete::sandboxes))]
    id: String,
    /// Join the words with spaces and give them to `sh -c`
    #[arg(long)]
    shell: bool,
    /// Variable for the command: NAME=VALUE, or NAME for the value it has here
    #[arg(short, long = "env", value_name = "NAME=VALUE", value_parser = parse::variable)]
    env: Vec<(String, String)>,
    /// Working directory [default: /workspace]
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// Kill the command and everything it started after this time [default: never]
    #[arg(long, value_name = "DURATION", value_parser = parse::timeout)]
    timeout: Option<WireDuration>,
    /// User to run as
    #[arg(short, long, value_name = "USER")]
    user: Option<String>,
    /// Pass our standard input to the command
    #[arg(short, long)]
    interactive: bool,
    /// Give the command a terminal; with -i, this one
    #[arg(short, long)]
    tty: bool,
    /// Keys that leave the command to itself, typed one after the other; none if empty
    #[arg(long, value_name = "KEYS", default_value = DetachKeys::DEFAULT)]
    detach_keys: DetachKeys,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    command: Vec<String>,
}

impl Exec {
    pub(crate) async fn execute(&self, global: &Global) -> Result<u8> {
        self.run(global)
            .await
            .map_err(|failure| if failure.code == 1 { failure.exit(code::OURS) } else { failure })
    }

    async fn run(&self, global: &Global) -> Result<u8> {
        terminal::check(global.json, self.tty, self.interactive)?;
        let client = global.client()?;
        let mut signals = Signals::listen()?;
        let started = Instant::now();
        // The terminal is taken when there is something to give it to: until then, Ctrl-C is ours.
        let mut process = tokio::select! {
            signal = signals.next() => return Err(interrupted(signal)),
            process = start(&client, &self.id, self.spec()) => process?,
        };
        let terminal = terminal::take_if(self.tty && self.interactive)?;
        let input = Input::from_here(self.interactive, terminal, &self.detach_keys);
        let mut sink = if global.json { Sink::Memory(Captured::default()) } else { Sink::Streams };
        let End::Exited(exit) = process::drive(&mut process, input, &mut signals, &mut sink).await? else {
            terminal::say_detached(&self.id, process.id());
            return Ok(0);
        };
        let code = process::exit_code(&exit)?;
        match sink {
            Sink::Memory(captured) => {
                output::json(&RunResult::new(&self.id, code, &exit, captured, started.elapsed()))?;
            }
            Sink::Streams => {
                let memory = if exit.limits_hit.contains(&Limit::Oom) {
                    client.sandbox(&self.id).await.map_or(0, |sandbox| sandbox.memory_mb)
                } else {
                    0
                };
                process::explain(&exit, memory);
            }
        }
        Ok(code)
    }

    fn spec(&self) -> StartProcess {
        let (mode, command, args) = command_line(&self.command, self.shell);
        StartProcess {
            command,
            args,
            mode,
            env: self.env.iter().cloned().collect(),
            workdir: self.workdir.clone(),
            user: self.user.clone(),
            timeout: self.timeout,
            stdin: self.interactive,
            pty: self.tty.then(terminal::size),
            ..StartProcess::default()
        }
    }
}

/// Words as the API takes them.
pub(crate) fn command_line(words: &[String], shell: bool) -> (ExecMode, String, Vec<String>) {
    if shell {
        return (ExecMode::Shell, words.join(" "), Vec::new());
    }
    let mut words = words.iter().cloned();
    (ExecMode::Argv, words.next().unwrap_or_default(), words.collect())
}

/// Starts a process; a failure carries the exit code that says whose fault it is.
pub(crate) async fn start(client: &Client, sandbox: &str, spec: StartProcess) -> Result<Remote> {
    match Remote::start(client, sandbox, spec).await {
        Ok(process) => Ok(process),
        Err(error) if error.is_not_found() => {
            // Not found is the command or the sandbox: a look tells.
            let exists = client.sandbox(sandbox).await.is_ok();
            let failure = if exists { error.into() } else { about_sandbox(error) };
            Err(process::start_failure(failure, exists))
        }
        Err(error) => Err(process::start_failure(error.into(), true)),
    }
}
