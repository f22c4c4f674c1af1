//! Registries that lie, send for ever, hang or lead nowhere: each is found out, told as what it is, and leaves nothing.

use crate::{
    fake::{Answer, Asked, Fake, How},
    images::{INDEX, Image, MANIFEST, Shelf, index, layer},
    is, name, puller, refused, settings,
    sink::Folder,
};
use stacyvm_image::{Digest, ImageConfig, Platform};
use stacyvm_provider::ErrorKind::{InvalidArgument, Unavailable};
use std::sync::Arc;

/// The error of pulling `a:1` from a registry whose answers are changed, and what stays of partial files.
async fn lied(
    image: &Image,
    lie: impl Fn(&Asked, Answer) -> Answer + Send + Sync + 'static,
) -> stacyvm_provider::Error {
    let shelf = Shelf::default().with("a", "1", image);
    let fake = Fake::start(move |asked| lie(asked, shelf.answer(asked))).await;
    let sink = Folder::new();
    let (puller, mut heard) = puller(settings(&[&fake]), &sink);
    let error = puller.pull(&name(&fake, "a:1")).await.expect_err("the pull succeeded");
    assert_eq!(sink.images(), 0);
    assert_eq!(sink.partials(), Vec::<u64>::new(), "what is wrong was kept");
    let mut last = None;
    while let Ok(notice) = heard.try_recv() {
        last = Some(notice.data);
    }
    let last = last.unwrap();
    assert_eq!((&last["status"], &last["error"]), (&"failed".into(), &error.message().into()));
    error
}

fn manifests(asked: &Asked) -> bool {
    asked.path.contains("/manifests/")
}

/// Whether a blob is asked for that begins as a layer does: not the configuration.
fn layers(asked: &Asked, answer: &Answer) -> bool {
    asked.path.contains("/blobs/") && !answer.body.starts_with(b"{")
}

#[tokio::test]
async fn manifests_that_are_not_what_they_should_be() {
    let image = Image::single(1, 10_000);
    let error = lied(&image, |asked, answer| {
        if !manifests(asked) {
            return answer;
        }
        answer.with("Docker-Content-Digest", Digest::of(b"another").to_string())
    });
    is(&error.await, Unavailable, &["cannot be trusted", "instead of"]);
    let error = lied(&image, |asked, answer| {
        if manifests(asked) {
            Answer::of(200, "<html>log in</html>").with("Content-Type", "text/html; charset=utf-8")
        } else {
            answer
        }
    });
    is(&error.await, Unavailable, &["a web page"]);
    let error = lied(&image, |asked, answer| {
        if manifests(asked) { Answer::of(200, " ".repeat(70_000)).but(How::Endless) } else { answer }
    });
    is(&error.await, Unavailable, &["more than 4194304 bytes"]);
    let error = lied(&image, |asked, answer| if manifests(asked) { Answer::of(200, "{}") } else { answer });
    is(&error.await, InvalidArgument, &["manifest", "a:1"]);
    let error = lied(
        &image,
        |asked, answer| if manifests(asked) { answer.with("Content-Type", INDEX) } else { answer },
    );
    is(&error.await, InvalidArgument, &["said to be"]);
}

#[tokio::test]
async fn another_manifest_than_the_one_of_the_digest() {
    let (image, other) = (Image::single(1, 10), Image::single(2, 10));
    let shelf = Shelf::default().with("a", "1", &other);
    let fake = Fake::start(move |asked| {
        let path = "/v2/a/manifests/1".to_owned();
        shelf.answer(&Asked { path, ..asked.clone() }).with("X", "y")
    })
    .await;
    let error = refused(&fake, settings(&[&fake]), &format!("a@{}", image.digest())).await;
    is(&error, Unavailable, &["instead of", &image.digest().to_string()]);
}

#[tokio::test]
async fn indexes_that_name_themselves_or_go_too_deep() {
    let mut shelf = Shelf::default();
    let mut inner = index(&[(MANIFEST, b"x", Some(&Platform::host()))]);
    for _ in 0..4 {
        shelf.put_manifest("a", "deep", INDEX, &inner);
        inner = index(&[(INDEX, &inner, None)]);
    }
    shelf.put_manifest("a", "deep", INDEX, &inner);
    let wrong = index(&[(MANIFEST, b"twelve bytes", Some(&Platform::host()))]);
    let wrong = String::from_utf8(wrong).unwrap().replace("\"size\":12", "\"size\":13");
    shelf.put_manifest("a", "size", INDEX, wrong.as_bytes());
    shelf.put_manifest("a", "x", MANIFEST, b"twelve bytes");
    let fake = Fake::start(move |asked| shelf.answer(asked)).await;
    is(&refused(&fake, settings(&[&fake]), "a:deep").await, InvalidArgument, &["too deep"]);
    is(&refused(&fake, settings(&[&fake]), "a:size").await, InvalidArgument, &["13 bytes, it has 12"]);
}

#[tokio::test]
async fn blobs_that_are_not_what_they_should_be() {
    let image = Image::single(1, 1_000_000);
    let error = lied(&image, |asked, mut answer| {
        if layers(asked, &answer) {
            answer.body[700] ^= 1;
        }
        answer
    });
    is(&error.await, Unavailable, &["sends the blob sha256:", "instead of"]);
    let error = lied(&image, |asked, mut answer| {
        if layers(asked, &answer) {
            answer.body.push(0);
        }
        answer
    });
    is(&error.await, Unavailable, &["announces"]);
    let error = lied(&image, |asked, mut answer| {
        if layers(asked, &answer) {
            answer.body.pop();
        }
        answer
    });
    is(&error.await, Unavailable, &["announces"]);
    let error = lied(&image, |asked, answer| {
        if layers(asked, &answer) { Answer::of(200, vec![7; 70_000]).but(How::Endless) } else { answer }
    });
    is(&error.await, Unavailable, &["sends "]);
    let error = lied(&image, |asked, mut answer| {
        if asked.path.contains("/blobs/") && !layers(asked, &answer) {
            answer.body[0] = b' ';
        }
        answer
    });
    is(&error.await, Unavailable, &["sends the blob", "instead of"]);
}

#[tokio::test]
async fn a_configuration_of_other_layers() {
    let one = layer("one", b"1");
    let config = |diff_ids| ImageConfig {
        os: "linux".to_owned(),
        architecture: Platform::host().to_string().split('/').nth(1).unwrap().to_owned(),
        diff_ids,
        ..ImageConfig::default()
    };
    let of = |diff_ids| Image::with_config(vec![one.clone()], config(diff_ids).to_json().unwrap());
    let none = lied(&of(Vec::new()), |_, answer| answer).await;
    is(&none, InvalidArgument, &["1 layers, its configuration 0"]);
    let other = lied(&of(vec![Digest::of(b"other")]), |_, answer| answer).await;
    is(&other, InvalidArgument, &["the layer's digest is another"]);
    let no_config = lied(&Image::with_config(vec![one.clone()], b"[]".to_vec()), |_, answer| answer).await;
    is(&no_config, InvalidArgument, &["configuration"]);
}

#[tokio::test]
async fn silence_has_an_end_wherever_it_begins() {
    let image = Image::single(1, 1_000_000);
    for how in [How::Silence, How::Hang(0), How::Hang(20)] {
        let error =
            lied(&image, move |asked, answer| if manifests(asked) { answer.but(how) } else { answer });
        is(&error.await, Unavailable, &["sent nothing", "0.4 s"]);
    }
    let shelf = Arc::new(Shelf::default().with("a", "1", &image));
    let hanging = Arc::clone(&shelf);
    let fake = Fake::start(move |asked| {
        let answer = hanging.answer(asked);
        if layers(asked, &answer) { answer.but(How::Hang(1000)) } else { answer }
    })
    .await;
    let sink = Folder::new();
    let error = puller(settings(&[&fake]), &sink).0.pull(&name(&fake, "a:1")).await.unwrap_err();
    is(&error, Unavailable, &["sent nothing"]);
    assert!(sink.partials().iter().any(|size| *size >= 1000), "what came was thrown away");
}

#[tokio::test]
async fn redirects_that_lead_nowhere() {
    let image = Image::single(1, 10);
    let moved = |location: &'static str| {
        move |asked: &Asked, answer: Answer| {
            if manifests(asked) || asked.path.contains("/again") {
                Answer::of(307, "").with("Location", location)
            } else {
                answer
            }
        }
    };
    is(&lied(&image, moved("/again")).await, Unavailable, &["redirects more than 5 times"]);
    is(&lied(&image, moved("http://")).await, Unavailable, &["to what is no address"]);
    is(&lied(&image, moved("file:///etc/passwd")).await, Unavailable, &["redirects"]);
    is(&lied(&image, moved("http://user:hunter2@localhost/")).await, Unavailable, &["a password in it"]);
    let error = lied(&image, |asked, answer| if manifests(asked) { Answer::of(302, "") } else { answer });
    is(&error.await, Unavailable, &["to what is no address"]);
}

#[tokio::test]
async fn servers_of_tokens_that_make_no_sense() {
    let image = Image::single(1, 10);
    let wants = |realm: &'static str| {
        move |asked: &Asked, answer: Answer| {
            if !manifests(asked) {
                return answer;
            }
            let challenge =
                format!("Bearer realm=\"{}\"", realm.replace("HOST", asked.header("host").unwrap()));
            Answer::of(401, "").with("WWW-Authenticate", challenge)
        }
    };
    is(&lied(&image, wants("no address")).await, Unavailable, &["no address"]);
    is(&lied(&image, wants("ftp://a/")).await, Unavailable, &["does not speak TLS"]);
    let error = lied(&image, |asked, answer| if manifests(asked) { Answer::of(401, "") } else { answer });
    is(&error.await, Unavailable, &["without saying"]);
    for (answer, part) in [
        (Answer::of(200, "{}"), "no token"),
        (Answer::of(200, "[]"), "no token"),
        (Answer::of(200, r#"{"token":"a\nb"}"#), "no header"),
        (Answer::of(200, "x".repeat(9000)).but(How::Endless), "without end"),
        (Answer::of(302, "").with("Location", "/"), "redirects"),
    ] {
        let wants = wants("http://HOST/token");
        let error = lied(&image, move |asked, normal| {
            if asked.path.starts_with("/token") { answer.clone() } else { wants(asked, normal) }
        });
        is(&error.await, Unavailable, &[part]);
    }
}
