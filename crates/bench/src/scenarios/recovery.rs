//! A server that is killed, and everything as it was.

use crate::{
    context::{Context, Target},
    measure::ms,
    samples::{Comparison, OURS, Samples},
};
use anyhow::{Result, ensure};
use stacyvm_types::{SandboxState, StartProcess};
use std::time::{Duration, Instant};

/// Something to do, so that there is something to find again.
const BUSY: &str = "i=0; while :; do echo $i; i=$((i+1)); sleep 0.01; done";

/// `kill -9` → all running again.
pub(super) async fn recovery(context: &Context, target: &Target) -> Result<Vec<Comparison>> {
    let many = target.pick(50, 10);
    let mut ours = Samples::new(OURS);
    context
        .with_server(target, &[], async |server| {
            for _ in 0..many {
                let id = server.create().await?;
                let process: StartProcess = serde_json::from_value(serde_json::json!({"command": BUSY}))?;
                server.client().start_process(&id, &process).await?;
            }
            for _ in 0..context.rounds(8, 5) {
                let start = Instant::now();
                server.kill_and_start()?;
                server.ready().await?;
                loop {
                    let all = server.client().list().await?;
                    let running = all.iter().filter(|sandbox| sandbox.state == SandboxState::Running).count();
                    if running == many {
                        break;
                    }
                    ensure!(start.elapsed().as_secs() < 60, "only {running} of {many} came back");
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                ours.values.push(ms(start));
            }
            Ok(())
        })
        .await?;
    let what = format!("kill -9 → {many} running again");
    Ok(vec![Comparison::less(&what, "ms", vec![ours], Vec::new())])
}
