//! Limits and accounting: control groups, version 1 and 2, whichever carries a controller on this host.
//!
//! ```text
//! <root>/stacyvm-<installation>/<sandbox>/work     everything that runs in the sandbox; limits are here
//!                                        /agent    the agent's main process, so that no limit can end it
//! ```
//!
//! Processor time is counted for every sandbox, limited or not: what ended processes used is nowhere else. Everything
//! else has a cgroup only where it has a limit.
//!
//! On version 1, a process is moved for free only by itself, by writing `0` to `tasks` while it has one thread
//! (measured: 0.2 ms for four hierarchies). Any other move takes a lock over all forks of the host for a kernel grace
//! period of 5 to 15 ms. So the first process of a sandbox joins by itself, and only the agent is moved later, and all of
//! them when the sandbox is paused for the first time ([`Freezer`]).

mod freezer;
mod host;
mod sandbox;

pub(crate) use freezer::{FREEZE, Freezer};
pub(crate) use host::Host;
pub(crate) use sandbox::{Join, SandboxCgroups};

use serde::{Deserialize, Serialize};

/// What can be limited or counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Controller {
    Memory,
    Cpu,
    /// Counts processor time. A controller on version 1, part of every cgroup on version 2.
    Cpuacct,
    Pids,
    /// Stops processes. A controller on version 1, part of every cgroup on version 2.
    Freezer,
}

impl Controller {
    pub(crate) const ALL: [Self; 5] = [Self::Memory, Self::Cpu, Self::Cpuacct, Self::Pids, Self::Freezer];

    /// Whether version 2 has it without being asked.
    fn comes_with_version_2(self) -> bool {
        matches!(self, Self::Cpuacct | Self::Freezer)
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Cpu => "cpu",
            Self::Cpuacct => "cpuacct",
            Self::Pids => "pids",
            Self::Freezer => "freezer",
        }
    }
}

/// Version of a hierarchy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Version {
    V1,
    V2,
}

/// What to limit; 0 is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Limits {
    pub(crate) memory_mb: u32,
    pub(crate) vcpus: u32,
    pub(crate) pids: u32,
}
