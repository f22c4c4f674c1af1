//! Life cycle routes.

use crate::testing::Api;
use axum::body::Body;
use http::Method;
use serde_json::{Value, json};

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

#[tokio::test]
async fn a_sandbox_is_made_and_is_running_at_once() {
    let api = Api::start().await;
    let body = r#"{"image":"host","memory_mb":64,"vcpus":2,"ttl":"10m","metadata":{"k":"v"},"owner_id":"team-a","new":1}"#;
    let answer = api.post("/sandboxes", body).await;
    let sandbox = answer.expect(201).json();
    assert!(sandbox["id"].as_str().unwrap().starts_with("sb-"));
    assert_eq!(sandbox["state"], "running");
    assert_eq!(
        (&sandbox["provider"], &sandbox["image"], &sandbox["memory_mb"], &sandbox["vcpus"]),
        (&json!("fake"), &json!("host"), &json!(64), &json!(2))
    );
    assert_eq!((&sandbox["owner_id"], &sandbox["metadata"]), (&json!("team-a"), &json!({"k": "v"})));
    assert_eq!((&sandbox["preview_domain"], &sandbox["worker_id"]), (&json!("localhost"), &json!("local")));
    assert!(sandbox["created_at"].as_str().unwrap().ends_with('Z'));
    assert!(
        answer.text().starts_with(r#"{"id":"sb-"#) && answer.text().ends_with("}\n"),
        "{}",
        answer.text()
    );

    let id = sandbox["id"].as_str().unwrap();
    assert_eq!(api.get(&format!("/sandboxes/{id}")).await.expect(200).json()["id"], id);
    let list = api.get("/sandboxes").await.expect(200).json();
    let ids: Vec<_> = list.as_array().unwrap().iter().map(|s| s["id"].as_str().unwrap()).collect();
    assert_eq!(ids, [id, &api.id]);
    let mine = api.get("/sandboxes?owner=team-a&state=running&limit=5").await.expect(200).json();
    assert_eq!(mine.as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn bad_input_is_a_client_error() {
    let api = Api::start().await;
    for body in [
        r#"{"ttl":"soon"}"#,
        r#"{"ttl":"-1s"}"#,
        r#"{"memory_mb":-1}"#,
        r#"{"vcpus":-1}"#,
        r#"{"owner_id":"a b"}"#,
        "{",
        "[]",
        "",
    ] {
        let message = api.post("/sandboxes", body).await.expect_error(400, "BAD_REQUEST");
        assert!(!message.is_empty(), "{body}");
    }
    assert!(
        api.post("/sandboxes", "{")
            .await
            .expect_error(400, "BAD_REQUEST")
            .starts_with("invalid request body")
    );
    api.post("/sandboxes", r#"{"ttl":"48h"}"#).await.expect_error(429, "RESOURCE_LIMIT");
    api.post("/sandboxes", r#"{"provider":"nope"}"#).await.expect_error(404, "NOT_FOUND");
    api.post("/sandboxes", r#"{"template":"nope"}"#).await.expect_error(404, "NOT_FOUND");
    api.get("/sandboxes?state=nope").await.expect_error(400, "BAD_REQUEST");
}

#[tokio::test]
async fn a_body_larger_than_allowed_is_413() {
    let api = Api::start().await;
    let body = format!("{{\"image\":\"{}\"}}", "x".repeat(2 << 20));
    api.post("/sandboxes", body).await.expect_error(413, "PAYLOAD_TOO_LARGE");
}

#[tokio::test]
async fn the_owner_header_wins_and_is_checked() {
    let api = Api::start().await;
    let create = |owner: &'static str| {
        let request = api.request(Method::POST, "/sandboxes").header("x-user-id", owner);
        api.send(
            request
                .header("content-type", "application/json")
                .body(Body::from(r#"{"owner_id":"b"}"#))
                .unwrap(),
        )
    };
    assert_eq!(create("a").await.expect(201).json()["owner_id"], "a");
    create("a/b").await.expect_error(400, "BAD_REQUEST");
}

#[tokio::test]
async fn a_repeated_request_with_a_key_makes_one_sandbox() {
    let api = Api::start().await;
    let create = || {
        let request = api.request(Method::POST, "/sandboxes").header("idempotency-key", "abc");
        api.send(request.header("content-type", "application/json").body(Body::from("{}")).unwrap())
    };
    let (first, second) = (create().await, create().await);
    assert_eq!(first.expect(201).json()["id"], second.expect(201).json()["id"]);
}

#[tokio::test]
async fn unknown_and_destroyed_are_404_and_destroying_twice_is_fine() {
    let api = Api::start().await;
    api.get("/sandboxes/sb-ffffffffffffffff").await.expect_error(404, "NOT_FOUND");
    api.get("/sandboxes/..%2f..%2fetc").await.expect_error(404, "NOT_FOUND");
    let path = format!("/sandboxes/{}", api.id);
    for _ in 0..2 {
        assert_eq!(api.delete(&path).await.expect(200).text(), "{\"status\":\"destroyed\"}\n");
    }
    assert_eq!(api.delete("/sandboxes/sb-ffffffffffffffff").await.status, 200);
    api.get(&path).await.expect_error(404, "NOT_FOUND");
    api.post("/sandboxes/{id}/exec", r#"{"command":"exit=0"}"#).await.expect_error(404, "NOT_FOUND");
    assert_eq!(api.get("/sandboxes").await.json(), json!([]));
}

#[tokio::test]
async fn extending_answers_with_the_whole_sandbox() {
    let api = Api::start().await;
    let before = api.get("/sandboxes/{id}").await.json();
    let after = api.post("/sandboxes/{id}/extend", r#"{"ttl":"2h"}"#).await.expect(200).json();
    assert_eq!(keys(&after), keys(&before));
    assert!(after["expires_at"].as_str() > before["expires_at"].as_str());
    for (body, message) in [("{}", "ttl is required"), (r#"{"ttl":"0s"}"#, "ttl must be positive")] {
        assert_eq!(api.post("/sandboxes/{id}/extend", body).await.expect_error(400, "BAD_REQUEST"), message);
    }
    let message = api.post("/sandboxes/{id}/extend", r#"{"ttl":"x"}"#).await.expect_error(400, "BAD_REQUEST");
    assert!(message.starts_with("invalid ttl format: "), "{message}");
    api.post("/sandboxes/sb-0/extend", r#"{"ttl":"1h"}"#).await.expect_error(404, "NOT_FOUND");
}

#[tokio::test]
async fn admission_has_no_key_that_a_strict_client_does_not_know() {
    let api = Api::start().await;
    let known = [
        "allowed",
        "queueable",
        "reason",
        "active_sandboxes",
        "max_sandboxes",
        "active_owner_sandboxes",
        "max_owner_sandboxes",
        "max_ttl",
    ];
    for (body, allowed) in [("{}", true), (r#"{"ttl":"48h","owner_id":"a"}"#, false)] {
        let answer = api.post("/sandboxes/admission", body).await.expect(200).json();
        assert_eq!(answer["allowed"], allowed, "{answer}");
        assert_eq!(answer["queueable"], false);
        assert!(keys(&answer).iter().all(|key| known.contains(key)), "{answer}");
    }
    api.post("/sandboxes/admission", r#"{"ttl":"x"}"#).await.expect_error(400, "BAD_REQUEST");
}

#[tokio::test]
async fn pausing_and_resuming_answer_with_the_whole_sandbox() {
    let api = Api::start().await;
    let before = api.get("/sandboxes/{id}").await.json();
    for (verb, state) in
        [("pause", "paused"), ("pause", "paused"), ("resume", "running"), ("resume", "running")]
    {
        let sandbox = api.post(&format!("/sandboxes/{{id}}/{verb}"), "").await.expect(200).json();
        assert_eq!((keys(&sandbox), &sandbox["state"]), (keys(&before), &json!(state)), "{verb}");
        api.post(&format!("/sandboxes/sb-0/{verb}"), "").await.expect_error(404, "NOT_FOUND");
        if state == "paused" {
            let exec = api.post("/sandboxes/{id}/exec", r#"{"command":"exit=0"}"#).await;
            let message = exec.expect_error(409, "CONFLICT");
            assert!(message.contains("resume it"), "{message}");
            api.get("/sandboxes/{id}/files?path=/x").await.expect_error(409, "CONFLICT");
            api.get("/sandboxes/{id}/logs?source=console").await.expect(200);
            api.post("/sandboxes/{id}/extend", r#"{"ttl":"2h"}"#).await.expect(200);
        }
    }
    api.post("/sandboxes/{id}/pause", "").await.expect(200);
    api.delete("/sandboxes/{id}").await.expect(200);
}

#[tokio::test]
async fn pruning_answers_with_a_number() {
    let api = Api::start().await;
    assert_eq!(api.delete("/sandboxes").await.expect(200).text(), "{\"pruned\":0}\n");
}

#[tokio::test]
async fn logs_and_stats() {
    let api = Api::start().await;
    assert_eq!(api.get("/sandboxes/{id}/logs").await.expect(200).json(), json!(["asked for 100"]));
    assert_eq!(api.get("/sandboxes/{id}/logs?lines=7").await.expect(200).json(), json!(["asked for 7"]));
    let console = api.get("/sandboxes/{id}/logs?source=console&lines=7").await.expect(200).json();
    assert_eq!(console, json!(["console, asked for 7"]));
    assert_eq!(api.get("/sandboxes/{id}/logs?source=processes").await.json(), json!(["asked for 100"]));
    api.get("/sandboxes/{id}/logs?source=nope").await.expect_error(400, "BAD_REQUEST");
    let stats = api.get("/sandboxes/{id}/stats").await.expect(200).json();
    assert_eq!(
        (&stats["supported"], &stats["mem_bytes"], &stats["mem_limit_bytes"], &stats["cpu_pct"]),
        (&json!(true), &json!(4096), &json!(1 << 30), &json!(0.0))
    );
}

#[tokio::test]
async fn a_slash_at_the_end_changes_nothing() {
    let api = Api::start().await;
    assert_eq!(api.get("/sandboxes/").await.expect(200).json().as_array().unwrap().len(), 1);
    assert_eq!(api.get("/sandboxes/{id}/").await.expect(200).json()["id"], api.id);
    assert_eq!(api.get("/health/").await.expect(200).json()["status"], "ok");
}
