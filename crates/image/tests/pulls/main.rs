//! Pulls from registries that behave, that lie, that break off, and from the real one.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

mod behave;
mod breaks;
mod child;
mod fake;
mod images;
mod lies;
mod real;
mod secure;
mod shared;
mod sink;
mod stored;

use fake::Fake;
use sink::Folder;
use stacyvm_image::{Puller, Reference, Settings};
use stacyvm_provider::{Error, ErrorKind, Notice};
use std::{sync::Arc, time::Duration};
use tokio::sync::broadcast;

/// Settings with which a test does not wait long.
fn settings(insecure: &[&Fake]) -> Settings {
    Settings {
        insecure: insecure.iter().map(|fake| fake.host()).collect(),
        silence: Duration::from_millis(400),
        wait: Duration::from_millis(2),
        longest_wait: Duration::from_secs(2),
        ..Settings::default()
    }
}

fn puller(settings: Settings, sink: &Arc<Folder>) -> (Puller, broadcast::Receiver<Notice>) {
    let (notices, heard) = broadcast::channel(256);
    (Puller::new(settings, Arc::clone(sink) as _, notices).unwrap(), heard)
}

fn name(fake: &Fake, rest: &str) -> Reference {
    format!("{}/{rest}", fake.host()).parse().unwrap()
}

/// The error of a pull of `rest`, with the partial files that it left.
async fn refused(fake: &Fake, settings: Settings, rest: &str) -> Error {
    let sink = Folder::new();
    let (puller, _) = puller(settings, &sink);
    let error = puller.pull(&name(fake, rest)).await.expect_err("the pull succeeded");
    assert_eq!(sink.images(), 0, "an image was recorded");
    error
}

#[track_caller]
fn is(error: &Error, kind: ErrorKind, parts: &[&str]) {
    assert_eq!(error.kind(), kind, "{}", error.chain());
    for part in parts {
        assert!(error.message().contains(part), "{part:?} is not in {:?}", error.message());
    }
}
