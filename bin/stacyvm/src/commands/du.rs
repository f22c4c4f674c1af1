//! `stacyvm du`.

use crate::{cli::Global, failure::Result, output, remote::about_sandbox};
use bytesize::ByteSize;
use clap::Args;
use stacyvm_types::DiskUsage;

/// Show how much disk a directory of a sandbox takes
///
/// As `du -s` counts it: blocks of disk, each file with several names once. A relative path starts at /workspace.
///
/// With --json: {"path", "bytes", "apparent_bytes", "files", "directories"}.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  stacyvm du sb-0123456789abcdef
  stacyvm du sb-0123456789abcdef /home/sandbox --bytes")]
pub(crate) struct Du {
    /// The sandbox
    id: String,
    /// What to measure
    #[arg(default_value = "/workspace")]
    path: String,
    /// Print bytes instead of KiB, MiB and so on
    #[arg(short, long)]
    bytes: bool,
}

impl Du {
    pub(crate) async fn execute(&self, global: &Global) -> Result<()> {
        let usage = global.client()?.disk_usage(&self.id, &self.path).await.map_err(about_sandbox)?;
        if global.json { output::json(&usage) } else { output::line(render(&usage, self.bytes)) }
    }
}

fn render(usage: &DiskUsage, bytes: bool) -> String {
    let size = |bytes_of: u64| {
        if bytes { bytes_of.to_string() } else { ByteSize(bytes_of).display().iec().to_string() }
    };
    format!("{}\t{}", size(usage.bytes), usage.path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_du_prints_it() {
        let usage = DiskUsage {
            path: "/w".into(),
            bytes: 3 << 20,
            apparent_bytes: 5,
            files: 1,
            directories: 1,
            counted_twice: false,
        };
        assert_eq!(render(&usage, false), "3.0 MiB\t/w");
        assert_eq!(render(&usage, true), "3145728\t/w");
    }
}
