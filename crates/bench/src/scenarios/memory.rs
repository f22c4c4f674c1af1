//! What a sandbox takes of the host's memory when nothing has happened in it for a while.

use crate::{
    context::{Context, Provider, Target},
    measure::available,
    rivals,
    samples::{Comparison, Goal, OURS, Samples},
};
use anyhow::Result;
use std::time::Duration;

/// Until rivals and the kernel behind them have come to rest.
const REST: Duration = Duration::from_secs(8);
/// The same for sandboxes, of which there are many more: what earlier scenarios gave back is counted in until then.
const LONG_REST: Duration = Duration::from_secs(30);

/// Sandboxes that do nothing.
pub(super) async fn idle(context: &Context, target: &Target) -> Result<Vec<Comparison>> {
    let many = target.pick(200, 8);
    let (rivals, not_run) = rivals::beside(context, target);
    let mut ours = Samples::new(OURS);
    let mut theirs: Vec<_> = rivals.iter().map(|rival| Samples::new(rival.once_name())).collect();
    #[expect(clippy::cast_precision_loss, reason = "a share for people")]
    let share = |before: f64, after: f64, of: usize| (before - after) / of as f64;
    context
        .with_server(target, &[], async |server| {
            // What the first one brings along is not each one's.
            server.create_and_hear().await?;
            for _ in 0..context.rounds(20, 2) {
                tokio::time::sleep(LONG_REST).await;
                let before = available()?;
                let mut ids = Vec::new();
                for _ in 0..many {
                    ids.push(server.create_and_hear().await?);
                }
                tokio::time::sleep(LONG_REST).await;
                ours.values.push(share(before, available()?, many));
                server.destroy_all(ids).await?;
                for (rival, samples) in rivals.iter().zip(&mut theirs) {
                    // They take long to make, and do not get smaller by being many.
                    const MANY: usize = 8;
                    tokio::time::sleep(REST).await;
                    let before = available()?;
                    let warm = (0..MANY).map(|_| rival.warm()).collect::<Result<Vec<_>>>()?;
                    tokio::time::sleep(REST).await;
                    samples.values.push(share(before, available()?, MANY));
                    drop(warm);
                }
            }
            Ok(())
        })
        .await?;
    let sides = std::iter::once(ours).chain(theirs).collect();
    let what = format!("idle memory, each of {many}");
    let comparison = Comparison::less(&what, "MiB", sides, not_run);
    let native = target.provider == Provider::Native;
    Ok(vec![if native { comparison.aims(Goal::AtMost(1.0)) } else { comparison }])
}
