//! `stacyvm version`.

use crate::{
    cli::{self, Global},
    failure::Result,
    output,
};
use clap::Args;

/// Print the version
///
/// With --json: {"version", "os", "arch"}.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  stacyvm version\n  stacyvm version --json")]
pub(crate) struct Version {}

impl Version {
    pub(crate) fn execute(&self, global: &Global) -> Result<()> {
        if global.json {
            return output::json(&serde_json::json!({
                "version": env!("CARGO_PKG_VERSION"),
                "os": std::env::consts::OS,
                "arch": cli::architecture(),
            }));
        }
        output::line(format_args!("stacyvm {}", cli::version()))
    }
}
