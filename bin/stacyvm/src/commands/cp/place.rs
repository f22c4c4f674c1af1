//! One side of a copy.

use crate::failure::{Failure, Result};

/// Directory that relative paths in a sandbox start at.
const WORKSPACE: &str = "/workspace";

/// One side of a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// A file in a sandbox.
    Sandbox {
        /// The sandbox.
        id: String,
        /// Absolute path, with a slash at its end if it was written with one.
        path: String,
    },
    /// A local path, or `-`.
    Local(String),
}

impl Place {
    /// Reads an argument: `ID:path` is in a sandbox unless a slash or dot stands before the colon.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        if text.is_empty() {
            return Err(Failure::usage("an empty path", "name a file"));
        }
        let Some((id, path)) =
            text.split_once(':').filter(|(id, _)| !id.is_empty() && !id.contains(['/', '.']))
        else {
            return Ok(Self::Local(text.to_owned()));
        };
        if path.is_empty() {
            return Err(Failure::usage(format!("{text} names no file"), format!("write {id}:/path")));
        }
        let path = if path.starts_with('/') { path.to_owned() } else { format!("{WORKSPACE}/{path}") };
        Ok(Self::Sandbox { id: id.to_owned(), path })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sides() {
        let sandbox = |path: &str| Place::Sandbox { id: "sb-1".into(), path: path.into() };
        assert_eq!(Place::parse("sb-1:/a/b").unwrap(), sandbox("/a/b"));
        assert_eq!(Place::parse("sb-1:a:b/").unwrap(), sandbox("/workspace/a:b/"));
        for local in ["a", "./a:b", "/a:b", "../x:y", "-", ".", ":a", "a.b:c"] {
            assert_eq!(Place::parse(local).unwrap(), Place::Local(local.to_owned()));
        }
        assert!(Place::parse("sb-1:").is_err() && Place::parse("").is_err());
    }

    proptest! {
        #[test]
        fn paths_in_sandboxes_are_absolute(text in "\\PC{0,30}") {
            if let Ok(Place::Sandbox { id, path }) = Place::parse(&text) {
                prop_assert!(path.starts_with('/') && !id.is_empty());
            }
        }
    }
}
