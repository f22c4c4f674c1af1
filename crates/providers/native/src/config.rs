//! What the provider is told when it is made.

use crate::network::NetworkConfig;
use std::{ffi::OsString, path::PathBuf};

/// How to start the spawner: a program that calls [`crate::spawner_main`] before anything else.
#[derive(Debug, Clone)]
pub struct SpawnerCommand {
    /// Program, usually `/proc/self/exe`.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
}

/// Settings of a [`crate::NativeProvider`].
#[derive(Debug)]
pub struct NativeConfig {
    /// Directory that holds all state of this installation, an absolute path.
    pub data_dir: PathBuf,
    /// Name of this installation, part of cgroup names: 1 to 64 letters, digits, `-` or `_`.
    pub installation_id: String,
    /// Grows with each start of the control plane: agents drop connections of older ones.
    pub generation: u64,
    /// How to start the spawner.
    pub spawner: SpawnerCommand,
    /// The agent, a static program for this machine.
    pub agent: &'static [u8],
    /// Directories of the host that may be images, with those below them; `/` allows any. Whoever may create sandboxes reads
    /// everything in them as root.
    pub image_dirs: Vec<PathBuf>,
    /// Images of registries and archives; `None`: there are none.
    pub images: Option<stacyvm_image::Images>,
    /// Networks of sandboxes.
    pub network: NetworkConfig,
    /// The lock that makes this the only control plane of `data_dir`, as an open file. The spawner keeps it while it
    /// cleans up behind a server that died, so whoever takes it next finds nothing half cleaned. With it, sandboxes
    /// marked ephemeral that an earlier control plane left are removed at start; without it, other control planes may
    /// be at work in the same directory and nothing that is theirs is touched.
    pub lock: Option<rustix::fd::OwnedFd>,
}
