//! Which runtime isolates a sandbox: configured, or within the allowed ones asked for; and that the name reaches the daemon.

use crate::host::{self, docker};
use anyhow::{Context, Result, ensure};
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_may_name_an_allowed_runtime() -> Result<()> {
    let host = host::server(&[("STACYVM_PROVIDERS_DOCKER_ALLOWED_RUNTIMES", "runsc,kata-runtime")]).await?;
    for runtime in ["runc", "runsc", "kata-runtime"] {
        let sandbox = host.spawn_as(&json!({"image": host::IMAGE, "runtime": runtime})).await?;
        let used = docker(&["inspect", "--format", "{{.HostConfig.Runtime}}", &sandbox.id])?;
        ensure!(used == runtime, "the daemon was told {used}, not {runtime}");
        let kernel = sandbox.stdout("dmesg 2>&1 | head -1").await?;
        ensure!(kernel.contains("gVisor") == (runtime == "runsc"), "{runtime}: {kernel}");
        sandbox.destroy().await?;
    }
    let refused = host.spawn_as(&json!({"runtime": "crun"})).await.err().context("it was not refused")?;
    ensure!(refused.to_string().contains("allowed_runtimes"), "{refused}");
    host::finish(host).await
}

#[tokio::test(flavor = "multi_thread")]
async fn health_names_the_runtime_and_the_fix_for_a_missing_one() -> Result<()> {
    let host = host::server(&[("STACYVM_PROVIDERS_DOCKER_RUNTIME", "runsc")]).await?;
    let detail = host.server.get("/providers/docker").await?;
    ensure!(detail["healthy"] == true && detail["config"]["runtime"] == "runsc", "{detail}");
    host::finish(host).await?;

    // Without a healthy provider the server is not ready, so there is another one.
    let host = host::server(&[
        ("STACYVM_PROVIDERS_DOCKER_RUNTIME", "kata-qemu"),
        ("STACYVM_PROVIDERS_MOCK_ENABLED", "true"),
    ])
    .await?;
    let detail = host.server.get("/providers/docker").await?;
    let said = detail["health"]["error"].as_str().unwrap_or_default();
    ensure!(detail["healthy"] == false, "{detail}");
    ensure!(
        said.contains("no runtime kata-qemu") && said.contains("daemon.json") && said.contains("runsc"),
        "{said}"
    );
    let refused = host.spawn().await.err().context("a sandbox without its runtime")?;
    ensure!(refused.to_string().contains("kata-qemu"), "{refused}");
    host::finish(host).await
}
