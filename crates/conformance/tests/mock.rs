//! What the mock promises beyond the contract; what it shares with every provider is the suite's to check.
#![expect(clippy::unwrap_used, reason = "tests, and what only they call")]

use stacyvm_provider::{
    ErrorKind, Provider, RuntimeState, SandboxId, SandboxSpec,
    mock::{MISSING_IMAGE, MockProvider},
};
use std::{fs, path::Path};

fn spec(image: &str) -> SandboxSpec {
    SandboxSpec::new(image)
}

fn id(text: &str) -> SandboxId {
    text.parse().unwrap()
}

fn private(installation: &str) -> MockProvider {
    MockProvider::new(installation, 1, stacyvm_guest_binaries::AGENT).unwrap()
}

fn open(directory: &Path, installation: &str, generation: u64) -> MockProvider {
    MockProvider::open(directory, installation, generation, stacyvm_guest_binaries::AGENT).unwrap()
}

/// Processes of this host that carry the installation's name in their command line.
fn processes_of(installation: &str) -> Vec<i32> {
    let numbers =
        fs::read_dir("/proc").unwrap().flatten().filter_map(|e| e.file_name().to_str()?.parse().ok());
    let line = |pid: &i32| fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    numbers.filter(|pid| line(pid).split('\0').any(|word| word == installation)).collect()
}

#[tokio::test]
async fn it_says_that_it_isolates_nothing() {
    let provider = private("inst-honest");
    assert!(!provider.capabilities().isolated);
    assert!(provider.health().await.warnings.iter().any(|w| w.contains("isolates nothing")));
}

#[tokio::test]
async fn it_refuses_the_missing_image_and_leaves_nothing() {
    let provider = private("inst-image");
    let error = provider.create(&id("sb-1"), &spec(MISSING_IMAGE)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(provider.list().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_provider_opened_again_finds_the_same_sandbox_and_a_stranger_does_not() {
    let directory = tempfile::tempdir().unwrap();
    let first = open(directory.path(), "inst-again", 1);
    first.create(&id("sb-1"), &spec("host")).await.unwrap();
    drop(first);

    let second = open(directory.path(), "inst-again", 2);
    let listed = second.list().await.unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!((&listed[0].state, listed[0].image.as_deref()), (&RuntimeState::Running, Some("host")));
    second.connect(&id("sb-1")).await.unwrap().ping().await.unwrap();

    let stranger = open(directory.path(), "inst-other", 1);
    assert!(stranger.list().await.unwrap().is_empty());
    assert_eq!(stranger.status(&id("sb-1")).await.unwrap_err().kind(), ErrorKind::NotFound);
    stranger.destroy(&id("sb-1")).await.unwrap();
    assert_eq!(second.status(&id("sb-1")).await.unwrap(), RuntimeState::Running);

    second.destroy(&id("sb-1")).await.unwrap();
    assert!(second.list().await.unwrap().is_empty());
    assert_eq!(processes_of("inst-again"), [0; 0]);
}

#[tokio::test]
async fn an_adopted_agent_that_ends_is_noticed() {
    let directory = tempfile::tempdir().unwrap();
    open(directory.path(), "inst-adopt", 1).create(&id("sb-1"), &spec("host")).await.unwrap();
    let second = open(directory.path(), "inst-adopt", 2);
    assert_eq!(second.status(&id("sb-1")).await.unwrap(), RuntimeState::Running);
    for pid in processes_of("inst-adopt").into_iter().filter_map(rustix::process::Pid::from_raw) {
        // Some end by themselves when the first of them does.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
    assert!(!second.ended(&id("sb-1")).await.is_empty());
    assert!(matches!(second.status(&id("sb-1")).await.unwrap(), RuntimeState::Ended { .. }));
    let third = open(directory.path(), "inst-adopt", 3);
    assert!(matches!(third.status(&id("sb-1")).await.unwrap(), RuntimeState::Ended { .. }));
    third.destroy(&id("sb-1")).await.unwrap();
}

#[tokio::test]
async fn dropping_a_private_provider_ends_its_sandboxes() {
    let provider = private("inst-drop");
    provider.create(&id("sb-1"), &spec("host")).await.unwrap();
    let directory = provider.settings()["directory"].clone();
    assert!(!processes_of("inst-drop").is_empty());
    drop(provider);
    assert_eq!(processes_of("inst-drop"), [0; 0]);
    assert!(!Path::new(&directory).exists());
}

#[tokio::test]
async fn an_ended_sandbox_is_not_made_again_under_its_id() {
    let provider = private("inst-ended");
    provider.create(&id("sb-1"), &spec("host")).await.unwrap();
    for pid in processes_of("inst-ended").into_iter().filter_map(rustix::process::Pid::from_raw) {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
    assert!(provider.ended(&id("sb-1")).await.contains("signal: 9"));
    let again = provider.create(&id("sb-1"), &spec("host")).await.unwrap_err();
    assert_eq!(again.kind(), ErrorKind::Destroyed);
    provider.destroy(&id("sb-1")).await.unwrap();
    provider.create(&id("sb-1"), &spec("host")).await.unwrap();
}

#[tokio::test]
async fn sandboxes_live_in_a_directory_with_a_long_name() {
    let directory = tempfile::tempdir().unwrap();
    let long = directory.path().join("d".repeat(120));
    let provider = open(&long, "inst-long", 1);
    provider.create(&id("sb-1"), &spec("host")).await.unwrap();
    provider.connect(&id("sb-1")).await.unwrap().ping().await.unwrap();
    provider.destroy(&id("sb-1")).await.unwrap();
}
