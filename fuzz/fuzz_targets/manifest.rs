//! Names, manifests, indexes and configurations of images, from whoever sends them.
//!
//!     cargo +nightly fuzz run manifest fuzz/corpus/manifest fuzz/seeds/manifest -- -max_total_time=60
#![no_main]

use libfuzzer_sys::fuzz_target;
use stacyvm_image::{Digest, Document, ImageConfig, MOST_LAYERS, Platform, Reference, Search};

fuzz_target!(|data: &[u8]| {
    if let Ok(text) = std::str::from_utf8(data) {
        if let Ok(reference) = text.parse::<Reference>() {
            assert_eq!(reference.to_string().parse::<Reference>().unwrap(), reference);
            assert_eq!(reference.canonical().parse::<Reference>().unwrap(), reference);
            assert!(!reference.repository().split('/').any(|part| part.is_empty() || part.starts_with('.')));
        }
        if let Ok(platform) = text.parse::<Platform>() {
            assert_eq!(platform.to_string().parse::<Platform>().unwrap(), platform);
            assert_eq!(platform.rank(&platform), Some(0));
        }
    }
    if let Ok(config) = ImageConfig::parse(data, "fuzz") {
        let written = config.to_json().unwrap();
        assert_eq!(ImageConfig::parse(&written, "fuzz").unwrap(), config);
        let _ = config.runs_on(&Platform::host(), "fuzz");
    }
    match Document::parse(data, None, "fuzz") {
        Ok(Document::Manifest(manifest)) => {
            assert!((1..=MOST_LAYERS).contains(&manifest.layers.len()));
            let _ = manifest.bounded(1 << 30, "fuzz");
            let config = ImageConfig::default();
            assert!(manifest.with(&config, "fuzz").is_err());
        }
        Ok(Document::Index(index)) => {
            let mut search = Search::new(Platform::host(), "fuzz");
            search.take(&Digest::of(data), &index).unwrap();
            let found = std::iter::from_fn(|| search.next().ok()).count();
            assert!(found <= index.manifests().len());
        }
        Err(error) => assert!(error.message().contains("fuzz") && error.message().len() < 2000),
    }
});
