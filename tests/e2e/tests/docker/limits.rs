//! Limits are hit and reported as what they are.

use crate::host;
use anyhow::{Context, Result, ensure};
use serde_json::json;
use stacyvm_provider::{ErrorKind, ProcessSpec, Provider, SandboxId, SandboxSpec, Signal};
use stacyvm_provider_docker::{DockerConfig, DockerProvider};
use std::time::Duration;

/// Takes memory in awk until it may have no more.
const HOG: &str = "awk 'BEGIN { s = \"x\"; while (1) s = s s }'";

#[tokio::test(flavor = "multi_thread")]
async fn memory_ends_the_process_and_is_named() -> Result<()> {
    let host = host::server(&[]).await?;
    let sandbox = host.spawn_as(&json!({"image": host::IMAGE, "memory_mb": 64})).await?;
    let run = sandbox.exec(HOG).await?;
    ensure!(run["exit_code"] == 137 && run["oom_killed"] == true, "{run}");
    ensure!(run["limits_hit"] == json!(["oom"]), "{run}");
    ensure!(sandbox.stdout("echo alive").await? == "alive\n");
    host::finish(host).await
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_under_gvisor_ends_the_sandbox_and_is_named() -> Result<()> {
    let host = host::server(&[("STACYVM_PROVIDERS_DOCKER_RUNTIME", "runsc")]).await?;
    let sandbox = host.spawn_as(&json!({"image": host::IMAGE, "memory_mb": 128})).await?;
    // It may end the process, or everything at once.
    let _ = sandbox.exec(HOG).await;
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    loop {
        let seen = host.server.get(&sandbox.path("")).await?;
        if seen["state"] == "error" {
            ensure!(seen["reason"].as_str().context("no reason")?.contains("out of memory"), "{seen}");
            ensure!(seen["limits_hit"]["oom"]["count"] == 1, "{seen}");
            break;
        }
        if sandbox.stdout("echo alive").await.is_ok_and(|text| text == "alive\n") {
            break;
        }
        ensure!(std::time::Instant::now() < deadline, "neither alive nor ended: {seen}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    host::finish(host).await
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_are_limited_and_a_full_sandbox_is_still_reached() -> Result<()> {
    let mut host = host::server(&[("STACYVM_PROVIDERS_DOCKER_PIDS_LIMIT", "24")]).await?;
    let sandbox = host.spawn().await?;
    let id = sandbox.id.clone();
    let bomb = sandbox.start("while :; do sleep 600 & done", false).await?;
    // The shell gives up at the limit and leaves its children; what room its end makes is taken by more of them.
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    let refused = loop {
        match sandbox.start("sleep 600", false).await {
            Err(error) => break error.to_string(),
            Ok(_) => ensure!(std::time::Instant::now() < deadline, "the limit was never reached"),
        }
    };
    ensure!(refused.contains("RESOURCE_LIMIT") && refused.contains("processes"), "{refused}");
    // A new server reaches it too.
    host.server.kill_9().await?;
    host.server.restart().await?;
    host.until("it is back", |states| states == [(id.clone(), "running".to_owned())]).await?;
    let limit = host::docker(&["inspect", "--format", "{{.HostConfig.PidsLimit}}", &id])?;
    ensure!(limit == "28", "the limit stays raised: {limit}");
    let signal = json!({"signal": "SIGKILL", "tree": true});
    host.server.post(&format!("/sandboxes/{id}/processes/{bomb}/signal"), &signal).await?;
    ensure!(host.sandbox(&id)?.stdout("echo alive").await? == "alive\n");
    host::finish(host).await
}

/// A new control plane's bridge is a process of the full sandbox, which has room for none.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_sandbox_lends_room_to_a_bridge() -> Result<()> {
    let config = DockerConfig { bridges_only: true, ..host::config("runc")? };
    let (first, installation) = host::provider(config.clone()).await;
    let id: SandboxId = format!("sb-{:08x}", rand::random::<u32>()).parse()?;
    let spec = SandboxSpec { memory_mb: 128, pids: 24, ..SandboxSpec::new(host::IMAGE) };
    first.create(&id, &spec).await?;
    let process = |id: &str, script: &str| ProcessSpec {
        id: id.to_owned(),
        argv: ["sh", "-c", script].map(str::to_owned).to_vec(),
        ..ProcessSpec::default()
    };
    let guest = first.connect(&id).await?;
    guest.start(&process("bomb", "while :; do sleep 600 & done")).await?;
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    let mut tries = 0;
    loop {
        tries += 1;
        match guest.start(&process(&format!("more-{tries}"), "sleep 600")).await {
            Err(error) if error.kind() == ErrorKind::ResourceLimit => break,
            outcome => ensure!(std::time::Instant::now() < deadline, "never full: {outcome:?}"),
        }
    }
    let limit = || host::docker(&["inspect", "--format", "{{.HostConfig.PidsLimit}}", id.as_str()]);
    let before = limit()?;
    drop((guest, first));
    let second = DockerProvider::start(DockerConfig { generation: 2, ..config }).await;
    let guest = second.connect(&id).await?;
    guest.ping().await?;
    ensure!(limit()? == before, "the limit was {before} and is {}", limit()?);
    guest.signal("bomb", Signal::KILL, true).await?;
    second.destroy(&id).await?;
    host::assert_nothing_left(&installation)
}
