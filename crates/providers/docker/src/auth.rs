//! Credentials of registries, in the form in which the daemon takes them.

use crate::reference;
use bollard::auth::DockerCredentials;
use stacyvm_image::{Credentials, Secret};
use std::path::Path;

/// Credentials for pulling `image`, if the file that `docker login` wrote has any.
pub(crate) async fn credentials(file: Option<&Path>, image: &str) -> Option<DockerCredentials> {
    let found = Credentials::from_docker(file?, reference::registry(image)).await?;
    let exposed = |secret: Option<Secret>| secret.map(|secret| secret.expose().to_owned());
    Some(DockerCredentials {
        username: found.user,
        password: exposed(found.password),
        identitytoken: exposed(found.identity_token),
        serveraddress: Some(found.server),
        ..DockerCredentials::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_docker_login_wrote_is_found_by_an_images_registry() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.json");
        // "user:pass:word"
        let text = r#"{"auths":{"127.0.0.1:5000":{"auth":"dXNlcjpwYXNzOndvcmQ="},"https://index.docker.io/v1/":{"username":"u","password":"p"}}}"#;
        std::fs::write(&path, text).unwrap();
        for (image, user, password, server) in [
            ("127.0.0.1:5000/a:1", "user", "pass:word", "127.0.0.1:5000"),
            ("alpine", "u", "p", "https://index.docker.io/v1/"),
        ] {
            let found = credentials(Some(&path), image).await.unwrap();
            assert_eq!(found.username.as_deref(), Some(user));
            assert_eq!(found.password.as_deref(), Some(password));
            assert_eq!(found.serveraddress.as_deref(), Some(server));
        }
        assert!(credentials(Some(&path), "ghcr.io/a/b").await.is_none());
        assert!(credentials(None, "alpine").await.is_none());
    }
}
