//! Archives, forms, changes and disk usage, over the routes.

use crate::{
    ApiConfig, BodyLimits,
    testing::{Answer, Api, trees},
};
use axum::body::Body;
use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use futures::{StreamExt, stream};
use http::Method;
use serde_json::{Value, json};
use std::{io::Write, time::Duration};

fn archive() -> Vec<u8> {
    let mut archive = Vec::new();
    trees::add(&mut archive, "a.txt", b"content of a");
    trees::add(&mut archive, "d/b.bin", &[7; 100_000]);
    archive.extend_from_slice(&stacyvm_tar::END);
    archive
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 3).unwrap()
}

async fn put(api: &Api, query: &str, headers: &[(&str, &str)], body: impl Into<Body>) -> Answer {
    let mut request = api.request(Method::PUT, &format!("/sandboxes/{{id}}/files/archive{query}"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    api.send(request.body(body.into()).unwrap()).await
}

async fn get(api: &Api, path: &str, headers: &[(&str, &str)]) -> Answer {
    let mut request = api.request(Method::GET, &format!("/sandboxes/{{id}}/files/archive?path={path}"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    api.send(request.body(Body::empty()).unwrap()).await
}

async fn files(bytes: &[u8]) -> Vec<(String, Vec<u8>)> {
    let content = stream::iter([Ok(Bytes::copy_from_slice(bytes))]).boxed();
    trees::read(content).await.unwrap()
}

#[tokio::test]
async fn an_archive_goes_in_however_it_is_wrapped() {
    let api = Api::start().await;
    let plain = archive();
    for (headers, body) in [
        (&[("content-type", "application/x-tar")][..], plain.clone()),
        (&[], plain.clone()),
        (&[], gzip(&plain)),
        (&[("content-type", "application/x-tar")], zstd(&plain)),
        (&[("content-type", "application/gzip")], gzip(&plain)),
        (&[("content-type", "application/zstd")], zstd(&plain)),
        (&[("content-encoding", "gzip")], gzip(&plain)),
        (&[("content-encoding", "zstd"), ("content-type", "application/x-tar")], zstd(&plain)),
    ] {
        let answer = put(&api, "?path=in", headers, body).await;
        let expected = json!({"status": "extracted", "path": "/workspace/in", "files": 2, "directories": 0,
            "links": 0, "bytes": 100_012});
        assert_eq!(answer.expect(200).json(), expected, "{headers:?}");
        api.delete("/sandboxes/{id}/files?path=in/a.txt").await.expect(200);
    }
    let limited = BodyLimits { upload: Some(1000), ..BodyLimits::default() };
    let api = Api::with(ApiConfig { limits: limited, ..ApiConfig::default() }).await;
    put(&api, "?path=in", &[], plain).await.expect_error(413, "PAYLOAD_TOO_LARGE");
}

#[tokio::test]
async fn what_is_no_archive_is_the_clients_mistake() {
    let api = Api::start().await;
    let plain = archive();
    let cut = &plain[..plain.len() - 5000];
    for (headers, body) in [
        (&[][..], b"hello".repeat(300)),
        (&[], Vec::new()),
        (&[], cut.to_vec()),
        (&[], gzip(cut)),
        (&[], gzip(&plain)[..200].to_vec()),
        (&[("content-type", "application/gzip")], plain.clone()),
        (&[("content-encoding", "zstd")], plain.clone()),
        (&[("content-encoding", "br")], plain.clone()),
        (&[("content-encoding", "zstd"), ("content-type", "application/gzip")], zstd(&gzip(&plain))),
        (&[("content-encoding", "zstd")], zstd(&gzip(&plain))),
    ] {
        put(&api, "?path=in", headers, body).await.expect_error(400, "BAD_REQUEST");
    }
    put(&api, "", &[], plain.clone()).await.expect_error(400, "BAD_REQUEST");
    let broken = stream::iter([Ok(Bytes::from(plain)), Err(std::io::Error::other("gone"))]);
    let message =
        put(&api, "?path=in", &[], Body::from_stream(broken)).await.expect_error(400, "BAD_REQUEST");
    assert_eq!(message, "the request body ended early");
}

#[tokio::test]
async fn an_archive_comes_out_as_the_client_wants_it() {
    let api = Api::start().await;
    put(&api, "?path=in", &[], archive()).await.expect(200);
    for (headers, kind, encoding) in [
        (&[][..], "application/x-tar", ""),
        (&[("accept", "*/*"), ("accept-encoding", "br")], "application/x-tar", ""),
        (&[("accept-encoding", "gzip, deflate")], "application/x-tar", "gzip"),
        (&[("accept-encoding", "gzip;q=0.5, zstd")], "application/x-tar", "zstd"),
        (&[("accept", "application/gzip"), ("accept-encoding", "zstd")], "application/gzip", ""),
        (&[("accept", "application/zstd")], "application/zstd", ""),
    ] {
        let answer = get(&api, "in", headers).await;
        assert_eq!(
            (answer.expect(200).header("content-type"), answer.header("content-encoding")),
            (kind, encoding)
        );
        assert_eq!(answer.header("x-content-type-options"), "nosniff");
        let plain = match kind.rsplit('/').next().filter(|k| *k != "x-tar").unwrap_or(encoding) {
            "gzip" => {
                let mut plain = Vec::new();
                std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&*answer.body), &mut plain)
                    .unwrap();
                plain
            }
            "zstd" => zstd::decode_all(&*answer.body).unwrap(),
            _ => answer.body.to_vec(),
        };
        assert_eq!(files(&plain).await, files(&archive()).await);
    }
    get(&api, "none", &[]).await.expect_error(404, "NOT_FOUND");
    api.get("/sandboxes/{id}/files/archive").await.expect_error(400, "BAD_REQUEST");
    // A stream that cannot go on never looks as if it had ended well.
    put(&api, "?path=shrinks", &[], archive()).await.expect(200);
    for headers in [&[][..], &[("accept-encoding", "gzip")]] {
        assert!(get(&api, "shrinks", headers).await.cut);
    }
}

async fn post_form(api: &Api, query: &str, body: impl Into<Body>) -> Answer {
    let request = api.request(Method::POST, &format!("/sandboxes/{{id}}/files/upload{query}"));
    let request = request.header("content-type", "multipart/form-data; boundary=XX");
    api.send(request.body(body.into()).unwrap()).await
}

fn part(disposition: &str, content: &str) -> String {
    format!("--XX\r\ncontent-disposition: form-data; {disposition}\r\n\r\n{content}\r\n")
}

#[tokio::test]
async fn a_form_uploads_several_files() {
    let api = Api::start().await;
    let large = "x".repeat(3 << 20);
    let body = [
        part(r#"name="file"; filename="one.txt""#, "1"),
        part(r#"name="comment""#, "no file"),
        part(r#"name="src/two.txt"; filename="other""#, &large),
        part(r#"name="file"; filename="dir/three""#, ""),
        "--XX--\r\n".to_owned(),
    ];
    let answer = post_form(&api, "?path=up&mode=600", body.concat()).await;
    let answer = answer.expect(200).json();
    let paths: Vec<&Value> = answer["files"].as_array().unwrap().iter().map(|file| &file["path"]).collect();
    assert_eq!(paths, ["/workspace/up/one.txt", "/workspace/up/src/two.txt", "/workspace/up/dir/three"]);
    assert_eq!((&answer["files"][1]["size"], &answer["files"][1]["mode"]), (&json!(3 << 20), &json!("600")));
    assert_eq!(api.get("/sandboxes/{id}/files?path=up/src/two.txt").await.expect(200).body, large);
}

#[tokio::test]
async fn a_form_that_is_wrong_or_cut_uploads_whole_files_only() {
    let api = Api::start().await;
    for disposition in
        [r#"name="../x"; filename="x""#, r#"name="f"; filename="a/../../x""#, r#"name="/etc/x""#]
    {
        let body = [part(disposition, "x"), "--XX--\r\n".into()].concat();
        post_form(&api, "", body).await.expect_error(400, "BAD_REQUEST");
    }
    post_form(&api, "", "--XX--\r\n").await.expect_error(400, "BAD_REQUEST");
    let request = api.request(Method::POST, "/sandboxes/{id}/files/upload");
    api.send(request.body(Body::from("x")).unwrap()).await.expect_error(400, "BAD_REQUEST");
    let cut =
        [part(r#"name="f"; filename="whole""#, "1"), part(r#"name="f"; filename="half""#, "12")].concat();
    let broken = stream::iter([Ok(Bytes::from(cut.clone())), Err(std::io::Error::other("gone"))]);
    for body in [Body::from(cut), Body::from_stream(broken)] {
        post_form(&api, "", body).await.expect_error(400, "BAD_REQUEST");
        api.get("/sandboxes/{id}/files?path=whole").await.expect(200);
        api.get("/sandboxes/{id}/files?path=half").await.expect_error(404, "NOT_FOUND");
    }
}

#[tokio::test]
async fn changes_are_events_with_heartbeats_between() {
    let limits = BodyLimits { heartbeat: Duration::from_millis(20), ..BodyLimits::default() };
    let api = Api::with(ApiConfig { limits, ..ApiConfig::default() }).await;
    let request = |query: &str| api.request(Method::GET, &format!("/sandboxes/{{id}}/files/watch?{query}"));
    let mut lines = api.open(request("path=d").body(Body::empty()).unwrap()).await;
    let mut seen = Vec::new();
    while !seen.last().is_some_and(|line: &String| line.starts_with(':')) {
        seen.push(lines.next().await.unwrap());
    }
    let expected = [
        "id: 1",
        r#"data: {"type":"ready","path":"/workspace/d","is_dir":true}"#,
        "id: 2",
        r#"data: {"type":"create","path":"/workspace/d/a","is_dir":true}"#,
        "id: 3",
        r#"data: {"type":"move","path":"/workspace/d/b","from":"/workspace/d/a"}"#,
        "id: 4",
        r#"data: {"type":"overflow"}"#,
        ": keep-alive",
    ];
    assert_eq!(seen, expected);
    let again = request("path=d&recursive=false").header("last-event-id", "3").body(Body::empty()).unwrap();
    let mut lines = api.open(again).await;
    let mut next = async || lines.next().await.unwrap();
    for expected in [expected[0], expected[1], "id: 2", r#"data: {"type":"overflow"}"#, "id: 3"] {
        assert_eq!(next().await, expected);
    }
    assert!(!next().await.contains("is_dir"), "not recursive");
}

#[tokio::test]
async fn a_watch_that_cannot_go_on_says_why() {
    let api = Api::start().await;
    let answer = api.get("/sandboxes/{id}/files/watch?path=breaks").await;
    let last = answer.expect(200).text();
    let last = last.lines().rfind(|line| line.starts_with("data")).unwrap();
    assert_eq!(
        last,
        r#"data: {"type":"error","error":{"code":"UNAVAILABLE","message":"the guest is gone"}}"#
    );
    api.get("/sandboxes/{id}/files/watch?path=none").await.expect_error(404, "NOT_FOUND");
    api.get("/sandboxes/{id}/files/watch").await.expect_error(400, "BAD_REQUEST");
}

#[tokio::test]
async fn disk_usage_is_told() {
    let api = Api::start().await;
    put(&api, "?path=in", &[], archive()).await.expect(200);
    let expected = json!({"path": "/workspace/in/a.txt", "bytes": 8192, "apparent_bytes": 5, "files": 1, "directories": 1});
    assert_eq!(api.get("/sandboxes/{id}/files/usage?path=in/a.txt").await.expect(200).json(), expected);
    api.get("/sandboxes/{id}/files/usage?path=none").await.expect_error(404, "NOT_FOUND");
}
