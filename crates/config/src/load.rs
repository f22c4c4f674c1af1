//! Puts the sources together: defaults, file, variables, flags; then secret files, computed defaults and checks.

use crate::{
    environment,
    file::{self, read_text},
    key::{Effect, Key, Kind},
    problem::{Invalid, Place, Problem},
    table::{KEYS, find},
    typed::Config,
    validate,
    value::{self, Origin, Setting, Settings, Value},
};
use std::{
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
};

/// Largest secret file.
const SECRET_BYTES: u64 = 64 * 1024;

/// Where configuration is looked for. All of it is passed in, so that tests need not touch the process.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// The file named on the command line; `None`: the usual places.
    pub file: Option<PathBuf>,
    /// Environment, `HOME` and `XDG_STATE_HOME` included.
    pub variables: Vec<(OsString, OsString)>,
    /// Directory that relative paths start at.
    pub cwd: PathBuf,
    /// The process runs as root.
    pub root: bool,
    /// Flags that set keys.
    pub overrides: Vec<Override>,
    /// Read the files that hold secrets. Without it, a secret with a file counts as set and stays empty.
    pub secrets: bool,
}

/// A command-line flag that sets a key.
#[derive(Debug, Clone)]
pub struct Override {
    /// Name of the key; one that does not exist is ignored.
    pub key: &'static str,
    /// The flag, as typed: `--data-dir`.
    pub flag: &'static str,
    /// Its text.
    pub text: String,
}

/// A configuration that can be used.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// For programs.
    pub config: Config,
    /// For people: every key with the origin of its value.
    pub settings: Settings,
    /// The file that was read.
    pub file: Option<PathBuf>,
    /// What looks wrong and does no harm.
    pub warnings: Vec<Problem>,
}

impl Sources {
    /// Those of this process.
    ///
    /// # Errors
    /// The current directory is gone.
    pub fn from_process(root: bool) -> std::io::Result<Self> {
        Ok(Self {
            variables: std::env::vars_os().collect(),
            cwd: std::env::current_dir()?,
            root,
            secrets: true,
            ..Self::default()
        })
    }

    fn variable(&self, name: &str) -> Option<&OsStr> {
        let found = self.variables.iter().find(|(n, _)| n == name);
        found.map(|(_, value)| value.as_os_str()).filter(|value| !value.is_empty())
    }
}

impl Loaded {
    /// Keys that are set to something else than the default and change nothing in this version.
    pub fn without_effect(&self) -> Vec<&Setting> {
        let set =
            self.settings.iter().filter(|s| s.key.effect == Effect::None && s.origin != Origin::Default);
        set.filter(|s| value::from_text(s.key.kind, s.key.default).as_ref() != Ok(&s.value)).collect()
    }

    /// What stands against serving with this configuration, although it is well formed: an open listener, a provider or
    /// database that this version does not have.
    pub fn check_serve(&self) -> Vec<Problem> {
        validate::serve(&self.config, &self.settings)
    }
}

/// Reads every source.
///
/// # Errors
/// Every value that cannot be used, all at once.
pub fn load(sources: &Sources) -> Result<Loaded, Invalid> {
    let mut problems = Vec::new();
    let mut warnings = Vec::new();
    let mut settings = defaults();

    let home = sources.variable("HOME").map(Path::new);
    let file = file::choose(sources.file.as_deref(), &sources.cwd, home);
    if let Some(path) = &file {
        let content = file::read(path);
        problems.extend(content.problems);
        warnings.extend(content.warnings);
        for (key, value, line) in content.values {
            set(&mut settings, key, value, Origin::File(path.clone(), line));
        }
    }
    let content = environment::read(&sources.variables);
    problems.extend(content.problems);
    warnings.extend(content.warnings);
    for (key, value, name) in content.values {
        set(&mut settings, key, value, Origin::Env(name));
    }
    for Override { key, flag, text } in &sources.overrides {
        let Some(key) = find(key) else { continue };
        match value::from_text(key.kind, text) {
            Ok(value) => set(&mut settings, key, value, Origin::Flag(flag)),
            Err(mismatch) => problems.push(Problem::new(Place::Flag(flag), mismatch.what, mismatch.fix)),
        }
    }

    read_secrets(&mut settings, sources, &mut problems);
    compute(&mut settings, sources, &mut problems);
    validate::all(&settings, &mut problems, &mut warnings);
    if !problems.is_empty() {
        return Err(Invalid { problems, warnings });
    }
    let config = Config::new(&settings, &sources.cwd);
    Ok(Loaded { config, settings, file, warnings })
}

/// The table's own values. A default that is no value of its kind would fail the table's test.
pub(crate) fn defaults() -> Settings {
    let setting = |key: &'static Key| {
        let value = value::from_text(key.kind, key.default).unwrap_or(Value::Text(String::new()));
        Setting { key, value, origin: Origin::Default }
    };
    Settings(KEYS.iter().map(setting).collect())
}

fn set(settings: &mut Settings, key: &'static Key, value: Value, origin: Origin) {
    if let Some(setting) = settings.get_mut(key.name) {
        setting.value = value;
        setting.origin = origin;
    }
}

/// Fills keys whose `_file` partner names a file.
fn read_secrets(settings: &mut Settings, sources: &Sources, problems: &mut Vec<Problem>) {
    let partners = KEYS.iter().filter(|key| matches!(key.kind, Kind::Secret | Kind::Text));
    for key in partners {
        let Some(file) = find(&format!("{}_file", key.name)) else { continue };
        let path = settings.text(file.name).to_owned();
        if path.is_empty() {
            continue;
        }
        let origin = settings.get(file.name).map_or(Origin::Default, |s| s.origin.clone());
        if !settings.text(key.name).is_empty() {
            let what = format!("{} and {} cannot both be set", key.name, file.name);
            problems.push(Problem::new(origin.place(), what, "remove one of them"));
            continue;
        }
        if !sources.secrets {
            continue;
        }
        match read_text(&sources.cwd.join(&path), SECRET_BYTES) {
            Ok(text) if !text.trim().is_empty() => {
                set(settings, key, Value::Text(text.trim().to_owned()), origin);
            }
            Ok(_) => {
                let what = format!("{}: {path} is empty", file.name);
                problems.push(Problem::new(origin.place(), what, "write the secret into it"));
            }
            Err(error) => {
                let what = format!("{}: {path} cannot be read: {error}", file.name);
                problems.push(Problem::new(origin.place(), what, "name a file that this user can read"));
            }
        }
    }
}

/// Defaults that depend on other values.
fn compute(settings: &mut Settings, sources: &Sources, problems: &mut Vec<Problem>) {
    if settings.text("data_dir").is_empty() {
        match default_data_dir(sources) {
            Some(path) => default(settings, "data_dir", path),
            None => problems.push(Problem::new(
                Place::Nowhere,
                "there is no HOME to keep data under",
                "set data_dir (STACYVM_DATA_DIR)",
            )),
        }
    }
    if settings.text("database.path").is_empty() {
        let path = Path::new(settings.text("data_dir")).join("stacyvm.db");
        default(settings, "database.path", path.to_string_lossy().into_owned());
    }
    if settings.text("server.host").is_empty() {
        let host = if validate::has_credentials(settings) { "0.0.0.0" } else { "127.0.0.1" };
        default(settings, "server.host", host.to_owned());
    }
    for name in ["images.auth_file", "providers.docker.auth_file"] {
        if !settings.text(name).is_empty() {
            continue;
        }
        let directory = sources.variable("DOCKER_CONFIG").map(PathBuf::from);
        let home = || sources.variable("HOME").map(|home| Path::new(home).join(".docker"));
        if let Some(directory) = directory.or_else(home) {
            let file = directory.join("config.json").to_string_lossy().into_owned();
            default(settings, name, file);
        }
    }
    if settings.text("providers.default").is_empty() {
        default(settings, "providers.default", "auto".to_owned());
    }
}

fn default(settings: &mut Settings, name: &str, text: String) {
    if let Some(setting) = settings.get_mut(name) {
        setting.value = Value::Text(text);
        setting.origin = Origin::Default;
    }
}

fn default_data_dir(sources: &Sources) -> Option<String> {
    if sources.root {
        return Some("/var/lib/stacyvm".to_owned());
    }
    let state = sources.variable("XDG_STATE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let state =
        state.or_else(|| sources.variable("HOME").map(|home| Path::new(home).join(".local/state")))?;
    state.join("stacyvm").into_os_string().into_string().ok()
}

#[cfg(test)]
#[path = "load_tests.rs"]
mod tests;
