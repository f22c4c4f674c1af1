//! What an image is built for, and whether this host runs it.

use serde::{Deserialize, Serialize};
use stacyvm_provider::{Error, Result};
use std::{fmt, str::FromStr};

/// An operating system, a processor architecture and its variant, in the words of Go that images use: `linux/arm64/v8`.
///
/// Other words for the same are taken and replaced: `x86_64`, `aarch64`, `armhf`, and variants that the architecture
/// implies (`arm64/v8`, `amd64/v1`) are left out.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Platform {
    os: String,
    architecture: String,
    variant: Option<String>,
}

impl Platform {
    /// A platform of these words.
    pub fn new(os: &str, architecture: &str, variant: Option<&str>) -> Self {
        let os = os.to_ascii_lowercase();
        let given = architecture.to_ascii_lowercase();
        let mut variant = variant.map(str::to_ascii_lowercase).filter(|variant| !variant.is_empty());
        let architecture = match given.as_str() {
            "x86_64" | "x86-64" => "amd64",
            "aarch64" => "arm64",
            "i386" | "i686" => "386",
            "armhf" => "arm",
            "armel" => {
                variant = Some("v6".to_owned());
                "arm"
            }
            other => other,
        }
        .to_owned();
        if let Some(digits) = variant.as_ref().filter(|v| v.bytes().all(|b| b.is_ascii_digit())) {
            variant = Some(format!("v{digits}"));
        }
        let variant = match (architecture.as_str(), variant.as_deref()) {
            ("arm64", Some("v8" | "v8.0")) | ("amd64", Some("v1")) => None,
            ("arm", None) => Some("v7".to_owned()),
            _ => variant,
        };
        Self { os, architecture, variant }
    }

    /// The platform of this host.
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "powerpc64" => "ppc64le",
            "loongarch64" => "loong64",
            other => other,
        };
        Self::new("linux", architecture, None)
    }

    /// Whether it says that it is for nothing: `unknown/unknown`.
    pub(super) fn is_unknown(&self) -> bool {
        self.os == "unknown" || self.architecture == "unknown"
    }

    /// How well an image for `offered` runs where this platform is wanted: `None` for not at all, lower is better.
    ///
    /// The architecture must be the same: an amd64 host's processor would run 386, but the agent and its filter of system
    /// calls would not. Of variants those that are not higher than the wanted one run, the highest best.
    pub fn rank(&self, offered: &Self) -> Option<u32> {
        if (&self.os, &self.architecture) != (&offered.os, &offered.architecture) {
            return None;
        }
        if self.variant == offered.variant {
            return Some(0);
        }
        // What has no variant runs everywhere: it is the lowest there is.
        let level = |platform: &Self, least| match &platform.variant {
            None => Some(least),
            Some(variant) => variant.strip_prefix('v')?.split('.').next()?.parse::<u32>().ok(),
        };
        let least = match self.architecture.as_str() {
            "arm64" => 8,
            "amd64" => 1,
            _ => 0,
        };
        level(self, least)?.checked_sub(level(offered, least)?).map(|below| below.saturating_add(1))
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.iter().try_for_each(|variant| write!(f, "/{variant}"))
    }
}

impl FromStr for Platform {
    type Err = Error;

    /// # Errors
    /// `InvalidArgument` with an example.
    fn from_str(text: &str) -> Result<Self> {
        let legal = |part: &&str| {
            (1..=32).contains(&part.len())
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        };
        let parts: Vec<&str> = text.split('/').collect();
        match parts.as_slice() {
            [os, architecture, rest @ ..] if rest.len() <= 1 && parts.iter().all(legal) => {
                Ok(Self::new(os, architecture, rest.first().copied()))
            }
            _ => {
                let shown: String = text.chars().filter(|c| !c.is_control()).take(40).collect();
                Err(Error::invalid_argument(format!(
                    "{shown:?} is no platform: write it as in linux/amd64 or linux/arm/v7"
                )))
            }
        }
    }
}

impl TryFrom<String> for Platform {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Platform> for String {
    fn from(platform: Platform) -> Self {
        platform.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(text: &str) -> Platform {
        text.parse().unwrap()
    }

    #[test]
    fn words_for_the_same_are_the_same() {
        for (one, other) in [
            ("linux/x86_64", "linux/amd64"),
            ("Linux/AMD64/v1", "linux/amd64"),
            ("linux/aarch64", "linux/arm64"),
            ("linux/arm64/v8", "linux/arm64"),
            ("linux/arm64/8", "linux/arm64"),
            ("linux/armhf", "linux/arm/v7"),
            ("linux/arm", "linux/arm/v7"),
            ("linux/armel", "linux/arm/v6"),
        ] {
            assert_eq!(platform(one), platform(other), "{one}");
            assert_eq!(platform(&platform(one).to_string()), platform(one));
        }
        for text in ["", "linux", "linux/", "/amd64", "a/b/c/d", "a b/c", "linux/amd64/\n"] {
            assert!(text.parse::<Platform>().unwrap_err().message().contains("linux/amd64"), "{text:?}");
        }
    }

    #[test]
    fn a_variant_runs_lower_ones_the_highest_best() {
        fn best<'a>(wanted: &str, offered: &[&'a str]) -> Option<&'a str> {
            let wanted = platform(wanted);
            let ranked = offered.iter().filter_map(|text| Some((wanted.rank(&platform(text))?, *text)));
            ranked.min_by_key(|(rank, _)| *rank).map(|(_, text)| text)
        }
        assert_eq!(
            best("linux/arm/v7", &["linux/arm/v5", "linux/arm/v6", "linux/arm/v8"]),
            Some("linux/arm/v6")
        );
        assert_eq!(best("linux/arm/v6", &["linux/arm/v7"]), None);
        assert_eq!(best("linux/amd64", &["linux/amd64/v2", "linux/386", "windows/amd64"]), None);
        assert_eq!(best("linux/amd64/v3", &["linux/amd64", "linux/amd64/v2"]), Some("linux/amd64/v2"));
        assert_eq!(best("linux/amd64", &["linux/amd64/v3", "linux/amd64"]), Some("linux/amd64"));
        assert_eq!(best("linux/arm64", &["linux/arm64/v9", "linux/arm64"]), Some("linux/arm64"));
        assert_eq!(best("linux/arm64", &["linux/arm/v7", "unknown/unknown"]), None);
        assert_eq!(best("linux/mips64/r6", &["linux/mips64/r6", "linux/mips64"]), Some("linux/mips64/r6"));
        assert_eq!(best("linux/mips64/r6", &["linux/mips64/r5"]), None);
    }

    #[test]
    fn this_host_has_one() {
        let host = Platform::host();
        let expected = if cfg!(target_arch = "x86_64") { "linux/amd64" } else { "linux/arm64" };
        assert!(!cfg!(any(target_arch = "x86_64", target_arch = "aarch64")) || host.to_string() == expected);
    }
}
