//! Limits that are hit: counted once for each process, stored, told as events, and no more of those than anybody reads.

use crate::{command, config, crash, eventually, fake::Fake, fresh, history, request, start_with};
use stacyvm_engine::Engine;
use stacyvm_provider::Limit;
use stacyvm_store::Store;
use stacyvm_types::{ErrorCode, Event, EventType, Sandbox};

async fn counts(engine: &Engine, id: &str) -> Vec<(Limit, u64)> {
    let hit = engine.get(id).await.unwrap().limits_hit;
    hit.iter().map(|(limit, hits)| (*limit, hits.count)).collect()
}

async fn become_counts(engine: &Engine, id: &str, wanted: &[(Limit, u64)]) {
    eventually(&format!("{wanted:?}"), async || counts(engine, id).await == wanted).await;
}

async fn told(engine: &Engine, store: &Store) -> Vec<Event> {
    let events = history(engine, store).await;
    events.into_iter().filter(|event| event.kind == EventType::SandboxLimit).collect()
}

#[tokio::test]
async fn what_a_command_hits_is_in_its_result_the_sandbox_and_an_event_and_survives_a_crash() {
    let (engine, store, fake) = fresh(config()).await;
    let id = engine.create(request()).await.unwrap().id;
    let plain = serde_json::to_value(Sandbox::from(engine.get(id.as_str()).await.unwrap())).unwrap();
    assert!(plain.get("limits_hit").is_none(), "{plain}");

    let outcome = engine.exec(id.as_str(), command(&["hit", "oom", "pids"])).await.unwrap();
    assert_eq!(outcome.process.limits_hit, [Limit::Oom, Limit::Pids]);
    become_counts(&engine, id.as_str(), &[(Limit::Oom, 1), (Limit::Pids, 1)]).await;
    engine.exec(id.as_str(), command(&["exit", "1"])).await.unwrap();
    engine.exec(id.as_str(), command(&["hit", "oom"])).await.unwrap();
    become_counts(&engine, id.as_str(), &[(Limit::Oom, 2), (Limit::Pids, 1)]).await;

    let shown = serde_json::to_value(Sandbox::from(engine.get(id.as_str()).await.unwrap())).unwrap();
    assert_eq!(shown["limits_hit"]["oom"]["count"], 2, "{shown}");
    assert!(shown["limits_hit"]["oom"]["last_at"].is_string(), "{shown}");
    let events = told(&engine, &store).await;
    let seen: Vec<_> = events
        .iter()
        .map(|e| (e.data["limit"].as_str().unwrap(), e.data["count"].as_u64().unwrap()))
        .collect();
    assert_eq!(seen, [("oom", 1), ("pids", 1), ("oom", 2)]);
    assert_eq!(events[0].data["process_id"].as_str(), Some(outcome.process.id.as_str()));
    let ended = history(&engine, &store).await;
    let ended = ended.iter().find(|event| event.kind == EventType::ExecCompleted).unwrap();
    assert_eq!(ended.data["limits_hit"], serde_json::json!(["oom", "pids"]));

    let stored =
        async || store.sandbox(id.as_str()).await.unwrap().unwrap().limits_hit.contains("\"count\":2");
    eventually("it is stored", stored).await;
    crash(engine).await;
    let engine = start_with(config(), &store, &fake).await;
    assert_eq!(counts(&engine, id.as_str()).await, [(Limit::Oom, 2), (Limit::Pids, 1)]);
}

#[tokio::test]
async fn a_process_counts_once_however_often_it_is_told() {
    let (engine, store, _fake) = fresh(config()).await;
    let id = engine.create(request()).await.unwrap().id;
    let mut hit = command(&["hit", "disk_full"]);
    hit.process_id = Some("p-once".into());
    for _ in 0..3 {
        engine.start_process(id.as_str(), hit.clone()).await.unwrap();
    }
    // Behind it, so that what came before is counted.
    engine.exec(id.as_str(), command(&["hit", "pids"])).await.unwrap();
    become_counts(&engine, id.as_str(), &[(Limit::DiskFull, 1), (Limit::Pids, 1)]).await;
    assert_eq!(told(&engine, &store).await.len(), 2);
}

#[tokio::test]
async fn refused_starts_and_failed_file_operations_count() {
    let (engine, store, _fake) = fresh(config()).await;
    let id = engine.create(request()).await.unwrap().id;
    let refused = engine.exec(id.as_str(), command(&["crowded"])).await.unwrap_err();
    assert_eq!(refused.code(), ErrorCode::ResourceLimit);
    engine.limit_hit(id.as_str(), Limit::DiskFull);
    engine.limit_hit(id.as_str(), Limit::DiskFull);
    engine.limit_hit("sb-unknown", Limit::DiskFull);
    become_counts(&engine, id.as_str(), &[(Limit::DiskFull, 2), (Limit::Pids, 1)]).await;
    let without = |event: &&Event| event.data.get("process_id").is_none();
    assert_eq!(told(&engine, &store).await.iter().filter(without).count(), 2);
}

#[tokio::test]
async fn a_flood_is_counted_and_not_told_one_by_one() {
    let (engine, store, _fake) = fresh(config()).await;
    let id = engine.create(request()).await.unwrap().id;
    for _ in 0..2000 {
        engine.limit_hit(id.as_str(), Limit::DiskFull);
    }
    become_counts(&engine, id.as_str(), &[(Limit::DiskFull, 2000)]).await;
    let events = told(&engine, &store).await;
    assert!((1..=24).contains(&events.len()), "{} events", events.len());
}

#[tokio::test]
async fn what_is_hit_right_before_the_end_is_told() {
    let (engine, store, _fake) = fresh(config()).await;
    let id = engine.create(request()).await.unwrap().id;
    engine.exec(id.as_str(), command(&["hit", "oom"])).await.unwrap();
    engine.exec(id.as_str(), command(&["hit", "oom"])).await.unwrap();
    engine.destroy(id.as_str()).await.unwrap();
    assert_eq!(told(&engine, &store).await.len(), 2);
}

#[tokio::test]
async fn what_was_hit_while_there_was_no_engine_is_counted_once() {
    let (store, fake) = (Store::in_memory().await.unwrap(), Fake::new("fake"));
    let engine = start_with(config(), &store, &fake).await;
    let id = engine.create(request()).await.unwrap().id;
    engine.exec(id.as_str(), command(&["hit", "oom"])).await.unwrap();
    become_counts(&engine, id.as_str(), &[(Limit::Oom, 1)]).await;
    let stored = async || store.sandbox(id.as_str()).await.unwrap().unwrap().limits_hit.contains("oom");
    eventually("it is stored", stored).await;
    crash(engine).await;
    fake.hits_alone(&id, Limit::Oom);
    for _ in 0..2 {
        let engine = start_with(config(), &store, &fake).await;
        become_counts(&engine, id.as_str(), &[(Limit::Oom, 2)]).await;
        let stored =
            async || store.sandbox(id.as_str()).await.unwrap().unwrap().limits_hit.contains("\"count\":2");
        eventually("it is stored", stored).await;
        crash(engine).await;
    }
}
