//! Self-hosted, disposable computers for software agents: the one binary.
//!
//! The native runtime starts this program again as its spawner, which must be small and have one thread; so that is
//! decided before anything else happens.

mod cli;
mod commands;
mod complete;
mod disposable;
mod failure;
mod images;
mod installation;
mod lock;
mod logging;
mod output;
mod parse;
mod process;
mod providers;
mod pulling;
mod remote;
mod result;
mod scratch;
mod signals;
mod stdio;
mod table;
mod terminal;
mod transfer;

use clap::Parser;
use cli::{Cli, Command};
use failure::{Failure, Result, code};
use std::{io::Write, process::ExitCode};

fn main() -> ExitCode {
    let mut words = std::env::args_os().skip(1);
    if words.next().is_some_and(|word| word == providers::SPAWNER) {
        let spawned = words.next().and_then(|directory| scratch::Spawned::of(directory.into()));
        let code = stacyvm_provider_native::spawner_main();
        if let Some(spawned) = spawned {
            spawned.finish();
        }
        return code;
    }
    if complete::answered() {
        return ExitCode::SUCCESS;
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let json = cli.global.json;
    match execute(cli) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => failure.report(json),
    }
}

/// Help and version on standard output with success, mistakes on standard error with 2.
fn usage(error: &clap::Error) -> ExitCode {
    let text = error.render();
    // A reader that went away has read enough.
    if error.use_stderr() {
        if std::env::args_os().take_while(|word| word != "--").any(|word| word == "--json") {
            return Failure::usage(
                mistake(&text.to_string()),
                "`stacyvm --help` and `stacyvm COMMAND --help` show how it is written",
            )
            .report(true);
        }
        let ansi = std::io::IsTerminal::is_terminal(&std::io::stderr()) && output::colours_allowed();
        let _ = if ansi {
            write!(std::io::stderr(), "{}", text.ansi())
        } else {
            write!(std::io::stderr(), "{text}")
        };
        return ExitCode::from(2);
    }
    let _ = if output::colours() {
        write!(std::io::stdout(), "{}", text.ansi())
    } else {
        write!(std::io::stdout(), "{text}")
    };
    ExitCode::SUCCESS
}

/// What is wrong, without how it would be right: the first paragraph, on one line.
fn mistake(text: &str) -> String {
    let words: Vec<_> = text.split("\n\n").next().unwrap_or_default().split_whitespace().collect();
    words.join(" ").trim_start_matches("error: ").to_owned()
}

fn execute(cli: Cli) -> Result<u8> {
    let global = cli.global;
    if !matches!(cli.command, Command::Serve(_)) {
        logging::for_client(global.verbose);
    }
    let done = |()| 0;
    match cli.command {
        Command::Version(version) => version.execute(&global).map(done),
        Command::Completion(completion) => completion.execute().map(done),
        Command::Config(config) => config.execute(&global).map(done),
        Command::Serve(serve) => serve.execute(&global).map(done),
        Command::Run(run) => run.execute(&global),
        Command::Spawn(spawn) => block_on(spawn.execute(&global)).map(done),
        Command::Exec(exec) => block_on(exec.execute(&global)),
        Command::Cp(cp) => block_on(cp.execute(&global)).map(done),
        Command::List(list) => block_on(list.execute(&global)).map(done),
        Command::Pause(pause) => block_on(pause.execute(&global)).map(done),
        Command::Resume(resume) => block_on(resume.execute(&global)).map(done),
        Command::Kill(kill) => block_on(kill.execute(&global)).map(done),
        Command::Logs(logs) => block_on(logs.execute(&global)).map(done),
        Command::Image(image) => block_on(image.execute(&global)).map(done),
        Command::Probe(probe) => block_on(probe.execute(&global)).map(done),
        Command::Ps(ps) => block_on(ps.execute(&global)).map(done),
        Command::Attach(attach) => block_on(attach.execute(&global)),
        Command::Signal(signal) => block_on(signal.execute(&global)).map(done),
        Command::Stats(stats) => block_on(stats.execute(&global)).map(done),
        Command::Events(events) => block_on(events.execute(&global)).map(done),
        Command::Man(man) => man.execute(&global).map(done),
        Command::Watch(watch) => block_on(watch.execute(&global)).map(done),
        Command::Du(du) => block_on(du.execute(&global)).map(done),
        Command::Bench(bench) => block_on(bench.execute(&global)).map(done),
    }
}

/// Runs a client command on one thread. Helper threads that sit in a read or write do not keep us from ending.
pub(crate) fn block_on<T>(command: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| Failure::new(format!("cannot start: {e}"), "").exit(code::OURS))?;
    let outcome = runtime.block_on(command);
    runtime.shutdown_background();
    outcome
}
