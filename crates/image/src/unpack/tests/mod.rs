//! Tests of unpacking.

mod attributes;
mod hostile;
mod model;
pub(crate) mod overlay;
mod tools;

use super::{
    Limits,
    testing::{Archive, gzip, things, unpacked},
};
use crate::Digest;
use std::{fs, path::Path};

fn good(archive: &[u8]) -> (tempfile::TempDir, super::Unpacked) {
    let (tmp, result) = unpacked(archive, &Limits::default());
    (tmp, result.unwrap())
}

#[test]
fn the_digest_is_that_of_all_bytes_however_compressed() {
    let mut archive = Archive::default().directory("d/").file("d/f", b"text").end();
    archive.extend_from_slice(b"bytes behind the end");
    let zstd = zstd::encode_all(archive.as_slice(), 3).unwrap();
    for bytes in [&archive, &gzip(&archive), &zstd] {
        let (tmp, unpacked) = good(bytes);
        assert_eq!(unpacked.diff_id, Digest::of(&archive));
        assert_eq!((unpacked.stream_bytes, unpacked.ended), (archive.len() as u64, true));
        assert_eq!(fs::read(tmp.path().join("fs/d/f")).unwrap(), b"text");
        assert_eq!(fs::read_dir(tmp.path()).unwrap().count(), 1, "nothing but the layer is left");
    }
}

#[test]
fn an_archive_without_end_mark_is_told_from_one_with() {
    let whole = Archive::default().file("f", b"text");
    let (_tmp, unpacked) = good(&whole.0);
    assert!(!unpacked.ended);
    let (_tmp, unpacked) = good(b"");
    assert!(!unpacked.ended);
    let (_tmp, unpacked) = good(&[0; 512]);
    assert!(!unpacked.ended);
}

#[test]
fn later_entries_replace_earlier_ones() {
    let archive = Archive::default()
        .file("a", b"first")
        .directory("b")
        .file("b/x", b"x")
        .file("a", b"second, longer")
        .file("b", b"a file now")
        .file("c", b"c")
        .directory("c")
        .file("c/y", b"y")
        .symlink("d", "a")
        .file("d", b"a file, not what the link was to")
        .directory("e")
        .file("e/kept", b"kept")
        .directory("e");
    let (tmp, _) = good(&archive.end());
    let fs_dir = tmp.path().join("fs");
    let read = |name: &str| fs::read(fs_dir.join(name)).unwrap();
    assert_eq!(read("a"), b"second, longer");
    assert_eq!(read("b"), b"a file now");
    assert_eq!(read("c/y"), b"y");
    assert_eq!(read("d"), b"a file, not what the link was to");
    assert_eq!(read("e/kept"), b"kept");
}

#[test]
fn links_of_the_archive_lead_where_they_would_in_a_root_of_its_own() {
    let archive = Archive::default()
        .directory("usr/lib")
        .symlink("lib", "usr/lib")
        .file("lib/a", b"a")
        .symlink("abs", "/usr/lib")
        .file("abs/b", b"b")
        .symlink("up", "../../../../usr")
        .file("up/lib/c", b"c")
        .symlink("dangling", "made/for/it")
        .file("dangling/d", b"d")
        .hard_link("abs/e", "lib/a");
    let (tmp, _) = good(&archive.end());
    let lib = tmp.path().join("fs/usr/lib");
    for (name, text) in [("a", "a"), ("b", "b"), ("c", "c"), ("e", "a")] {
        assert_eq!(fs::read_to_string(lib.join(name)).unwrap(), text);
    }
    assert_eq!(fs::read_to_string(tmp.path().join("fs/made/for/it/d")).unwrap(), "d");
}

#[test]
fn a_directory_as_it_was_written_before_posix() {
    let old = super::testing::header(b'0', b"old/", b"", 5);
    let archive = Archive::default().put(&old, b"bytes").entry(0, b"older/", b"", b"").file("old/f", b"f");
    let (tmp, _) = good(&archive.end());
    assert_eq!(fs::read(tmp.path().join("fs/old/f")).unwrap(), b"f");
    assert!(tmp.path().join("fs/older").is_dir());
}

#[test]
fn missing_directories_are_made_and_the_top_is_open_to_all() {
    let mut top = super::testing::header(b'5', b"./", b"", 0);
    top.set_mode(0o700);
    top.set_cksum();
    let archive = Archive::default().put(&top, b"").file("x/y/z", b"z").end();
    let (tmp, unpacked) = good(&archive);
    let found = things(&tmp.path().join("fs"));
    assert_eq!(found[Path::new("x")].mode & 0o7777, 0o755);
    assert_eq!(found[Path::new("x/y")].mtime, (0, 0));
    assert_eq!(unpacked.entries, 3);
    let mode = std::os::unix::fs::MetadataExt::mode(&fs::metadata(tmp.path().join("fs")).unwrap());
    assert_eq!(mode & 0o7777, 0o755);
}

#[test]
fn a_disk_that_is_full_is_said_to_be() {
    let data: Vec<u8> = (0..6_000_000_u32).map(|n| (n % 251) as u8 + 1).collect();
    let archive = Archive::default().file("large", &data).end();
    for (disk, reserve_bytes, message) in [
        ("size=4m", 0, "could not write \"large\""),
        // What is kept free is, before it is needed: bytes, and files.
        ("size=4m", 8 << 20, "kept free"),
        ("size=4m,nr_inodes=200", 0, "no room for more files"),
    ] {
        let tmp = tempfile::tempdir().unwrap();
        let disk = overlay::Mounted::new(tmp.path(), "tmpfs", disk);
        let into = disk.path().join("layer");
        fs::create_dir(&into).unwrap();
        let limits = Limits { reserve_bytes, ..Limits::default() };
        let error = super::unpack(archive.as_slice(), &into, &limits).unwrap_err();
        assert_eq!(error.kind(), stacyvm_provider::ErrorKind::ResourceLimit);
        assert!(error.message().contains(message), "{error}");
    }
}
