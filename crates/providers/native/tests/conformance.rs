//! The suite that every provider has to pass, on the image `host` and on a directory with next to nothing in it.

mod common;

use common::Host;
use stacyvm_conformance::Options;
use std::{fs, sync::Arc};

#[tokio::test(flavor = "multi_thread")]
async fn the_image_host_conforms() {
    conforms(Options::default()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nearly_empty_directory_conforms() {
    let rootfs = tempfile::tempdir_in("/var/tmp").unwrap();
    fs::create_dir(rootfs.path().join("opt")).unwrap();
    conforms(Options { image: rootfs.path().display().to_string(), ..Options::default() }).await;
}

async fn conforms(options: Options) {
    let host = Host::new();
    let provider = Arc::new(host.provider(1));
    let report = stacyvm_conformance::run(provider, options).await;
    println!("{report}");
    assert!(report.is_success(), "{report}");
    host.assert_nothing_left();
}
