//! Archives of images: whatever the bytes, an answer, and a store that is whole.

#![no_main]

mod tar;

use libfuzzer_sys::fuzz_target;
use stacyvm_image::{
    Store,
    archive::{Import, Source},
    store::{Collect, StoreLimits},
    unpack::Limits,
};
use std::sync::OnceLock;

static STORE: OnceLock<(tempfile::TempDir, Store)> = OnceLock::new();

fuzz_target!(|data: &[u8]| {
    let (_directory, store) = STORE.get_or_init(|| {
        let directory = tempfile::tempdir().expect("a directory");
        let layer = Limits { entries: 2000, stream_bytes: 4 << 20, file_bytes: 1 << 30, depth: 32, ..Limits::default() };
        let store = Store::open(directory.path(), StoreLimits { layer, ..StoreLimits::default() }).expect("a store");
        (directory, store)
    });
    let archive = tar::with_checksums(data);
    let wanted = Import { platform: "linux/amd64".parse().expect("a platform"), bytes: 4 << 20, ..Import::default() };
    if let Ok(images) = store.import(Source::Stream(Box::new(archive.as_slice())), &wanted) {
        for image in images {
            assert!(image.layers.iter().all(|layer| layer.is_dir()));
            store.remove(image.id.hex(), true).expect("an image that was just there");
        }
    }
    store.collect(&Collect::default()).expect("a store that is whole");
    assert!(store.list().expect("a store that is whole").is_empty());
});
