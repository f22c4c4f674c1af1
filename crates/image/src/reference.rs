//! Names of images, as people type them and as registries know them.
//!
//! A name becomes a part of URLs, of file names and of messages, so the grammar is strict and what passed it cannot be a path
//! that climbs, another request or another host.

use crate::Digest;
use serde::{Deserialize, Serialize};
use stacyvm_provider::{Error, Result};
use std::{
    fmt,
    net::{Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

/// Longest name that is looked at, in bytes: host, repository, tag and digest.
const LONGEST: usize = 768;
/// Longest repository, in bytes.
const LONGEST_REPOSITORY: usize = 255;
/// Longest host without its port, in bytes.
const LONGEST_HOST: usize = 253;
/// Longest tag, in bytes.
const LONGEST_TAG: usize = 128;
/// The registry of names that name none.
const HUB: &str = "docker.io";
/// Other names of it.
const HUB_TOO: [&str; 3] = ["index.docker.io", "registry-1.docker.io", "registry.hub.docker.com"];
/// Where the Hub keeps what has no owner.
const LIBRARY: &str = "library/";
/// The tag that a name without tag and digest stands for.
const LATEST: &str = "latest";

/// The name of an image: a registry, a repository in it, and a tag, a digest or both.
///
/// Legal by construction. Two names that mean the same are equal: `alpine` and `docker.io/library/alpine:latest`. With a
/// digest the tag is a remark; what counts is the digest.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// The registry as people know it: a host, with its port if it has one. `docker.io` for Docker Hub.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The repository in the registry; `library/alpine` for `alpine`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag; `latest` for a name without tag and digest.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest of the manifest or index that is meant.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// The whole name, with nothing left out.
    pub fn canonical(&self) -> String {
        let mut text = format!("{}/{}", self.registry, self.repository);
        self.push_version(&mut text);
        text
    }

    fn push_version(&self, text: &mut String) {
        if let Some(tag) = &self.tag {
            text.push(':');
            text.push_str(tag);
        }
        if let Some(digest) = &self.digest {
            text.push('@');
            text.push_str(&digest.to_string());
        }
    }

    fn parse(text: &str) -> Option<Self> {
        if text.len() > LONGEST {
            return None;
        }
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => (name, Some(digest.parse().ok()?)),
            None => (text, None),
        };
        let (registry, rest) = match name.split_once('/') {
            Some((first, rest)) if is_host(first) => (host(first)?, rest),
            _ => (HUB.to_owned(), name),
        };
        let (path, tag) = match rest.split_once(':') {
            Some((path, tag)) => (path, Some(tag)),
            None => (rest, None),
        };
        let is_hub = registry == HUB || HUB_TOO.contains(&registry.as_str());
        let repository =
            if is_hub && !path.contains('/') { format!("{LIBRARY}{path}") } else { path.to_owned() };
        let legal = repository.len() <= LONGEST_REPOSITORY
            && repository.split('/').all(is_component)
            && tag.is_none_or(is_tag)
            // An image's id would be taken for a name, and asked of a registry.
            && !(tag.is_none() && digest.is_none() && is_id(name));
        legal.then(|| Self {
            registry: if is_hub { HUB.to_owned() } else { registry },
            repository,
            tag: tag.or(if digest.is_none() { Some(LATEST) } else { None }).map(str::to_owned),
            digest,
        })
    }
}

/// Whether what stands before the first slash is a registry rather than an owner on the Hub.
fn is_host(first: &str) -> bool {
    first.contains(['.', ':']) || first == "localhost"
}

/// The host and port in lower case, if they are legal.
fn host(text: &str) -> Option<String> {
    let lower = text.to_ascii_lowercase();
    let (name, port) = if let Some(rest) = lower.strip_prefix('[') {
        let (address, rest) = rest.split_once(']')?;
        let address: Ipv6Addr = address.parse().ok()?;
        let port = if rest.is_empty() { None } else { Some(rest.strip_prefix(':')?) };
        (format!("[{address}]"), port)
    } else {
        let (name, port) = match lower.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (lower.as_str(), None),
        };
        let legal = name.len() <= LONGEST_HOST && name.split('.').all(is_label) && !is_odd_address(name);
        (legal.then(|| name.to_owned())?, port)
    };
    let Some(port) = port else { return Some(name) };
    if !port.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    match port.parse::<u16>() {
        Ok(port) if port > 0 => Some(format!("{name}:{port}")),
        _ => None,
    }
}

fn is_label(label: &str) -> bool {
    (1..=63).contains(&label.len())
        && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !label.starts_with('-')
        && !label.ends_with('-')
}

/// Whether URLs would read it as an address that it does not show: `1.2` as `1.0.0.2`, `0x7f.1` as `127.0.0.1`.
fn is_odd_address(name: &str) -> bool {
    let last = name.rsplit('.').next().unwrap_or_default();
    let number = last.bytes().all(|b| b.is_ascii_digit())
        || last.strip_prefix("0x").is_some_and(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit()));
    number && name.parse::<Ipv4Addr>().is_err()
}

/// Letters and digits, with one dot, one or two underscores or any number of hyphens between them.
fn is_component(part: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let between =
        |run: &str| run.is_empty() || matches!(run, "." | "_" | "__") || run.bytes().all(|b| b == b'-');
    part.bytes().all(|b| plain(b) || b"._-".contains(&b))
        && part.bytes().next().is_some_and(plain)
        && part.bytes().next_back().is_some_and(plain)
        && part.split(|c: char| c.is_ascii_alphanumeric()).all(between)
}

fn is_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    tag.len() <= LONGEST_TAG
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-')
}

fn is_id(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

impl FromStr for Reference {
    type Err = Error;

    /// # Errors
    /// `InvalidArgument` with examples.
    fn from_str(text: &str) -> Result<Self> {
        Self::parse(text).ok_or_else(|| {
            let shown: String = text.chars().filter(|c| !c.is_control()).take(80).collect();
            Error::invalid_argument(format!(
                "{shown:?} is no name of an image: write it in lower case as in alpine:latest, ghcr.io/owner/image:tag or name@sha256:…"
            ))
        })
    }
}

/// Short, as people type it: without `docker.io/library/`, and with the tag.
impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let owner = self.repository.split('/').next().unwrap_or_default();
        let without_library = self.repository.strip_prefix(LIBRARY).filter(|name| !name.contains('/'));
        let mut text = if self.registry != HUB || (is_host(owner) && without_library.is_none()) {
            format!("{}/{}", self.registry, self.repository)
        } else {
            without_library.unwrap_or(&self.repository).to_owned()
        };
        self.push_version(&mut text);
        f.write_str(&text)
    }
}

impl TryFrom<String> for Reference {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Reference> for String {
    fn from(reference: Reference) -> Self {
        reference.canonical()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn names_mean_what_docker_means_by_them() {
        let at = format!("@sha256:{HEX}");
        for (typed, canonical, short) in [
            ("alpine", "docker.io/library/alpine:latest", "alpine:latest"),
            ("python:3.12-slim", "docker.io/library/python:3.12-slim", "python:3.12-slim"),
            ("owner/x", "docker.io/owner/x:latest", "owner/x:latest"),
            ("docker.io/alpine", "docker.io/library/alpine:latest", "alpine:latest"),
            ("index.docker.io/library/alpine", "docker.io/library/alpine:latest", "alpine:latest"),
            ("registry-1.docker.io/o/x:1", "docker.io/o/x:1", "o/x:1"),
            ("GHCR.io/o/x:Tag", "ghcr.io/o/x:Tag", "ghcr.io/o/x:Tag"),
            ("localhost/x", "localhost/x:latest", "localhost/x:latest"),
            ("localhost:5000/a/b:1", "localhost:5000/a/b:1", "localhost:5000/a/b:1"),
            ("[::1]:5000/a", "[::1]:5000/a:latest", "[::1]:5000/a:latest"),
            ("[0:0::1]/a", "[::1]/a:latest", "[::1]/a:latest"),
            ("a.b", "docker.io/library/a.b:latest", "a.b:latest"),
            ("docker.io/library/a.b", "docker.io/library/a.b:latest", "a.b:latest"),
            ("docker.io/a.b/c", "docker.io/a.b/c:latest", "docker.io/a.b/c:latest"),
            ("docker.io/localhost/c", "docker.io/localhost/c:latest", "docker.io/localhost/c:latest"),
            ("docker.io/library/a/b", "docker.io/library/a/b:latest", "library/a/b:latest"),
            ("a__b/c---d/e_f.g", "docker.io/a__b/c---d/e_f.g:latest", "a__b/c---d/e_f.g:latest"),
        ] {
            let reference: Reference = typed.parse().unwrap();
            assert_eq!((reference.canonical().as_str(), reference.to_string().as_str()), (canonical, short));
        }
        let reference: Reference = format!("quay.io/a/b:1{at}").parse().unwrap();
        assert_eq!((reference.tag(), reference.digest()), (Some("1"), Some(&Digest::of(b""))));
        assert_eq!(reference.canonical(), format!("quay.io/a/b:1{at}"));
        let reference: Reference = format!("alpine{at}").parse().unwrap();
        assert_eq!((reference.tag(), reference.to_string()), (None, format!("alpine{at}")));
    }

    #[test]
    fn what_is_no_name_is_refused_with_an_example() {
        let long = |n| "a".repeat(n);
        for text in [
            "",
            "/",
            "a/",
            "/a",
            "a//b",
            "a:",
            "a:b:c",
            ":b",
            "@",
            "a@",
            "a@sha256:0",
            "Alpine",
            "Owner/x",
            "a b",
            "a?b",
            "a#b",
            "a%2fb",
            "é",
            "../x",
            "a/../b",
            "a/./b",
            "a/..",
            ".a",
            "a.",
            "a..b",
            "a___b",
            "a._b",
            "-a",
            "a-",
            "a/-b",
            "a:-b",
            "a:.b",
            "http://a/b",
            "a.b:x/c",
            "a.b:0/c",
            "a.b:65536/c",
            "a.b:+1/c",
            "a.b:/c",
            "-a.b/c",
            "a_.b/c",
            "a..b/c",
            ".b/c",
            "[::1/a",
            "[::g]/a",
            "[::1]x/a",
            "user@host.x/a",
            "a\0",
            "a\n",
            "a.b\\c/d",
            "a:b/c",
            "1.2/a",
            "0x7f.1/a",
            "127.0.0.256/a",
            "127.0.0.01:5000/a",
            HEX,
            &format!("a@sha256:{HEX}@sha256:{HEX}"),
            &format!("a@sha512:{HEX}{HEX}"),
            &long(256),
            &format!("a:{}", long(129)),
            &format!("{}.b/a", long(64)),
            &long(100_000),
        ] {
            let error = text.parse::<Reference>().expect_err(text);
            assert!(error.message().contains("alpine:latest") && error.message().len() < 400, "{error}");
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_is_read_again(
            registry in prop::sample::select(vec!["", "docker.io/", "localhost/", "a.b/", "x:1/", "[::1]:5/", "A.b:5/"]),
            repository in "([a-z][a-z0-9]{0,2}[._-]?[a-z][0-9]?|library|localhost)(/([a-z0-9]{1,3}__[a-z]|a\\.b)){0,2}",
            tag in prop::option::of("[A-Za-z0-9_][A-Za-z0-9_.-]{0,8}"),
            with_digest in any::<bool>(),
        ) {
            let tag = tag.map(|tag| format!(":{tag}")).unwrap_or_default();
            let digest = if with_digest { format!("@sha256:{HEX}") } else { String::new() };
            let reference: Reference = format!("{registry}{repository}{tag}{digest}").parse().unwrap();
            prop_assert_eq!(&reference.to_string().parse::<Reference>().unwrap(), &reference);
            prop_assert_eq!(&reference.canonical().parse::<Reference>().unwrap(), &reference);
            let json = serde_json::to_string(&reference).unwrap();
            prop_assert_eq!(&serde_json::from_str::<Reference>(&json).unwrap(), &reference);
        }

        #[test]
        fn no_text_becomes_a_path_or_another_request(text in "[a-zA-Z0-9./:@_%?#\\\\\\[\\] \\x00-]{0,40}|\\PC{0,40}") {
            if let Ok(reference) = text.parse::<Reference>() {
                let url = format!("https://{}/v2/{}/manifests/{}", reference.registry(), reference.repository(),
                    reference.tag().unwrap_or("x"));
                let Ok(parsed) = url::Url::parse(&url) else { return Ok(()) };
                if !reference.registry().starts_with('[') {
                    prop_assert_eq!(parsed.as_str(), url.as_str());
                }
                prop_assert!(parsed.username().is_empty() && parsed.query().is_none() && parsed.fragment().is_none());
                prop_assert_eq!(&reference.to_string().parse::<Reference>().unwrap(), &reference);
                for part in reference.repository().split('/').chain(reference.tag()) {
                    prop_assert!(!part.is_empty() && !part.starts_with('.') && !part.contains("/"));
                }
            }
        }
    }
}
