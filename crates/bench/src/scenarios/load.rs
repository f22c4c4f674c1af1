//! Many sandboxes at once, and one after the other.

use crate::{
    context::{Context, Target},
    measure::{ms, settle, succeed},
    rivals::{self, Rival},
    samples::{Comparison, OURS, Samples},
    server::Server,
    table::figure,
};
use anyhow::{Result, anyhow};
use futures::{StreamExt, TryStreamExt, stream};
use std::time::Instant;

/// Cycles at once.
const WIDE: usize = 4;
/// What a cycle is made of: create, exec, destroy.
const OPERATIONS: usize = 3;

/// Many creates at once.
pub(super) async fn burst(context: &Context, target: &Target) -> Result<Vec<Comparison>> {
    let many = target.pick(100, 20);
    let (rivals, not_run) = rivals::beside(context, target);
    let mut ours = Samples::new(OURS);
    let mut theirs: Vec<_> = rivals.iter().map(|rival| Samples::new(rival.once_name())).collect();
    let (mut succeeded, mut asked, mut first_error) = (0, 0, None);
    context
        .with_server(target, &[], async |server| {
            // What the first one brings along is not the burst's.
            server.destroy(&server.create_and_hear().await?).await?;
            for _ in 0..context.rounds(10, 3) {
                settle().await;
                let start = Instant::now();
                let made: Vec<Result<String>> = stream::iter(0..many)
                    .map(|_| server.create_and_hear())
                    .buffer_unordered(many)
                    .collect()
                    .await;
                ours.values.push(ms(start));
                asked += many;
                let (made, errors): (Vec<_>, Vec<_>) = made.into_iter().partition(Result::is_ok);
                succeeded += made.len();
                first_error = first_error.take().or_else(|| errors.into_iter().find_map(Result::err));
                server.destroy_all(made.into_iter().flatten().collect()).await?;
                for (rival, samples) in rivals.iter().zip(&mut theirs) {
                    settle().await;
                    let start = Instant::now();
                    at_once(context, rival, many, many).await?;
                    samples.values.push(ms(start));
                }
            }
            Ok(())
        })
        .await?;
    let what = format!("burst of {many}");
    let sides = std::iter::once(ours).chain(theirs).collect();
    let note = match &first_error {
        None => format!("stacyvm: {succeeded} of {asked} succeeded"),
        Some(error) => format!("stacyvm: only {succeeded} of {asked} succeeded: {error:#}"),
    };
    let incomplete = first_error.is_some();
    Ok(vec![Comparison { notes: vec![note], incomplete, ..Comparison::less(&what, "ms", sides, not_run) }])
}

/// Cycles, a part of each side in turn.
pub(super) async fn sustained(context: &Context, target: &Target) -> Result<Vec<Comparison>> {
    let (rivals, not_run) = rivals::beside(context, target);
    let names = std::iter::once(OURS).chain(rivals.iter().map(Rival::once_name));
    let mut speeds: Vec<_> = names.map(Samples::new).collect();
    let mut cycles = speeds.clone();
    let each = context.samples.max(WIDE);
    context
        .with_server(target, &[], async |server| {
            cycle(server).await?;
            for _ in 0..target.pick(5, 2).min(context.samples) {
                for (place, (speed, all)) in speeds.iter_mut().zip(&mut cycles).enumerate() {
                    settle().await;
                    let start = Instant::now();
                    all.values.extend(match place.checked_sub(1).and_then(|place| rivals.get(place)) {
                        Some(rival) => at_once(context, rival, each, WIDE).await?,
                        None => {
                            let ours = stream::iter(0..each).map(|_| cycle(server));
                            ours.buffer_unordered(WIDE).try_collect().await?
                        }
                    });
                    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
                    speed.values.push((each * OPERATIONS) as f64 / start.elapsed().as_secs_f64());
                }
            }
            Ok(())
        })
        .await?;
    let slowest = cycles.iter().map(|side| format!("{} {}", side.side, figure(side.quantile(0.99))));
    let note = format!("p99 in ms: {}", slowest.collect::<Vec<_>>().join(", "));
    Ok(vec![
        Comparison::more("sustained, operations", "ops/s", speeds, not_run),
        Comparison {
            notes: vec![note],
            ..Comparison::less("sustained, one cycle", "ms", cycles, Vec::new())
        },
    ])
}

/// Create, one command, destroy.
async fn cycle(server: &Server) -> Result<f64> {
    let start = Instant::now();
    let id = server.create_and_hear().await?;
    server.destroy(&id).await?;
    Ok(ms(start))
}

/// The same of a rival, several at once: one command line each that does all three. Once started, they run to their end.
async fn at_once(context: &Context, rival: &Rival<'_>, count: usize, wide: usize) -> Result<Vec<f64>> {
    let one = |_| async {
        let command = rival.once(&["/bin/echo", "hi"], true)?;
        let start = Instant::now();
        context
            .commands
            .spawn_blocking(|| succeed(command))
            .await
            .map_err(|_| anyhow!("a thread died"))??;
        Ok(ms(start))
    };
    stream::iter(0..count).map(one).buffer_unordered(wide).try_collect().await
}
