//! The keys of images with the types that programs want.

use crate::{
    problem::{Problem, excerpt},
    validate::place,
    value::Settings,
};
use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
};

/// Images of registries and archives, for runtimes that have no store of their own. Its debug form holds no secrets.
#[derive(Clone, PartialEq, Eq)]
pub struct Images {
    /// `always`, `missing` or `never`.
    pub pull_policy: String,
    /// Images that are pulled when the server starts.
    pub prefetch: Vec<String>,
    /// Most bytes of disk of all images together; 0: no limit.
    pub max_bytes: u64,
    /// Registries that are asked first, by registry.
    pub mirrors: BTreeMap<String, Vec<String>>,
    /// Registries that may do without TLS.
    pub insecure_registries: Vec<String>,
    /// User and password by registry.
    pub credentials: BTreeMap<String, (String, String)>,
    /// The file that `docker login` writes.
    pub auth_file: Option<PathBuf>,
    /// Certificates that are trusted beside the host's.
    pub ca_file: Option<PathBuf>,
}

impl fmt::Debug for Images {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Images")
            .field("pull_policy", &self.pull_policy)
            .field("prefetch", &self.prefetch)
            .field("max_bytes", &self.max_bytes)
            .field("mirrors", &self.mirrors)
            .field("insecure_registries", &self.insecure_registries)
            .field("credentials", &self.credentials.keys())
            .field("auth_file", &self.auth_file)
            .field("ca_file", &self.ca_file)
            .finish()
    }
}

impl Images {
    /// From settings that passed the checks.
    pub(crate) fn new(settings: &Settings, cwd: &Path) -> Self {
        let path = |name: &str| {
            let text = settings.text(name).trim();
            (!text.is_empty()).then(|| cwd.join(text))
        };
        Self {
            pull_policy: settings.text("images.pull_policy").trim().to_owned(),
            prefetch: settings.list("images.prefetch"),
            max_bytes: u64::try_from(settings.int("images.max_size_mb")).unwrap_or(0).saturating_mul(1 << 20),
            mirrors: settings
                .map("images.mirrors")
                .into_iter()
                .map(|(registry, mirrors)| {
                    (registry, mirrors.split_whitespace().map(str::to_owned).collect())
                })
                .collect(),
            insecure_registries: settings.list("images.insecure_registries"),
            credentials: settings
                .map("images.credentials")
                .into_iter()
                .filter_map(|(registry, pair)| Some((registry, credentials(&pair)?)))
                .collect(),
            auth_file: path("images.auth_file"),
            ca_file: path("images.ca_file"),
        }
    }
}

/// `user:password`
fn credentials(pair: &str) -> Option<(String, String)> {
    let (user, password) = pair.split_once(':')?;
    (!user.is_empty()).then(|| (user.to_owned(), password.to_owned()))
}

/// Checks beyond the spelling of a value.
pub(crate) fn check(settings: &Settings, problems: &mut Vec<Problem>) {
    for (registry, pair) in settings.map("images.credentials") {
        if credentials(&pair).is_none() {
            // Not the value itself, which is a secret.
            let what = format!(
                "images.credentials has something else than user:password for {}",
                excerpt(&registry)
            );
            problems.push(Problem::new(place(settings, "images.credentials"), what, "write user:password"));
        }
    }
}
