//! Names in an archive: what they mean, and which are refused before anything is made of them.

use super::{Limits, exceeded, refused};
use stacyvm_provider::Result;
pub(crate) use stacyvm_tar::shown;

/// Longest name of one file on Linux.
const NAME_MAX: usize = 255;
/// Start of the names that stand for something that is not there any more.
const WHITEOUT: &[u8] = b".wh.";
/// Start of the names that a filesystem of the past, aufs, kept for itself.
const META: &[u8] = b".wh..wh.";
/// The name that hides all of the layers below.
const OPAQUE: &[u8] = b".wh..wh..opq";

/// What the path of an entry asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Target<'a> {
    /// The layer's own directory.
    Root,
    /// Something in the directory `.0`, named `.1`.
    Entry(Vec<&'a [u8]>, &'a [u8]),
    /// What the layers below have in the directory `.0` with the name `.1` is hidden.
    Whiteout(Vec<&'a [u8]>, &'a [u8]),
    /// All that the layers below have in this directory is hidden.
    Opaque(Vec<&'a [u8]>),
    /// Belongs to a filesystem of the past; means nothing.
    Nothing,
}

/// The components of a path, without those that say nothing. A leading slash means the layer's directory, as everywhere.
///
/// # Errors
/// `InvalidArgument` for `..` and for names that no filesystem takes, `ResourceLimit` for a path that is too long or deep.
pub(crate) fn parts<'a>(path: &'a [u8], limits: &Limits) -> Result<Vec<&'a [u8]>> {
    if path.len() > limits.path_bytes {
        return Err(exceeded(path, format_args!("has a path of more than {} bytes", limits.path_bytes)));
    }
    if path.contains(&0) {
        return Err(refused(path, "has a zero byte in its path"));
    }
    let parts: Vec<_> = path.split(|b| *b == b'/').filter(|p| !p.is_empty() && *p != b".").collect();
    for part in &parts {
        if *part == b".." {
            return Err(refused(path, "has `..` in its path: an archive of an image never needs it"));
        }
        if part.len() > NAME_MAX {
            return Err(refused(path, format_args!("has a name of more than {NAME_MAX} bytes in its path")));
        }
    }
    if parts.len() > limits.depth {
        return Err(exceeded(path, format_args!("is in more than {} directories", limits.depth)));
    }
    Ok(parts)
}

/// What the path of an entry means.
///
/// # Errors
/// Those of [`parts`], and `InvalidArgument` for a whiteout of nothing or of a directory's own links.
pub(crate) fn target<'a>(path: &'a [u8], limits: &Limits) -> Result<Target<'a>> {
    let mut parts = parts(path, limits)?;
    let Some(last) = parts.pop() else { return Ok(Target::Root) };
    if parts.iter().any(|p| p.starts_with(META)) {
        return Ok(Target::Nothing);
    }
    if parts.iter().any(|p| p.starts_with(WHITEOUT)) {
        return Err(refused(
            path,
            "is in something that was removed: names that begin with .wh. are whiteouts",
        ));
    }
    match last.strip_prefix(WHITEOUT) {
        None => Ok(Target::Entry(parts, last)),
        Some(_) if last == OPAQUE => Ok(Target::Opaque(parts)),
        Some(_) if last.starts_with(META) => Ok(Target::Nothing),
        Some(b"" | b"." | b"..") => Err(refused(path, "is a whiteout of no file")),
        Some(hidden) => Ok(Target::Whiteout(parts, hidden)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(path: &[u8]) -> Result<Target<'_>> {
        super::target(path, &Limits::default())
    }

    #[test]
    fn paths_are_beneath_the_layer_however_they_are_written() {
        for path in [&b"a/b"[..], b"/a/b", b"./a/b", b"//a/./b/", b"/./a//b"] {
            assert_eq!(target(path).unwrap(), Target::Entry(vec![b"a"], b"b"));
        }
        for path in [&b""[..], b".", b"./", b"/", b"//."] {
            assert_eq!(target(path).unwrap(), Target::Root);
        }
    }

    #[test]
    fn whiteouts_are_told_from_files() {
        assert_eq!(target(b"a/.wh.b").unwrap(), Target::Whiteout(vec![b"a"], b"b"));
        assert_eq!(target(b".wh..wh..opq").unwrap(), Target::Opaque(vec![]));
        assert_eq!(target(b"a/.wh..wh..opq").unwrap(), Target::Opaque(vec![b"a"]));
        assert_eq!(target(b".wh..wh.plnk/1.2").unwrap(), Target::Nothing);
        assert_eq!(target(b".wh..wh.aufs").unwrap(), Target::Nothing);
        assert_eq!(target(b".wh.b.wh.").unwrap(), Target::Whiteout(vec![], b"b.wh."));
        assert_eq!(target(b"wh.b").unwrap(), Target::Entry(vec![], b"wh.b"));
    }

    #[test]
    fn what_no_image_needs_is_refused() {
        let long = [b'x'; 256];
        for path in [
            &b"../a"[..],
            b"a/../b",
            b"/..",
            b"a\0b",
            b".wh.",
            b"a/.wh..",
            b"a/.wh...",
            b".wh.a/b",
            &long,
            &[&b"a/"[..], &long[..]].concat(),
            &b"a/".repeat(129),
            &b"a/".repeat(5000),
        ] {
            let error = target(path).unwrap_err();
            assert!(error.message().starts_with("the archive's entry "), "{error}");
        }
    }
}
