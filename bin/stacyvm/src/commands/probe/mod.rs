//! `stacyvm probe`: what a workload would miss in a sandbox, found out by trying it in one.

mod report;

use crate::{
    cli::Global,
    complete,
    disposable::{self, interrupted},
    failure::{Failure, Result},
    output,
    signals::Signals,
};
use bytes::Bytes;
use clap::Args;
use clap_complete::engine::ArgValueCompleter;
use futures::stream;
use report::Report;
use stacyvm_client::{Client, Upload};
use stacyvm_types::{CreateSandbox, ExecMode, ExecRequest, Sandbox, WireDuration};
use std::time::Duration;

/// Where the program is in the sandbox.
const PROGRAM: &str = "/workspace/.stacyvm-probe";
/// Where it may make files: what a filesystem can do is asked where workloads keep theirs.
const DIRECTORY: &str = "/workspace";

/// Try system calls and features in a sandbox of its own and list what does not work there
///
/// For each of some 150 that real workloads need: works; refused, a policy said no; absent, the sandbox's kernel does
/// not have it; differs, it answers, but not as Linux does; failed, anything else. Nothing is changed by it.
///
/// With --json: {"provider", "runtime", "kernel": {"release", "version", "gvisor", "seccomp"}, "counts", "entries":
/// [{"name", "outcome", "detail"}]}, always with all entries. The exit code is 0 when the probe ran, whatever it found.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  stacyvm probe
  stacyvm probe --provider docker --image alpine:latest --runtime runsc
  stacyvm probe --all
  stacyvm probe --json | jq -r '.entries[] | select(.outcome == \"absent\").name'")]
pub(crate) struct Probe {
    /// What the root filesystem comes from
    #[arg(long, value_name = "IMAGE", add = ArgValueCompleter::new(complete::served_images))]
    image: Option<String>,
    /// Provider that runs it
    #[arg(long, value_name = "NAME")]
    provider: Option<String>,
    /// What isolates it, where the provider offers a choice: runc, runsc, …
    #[arg(long, value_name = "NAME")]
    runtime: Option<String>,
    /// List also what works
    #[arg(long)]
    all: bool,
}

impl Probe {
    pub(crate) async fn execute(&self, global: &Global) -> Result<()> {
        let client = global.client()?;
        let mut signals = Signals::listen()?;
        let request = CreateSandbox {
            image: self.image.clone(),
            provider: self.provider.clone(),
            runtime: self.runtime.clone(),
            ..CreateSandbox::default()
        };
        let report = disposable::with(&client, request, &mut signals, async |sandbox, signals| {
            tokio::select! {
                signal = signals.next() => Err(interrupted(signal)),
                report = self.ask(&client, sandbox) => report,
            }
        });
        let report = report.await?;
        if global.json {
            return output::json(&report);
        }
        output::text(&report.render(self.all, output::width(), output::colours()))
    }

    async fn ask(&self, client: &Client, sandbox: &Sandbox) -> Result<Report> {
        let runtime = match &self.runtime {
            Some(runtime) => Some(runtime.clone()),
            None => client.provider(&sandbox.provider).await?.config.remove("runtime"),
        };
        let program = stacyvm_guest_binaries::PROBE;
        let file = Upload { path: PROGRAM.to_owned(), mode: Some(0o755), size: Some(program.len() as u64) };
        client.upload(&sandbox.id, &file, stream::iter([Ok(Bytes::from_static(program))])).await?;
        let request = ExecRequest {
            command: PROGRAM.to_owned(),
            args: vec!["syscalls".to_owned(), DIRECTORY.to_owned()],
            mode: ExecMode::Argv,
            // As long as the server allows: it ends by itself, even where every attempt hangs until it is given up.
            timeout: Some(WireDuration::from(Duration::ZERO)),
            ..ExecRequest::default()
        };
        let answer = client.exec(&sandbox.id, &request).await?;
        if answer.exit_code != 0 {
            let what = format!(
                "the probe ended with {} in {}: {}",
                answer.exit_code,
                sandbox.image,
                answer.stderr.trim()
            );
            return Err(Failure::new(
                what,
                "choose an image for this processor, in which /workspace can be written",
            ));
        }
        Report::parse(sandbox.provider.clone(), runtime, &answer.stdout).ok_or_else(|| {
            Failure::new(
                "the probe's report ends early",
                "`stacyvm probe` once more, with more memory or time for a sandbox",
            )
        })
    }
}
