//! The suite that every provider has to pass, on containers: with runc and with gVisor, and on an image that holds nothing.

use crate::host;
use anyhow::{Result, ensure};
use stacyvm_conformance::{Options, run};
use std::sync::Arc;

async fn conforms(name: &str, runtime: &str, options: Options) -> Result<()> {
    let (provider, installation) = host::provider(host::config(runtime)?).await;
    let report = run(Arc::new(provider), options).await;
    println!("{report}");
    stacyvm_e2e::keep_report(name, &report)?;
    ensure!(
        report.is_success(),
        "{name} broke promises: {:?}, left: {:?}",
        report.failures(),
        report.left_behind
    );
    host::assert_nothing_left(&installation)
}

fn options() -> Options {
    Options {
        image: "alpine:latest".to_owned(),
        missing_image: "127.0.0.1:15000/nowhere:1".to_owned(),
        concurrency: 4,
        patience: 2,
        ..Options::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn runc() -> Result<()> {
    conforms("docker-runc", "runc", options()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn gvisor() -> Result<()> {
    let options = Options { host_processes: false, patience: 4, ..options() };
    conforms("docker-runsc", "runsc", options).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_with_nothing_in_it() -> Result<()> {
    let options = Options { image: "stacyvm-test/distroless:latest".to_owned(), ..options() };
    conforms("docker-distroless", "runc", options).await
}
