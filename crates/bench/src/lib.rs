//! `stacyvm bench`: what StacyVM costs beside what a user would otherwise pick, in the same run on the same host.
//!
//! Samples of all sides alternate, so that a slow minute of the host hits each of them. The table gives medians, spread
//! and ratios; JSON has the raw samples. Nothing here is a test: figures are for people to judge.

mod context;
mod engine;
mod host;
mod markdown;
mod measure;
mod rivals;
mod runc;
mod samples;
mod scenarios;
mod server;
mod table;

pub use context::{Foreign, Provider};
pub use host::Host;
pub use markdown::document;
pub use samples::{Comparison, Goal, NotRun, Samples};
pub use scenarios::{About, list};
pub use table::table;

use context::{Context, Target};
use serde::Serialize;
use std::path::PathBuf;
use tokio_util::sync::CancellationToken;

/// What to measure.
#[derive(Debug)]
pub struct Options {
    /// The `stacyvm` that is measured.
    pub binary: PathBuf,
    /// A server that is there already, in place of one of our own.
    pub server: Option<Foreign>,
    /// Only this provider.
    pub provider: Option<Provider>,
    /// Only the scenario of this name.
    pub only: Option<String>,
    /// Samples of each side.
    pub samples: usize,
}

/// Everything that was measured, and where.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Version of what was measured.
    pub version: &'static str,
    /// `release`, or `debug`, whose figures say nothing about a release.
    pub build: &'static str,
    /// When the run ended.
    pub at: jiff::Timestamp,
    /// Samples that were asked for.
    pub samples: usize,
    /// Where it ran.
    pub host: Host,
    /// What was measured, by provider and in the order of the list.
    pub comparisons: Vec<Comparison>,
    /// It was stopped: what would have come later is missing.
    pub interrupted: bool,
    /// Something that should have worked did not: the reasons say what.
    pub failed: bool,
}

/// Measures. Once `stop` is cancelled, what runs is taken away and the report is of what was measured until then.
///
/// # Errors
/// Nothing can be measured here.
pub async fn run(options: Options, stop: &CancellationToken, say: &dyn Fn(&str)) -> anyhow::Result<Report> {
    let context = Context::new(&options, stop.clone()).await?;
    let host = Host::look(&context).await;
    let (mut comparisons, mut failed) = (Vec::new(), false);
    for target in Target::all(&options, &context) {
        for scenario in scenarios::ALL.iter().filter(|scenario| scenario.is_for(&options, &target)) {
            let about = &scenario.about;
            if stop.is_cancelled() {
                break;
            }
            let why = target.why_not.clone().or_else(|| scenario.why_not(&context));
            let outcome = match why {
                Some(why) => Ok(vec![Comparison::left_out(about.title, &why)]),
                None => {
                    say(&format!("measuring {} ({}) …", about.name, target.label()));
                    (scenario.run)(&context, &target).await
                }
            };
            let found = outcome.unwrap_or_else(|error| {
                failed = true;
                vec![Comparison::left_out(about.title, &format!("it failed: {error:#}"))]
            });
            let (scenario, provider) = (about.name, target.label());
            comparisons.extend(found.into_iter().map(|found| Comparison {
                scenario,
                provider: provider.clone(),
                ..found
            }));
        }
    }
    failed |= comparisons.iter().any(|comparison| comparison.incomplete);
    let build = if cfg!(debug_assertions) { "debug" } else { "release" };
    let (version, at, samples) = (env!("CARGO_PKG_VERSION"), jiff::Timestamp::now(), options.samples);
    let interrupted = stop.is_cancelled();
    Ok(Report { version, build, at, samples, host, comparisons, interrupted, failed })
}
