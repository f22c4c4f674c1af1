//! The event stream: numbered, replayed, without gap or duplicate, whatever the subscriber does.

use crate::{config, crash, fresh, history, request, start_with};
use futures::StreamExt;
use serde_json::Map;
use stacyvm_engine::{Engine, EventBus, Heard, Missed, event_number};
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
    events.into_iter().map(number).collect()
}

fn number(heard: Heard) -> u64 {
    match heard {
        Heard::Event(number, event) => {
            assert_eq!(event_number(&event.id), Some(number));
            number
        }
        other => panic!("{other:?}"),
    }
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
        seen.push(number(next.unwrap()));
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
        if let Some(after) = after {
            let unknown = Heard::Missed(Missed { after, next: None });
            assert_eq!(subscription.next().await, Some(unknown), "an id that was never given out");
        }
        emit(&engine, 1);
        assert_eq!(number(subscription.next().await.unwrap()), newest + 1, "{after:?}");
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
    let (engine, store, fake) = fresh(config).await;
    emit(&engine, 3000);
    engine.events().flush().await;
    crate::eventually("pruned", async || store.events_after(0, 10_000).await.unwrap().len() < 1500).await;
    let events = history(&engine, &store).await;
    assert_eq!(event_number(&events.last().unwrap().id), Some(3000));

    // Whoever was away for too long is told how much is gone, and gets the rest. The next engine keeps what there is.
    crash(engine).await;
    let engine = start_with(crate::config(), &store, &fake).await;
    let oldest = store.first_event().await.unwrap();
    let mut heard = engine.events().history(5);
    assert_eq!(heard.next().await, Some(Heard::Missed(Missed { after: 5, next: Some(oldest) })));
    let rest: Vec<u64> = heard.map(number).collect().await;
    assert_eq!(rest, (oldest..=3000).collect::<Vec<_>>());
    assert_eq!(
        number(engine.events().history(oldest - 1).next().await.unwrap()),
        oldest,
        "nothing is missing"
    );
}

#[tokio::test]
async fn a_history_ends_at_what_is_there() {
    let (engine, _store, _fake) = fresh(config()).await;
    assert_eq!(engine.events().history(0).count().await, 0);
    emit(&engine, 600);
    engine.events().flush().await;
    let history = engine.events().history(2);
    emit(&engine, 10);
    engine.events().flush().await;
    assert_eq!(history.map(number).collect::<Vec<_>>().await, (3..=600).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_history_that_cannot_be_read_to_its_end_says_so() {
    let (engine, store, _fake) = fresh(config()).await;
    emit(&engine, 600);
    engine.events().flush().await;
    let mut history = engine.events().history(0);
    assert_eq!(history.next().await.map(number), Some(1));
    store.close().await;
    let rest: Vec<_> = history.collect().await;
    assert!(rest.len() < 600);
    assert_eq!(rest.last(), Some(&Heard::Cut));
    assert_eq!(rest.iter().filter(|heard| **heard == Heard::Cut).count(), 1);
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
