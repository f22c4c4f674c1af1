//! Freezing containers, and letting them go on.

use crate::{
    failure::{failed, is_missing, words},
    provider::{Inner, absent},
    state::Seen,
};
use bollard::errors::Error as Failure;
use stacyvm_provider::{Error, Result, SandboxId};
use std::time::{Duration, Instant};

/// How long a pause is tried of processes that do not stand still.
const FREEZE: Duration = Duration::from_secs(10);
/// Time between two tries.
const AGAIN: Duration = Duration::from_millis(50);

impl Inner {
    /// Freezes the container or lets it go on. The caller has its turn.
    pub(crate) async fn freeze(&self, id: &SandboxId, freeze: bool) -> Result<()> {
        let client = self.daemon.client().await?;
        let started = Instant::now();
        loop {
            let result = match (self.look(id).await?, freeze) {
                (Seen::Absent, _) => return Err(absent(id)),
                (Seen::Running { .. }, false) | (Seen::Paused, true) => return Ok(()),
                (Seen::Running { .. }, true) => client.pause_container(id.as_str()).await,
                (Seen::Paused, false) => client.unpause_container(id.as_str()).await,
                (Seen::Created, _) => {
                    return Err(Error::destroyed(format!("sandbox {id} was never started")));
                }
                (Seen::Ended(ending), _) => {
                    return Err(Error::destroyed(format!("sandbox {id} has ended: {}", ending.reason())));
                }
            };
            match result {
                Ok(()) => return Ok(()),
                Err(error) if is_missing(&error) => return Err(absent(id)),
                Err(error) if does_not_stand_still(&error) => {
                    if started.elapsed() > FREEZE {
                        return Err(Error::unavailable(format!(
                            "sandbox {id} goes on: some of its processes did not stop within {} s; try again",
                            FREEZE.as_secs()
                        ))
                        .because(error));
                    }
                    tokio::time::sleep(AGAIN).await;
                }
                Err(error) => return Err(self.explain(id, freeze, error).await),
            }
        }
    }

    async fn explain(&self, id: &SandboxId, freeze: bool, error: Failure) -> Error {
        match self.look(id).await {
            Err(error) => error,
            Ok(Seen::Absent) => absent(id),
            Ok(Seen::Ended(ending)) => {
                Error::destroyed(format!("sandbox {id} has ended: {}", ending.reason()))
            }
            Ok(_) => failed(if freeze { "pause a container" } else { "resume a container" }, error),
        }
    }
}

/// Whether the runtime gave up on processes that kept it from freezing all of them at once, and let them go on. On cgroups of
/// version 1 it tries for a second or two, which a host with much to do makes too few.
fn does_not_stand_still(error: &Failure) -> bool {
    words(error).contains("unable to freeze")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runtime_that_gave_up_is_asked_again() {
        let said = |message: &str| {
            does_not_stand_still(&Failure::DockerResponseServerError {
                status_code: 500,
                message: message.to_owned(),
            })
        };
        assert!(said("Cannot pause container 3: OCI runtime pause failed: unable to freeze: unknown"));
        assert!(!said("Cannot pause container 3: OCI runtime pause failed: container not running: unknown"));
    }
}
