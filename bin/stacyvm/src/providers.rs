//! Providers from configuration.

use crate::{
    failure::{Failure, Result},
    lock::Lock,
};
use stacyvm_config::Config;
use stacyvm_image::{Images, PullPolicy};
use stacyvm_provider::{Provider, mock::MockProvider};
use stacyvm_provider_docker::{DockerConfig, DockerProvider, Network, Seccomp, Ulimit};
use stacyvm_provider_native::{NativeConfig, NativeProvider, NetworkConfig, SpawnerCommand};
use std::{
    collections::HashSet,
    ffi::OsString,
    io::Read,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

/// First argument of the native runtime's spawner, which is this program.
pub(crate) const SPAWNER: &str = "internal-spawner";

/// Networks of each kind that a server has ready for sandboxes to come.
const READY: usize = 4;
/// Largest agent that can be configured.
const AGENT_BYTES: u64 = 64 << 20;
/// Time for a provider to say whether it works; the contract allows it 5 s.
const LOOK: Duration = Duration::from_secs(6);

/// The guest agent: the built-in one, or the one that is configured, for as long as this process lives.
pub(crate) fn agent(path: Option<&Path>) -> Result<&'static [u8]> {
    let Some(path) = path else { return Ok(stacyvm_guest_binaries::AGENT) };
    let failed = |what: String| {
        Failure::new(
            format!("agent_path {}: {what}", path.display()),
            "name a stacyvm-agent, or remove agent_path",
        )
    };
    let mut bytes = Vec::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(AGENT_BYTES + 1).read_to_end(&mut bytes));
    read.map_err(|e| failed(e.to_string()))?;
    if bytes.len() as u64 > AGENT_BYTES || !bytes.starts_with(b"\x7fELF") {
        return Err(failed("not a program".to_owned()));
    }
    Ok(Box::leak(bytes.into_boxed_slice()))
}

/// What differs between the native provider of a server, of a run, and of what an earlier run left.
#[derive(Default)]
pub(crate) struct Native<'a> {
    /// The lock that makes this the only control plane there; the spawner keeps it while it cleans up behind us.
    pub(crate) lock: Option<&'a Lock>,
    /// The directory of a run, for [`crate::scratch::Spawned`].
    pub(crate) run: Option<&'a Path>,
    /// See [`NativeConfig`].
    pub(crate) image_dirs: Vec<PathBuf>,
    /// See [`NativeConfig`].
    pub(crate) images: Option<Images>,
    /// See [`NativeConfig`].
    pub(crate) network: NetworkConfig,
}

/// The native provider of a data directory.
pub(crate) fn native(
    data_dir: &Path,
    installation_id: &str,
    generation: u64,
    agent: &'static [u8],
    native: Native<'_>,
) -> Result<NativeProvider> {
    let mut args = vec![OsString::from(SPAWNER)];
    args.extend(native.run.map(|directory| directory.as_os_str().to_owned()));
    let lock = native.lock.map(Lock::handle).transpose();
    let lock = lock.map_err(|e| Failure::new(format!("cannot share the lock: {e}"), ""))?;
    let config = NativeConfig {
        data_dir: data_dir.to_owned(),
        installation_id: installation_id.to_owned(),
        generation,
        spawner: SpawnerCommand { program: "/proc/self/exe".into(), args },
        agent,
        image_dirs: native.image_dirs,
        images: native.images,
        network: native.network,
        lock,
    };
    Ok(NativeProvider::start(config)?)
}

/// The native provider's networks, made when they are needed.
pub(crate) fn network(config: &Config) -> NetworkConfig {
    let network = config.providers.native_network.clone();
    NetworkConfig {
        mode: network.mode,
        dns: network.dns,
        blocked_addresses: network.blocked_addresses,
        address_pool: network.address_pool,
        ready: 0,
    }
}

/// Every provider that is enabled, in the order in which `auto` tries them. `in_use`: those that stored sandboxes are of.
/// `images`: the store, where there is one.
pub(crate) async fn enabled(
    config: &Config,
    installation_id: &str,
    generation: u64,
    lock: &Lock,
    in_use: &HashSet<String>,
    images: Option<&Images>,
) -> Result<Vec<Arc<dyn Provider>>> {
    let agent = agent(config.agent_path.as_deref())?;
    let mut providers: Vec<Arc<dyn Provider>> = Vec::new();
    if config.providers.docker.enabled {
        let docker = docker_config(config, installation_id, generation, agent);
        // A host without Docker is not one whose Docker is broken; one that has sandboxes of it is.
        let known = config.providers.docker.wanted || in_use.contains("docker");
        if known || DockerProvider::is_there(&docker) {
            providers.push(Arc::new(DockerProvider::start(docker).await));
        } else {
            tracing::debug!(
                "there is no docker daemon: the provider docker is left out until it is configured or the server is started again"
            );
        }
    }
    if config.providers.native {
        providers.push(Arc::new(native(
            &config.data_dir,
            installation_id,
            generation,
            agent,
            Native {
                lock: Some(lock),
                run: None,
                image_dirs: config.providers.native_image_dirs.clone(),
                images: images.cloned(),
                network: NetworkConfig { ready: READY, ..network(config) },
            },
        )?));
    }
    if config.providers.mock {
        let directory = config.data_dir.join("mock");
        let mock = MockProvider::open(&directory, installation_id, generation, agent).map_err(|e| {
            Failure::new(format!("the mock provider cannot use {}: {e}", directory.display()), "")
        })?;
        providers.push(Arc::new(mock));
    }
    Ok(providers)
}

/// The docker provider's settings.
fn docker_config(
    config: &Config,
    installation_id: &str,
    generation: u64,
    agent: &'static [u8],
) -> DockerConfig {
    let docker = config.providers.docker.clone();
    DockerConfig {
        daemon: docker.socket,
        runtime: docker.runtime,
        allowed_runtimes: docker.allowed_runtimes,
        network: Network::from(&*docker.network_mode),
        blocked_addresses: docker.blocked_addresses,
        dns: docker.dns,
        seccomp: Seccomp::from(&*docker.seccomp_profile),
        read_only_rootfs: docker.read_only_rootfs,
        user: docker.user,
        pids_limit: docker.pids_limit,
        tmpfs: docker.tmpfs,
        ulimits: docker.ulimits.into_iter().map(|(name, soft, hard)| Ulimit { name, soft, hard }).collect(),
        disk_size_mb: docker.disk_size_mb,
        pull_policy: PullPolicy::from(&*docker.pull_policy),
        platform: docker.platform,
        auth_file: docker.auth_file,
        preview_domain: config.server.preview_domain.clone(),
        ..DockerConfig::new(installation_id, generation, agent)
    }
}

/// The provider of sandboxes that name none. `auto` is the first that is healthy, or the first if none is: the server
/// starts all the same, and says what is wrong when asked.
pub(crate) async fn default(configured: &str, providers: &[Arc<dyn Provider>]) -> String {
    if configured != "auto" {
        return configured.to_owned();
    }
    for provider in providers {
        if tokio::time::timeout(LOOK, provider.health()).await.is_ok_and(|health| health.healthy) {
            return provider.name().to_owned();
        }
    }
    providers.first().map(|provider| provider.name().to_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_must_be_a_program() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent");
        std::fs::write(&path, "#!/bin/sh\n").unwrap();
        assert!(agent(Some(&path)).unwrap_err().what.ends_with("not a program"));
        std::fs::write(&path, b"\x7fELF\x02").unwrap();
        assert_eq!(agent(Some(&path)).unwrap(), b"\x7fELF\x02");
        assert!(agent(Some(&dir.path().join("none"))).is_err());
        assert!(agent(None).unwrap().starts_with(b"\x7fELF"));
    }
}
