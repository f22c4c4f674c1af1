//! Health, metrics, providers.

use crate::{ApiConfig, testing::Api};
use axum::body::Body;
use serde_json::json;

#[tokio::test]
async fn health_answers_hold_the_strings_that_scripts_look_for() {
    let api = Api::start().await;
    for (path, text) in [
        ("/health", r#""status":"ok""#),
        ("/live", r#""status":"alive""#),
        ("/ready", r#""status":"ready""#),
        ("/metrics/prometheus", "stacyvm_uptime_seconds "),
    ] {
        let answer = api.get(path).await;
        assert!(answer.expect(200).text().contains(text), "{path}: {}", answer.text());
    }
    let health = api.get("/health").await.json();
    assert_eq!(health["version"], env!("CARGO_PKG_VERSION"));
    assert!(health["uptime"].as_str().unwrap().ends_with('s'));
}

#[tokio::test]
async fn without_a_healthy_provider_the_server_is_alive_but_not_ready() {
    let api = Api::bare(ApiConfig::default(), None).await;
    let answer = api.get("/ready").await;
    assert!(answer.expect(503).text().starts_with(r#"{"status":"not_ready""#), "{}", answer.text());
    api.get("/live").await.expect(200);
}

#[tokio::test]
async fn providers_are_shown_with_the_keys_of_the_contract() {
    let api = Api::start().await;
    let list = api.get("/providers").await.expect(200).json();
    let [provider] = &list.as_array().unwrap()[..] else { panic!("{list}") };
    assert_eq!(
        (&provider["name"], &provider["healthy"], &provider["default"]),
        (&json!("fake"), &json!(true), &json!(true))
    );
    assert!(
        provider["latency_ms"].is_u64() && provider["last_checked"].as_str().unwrap().len() == 20,
        "{provider}"
    );
    assert!(provider["capabilities"].as_array().unwrap().contains(&json!("exec_stream")));
    let detail = api.get("/providers/fake").await.expect(200).json();
    assert_eq!((&detail["sandbox_count"], &detail["config"]["type"]), (&json!(1), &json!("other")));
    assert_eq!(detail["health"]["name"], "fake");
    let message = api.get("/providers/nope").await.expect_error(404, "NOT_FOUND");
    assert_eq!(message, "provider not found: nope");
    assert_eq!(api.post("/providers/test", "").await.expect(200).json(), json!({"fake": true}));
}

#[tokio::test]
async fn metrics_count_what_was_done() {
    let api = Api::start().await;
    api.post("/sandboxes/{id}/exec", r#"{"command":"exit=0"}"#).await.expect(200);
    api.post("/sandboxes/{id}/files", r#"{"path":"/workspace/f","content":"x"}"#).await.expect(200);
    api.get("/sandboxes/{id}/files/stat?path=/none").await.expect(404);
    let metrics = api.get("/metrics").await.expect(200).json();
    assert_eq!(metrics["sandboxes"]["by_state"], json!({"running": 1}));
    assert_eq!(metrics["sandboxes"]["by_provider"], json!({"fake": 1}));
    let count = |operation: &str, key: &str| {
        let operations = metrics["operations"].as_array().unwrap();
        operations.iter().find(|o| o["operation"] == operation).map(|o| o[key].as_u64().unwrap())
    };
    assert_eq!(count("spawn", "success_total"), Some(1), "{metrics}");
    assert_eq!(count("exec", "success_total"), Some(1), "{metrics}");
    assert_eq!(count("file_write", "success_total"), Some(1), "{metrics}");
    assert_eq!(count("file_stat", "failure_total"), Some(1), "{metrics}");
    assert!(metrics["memory_sys"].as_u64().unwrap() > 0);
    let answer = api.get("/metrics/prometheus").await;
    assert_eq!(answer.header("content-type"), "text/plain; version=0.0.4; charset=utf-8");
    let text = answer.text();
    for line in [
        "stacyvm_sandboxes_total{state=\"running\"} 1\n",
        "stacyvm_provider_healthy{provider=\"fake\",default=\"true\"} 1\n",
        "stacyvm_operation_success_total{operation=\"exec\",provider=\"fake\"} 1\n",
    ] {
        assert!(text.contains(line), "{line}{text}");
    }
}

#[tokio::test]
async fn small_answers() {
    let api = Api::start().await;
    assert_eq!(api.get("/pool/status").await.expect(200).text(), "{\"enabled\":false}\n");
    let quotas = api.get("/quotas/summary").await.expect(200).json();
    let zeros = json!({"total": 0, "with_max_sandboxes": 0, "with_max_ttl": 0, "with_max_exec_timeout": 0});
    assert_eq!(quotas, zeros);
    let stats = api.get("/system/stats").await.expect(200).json();
    for key in ["cpu_pct", "mem_pct", "disk_pct", "net_rx_bps", "net_tx_bps", "load1"] {
        assert!(stats[key].is_number(), "{stats}");
    }
    let diagnostics = api.get("/diagnostics").await.expect(200).json();
    assert_eq!(diagnostics["limits"]["max_ttl"], "24h0m0s");
}

#[tokio::test]
async fn the_description_is_served_to_everybody() {
    let api = Api::start().await;
    let generated = crate::openapi();
    assert_eq!(api.get("/openapi.json").await.expect(200).text(), generated);
    let request =
        http::Request::get("/swagger/doc.json").header("host", "localhost").body(Body::empty()).unwrap();
    assert_eq!(api.send(request).await.expect(200).text(), generated);
}
