//! Many who want the same at once: one download, and each has what it asked for, whatever becomes of the others.

use crate::{
    fake::{Answer, Asked, Fake, How},
    images::{Image, Shelf, layer, noise},
    is, name, puller, settings,
    sink::Folder,
};
use stacyvm_image::{Digest, Settings, Sink};
use stacyvm_provider::ErrorKind::{NotFound, Unavailable};
use std::{
    sync::{
        Arc,
        atomic::{
            AtomicBool,
            Ordering::{Relaxed, SeqCst},
        },
    },
    time::{Duration, Instant},
};
use tokio::task::JoinSet;

const SLOWLY: How = How::Slowly(20_000, Duration::from_millis(10));

fn blobs(asked: &Asked) -> bool {
    asked.path.contains("/blobs/")
}

async fn slow(shelf: Shelf) -> Fake {
    Fake::start(move |asked| {
        let answer = shelf.answer(asked);
        if blobs(asked) { answer.but(SLOWLY) } else { answer }
    })
    .await
}

async fn until(what: &str, met: impl Fn() -> bool) {
    let begun = Instant::now();
    while !met() {
        assert!(begun.elapsed() < Duration::from_secs(30), "it never came to this: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_at_once_are_one_download() {
    let image = Image::sized(1, 300_000);
    let fake = slow(Shelf::default().with("a", "1", &image)).await;
    let sink = Folder::new();
    let (puller, _) = puller(settings(&[&fake]), &sink);
    let mut pulls = JoinSet::new();
    for _ in 0..10 {
        let (puller, reference) = (puller.clone(), name(&fake, "a:1"));
        pulls.spawn(async move { puller.pull(&reference).await.unwrap() });
    }
    let pulled = pulls.join_all().await;
    assert_eq!(pulled.len(), 10);
    assert_eq!((fake.count("/manifests/"), fake.count("/blobs/")), (1, 3));
    assert_eq!((sink.added.load(SeqCst), sink.images()), (2, 1));
    sink.has(&image.layers);
}

#[tokio::test(flavor = "multi_thread")]
async fn images_with_the_same_layer_share_its_download() {
    let common = layer("common", &noise(1, 300_000));
    let mut shelf = Shelf::default();
    for n in 0..5u8 {
        shelf.put(&format!("a{n}"), "1", &Image::of(vec![common.clone(), layer("own", &[n])]));
    }
    let fake = slow(shelf).await;
    let sink = Folder::new();
    let (puller, _) = puller(settings(&[&fake]), &sink);
    let mut pulls = JoinSet::new();
    for n in 0..5 {
        let (puller, reference) = (puller.clone(), name(&fake, &format!("a{n}:1")));
        pulls.spawn(async move { puller.pull(&reference).await.unwrap() });
    }
    pulls.join_all().await;
    assert_eq!(fake.count(&Digest::of(&common).to_string()), 1);
    assert_eq!((sink.added.load(SeqCst), sink.images()), (6, 5));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_goes_on_without_who_asked_for_it() {
    let image = Image::sized(2, 300_000);
    let fake = slow(Shelf::default().with("a", "1", &image)).await;
    let sink = Folder::new();
    let (puller, _) = puller(settings(&[&fake]), &sink);
    let reference = name(&fake, "a:1");
    let gone = tokio::time::timeout(Duration::from_millis(60), puller.pull(&reference)).await;
    assert!(gone.is_err(), "it was too fast");
    puller.pull(&reference).await.unwrap();
    assert_eq!((fake.count("/manifests/"), fake.count("/blobs/")), (1, 3));
    sink.has(&image.layers);
}

#[tokio::test(flavor = "multi_thread")]
async fn all_who_wait_hear_of_a_failure_and_the_next_tries_again() {
    let image = Image::sized(3, 10);
    let shelf = Shelf::default().with("a", "1", &image);
    let broken = Arc::new(AtomicBool::new(true));
    let is_broken = Arc::clone(&broken);
    let fake = Fake::start(move |asked| {
        if is_broken.load(Relaxed) && blobs(asked) { Answer::of(404, "") } else { shelf.answer(asked) }
    })
    .await;
    let sink = Folder::new();
    let (puller, _) = puller(settings(&[&fake]), &sink);
    let mut pulls = JoinSet::new();
    for _ in 0..10 {
        let (puller, reference) = (puller.clone(), name(&fake, "a:1"));
        pulls.spawn(async move { puller.pull(&reference).await.unwrap_err() });
    }
    for error in pulls.join_all().await {
        is(&error, NotFound, &["push the image again"]);
    }
    broken.store(false, Relaxed);
    puller.pull(&name(&fake, "a:1")).await.unwrap();
    sink.has(&image.layers);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_does_not_fail_because_of_anothers_registry() {
    let common = layer("common", &noise(4, 300_000));
    let (one, two) = (Image::of(vec![common.clone()]), Image::of(vec![common.clone(), layer("two", b"2")]));
    let shelf = Shelf::default().with("one", "1", &one);
    let hanging = Fake::start(move |asked| {
        let answer = shelf.answer(asked);
        if blobs(asked) && !answer.body.starts_with(b"{") { answer.but(How::Hang(1000)) } else { answer }
    })
    .await;
    let shelf = Shelf::default().with("two", "1", &two);
    let fine = Fake::start(move |asked| shelf.answer(asked)).await;
    let sink = Folder::new();
    let (puller, _) = puller(settings(&[&hanging, &fine]), &sink);
    let (first, reference) = (puller.clone(), name(&hanging, "one:1"));
    let failing = tokio::spawn(async move { first.pull(&reference).await.unwrap_err() });
    let digest = Digest::of(&common).to_string();
    until("the layer is asked for", || hanging.count(&digest) > 0).await;
    puller.pull(&name(&fine, "two:1")).await.unwrap();
    is(&failing.await.unwrap(), Unavailable, &["sent nothing"]);
    assert_eq!(fine.count(&digest), 1);
    sink.has(&two.layers);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_process_brings_is_waited_for() {
    let image = Image::single(5, 10_000);
    let shelf = Shelf::default().with("a", "1", &image);
    let fake = Fake::start(move |asked| shelf.answer(asked)).await;
    let digest = Digest::of(&image.layers[0]);
    for brought in [true, false] {
        let sink = Folder::new();
        let other = Folder::at(sink.root());
        let claim = other.claim(&digest).unwrap().unwrap();
        let (puller, _) = puller(settings(&[&fake]), &sink);
        let reference = name(&fake, "a:1");
        let before = fake.count(&digest.to_string());
        let waiting = tokio::spawn(async move { puller.pull(&reference).await });
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(!waiting.is_finished());
        if brought {
            std::fs::write(sink.layer(&digest), &image.layers[0]).unwrap();
        }
        drop(claim);
        waiting.await.unwrap().unwrap();
        sink.has(&image.layers);
        assert_eq!(fake.count(&digest.to_string()) - before, usize::from(!brought));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn three_layers_at_once_and_no_more() {
    let layers: Vec<_> = (0..8u8).map(|n| layer("n", &[n])).collect();
    let shelf = Shelf::default().with("a", "1", &Image::of(layers));
    let fake = Fake::start(move |asked| {
        let answer = shelf.answer(asked);
        if blobs(asked) && !answer.body.starts_with(b"{") { answer.but(How::Hang(100)) } else { answer }
    })
    .await;
    let sink = Folder::new();
    let silence = Duration::from_secs(600);
    let (puller, _) = puller(Settings { silence, ..settings(&[&fake]) }, &sink);
    let reference = name(&fake, "a:1");
    let waiting = tokio::spawn(async move { puller.pull(&reference).await });
    until("three are asked for", || fake.count("/blobs/") >= 4).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(fake.count("/blobs/"), 4, "the configuration and three layers");
    waiting.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_is_unpacked_while_others_are_fetched() {
    let layers: Vec<_> = (0..5u8).map(|n| layer("n", &[n])).collect();
    let image = Image::of(layers.clone());
    let (first, last) = (Digest::of(&layers[0]), Digest::of(&layers[4]).to_string());
    let shelf = Shelf::default().with("a", "1", &image);
    let fake = Arc::new(Fake::start(move |asked| shelf.answer(asked)).await);
    let (sink, seen) = (Folder::new(), Arc::clone(&fake));
    *sink.before.lock().unwrap() = Some(Box::new(move |diff_id| {
        let begun = Instant::now();
        // The fifth is fetched only when another is not fetched any more: while this one is unpacked.
        while *diff_id == first && seen.count(&last) == 0 {
            assert!(begun.elapsed() < Duration::from_secs(20), "the others wait");
            std::thread::sleep(Duration::from_millis(5));
        }
    }));
    puller(settings(&[&fake]), &sink).0.pull(&name(&fake, "a:1")).await.unwrap();
    sink.has(&layers);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_waits_for_ends() {
    let (small, big) = (layer("small", b"x"), layer("big", &noise(6, 3_000_000)));
    let image = Image::of(vec![small.clone(), big.clone()]);
    let (shelf, missing) = (Shelf::default().with("a", "1", &image), Digest::of(&small).to_string());
    let fake = Fake::start(move |asked| {
        let answer = shelf.answer(asked);
        if asked.path.contains(&missing) {
            Answer::of(404, "words").but(How::Slowly(1, Duration::from_millis(100)))
        } else if blobs(asked) && answer.body.len() > 1_000_000 {
            answer.but(SLOWLY)
        } else {
            answer
        }
    })
    .await;
    let sink = Folder::new();
    let (puller, _) = puller(settings(&[&fake]), &sink);
    let error = puller.pull(&name(&fake, "a:1")).await.unwrap_err();
    is(&error, NotFound, &["push the image again"]);
    tokio::time::sleep(Duration::from_millis(100)).await;
    let there = sink.partials();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(sink.partials(), there, "it still comes");
    assert!(!sink.layer(&Digest::of(&big)).exists());
    assert_eq!(sink.held.load(SeqCst), 0);
    assert!(sink.claim(&Digest::of(&big)).unwrap().is_some(), "its blob is still claimed");
}
