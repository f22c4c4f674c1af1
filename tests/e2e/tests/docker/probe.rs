//! `stacyvm probe`: gVisor is told from Linux, what it lacks is listed, and nothing that reaches beyond a sandbox works.

use crate::host;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use stacyvm_e2e::{
    Host,
    probe::{findings, refuses_what_reaches_beyond},
};
use stacyvm_testkit::surface::{self, Beacon, Column};
use std::collections::BTreeMap;

/// Outcomes by name, and what the probe said of the kernel.
fn probe(host: &Host, runtime: &str) -> Result<(BTreeMap<String, String>, Value)> {
    let output = host.cli(&["probe", "--runtime", runtime, "--json"])?;
    ensure!(output.status.success(), "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout)?;
    ensure!(report["provider"] == "docker" && report["runtime"] == runtime, "{report}");
    Ok((findings(&report)?, report["kernel"].clone()))
}

#[tokio::test(flavor = "multi_thread")]
async fn runtimes_are_told_apart() -> Result<()> {
    let host = host::server(&[("STACYVM_PROVIDERS_DOCKER_ALLOWED_RUNTIMES", "runsc")]).await?;
    let (linux, kernel) = probe(&host, "runc")?;
    ensure!(kernel["gvisor"] == false && kernel["seccomp"] == "filter", "{kernel}");
    let (gvisor, kernel) = probe(&host, "runsc")?;
    ensure!(kernel["gvisor"] == true, "{kernel}");

    ensure!(linux.keys().eq(gvisor.keys()));
    let lacking =
        |name: &&String| linux[*name] == "works" && ["absent", "differs"].contains(&&*gvisor[*name]);
    ensure!(linux.keys().filter(lacking).count() > 10, "{linux:?} {gvisor:?}");
    for name in ["clone3", "eventfd2", "flock", "SCM_RIGHTS", "TCP over loopback", "memfd_create", "statx"] {
        // The engine's seccomp profile says ENOSYS, so that libraries fall back to clone.
        let denied = name == "clone3" && linux[name] == "absent";
        ensure!(linux[name] == "works" || denied, "runc: {name} {}", linux[name]);
        ensure!(gvisor[name] == "works", "runsc: {name} {}", gvisor[name]);
    }
    refuses_what_reaches_beyond(&linux)?;
    refuses_what_reaches_beyond(&gvisor)?;
    host::finish(host).await
}

#[tokio::test(flavor = "multi_thread")]
async fn people_get_a_table_and_a_summary() -> Result<()> {
    let host = host::server(&[("STACYVM_PROVIDERS_DOCKER_RUNTIME", "runsc")]).await?;
    let output = host.cli(&["probe", "--image", host::IMAGE])?;
    ensure!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    let text = String::from_utf8(output.stdout)?;
    let summary = text.lines().last().context("nothing")?;
    ensure!(summary.starts_with("gVisor (runsc): ") && summary.contains(" absent"), "{text}");
    ensure!(text.lines().any(|line| line.starts_with("refused  mount ")), "{text}");
    ensure!(!text.lines().any(|line| line.starts_with("works ")), "{text}");

    let refused = host.cli(&["probe", "--runtime", "crun"])?;
    ensure!(refused.status.code() == Some(1), "{refused:?}");
    ensure!(String::from_utf8_lossy(&refused.stderr).contains("allowed_runtimes"), "{refused:?}");
    host::finish(host).await
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_is_open_than_the_documentation_says() -> Result<()> {
    let document = std::fs::read_to_string(surface::document())?;
    let daemon = host::daemon()?;
    let host = host::server(&[("STACYVM_PROVIDERS_DOCKER_ALLOWED_RUNTIMES", "runsc")]).await?;
    let beacon = Beacon::start()?;
    for runtime in ["runc", "runsc"] {
        let rows = surface::in_sandbox(&host.server, "docker", Some(runtime), &beacon).await?;
        let of = surface::versions(Some(&daemon), Some(runtime))?;
        let column = Column { heading: format!("docker, {runtime}"), of, rows };
        println!("{}", surface::agrees(&document, &column)?);
    }
    for column in [surface::under_bwrap(&beacon)?, surface::under_docker(&daemon, &beacon)?] {
        println!("{}", surface::agrees(&document, &column)?);
    }
    drop(beacon);
    host::finish(host).await
}
