//! What a start makes of what the last one left: each state of a row with each state of the runtime.

use crate::{
    actions, assert_code, becomes, command, config, crash, eventually,
    fake::{Act, Cell, Fake, Op},
    fresh, history, is_gone, request, start_with, state,
};
use stacyvm_engine::{Engine, ListFilter, SandboxState, Store};
use stacyvm_provider::{ErrorKind, SandboxSpec};
use stacyvm_store::SandboxRow;
use stacyvm_types::ErrorCode;
use std::time::Duration;

const ID: &str = "sb-1";

fn row(state: SandboxState) -> SandboxRow {
    let now = jiff::Timestamp::from_microsecond(jiff::Timestamp::now().as_microsecond()).unwrap();
    let spec = SandboxSpec { memory_mb: 1, vcpus: 1, pids: 1, ..SandboxSpec::new("host") };
    SandboxRow {
        id: ID.into(),
        state,
        reason: String::new(),
        provider: "fake".into(),
        runtime_id: None,
        image: "host".into(),
        spec: serde_json::to_string(&spec).unwrap(),
        owner: String::new(),
        metadata: "{}".into(),
        created_at: now,
        running_at: (state != SandboxState::Creating).then_some(now),
        updated_at: now,
        expires_at: now.checked_add(Duration::from_secs(600)).unwrap(),
        destroyed_at: None,
        idempotency_key: None,
        fingerprint: None,
        limits_hit: "{}".into(),
    }
}

/// What it comes to: `None` for destroyed.
fn expected(state: SandboxState, cell: Option<&Cell>) -> Option<SandboxState> {
    match (state, cell) {
        (SandboxState::Running | SandboxState::Paused | SandboxState::Unhealthy, cell) => match cell {
            Some(Cell::Running) => Some(SandboxState::Running),
            Some(Cell::Paused) => Some(SandboxState::Paused),
            _ => Some(SandboxState::Error),
        },
        (SandboxState::Error, _) => Some(SandboxState::Error),
        _ => None,
    }
}

#[tokio::test]
async fn every_state_of_a_row_with_every_state_of_the_runtime() {
    let cells =
        [None, Some(Cell::Half), Some(Cell::Running), Some(Cell::Paused), Some(Cell::Ended("oom".into()))];
    for stored in SandboxState::ALL.into_iter().filter(|state| *state != SandboxState::Destroyed) {
        for cell in &cells {
            let (store, fake) = (Store::in_memory().await.unwrap(), Fake::new("fake"));
            store.insert_sandbox(&row(stored)).await.unwrap();
            if let Some(cell) = cell {
                fake.put(ID, cell.clone());
            }
            let engine = start_with(config(), &store, &fake).await;
            let wanted = expected(stored, cell.as_ref());
            let what = format!("{stored} with {cell:?} becomes {wanted:?}");
            eventually(&what, async || state(&engine, ID).await == wanted).await;
            // What does not run, holds nothing.
            let alive = matches!(wanted, Some(SandboxState::Running | SandboxState::Paused));
            eventually(&what, async || fake.ids().len() == usize::from(alive)).await;
            let live = store.live_sandboxes().await.unwrap();
            assert_eq!(live.first().map(|row| row.state), wanted, "{what}");
            if wanted == Some(SandboxState::Running) {
                assert_eq!(engine.exec(ID, command(&["echo", "hi"])).await.unwrap().stdout, b"hi");
            }
            engine.destroy(ID).await.unwrap();
            assert_eq!((fake.ids().len(), store.live_sandboxes().await.unwrap().len()), (0, 0), "{what}");
        }
    }
}

#[tokio::test]
async fn decisions_are_events() {
    for (stored, cell, action) in [
        (SandboxState::Running, Some(Cell::Running), "adopted"),
        (SandboxState::Running, None, "marked_error"),
        (SandboxState::Creating, Some(Cell::Half), "undone_create"),
        (SandboxState::Destroying, Some(Cell::Half), "resumed_destroy"),
    ] {
        let (store, fake) = (Store::in_memory().await.unwrap(), Fake::new("fake"));
        store.insert_sandbox(&row(stored)).await.unwrap();
        if let Some(cell) = cell {
            fake.put(ID, cell);
        }
        let engine = start_with(config(), &store, &fake).await;
        eventually(action, async || actions(&history(&engine, &store).await) == [action]).await;
    }
}

#[tokio::test]
async fn one_whose_time_was_over_while_nobody_looked_goes() {
    let (store, fake) = (Store::in_memory().await.unwrap(), Fake::new("fake"));
    let past = jiff::Timestamp::from_second(1000).unwrap();
    store.insert_sandbox(&SandboxRow { expires_at: past, ..row(SandboxState::Running) }).await.unwrap();
    fake.put(ID, Cell::Running);
    let engine = start_with(config(), &store, &fake).await;
    is_gone(&engine, ID).await;
    assert_eq!(fake.ids(), Vec::<String>::new());
    assert_eq!(actions(&history(&engine, &store).await), ["marked_expired"]);
}

#[tokio::test]
async fn what_has_no_row_goes_and_what_has_one_stays() {
    let (store, fake) = (Store::in_memory().await.unwrap(), Fake::new("fake"));
    store.insert_sandbox(&row(SandboxState::Running)).await.unwrap();
    let gone = SandboxRow {
        id: "sb-gone".into(),
        destroyed_at: Some(jiff::Timestamp::now()),
        ..row(SandboxState::Destroyed)
    };
    store.insert_sandbox(&gone).await.unwrap();
    for id in [ID, "sb-gone", "sb-stray", "sb-half"] {
        fake.put(id, if id == "sb-half" { Cell::Half } else { Cell::Running });
    }
    let engine = start_with(config(), &store, &fake).await;
    eventually("orphans removed", async || fake.ids() == [ID]).await;
    eventually("said so", async || {
        let actions = actions(&history(&engine, &store).await);
        actions.iter().filter(|action| *action == "removed_orphan").count() == 3
    })
    .await;
    assert_eq!(state(&engine, ID).await, Some(SandboxState::Running));
}

#[tokio::test]
async fn orphans_are_left_alone_when_that_is_the_policy() {
    let (store, fake) = (Store::in_memory().await.unwrap(), Fake::new("fake"));
    fake.put("sb-other", Cell::Running);
    let mut config = config();
    config.remove_orphans = false;
    let engine = start_with(config, &store, &fake).await;
    eventually("counted", async || engine.provider_status().await[0].runtime_count == Some(1)).await;
    eventually("listed again", async || fake.count(Op::List) >= 3).await;
    assert_eq!(fake.ids(), ["sb-other"]);
}

#[tokio::test]
async fn an_orphan_that_resists_is_tried_again_and_reported_once() {
    let (store, fake) = (Store::in_memory().await.unwrap(), Fake::new("fake"));
    fake.put("sb-stray", Cell::Running);
    fake.always(Op::Destroy, Act::Half(ErrorKind::Internal));
    let engine = start_with(config(), &store, &fake).await;
    eventually("tried", async || fake.count(Op::Destroy) >= 3).await;
    fake.heal();
    eventually("gone", async || fake.ids().is_empty()).await;
    eventually("said so", async || {
        actions(&history(&engine, &store).await) == ["orphan_not_removed", "removed_orphan"]
    })
    .await;
}

#[tokio::test]
async fn a_provider_that_is_down_delays_only_its_own() {
    let (store, up, down) = (Store::in_memory().await.unwrap(), Fake::new("fake"), Fake::new("down"));
    store.insert_sandbox(&row(SandboxState::Running)).await.unwrap();
    let other = SandboxRow { id: "sb-2".into(), provider: "down".into(), ..row(SandboxState::Running) };
    store.insert_sandbox(&other).await.unwrap();
    up.put(ID, Cell::Running);
    down.put("sb-2", Cell::Running);
    down.world().down = true;
    let engine = Engine::start(config(), store.clone(), vec![up.provider(), down.provider()]).await.unwrap();
    becomes(&engine, ID, SandboxState::Running).await;
    assert_eq!(engine.exec(ID, command(&["echo", "hi"])).await.unwrap().stdout, b"hi");
    becomes(&engine, "sb-2", SandboxState::Unhealthy).await;
    down.heal();
    becomes(&engine, "sb-2", SandboxState::Running).await;
    assert!(down.ids() == ["sb-2"], "nothing was removed meanwhile");
}

#[tokio::test]
async fn a_provider_that_is_not_configured_any_more_keeps_its_rows() {
    let (store, fake) = (Store::in_memory().await.unwrap(), Fake::new("fake"));
    store.insert_sandbox(&row(SandboxState::Running)).await.unwrap();
    fake.put(ID, Cell::Running);
    let engine = Engine::start(config(), store.clone(), vec![Fake::new("other").provider()]).await.unwrap();
    becomes(&engine, ID, SandboxState::Unhealthy).await;
    let error = assert_code(engine.guest(ID).await.map(drop), ErrorCode::Unavailable);
    assert!(error.message().contains("\"fake\" is not configured"), "{error}");
    crash(engine).await;
    let engine = start_with(config(), &store, &fake).await;
    becomes(&engine, ID, SandboxState::Running).await;
}

#[tokio::test]
async fn a_guest_that_misses_its_first_answer_after_a_start_is_adopted_all_the_same() {
    for op in [Op::Ping, Op::Connect] {
        let (store, fake) = (Store::in_memory().await.unwrap(), Fake::new("fake"));
        store.insert_sandbox(&row(SandboxState::Running)).await.unwrap();
        fake.put(ID, Cell::Running);
        fake.once(op, Act::Fail(ErrorKind::Unavailable));
        let engine = start_with(config(), &store, &fake).await;
        engine.exec(ID, command(&["echo", "x"])).await.unwrap();
        assert_eq!(actions(&history(&engine, &store).await), ["adopted"]);
    }
}

#[tokio::test]
async fn callers_do_not_see_that_recovery_takes_a_moment() {
    let (engine, store, fake) = fresh(config()).await;
    let id = engine.create(request()).await.unwrap().id;
    crash(engine).await;
    fake.once(Op::Status, Act::Wait(Duration::from_millis(50)));
    let engine = start_with(config(), &store, &fake).await;
    assert_eq!(engine.exec(id.as_str(), command(&["echo", "hi"])).await.unwrap().stdout, b"hi");
}

#[tokio::test]
async fn many_are_back_although_some_hang() {
    let (engine, store, fake) = fresh(config()).await;
    let mut ids = Vec::new();
    for _ in 0..100 {
        ids.push(engine.create(request()).await.unwrap().id);
    }
    crash(engine).await;
    // More than are asked at once.
    for id in &ids[..40] {
        fake.always_for(id, Op::Status, Act::Hang);
    }
    let engine = start_with(config(), &store, &fake).await;
    for id in &ids[40..] {
        let guest = engine.guest(id.as_str()).await.unwrap();
        guest.ping().await.unwrap();
    }
    engine.destroy(ids[0].as_str()).await.unwrap();
    assert_eq!(fake.ids().len(), 99);
}

#[tokio::test]
async fn a_restart_in_the_middle_of_a_create_undoes_it() {
    for act in [Act::Hang, Act::HangAfter] {
        let (engine, store, fake) = fresh(config()).await;
        fake.once(Op::Create, act);
        let creating = tokio::spawn({
            let engine = engine.clone();
            async move { engine.create(request()).await }
        });
        eventually("asked", async || fake.ids().len() == 1).await;
        creating.abort();
        let _ = creating.await;
        crash(engine).await;
        assert_eq!(store.live_sandboxes().await.unwrap()[0].state, SandboxState::Creating);
        let engine = start_with(config(), &store, &fake).await;
        eventually("undone", async || {
            fake.ids().is_empty() && store.live_sandboxes().await.unwrap().is_empty()
        })
        .await;
        assert!(engine.list(ListFilter::default()).await.unwrap().is_empty());
    }
}
