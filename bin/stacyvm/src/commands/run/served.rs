//! `run` on a server: create, start, follow, destroy, all behind the API.

use super::{Finished, Run};
use crate::{
    cli::Global,
    commands::exec,
    failure::{Failure, Result},
    output, pulling,
    signals::Signals,
};
use stacyvm_client::{Client, CreateOptions, Error};
use stacyvm_types::{CreateSandbox, Sandbox, StartProcess, WireDuration};
use std::time::Duration;
use tokio::time::Instant;

/// Time to live of the sandbox, made new again and again while the command runs: it goes soon after us if we are killed.
const LIFETIME: Duration = Duration::from_secs(15 * 60);
/// Time between two extensions.
const EXTEND: Duration = Duration::from_secs(5 * 60);
/// How long a server that went away during the create is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs the command.
pub(super) async fn run(run: &Run, global: &Global) -> Result<u8> {
    let client = global.client()?;
    let mut signals = Signals::listen()?;
    let sandbox = create(run, &client, &mut signals).await?;
    let extender = tokio::spawn(extend(client.clone(), sandbox.id.clone()));
    let outcome = in_sandbox(run, global, &client, &sandbox.id, &mut signals).await;
    extender.abort();
    if let Err(error) = client.destroy(&sandbox.id).await {
        output::note(format_args!("stacyvm: sandbox {} is not destroyed: {error}", sandbox.id));
    }
    outcome?.report()
}

/// Creates the sandbox. A signal is acted on when it is there, as nothing else could take it away again.
async fn create(run: &Run, client: &Client, signals: &mut Signals) -> Result<Sandbox> {
    let request = CreateSandbox {
        image: Some(run.image.clone()),
        memory_mb: run.memory,
        vcpus: run.cpus,
        ttl: Some(WireDuration::from(LIFETIME).to_string()),
        ..CreateSandbox::default()
    };
    // With a key, asking again after a lost connection answers with the same sandbox.
    let options = CreateOptions { idempotency_key: Some(uuid::Uuid::new_v4().to_string()) };
    let creating = create_once(client, &request, &options);
    let mut creating = std::pin::pin!(pulling::shown(client, Some(&run.image), creating));
    let mut received = None;
    loop {
        tokio::select! {
            created = &mut creating => {
                let sandbox = created?;
                let Some(signal) = received else { return Ok(sandbox) };
                client.destroy(&sandbox.id).await?;
                return Err(interrupted(signal));
            }
            signal = signals.next() => {
                if received.replace(signal).is_some() {
                    let what = "given up while the sandbox was being created";
                    return Err(Failure { code: interrupted(signal).code, ..Failure::new(what, "`stacyvm list` shows it") });
                }
                output::note("stacyvm: the sandbox is being created and will be destroyed; once more to give up");
            }
        }
    }
}

async fn create_once(
    client: &Client,
    request: &CreateSandbox,
    options: &CreateOptions,
) -> Result<Sandbox, Error> {
    let started = Instant::now();
    let mut sent = false;
    loop {
        match client.create(request, options).await {
            Err(Error::Connect { .. }) if sent && started.elapsed() < PATIENCE => {}
            Err(Error::Broken(_)) if started.elapsed() < PATIENCE => sent = true,
            outcome => return outcome,
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

async fn in_sandbox(
    run: &Run,
    global: &Global,
    client: &Client,
    id: &str,
    signals: &mut Signals,
) -> Result<Finished> {
    let (mode, command, args) = exec::command_line(&run.command, false);
    let spec = StartProcess {
        command,
        args,
        mode,
        env: run.env.iter().cloned().collect(),
        workdir: run.workdir.clone(),
        user: run.user.clone(),
        timeout: run.timeout,
        stdin: run.stdin(),
        ..StartProcess::default()
    };
    let started = std::time::Instant::now();
    let mut process = tokio::select! {
        signal = signals.next() => return Err(interrupted(signal)),
        process = exec::start(client, id, spec) => process?,
    };
    run.follow(global, id, &mut process, signals, started).await
}

async fn extend(client: Client, id: String) {
    loop {
        tokio::time::sleep(EXTEND).await;
        if let Err(error) = client.extend(&id, LIFETIME.into()).await {
            tracing::warn!(%error, sandbox = id, "the time to live was not extended");
        }
    }
}

fn interrupted(signal: i32) -> Failure {
    Failure::silent(u8::try_from(128 + signal).unwrap_or(crate::failure::code::OURS))
}
