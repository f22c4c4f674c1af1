//! `run` without a server: an engine in this program, with an installation that lives as long as the command.

use super::{Finished, Run};
use crate::{
    cli::Global,
    commands::config,
    disposable::interrupted,
    failure::{Failure, Result},
    images, output,
    process::{self, Embedded},
    providers, pulling,
    scratch::Scratch,
    signals::Signals,
    terminal,
    transfer::EmbeddedFiles,
};
use stacyvm_config::Config;
use stacyvm_engine::{CreateRequest, Defaults, Engine, EngineConfig, ExecRequest, Limits, Store};
use stacyvm_image::Images;
use stacyvm_provider::Provider;
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// The sandbox goes with this program; this bounds only what nobody comes back to.
const LIFETIME: Duration = Duration::from_secs(365 * 24 * 3600);
/// Time for leftovers of earlier runs.
const CLEAN_UP: Duration = Duration::from_secs(20);

/// Runs the command.
pub(super) fn run(run: &Run, global: &Global) -> Result<u8> {
    let loaded = config::load(global, Vec::new(), false)?;
    if global.verbose > 0 {
        config::warn(global, &loaded.warnings);
    }
    let config = loaded.config;
    let image = run.image()?;
    // What the image host and directories do not need is not opened for them.
    let images = if image == "host" || image.starts_with('/') { None } else { Some(images::open(&config)?) };
    let agent = providers::agent(config.agent_path.as_deref())?;
    let (scratch, left) = Scratch::make(&config.data_dir)?;
    let outcome = crate::block_on(async {
        let clean = async {
            for old in left {
                old.clean(agent).await;
            }
        };
        let clean = tokio::time::timeout(CLEAN_UP, clean);
        let (outcome, _) =
            tokio::join!(in_scratch(run, global, &config, (image, images), agent, &scratch), clean);
        outcome
    });
    scratch.remove();
    outcome?.report()
}

async fn in_scratch(
    run: &Run,
    global: &Global,
    config: &Config,
    (image, images): (String, Option<Images>),
    agent: &'static [u8],
    scratch: &Scratch,
) -> Result<Finished> {
    let mut signals = Signals::listen()?;
    if let Some(images) = &images {
        // Before there is anything to take away again.
        tokio::select! {
            image = pulling::shown_here(images, images.obtain(&image)) => drop(image?),
            signal = signals.next() => return Err(interrupted(signal)),
        }
    }
    let directory = scratch.directory();
    let parts = providers::Native {
        lock: None,
        run: Some(directory),
        // Any directory: only root comes this far, on a host of its own.
        image_dirs: vec!["/".into()],
        images,
        network: providers::network(config),
    };
    let native = providers::native(directory, scratch.id(), 1, agent, parts)?;
    let store = Store::in_memory().await.map_err(|e| Failure::new(e.to_string(), ""))?;
    let native: Arc<dyn Provider> = Arc::new(native);
    let engine = Engine::start(engine_config(config), store, vec![native]).await?;
    let outcome = in_engine(run, global, image, &engine, &mut signals).await;
    engine.shutdown().await;
    outcome
}

fn engine_config(config: &Config) -> EngineConfig {
    let defaults = &config.defaults;
    EngineConfig {
        defaults: Defaults {
            image: "host".to_owned(),
            memory_mb: defaults.memory_mb,
            vcpus: defaults.vcpus,
            pids: defaults.pids,
            disk_mb: defaults.disk_size_mb,
            ttl: LIFETIME,
            provider: "native".to_owned(),
        },
        // What an operator allows the callers of a server does not bind whoever runs this as root.
        limits: Limits::default(),
        generation: 1,
        ..EngineConfig::default()
    }
}

async fn in_engine(
    run: &Run,
    global: &Global,
    image: String,
    engine: &Engine,
    signals: &mut Signals,
) -> Result<Finished> {
    let request = CreateRequest {
        image: Some(image),
        memory_mb: run.memory,
        disk_mb: run.disk,
        vcpus: run.cpus,
        network: run.network.clone(),
        ephemeral: true,
        ..CreateRequest::default()
    };
    let sandbox = tokio::select! {
        // A sandbox that is half made when a signal comes is ephemeral, and goes when the engine stops.
        signal = signals.next() => return Err(interrupted(signal)),
        created = engine.create(request) => created?,
    };
    let id = sandbox.id.to_string();
    let outcome = in_sandbox(run, global, engine, (&id, sandbox.spec.memory_mb), signals).await;
    if let Err(error) = engine.destroy(&id).await {
        output::note(format_args!("stacyvm: sandbox {id} is not removed yet: {}", error.message()));
    }
    outcome
}

async fn in_sandbox(
    run: &Run,
    global: &Global,
    engine: &Engine,
    (id, memory_mb): (&str, u32),
    signals: &mut Signals,
) -> Result<Finished> {
    let request = ExecRequest {
        argv: run.command.clone(),
        env: run.env.iter().cloned().collect(),
        cwd: run.workdir.clone(),
        user: run.user.clone(),
        stdin: run.stdin(),
        pty: run.tty.then(terminal::size),
        timeout: Some(run.timeout.and_then(|timeout| timeout.to_std()).unwrap_or(Duration::ZERO)),
        ..ExecRequest::default()
    };
    let files = EmbeddedFiles(engine.guest(id).await?);
    run.bring_in(&files, signals).await?;
    let started = Instant::now();
    let process = tokio::select! {
        signal = signals.next() => return Err(interrupted(signal)),
        process = Embedded::start(engine, id, request) => process,
    };
    let mut process = process.map_err(|failure| process::start_failure(failure, true))?;
    let process = (&mut process, run.terminal()?);
    let finished = run.follow(global, (id, memory_mb), process, signals, started).await?;
    run.take_out(&files, finished, signals).await
}
