//! What goes, and what stays.

use super::*;
use crate::{
    Sink,
    store::{Collected, Removed},
};
use stacyvm_provider::ErrorKind;

#[test]
fn layers_that_images_share_stay_as_long_as_one_needs_them() {
    let tmp = tempfile::tempdir().unwrap();
    let store = open(tmp.path());
    let one = image(&store, &[("base", 10), ("one", 10)], &["one", "uno"]);
    image(&store, &[("base", 10), ("two", 10)], &["two"]);
    assert_eq!(listed(&store, "layers").len(), 3);
    let removed = store.remove("uno", false).unwrap();
    assert_eq!(removed, Removed { names: vec![name("uno")], ..Removed::default() });
    let removed = store.remove("one", false).unwrap();
    assert_eq!((removed.image, removed.layers, removed.bytes), (Some(one.id), 1, 4096));
    assert_eq!(listed(&store, "layers").len(), 2);
    assert_eq!(store.remove("one", false).unwrap_err().kind(), ErrorKind::NotFound);
    let two = store.find("two").unwrap().unwrap();
    assert_eq!(fs::read(two.layers[0].join("base")).unwrap().len(), 10);
    // By its id, with all names.
    store.tag(&two.id, &name("zwei")).unwrap();
    let removed = store.remove(two.id.short(), false).unwrap();
    assert_eq!((removed.names.len(), removed.layers), (2, 2));
    assert!(listed(&store, "layers").is_empty() && listed(&store, "names").is_empty());
}

#[test]
fn who_holds_an_image_keeps_its_layers_until_its_directory_is_gone() {
    let tmp = tempfile::tempdir().unwrap();
    let store = open(&tmp.path().join("images"));
    let held = image(&store, &[("a", 10)], &["app"]);
    let holder = tmp.path().join("sandbox");
    fs::create_dir(&holder).unwrap();
    store.hold(&held.id, &holder).unwrap();
    store.hold(&held.id, &holder).unwrap();
    assert_eq!(store.find("app").unwrap().unwrap().held_by, std::slice::from_ref(&holder));
    let error = store.remove("app", false).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.message().contains("used by 1") && error.message().contains("force"), "{error}");
    let all = Collect { unused_for: Some(Duration::ZERO), ..Collect::default() };
    assert_eq!(store.collect(&all).unwrap(), Collected::default());

    // With force the image goes, and its files stay for whom they are mounted.
    let removed = store.remove("app", true).unwrap();
    assert_eq!((removed.image, removed.layers), (Some(held.id.clone()), 0));
    assert!(store.find("app").unwrap().is_none());
    assert!(held.layers[0].join("a").exists());
    assert_eq!(store.collect(&Collect::default()).unwrap(), Collected::default());
    assert!(held.layers[0].join("a").exists());

    fs::remove_dir(&holder).unwrap();
    let collected = store.collect(&Collect::default()).unwrap();
    assert_eq!(collected, Collected { layers: 1, bytes: 4096, ..Collected::default() });
    assert!(listed(&store, "held").is_empty() && listed(&store, "layers").is_empty());
}

#[test]
fn a_release_is_of_one_holder_only() {
    let tmp = tempfile::tempdir().unwrap();
    let store = open(&tmp.path().join("images"));
    let image = image(&store, &[("a", 10)], &["app"]);
    let holders = ["one", "two"].map(|name| {
        let path = tmp.path().join(name);
        fs::create_dir(&path).unwrap();
        store.hold(&image.id, &path).unwrap();
        path
    });
    store.release(&holders[0]).unwrap();
    store.release(&holders[0]).unwrap();
    assert_eq!(store.find("app").unwrap().unwrap().held_by, [holders[1].clone()]);
    store.release(&holders[1]).unwrap();
    store.remove("app", false).unwrap();
    assert_eq!(store.hold(&image.id, &holders[0]).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(store.hold(&image.id, Path::new("relative")).unwrap_err().kind(), ErrorKind::InvalidArgument);
}

#[test]
fn collection_takes_what_it_is_asked_for() {
    let tmp = tempfile::tempdir().unwrap();
    let store = open(tmp.path());
    image(&store, &[("named", 10)], &["named"]);
    image(&store, &[("unnamed", 10)], &[]);
    fs::create_dir(store.root().join("host-0123")).unwrap();
    fs::write(store.root().join("host-0123/file"), "not ours").unwrap();
    fs::create_dir(store.root().join(".host-half")).unwrap();
    fs::write(store.root().join("layers/README"), "not ours either").unwrap();
    let nothing = Collect { unnamed: false, ..Collect::default() };
    assert_eq!(store.collect(&nothing).unwrap(), Collected::default());
    let collected = store.collect(&Collect::default()).unwrap();
    assert_eq!((collected.images, collected.layers), (1, 1));
    let unused = Collect { unused_for: Some(Duration::from_secs(3600)), ..Collect::default() };
    assert_eq!(store.collect(&unused).unwrap(), Collected::default());
    let named = store.find("named").unwrap().unwrap();
    let then = std::time::SystemTime::now() - Duration::from_secs(7200);
    fs::File::options().write(true).open(store.record(&named.id)).unwrap().set_modified(then).unwrap();
    // A use makes it young again.
    let holder = tmp.path().join("host-0123");
    store.hold(&named.id, &holder).unwrap();
    store.release(&holder).unwrap();
    assert_eq!(store.collect(&unused).unwrap(), Collected::default());
    fs::File::options().write(true).open(store.record(&named.id)).unwrap().set_modified(then).unwrap();
    assert_eq!(store.collect(&unused).unwrap().images, 1);
    assert!(listed(&store, "names").is_empty());
    assert_eq!(listed(&store, "layers"), ["README"]);
    assert_eq!(fs::read_to_string(store.root().join("host-0123/file")).unwrap(), "not ours");
    assert!(store.root().join(".host-half").exists());
}

#[test]
fn downloads_that_nobody_goes_on_with_go() {
    let tmp = tempfile::tempdir().unwrap();
    let store = open(tmp.path());
    let old = std::time::SystemTime::now() - Duration::from_secs(8 * 86_400);
    let blobs = ["old", "new", "locked"].map(|name| Digest::of(name.as_bytes()));
    for (blob, name) in blobs.iter().zip(["old", "new", "locked"]) {
        let path = store.partial(blob);
        fs::write(&path, "12345").unwrap();
        let file = fs::File::options().write(true).open(&path).unwrap();
        if name != "new" {
            file.set_modified(old).unwrap();
        }
    }
    let claim = store.claim(&blobs[2]).unwrap().unwrap();
    assert!(open(store.root()).claim(&blobs[2]).unwrap().is_none());
    let collected = store.collect(&Collect::default()).unwrap();
    assert_eq!((collected.partial, collected.bytes), (1, 5));
    assert!(!store.partial(&blobs[0]).exists());
    assert_eq!(listed(&store, "partial").len(), 2);
    drop(claim);
    assert_eq!(store.collect(&Collect::default()).unwrap().partial, 1);
    assert!(listed(&store, "locks").is_empty());
}

#[test]
fn what_a_dead_process_left_goes_when_the_store_is_opened() {
    let tmp = tempfile::tempdir().unwrap();
    let store = open(tmp.path());
    let living = store.work().unwrap();
    let dead = store.root().join("staging/123-dead");
    fs::create_dir_all(dead.join("layer-0/fs/usr")).unwrap();
    fs::create_dir(dead.join("needs")).unwrap();
    let (needed, archive) = layer("a", 10);
    fs::write(dead.join("needs").join(needed.hex()), "").unwrap();
    fs::write(store.root().join("locks").join(needed.hex()), "").unwrap();
    open(store.root());
    assert!(!dead.exists() && living.directory().exists());
    assert!(listed(&store, "locks").is_empty());
    // Somebody's living work keeps what it needs, named or not.
    living.layer(&needed, archive.as_slice()).unwrap();
    assert_eq!(store.collect(&Collect::default()).unwrap(), Collected::default());
    drop(living);
    assert_eq!(store.collect(&Collect::default()).unwrap().layers, 1);
}

#[test]
fn what_something_else_broke_is_no_image_and_goes() {
    let tmp = tempfile::tempdir().unwrap();
    let store = open(tmp.path());
    let broken = image(&store, &[("a", 10)], &["broken"]);
    let fine = image(&store, &[("b", 10)], &["fine"]);
    let text = fs::read_to_string(store.record(&broken.id)).unwrap();
    fs::write(store.record(&broken.id), text.replace("linux", "plan9")).unwrap();
    assert!(store.find("broken").unwrap().is_none());
    fs::write(store.root().join("names/zero.json"), "").unwrap();
    fs::write(store.root().join("held/zero.json"), "").unwrap();
    store.collect(&Collect::default()).unwrap();
    let left: Vec<_> = store.list().unwrap().into_iter().map(|i| i.id).collect();
    assert_eq!(left, [fine.id]);
    assert_eq!((listed(&store, "layers").len(), listed(&store, "held").len()), (1, 0));
}

#[test]
fn what_a_pull_was_told_is_there_stays_until_the_pull_ends() {
    let tmp = tempfile::tempdir().unwrap();
    let store = open(tmp.path());
    let (id, archive) = layer("a", 10);
    let (first, second) = (store.begin().unwrap(), store.begin().unwrap());
    assert!(!store.has_layer(&id).unwrap());
    let blob = store.partial(&id);
    fs::write(&blob, &archive).unwrap();
    store.add_layer(&id, crate::LayerMedia::Tar, &blob).unwrap();
    drop(first);
    assert_eq!(store.collect(&Collect::default()).unwrap().layers, 0);
    assert!(store.has_layer(&id).unwrap());
    let raw_config = config(&[&id]);
    let pulled = crate::Pulled {
        reference: name("ghcr.io/o/app:1"),
        digest: Digest::of(b"index"),
        manifest: Digest::of(b"manifest"),
        config: ImageConfig::parse(&raw_config, "x").unwrap(),
        raw_config,
    };
    store.add_image(&pulled).unwrap();
    drop(second);
    assert!(store.has_image(&pulled.reference).unwrap() && !store.has_image(&name("app:1")).unwrap());
    let image = store.find("ghcr.io/o/app:1").unwrap().unwrap();
    assert_eq!((image.source.as_str(), image.manifest), ("ghcr.io", Some(pulled.manifest)));
    store.remove(image.id.hex(), false).unwrap();
    assert!(!store.has_layer(&id).unwrap(), "nobody works any more");
    assert!(listed(&store, "staging").is_empty());
}
