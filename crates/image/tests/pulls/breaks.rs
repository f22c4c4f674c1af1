//! Transfers that break off: gone on with, by the same process and by the next, and whole again when what was there is wrong.

use crate::{
    child,
    fake::{Answer, Asked, Fake, How},
    images::{Image, Shelf, noise},
    is, name, puller, settings,
    sink::Folder,
};
use stacyvm_image::{Digest, Sink};
use stacyvm_provider::ErrorKind::{ResourceLimit, Unavailable};
use std::{
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

const SIZE: usize = 1_000_000;

/// Whether the layer is asked for, and from which byte on.
fn layer(image: &Image, asked: &Asked) -> Option<usize> {
    asked.path.contains(&Digest::of(&image.layers[0]).to_string()).then(|| from(asked))
}

fn from(asked: &Asked) -> usize {
    asked.header("range").map_or(0, |range| range[6..range.len() - 1].parse().unwrap())
}

/// Pulls an image of one layer whose answers are changed; what was asked of the layer, by first byte.
async fn asked_from(
    image: &Image,
    sink: &Arc<Folder>,
    change: impl Fn(&Asked, Answer) -> Answer + Send + Sync + 'static,
) -> Vec<usize> {
    let (shelf, of) = (Shelf::default().with("a", "1", image), image.clone());
    let fake = Fake::start(move |asked| {
        let answer = shelf.answer(asked);
        if layer(&of, asked).is_some() { change(asked, answer) } else { answer }
    })
    .await;
    let (puller, _) = puller(settings(&[&fake]), sink);
    puller.pull(&name(&fake, "a:1")).await.unwrap();
    sink.has(&image.layers);
    fake.log().iter().filter_map(|asked| layer(image, asked)).collect()
}

/// Leaves these bytes as those of a process that ended.
fn leave(sink: &Folder, image: &Image, bytes: &[u8]) {
    std::fs::write(sink.partial(&Digest::of(&image.layers[0])), bytes).unwrap();
}

#[tokio::test]
async fn broken_off_at_any_point_it_is_gone_on_with() {
    for seed in 0..4 {
        let image = Image::single(seed, SIZE);
        let cuts = noise(seed, 64);
        let count = AtomicUsize::new(0);
        let asked = asked_from(&image, &Folder::new(), move |_, answer| {
            let turn = count.fetch_add(1, SeqCst);
            let after = 60_000 + 2000 * usize::from(cuts[turn % 64]);
            if after < answer.body.len() { answer.but(How::Cut(after)) } else { answer }
        })
        .await;
        assert!(asked.len() > 1 && asked.is_sorted_by(|one, other| one < other), "{asked:?}");
    }
}

#[tokio::test]
async fn what_never_comes_on_is_given_up_and_kept() {
    let image = Image::single(1, SIZE);
    let shelf = Shelf::default().with("a", "1", &image);
    let of = image.clone();
    let fake = Fake::start(move |asked| {
        let answer = shelf.answer(asked);
        match layer(&of, asked) {
            Some(0) => answer.but(How::Cut(400_000)),
            Some(_) => answer.but(How::Cut(10)),
            None => answer,
        }
    })
    .await;
    let sink = Folder::new();
    let error = puller(settings(&[&fake]), &sink).0.pull(&name(&fake, "a:1")).await.unwrap_err();
    is(
        &error,
        Unavailable,
        &["broke off", &format!("of {} bytes", image.layers[0].len()), "goes on from there"],
    );
    assert!(sink.partials()[0] >= 400_000, "{:?}", sink.partials());
    assert!((5..=6).contains(&fake.count("/blobs/").saturating_sub(1)), "{}", fake.count("/blobs/"));
}

#[tokio::test]
async fn servers_with_their_own_idea_of_ranges() {
    let image = Image::single(2, SIZE);
    let cut_first = |normal: Answer, asked: &Asked, later: Answer| {
        if from(asked) == 0 && asked.header("range").is_none() { normal } else { later }
    };
    // It knows none: all of it again.
    let (whole, count) = (image.layers[0].clone(), AtomicUsize::new(0));
    let asked = asked_from(&image, &Folder::new(), move |_, _| {
        let answer = Answer::of(200, whole.clone());
        if count.fetch_add(1, SeqCst) == 0 { answer.but(How::Cut(400_000)) } else { answer }
    })
    .await;
    assert!(asked.len() == 2 && asked[1] > 0, "{asked:?}");
    // It refuses them, or gives others.
    let odd: [fn(Answer) -> Answer; 4] = [
        |_| Answer::of(416, ""),
        |answer| answer.with("Content-Range", "bytes 0-1/2"),
        |answer| answer.with("Content-Range", "nonsense"),
        |mut answer| {
            answer.headers.clear();
            answer
        },
    ];
    for odd in odd {
        let count = AtomicUsize::new(0);
        let asked = asked_from(&image, &Folder::new(), move |asked, answer| {
            let first = count.fetch_add(1, SeqCst) == 0;
            let normal = if first { answer.clone().but(How::Cut(400_000)) } else { answer.clone() };
            cut_first(normal, asked, odd(answer))
        })
        .await;
        assert!(asked.len() == 3 && asked[1] > 0 && asked[2] == 0, "{asked:?}");
    }
    // It gives other bytes than those that follow: found at the end, and fetched whole.
    let count = AtomicUsize::new(0);
    let asked = asked_from(&image, &Folder::new(), move |asked, mut answer| {
        let first = count.fetch_add(1, SeqCst) == 0;
        if from(asked) > 0 {
            answer.body[0] ^= 1;
        }
        if first { answer.but(How::Cut(400_000)) } else { answer }
    })
    .await;
    assert!(asked.len() == 3 && asked[1] > 0 && asked[2] == 0, "{asked:?}");
}

#[tokio::test]
async fn an_earlier_process_left_something() {
    let image = Image::single(3, SIZE);
    let (blob, half) = (&image.layers[0], image.layers[0].len() / 2);
    let mut wrong = blob.clone();
    wrong[77] ^= 1;
    let mut longer = blob.clone();
    longer.push(0);
    for (left, expected) in [
        (&blob[..0], vec![0]),
        (&blob[..half], vec![half]),
        (&blob[..blob.len() - 1], vec![blob.len() - 1]),
        (&blob[..], vec![]),
        (&wrong[..half], vec![half, 0]),
        (&wrong[..], vec![0]),
        (&longer[..], vec![0]),
    ] {
        let sink = Folder::new();
        leave(&sink, &image, left);
        let asked = asked_from(&image, &sink, |_, answer| answer).await;
        assert_eq!(asked, expected, "{} bytes", left.len());
    }
}

#[tokio::test]
async fn a_wrong_piece_and_a_registry_that_lies_end() {
    let image = Image::single(4, SIZE);
    let (shelf, of) = (Shelf::default().with("a", "1", &image), image.clone());
    let fake = Fake::start(move |asked| {
        let mut answer = shelf.answer(asked);
        if layer(&of, asked).is_some() {
            answer.body[9] ^= 1;
        }
        answer
    })
    .await;
    let sink = Folder::new();
    leave(&sink, &image, &image.layers[0][..1000]);
    let error = puller(settings(&[&fake]), &sink).0.pull(&name(&fake, "a:1")).await.unwrap_err();
    is(&error, Unavailable, &["cannot be trusted", "instead of"]);
    assert_eq!(sink.partials(), Vec::<u64>::new());
    let asked: Vec<usize> = fake.log().iter().filter_map(|asked| layer(&image, asked)).collect();
    assert_eq!(asked, [1000, 0]);
}

#[tokio::test]
async fn slow_is_not_silent() {
    let image = Image::single(5, 20_000);
    // One second in all, where 0.4 s of silence are allowed.
    let slowly = How::Slowly(2100, Duration::from_millis(100));
    let asked = asked_from(&image, &Folder::new(), move |_, answer| answer.but(slowly)).await;
    assert_eq!(asked, [0]);
}

#[tokio::test]
async fn a_full_disk_is_told_and_not_kept_full() {
    let root = tempfile::tempdir().unwrap();
    let mounted =
        Command::new("mount").args(["-t", "tmpfs", "-o", "size=512k", "tmpfs"]).arg(root.path()).status();
    if !mounted.is_ok_and(|status| status.success()) {
        println!("not run: a small filesystem cannot be mounted here");
        return;
    }
    let image = Image::single(6, SIZE);
    let shelf = Shelf::default().with("a", "1", &image);
    let fake = Fake::start(move |asked| shelf.answer(asked)).await;
    let outcome = {
        let sink = Folder::at(root.path());
        let outcome = puller(settings(&[&fake]), &sink).0.pull(&name(&fake, "a:1")).await;
        assert_eq!(sink.partials(), Vec::<u64>::new());
        outcome
    };
    let unmounted = Command::new("umount").arg("--lazy").arg(root.path()).status().unwrap();
    assert!(unmounted.success());
    is(&outcome.unwrap_err(), ResourceLimit, &["the disk is full"]);
    assert_eq!(fake.count("/blobs/"), 2, "it was tried again");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_goes_on_where_a_killed_process_was() {
    let image = Image::single(7, 4 * SIZE);
    let shelf = Shelf::default().with("a", "1", &image);
    let fake = Fake::start(move |asked| {
        let answer = shelf.answer(asked);
        let slowly = How::Slowly(20_000, Duration::from_millis(20));
        if asked.path.contains("/blobs/") && from(asked) == 0 { answer.but(slowly) } else { answer }
    })
    .await;
    let sink = Folder::new();
    let mut child = child::command(&fake, &sink, true).spawn().unwrap();
    let begun = std::time::Instant::now();
    while sink.partials().first().is_none_or(|size| *size < 600_000) {
        assert!(begun.elapsed() < Duration::from_secs(60), "nothing came: {:?}", sink.partials());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let (puller, _) = puller(settings(&[&fake]), &sink);
    puller.pull(&name(&fake, "a:1")).await.unwrap();
    sink.has(&image.layers);
    let asked: Vec<usize> = fake.log().iter().filter_map(|asked| layer(&image, asked)).collect();
    assert!(asked.len() == 2 && asked[1] >= 600_000, "{asked:?}");
}
