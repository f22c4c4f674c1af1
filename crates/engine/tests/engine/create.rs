//! Creating: what is refused, what is undone, who gets in, what a repeated request means.

use crate::{
    actions, assert_code, becomes, config, crash, eventually,
    fake::{Act, Fake, Op},
    fresh, history, is_gone, kinds, request, start_with, state,
};
use stacyvm_engine::{CreateRequest, Engine, ListFilter, SandboxState, Store};
use stacyvm_provider::ErrorKind;
use stacyvm_types::{ErrorCode, EventType, Sandbox};
use std::time::Duration;

#[tokio::test]
async fn a_sandbox_runs_and_is_stored_when_its_creator_is_told() {
    let (engine, store, fake) = fresh(config()).await;
    let metadata = [("k".to_owned(), "v".to_owned())].into();
    let request = CreateRequest { owner: Some("team".into()), metadata, ..request() };
    let record = engine.create(request).await.unwrap();
    let id = record.id.as_str();
    assert_eq!(record.state, SandboxState::Running);
    assert_eq!(record.runtime_id.as_deref(), Some(format!("rt-{id}").as_str()));
    assert_eq!((id.len(), fake.ids()), (19, vec![id.to_owned()]));
    let row = store.sandbox(id).await.unwrap().unwrap();
    assert_eq!(
        (row.state, row.owner.as_str(), row.metadata.as_str()),
        (SandboxState::Running, "team", r#"{"k":"v"}"#)
    );
    assert_eq!(row.expires_at, record.expires_at);
    assert_eq!(engine.get(id).await.unwrap(), record);
    assert_eq!(
        kinds(&history(&engine, &store).await, id),
        [EventType::SandboxCreated, EventType::SandboxRunning]
    );
    let wire = Sandbox::from(record);
    assert_eq!(
        (wire.worker_id.as_str(), wire.image.as_str(), wire.preview_domain.as_str()),
        ("local", "host", "localhost")
    );
    let spawn = &engine.operations()[0];
    assert_eq!(
        (spawn.operation.as_str(), spawn.provider.as_str(), spawn.success_total),
        ("spawn", "fake", 1)
    );
}

#[tokio::test]
async fn what_is_refused_leaves_nothing() {
    let mut config = config();
    config.limits.max_ttl = Duration::from_secs(60);
    let (engine, store, fake) = fresh(config).await;
    for (request, code) in [
        (CreateRequest { ttl: Some(Duration::ZERO), ..request() }, ErrorCode::BadRequest),
        (CreateRequest { ttl: Some(Duration::from_secs(61)), ..request() }, ErrorCode::ResourceLimit),
        (CreateRequest { provider: Some("nope".into()), ..request() }, ErrorCode::NotFound),
        (CreateRequest { owner: Some("a b".into()), ..request() }, ErrorCode::BadRequest),
    ] {
        assert_code(engine.create(request).await, code);
    }
    assert_eq!((fake.count(Op::Create), store.live_sandboxes().await.unwrap().len()), (0, 0));
    let error =
        engine.create(CreateRequest { provider: Some("nope".into()), ..request() }).await.unwrap_err();
    assert_eq!(error.message(), "provider not found: nope");
}

#[tokio::test]
async fn every_way_a_runtime_can_fail_to_make_it_is_undone() {
    let mut config = config();
    config.create_deadline = Duration::from_millis(30);
    let (engine, store, fake) = fresh(config).await;
    let failures =
        ErrorKind::ALL.into_iter().flat_map(|kind| [Act::Fail(kind), Act::Half(kind), Act::FailAfter(kind)]);
    for act in failures.chain([Act::Hang, Act::HangAfter, Act::Panic]) {
        fake.once(Op::Create, act);
        let error = engine.create(request()).await.unwrap_err();
        assert!(!error.message().is_empty());
        assert_eq!(fake.ids(), Vec::<String>::new(), "{act:?} {error:?}");
        assert_eq!(store.live_sandboxes().await.unwrap(), [], "{act:?}");
        assert_eq!(engine.list(ListFilter::default()).await.unwrap(), [], "{act:?}");
    }
    let events = history(&engine, &store).await;
    let id = events[0].sandbox_id.clone().unwrap();
    let expected = [
        EventType::SandboxCreated,
        EventType::ProviderFailed,
        EventType::SandboxError,
        EventType::SandboxDestroyed,
    ];
    assert_eq!(kinds(&events, &id), expected);
}

#[tokio::test]
async fn an_undo_that_fails_is_seen_as_error_and_tried_until_it_works() {
    let (engine, store, fake) = fresh(config()).await;
    fake.once(Op::Create, Act::Half(ErrorKind::Internal));
    fake.always(Op::Destroy, Act::Fail(ErrorKind::Internal));
    let error = assert_code(engine.create(request()).await, ErrorCode::InternalError);
    assert_eq!(error.message(), "scripted Create failure");
    let records = engine.list(ListFilter::default()).await.unwrap();
    assert_eq!(
        (records[0].state, records[0].reason.as_str()),
        (SandboxState::Error, "scripted Create failure")
    );
    eventually("more attempts", async || fake.count(Op::Destroy) > 3).await;
    fake.heal();
    is_gone(&engine, records[0].id.as_str()).await;
    assert_eq!((fake.ids().len(), store.live_sandboxes().await.unwrap().len()), (0, 0));
}

#[tokio::test]
async fn an_undo_that_fails_goes_on_after_a_restart() {
    let (engine, store, fake) = fresh(config()).await;
    fake.once(Op::Create, Act::Half(ErrorKind::Internal));
    fake.always(Op::Destroy, Act::Fail(ErrorKind::Internal));
    engine.create(request()).await.unwrap_err();
    crash(engine).await;
    fake.heal();
    let engine = start_with(config(), &store, &fake).await;
    eventually("undone", async || store.live_sandboxes().await.unwrap().is_empty() && fake.ids().is_empty())
        .await;
    assert_eq!(actions(&history(&engine, &store).await), ["undone_create"]);
}

#[tokio::test]
async fn a_creator_that_goes_away_does_not_stop_the_creation() {
    let (engine, _store, fake) = fresh(config()).await;
    fake.once(Op::Create, Act::Wait(Duration::from_millis(50)));
    let waiting = tokio::time::timeout(Duration::from_millis(10), engine.create(request()));
    assert!(waiting.await.is_err(), "the caller left");
    let records = engine.list(ListFilter::default()).await.unwrap();
    assert_eq!(records[0].state, SandboxState::Creating);
    becomes(&engine, records[0].id.as_str(), SandboxState::Running).await;
}

#[tokio::test]
async fn a_runtime_that_hangs_delays_only_its_own_sandbox() {
    let (engine, _store, fake) = fresh(config()).await;
    fake.once(Op::Create, Act::Hang);
    let hung = tokio::spawn({
        let engine = engine.clone();
        async move { engine.create(request()).await }
    });
    eventually("asked", async || fake.count(Op::Create) == 1).await;
    let record = engine.create(request()).await.unwrap();
    engine.destroy(record.id.as_str()).await.unwrap();
    assert!(!hung.is_finished());
}

#[tokio::test]
async fn time_to_live_counts_from_when_it_runs() {
    let (engine, _store, fake) = fresh(config()).await;
    fake.once(Op::Create, Act::Wait(Duration::from_millis(40)));
    let ttl = Duration::from_secs(100);
    let record = engine.create(CreateRequest { ttl: Some(ttl), ..request() }).await.unwrap();
    let left = record.expires_at.duration_since(record.running_at.unwrap());
    assert!((100.0..100.5).contains(&left.as_secs_f64()), "{left}");
    assert!(record.running_at.unwrap().duration_since(record.created_at).as_millis() >= 40);
}

#[tokio::test]
async fn two_cannot_both_take_the_last_slot() {
    let mut config = config();
    config.limits.max_sandboxes = 3;
    let (engine, _store, fake) = fresh(config).await;
    fake.always(Op::Create, Act::Wait(Duration::from_millis(20)));
    let all = futures::future::join_all((0..10).map(|_| engine.create(request()))).await;
    assert_eq!(all.iter().filter(|result| result.is_ok()).count(), 3);
    for error in all.into_iter().filter_map(Result::err) {
        assert_eq!(error.code(), ErrorCode::ResourceLimit);
    }
    let verdict = engine.admission(&request()).await.unwrap();
    assert_eq!(
        (verdict.allowed, verdict.reason.as_str(), verdict.active_sandboxes),
        (false, "max_sandboxes", 3)
    );
    let records = engine.list(ListFilter::default()).await.unwrap();
    engine.destroy(records[0].id.as_str()).await.unwrap();
    assert!(engine.admission(&request()).await.unwrap().allowed);
    engine.create(request()).await.unwrap();
}

#[tokio::test]
async fn owners_have_caps_of_their_own() {
    let mut config = config();
    config.limits.max_sandboxes_per_owner = 1;
    let (engine, _store, _fake) = fresh(config).await;
    let of = |owner: &str| CreateRequest { owner: Some(owner.into()), ..request() };
    engine.create(of("a")).await.unwrap();
    engine.create(of("b")).await.unwrap();
    engine.create(request()).await.unwrap();
    engine.create(request()).await.unwrap();
    assert_code(engine.create(of("a")).await, ErrorCode::ResourceLimit);
    let verdict = engine.admission(&of("a")).await.unwrap();
    assert_eq!(verdict.reason, "max_sandboxes_per_owner");
    assert_eq!((verdict.active_owner_sandboxes, verdict.max_owner_sandboxes), (Some(1), Some(1)));
    let mine = engine.list(ListFilter { owner: Some("a".into()), ..Default::default() }).await.unwrap();
    assert_eq!(mine.len(), 1);
}

#[tokio::test]
async fn a_failed_create_gives_its_slot_back() {
    let mut config = config();
    config.limits.max_sandboxes = 1;
    let (engine, _store, fake) = fresh(config).await;
    for _ in 0..3 {
        fake.once(Op::Create, Act::Fail(ErrorKind::Internal));
        assert_code(engine.create(request()).await, ErrorCode::InternalError);
    }
    engine.create(request()).await.unwrap();
}

#[tokio::test]
async fn a_network_that_the_provider_does_not_have_is_refused_before_anything_is_made() {
    let (engine, _store, fake) = fresh(config()).await;
    let network = |name: &str| CreateRequest { network: Some(name.into()), ..request() };
    assert_code(engine.create(network("internet")).await, ErrorCode::Unsupported);
    assert_code(engine.create(network("a b")).await, ErrorCode::BadRequest);
    assert_eq!(fake.count(Op::Create), 0);
    assert_eq!(engine.list(ListFilter::default()).await.unwrap(), []);
    // As with everything: blank is the default.
    assert_eq!(engine.create(network(" ")).await.unwrap().spec.network, None);
}

fn keyed(key: &str) -> CreateRequest {
    CreateRequest { idempotency_key: Some(key.into()), owner: Some("o".into()), ..request() }
}

#[tokio::test]
async fn a_repeated_request_is_answered_with_the_same_sandbox() {
    let (engine, _store, fake) = fresh(config()).await;
    fake.always(Op::Create, Act::Wait(Duration::from_millis(20)));
    let all = futures::future::join_all((0..5).map(|_| engine.create(keyed("k")))).await;
    let first = all[0].as_ref().unwrap().id.clone();
    assert!(all.iter().all(|result| result.as_ref().unwrap().id == first));
    assert_eq!(fake.count(Op::Create), 1);
    let other = CreateRequest { vcpus: Some(2), ..keyed("k") };
    assert_code(engine.create(other).await, ErrorCode::Conflict);
    let elsewhere = CreateRequest { owner: Some("p".into()), ..keyed("k") };
    assert_ne!(engine.create(elsewhere).await.unwrap().id, first);
}

#[tokio::test]
async fn a_key_survives_a_restart_and_is_free_when_its_sandbox_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s.db");
    let fake = Fake::new("fake");
    let store = Store::open(&path).await.unwrap();
    let engine = start_with(config(), &store, &fake).await;
    let first = engine.create(keyed("k")).await.unwrap().id;
    engine.shutdown().await;
    let store = Store::open(&path).await.unwrap();
    let engine = start_with(config(), &store, &fake).await;
    assert_eq!(engine.create(keyed("k")).await.unwrap().id, first);
    assert_code(engine.create(CreateRequest { vcpus: Some(2), ..keyed("k") }).await, ErrorCode::Conflict);
    engine.destroy(first.as_str()).await.unwrap();
    let second = engine.create(CreateRequest { vcpus: Some(2), ..keyed("k") }).await.unwrap().id;
    assert_ne!(second, first);
    engine.shutdown().await;
}

#[tokio::test]
async fn the_key_of_a_failed_create_is_free() {
    let (engine, _store, fake) = fresh(config()).await;
    fake.once(Op::Create, Act::Half(ErrorKind::Unavailable));
    fake.always(Op::Destroy, Act::Fail(ErrorKind::Unavailable));
    assert_code(engine.create(keyed("k")).await, ErrorCode::Unavailable);
    // The first is still there, as an error.
    engine.create(keyed("k")).await.unwrap();
    assert_eq!(engine.list(ListFilter::default()).await.unwrap().len(), 2);
}

#[tokio::test]
async fn the_key_of_one_that_is_on_its_way_out_is_free_also_after_a_restart() {
    let mut config = config();
    config.destroy_wait = Duration::from_millis(20);
    let (engine, store, fake) = fresh(config.clone()).await;
    fake.always(Op::Destroy, Act::Fail(ErrorKind::Unavailable));
    let mut ids = vec![engine.create(keyed("k")).await.unwrap().id];
    assert_code(engine.destroy(ids[0].as_str()).await, ErrorCode::Unavailable);
    ids.push(engine.create(keyed("k")).await.unwrap().id);
    assert_code(engine.destroy(ids[1].as_str()).await, ErrorCode::Unavailable);
    crash(engine).await;
    let engine = start_with(config, &store, &fake).await;
    ids.push(engine.create(keyed("k")).await.unwrap().id);
    assert_eq!(engine.create(keyed("k")).await.unwrap().id, ids[2]);
    assert!(ids[0] != ids[1] && ids[1] != ids[2]);
}

#[tokio::test]
async fn a_store_that_cannot_be_written_fails_the_create_before_the_runtime_is_asked() {
    let (store, fake) = (Store::in_memory().await.unwrap(), Fake::new("fake"));
    let engine: Engine = start_with(config(), &store, &fake).await;
    store.close().await;
    assert_code(engine.create(request()).await, ErrorCode::Unavailable);
    assert_eq!((fake.count(Op::Create), fake.ids().len()), (0, 0));
    assert!(engine.list(ListFilter::default()).await.unwrap().is_empty());
}

#[tokio::test]
async fn destroying_what_is_being_created_ends_both() {
    let (engine, store, fake) = fresh(config()).await;
    fake.once(Op::Create, Act::Hang);
    let creating = tokio::spawn({
        let engine = engine.clone();
        async move { engine.create(request()).await }
    });
    eventually("asked", async || fake.count(Op::Create) == 1).await;
    let id = engine.list(ListFilter::default()).await.unwrap()[0].id.clone();
    assert_code(engine.extend(id.as_str(), Duration::from_secs(9)).await, ErrorCode::Conflict);
    assert_code(engine.guest(id.as_str()).await.map(drop), ErrorCode::Unavailable);
    engine.destroy(id.as_str()).await.unwrap();
    assert_code(creating.await.unwrap(), ErrorCode::NotFound);
    assert_eq!(state(&engine, id.as_str()).await, None);
    assert_eq!((fake.ids().len(), store.live_sandboxes().await.unwrap().len()), (0, 0));
}
