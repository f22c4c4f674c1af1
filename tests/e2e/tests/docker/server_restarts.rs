//! The server goes, containers stay: adopted, finished or removed, and no output lost or repeated.

use crate::host;
use anyhow::{Context, Result, ensure};
use stacyvm_e2e::{
    Host,
    counters::{Work, nothing_is_lost},
    faults,
};
use stacyvm_fault::{Phase, Point, VARIABLE};
use std::time::Duration;

#[tokio::test(flavor = "multi_thread")]
async fn kill_9_loses_no_sandbox_and_no_number() -> Result<()> {
    let host = host::server(&[]).await?;
    let installation = host::installation(&host)?;
    nothing_is_lost(host, 5, Work::Light, async |host: &mut Host| {
        host.server.kill_9().await?;
        tokio::time::sleep(Duration::from_millis(200)).await;
        host.server.restart().await
    })
    .await?;
    host::assert_nothing_left(&installation)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_fault_point() -> Result<()> {
    faults::walk(|point| point.name().starts_with("docker."), async || host::server(&[]).await).await
}

#[tokio::test(flavor = "multi_thread")]
async fn between_create_and_start_the_daemon_holds_only_what_the_api_lists() -> Result<()> {
    let mut host = host::server(&[]).await?;
    let installation = host::installation(&host)?;
    let kept = host.spawn().await?.id;
    host.server.stop_gracefully().await?;
    ensure!(Point::DockerCreated.phase() == Phase::Create);
    host.server.restart_with(&[(VARIABLE, "docker.create.created=kill")]).await?;
    ensure!(host.server.post("/sandboxes", &host.request()).await.is_err());
    host.server.wait_for_exit(Duration::from_secs(20)).await?;
    ensure!(host::containers(&installation)?.len() == 2, "the container that was made is not there");
    host.server.restart().await?;
    host.until("only the first is left", |states| states == [(kept.clone(), "running".to_owned())]).await?;
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while host::containers(&installation)? != [kept.clone()] {
        ensure!(std::time::Instant::now() < deadline, "left: {:?}", host::containers(&installation)?);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    host::finish(host).await
}

#[tokio::test(flavor = "multi_thread")]
async fn two_installations_on_one_daemon() -> Result<()> {
    let mut one = host::server(&[]).await?;
    let two = host::server(&[]).await?;
    let (installation_one, installation_two) = (host::installation(&one)?, host::installation(&two)?);
    let (in_one, in_two) = (one.spawn().await?.id, two.spawn().await?.id);
    ensure!(one.states().await? == [(in_one.clone(), "running".to_owned())]);
    ensure!(two.states().await? == [(in_two.clone(), "running".to_owned())]);
    one.server.kill_9().await?;
    one.server.restart().await?;
    one.until("it is back", |states| states.iter().any(|(_, state)| state == "running")).await?;
    // Whatever one does about a sandbox of two, it does not know it.
    ensure!(one.server.get(&format!("/sandboxes/{in_two}")).await.is_err());
    one.server.delete(&format!("/sandboxes/{in_two}")).await?;
    ensure!(two.sandbox(&in_two)?.stdout("echo untouched").await? == "untouched\n");
    one.sandbox(&in_one)?.destroy().await?;
    ensure!(host::containers(&installation_one)?.is_empty());
    ensure!(host::containers(&installation_two)? == std::slice::from_ref(&in_two));
    two.sandbox(&in_two)?.destroy().await?;
    two.server.stop().await?;
    host::assert_nothing_left(&installation_two)?;
    host::finish(one).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_sandbox_is_found_paused() -> Result<()> {
    let mut host = host::server(&[]).await?;
    let id = host.spawn().await?.id;
    host::docker(&["pause", &id])?;
    host.server.kill_9().await?;
    host.server.restart().await?;
    host.until("it is seen as paused", |states| states == [(id.clone(), "paused".to_owned())]).await?;
    let refused = host.sandbox(&id)?.exec("true").await.err().context("a paused sandbox took a command")?;
    ensure!(refused.to_string().contains("paused"), "{refused}");
    host::docker(&["unpause", &id])?;
    host.server.kill_9().await?;
    host.server.restart().await?;
    host.until("it runs", |states| states == [(id.clone(), "running".to_owned())]).await?;
    ensure!(host.sandbox(&id)?.stdout("echo on").await? == "on\n");
    host::finish(host).await
}
