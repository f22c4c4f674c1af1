//! The command line: global flags and the list of commands. Each command's own flags stand with its code.

use crate::commands;
use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;

/// Where the client looks for a server.
pub(crate) const DEFAULT_SERVER: &str = "http://localhost:7423";

/// `<version> (<os>/<arch>)`, the architecture in the names that earlier releases used.
pub(crate) fn version() -> &'static str {
    static TEXT: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    TEXT.get_or_init(|| {
        format!("{} ({}/{})", env!("CARGO_PKG_VERSION"), std::env::consts::OS, architecture())
    })
}

/// The processor architecture.
pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Self-hosted, disposable computers for software agents.
#[derive(Debug, Parser)]
#[command(
    name = "stacyvm",
    version = version(),
    max_term_width = 100,
    arg_required_else_help = true,
    after_help = "Examples:
  stacyvm run -- python3 -c 'print(40+2)'      run a command, no server needed
  stacyvm serve                                serve the API on http://localhost:7423
  stacyvm spawn --image host                   make a sandbox that stays
  stacyvm exec sb-0123456789abcdef -- ls -l    run a command in it
  stacyvm events --follow                      watch what happens"
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Flags of every command.
#[derive(Debug, Clone, Args)]
pub(crate) struct Global {
    /// Address of the server [default: http://localhost:7423]
    #[arg(
        long,
        global = true,
        value_name = "URL",
        env = "STACYVM_SERVER",
        hide_env_values = true,
        help_heading = "Global options"
    )]
    server: Option<String>,
    /// Key for the server
    #[arg(
        long,
        global = true,
        value_name = "KEY",
        env = "STACYVM_API_KEY",
        hide_env_values = true,
        help_heading = "Global options"
    )]
    api_key: Option<String>,
    /// Print JSON; errors too, on standard error, as {"error", "fix", "code"}
    #[arg(long, global = true, help_heading = "Global options")]
    pub(crate) json: bool,
    /// Configuration file [default: ./stacyvm.yaml, then ~/.stacyvm/config.yaml]
    #[arg(long, global = true, value_name = "FILE", help_heading = "Global options")]
    pub(crate) config: Option<PathBuf>,
    /// Directory that holds all state of an installation
    #[arg(long, global = true, value_name = "DIR", help_heading = "Global options")]
    pub(crate) data_dir: Option<String>,
    /// Say nothing but results and errors
    #[arg(short, long, global = true, conflicts_with = "verbose", help_heading = "Global options")]
    pub(crate) quiet: bool,
    /// Say more; twice: everything
    #[arg(short, long, global = true, action = clap::ArgAction::Count, help_heading = "Global options")]
    pub(crate) verbose: u8,
}

impl Global {
    /// The server that was named, by flag or variable.
    pub(crate) fn named_server(&self) -> Option<&str> {
        self.server.as_deref().filter(|server| !server.is_empty())
    }

    /// The key that was given.
    pub(crate) fn api_key(&self) -> Option<&str> {
        self.api_key.as_deref().filter(|key| !key.is_empty())
    }
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Run(commands::run::Run),
    Serve(commands::serve::Serve),
    Spawn(commands::spawn::Spawn),
    Exec(commands::exec::Exec),
    Cp(commands::cp::Cp),
    #[command(visible_alias = "ls")]
    List(commands::list::List),
    Pause(commands::pause::Pause),
    Resume(commands::pause::Resume),
    Kill(commands::kill::Kill),
    Logs(commands::logs::Logs),
    Image(commands::image::Command),
    Probe(commands::probe::Probe),
    Config(commands::config::Config),
    Version(commands::version::Version),
    Completion(commands::completion::Completion),
    Ps(commands::ps::Ps),
    Attach(commands::attach::Attach),
    Signal(commands::signal::Signal),
    Stats(commands::stats::Stats),
    Events(commands::events::Events),
    Man(commands::man::Man),
    Watch(commands::watch::Watch),
    Du(commands::du::Du),
    Bench(commands::bench::Bench),
}

#[cfg(test)]
#[path = "cli_tests.rs"]
mod tests;
