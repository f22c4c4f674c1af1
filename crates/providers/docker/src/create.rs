//! Making a sandbox, in steps between which the server may be killed:
//!
//! 1. its image, pulled if need be, and the agent's volume;
//! 2. its container, which carries the sandbox's id as its name: from here on `list` shows it and `destroy` removes it;
//! 3. the start of it;
//! 4. the agent's first answer, over both connections; where the network is `internet`, it answers when that is restricted.
//!
//! Each step begins from what is there, so that a create which is repeated goes on where the first one stopped.

use crate::{
    bridge::BridgeEndpoint,
    config::Network,
    container::{self, Blueprint},
    failure::{failed, is_conflict, is_missing, words},
    image, network,
    provider::Inner,
    runtime::{self, Family},
    state::{Seen, look},
};
use bollard::{
    Docker,
    errors::Error as Failure,
    models::{ImageInspect, SystemInfo},
    query_parameters::{CreateContainerOptions, StartContainerOptions},
};
use stacyvm_fault::{Point, hit};
use stacyvm_guest::start::UNRESTRICTED;
use stacyvm_provider::{AgentGuest, Error, ErrorKind, Identity, Result, SandboxId, SandboxSpec};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// User of sandboxes whose image names none.
const USER: (u32, u32) = (1000, 1000);
/// Time for a started agent to answer.
const ANSWER: Duration = Duration::from_secs(60);
/// Pause between attempts to reach it.
const PAUSE: Duration = Duration::from_millis(100);

impl Inner {
    /// Makes the sandbox, or finishes it.
    ///
    /// `unwanted` ends it at the next point where no answer of the daemon is outstanding that could make something of it
    /// behind a destroy: while an image is pulled or the agent is waited for, or between steps.
    pub(crate) async fn create(
        &self,
        id: &SandboxId,
        spec: &SandboxSpec,
        unwanted: &CancellationToken,
    ) -> Result<()> {
        let given_up = || Error::destroyed(format!("sandbox {id} was destroyed while it was made"));
        let wanted = || if unwanted.is_cancelled() { Err(given_up()) } else { Ok(()) };
        let client = self.daemon.client().await?;
        let info = self.info(client).await?;
        let runtime = self.runtime(spec, &info)?;
        let image = tokio::select! {
            image = image::ensure(client, &self.pulls, self.config.pull_policy, &spec.image) => image?,
            () = unwanted.cancelled() => return Err(given_up()),
        };
        match look(client, &self.config.installation_id, id).await? {
            Seen::Running { .. } => {}
            Seen::Created => self.start(client, id, runtime).await?,
            Seen::Paused => return Err(Error::unavailable(format!("sandbox {id} is paused"))),
            Seen::Ended(ending) => {
                return Err(Error::destroyed(format!("sandbox {id} has ended: {}", ending.reason())));
            }
            Seen::Absent => {
                self.make(client, id, spec, runtime, &info, &image).await?;
                wanted()?;
                self.start(client, id, runtime).await?;
            }
        }
        wanted()?;
        let family = Family::of(runtime, Some(&info));
        let bridged = self.is_bridged(family, &info);
        let guest = self.guest(id, container::pids_limit(&self.config, spec, family, bridged), !bridged);
        tokio::select! {
            answered = self.await_answer(client, id, &guest) => answered?,
            () = unwanted.cancelled() => return Err(given_up()),
        }
        self.remember(id, guest);
        Ok(())
    }

    /// The runtime of a sandbox, if it may have it.
    fn runtime<'a>(&'a self, spec: &'a SandboxSpec, info: &SystemInfo) -> Result<&'a str> {
        let name = spec.runtime.as_deref().unwrap_or(&self.config.runtime);
        let allowed =
            name == self.config.runtime || self.config.allowed_runtimes.iter().any(|other| other == name);
        if !allowed {
            let mut names = vec![self.config.runtime.as_str()];
            names.extend(self.config.allowed_runtimes.iter().map(String::as_str));
            return Err(Error::invalid_argument(format!(
                "the runtime {name} is not allowed here: use {}, or add it to providers.docker.allowed_runtimes",
                names.join(", ")
            )));
        }
        match runtime::missing(name, info) {
            Some(problem) => Err(Error::unavailable(problem)),
            None => Ok(name),
        }
    }

    async fn make(
        &self,
        client: &Docker,
        id: &SandboxId,
        spec: &SandboxSpec,
        runtime: &str,
        info: &SystemInfo,
        image: &ImageInspect,
    ) -> Result<()> {
        self.volume.ensure(client, &spec.image).await?;
        let family = Family::of(runtime, Some(info));
        let network = network::chosen(&self.config, spec.network.as_deref())?;
        let blueprint = Blueprint {
            config: &self.config,
            id,
            spec,
            runtime,
            family,
            bridged: self.is_bridged(family, info),
            root_user: !family.shares_kernel() || runtime::remaps_users(info),
            network: network::resolve(client, &self.config, &network, &self.network_turn).await?,
            blocked: (network == Network::Internet)
                .then(|| network::blocked(&self.config, self.daemon.is_here())),
            kind: network,
            image_labels: image::labels(image),
            user: self.config.user.or_else(|| image::user(image)).unwrap_or(USER),
            agent_volume: self.volume.mount(),
            seccomp: container::seccomp(&self.config.seccomp)?,
        };
        let body = blueprint.body();
        let options = || CreateContainerOptions {
            name: Some(id.to_string()),
            platform: self.config.platform.clone().unwrap_or_default(),
        };
        let mut made = client.create_container(Some(options()), body.clone()).await;
        if made.as_ref().is_err_and(is_missing) {
            // Somebody removed the image since it was looked at.
            self.pulls.pull(client, &spec.image).await?;
            made = client.create_container(Some(options()), body).await;
        }
        match made {
            Ok(_) => {
                hit(Point::DockerCreated);
                Ok(())
            }
            // An earlier attempt, whose answer was lost, was faster; whatever else has the name is not ours.
            Err(error) if is_conflict(&error) => {
                match look(client, &self.config.installation_id, id).await? {
                    Seen::Absent => {
                        Err(Error::internal(format!("a container that is not ours has the name {id}"))
                            .because(error))
                    }
                    _ => Ok(()),
                }
            }
            Err(error) => Err(not_made(error)),
        }
    }

    async fn start(&self, client: &Docker, id: &SandboxId, runtime: &str) -> Result<()> {
        client
            .start_container(id.as_str(), None::<StartContainerOptions>)
            .await
            .map_err(|error| not_started(runtime, error))?;
        hit(Point::DockerStarted);
        Ok(())
    }

    /// Whether bridges are to be expected in a sandbox that is made now.
    fn is_bridged(&self, family: Family, info: &SystemInfo) -> bool {
        !family.shares_kernel() || runtime::remaps_users(info) || !self.daemon.has_short_way()
    }

    /// A guest of the sandbox, not connected yet. `near`: it is expected to be reached without a bridge.
    pub(crate) fn guest(&self, id: &SandboxId, pids_limit: i64, near: bool) -> Arc<AgentGuest> {
        let endpoint = BridgeEndpoint { daemon: Arc::clone(&self.daemon), id: id.clone(), pids_limit, near };
        let identity = Identity {
            installation_id: self.config.installation_id.clone(),
            generation: self.config.generation,
            sandbox_id: id.to_string(),
        };
        Arc::new(AgentGuest::new(Arc::new(endpoint), identity))
    }

    /// Waits until both connections to the agent work.
    async fn await_answer(&self, client: &Docker, id: &SandboxId, guest: &AgentGuest) -> Result<()> {
        let until = Instant::now() + ANSWER;
        loop {
            let Err(error) = guest.open().await else { return Ok(()) };
            match look(client, &self.config.installation_id, id).await? {
                Seen::Running { .. } if error.kind() == ErrorKind::Unavailable && Instant::now() < until => {
                    tokio::time::sleep(PAUSE).await;
                }
                Seen::Ended(ending) => {
                    let console = self.console(id, 5).await.unwrap_or_default().join("; ");
                    if ending.exit_code == i64::from(UNRESTRICTED) {
                        return Err(network::unrestricted().because(console));
                    }
                    return Err(Error::internal(format!(
                        "the sandbox ended while it started: {}; the server's log has its last words",
                        ending.reason()
                    ))
                    .because(format!("{} {console}", ending.error)));
                }
                _ => return Err(error),
            }
        }
    }
}

fn not_made(error: Failure) -> Error {
    let said = words(&error);
    if said.contains("storage-opt") || said.contains("storage opt") || said.contains("pquota") {
        return Error::unsupported(
            "the docker daemon's storage cannot limit a sandbox's disk: use overlay2 on xfs mounted with pquota, btrfs or zfs, or leave disk_size_mb, defaults.disk_size_mb and providers.docker.disk_size_mb out",
        )
        .because(error);
    }
    if said.contains("minimum memory limit") {
        return Error::invalid_argument(
            "memory_mb is below what the docker daemon allows: ask for 6 or more",
        )
        .because(error);
    }
    if said.contains("range of cpus") {
        return Error::invalid_argument("vcpus is more than the docker daemon's host has: ask for fewer")
            .because(error);
    }
    failed("make a container", error)
}

fn not_started(runtime: &str, error: Failure) -> Error {
    let said = words(&error);
    if said.contains("unknown or invalid runtime")
        || said.contains("runtime not found")
        || said.contains("executable file not found") && said.contains("shim")
    {
        return Error::unavailable(format!(
            "the docker daemon cannot run the runtime {runtime}: see that its program is installed and registered in the daemon's daemon.json"
        ))
        .because(error);
    }
    if said.contains("exec format error") {
        return Error::invalid_argument("the image is for another processor than this daemon's: set providers.docker.platform, or name another image").because(error);
    }
    failed("start a container", error)
}
