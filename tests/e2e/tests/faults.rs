//! The server is killed at every fault point of create, pause and destroy. After a restart nothing is stuck and nothing leaks.

use anyhow::{Context, Result, ensure};
use serde_json::json;
use stacyvm_e2e::Host;
use stacyvm_fault::{Phase, Point, VARIABLE};
use std::time::Duration;

/// Kills the server at `point` and checks what the next one makes of it.
async fn survives(point: Point) -> Result<()> {
    let mut host = Host::start().await?;
    // A bystander, to see that only what was under way is affected.
    let bystander = host.spawn().await?.id;
    let victim = match point.phase() {
        Phase::Create => None,
        Phase::Pause | Phase::Destroy => Some(host.spawn().await?.id),
    };
    host.server.stop_gracefully().await?;
    host.server.restart_with(&[(VARIABLE, &format!("{}=kill", point.name()))]).await?;

    let reached = match &victim {
        None => host.server.post("/sandboxes", &json!({"image": "host", "ttl": "10m"})).await.map(drop),
        Some(id) if point.phase() == Phase::Pause => {
            host.server.post(&format!("/sandboxes/{id}/pause"), &json!({})).await.map(drop)
        }
        Some(id) => host.server.delete(&format!("/sandboxes/{id}")).await.map(drop),
    };
    ensure!(reached.is_err(), "an answer came although the server should have died on the way");
    let died = host.server.wait_for_exit(Duration::from_secs(20)).await;
    ensure!(died.is_ok(), "the point was never reached");

    host.server.restart().await?;
    host.until("nothing is under way", |states| {
        states.iter().all(|(_, state)| matches!(state.as_str(), "running" | "paused" | "error"))
    })
    .await?;
    let states = host.states().await?;
    ensure!(
        states.contains(&(bystander.clone(), "running".to_owned())),
        "the bystander suffered: {states:?}"
    );
    if let Some(victim) = &victim
        && point.phase() == Phase::Pause
    {
        // Whether it was paused or not, it goes on.
        host.server.post(&format!("/sandboxes/{victim}/resume"), &json!({})).await?;
        ensure!(host.sandbox(victim)?.stdout("echo on").await? == "on\n");
    } else if let Some(victim) = &victim {
        ensure!(!states.iter().any(|(id, _)| id == victim), "{victim} should be gone: {states:?}");
    }
    // What the API lists works; what it does not list is found by the leak checker if it exists.
    for (id, state) in &states {
        if state == "running" {
            ensure!(host.sandbox(id)?.stdout("echo ok").await? == "ok\n");
        }
    }
    host.spawn().await?.destroy().await?;
    host.finish().await
}

#[tokio::test]
async fn every_fault_point_of_create_pause_and_destroy() -> Result<()> {
    let mut failures = Vec::new();
    for point in Point::ALL {
        if let Err(error) = survives(*point).await {
            failures.push(format!("{}: {error:#}", point.name()));
        }
    }
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    Ok(())
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
