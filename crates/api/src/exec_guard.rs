//! What happens to a streamed command whose client goes away. A process belongs to no connection; but nobody else knows
//! the name of the process behind a streamed exec, so without its client it would run unseen for ever. It is killed then,
//! unless the client asked for `detach`, and unless it is this server that is going away.

use stacyvm_engine::{Engine, ExecRequest};
use stacyvm_provider::{ProcessInfo, Signal};
use stacyvm_types::ErrorCode;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

/// How often and in which distance a kill is tried while the guest cannot be reached.
const ATTEMPTS: u32 = 5;
const PAUSE: Duration = Duration::from_secs(2);

/// Kills its process when dropped.
pub(crate) struct KillGuard {
    /// `None` once the process is on its own.
    target: Option<Target>,
    stop: CancellationToken,
}

struct Target {
    engine: Engine,
    sandbox: String,
    process: String,
}

/// Starts a process that is guarded from its first moment: also if the caller is dropped while the start is under way.
pub(crate) async fn start(
    engine: &Engine,
    sandbox: &str,
    mut request: ExecRequest,
    stop: CancellationToken,
) -> Result<(ProcessInfo, KillGuard), stacyvm_engine::Error> {
    let (tell, told) = oneshot::channel();
    let process = format!("p-{:016x}", uuid::Uuid::new_v4().as_u64_pair().1);
    request.process_id = Some(process.clone());
    let (engine, sandbox) = (engine.clone(), sandbox.to_owned());
    tokio::spawn(async move {
        let started = engine.start_exec(&sandbox, request).await;
        let guard = KillGuard { target: Some(Target { engine, sandbox, process }), stop };
        let _ = tell.send(match started {
            // With nobody left to tell, the guard is dropped with the message and does its work.
            Ok(info) => Ok((info, guard)),
            Err(error) => {
                // Otherwise it may run all the same, and the guard sees to it.
                if !matches!(
                    error.code(),
                    ErrorCode::Unavailable | ErrorCode::Timeout | ErrorCode::InternalError
                ) {
                    guard.disarm();
                }
                Err(error)
            }
        });
    });
    told.await.unwrap_or_else(|_| Err(stacyvm_engine::Error::internal("the command could not be started")))
}

impl KillGuard {
    /// The process has ended, or goes on alone.
    pub(crate) fn disarm(mut self) {
        self.target = None;
    }
}

impl Drop for KillGuard {
    fn drop(&mut self) {
        let Some(target) = self.target.take() else { return };
        if self.stop.is_cancelled() {
            return;
        }
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(target.kill());
        }
    }
}

impl Target {
    async fn kill(self) {
        for _ in 0..ATTEMPTS {
            // A paused sandbox cannot do it, and must not go on with this.
            self.engine.awake(&self.sandbox).await;
            let killed = match self.engine.guest(&self.sandbox).await {
                Ok(guest) => guest.signal(&self.process, Signal::KILL, true).await.map_err(Into::into),
                Err(error) => Err(error),
            };
            match killed {
                Ok(_) => return,
                Err(error) if error.code() == ErrorCode::NotFound => return,
                Err(error) => {
                    tracing::warn!(sandbox = %self.sandbox, process = %self.process, %error,
                        "a command without a client could not be killed");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }
}
