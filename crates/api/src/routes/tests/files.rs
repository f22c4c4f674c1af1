//! Files, by JSON and as bytes.

use crate::{
    ApiConfig, BodyLimits,
    testing::{Answer, Api},
};
use axum::body::Body;
use bytes::Bytes;
use futures::stream;
use http::Method;
use serde_json::json;
use std::time::Duration;

async fn put(api: &Api, query: &str, body: impl Into<Body>) -> Answer {
    let request = api.request(Method::PUT, &format!("/sandboxes/{{id}}/files{query}"));
    api.send(request.body(body.into()).unwrap()).await
}

async fn read(api: &Api, headers: &[(&str, &str)]) -> Answer {
    let mut request = api.request(Method::GET, "/sandboxes/{id}/files?path=/workspace/f");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    api.send(request.body(Body::empty()).unwrap()).await
}

#[tokio::test]
async fn text_goes_in_and_comes_back() {
    let api = Api::start().await;
    let written = api.post("/sandboxes/{id}/files", r#"{"path":"/workspace/f","content":"héllo\n"}"#).await;
    let written = written.expect(200).json();
    assert_eq!(
        (&written["status"], &written["path"], &written["mode"]),
        (&json!("written"), &json!("/workspace/f"), &json!("644"))
    );
    let answer = read(&api, &[]).await;
    assert_eq!(answer.expect(200).text(), "héllo\n");
    assert_eq!(answer.header("content-type"), "application/octet-stream");
    assert_eq!((answer.header("content-length"), answer.header("accept-ranges")), ("7", "bytes"));
    assert!(answer.header("last-modified").ends_with(" GMT"), "{}", answer.header("last-modified"));
}

#[tokio::test]
async fn every_byte_value_survives() {
    let api = Api::start().await;
    let bytes: Vec<u8> = (0..=255).collect();
    let answer = put(&api, "?path=/workspace/f&mode=0600", bytes.clone()).await;
    assert_eq!(answer.expect(200).json()["size"], 256);
    assert_eq!(read(&api, &[]).await.body, bytes);
    let base64 = r#"{"path":"/workspace/f","content":"AP8=","encoding":"base64","mode":"600"}"#;
    api.post("/sandboxes/{id}/files", base64).await.expect(200);
    assert_eq!(read(&api, &[]).await.body[..], [0, 255]);
}

#[tokio::test]
async fn json_content_may_be_larger_than_other_bodies() {
    let api = Api::start().await;
    let body = format!(r#"{{"path":"f","content":"{}"}}"#, "x".repeat(3 << 20));
    assert_eq!(api.post("/sandboxes/{id}/files", body).await.expect(200).json()["path"], "/workspace/f");
}

#[tokio::test]
async fn a_broken_or_too_large_upload_leaves_the_old_file() {
    let limits = BodyLimits { upload: Some(10), idle: Duration::from_millis(50), ..BodyLimits::default() };
    let api = Api::with(ApiConfig { limits, ..ApiConfig::default() }).await;
    put(&api, "?path=/workspace/f", "old").await.expect(200);
    let broken = stream::iter([Ok(Bytes::from_static(b"new")), Err(std::io::Error::other("gone"))]);
    put(&api, "?path=/workspace/f", Body::from_stream(broken)).await.expect_error(400, "BAD_REQUEST");
    put(&api, "?path=/workspace/f", "0123456789a").await.expect_error(413, "PAYLOAD_TOO_LARGE");
    let stalled = Body::from_stream(stream::pending::<Result<Bytes, std::io::Error>>());
    put(&api, "?path=/workspace/f", stalled).await.expect_error(408, "TIMEOUT");
    assert_eq!(read(&api, &[]).await.body, "old");
}

#[tokio::test]
async fn ranges() {
    let api = Api::start().await;
    put(&api, "?path=/workspace/f", "0123456789").await.expect(200);
    for (range, body, content_range) in [
        ("bytes=2-4", "234", "bytes 2-4/10"),
        ("bytes=8-", "89", "bytes 8-9/10"),
        ("bytes=-3", "789", "bytes 7-9/10"),
        ("bytes=0-999", "0123456789", "bytes 0-9/10"),
    ] {
        let answer = read(&api, &[("range", range)]).await;
        assert_eq!(answer.expect(206).text(), body);
        assert_eq!(answer.header("content-range"), content_range);
        assert_eq!(answer.header("content-length"), body.len().to_string());
    }
    let answer = read(&api, &[("range", "bytes=10-")]).await;
    answer.expect_error(416, "RANGE_NOT_SATISFIABLE");
    assert_eq!(answer.header("content-range"), "bytes */10");
    for range in ["bytes=0-1,3-4", "lines=1-2", "bytes=5-2"] {
        assert_eq!(read(&api, &[("range", range)]).await.expect(200).text(), "0123456789");
    }
}

#[tokio::test]
async fn a_range_of_another_version_gets_the_whole_file() {
    let api = Api::start().await;
    put(&api, "?path=/workspace/f", "0123456789").await.expect(200);
    let whole = read(&api, &[]).await;
    let (etag, modified) = (whole.header("etag"), whole.header("last-modified"));
    for (if_range, status) in [(etag, 206), (modified, 206), ("\"other\"", 200)] {
        read(&api, &[("range", "bytes=0-0"), ("if-range", if_range)]).await.expect(status);
    }
}

#[tokio::test]
async fn head_tells_size_without_content() {
    let api = Api::start().await;
    put(&api, "?path=/workspace/f", "0123456789").await.expect(200);
    let head = async |path: &str| {
        let request = api.request(Method::HEAD, &format!("/sandboxes/{{id}}/files?path={path}"));
        api.send(request.body(Body::empty()).unwrap()).await
    };
    let answer = head("/workspace/f").await;
    assert_eq!((answer.expect(200).header("content-length"), answer.body.len()), ("10", 0));
    assert_eq!(head("/workspace/none").await.status, 404);
}

#[tokio::test]
async fn the_other_file_routes_answer_as_the_contract_has_it() {
    let api = Api::start().await;
    api.post("/sandboxes/{id}/files/mkdir", r#"{"path":"/workspace/d","parents":true}"#).await.expect(200);
    for name in ["a.log", "b.log", "c.txt"] {
        put(&api, &format!("?path=d/{name}"), "xyz").await.expect(200);
    }
    let list = api.get("/sandboxes/{id}/files/list?path=/workspace/d").await.expect(200).json();
    let paths: Vec<_> = list.as_array().unwrap().iter().map(|f| f["path"].as_str().unwrap()).collect();
    assert_eq!(paths, ["/workspace/d/a.log", "/workspace/d/b.log", "/workspace/d/c.txt"]);
    let glob = api.get("/sandboxes/{id}/files/glob?pattern=/workspace/d/*.log").await.expect(200).json();
    assert_eq!(glob, json!(["/workspace/d/a.log", "/workspace/d/b.log"]));
    assert_eq!(api.get("/sandboxes/{id}/files/glob?pattern=/none/*").await.expect(200).text(), "[]\n");
    let stat = api.get("/sandboxes/{id}/files/stat?path=/workspace/d").await.expect(200).json();
    assert_eq!((&stat["is_dir"], &stat["size"]), (&json!(true), &json!(0)));
    for (path, body, status) in [
        ("move", r#"{"old_path":"/workspace/d/a.log","new_path":"/workspace/e/a"}"#, "moved"),
        ("chmod", r#"{"path":"/workspace/e/a","mode":"0755"}"#, "chmod applied"),
    ] {
        let answer = api.post(&format!("/sandboxes/{{id}}/files/{path}"), body).await;
        assert_eq!(answer.expect(200).json(), json!({"status": status}));
    }
    let stat = api.get("/sandboxes/{id}/files/stat?path=/workspace/e/a").await.expect(200).json();
    assert_eq!((&stat["mode"], &stat["is_dir"], &stat["size"]), (&json!("755"), &json!(false), &json!(3)));
    for _ in 0..2 {
        let answer = api.delete("/sandboxes/{id}/files?path=/workspace/e/a&recursive=true").await;
        assert_eq!(answer.expect(200).json(), json!({"status": "deleted"}));
    }
}

#[tokio::test]
async fn missing_files_are_404_and_bad_input_400() {
    let api = Api::start().await;
    for path in ["files?path=/none", "files/stat?path=/none"] {
        api.get(&format!("/sandboxes/{{id}}/{path}")).await.expect_error(404, "NOT_FOUND");
    }
    api.post("/sandboxes/{id}/files/move", r#"{"old_path":"/none","new_path":"/x"}"#)
        .await
        .expect_error(404, "NOT_FOUND");
    for path in ["files", "files?path=", "files?path=%20", "files?path=%00", "files/stat", "files/glob"] {
        api.get(&format!("/sandboxes/{{id}}/{path}")).await.expect_error(400, "BAD_REQUEST");
    }
    assert_eq!(api.get("/sandboxes/{id}/files").await.json()["message"], "path is required");
    for (path, body) in [
        ("files", r#"{"content":"x"}"#),
        ("files", r#"{"path":"/a","mode":"rwx"}"#),
        ("files", r#"{"path":"/a","content":"*","encoding":"base64"}"#),
        ("files/move", r#"{"old_path":"/a"}"#),
        ("files/chmod", r#"{"path":"/a"}"#),
    ] {
        api.post(&format!("/sandboxes/{{id}}/{path}"), body).await.expect_error(400, "BAD_REQUEST");
    }
    put(&api, "?mode=0644", "x").await.expect_error(400, "BAD_REQUEST");
    put(&api, "?path=/a&mode=abc", "x").await.expect_error(400, "BAD_REQUEST");
    api.get("/sandboxes/sb-0/files?path=/a").await.expect_error(404, "NOT_FOUND");
}
