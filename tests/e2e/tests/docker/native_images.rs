//! Native sandboxes of images that a real registry has.

use crate::host::{docker, variable};
use anyhow::{Context, Result, ensure};
use futures::future::join_all;
use serde_json::json;
use stacyvm_e2e::Host;

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
