//! Several threads and processes with one store.

use super::*;
use crate::{LayerMedia, Sink};
use std::{
    io::Read,
    process::Command,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

/// Runs a test of this binary that is ignored, in a process of its own.
pub(super) fn child(test: &str, root: &Path, argument: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", &format!("store::tests::{test}"), "--ignored", "--nocapture"]);
    command.env("TEST_STORE", root).env("TEST_ARGUMENT", argument).stdout(std::process::Stdio::null());
    command
}

/// What [`child`] was called with; nothing if somebody runs all that is ignored.
pub(super) fn called() -> Option<(PathBuf, String)> {
    Some((std::env::var_os("TEST_STORE")?.into(), std::env::var("TEST_ARGUMENT").ok()?))
}

/// A reader that says that it was read.
struct Counted<'a>(&'a [u8], &'a AtomicUsize);

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.1.fetch_add(1, Ordering::SeqCst);
        // Slow enough for others to come meanwhile.
        thread::sleep(Duration::from_millis(20));
        self.0.read(buffer)
    }
}

#[test]
fn ten_threads_that_want_a_layer_unpack_it_once() {
    let tmp = tempfile::tempdir().unwrap();
    let store = open(tmp.path());
    let (id, archive) = layer("a", 3 << 20);
    let (made, readers) = (AtomicUsize::new(0), AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..10 {
            scope.spawn(|| {
                let read = AtomicUsize::new(0);
                let work = store.work().unwrap();
                let new = work.layer(&id, Counted(&archive, &read)).unwrap();
                made.fetch_add(usize::from(new), Ordering::SeqCst);
                readers.fetch_add(usize::from(read.into_inner() > 0), Ordering::SeqCst);
                assert!(store.is_there(&id));
                work.image(&config(&[&id]), &Origin::default(), &[name("app")]).unwrap();
            });
        }
    });
    assert_eq!((made.into_inner(), readers.into_inner()), (1, 1));
    assert_eq!(store.list().unwrap().len(), 1);
    assert!(listed(&store, "staging").is_empty() && listed(&store, "locks").is_empty());
}

/// Pulls of one process share their place to work.
#[test]
fn one_process_adds_many_layers_at_once() {
    let tmp = tempfile::tempdir().unwrap();
    let store = open(tmp.path());
    let _pull = store.begin().unwrap();
    thread::scope(|scope| {
        for number in 0..8 {
            let store = &store;
            scope.spawn(move || {
                for round in 0..6 {
                    let (id, archive) = layer(&format!("f{number}-{round}"), 1 + number * 1000);
                    fs::write(store.partial(&id), &archive).unwrap();
                    store.add_layer(&id, LayerMedia::Tar, &store.partial(&id)).unwrap();
                    let bytes = (1 + number as u64 * 1000).next_multiple_of(4096);
                    let image =
                        store.work().unwrap().image(&config(&[&id]), &Origin::default(), &[]).unwrap();
                    assert_eq!(image.disk_bytes, bytes, "its own record");
                }
            });
        }
    });
    assert_eq!(store.list().unwrap().len(), 48);
}

#[test]
#[ignore = "the other process of a test"]
fn process() {
    let Some((root, argument)) = called() else { return };
    let store = open(&root);
    let (id, archive) = layer("a", 2 << 20);
    let read = AtomicUsize::new(0);
    let work = store.work().unwrap();
    if work.layer(&id, Counted(&archive, &read)).unwrap() {
        fs::write(root.join(format!("made-by-{argument}")), "").unwrap();
    }
    work.image(&config(&[&id]), &Origin::default(), &[name(&format!("app:{argument}"))]).unwrap();
}

#[test]
fn several_processes_that_want_a_layer_unpack_it_once() {
    let tmp = tempfile::tempdir().unwrap();
    let mut children: Vec<_> =
        (0..5).map(|n| child("together::process", tmp.path(), &n.to_string()).spawn().unwrap()).collect();
    assert!(children.iter_mut().all(|child| child.wait().unwrap().success()));
    let made = fs::read_dir(tmp.path())
        .unwrap()
        .filter(|e| e.as_ref().unwrap().file_name().to_str().unwrap().starts_with("made-by-"));
    assert_eq!(made.count(), 1);
    let store = open(tmp.path());
    assert_eq!(store.list().unwrap()[0].names.len(), 5);
}

/// Adds, holds, removes and collects at once. Whoever holds an image has its files, at any time.
#[test]
fn what_is_held_is_there_whatever_others_do() {
    let tmp = tempfile::tempdir().unwrap();
    let store = open(&tmp.path().join("images"));
    let rounds = 60;
    thread::scope(|scope| {
        for thread in 0..4_usize {
            let (store, tmp) = (&store, &tmp);
            scope.spawn(move || {
                for round in 0..rounds {
                    let (file, tag) =
                        (format!("f{}", (thread + round) % 3), format!("app:{}", (thread + round) % 3));
                    let image = image(store, &[("base", 10), (&file, 100)], &[&tag]);
                    let holder = tmp.path().join(format!("holder-{thread}-{round}"));
                    fs::create_dir(&holder).unwrap();
                    match store.hold(&image.id, &holder) {
                        Ok(()) => {
                            thread::sleep(Duration::from_millis(1));
                            assert!(
                                image.layers[0].join("base").exists() && image.layers[1].join(&file).exists()
                            );
                            store.release(&holder).unwrap();
                        }
                        // Removed between the two.
                        Err(e) => assert_eq!(e.kind(), stacyvm_provider::ErrorKind::NotFound),
                    }
                    fs::remove_dir(&holder).unwrap();
                }
            });
        }
        scope.spawn(|| {
            for round in 0..rounds {
                let _ = store.remove(&format!("app:{}", round % 3), round % 2 == 0);
                store.collect(&Collect { unused_for: Some(Duration::ZERO), ..Collect::default() }).unwrap();
            }
        });
    });
    store.collect(&Collect { unused_for: Some(Duration::ZERO), ..Collect::default() }).unwrap();
    for directory in ["layers", "images", "names", "held", "staging", "locks"] {
        assert_eq!(listed(&store, directory), [""; 0], "{directory}");
    }
}

#[test]
fn who_waits_too_long_for_a_layer_is_told() {
    let tmp = tempfile::tempdir().unwrap();
    let limits = StoreLimits { patience: Duration::from_millis(50), ..StoreLimits::default() };
    let store = Store::open(tmp.path(), limits).unwrap();
    let (id, archive) = layer("a", 10);
    let _other =
        crate::store::lock::Lock::attempt(&store.root().join("locks").join(id.hex())).unwrap().unwrap();
    let error = store.work().unwrap().layer(&id, archive.as_slice()).unwrap_err();
    assert_eq!(error.kind(), stacyvm_provider::ErrorKind::Unavailable);
    assert!(error.message().contains(id.short()), "{error}");
}
