//! Pausing and resuming: what holds while a sandbox is frozen, and that nothing is lost over it.

use crate::{
    assert_code, becomes, command, config, crash, eventually,
    fake::{Act, Cell, Fake, Op},
    fresh, history, is_gone, kinds, request, start_with,
};
use futures::StreamExt;
use stacyvm_engine::{CreateRequest, EngineConfig, ExecRequest, SandboxState, Store};
use stacyvm_provider::{ErrorKind, Notice, NoticeKind, OutputEvent, SandboxId};
use stacyvm_types::{ErrorCode, EventType};
use std::{collections::BTreeMap, time::Duration};

/// A guest out of reach is given up long before a pause of these tests ends.
fn impatient() -> EngineConfig {
    EngineConfig { reconnect_window: Duration::from_millis(100), ..config() }
}

/// Longer than `impatient` waits for a guest.
const LONG: Duration = Duration::from_millis(400);

/// More output of a process that runs.
fn say(fake: &Fake, id: &SandboxId, process: &str, text: &str) {
    fake.world().held.get_mut(id).unwrap().processes.get_mut(process).unwrap().log.extend(text.bytes());
    fake.changed();
}

#[tokio::test]
async fn pause_and_resume_say_so_and_may_be_repeated() {
    let (engine, store, fake) = fresh(config()).await;
    let id = engine.create(request()).await.unwrap().id;
    for _ in 0..2 {
        assert_eq!(engine.pause(id.as_str()).await.unwrap().state, SandboxState::Paused);
        assert_eq!(fake.world().held[&id].cell, Cell::Paused);
        assert_eq!(store.sandbox(id.as_str()).await.unwrap().unwrap().state, SandboxState::Paused);
    }
    for _ in 0..2 {
        assert_eq!(engine.resume(id.as_str()).await.unwrap().state, SandboxState::Running);
        assert_eq!(fake.world().held[&id].cell, Cell::Running);
    }
    engine.exec(id.as_str(), command(&["echo", "x"])).await.unwrap();
    let kinds = kinds(&history(&engine, &store).await, id.as_str());
    let of = |wanted| kinds.iter().filter(|kind| **kind == wanted).count();
    assert_eq!((of(EventType::SandboxPaused), of(EventType::SandboxResumed)), (1, 1), "{kinds:?}");
}

#[tokio::test]
async fn commands_are_refused_while_it_is_paused_and_the_fix_is_named() {
    let (engine, _store, _fake) = fresh(config()).await;
    let id = engine.create(request()).await.unwrap().id;
    engine.pause(id.as_str()).await.unwrap();
    let error = assert_code(engine.exec(id.as_str(), command(&["echo", "x"])).await, ErrorCode::Conflict);
    assert!(error.message().contains("is paused: resume it"), "{error}");
    assert_code(engine.guest(id.as_str()).await.map(drop), ErrorCode::Conflict);
    assert_code(engine.attach(id.as_str(), "p", 0, false, false).await.map(drop), ErrorCode::Conflict);
    // What is frozen and not asked is not unhealthy either.
    tokio::time::sleep(LONG).await;
    assert_eq!(engine.get(id.as_str()).await.unwrap().state, SandboxState::Paused);
}

#[tokio::test]
async fn what_cannot_be_paused_says_why() {
    let (engine, store, fake) = fresh(config()).await;
    assert_code(engine.pause("sb-none").await, ErrorCode::NotFound);
    assert_code(engine.resume("sb-none").await, ErrorCode::NotFound);
    let id = engine.create(request()).await.unwrap().id;
    fake.once(Op::Pause, Act::Fail(ErrorKind::Unsupported));
    assert_code(engine.pause(id.as_str()).await, ErrorCode::Unsupported);
    assert_eq!(engine.get(id.as_str()).await.unwrap().state, SandboxState::Running);
    fake.once(Op::Pause, Act::Panic);
    assert_code(engine.pause(id.as_str()).await, ErrorCode::InternalError);
    assert!(kinds(&history(&engine, &store).await, id.as_str()).contains(&EventType::ProviderFailed));
    fake.kill(&id, "out of memory");
    becomes(&engine, id.as_str(), SandboxState::Error).await;
    let error = assert_code(engine.pause(id.as_str()).await, ErrorCode::Conflict);
    assert!(error.message().contains("out of memory"), "{error}");
    engine.destroy(id.as_str()).await.unwrap();
    assert_code(engine.resume(id.as_str()).await, ErrorCode::NotFound);
}

#[tokio::test]
async fn a_pause_whose_answer_was_lost_is_found_out() {
    let (engine, _store, fake) = fresh(config()).await;
    let id = engine.create(request()).await.unwrap().id;
    fake.once(Op::Pause, Act::FailAfter(ErrorKind::Unavailable));
    assert_code(engine.pause(id.as_str()).await, ErrorCode::Unavailable);
    becomes(&engine, id.as_str(), SandboxState::Paused).await;
    fake.once(Op::Resume, Act::FailAfter(ErrorKind::Unavailable));
    assert_code(engine.resume(id.as_str()).await, ErrorCode::Unavailable);
    becomes(&engine, id.as_str(), SandboxState::Running).await;
}

#[tokio::test]
async fn two_who_ask_for_the_same_get_one_answer_and_the_opposite_waits_its_turn() {
    let (engine, _store, fake) = fresh(config()).await;
    let id = engine.create(request()).await.unwrap().id;
    fake.once(Op::Pause, Act::Wait(Duration::from_millis(200)));
    let opposite = async {
        eventually("under way", async || fake.count(Op::Pause) == 1).await;
        engine.resume(id.as_str()).await
    };
    let (one, two, opposite) = tokio::join!(engine.pause(id.as_str()), engine.pause(id.as_str()), opposite);
    assert_eq!((one.unwrap().state, two.unwrap().state), (SandboxState::Paused, SandboxState::Paused));
    assert_code(opposite, ErrorCode::Conflict);
    assert_eq!(fake.count(Op::Pause), 1);
}

#[tokio::test]
async fn a_paused_sandbox_can_be_extended_destroyed_and_expires() {
    let (engine, _store, fake) = fresh(config()).await;
    let ttl = Some(Duration::from_millis(300));
    let short = engine.create(CreateRequest { ttl, ..request() }).await.unwrap().id;
    let id = engine.create(request()).await.unwrap().id;
    engine.pause(short.as_str()).await.unwrap();
    engine.pause(id.as_str()).await.unwrap();
    let extended = engine.extend(id.as_str(), Duration::from_secs(3600)).await.unwrap();
    assert_eq!(extended.state, SandboxState::Paused);
    is_gone(&engine, short.as_str()).await;
    engine.destroy(id.as_str()).await.unwrap();
    assert!(fake.ids().is_empty());
}

#[tokio::test]
async fn a_runtime_that_hangs_over_a_pause_keeps_nobody_from_destroying() {
    let (engine, _store, fake) = fresh(config()).await;
    let id = engine.create(request()).await.unwrap().id;
    fake.once(Op::Pause, Act::Hang);
    let destroy = async {
        eventually("under way", async || fake.count(Op::Pause) == 1).await;
        engine.destroy(id.as_str()).await
    };
    let (paused, destroyed) = tokio::join!(engine.pause(id.as_str()), destroy);
    assert_code(paused, ErrorCode::NotFound);
    destroyed.unwrap();
}

#[tokio::test]
async fn one_that_ends_while_it_is_paused_is_an_error() {
    let (engine, _store, fake) = fresh(config()).await;
    let id = engine.create(request()).await.unwrap().id;
    engine.pause(id.as_str()).await.unwrap();
    fake.kill(&id, "killed");
    becomes(&engine, id.as_str(), SandboxState::Error).await;
    assert_eq!(engine.get(id.as_str()).await.unwrap().reason, "killed");
}

#[tokio::test]
async fn a_stream_waits_for_as_long_as_its_sandbox_is_paused_and_loses_nothing() {
    let (engine, _store, fake) = fresh(impatient()).await;
    let id = engine.create(request()).await.unwrap().id;
    let process = engine.start_process(id.as_str(), command(&["sleep"])).await.unwrap().id;
    let mut output = engine.attach(id.as_str(), &process, 0, true, true).await.unwrap();
    let mut read = Vec::new();
    for text in ["", " one", " two"] {
        say(&fake, &id, &process, text);
        let wanted = fake.world().held[&id].processes[&process].log.clone();
        while read.len() < wanted.len() {
            match output.next().await.unwrap().unwrap() {
                OutputEvent::Chunk { offset, data, .. } => {
                    assert_eq!(offset, read.len() as u64);
                    read.extend_from_slice(&data);
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(read, wanted);
        // The connection breaks with the pause: the scripted guest does not answer any more.
        engine.pause(id.as_str()).await.unwrap();
        assert!(tokio::time::timeout(LONG, output.next()).await.is_err(), "a paused stream says something");
        engine.resume(id.as_str()).await.unwrap();
    }
    engine.pause(id.as_str()).await.unwrap();
    engine.destroy(id.as_str()).await.unwrap();
    assert!(output.next().await.unwrap().is_err());
}

#[tokio::test]
async fn whoever_follows_a_paused_sandbox_begins_when_it_goes_on() {
    let (engine, _store, _fake) = fresh(impatient()).await;
    let id = engine.create(request()).await.unwrap().id;
    let process = engine.start_process(id.as_str(), command(&["sleep"])).await.unwrap().id;
    engine.pause(id.as_str()).await.unwrap();
    let mut output = engine.attach(id.as_str(), &process, 2, true, true).await.unwrap();
    let mut unknown = engine.attach(id.as_str(), "nobody", 0, true, true).await.unwrap();
    assert!(tokio::time::timeout(LONG, output.next()).await.is_err());
    engine.resume(id.as_str()).await.unwrap();
    match output.next().await.unwrap().unwrap() {
        OutputEvent::Chunk { offset, data, .. } => assert_eq!((offset, &data[..]), (2, b"eeping".as_slice())),
        other => panic!("{other:?}"),
    }
    assert_eq!(unknown.next().await.unwrap().unwrap_err().kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn a_command_under_way_goes_on_when_it_is_resumed() {
    let (engine, store, fake) = fresh(impatient()).await;
    let id = engine.create(request()).await.unwrap().id;
    let named = ExecRequest { process_id: Some("p".into()), ..command(&["sleep"]) };
    let running = {
        let (engine, id) = (engine.clone(), id.clone());
        tokio::spawn(async move { engine.exec(id.as_str(), named).await })
    };
    eventually("started", async || fake.world().held[&id].processes.contains_key("p")).await;
    engine.pause(id.as_str()).await.unwrap();
    tokio::time::sleep(LONG).await;
    engine.resume(id.as_str()).await.unwrap();
    engine.guest(id.as_str()).await.unwrap().signal("p", stacyvm_provider::Signal(15), true).await.unwrap();
    let outcome = running.await.unwrap().unwrap();
    assert_eq!(outcome.stdout, b"sleeping");
    assert!(kinds(&history(&engine, &store).await, id.as_str()).contains(&EventType::ExecCompleted));
}

#[tokio::test]
async fn a_command_given_up_while_it_is_paused_is_killed_behind_the_pause() {
    let (engine, _store, fake) = fresh(config()).await;
    let id = engine.create(request()).await.unwrap().id;
    let named = ExecRequest { process_id: Some("p".into()), ..command(&["sleep"]) };
    let running = {
        let (engine, id) = (engine.clone(), id.clone());
        tokio::spawn(async move { engine.exec(id.as_str(), named).await })
    };
    eventually("started", async || fake.world().held[&id].processes.contains_key("p")).await;
    engine.pause(id.as_str()).await.unwrap();
    running.abort();
    tokio::time::sleep(LONG).await;
    assert_eq!(fake.count(Op::Signal), 0);
    engine.resume(id.as_str()).await.unwrap();
    eventually("killed", async || fake.world().held[&id].processes["p"].info.outcome.is_some()).await;
}

#[tokio::test]
async fn a_paused_sandbox_is_found_paused_after_a_restart_and_its_processes_are_still_watched() {
    let (engine, store, fake) = fresh(config()).await;
    let id = engine.create(request()).await.unwrap().id;
    let process = engine.start_process(id.as_str(), command(&["sleep"])).await.unwrap().id;
    engine.pause(id.as_str()).await.unwrap();
    crash(engine).await;
    let engine = start_with(config(), &store, &fake).await;
    // Also before its runtime was asked.
    let error = assert_code(engine.exec(id.as_str(), command(&["echo", "x"])).await, ErrorCode::Conflict);
    assert!(error.message().contains("resume it"), "{error}");
    assert_eq!(engine.resume(id.as_str()).await.unwrap().state, SandboxState::Running);
    engine.exec(id.as_str(), command(&["echo", "x"])).await.unwrap();
    let before = kinds(&history(&engine, &store).await, id.as_str()).len();
    let guest = engine.guest(id.as_str()).await.unwrap();
    guest.signal(&process, stacyvm_provider::Signal(15), true).await.unwrap();
    eventually("its end is an event", async || {
        kinds(&history(&engine, &store).await, id.as_str())[before..].contains(&EventType::ExecCompleted)
    })
    .await;
}

#[tokio::test]
async fn a_pause_cut_off_by_a_crash_is_found_out() {
    let (engine, store, fake) = fresh(config()).await;
    let id = engine.create(request()).await.unwrap().id;
    fake.once(Op::Pause, Act::HangAfter);
    let pausing = tokio::spawn({
        let (engine, id) = (engine.clone(), id.clone());
        async move { engine.pause(id.as_str()).await }
    });
    eventually("frozen", async || fake.world().held[&id].cell == Cell::Paused).await;
    engine.halt();
    crash(engine).await;
    assert!(pausing.await.unwrap().is_err());
    let engine = start_with(config(), &store, &fake).await;
    becomes(&engine, id.as_str(), SandboxState::Paused).await;
    engine.resume(id.as_str()).await.unwrap();
}

#[tokio::test]
async fn the_console_is_there_in_every_state_and_bounded() {
    let (engine, _store, _fake) = fresh(config()).await;
    let id = engine.create(request()).await.unwrap().id;
    engine.pause(id.as_str()).await.unwrap();
    assert_eq!(engine.console(id.as_str(), 2).await.unwrap(), ["line 1", "line 2"]);
    assert_eq!(engine.console(id.as_str(), u32::MAX).await.unwrap().len(), 10_000);
    assert_code(engine.console("sb-none", 1).await, ErrorCode::NotFound);
}

#[tokio::test]
async fn what_a_runtime_tells_is_an_event() {
    let (store, fake) = (Store::in_memory().await.unwrap(), Fake::new("fake"));
    let data = |key: &str, value: &str| BTreeMap::from([(key.to_owned(), value.into())]);
    fake.world().notices = vec![
        Notice { kind: NoticeKind::ImagePull, sandbox: None, data: data("image", "alpine") },
        Notice {
            kind: NoticeKind::Reconcile,
            sandbox: Some("sb-7".parse().unwrap()),
            data: data("action", "removed"),
        },
    ];
    let engine = start_with(config(), &store, &fake).await;
    eventually("told", async || history(&engine, &store).await.len() == 2).await;
    let events = history(&engine, &store).await;
    assert_eq!((events[0].kind, events[0].sandbox_id.as_deref()), (EventType::ImagePull, None));
    assert_eq!((&events[0].data["image"], &events[0].data["provider"]), (&"alpine".into(), &"fake".into()));
    assert_eq!((events[1].kind, events[1].sandbox_id.as_deref()), (EventType::ReconcileAction, Some("sb-7")));
    assert_eq!(events[1].data["action"], "removed");
}
