//! Names of images, checked before they become part of a request's path: `?`, `#` and `..` would make another request of it.

use stacyvm_provider::{Error, Result};

/// Longest name, in bytes.
const LONGEST: usize = 512;

/// Checks that `image` can be the name of an image.
///
/// # Errors
/// `InvalidArgument` with an example.
pub(crate) fn check(image: &str) -> Result<()> {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"._-/:@+".contains(&byte);
    if image == "host" {
        return Err(Error::invalid_argument(
            "the image host is the native provider's: name an image of a registry, as in alpine:latest",
        ));
    }
    let parts_are_names =
        image.split(['/', ':', '@']).all(|part| part.starts_with(|c: char| c.is_ascii_alphanumeric()));
    if image.len() <= LONGEST && image.bytes().all(legal) && !image.contains("..") && parts_are_names {
        return Ok(());
    }
    let shown: String = image.chars().filter(|c| !c.is_control()).take(80).collect();
    Err(Error::invalid_argument(format!(
        "{shown:?} is no name of an image: write it as in alpine:latest, ghcr.io/owner/image:tag or name@sha256:…"
    )))
}

/// Registry of an image, and its name as credentials are kept under: `docker.io` for names without one.
pub(crate) fn registry(image: &str) -> &str {
    match image.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => host,
        _ => "docker.io",
    }
}

/// The name with the tag that it stands for: without one the daemon would pull every tag there is.
pub(crate) fn tagged(image: &str) -> String {
    let name = image.rsplit('/').next().unwrap_or_default();
    if name.contains([':', '@']) { image.to_owned() } else { format!("{image}:latest") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_as_people_type_them_are_taken() {
        for image in [
            "alpine",
            "alpine:3.20",
            "python:3.12-slim",
            "ghcr.io/o/i:t",
            "127.0.0.1:5000/a/b:1",
            "localhost:5000/x",
            "a@sha256:0123456789abcdef",
        ] {
            check(image).unwrap();
        }
    }

    #[test]
    fn what_would_be_another_request_is_refused() {
        for image in
            ["", "a?b", "../x", "a/../../x", "/etc", "a#b", "a b", "host", "-x", "a//b", "a:", "é", "a%2fb"]
        {
            assert!(check(image).is_err(), "{image}");
        }
        assert!(check(&"a".repeat(513)).is_err());
    }

    #[test]
    fn registries_and_tags_are_found() {
        assert_eq!(registry("alpine"), "docker.io");
        assert_eq!(registry("owner/image"), "docker.io");
        assert_eq!(registry("127.0.0.1:5000/a"), "127.0.0.1:5000");
        assert_eq!(registry("localhost/a"), "localhost");
        assert_eq!(tagged("alpine"), "alpine:latest");
        assert_eq!(tagged("127.0.0.1:5000/a"), "127.0.0.1:5000/a:latest");
        assert_eq!(tagged("a@sha256:0"), "a@sha256:0");
    }
}
