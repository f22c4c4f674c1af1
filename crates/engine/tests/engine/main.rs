//! The engine against a scripted runtime: life cycle under every fault, recovery, admission, exec, events.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "in tests that is how a failure is reported"
)]

mod create;
mod destroy;
mod events;
mod exec;
mod fake;
mod guest;
mod health;
mod limits;
mod pause;
mod property;
mod recovery;
mod store_faults;

use fake::Fake;
use stacyvm_engine::{
    CreateRequest, Defaults, Engine, EngineConfig, Error, ExecRequest, SandboxState, Store,
};
use stacyvm_types::{Event, EventType};
use std::time::Duration;

/// Settings under which faults show and heal quickly.
fn config() -> EngineConfig {
    EngineConfig {
        defaults: Defaults { provider: "fake".into(), image: "host".into(), ..Defaults::default() },
        create_deadline: Duration::from_secs(10),
        destroy_attempt: Duration::from_secs(5),
        destroy_wait: Duration::from_secs(10),
        provider_deadline: Duration::from_secs(5),
        retry: (Duration::from_millis(5), Duration::from_millis(20)),
        probe_interval: Duration::from_millis(50),
        health_interval: Duration::from_millis(10),
        reconnect_window: Duration::from_secs(5),
        shutdown_grace: Duration::from_secs(5),
        ..EngineConfig::default()
    }
}

async fn start_with(config: EngineConfig, store: &Store, fake: &Fake) -> Engine {
    Engine::start(config, store.clone(), vec![fake.provider()]).await.unwrap()
}

/// An engine on an empty store and runtime.
async fn fresh(config: EngineConfig) -> (Engine, Store, Fake) {
    let (store, fake) = (Store::in_memory().await.unwrap(), Fake::new("fake"));
    (start_with(config, &store, &fake).await, store, fake)
}

/// Ends an engine as a kill would.
async fn crash(engine: Engine) {
    drop(engine);
    // Its tasks are dropped by the scheduler, not by us.
    tokio::time::sleep(Duration::from_millis(2)).await;
}

/// Waits for a condition; the time limit is for a defect only.
async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    for _ in 0..4000 {
        if condition().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("never: {what}");
}

async fn state(engine: &Engine, id: &str) -> Option<SandboxState> {
    engine.get(id).await.ok().map(|record| record.state)
}

async fn becomes(engine: &Engine, id: &str, wanted: SandboxState) {
    eventually(&format!("{id} {wanted}"), async || state(engine, id).await == Some(wanted)).await;
}

async fn is_gone(engine: &Engine, id: &str) {
    eventually(&format!("{id} gone"), async || engine.get(id).await.is_err()).await;
}

fn request() -> CreateRequest {
    CreateRequest::default()
}

fn command(argv: &[&str]) -> ExecRequest {
    ExecRequest { argv: argv.iter().map(|&arg| arg.to_owned()).collect(), ..ExecRequest::default() }
}

/// All events of the store so far.
async fn history(engine: &Engine, store: &Store) -> Vec<Event> {
    engine.events().flush().await;
    let rows = store.events_after(0, 10_000).await.unwrap();
    let event = |row: stacyvm_store::EventRow| Event {
        id: format!("evt-{}", row.seq),
        kind: row.kind,
        sandbox_id: row.sandbox_id,
        timestamp: row.at,
        data: serde_json::from_str(&row.data).unwrap(),
    };
    rows.into_iter().map(event).collect()
}

fn kinds(events: &[Event], id: &str) -> Vec<EventType> {
    events.iter().filter(|event| event.sandbox_id.as_deref() == Some(id)).map(|event| event.kind).collect()
}

fn actions(events: &[Event]) -> Vec<String> {
    let of = |event: &Event| event.data.get("action").and_then(|action| action.as_str()).map(str::to_owned);
    events.iter().filter(|event| event.kind == EventType::ReconcileAction).filter_map(of).collect()
}

#[track_caller]
fn assert_code<T: std::fmt::Debug>(result: Result<T, Error>, code: stacyvm_types::ErrorCode) -> Error {
    let error = result.unwrap_err();
    assert_eq!(error.code(), code, "{error:?}");
    error
}
