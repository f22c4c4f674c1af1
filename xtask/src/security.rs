//! `xtask security-doc`: what the probe finds open in sandboxes of this host and in what others make of one, as the table in
//! `docs/security.md`.

use crate::runtimes::{Arguments, remove_agent};
use anyhow::{Context, Result};
use stacyvm_testkit::surface::{self, Beacon, Column};

/// Columns of sandboxes: heading, provider, runtime.
const SANDBOXES: [(&str, &str, Option<&str>); 3] = [
    ("native", "native", None),
    ("docker, runc", "docker", Some("runc")),
    ("docker, runsc", "docker", Some("runsc")),
];

/// Probes and writes the table.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let path = surface::document();
    let old = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let beacon = Beacon::start()?;
    let mut columns = runtime.block_on(sandboxes(arguments, &beacon))?;
    columns.push(surface::under_bwrap(&beacon)?);
    columns.push(surface::under_docker(&arguments.docker, &beacon)?);
    std::fs::write(&path, surface::replace(&old, &columns)?)?;
    println!("wrote {}", path.canonicalize()?.display());
    Ok(())
}

async fn sandboxes(arguments: &Arguments, beacon: &Beacon) -> Result<Vec<Column>> {
    let server = arguments.server().await?;
    let mut columns = Vec::new();
    for (heading, provider, runtime) in SANDBOXES {
        let rows = surface::in_sandbox(&server, provider, runtime, beacon).await;
        let rows = rows.with_context(|| heading.to_owned())?;
        let daemon = runtime.is_some().then_some(arguments.docker.as_str());
        columns.push(Column { heading: heading.to_owned(), of: surface::versions(daemon, runtime)?, rows });
    }
    let installation = std::fs::read_to_string(server.data_dir().join("installation"))?;
    server.stop().await?;
    remove_agent(&arguments.docker, installation.trim())?;
    Ok(columns)
}
