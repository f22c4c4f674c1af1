//! Pieces of manifests for tests.

use crate::Digest;

/// An entry of an index: what `content` hashes to, for a platform.
pub(crate) fn entry(media_type: &str, content: &[u8], platform: Option<(&str, &str, &str)>) -> String {
    let digest = Digest::of(content);
    let platform = platform
        .map(|(os, architecture, variant)| {
            format!(r#","platform":{{"os":"{os}","architecture":"{architecture}","variant":"{variant}"}}"#)
        })
        .unwrap_or_default();
    format!(r#"{{"mediaType":"{media_type}","digest":"{digest}","size":100{platform}}}"#)
}
