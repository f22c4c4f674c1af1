//! What can go wrong with a registry: each told apart, since each has another remedy.

use super::settings::Server;
use stacyvm_provider::{Error, Result};
use std::{fmt, io, time::Duration};

type Source = Box<dyn std::error::Error + Send + Sync>;

/// Why an attempt failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// No connection, or one that broke.
    Unreachable(Source),
    /// It does not speak TLS.
    NoTls(Source),
    /// Its certificate is not trusted.
    Untrusted(Source),
    /// Nothing came for this long.
    Silent(Duration),
    /// It ended before everything was there.
    Cut {
        /// Bytes that came.
        got: u64,
        /// Bytes that should have.
        of: u64,
    },
    /// A status that says no more than that it failed, and after how long it may be asked again.
    Status(u16, Option<Duration>),
    /// It takes no more requests, and after how long it does.
    TooMany(Option<Duration>),
    /// It wants credentials and none are known.
    Wants,
    /// It refused the credentials.
    Refused,
    /// It gives this image to nobody, or not to us.
    Denied {
        /// Whether credentials were shown.
        known: bool,
    },
    /// It has no such repository.
    NoImage,
    /// It has the repository, and no such tag or digest in it.
    NoTag,
    /// It has the manifest, and not what the manifest names.
    NoBlob,
    /// It sends elsewhere, and that leads nowhere; completes "it redirects …".
    Redirects(String),
    /// What it sends is not what it should be; completes "it …".
    Lies(String),
    /// What it sent cannot be written.
    Disk(io::Error),
    /// A request that cannot be made; a defect.
    Request(Source),
}

impl Failure {
    /// Whether the same request may succeed soon, and how long the registry asks to wait.
    pub(super) fn again(&self) -> Option<Option<Duration>> {
        match self {
            Self::Unreachable(_) | Self::Silent(_) | Self::Cut { .. } => Some(None),
            Self::Status(408 | 500 | 502 | 503 | 504, after) | Self::TooMany(after) => Some(*after),
            _ => None,
        }
    }

    /// Whether asking another server is worthwhile.
    pub(super) fn is_remote(&self) -> bool {
        !matches!(self, Self::Disk(_))
    }

    /// The contract's error, for an image that was asked of a server.
    pub(super) fn explain(self, image: impl fmt::Display, server: &Server) -> Error {
        let registry = &server.name;
        let credentials = "set its user and password in images.credentials, or log in with `docker login` and set images.auth_file";
        match self {
            Self::Unreachable(source) => Error::unavailable(format!(
                "the registry {registry} cannot be reached for {image}: see that its name is right and that this host has a way to it; one without TLS must be listed in images.insecure_registries"
            ))
            .because(source),
            Self::NoTls(source) => Error::unavailable(format!(
                "the registry {registry} does not speak TLS: if it shall be asked for {image} without, list {registry} in images.insecure_registries"
            ))
            .because(source),
            Self::Untrusted(source) => Error::unavailable(format!(
                "the certificate of the registry {registry} is not trusted: name the file of its authority in images.ca_file, install the host's ca-certificates, or list {registry} in images.insecure_registries"
            ))
            .because(source),
            Self::Silent(silence) => Error::unavailable(format!(
                "the registry {registry} sent nothing of {image} for {} s: look at it and at the network on the way to it",
                silence.as_secs_f32()
            )),
            Self::Cut { got, of } => Error::unavailable(format!(
                "the registry {registry} broke off after {got} of {of} bytes of {image}, again and again: look at it, or at a proxy on the way to it; the next pull goes on from there"
            )),
            Self::Status(status, _) => Error::unavailable(format!(
                "the registry {registry} answered with the status {status} when asked for {image}: look at its log, or try again later"
            )),
            Self::TooMany(after) => {
                let when = after.map_or_else(|| "later".to_owned(), |after| format!("in {} s", after.as_secs()));
                Error::unavailable(format!(
                    "the registry {registry} takes no more requests now: try again {when}; for more of them {credentials}"
                ))
            }
            Self::Wants => Error::invalid_argument(format!(
                "the registry {registry} wants credentials for {image}: {credentials}"
            )),
            Self::Refused => Error::invalid_argument(format!(
                "the registry {registry} refused the credentials for {image}: {credentials}"
            )),
            Self::Denied { known: false } => Error::not_found(format!(
                "the registry {registry} has no image {image}, or keeps it from this server: see its name, and for a private one {credentials}"
            )),
            Self::Denied { known: true } => Error::not_found(format!(
                "the registry {registry} has no image {image}, or keeps it from the user that this server is known as: see its name, and what the user may read"
            )),
            Self::NoImage => Error::not_found(format!(
                "the registry {registry} has no image {image}: see its name"
            )),
            Self::NoTag => Error::not_found(format!(
                "the image {image} exists, its tag or digest does not: name one that the registry {registry} has"
            )),
            Self::NoBlob => Error::not_found(format!(
                "the registry {registry} names a part of {image} that it does not have: push the image again"
            )),
            Self::Redirects(how) => Error::unavailable(format!(
                "the registry {registry} cannot be used for {image}, it redirects {how}: look at its configuration"
            )),
            Self::Lies(how) => Error::unavailable(format!(
                "what the registry {registry} sends for {image} cannot be trusted, it {how}: look at it, or at a proxy on the way to it"
            )),
            Self::Disk(source) => disk(image, source),
            Self::Request(source) => {
                Error::internal(format!("the registry {registry} could not be asked for {image}")).because(source)
            }
        }
    }
}

fn disk(image: impl fmt::Display, source: io::Error) -> Error {
    let full = matches!(
        source.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
    );
    let what = if full {
        Error::resource_limit(format!(
            "the image {image} could not be pulled: the disk is full; free some, or remove images that nobody uses"
        ))
    } else {
        Error::internal(format!("the image {image} could not be written: see the directory of images"))
    };
    what.because(source)
}

/// The attempts at one thing.
#[derive(Debug)]
pub(super) struct Tries {
    failed: u32,
    most: u32,
    wait: Duration,
    longest: Duration,
}

impl Tries {
    pub(super) fn new(settings: &super::Settings) -> Self {
        Self { failed: 0, most: settings.attempts, wait: settings.wait, longest: settings.longest_wait }
    }

    /// What failed came on; it counts anew.
    pub(super) fn came_on(&mut self) {
        self.failed = 0;
    }

    /// Waits before the next attempt.
    ///
    /// # Errors
    /// The failure itself if there shall be none: it would fail again, or it did often enough, or the wait is too long.
    pub(super) async fn wait(&mut self, failure: Failure) -> Result<(), Failure> {
        let Some(asked) = failure.again() else { return Err(failure) };
        self.failed += 1;
        if self.failed >= self.most || asked.is_some_and(|asked| asked > self.longest) {
            return Err(failure);
        }
        tracing::debug!(?failure, attempt = self.failed, "a registry is asked again");
        let doubled = self.wait.saturating_mul(1 << (self.failed - 1).min(16)).min(self.longest);
        // Many that failed at once shall not come back at once.
        let jittered = doubled.mul_f64(rand::random_range(0.5..1.0));
        tokio::time::sleep(asked.unwrap_or_default().max(jittered)).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Settings;
    use stacyvm_provider::ErrorKind;

    #[test]
    fn every_failure_has_its_own_remedy() {
        let server = Server {
            name: "r.example".to_owned(),
            host: "r.example".to_owned(),
            repository: "a".to_owned(),
            insecure: false,
        };
        let io = |kind: io::ErrorKind| io::Error::new(kind, "cause");
        let source = || io(io::ErrorKind::Other).into();
        let second = Some(Duration::from_secs(7));
        use ErrorKind::{Internal, InvalidArgument, NotFound, ResourceLimit, Unavailable};
        let cases = [
            (Failure::Unreachable(source()), Unavailable, "cannot be reached"),
            (Failure::NoTls(source()), Unavailable, "list r.example in images.insecure_registries"),
            (Failure::Untrusted(source()), Unavailable, "images.ca_file"),
            (Failure::Silent(Duration::from_secs(60)), Unavailable, "for 60 s"),
            (Failure::Cut { got: 3, of: 9 }, Unavailable, "3 of 9 bytes"),
            (Failure::Status(500, None), Unavailable, "status 500"),
            (Failure::TooMany(second), Unavailable, "in 7 s"),
            (Failure::TooMany(None), Unavailable, "try again later"),
            (Failure::Wants, InvalidArgument, "wants credentials"),
            (Failure::Refused, InvalidArgument, "refused the credentials"),
            (Failure::Denied { known: false }, NotFound, "keeps it from this server"),
            (Failure::Denied { known: true }, NotFound, "what the user may read"),
            (Failure::NoImage, NotFound, "has no image"),
            (Failure::NoTag, NotFound, "tag or digest"),
            (Failure::NoBlob, NotFound, "push the image again"),
            (Failure::Redirects("for ever".to_owned()), Unavailable, "redirects for ever"),
            (Failure::Lies("lies".to_owned()), Unavailable, "cannot be trusted"),
            (Failure::Disk(io(io::ErrorKind::StorageFull)), ResourceLimit, "disk is full"),
            (Failure::Disk(io(io::ErrorKind::PermissionDenied)), Internal, "directory of images"),
            (Failure::Request(source()), Internal, "could not be asked"),
        ];
        for (failure, kind, part) in cases {
            let error = failure.explain("some:1", &server);
            assert_eq!(error.kind(), kind, "{error}");
            assert!(error.message().contains(part), "{part}: {error}");
            assert!(!error.message().contains("cause"), "{error}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn waits_grow_and_have_an_end() {
        let settings = Settings { attempts: 4, ..Settings::default() };
        let mut tries = Tries::new(&settings);
        for most in [250, 500, 1000] {
            let begun = tokio::time::Instant::now();
            tries.wait(Failure::Status(503, None)).await.unwrap();
            let waited = begun.elapsed().as_millis();
            assert!((most / 2..=most + 1).contains(&waited), "{waited} of {most}");
        }
        assert!(matches!(tries.wait(Failure::Status(503, None)).await, Err(Failure::Status(503, None))));
        tries.came_on();
        let begun = tokio::time::Instant::now();
        tries.wait(Failure::TooMany(Some(Duration::from_secs(3)))).await.unwrap();
        assert!((3000..3002).contains(&begun.elapsed().as_millis()));
        let long = Some(Duration::from_secs(3600));
        assert!(matches!(tries.wait(Failure::TooMany(long)).await, Err(Failure::TooMany(_))));
        for failure in
            [Failure::NoImage, Failure::Refused, Failure::Status(400, None), Failure::Lies(String::new())]
        {
            assert!(tries.wait(failure).await.is_err());
        }
    }
}
