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
fn expected() -> Vec<(&'static str, Result<(), String>)> {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let why = variable("STACYVM_TEST_DOCKER_WHY");
    let why = || why.clone().unwrap_or_else(|| "no Docker Engine of the tests' own was started".to_owned());
    let runtimes =
        variable("STACYVM_TEST_DOCKER_HOST").map(|_| variable("STACYVM_TEST_RUNTIMES").unwrap_or_default());
    let docker = |runtime: &str| match &runtimes {
        None => Err(why()),
        Some(all) if all.split(' ').any(|name| name == runtime) => Ok(()),
        Some(_) => Err(format!("this host's Docker Engine has no {runtime}")),
    };
    let kata = match docker("kata-runtime") {
        Ok(()) if variable("STACYVM_TEST_KATA").as_deref() == Some("alias") => {
            Err("no Kata here; that its name reaches the daemon is tested with another program behind it"
                .to_owned())
        }
        other => other,
    };
    vec![
        ("native", if is_root() { Ok(()) } else { Err("needs root".to_owned()) }),
        (
            "native-rootless",
            if is_root() { Ok(()) } else { Err("needs root, to become somebody without".to_owned()) },
        ),
        ("mock", Ok(())),
        ("docker-runc", docker("runc")),
        ("docker-distroless", docker("runc")),
        ("docker-runsc", docker("runsc")),
        ("docker-kata", kata),
    ]
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
                println!("{name:<18} {} passed, {} failed, {} not run", counts.0, counts.1, counts.2);
                for check in &report.checks {
                    if let Outcome::NotRun { reason } = &check.outcome {
                        println!("{:<18} not run: {}: {reason}", "", check.id);
                    }
                }
                ensure!(report.is_success(), "{name}: {} checks failed", report.failed);
            }
            (None, Err(why)) => println!("{name:<18} not run: {why}"),
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
