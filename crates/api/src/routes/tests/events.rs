//! The event stream.

use crate::{
    ApiConfig, BodyLimits,
    testing::{Api, Lines},
};
use axum::body::Body;
use http::Method;
use serde_json::{Value, json};
use std::time::Duration;

#[tokio::test]
async fn events_have_ids_are_replayed_and_filtered() {
    let api = Api::start().await;
    let other = api.post("/sandboxes", "{}").await.expect(201).json();
    let open = async |query: &str, last: &str| open(&api, query, last).await;
    let mut all = open("", "evt-0").await;
    assert_eq!(all.next().await.unwrap(), "id: evt-1");
    let data = all.next().await.unwrap();
    let event: serde_json::Value = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
    assert_eq!(
        (&event["id"], &event["type"], &event["sandbox_id"]),
        (&json!("evt-1"), &json!("sandbox.created"), &json!(api.id))
    );

    let mut later = open("", "1").await;
    assert_eq!(later.next().await.unwrap(), "id: evt-2");

    let other = other["id"].as_str().unwrap();
    let mut mine = open(&format!("?sandbox_id={other}"), "evt-0").await;
    mine.next().await.unwrap();
    assert!(mine.next().await.unwrap().contains(other));

    let mut live = open("", "nonsense").await;
    assert_eq!(live.next().await.unwrap(), ": from here");
    assert!(live.next().await.unwrap().starts_with("id: evt-"));
    api.post("/sandboxes/{id}/files", r#"{"path":"/workspace/f","content":"x"}"#).await.expect(200);
    live.next().await.unwrap();
    assert!(live.next().await.unwrap().contains("file.written"));
}

#[tokio::test]
async fn silence_on_the_event_stream_is_filled() {
    let limits = BodyLimits { heartbeat: Duration::from_millis(10), ..BodyLimits::default() };
    let api = Api::with(ApiConfig { limits, ..ApiConfig::default() }).await;
    let request = api.request(Method::GET, "/events").body(Body::empty()).unwrap();
    let mut lines = api.open(request).await;
    // Events of the start may come first.
    while lines.next().await.unwrap() != ": keep-alive" {}
}

async fn open(api: &Api, query: &str, last: &str) -> Lines {
    let request = api.request(Method::GET, &format!("/events{query}")).header("last-event-id", last);
    api.open(request.body(Body::empty()).unwrap()).await
}

/// Types of what there is, with a query.
async fn kinds(api: &Api, query: &str) -> Vec<String> {
    let answer = api.get(&format!("/events?follow=false&{query}")).await;
    let text = answer.expect(200).text();
    let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
    let events = data.map(|data| serde_json::from_str::<Value>(data).unwrap());
    events.map(|event| event["type"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn filters_name_types_groups_sandboxes_owners_and_times() {
    let api = Api::start().await;
    let request = api.request(Method::POST, "/sandboxes").header("content-type", "application/json");
    let request = request.header("x-user-id", "zoe").body(Body::from("{}")).unwrap();
    let other = api.send(request).await.expect(201).json()["id"].as_str().unwrap().to_owned();
    api.post("/sandboxes/{id}/files", r#"{"path":"/workspace/f","content":"x"}"#).await.expect(200);
    api.post("/sandboxes/{id}/exec", r#"{"command":"exit=0"}"#).await.expect(200);

    let made = ["sandbox.created", "sandbox.running"];
    assert_eq!(kinds(&api, "type=file.written").await, ["file.written"]);
    assert_eq!(
        kinds(&api, "type=exec.*,file.written").await,
        ["file.written", "exec.started", "exec.completed"]
    );
    assert_eq!(kinds(&api, &format!("sandbox_id={other}")).await, made);
    assert_eq!(
        kinds(&api, &format!("sandbox_id={other},{}&type=sandbox", api.id)).await,
        [made, made].concat()
    );
    assert_eq!(kinds(&api, "owner=zoe").await, made);
    assert_eq!(kinds(&api, "owner=nobody").await, [""; 0]);
    assert_eq!(kinds(&api, "since=1h&type=file").await, ["file.written"]);
    assert_eq!(kinds(&api, "since=2100-01-01T00:00:00Z").await, [""; 0]);
    // Also of one that is gone, as long as it is remembered whose it was.
    api.delete(&format!("/sandboxes/{other}")).await.expect(200);
    assert_eq!(kinds(&api, "owner=zoe").await.last().unwrap(), "sandbox.destroyed");

    let message = api.get("/events?type=sandbox.nope").await.expect_error(400, "BAD_REQUEST");
    assert!(message.contains("exec, file, image"), "{message}");
    api.get("/events?since=soon").await.expect_error(400, "BAD_REQUEST");
}

#[tokio::test]
async fn an_unknown_position_is_said_to_be_one() {
    let api = Api::start().await;
    assert_eq!(kinds(&api, "").await, ["sandbox.created", "sandbox.running"]);
    let mut lines = open(&api, "", "evt-99").await;
    assert_eq!(lines.next().await.unwrap(), ": from here");
    assert!(lines.next().await.unwrap().starts_with("id: evt-"));
    assert_eq!(lines.next().await.unwrap(), "event: missed");
    assert_eq!(lines.next().await.unwrap(), r#"data: {"after":"evt-99"}"#);
    api.post("/sandboxes/{id}/files", r#"{"path":"/workspace/f","content":"x"}"#).await.expect(200);
    lines.next().await.unwrap();
    assert!(lines.next().await.unwrap().contains("file.written"));
}

#[tokio::test]
async fn a_sign_of_life_carries_the_position_that_a_filter_passed() {
    let limits = BodyLimits { heartbeat: Duration::from_millis(10), ..BodyLimits::default() };
    let api = Api::with(ApiConfig { limits, ..ApiConfig::default() }).await;
    let mut lines = open(&api, "?type=file", "evt-0").await;
    // Two events of the sandbox were left out.
    let mut last = String::new();
    while last != "id: evt-2" {
        last = lines.next().await.unwrap();
        assert!(last == ": keep-alive" || last.starts_with("id: "), "{last}");
    }
    // The block ends without data, so that it is no event.
    let next = lines.next().await.unwrap();
    assert!(next == ": keep-alive", "{next}");
}
