//! The `Range` header of RFC 9110 for one range of bytes. Anything else (other units, several ranges, nonsense) is
//! ignored, as the RFC allows, and the whole file is sent.

/// A range as asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ByteRange {
    /// From an offset to an offset (inclusive) or to the end.
    From(u64, Option<u64>),
    /// That many bytes at the end.
    Last(u64),
}

/// The range lies outside the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Unsatisfiable;

impl ByteRange {
    /// Reads a header value; `None`: to be ignored.
    pub(crate) fn parse(header: &str) -> Option<Self> {
        let (unit, range) = header.trim().split_once('=')?;
        if !unit.trim().eq_ignore_ascii_case("bytes") {
            return None;
        }
        let (first, last) = range.trim().split_once('-')?;
        let (first, last) = (first.trim(), last.trim());
        match (first, last) {
            ("", last) => Some(Self::Last(number(last)?)),
            (first, "") => Some(Self::From(number(first)?, None)),
            (first, last) => {
                let (first, last) = (number(first)?, number(last)?);
                (first <= last).then_some(Self::From(first, Some(last)))
            }
        }
    }

    /// First byte and length within a file of `size` bytes.
    pub(crate) fn resolve(self, size: u64) -> Result<(u64, u64), Unsatisfiable> {
        match self {
            Self::From(first, _) if first >= size => Err(Unsatisfiable),
            Self::From(first, last) => {
                let end = last.map_or(size, |last| last.saturating_add(1).min(size));
                Ok((first, end - first))
            }
            Self::Last(0) => Err(Unsatisfiable),
            Self::Last(_) if size == 0 => Err(Unsatisfiable),
            Self::Last(length) => {
                let length = length.min(size);
                Ok((size - length, length))
            }
        }
    }
}

/// Decimal digits; more than fit mean "very far".
fn number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| text.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn resolve(header: &str, size: u64) -> Option<Result<(u64, u64), Unsatisfiable>> {
        ByteRange::parse(header).map(|range| range.resolve(size))
    }

    #[test]
    fn ranges_within_a_file() {
        for (header, expected) in [
            ("bytes=0-0", (0, 1)),
            ("bytes=2-4", (2, 3)),
            ("bytes=2-", (2, 8)),
            ("Bytes = 9-99", (9, 1)),
            ("bytes=-3", (7, 3)),
            ("bytes=-99", (0, 10)),
            ("bytes=0-99999999999999999999999", (0, 10)),
        ] {
            assert_eq!(resolve(header, 10), Some(Ok(expected)), "{header}");
        }
    }

    #[test]
    fn ranges_outside_a_file() {
        for (header, size) in [("bytes=10-", 10), ("bytes=0-", 0), ("bytes=-0", 10), ("bytes=-5", 0)] {
            assert_eq!(resolve(header, size), Some(Err(Unsatisfiable)), "{header}");
        }
    }

    #[test]
    fn what_is_ignored() {
        for header in [
            "",
            "bytes",
            "bytes=",
            "bytes=-",
            "lines=1-2",
            "bytes=4-2",
            "bytes=a-b",
            "bytes=0-1,4-5",
            "bytes=+1-2",
        ] {
            assert_eq!(ByteRange::parse(header), None, "{header}");
        }
    }

    proptest! {
        #[test]
        fn no_header_panics_and_no_range_leaves_the_file(header in "(bytes=)?[0-9,\\- ]{0,30}|\\PC{0,30}", size in any::<u64>()) {
            if let Some(Ok((first, length))) = resolve(&header, size) {
                prop_assert!(length > 0 && first.checked_add(length).is_some_and(|end| end <= size));
            }
        }
    }
}
