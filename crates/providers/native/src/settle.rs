//! What is done about a sandbox once its agent answers, off the critical path: its main process is taken out of reach
//! of the limits on the work and of the kernel's killer.
//!
//! Moving somebody else's process between cgroups stops every fork of the host for a kernel grace period, but many
//! moves at once cost hardly more than one. So they wait for company.

use crate::record::State;
use std::{
    fs,
    sync::mpsc::{self, RecvTimeoutError},
    time::{Duration, Instant},
};

/// How long a move waits for others.
const COMPANY: Duration = Duration::from_millis(500);
/// The kernel takes nearly anything before an agent, whose end is the end of its sandbox and which holds next to nothing.
/// In a container that may not lower scores, at least the work before the agent.
const AGENT_OOM_SCORES: [&str; 2] = ["-900", "0"];

/// The thread that does it. Ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Settler(mpsc::Sender<State>);

impl Settler {
    pub(crate) fn start() -> std::io::Result<Self> {
        let (sender, receiver) = mpsc::channel::<State>();
        std::thread::Builder::new().name("native-settle".to_owned()).spawn(move || {
            while let Ok(first) = receiver.recv() {
                protect(&first);
                let mut batch = vec![first];
                let until = Instant::now() + COMPANY;
                loop {
                    match receiver.recv_timeout(until.saturating_duration_since(Instant::now())) {
                        Ok(state) => {
                            protect(&state);
                            batch.push(state);
                        }
                        Err(RecvTimeoutError::Timeout) => break,
                        // The server is going: the next one does this when it connects.
                        Err(RecvTimeoutError::Disconnected) => return,
                    }
                }
                batch.iter().for_each(separate);
            }
        })?;
        Ok(Self(sender))
    }

    /// Protects the agent from the kernel's killer at once, and moves it later.
    pub(crate) fn settle(&self, state: State) {
        // The thread ends when the sender does, so there is somebody to receive this.
        let _ = self.0.send(state);
    }
}

/// Lowers the OOM score of the agent's main process, and of nothing that it started.
fn protect(state: &State) {
    let Ok(Some(_pidfd)) = state.process.open() else { return };
    let file = format!("/proc/{}/oom_score_adj", state.process.pid);
    // Where neither is permitted, the kernel keeps its own order.
    let _ = AGENT_OOM_SCORES.iter().any(|score| fs::write(&file, score).is_ok());
}

fn separate(state: &State) {
    if state.cgroups.0.is_empty() {
        return;
    }
    let Ok(Some(_pidfd)) = state.process.open() else { return };
    if let Err(error) = state.cgroups.separate_agent(state.process.pid) {
        tracing::debug!(%error, pid = state.process.pid, "an agent stays within the limits of its sandbox");
    }
}
