//! `stacyvm logs`.

use crate::{cli::Global, complete, failure::Result, output, remote::about_sandbox};
use clap::Args;
use clap_complete::engine::ArgValueCompleter;

/// Print what processes of a sandbox wrote last
///
/// With --console: what its runtime says of it, in whatever state it is; look there when it failed.
///
/// With --json: an array of lines.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  stacyvm logs sb-0123456789abcdef
  stacyvm logs sb-0123456789abcdef --lines 20
  stacyvm logs sb-0123456789abcdef --console")]
pub(crate) struct Logs {
    /// The sandbox
    #[arg(add = ArgValueCompleter::new(complete::sandboxes))]
    id: String,
    /// How many lines
    #[arg(short = 'n', long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    lines: u32,
    /// The runtime's own log of the sandbox instead
    #[arg(long)]
    console: bool,
}

impl Logs {
    pub(crate) async fn execute(&self, global: &Global) -> Result<()> {
        let client = global.client()?;
        let lines = if self.console {
            client.console(&self.id, self.lines).await
        } else {
            client.logs(&self.id, self.lines).await
        };
        let lines = lines.map_err(about_sandbox)?;
        if global.json {
            return output::json(&lines);
        }
        let mut text = lines.join("\n");
        if !text.is_empty() {
            text.push('\n');
        }
        output::text(&text)
    }
}
