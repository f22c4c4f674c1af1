//! `stacyvm completion`.

use crate::{cli::Cli, failure::Result, output};
use clap::{Args, CommandFactory, ValueEnum};

/// Print a completion script for a shell
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  source <(stacyvm completion bash)
  stacyvm completion zsh > \"${fpath[1]}/_stacyvm\"
  stacyvm completion fish > ~/.config/fish/completions/stacyvm.fish")]
pub(crate) struct Completion {
    /// The shell
    shell: Shell,
}

/// Shells that have completion.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
    Powershell,
    Elvish,
}

impl Completion {
    pub(crate) fn execute(&self) -> Result<()> {
        let shell = match self.shell {
            Shell::Bash => clap_complete::Shell::Bash,
            Shell::Zsh => clap_complete::Shell::Zsh,
            Shell::Fish => clap_complete::Shell::Fish,
            Shell::Powershell => clap_complete::Shell::PowerShell,
            Shell::Elvish => clap_complete::Shell::Elvish,
        };
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut Cli::command(), "stacyvm", &mut script);
        output::text(&String::from_utf8_lossy(&script))
    }
}
