//! What the provider is told when it is made.

use stacyvm_image::PullPolicy;
use std::{collections::BTreeMap, path::PathBuf};

/// Settings of a [`crate::DockerProvider`].
#[derive(Debug, Clone)]
pub struct DockerConfig {
    /// Name of this installation: containers, volumes and networks that carry it are ours, and no others.
    pub installation_id: String,
    /// Grows with each start of the control plane: agents drop connections of older ones.
    pub generation: u64,
    /// The agent, a static program for the daemon's machines.
    pub agent: &'static [u8],
    /// URL of the daemon (`unix://`, `tcp://`, `http://`, `https://`) or the path of its socket; `None`: `DOCKER_HOST`,
    /// else the usual socket.
    pub daemon: Option<String>,
    /// Runtime of sandboxes that name none, as registered with the daemon.
    pub runtime: String,
    /// Runtimes that a sandbox may name, beside `runtime`.
    pub allowed_runtimes: Vec<String>,
    /// Network of sandboxes.
    pub network: Network,
    /// Addresses and prefixes that the network `internet` blocks beside private ones and this host's: `203.0.113.7`,
    /// `2001:db8::/32`.
    pub blocked_addresses: Vec<String>,
    /// Resolvers of sandboxes; empty: the daemon's.
    pub dns: Vec<String>,
    /// System calls that containers may make.
    pub seccomp: Seccomp,
    /// The image cannot be written to: `/workspace`, `/tmp` and the home directory can.
    pub read_only_rootfs: bool,
    /// Uid and gid of the sandbox user; `None`: the image's user if it is a number and not root, else 1000.
    pub user: Option<(u32, u32)>,
    /// Most processes of a sandbox, whatever it asks for.
    pub pids_limit: u32,
    /// Paths with tmpfs mount options.
    pub tmpfs: BTreeMap<String, String>,
    /// Limits of single processes.
    pub ulimits: Vec<Ulimit>,
    /// Size of a container's writable layer in MiB, for storage drivers that can limit it; 0: no limit.
    pub disk_size_mb: u32,
    /// When images are pulled.
    pub pull_policy: PullPolicy,
    /// Platform of images, as in `linux/arm64`; `None`: the daemon's.
    pub platform: Option<String>,
    /// File with credentials of registries, in the form of `~/.docker/config.json`.
    pub auth_file: Option<PathBuf>,
    /// Reach agents over bridges also where there is a shorter way: what is used on other machines can be tested on this.
    pub bridges_only: bool,
    /// Domain of previews, for the labels that a reverse proxy reads; empty: no labels.
    pub preview_domain: String,
}

impl DockerConfig {
    /// The usual daemon and runtime, no network, nothing that an operator would have to choose.
    pub fn new(installation_id: impl Into<String>, generation: u64, agent: &'static [u8]) -> Self {
        Self {
            installation_id: installation_id.into(),
            generation,
            agent,
            daemon: None,
            runtime: "runc".to_owned(),
            allowed_runtimes: Vec::new(),
            network: Network::None,
            blocked_addresses: Vec::new(),
            dns: Vec::new(),
            seccomp: Seccomp::Default,
            read_only_rootfs: false,
            user: None,
            pids_limit: 256,
            tmpfs: BTreeMap::new(),
            ulimits: Vec::new(),
            disk_size_mb: 0,
            pull_policy: PullPolicy::Missing,
            platform: None,
            auth_file: None,
            bridges_only: false,
            preview_domain: String::new(),
        }
    }
}

/// Network of sandboxes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Network {
    /// Nothing but the sandbox's own loopback.
    None,
    /// The internet: no private, link-local or metadata address, no other sandbox, not this host.
    Internet,
    /// A network of the daemon, which must exist.
    Named(String),
}

impl From<&str> for Network {
    fn from(mode: &str) -> Self {
        match mode {
            "" | "none" => Self::None,
            "internet" => Self::Internet,
            name => Self::Named(name.to_owned()),
        }
    }
}

impl std::fmt::Display for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Internet => "internet",
            Self::Named(name) => name,
        })
    }
}

/// System calls that containers may make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seccomp {
    /// The daemon's own profile.
    Default,
    /// All of them.
    Unconfined,
    /// A profile in Docker's JSON form.
    Profile(PathBuf),
}

impl From<&str> for Seccomp {
    fn from(profile: &str) -> Self {
        match profile {
            "" | "default" => Self::Default,
            "unconfined" => Self::Unconfined,
            path => Self::Profile(path.into()),
        }
    }
}

/// Limit of single processes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ulimit {
    /// Name, as in `nofile`.
    pub name: String,
    /// What a process starts with.
    pub soft: i64,
    /// What it may raise that to.
    pub hard: i64,
}
