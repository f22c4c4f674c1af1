//! Registries that do what they should: what is brought, whom they are asked by, and what they answer for what they have not.

use crate::{
    fake::{Answer, Asked, Fake},
    images::{INDEX, Image, MANIFEST, Shelf, index, layer},
    is, name, puller, refused, settings,
    sink::Folder,
};
use base64::{Engine, prelude::BASE64_STANDARD};
use stacyvm_image::{Credentials, Digest, Platform, PullPolicy, Reference, Secret, Settings};
use stacyvm_provider::ErrorKind::{InvalidArgument, NotFound, ResourceLimit, Unavailable, Unsupported};
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::SeqCst},
};

#[tokio::test]
async fn an_image_is_brought_by_tag_and_by_digest() {
    let image = Image::sized(1, 100_000);
    let shelf = Shelf::default().with("a/b", "1", &image);
    let fake = Fake::start(move |asked| shelf.answer(asked)).await;
    let digest = image.digest();
    for rest in ["a/b:1".to_owned(), format!("a/b@{digest}"), format!("a/b:other@{digest}")] {
        let sink = Folder::new();
        let (puller, mut heard) = puller(settings(&[&fake]), &sink);
        let reference = name(&fake, &rest);
        let pulled = puller.pull(&reference).await.unwrap();
        assert_eq!((&pulled.digest, &pulled.manifest), (&digest, &digest));
        assert_eq!(Some(&*pulled), sink.image(&reference).as_ref());
        sink.has(&image.layers);
        let mut last = None;
        while let Ok(notice) = heard.try_recv() {
            last = Some(notice.data);
        }
        let last = last.unwrap();
        let all: usize = image.layers.iter().map(Vec::len).sum();
        assert_eq!((&last["status"], &last["image"]), (&"done".into(), &reference.to_string().into()));
        assert_eq!((&last["layers"], &last["layers_done"]), (&2.into(), &2.into()));
        assert_eq!((&last["bytes"], &last["bytes_done"]), (&all.into(), &all.into()));
    }
}

#[tokio::test]
async fn layers_that_are_there_are_not_fetched_again() {
    let common = layer("common", b"x");
    let (one, two) = (
        Image::of(vec![common.clone(), layer("one", b"1")]),
        Image::of(vec![common.clone(), layer("two", b"2"), common.clone()]),
    );
    let shelf = Shelf::default().with("one", "1", &one).with("two", "1", &two);
    let fake = Fake::start(move |asked| shelf.answer(asked)).await;
    let sink = Folder::new();
    let (puller, _) = puller(settings(&[&fake]), &sink);
    for rest in ["one:1", "two:1", "one:1"] {
        puller.pull(&name(&fake, rest)).await.unwrap();
    }
    assert_eq!(fake.count(&Digest::of(&common).to_string()), 1);
    assert_eq!(sink.added.load(SeqCst), 3);
    sink.has(&two.layers);
}

#[tokio::test]
async fn policies_say_when_a_registry_is_asked() {
    let image = Image::sized(2, 10);
    let shelf = Shelf::default().with("a", "1", &image);
    let fake = Fake::start(move |asked| shelf.answer(asked)).await;
    let (sink, reference) = (Folder::new(), name(&fake, "a:1"));
    let (puller, _) = puller(settings(&[&fake]), &sink);
    let error = puller.ensure(&reference, PullPolicy::Never).await.unwrap_err();
    is(&error, NotFound, &["never to pull", &reference.to_string()]);
    assert_eq!(fake.log().len(), 0);
    puller.ensure(&reference, PullPolicy::Missing).await.unwrap();
    let asked = fake.log().len();
    puller.ensure(&reference, PullPolicy::Missing).await.unwrap();
    puller.ensure(&reference, PullPolicy::Never).await.unwrap();
    assert_eq!(fake.log().len(), asked);
    puller.ensure(&reference, PullPolicy::Always).await.unwrap();
    assert_eq!((fake.count("/manifests/1"), sink.added.load(SeqCst)), (2, 2));
}

#[tokio::test]
async fn the_manifest_for_the_platform_is_found() {
    let host = Platform::host();
    let other: Platform = "linux/s390x".parse().unwrap();
    let (ours, theirs) = (Image::sized(3, 10), Image::for_platform(vec![layer("theirs", b"x")], &other));
    let mut shelf = Shelf::default().with("a", "ours", &ours).with("a", "theirs", &theirs);
    let attestation: Platform = "unknown/unknown".parse().unwrap();
    let plain = index(&[
        (MANIFEST, b"attestation", Some(&attestation)),
        (MANIFEST, &theirs.manifest, Some(&other)),
        (MANIFEST, &ours.manifest, Some(&host)),
    ]);
    // Of manifests without a platform their configurations say what they are for.
    let silent = index(&[(MANIFEST, &theirs.manifest, None), (MANIFEST, &ours.manifest, None)]);
    let nested = index(&[(INDEX, &plain, None)]);
    let foreign = index(&[(MANIFEST, &theirs.manifest, Some(&other))]);
    let indexes = [("plain", &plain), ("silent", &silent), ("nested", &nested), ("foreign", &foreign)];
    for (tag, bytes) in indexes {
        shelf.put_manifest("a", tag, INDEX, bytes);
    }
    let fake = Fake::start(move |asked| shelf.answer(asked)).await;
    for (tag, bytes) in &indexes[..3] {
        let sink = Folder::new();
        let (puller, _) = puller(settings(&[&fake]), &sink);
        let pulled = puller.pull(&name(&fake, &format!("a:{tag}"))).await.unwrap();
        assert_eq!((&pulled.digest, &pulled.manifest), (&Digest::of(bytes), &ours.digest()), "{tag}");
        sink.has(&ours.layers);
    }
    for tag in ["foreign", "theirs"] {
        let error = refused(&fake, settings(&[&fake]), &format!("a:{tag}")).await;
        is(&error, InvalidArgument, &["linux/s390x", &host.to_string(), tag]);
    }
    let for_theirs = Settings { platform: other, ..settings(&[&fake]) };
    let (puller, _) = puller(for_theirs, &Folder::new());
    puller.pull(&name(&fake, "a:foreign")).await.unwrap();
}

#[tokio::test]
async fn what_is_missing_or_no_image_is_told_apart() {
    let image = Image::sized(4, 10);
    let mut incomplete = Shelf::default();
    incomplete.put_manifest("incomplete", "1", MANIFEST, &image.manifest);
    incomplete.put_manifest("schema1", "1", "application/json", br#"{"schemaVersion":1,"fsLayers":[]}"#);
    let helm = String::from_utf8(image.manifest.clone()).unwrap();
    let helm = helm.replace("vnd.oci.image.config.v1", "vnd.cncf.helm.config.v1");
    incomplete.put_manifest("helm", "1", MANIFEST, helm.as_bytes());
    let shelf = incomplete.with("a", "1", &Image::sized(5, 2000));
    let fake = Fake::start(move |asked| shelf.answer(asked)).await;
    let settings = || settings(&[&fake]);
    let host = fake.host();
    let error = refused(&fake, settings(), "none:1").await;
    is(&error, NotFound, &["has no image", &host, "none:1"]);
    is(&refused(&fake, settings(), "a:2").await, NotFound, &["its tag or digest does not", "a:2"]);
    let absent = format!("a@{}", Digest::of(b"absent"));
    is(&refused(&fake, settings(), &absent).await, NotFound, &["its tag or digest does not"]);
    is(&refused(&fake, settings(), "incomplete:1").await, NotFound, &["push the image again"]);
    is(&refused(&fake, settings(), "schema1:1").await, Unsupported, &["first schema"]);
    is(&refused(&fake, settings(), "helm:1").await, Unsupported, &["helm", "name an image"]);
    let small = Settings { largest: 1000, ..settings() };
    is(&refused(&fake, small, "a:1").await, ResourceLimit, &["1000 are allowed"]);
}

/// A registry that gives its images to who shows this user and password, by Basic.
pub(crate) fn basic(shelf: Shelf) -> impl Fn(&Asked) -> Answer + Send + Sync + 'static {
    let expected = format!("Basic {}", BASE64_STANDARD.encode("tester:hunter2"));
    move |asked| {
        if asked.header("authorization") == Some(&expected) {
            return shelf.answer(asked);
        }
        Answer::error(401, "UNAUTHORIZED").with("WWW-Authenticate", "Basic realm=\"test\"")
    }
}

fn with_password(fake: &Fake, password: &str) -> Settings {
    let credentials = Credentials::of(fake.host(), "tester", Secret::new(password));
    Settings { credentials: [(fake.host(), credentials)].into(), ..settings(&[fake]) }
}

#[tokio::test]
async fn a_password_is_shown_to_who_asks_for_it() {
    let image = Image::sized(5, 10);
    let fake = Fake::start(basic(Shelf::default().with("a", "1", &image))).await;
    let error = refused(&fake, settings(&[&fake]), "a:1").await;
    is(&error, InvalidArgument, &["wants credentials", "images.credentials", "docker login"]);
    let error = refused(&fake, with_password(&fake, "hunter3"), "a:1").await;
    is(&error, InvalidArgument, &["refused the credentials"]);
    assert!(!format!("{error:?} {}", error.chain()).contains("hunter"), "{error:?}");

    let sink = Folder::new();
    let (by_settings, _) = puller(with_password(&fake, "hunter2"), &sink);
    by_settings.pull(&name(&fake, "a:1")).await.unwrap();
    sink.has(&image.layers);
    assert!(!format!("{by_settings:?}").contains("hunter"));

    // What `docker login` wrote.
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config.json");
    let auth = BASE64_STANDARD.encode("tester:hunter2");
    std::fs::write(&path, format!(r#"{{"auths":{{"{}":{{"auth":"{auth}"}}}}}}"#, fake.host())).unwrap();
    let by_file = Settings { auth_file: Some(path), ..settings(&[&fake]) };
    puller(by_file, &Folder::new()).0.pull(&name(&fake, "a:1")).await.unwrap();
}

#[tokio::test]
async fn a_login_counts_from_the_next_pull_on() {
    let image = Image::single(9, 10);
    let shelf = Shelf::default().with("a", "1", &image);
    let known = format!("Basic {}", BASE64_STANDARD.encode("tester:hunter2"));
    // Everybody gets a token; who may not read with it is told so by 403, without being asked for anything.
    let fake = Fake::start(move |asked| match asked.header("authorization") {
        _ if asked.path.starts_with("/token") => {
            let token = if asked.header("authorization") == Some(&known) { "known" } else { "unknown" };
            Answer::of(200, format!(r#"{{"token":"{token}"}}"#))
        }
        Some("Bearer known") => shelf.answer(asked),
        Some(_) => Answer::error(403, "DENIED"),
        None => {
            let realm = format!("Bearer realm=\"http://{}/token\"", asked.header("host").unwrap());
            Answer::of(401, "").with("WWW-Authenticate", realm)
        }
    })
    .await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config.json");
    let sink = Folder::new();
    let (puller, _) = puller(Settings { auth_file: Some(path.clone()), ..settings(&[&fake]) }, &sink);
    let error = puller.pull(&name(&fake, "a:1")).await.unwrap_err();
    is(&error, NotFound, &["keeps it from this server"]);
    let auth = BASE64_STANDARD.encode("tester:hunter2");
    std::fs::write(&path, format!(r#"{{"auths":{{"{}":{{"auth":"{auth}"}}}}}}"#, fake.host())).unwrap();
    puller.pull(&name(&fake, "a:1")).await.unwrap();
    sink.has(&image.layers);
}

/// A registry that wants tokens, and gives each out for `uses` requests. Its server of tokens is itself.
fn bearer(
    shelf: Shelf,
    password: Option<&'static str>,
    uses: usize,
) -> impl Fn(&Asked) -> Answer + Send + Sync {
    let (given, used) = (AtomicUsize::new(0), AtomicUsize::new(0));
    move |asked| {
        if let Some(query) = asked.path.strip_prefix("/token?") {
            assert!(query.contains("service=test+registry"), "{query}");
            assert!(query.contains("scope=repository%3Aa%3Apull"), "{query}");
            let shown = asked.header("authorization").map(str::to_owned);
            let wanted = password
                .map(|password| format!("Basic {}", BASE64_STANDARD.encode(format!("tester:{password}"))));
            if wanted.is_some() && shown != wanted {
                return Answer::error(401, "UNAUTHORIZED");
            }
            used.store(0, SeqCst);
            return Answer::of(
                200,
                format!(r#"{{"token":"t{}","expires_in":60}}"#, given.fetch_add(1, SeqCst) + 1),
            );
        }
        if asked.path == "/token" && asked.method == "POST" {
            let body = String::from_utf8(asked.body.clone()).unwrap();
            let fine = body.contains("grant_type=refresh_token") && body.contains("refresh_token=identity");
            used.store(0, SeqCst);
            return match fine {
                true => {
                    Answer::of(200, format!(r#"{{"access_token":"t{}"}}"#, given.fetch_add(1, SeqCst) + 1))
                }
                false => Answer::error(401, "UNAUTHORIZED"),
            };
        }
        let current = format!("Bearer t{}", given.load(SeqCst));
        if asked.header("authorization") == Some(&current) && used.fetch_add(1, SeqCst) < uses {
            return shelf.answer(asked);
        }
        let host = asked.header("host").unwrap();
        let challenge = format!(
            r#"Bearer realm="http://{host}/token",service="test registry",scope="repository:a:pull,push""#
        );
        Answer::error(401, "UNAUTHORIZED").with("WWW-Authenticate", challenge)
    }
}

#[tokio::test]
async fn tokens_are_asked_for_and_asked_for_again() {
    let image = Image::single(6, 10);
    let shelf = || Shelf::default().with("a", "1", &image);
    let fake = Fake::start(bearer(shelf(), None, 2)).await;
    let sink = Folder::new();
    puller(settings(&[&fake]), &sink).0.pull(&name(&fake, "a:1")).await.unwrap();
    sink.has(&image.layers);
    // Manifest, configuration and a layer, two for each token.
    assert_eq!(fake.count("/token"), 2);

    let closed = Fake::start(bearer(shelf(), Some("hunter2"), 100)).await;
    is(&refused(&closed, settings(&[&closed]), "a:1").await, InvalidArgument, &["wants credentials"]);
    let error = refused(&closed, with_password(&closed, "hunter3"), "a:1").await;
    is(&error, InvalidArgument, &["refused the credentials"]);
    puller(with_password(&closed, "hunter2"), &Folder::new()).0.pull(&name(&closed, "a:1")).await.unwrap();

    let identity = Credentials { identity_token: Some(Secret::new("identity")), ..Credentials::default() };
    let credentials = [(fake.host(), identity)].into();
    let by_identity = Settings { credentials, ..settings(&[&fake]) };
    puller(by_identity, &Folder::new()).0.pull(&name(&fake, "a:1")).await.unwrap();
    assert_eq!(fake.log().iter().filter(|asked| asked.method == "POST").count(), 2);

    // Tokens are given to everybody, and are no use.
    let fake = Fake::start(bearer(shelf(), None, 0)).await;
    is(&refused(&fake, settings(&[&fake]), "a:1").await, NotFound, &["keeps it from this server"]);
}

#[tokio::test]
async fn what_is_too_much_or_fails_for_a_while_is_asked_for_again() {
    let image = Image::sized(7, 10);
    let shelf = Arc::new(Shelf::default().with("a", "1", &image));
    let failing = |first: usize, answer: Answer| {
        let (shelf, count) = (Arc::clone(&shelf), AtomicUsize::new(0));
        Fake::start(
            move |asked| {
                if count.fetch_add(1, SeqCst) < first { answer.clone() } else { shelf.answer(asked) }
            },
        )
    };
    let limited = |seconds: &str| Answer::error(429, "TOOMANYREQUESTS").with("Retry-After", seconds);
    for answer in [Answer::of(503, "busy"), Answer::of(500, ""), limited("0"), limited("1")] {
        let (fake, sink) = (failing(1, answer).await, Folder::new());
        puller(settings(&[&fake]), &sink).0.pull(&name(&fake, "a:1")).await.unwrap();
        sink.has(&image.layers);
    }
    let fake = failing(1000, limited("600")).await;
    is(&refused(&fake, settings(&[&fake]), "a:1").await, Unavailable, &["no more requests", "in 600 s"]);
    assert_eq!(fake.log().len(), 1, "it was asked again");
    let fake = failing(1000, Answer::of(502, "words of a proxy")).await;
    let error = refused(&fake, settings(&[&fake]), "a:1").await;
    is(&error, Unavailable, &["status 502"]);
    assert!(!error.message().contains("words of"), "{error}");
    assert_eq!(fake.log().len(), 5);
    for status in [400, 403, 405, 451] {
        let fake = failing(1000, Answer::of(status, "")).await;
        refused(&fake, settings(&[&fake]), "a:1").await;
        assert_eq!(fake.log().len(), 1, "{status} was asked again");
    }
}

#[tokio::test]
async fn mirrors_come_first_and_the_registry_when_they_do_not_help() {
    let image = Image::sized(8, 10_000);
    let full = Shelf::default().with("hub/a", "1", &image).with("a", "1", &image);
    let shelf = full.clone();
    let origin = Fake::start(move |asked| shelf.answer(asked)).await;
    let mirrored = |mirror: &Fake, prefix: &str| Settings {
        mirrors: [(origin.host(), vec![format!("{}{prefix}", mirror.host())])].into(),
        ..settings(&[&origin, mirror])
    };
    let pull = async |settings: Settings| {
        let before = origin.log().len();
        let sink = Folder::new();
        let reference: Reference = name(&origin, "a:1");
        puller(settings, &sink).0.pull(&reference).await.unwrap();
        sink.has(&image.layers);
        assert!(sink.image(&reference).is_some());
        origin.log().len() - before
    };
    let shelf = full.clone();
    let mirror = Fake::start(move |asked| shelf.answer(asked)).await;
    assert_eq!(pull(mirrored(&mirror, "")).await, 0);
    assert_eq!(pull(mirrored(&mirror, "/hub")).await, 0);
    assert!(mirror.log().iter().any(|asked| asked.path.starts_with("/v2/hub/a/manifests/")));

    // It has nothing; it wants a password; it has the manifest alone; its blobs are others; it is not there.
    let empty = Fake::start(|_| Answer::error(404, "NAME_UNKNOWN")).await;
    assert_eq!(pull(mirrored(&empty, "")).await, 4);
    let closed = Fake::start(basic(full.clone())).await;
    assert_eq!(pull(mirrored(&closed, "")).await, 4);
    let mut shelf = Shelf::default();
    shelf.put_manifest("a", "1", MANIFEST, &image.manifest);
    let hollow = Fake::start(move |asked| shelf.answer(asked)).await;
    assert_eq!(pull(mirrored(&hollow, "")).await, 3);
    let lying = Fake::start(move |asked| {
        let mut answer = full.answer(asked);
        if asked.path.contains("/blobs/") {
            answer.body[0] ^= 1;
        }
        answer
    })
    .await;
    assert_eq!(pull(mirrored(&lying, "")).await, 3);
    let gone = Fake::start(|_| Answer::of(200, "")).await;
    let settings = mirrored(&gone, "");
    drop(gone);
    assert_eq!(pull(settings).await, 4);
}
