//! Owners, permissions, times, extended attributes, holes.

use super::{
    super::testing::{Archive, header, things, xattrs},
    super::unpack,
    Limits, good,
};
use rustix::{
    fs::Mode,
    process::{Gid, Uid},
};
use std::{fs, os::unix::fs::MetadataExt, path::Path};

fn with(kind: u8, path: &str, mode: u32, uid: u64, gid: u64) -> tar::Header {
    let mut header = header(kind, path.as_bytes(), if kind == b'2' { b"target" } else { b"" }, 0);
    header.set_mode(mode);
    header.set_uid(uid);
    header.set_gid(gid);
    header.set_cksum();
    header
}

#[test]
fn owners_and_modes_are_the_archives_whatever_the_mask() {
    let archive = Archive::default()
        .put(&with(b'5', "sticky", 0o1777, 1, 2), b"")
        .put(&with(b'5', "group", 0o2775, 0, 50), b"")
        // Below a directory that hands its group on.
        .put(&with(b'0', "group/file", 0o644, 0, 0), b"")
        .put(&with(b'5', "group/sub", 0o755, 0, 0), b"")
        .put(&with(b'0', "group/implied/file", 0o644, 0, 0), b"")
        .put(&with(b'2', "group/link", 0o777, 0, 0), b"")
        .put(&with(b'0', "setuid", 0o4755, 0, 0), b"")
        .put(&with(b'0', "both", 0o6711, 65_535, 65_535), b"")
        .put(&with(b'0', "nothing", 0, 3, 4), b"")
        .put(&with(b'6', "fifo", 0o666, 5, 6), b"")
        .put(&with(b'2', "link", 0o777, 7, 8), b"")
        .put(&with(b'0', "all", 0o777, 0, 0), b"")
        .end();
    let (tmp, _) = good(&archive);
    let found = things(&tmp.path().join("fs"));
    let is = |path: &str| {
        let thing = &found[Path::new(path)];
        (thing.mode & 0o7777, thing.owner)
    };
    for (path, mode, owner) in [
        ("sticky", 0o1777, (1, 2)),
        ("group", 0o2775, (0, 50)),
        ("group/file", 0o644, (0, 0)),
        ("group/sub", 0o755, (0, 0)),
        ("group/implied", 0o755, (0, 0)),
        ("group/implied/file", 0o644, (0, 0)),
        ("group/link", 0o777, (0, 0)),
        ("setuid", 0o4755, (0, 0)),
        ("both", 0o6711, (65_535, 65_535)),
        ("nothing", 0, (3, 4)),
        ("fifo", 0o666, (5, 6)),
        ("link", 0o777, (7, 8)),
        ("all", 0o777, (0, 0)),
    ] {
        assert_eq!(is(path), (mode, owner), "{path}");
    }
}

#[test]
fn times_are_exact_also_of_directories_that_are_filled_later() {
    let timed = |archive: Archive, time: &str| archive.records(&[("mtime", time.as_bytes())]);
    let mut archive = timed(Archive::default(), "10.000000001").directory("a");
    archive = timed(archive, "20.5").directory("b");
    archive = timed(archive, "30.25").file("a/file", b"x");
    archive = timed(archive, "40").symlink("b/link", "x");
    archive = timed(archive, "50").file("a/other", b"x");
    archive = timed(archive, "60").entry(b'6', b"b/fifo", b"", b"");
    archive = archive.file("b/.wh.gone", b"");
    // An entry for a directory that is there changes it, and not what is in it.
    archive = timed(archive, "70.125").directory("b");
    let (tmp, _) = good(&archive.end());
    let found = things(&tmp.path().join("fs"));
    for (path, time) in [
        ("a", (10, 1)),
        ("b", (70, 125_000_000)),
        ("a/file", (30, 250_000_000)),
        ("b/link", (40, 0)),
        ("a/other", (50, 0)),
        ("b/fifo", (60, 0)),
    ] {
        assert_eq!(found[Path::new(path)].mtime, time, "{path}");
    }
}

#[test]
fn capabilities_and_attributes_of_users_are_kept() {
    // Version 2, `cap_net_raw` permitted and effective.
    let capability: &[u8] = &[1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let records: &[(&str, &[u8])] = &[
        ("SCHILY.xattr.security.capability", capability),
        ("SCHILY.xattr.user.b", b"\0\xff"),
        ("uid", b"5"),
    ];
    let archive =
        Archive::default().records(records).file("ping", b"x").records(&records[1..]).directory("d").end();
    let (tmp, _) = good(&archive);
    let user = ("user.b".to_owned(), vec![0, 0xff]);
    let expected = vec![("security.capability".to_owned(), capability.to_vec()), user.clone()];
    assert_eq!(xattrs(&tmp.path().join("fs/ping")), expected);
    assert_eq!(xattrs(&tmp.path().join("fs/d")), [user]);
}

#[test]
fn hard_links_are_one_file() {
    let archive = Archive::default()
        .file("d/a", b"text")
        .hard_link("d/b", "d/a")
        .hard_link("c", "./d/b")
        .hard_link("c", "d/a")
        .hard_link("d/a", "d/a")
        .symlink("l", "nowhere")
        .hard_link("m", "l")
        .end();
    let (tmp, _) = good(&archive);
    let found = things(&tmp.path().join("fs"));
    for path in ["c", "d/a", "d/b"] {
        assert_eq!(found[Path::new(path)].same_as, Path::new("c"));
        assert_eq!(found[Path::new(path)].content, b"text");
    }
    // A link to a link is that link, not what it leads to.
    assert_eq!(found[Path::new("m")].content, b"nowhere");
    assert_eq!(found[Path::new("m")].same_as, Path::new("l"));
}

#[test]
fn zeros_become_holes_and_files_keep_their_length() {
    let mut data = vec![0; 4 << 20];
    data[1_000_000..1_000_100].fill(7);
    data.extend_from_slice(b"end");
    let archive =
        Archive::default().file("f", &data).file("zeros", &vec![0; 1 << 20]).file("small", &[0; 5000]).end();
    let (tmp, unpacked) = good(&archive);
    let read = |name: &str| fs::read(tmp.path().join("fs").join(name)).unwrap();
    assert!(read("f") == data && read("zeros") == vec![0; 1 << 20] && read("small") == [0; 5000]);
    let blocks = |name: &str| fs::metadata(tmp.path().join("fs").join(name)).unwrap().blocks() * 512;
    // Runs that two chunks share are not seen as such.
    assert!(blocks("f") < 600_000 && blocks("zeros") < 200_000, "{} {}", blocks("f"), blocks("zeros"));
    assert!(unpacked.disk_bytes < 800_000);
}

#[test]
fn sparse_files_of_both_formats_have_their_holes() {
    let mut header = header(b'S', b"old", b"", 5);
    let gnu = header.as_gnu_mut().unwrap();
    gnu.sparse[0].set_offset(0);
    gnu.sparse[0].set_length(2);
    gnu.sparse[1].set_offset(1 << 30);
    gnu.sparse[1].set_length(3);
    gnu.set_real_size((1 << 30) + 4096);
    header.set_cksum();
    let mut map = format!("2\n0\n2\n{}\n3\n", 1 << 30).into_bytes();
    map.resize(512, 0);
    map.extend_from_slice(b"hewor");
    let size = ((1_u64 << 30) + 4096).to_string();
    let records: &[(&str, &[u8])] = &[
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.name", b"new"),
        ("GNU.sparse.realsize", size.as_bytes()),
    ];
    let archive = Archive::default()
        .put(&header, b"hewor")
        .records(records)
        .file("GNUSparseFile.0/new", &map)
        .file("after", b"x")
        .end();
    let (tmp, _) = good(&archive);
    for name in ["old", "new"] {
        let file = fs::File::open(tmp.path().join("fs").join(name)).unwrap();
        let metadata = file.metadata().unwrap();
        assert_eq!(metadata.len(), (1 << 30) + 4096, "{name}");
        assert!(metadata.blocks() < 100, "{name}");
        let mut bytes = [0; 3];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, 1 << 30).unwrap();
        assert_eq!(&bytes, b"wor");
    }
    assert!(tmp.path().join("fs/after").exists());
}

/// The rights of a thread are its own: this one gives them away.
#[test]
fn without_root_all_belongs_to_who_unpacks_and_can_be_removed_by_him() {
    let tmp = tempfile::tempdir().unwrap();
    std::os::unix::fs::chown(tmp.path(), Some(1234), Some(1234)).unwrap();
    let archive = Archive::default()
        .put(&with(b'5', "closed", 0o500, 0, 0), b"")
        .put(&with(b'0', "closed/file", 0o4755, 7, 7), b"")
        .put(&with(b'0', "replaced", 0, 7, 7), b"")
        .put(&with(b'0', "replaced", 0o600, 7, 7), b"")
        .records(&[("SCHILY.xattr.security.capability", b"x"), ("SCHILY.xattr.user.x", b"y")])
        .file("capable", b"")
        .file("closed/.wh.gone", b"")
        .file("closed/.wh..wh..opq", b"")
        .end();
    let path = tmp.path().to_owned();
    let unpacked = std::thread::spawn(move || {
        rustix::thread::set_thread_groups(&[]).unwrap();
        rustix::thread::set_thread_gid(Gid::from_raw(1234)).unwrap();
        rustix::thread::set_thread_uid(Uid::from_raw(1234)).unwrap();
        let unpacked = unpack(archive.as_slice(), &path, &Limits::default()).unwrap();
        let found = things(&path.join("fs"));
        fs::remove_dir_all(path.join("fs")).unwrap();
        (unpacked, found)
    });
    let (_, found) = unpacked.join().unwrap();
    assert!(found.values().all(|thing| thing.owner == (1234, 1234)), "{found:?}");
    let closed = &found[Path::new("closed")];
    assert_eq!(closed.mode & 0o7777, 0o700);
    let marks: Vec<_> = closed.xattrs.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(marks, ["user.overlay.opaque", "user.overlay.origin"]);
    assert_eq!(found[Path::new("capable")].xattrs, [("user.x".to_owned(), b"y".to_vec())]);
    assert_eq!(found[Path::new("closed/file")].mode & 0o7777, 0o4755);
    assert_eq!(found[Path::new("closed/gone")].device, 0);
    assert_eq!(Mode::from_raw_mode(found[Path::new("replaced")].mode & 0o7777), Mode::RUSR | Mode::WUSR);
}

#[test]
fn a_filesystem_without_attributes_is_named_as_the_reason() {
    let tmp = tempfile::tempdir().unwrap();
    let disk = super::overlay::Mounted::new(tmp.path(), "ramfs", "");
    let into = disk.path().join("layer");
    fs::create_dir(&into).unwrap();
    let archive = Archive::default().file("d/.wh..wh..opq", b"").end();
    let limits = Limits { reserve_bytes: 0, ..Limits::default() };
    let error = unpack(archive.as_slice(), &into, &limits).unwrap_err();
    assert_eq!(error.kind(), stacyvm_provider::ErrorKind::Unsupported);
    assert!(error.message().contains("ext4, xfs or btrfs"), "{error}");
}
