//! Extended headers: what does not fit into the fixed fields, as records of text.

use std::collections::BTreeMap;

/// Prefix of the names that Linux' extended attributes have here.
const XATTR: &[u8] = b"SCHILY.xattr.";

/// The records that change an entry.
#[derive(Debug, Default)]
pub struct Records {
    /// The whole path.
    pub path: Option<Vec<u8>>,
    /// What a link refers to.
    pub link: Option<Vec<u8>>,
    /// Bytes of data.
    pub size: Option<u64>,
    /// Owner.
    pub uid: Option<i64>,
    /// Group.
    pub gid: Option<i64>,
    /// Seconds and nanoseconds.
    pub mtime: Option<(i64, u32)>,
    /// Extended attributes.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Of a sparse file: version of the format, real name and real size.
    pub sparse: Sparse,
}

/// Records of sparse files.
#[derive(Debug, Default)]
pub struct Sparse {
    /// The path without the tricks that old programs need to see.
    pub name: Option<Vec<u8>>,
    /// Version of the format.
    pub major: Option<Vec<u8>>,
    /// The part of it behind the point.
    pub minor: Option<Vec<u8>>,
    /// Length of the file, holes included.
    pub real_size: Option<u64>,
    /// One of the two formats that GNU tar wrote until 2006.
    pub outdated: bool,
}

/// Why a header cannot be read.
pub type Reason = &'static str;

impl Records {
    /// Reads the records of one header over those of the headers before it.
    ///
    /// # Errors
    /// Says what is wrong with them.
    pub fn read(&mut self, mut bytes: &[u8]) -> Result<(), Reason> {
        while !bytes.is_empty() {
            let (key, value, rest) = record(bytes).ok_or("has a damaged extended header")?;
            bytes = rest;
            self.set(key, value)?;
        }
        Ok(())
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), Reason> {
        // A record without a value takes back what was said before.
        let given = (!value.is_empty()).then_some(value);
        match key {
            b"path" => self.path = given.map(<[u8]>::to_vec),
            // What the path is without the tricks that old programs need to see.
            b"GNU.sparse.name" => self.sparse.name = given.map(<[u8]>::to_vec),
            b"linkpath" => self.link = given.map(<[u8]>::to_vec),
            b"size" => self.size = parsed(given, "has a size that is no number")?,
            b"uid" => self.uid = parsed(given, "has an owner that is no number")?,
            b"gid" => self.gid = parsed(given, "has a group that is no number")?,
            b"mtime" => {
                self.mtime = given.map(|v| time(v).ok_or("has a time that is no number")).transpose()?;
            }
            b"GNU.sparse.major" => self.sparse.major = given.map(<[u8]>::to_vec),
            b"GNU.sparse.minor" => self.sparse.minor = given.map(<[u8]>::to_vec),
            b"GNU.sparse.realsize" => self.sparse.real_size = parsed(given, "has a size that is no number")?,
            b"GNU.sparse.size" | b"GNU.sparse.map" | b"GNU.sparse.numblocks" => self.sparse.outdated = true,
            _ => {
                if let Some(name) = key.strip_prefix(XATTR) {
                    if name.is_empty() || name.contains(&0) {
                        return Err("has an extended attribute without a name");
                    }
                    self.xattrs.insert(name.to_vec(), value.to_vec());
                }
            }
        }
        Ok(())
    }
}

/// The first record: its length in decimal, a blank, `key=value`, and the end of the line.
fn record(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let blank = bytes.iter().take(20).position(|b| *b == b' ')?;
    let length: usize = parse(&bytes[..blank])?;
    let record = bytes.get(blank + 1..length)?;
    let record = record.strip_suffix(b"\n")?;
    let equals = record.iter().position(|b| *b == b'=')?;
    Some((&record[..equals], &record[equals + 1..], &bytes[length..]))
}

fn parse<T: std::str::FromStr>(text: &[u8]) -> Option<T> {
    // `+7` is a number for the standard library and for nobody else.
    let text = std::str::from_utf8(text).ok().filter(|t| !t.starts_with('+'))?;
    text.parse().ok()
}

fn parsed<T: std::str::FromStr>(text: Option<&[u8]>, reason: Reason) -> Result<Option<T>, Reason> {
    text.map(|t| parse(t).ok_or(reason)).transpose()
}

/// Seconds with a fraction, before or after 1970; what is finer than nanoseconds is cut.
fn time(text: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(text).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if fraction.bytes().any(|b| !b.is_ascii_digit()) {
        return None;
    }
    let seconds: i64 = parse(whole.as_bytes())?;
    let nanoseconds: u32 = format!("{fraction:0<9.9}").parse().ok()?;
    if whole.starts_with('-') && nanoseconds > 0 {
        return Some((seconds.checked_sub(1)?, 1_000_000_000 - nanoseconds));
    }
    Some((seconds, nanoseconds))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn line(key: &str, value: &[u8]) -> Vec<u8> {
        let rest = [b" ", key.as_bytes(), b"=", value, b"\n"].concat();
        let mut length = rest.len() + 1;
        while length.to_string().len() + rest.len() != length {
            length = length.to_string().len() + rest.len();
        }
        [length.to_string().as_bytes(), &rest].concat()
    }

    #[test]
    fn records_are_read_and_later_ones_win() {
        let mut records = Records::default();
        let bytes = [
            line("path", b"a=b\nc"),
            line("size", b"8589934592"),
            line("uid", b"7"),
            line("uid", b""),
            line("mtime", b"1700000000.123456789123"),
            line("SCHILY.xattr.user.x", b"\0\xff"),
            line("SCHILY.acl.access", b"ignored"),
        ];
        records.read(&bytes.concat()).unwrap();
        assert_eq!(records.path.as_deref(), Some(&b"a=b\nc"[..]));
        assert_eq!((records.size, records.uid), (Some(8_589_934_592), None));
        assert_eq!(records.mtime, Some((1_700_000_000, 123_456_789)));
        assert_eq!(records.xattrs[&b"user.x"[..]], b"\0\xff");
    }

    #[test]
    fn times_before_1970_and_beyond_all_reason() {
        assert_eq!(time(b"-1.5"), Some((-2, 500_000_000)));
        assert_eq!(time(b"-0.25"), Some((-1, 750_000_000)));
        assert_eq!(time(b"-3"), Some((-3, 0)));
        assert_eq!(time(b"7.000000001"), Some((7, 1)));
        for wrong in [
            &b"x"[..],
            b"1.x",
            b"",
            b".5",
            b"1e9",
            b"99999999999999999999",
            b"--1",
            b"-9223372036854775808.5",
        ] {
            assert_eq!(time(wrong), None, "{}", String::from_utf8_lossy(wrong));
        }
    }

    #[test]
    fn damaged_records_are_refused() {
        for bytes in [
            &b"x"[..],
            b"5 a=b",
            b"99 path=x\n",
            b"0 a=b\n",
            b"3 a=b\n",
            b"6 a=b\nrest",
            b"8 pathx\n\n",
            b"18446744073709551616 a=b\n",
            b"+6 a=b\n",
        ] {
            assert!(Records::default().read(bytes).is_err(), "{}", String::from_utf8_lossy(bytes));
        }
        for (key, value) in
            [("size", "-1"), ("size", "x"), ("uid", "1.5"), ("SCHILY.xattr.", "x"), ("mtime", "x")]
        {
            assert!(Records::default().read(&line(key, value.as_bytes())).is_err(), "{key}={value}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_do_harm(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Records::default().read(&bytes);
        }
    }
}
