//! Processes as objects.

use crate::testing::{Api, eventually};
use axum::body::Body;
use http::Method;
use serde_json::json;
use stacyvm_provider::Outcome;
use std::time::Duration;

async fn start(api: &Api, body: &'static str) -> String {
    let process = api.post("/sandboxes/{id}/processes", body).await.expect(201).json();
    process["id"].as_str().unwrap().to_owned()
}

fn stdin(api: &Api, process: &str, query: &str, body: impl Into<Body>) -> http::Request<Body> {
    let path = format!("/sandboxes/{{id}}/processes/{process}/stdin{query}");
    api.request(Method::POST, &path).body(body.into()).unwrap()
}

#[tokio::test]
async fn a_process_is_started_listed_and_looked_at() {
    let api = Api::start().await;
    let id = start(&api, r#"{"command":"out=abc exit=2","tag":"t"}"#).await;
    assert!(id.starts_with("p-"), "{id}");
    let process = api.get(&format!("/sandboxes/{{id}}/processes/{id}")).await.expect(200).json();
    assert_eq!(
        (&process["state"], &process["exit_code"], &process["tag"], &process["output_end"]),
        (&json!("exited"), &json!(2), &json!("t"), &json!(3))
    );
    let list = api.get("/sandboxes/{id}/processes").await.expect(200).json();
    assert_eq!(list.as_array().unwrap().len(), 1);
    api.get("/sandboxes/{id}/processes/p-none").await.expect_error(404, "NOT_FOUND");
}

#[tokio::test]
async fn an_id_of_the_caller_starts_nothing_twice() {
    let api = Api::start().await;
    assert_eq!(start(&api, r#"{"command":"hang","id":"web"}"#).await, "web");
    assert_eq!(start(&api, r#"{"command":"hang","id":"web"}"#).await, "web");
    assert_eq!(api.guest.process_ids(), ["web"]);
    api.post("/sandboxes/{id}/processes", r#"{"command":"hang","id":"a/b"}"#)
        .await
        .expect_error(400, "BAD_REQUEST");
}

#[tokio::test]
async fn only_a_timeout_that_it_names_ends_a_process() {
    let api = Api::start().await;
    let web = start(&api, r#"{"command":"hang"}"#).await;
    assert_eq!(api.guest.deadline(&web), None);
    let job = start(&api, r#"{"command":"hang","timeout":"30s"}"#).await;
    assert_eq!(api.guest.deadline(&job), Some(Duration::from_secs(30)));
    api.post("/sandboxes/{id}/processes", r#"{"command":"hang","timeout":"1h"}"#)
        .await
        .expect_error(429, "RESOURCE_LIMIT");
    api.post("/sandboxes/{id}/exec", r#"{"command":"out=x","stream":true}"#).await.expect(200);
    let ids = api.guest.process_ids();
    let exec = ids.iter().find(|id| **id != web && **id != job).unwrap();
    assert_eq!(api.guest.deadline(exec), Some(Duration::from_secs(600)));
}

#[tokio::test]
async fn output_is_read_from_any_offset() {
    let api = Api::start().await;
    start(&api, r#"{"command":"out=abc err=def exit=1","id":"p"}"#).await;
    let text = api.get("/sandboxes/{id}/processes/p/output?offset=2").await.expect(200).text();
    let expected = [
        r#"{"stream":"start","process_id":"p"}"#,
        r#"{"stream":"stdout","offset":2,"data":"Yw=="}"#,
        r#"{"stream":"stderr","offset":3,"data":"ZGVm"}"#,
        r#"{"stream":"exit","exit_code":1}"#,
    ];
    assert_eq!(text.lines().collect::<Vec<_>>(), expected);
    let text = api.get("/sandboxes/{id}/processes/p/output?records=simple").await.expect(200).text();
    assert_eq!(text.lines().next(), Some(r#"{"stream":"stdout","data":"abc"}"#));
    api.get("/sandboxes/{id}/processes/p/output?offset=-1").await.expect_error(400, "BAD_REQUEST");
    api.get("/sandboxes/{id}/processes/q/output").await.expect_error(404, "NOT_FOUND");
}

#[tokio::test]
async fn what_is_there_now_is_read_without_waiting() {
    let api = Api::start().await;
    start(&api, r#"{"command":"out=abc hang","id":"p"}"#).await;
    let text = api.get("/sandboxes/{id}/processes/p/output?follow=false").await.expect(200).text();
    assert_eq!(text.lines().count(), 2, "{text}");
}

#[tokio::test]
async fn a_reader_that_goes_away_leaves_the_process_alone() {
    let api = Api::start().await;
    start(&api, r#"{"command":"out=abc hang","id":"p"}"#).await;
    let request = api.request(Method::GET, "/sandboxes/{id}/processes/p/output").body(Body::empty()).unwrap();
    let mut lines = api.open(request).await;
    lines.next().await.unwrap();
    drop(lines);
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert_eq!(api.guest.outcome("p"), None);
}

#[tokio::test]
async fn stdin_takes_bytes_at_a_position_and_a_retry_writes_nothing_twice() {
    let api = Api::start().await;
    start(&api, r#"{"command":"hang","id":"p","stdin":true}"#).await;
    let ack = api.send(stdin(&api, "p", "?offset=0", "\u{0}abc")).await.expect(200).json();
    assert_eq!(ack, json!({"accepted": 4, "closed": false}));
    api.send(stdin(&api, "p", "?offset=0", "\u{0}abcd")).await.expect(200);
    let ack = api.send(stdin(&api, "p", "?eof=true", "e")).await.expect(200).json();
    assert_eq!(ack, json!({"accepted": 6, "closed": true}));
    assert_eq!(api.guest.stdin("p"), b"\0abcde");
    api.send(stdin(&api, "p", "?offset=99", "x")).await.expect_error(400, "BAD_REQUEST");
    api.send(stdin(&api, "q", "", "x")).await.expect_error(404, "NOT_FOUND");
}

#[tokio::test]
async fn stdin_larger_than_one_piece_arrives_in_order_and_has_a_limit() {
    let api = Api::start().await;
    start(&api, r#"{"command":"hang","id":"p","stdin":true}"#).await;
    let data: Vec<u8> = (0..200_000_u32).map(|n| n as u8).collect();
    let ack = api.send(stdin(&api, "p", "", data.clone())).await.expect(200).json();
    assert_eq!(ack["accepted"], 200_000);
    assert_eq!(api.guest.stdin("p"), data);
    api.send(stdin(&api, "p", "", vec![0; (1 << 20) + 1])).await.expect_error(413, "PAYLOAD_TOO_LARGE");
}

#[tokio::test]
async fn signals_and_waiting() {
    let api = Api::start().await;
    start(&api, r#"{"command":"hang","id":"p"}"#).await;
    let now = api.get("/sandboxes/{id}/processes/p/wait?timeout=10ms").await.expect(200).json();
    assert_eq!(now["state"], "running");
    let (waited, signalled) = tokio::join!(
        api.get("/sandboxes/{id}/processes/p/wait"),
        api.post("/sandboxes/{id}/processes/p/signal", r#"{"signal":"SIGTERM"}"#)
    );
    assert_eq!(signalled.expect(200).json(), json!({"delivered": true}));
    let ended = waited.expect(200).json();
    assert_eq!(
        (&ended["state"], &ended["signal"], &ended["exit_code"]),
        (&json!("signaled"), &json!(15), &json!(143))
    );
    let again = api.post("/sandboxes/{id}/processes/p/signal", r#"{"signal":9,"tree":true}"#).await;
    assert_eq!(again.json(), json!({"delivered": false}));
    for body in [r#"{"signal":"NOPE"}"#, r#"{"signal":0}"#, "{}"] {
        api.post("/sandboxes/{id}/processes/p/signal", body).await.expect_error(400, "BAD_REQUEST");
    }
    api.get("/sandboxes/{id}/processes/p/wait?timeout=x").await.expect_error(400, "BAD_REQUEST");
    eventually("ended", || api.guest.outcome("p") == Some(Outcome::Signaled(15))).await;
}
