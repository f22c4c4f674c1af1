//! Pulls into the store.

use crate::{
    fake::{Fake, How},
    images::{Image, Shelf},
    name, settings,
};
use stacyvm_image::{
    Puller, Sink, Store,
    store::{Collect, Collected, StoreLimits},
};
use std::{fs, sync::Arc, time::Duration};
use tokio::sync::broadcast;

#[tokio::test(flavor = "multi_thread")]
async fn what_two_pull_at_once_is_brought_and_unpacked_once() {
    let image = Image::sized(1, 300_000);
    let shelf = Shelf::default().with("a", "1", &image);
    let fake = Fake::start(move |asked| {
        let answer = shelf.answer(asked);
        let slowly = asked.path.contains("/blobs/") && answer.body.len() > 10_000;
        if slowly { answer.but(How::Slowly(50_000, Duration::from_millis(10))) } else { answer }
    })
    .await;
    let tmp = tempfile::tempdir().unwrap();
    // As two processes would have it open.
    let stores = [(); 2].map(|()| Store::open(tmp.path(), StoreLimits::default()).unwrap());
    let pulls = stores.iter().map(|store| {
        let (notices, _) = broadcast::channel(256);
        let puller = Puller::new(settings(&[&fake]), Arc::new(store.clone()), notices).unwrap();
        let reference = name(&fake, "a:1");
        tokio::spawn(async move { puller.pull(&reference).await.unwrap() })
    });
    for pull in futures::future::join_all(pulls).await {
        pull.unwrap();
    }
    let layers = image.layers.len();
    assert_eq!(fake.count("/blobs/"), layers + 2, "each layer once, the configuration by each");
    let found = stores[0].find(&name(&fake, "a:1").to_string()).unwrap().unwrap();
    assert_eq!(
        (found.layers.len(), found.id.to_string()),
        (layers, stacyvm_image::Digest::of(&image.config).to_string())
    );
    assert!(found.layers.iter().all(|layer| fs::read_dir(layer).unwrap().count() == 1));
    for directory in ["partial", "staging", "locks"] {
        assert_eq!(fs::read_dir(tmp.path().join(directory)).unwrap().count(), 0, "{directory}");
    }
    assert!(stores[1].has_image(&name(&fake, "a:1")).unwrap());
    assert_eq!(stores[1].collect(&Collect::default()).unwrap(), Collected::default());
    assert_eq!(stores[1].remove(found.id.hex(), false).unwrap().layers, layers);
    assert_eq!(fs::read_dir(tmp.path().join("layers")).unwrap().count(), 0);
}
