//! The runtime half of the contract: make a sandbox, reach into it, take it away.
//!
//! Rules that hold for every method:
//! - **Cancellation.** Dropping a future never leaves the runtime in a state that [`Provider::destroy`] cannot clean up.
//!   The effect may or may not have taken place.
//! - **Concurrency.** Calls for different sandboxes do not wait for one another. For one sandbox the engine makes one
//!   life-cycle call at a time, yet two at once must not corrupt anything.
//! - **Errors** are the closed set of [`crate::ErrorKind`]; messages are written for users, causes for the log.

use crate::{Capabilities, Error, Guest, Limit, Result, SandboxId, SandboxSpec};
use async_trait::async_trait;
use futures::{StreamExt, stream::BoxStream};
use std::{collections::BTreeMap, sync::Arc, time::Duration};

/// Most lines of a console that are given out at once.
pub const CONSOLE_LINES: u32 = 10_000;
/// Most bytes of a console that are given out at once.
pub const CONSOLE_BYTES: usize = 1 << 20;

/// A configured runtime backend.
#[async_trait]
pub trait Provider: Send + Sync + 'static {
    /// The name under which it is configured and stored with each sandbox (`native`, `docker`, …).
    fn name(&self) -> &str;

    /// What it can do. Constant for the life of the value.
    fn capabilities(&self) -> Capabilities;

    /// The network of a sandbox that asks for this one, or for none in particular: its name in `SandboxSpec::network` and in
    /// the API; `None` where the provider has nothing to say about networks. Asks nobody.
    ///
    /// # Errors
    /// `InvalidArgument` or `Unsupported`, with what to ask for instead.
    fn network(&self, asked: Option<&str>) -> Result<Option<String>> {
        crate::spec::refuse_network(asked, self.name()).map(|()| None)
    }

    /// Whether `image` is a name of the kind that it takes. Says nothing about whether such an image exists, and asks nobody:
    /// it is how a sandbox finds its provider when none is named.
    fn offers(&self, image: &str) -> bool {
        let _ = image;
        true
    }

    /// Whether a sandbox could be created now, and what to do if not. Free of side effects; at most 5 s.
    async fn health(&self) -> Health;

    /// Makes the sandbox `id` and starts its guest. When it returns, [`Provider::connect`] works.
    ///
    /// Idempotent: called again with the same id and spec it finishes or returns what is there. After an error nothing
    /// keeps running that `destroy(id)` would not remove. The engine has stored `id` before this is called.
    ///
    /// # Errors
    /// `InvalidArgument` or `NotFound` for an image it cannot provide, `ResourceLimit`, `Unavailable`, `Internal`.
    async fn create(&self, id: &SandboxId, spec: &SandboxSpec) -> Result<Created>;

    /// A working connection to the guest of a running sandbox. Cheap when one exists already.
    ///
    /// # Errors
    /// `NotFound` if the runtime has no such sandbox, `Destroyed` if it has ended, `Unavailable` if the guest does not
    /// answer (yet): worth a retry.
    async fn connect(&self, id: &SandboxId) -> Result<Arc<dyn Guest>>;

    /// Removes the sandbox and everything that belongs to it: processes, cgroups, mounts, network, sockets, files.
    ///
    /// Idempotent and convergent: called again it goes on where it stopped. `Ok` means that nothing is left, also for an
    /// id that never existed. Processes are dead when the future first yields an error, unless the error says otherwise.
    async fn destroy(&self, id: &SandboxId) -> Result<()>;

    /// What the runtime knows about the sandbox now.
    ///
    /// # Errors
    /// `NotFound` if nothing of it exists; `Unavailable` if the runtime cannot be asked.
    async fn status(&self, id: &SandboxId) -> Result<RuntimeState>;

    /// Returns once the sandbox does not run any more (killed, out of memory, removed behind our back), with the reason
    /// as far as it can be known. Never returns while it runs.
    async fn ended(&self, id: &SandboxId) -> String;

    /// Limits that ended the sandbox as a whole, as far as the runtime knows. Asked when it has ended; what a process hit,
    /// its guest says.
    async fn ended_by(&self, id: &SandboxId) -> Vec<Limit> {
        let _ = id;
        Vec::new()
    }

    /// Everything that this runtime holds for this installation, complete or half made, and nothing of another one.
    ///
    /// # Errors
    /// `Unavailable`: an incomplete list is never returned.
    async fn list(&self) -> Result<Vec<RuntimeSandbox>>;

    /// Resource use now.
    ///
    /// # Errors
    /// `Unsupported` without the capability; else as [`Provider::status`].
    async fn stats(&self, id: &SandboxId) -> Result<RuntimeStats>;

    /// Freezes every process of the sandbox, its guest included. Idempotent. When it returns, none of them runs.
    ///
    /// While it is paused: memory, files, processes and their open connections stay and get no processor time;
    /// `status` and `list` say `Paused` and `ended` goes on waiting; `connect` and calls to its guest are not promised,
    /// and a connection made before may be lost; `destroy` works. It stays paused over a restart of the control plane.
    /// Time goes on: what its processes measure by the clock sees the gap.
    ///
    /// # Errors
    /// `Unsupported` without the capability; `NotFound` if nothing of it exists, `Destroyed` if it has ended. After an
    /// error it may be paused or running, and `status` says which.
    async fn pause(&self, id: &SandboxId) -> Result<()> {
        Err(cannot_pause(self.name(), id))
    }

    /// Lets a paused sandbox go on where it was. Idempotent: one that runs is left alone. When it returns,
    /// [`Provider::connect`] works as before.
    ///
    /// # Errors
    /// As [`Provider::pause`].
    async fn resume(&self, id: &SandboxId) -> Result<()> {
        Err(cannot_pause(self.name(), id))
    }

    /// The last `lines` lines of the runtime's own console of the sandbox (its agent's log, boot messages), oldest
    /// first, for whoever looks for the reason of a failure. At most [`CONSOLE_LINES`] and [`CONSOLE_BYTES`], without
    /// control characters: what it says may come from the sandbox. Empty where the runtime keeps none.
    ///
    /// # Errors
    /// `NotFound` if nothing of the sandbox exists; `Unavailable` if the runtime cannot be asked.
    async fn console(&self, id: &SandboxId, lines: u32) -> Result<Vec<String>> {
        let _ = (id, lines);
        Ok(Vec::new())
    }

    /// What the runtime has to tell without being asked: image pulls, things it found and removed. Called once by the
    /// engine. A notice that nobody took in time may be dropped; the stream never holds up the runtime.
    fn notices(&self) -> BoxStream<'static, Notice> {
        futures::stream::pending().boxed()
    }

    /// Settings that an operator may see (paths, runtime names), never secrets.
    fn settings(&self) -> BTreeMap<String, String> {
        BTreeMap::new()
    }
}

/// Result of [`Provider::create`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Created {
    /// The backend's own id, when it has one.
    pub runtime_id: Option<String>,
}

/// Result of [`Provider::health`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// A sandbox could be created now.
    pub healthy: bool,
    /// Why not, and the fix, when not.
    pub problem: Option<String>,
    /// Guarantees that this host cannot give, each in a sentence, while sandboxes still work.
    pub warnings: Vec<String>,
    /// How long the look took.
    pub latency: Duration,
}

/// State of a sandbox as its runtime sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RuntimeState {
    /// The guest runs.
    Running,
    /// Frozen.
    Paused,
    /// Its guest has ended; what is left waits for `destroy`.
    Ended {
        /// Why, as far as known.
        reason: String,
    },
}

/// One entry of [`Provider::list`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuntimeSandbox {
    /// The sandbox.
    pub id: SandboxId,
    /// Its state.
    pub state: RuntimeState,
    /// The image it was made from, if the runtime kept it.
    pub image: Option<String>,
}

/// Result of [`Provider::stats`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RuntimeStats {
    /// Processor time used so far.
    pub cpu_time: Duration,
    /// Memory in use, in bytes, without page cache that can be dropped.
    pub memory_bytes: u64,
    /// Memory limit in bytes; 0: none.
    pub memory_limit_bytes: u64,
    /// Processes and threads.
    pub pids: u64,
}

/// One thing that a runtime tells.
#[derive(Debug, Clone, PartialEq)]
pub struct Notice {
    /// What it is about.
    pub kind: NoticeKind,
    /// The sandbox that it is about, if it is about one.
    pub sandbox: Option<SandboxId>,
    /// What there is to say, by the names that the kind lists. No secrets: it is shown to clients.
    pub data: BTreeMap<String, serde_json::Value>,
}

/// What a [`Notice`] is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoticeKind {
    /// Progress of an image pull: `image`, `status` (`pulling`, `done`, `failed`), `layers`, `layers_done`, `bytes`,
    /// `bytes_done`, `error`.
    ImagePull,
    /// The runtime removed or adopted something by itself at start: `action`, `what`, `reason`.
    Reconcile,
}

fn cannot_pause(provider: &str, id: &SandboxId) -> Error {
    Error::unsupported(format!(
        "provider {provider} cannot pause sandbox {id}: use one that lists the capability pause"
    ))
}
