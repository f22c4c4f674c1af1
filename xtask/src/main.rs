//! Developer tasks: leak check, OpenAPI file, test report, tables of runtimes.

mod leaks;
mod report;
mod runtimes;
mod security;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use std::path::Path;

#[derive(Debug, Parser)]
#[command(about = "Developer tasks of StacyVM")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// List everything of ours that this host still holds; fails if there is anything.
    LeakCheck(leaks::Arguments),
    /// Write openapi/v1.json from the routes.
    Openapi,
    /// Print what was tested against which runtime; fails if one that this host can have was not.
    TestReport(report::Arguments),
    /// Write the table of docs/runtimes.md from what the probe finds here with each runtime.
    RuntimesDoc(runtimes::Arguments),
    /// Write the table of docs/security.md from what the probe finds open here: in sandboxes, under bwrap, in a container.
    SecurityDoc(runtimes::Arguments),
}

fn main() -> Result<()> {
    match Arguments::parse().task {
        Task::LeakCheck(arguments) => leaks::run(&arguments),
        Task::Openapi => openapi(),
        Task::TestReport(arguments) => report::run(&arguments),
        Task::RuntimesDoc(arguments) => runtimes::run(&arguments),
        Task::SecurityDoc(arguments) => security::run(&arguments),
    }
}

fn openapi() -> Result<()> {
    let path = workspace()?.join("openapi/v1.json");
    std::fs::write(&path, stacyvm_api::openapi()).with_context(|| path.display().to_string())?;
    println!("wrote {}", path.display());
    Ok(())
}

fn workspace() -> Result<&'static Path> {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask lies in no workspace")
}
