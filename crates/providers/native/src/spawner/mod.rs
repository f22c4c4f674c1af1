//! The spawner: a small process with one thread that clones the first process of each sandbox.
//!
//! The server never forks: a fork copies page tables (37 ms for 1 GiB touched) and, with threads, is unsafe to run code
//! in. The spawner has nothing to copy, and lives in a session of its own, so that neither a terminal nor the end of
//! the server takes it away at the wrong moment.
//!
//! ```text
//! server ── Clone + descriptors ──► spawner ── clone3 ──► child: joins cgroups, mounts, waits
//!        ◄── pid + pidfd ──────────                         │
//!        writes state.json ── one byte on the go pipe ─────►│ execs the agent
//!        ◄──────── status pipe: a report, or EOF at exec ───┘
//! ```
//!
//! The child waits for the byte before it becomes the agent, and ends when the pipe ends: a server killed at any
//! instant leaves no process that is not recorded. The spawner keeps no state but the names of ephemeral sandboxes;
//! when its server has died, it removes those and ends. A spawner that dies is replaced by the server; sandboxes do not
//! notice.

mod child;
mod client;
mod disk;
mod lower;
mod mounts;
mod privileges;
mod protocol;
mod serve;
mod upper;
mod user_namespace;

pub(crate) use child::{LISTENER, MEMORY_EVENTS, PIDS_EVENTS, WORK};
pub(crate) use client::{ClonedChild, Spawner};
pub(crate) use disk::mount_image;
pub(crate) use protocol::{CloneFds, MAX_REPORT, Report, Setup};
pub use serve::spawner_main;
