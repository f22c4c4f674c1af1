//! Names in an archive: which are refused before anything is made of them.

use crate::DEPTH;

/// Longest path, and longest target of a link, in bytes.
pub(crate) const PATH_MAX: usize = 4095;
/// Longest name of one file on Linux.
const NAME_MAX: usize = 255;

/// The names that lead from the top to an entry, none for the top itself.
///
/// # Errors
/// What is wrong with the path.
pub fn parts(path: &[u8]) -> Result<Vec<&[u8]>, &'static str> {
    if path.starts_with(b"/") {
        return Err("has an absolute path");
    }
    if path.contains(&0) {
        return Err("has a zero byte in its path");
    }
    if path.len() > PATH_MAX {
        return Err("has a path of more than 4095 bytes");
    }
    let mut parts = Vec::new();
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return Err("has .. in its path"),
            part if part.len() > NAME_MAX => return Err("has a name of more than 255 bytes"),
            part => parts.push(part),
        }
    }
    if parts.len() > DEPTH { Err("is in too many directories within one another") } else { Ok(parts) }
}

/// Whether a symbolic link at `parts` that reads `target` may lead out of the top.
///
/// Up it may go only at its beginning, from the directory that it is in, which is no link: behind a name, `..` leads up from
/// whatever that name is, another link for example.
pub fn leads_out(parts: &[&[u8]], target: &[u8]) -> bool {
    if target.starts_with(b"/") {
        return true;
    }
    // The directory that the link is in.
    let (mut depth, mut named) = (parts.len().saturating_sub(1), false);
    for part in target.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." if named || depth == 0 => return true,
            b".." => depth -= 1,
            _ => named = true,
        }
    }
    false
}

/// A path for people: what is no text is escaped, what is long is cut.
pub fn shown(path: &[u8]) -> String {
    let text = String::from_utf8_lossy(path);
    let cut: String = text.chars().take(200).collect();
    let more = if cut.len() < text.len() { "…" } else { "" };
    format!("{cut:?}{more}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_are_shown_without_what_terminals_obey() {
        assert_eq!(shown(b"a\x1b[2J\n\xff"), "\"a\\u{1b}[2J\\n\u{fffd}\"");
        assert!(shown(&[b'x'; 5000]).len() < 220);
    }

    #[test]
    fn what_leads_elsewhere_is_refused() {
        for path in [&b"/a"[..], b"..", b"a/..", b"../a", b"a/../b", b"./..", b"a\0b", b"//"] {
            assert!(parts(path).is_err(), "{}", shown(path));
        }
        for path in [&b"x/".repeat(256)[..], &[b'x'; 256], &b"y/yyyyyyy".repeat(500)] {
            assert!(parts(path).is_err());
        }
        assert_eq!(parts(b"./a//b/.").unwrap(), [b"a", b"b"]);
        for top in [&b""[..], b".", b"./", b"././"] {
            assert!(parts(top).unwrap().is_empty());
        }
        assert!(parts(b"...").is_ok() && parts(b"..a").is_ok());
    }

    #[test]
    fn links_are_followed_in_thought() {
        for (at, target, out) in [
            ("l", "a", false),
            ("l", "..", true),
            ("a/l", "..", false),
            ("a/l", "../..", true),
            ("a/l", "../b/../../c", true),
            ("a/b/l", "../../c", false),
            ("a/b/l", "../../../c", true),
            ("a/b/l", "./.././c/d", false),
            // What `up` is decides.
            ("cfg", "a/b/up/../etc", true),
            ("a/l", "b/..", true),
            ("l", "/etc", true),
            ("l", "a/../..", true),
        ] {
            let at = parts(at.as_bytes()).unwrap();
            assert_eq!(leads_out(&at, target.as_bytes()), out, "{at:?} {target}");
        }
    }

    proptest! {
        #[test]
        fn what_passes_stays_below(path in proptest::collection::vec(prop_oneof![
            Just(b'/'), Just(b'.'), Just(b'a'), any::<u8>()], 0..40)) {
            if let Ok(parts) = parts(&path) {
                prop_assert!(!path.starts_with(b"/"));
                for part in parts {
                    prop_assert!(!part.is_empty() && part != b"." && part != b"..");
                    prop_assert!(!part.contains(&b'/') && !part.contains(&0));
                }
            }
        }
    }
}
