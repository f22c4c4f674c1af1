//! The way to the daemon: found when first needed, and again for as long as it cannot be reached.
//!
//! The API version is agreed upon with the daemon, 1.41 at least: Docker 20.10, and what comes after Docker 29, which
//! refuses versions that are older than its own idea of old.

use crate::failure::{failed, unreachable};
use bollard::{ClientVersion, Docker};
use rustix::process::geteuid;
use stacyvm_provider::{Error, Result};
use std::{
    env,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};
use tokio::sync::OnceCell;

/// Longest time for the head of an answer. Creates and removals of a busy daemon take their time.
const ANSWER: u64 = 120;
/// Longest time for the first words with a daemon.
const GREETING: Duration = Duration::from_secs(5);
/// Oldest version of the API that is spoken.
const OLDEST: ClientVersion = ClientVersion { major_version: 1, minor_version: 41 };
/// Newest one that is understood.
const NEWEST: &ClientVersion = &ClientVersion { major_version: 1, minor_version: 51 };

/// The daemon, as configured.
#[derive(Debug)]
pub(crate) struct Daemon {
    address: String,
    client: OnceCell<Docker>,
    short_way: AtomicBool,
}

impl Daemon {
    /// The daemon at `address`, or the one that `docker` would use.
    pub(crate) fn new(address: Option<&str>, bridges_only: bool) -> Self {
        let address = address.map(str::to_owned).filter(|address| !address.is_empty());
        let address = address
            .or_else(|| env::var("DOCKER_HOST").ok().filter(|host| !host.is_empty()))
            .unwrap_or_else(|| "unix:///var/run/docker.sock".to_owned());
        let address = if address.starts_with('/') { format!("unix://{address}") } else { address };
        // A guess, until a sandbox that was made upon it is reached otherwise.
        let short_way =
            AtomicBool::new(!bridges_only && address.starts_with("unix://") && geteuid().is_root());
        Self { address, client: OnceCell::new(), short_way }
    }

    /// Where it is.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// Whether it is on this machine, as far as its address tells.
    pub(crate) fn is_here(&self) -> bool {
        self.address.starts_with("unix://")
    }

    /// Whether agents of containers that share our kernel and users are reached without a bridge.
    pub(crate) fn has_short_way(&self) -> bool {
        self.short_way.load(Ordering::Relaxed)
    }

    /// One was not: the processes of the daemon are not to be seen from here.
    pub(crate) fn lose_short_way(&self) {
        self.short_way.store(false, Ordering::Relaxed);
    }

    /// Whether it is worth a try.
    pub(crate) fn may_be_there(&self) -> bool {
        self.address.strip_prefix("unix://").is_none_or(|path| Path::new(path).exists())
    }

    /// A client of it.
    ///
    /// # Errors
    /// `Unavailable` if it does not answer or is too old.
    pub(crate) async fn client(&self) -> Result<&Docker> {
        self.client.get_or_try_init(|| self.connect()).await
    }

    async fn connect(&self) -> Result<Docker> {
        let socket = self.address.strip_prefix("unix://");
        if let Some(path) = socket.filter(|path| !Path::new(path).exists()) {
            return Err(Error::unavailable(format!(
                "there is no docker daemon at {path}: start it, or name another with providers.docker.socket or DOCKER_HOST"
            )));
        }
        let client = match socket {
            Some(_) => Docker::connect_with_unix(&self.address, ANSWER, NEWEST),
            None => Docker::connect_with_host(&self.address),
        };
        let client = client.map_err(|error| {
            Error::unavailable(format!(
                "{} is no address of a docker daemon that can be used: write unix:///path or tcp://host:port; for one behind TLS or ssh, forward its socket",
                self.address
            ))
            .because(error)
        })?;
        let greeting = tokio::time::timeout(GREETING, client.negotiate_version()).await;
        let client = greeting.map_err(|_| unreachable())?.map_err(|error| {
            if is_forbidden(&error) {
                Error::unavailable(format!(
                    "this server may not use the docker daemon at {}: run it as root or in the group docker",
                    self.address
                ))
                .because(error)
            } else {
                failed("tell its version", error)
            }
        })?;
        if client.client_version() < OLDEST {
            return Err(Error::unavailable(format!(
                "the docker daemon at {} is too old: Docker 20.10 or newer is needed",
                self.address
            )));
        }
        Ok(client)
    }
}

/// Whether the socket is there and closed to us.
fn is_forbidden(error: &bollard::errors::Error) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        let kind = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
        if kind == Some(std::io::ErrorKind::PermissionDenied) {
            return true;
        }
        cause = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use stacyvm_provider::ErrorKind;

    #[test]
    fn a_path_is_a_socket() {
        assert_eq!(Daemon::new(Some("/run/d.sock"), false).address(), "unix:///run/d.sock");
        assert_eq!(Daemon::new(Some("tcp://10.0.0.1:2375"), false).address(), "tcp://10.0.0.1:2375");
    }

    #[tokio::test]
    async fn a_daemon_that_is_not_there_is_unavailable_and_named() {
        for address in ["/nonexistent/d.sock", "ftp://x", "https://127.0.0.1:1", "tcp://127.0.0.1:1"] {
            let error = Daemon::new(Some(address), false).client().await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unavailable, "{address}");
            assert!(error.message().contains("docker daemon"), "{error}");
        }
    }
}
