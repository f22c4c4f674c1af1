//! Destroying, expiring, extending, stopping.

use crate::{
    assert_code, becomes, command, config, crash, eventually,
    fake::{Act, Op},
    fresh, history, is_gone, kinds, request, start_with, state,
};
use stacyvm_engine::{CreateRequest, ListFilter, SandboxState};
use stacyvm_provider::ErrorKind;
use stacyvm_types::{ErrorCode, EventType};
use std::time::Duration;

#[tokio::test]
async fn destroyed_is_gone_everywhere_and_destroying_again_is_fine() {
    let (engine, store, fake) = fresh(config()).await;
    let record = engine.create(request()).await.unwrap();
    let id = record.id.as_str();
    engine.destroy(id).await.unwrap();
    assert_eq!(fake.ids(), Vec::<String>::new());
    let row = store.sandbox(id).await.unwrap().unwrap();
    assert_eq!(row.state, SandboxState::Destroyed);
    assert!(row.destroyed_at.is_some());
    let error = assert_code(engine.get(id).await, ErrorCode::NotFound);
    assert_eq!(error.message(), format!("sandbox destroyed: {id}"));
    engine.destroy(id).await.unwrap();
    engine.destroy("sb-never").await.unwrap();
    engine.destroy("../../etc").await.unwrap();
    assert_eq!(
        assert_code(engine.get("sb-never").await, ErrorCode::NotFound).message(),
        "sandbox not found: sb-never"
    );
    assert_eq!(kinds(&history(&engine, &store).await, id).last(), Some(&EventType::SandboxDestroyed));
}

#[tokio::test]
async fn many_destroyers_join() {
    let (engine, _store, fake) = fresh(config()).await;
    let id = engine.create(request()).await.unwrap().id;
    fake.always(Op::Destroy, Act::Wait(Duration::from_millis(20)));
    let all = futures::future::join_all((0..100).map(|_| engine.destroy(id.as_str()))).await;
    assert!(all.iter().all(Result::is_ok), "{all:?}");
    assert_eq!(fake.count(Op::Destroy), 1);
}

#[tokio::test]
async fn every_way_a_runtime_can_fail_to_remove_it_is_tried_again() {
    let mut config = config();
    config.destroy_attempt = Duration::from_millis(30);
    let (engine, store, fake) = fresh(config).await;
    let failures =
        ErrorKind::ALL.into_iter().flat_map(|kind| [Act::Fail(kind), Act::Half(kind), Act::FailAfter(kind)]);
    for act in failures.chain([Act::Hang, Act::HangAfter, Act::Panic]) {
        let id = engine.create(request()).await.unwrap().id;
        fake.once(Op::Destroy, act);
        fake.once(Op::Destroy, act);
        engine.destroy(id.as_str()).await.unwrap();
        assert_eq!(fake.ids(), Vec::<String>::new(), "{act:?}");
        assert_eq!(store.live_sandboxes().await.unwrap(), [], "{act:?}");
    }
}

#[tokio::test]
async fn a_caller_is_told_when_it_takes_long_and_the_removal_goes_on() {
    let mut config = config();
    config.destroy_wait = Duration::from_millis(50);
    let (engine, store, fake) = fresh(config.clone()).await;
    let id = engine.create(request()).await.unwrap().id;
    fake.always(Op::Destroy, Act::Half(ErrorKind::Unavailable));
    let error = assert_code(engine.destroy(id.as_str()).await, ErrorCode::Unavailable);
    assert!(error.message().contains("scripted Destroy failure"), "{error}");
    let record = engine.get(id.as_str()).await.unwrap();
    assert_eq!(
        (record.state, record.reason.as_str()),
        (SandboxState::Destroying, "scripted Destroy failure")
    );
    assert_code(engine.guest(id.as_str()).await.map(drop), ErrorCode::NotFound);
    assert_code(engine.extend(id.as_str(), Duration::from_secs(1)).await, ErrorCode::NotFound);
    crash(engine).await;
    fake.heal();
    let engine = start_with(config, &store, &fake).await;
    is_gone(&engine, id.as_str()).await;
    assert_eq!(fake.ids(), Vec::<String>::new());
}

#[tokio::test]
async fn commands_in_flight_end_when_their_sandbox_does() {
    let (engine, _store, _fake) = fresh(config()).await;
    let id = engine.create(request()).await.unwrap().id;
    let running = tokio::spawn({
        let (engine, id) = (engine.clone(), id.clone());
        async move { engine.exec(id.as_str(), command(&["sleep"])).await }
    });
    eventually("started", async || engine.events().total() >= 3).await;
    engine.destroy(id.as_str()).await.unwrap();
    let error = assert_code(running.await.unwrap(), ErrorCode::NotFound);
    assert_eq!(error.message(), format!("sandbox destroyed: {id}"));
}

#[tokio::test]
async fn a_sandbox_whose_time_is_over_goes() {
    let (engine, store, fake) = fresh(config()).await;
    let record =
        engine.create(CreateRequest { ttl: Some(Duration::from_millis(30)), ..request() }).await.unwrap();
    let id = record.id.as_str();
    is_gone(&engine, id).await;
    assert_eq!(fake.ids(), Vec::<String>::new());
    let expected = [
        EventType::SandboxCreated,
        EventType::SandboxRunning,
        EventType::SandboxExpired,
        EventType::SandboxDestroyed,
    ];
    assert_eq!(kinds(&history(&engine, &store).await, id), expected);
}

#[tokio::test]
async fn extending_counts_from_now_and_is_stored() {
    let mut config = config();
    config.limits.max_ttl = Duration::from_secs(3600);
    let (engine, store, _fake) = fresh(config).await;
    let record =
        engine.create(CreateRequest { ttl: Some(Duration::from_secs(60)), ..request() }).await.unwrap();
    let id = record.id.as_str();
    let longer = engine.extend(id, Duration::from_secs(600)).await.unwrap();
    let gained = longer.expires_at.duration_since(record.expires_at).as_secs();
    assert!((539..=541).contains(&gained), "{gained}");
    assert_eq!(store.sandbox(id).await.unwrap().unwrap().expires_at, longer.expires_at);
    assert_code(engine.extend(id, Duration::ZERO).await, ErrorCode::BadRequest);
    assert_code(engine.extend(id, Duration::from_secs(3601)).await, ErrorCode::ResourceLimit);
    assert_code(engine.extend("sb-none", Duration::from_secs(1)).await, ErrorCode::NotFound);
    // Shorter is allowed, too.
    engine.extend(id, Duration::from_millis(20)).await.unwrap();
    is_gone(&engine, id).await;
}

#[tokio::test]
async fn prune_counts_the_expired_ones_and_only_those() {
    let mut config = config();
    config.destroy_attempt = Duration::from_millis(20);
    let (engine, _store, fake) = fresh(config).await;
    let kept = engine.create(request()).await.unwrap().id;
    let ttl = Some(Duration::from_millis(30));
    let id = engine.create(CreateRequest { ttl, ..request() }).await.unwrap().id;
    // Its removal does not come on, so that there is something to prune.
    fake.always_for(&id, Op::Destroy, Act::Fail(ErrorKind::Unavailable));
    becomes(&engine, id.as_str(), SandboxState::Destroying).await;
    let pruning = tokio::spawn({
        let engine = engine.clone();
        async move { engine.prune().await }
    });
    tokio::time::sleep(Duration::from_millis(20)).await;
    fake.heal();
    assert_eq!(pruning.await.unwrap().unwrap(), 1);
    assert_eq!(engine.prune().await.unwrap(), 0);
    assert_eq!(state(&engine, kept.as_str()).await, Some(SandboxState::Running));
}

#[tokio::test]
async fn a_graceful_stop_leaves_sandboxes_running_and_takes_the_ephemeral_ones() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s.db");
    let fake = crate::fake::Fake::new("fake");
    let store = stacyvm_engine::Store::open(&path).await.unwrap();
    let engine = start_with(config(), &store, &fake).await;
    let kept = engine.create(request()).await.unwrap().id;
    let ephemeral = engine.create(CreateRequest { ephemeral: true, ..request() }).await.unwrap().id;
    engine.shutdown().await;
    assert_eq!(fake.ids(), [kept.to_string()]);
    assert_code(engine.create(request()).await, ErrorCode::Unavailable);
    let store = stacyvm_engine::Store::open(&path).await.unwrap();
    let engine = start_with(config(), &store, &fake).await;
    let records = engine.list(ListFilter::default()).await.unwrap();
    assert_eq!(records.iter().map(|record| &record.id).collect::<Vec<_>>(), [&kept]);
    assert_code(engine.get(ephemeral.as_str()).await, ErrorCode::NotFound);
    let last = history(&engine, &store).await;
    assert!(kinds(&last, ephemeral.as_str()).contains(&EventType::SandboxDestroyed), "events survive a stop");
    engine.shutdown().await;
}

#[tokio::test]
async fn an_ephemeral_sandbox_does_not_survive_a_crash_either() {
    let (engine, store, fake) = fresh(config()).await;
    let id = engine.create(CreateRequest { ephemeral: true, ..request() }).await.unwrap().id;
    crash(engine).await;
    assert_eq!(fake.ids().len(), 1);
    let engine = start_with(config(), &store, &fake).await;
    is_gone(&engine, id.as_str()).await;
    assert_eq!(fake.ids(), Vec::<String>::new());
}
