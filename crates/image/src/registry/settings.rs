//! What an operator decides about registries.

use crate::{Credentials, Platform, Reference};
use stacyvm_provider::{Error, Result};
use std::{collections::BTreeMap, path::PathBuf, time::Duration};

/// How registries are spoken to.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Registries that are asked first, by registry (`docker.io`): each `host[:port]`, with a prefix of its repositories if
    /// it has one (`harbor.example/hub`). What they do not have comes from the registry itself.
    pub mirrors: BTreeMap<String, Vec<String>>,
    /// Registries, mirrors and stores of blobs, `host[:port]`, whose certificate is not checked, and that may speak plain
    /// HTTP. Nobody else may, not even this host.
    pub insecure: Vec<String>,
    /// Credentials by registry, as in [`Reference::registry`]; they come before those of the file.
    pub credentials: BTreeMap<String, Credentials>,
    /// The file that `docker login` writes.
    pub auth_file: Option<PathBuf>,
    /// Certificates in PEM that are trusted beside the host's.
    pub ca_file: Option<PathBuf>,
    /// The platform that images are pulled for.
    pub platform: Platform,
    /// Largest image in bytes, as it is sent.
    pub largest: u64,
    /// Longest silence of a registry; a transfer may take as long as it takes.
    pub silence: Duration,
    /// Attempts that may fail one after the other before a transfer is given up; those that come on are not counted.
    pub attempts: u32,
    /// Wait before the second attempt; each further one waits twice as long, up to [`Self::longest_wait`].
    pub wait: Duration,
    /// Longest wait before an attempt, also where a registry asks for more: then the pull fails and says for how long.
    pub longest_wait: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            mirrors: BTreeMap::new(),
            insecure: Vec::new(),
            credentials: BTreeMap::new(),
            auth_file: None,
            ca_file: None,
            platform: Platform::host(),
            largest: 64 << 30,
            silence: Duration::from_secs(30),
            attempts: 5,
            wait: Duration::from_millis(250),
            longest_wait: Duration::from_secs(20),
        }
    }
}

/// One server that is asked for an image.
#[derive(Debug, Clone)]
pub(super) struct Server {
    /// Its name as in [`Reference::registry`], by which credentials are known.
    pub(super) name: String,
    /// Host and port that are connected to.
    pub(super) host: String,
    /// The repository that is asked for.
    pub(super) repository: String,
    /// Whether it may do without TLS that is verified.
    pub(super) insecure: bool,
}

impl Settings {
    /// Checks what cannot work, with words for who configured it.
    pub(super) fn check(&self) -> Result<()> {
        for mirror in self.mirrors.values().flatten() {
            split_mirror(mirror)?;
        }
        for host in self.mirrors.keys().chain(&self.insecure).chain(self.credentials.keys()) {
            let known = format!("{host}/x").parse::<Reference>().is_ok_and(|named| is_registry(&named, host));
            if !known {
                return Err(Error::invalid_argument(format!(
                    "{host:?} is no registry: write it as in docker.io, registry.example or 10.0.0.1:5000"
                )));
            }
        }
        Ok(())
    }

    /// The mirrors to ask for an image, in their order.
    pub(super) fn mirrors(&self, reference: &Reference) -> Vec<Server> {
        let mut servers = Vec::new();
        for mirror in self.mirrors.get(reference.registry()).into_iter().flatten() {
            // Those that do not parse were refused by `check`.
            let Ok((host, prefix)) = split_mirror(mirror) else { continue };
            let repository = match prefix {
                Some(prefix) => format!("{prefix}/{}", reference.repository()),
                None => reference.repository().to_owned(),
            };
            servers.push(self.server(&host, repository));
        }
        servers
    }

    /// The registry of an image.
    pub(super) fn origin(&self, reference: &Reference) -> Server {
        self.server(reference.registry(), reference.repository().to_owned())
    }

    fn server(&self, name: &str, repository: String) -> Server {
        let host = if name == "docker.io" { "registry-1.docker.io" } else { name };
        Server {
            name: name.to_owned(),
            host: host.to_owned(),
            repository,
            insecure: self.is_insecure(name) || self.is_insecure(host),
        }
    }

    /// Whether a host may do without TLS that is verified.
    pub(super) fn is_insecure(&self, host: &str) -> bool {
        self.insecure.iter().any(|listed| listed == host)
    }
}

fn is_registry(named: &Reference, host: &str) -> bool {
    named.registry() == host && matches!(named.repository(), "x" | "library/x")
}

/// Host and prefix of a mirror.
fn split_mirror(mirror: &str) -> Result<(String, Option<String>)> {
    let bare = mirror.strip_prefix("https://").unwrap_or(mirror).trim_end_matches('/');
    let host = bare.split('/').next().unwrap_or_default();
    match format!("{bare}/x").parse::<Reference>() {
        Ok(named) if named.registry().eq_ignore_ascii_case(host) && named.registry() != "docker.io" => {
            let prefix = named.repository().strip_suffix("/x").map(str::to_owned);
            Ok((named.registry().to_owned(), prefix))
        }
        _ => Err(Error::invalid_argument(format!(
            "{mirror:?} is no mirror: write it as in mirror.example, 10.0.0.1:5000 or harbor.example/hub; one without TLS is listed as insecure, too"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_mirror(mirror: &str) -> Settings {
        let mirrors = BTreeMap::from([("docker.io".to_owned(), vec![mirror.to_owned()])]);
        Settings { mirrors, insecure: vec!["10.0.0.1:5000".to_owned()], ..Settings::default() }
    }

    #[test]
    fn mirrors_and_the_registry_are_known() {
        let reference: Reference = "alpine".parse().unwrap();
        for (mirror, host, repository, insecure) in [
            ("mirror.example", "mirror.example", "library/alpine", false),
            ("https://mirror.example/", "mirror.example", "library/alpine", false),
            ("harbor.example/hub/a", "harbor.example", "hub/a/library/alpine", false),
            ("10.0.0.1:5000", "10.0.0.1:5000", "library/alpine", true),
        ] {
            let settings = with_mirror(mirror);
            settings.check().unwrap();
            let servers = settings.mirrors(&reference);
            let [first] = servers.as_slice() else { panic!("{servers:?}") };
            let seen = (first.host.as_str(), first.repository.as_str(), first.insecure);
            assert_eq!(seen, (host, repository, insecure));
            let last = settings.origin(&reference);
            let seen = (last.name.as_str(), last.host.as_str(), last.insecure);
            assert_eq!(seen, ("docker.io", "registry-1.docker.io", false));
        }
        assert!(with_mirror("a.b").mirrors(&"quay.io/a/b".parse().unwrap()).is_empty());
    }

    #[test]
    fn what_is_no_host_is_refused() {
        for mirror in ["", "http://a.b", "a", "a.b/../c", "a.b?x", "user@a.b", "docker.io"] {
            assert!(with_mirror(mirror).check().unwrap_err().message().contains("no mirror"), "{mirror}");
        }
        for host in ["", "a", "a.b/c", "https://a.b", "a b.c", "A.b", "index.docker.io"] {
            let settings = Settings { insecure: vec![host.to_owned()], ..Settings::default() };
            assert!(settings.check().unwrap_err().message().contains("no registry"), "{host}");
        }
        let insecure = ["docker.io", "a.b", "localhost", "[::1]:5000"].map(str::to_owned).to_vec();
        Settings { insecure, ..Settings::default() }.check().unwrap();
    }
}
