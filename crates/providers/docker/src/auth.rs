//! Credentials of registries, from the file that `docker login` writes: read when an image is pulled, so that a new login
//! takes effect at once. Helpers that keep them elsewhere are asked as `docker` asks them.

use crate::reference;
use base64::{Engine, prelude::BASE64_STANDARD};
use bollard::auth::DockerCredentials;
use serde::Deserialize;
use std::{collections::HashMap, path::Path, process::Stdio, time::Duration};
use tokio::{io::AsyncWriteExt, process::Command};

/// Longest time for a helper's answer.
const HELPER: Duration = Duration::from_secs(10);
/// Name under which credentials of Docker Hub are kept.
const HUB: &str = "https://index.docker.io/v1/";

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct File {
    auths: HashMap<String, Entry>,
    creds_store: Option<String>,
    cred_helpers: HashMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Entry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Helped {
    username: String,
    secret: String,
}

/// Credentials for pulling `image`, if the file has any. What is wrong with the file is logged and costs the credentials.
pub(crate) async fn credentials(file: Option<&Path>, image: &str) -> Option<DockerCredentials> {
    let path = file?;
    let text = match tokio::fs::read(path).await {
        Ok(text) => text,
        Err(error) => {
            if error.kind() != std::io::ErrorKind::NotFound {
                tracing::warn!(path = %path.display(), %error, "the credentials of registries cannot be read");
            }
            return None;
        }
    };
    let file: File = match serde_json::from_slice(&text) {
        Ok(file) => file,
        Err(error) => {
            // Not the error's own words: they may quote the file.
            let (line, column) = (error.line(), error.column());
            tracing::warn!(path = %path.display(), line, column, "the credentials of registries are not understood");
            return None;
        }
    };
    let names = names(reference::registry(image));
    for name in &names {
        if let Some(helper) = file.cred_helpers.get(name).or(file.creds_store.as_ref())
            && let Some(found) = ask(helper, name).await
        {
            return Some(found);
        }
    }
    names.iter().find_map(|name| file.auths.get(name).and_then(|entry| entry.credentials(name)))
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
    fn credentials(&self, server: &str) -> Option<DockerCredentials> {
        let decoded = self
            .auth
            .as_ref()
            .and_then(|auth| BASE64_STANDARD.decode(auth.trim()).ok())
            .and_then(|bytes| String::from_utf8(bytes).ok());
        let pair = decoded.as_deref().and_then(|text| text.trim_end_matches('\0').split_once(':'));
        let (username, password) = match pair {
            Some((username, password)) => (Some(username.to_owned()), Some(password.to_owned())),
            None => (self.username.clone(), self.password.clone()),
        };
        if username.is_none() && self.identitytoken.is_none() {
            return None;
        }
        Some(DockerCredentials {
            username,
            password,
            identitytoken: self.identitytoken.clone(),
            serveraddress: Some(server.to_owned()),
            ..DockerCredentials::default()
        })
    }
}

/// Asks `docker-credential-<helper>` for the credentials of `server`.
async fn ask(helper: &str, server: &str) -> Option<DockerCredentials> {
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
    let server = Some(server.to_owned());
    Some(match username.as_str() {
        "<token>" => DockerCredentials {
            identitytoken: Some(secret),
            serveraddress: server,
            ..DockerCredentials::default()
        },
        _ => DockerCredentials {
            username: Some(username),
            password: Some(secret),
            serveraddress: server,
            ..DockerCredentials::default()
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn found(text: &str, image: &str) -> Option<(String, String)> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.json");
        std::fs::write(&path, text).unwrap();
        let found = credentials(Some(&path), image).await?;
        Some((found.username?, found.password?))
    }

    #[tokio::test]
    async fn what_docker_login_wrote_is_found() {
        // "user:pass:word"
        let text = r#"{"auths":{"127.0.0.1:5000":{"auth":"dXNlcjpwYXNzOndvcmQ="},"https://index.docker.io/v1/":{"username":"u","password":"p"}}}"#;
        let pair = |u: &str, p: &str| Some((u.to_owned(), p.to_owned()));
        assert_eq!(found(text, "127.0.0.1:5000/a:1").await, pair("user", "pass:word"));
        assert_eq!(found(text, "alpine").await, pair("u", "p"));
        assert_eq!(found(text, "ghcr.io/a/b").await, None);
    }

    #[tokio::test]
    async fn a_file_that_is_none_costs_the_credentials_only() {
        for text in
            ["", "{", "[]", r#"{"auths":{"docker.io":{"auth":"%%%"}}}"#, r#"{"credsStore":"../../x"}"#]
        {
            assert_eq!(found(text, "alpine").await, None, "{text}");
        }
        assert!(credentials(None, "alpine").await.is_none());
    }
}
