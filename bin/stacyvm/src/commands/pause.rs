//! `stacyvm pause` and `stacyvm resume`.

use crate::{cli::Global, complete, failure::Result, output, remote::about_sandbox};
use clap::Args;
use clap_complete::engine::ArgValueCompleter;
use stacyvm_types::Sandbox;

/// Freeze a sandbox
///
/// Its memory, files and processes stay and use no processor time; commands are refused until it is resumed. Its time to
/// live runs on.
///
/// With --json: the sandbox as the API describes it.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  stacyvm pause sb-0123456789abcdef
  stacyvm pause sb-0123456789abcdef --json | jq -r .state")]
pub(crate) struct Pause {
    /// The sandbox
    #[arg(add = ArgValueCompleter::new(complete::sandboxes))]
    id: String,
}

/// Let a paused sandbox go on where it was
///
/// With --json: the sandbox as the API describes it.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  stacyvm resume sb-0123456789abcdef
  stacyvm resume sb-0123456789abcdef --json | jq -r .state")]
pub(crate) struct Resume {
    /// The sandbox
    #[arg(add = ArgValueCompleter::new(complete::sandboxes))]
    id: String,
}

impl Pause {
    pub(crate) async fn execute(&self, global: &Global) -> Result<()> {
        let sandbox = global.client()?.pause(&self.id).await.map_err(about_sandbox)?;
        say(&sandbox, "paused", global)
    }
}

impl Resume {
    pub(crate) async fn execute(&self, global: &Global) -> Result<()> {
        let sandbox = global.client()?.resume(&self.id).await.map_err(about_sandbox)?;
        say(&sandbox, "resumed", global)
    }
}

fn say(sandbox: &Sandbox, what: &str, global: &Global) -> Result<()> {
    if global.json {
        return output::json(sandbox);
    }
    output::line(format_args!("Sandbox {} {what}", sandbox.id))
}
