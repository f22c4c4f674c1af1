//! `stacyvm bench`.

use crate::{
    cli::Global,
    failure::{Failure, Result},
    output,
    signals::{INT, Signals},
};
use clap::{Args, ValueEnum};
use stacyvm_bench::{Foreign, Options, Report};
use std::path::PathBuf;
use tokio_util::sync::CancellationToken;

/// Measure this host, beside bwrap, runc, docker and podman where they are
///
/// Starts a server of its own with a directory below TMPDIR, and takes everything away again, also on Ctrl-C. With --server,
/// that server is measured, as far as that makes sense. Native sandboxes are measured best as root. Docker Engines are
/// looked for where STACYVM_TEST_DOCKER_HOST or DOCKER_HOST says, then in /var/run/docker.sock; one needs the image
/// alpine:latest. What is missing is not measured, and the table says why.
///
/// Progress goes to standard error. With --json: every sample, and the host.
///
/// Exit code: 1 if something that is there could not be measured, or a burst did not succeed; the rest is shown all the
/// same.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  stacyvm bench --list
  stacyvm bench --only exec --provider native
  stacyvm bench --samples 100 --json > samples.json
  stacyvm bench --markdown docs/performance.md")]
pub(crate) struct Bench {
    /// Only this provider [default: each that is here]
    #[arg(long, value_enum)]
    provider: Option<Provider>,
    /// Only this scenario; --list names them
    #[arg(long, value_name = "SCENARIO", value_parser = scenario())]
    only: Option<String>,
    /// Samples of each side; scenarios that take long use a part of it
    #[arg(long, value_name = "N", default_value_t = 40, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    samples: u16,
    /// Say what each scenario times, from where to where, and measure nothing
    #[arg(long)]
    list: bool,
    /// Write a document of the whole run, with the host described, beside printing the table
    #[arg(long, value_name = "FILE", conflicts_with_all = ["only", "provider", "list"])]
    markdown: Option<PathBuf>,
}

/// What can be measured.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Provider {
    Native,
    Docker,
}

fn scenario() -> clap::builder::PossibleValuesParser {
    stacyvm_bench::list().map(|about| about.name).collect::<Vec<_>>().into()
}

impl Bench {
    pub(crate) async fn execute(&self, global: &Global) -> Result<()> {
        if self.list {
            return list(global.json);
        }
        let unusable = |error| Failure::new(format!("cannot start: {error}"), "");
        let mut signals = Signals::listen().map_err(unusable)?;
        let stop = CancellationToken::new();
        let cancel = stop.clone();
        let quiet = global.quiet;
        let watcher = tokio::spawn(async move {
            let signal = signals.next().await;
            if !quiet {
                output::note("stacyvm: stopping; what was made is taken away first");
            }
            cancel.cancel();
            signal
        });
        let say = |text: &str| {
            if !quiet {
                output::note(format_args!("stacyvm: {text}"));
            }
        };
        let options = self.options(global).map_err(unusable)?;
        let report = Box::pin(stacyvm_bench::run(options, &stop, &say)).await;
        let report = report.map_err(|error| Failure::new(format!("{error:#}"), ""))?;
        self.show(&report, global.json)?;
        if stop.is_cancelled() {
            let signal = watcher.await.unwrap_or(INT);
            return Err(Failure::silent(u8::try_from(128 + signal).unwrap_or(1)));
        }
        watcher.abort();
        if report.failed {
            return Err(Failure::new("not everything could be measured", "the table says what, and why"));
        }
        Ok(())
    }

    fn options(&self, global: &Global) -> std::io::Result<Options> {
        let api_key = global.api_key().map(str::to_owned);
        let server = global.named_server().map(|url| Foreign { url: url.to_owned(), api_key });
        Ok(Options {
            binary: std::env::current_exe()?,
            server,
            provider: self.provider.map(|provider| match provider {
                Provider::Native => stacyvm_bench::Provider::Native,
                Provider::Docker => stacyvm_bench::Provider::Docker,
            }),
            only: self.only.clone(),
            samples: usize::from(self.samples),
        })
    }

    fn show(&self, report: &Report, json: bool) -> Result<()> {
        if let Some(path) = &self.markdown {
            std::fs::write(path, stacyvm_bench::document(report))
                .map_err(|error| Failure::new(format!("cannot write {}: {error}", path.display()), ""))?;
        }
        if json {
            return output::json(report);
        }
        output::text(&stacyvm_bench::table(report))
    }
}

fn list(json: bool) -> Result<()> {
    let all: Vec<_> = stacyvm_bench::list().collect();
    if json {
        return output::json(&all);
    }
    for about in all {
        output::line(format_args!("{:<10} {}", about.name, about.timed))?;
    }
    Ok(())
}
