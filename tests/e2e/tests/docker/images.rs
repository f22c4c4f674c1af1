//! Images: pulled once for all who wait, from registries with and without a password, and every failure told apart.

use crate::host::{self, docker, variable};
use anyhow::{Context, Result, ensure};
use base64::{Engine, prelude::BASE64_STANDARD};
use futures::{StreamExt, future::join_all};
use serde_json::json;
use stacyvm_e2e::Host;
use std::path::PathBuf;

/// Removes an image from the daemon, so that the next create pulls it.
fn forget(image: &str) {
    // Neither need be there; containers are those of a test that failed.
    let users =
        docker(&["ps", "--all", "--quiet", "--filter", &format!("ancestor={image}")]).unwrap_or_default();
    for container in users.lines() {
        let _ = docker(&["rm", "--force", container]);
    }
    let _ = docker(&["image", "rm", "--force", image]);
}

async fn spawn(host: &Host, image: &str) -> Result<()> {
    let sandbox = host.spawn_as(&json!({"image": image, "ttl": "5m"})).await?;
    ensure!(sandbox.stdout("echo pulled").await? == "pulled\n");
    sandbox.destroy().await
}

/// What a create with this image is refused with.
async fn refusal(host: &Host, image: &str) -> Result<String> {
    let error = host.spawn_as(&json!({"image": image})).await.err().context("it was not refused")?;
    Ok(format!("{error:#}"))
}

/// A file with credentials for the registry that wants some.
fn credentials(directory: &tempfile::TempDir, password: &str) -> Result<PathBuf> {
    let pair = BASE64_STANDARD.encode(format!("{}:{password}", variable("STACYVM_TEST_REGISTRY_USER")?));
    let path = directory.path().join("config.json");
    let auths = json!({"auths": {variable("STACYVM_TEST_REGISTRY_AUTH")?: {"auth": pair}}});
    std::fs::write(&path, auths.to_string())?;
    Ok(path)
}

#[tokio::test(flavor = "multi_thread")]
async fn one_pull_serves_everybody_and_shows_its_progress() -> Result<()> {
    let image = format!("{}/stacyvm-test/big:1", variable("STACYVM_TEST_REGISTRY")?);
    forget(&image);
    let host = host::server(&[]).await?;
    // The image has no shell: a create that pulls it and works is enough.
    let request = json!({"image": image, "ttl": "5m"});
    let results = join_all((0..5).map(|_| host.spawn_as(&request))).await;
    ensure!(
        results.iter().all(Result::is_ok),
        "{:?}",
        results.iter().filter_map(|r| r.as_ref().err()).next()
    );
    let mut events = host
        .server
        .http()
        .get(host.server.url("/events"))
        .header("Last-Event-ID", "evt-0")
        .send()
        .await?
        .bytes_stream();
    let (mut text, mut begun, mut done) = (String::new(), 0, false);
    while let Some(piece) = tokio::time::timeout(std::time::Duration::from_secs(10), events.next()).await? {
        text.push_str(std::str::from_utf8(&piece?)?);
        let pulls: Vec<_> = text.lines().filter(|line| line.contains("\"image.pull\"")).collect();
        begun =
            pulls.iter().filter(|line| line.contains("\"layers\":0,") && line.contains("pulling")).count();
        done = pulls
            .iter()
            .any(|line| line.contains("\"status\":\"done\"") && !line.contains("\"bytes_done\":0"));
        if done {
            break;
        }
    }
    ensure!(done, "no event says that the pull is done: {text}");
    ensure!(begun == 1, "the image was pulled {begun} times for five who waited: {text}");
    host::finish(host).await?;
    forget(&image);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_with_a_password() -> Result<()> {
    let image = format!("{}/stacyvm-test/alpine:1", variable("STACYVM_TEST_REGISTRY_AUTH")?);
    forget(&image);
    let directory = tempfile::tempdir()?;
    let password = std::fs::read_to_string(variable("STACYVM_TEST_REGISTRY_PASSWORD_FILE")?)?;
    let nobody = directory.path().join("none.json");
    for (file, expected) in
        [(nobody, "wants credentials"), (credentials(&directory, "wrong")?, "refused the credentials")]
    {
        let host = host::server(&[("STACYVM_PROVIDERS_DOCKER_AUTH_FILE", &file.to_string_lossy())]).await?;
        let said = refusal(&host, &image).await?;
        ensure!(said.contains(expected) && said.contains("400"), "{said}");
        ensure!(said.contains("docker login"), "the fix is not named: {said}");
        host::finish(host).await?;
    }
    let file = credentials(&directory, password.trim())?;
    let host = host::server(&[("STACYVM_PROVIDERS_DOCKER_AUTH_FILE", &file.to_string_lossy())]).await?;
    spawn(&host, &image).await?;
    host::finish(host).await?;
    forget(&image);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_failure_is_told_apart() -> Result<()> {
    let registry = variable("STACYVM_TEST_REGISTRY")?;
    let host = host::server(&[]).await?;
    for (image, expected) in [
        (
            format!("{registry}/stacyvm-test/alpine:no-such-tag"),
            "404 Not Found: {\"code\":\"NOT_FOUND\",\"message\":\"the image",
        ),
        (format!("{registry}/stacyvm-test/alpine:no-such-tag"), "tag or digest"),
        (format!("{registry}/no/such/image:1"), "404"),
        ("127.0.0.1:1/a:1".to_owned(), "cannot reach the registry 127.0.0.1:1"),
        ("no-such-host.invalid/a:1".to_owned(), "cannot reach the registry no-such-host.invalid"),
        ("host".to_owned(), "the image host is the native provider's"),
        ("../../containers/json?x=".to_owned(), "no name of an image"),
    ] {
        let said = refusal(&host, &image).await?;
        ensure!(said.contains(expected), "{image}: {said}");
    }
    ensure!(host.states().await?.is_empty());
    host::finish(host).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_pulled_when_is_a_policy() -> Result<()> {
    let image = format!("{}/stacyvm-test/alpine:1", variable("STACYVM_TEST_REGISTRY")?);
    forget(&image);
    let never = host::server(&[("STACYVM_PROVIDERS_DOCKER_PULL_POLICY", "never")]).await?;
    let said = refusal(&never, &image).await?;
    ensure!(said.contains("pull_policy is never") && said.contains("docker pull"), "{said}");
    host::finish(never).await?;
    let missing = host::server(&[]).await?;
    spawn(&missing, &image).await?;
    host::finish(missing).await?;
    let never = host::server(&[("STACYVM_PROVIDERS_DOCKER_PULL_POLICY", "never")]).await?;
    spawn(&never, &image).await?;
    host::finish(never).await?;
    let always = host::server(&[("STACYVM_PROVIDERS_DOCKER_PULL_POLICY", "always")]).await?;
    spawn(&always, &image).await?;
    // The local image of this name is not one of a registry that can be reached.
    ensure!(always.spawn().await.is_err(), "an image was used without asking its registry");
    host::finish(always).await?;
    forget(&image);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_images_own_environment_is_that_of_processes() -> Result<()> {
    let host = host::server(&[]).await?;
    let sandbox = host.spawn_as(&json!({"image": "stacyvm-test/python:latest"})).await?;
    ensure!(
        sandbox.stdout("echo $GREETING; echo $PATH | cut -d: -f1; echo $HOME").await?
            == "hello\n/opt/extra\n/home/sandbox\n"
    );
    ensure!(
        sandbox
            .stdout("python3 -c 'import os, pwd; print(pwd.getpwuid(os.getuid()).pw_name, 40 + 2)'")
            .await?
            == "sandbox 42\n"
    );
    host::finish(host).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_distroless_image_works_fully() -> Result<()> {
    let host = host::server(&[]).await?;
    let sandbox = host.spawn_as(&json!({"image": "stacyvm-test/distroless:latest"})).await?;
    let body = json!({"command": "/busybox", "args": ["echo", "no shell"], "mode": "argv"});
    let run = host.server.post(&sandbox.path("/exec"), &body).await?;
    ensure!(run["stdout"] == "no shell\n", "{run}");
    host.server.post(&sandbox.path("/files"), &json!({"path": "/workspace/f", "content": "x"})).await?;
    let list = host.server.get(&sandbox.path("/files/list?path=/workspace")).await?;
    ensure!(list[0]["path"] == "/workspace/f", "{list}");
    host::finish(host).await
}
