//! Native Linux sandboxes: namespaces, an overlay and cgroups, made with the kernel's own calls. No daemon, no download,
//! a millisecond or two.
//!
//! The server drives and records, a small [spawner](spawner_main) clones, and the sandbox's first process sets itself
//! up and becomes the agent. What runs is watched by process descriptor and found again by number, start time and boot
//! after a restart; the server and the spawner may die at any instant without a sandbox noticing or anything being left.

mod cgroup;
mod config;
mod console;
mod create;
mod destroy;
mod disk;
mod entry;
mod failure;
mod health;
mod ids;
mod image;
mod inner;
mod layout;
mod network;
mod pool;
mod process;
mod provider;
mod record;
mod remove;
mod rights;
mod sandboxes;
mod seccomp;
mod settle;
mod spawner;
mod sys;
mod usage;
mod user_namespaces;

pub use config::{NativeConfig, SpawnerCommand};
pub use network::NetworkConfig;
pub use provider::NativeProvider;
pub use spawner::spawner_main;
