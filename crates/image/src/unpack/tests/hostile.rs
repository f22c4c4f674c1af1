//! Archives that were made to do harm.

use super::{
    super::testing::{Archive, header, things, unpacked},
    Limits, gzip,
};
use proptest::prelude::*;
use stacyvm_provider::ErrorKind;
use std::{fs, path::Path};

/// Each with what the error says. Nothing may appear outside of the layer.
#[test]
fn what_would_leave_the_layer_or_lie_is_refused() {
    let new = Archive::default;
    let owned = |uid: u64, gid: u64| {
        let mut header = header(b'0', b"owned", b"", 0);
        header.set_uid(uid);
        header.set_gid(gid);
        header.set_cksum();
        new().put(&header, b"")
    };
    let negative = |key: &str, value: &[u8]| new().records(&[(key, value)]).file("f", b"");
    let many: Vec<u8> = b"d/".repeat(200);
    let damaged = {
        let mut archive = new().file("first", b"x").file("second", b"y");
        archive.0[1024 + 5] ^= 0x20;
        archive
    };
    let gnu_sparse = |offset: u64, length: u64, real: u64, stored: &[u8]| {
        let mut header = header(b'S', b"sparse", b"", stored.len() as u64);
        let gnu = header.as_gnu_mut().unwrap();
        gnu.sparse[0].set_offset(offset);
        gnu.sparse[0].set_length(length);
        gnu.set_real_size(real);
        header.set_cksum();
        new().put(&header, stored)
    };
    let cases: Vec<(&str, Archive, &str)> = vec![
        ("..", new().file("../outside", b"x"), "\"../outside\" has `..`"),
        (".. inside", new().file("a/../../outside", b"x"), "has `..`"),
        (".. at the end", new().directory("a/.."), "has `..`"),
        ("NUL", new().records(&[("path", b"a\0b")]).file("x", b""), "zero byte"),
        ("name too long", new().file(&"n".repeat(256), b""), "more than 255 bytes"),
        (
            "path too long",
            new().records(&[("path", &b"n/".repeat(3000))]).file("x", b""),
            "more than 4095 bytes",
        ),
        ("too deep", new().records(&[("path", &many)]).file("x", b""), "in more than 128 directories"),
        ("below a file", new().file("f", b"").file("f/x", b""), "below \"f\", which is no directory"),
        ("links in a circle", new().symlink("a", "b").symlink("b", "a").file("a/x", b""), "in a circle"),
        ("link to itself", new().symlink("a", "a").file("a/x", b""), "in a circle"),
        ("empty link", new().symlink("a", ""), "target is empty"),
        ("hard link out", new().hard_link("h", "../../../etc/passwd"), "has `..`"),
        ("hard link to the host", new().hard_link("h", "/etc/passwd"), "not in this layer"),
        ("hard link to nothing", new().hard_link("h", "no/such"), "not in this layer"),
        ("hard link to a directory", new().directory("d").hard_link("h", "d"), "hard link to a directory"),
        ("hard link to the top", new().hard_link("h", "/"), "not in this layer"),
        ("hard link to a whiteout", new().file(".wh.x", b"").hard_link("h", "x"), "not in this layer"),
        (
            "hard link in the place of what it links to",
            new().file("d/f", b"").hard_link("d", "d/f"),
            "needs what it replaces",
        ),
        (
            "hard link through a link",
            new().symlink("l", "/etc").hard_link("h", "l/passwd"),
            "not in this layer",
        ),
        ("character device", new().entry(b'3', b"c", b"", b""), "device outside of /dev"),
        ("block device", new().entry(b'4', b"sub/dev/sda", b"", b""), "device outside of /dev"),
        ("socket and others", new().entry(b's', b"s", b"", b""), "of the kind 's'"),
        ("multi-volume", new().entry(b'M', b"m", b"", b""), "of the kind 'M'"),
        ("whiteout of nothing", new().file(".wh.", b""), "whiteout of no file"),
        ("whiteout of .", new().file("a/.wh..", b""), "whiteout of no file"),
        ("whiteout of ..", new().file("a/.wh...", b""), "whiteout of no file"),
        ("below a whiteout", new().file(".wh.a/b", b""), "in something that was removed"),
        ("owner too high", owned(65_536, 0), "belongs to the user 65536"),
        ("group too high", owned(0, 1 << 31), "belongs to the group 2147483648"),
        ("owner negative", negative("uid", b"-1"), "belongs to the user -1"),
        ("owner no number", negative("uid", b"root"), "owner that is no number"),
        ("time no number", negative("mtime", b"now"), "time that is no number"),
        ("size no number", negative("size", b"-5"), "size that is no number"),
        (
            "damaged records",
            new().entry(b'x', b"p", b"", b"99 path=x\n").file("f", b""),
            "damaged extended header",
        ),
        ("damaged header", damaged, "no header at byte 1024 behind \"first\""),
        ("no archive", Archive(b"#!/bin/sh\necho no\n".repeat(100)), "no tar archive"),
        (
            "more behind one block of zeros",
            Archive([vec![0; 512], new().file("f", b"").0].concat()),
            "behind its end",
        ),
        ("sparse overlap", gnu_sparse(5, 10, 8, &[1; 10]), "overlap or exceed"),
        ("sparse overflow", gnu_sparse(0x7_7777_7777, 0x7_7777_7777, 5, &[1; 10]), "overlap or exceed"),
        ("sparse of other length", gnu_sparse(0, 9, 100, &[1; 10]), "of another length"),
        ("sparse of 8 EiB", gnu_sparse(0, 10, 0x7_7777_7777 << 6, &[1; 10]), "larger than"),
        (
            "old sparse format",
            new().records(&[("GNU.sparse.map", b"0,1"), ("GNU.sparse.size", b"1")]).file("f", b"x"),
            "format that is not read",
        ),
        (
            "sparse of the future",
            new().records(&[("GNU.sparse.major", b"2"), ("GNU.sparse.minor", b"0")]).file("f", b"x"),
            "format that is not read",
        ),
    ];
    for (name, archive, message) in cases {
        let (tmp, result) = unpacked(&archive.end(), &Limits::default());
        let error = result.expect_err(name);
        assert!(error.message().contains(message), "{name}: {error}");
        assert!(
            matches!(error.kind(), ErrorKind::InvalidArgument | ErrorKind::ResourceLimit),
            "{name}: {error:?}"
        );
        let left: Vec<_> = fs::read_dir(tmp.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert!(left == ["fs"], "{name}: {left:?}");
    }
}

/// What looks bad and is harmless, because it stays inside.
#[test]
fn what_only_seems_to_leave_the_layer_stays_in_it() {
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("file"), "untouched").unwrap();
    let before = things(outside.path());
    let path = outside.path().to_str().unwrap();
    let name = path.trim_start_matches('/');
    let archive = Archive::default()
        .file("/etc/passwd", b"absolute")
        .symlink("l", path)
        .file("l/file", b"through a link")
        .directory("l")
        .file("l/file", b"a directory now")
        .symlink("m", "/")
        .file(&format!("m/{name}/other"), b"through the top")
        // A directory that becomes a link after it was used.
        .directory("swap")
        .file("swap/a", b"")
        .symlink("swap", path)
        .file("swap/file", b"swapped")
        .hard_link("hard", "swap/file")
        .file("replaced", b"named like a directory of ours")
        .directory("fs")
        .file("fs/layer.json", b"{}")
        .file("../".trim_end_matches("../"), b"");
    let (tmp, result) = unpacked(&archive.end(), &Limits::default());
    result.unwrap();
    assert_eq!(things(outside.path()), before);
    let layer = tmp.path().join("fs");
    assert_eq!(fs::read(layer.join("etc/passwd")).unwrap(), b"absolute");
    assert_eq!(fs::read(layer.join(name).join("file")).unwrap(), b"swapped");
    assert_eq!(fs::read(layer.join(name).join("other")).unwrap(), b"through the top");
    assert_eq!(fs::read(layer.join("l/file")).unwrap(), b"a directory now");
    assert_eq!(fs::read(layer.join("hard")).unwrap(), b"swapped");
}

#[test]
fn devices_of_dev_are_left_out() {
    let archive = Archive::default().directory("dev").entry(b'3', b"dev/null", b"", b"").entry(
        b'4',
        b"/dev/sda",
        b"",
        b"",
    );
    let (tmp, result) = unpacked(&archive.symlink("dev/fd", "/proc/self/fd").end(), &Limits::default());
    result.unwrap();
    let names: Vec<_> =
        fs::read_dir(tmp.path().join("fs/dev")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["fd"]);
}

#[test]
fn an_archive_that_was_cut_is_an_error_wherever_it_was_cut() {
    let data: Vec<u8> = (0..3000_u32).flat_map(u32::to_le_bytes).collect();
    let archive = Archive::default().records(&[("mtime", b"1.5")]).file("a", &data).file("b", b"text");
    let whole = archive.0.len();
    for at in (1..whole).step_by(97) {
        let (_tmp, result) = unpacked(&archive.0[..at], &Limits::default());
        match result {
            // Between two entries it is only the missing end that tells.
            Ok(unpacked) => assert!(!unpacked.ended, "{at}"),
            Err(e) => assert!(e.message().contains("cut"), "{at}: {e}"),
        }
    }
    let compressed = gzip(&archive.end());
    for at in (2..compressed.len()).step_by(11) {
        let (_tmp, result) = unpacked(&compressed[..at], &Limits::default());
        assert!(result.is_err(), "{at}");
    }
}

#[test]
fn bombs_are_stopped_at_their_limits() {
    let limits = Limits { stream_bytes: 8 << 20, ..Limits::default() };
    let zeros = Archive::default().file("zeros", &vec![0; 32 << 20]).end();
    for bomb in [gzip(&zeros), zstd::encode_all(zeros.as_slice(), 3).unwrap()] {
        assert!(bomb.len() < 512 << 10);
        let (_tmp, result) = unpacked(&bomb, &limits);
        let error = result.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ResourceLimit);
        assert!(error.message().contains("more than is allowed for one layer"), "{error}");
    }
    // Within what one layer may have, but from next to nothing.
    let limits = Limits { ratio_above: 8 << 20, ..Limits::default() };
    for bomb in [gzip(&zeros), zstd::encode_all(zeros.as_slice(), 3).unwrap()] {
        let allowed = Limits { ratio: 10_000_000, ..limits.clone() };
        assert!(unpacked(&bomb, &allowed).1.is_ok());
        let strict = Limits { ratio: 100, ..limits.clone() };
        assert_eq!(unpacked(&bomb, &strict).1.unwrap_err().kind(), ErrorKind::ResourceLimit);
    }
    // What is not compressed has no ratio.
    assert!(unpacked(&zeros, &Limits { ratio: 0, ..limits }).1.is_ok());
    // Few bytes sent, very many files.
    let mut many = Archive::default();
    for n in 0..2000 {
        many = many.file(&format!("f{n}"), b"");
    }
    let limits = Limits { entries: 1000, ..Limits::default() };
    let (_tmp, result) = unpacked(&gzip(&many.end()), &limits);
    assert!(result.unwrap_err().message().contains("1000 are allowed"));
    // Directories that no entry is for count as well.
    let limits = Limits { entries: 100, ..Limits::default() };
    let deep = (0..40).fold(Archive::default(), |a, n| a.file(&format!("{n}/a/b/c/d"), b""));
    let (_tmp, result) = unpacked(&deep.end(), &limits);
    assert!(result.unwrap_err().message().contains("100 are allowed"));
    // So do headers that lead to nothing.
    let headers = (0..200).fold(Archive::default(), |a, _| a.records(&[("comment", b"x")]));
    let (_tmp, result) = unpacked(&headers.end(), &limits);
    assert!(result.unwrap_err().message().contains("100 are allowed"));
    let long = Archive::default().records(&[("comment", &vec![b'x'; 2 << 20])]).file("f", b"");
    let (_tmp, result) = unpacked(&long.end(), &Limits::default());
    assert!(result.unwrap_err().message().contains("extension header of more than"));
    let limits = Limits { disk_bytes: 1 << 20, ..Limits::default() };
    let (_tmp, result) = unpacked(&Archive::default().file("large", &vec![1; 2 << 20]).end(), &limits);
    assert!(result.unwrap_err().message().contains("larger than the 1048576 bytes"));
}

#[test]
fn depth_through_links_is_depth() {
    let mut archive = Archive::default().directory("s0");
    for n in 0..30 {
        // Each time ten deeper than the time before, by a path that is short.
        let deeper = format!("s{n}/1/2/3/4/5/6/7/8/9/10");
        archive = archive.directory(&deeper).symlink(&format!("s{}", n + 1), &deeper);
    }
    let (_tmp, result) = unpacked(&archive.end(), &Limits::default());
    let error = result.unwrap_err();
    assert!(error.message().contains("in more than 128 directories"), "{error}");
}

#[test]
fn attributes_that_overlayfs_reads_cannot_be_brought() {
    let records: &[(&str, &[u8])] = &[
        ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
        ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
        ("SCHILY.xattr.trusted.other", b"x"),
        ("SCHILY.xattr.user.overlay.opaque", b"y"),
        ("SCHILY.xattr.user.overlay.redirect", b"/etc"),
        ("SCHILY.xattr.security.selinux", b"system_u:object_r:shadow_t:s0"),
        ("SCHILY.xattr.system.posix_acl_access", b"x"),
        ("SCHILY.xattr.user.kept", b"kept"),
    ];
    let archive = Archive::default().records(records).directory("d").records(records).file("f", b"x").end();
    let (tmp, result) = unpacked(&archive, &Limits::default());
    result.unwrap();
    let kept = vec![("user.kept".to_owned(), b"kept".to_vec())];
    for (path, thing) in things(&tmp.path().join("fs")) {
        assert_eq!(thing.xattrs, kept, "{}", path.display());
    }
    // One that Linux has no room for is the archive's fault.
    let long = [&b"SCHILY.xattr.user."[..], &[b'n'; 300]].concat();
    let name = std::str::from_utf8(&long).unwrap();
    let (_tmp, result) =
        unpacked(&Archive::default().records(&[(name, b"x")]).file("f", b"").end(), &Limits::default());
    assert!(result.unwrap_err().message().contains("Linux refuses"));
}

#[test]
fn times_that_no_filesystem_has_become_the_nearest() {
    let archive = Archive::default()
        .records(&[("mtime", b"-62135596800.5")])
        .file("early", b"")
        .records(&[("mtime", b"9223372036854775807")])
        .file("late", b"")
        .records(&[("mtime", b"-1.25")])
        .file("before", b"")
        .end();
    let (tmp, result) = unpacked(&archive, &Limits::default());
    result.unwrap();
    let found = things(&tmp.path().join("fs"));
    assert_eq!(found[Path::new("before")].mtime, (-2, 750_000_000));
    assert!(found[Path::new("early")].mtime.0 < 0 && found[Path::new("late")].mtime.0 > 1 << 33);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Whatever is done to an archive: an answer, and nothing outside.
    #[test]
    fn damaged_archives_do_no_harm(
        flips in prop::collection::vec((0_usize..6000, any::<u8>()), 1..12),
        fix in any::<bool>(),
    ) {
        let mut bytes = Archive::default()
            .directory("d")
            .records(&[("SCHILY.xattr.user.x", b"y"), ("mtime", b"5.5")])
            .file("d/f", b"some text")
            .symlink("d/l", "../x")
            .hard_link("h", "d/f")
            .file("d/.wh.gone", b"")
            .entry(b'0', &[b'p'; 150], b"", b"long")
            .end();
        let length = bytes.len();
        for (at, byte) in flips {
            bytes[at % length] = byte;
        }
        if fix {
            // Headers whose checksum is right get further.
            for block in bytes.chunks_exact_mut(512).filter(|block| block[257..262] == *b"ustar") {
                let mut header = tar::Header::new_old();
                header.as_mut_bytes().copy_from_slice(block);
                header.set_cksum();
                block.copy_from_slice(header.as_bytes());
            }
        }
        let limits = Limits { file_bytes: 1 << 30, ..Limits::default() };
        let (tmp, _) = unpacked(&bytes, &limits);
        prop_assert_eq!(fs::read_dir(tmp.path()).unwrap().count(), 1);
    }
}
