//! Credentials of registries: those of the configuration, and those of the file that `docker login` writes.
//!
//! The file is read when an image is pulled, so that a new login takes effect at once. Helpers that keep credentials elsewhere
//! are asked as `docker` asks them.

use base64::{Engine, prelude::BASE64_STANDARD};
use serde::Deserialize;
use std::{collections::HashMap, fmt, path::Path, process::Stdio, time::Duration};
use tokio::{io::AsyncWriteExt, process::Command};

/// Longest time for a helper's answer.
const HELPER: Duration = Duration::from_secs(10);
/// Name under which credentials of Docker Hub are kept.
const HUB: &str = "https://index.docker.io/v1/";

/// A text that no message, log or [`fmt::Debug`] shows.
#[derive(Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Keeps a text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text, to be sent to whom it is for.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// What a registry is shown.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Credentials {
    /// The name under which they were kept.
    pub server: String,
    /// The user.
    pub user: Option<String>,
    /// The user's password or access token.
    pub password: Option<Secret>,
    /// A token that stands for the login, given out by the registry.
    pub identity_token: Option<Secret>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct File {
    auths: HashMap<String, Entry>,
    creds_store: Option<String>,
    cred_helpers: HashMap<String, String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Entry {
    auth: Option<Secret>,
    username: Option<String>,
    password: Option<Secret>,
    identitytoken: Option<Secret>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Helped {
    username: String,
    secret: Secret,
}

impl Credentials {
    /// A user and a password.
    pub fn of(server: impl Into<String>, user: impl Into<String>, password: Secret) -> Self {
        Self {
            server: server.into(),
            user: Some(user.into()),
            password: Some(password),
            identity_token: None,
        }
    }

    /// Credentials for `registry` from a file that `docker login` wrote, if it has any. What is wrong with the file is logged
    /// and costs the credentials.
    pub async fn from_docker(file: &Path, registry: &str) -> Option<Self> {
        let text = match tokio::fs::read(file).await {
            Ok(text) => text,
            Err(error) => {
                if error.kind() != std::io::ErrorKind::NotFound {
                    tracing::warn!(path = %file.display(), %error, "the credentials of registries cannot be read");
                }
                return None;
            }
        };
        let parsed: File = match serde_json::from_slice(&text) {
            Ok(parsed) => parsed,
            Err(error) => {
                // Not the error's own words: they may quote the file.
                let (line, column) = (error.line(), error.column());
                tracing::warn!(path = %file.display(), line, column, "the credentials of registries are not understood");
                return None;
            }
        };
        let names = names(registry);
        for name in &names {
            if let Some(helper) = parsed.cred_helpers.get(name).or(parsed.creds_store.as_ref())
                && let Some(found) = ask(helper, name).await
            {
                return Some(found);
            }
        }
        names.iter().find_map(|name| parsed.auths.get(name).and_then(|entry| entry.credentials(name)))
    }
}

/// Names under which credentials of a registry may be kept.
fn names(registry: &str) -> Vec<String> {
    let mut names = vec![registry.to_owned(), format!("https://{registry}"), format!("http://{registry}")];
    if registry == "docker.io" {
        names.extend([HUB.to_owned(), "index.docker.io".to_owned(), "registry-1.docker.io".to_owned()]);
    }
    names
}

impl Entry {
    fn credentials(&self, server: &str) -> Option<Credentials> {
        let decoded = self
            .auth
            .as_ref()
            .and_then(|auth| BASE64_STANDARD.decode(auth.expose().trim()).ok())
            .and_then(|bytes| String::from_utf8(bytes).ok());
        let pair = decoded.as_deref().and_then(|text| text.trim_end_matches('\0').split_once(':'));
        let (user, password) = match pair {
            Some((user, password)) => (Some(user.to_owned()), Some(Secret::new(password))),
            None => (self.username.clone(), self.password.clone()),
        };
        if user.is_none() && self.identitytoken.is_none() {
            return None;
        }
        let identity_token = self.identitytoken.clone();
        Some(Credentials { server: server.to_owned(), user, password, identity_token })
    }
}

/// Asks `docker-credential-<helper>` for the credentials of `server`.
async fn ask(helper: &str, server: &str) -> Option<Credentials> {
    if !helper.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_') {
        return None;
    }
    let mut child = Command::new(format!("docker-credential-{helper}"))
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .ok()?;
    let mut stdin = child.stdin.take()?;
    let answer = tokio::time::timeout(HELPER, async {
        stdin.write_all(server.as_bytes()).await.ok()?;
        drop(stdin);
        child.wait_with_output().await.ok().filter(|output| output.status.success())
    });
    let output = answer.await.ok().flatten()?;
    let Helped { username, secret } = serde_json::from_slice(&output.stdout).ok()?;
    let server = server.to_owned();
    Some(match username.as_str() {
        "<token>" => Credentials { server, identity_token: Some(secret), ..Credentials::default() },
        _ => Credentials::of(server, username, secret),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn found(text: &str, registry: &str) -> Option<Credentials> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.json");
        std::fs::write(&path, text).unwrap();
        Credentials::from_docker(&path, registry).await
    }

    #[tokio::test]
    async fn what_docker_login_wrote_is_found() {
        // "user:pass:word", "user:" beside a token
        let text = r#"{"auths":{"127.0.0.1:5000":{"auth":"dXNlcjpwYXNzOndvcmQ="},"https://index.docker.io/v1/":{"username":"u","password":"p"},
            "https://token.example":{"auth":"dXNlcjo=","identitytoken":"t"}}}"#;
        let pair = |server: &str, user: &str, password: &str| {
            Some(Credentials::of(server, user, Secret::new(password)))
        };
        assert_eq!(found(text, "127.0.0.1:5000").await, pair("127.0.0.1:5000", "user", "pass:word"));
        assert_eq!(found(text, "docker.io").await, pair(HUB, "u", "p"));
        assert_eq!(found(text, "ghcr.io").await, None);
        let token = found(text, "token.example").await.unwrap();
        assert_eq!(token.identity_token, Some(Secret::new("t")));
    }

    #[tokio::test]
    async fn a_file_that_is_none_costs_the_credentials_only() {
        for text in
            ["", "{", "[]", r#"{"auths":{"docker.io":{"auth":"%%%"}}}"#, r#"{"credsStore":"../../x"}"#]
        {
            assert_eq!(found(text, "docker.io").await, None, "{text}");
        }
        assert_eq!(Credentials::from_docker(Path::new("/nonexistent/x"), "docker.io").await, None);
    }

    #[test]
    fn secrets_are_not_shown() {
        let mut credentials = Credentials::of("a.b", "somebody", Secret::new("hunter2"));
        credentials.identity_token = Some(Secret::new("hunter3"));
        let shown = format!("{credentials:?} {credentials:#?}");
        assert!(shown.contains("somebody") && !shown.contains("hunter"), "{shown}");
    }
}
