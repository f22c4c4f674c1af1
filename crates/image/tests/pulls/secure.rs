//! Who is spoken to without TLS, whose certificate is trusted, and who sees what was meant for a registry alone.

use crate::{
    fake::{Answer, Asked, Fake},
    images::{Image, Shelf},
    is, name, puller, refused, settings,
    sink::Folder,
};
use base64::{Engine, prelude::BASE64_STANDARD};
use stacyvm_image::{Credentials, Secret, Settings};
use stacyvm_provider::ErrorKind::{InvalidArgument, Unavailable};
use std::sync::Arc;
use tokio_rustls::{TlsAcceptor, rustls};

/// A server's side of TLS, and its certificate in PEM.
pub(crate) fn tls() -> (TlsAcceptor, String) {
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    (TlsAcceptor::from(Arc::new(config)), made.cert.pem())
}

#[tokio::test]
async fn a_certificate_is_trusted_only_if_somebody_said_so() {
    let image = Image::sized(1, 10_000);
    let shelf = Shelf::default().with("a", "1", &image);
    let (acceptor, pem) = tls();
    let fake = Fake::start_tls(move |asked| shelf.answer(asked), acceptor).await;
    let error = refused(&fake, settings(&[]), "a:1").await;
    is(&error, Unavailable, &["not trusted", "images.ca_file", "images.insecure_registries", &fake.host()]);
    assert_eq!(fake.log().len(), 0, "it was asked");

    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ca.pem");
    std::fs::write(&path, pem).unwrap();
    for settings in [Settings { ca_file: Some(path), ..settings(&[]) }, settings(&[&fake])] {
        let sink = Folder::new();
        puller(settings, &sink).0.pull(&name(&fake, "a:1")).await.unwrap();
        sink.has(&image.layers);
    }
}

#[tokio::test]
async fn plain_http_is_spoken_with_who_is_listed_only() {
    let image = Image::sized(2, 10);
    let shelf = Shelf::default().with("a", "1", &image);
    let fake = Fake::start(move |asked| shelf.answer(asked)).await;
    let error = refused(&fake, settings(&[]), "a:1").await;
    is(&error, Unavailable, &["images.insecure_registries", &fake.host()]);
    assert_eq!(fake.log().len(), 0, "it was asked");
}

#[tokio::test]
async fn who_is_not_there_cannot_be_reached() {
    let gone = Fake::start(|_| Answer::of(200, "")).await;
    let (host, settings) = (gone.host(), settings(&[&gone]));
    drop(gone);
    for settings in [settings.clone(), Settings { insecure: Vec::new(), ..settings }] {
        let (puller, _) = puller(settings, &Folder::new());
        let error = puller.pull(&format!("{host}/a:1").parse().unwrap()).await.unwrap_err();
        is(&error, Unavailable, &["cannot be reached", &host]);
    }
    let (puller, _) = puller(Settings { attempts: 1, ..Settings::default() }, &Folder::new());
    let error = puller.pull(&"registry.invalid/a:1".parse().unwrap()).await.unwrap_err();
    is(&error, Unavailable, &["cannot be reached", "registry.invalid"]);
}

#[tokio::test]
async fn a_redirect_does_not_take_the_password_along() {
    let image = Image::sized(3, 10_000);
    let shelf = Shelf::default().with("a", "1", &image);
    let stored = shelf.clone();
    let store = Fake::start(move |asked| {
        let path = asked.path.replace("/store/", "/v2/a/blobs/");
        stored.answer(&Asked { path, ..asked.clone() })
    })
    .await;
    let (elsewhere, expected) = (store.host(), format!("Basic {}", BASE64_STANDARD.encode("tester:hunter2")));
    let fake = Fake::start(move |asked| {
        if asked.header("authorization") != Some(&expected) {
            return Answer::error(401, "UNAUTHORIZED").with("WWW-Authenticate", "Basic realm=\"x\"");
        }
        if let Some(digest) = asked.path.strip_prefix("/v2/a/blobs/") {
            return Answer::of(307, "")
                .with("Location", format!("http://{elsewhere}/store/{digest}?signed=yes#x"));
        }
        if let Some(rest) = asked.path.strip_prefix("/v2/a/manifests/1") {
            return Answer::of(301, "").with("Location", format!("/v2/b/manifests/1{rest}"));
        }
        let path = asked.path.replace("/b/", "/a/");
        shelf.answer(&Asked { path, ..asked.clone() })
    })
    .await;
    let credentials = Credentials::of(fake.host(), "tester", Secret::new("hunter2"));
    let credentials = [(fake.host(), credentials)].into();
    let sink = Folder::new();
    let (puller, _) = puller(Settings { credentials, ..settings(&[&fake]) }, &sink);
    puller.pull(&name(&fake, "a:1")).await.unwrap();
    sink.has(&image.layers);
    let there = store.log();
    assert_eq!(there.len(), 3);
    assert!(
        there
            .iter()
            .all(|asked| asked.header("authorization").is_none() && asked.path.ends_with("?signed=yes"))
    );
    // To its own origin it goes along.
    let moved = fake.log().into_iter().find(|asked| asked.path == "/v2/b/manifests/1").unwrap();
    assert!(moved.header("authorization").is_some());
}

#[tokio::test]
async fn nothing_leads_from_tls_to_what_is_without() {
    let image = Image::sized(4, 10);
    let shelf = Shelf::default().with("a", "1", &image);
    let plain = Fake::start(move |asked| shelf.answer(asked)).await;
    let (acceptor, pem) = tls();
    let target = format!("http://{}/v2/a/manifests/1", plain.host());
    let realm = format!("Bearer realm=\"http://{}/token\"", plain.host());
    let fake = Fake::start_tls(
        move |asked| match asked.path.contains("/v2/a/") {
            true => Answer::of(307, "").with("Location", &target),
            false => Answer::of(401, "").with("WWW-Authenticate", &realm),
        },
        acceptor,
    )
    .await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ca.pem");
    std::fs::write(&path, pem).unwrap();
    // Also where the target itself is listed: the registry is not.
    let settings = || Settings { ca_file: Some(path.clone()), ..settings(&[&plain]) };
    is(&refused(&fake, settings(), "a:1").await, Unavailable, &["from TLS to what is without"]);
    is(&refused(&fake, settings(), "b:1").await, Unavailable, &["server of tokens that does not speak TLS"]);
    assert_eq!(plain.log().len(), 0);
}

#[tokio::test]
async fn a_listed_registry_does_not_make_others_trusted() {
    let (acceptor, _) = tls();
    let store = Fake::start_tls(|_| Answer::of(200, "{}"), acceptor).await;
    let target = format!("https://{}/x", store.host());
    let fake = Fake::start(move |_| Answer::of(307, "").with("Location", &target)).await;
    is(&refused(&fake, settings(&[&fake]), "a:1").await, Unavailable, &["not trusted"]);
    assert_eq!(store.log().len(), 0);
}

#[tokio::test]
async fn settings_that_cannot_work_are_refused_at_once() {
    let (notices, _) = tokio::sync::broadcast::channel(1);
    for settings in [
        Settings { insecure: vec!["https://a.b".to_owned()], ..Settings::default() },
        Settings {
            mirrors: [("docker.io".to_owned(), vec!["a b".to_owned()])].into(),
            ..Settings::default()
        },
        Settings { ca_file: Some("/nonexistent/ca.pem".into()), ..Settings::default() },
    ] {
        let error = stacyvm_image::Puller::new(settings, Folder::new(), notices.clone()).unwrap_err();
        is(&error, InvalidArgument, &[]);
    }
}
