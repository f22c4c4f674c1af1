//! What the daemon says about one container, and what that means.

use crate::{
    container::{IMAGE, INSTALLATION, PIDS, SANDBOX},
    failure::{failed, is_missing},
};
use bollard::{
    Docker,
    models::{ContainerState, ContainerStateStatusEnum, ContainerSummary, ContainerSummaryStateEnum},
    query_parameters::InspectContainerOptions,
};
use stacyvm_provider::{Result, RuntimeSandbox, RuntimeState, SandboxId};

/// One look at the container of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Seen {
    /// There is none, or one of another installation.
    Absent,
    /// It was made and never started.
    Created,
    /// It runs. The limit of processes that it was made with, 0 for none, and whether the daemon's is another now.
    Running { pids_limit: i64, lent: bool },
    /// It is frozen.
    Paused,
    /// It has ended.
    Ended(Ending),
}

/// How a container ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Ending {
    pub(crate) exit_code: i64,
    pub(crate) oom_killed: bool,
    /// The daemon's words, for the log.
    pub(crate) error: String,
    /// When, by the daemon's clock.
    pub(crate) at: Option<jiff::Timestamp>,
}

/// Looks at the container of `id`, if it is one of `installation`.
///
/// # Errors
/// `Unavailable` if the daemon cannot tell.
pub(crate) async fn look(client: &Docker, installation: &str, id: &SandboxId) -> Result<Seen> {
    let found = match client.inspect_container(id.as_str(), None::<InspectContainerOptions>).await {
        Ok(found) => found,
        Err(error) if is_missing(&error) => return Ok(Seen::Absent),
        Err(error) => return Err(failed("look at a container", error)),
    };
    let labels = found.config.and_then(|config| config.labels).unwrap_or_default();
    let ours = labels.get(INSTALLATION).is_some_and(|owner| owner == installation)
        && labels.get(SANDBOX).is_some_and(|sandbox| sandbox == id.as_str());
    if !ours {
        return Ok(Seen::Absent);
    }
    let pids_limit = labels.get(PIDS).and_then(|limit| limit.parse().ok()).unwrap_or(0);
    let now = found.host_config.and_then(|host| host.pids_limit).unwrap_or(0);
    let lent = now.max(0) != pids_limit;
    Ok(found.state.map_or(Seen::Absent, |state| seen(state, pids_limit, lent)))
}

fn seen(state: ContainerState, pids_limit: i64, lent: bool) -> Seen {
    use ContainerStateStatusEnum as Status;
    match state.status.unwrap_or(Status::EMPTY) {
        Status::RUNNING | Status::RESTARTING => Seen::Running { pids_limit, lent },
        Status::PAUSED => Seen::Paused,
        Status::CREATED => Seen::Created,
        // Being stopped, being removed: whoever does that is not us.
        _ => Seen::Ended(Ending {
            exit_code: state.exit_code.unwrap_or(0),
            oom_killed: state.oom_killed.unwrap_or(false),
            error: state.error.unwrap_or_default(),
            at: state.finished_at.and_then(|at| at.parse().ok()),
        }),
    }
}

impl Ending {
    /// Why it ended, in words.
    pub(crate) fn reason(&self) -> String {
        match (self.oom_killed, self.exit_code) {
            (true, _) => "out of memory: the kernel ended it; give it more with memory_mb".to_owned(),
            (false, 0) => "its container was stopped".to_owned(),
            (false, code @ 129..=192) => format!("its container was ended by signal {}", code - 128),
            (false, code) => format!("its container ended with exit code {code}"),
        }
    }
}

impl Seen {
    /// The contract's word for it; `None` if there is nothing.
    pub(crate) fn state(&self) -> Option<RuntimeState> {
        match self {
            Self::Absent => None,
            Self::Created => Some(RuntimeState::Ended { reason: "its creation was interrupted".to_owned() }),
            Self::Running { .. } => Some(RuntimeState::Running),
            Self::Paused => Some(RuntimeState::Paused),
            Self::Ended(ending) => Some(RuntimeState::Ended { reason: ending.reason() }),
        }
    }
}

/// An entry of the daemon's list, if it is a sandbox.
pub(crate) fn listed(entry: ContainerSummary) -> Option<RuntimeSandbox> {
    use ContainerSummaryStateEnum as State;
    let labels = entry.labels.unwrap_or_default();
    let id = labels.get(SANDBOX)?.parse().ok()?;
    let state = match entry.state.unwrap_or(State::EMPTY) {
        State::RUNNING | State::RESTARTING => RuntimeState::Running,
        State::PAUSED => RuntimeState::Paused,
        State::CREATED => RuntimeState::Ended { reason: "its creation was interrupted".to_owned() },
        _ => RuntimeState::Ended { reason: "its container has ended".to_owned() },
    };
    Some(RuntimeSandbox { id, state, image: labels.get(IMAGE).cloned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_end_has_its_reason() {
        let reason = |exit_code, oom_killed| Ending { exit_code, oom_killed, ..Ending::default() }.reason();
        assert!(reason(137, true).starts_with("out of memory"));
        assert!(reason(137, false).contains("signal 9"));
        assert!(reason(0, false).contains("stopped"));
        assert!(reason(3, false).contains("exit code 3"));
    }

    #[test]
    fn what_is_half_made_has_ended_and_what_is_frozen_has_not() {
        let state = |status| ContainerState { status: Some(status), ..ContainerState::default() };
        let word = |status| seen(state(status), 0, false).state().unwrap();
        assert!(matches!(word(ContainerStateStatusEnum::CREATED), RuntimeState::Ended { .. }));
        assert_eq!(word(ContainerStateStatusEnum::PAUSED), RuntimeState::Paused);
        assert_eq!(word(ContainerStateStatusEnum::RUNNING), RuntimeState::Running);
        assert!(matches!(word(ContainerStateStatusEnum::DEAD), RuntimeState::Ended { .. }));
    }

    #[test]
    fn only_sandboxes_are_listed() {
        let entry = |sandbox: Option<&str>| ContainerSummary {
            labels: Some(sandbox.map(|id| (SANDBOX.to_owned(), id.to_owned())).into_iter().collect()),
            ..ContainerSummary::default()
        };
        assert!(listed(entry(None)).is_none());
        assert!(listed(entry(Some("../x"))).is_none());
        assert_eq!(listed(entry(Some("sb-1"))).unwrap().id.as_str(), "sb-1");
    }
}
