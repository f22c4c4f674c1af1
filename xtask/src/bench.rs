//! `xtask bench`: what StacyVM costs beside what a user would otherwise pick, in the same run on the same host.
//!
//! Samples of the two sides alternate, so that a slow minute of the host hits both. The table gives medians, spread and
//! ratios; `--json` the raw samples. Nothing here is a test: figures are for people to judge.

mod docker;
mod engine;
mod images;
mod rivals;
mod samples;
mod scenarios;
mod server;

use anyhow::{Context, Result};
use samples::Comparison;
use std::path::PathBuf;

/// Arguments of `xtask bench`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The `stacyvm` binary to measure.
    #[arg(long, default_value = "target/release/stacyvm")]
    binary: PathBuf,
    /// Only scenarios whose name contains this text.
    #[arg(long, default_value = "")]
    only: String,
    /// Samples of each side.
    #[arg(long, default_value_t = 40)]
    samples: usize,
    /// Print JSON instead of the table.
    #[arg(long)]
    json: bool,
}

/// Runs every scenario and prints the report.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let binary = arguments.binary.canonicalize().context("build it first: make build")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let report: Vec<Comparison> = runtime.block_on(async {
        let mut report = Vec::new();
        for scenario in scenarios::ALL {
            if !scenario.name.contains(&arguments.only) {
                continue;
            }
            eprintln!("measuring {} …", scenario.name);
            report.extend((scenario.run)(binary.clone(), arguments.samples).await.context(scenario.name)?);
        }
        anyhow::Ok(report)
    })?;
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{}", samples::table(&report));
    }
    Ok(())
}
