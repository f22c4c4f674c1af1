//! Headers of an archive: the old fixed fields where they are enough, extended records where they are not.

use crate::{BLOCK, Entry, Kind};

/// The end mark of an archive.
pub const END: [u8; 2 * BLOCK] = [0; 2 * BLOCK];
/// What fits into eleven octal digits.
const OCTAL_11: u64 = 1 << 33;
/// What fits into seven.
const OCTAL_7: u32 = 1 << 21;

/// Writes a whole entry behind `out`: its headers, and its data filled up to a block.
pub fn append(entry: &Entry, data: &[u8], out: &mut Vec<u8>) {
    encode(entry, out);
    out.extend_from_slice(data);
    out.resize(out.len().next_multiple_of(BLOCK), 0);
}

/// Writes the headers of an entry behind `out`. Its data, filled up to a block, follows.
pub fn encode(entry: &Entry, out: &mut Vec<u8>) {
    let path = match entry.kind {
        // Every program takes it for a directory then.
        Kind::Directory if !entry.path.ends_with(b"/") => [&entry.path, &b"/"[..]].concat(),
        _ => entry.path.clone(),
    };
    let mut records = Vec::new();
    if path.len() > 100 {
        record(b"path", &path, &mut records);
    }
    if entry.link.len() > 100 {
        record(b"linkpath", &entry.link, &mut records);
    }
    if entry.size >= OCTAL_11 {
        record(b"size", entry.size.to_string().as_bytes(), &mut records);
    }
    for (key, id) in [(&b"uid"[..], entry.uid), (b"gid", entry.gid)] {
        if id >= OCTAL_7 {
            record(key, id.to_string().as_bytes(), &mut records);
        }
    }
    let (seconds, nanoseconds) = entry.mtime;
    let old_time = u64::try_from(seconds).ok().filter(|seconds| *seconds < OCTAL_11);
    if nanoseconds != 0 || old_time.is_none() {
        record(b"mtime", decimal(seconds, nanoseconds.into()).as_bytes(), &mut records);
    }
    if !records.is_empty() {
        let about = Entry { size: records.len() as u64, mtime: (0, 0), ..entry.clone() };
        block(b'x', b"././@PaxHeader", b"", &about, out);
        out.extend_from_slice(&records);
        out.resize(out.len().next_multiple_of(BLOCK), 0);
    }
    let kind = match entry.kind {
        Kind::File => b'0',
        Kind::HardLink => b'1',
        Kind::Symlink => b'2',
        Kind::Directory => b'5',
        Kind::Other(letter) => letter,
    };
    block(kind, &path, &entry.link, entry, out);
}

/// One record: its length in decimal, a blank, `key=value`, and the end of the line.
fn record(key: &[u8], value: &[u8], out: &mut Vec<u8>) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while rest + length.to_string().len() != length {
        length = rest + length.to_string().len();
    }
    out.extend_from_slice(length.to_string().as_bytes());
    for part in [b" ", key, b"=", value, b"\n"] {
        out.extend_from_slice(part);
    }
}

fn block(kind: u8, path: &[u8], link: &[u8], entry: &Entry, out: &mut Vec<u8>) {
    let start = out.len();
    out.resize(start + BLOCK, 0);
    let block = &mut out[start..];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    // What is longer stands in a record; for programs that do not read those, its beginning.
    put(0, &path[..path.len().min(100)]);
    put(100, format!("{:07o}", entry.mode & 0o7777).as_bytes());
    for (at, id) in [(108, entry.uid), (116, entry.gid)] {
        put(at, format!("{:07o}", if id < OCTAL_7 { id } else { 0 }).as_bytes());
    }
    let small = |number: u64| if number < OCTAL_11 { number } else { 0 };
    put(124, format!("{:011o}", small(entry.size)).as_bytes());
    put(136, format!("{:011o}", small(u64::try_from(entry.mtime.0).unwrap_or(0))).as_bytes());
    put(148, b"        ");
    put(156, &[kind]);
    put(157, &link[..link.len().min(100)]);
    put(257, b"ustar\x0000");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

/// Seconds with their fraction, as extended headers have them.
pub fn decimal(seconds: i64, nanoseconds: u64) -> String {
    match (seconds, nanoseconds) {
        (_, 0) => seconds.to_string(),
        (0.., _) => format!("{seconds}.{nanoseconds:09}"),
        // -1.25 is a quarter before -1, and kept as -2 and three quarters.
        (-1, _) => format!("-0.{:09}", 1_000_000_000 - nanoseconds),
        _ => format!("{}.{:09}", seconds + 1, 1_000_000_000 - nanoseconds),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_they_are_read() {
        for (seconds, nanoseconds, text) in [
            (0, 0, "0"),
            (7, 5, "7.000000005"),
            (-1, 750_000_000, "-0.250000000"),
            (-2, 500_000_000, "-1.500000000"),
            (-3, 0, "-3"),
        ] {
            assert_eq!(decimal(seconds, nanoseconds), text);
        }
    }

    #[test]
    fn a_record_knows_its_own_length() {
        for length in [0, 1, 84, 85, 86, 87, 88, 89, 90, 983, 984, 985, 986, 987, 988, 989, 990] {
            let mut out = Vec::new();
            record(b"path", &vec![b'x'; length], &mut out);
            let blank = out.iter().position(|byte| *byte == b' ').unwrap();
            assert_eq!(std::str::from_utf8(&out[..blank]).unwrap().parse(), Ok(out.len()));
        }
    }
}
