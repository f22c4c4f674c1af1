//! Runs checks side by side, each with a time limit, and takes away whatever they leave.

use crate::{
    Options,
    check::{Check, Verdict},
    context::{Context, Run},
    report::{CheckReport, Outcome, Report},
};
use futures::{StreamExt, stream};
use stacyvm_provider::{Provider, SandboxId};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// Time to destroy one sandbox behind a check.
const CLEAN: Duration = Duration::from_secs(20);

/// Runs the suite against `provider`. It makes and destroys sandboxes with ids of its own and touches no others.
pub async fn run(provider: Arc<dyn Provider>, options: Options) -> Report {
    let started = Instant::now();
    let capabilities = provider.capabilities();
    let run = Arc::new(Run::new(Arc::clone(&provider), options.clone()));
    let wanted = |check: &Check| {
        options.only.is_empty() || options.only.iter().any(|o| check.id.starts_with(o.as_str()))
    };
    let selected: Vec<Check> = crate::checks().into_iter().filter(wanted).collect();
    let mut left_behind = Vec::new();
    let mut checks: Vec<(usize, CheckReport)> = Vec::new();
    let mut running = stream::iter(selected.into_iter().enumerate())
        .map(|(index, check)| {
            let missing = check.needs.iter().find_map(|need| need.missing(&capabilities, &options));
            let run = Arc::clone(&run);
            async move {
                let (report, left) = match missing {
                    Some(reason) => (report(&check, Outcome::NotRun { reason }, Duration::ZERO), Vec::new()),
                    None => run_one(run, check).await,
                };
                (index, report, left)
            }
        })
        .buffer_unordered(options.concurrency.max(1));
    while let Some((index, report, left)) = running.next().await {
        checks.push((index, report));
        left_behind.extend(left);
    }
    drop(running);
    for id in run.shared_left() {
        left_behind.extend(clean(&run, &id).await);
    }
    checks.sort_by_key(|(index, _)| *index);
    let mut report = Report {
        provider: provider.name().to_owned(),
        isolation: capabilities.isolation.to_owned(),
        image: options.image,
        passed: 0,
        failed: 0,
        not_run: 0,
        duration_ms: millis(started.elapsed()),
        checks: checks.into_iter().map(|(_, report)| report).collect(),
        left_behind,
    };
    report.count();
    report
}

async fn run_one(run: Arc<Run>, check: Check) -> (CheckReport, Vec<String>) {
    let started = Instant::now();
    let context = Context::new(Arc::clone(&run), check.id);
    let limit = context.patient(check.timeout);
    // A task of its own: a check that panics or hangs is one failed check.
    let mut task = tokio::spawn((check.run)(context.clone()));
    let outcome = match tokio::time::timeout(limit, &mut task).await {
        Ok(Ok(verdict)) => verdict_outcome(verdict),
        Ok(Err(panic)) => Outcome::Failed { reason: format!("the check itself broke: {panic}") },
        Err(_) => {
            task.abort();
            let _ = task.await;
            Outcome::Failed { reason: format!("not finished within {limit:?}") }
        }
    };
    let elapsed = started.elapsed();
    tracing::debug!(check = check.id, ?outcome, ?elapsed, "checked");
    let mut left = Vec::new();
    for id in context.left() {
        left.extend(clean(&run, &id).await);
    }
    (report(&check, outcome, elapsed), left)
}

/// Destroys a sandbox of the suite; says what went wrong, if anything.
async fn clean(run: &Run, id: &SandboxId) -> Option<String> {
    match tokio::time::timeout(CLEAN * run.options.patience.max(1), run.provider.destroy(id)).await {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(format!("{id}: {error:?}")),
        Err(_) => Some(format!("{id}: destroy does not end")),
    }
}

fn verdict_outcome(verdict: Verdict) -> Outcome {
    match verdict {
        Ok(()) => Outcome::Passed,
        Err(failure) => Outcome::Failed { reason: failure.0 },
    }
}

fn report(check: &Check, outcome: Outcome, elapsed: Duration) -> CheckReport {
    let duration_ms = millis(elapsed);
    CheckReport { id: check.id.to_owned(), promise: check.promise.to_owned(), outcome, duration_ms }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
