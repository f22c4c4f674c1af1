//! The Docker Engine of the tests' own, and what it holds.

use anyhow::{Context, Result, ensure};
use stacyvm_e2e::Host;
use stacyvm_provider_docker::{DockerConfig, DockerProvider};
use std::process::Command;

/// Value of a variable that `scripts/setup-test-host.sh env` prints.
pub(crate) fn variable(name: &str) -> Result<String> {
    std::env::var(name).with_context(|| format!("{name} is not set: run the tests with `make test`, or source what scripts/setup-test-host.sh env prints"))
}

/// Address of the daemon.
pub(crate) fn daemon() -> Result<String> {
    variable("STACYVM_TEST_DOCKER_HOST")
}

/// What `docker` prints.
pub(crate) fn docker(arguments: &[&str]) -> Result<String> {
    let output = Command::new("docker").arg("--host").arg(daemon()?).args(arguments).output()?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "docker {arguments:?}: {error}");
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// Settings of a provider that belongs to one test.
pub(crate) fn config(runtime: &str) -> Result<DockerConfig> {
    let installation = format!("test{:08x}", rand::random::<u32>());
    Ok(DockerConfig {
        daemon: Some(daemon()?),
        runtime: runtime.to_owned(),
        ..DockerConfig::new(installation, 1, stacyvm_guest_binaries::AGENT)
    })
}

/// Everything of one installation that the daemon holds: containers, networks, volumes but that of the agent.
pub(crate) fn holdings(installation: &str) -> Result<Vec<String>> {
    let label = format!("label=stacyvm.installation={installation}");
    let mut found = Vec::new();
    let containers =
        docker(&["ps", "--all", "--filter", &label, "--format", "container {{.Names}} {{.Status}}"])?;
    found.extend(containers.lines().map(str::to_owned));
    Ok(found)
}

/// Demands that nothing of an installation is left but its agent's volume and its network, and removes those.
pub(crate) fn assert_nothing_left(installation: &str) -> Result<()> {
    let left = holdings(installation)?;
    ensure!(left.is_empty(), "left at the daemon: {left:?}");
    let label = format!("label=stacyvm.installation={installation}");
    for kind in ["volume", "network"] {
        let names = docker(&[kind, "ls", "--quiet", "--filter", &label])?;
        for name in names.lines() {
            docker(&[kind, "rm", name])?;
        }
    }
    Ok(())
}

/// A provider of its own, and the installation that it belongs to.
pub(crate) async fn provider(config: DockerConfig) -> (DockerProvider, String) {
    let installation = config.installation_id.clone();
    (DockerProvider::start(config).await, installation)
}

/// Image of sandboxes that a test does not choose.
pub(crate) const IMAGE: &str = "alpine:latest";

/// A server whose sandboxes are containers, with more variables.
pub(crate) async fn server(more: &[(&str, &str)]) -> Result<Host> {
    let daemon = daemon()?;
    let mut environment = vec![
        ("STACYVM_PROVIDERS_DOCKER_SOCKET", daemon.as_str()),
        ("STACYVM_PROVIDERS_DEFAULT", "docker"),
        ("STACYVM_PROVIDERS_DOCKER_NETWORK_MODE", "none"),
        ("STACYVM_PROVIDERS_NATIVE_ENABLED", "false"),
        ("STACYVM_DEFAULTS_IMAGE", IMAGE),
    ];
    environment.extend_from_slice(more);
    Host::start_on(IMAGE, &environment).await
}

/// The id of a server's installation.
pub(crate) fn installation(host: &Host) -> Result<String> {
    Ok(std::fs::read_to_string(host.server.data_dir().join("installation"))?.trim().to_owned())
}

/// Destroys what is left, stops the server, and demands that neither host nor daemon holds anything of it.
pub(crate) async fn finish(host: Host) -> Result<()> {
    let installation = installation(&host)?;
    host.finish().await?;
    assert_nothing_left(&installation)
}

/// Names of all containers of an installation, running or not.
pub(crate) fn containers(installation: &str) -> Result<Vec<String>> {
    let label = format!("label=stacyvm.installation={installation}");
    let names = docker(&["ps", "--all", "--filter", &label, "--format", "{{.Names}}"])?;
    let mut names: Vec<_> = names.lines().map(str::to_owned).collect();
    names.sort();
    Ok(names)
}

/// Does something to the daemon that every test of this host shares: `kill-daemon`, `start-daemon`.
pub(crate) fn test_host(command: &str, live_restore: Option<bool>) -> Result<()> {
    let mut script = Command::new(variable("STACYVM_TEST_HOST_SCRIPT")?);
    script.arg(command);
    if let Some(live_restore) = live_restore {
        script.env("STACYVM_TEST_LIVE_RESTORE", if live_restore { "1" } else { "0" });
    }
    let output = script.output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command}: {said}");
    Ok(())
}
