//! `stacyvm completion`.

use crate::{complete::VARIABLE, failure::Result, output};
use clap::{Args, ValueEnum};
use clap_complete::env::Shells;

/// Print a completion script for a shell
///
/// It completes commands and flags, and asks the server for ids of sandboxes and processes and for names of images. The
/// script calls this program while you type; make it anew when the program is updated.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  source <(stacyvm completion bash)
  source <(stacyvm completion zsh)
  stacyvm completion fish > ~/.config/fish/completions/stacyvm.fish
  stacyvm completion powershell | Out-String | Invoke-Expression")]
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
        let name = match self.shell {
            Shell::Bash => "bash",
            Shell::Zsh => "zsh",
            Shell::Fish => "fish",
            Shell::Powershell => "powershell",
            Shell::Elvish => "elvish",
        };
        let mut script = Vec::new();
        if let Some(shell) = Shells::builtins().completer(name) {
            shell.write_registration(VARIABLE, "stacyvm", "stacyvm", &program(), &mut script)?;
        }
        output::text(&String::from_utf8_lossy(&script))
    }
}

/// How the script calls us: as we were called, from wherever that is done.
fn program() -> String {
    let called = std::env::args_os().next().map(std::path::PathBuf::from).unwrap_or_default();
    if called.components().count() < 2 {
        return "stacyvm".to_owned();
    }
    std::path::absolute(&called).unwrap_or(called).to_string_lossy().into_owned()
}
