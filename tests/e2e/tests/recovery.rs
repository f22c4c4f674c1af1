//! The server goes, sandboxes stay: every one is back, and no output is lost or repeated.

use anyhow::Result;
use stacyvm_e2e::{
    Host,
    counters::{Work, nothing_is_lost},
};
use std::time::Duration;

const SANDBOXES: usize = 50;

async fn kill_9(work: Work) -> Result<()> {
    nothing_is_lost(Host::start().await?, SANDBOXES, work, async |host: &mut Host| {
        host.server.kill_9().await?;
        tokio::time::sleep(Duration::from_millis(200)).await;
        host.server.restart().await
    })
    .await
}

#[tokio::test]
async fn kill_9_loses_no_sandbox_and_no_number() -> Result<()> {
    kill_9(Work::Light).await
}

/// Guests take seconds to answer here; late is not lost.
#[tokio::test]
async fn kill_9_on_a_starved_host_loses_no_sandbox_and_no_number() -> Result<()> {
    kill_9(Work::Forking).await
}

#[tokio::test]
async fn a_graceful_stop_loses_no_sandbox_and_no_number() -> Result<()> {
    nothing_is_lost(Host::start().await?, SANDBOXES, Work::Light, async |host: &mut Host| {
        host.server.stop_gracefully().await?;
        tokio::time::sleep(Duration::from_millis(200)).await;
        host.server.restart().await
    })
    .await
}
