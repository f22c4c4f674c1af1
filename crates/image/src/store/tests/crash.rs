//! Processes that are killed in the middle of everything.

use super::{
    together::{called, child},
    *,
};
use std::{thread, time::Instant};

/// Adds, tags, holds, removes and collects without end.
#[test]
#[ignore = "the other process of a test"]
fn process() {
    let Some((root, _)) = called() else { return };
    let store = open(&root.join("images"));
    for round in 0_usize.. {
        let large = format!("large{}", round % 2);
        let holder = root.join(format!("holder{}", round % 3));
        let _ = fs::create_dir(&holder);
        let added = image(&store, &[("base", 100_000), (&large, 1 << 20)], &[&format!("app:{}", round % 2)]);
        let _ = store.hold(&added.id, &holder);
        let _ = store.remove(&format!("app:{}", (round + 1) % 2), round % 3 == 0);
        store.release(&holder).unwrap();
        let _ = fs::remove_dir(&holder);
        store.collect(&Collect { unused_for: Some(Duration::ZERO), ..Collect::default() }).unwrap();
    }
}

/// Everything that has its place is complete.
fn check(store: &Store) {
    for name in listed(store, "layers") {
        let place = store.root().join("layers").join(&name);
        let found = things(&place.join("fs"));
        assert_eq!(found.len(), 1, "{name}");
        let (path, thing) = found.iter().next().unwrap();
        let (id, _) = layer(path.to_str().unwrap(), thing.content.len());
        assert_eq!(id.hex(), name, "a layer has all its bytes");
        assert!(place.join("layer.json").exists());
    }
    for image in store.list().unwrap() {
        assert!(image.layers.iter().all(|layer| layer.exists()));
    }
}

#[test]
fn a_store_whose_process_was_killed_at_any_moment_is_whole() {
    let tmp = tempfile::tempdir().unwrap();
    // Moments that are spread over what one round takes, the same ones each time.
    for moment in 0..40_u64 {
        let mut process = child("crash::process", tmp.path(), "").spawn().unwrap();
        let started = Instant::now();
        thread::sleep(Duration::from_micros(8_000 + (moment * 7_919) % 90_000));
        process.kill().unwrap();
        process.wait().unwrap();
        assert!(started.elapsed() < Duration::from_secs(60));
        let store = open(&tmp.path().join("images"));
        assert!(listed(&store, "staging").is_empty(), "{:?}", listed(&store, "staging"));
        check(&store);
        if moment % 8 == 7 {
            // The same operations succeed, and then nothing is left.
            let image = image(&store, &[("base", 100_000), ("large0", 1 << 20)], &["app:0"]);
            assert_eq!(store.find("app:0").unwrap().unwrap().id, image.id);
            for n in 0..3 {
                let _ = fs::remove_dir(tmp.path().join(format!("holder{n}")));
            }
            store.collect(&Collect { unused_for: Some(Duration::ZERO), ..Collect::default() }).unwrap();
            for directory in ["layers", "images", "names", "held", "staging", "locks"] {
                assert_eq!(listed(&store, directory), [""; 0], "{directory}");
            }
        }
    }
}
