//! Containers that somebody else stops, kills or removes show it within seconds, with the reason.

use crate::host::{self, docker};
use anyhow::{Context, Result, ensure};
use futures::StreamExt;
use std::time::{Duration, Instant};

/// Does something to a container and demands that its sandbox shows `reason`, soon.
async fn shows(command: &[&str], reason: &str) -> Result<()> {
    let host = host::server(&[]).await?;
    let bystander = host.spawn().await?;
    let sandbox = host.spawn().await?;
    let mut arguments = command.to_vec();
    arguments.push(&sandbox.id);
    docker(&arguments)?;
    let done = Instant::now();
    loop {
        let seen = host.server.get(&sandbox.path("")).await?;
        if seen["state"] == "error" {
            ensure!(seen["reason"].as_str().is_some_and(|text| text.contains(reason)), "{command:?}: {seen}");
            break;
        }
        ensure!(done.elapsed() < Duration::from_secs(5), "{command:?}: still {}", seen["state"]);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let refused = sandbox.exec("echo x").await.map(|_| ()).err();
    ensure!(refused.is_some_and(|error| error.to_string().contains(reason)), "an exec does not say why");
    ensure!(bystander.stdout("echo fine").await? == "fine\n");
    host::finish(host).await
}

#[tokio::test(flavor = "multi_thread")]
async fn removed() -> Result<()> {
    shows(&["rm", "--force"], "removed by somebody else").await
}

#[tokio::test(flavor = "multi_thread")]
async fn stopped() -> Result<()> {
    shows(&["stop"], "stopped").await
}

#[tokio::test(flavor = "multi_thread")]
async fn killed() -> Result<()> {
    shows(&["kill"], "signal 9").await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_carries_our_label_goes_as_the_policy_says_and_nothing_else() -> Result<()> {
    let mut host = host::server(&[]).await?;
    let installation = host::installation(&host)?;
    host.server.stop_gracefully().await?;
    let label = format!("stacyvm.installation={installation}");
    let orphan = format!("sb-{:08x}", rand::random::<u32>());
    let stranger = format!("sb-{:08x}", rand::random::<u32>());
    docker(&[
        "run",
        "-d",
        "--name",
        &orphan,
        "--label",
        &label,
        "--label",
        &format!("stacyvm.sandbox={orphan}"),
        host::IMAGE,
        "sleep",
        "600",
    ])?;
    docker(&["run", "-d", "--name", &stranger, "--label", "stacyvm=true", host::IMAGE, "sleep", "600"])?;
    let old_volume = format!("stacyvm-agent-{installation}-old");
    docker(&["volume", "create", "--label", &label, "--label", "stacyvm.role=agent", &old_volume])?;

    host.server.restart_with(&[("STACYVM_PROVIDERS_ORPHANS", "keep")]).await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    ensure!(host::containers(&installation)? == [orphan.clone()], "an orphan that is to be kept was removed");
    host.server.stop_gracefully().await?;
    host.server.restart().await?;
    let deadline = Instant::now() + Duration::from_secs(20);
    while !host::containers(&installation)?.is_empty() {
        ensure!(Instant::now() < deadline, "the orphan is still there");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let volumes = docker(&["volume", "ls", "--quiet", "--filter", &format!("name={old_volume}")])?;
    ensure!(volumes.is_empty(), "the volume of an earlier agent is left");
    let events =
        host.server.http().get(host.server.url("/events")).header("Last-Event-ID", "evt-0").send().await?;
    let mut events = events.bytes_stream();
    let mut text = String::new();
    while !(text.contains(&old_volume) && text.contains(&orphan)) {
        let piece = tokio::time::timeout(Duration::from_secs(10), events.next()).await;
        let piece = piece.with_context(|| format!("no event names what was removed: {text}"))?;
        text.push_str(std::str::from_utf8(&piece.context("the stream ended")??)?);
    }
    let left = docker(&["ps", "--quiet", "--filter", &format!("name={stranger}")])?;
    docker(&["rm", "--force", &stranger])?;
    ensure!(!left.is_empty(), "a container that is not ours was touched");
    host::finish(host).await
}
