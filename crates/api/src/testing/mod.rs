//! A whole API for tests: the real router and the real engine over a store in memory, with a guest in memory below.

mod guest;
pub(crate) mod trees;

pub(crate) use guest::FakeGuest;

use crate::{ApiConfig, ApiState};
use async_trait::async_trait;
use axum::{Router, body::Body};
use bytes::Bytes;
use futures::{StreamExt, stream::BoxStream};
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::BodyExt;
use serde_json::Value;
use stacyvm_engine::{CreateRequest, Engine, EngineConfig, Store};
use stacyvm_provider::{
    Capabilities, Created, Error, Guest, Health, Provider, Result, RuntimeSandbox, RuntimeState,
    RuntimeStats, SandboxId, SandboxSpec,
};
use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::Duration,
};
use tower::ServiceExt;

/// The API under test, with one sandbox.
pub(crate) struct Api {
    pub(crate) router: Router,
    pub(crate) guest: Arc<FakeGuest>,
    /// The sandbox.
    pub(crate) id: String,
}

/// An answer, read to its end.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    /// The body broke off.
    pub(crate) cut: bool,
}

impl Api {
    /// Without keys.
    pub(crate) async fn start() -> Self {
        Self::with(ApiConfig::default()).await
    }

    pub(crate) async fn with(config: ApiConfig) -> Self {
        let guest = Arc::new(FakeGuest::default());
        let provider =
            FakeProvider { guest: Arc::clone(&guest), held: Mutex::default(), paused: Mutex::default() };
        let mut settings = EngineConfig::default();
        settings.defaults.provider = "fake".into();
        settings.limits.max_ttl = Duration::from_secs(24 * 3600);
        settings.limits.max_exec_timeout = Duration::from_secs(600);
        let store = Store::in_memory().await.unwrap();
        let engine = Engine::start(settings, store, vec![Arc::new(provider)]).await.unwrap();
        let sandbox = engine.create(CreateRequest::default()).await.unwrap();
        let router = crate::router(ApiState::new(engine, None, config));
        Self { router, guest, id: sandbox.id.into() }
    }

    /// The same router around an engine without any provider; `routes` replace those of the API.
    pub(crate) async fn bare(config: ApiConfig, routes: Option<Router<ApiState>>) -> Self {
        let store = Store::in_memory().await.unwrap();
        let engine = Engine::start(EngineConfig::default(), store, vec![]).await.unwrap();
        let state = ApiState::new(engine, None, config);
        let router = match routes {
            Some(routes) => crate::layered(routes, state),
            None => crate::router(state),
        };
        Self { router, guest: Arc::default(), id: "sb-0".into() }
    }

    /// Sends a request as it is.
    pub(crate) async fn send(&self, request: Request<Body>) -> Answer {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, mut body) = response.into_parts();
        let (mut bytes, mut cut) = (Vec::new(), false);
        while let Some(frame) = body.frame().await {
            match frame {
                Ok(frame) => bytes.extend_from_slice(frame.data_ref().map_or(&[], |data| &data[..])),
                Err(_) => cut = true,
            }
        }
        Answer { status: parts.status.as_u16(), headers: parts.headers, body: bytes.into(), cut }
    }

    /// A request of an ordinary local client; `{id}` in the path is the sandbox.
    pub(crate) fn request(&self, method: Method, path: &str) -> http::request::Builder {
        let uri = format!("/api/v1{}", path.replace("{id}", &self.id));
        Request::builder().method(method).uri(uri).header("host", "localhost:7423")
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(self.request(Method::GET, path).body(Body::empty()).unwrap()).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Answer {
        self.send(self.request(Method::DELETE, path).body(Body::empty()).unwrap()).await
    }

    /// Posts JSON.
    pub(crate) async fn post(&self, path: &str, body: impl Into<Body>) -> Answer {
        let request = self.request(Method::POST, path).header("content-type", "application/json");
        let mut request = request.body(body.into()).unwrap();
        // As a client on a connection would have it.
        request.headers_mut().insert("transfer-encoding", "chunked".parse().unwrap());
        self.send(request).await
    }

    /// Posts JSON and reads the answer line by line while it comes.
    pub(crate) async fn stream(&self, path: &str, body: &'static str) -> Lines {
        let request = self.request(Method::POST, path).header("content-type", "application/json");
        self.open(request.body(Body::from(body)).unwrap()).await
    }

    /// Reads an answer line by line while it comes.
    pub(crate) async fn open(&self, request: Request<Body>) -> Lines {
        let response = self.router.clone().oneshot(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        Lines { body: StreamExt::boxed(response.into_body().into_data_stream()), text: String::new() }
    }
}

impl Answer {
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The status, after a look whether an error has the shape of one.
    #[track_caller]
    pub(crate) fn expect(&self, status: u16) -> &Self {
        assert_eq!(self.status, status, "{}", self.text());
        self
    }

    /// An error of this status and code, in exactly the two keys of the contract.
    #[track_caller]
    pub(crate) fn expect_error(&self, status: u16, code: &str) -> String {
        self.expect(status);
        let body = self.json();
        let keys: Vec<_> = body.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["code", "message"], "{body}");
        assert_eq!(body["code"], code, "{body}");
        assert_eq!(self.headers["content-type"], "application/json");
        body["message"].as_str().unwrap().to_owned()
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }
}

/// An answer that is still coming.
pub(crate) struct Lines {
    body: BoxStream<'static, std::result::Result<Bytes, axum::Error>>,
    text: String,
}

impl Lines {
    /// The next line that is not empty.
    pub(crate) async fn next(&mut self) -> Option<String> {
        loop {
            if let Some((line, rest)) = self.text.split_once('\n') {
                let (line, rest) = (line.to_owned(), rest.to_owned());
                self.text = rest;
                if !line.is_empty() {
                    return Some(line);
                }
                continue;
            }
            let piece =
                tokio::time::timeout(Duration::from_secs(30), self.body.next()).await.unwrap()?.unwrap();
            self.text += std::str::from_utf8(&piece).unwrap();
        }
    }
}

/// Tries until `condition` holds.
pub(crate) async fn eventually(what: &'static str, condition: impl Fn() -> bool) {
    for _ in 0..3000 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never: {what}");
}

/// Every sandbox is the same guest.
struct FakeProvider {
    guest: Arc<FakeGuest>,
    held: Mutex<BTreeSet<SandboxId>>,
    paused: Mutex<BTreeSet<SandboxId>>,
}

impl FakeProvider {
    fn check(&self, id: &SandboxId) -> Result<()> {
        let held = self.held.lock().unwrap().contains(id);
        if held { Ok(()) } else { Err(Error::not_found("no such sandbox")) }
    }
}

#[async_trait]
impl Provider for FakeProvider {
    fn name(&self) -> &str {
        "fake"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            isolation: "test_provider",
            survives_restart: false,
            memory_limit: false,
            cpu_limit: false,
            pids_limit: false,
            root_user: false,
            isolated: false,
            stats: true,
            pause: true,
            oom_ends_sandbox: false,
            disk_limit: false,
            pty: true,
            pty_signals: true,
        }
    }

    async fn health(&self) -> Health {
        Health { healthy: true, problem: None, warnings: vec![], latency: Duration::from_millis(1) }
    }

    async fn create(&self, id: &SandboxId, spec: &SandboxSpec) -> Result<Created> {
        if spec.image == "no-such-image" {
            return Err(Error::not_found("no such image"));
        }
        self.held.lock().unwrap().insert(id.clone());
        Ok(Created { runtime_id: None })
    }

    async fn connect(&self, id: &SandboxId) -> Result<Arc<dyn Guest>> {
        self.check(id)?;
        Ok(Arc::clone(&self.guest) as Arc<dyn Guest>)
    }

    async fn destroy(&self, id: &SandboxId) -> Result<()> {
        self.held.lock().unwrap().remove(id);
        Ok(())
    }

    async fn status(&self, id: &SandboxId) -> Result<RuntimeState> {
        self.check(id)?;
        let paused = self.paused.lock().unwrap().contains(id);
        Ok(if paused { RuntimeState::Paused } else { RuntimeState::Running })
    }

    async fn pause(&self, id: &SandboxId) -> Result<()> {
        self.check(id)?;
        self.paused.lock().unwrap().insert(id.clone());
        Ok(())
    }

    async fn resume(&self, id: &SandboxId) -> Result<()> {
        self.check(id)?;
        self.paused.lock().unwrap().remove(id);
        Ok(())
    }

    async fn console(&self, id: &SandboxId, lines: u32) -> Result<Vec<String>> {
        self.check(id)?;
        Ok(vec![format!("console, asked for {lines}")])
    }

    async fn ended(&self, _: &SandboxId) -> String {
        std::future::pending().await
    }

    async fn list(&self) -> Result<Vec<RuntimeSandbox>> {
        let entry =
            |id: &SandboxId| RuntimeSandbox { id: id.clone(), state: RuntimeState::Running, image: None };
        Ok(self.held.lock().unwrap().iter().map(entry).collect())
    }

    async fn stats(&self, id: &SandboxId) -> Result<RuntimeStats> {
        self.check(id)?;
        let limit = 1 << 30;
        Ok(RuntimeStats {
            cpu_time: Duration::from_secs(1),
            memory_bytes: 4096,
            memory_limit_bytes: limit,
            pids: 2,
        })
    }
}
