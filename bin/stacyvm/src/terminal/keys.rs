//! The keys that leave a command to itself, found in what is typed, however it arrives in pieces.

use std::{fmt, str::FromStr};

/// Keys that detach when they are typed one after the other; none of them: nothing detaches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DetachKeys(Vec<u8>);

impl DetachKeys {
    /// What is used unless something else is asked for. Only its first key is held back until the next one is known, so it
    /// is one that shells and editors do without for that long.
    pub(crate) const DEFAULT: &str = "ctrl-],d";

    /// Nothing detaches.
    pub(crate) fn none() -> Self {
        Self(Vec::new())
    }
}

/// Not a list of keys.
#[derive(Debug)]
pub(crate) struct BadKeys(String);

impl fmt::Display for BadKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?} is no key: keys are single characters or ctrl-a to ctrl-z, ctrl-@, ctrl-[, ctrl-], ctrl-^, ctrl-_ and ctrl-\\, joined by commas",
            self.0
        )
    }
}

impl std::error::Error for BadKeys {}

impl FromStr for DetachKeys {
    type Err = BadKeys;

    fn from_str(text: &str) -> Result<Self, BadKeys> {
        if text.is_empty() {
            return Ok(Self::none());
        }
        let key =
            |name: &str| match (name.strip_prefix("ctrl-").or(name.strip_prefix("Ctrl-")), name.as_bytes()) {
                (Some(letter), _) => match letter.as_bytes() {
                    [letter @ (b'a'..=b'z' | b'@'..=b'_')] => Ok(letter & 0x1f),
                    _ => Err(BadKeys(name.to_owned())),
                },
                (None, [byte]) if byte.is_ascii_graphic() => Ok(*byte),
                _ => Err(BadKeys(name.to_owned())),
            };
        text.split(',').map(key).collect::<Result<_, _>>().map(Self)
    }
}

/// Looks for the keys.
#[derive(Debug)]
pub(crate) struct Scanner {
    keys: Vec<u8>,
    /// How many of the keys were typed last.
    held: usize,
}

impl Scanner {
    pub(crate) fn new(keys: &DetachKeys) -> Self {
        Self { keys: keys.0.clone(), held: 0 }
    }

    /// What of `typed`, and of what was held back before, is to be passed on; and whether the keys were found, behind which
    /// everything is dropped.
    pub(crate) fn scan(&mut self, typed: &[u8]) -> (Vec<u8>, bool) {
        if self.keys.is_empty() {
            return (typed.to_vec(), false);
        }
        let mut passed = Vec::with_capacity(typed.len());
        for byte in typed {
            // All that is held back, and this one: either it is still the beginning of the keys, or its first bytes are not.
            let mut held = self.keys[..self.held].to_vec();
            held.push(*byte);
            let kept =
                (0..=held.len()).find(|from| self.keys.starts_with(&held[*from..])).unwrap_or(held.len());
            passed.extend_from_slice(&held[..kept]);
            self.held = held.len() - kept;
            if self.held == self.keys.len() {
                self.held = 0;
                return (passed, true);
            }
        }
        (passed, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn keys(text: &str) -> DetachKeys {
        text.parse().unwrap()
    }

    #[test]
    fn keys_are_read_as_people_write_them() {
        assert_eq!(keys(DetachKeys::DEFAULT), DetachKeys(vec![0x1d, b'd']));
        assert_eq!(keys("ctrl-p,ctrl-q"), DetachKeys(vec![0x10, 0x11]));
        assert_eq!(keys("ctrl-@,~,."), DetachKeys(vec![0, b'~', b'.']));
        assert_eq!(keys(""), DetachKeys::none());
        for bad in ["ctrl-", "ctrl-1", "ab", "a,,b", ",", "ctrl-aa", "ä", " "] {
            assert!(bad.parse::<DetachKeys>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn only_a_beginning_of_the_keys_is_held_back() {
        let mut scanner = Scanner::new(&keys("a,a,b"));
        assert_eq!(scanner.scan(b"xa"), (b"x".to_vec(), false));
        assert_eq!(scanner.scan(b"a"), (b"".to_vec(), false));
        assert_eq!(scanner.scan(b"a"), (b"a".to_vec(), false));
        assert_eq!(scanner.scan(b"c"), (b"aac".to_vec(), false));
        assert_eq!(scanner.scan(b"yaabz"), (b"y".to_vec(), true));
    }

    proptest! {
        #[test]
        fn all_that_is_typed_before_the_keys_is_passed_on(
            typed in proptest::collection::vec(prop_oneof![Just(b'a'), Just(b'b'), Just(b'c')], 0..40),
            cuts in proptest::collection::vec(1..5usize, 0..40),
        ) {
            let wanted = b"aab";
            let end = typed.windows(wanted.len()).position(|window| window == wanted);
            let mut scanner = Scanner::new(&keys("a,a,b"));
            let (mut passed, mut found, mut rest, mut cuts) = (Vec::new(), false, typed.as_slice(), cuts.into_iter());
            while !rest.is_empty() && !found {
                let (piece, left) = rest.split_at(cuts.next().unwrap_or(1).min(rest.len()));
                rest = left;
                let (more, left) = scanner.scan(piece);
                passed.extend(more);
                found = left;
            }
            prop_assert_eq!(found, end.is_some());
            let held = if found { 0 } else { scanner.held };
            let until = end.unwrap_or(typed.len());
            prop_assert_eq!(&passed[..], &typed[..until - held]);
        }
    }
}
