//! The configuration as programs read it: the keys that have an effect, with the types they want.

use crate::{
    docker::Docker,
    images::Images,
    validate::{self, PROVIDERS},
    value::Settings,
};
use std::{
    path::{Path, PathBuf},
    time::Duration,
};

/// Everything that has an effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// State of the installation; absolute.
    pub data_dir: PathBuf,
    /// Guest agent that replaces the built-in one; absolute.
    pub agent_path: Option<PathBuf>,
    /// The listener.
    pub server: Server,
    /// Images of registries and archives.
    pub images: Images,
    /// Runtimes.
    pub providers: Providers,
    /// Defaults and limits of sandboxes.
    pub defaults: Defaults,
    /// Who may call.
    pub auth: Auth,
    /// Where state is kept.
    pub database: Database,
    /// What is logged.
    pub logging: Logging,
}

/// The listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// Address or name, without brackets.
    pub host: String,
    /// Port; 0: a free one.
    pub port: u16,
    /// Domain of previews; empty: none.
    pub preview_domain: String,
    /// Longest silence on a stream.
    pub stream_heartbeat: Duration,
    /// Origins whose pages may read answers; empty or `*`: any.
    pub cors_allowed_origins: Vec<String>,
}

/// Runtimes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Providers {
    /// Provider of sandboxes that name none, or `auto`.
    pub default: String,
    /// Sandboxes that the database does not know are removed.
    pub remove_orphans: bool,
    /// `native` is on.
    pub native: bool,
    /// Directories that may be images of `native`, with those below them.
    pub native_image_dirs: Vec<PathBuf>,
    /// Networks of `native`.
    pub native_network: NativeNetwork,
    /// `mock` is on.
    pub mock: bool,
    /// The docker provider.
    pub docker: Docker,
}

/// Networks of the native provider.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NativeNetwork {
    /// Network of sandboxes that name none: `none`, `internet`, or `nat` for the latter.
    pub mode: String,
    /// Resolvers.
    pub dns: Vec<String>,
    /// What `internet` blocks beside the usual.
    pub blocked_addresses: Vec<String>,
    /// Prefixes of addresses of sandboxes.
    pub address_pool: Vec<String>,
}

impl Providers {
    /// Those that are on, in the order in which `auto` tries them.
    pub fn enabled(&self) -> Vec<&'static str> {
        PROVIDERS
            .iter()
            .copied()
            .filter(|name| match *name {
                "docker" => self.docker.enabled,
                "native" => self.native,
                _ => self.mock,
            })
            .collect()
    }
}

/// Defaults and limits of sandboxes. Limits of zero are no limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Defaults {
    /// Time to live.
    pub ttl: Duration,
    /// Image.
    pub image: String,
    /// Memory limit in MiB.
    pub memory_mb: u32,
    /// Disk limit in MiB; 0: none.
    pub disk_size_mb: u32,
    /// Processor limit.
    pub vcpus: u32,
    /// Processes and threads at once.
    pub pids: u32,
    /// Longest time to live.
    pub max_ttl: Duration,
    /// Time allowed to an exec that names none; zero: no deadline.
    pub default_exec_timeout: Duration,
    /// Longest time of an exec, and of a process that names a timeout.
    pub max_exec_timeout: Duration,
    /// Most sandboxes.
    pub max_sandboxes: u64,
    /// Most sandboxes of one owner.
    pub max_sandboxes_per_owner: u64,
}

/// Who may call. Its debug form holds no secrets.
#[derive(Clone, PartialEq, Eq)]
pub struct Auth {
    /// Starting without a key is refused.
    pub enabled: bool,
    /// Listening beyond loopback without a key is wanted.
    pub allow_unauthenticated: bool,
    /// Key of ordinary callers.
    pub api_key: Option<String>,
    /// Key of administrators.
    pub admin_api_key: Option<String>,
    /// Without an admin key the API key serves for it.
    pub admin_fallback_enabled: bool,
}

impl std::fmt::Debug for Auth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Auth")
            .field("enabled", &self.enabled)
            .field("allow_unauthenticated", &self.allow_unauthenticated)
            .field("api_key", &self.api_key.is_some())
            .field("admin_api_key", &self.admin_api_key.is_some())
            .field("admin_fallback_enabled", &self.admin_fallback_enabled)
            .finish()
    }
}

/// Where state is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Database {
    /// `sqlite` or `postgres`.
    pub driver: &'static str,
    /// SQLite file; absolute.
    pub path: PathBuf,
}

/// What is logged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Logging {
    /// Least severe message.
    pub level: LogLevel,
    /// Form of a line.
    pub format: LogFormat,
}

/// Severity of log messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogLevel {
    /// Everything.
    Trace,
    /// What helps to find a defect.
    Debug,
    /// What an operator wants to know.
    Info,
    /// What needs attention at some time.
    Warn,
    /// What needs attention now.
    Error,
    /// Nothing.
    Off,
}

impl LogLevel {
    /// The level as log filters spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Trace => "trace",
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
            Self::Off => "off",
        }
    }
}

/// Form of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object.
    Json,
    /// Text.
    Pretty,
}

impl Config {
    /// From settings that passed the checks.
    pub(crate) fn new(settings: &Settings, cwd: &Path) -> Self {
        let path = |name: &str| cwd.join(settings.text(name));
        let optional = |name: &str| Some(settings.text(name).to_owned()).filter(|text| !text.is_empty());
        // The table bounds these keys, so that nothing is cut here.
        let u32_of = |name: &str| u32::try_from(settings.int(name)).unwrap_or(u32::MAX);
        let u64_of = |name: &str| u64::try_from(settings.int(name)).unwrap_or(0);
        let host = settings.text("server.host");
        Self {
            data_dir: path("data_dir"),
            agent_path: optional("agent_path").map(|agent| cwd.join(agent)),
            server: Server {
                host: host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host).to_owned(),
                port: u16::try_from(settings.int("server.port")).unwrap_or(0),
                preview_domain: settings.text("server.preview_domain").to_owned(),
                stream_heartbeat: settings.duration("server.stream_heartbeat"),
                cors_allowed_origins: settings.list("server.cors_allowed_origins"),
            },
            images: Images::new(settings, cwd),
            providers: Providers {
                default: settings.text("providers.default").to_owned(),
                remove_orphans: settings.text("providers.orphans") == "remove",
                native: settings.bool("providers.native.enabled"),
                native_image_dirs: settings
                    .list("providers.native.image_dirs")
                    .into_iter()
                    .map(PathBuf::from)
                    .collect(),
                native_network: NativeNetwork {
                    mode: settings.text("providers.native.network_mode").to_owned(),
                    dns: settings.list("providers.native.dns"),
                    blocked_addresses: settings.list("providers.native.blocked_addresses"),
                    address_pool: settings.list("providers.native.address_pool"),
                },
                mock: settings.bool("providers.mock.enabled"),
                docker: Docker::new(settings, cwd),
            },
            defaults: Defaults {
                ttl: settings.duration("defaults.ttl"),
                image: settings.text("defaults.image").to_owned(),
                memory_mb: u32_of("defaults.memory_mb"),
                vcpus: u32_of("defaults.vcpus"),
                pids: u32_of("defaults.pids"),
                disk_size_mb: u32_of("defaults.disk_size_mb"),
                max_ttl: settings.duration("defaults.max_ttl"),
                default_exec_timeout: settings.duration("defaults.default_exec_timeout"),
                max_exec_timeout: settings.duration("defaults.max_exec_timeout"),
                max_sandboxes: u64_of("defaults.max_sandboxes"),
                max_sandboxes_per_owner: u64_of("defaults.max_sandboxes_per_owner"),
            },
            auth: Auth {
                enabled: settings.bool("auth.enabled"),
                allow_unauthenticated: settings.bool("auth.allow_unauthenticated"),
                api_key: optional("auth.api_key"),
                admin_api_key: optional("auth.admin_api_key"),
                admin_fallback_enabled: settings.bool("auth.admin_fallback_enabled"),
            },
            database: Database {
                driver: if settings.text("database.driver").starts_with("postgres") {
                    "postgres"
                } else {
                    "sqlite"
                },
                path: path("database.path"),
            },
            logging: Logging {
                level: match settings.text("logging.level") {
                    "trace" => LogLevel::Trace,
                    "debug" => LogLevel::Debug,
                    "warn" => LogLevel::Warn,
                    "error" | "fatal" | "panic" => LogLevel::Error,
                    "disabled" => LogLevel::Off,
                    _ => LogLevel::Info,
                },
                format: if settings.text("logging.format") == "pretty" {
                    LogFormat::Pretty
                } else {
                    LogFormat::Json
                },
            },
        }
    }

    /// A key is set, so callers must present one.
    pub fn requires_key(&self) -> bool {
        self.auth.api_key.is_some() || self.auth.admin_api_key.is_some()
    }

    /// The listener can be reached from this machine only.
    pub fn listens_on_loopback(&self) -> bool {
        validate::is_loopback(&self.server.host)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        key::{Effect, Kind},
        load::defaults,
        value::Value,
    };

    /// Another value of the same kind, one that every reader can tell from the default.
    fn other(setting: &crate::Setting) -> Value {
        match (&setting.value, setting.key.kind) {
            _ if setting.key.name == "providers.docker.user" => Value::Text("7:7".to_owned()),
            (Value::Map(_), _) if setting.key.name == "images.credentials" => {
                Value::Map([("x".to_owned(), "y:z".to_owned())].into())
            }
            (Value::Map(_), _) if setting.key.name == "providers.docker.ulimits" => {
                Value::Map([("nofile".to_owned(), "1:2".to_owned())].into())
            }
            (_, Kind::Choice(words)) => Value::Text((*words.last().unwrap()).to_owned()),
            (Value::Text(text), _) => Value::Text(format!("{text}x")),
            (Value::Bool(on), _) => Value::Bool(!on),
            (Value::Int(int), _) => Value::Int(int + 1),
            (Value::Duration(d), _) => Value::Duration((d.to_std().unwrap() + Duration::from_secs(1)).into()),
            (Value::List(_), _) => Value::List(vec!["x".to_owned()]),
            (Value::Map(_), _) => Value::Map([("x".to_owned(), "y".to_owned())].into()),
        }
    }

    #[test]
    fn keys_said_to_have_an_effect_have_one_and_the_others_have_none() {
        let settings = defaults();
        let before = Config::new(&settings, Path::new("/"));
        for setting in settings.iter() {
            let name = setting.key.name;
            let mut changed = settings.clone();
            changed.get_mut(name).unwrap().value = other(setting);
            let live = Config::new(&changed, Path::new("/")) != before;
            // Files of secrets take effect through the key that they fill.
            let expected = setting.key.effect == Effect::Live
                && !name.ends_with("_api_key_file")
                && name != "auth.api_key_file";
            assert_eq!(live, expected, "{name}");
        }
    }

    #[test]
    fn debug_output_holds_no_secret() {
        let mut settings = defaults();
        settings.get_mut("auth.api_key").unwrap().value = Value::Text("hunter2".to_owned());
        assert!(!format!("{:?}", Config::new(&settings, Path::new("/"))).contains("hunter2"));
    }
}
