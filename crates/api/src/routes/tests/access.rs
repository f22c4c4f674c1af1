//! Who may do what, and what everybody gets: errors, request ids, CORS.

use crate::{
    ApiConfig,
    testing::{Answer, Api},
};
use axum::{Router, body::Body, routing::get};
use http::{Method, Request};
use serde_json::Value;

fn keyed() -> ApiConfig {
    ApiConfig { api_key: Some("k".into()), admin_api_key: Some("a".into()), ..ApiConfig::default() }
}

fn document() -> Value {
    serde_json::from_str(&crate::openapi()).unwrap()
}

/// Every operation of the description: path, method, the scope it declares.
fn operations() -> Vec<(String, Method, String)> {
    let document = document();
    let mut operations = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let method = Method::from_bytes(method.to_ascii_uppercase().as_bytes()).unwrap();
            let security =
                operation["security"].as_array().unwrap_or_else(|| panic!("{method} {path}: no scope"));
            let scope = security.first().map_or("public", |first| {
                first.as_object().unwrap().values().next().unwrap()[0].as_str().unwrap()
            });
            operations.push((path.clone(), method, scope.to_owned()));
        }
    }
    operations
}

async fn call(api: &Api, method: &Method, path: &str, key: Option<&str>) -> Answer {
    let path = path.replace("{id}", "sb-0").replace("{process}", "p").replace("{name}", "nope");
    let mut request = Request::builder().method(method).uri(path).header("host", "localhost");
    if let Some(key) = key {
        request = request.header("x-api-key", key);
    }
    api.send(request.body(Body::empty()).unwrap()).await
}

#[tokio::test]
async fn every_route_declares_a_scope_and_keeps_it() {
    let api = Api::with(keyed()).await;
    let operations = operations();
    assert!(operations.len() > 40, "{}", operations.len());
    for (path, method, scope) in operations {
        if path == "/api/v1/events" {
            continue;
        }
        for path in [path.clone(), format!("{path}/")] {
            let what = format!("{method} {path} ({scope})");
            let anonymous = call(&api, &method, &path, None).await.status;
            let with_key = call(&api, &method, &path, Some("k")).await.status;
            match scope.as_str() {
                "public" => assert_eq!(anonymous, 200, "{what}"),
                "read" | "write" => {
                    assert_eq!(anonymous, 401, "{what}");
                    assert!(![401, 403].contains(&with_key), "{what}: {with_key}");
                }
                "admin" => {
                    assert_eq!((anonymous, with_key), (401, 403), "{what}");
                    let admin = call(&api, &method, &path, Some("a")).await.status;
                    assert!(![401, 403].contains(&admin), "{what}: {admin}");
                }
                other => panic!("{what}: unknown scope {other}"),
            }
        }
    }
}

#[tokio::test]
async fn writing_needs_the_write_scope() {
    // Methods that change something, and conversations; the tests of providers only look.
    for (path, method, scope) in operations() {
        let changes = (!matches!(method, Method::GET | Method::HEAD) && !path.ends_with("/admission"))
            || path.ends_with("/ws");
        match scope.as_str() {
            "read" | "public" => assert!(!changes, "{method} {path}"),
            "write" => assert!(changes, "{method} {path}"),
            _ => {}
        }
    }
}

#[tokio::test]
async fn a_route_without_a_scope_is_denied_to_everybody() {
    for (config, key) in [(ApiConfig::default(), None), (keyed(), Some("a"))] {
        let forgotten = Router::new().route("/api/v1/forgotten", get(|| async { "secret" }));
        let api = Api::bare(config, Some(forgotten)).await;
        let answer = call(&api, &Method::GET, "/api/v1/forgotten", key).await;
        answer.expect_error(403, "FORBIDDEN");
    }
}

#[tokio::test]
async fn refusals_use_the_words_of_the_contract() {
    let api = Api::with(keyed()).await;
    let answer = call(&api, &Method::GET, "/api/v1/health", None).await;
    assert_eq!(answer.text(), "{\"code\":\"UNAUTHORIZED\",\"message\":\"invalid or missing API key\"}\n");
    let answer = call(&api, &Method::GET, "/api/v1/admin/metrics", Some("k")).await;
    assert_eq!(answer.text(), "{\"code\":\"FORBIDDEN\",\"message\":\"admin API key required\"}\n");
    let answer = call(&api, &Method::GET, "/api/v1/nowhere", None).await;
    answer.expect_error(401, "UNAUTHORIZED");
}

#[tokio::test]
async fn unknown_routes_and_methods_are_json_errors() {
    let api = Api::start().await;
    for path in ["/nowhere", "/templates", "/sandboxes/{id}/nowhere"] {
        api.get(path).await.expect_error(404, "NOT_FOUND");
    }
    let answer = api.send(api.request(Method::PATCH, "/sandboxes").body(Body::empty()).unwrap()).await;
    answer.expect_error(405, "METHOD_NOT_ALLOWED");
    assert!(answer.header("allow").contains("POST"), "{}", answer.header("allow"));
    assert_eq!(call(&api, &Method::GET, "/", None).await.expect_error(404, "NOT_FOUND"), "no such route");
}

#[tokio::test]
async fn with_a_key_json_needs_no_content_type_and_any_host_will_do() {
    let api = Api::with(keyed()).await;
    let request = Request::post("/api/v1/sandboxes").header("host", "vm.example").header("x-api-key", "k");
    api.send(request.body(Body::from("{}")).unwrap()).await.expect(201);
}

#[tokio::test]
async fn without_a_key_web_pages_stay_out() {
    let api = Api::start().await;
    let send = async |method: Method, path: &str, headers: &[(&str, &str)], body: &'static str| {
        let path = format!("/api/v1{}", path.replace("{id}", &api.id));
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        api.send(request.body(Body::from(body)).unwrap()).await
    };
    let host = ("host", "127.0.0.1:7423");
    let json = ("content-type", "application/json");
    send(Method::POST, "/sandboxes", &[host, json, ("content-length", "2")], "{}").await.expect(201);
    let plain = [host, ("content-type", "text/plain"), ("content-length", "2")];
    send(Method::POST, "/sandboxes", &plain, "{}").await.expect_error(400, "BAD_REQUEST");
    let rebound = [("host", "evil.example:7423"), json];
    for (method, path) in [
        (Method::GET, "/sandboxes"),
        (Method::GET, "/openapi.json"),
        (Method::DELETE, "/sandboxes/{id}"),
        (Method::PUT, "/sandboxes/{id}/files?path=/a"),
    ] {
        send(method.clone(), path, &rebound, "").await.expect_error(403, "FORBIDDEN");
        let foreign = [host, ("origin", "https://evil.example")];
        send(method.clone(), path, &foreign, "").await.expect_error(403, "FORBIDDEN");
        let cross = [host, ("sec-fetch-site", "cross-site")];
        send(method, path, &cross, "").await.expect_error(403, "FORBIDDEN");
    }
    api.get("/sandboxes/{id}").await.expect(200);
    send(Method::PUT, "/sandboxes/{id}/files?path=/a", &[host, ("content-length", "1")], "x")
        .await
        .expect(200);
}

#[tokio::test]
async fn request_ids_are_echoed_generated_and_never_forged() {
    let api = Api::start().await;
    let id = async |id: &str| {
        let request =
            api.request(Method::GET, "/nowhere").header("x-request-id", id).body(Body::empty()).unwrap();
        api.send(request).await.header("x-request-id").to_owned()
    };
    assert_eq!(id("abc-1").await, "abc-1");
    let generated = id("a b").await;
    assert_eq!((generated.len(), generated.contains(' ')), (36, false));
}

fn preflight(origin: &str) -> Request<Body> {
    Request::builder()
        .method(Method::OPTIONS)
        .uri("/api/v1/sandboxes")
        .header("host", "localhost")
        .header("origin", origin)
        .header("access-control-request-method", "PUT")
        .header("access-control-request-headers", "x-api-key,content-type")
        .body(Body::empty())
        .unwrap()
}

#[tokio::test]
async fn preflights_need_no_key_and_errors_can_be_read_by_pages() {
    let api = Api::with(keyed()).await;
    let answer = api.send(preflight("https://ui.example")).await;
    assert_eq!(answer.expect(200).header("access-control-allow-origin"), "*");
    let methods = answer.header("access-control-allow-methods");
    assert!(["PUT", "PATCH", "HEAD", "DELETE"].iter().all(|method| methods.contains(method)), "{methods}");
    assert!(answer.header("access-control-allow-headers").contains("x-api-key"));
    let request =
        Request::get("/api/v1/health").header("origin", "https://ui.example").body(Body::empty()).unwrap();
    let answer = api.send(request).await;
    assert_eq!((answer.status, answer.header("access-control-allow-origin")), (401, "*"));
}

#[tokio::test]
async fn only_named_origins_are_echoed_and_no_wildcard_without_a_key() {
    let named = ApiConfig { cors_allowed_origins: vec!["https://ui.example".into()], ..keyed() };
    let open = ApiConfig {
        cors_allowed_origins: vec!["*".into(), "https://ui.example".into()],
        ..ApiConfig::default()
    };
    for config in [named, open] {
        let api = Api::with(config).await;
        let answer = api.send(preflight("https://ui.example")).await;
        assert_eq!(answer.header("access-control-allow-origin"), "https://ui.example");
        assert!(answer.header("vary").to_ascii_lowercase().contains("origin"));
        let answer = api.send(preflight("https://evil.example")).await;
        assert_eq!(answer.header("access-control-allow-origin"), "");
    }
    let api = Api::start().await;
    assert_eq!(api.send(preflight("https://evil.example")).await.header("access-control-allow-origin"), "");
}

#[tokio::test]
async fn a_panic_is_a_500_in_json() {
    // In the place of a declared route, so that the request gets through to it.
    let broken = Router::new().route(
        "/api/v1/health",
        get(|| async {
            if true {
                panic!("secret")
            }
        }),
    );
    let api = Api::bare(ApiConfig::default(), Some(broken)).await;
    let message = api.get("/health").await.expect_error(500, "INTERNAL_ERROR");
    assert_eq!(message, "internal error");
}
