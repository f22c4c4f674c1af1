//! The same archive, unpacked by GNU tar and here.

use super::{
    super::testing::{Thing, things, xattrs},
    good,
};
use rustix::fs::XattrFlags;
use std::{
    collections::BTreeMap,
    fs::{self, File},
    os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown, symlink},
    path::{Path, PathBuf},
    process::Command,
};

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A directory with everything that an archive can hold.
fn tree(top: &Path) {
    let attribute = |path: &Path, name: &str, value: &[u8]| {
        rustix::fs::lsetxattr(path, name, value, XattrFlags::empty()).unwrap();
    };
    let mode = |path: &Path, mode: u32| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    fs::create_dir_all(top.join("deep/er/and/deeper")).unwrap();
    let long: PathBuf = std::iter::repeat_n("a-directory-with-a-long-name", 9).collect();
    fs::create_dir_all(top.join(&long)).unwrap();
    fs::write(top.join(&long).join("ä file, of \"many\"\nwords"), "text").unwrap();
    symlink(&long, top.join("long link")).unwrap();
    symlink("../../nowhere", top.join("deep/dangling")).unwrap();
    fs::write(top.join("setuid"), vec![7; 100_000]).unwrap();
    chown(top.join("setuid"), Some(12), Some(34)).unwrap();
    mode(&top.join("setuid"), 0o6755);
    fs::write(top.join("capable"), "x").unwrap();
    attribute(
        &top.join("capable"),
        "security.capability",
        &[1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    );
    attribute(&top.join("capable"), "user.comment", b"of = a\nfile");
    attribute(&top.join("deep"), "user.comment", b"of a directory");
    for name in ["one", "deep/two", "deep/er/three"] {
        if name == "one" {
            fs::write(top.join(name), "linked").unwrap();
        } else {
            fs::hard_link(top.join("one"), top.join(name)).unwrap();
        }
    }
    let sparse = File::create(top.join("sparse")).unwrap();
    for (at, text) in [(0, "start"), (1 << 20, "middle"), ((1 << 33) + 5, "end")] {
        sparse.write_all_at(text.as_bytes(), at).unwrap();
    }
    sparse.set_len((1 << 33) + (1 << 20)).unwrap();
    File::create(top.join("hole")).unwrap().set_len(10 << 20).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        top.join("fifo"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RWXU,
        0,
    )
    .unwrap();
    fs::write(top.join("empty"), "").unwrap();
    let early = std::time::UNIX_EPOCH - std::time::Duration::from_millis(1500);
    File::open(top.join("empty")).unwrap().set_modified(early).unwrap();
    mode(&top.join("deep/er"), 0o1777);
    chown(top.join("deep/er"), Some(65_535), Some(0)).unwrap();
}

/// Without the content of what is too large to hold twice.
fn things_and_lengths(top: &Path) -> BTreeMap<PathBuf, (Thing, u64)> {
    let large = top.join("sparse");
    if large.exists() {
        let bytes = |at| {
            let mut bytes = [0; 6];
            File::open(&large).unwrap().read_exact_at(&mut bytes, at).unwrap();
            bytes
        };
        assert_eq!(
            (&bytes(0), &bytes(1 << 20), &bytes((1 << 33) + 5)),
            (b"start\0", b"middle", b"end\0\0\0")
        );
        let metadata = fs::metadata(&large).unwrap();
        assert_eq!(metadata.len(), (1 << 33) + (1 << 20));
        assert!(metadata.blocks() < 200, "holes");
        assert_eq!(xattrs(&large), []);
        fs::remove_file(&large).unwrap();
    }
    let length = |path: &PathBuf| fs::symlink_metadata(top.join(path)).unwrap();
    things(top)
        .into_iter()
        .map(|(path, thing)| {
            let metadata = length(&path);
            let size = if metadata.is_dir() { 0 } else { metadata.len() };
            (path, (thing, size))
        })
        .collect()
}

fn compare(archive: &Path, extract: &[&str]) {
    let theirs = tempfile::tempdir().unwrap();
    let into = theirs.path().to_str().unwrap();
    run(Command::new("tar")
        .args(["-xp", "--numeric-owner", "--same-owner", "-C", into])
        .args(extract)
        .arg("-f")
        .arg(archive));
    let (tmp, _) = good(&fs::read(archive).unwrap());
    let ours = things_and_lengths(&tmp.path().join("fs"));
    let theirs = things_and_lengths(theirs.path());
    assert_eq!(ours.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>());
    for (path, thing) in &theirs {
        assert!(ours[path] == *thing, "{}: {:?} is not {thing:?}", path.display(), ours[path]);
    }
}

#[test]
fn a_tree_of_everything_is_the_same_as_by_gnu_tar() {
    let tmp = tempfile::tempdir().unwrap();
    let top = tmp.path().join("tree");
    fs::create_dir(&top).unwrap();
    tree(&top);
    let archive = tmp.path().join("archive");
    let attributes = ["--xattrs", "--xattrs-include=*"];
    for (format, how) in [
        ("pax", vec!["--sparse"]),
        ("pax", vec!["--sparse", "--gzip"]),
        ("gnu", vec!["--sparse"]),
        ("gnu", vec!["--sparse", "--sort=name", "--mtime=@1234567890"]),
    ] {
        let xattrs = if format == "pax" { &attributes[..] } else { &[] };
        let from = top.to_str().unwrap();
        let format = format!("--format={format}");
        run(Command::new("tar")
            .args(["-c", "-C", from, &format])
            .args(xattrs)
            .args(how)
            .arg("-f")
            .arg(&archive)
            .arg("."));
        compare(&archive, xattrs);
    }
}

#[test]
fn a_part_of_this_host_is_the_same_as_by_gnu_tar() {
    let tmp = tempfile::tempdir().unwrap();
    let archive = tmp.path().join("archive");
    // In /etc are files of all kinds of owners and modes, and links into everywhere.
    for (format, path) in [
        ("ustar", "/etc"),
        ("pax", "/usr/share/doc"),
        ("v7", "/usr/share/zoneinfo/posix"),
        ("oldgnu", "/usr/sbin"),
    ] {
        if !Path::new(path).exists() {
            continue;
        }
        let format = format!("--format={format}");
        // Sockets and what is too long for a format are left out by tar, with a message.
        let _ = Command::new("tar")
            .args(["-c", "-C", path, &format, "-f"])
            .arg(&archive)
            .arg(".")
            .output()
            .unwrap();
        compare(&archive, &[]);
    }
}
