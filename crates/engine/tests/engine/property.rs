//! Whatever happens in whatever order: once faults end and the engine was started again, every sandbox that the store
//! knows is in a settled state, the runtime holds exactly those that live, and all of them can be destroyed.

use crate::{
    config, crash, eventually,
    fake::{Act, Fake, Op},
    start_with,
};
use proptest::prelude::*;
use stacyvm_engine::{CreateRequest, Engine, EngineConfig, ListFilter, Store};
use stacyvm_provider::ErrorKind;
use std::{collections::BTreeSet, time::Duration};

#[derive(Debug, Clone)]
enum Step {
    /// In the background: with a fault, it may never end.
    Create {
        key: Option<u8>,
        ttl_ms: Option<u64>,
        ephemeral: bool,
    },
    Destroy(usize),
    Extend(usize),
    Freeze(usize),
    Thaw(usize),
    Prune,
    Fault(Op, Act),
    Lasting(Op, Act),
    Heal,
    Die(usize),
    Crash,
    Stop,
    Pause(u64),
}

fn ops() -> impl Strategy<Value = Op> {
    prop::sample::select(vec![
        Op::Create,
        Op::Destroy,
        Op::Pause,
        Op::Resume,
        Op::Status,
        Op::Connect,
        Op::List,
        Op::Ping,
    ])
}

fn acts() -> impl Strategy<Value = Act> {
    let kinds = prop::sample::select(ErrorKind::ALL.to_vec());
    prop_oneof![
        kinds.clone().prop_map(Act::Fail),
        kinds.clone().prop_map(Act::Half),
        kinds.prop_map(Act::FailAfter),
        Just(Act::Hang),
        Just(Act::HangAfter),
        Just(Act::Wait(Duration::from_millis(3))),
    ]
}

/// A runtime never says `NotFound` or `Destroyed` of what it has: that is its word, and it is believed.
fn is_lie(op: Op, act: Act) -> bool {
    let kind = match act {
        Act::Fail(kind) | Act::Half(kind) | Act::FailAfter(kind) => kind,
        _ => return false,
    };
    op == Op::Status && matches!(kind, ErrorKind::NotFound | ErrorKind::Destroyed)
}

fn steps() -> impl Strategy<Value = Step> {
    let fault = || (ops(), acts()).prop_filter("a lie", |(op, act)| !is_lie(*op, *act));
    let create = (prop::option::of(0..3u8), prop::option::weighted(0.2, 1..30u64), prop::bool::weighted(0.1));
    prop_oneof![
        4 => create.prop_map(|(key, ttl_ms, ephemeral)| Step::Create { key, ttl_ms, ephemeral }),
        3 => (0..8usize).prop_map(Step::Destroy),
        1 => (0..8usize).prop_map(Step::Extend),
        2 => (0..8usize).prop_map(Step::Freeze),
        1 => (0..8usize).prop_map(Step::Thaw),
        1 => Just(Step::Prune),
        3 => fault().prop_map(|(op, act)| Step::Fault(op, act)),
        1 => fault().prop_map(|(op, act)| Step::Lasting(op, act)),
        1 => Just(Step::Heal),
        1 => (0..8usize).prop_map(Step::Die),
        1 => Just(Step::Crash),
        1 => Just(Step::Stop),
        2 => (1..8u64).prop_map(Step::Pause),
    ]
}

fn hurried() -> EngineConfig {
    EngineConfig {
        create_deadline: Duration::from_millis(60),
        destroy_attempt: Duration::from_millis(40),
        destroy_wait: Duration::from_millis(60),
        provider_deadline: Duration::from_millis(40),
        retry: (Duration::from_millis(2), Duration::from_millis(8)),
        probe_interval: Duration::from_millis(10),
        health_interval: Duration::from_millis(3),
        shutdown_grace: Duration::from_millis(50),
        ..config()
    }
}

async fn pick(engine: &Engine, n: usize) -> Option<stacyvm_provider::SandboxId> {
    let records = engine.list(ListFilter::default()).await.unwrap();
    (!records.is_empty()).then(|| records[n % records.len()].id.clone())
}

async fn walk(steps: Vec<Step>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s.db");
    let fake = Fake::new("fake");
    let mut store = Store::open(&path).await.unwrap();
    let mut engine = start_with(hurried(), &store, &fake).await;
    for step in steps {
        match step {
            Step::Create { key, ttl_ms, ephemeral } => {
                let request = CreateRequest {
                    idempotency_key: key.map(|key| key.to_string()),
                    ttl: ttl_ms.map(Duration::from_millis),
                    ephemeral,
                    ..CreateRequest::default()
                };
                let engine = engine.clone();
                tokio::spawn(async move { engine.create(request).await });
            }
            Step::Destroy(n) => {
                if let Some(id) = pick(&engine, n).await {
                    let engine = engine.clone();
                    tokio::spawn(async move { engine.destroy(id.as_str()).await });
                }
            }
            Step::Extend(n) => {
                if let Some(id) = pick(&engine, n).await {
                    let _ = engine.extend(id.as_str(), Duration::from_secs(60)).await;
                }
            }
            Step::Freeze(n) => {
                if let Some(id) = pick(&engine, n).await {
                    let engine = engine.clone();
                    tokio::spawn(async move { engine.pause(id.as_str()).await });
                }
            }
            Step::Thaw(n) => {
                if let Some(id) = pick(&engine, n).await {
                    let engine = engine.clone();
                    tokio::spawn(async move { engine.resume(id.as_str()).await });
                }
            }
            Step::Prune => drop(engine.prune().await),
            Step::Fault(op, act) => fake.once(op, act),
            Step::Lasting(op, act) => fake.always(op, act),
            Step::Heal => fake.heal(),
            Step::Die(n) => {
                if let Some(id) = pick(&engine, n).await {
                    fake.kill(&id, "it died");
                }
            }
            Step::Crash => {
                // Callers hold clones of the engine: what ends is its tasks, as in a killed process.
                engine.halt();
                crash(engine).await;
                engine = start_with(hurried(), &store, &fake).await;
            }
            Step::Stop => {
                engine.shutdown().await;
                store = Store::open(&path).await.unwrap();
                engine = start_with(hurried(), &store, &fake).await;
            }
            Step::Pause(ms) => tokio::time::sleep(Duration::from_millis(ms)).await,
        }
    }
    engine.halt();
    crash(engine).await;
    fake.heal();
    let engine = start_with(hurried(), &store, &fake).await;
    settles(&engine, &store, &fake).await;
    for record in engine.list(ListFilter::default()).await.unwrap() {
        engine.destroy(record.id.as_str()).await.ok();
    }
    eventually("all destroyed", async || {
        store.live_sandboxes().await.unwrap().is_empty() && fake.ids().is_empty()
    })
    .await;
    engine.shutdown().await;
}

async fn settles(engine: &Engine, store: &Store, fake: &Fake) {
    eventually("settled", async || {
        let rows = store.live_sandboxes().await.unwrap();
        let records = engine.list(ListFilter::default()).await.unwrap();
        let stored: BTreeSet<_> = rows.iter().map(|row| (row.id.clone(), row.state.as_str())).collect();
        let known: BTreeSet<_> =
            records.iter().map(|record| (record.id.to_string(), record.state.as_str())).collect();
        let alive = |state: &str| matches!(state, "running" | "paused");
        let living: BTreeSet<_> = known.iter().filter(|(_, s)| alive(s)).map(|(id, _)| id.clone()).collect();
        let settled = known.iter().all(|(_, state)| alive(state) || *state == "error");
        settled && stored == known && living == fake.ids().into_iter().collect()
    })
    .await;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 40, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_leaked_and_nothing_is_stuck(steps in prop::collection::vec(steps(), 1..30)) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(walk(steps));
    }
}
