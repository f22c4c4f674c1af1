//! What is done about a sandbox once its agent answers: its main process is taken out of reach of the limits on the work
//! and of the kernel's killer.
//!
//! By a thread of its own, because moving somebody else's process between cgroups waits for a kernel grace period. Moves
//! that come together cost hardly more than one.

use crate::record::State;
use std::{fs, sync::mpsc};

/// The kernel takes nearly anything before an agent, whose end is the end of its sandbox and which holds next to nothing.
/// In a container that may not lower scores, at least the work before the agent.
const AGENT_OOM_SCORES: [&str; 2] = ["-900", "0"];

/// The thread that does it. Ends when this is dropped, with what was asked for done.
#[derive(Debug)]
pub(crate) struct Settler(mpsc::Sender<State>);

impl Settler {
    pub(crate) fn start() -> std::io::Result<Self> {
        let (sender, receiver) = mpsc::channel::<State>();
        std::thread::Builder::new()
            .name("native-settle".to_owned())
            .spawn(move || receiver.iter().for_each(|state| settle(&state)))?;
        Ok(Self(sender))
    }

    /// Protects the agent, soon. Its children must have been made: what they start must not be protected too.
    pub(crate) fn settle(&self, state: State) {
        // The thread ends when the sender does, so there is somebody to receive this.
        let _ = self.0.send(state);
    }
}

fn settle(state: &State) {
    // The number stays this process's for as long as it runs, which is as long as nobody has reason to end it.
    let Ok(Some(_pidfd)) = state.process.open() else { return };
    let pid = state.process.pid;
    // Where neither is permitted, the kernel keeps its own order.
    let _ =
        AGENT_OOM_SCORES.iter().any(|score| fs::write(format!("/proc/{pid}/oom_score_adj"), score).is_ok());
    if let Err(error) = state.cgroups.separate_agent(pid) {
        tracing::debug!(%error, pid, "an agent stays within the limits of its sandbox");
    }
}
