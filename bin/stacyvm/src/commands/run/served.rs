//! `run` on a server: create, start, follow, destroy, all behind the API.

use super::{Finished, Run};
use crate::{
    cli::Global,
    commands::exec,
    disposable::{self, interrupted},
    failure::Result,
    signals::Signals,
    terminal,
    transfer::RemoteFiles,
};
use stacyvm_client::Client;
use stacyvm_types::{CreateSandbox, StartProcess};

/// Runs the command.
pub(super) async fn run(run: &Run, global: &Global) -> Result<u8> {
    let client = global.client()?;
    let mut signals = Signals::listen()?;
    let request = CreateSandbox {
        image: Some(run.image.clone()),
        memory_mb: run.memory,
        disk_size_mb: run.disk,
        vcpus: run.cpus,
        network_mode: run.network.clone(),
        ..CreateSandbox::default()
    };
    let finished = disposable::with(&client, request, &mut signals, async |sandbox, signals| {
        in_sandbox(run, global, &client, (&sandbox.id, sandbox.memory_mb), signals).await
    });
    finished.await?.report()
}

async fn in_sandbox(
    run: &Run,
    global: &Global,
    client: &Client,
    (id, memory_mb): (&str, u32),
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
        pty: run.tty.then(terminal::size),
        ..StartProcess::default()
    };
    let files = RemoteFiles { client, sandbox: id };
    run.bring_in(&files, signals).await?;
    let started = std::time::Instant::now();
    let mut process = tokio::select! {
        signal = signals.next() => return Err(interrupted(signal)),
        process = exec::start(client, id, spec) => process?,
    };
    let process = (&mut process, run.terminal()?);
    let finished = run.follow(global, (id, memory_mb), process, signals, started).await?;
    run.take_out(&files, finished, signals).await
}
