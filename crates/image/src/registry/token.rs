//! Leave to read a repository: what a registry asks for, and what it is shown.

use super::{Failure, Registry, settings::Server};
use crate::Credentials;
use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use http_auth::ChallengeParser;
use http_body_util::Full;
use serde::Deserialize;
use std::collections::HashMap;
use url::{Url, form_urlencoded};

/// Largest answer of a server of tokens, in bytes.
const LARGEST: usize = 256 << 10;
/// Most repositories whose leave is remembered.
const REMEMBERED: usize = 1024;

/// Leave that was given, by host and repository. A registry that has enough of one says so, and another is asked for.
#[derive(Default)]
pub(super) struct Leaves(HashMap<(String, String), HeaderValue>);

impl Leaves {
    pub(super) fn of(&self, server: &Server) -> Option<HeaderValue> {
        self.0.get(&(server.host.clone(), server.repository.clone())).cloned()
    }

    pub(super) fn forget(&mut self, server: &Server) {
        self.0.remove(&(server.host.clone(), server.repository.clone()));
    }

    pub(super) fn remember(&mut self, server: &Server, leave: HeaderValue) {
        if self.0.len() >= REMEMBERED {
            self.0.clear();
        }
        self.0.insert((server.host.clone(), server.repository.clone()), leave);
    }
}

/// How a registry wants to be asked.
#[derive(Debug, PartialEq, Eq)]
enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String> },
}

/// The answer of a server of tokens.
#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

/// What a registry was shown, and whether that said who asks.
pub(super) struct Leave {
    pub(super) header: HeaderValue,
    pub(super) basic: bool,
    pub(super) known: bool,
}

impl Registry {
    /// Gets leave to read the server's repository, after it was refused with these headers. `plain` if it speaks plain HTTP.
    pub(super) async fn leave(
        &self,
        server: &Server,
        headers: &HeaderMap,
        plain: bool,
    ) -> Result<Leave, Failure> {
        let Some(challenge) = challenge(headers) else {
            return Err(Failure::Lies("refuses without saying what it wants to be shown".to_owned()));
        };
        let credentials = self.credentials(&server.name).await;
        match challenge {
            Challenge::Basic => {
                let header = credentials.as_ref().and_then(basic).ok_or(Failure::Wants)?;
                Ok(Leave { header, basic: true, known: true })
            }
            Challenge::Bearer { realm, service } => {
                let token =
                    self.token(server, &realm, service.as_deref(), credentials.as_ref(), plain).await?;
                let header = sensitive(&format!("Bearer {token}"))
                    .ok_or_else(|| Failure::Lies("gives a token that no header can hold".to_owned()))?;
                Ok(Leave { header, basic: false, known: credentials.is_some() })
            }
        }
    }

    /// The configuration's credentials, or else those of the file.
    async fn credentials(&self, registry: &str) -> Option<Credentials> {
        if let Some(known) = self.settings.credentials.get(registry) {
            return Some(known.clone());
        }
        Credentials::from_docker(self.settings.auth_file.as_deref()?, registry).await
    }

    async fn token(
        &self,
        server: &Server,
        realm: &str,
        service: Option<&str>,
        credentials: Option<&Credentials>,
        plain: bool,
    ) -> Result<String, Failure> {
        let lies = |what: &str| Failure::Lies(what.to_owned());
        let mut url = Url::parse(realm).map_err(|_| lies("names a server of tokens that is no address"))?;
        let allowed = match url.scheme() {
            "https" => true,
            // Credentials shall not be sent more openly than the registry itself is spoken to.
            "http" => plain,
            _ => false,
        };
        if !allowed || url.host_str().is_none() {
            return Err(lies("names a server of tokens that does not speak TLS"));
        }
        // Not the scope that was asked for: leave to read is all that is needed.
        let scope = format!("repository:{}:pull", server.repository);
        let identity = credentials.and_then(|known| known.identity_token.as_ref());
        let mut request = http::Request::builder();
        let mut body = Bytes::new();
        if let Some(identity) = identity {
            let mut form = form_urlencoded::Serializer::new(String::new());
            form.append_pair("grant_type", "refresh_token")
                .append_pair("client_id", "stacyvm")
                .append_pair("refresh_token", identity.expose())
                .append_pair("scope", &scope);
            service.iter().for_each(|service| {
                form.append_pair("service", service);
            });
            body = form.finish().into();
            request = request
                .method(Method::POST)
                .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded");
        } else {
            let mut query = url.query_pairs_mut();
            service.iter().for_each(|service| {
                query.append_pair("service", service);
            });
            query.append_pair("scope", &scope);
            drop(query);
            if let Some(basic) = credentials.and_then(basic) {
                request = request.header(header::AUTHORIZATION, basic);
            }
        }
        let request = request
            .uri(url.as_str())
            .header(header::USER_AGENT, super::USER_AGENT)
            .body(Full::new(body))
            .map_err(|error| Failure::Request(error.into()))?;
        let verify = !self.settings.is_insecure(&super::authority(&url));
        let response = self.http.send(request, verify).await?;
        let after = super::retry_after(response.headers());
        match response.status() {
            StatusCode::OK => {}
            // Some answer a refresh token that has run out with 400.
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::BAD_REQUEST
                if credentials.is_some() =>
            {
                return Err(Failure::Refused);
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => return Err(Failure::Wants),
            StatusCode::TOO_MANY_REQUESTS => return Err(Failure::TooMany(after)),
            status if status.is_redirection() => {
                return Err(Failure::Redirects("who asks it for a token".to_owned()));
            }
            status => return Err(Failure::Status(status.as_u16(), after)),
        }
        let Some(bytes) = self.http.whole(response.into_body(), LARGEST).await? else {
            return Err(lies("gives a token without end"));
        };
        let answer: Option<Token> = serde_json::from_slice(&bytes).ok();
        answer
            .and_then(|answer| answer.token.or(answer.access_token))
            .filter(|token| !token.is_empty())
            .ok_or_else(|| lies("gives no token that is understood"))
    }
}

fn challenge(headers: &HeaderMap) -> Option<Challenge> {
    let mut found = None;
    for value in headers.get_all(header::WWW_AUTHENTICATE) {
        let Ok(text) = value.to_str() else { continue };
        for parsed in ChallengeParser::new(text).map_while(Result::ok) {
            let param = |name: &str| {
                let mut params = parsed.params.iter();
                params.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_unescaped())
            };
            if parsed.scheme.eq_ignore_ascii_case("bearer")
                && let Some(realm) = param("realm")
            {
                return Some(Challenge::Bearer { realm, service: param("service") });
            }
            if parsed.scheme.eq_ignore_ascii_case("basic") {
                found = Some(Challenge::Basic);
            }
        }
    }
    found
}

fn basic(credentials: &Credentials) -> Option<HeaderValue> {
    let (user, password) = (credentials.user.as_ref()?, credentials.password.as_ref()?);
    sensitive(&format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{}", password.expose()))))
}

fn sensitive(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_understood() {
        let read = |texts: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for text in texts {
                headers.append(header::WWW_AUTHENTICATE, HeaderValue::from_static(text));
            }
            challenge(&headers)
        };
        let bearer = |realm: &str, service: Option<&str>| {
            Some(Challenge::Bearer { realm: realm.to_owned(), service: service.map(str::to_owned) })
        };
        for (texts, expected) in [
            (
                &[
                    r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull""#,
                ][..],
                bearer("https://auth.docker.io/token", Some("registry.docker.io")),
            ),
            (&[r#"bearer REALM="https://a/\"b""#], bearer("https://a/\"b", None)),
            (&[r#"Basic realm="x""#], Some(Challenge::Basic)),
            (&["Basic realm=\"x\"", "Bearer realm=\"https://a\""], bearer("https://a", None)),
            (&["Bearer service=\"x\""], None),
            (&["Negotiate"], None),
            (&["\"", ",,,", "Bearer realm=\""], None),
            (&[], None),
        ] {
            assert_eq!(read(texts), expected, "{texts:?}");
        }
    }

    #[test]
    fn what_is_remembered_is_bounded_and_not_shown() {
        let mut leaves = Leaves::default();
        let server = |n: usize| Server {
            name: "r".to_owned(),
            host: "r".to_owned(),
            repository: format!("a{n}"),
            insecure: false,
        };
        let leave = basic(&Credentials::of("r", "user", crate::Secret::new("hunter2"))).unwrap();
        assert!(leave.is_sensitive() && !format!("{leave:?}").contains("Basic"));
        for n in 0..=REMEMBERED {
            leaves.remember(&server(n), leave.clone());
        }
        assert!(leaves.0.len() < REMEMBERED);
        assert!(leaves.of(&server(REMEMBERED)).is_some() && leaves.of(&server(0)).is_none());
    }
}
