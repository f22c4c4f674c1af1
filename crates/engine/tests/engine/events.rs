//! The event stream: numbered, replayed, without gap or duplicate, whatever the subscriber does.

use crate::{config, crash, fresh, history, request, start_with};
use futures::StreamExt;
use serde_json::Map;
use stacyvm_engine::{Engine, EventBus, event_number};
use stacyvm_types::EventType;
use std::time::Duration;

/// For an event that is there; the limit is for a defect only.
const PATIENCE: Duration = Duration::from_secs(20);

fn emit(engine: &Engine, count: usize) {
    for _ in 0..count {
        engine.events().emit(EventType::FileRead, None, Map::new());
    }
}

async fn numbers(bus: &EventBus, after: Option<u64>, count: usize) -> Vec<u64> {
    let reading = bus.subscribe(after).take(count).collect::<Vec<_>>();
    let events = tokio::time::timeout(PATIENCE, reading).await.expect("events are missing");
    events.iter().map(|event| event_number(&event.id).unwrap()).collect()
}

#[tokio::test]
async fn replay_goes_over_into_live_without_a_gap() {
    let (engine, _store, _fake) = fresh(config()).await;
    emit(&engine, 700);
    engine.events().flush().await;
    let reading = tokio::spawn({
        let bus = engine.events().clone();
        async move { numbers(&bus, Some(100), 1900).await }
    });
    for _ in 0..130 {
        emit(&engine, 10);
        tokio::task::yield_now().await;
    }
    assert_eq!(reading.await.unwrap(), (101..=2000).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_slow_subscriber_misses_nothing() {
    let (engine, _store, _fake) = fresh(config()).await;
    let mut subscription = engine.events().subscribe(None);
    // More than the live buffer holds.
    emit(&engine, 5000);
    engine.events().flush().await;
    let mut seen = Vec::new();
    for _ in 0..5000 {
        let next = tokio::time::timeout(PATIENCE, subscription.next()).await.expect("an event is missing");
        seen.push(event_number(&next.unwrap().id).unwrap());
    }
    assert_eq!(seen, (1..=5000).collect::<Vec<_>>());
}

#[tokio::test]
async fn without_a_position_only_new_events_come() {
    let (engine, _store, _fake) = fresh(config()).await;
    emit(&engine, 3);
    engine.events().flush().await;
    for after in [None, Some(99)] {
        let newest = engine.events().total();
        let mut subscription = engine.events().subscribe(after);
        emit(&engine, 1);
        assert_eq!(event_number(&subscription.next().await.unwrap().id), Some(newest + 1), "{after:?}");
    }
}

#[tokio::test]
async fn numbers_go_on_after_a_restart() {
    let (engine, store, fake) = fresh(config()).await;
    emit(&engine, 5);
    engine.events().flush().await;
    crash(engine).await;
    let engine = start_with(config(), &store, &fake).await;
    emit(&engine, 1);
    assert_eq!(numbers(engine.events(), Some(3), 3).await, [4, 5, 6]);
}

#[tokio::test]
async fn only_the_newest_are_kept() {
    let mut config = config();
    config.keep_events = 100;
    let (engine, store, _fake) = fresh(config).await;
    emit(&engine, 3000);
    engine.events().flush().await;
    crate::eventually("pruned", async || store.events_after(0, 10_000).await.unwrap().len() < 1500).await;
    let events = history(&engine, &store).await;
    assert_eq!(event_number(&events.last().unwrap().id), Some(3000));
}

#[tokio::test]
async fn subscriptions_end_when_the_engine_stops() {
    let (engine, _store, _fake) = fresh(config()).await;
    let subscription = engine.events().subscribe(Some(0));
    engine.create(request()).await.unwrap();
    let reading = tokio::spawn(subscription.collect::<Vec<_>>());
    tokio::task::yield_now().await;
    engine.shutdown().await;
    assert!(reading.await.unwrap().len() <= 2);
}

#[tokio::test]
async fn subscribers_are_counted_and_ids_read() {
    let (engine, _store, _fake) = fresh(config()).await;
    let one = engine.events().subscribe(None);
    assert_eq!(engine.events().subscribers(), 1);
    drop(one);
    assert_eq!(engine.events().subscribers(), 0);
    assert_eq!((event_number("evt-7"), event_number("7"), event_number("evt-x")), (Some(7), None, None));
}

#[tokio::test]
async fn oversized_details_are_left_out() {
    let (engine, store, _fake) = fresh(config()).await;
    let data = [("path".to_owned(), "x".repeat(10_000).into())].into_iter().collect();
    engine.events().emit(EventType::FileRead, Some("sb-1"), data);
    let events = history(&engine, &store).await;
    assert_eq!(serde_json::to_string(&events[0].data).unwrap(), r#"{"data_omitted":"too large"}"#);
}
