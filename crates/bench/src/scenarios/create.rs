//! How long it takes until a sandbox is of use.

use crate::{
    context::{Context, Provider, Target},
    measure::{first_output, ms, settle, timed},
    rivals,
    samples::{Comparison, Goal, NotRun, OURS, Samples},
};
use anyhow::{Result, ensure};
use stacyvm_types::CreateSandbox;
use std::{process::Command, time::Instant};

/// Nobody asks for a limit.
const NO_LIMITS: [(&str, &str); 3] =
    [("STACYVM_DEFAULTS_MEMORY_MB", "0"), ("STACYVM_DEFAULTS_VCPUS", "0"), ("STACYVM_DEFAULTS_PIDS", "0")];

/// Create → first output, and destroy.
pub(super) async fn create(context: &Context, target: &Target) -> Result<Vec<Comparison>> {
    if context.foreign.is_some() {
        let what = "create → output, as configured";
        return side_by_side(context, target, &[], what, true, |_| {}).await;
    }
    let mut report =
        side_by_side(context, target, &NO_LIMITS, "create → output, no limits", false, |_| {}).await?;
    report.truncate(1);
    let goal = match (target.provider, target.runtime) {
        (Provider::Native, _) => Some("bwrap --unshare-all"),
        (_, Some("runc")) => Some("docker run"),
        _ => None,
    };
    if let Some(first) = report.first_mut() {
        first.goal = goal.map(|side| Goal::ratio(side, 1.0));
    }
    report.extend(side_by_side(context, target, &[], "create → output, limits", true, |_| {}).await?);
    if target.provider == Provider::Native {
        let everything = |request: &mut CreateSandbox| {
            request.network_mode = Some("internet".to_owned());
            request.disk_size_mb = Some(1024);
        };
        let what = "create → output, everything on";
        let mut all = match side_by_side(context, target, &[], what, true, everything).await {
            Ok(all) => all,
            // A host without a packet filter has no networks, one without project quotas and loops no disks.
            Err(error) => vec![Comparison::left_out(what, &format!("this host refuses: {error:#}"))],
        };
        if let Some(first) = all.first_mut() {
            // Nobody else limits the disk and filters the network.
            first.sides.truncate(1);
            first.not_run.retain(|side| side.side == OURS);
        }
        all.truncate(1);
        report.extend(all);
    }
    Ok(report)
}

/// Pairs, each side first in every other one. The first pair is not counted: it fills caches.
async fn side_by_side(
    context: &Context,
    target: &Target,
    settings: &[(&str, &str)],
    what: &str,
    limits: bool,
    change: impl Fn(&mut CreateSandbox),
) -> Result<Vec<Comparison>> {
    let (rivals, not_run) = rivals::beside(context, target);
    let (mut ours, mut destroy) = (Samples::new(OURS), Samples::new(OURS));
    let mut theirs: Vec<_> = rivals.iter().map(|rival| Samples::new(rival.once_name())).collect();
    context
        .with_server(target, settings, async |server| {
            for round in 0..=context.samples {
                let mut create = async || -> Result<()> {
                    settle().await;
                    let start = Instant::now();
                    let id = server.create_as(&change).await?;
                    ensure!(server.exec(&id, &["/bin/echo", "hi"]).await? == "hi\n", "echo said otherwise");
                    ours.values.push(ms(start));
                    let start = Instant::now();
                    server.destroy(&id).await?;
                    destroy.values.push(ms(start));
                    Ok(())
                };
                if round % 2 == 0 {
                    create().await?;
                }
                for (rival, samples) in rivals.iter().zip(&mut theirs) {
                    settle().await;
                    samples.values.push(first_output(rival.once(&["/bin/echo", "hi"], limits)?)?);
                }
                if round % 2 == 1 {
                    create().await?;
                }
                if round == 0 {
                    let all = [&mut ours, &mut destroy].into_iter().chain(&mut theirs);
                    all.for_each(|samples| samples.values.clear());
                }
            }
            Ok(())
        })
        .await?;
    let sides = std::iter::once(ours).chain(theirs).collect();
    Ok(vec![
        Comparison::less(what, "ms", sides, not_run),
        Comparison::less("destroy", "ms", vec![destroy], Vec::new()),
    ])
}

/// One command in a sandbox of its own, without a server.
pub(super) async fn run(context: &Context, target: &Target) -> Result<Vec<Comparison>> {
    let data = crate::server::scratch()?;
    let ours = || {
        let mut run: Command = rivals::command(&context.binary.to_string_lossy());
        run.args(["run", "--image", "host", "--", "/bin/echo", "hi"]);
        run.env("STACYVM_DATA_DIR", data.path()).env_remove("STACYVM_SERVER").current_dir(data.path());
        run
    };
    let (rivals, not_run): (_, Vec<NotRun>) = rivals::beside(context, target);
    // Builds what the image `host` is made into, once.
    timed(ours())?;
    let mut sides = vec![Samples::new(OURS)];
    sides.extend(rivals.iter().map(|rival| Samples::new(rival.once_name())));
    for _ in 0..context.samples {
        for (place, samples) in sides.iter_mut().enumerate() {
            let command = match place.checked_sub(1).and_then(|place| rivals.get(place)) {
                Some(rival) => rival.once(&["/bin/echo", "hi"], true)?,
                None => ours(),
            };
            settle().await;
            context.go_on()?;
            samples.values.push(timed(command)?);
        }
    }
    Ok(vec![Comparison::less("one command, start to finish", "ms", sides, not_run)])
}
