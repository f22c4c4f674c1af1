//! What a sandbox is, in the daemon's words: identity in labels, limits, and everything that keeps code in it.

use crate::{
    config::{DockerConfig, Network, Seccomp},
    network,
    runtime::Family,
};
use bollard::models::{
    ContainerCreateBody, HealthConfig, HostConfig, HostConfigLogConfig, Mount, MountType, ResourcesUlimits,
    RestartPolicy, RestartPolicyNameEnum,
};
use stacyvm_guest::start::BLOCKED_VARIABLE;
use stacyvm_provider::{Error, Result, SandboxId, SandboxSpec};
use std::{collections::HashMap, path::Path};

/// Where the agent's volume is mounted.
pub(crate) const HOME: &str = "/.stacyvm";
/// The agent.
pub(crate) const AGENT: &str = "/.stacyvm/stacyvm-agent";
/// Directory of its socket: only root of the sandbox enters it.
const RUN: &str = "/.stacyvm/run";
/// Its socket.
pub(crate) const SOCKET: &str = "/.stacyvm/run/agent.sock";
/// Home of the sandbox user.
const USER_HOME: &str = "/home/sandbox";
/// Working directory of processes.
const WORKSPACE: &str = "/workspace";

/// Label with the installation that owns a container, volume or network.
pub(crate) const INSTALLATION: &str = "stacyvm.installation";
/// Label with the sandbox that a container is.
pub(crate) const SANDBOX: &str = "stacyvm.sandbox";
/// Label with what else something of ours is for.
pub(crate) const ROLE: &str = "stacyvm.role";
/// Label with the image as it was asked for.
pub(crate) const IMAGE: &str = "stacyvm.image";

/// Label with the limit of processes, 0 for none: the daemon's own is raised for moments.
pub(crate) const PIDS: &str = "stacyvm.pids";

/// All that the agent needs: change users, signal their processes, work on their files; and once, at its start, give up
/// every other one for good.
const CAPABILITIES: [&str; 7] = ["SETUID", "SETGID", "KILL", "CHOWN", "DAC_OVERRIDE", "FOWNER", "SETPCAP"];
/// One more for the agent's start, where it has the network to restrict.
const RESTRICTING: &str = "NET_ADMIN";
/// Processes and threads of ours in a container: the agent and two threads of its, the zygote. They are added to the limit,
/// so that a sandbox gets as many as it asked for.
const OURS: i64 = 4;
/// Two bridges of two threads, where there is no shorter way to the agent.
const BRIDGES: i64 = 4;
/// Port that old reverse proxy set-ups preview.
const PREVIEW_PORT: u16 = 3000;

/// What a container is made from.
pub(crate) struct Blueprint<'a> {
    pub(crate) config: &'a DockerConfig,
    pub(crate) id: &'a SandboxId,
    pub(crate) spec: &'a SandboxSpec,
    pub(crate) runtime: &'a str,
    pub(crate) family: Family,
    /// Root of the sandbox is nobody elsewhere.
    pub(crate) root_user: bool,
    /// Its agent is reached over bridges.
    pub(crate) bridged: bool,
    /// Which network it is to have.
    pub(crate) kind: Network,
    /// Name or id of that, as the daemon knows it.
    pub(crate) network: String,
    /// What the agent blocks on the network `internet`, which is restricted; `None` on others, which are not.
    pub(crate) blocked: Option<String>,
    /// Names of the image's labels.
    pub(crate) image_labels: Vec<String>,
    /// Sandbox user that the image names.
    pub(crate) user: (u32, u32),
    pub(crate) agent_volume: Mount,
    /// The daemon's seccomp option, if there is to be one.
    pub(crate) seccomp: Option<String>,
}

impl Blueprint<'_> {
    /// The request that makes it.
    pub(crate) fn body(&self) -> ContainerCreateBody {
        ContainerCreateBody {
            image: Some(self.spec.image.clone()),
            hostname: Some(self.id.to_string()),
            user: Some("0:0".to_owned()),
            working_dir: Some("/".to_owned()),
            entrypoint: Some(vec![AGENT.to_owned()]),
            cmd: Some(self.arguments()),
            env: self.blocked.as_ref().map(|blocked| vec![format!("{BLOCKED_VARIABLE}={blocked}")]),
            labels: Some(self.labels()),
            // The image's own check would be one more program that runs in the sandbox, as root.
            healthcheck: Some(HealthConfig {
                test: Some(vec!["NONE".to_owned()]),
                ..HealthConfig::default()
            }),
            stop_signal: Some("SIGTERM".to_owned()),
            host_config: Some(self.host_config()),
            ..ContainerCreateBody::default()
        }
    }

    fn arguments(&self) -> Vec<String> {
        let (uid, gid) = (self.user.0.to_string(), self.user.1.to_string());
        let pairs = [
            ("--listen", SOCKET),
            ("--sandbox", self.id.as_str()),
            ("--installation", &self.config.installation_id),
            ("--uid", &uid),
            ("--gid", &gid),
            ("--user-name", "sandbox"),
            ("--home", USER_HOME),
            ("--workdir", WORKSPACE),
        ];
        let mut arguments: Vec<_> =
            pairs.into_iter().flat_map(|(name, value)| [name.to_owned(), value.to_owned()]).collect();
        arguments.push("--container".to_owned());
        if self.root_user {
            arguments.push("--root-user".to_owned());
        }
        if self.blocked.is_some() {
            arguments.push("--restrict-network".to_owned());
        }
        arguments
    }

    fn labels(&self) -> HashMap<String, String> {
        // The daemon adds the image's labels, which would speak for the sandbox: to us, to reverse proxies, to whoever reads
        // labels. It leaves those alone that are set.
        let mut labels: HashMap<_, _> =
            self.image_labels.iter().map(|name| (name.clone(), String::new())).collect();
        labels.extend([
            ("stacyvm".to_owned(), "true".to_owned()),
            ("stacyvm.provider".to_owned(), "docker".to_owned()),
            (INSTALLATION.to_owned(), self.config.installation_id.clone()),
            (SANDBOX.to_owned(), self.id.to_string()),
            (IMAGE.to_owned(), self.spec.image.clone()),
            (ROLE.to_owned(), "sandbox".to_owned()),
            (PIDS.to_owned(), pids_limit(self.config, self.spec, self.family, self.bridged).to_string()),
        ]);
        if !self.spec.metadata.is_empty()
            && let Ok(json) = serde_json::to_string(&self.spec.metadata)
        {
            labels.insert("stacyvm.metadata".to_owned(), json);
        }
        let domain = &self.config.preview_domain;
        if !domain.is_empty() && self.kind != Network::None {
            let name = format!("{}-{PREVIEW_PORT}", self.id);
            let host = format!("{PREVIEW_PORT}-{}.{domain}", self.id);
            labels.insert("traefik.enable".to_owned(), "true".to_owned());
            labels.insert(format!("traefik.http.routers.{name}.rule"), format!("Host(`{host}`)"));
            labels.insert(
                format!("traefik.http.services.{name}.loadbalancer.server.port"),
                PREVIEW_PORT.to_string(),
            );
        }
        labels
    }

    fn host_config(&self) -> HostConfig {
        let memory = i64::from(self.spec.memory_mb) << 20;
        let capabilities = CAPABILITIES.into_iter().chain(self.blocked.as_ref().map(|_| RESTRICTING));
        let mut security = vec!["no-new-privileges:true".to_owned()];
        security.extend(self.seccomp.clone());
        HostConfig {
            runtime: Some(self.runtime.to_owned()),
            network_mode: Some(self.network.clone()),
            dns: Some(network::resolvers(self.config, &self.kind)).filter(|list| !list.is_empty()),
            memory: Some(memory),
            // The same for both: no swap on top.
            memory_swap: (memory > 0).then_some(memory),
            nano_cpus: Some(i64::from(self.spec.vcpus) * 1_000_000_000),
            pids_limit: Some(pids_limit(self.config, self.spec, self.family, self.bridged)),
            cap_drop: Some(vec!["ALL".to_owned()]),
            cap_add: Some(capabilities.map(str::to_owned).collect()),
            security_opt: Some(security),
            privileged: Some(false),
            readonly_rootfs: Some(self.config.read_only_rootfs),
            mounts: Some(self.mounts()),
            tmpfs: Some(self.tmpfs()),
            ulimits: Some(self.ulimits()),
            storage_opt: disk_mb(self.config, self.spec)
                .map(|mb| HashMap::from([("size".to_owned(), format!("{mb}m"))])),
            ipc_mode: Some("private".to_owned()),
            log_config: Some(HostConfigLogConfig {
                typ: Some("json-file".to_owned()),
                config: Some([("max-size", "1m"), ("max-file", "1")].map(owned).into()),
            }),
            restart_policy: Some(RestartPolicy {
                name: Some(RestartPolicyNameEnum::NO),
                maximum_retry_count: None,
            }),
            auto_remove: Some(false),
            ..HostConfig::default()
        }
    }

    fn mounts(&self) -> Vec<Mount> {
        let mut mounts = vec![self.agent_volume.clone()];
        if self.config.read_only_rootfs {
            // Volumes without a name: on disk, the sandbox's alone, and removed with it.
            let writable =
                [WORKSPACE, USER_HOME].into_iter().filter(|path| !self.config.tmpfs.contains_key(*path));
            mounts.extend(writable.map(|path| Mount {
                target: Some(path.to_owned()),
                typ: Some(MountType::VOLUME),
                ..Mount::default()
            }));
        }
        mounts
    }

    fn tmpfs(&self) -> HashMap<String, String> {
        let mut tmpfs: HashMap<_, _> = self.config.tmpfs.clone().into_iter().collect();
        if self.config.read_only_rootfs {
            tmpfs.entry("/tmp".to_owned()).or_insert_with(|| "rw,nosuid,nodev,mode=1777".to_owned());
        }
        tmpfs.insert(RUN.to_owned(), "rw,nosuid,nodev,noexec,size=64k,mode=0700".to_owned());
        tmpfs
    }

    fn ulimits(&self) -> Vec<ResourcesUlimits> {
        let limit = |name: &str, soft, hard| ResourcesUlimits {
            name: Some(name.to_owned()),
            soft: Some(soft),
            hard: Some(hard),
        };
        let mut limits = vec![limit("core", 0, 0)];
        for ulimit in &self.config.ulimits {
            limits.retain(|limit| limit.name.as_deref() != Some(&ulimit.name));
            limits.push(limit(&ulimit.name, ulimit.soft, ulimit.hard));
        }
        limits
    }
}

fn owned((key, value): (&str, &str)) -> (String, String) {
    (key.to_owned(), value.to_owned())
}

/// Disk limit in MiB, if there is one: the smaller of what was asked for and what the configuration allows.
fn disk_mb(config: &DockerConfig, spec: &SandboxSpec) -> Option<u32> {
    [spec.disk_mb, config.disk_size_mb].into_iter().filter(|mb| *mb > 0).min()
}

/// Processes that a container may have, ours included; 0: no limit. A kernel of the sandbox's own does not count its
/// processes in the host's cgroups, and a limit there would end that kernel.
pub(crate) fn pids_limit(config: &DockerConfig, spec: &SandboxSpec, family: Family, bridged: bool) -> i64 {
    let most = match (spec.pids, config.pids_limit) {
        (0, most) => most,
        (wanted, 0) => wanted,
        (wanted, most) => wanted.min(most),
    };
    if !family.shares_kernel() || most == 0 {
        return 0;
    }
    i64::from(most) + OURS + if bridged { BRIDGES } else { 0 }
}

/// The daemon's seccomp option: it takes the profile itself, not its path.
///
/// # Errors
/// `InvalidArgument` that names the file.
pub(crate) fn seccomp(seccomp: &Seccomp) -> Result<Option<String>> {
    match seccomp {
        Seccomp::Default => Ok(None),
        Seccomp::Unconfined => Ok(Some("seccomp=unconfined".to_owned())),
        Seccomp::Profile(path) => profile(path).map(|json| Some(format!("seccomp={json}"))),
    }
}

fn profile(path: &Path) -> Result<String> {
    let failed = |what: String| {
        Error::invalid_argument(format!(
            "providers.docker.seccomp_profile {}: {what}; name a profile in Docker's JSON form, or default",
            path.display()
        ))
    };
    let text = std::fs::read(path).map_err(|error| failed(error.to_string()))?;
    let value: serde_json::Value =
        serde_json::from_slice(&text).map_err(|error| failed(error.to_string()))?;
    if value.get("defaultAction").is_none() {
        return Err(failed("it has no defaultAction".to_owned()));
    }
    // Without the white space of the file: it travels with every request.
    serde_json::to_string(&value).map_err(|error| failed(error.to_string()))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::config::Ulimit;
    use std::collections::BTreeMap;

    pub(crate) fn config() -> DockerConfig {
        DockerConfig { preview_domain: "localhost".to_owned(), ..DockerConfig::new("inst", 1, b"agent") }
    }

    fn spec() -> SandboxSpec {
        SandboxSpec {
            memory_mb: 64,
            vcpus: 2,
            pids: 100,
            metadata: BTreeMap::from([("k".to_owned(), "v".to_owned())]),
            ..SandboxSpec::new("alpine")
        }
    }

    fn body(config: &DockerConfig, family: Family) -> ContainerCreateBody {
        let (id, spec) = ("sb-1".parse().unwrap(), spec());
        let blueprint = Blueprint {
            config,
            id: &id,
            spec: &spec,
            runtime: "runc",
            family,
            root_user: false,
            bridged: true,
            kind: config.network.clone(),
            network: config.network.to_string(),
            blocked: (config.network == Network::Internet).then(|| "203.0.113.7".to_owned()),
            image_labels: vec!["stacyvm.role".to_owned(), "traefik.http.routers.x.rule".to_owned()],
            user: (1000, 1000),
            agent_volume: Mount::default(),
            seccomp: None,
        };
        blueprint.body()
    }

    #[test]
    fn a_container_is_confined_and_ours() {
        let body = body(&config(), Family::Container);
        let labels = body.labels.unwrap();
        assert_eq!((&*labels[INSTALLATION], &*labels[SANDBOX], &*labels[IMAGE]), ("inst", "sb-1", "alpine"));
        assert_eq!(labels["stacyvm.metadata"], r#"{"k":"v"}"#);
        assert_eq!(
            (&*labels[ROLE], &*labels["traefik.http.routers.x.rule"]),
            ("sandbox", ""),
            "the image's word"
        );
        assert!(!labels.contains_key("traefik.enable"), "nothing reaches a sandbox without a network");
        let host = body.host_config.unwrap();
        assert_eq!(host.memory, host.memory_swap);
        assert_eq!(
            (host.memory, host.nano_cpus, host.pids_limit),
            (Some(64 << 20), Some(2_000_000_000), Some(108))
        );
        assert_eq!(host.cap_drop.unwrap(), ["ALL"]);
        assert_eq!(host.security_opt.unwrap(), ["no-new-privileges:true"]);
        assert!(host.tmpfs.unwrap()[RUN].contains("mode=0700"));
        assert_eq!(host.ulimits.unwrap()[0].name.as_deref(), Some("core"));
    }

    #[test]
    fn only_the_network_internet_is_restricted() {
        let of = |network| body(&DockerConfig { network, ..config() }, Family::Container);
        let restricts = |body: &ContainerCreateBody| {
            let flag = body.cmd.iter().flatten().any(|word| word == "--restrict-network");
            let host = body.host_config.as_ref().unwrap();
            assert_eq!(flag, host.cap_add.iter().flatten().any(|name| name == RESTRICTING));
            flag
        };
        assert!(!restricts(&of(Network::None)) && !restricts(&of(Network::Named("bridge".to_owned()))));
        let internet = of(Network::Internet);
        assert!(restricts(&internet));
        assert_eq!(internet.env.unwrap(), ["STACYVM_BLOCKED_ADDRESSES=203.0.113.7"]);
    }

    #[test]
    fn a_read_only_root_has_writable_places() {
        let config = DockerConfig { read_only_rootfs: true, ..config() };
        let host = body(&config, Family::Container).host_config.unwrap();
        let targets: Vec<_> = host.mounts.unwrap().into_iter().filter_map(|mount| mount.target).collect();
        assert_eq!(targets, [WORKSPACE, USER_HOME]);
        assert!(host.tmpfs.unwrap().contains_key("/tmp"));
    }

    #[test]
    fn a_kernel_of_its_own_is_not_limited_in_processes() {
        let host = body(&config(), Family::Gvisor).host_config.unwrap();
        assert_eq!(host.pids_limit, Some(0));
    }

    #[test]
    fn the_smaller_limit_of_processes_holds() {
        let limit = |asked, most| {
            let config = DockerConfig { pids_limit: most, ..config() };
            pids_limit(&config, &SandboxSpec { pids: asked, ..spec() }, Family::Container, false)
        };
        assert_eq!((limit(0, 256), limit(100, 256), limit(1000, 256), limit(0, 0)), (260, 104, 260, 0));
    }

    #[test]
    fn a_proxy_is_told_where_the_sandbox_is() {
        let config = DockerConfig { network: Network::Named("web".to_owned()), ..config() };
        let labels = body(&config, Family::Container).labels.unwrap();
        assert_eq!(labels["traefik.http.routers.sb-1-3000.rule"], "Host(`3000-sb-1.localhost`)");
    }

    #[test]
    fn what_is_configured_wins_over_our_limits() {
        let core = Ulimit { name: "core".to_owned(), soft: 1, hard: 2 };
        let config = DockerConfig { ulimits: vec![core], ..config() };
        let ulimits = body(&config, Family::Container).host_config.unwrap().ulimits.unwrap();
        assert_eq!(ulimits.len(), 1);
        assert_eq!(ulimits[0].hard, Some(2));
    }

    #[test]
    fn a_profile_is_read_and_checked() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("profile.json");
        let read = || seccomp(&Seccomp::Profile(path.clone()));
        assert!(read().unwrap_err().message().contains("profile.json"));
        std::fs::write(&path, "{\n \"defaultAction\": \"SCMP_ACT_ERRNO\"\n}").unwrap();
        assert_eq!(read().unwrap().unwrap(), r#"seccomp={"defaultAction":"SCMP_ACT_ERRNO"}"#);
        for bad in ["", "[]", "{}"] {
            std::fs::write(&path, bad).unwrap();
            assert!(read().is_err(), "{bad}");
        }
    }
}
