//! Exec: waiting and streaming.

use crate::testing::{Api, eventually};
use serde_json::json;
use stacyvm_provider::Outcome;

#[tokio::test]
async fn a_command_answers_with_the_four_keys_of_the_contract() {
    let api = Api::start().await;
    let answer = api.post("/sandboxes/{id}/exec", r#"{"command":"out=4 err=warn exit=42"}"#).await;
    let result = answer.expect(200).json();
    assert_eq!(
        (&result["exit_code"], &result["stdout"], &result["stderr"]),
        (&json!(42), &json!("4"), &json!("warn"))
    );
    assert!(result["duration"].as_str().unwrap().ends_with('s'), "{result}");
    assert_eq!(result.as_object().unwrap().len(), 4, "{result}");
}

#[tokio::test]
async fn death_by_a_signal_and_replaced_bytes_are_said() {
    let api = Api::start().await;
    let result = api.post("/sandboxes/{id}/exec", r#"{"command":"hex=61ff signal=9"}"#).await.json();
    assert_eq!(
        (&result["exit_code"], &result["signal"], &result["stdout"], &result["stdout_replaced"]),
        (&json!(137), &json!(9), &json!("a\u{fffd}"), &json!(true))
    );
    let body = r#"{"command":"hex=61ff","encoding":"base64"}"#;
    let result = api.post("/sandboxes/{id}/exec", body).await.json();
    assert_eq!((&result["stdout"], &result["encoding"]), (&json!("Yf8="), &json!("base64")));
    assert!(result.get("stdout_replaced").is_none(), "{result}");
}

#[tokio::test]
async fn a_deadline_is_408_or_on_request_a_partial_result() {
    let api = Api::start().await;
    let message =
        api.post("/sandboxes/{id}/exec", r#"{"command":"out=x timeout"}"#).await.expect_error(408, "TIMEOUT");
    assert_eq!(message, format!("exec timeout: {}", api.id));
    let result =
        api.post("/sandboxes/{id}/exec", r#"{"command":"out=x timeout","partial":true}"#).await.json();
    assert_eq!(
        (&result["timed_out"], &result["stdout"], &result["exit_code"]),
        (&json!(true), &json!("x"), &json!(137))
    );
}

#[tokio::test]
async fn no_exit_code_is_invented() {
    let api = Api::start().await;
    let answer = api.post("/sandboxes/{id}/exec", r#"{"command":"lost"}"#).await;
    assert!(answer.status >= 500, "{}", answer.text());
}

#[tokio::test]
async fn bad_requests_are_refused() {
    let api = Api::start().await;
    for body in [
        r#"{"command":" ","mode":"argv"}"#,
        r#"{"command":"ls","mode":"telnet"}"#,
        r#"{"command":"ls","env":{"A=B":"x"}}"#,
        r#"{"command":"ls","timeout":"soon"}"#,
        r#"{"command":"l\u0000s"}"#,
    ] {
        api.post("/sandboxes/{id}/exec", body).await.expect_error(400, "BAD_REQUEST");
    }
    api.post("/sandboxes/{id}/exec", r#"{"command":"ls","timeout":"-1s"}"#)
        .await
        .expect_error(429, "RESOURCE_LIMIT");
    api.post("/sandboxes/{id}/exec", r#"{"command":"missing"}"#).await.expect_error(404, "NOT_FOUND");
    api.post("/sandboxes/{id}/exec", r#"{"command":"missing","stream":true}"#)
        .await
        .expect_error(404, "NOT_FOUND");
    api.post("/sandboxes/sb-0/exec", r#"{"command":"ls","stream":true}"#)
        .await
        .expect_error(404, "NOT_FOUND");
}

#[tokio::test]
async fn a_stream_is_lines_of_two_keys_and_nothing_else() {
    let api = Api::start().await;
    let body = r#"{"command":"out=hello hex=e2 hex=82ac err=warn exit=3","stream":true}"#;
    let answer = api.post("/sandboxes/{id}/exec", body).await;
    assert_eq!(answer.header("content-type"), "application/x-ndjson");
    assert_eq!(answer.header("cache-control"), "no-cache");
    assert!(!answer.cut);
    let lines: Vec<serde_json::Value> =
        answer.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(
        lines,
        [
            json!({"stream": "stdout", "data": "hello"}),
            json!({"stream": "stdout", "data": "€"}),
            json!({"stream": "stderr", "data": "warn"}),
        ]
    );
}

#[tokio::test]
async fn full_records_are_asked_for_in_three_ways() {
    let api = Api::start().await;
    let plain = r#"{"command":"out=a exit=3","stream":true}"#;
    let body = r#"{"command":"out=a exit=3","stream":true,"records":"full"}"#;
    let accept = api
        .request(http::Method::POST, "/sandboxes/{id}/exec")
        .header("content-type", "application/json")
        .header("accept", "application/x-ndjson; records=full")
        .body(plain.into())
        .unwrap();
    for answer in [
        api.post("/sandboxes/{id}/exec", body).await,
        api.post("/sandboxes/{id}/exec?records=full", plain).await,
        api.send(accept).await,
    ] {
        let text = answer.expect(200).text();
        let lines: Vec<_> = text.lines().collect();
        assert!(lines[0].starts_with(r#"{"stream":"start","process_id":"p-"#), "{text}");
        assert_eq!(lines[1], r#"{"stream":"stdout","offset":0,"data":"YQ=="}"#);
        assert_eq!(lines[2..], [r#"{"stream":"exit","exit_code":3}"#]);
    }
}

#[tokio::test]
async fn a_streamed_command_dies_with_its_client() {
    let api = Api::start().await;
    let mut lines = api.stream("/sandboxes/{id}/exec", r#"{"command":"out=x hang","stream":true}"#).await;
    assert!(lines.next().await.unwrap().contains("stdout"));
    let [process] = &api.guest.process_ids()[..] else { panic!("one process") };
    assert_eq!(api.guest.outcome(process), None);
    drop(lines);
    eventually("killed", || api.guest.outcome(process) == Some(Outcome::Signaled(9))).await;
}

#[tokio::test]
async fn a_detached_command_outlives_its_client() {
    let api = Api::start().await;
    let body = r#"{"command":"out=x hang","stream":true,"detach":true}"#;
    let mut lines = api.stream("/sandboxes/{id}/exec", body).await;
    lines.next().await.unwrap();
    drop(lines);
    // Whatever a guard would have spawned has had its turn by then.
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert_eq!(api.guest.outcome(&api.guest.process_ids()[0]), None);
}

#[tokio::test]
async fn a_stream_that_ended_well_kills_nothing() {
    let api = Api::start().await;
    api.post("/sandboxes/{id}/exec", r#"{"command":"out=x","stream":true}"#).await.expect(200);
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert_eq!(api.guest.outcome(&api.guest.process_ids()[0]), Some(Outcome::Exited(0)));
}
