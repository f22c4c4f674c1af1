//! Archives that want to be somewhere else. Each is unpacked beside something that must not change.

use super::*;
use crate::Why;
use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
};

/// A directory to unpack in, beside one with a secret.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        fs::create_dir(place.at("in")).unwrap();
        fs::create_dir(place.at("outside")).unwrap();
        fs::write(place.at("outside/secret"), "secret").unwrap();
        place
    }

    fn at(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join(name)
    }

    fn unpack(&self, archive: Archive) -> Result<Summary, Error> {
        self.unpack_with(archive, OPTIONS)
    }

    fn unpack_with(&self, archive: Archive, options: Options) -> Result<Summary, Error> {
        let result = unpacked(&archive.end(), &self.at("in"), 1000, options);
        assert_eq!(fs::read(self.at("outside/secret")).unwrap(), b"secret");
        assert_eq!(fs::read_dir(self.at("outside")).unwrap().count(), 1);
        assert_eq!(fs::read_dir(self.0.path()).unwrap().count(), 2);
        let drafts = fs::read_dir(self.at("in")).unwrap();
        let drafts = drafts.filter(|e| e.as_ref().unwrap().file_name().to_string_lossy().contains("upload"));
        assert_eq!(drafts.count(), 0);
        result
    }

    /// Refused, with the entry named.
    fn refuses(&self, archive: Archive, entry: &str) {
        let error = self.unpack(archive).unwrap_err();
        assert!(matches!(error.why, Why::Refused(_)), "{error}");
        assert_eq!(error.path, entry.as_bytes(), "{error}");
    }
}

#[test]
fn names_that_lead_elsewhere_are_refused_and_what_was_before_stays() {
    for bad in ["../outside/new", "/tmp/stacyvm-never", "a/../../outside/new", "a/..", ".."] {
        for kind in [Kind::File, Kind::Directory, Kind::Symlink] {
            let place = Place::new();
            let archive =
                Archive::default().file("good", b"1").entry(kind, bad, "x", b"").file("later", b"2");
            // A directory's name gets a slash at its end.
            let named = if kind == Kind::Directory { format!("{bad}/") } else { bad.to_owned() };
            place.refuses(archive, &named);
            assert_eq!(fs::read(place.at("in/good")).unwrap(), b"1");
            assert!(!place.at("in/later").exists());
        }
    }
}

#[test]
fn no_link_is_followed_that_the_archive_made() {
    let place = Place::new();
    let outside = place.at("outside").display().to_string();
    for target in ["../outside", &outside] {
        for name in ["l/secret", "l/new", "l/d/new"] {
            let linked = Archive::default().symlink("l", target);
            place.refuses(linked.file(name, b"bad"), name);
        }
        let linked = Archive::default().symlink("l", target);
        place.refuses(linked.directory("l/d"), "l/d/");
        let linked = Archive::default().symlink("l", target);
        place.refuses(linked.directory("l"), "l/");
        let linked = Archive::default().symlink("l", target);
        place.refuses(linked.hard_link("h", "l/secret"), "h");
    }
    // A file in the place of a link replaces the link.
    let linked = Archive::default().symlink("f", "../outside/secret").file("f", b"mine");
    place.unpack(linked).unwrap();
    assert_eq!(fs::read(place.at("in/f")).unwrap(), b"mine");
    assert!(!fs::symlink_metadata(place.at("in/f")).unwrap().is_symlink());
}

#[test]
fn no_link_is_followed_that_was_there_before() {
    let place = Place::new();
    symlink("../outside", place.at("in/l")).unwrap();
    symlink("../outside/secret", place.at("in/s")).unwrap();
    place.refuses(Archive::default().file("l/secret", b"bad"), "l/secret");
    place.refuses(Archive::default().file("l/a/b", b"bad"), "l/a/b");
    place.refuses(Archive::default().hard_link("h", "s"), "h");
    place.unpack(Archive::default().file("s", b"mine")).unwrap();
    assert_eq!(fs::read(place.at("in/s")).unwrap(), b"mine");
}

#[test]
fn hard_links_stay_inside() {
    let place = Place::new();
    for target in ["../outside/secret", &place.at("outside/secret").display().to_string(), "none", ".", "d"] {
        place.refuses(Archive::default().directory("d").hard_link("h", target), "h");
    }
    // Not even one to a file that is linked from outside is written through.
    fs::hard_link(place.at("outside/secret"), place.at("in/same")).unwrap();
    place.unpack(Archive::default().hard_link("h", "same").file("same", b"1").file("h", b"2")).unwrap();
    assert_eq!(fs::read(place.at("in/h")).unwrap(), b"2");
    let linked = Archive::default().file("a", b"x").hard_link("b", "a").hard_link("b", "a");
    assert_eq!(place.unpack(linked).unwrap().files, 3);
    let inode = |name: &str| fs::metadata(place.at(name)).unwrap().ino();
    assert_eq!(inode("in/a"), inode("in/b"));
}

#[test]
fn devices_and_pipes_are_refused() {
    for kind in [b'3', b'4', b'6', b'Z'] {
        let place = Place::new();
        place.refuses(Archive::default().entry(Kind::Other(kind), "dev", "", b""), "dev");
    }
}

#[test]
fn bits_that_the_caller_takes_away_are_not_set() {
    let place = Place::new();
    let mut archive = Vec::new();
    for (path, kind) in [("f", Kind::File), ("d", Kind::Directory)] {
        let entry = Entry {
            kind,
            path: path.into(),
            link: Vec::new(),
            mode: 0o7755,
            uid: 0,
            gid: 0,
            mtime: (0, 0),
            size: 0,
        };
        encode(&entry, &mut archive);
    }
    place.unpack_with(Archive(archive), Options { mode_mask: 0o777, ..OPTIONS }).unwrap();
    for name in ["in/f", "in/d"] {
        assert_eq!(fs::metadata(place.at(name)).unwrap().permissions().mode() & 0o7777, 0o755);
    }
}

#[test]
fn links_that_lead_out_are_left_out_where_the_caller_wants_that() {
    let place = Place::new();
    let archive = Archive::default()
        .symlink("a/in", "../b")
        .symlink("a/out", "../../outside/secret")
        .symlink("absolute", "/etc/passwd");
    let options = Options { links: Links::WithinOnly, ..OPTIONS };
    let summary = place.unpack_with(archive, options).unwrap();
    assert_eq!((summary.links, summary.left_out), (1, 2));
    assert_eq!(summary.left_out_paths, [b"a/out".to_vec(), b"absolute".to_vec()]);
    assert!(fs::symlink_metadata(place.at("in/absolute")).is_err());
    assert_eq!(fs::read_link(place.at("in/a/in")).unwrap().to_str(), Some("../b"));
}

#[test]
fn what_is_in_the_way_is_an_error_and_stays() {
    let place = Place::new();
    fs::create_dir(place.at("in/d")).unwrap();
    fs::write(place.at("in/f"), "old").unwrap();
    for archive in [
        Archive::default().file("d", b"x"),
        Archive::default().symlink("d", "x"),
        Archive::default().file("f/x", b"x"),
        Archive::default().directory("f"),
    ] {
        place.unpack(archive).unwrap_err();
    }
    assert_eq!(fs::read(place.at("in/f")).unwrap(), b"old");
    assert!(place.at("in/d").is_dir());
}

#[test]
fn a_cut_archive_leaves_no_half_file() {
    let place = Place::new();
    fs::write(place.at("in/big"), "old").unwrap();
    let whole = Archive::default().file("small", b"1").file("big", &[7; 5000]).end();
    let error = unpacked(&whole[..4000], &place.at("in"), 1000, OPTIONS).unwrap_err();
    assert!(error.to_string().contains("was cut"), "{error}");
    assert_eq!(fs::read(place.at("in/small")).unwrap(), b"1");
    assert_eq!(fs::read(place.at("in/big")).unwrap(), b"old");
    assert_eq!(fs::read_dir(place.at("in")).unwrap().count(), 2);
}

#[test]
fn a_directory_that_is_not_taken_is_not_entered() {
    let place = Place::new();
    fs::create_dir(place.at("in/kernel")).unwrap();
    fs::write(place.at("in/kernel/f"), "f").unwrap();
    let options = Options { takes: |_| false, ..OPTIONS };
    place.unpack_with(Archive::default().file("kernel/setting", b"1"), options).unwrap_err();
    place.unpack_with(Archive::default().hard_link("h", "kernel/f"), options).unwrap_err();
    assert_eq!(fs::read_dir(place.at("in/kernel")).unwrap().count(), 1);
}

#[test]
fn a_directory_that_is_listed_behind_its_content_is_what_the_archive_says() {
    let home = tempfile::tempdir().unwrap();
    fs::create_dir(home.path().join("before")).unwrap();
    let mode = |name: &str| fs::metadata(home.path().join(name)).unwrap().permissions().mode() & 0o7777;
    let were = mode("before");
    let private = |kind, path: &str| {
        let mut bytes = Archive::default().entry(kind, path, "", b"").0;
        // The mode stands at 100, and the sum of the header at 148.
        bytes[100..108].copy_from_slice(b"0000700\0");
        bytes[148..156].fill(b' ');
        let sum: u32 = bytes[..512].iter().map(|byte| u32::from(*byte)).sum();
        bytes[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        bytes
    };
    let mut archive = Archive::default().file("late/id", b"secret").file("before/x", b"");
    for path in ["late/", "before/"] {
        archive.0.extend(private(Kind::Directory, path));
    }
    unpacked(&archive.end(), home.path(), 700, OPTIONS).unwrap();
    assert_eq!((mode("late"), mode("before")), (0o700, were));
}

#[test]
fn what_goes_on_for_ever_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let plain = || Archive::default().file("a", b"x").end();
    assert!(unpacked(&[plain(), vec![0; (1 << 20) - 2048]].concat(), home.path(), 1 << 16, OPTIONS).is_ok());
    assert!(unpacked(&[plain(), vec![0; (1 << 20) + 2048]].concat(), home.path(), 1 << 16, OPTIONS).is_err());
    let mut comment = Archive::default().file("comment", &[b'x'; 300 << 10]).0;
    comment[156] = b'g';
    comment[148..156].fill(b' ');
    let sum: u32 = comment[..512].iter().map(|byte| u32::from(*byte)).sum();
    comment[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    assert!(unpacked(&comment, home.path(), 1 << 16, OPTIONS).is_err());
}
