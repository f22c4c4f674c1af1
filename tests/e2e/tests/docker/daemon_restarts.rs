//! The daemon is killed under load and started again: with `live-restore` nobody notices, without it every sandbox that was
//! lost says why, and the server is there all the time.

use crate::host;
use anyhow::{Context, Result, ensure};
use stacyvm_e2e::{Host, counters};
use std::time::{Duration, Instant};

/// How long a sandbox may take to show what became of it.
const PATIENCE: Duration = Duration::from_secs(40);

async fn wait_for_states(host: &Host, wanted: &str) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let states = host.states().await?;
        if states.iter().all(|(_, state)| state == wanted) {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "not all are {wanted}: {states:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_live_restore_every_sandbox_goes_on() -> Result<()> {
    host::test_host("up", Some(true))?;
    let host = host::server(&[]).await?;
    let mut counters = counters::start(&host, 4, counters::Work::Light).await?;
    for counter in &mut counters {
        counter.catch_up(&host).await?;
    }
    host::test_host("kill-daemon", None)?;
    // The server answers while the daemon is away, and says what it cannot do.
    let started = Instant::now();
    let states = host.states().await?;
    ensure!(states.len() == 4 && started.elapsed() < Duration::from_secs(2), "{states:?}");
    let refused = host.spawn().await.err().context("a sandbox without a daemon")?;
    ensure!(refused.to_string().contains("docker daemon"), "{refused}");
    host::test_host("start-daemon", None)?;
    wait_for_states(&host, "running").await?;
    for counter in &mut counters {
        counter.catch_up(&host).await?;
        counter.check()?;
    }
    ensure!(host.spawn().await?.stdout("echo new").await? == "new\n");
    let finished = host::finish(host).await;
    host::test_host("up", Some(false))?;
    finished
}

#[tokio::test(flavor = "multi_thread")]
async fn without_it_every_lost_sandbox_says_why() -> Result<()> {
    host::test_host("up", Some(false))?;
    let host = host::server(&[]).await?;
    let warned = host.server.get("/providers/docker").await?;
    ensure!(warned.to_string().contains("live-restore"), "nobody was warned: {warned}");
    let counters = counters::start(&host, 3, counters::Work::Light).await?;
    host::test_host("kill-daemon", None)?;
    host::test_host("start-daemon", None)?;
    wait_for_states(&host, "error").await?;
    for counter in &counters {
        let seen = host.server.get(&format!("/sandboxes/{}", counter.sandbox)).await?;
        let reason = seen["reason"].as_str().unwrap_or_default();
        ensure!(reason.contains("daemon was restarted") && reason.contains("live-restore"), "{seen}");
    }
    ensure!(host.spawn().await?.stdout("echo new").await? == "new\n");
    host::finish(host).await
}
