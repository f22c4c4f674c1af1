//! What has to hold when the server is killed at a fault point, whatever the runtime.

use crate::Host;
use anyhow::{Result, ensure};
use serde_json::json;
use stacyvm_fault::{Phase, Point, VARIABLE};
use std::time::Duration;

/// Walks the points that `wanted` picks, each with a host of its own from `start`.
///
/// # Errors
/// With every point after which something was stuck or left.
pub async fn walk(wanted: impl Fn(&Point) -> bool, start: impl AsyncFn() -> Result<Host>) -> Result<()> {
    let mut failures = Vec::new();
    let mut walked = 0;
    for point in Point::ALL.iter().filter(|point| wanted(point)) {
        walked += 1;
        let survived = async { survives(start().await?, *point).await };
        if let Err(error) = survived.await {
            failures.push(format!("{}: {error:#}", point.name()));
        }
    }
    ensure!(walked > 0, "there is no such point");
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    Ok(())
}

/// Kills the server at `point` and checks what the next one makes of it.
async fn survives(mut host: Host, point: Point) -> Result<()> {
    // A bystander, to see that only what was under way is affected.
    let bystander = host.spawn().await?.id;
    let victim = match point.phase() {
        Phase::Create => None,
        Phase::Pause | Phase::Destroy => Some(host.spawn().await?.id),
    };
    host.server.stop_gracefully().await?;
    host.server.restart_with(&[(VARIABLE, &format!("{}=kill", point.name()))]).await?;

    let reached = match &victim {
        None => host.server.post("/sandboxes", &host.request()).await.map(drop),
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
