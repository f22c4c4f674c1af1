//! Layers: whatever the bytes, nothing outside of the layer's directory, and an end.

#![no_main]

mod tar;

use libfuzzer_sys::fuzz_target;
use stacyvm_image::unpack::{Limits, unpack};
use std::fs;

fuzz_target!(|data: &[u8]| {
    let around = tempfile::tempdir().expect("a directory");
    let into = around.path().join("layer");
    fs::create_dir(&into).expect("a directory");
    let limits = Limits {
        entries: 2000,
        stream_bytes: 4 << 20,
        disk_bytes: 4 << 20,
        file_bytes: 1 << 30,
        depth: 32,
        extension_bytes: 64 << 10,
        ..Limits::default()
    };
    let archive = tar::with_checksums(data);
    if let Ok(unpacked) = unpack(archive.as_slice(), &into, &limits) {
        assert!(unpacked.disk_bytes <= limits.disk_bytes && unpacked.entries <= limits.entries);
    }
    let names: Vec<_> = fs::read_dir(around.path()).expect("it is there").flatten().map(|e| e.file_name()).collect();
    assert_eq!(names, ["layer"]);
    let names: Vec<_> = fs::read_dir(&into).expect("it is there").flatten().map(|e| e.file_name()).collect();
    assert_eq!(names, ["fs"]);
});
