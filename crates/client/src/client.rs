//! The client: address, key, and how a request is sent and its answer judged.

use crate::error::{Error, Result};
use bytes::{Bytes, BytesMut};
use reqwest::{
    Method, RequestBuilder, Response, Url,
    header::{HeaderMap, HeaderValue},
    redirect::Policy,
};
use serde::{Serialize, de::DeserializeOwned};
use stacyvm_types::ErrorBody;
use std::{net::IpAddr, sync::Arc, time::Duration};

/// Time to connect.
const CONNECT: Duration = Duration::from_secs(10);
/// Time for an answer that the server gives at once.
pub(crate) const PROMPT: Duration = Duration::from_secs(30);
/// Time for an answer that waits for a runtime to remove something.
pub(crate) const SLOW: Duration = Duration::from_secs(120);
/// Longest silence on a stream that has heartbeats (the server sends one every 15 s).
pub(crate) const SILENCE: Duration = Duration::from_secs(60);
/// Largest answer held in memory.
const ANSWER: usize = 256 << 20;
/// Largest error text read.
const ERROR_TEXT: usize = 64 << 10;

/// What a client is made of.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Address of the server, `http://host:port`, with a path if it is served below one.
    pub server: String,
    /// Sent as `X-API-Key`.
    pub api_key: Option<String>,
    /// Sent as `X-User-ID`: who sandboxes belong to.
    pub user: Option<String>,
    /// Sent as `User-Agent`.
    pub agent: Option<String>,
}

/// A client of one server. Clones share connections.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    base: Arc<Url>,
}

impl Client {
    /// A client for this server. Nothing is sent yet.
    ///
    /// # Errors
    /// [`Error::Options`] for an address or key that cannot be used.
    pub fn new(options: &Options) -> Result<Self> {
        let base = base_url(&options.server)?;
        let mut headers = HeaderMap::new();
        for (name, value, what) in
            [("x-api-key", &options.api_key, "the API key"), ("x-user-id", &options.user, "the user id")]
        {
            if let Some(value) = value.as_deref().filter(|value| !value.is_empty()) {
                let mut value = HeaderValue::from_str(value).map_err(|_| {
                    Error::Options(format!("{what} holds characters that no HTTP header carries"))
                })?;
                value.set_sensitive(true);
                headers.insert(name, value);
            }
        }
        // A redirect would carry the key to wherever it points.
        let mut builder = reqwest::Client::builder()
            .default_headers(headers)
            .connect_timeout(CONNECT)
            .tcp_keepalive(Duration::from_secs(15))
            .tcp_nodelay(true)
            .redirect(Policy::none());
        if let Some(agent) = &options.agent {
            builder = builder.user_agent(agent);
        }
        if is_loopback(&base) {
            // A proxy set for the outside world does not reach this machine.
            builder = builder.no_proxy();
        }
        let http = builder.build().map_err(|e| Error::Options(format!("cannot make an HTTP client: {e}")))?;
        Ok(Self { http, base: Arc::new(base) })
    }

    /// The server's address.
    pub fn server(&self) -> String {
        self.base.as_str().trim_end_matches('/').trim_end_matches("/api/v1").to_owned()
    }

    /// A request to the route made of these segments, each encoded as one.
    pub(crate) fn request(&self, method: Method, segments: &[&str]) -> RequestBuilder {
        let mut url = Url::clone(&self.base);
        // Checked when the client was made: the address has a path.
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(segments);
        }
        self.http.request(method, url)
    }

    /// Sends; an answer with an error status is an error.
    pub(crate) async fn send(&self, request: RequestBuilder) -> Result<Response> {
        let response = request.send().await.map_err(|e| self.transport(&e))?;
        if response.status().is_success() { Ok(response) } else { Err(self.refused(response).await) }
    }

    /// Sends and reads the JSON answer, all within `deadline` if there is one.
    pub(crate) async fn json<T: DeserializeOwned>(
        &self,
        request: RequestBuilder,
        deadline: impl Into<Option<Duration>>,
    ) -> Result<T> {
        let request = match deadline.into() {
            Some(deadline) => request.timeout(deadline),
            None => request,
        };
        let response = self.send(request).await?;
        let body = self.body(response, ANSWER).await?;
        serde_json::from_slice(&body).map_err(|e| Error::Protocol(format!("{e} in its JSON")))
    }

    /// GET of a JSON answer that comes at once.
    pub(crate) async fn get<T: DeserializeOwned>(&self, segments: &[&str]) -> Result<T> {
        self.json(self.request(Method::GET, segments), PROMPT).await
    }

    /// POST of a JSON body, with an answer that comes at once.
    pub(crate) async fn post<T: DeserializeOwned>(
        &self,
        segments: &[&str],
        body: &impl Serialize,
    ) -> Result<T> {
        self.json(self.request(Method::POST, segments).json(body), PROMPT).await
    }

    pub(crate) fn transport(&self, error: &reqwest::Error) -> Error {
        Error::from_transport(&self.server(), error)
    }

    /// The whole body, up to `limit` bytes.
    pub(crate) async fn body(&self, mut response: Response, limit: usize) -> Result<Bytes> {
        let mut body = BytesMut::new();
        while let Some(chunk) = response.chunk().await.map_err(|e| self.transport(&e))? {
            if body.len() + chunk.len() > limit {
                return Err(Error::Protocol(format!("it is larger than {limit} bytes")));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body.freeze())
    }

    /// The error that an answer with an error status is.
    pub(crate) async fn refused(&self, mut response: Response) -> Error {
        let status = response.status();
        let mut text = BytesMut::new();
        // What was read until the connection broke or the text grew too long is good enough for a message.
        while let Ok(Some(chunk)) = response.chunk().await {
            text.extend_from_slice(&chunk);
            if text.len() > ERROR_TEXT {
                break;
            }
        }
        if let Ok(ErrorBody { code, message }) = serde_json::from_slice(&text) {
            return Error::Api { status: status.as_u16(), code: Some(code), message };
        }
        let text: String = String::from_utf8_lossy(&text).chars().take(200).collect();
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        let what = if text.is_empty() {
            status.canonical_reason().unwrap_or("no reason given").to_owned()
        } else {
            text
        };
        Error::Api {
            status: status.as_u16(),
            code: None,
            message: format!("HTTP {}: {what}", status.as_u16()),
        }
    }
}

/// The address with `/api/v1` behind it.
fn base_url(server: &str) -> Result<Url> {
    let wrong = |why: &str| Error::Options(format!("\"{server}\" is not a server address: {why}"));
    let text = if server.contains("://") { server.to_owned() } else { format!("http://{server}") };
    let mut url = Url::parse(text.trim()).map_err(|e| wrong(&e.to_string()))?;
    match url.scheme() {
        "http" => {}
        "https" => return Err(wrong("this client speaks http only; put a TLS tunnel or proxy in between")),
        _ => return Err(wrong("it must start with http://")),
    }
    if url.host_str().is_none_or(str::is_empty) {
        return Err(wrong("it names no host"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(wrong("credentials do not belong into it, use the API key"));
    }
    url.set_query(None);
    url.set_fragment(None);
    match url.path_segments_mut() {
        Ok(mut path) => path.pop_if_empty().extend(["api", "v1"]),
        Err(()) => return Err(wrong("it has no path")),
    };
    Ok(url)
}

fn is_loopback(url: &Url) -> bool {
    let Some(host) = url.host_str() else { return false };
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let base = |server: &str| base_url(server).map(|url| url.to_string());
        assert_eq!(base("http://localhost:7423").unwrap(), "http://localhost:7423/api/v1");
        assert_eq!(base("10.0.0.1:7423/").unwrap(), "http://10.0.0.1:7423/api/v1");
        assert_eq!(base("http://h/below/?x#y").unwrap(), "http://h/below/api/v1");
        for wrong in ["", "ftp://h", "https://h", "http://", "http://u:p@h", "http://h:99999"] {
            assert!(matches!(base(wrong), Err(Error::Options(_))), "{wrong}");
        }
    }

    #[test]
    fn loopback_is_not_proxied() {
        for (server, loopback) in [
            ("http://localhost:1", true),
            ("http://127.3.2.1", true),
            ("http://[::1]:1", true),
            ("http://a.b", false),
        ] {
            assert_eq!(is_loopback(&base_url(server).unwrap()), loopback, "{server}");
        }
    }

    #[test]
    fn segments_are_encoded() {
        let client = Client::new(&Options { server: "h".to_owned(), ..Options::default() }).unwrap();
        let request = client.request(Method::GET, &["sandboxes", "../a b/?", "files"]).build().unwrap();
        assert_eq!(request.url().as_str(), "http://h/api/v1/sandboxes/..%2Fa%20b%2F%3F/files");
        assert_eq!(client.server(), "http://h");
    }

    #[test]
    fn keys_must_fit_into_a_header() {
        let options =
            Options { server: "h".to_owned(), api_key: Some("a\nb".to_owned()), ..Options::default() };
        assert!(matches!(Client::new(&options), Err(Error::Options(_))));
    }
}
