//! Native sandboxes of images that a real registry has.

use crate::host::{docker, variable};
use anyhow::{Context, Result, ensure};
use futures::future::join_all;
use serde_json::json;
use stacyvm_e2e::Host;
use std::collections::BTreeSet;

/// A server without the docker provider, whose images may come from the tests' registries.
async fn native(more: &[(&str, &str)]) -> Result<Host> {
    let registries =
        format!("{},{}", variable("STACYVM_TEST_REGISTRY")?, variable("STACYVM_TEST_REGISTRY_AUTH")?);
    let settings = [
        ("STACYVM_PROVIDERS_DEFAULT", "native"),
        ("STACYVM_PROVIDERS_DOCKER_ENABLED", "false"),
        ("STACYVM_IMAGES_INSECURE_REGISTRIES", registries.as_str()),
    ];
    Host::start_with(&[&settings, more].concat()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_sandboxes_of_an_image_that_is_not_there_yet() -> Result<()> {
    let image = format!("{}/stacyvm-test/alpine:1", variable("STACYVM_TEST_REGISTRY")?);
    let host = native(&[]).await?;
    let request = json!({"image": image, "ttl": "5m"});
    for sandbox in join_all((0..10).map(|_| host.spawn_as(&request))).await {
        ensure!(sandbox?.stdout("echo pulled; id -u").await? == "pulled\n1000\n");
    }
    let images = host.server.get("/images").await?;
    ensure!(images.as_array().is_some_and(|all| all.len() == 1) && images[0]["in_use"] == 10, "{images}");
    host.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_with_a_password() -> Result<()> {
    let registry = variable("STACYVM_TEST_REGISTRY_AUTH")?;
    let image = format!("{registry}/stacyvm-test/alpine:1");
    let user = variable("STACYVM_TEST_REGISTRY_USER")?;
    let password = std::fs::read_to_string(variable("STACYVM_TEST_REGISTRY_PASSWORD_FILE")?)?;
    let nobody = ("STACYVM_IMAGES_AUTH_FILE", "/nonexistent");
    for (pair, expected) in [(None, "credentials"), (Some(format!("{registry}={user}:wrong")), "refused")] {
        let credentials = pair.as_deref().map(|pair| ("STACYVM_IMAGES_CREDENTIALS", pair));
        let settings: Vec<_> = credentials.into_iter().chain([nobody]).collect();
        let host = native(&settings).await?;
        let refused = host.server.post("/images/pull", &json!({ "image": image })).await.err();
        let said = format!("{:#}", refused.context("it was pulled")?);
        ensure!(said.contains(expected) && said.contains("400") && !said.contains("wrong"), "{said}");
        host.finish().await?;
    }
    let pair = format!("{registry}={user}:{}", password.trim());
    let host = native(&[("STACYVM_IMAGES_CREDENTIALS", &pair), nobody]).await?;
    host.server.post("/images/pull", &json!({ "image": image })).await?;
    let sandbox = host.spawn_as(&json!({"image": image, "ttl": "5m"})).await?;
    ensure!(sandbox.stdout("echo ok").await? == "ok\n");
    host.finish().await
}

/// The same files, owners and modes, whichever way they came.
#[tokio::test(flavor = "multi_thread")]
async fn what_docker_saves_and_what_the_registry_has_are_the_same_image() -> Result<()> {
    let tag = format!("{}/stacyvm-test/alpine:1", variable("STACYVM_TEST_REGISTRY")?);
    let host = native(&[]).await?;
    let pulled = host.server.post("/images/pull", &json!({ "image": tag })).await?;
    docker(&["pull", &tag])?;
    let scratch = tempfile::tempdir()?;
    let file = scratch.path().join("saved.tar");
    docker(&["save", "--output", &file.to_string_lossy(), &tag])?;
    let saved = host.server.post_bytes("/images/import?name=local/saved:1", std::fs::read(&file)?).await?;
    ensure!(saved[0]["id"] == pulled["id"], "{saved} is not {pulled}");
    docker(&["image", "rm", "--force", &tag])?;
    host.finish().await
}

/// What a Debian image with Python and a user of its own is made of.
const DOCKERFILE: &str = "FROM stacyvm-test/python:latest
RUN groupadd -g 444 crew && useradd -u 4711 -g 444 -m app && mkdir -p /srv/app \\
  && echo hello >/srv/app/file && chown app /srv/app/file && chmod 4750 /srv/app/file \\
  && ln /srv/app/file /srv/app/same && ln -s file /srv/app/link && mkfifo /srv/fifo \\
  && rm -r /etc/debian_version /usr/share/doc && mkdir /usr/share/doc && touch -d @0 /usr/share/doc/new
ENV MODE=production
WORKDIR /srv/app
USER app
";
/// Lists every file with its kind, mode, owner, time, size and target; of directories, what does not depend on where they are.
/// Left out is what a runtime puts there.
const LIST: &str = "find / -xdev \\( -path /proc -o -path /sys -o -path /dev -o -path /tmp -o -path /workspace -o -path /.dockerenv \
  -o -path /etc/hosts -o -path /etc/hostname -o -path /etc/resolv.conf -o -path /etc/mtab \\) -prune \
  -o -type d -printf '%p d %m %U %G\\n' -o -printf '%p %y %m %U %G %T@ %s %n %l\\n' | LC_ALL=C sort";

/// The user, the environment, the directory, and all files with their owners: as the image says, which is as Docker shows it.
#[tokio::test(flavor = "multi_thread")]
async fn a_debian_image_is_what_it_is_under_docker() -> Result<()> {
    let tag = "stacyvm-test/native:1";
    let scratch = tempfile::tempdir()?;
    let at = |name: &str| scratch.path().join(name).to_string_lossy().into_owned();
    std::fs::create_dir(at("context"))?;
    std::fs::write(at("context/Dockerfile"), DOCKERFILE)?;
    docker(&["build", "--quiet", "--network", "none", "--tag", tag, &at("context")])?;
    let shown = docker(&["run", "--rm", "--network", "none", "--user", "0", tag, "sh", "-c", LIST])?;
    docker(&["save", "--output", &at("saved.tar"), tag])?;
    docker(&["image", "rm", "--force", tag])?;
    let host = native(&[]).await?;
    host.server.post_bytes("/images/import", std::fs::read(at("saved.tar"))?).await?;
    let sandbox = host.spawn_as(&json!({"image": tag, "ttl": "5m"})).await?;
    let who = sandbox.stdout("id -un; id -gn; pwd; echo $MODE; cat file; python3 -c 'print(40+2)'").await?;
    ensure!(who == "app\ncrew\n/srv/app\nproduction\nhello\n42\n", "{who}");
    let listed = host.server.post(&sandbox.path("/exec"), &json!({"command": LIST, "user": "root"})).await?;
    ensure!(listed["exit_code"] == 0, "{listed}");
    let ours = listed["stdout"].as_str().context("no output")?;
    let (ours, theirs): (BTreeSet<_>, BTreeSet<_>) = (ours.lines().collect(), shown.lines().collect());
    ensure!(theirs.len() > 1000, "{shown}");
    let only_here = ours.difference(&theirs).map(|line| format!("only here: {line}"));
    let only_there = theirs.difference(&ours).map(|line| format!("only there: {line}"));
    let differences: Vec<_> = only_here.chain(only_there).take(40).collect();
    ensure!(differences.is_empty(), "{}", differences.join("\n"));
    host.finish().await
}

/// Fetched before anybody asks, from where the configuration says; and no more of them than it allows.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_configured_of_images_is_so() -> Result<()> {
    let registry = variable("STACYVM_TEST_REGISTRY")?;
    let mirrors = format!("docker.io={registry}");
    let settings = [
        ("STACYVM_IMAGES_MIRRORS", mirrors.as_str()),
        ("STACYVM_IMAGES_PREFETCH", "stacyvm-test/alpine:1"),
        ("STACYVM_IMAGES_MAX_SIZE_MB", "24"),
    ];
    let host = native(&settings).await?;
    let here = async || -> Result<bool> {
        let images = host.server.get("/images").await?;
        let images = images.as_array().context("no list")?;
        Ok(images.iter().any(|image| image["names"] == json!(["stacyvm-test/alpine:1"])))
    };
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while !here().await? {
        ensure!(std::time::Instant::now() < deadline, "it was not fetched: {}", host.server.log());
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    let sandbox = host.spawn_as(&json!({"image": "stacyvm-test/alpine:1", "ttl": "5m"})).await?;
    ensure!(sandbox.stdout("echo ok").await? == "ok\n");
    let large = json!({ "image": format!("{registry}/stacyvm-test/big:1") });
    let refused = host.server.post("/images/pull", &large).await.err().context("it was pulled")?;
    ensure!(format!("{refused:#}").contains("24 MiB"), "{refused:#}");
    ensure!(here().await?, "what a sandbox has is gone");
    host.finish().await
}
