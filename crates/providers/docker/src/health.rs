//! Whether a sandbox could be made now, and what this daemon and its host cannot guarantee.

use crate::{
    config::{DockerConfig, Network, Seccomp},
    container, network,
    runtime::{self, Family},
};
use bollard::{Docker, models::SystemInfo};
use stacyvm_provider::Result;

/// Why no sandbox can be made with this daemon, if so.
///
/// # Errors
/// The daemon cannot be asked.
pub(crate) async fn problem(
    client: &Docker,
    config: &DockerConfig,
    info: &SystemInfo,
) -> Result<Option<String>> {
    if info.os_type.as_deref().is_some_and(|os| os != "linux") {
        return Ok(Some("the docker daemon runs Windows containers: use one for Linux".to_owned()));
    }
    if let Some(problem) = runtime::missing(&config.runtime, info) {
        return Ok(Some(problem));
    }
    if let Err(error) = container::seccomp(&config.seccomp) {
        return Ok(Some(error.message().to_owned()));
    }
    if let Network::Named(name) = &config.network
        && !network::exists(client, name).await?
    {
        return Ok(Some(network::missing(name)));
    }
    Ok(None)
}

/// Guarantees that are not given here, each in a sentence.
pub(crate) fn warnings(config: &DockerConfig, info: &SystemInfo, daemon_is_here: bool) -> Vec<String> {
    let mut warnings = Vec::new();
    let mut warn = |condition: bool, text: &str| {
        if condition {
            warnings.push(text.to_owned());
        }
    };
    let family = Family::of(&config.runtime, Some(info));
    warn(
        info.live_restore_enabled == Some(false),
        "a restart of the docker daemon ends every sandbox: set \"live-restore\": true in its daemon.json",
    );
    warn(
        info.memory_limit == Some(false),
        "memory limits are not enforced: the daemon's kernel has no memory cgroup",
    );
    warn(
        info.swap_limit == Some(false),
        "memory limits do not count swap: the daemon's kernel does not account for it",
    );
    warn(
        info.cpu_cfs_quota == Some(false),
        "processor limits are not enforced: the daemon's kernel has no CPU quotas",
    );
    warn(
        family.shares_kernel() && info.pids_limit == Some(false),
        "limits of processes are not enforced: the daemon's kernel has no pids cgroup",
    );
    warn(
        !family.shares_kernel(),
        "limits of processes are not enforced: this runtime's processes are not those of the host",
    );
    warn(
        family == Family::Gvisor,
        "a sandbox that runs out of memory ends as a whole: gVisor is one process for the host",
    );
    warn(
        family == Family::Gvisor && config.network == Network::Internet,
        "no sandbox can be made: gVisor cannot restrict the network internet; set providers.docker.runtime to runc, or network_mode to none",
    );
    let reachable = "sandboxes reach private and metadata addresses: set providers.docker.network_mode to internet or none";
    match &config.network {
        Network::Named(name) if name == "host" => {
            warn(
                true,
                "sandboxes share the network of the daemon's host: set providers.docker.network_mode to internet or none",
            );
        }
        Network::Named(_) => warn(true, reachable),
        Network::None | Network::Internet => {}
    }
    warn(
        config.network == Network::Internet && !daemon_is_here,
        "addresses of the docker daemon's host are not known here, so sandboxes may reach those that are public: list them in providers.docker.blocked_addresses",
    );
    warn(
        config.seccomp == Seccomp::Unconfined,
        "sandboxes may make every system call: set providers.docker.seccomp_profile to default",
    );
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_restart_of_the_daemon_costs_is_said_before() {
        let config = crate::container::tests::config();
        let info =
            |live_restore| SystemInfo { live_restore_enabled: Some(live_restore), ..SystemInfo::default() };
        assert!(warnings(&config, &info(false), true)[0].contains("live-restore"));
        assert!(warnings(&config, &info(true), true).is_empty());
    }

    #[test]
    fn an_open_network_is_said() {
        for (network, open) in [("bridge", true), ("host", true), ("internet", false), ("none", false)] {
            let config = DockerConfig { network: network.into(), ..crate::container::tests::config() };
            let said =
                warnings(&config, &SystemInfo::default(), true).iter().any(|w| w.contains("network_mode"));
            assert_eq!(said, open, "{network}");
        }
    }
}
