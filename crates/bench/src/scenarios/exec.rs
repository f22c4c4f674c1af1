//! Commands in a sandbox that is there.

use crate::{
    context::{Context, Provider, Target},
    measure::{BLOCK, block, succeed},
    rivals::{self, Tool},
    samples::{Comparison, Goal, OURS, Samples},
};
use anyhow::Result;

/// Warm exec. Blocks of ten alternate.
pub(super) async fn exec(context: &Context, target: &Target) -> Result<Vec<Comparison>> {
    let (rivals, not_run) = rivals::beside(context, target);
    let mut ours = Samples::new(OURS);
    let mut theirs: Vec<_> = rivals.iter().map(|rival| Samples::new(rival.exec_name())).collect();
    let (mut api, mut floor) = (Samples::new("Engine API exec"), Samples::new("the host itself"));
    context
        .with_server(target, &[], async |server| {
            let id = server.create().await?;
            let warm =
                rivals.iter().map(|rival| Ok((rival.tool(), rival.warm()?))).collect::<Result<Vec<_>>>()?;
            for _ in 0..context.samples.div_ceil(BLOCK) {
                block(&mut ours.values, async || server.exec(&id, &["/bin/true"]).await.map(drop)).await?;
                for ((tool, warm), samples) in warm.iter().zip(&mut theirs) {
                    block(&mut samples.values, async || succeed(warm.exec(&["/bin/true"])?)).await?;
                    if let (Tool::Docker, Ok(engine)) = (tool, &context.engine) {
                        let once = async || engine.exec(warm.id(), &["/bin/true"]).await;
                        block(&mut api.values, once).await?;
                    }
                }
                if target.provider == Provider::Native && context.foreign.is_none() {
                    block(&mut floor.values, async || succeed(rivals::command("/bin/true"))).await?;
                }
            }
            Ok(())
        })
        .await?;
    let sides = std::iter::once(ours).chain(theirs).chain([api, floor]);
    let sides: Vec<_> = sides.filter(|side| !side.values.is_empty()).collect();
    let comparison = Comparison::less("warm exec", "ms", sides, not_run);
    let goal = target.runtime == Some("runc");
    Ok(vec![if goal { comparison.aims(Goal::ratio("Engine API exec", 25.0)) } else { comparison }])
}
