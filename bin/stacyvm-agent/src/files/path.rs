//! Paths as they come from outside: absolute, bounded, without surprises.

use crate::fail::{Fail, Result};

/// Longest path, in bytes.
const LONGEST: usize = 4096;

/// An absolute path without empty or `.` components. `..` stays: only the kernel knows where it leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SandboxPath(String);

impl SandboxPath {
    /// Checks and tidies `text`.
    ///
    /// # Errors
    /// `InvalidArgument`.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let shown = || text.chars().take(200).filter(|c| !c.is_control()).collect::<String>();
        if !text.starts_with('/') {
            return Err(Fail::invalid(format!("the path {:?} is not absolute", shown())));
        }
        if text.len() > LONGEST {
            return Err(Fail::invalid(format!("the path {}… is longer than {LONGEST} bytes", shown())));
        }
        if text.contains('\0') {
            return Err(Fail::invalid(format!("the path {} contains a NUL byte", shown())));
        }
        let mut tidy = String::with_capacity(text.len());
        for part in text.split('/').filter(|part| !part.is_empty() && *part != ".") {
            tidy.push('/');
            tidy.push_str(part);
        }
        if tidy.is_empty() {
            tidy.push('/');
        }
        Ok(Self(tidy))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// For the kernel: relative to the root's descriptor.
    pub(crate) fn relative(&self) -> &str {
        match &self.0[1..] {
            "" => ".",
            relative => relative,
        }
    }

    /// Directory and name; `None` for the root and for what ends in `..`.
    pub(crate) fn split(&self) -> Option<(Self, &str)> {
        let (directory, name) = self.0.rsplit_once('/')?;
        if name.is_empty() || name == ".." {
            return None;
        }
        Some((Self(if directory.is_empty() { "/".to_owned() } else { directory.to_owned() }), name))
    }

    /// The path of an entry of this directory, with names that are not UTF-8 made readable.
    pub(crate) fn entry(&self, name: &[u8]) -> String {
        let name = String::from_utf8_lossy(name);
        if self.0 == "/" { format!("/{name}") } else { format!("{}/{name}", self.0) }
    }

    /// This path followed by `target`, or `target` itself if it is absolute: how a symbolic link in this directory reads.
    ///
    /// # Errors
    /// `InvalidArgument` for a result that is no path.
    pub(crate) fn join(&self, target: &str) -> Result<Self> {
        if target.starts_with('/') {
            Self::parse(target)
        } else {
            Self::parse(&format!("{}/{target}", self.0))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn path(text: &str) -> SandboxPath {
        SandboxPath::parse(text).unwrap()
    }

    #[test]
    fn paths_are_tidied() {
        assert_eq!(path("//a/./b//").as_str(), "/a/b");
        assert_eq!(path("/a/../b").as_str(), "/a/../b");
        assert_eq!(path("/.").relative(), ".");
        assert_eq!(path("/a/b").split(), Some((path("/a"), "b")));
        assert_eq!(path("/a").split(), Some((path("/"), "a")));
        assert_eq!(path("/").split(), None);
        assert_eq!(path("/a/..").split(), None);
        assert_eq!(path("/").entry(b"x\xff"), "/x\u{fffd}");
        assert_eq!(path("/a").join("../b").unwrap().as_str(), "/a/../b");
        assert_eq!(path("/a").join("/b").unwrap().as_str(), "/b");
    }

    #[test]
    fn what_is_no_path_is_refused() {
        for bad in ["", "a", "./a", "/a\0b", &format!("/{}", "x".repeat(LONGEST))] {
            assert!(SandboxPath::parse(bad).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_gives_a_tidy_path_or_none(text in "[/.a\u{e4}\0]{0,20}") {
            if let Ok(path) = SandboxPath::parse(&text) {
                prop_assert!(path.as_str().starts_with('/'));
                prop_assert!(!path.as_str().contains("//"));
                prop_assert!(!path.as_str().split('/').any(|part| part == "."));
                prop_assert!(!path.relative().starts_with('/') && !path.relative().is_empty());
                prop_assert_eq!(&SandboxPath::parse(path.as_str()).unwrap(), &path);
                if let Some((directory, name)) = path.split() {
                    prop_assert_eq!(directory.join(name).unwrap(), path);
                }
            }
        }
    }
}
