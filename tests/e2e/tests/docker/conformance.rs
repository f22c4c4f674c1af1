//! The suite that every provider has to pass, on containers: with runc and with gVisor, and on an image that holds nothing.

use crate::host;
use anyhow::Result;
use stacyvm_conformance::Options;
use std::sync::Arc;

async fn leaves_nothing(name: &str, runtime: &str, options: Options) -> Result<()> {
    let (provider, installation) = host::provider(host::config(runtime)?).await;
    stacyvm_e2e::conforms(name, Arc::new(provider), options).await?;
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
    leaves_nothing("docker-runc", "runc", options()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn gvisor() -> Result<()> {
    let options = Options { host_processes: false, patience: 4, ..options() };
    leaves_nothing("docker-runsc", "runsc", options).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_with_nothing_in_it() -> Result<()> {
    let options = Options { image: "stacyvm-test/distroless:latest".to_owned(), ..options() };
    leaves_nothing("docker-distroless", "runc", options).await
}
