//! Registries: manifests and blobs by the distribution specification, from mirrors and from the registry itself.
//!
//! A registry is not believed. What it sends is bounded before it is kept and hashed before it is used; a name that leads
//! elsewhere is followed a few times, and never with what only the registry may see.

mod blob;
mod failure;
mod http;
mod settings;
mod token;

pub use settings::Settings;

use crate::{Blob, Digest, LARGEST, MEDIA_TYPES, Reference};
use ::http::{HeaderMap, Method, Request, Response, StatusCode, header};
use bytes::Bytes;
use failure::{Failure, Tries};
use http::Http;
use http_body_util::Full;
use hyper::body::Incoming;
use serde::Deserialize;
use settings::Server;
use stacyvm_provider::Result;
use std::{
    collections::HashSet,
    fmt,
    sync::{Mutex, PoisonError},
    time::Duration,
    vec,
};
use token::Leaves;
use url::{Position, Url};

/// How this client is known to registries.
const USER_AGENT: &str = concat!("stacyvm/", env!("CARGO_PKG_VERSION"));
/// Redirects in a row that are followed.
const REDIRECTS: usize = 5;
/// Most of an answer that says why something failed, in bytes.
const WORDS: usize = 64 << 10;

/// Asks registries.
pub(crate) struct Registry {
    settings: Settings,
    http: Http,
    leaves: Mutex<Leaves>,
    /// Insecure hosts that were found to speak plain HTTP.
    plain: Mutex<HashSet<String>>,
}

/// What a name or a digest leads to, as it was sent and checked.
#[derive(Debug, Clone)]
pub(crate) struct Fetched {
    pub(crate) digest: Digest,
    pub(crate) media_type: Option<String>,
    pub(crate) bytes: Vec<u8>,
}

/// What is asked of a server below its repository.
struct Ask<'a> {
    path: &'a str,
    accept: Option<&'a str>,
    /// The first byte that is wanted.
    from: u64,
}

/// The servers that are asked for an image, one after the other: its mirrors, and then its registry.
struct Turns<'a> {
    reference: &'a Reference,
    /// Whose turn it is.
    server: Server,
    rest: vec::IntoIter<Server>,
    tries: Tries,
}

impl Turns<'_> {
    /// Waits until the server, or the next one, shall be asked.
    ///
    /// # Errors
    /// Why the last one was given up.
    async fn failed(&mut self, failure: Failure) -> Result<()> {
        let Err(failure) = self.tries.wait(failure).await else { return Ok(()) };
        if !failure.is_remote() {
            return Err(failure.explain(self.reference, &self.server));
        }
        let Some(next) = self.rest.next() else { return Err(failure.explain(self.reference, &self.server)) };
        tracing::info!(mirror = self.server.name, image = %self.reference, ?failure, "a mirror does not help");
        self.server = next;
        self.tries.came_on();
        Ok(())
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Registry {
    /// # Errors
    /// `InvalidArgument` for settings that cannot work.
    pub(crate) fn new(settings: Settings) -> Result<Self> {
        settings.check()?;
        let http = Http::new(settings.ca_file.as_deref(), settings.silence)?;
        Ok(Self { settings, http, leaves: Mutex::default(), plain: Mutex::default() })
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The manifest or index that a name leads to, or the one of `digest` beside it.
    ///
    /// # Errors
    /// As [`Failure::explain`] tells them apart.
    pub(crate) async fn manifest(&self, reference: &Reference, digest: Option<&Digest>) -> Result<Fetched> {
        let digest = digest.or(reference.digest());
        let path = match (digest, reference.tag()) {
            (Some(digest), _) => format!("manifests/{digest}"),
            (None, tag) => format!("manifests/{}", tag.unwrap_or("latest")),
        };
        let accept = MEDIA_TYPES.join(", ");
        let ask = Ask { path: &path, accept: Some(&accept), from: 0 };
        let mut turns = self.turns(reference);
        loop {
            match self.manifest_of(&turns.server, &ask, digest).await {
                Ok(fetched) => return Ok(fetched),
                Err(Failure::NoTag) => turns.failed(self.missing(&turns.server).await).await?,
                Err(failure) => turns.failed(failure).await?,
            }
        }
    }

    async fn manifest_of(
        &self,
        server: &Server,
        ask: &Ask<'_>,
        wanted: Option<&Digest>,
    ) -> Result<Fetched, Failure> {
        let response = self.get(server, ask).await?;
        let text = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
        let media_type = text(header::CONTENT_TYPE).map(str::to_owned);
        if media_type.as_ref().is_some_and(|media| media.starts_with("text/html")) {
            return Err(Failure::Lies("answers with a web page, as what is no registry does".to_owned()));
        }
        let said: Option<Digest> = response
            .headers()
            .get("docker-content-digest")
            .and_then(|value| value.to_str().ok())
            .and_then(|text| text.parse().ok());
        let Some(bytes) = self.http.whole(response.into_body(), LARGEST).await? else {
            return Err(Failure::Lies(format!("sends a manifest of more than {LARGEST} bytes")));
        };
        let digest = Digest::of(&bytes);
        for expected in [wanted, said.as_ref()].into_iter().flatten() {
            if *expected != digest {
                return Err(Failure::Lies(format!("sends the manifest {digest} instead of {expected}")));
            }
        }
        Ok(Fetched { digest, media_type, bytes })
    }

    /// A small blob, in memory: at most [`LARGEST`] bytes.
    ///
    /// # Errors
    /// As [`Failure::explain`] tells them apart.
    pub(crate) async fn small(&self, reference: &Reference, blob: &Blob) -> Result<Vec<u8>> {
        let path = format!("blobs/{}", blob.digest);
        let ask = Ask { path: &path, accept: None, from: 0 };
        let mut turns = self.turns(reference);
        loop {
            match self.small_of(&turns.server, &ask, blob).await {
                Ok(bytes) => return Ok(bytes),
                Err(Failure::NoTag | Failure::NoImage) => turns.failed(Failure::NoBlob).await?,
                Err(failure) => turns.failed(failure).await?,
            }
        }
    }

    async fn small_of(&self, server: &Server, ask: &Ask<'_>, blob: &Blob) -> Result<Vec<u8>, Failure> {
        let response = self.get(server, ask).await?;
        let most = usize::try_from(blob.size).unwrap_or(LARGEST).min(LARGEST);
        let Some(bytes) = self.http.whole(response.into_body(), most).await? else {
            return Err(Failure::Lies(format!(
                "sends more than {most} bytes for the blob {}",
                blob.digest.short()
            )));
        };
        if bytes.len() < most {
            return Err(Failure::Lies(format!(
                "sends {} of {most} bytes for the blob {}",
                bytes.len(),
                blob.digest.short()
            )));
        }
        let digest = Digest::of(&bytes);
        if digest != blob.digest {
            return Err(Failure::Lies(format!("sends the blob {digest} instead of {}", blob.digest)));
        }
        Ok(bytes)
    }

    fn turns<'a>(&'a self, reference: &'a Reference) -> Turns<'a> {
        let mut servers =
            self.settings.mirrors(reference).into_iter().chain([self.settings.origin(reference)]);
        let tries = Tries::new(&self.settings);
        // The registry itself is always there.
        let server = servers.next().unwrap_or_else(|| self.settings.origin(reference));
        Turns { reference, server, rest: servers.collect::<Vec<_>>().into_iter(), tries }
    }

    /// Whether it is the image or its tag that a server has not.
    async fn missing(&self, server: &Server) -> Failure {
        match self.get(server, &Ask { path: "tags/list?n=1", accept: None, from: 0 }).await {
            Err(Failure::NoImage | Failure::NoTag) => Failure::NoImage,
            _ => Failure::NoTag,
        }
    }

    /// Sends a request below the repository, with leave, and follows where it leads. The answer is a success.
    async fn get(&self, server: &Server, ask: &Ask<'_>) -> Result<Response<Incoming>, Failure> {
        let known_plain = self.plain.lock().unwrap_or_else(PoisonError::into_inner).contains(&server.host);
        if known_plain {
            return self.get_by("http", server, ask).await;
        }
        match self.get_by("https", server, ask).await {
            Err(failure @ (Failure::NoTls(_) | Failure::Unreachable(_))) if server.insecure => {
                let answered = self.get_by("http", server, ask).await;
                // A connection that broke says little of what is spoken.
                if answered.is_ok() || matches!(failure, Failure::NoTls(_)) {
                    self.plain.lock().unwrap_or_else(PoisonError::into_inner).insert(server.host.clone());
                }
                answered
            }
            answered => answered,
        }
    }

    async fn get_by(
        &self,
        scheme: &str,
        server: &Server,
        ask: &Ask<'_>,
    ) -> Result<Response<Incoming>, Failure> {
        let text = format!("{scheme}://{}/v2/{}/{}", server.host, server.repository, ask.path);
        let url = Url::parse(&text).map_err(|error| Failure::Request(error.into()))?;
        let mut leave = self.leaves.lock().unwrap_or_else(PoisonError::into_inner).of(server);
        let mut shown = None;
        loop {
            let (response, at) = self.follow(server, &url, ask, leave.as_ref()).await?;
            if !same_origin(&url, &at) && !response.status().is_success() {
                // A store of blobs; what it means by its status is nothing about the image.
                return Err(Failure::Status(response.status().as_u16(), retry_after(response.headers())));
            }
            if response.status() != StatusCode::UNAUTHORIZED || shown.is_some() {
                let judged = self.judge(response, shown).await;
                if matches!(judged, Err(Failure::Denied { .. } | Failure::Refused)) {
                    // Somebody may log in until the next time.
                    self.leaves.lock().unwrap_or_else(PoisonError::into_inner).forget(server);
                }
                return judged;
            }
            let given = self.leave(server, response.headers(), scheme == "http").await?;
            self.leaves.lock().unwrap_or_else(PoisonError::into_inner).remember(server, given.header.clone());
            leave = Some(given.header.clone());
            shown = Some(given);
        }
    }

    /// Follows redirects; the last answer, and where it came from. Leave is shown to the registry's own origin only.
    async fn follow(
        &self,
        server: &Server,
        url: &Url,
        ask: &Ask<'_>,
        leave: Option<&::http::HeaderValue>,
    ) -> Result<(Response<Incoming>, Url), Failure> {
        let mut at = url.clone();
        for _ in 0..=REDIRECTS {
            let mut request = Request::builder()
                .method(Method::GET)
                .uri(&at[..Position::AfterQuery])
                .header(header::USER_AGENT, USER_AGENT)
                .header(header::ACCEPT_ENCODING, "identity");
            if let Some(accept) = ask.accept {
                request = request.header(header::ACCEPT, accept);
            }
            if ask.from > 0 {
                request = request.header(header::RANGE, format!("bytes={}-", ask.from));
            }
            if let Some(leave) = leave.filter(|_| same_origin(url, &at)) {
                request = request.header(header::AUTHORIZATION, leave);
            }
            let request =
                request.body(Full::new(Bytes::new())).map_err(|error| Failure::Request(error.into()))?;
            let insecure =
                self.settings.is_insecure(&authority(&at)) || (server.insecure && same_origin(url, &at));
            let response = self.http.send(request, !insecure).await?;
            let moved = matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308);
            if !moved {
                return Ok((response, at));
            }
            let location = response.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
            let next = location.and_then(|location| at.join(location).ok());
            let Some(next) = next.filter(|next| next.host_str().is_some()) else {
                return Err(Failure::Redirects("to what is no address".to_owned()));
            };
            match (next.scheme(), at.scheme()) {
                ("https", _) | ("http", "http") => {}
                _ => return Err(Failure::Redirects("from TLS to what is without".to_owned())),
            }
            if !next.username().is_empty() || next.password().is_some() {
                return Err(Failure::Redirects("to an address with a password in it".to_owned()));
            }
            at = next;
        }
        Err(Failure::Redirects(format!("more than {REDIRECTS} times")))
    }

    /// Takes an answer if it is a success; else says why not.
    async fn judge(
        &self,
        response: Response<Incoming>,
        shown: Option<token::Leave>,
    ) -> Result<Response<Incoming>, Failure> {
        let status = response.status();
        let after = retry_after(response.headers());
        Err(match status {
            status if status.is_success() => return Ok(response),
            StatusCode::UNAUTHORIZED if shown.as_ref().is_some_and(|shown| shown.basic) => Failure::Refused,
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                Failure::Denied { known: shown.is_some_and(|shown| shown.known) }
            }
            StatusCode::NOT_FOUND => {
                let words =
                    self.http.whole(response.into_body(), WORDS).await.ok().flatten().unwrap_or_default();
                if says(&words, "NAME_UNKNOWN") { Failure::NoImage } else { Failure::NoTag }
            }
            StatusCode::TOO_MANY_REQUESTS => Failure::TooMany(after),
            status => Failure::Status(status.as_u16(), after),
        })
    }
}

/// Whether an answer of the distribution specification names this error.
fn says(words: &[u8], code: &str) -> bool {
    #[derive(Deserialize)]
    struct Words {
        errors: Vec<Word>,
    }
    #[derive(Deserialize)]
    struct Word {
        code: String,
    }
    serde_json::from_slice::<Words>(words)
        .is_ok_and(|words| words.errors.iter().any(|word| word.code == code))
}

/// Host, and port if it is not the scheme's own.
fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

fn same_origin(one: &Url, other: &Url) -> bool {
    one.origin() == other.origin()
}

/// Seconds after which a server wants to be asked again. Dates are not read: no registry sends them.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?;
    text.trim().parse().ok().map(Duration::from_secs)
}
