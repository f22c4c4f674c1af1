//! `stacyvm serve`: the server.

mod notify;

use crate::{
    cli::{self, Global},
    commands::config,
    failure::{Failure, Result},
    images, installation,
    lock::Lock,
    logging, output, providers,
    signals::Signals,
};
use clap::Args;
use notify::notify;
use stacyvm_api::{ApiConfig, ApiState, BodyLimits};
use stacyvm_config::{Config, Loaded, LogFormat, Override};
use stacyvm_engine::{Defaults, Engine, EngineConfig, Limits, Store};
use std::net::SocketAddr;
use tokio::net::TcpListener;

/// Serve the API
///
/// Without an API key it listens on 127.0.0.1 only. Sandboxes and their commands go on while the server is down or is
/// restarted. SIGTERM or Ctrl-C stops it; requests under way have 10 seconds.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  stacyvm serve
  STACYVM_AUTH_API_KEY=$(openssl rand -hex 32) stacyvm serve --host 0.0.0.0
  stacyvm serve --config /etc/stacyvm/stacyvm.yaml --data-dir /var/lib/stacyvm
  stacyvm config reference        every key and variable")]
pub(crate) struct Serve {
    /// Address to listen on [default: 127.0.0.1, with an API key 0.0.0.0]
    #[arg(long, value_name = "HOST")]
    host: Option<String>,
    /// Port to listen on, 0 for a free one [default: 7423]
    #[arg(short, long, value_name = "PORT")]
    port: Option<u16>,
    /// Listen beyond loopback without any key: whoever reaches the port may run commands
    #[arg(long)]
    insecure_no_auth: bool,
}

impl Serve {
    pub(crate) fn execute(&self, global: &Global) -> Result<()> {
        let loaded = config::load(global, self.overrides(global), true)?;
        let problems = loaded.check_serve();
        if !problems.is_empty() {
            config::warn(global, &loaded.warnings);
            return Err(stacyvm_config::Invalid { problems, warnings: Vec::new() }.into());
        }
        let _log = logging::for_server(&loaded.config.logging);
        say_warnings(&loaded);
        let config = loaded.config;
        let lock = installation::claim(&config.data_dir)?;
        raise_file_limit();
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
        let runtime = runtime.map_err(|e| Failure::new(format!("cannot start threads: {e}"), ""))?;
        let outcome = runtime.block_on(Box::pin(serve(&config, &lock, global.quiet)));
        // What still waits for a runtime that hangs is left to the next start, as after a crash.
        runtime.shutdown_background();
        outcome
    }

    fn overrides(&self, global: &Global) -> Vec<Override> {
        let mut overrides = Vec::new();
        let mut set = |key, flag, text: String| overrides.push(Override { key, flag, text });
        if let Some(host) = &self.host {
            set("server.host", "--host", host.clone());
        }
        if let Some(port) = self.port {
            set("server.port", "--port", port.to_string());
        }
        if self.insecure_no_auth {
            set("auth.allow_unauthenticated", "--insecure-no-auth", "true".to_owned());
        }
        if global.json {
            set("logging.format", "--json", "json".to_owned());
        }
        match (global.quiet, global.verbose) {
            (true, _) => set("logging.level", "--quiet", "warn".to_owned()),
            (false, 1) => set("logging.level", "--verbose", "debug".to_owned()),
            (false, 2..) => set("logging.level", "--verbose", "trace".to_owned()),
            (false, 0) => {}
        }
        overrides
    }
}

fn say_warnings(loaded: &Loaded) {
    for warning in &loaded.warnings {
        tracing::warn!(place = %warning.place, fix = warning.fix, "{}", warning.what);
    }
    let idle: Vec<_> = loaded.without_effect().iter().map(|setting| setting.key.name).collect();
    if !idle.is_empty() {
        tracing::warn!(keys = idle.join(", "), "these keys are set and have no effect in this version");
    }
    if !loaded.config.requires_key() && std::env::var_os("STACYVM_API_KEY").is_some_and(|key| !key.is_empty())
    {
        tracing::warn!(
            "STACYVM_API_KEY is what clients send; a server asks for a key with STACYVM_AUTH_API_KEY"
        );
    }
    if !loaded.config.requires_key() && !loaded.config.listens_on_loopback() {
        tracing::warn!(
            host = loaded.config.server.host,
            "no key is required of anybody who reaches this listener"
        );
    }
}

async fn serve(config: &Config, lock: &Lock, quiet: bool) -> Result<()> {
    let mut signals = Signals::listen()?;
    // First what can fail for reasons that are quickly put right.
    let listener = listen(config).await?;
    let address = listener.local_addr().map_err(|e| Failure::new(format!("cannot listen: {e}"), ""))?;
    let store = Store::open(&config.database.path).await.map_err(|e| {
        let fix =
            format!("look at {}, or name another file with database.path", config.database.path.display());
        Failure::new(e.to_string(), fix)
    })?;
    let store_failed = |e: stacyvm_store::StoreError| Failure::new(e.to_string(), "");
    let installation_id = installation::id(&config.data_dir, &store).await?;
    let generation = store.next_generation().await.map_err(store_failed)?;
    let stored = store.live_sandboxes().await.map_err(store_failed)?;
    let in_use = stored.into_iter().map(|row| row.provider).collect();
    let images = if config.providers.native { Some(images::open(config)?) } else { None };
    let providers =
        providers::enabled(config, &installation_id, generation, lock, &in_use, images.as_ref()).await?;
    let default = providers::default(&config.providers.default, &providers).await;
    let engine = Engine::start(engine_config(config, default.clone(), generation), store, providers).await?;

    if config.logging.format == LogFormat::Pretty && !quiet {
        output::text(&banner(config, address, &default))?;
    }
    tracing::info!(
        %address, version = env!("CARGO_PKG_VERSION"), installation = installation_id, generation,
        data_dir = %config.data_dir.display(), provider = default, "serving"
    );
    notify("READY=1");
    let router =
        stacyvm_api::router(ApiState::new(engine.clone(), images.clone(), api_config(config, address)));
    let _tending = images.map(|images| {
        tokio_util::task::AbortOnDropHandle::new(tokio::spawn(images::tend(
            images,
            config.images.prefetch.clone(),
        )))
    });
    let (stop, stopped) = tokio::sync::oneshot::channel();
    let stopping = async {
        // Whether the other end is there does not matter: it only waits.
        let _ = stopped.await;
    };
    let graceful = async {
        stacyvm_api::serve(listener, router, stopping).await.map_err(|e| Failure::new(e.to_string(), ""))?;
        engine.shutdown().await;
        Ok(())
    };
    let impatient = async {
        let signal = signals.next().await;
        tracing::info!(signal, "stopping; sandboxes go on");
        notify("STOPPING=1");
        let _ = stop.send(());
        let signal = signals.next().await;
        // Everything is made to be killed at any time.
        Failure::new("stopped at once on the second signal", "").exit(u8::try_from(128 + signal).unwrap_or(1))
    };
    tokio::select! {
        outcome = graceful => outcome,
        failure = impatient => Err(failure),
    }
}

/// Every sandbox takes a few descriptors and every client one, and the usual soft limit is for programs that call
/// `select`. Sandboxes get limits of their own.
fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        tracing::debug!(%error, "the limit on open files stays as it is");
    }
}

async fn listen(config: &Config) -> Result<TcpListener> {
    let (host, port) = (config.server.host.as_str(), config.server.port);
    let listener = TcpListener::bind((host, port)).await.map_err(|error| {
        let fix = match error.kind() {
            std::io::ErrorKind::AddrInUse => "stop what listens there, or choose another port with --port",
            std::io::ErrorKind::PermissionDenied => "choose a port above 1023, or run as root",
            _ => "check server.host and server.port",
        };
        Failure::new(format!("cannot listen on {host} port {port}: {error}"), fix)
    })?;
    // A name such as localhost is whatever the resolver makes of it.
    let loopback = listener.local_addr().is_ok_and(|address| address.ip().to_canonical().is_loopback());
    if !loopback && !config.requires_key() && !config.auth.allow_unauthenticated {
        let what = format!("{host} is not a loopback address on this machine, and no key is set");
        return Err(Failure::new(what, "set auth.api_key (STACYVM_AUTH_API_KEY), or listen on 127.0.0.1"));
    }
    Ok(listener)
}

fn engine_config(config: &Config, provider: String, generation: u64) -> EngineConfig {
    let defaults = &config.defaults;
    EngineConfig {
        defaults: Defaults {
            image: defaults.image.clone(),
            memory_mb: defaults.memory_mb,
            vcpus: defaults.vcpus,
            pids: defaults.pids,
            disk_mb: defaults.disk_size_mb,
            ttl: defaults.ttl,
            provider,
        },
        preview_domain: config.server.preview_domain.clone(),
        limits: Limits {
            max_ttl: defaults.max_ttl,
            default_exec_timeout: defaults.default_exec_timeout,
            max_exec_timeout: defaults.max_exec_timeout,
            max_sandboxes: defaults.max_sandboxes,
            max_sandboxes_per_owner: defaults.max_sandboxes_per_owner,
            ..Limits::default()
        },
        generation,
        remove_orphans: config.providers.remove_orphans,
        ..EngineConfig::default()
    }
}

fn api_config(config: &Config, address: SocketAddr) -> ApiConfig {
    ApiConfig {
        api_key: config.auth.api_key.clone(),
        admin_api_key: config.auth.admin_api_key.clone(),
        admin_fallback_enabled: config.auth.admin_fallback_enabled,
        cors_allowed_origins: config.server.cors_allowed_origins.clone(),
        // Whoever configures a name expects to be called by it.
        allowed_hosts: vec![config.server.host.clone()],
        loopback: address.ip().to_canonical().is_loopback(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        data_dir: config.data_dir.clone(),
        limits: BodyLimits { heartbeat: config.server.stream_heartbeat, ..BodyLimits::default() },
    }
}

fn banner(config: &Config, address: SocketAddr, provider: &str) -> String {
    // An address that stands for all of them is not one to connect to.
    let host = if address.ip().is_unspecified() { "localhost".to_owned() } else { bracketed(address) };
    let key = if config.requires_key() { "required" } else { "none: this machine only" };
    let key =
        if config.requires_key() || address.ip().is_loopback() { key } else { "none: OPEN TO THE NETWORK" };
    format!(
        "\n  stacyvm {}\n\n  API       http://{host}:{}/api/v1\n  API key   {key}\n  Provider  {provider}\n  \
         Data      {}\n\n  Try it:   stacyvm spawn --server http://{host}:{} --image host\n  Stop it:  Ctrl-C; sandboxes go on\n\n",
        cli::version(),
        address.port(),
        config.data_dir.display(),
        address.port(),
    )
}

fn bracketed(address: SocketAddr) -> String {
    match address {
        SocketAddr::V4(v4) => v4.ip().to_string(),
        SocketAddr::V6(v6) => format!("[{}]", v6.ip()),
    }
}
