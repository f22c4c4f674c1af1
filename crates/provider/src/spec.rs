//! What a sandbox is asked to be, what it is called, and what a runtime says it can do.

use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt, str::FromStr};

/// Name of a sandbox, chosen by the engine before any runtime is asked for anything.
///
/// `sb-` and lower-case letters or digits, at most 32 characters in all: a legal DNS label with room for a port in
/// front, a legal file name, cgroup name and container name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SandboxId(String);

/// Why a text is not a [`SandboxId`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a sandbox id is \"sb-\" and 1 to 29 lower-case letters or digits")]
pub struct SpecError;

impl SandboxId {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SandboxId {
    type Err = SpecError;
    fn from_str(text: &str) -> Result<Self, SpecError> {
        let tail = text.strip_prefix("sb-").ok_or(SpecError)?;
        let legal = tail.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        if (1..=29).contains(&tail.len()) && legal { Ok(Self(text.to_owned())) } else { Err(SpecError) }
    }
}

impl TryFrom<String> for SandboxId {
    type Error = SpecError;
    fn try_from(text: String) -> Result<Self, SpecError> {
        text.parse()
    }
}

impl From<SandboxId> for String {
    fn from(id: SandboxId) -> Self {
        id.0
    }
}

impl fmt::Display for SandboxId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a sandbox is made of. Stored with the sandbox, so fields are only ever added, with a default.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SandboxSpec {
    /// What the root filesystem comes from. Names are the runtime's to interpret: an OCI reference, a template, a
    /// directory, or `host`. A runtime that cannot provide it says so and never substitutes another.
    pub image: String,
    /// Memory for the work in the sandbox, in MiB; 0: no limit.
    pub memory_mb: u32,
    /// Processors, in whole ones; 0: no limit.
    pub vcpus: u32,
    /// Processes and threads at once; 0: no limit.
    #[serde(default)]
    pub pids: u32,
    /// Disk that files written in the sandbox may take, in MiB; 0: no limit.
    #[serde(default)]
    pub disk_mb: u32,
    /// The sandbox must not outlive the control plane that made it (`stacyvm run`).
    #[serde(default)]
    pub ephemeral: bool,
    /// What isolates it, where the provider offers a choice (`runc`, `runsc`, …); `None`: the provider's default.
    #[serde(default)]
    pub runtime: Option<String>,
    /// Its network, where the provider offers a choice (`none`, `internet`); `None`: the provider's default.
    #[serde(default)]
    pub network: Option<String>,
    /// The caller's labels; runtimes with labels of their own carry them.
    #[serde(default)]
    pub metadata: BTreeMap<String, String>,
}

impl SandboxSpec {
    /// A sandbox of this image, without limits, with what the provider gives to whoever asks for nothing.
    pub fn new(image: impl Into<String>) -> Self {
        Self {
            image: image.into(),
            memory_mb: 0,
            vcpus: 0,
            pids: 0,
            disk_mb: 0,
            ephemeral: false,
            runtime: None,
            network: None,
            metadata: BTreeMap::new(),
        }
    }

    /// For providers that have one runtime.
    ///
    /// # Errors
    /// `Unsupported` if another one is asked for.
    pub fn refuse_runtime(&self, provider: &str) -> crate::Result<()> {
        match &self.runtime {
            None => Ok(()),
            Some(name) => Err(crate::Error::unsupported(format!(
                "provider {provider} has no runtime {name}, and no choice of runtimes: leave it out, or use the provider docker"
            ))),
        }
    }

    /// For providers that have one network.
    ///
    /// # Errors
    /// `Unsupported` if any is asked for.
    pub fn refuse_network(&self, provider: &str) -> crate::Result<()> {
        refuse_network(self.network.as_deref(), provider)
    }
}

/// For providers that have one network: whatever is `asked` for is `Unsupported`.
pub(crate) fn refuse_network(asked: Option<&str>, provider: &str) -> crate::Result<()> {
    match asked {
        None => Ok(()),
        Some(name) => Err(crate::Error::unsupported(format!(
            "provider {provider} has no network {name}, and no choice of networks: leave network_mode out, or use the provider native or docker"
        ))),
    }
}

/// What a runtime can do, as data: callers look here before they ask, and the suite tests exactly what is claimed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Capabilities {
    /// How it isolates, in a word that the API shows: `container`, `microvm`, `userspace_isolation`, `test_provider`…
    pub isolation: &'static str,
    /// Sandboxes and their processes go on while the control plane is down.
    pub survives_restart: bool,
    /// `SandboxSpec::memory_mb` is enforced.
    pub memory_limit: bool,
    /// `SandboxSpec::vcpus` is enforced.
    pub cpu_limit: bool,
    /// `SandboxSpec::pids` is enforced.
    pub pids_limit: bool,
    /// Processes may run as root of the sandbox.
    pub root_user: bool,
    /// The sandbox sees a filesystem, processes and network of its own (false only for `mock`).
    pub isolated: bool,
    /// `Provider::stats` works.
    pub stats: bool,
    /// `Provider::pause` and `resume` work.
    pub pause: bool,
    /// Running out of memory may end the whole sandbox and not only the process (gVisor); `memory_limit` holds all the
    /// same.
    pub oom_ends_sandbox: bool,
    /// `SandboxSpec::disk_mb` is enforced. False also where that is not known beforehand; what cannot be enforced is refused
    /// when it is asked for.
    pub disk_limit: bool,
    /// Processes may have a terminal (`ProcessSpec::pty`).
    pub pty: bool,
    /// Terminals tell what happens to them: a new size is a signal, what is left at one that ends is hung up, and
    /// `/dev/tty` opens (gVisor's do not).
    pub pty_signals: bool,
}
