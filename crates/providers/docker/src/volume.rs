//! The volume that the agent comes from: one for each daemon, installation and agent, mounted read-only everywhere.
//!
//! It is filled through a container that is made and never started, which works for every image, runtime and daemon, also
//! a remote one, and it is filled at each start of the server: what is in it is never taken on trust. The daemon must not
//! copy anything into it by itself, as it otherwise does with what an image has at the place of a fresh volume.

use crate::{
    container::{self, HOME, ROLE},
    failure::{failed, is_conflict, is_missing},
};
use bollard::{
    Docker, body_full,
    models::{
        ContainerCreateBody, ContainerSummary, ContainerSummaryStateEnum, HostConfig, Mount, MountType,
        MountVolumeOptions, VolumeCreateRequest,
    },
    query_parameters::{
        CreateContainerOptions, ListContainersOptions, ListVolumesOptions, RemoveContainerOptions,
        RemoveVolumeOptions, UploadToContainerOptions,
    },
};
use sha2::{Digest, Sha256};
use stacyvm_provider::{Error, Result};
use std::collections::HashMap;
use tokio::sync::Mutex;

/// Value of [`ROLE`] on containers that fill volumes.
const FILLER: &str = "filler";
/// Value of [`ROLE`] on volumes of an agent.
const AGENT: &str = "agent";
/// The volume of this build's agent.
#[derive(Debug)]
pub(crate) struct AgentVolume {
    name: String,
    installation_id: String,
    agent: &'static [u8],
    /// It was filled by this process. Also makes callers take turns, so that it is filled once.
    complete: Mutex<bool>,
}

impl AgentVolume {
    pub(crate) fn new(installation_id: &str, agent: &'static [u8]) -> Self {
        let digest = Sha256::digest(agent);
        let short: String = digest.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
        Self {
            name: format!("stacyvm-agent-{installation_id}-{short}"),
            installation_id: installation_id.to_owned(),
            agent,
            complete: Mutex::new(false),
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Makes and fills it unless it is there. `image` is one that the daemon has.
    ///
    /// # Errors
    /// What the daemon could not do.
    pub(crate) async fn ensure(&self, client: &Docker, image: &str) -> Result<()> {
        let mut complete = self.complete.lock().await;
        if *complete {
            match client.inspect_volume(&self.name).await {
                // One without our labels was made by the daemon for a mount, after ours was removed: it is empty.
                Ok(volume) if volume.labels.contains_key(ROLE) => return Ok(()),
                Ok(_) => {}
                Err(error) if is_missing(&error) => {}
                Err(error) => return Err(failed("look at the agent's volume", error)),
            }
            *complete = false;
        }
        let mut labels = self.labels(AGENT);
        labels.insert("stacyvm.agent".to_owned(), self.name.clone());
        let request = VolumeCreateRequest {
            name: Some(self.name.clone()),
            labels: Some(labels),
            ..VolumeCreateRequest::default()
        };
        client.create_volume(request).await.map_err(|error| failed("make the agent's volume", error))?;
        let filler = self.make_filler(client, image).await?;
        let filled = self.fill(client, &filler).await;
        let removed = remove_container(client, &filler).await;
        filled?;
        removed?;
        *complete = true;
        Ok(())
    }

    async fn make_filler(&self, client: &Docker, image: &str) -> Result<String> {
        let mount = Mount { read_only: Some(false), ..self.mount() };
        let body = ContainerCreateBody {
            image: Some(image.to_owned()),
            entrypoint: Some(vec![container::AGENT.to_owned()]),
            labels: Some(self.labels(FILLER)),
            host_config: Some(HostConfig {
                mounts: Some(vec![mount]),
                network_mode: Some("none".to_owned()),
                ..HostConfig::default()
            }),
            ..ContainerCreateBody::default()
        };
        let made = client.create_container(None::<CreateContainerOptions>, body).await;
        Ok(made.map_err(|error| failed("make a container that fills the agent's volume", error))?.id)
    }

    async fn fill(&self, client: &Docker, filler: &str) -> Result<()> {
        let archive = archive(self.agent)
            .map_err(|error| Error::internal("the agent could not be packed").because(error))?;
        let options =
            UploadToContainerOptions { path: HOME.to_owned(), ..UploadToContainerOptions::default() };
        client
            .upload_to_container(filler, Some(options), body_full(archive.into()))
            .await
            .map_err(|error| failed("fill the agent's volume", error))
    }

    /// The mount of it in a sandbox.
    pub(crate) fn mount(&self) -> Mount {
        Mount {
            target: Some(HOME.to_owned()),
            source: Some(self.name.clone()),
            typ: Some(MountType::VOLUME),
            read_only: Some(true),
            volume_options: Some(MountVolumeOptions { no_copy: Some(true), ..MountVolumeOptions::default() }),
            ..Mount::default()
        }
    }

    fn labels(&self, role: &str) -> HashMap<String, String> {
        let labels = [(container::INSTALLATION, self.installation_id.as_str()), (ROLE, role)];
        labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into()
    }

    /// Removes what earlier builds and interrupted fillings of this installation left: volumes that no container uses, and
    /// fillers. Returns what was removed.
    ///
    /// # Errors
    /// The daemon cannot be asked.
    pub(crate) async fn collect(&self, client: &Docker) -> Result<Vec<String>> {
        // Nobody fills meanwhile.
        let _turn = self.complete.lock().await;
        let filter = |role: &str| {
            let labels = vec![
                format!("{}={}", container::INSTALLATION, self.installation_id),
                format!("{ROLE}={role}"),
            ];
            Some(HashMap::from([("label".to_owned(), labels)]))
        };
        let mut removed = Vec::new();
        let options =
            ListContainersOptions { all: true, filters: filter(FILLER), ..ListContainersOptions::default() };
        let fillers =
            client.list_containers(Some(options)).await.map_err(|error| failed("list containers", error))?;
        // A filler is never started: what runs with its labels is somebody's who copied them.
        let unstarted = |filler: &ContainerSummary| filler.state == Some(ContainerSummaryStateEnum::CREATED);
        for id in fillers.into_iter().filter(unstarted).filter_map(|filler| filler.id) {
            remove_container(client, &id).await?;
            removed.push(format!("container {id}"));
        }
        let options = ListVolumesOptions { filters: filter(AGENT) };
        let volumes =
            client.list_volumes(Some(options)).await.map_err(|error| failed("list volumes", error))?;
        for volume in volumes.volumes.into_iter().flatten().filter(|volume| volume.name != self.name) {
            match client.remove_volume(&volume.name, None::<RemoveVolumeOptions>).await {
                Ok(()) => removed.push(format!("volume {}", volume.name)),
                // Sandboxes of the build that made it still run.
                Err(error) if is_conflict(&error) || is_missing(&error) => {}
                Err(error) => return Err(failed("remove a volume", error)),
            }
        }
        Ok(removed)
    }
}

async fn remove_container(client: &Docker, id: &str) -> Result<()> {
    let options = RemoveContainerOptions { force: false, v: true, link: false };
    match client.remove_container(id, Some(options)).await {
        Ok(()) => Ok(()),
        Err(error) if is_missing(&error) || is_conflict(&error) => Ok(()),
        Err(error) => Err(failed("remove a container", error)),
    }
}

/// The volume's content: the directory of the agent's socket, and the agent.
fn archive(agent: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::with_capacity(agent.len() + 8192));
    let mut directory = tar::Header::new_gnu();
    directory.set_entry_type(tar::EntryType::Directory);
    directory.set_size(0);
    directory.set_mode(0o700);
    archive.append_data(&mut directory, "run/", std::io::empty())?;
    let mut header = tar::Header::new_gnu();
    header.set_size(agent.len() as u64);
    header.set_mode(0o755);
    archive.append_data(&mut header, "stacyvm-agent", agent)?;
    archive.into_inner()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agent_and_the_place_of_its_socket_are_all() {
        let bytes = archive(b"\x7fELF agent").unwrap();
        let mut archive = tar::Archive::new(&*bytes);
        let names: Vec<_> = archive
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().path().unwrap().display().to_string())
            .collect();
        assert_eq!(names, ["run/", "stacyvm-agent"]);
    }

    #[test]
    fn every_agent_has_a_volume_of_its_own() {
        let name = |agent| AgentVolume::new("inst", agent).name().to_owned();
        assert_ne!(name(b"a"), name(b"b"));
        assert!(name(b"a").starts_with("stacyvm-agent-inst-"));
    }
}
