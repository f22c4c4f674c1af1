//! `stacyvm logs`.

use crate::{cli::Global, failure::Result, output, remote::about_sandbox};
use clap::Args;

/// Print what processes of a sandbox wrote last
///
/// With --json: an array of lines.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  stacyvm logs sb-0123456789abcdef\n  stacyvm logs sb-0123456789abcdef --lines 20"
)]
pub(crate) struct Logs {
    /// The sandbox
    id: String,
    /// How many lines
    #[arg(short = 'n', long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    lines: u32,
}

impl Logs {
    pub(crate) async fn execute(&self, global: &Global) -> Result<()> {
        let lines = global.client()?.logs(&self.id, self.lines).await.map_err(about_sandbox)?;
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
