//! The conformance suite against every runtime of this host. Each report is kept for the summary at the end of a run.

use anyhow::Result;
use stacyvm_conformance::Options;
use stacyvm_e2e::conforms;
use stacyvm_provider::mock::MockProvider;
use stacyvm_provider_native::{NativeConfig, NativeProvider, SpawnerCommand};
use stacyvm_testkit::{LeakCheck, binary};
use std::sync::Arc;

#[tokio::test(flavor = "multi_thread")]
async fn native() -> Result<()> {
    let leaks = LeakCheck::before();
    let data = tempfile::Builder::new().prefix("stacyvm-conformance-").tempdir()?;
    let provider = NativeProvider::start(NativeConfig {
        data_dir: data.path().to_owned(),
        installation_id: format!("conformance-{}", std::process::id()),
        generation: 1,
        spawner: SpawnerCommand { program: binary()?, args: vec!["internal-spawner".into()] },
        agent: stacyvm_guest_binaries::AGENT,
        lock: None,
        image_dirs: Vec::new(),
        images: None,
        network: Default::default(),
    })?;
    conforms("native", Arc::new(provider), Options::default()).await?;
    leaks.check().await
}

#[tokio::test(flavor = "multi_thread")]
async fn mock() -> Result<()> {
    let leaks = LeakCheck::before();
    let provider = MockProvider::new("conformance", 1, stacyvm_guest_binaries::AGENT)?;
    conforms("mock", Arc::new(provider), Options::default()).await?;
    leaks.check().await
}
