//! A sandbox of a server for the time of one command: created, kept alive, and destroyed whatever happens in between.

use crate::{
    failure::{Failure, Result, code},
    output, pulling,
    signals::Signals,
};
use stacyvm_client::{Client, CreateOptions, Error};
use stacyvm_types::{CreateSandbox, Sandbox, WireDuration};
use std::time::Duration;
use tokio::time::Instant;

/// Time to live of the sandbox, made new again and again while the command runs: it goes soon after us if we are killed.
const LIFETIME: Duration = Duration::from_secs(15 * 60);
/// Time between two extensions.
const EXTEND: Duration = Duration::from_secs(5 * 60);
/// How long a server that went away during the create is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

/// Creates a sandbox, does the work in it, and destroys it.
///
/// # Errors
/// Those of the server and of the work. A signal is acted on by the work once the sandbox is there.
pub(crate) async fn with<T>(
    client: &Client,
    request: CreateSandbox,
    signals: &mut Signals,
    work: impl AsyncFnOnce(&Sandbox, &mut Signals) -> Result<T>,
) -> Result<T> {
    let request = CreateSandbox { ttl: Some(WireDuration::from(LIFETIME).to_string()), ..request };
    let sandbox = create(&request, client, signals).await?;
    let extender = tokio::spawn(extend(client.clone(), sandbox.id.clone()));
    let outcome = work(&sandbox, signals).await;
    extender.abort();
    if let Err(error) = client.destroy(&sandbox.id).await {
        output::note(format_args!("stacyvm: sandbox {} is not destroyed: {error}", sandbox.id));
    }
    outcome
}

/// Creates the sandbox. A signal is acted on when it is there, as nothing else could take it away again.
async fn create(request: &CreateSandbox, client: &Client, signals: &mut Signals) -> Result<Sandbox> {
    // With a key, asking again after a lost connection answers with the same sandbox.
    let options = CreateOptions { idempotency_key: Some(uuid::Uuid::new_v4().to_string()) };
    let creating = create_once(client, request, &options);
    let mut creating = std::pin::pin!(pulling::shown(client, request.image.as_deref(), creating));
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

async fn extend(client: Client, id: String) {
    loop {
        tokio::time::sleep(EXTEND).await;
        if let Err(error) = client.extend(&id, LIFETIME.into()).await {
            tracing::warn!(%error, sandbox = id, "the time to live was not extended");
        }
    }
}

/// What a command that a signal ended returns.
pub(crate) fn interrupted(signal: i32) -> Failure {
    Failure::silent(u8::try_from(128 + signal).unwrap_or(code::OURS))
}
