//! `xtask test-report`: what ran against which runtime, and a failure if a runtime that this host can have did not run.
//!
//! Conformance tests leave one `<runtime>.json` each, the report of the suite.

use anyhow::{Context, Result, ensure};
use stacyvm_conformance::{Outcome, Report};
use std::path::{Path, PathBuf};

/// Arguments of `xtask test-report`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Where the tests left their reports.
    directory: PathBuf,
}

/// Runtimes, each with what this host would have to have, or why it cannot.
fn expected() -> Vec<(&'static str, Result<(), &'static str>)> {
    let root = is_root();
    vec![("native", if root { Ok(()) } else { Err("needs root") }), ("mock", Ok(()))]
}

fn is_root() -> bool {
    std::fs::read_to_string("/proc/self/status").is_ok_and(|status| {
        status.lines().any(|line| line.starts_with("Uid:") && line.split_whitespace().nth(2) == Some("0"))
    })
}

/// Prints the counts of each runtime.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let mut missing = Vec::new();
    for (name, available) in expected() {
        match (read(&arguments.directory, name)?, available) {
            (Some(report), _) => {
                let counts = (report.passed, report.failed, report.not_run);
                println!("{name:<10} {} passed, {} failed, {} not run", counts.0, counts.1, counts.2);
                for check in &report.checks {
                    if let Outcome::NotRun { reason } = &check.outcome {
                        println!("{:<10} not run: {}: {reason}", "", check.id);
                    }
                }
                ensure!(report.is_success(), "{name}: {} checks failed", report.failed);
            }
            (None, Err(why)) => println!("{name:<10} not run: {why}"),
            (None, Ok(())) => missing.push(name),
        }
    }
    ensure!(missing.is_empty(), "not run although this host can have them: {}", missing.join(", "));
    Ok(())
}

fn read(directory: &Path, name: &str) -> Result<Option<Report>> {
    let path = directory.join(format!("{name}.json"));
    if !path.exists() {
        return Ok(None);
    }
    let text = std::fs::read_to_string(&path)?;
    serde_json::from_str(&text).with_context(|| format!("{}", path.display())).map(Some)
}
