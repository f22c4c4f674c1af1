//! What keeps code in a container, as the daemon and the sandbox itself see it.

use crate::host::{self, docker};
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

#[tokio::test(flavor = "multi_thread")]
async fn a_container_is_confined() -> Result<()> {
    let host = host::server(&[]).await?;
    let sandbox = host.spawn_as(&json!({"image": host::IMAGE, "memory_mb": 64, "vcpus": 1})).await?;
    let inspected: Value = serde_json::from_str(&docker(&["inspect", &sandbox.id])?)?;
    let config = &inspected[0]["HostConfig"];
    ensure!(config["Memory"] == 64 << 20 && config["MemorySwap"] == 64 << 20, "{config}");
    ensure!(config["Privileged"] == false && config["CapDrop"] == json!(["ALL"]), "{config}");
    ensure!(config["SecurityOpt"].to_string().contains("no-new-privileges"), "{config}");
    let status = sandbox.stdout("grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/self/status").await?;
    let zero = "0000000000000000";
    ensure!(status == format!("CapEff:\t{zero}\nCapBnd:\t{zero}\nNoNewPrivs:\t1\nSeccomp:\t2\n"), "{status}");
    host::finish(host).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_root_leaves_three_places_to_write() -> Result<()> {
    let host = host::server(&[("STACYVM_PROVIDERS_DOCKER_READ_ONLY_ROOTFS", "true")]).await?;
    let sandbox = host.spawn().await?;
    for directory in ["/workspace", "/tmp", "/home/sandbox"] {
        ensure!(sandbox.stdout(&format!("echo x > {directory}/f && cat {directory}/f")).await? == "x\n");
    }
    host.server.post(&sandbox.path("/files"), &json!({"path": "/workspace/api", "content": "y"})).await?;
    let refused = sandbox.exec("echo x > /var/f").await?;
    ensure!(refused["exit_code"] != 0, "{refused}");
    let refused = host.server.post(&sandbox.path("/files"), &json!({"path": "/var/f", "content": "y"})).await;
    ensure!(refused.is_err(), "the file API writes to a read-only root");
    host::finish(host).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seccomp_profile_is_sent_as_what_it_says() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("profile.json");
    // Everything is allowed but making symbolic links.
    let profile = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["symlink", "symlinkat"], "action": "SCMP_ACT_ERRNO"}],
    });
    std::fs::write(&path, serde_json::to_vec_pretty(&profile)?)?;
    let host = host::server(&[("STACYVM_PROVIDERS_DOCKER_SECCOMP_PROFILE", &path.to_string_lossy())]).await?;
    let sandbox = host.spawn().await?;
    let refused = sandbox.exec("ln -s a b").await?;
    ensure!(
        refused["exit_code"] == 1 && refused["stderr"].as_str().is_some_and(|t| t.contains("not permitted")),
        "{refused}"
    );
    host::finish(host).await?;

    std::fs::write(&path, "{")?;
    let more = [
        ("STACYVM_PROVIDERS_DOCKER_SECCOMP_PROFILE", &*path.to_string_lossy()),
        ("STACYVM_PROVIDERS_MOCK_ENABLED", "true"),
    ];
    let host = host::server(&more).await?;
    let health = host.server.get("/providers/docker").await?;
    ensure!(
        health["health"]["error"].as_str().is_some_and(|text| text.contains("seccomp_profile")),
        "{health}"
    );
    ensure!(host.spawn().await.is_err());
    host::finish(host).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_cannot_be_limited_is_no_disk_without_a_limit() -> Result<()> {
    let host = host::server(&[("STACYVM_PROVIDERS_DOCKER_DISK_SIZE_MB", "64")]).await?;
    let storage = docker(&["info", "--format", "{{.Driver}} {{json .DriverStatus}}"])?;
    match host.spawn().await {
        Ok(sandbox) => {
            let full = sandbox.exec("dd if=/dev/zero of=f bs=1M count=128").await?;
            ensure!(full["exit_code"] != 0, "{storage}: 128 MiB fit into 64: {full}");
        }
        Err(error) => {
            let said = error.to_string();
            ensure!(said.contains("pquota") && said.contains("disk_size_mb"), "{storage}: {said}");
        }
    }
    host::finish(host).await
}

#[tokio::test(flavor = "multi_thread")]
async fn users_ulimits_and_labels_are_those_configured() -> Result<()> {
    let host = host::server(&[
        ("STACYVM_PROVIDERS_DOCKER_USER", "4321:1234"),
        ("STACYVM_PROVIDERS_DOCKER_ULIMITS", "nofile=64:128"),
        ("STACYVM_PROVIDERS_DOCKER_NETWORK_MODE", "bridge"),
    ])
    .await?;
    let sandbox = host.spawn_as(&json!({"image": host::IMAGE, "metadata": {"team": "a"}})).await?;
    ensure!(
        sandbox.stdout("id -u; id -g; ulimit -Sn; ulimit -Hn; ulimit -c").await?
            == "4321\n1234\n64\n128\n0\n"
    );
    let labels: Value =
        serde_json::from_str(&docker(&["inspect", "--format", "{{json .Config.Labels}}", &sandbox.id])?)?;
    ensure!(labels["stacyvm"] == "true" && labels["stacyvm.provider"] == "docker", "{labels}");
    ensure!(labels["stacyvm.metadata"] == r#"{"team":"a"}"#, "{labels}");
    let rule =
        labels[format!("traefik.http.routers.{}-3000.rule", sandbox.id)].as_str().context("no rule")?;
    ensure!(rule == format!("Host(`3000-{}.localhost`)", sandbox.id), "{rule}");
    host::finish(host).await
}

/// An image brings its own agent, labels that speak for a sandbox, a user that the kernel would take for root, and a link
/// that would give the agent's directory away.
#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_image_gets_nothing_by_what_it_holds() -> Result<()> {
    let image = "stacyvm-test/hostile:latest";
    let script = "mkdir -p /.stacyvm/run && printf '#!/bin/sh\\nexec sleep 600\\n' > /.stacyvm/stacyvm-agent \
        && chmod 755 /.stacyvm/stacyvm-agent && touch /.stacyvm/complete && ln -s /.stacyvm/run /workspace";
    let name = format!("hostile-{:08x}", rand::random::<u32>());
    docker(&["run", "--name", &name, host::IMAGE, "sh", "-c", script])?;
    let labels = "LABEL stacyvm.role=filler traefik.http.routers.x.rule=Host(`other`)";
    docker(&["commit", "--change", labels, "--change", "USER 4294967295:1000", &name, image])?;
    docker(&["rm", &name])?;

    // The very first sandbox of an installation is made of it, when the agent's volume does not exist yet.
    let mut host = host::server(&[("STACYVM_PROVIDERS_DOCKER_NETWORK_MODE", "bridge")]).await?;
    let sandbox = host.spawn_as(&json!({"image": image})).await?;
    let id = sandbox.id.clone();
    ensure!(sandbox.exec("echo x").await.is_err(), "its working directory leads to the agent's own");
    let run = json!({"command": "id -u; ls /.stacyvm/run; touch /.stacyvm/run/x", "workdir": "/"});
    let run = host.server.post(&sandbox.path("/exec"), &run).await?;
    ensure!(run["stdout"] == "1000\n" && run["exit_code"] != 0, "{run}");
    let labels: Value =
        serde_json::from_str(&docker(&["inspect", "--format", "{{json .Config.Labels}}", &id])?)?;
    ensure!(labels["stacyvm.role"] == "sandbox" && labels["traefik.http.routers.x.rule"] == "", "{labels}");
    // The next one has the agent too, and a server that starts again takes neither for something of its own making.
    let other = host.spawn().await?.id;
    host.server.kill_9().await?;
    host.server.restart().await?;
    host.until("both are there", |s| s.len() == 2 && s.iter().all(|(_, state)| state == "running")).await?;
    ensure!(host.sandbox(&other)?.stdout("id -u").await? == "1000\n");
    host::finish(host).await?;
    docker(&["image", "rm", image])?;
    Ok(())
}
