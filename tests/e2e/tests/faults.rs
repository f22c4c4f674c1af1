//! The server is killed at every fault point of create, pause and destroy. After a restart nothing is stuck and nothing leaks.

use anyhow::{Context, Result, ensure};
use serde_json::json;
use stacyvm_e2e::{Host, faults};
use stacyvm_fault::{Point, VARIABLE};
use std::time::Duration;

#[tokio::test]
async fn every_fault_point_of_create_pause_and_destroy() -> Result<()> {
    // Those of other runtimes are walked by their own tests.
    let ours = |point: &Point| ["engine.", "native."].iter().any(|prefix| point.name().starts_with(prefix));
    faults::walk(ours, Host::start).await
}

#[tokio::test]
async fn a_repeated_create_after_a_crash_makes_no_second_sandbox() -> Result<()> {
    let mut host = Host::start().await?;
    host.server.stop_gracefully().await?;
    host.server.restart_with(&[(VARIABLE, "engine.create.running=kill")]).await?;
    let body = json!({"image": "host", "ttl": "10m"});
    let headers = [("Idempotency-Key", "order-17")];
    ensure!(host.server.post_with("/sandboxes", &headers, &body).await.is_err());
    host.server.wait_for_exit(Duration::from_secs(20)).await?;
    host.server.restart().await?;
    let first = host.server.post_with("/sandboxes", &headers, &body).await?;
    let second = host.server.post_with("/sandboxes", &headers, &body).await?;
    ensure!(first["id"] == second["id"], "{first} {second}");
    ensure!(host.states().await?.len() == 1);
    let other = json!({"image": "host", "ttl": "20m"});
    let conflict = host.server.post_with("/sandboxes", &headers, &other).await.err().context("a conflict")?;
    ensure!(conflict.to_string().contains("CONFLICT"), "{conflict}");
    host.finish().await
}
