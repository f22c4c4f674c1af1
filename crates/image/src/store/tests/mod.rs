//! Tests of the store.

mod crash;
mod garbage;
mod together;

use super::{Collect, Image, Origin, Store, StoreLimits};
use crate::{
    Digest, ImageConfig, Platform, Reference,
    unpack::testing::{Archive, things},
};
use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

fn open(root: &Path) -> Store {
    Store::open(root, StoreLimits::default()).unwrap()
}

/// A layer with one file of so many bytes, and its digest.
fn layer(name: &str, bytes: usize) -> (Digest, Vec<u8>) {
    let data: Vec<u8> = (0..bytes).map(|n| (n % 255) as u8 + 1).collect();
    let archive = Archive::default().file(name, &data).end();
    (Digest::of(&archive), archive)
}

fn config(layers: &[&Digest]) -> Vec<u8> {
    let platform = Platform::host().to_string();
    let (os, architecture) = platform.split_once('/').unwrap();
    let config = ImageConfig {
        os: os.to_owned(),
        architecture: architecture.to_owned(),
        diff_ids: layers.iter().map(|d| (*d).clone()).collect(),
        ..ImageConfig::default()
    };
    config.to_json().unwrap()
}

fn name(text: &str) -> Reference {
    text.parse().unwrap()
}

/// An image of layers with one file each, by these names.
fn image(store: &Store, files: &[(&str, usize)], names: &[&str]) -> Image {
    let work = store.work().unwrap();
    let layers: Vec<_> = files.iter().map(|(file, bytes)| layer(file, *bytes)).collect();
    for (diff_id, archive) in &layers {
        work.layer(diff_id, archive.as_slice()).unwrap();
    }
    let ids: Vec<_> = layers.iter().map(|(diff_id, _)| diff_id).collect();
    let names: Vec<_> = names.iter().map(|n| name(n)).collect();
    work.image(&config(&ids), &Origin::default(), &names).unwrap()
}

/// What is in a directory of the store.
fn listed(store: &Store, directory: &str) -> Vec<String> {
    let mut names = super::files::names(&store.root().join(directory)).unwrap();
    names.sort();
    names
}

#[test]
fn an_image_is_found_by_name_id_and_digits() {
    let tmp = tempfile::tempdir().unwrap();
    let store = open(&tmp.path().join("images"));
    let image = image(&store, &[("a", 10), ("b", 5000)], &["app:1", "ghcr.io/o/app:2"]);
    for text in [
        "app:1",
        "docker.io/library/app:1",
        "ghcr.io/o/app:2",
        &image.id.to_string(),
        image.id.hex(),
        image.id.short(),
    ] {
        let found = store.find(text).unwrap().expect(text);
        assert_eq!(found.id, image.id);
        assert_eq!(found.names, [name("app:1"), name("ghcr.io/o/app:2")]);
    }
    for text in ["app", "app:2", "no/such", "", "sha256:", &image.id.hex()[..6], "../../etc", &"0".repeat(64)]
    {
        assert!(store.find(text).unwrap().is_none(), "{text}");
    }
    assert_eq!(image.layers.len(), 2);
    assert_eq!(fs::read(image.layers[0].join("a")).unwrap().len(), 10);
    assert_eq!(image.disk_bytes, 4096 + 8192);
    assert_eq!(store.list().unwrap().len(), 1);
    assert_eq!(store.bytes().unwrap(), image.disk_bytes);
    // Another process, or this one later, sees the same.
    let again = open(store.root());
    assert_eq!(again.find("app:1").unwrap().unwrap().layers, image.layers);
    assert!(listed(&store, "staging").is_empty() && listed(&store, "locks").is_empty());
}

#[test]
fn nobody_else_on_the_host_reaches_files_of_images() {
    use std::os::unix::fs::MetadataExt;
    let tmp = tempfile::tempdir().unwrap();
    let store = open(&tmp.path().join("images"));
    let image = image(&store, &[("a", 10)], &["app"]);
    let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
    assert_eq!(mode(&image.layers[0]), 0o755);
    assert_eq!(mode(image.layers[0].parent().unwrap()), 0o700);
    for directory in ["layers", "images", "names", "held", "partial", "staging", "locks"] {
        assert_eq!(mode(&store.root().join(directory)), 0o700, "{directory}");
    }
    assert_eq!(mode(&store.record(&image.id)), 0o600);
}

#[test]
fn a_name_that_is_given_again_leads_to_the_new_image() {
    let tmp = tempfile::tempdir().unwrap();
    let store = open(tmp.path());
    let first = image(&store, &[("a", 10)], &["app"]);
    let second = image(&store, &[("b", 10)], &["app"]);
    assert_eq!(store.find("app").unwrap().unwrap().id, second.id);
    assert!(store.find(first.id.hex()).unwrap().unwrap().names.is_empty());
    store.tag(&first.id, &name("old")).unwrap();
    assert_eq!(store.find("old").unwrap().unwrap().id, first.id);
    let error = store.tag(&Digest::of(b"none"), &name("x")).unwrap_err();
    assert_eq!(error.kind(), stacyvm_provider::ErrorKind::NotFound);
}

#[test]
fn a_layer_that_is_not_what_it_is_called_leaves_nothing() {
    let tmp = tempfile::tempdir().unwrap();
    let store = open(tmp.path());
    let work = store.work().unwrap();
    let (wanted, _) = layer("a", 10);
    let (_, other) = layer("b", 10);
    let error = work.layer(&wanted, other.as_slice()).unwrap_err();
    assert!(error.message().contains(&wanted.to_string()), "{error}");
    assert!(
        work.layer(&wanted, &b"no archive at all, and long enough to be taken for one".repeat(20)[..])
            .is_err()
    );
    assert!(!store.is_there(&wanted) && listed(&store, "layers").is_empty());
    let mut left: Vec<_> = fs::read_dir(work.directory()).unwrap().map(|e| e.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["lock", "needs"]);
    let error = work.image(&config(&[&wanted]), &Origin::default(), &[]).unwrap_err();
    assert_eq!(error.kind(), stacyvm_provider::ErrorKind::Unavailable);
    assert!(work.image(b"{}", &Origin::default(), &[]).is_err());
    let error = work.image(&config(&[]), &Origin::default(), &[]).unwrap_err();
    assert!(error.message().contains("has no layers"), "{error}");
    assert!(listed(&store, "locks").is_empty());
    assert!(store.list().unwrap().is_empty());
    // Cut where only the end mark is missing: nothing but that tells when no digest is known.
    let error = work.unknown_layer(&Archive::default().file("a", b"x").0[..]).unwrap_err();
    assert!(error.message().contains("no end mark"), "{error}");
}

#[test]
fn layers_are_stacked_as_the_kernel_takes_them() {
    let tmp = tempfile::tempdir().unwrap();
    let store = open(tmp.path());
    let work = store.work().unwrap();
    let archives = [
        Archive::default().file("lowest", b"").end(),
        Archive::default().file(".wh..wh..opq", b"").file("base", b"").end(),
        Archive::default().file("middle", b"").end(),
        Archive::default().file("top", b"").end(),
    ];
    let ids: Vec<_> = archives.iter().map(|a| Digest::of(a)).collect();
    for (id, archive) in ids.iter().zip(&archives) {
        work.layer(id, archive.as_slice()).unwrap();
    }
    // One that hides all below, one that is there twice.
    let order = [&ids[0], &ids[2], &ids[1], &ids[2], &ids[3], &ids[2]];
    let image = work.image(&config(&order), &Origin::default(), &[]).unwrap();
    let expected: Vec<PathBuf> =
        [&ids[1], &ids[3], &ids[2]].iter().map(|id| store.layer(id).join("fs")).collect();
    assert_eq!(image.layers, expected);
    let mounts = tempfile::tempdir().unwrap();
    let mounted = crate::unpack::tests::overlay::Mounted::overlay(mounts.path(), &image.layers);
    let found: Vec<_> = things(mounted.path()).into_keys().collect();
    assert_eq!(found, ["base", "middle", "top"].map(PathBuf::from));
}

#[test]
fn a_store_of_another_user_is_refused() {
    let tmp = tempfile::tempdir().unwrap();
    drop(open(tmp.path()));
    fs::write(tmp.path().join("form"), "\"user\"").unwrap();
    let error = Store::open(tmp.path(), StoreLimits::default()).unwrap_err();
    assert!(error.message().contains("made by a user without root"), "{error}");
}

#[test]
fn what_is_full_says_so_and_makes_room_first() {
    let tmp = tempfile::tempdir().unwrap();
    let limits = StoreLimits { bytes: Some(100_000), ..StoreLimits::default() };
    let store = Store::open(&tmp.path().join("images"), limits).unwrap();
    let holder = tmp.path().join("sandbox");
    fs::create_dir(&holder).unwrap();
    let held = image(&store, &[("held", 30_000)], &["held"]);
    store.hold(&held.id, &holder).unwrap();
    let old = image(&store, &[("old", 20_000)], &["old"]);
    let unnamed = image(&store, &[("unnamed", 20_000)], &[]);
    let age = |image: &Image, days: u64| {
        let then = std::time::SystemTime::now() - Duration::from_secs(days * 86_400);
        fs::File::options().write(true).open(store.record(&image.id)).unwrap().set_modified(then).unwrap();
    };
    age(&held, 100);
    age(&old, 50);
    // Without a name first, then the longest unused, and what is held never.
    let new = image(&store, &[("new", 40_000)], &["new"]);
    assert!(store.find(unnamed.id.hex()).unwrap().is_none());
    assert!(store.find("old").unwrap().is_some() && store.find("held").unwrap().is_some());
    let newer = image(&store, &[("newer", 40_000)], &["newer"]);
    let names: Vec<_> =
        store.list().unwrap().into_iter().flat_map(|i| i.names).map(|n| n.to_string()).collect();
    assert_eq!(names.len(), 2, "{names:?}");
    assert!(store.find("held").unwrap().is_some() && store.find(newer.id.hex()).unwrap().is_some());
    assert!(store.find(new.id.hex()).unwrap().is_none());
    assert!(store.bytes().unwrap() <= 100_000);
    // What cannot fit, because it is held or because it is too large at all.
    store.hold(&newer.id, &holder).unwrap();
    let work = store.work().unwrap();
    let (id, archive) = layer("too much", 40_000);
    let error = work.layer(&id, archive.as_slice()).unwrap_err();
    assert_eq!(error.kind(), stacyvm_provider::ErrorKind::ResourceLimit);
    assert!(error.message().contains("raise its limit"), "{error}");
    let (id, archive) = layer("huge", 200_000);
    assert_eq!(
        work.layer(&id, archive.as_slice()).unwrap_err().kind(),
        stacyvm_provider::ErrorKind::ResourceLimit
    );
    assert_eq!(store.list().unwrap().len(), 2);
}
