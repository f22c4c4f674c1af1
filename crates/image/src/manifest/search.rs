//! Finds the manifest for a platform in an index, and in indexes within it.
//!
//! It asks for nothing itself: whoever has a registry or an archive gives it what [`Search::next`] names.

use super::{Descriptor, Index, Kind, Platform, shown};
use crate::Digest;
use stacyvm_provider::{Error, Result};

/// Indexes within one another, at most.
const DEEPEST: usize = 3;
/// Manifests and indexes that are looked at, at most.
const MOST: usize = 32;
/// Platforms that a message names, at most.
const NAMED: usize = 12;

/// A search for the manifest of one platform.
///
/// ```text
/// take(index) → next() → an index: take(it) …, or a manifest: done, unless its configuration is for another platform
///                                                            ([`ImageConfig::runs_on`](super::ImageConfig)): next() again
/// ```
#[derive(Debug)]
pub struct Search {
    platform: Platform,
    image: String,
    /// What is to be looked at, best last, each with the indexes it is in.
    open: Vec<(Descriptor, Vec<Digest>)>,
    /// The indexes around what was named last.
    within: Vec<Digest>,
    looked_at: usize,
    offered: Vec<String>,
}

impl Search {
    /// A search for `platform`. `image` is the name in messages.
    pub fn new(platform: Platform, image: &str) -> Self {
        let (open, within, offered) = (Vec::new(), Vec::new(), Vec::new());
        Self { platform, image: image.to_owned(), open, within, looked_at: 0, offered }
    }

    /// Takes the index of this digest: the first one, or the one that [`Self::next`] named.
    ///
    /// # Errors
    /// `InvalidArgument` for indexes within one another too deep or in a circle.
    pub fn take(&mut self, digest: &Digest, index: &Index) -> Result<()> {
        let mut within = self.within.clone();
        let what = if within.contains(digest) {
            Some("contain one another")
        } else if within.len() >= DEEPEST {
            Some("are too deep within one another")
        } else {
            None
        };
        if let Some(what) = what {
            return Err(Error::invalid_argument(format!(
                "the indexes of the image {} {what} ({DEEPEST} levels are allowed): name the digest of one platform's manifest",
                self.image
            )));
        }
        within.push(digest.clone());
        let mut found = Vec::new();
        for entry in index.manifests() {
            match (&entry.platform, entry.kind()) {
                (_, Kind::Other) => {}
                // Attestations, which are no images.
                (Some(offered), _) if offered.is_unknown() => {}
                // What is known to fit first; then what may hold it.
                (Some(offered), Kind::Manifest) => match self.platform.rank(offered) {
                    Some(rank) => found.push((rank, entry)),
                    None => self.offered.push(offered.to_string()),
                },
                (None, Kind::Manifest) => found.push((u32::MAX - 1, entry)),
                (Some(offered), Kind::Index) if self.platform.rank(offered).is_none() => {
                    self.offered.push(offered.to_string());
                }
                (_, Kind::Index) => found.push((u32::MAX, entry)),
            }
        }
        found.sort_by_key(|(rank, _)| *rank); // stable: of equals the first
        self.open.extend(found.into_iter().rev().map(|(_, entry)| (entry.clone(), within.clone())));
        Ok(())
    }

    /// What to look at next.
    ///
    /// # Errors
    /// `InvalidArgument` when there is nothing more for the platform, with those that there are.
    #[expect(
        clippy::should_implement_trait,
        reason = "it can fail, and what it gives depends on what was taken"
    )]
    pub fn next(&mut self) -> Result<Descriptor> {
        self.looked_at += 1;
        match self.open.pop() {
            Some((entry, within)) if self.looked_at <= MOST => {
                self.within = within;
                Ok(entry)
            }
            Some(_) => Err(Error::invalid_argument(format!(
                "the image {} was not found for {} in the first {MOST} of its manifests: name the digest of one",
                self.image, self.platform
            ))),
            None => Err(self.nothing()),
        }
    }

    fn nothing(&mut self) -> Error {
        self.offered.sort();
        self.offered.dedup();
        let more = self.offered.len().saturating_sub(NAMED);
        let mut listed = self.offered.iter().take(NAMED).map(|p| shown(p)).collect::<Vec<_>>().join(", ");
        if more > 0 {
            listed.push_str(&format!(" and {more} more"));
        }
        let offers = if listed.is_empty() { "no platform".to_owned() } else { listed };
        Error::invalid_argument(format!(
            "the image {} does not exist for {}, only for {offers}: name another image or tag",
            self.image, self.platform
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Document, manifest::testing::entry};

    fn index(entries: &[String]) -> (Digest, Index) {
        let text = format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, entries.join(","));
        match Document::parse(text.as_bytes(), None, "some:1").unwrap() {
            Document::Index(index) => (Digest::of(text.as_bytes()), index),
            Document::Manifest(_) => panic!("a manifest"),
        }
    }

    fn search() -> Search {
        Search::new("linux/amd64".parse().unwrap(), "some:1")
    }

    const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    const INDEX: &str = "application/vnd.oci.image.index.v1+json";

    #[test]
    fn the_best_is_first_and_attestations_are_passed_over() {
        let (digest, index) = index(&[
            entry(MANIFEST, b"attestation", Some(("unknown", "unknown", ""))),
            entry(INDEX, b"nested", None),
            entry(MANIFEST, b"plain", None),
            entry(MANIFEST, b"arm", Some(("linux", "arm64", "v8"))),
            entry(MANIFEST, b"this", Some(("linux", "amd64", ""))),
            entry(MANIFEST, b"again", Some(("linux", "amd64", ""))),
        ]);
        let mut search = search();
        search.take(&digest, &index).unwrap();
        for expected in ["this", "again", "plain", "nested"] {
            assert_eq!(search.next().unwrap().digest, Digest::of(expected.as_bytes()), "{expected}");
        }
        let error = search.next().unwrap_err();
        assert_eq!(
            error.message(),
            "the image some:1 does not exist for linux/amd64, only for linux/arm64: name another image or tag"
        );
    }

    #[test]
    fn circles_and_depths_are_refused() {
        let (digest, loop_index) = index(&[entry(INDEX, b"other", None)]);
        let mut circle = search();
        circle.take(&digest, &loop_index).unwrap();
        circle.next().unwrap();
        // A registry that checks no digests could name the first one again.
        assert!(circle.take(&digest, &loop_index).unwrap_err().message().contains("contain one another"));

        let mut deep = search();
        for level in 0..DEEPEST {
            let (digest, index) = index(&[entry(INDEX, &[u8::try_from(level).unwrap()], None)]);
            deep.take(&digest, &index).unwrap();
            deep.next().unwrap();
        }
        let (digest, last) = index(&[entry(MANIFEST, b"x", None)]);
        assert!(deep.take(&digest, &last).unwrap_err().message().contains("too deep"));
    }

    #[test]
    fn a_search_has_an_end_and_a_message_a_length() {
        let many: Vec<String> = (0..200u32).map(|n| entry(MANIFEST, &n.to_le_bytes(), None)).collect();
        let (digest, index_of_many) = index(&many);
        let mut endless = search();
        endless.take(&digest, &index_of_many).unwrap();
        let error = (0..200).find_map(|_| endless.next().err()).unwrap();
        assert!(error.message().contains("the first 32"), "{error}");

        let foreign: Vec<String> = (0..200u32)
            .map(|n| entry(MANIFEST, b"x", Some(("linux", &format!("a{n}\\u0007"), ""))))
            .collect();
        let (digest, index_of_foreign) = index(&foreign);
        let mut named = search();
        named.take(&digest, &index_of_foreign).unwrap();
        let error = named.next().unwrap_err();
        assert!(error.message().contains("and 188 more") && error.message().len() < 600, "{error}");
        assert!(!error.message().contains('\u{7}'));
    }
}
