//! Commands: results that are exact or errors, never invented.

use crate::{
    assert_code, command, config, eventually,
    fake::{Act, Op},
    fresh, history, kinds, request,
};
use futures::StreamExt;
use stacyvm_engine::{ExecRequest, SandboxState};
use stacyvm_provider::{ErrorKind, Outcome, OutputEvent, SandboxId};
use stacyvm_types::{ErrorCode, EventType};
use std::time::Duration;

#[tokio::test]
async fn output_and_exit_code_come_back() {
    let (engine, store, _fake) = fresh(config()).await;
    let id = engine.create(request()).await.unwrap().id;
    let outcome = engine.exec(id.as_str(), command(&["echo", "hello"])).await.unwrap();
    assert_eq!((outcome.stdout.as_slice(), outcome.stderr.as_slice()), (b"hello".as_slice(), b"".as_slice()));
    let outcome = engine.exec(id.as_str(), command(&["err", "oops"])).await.unwrap();
    assert_eq!((outcome.stdout.as_slice(), outcome.stderr.as_slice()), (b"".as_slice(), b"oops".as_slice()));
    let outcome = engine.exec(id.as_str(), command(&["exit", "7"])).await.unwrap();
    assert_eq!(outcome.process.outcome, Some(Outcome::Exited(7)));
    let events = history(&engine, &store).await;
    let last = events.last().unwrap();
    assert_eq!((last.kind, last.data["exit_code"].as_i64()), (EventType::ExecCompleted, Some(7)));
    assert_eq!(last.data["process_id"].as_str().unwrap(), outcome.process.id);
    let text = serde_json::to_string(&events).unwrap();
    assert!(!text.contains("hello") && !text.contains("oops"), "commands hold secrets: {text}");
}

#[tokio::test]
async fn more_output_than_is_kept_is_read_and_said_to_be_cut() {
    let mut config = config();
    config.limits.max_output_bytes = 2500;
    let (engine, _store, _fake) = fresh(config).await;
    let id = engine.create(request()).await.unwrap().id;
    let outcome = engine.exec(id.as_str(), command(&["flood", "50000"])).await.unwrap();
    assert_eq!(
        (outcome.stdout.len(), outcome.stdout_truncated, outcome.stderr_truncated),
        (2500, true, false)
    );
    assert_eq!(outcome.process.outcome, Some(Outcome::Exited(0)));
    let outcome = engine.exec(id.as_str(), command(&["flood", "2500"])).await.unwrap();
    assert_eq!((outcome.stdout.len(), outcome.stdout_truncated), (2500, false));
}

#[tokio::test]
async fn a_deadline_gives_back_what_was_written() {
    let (engine, store, _fake) = fresh(config()).await;
    let id = engine.create(request()).await.unwrap().id;
    let request = ExecRequest { timeout: Some(Duration::from_millis(20)), ..command(&["sleep"]) };
    let outcome = engine.exec(id.as_str(), request).await.unwrap();
    assert!(outcome.process.timed_out);
    assert_eq!(outcome.stdout, b"sleeping");
    assert!(kinds(&history(&engine, &store).await, id.as_str()).contains(&EventType::ExecTimeout));
}

#[tokio::test]
async fn limits_on_time_are_kept() {
    let mut config = config();
    config.limits.max_exec_timeout = Duration::from_millis(20);
    let (engine, _store, _fake) = fresh(config).await;
    let id = engine.create(request()).await.unwrap().id;
    let over = ExecRequest { timeout: Some(Duration::from_secs(1)), ..command(&["sleep"]) };
    assert_code(engine.exec(id.as_str(), over).await, ErrorCode::ResourceLimit);
    for timeout in [None, Some(Duration::ZERO)] {
        let outcome = engine.exec(id.as_str(), ExecRequest { timeout, ..command(&["sleep"]) }).await.unwrap();
        assert!(outcome.process.timed_out);
    }
}

#[tokio::test]
async fn a_started_process_has_no_deadline_but_its_own() {
    let mut config = config();
    config.limits.default_exec_timeout = Duration::from_millis(10);
    config.limits.max_exec_timeout = Duration::from_millis(20);
    let (engine, _store, fake) = fresh(config).await;
    let id = engine.create(request()).await.unwrap().id;
    let over = ExecRequest { timeout: Some(Duration::from_secs(1)), ..command(&["sleep"]) };
    assert_code(engine.start_process(id.as_str(), over).await, ErrorCode::ResourceLimit);
    let server = engine.start_process(id.as_str(), command(&["sleep"])).await.unwrap().id;
    let own = ExecRequest { timeout: Some(Duration::from_millis(15)), ..command(&["sleep"]) };
    let own = engine.start_process(id.as_str(), own).await.unwrap().id;
    let streamed = engine.start_exec(id.as_str(), command(&["sleep"])).await.unwrap().id;
    let process = |name: &str| processes(&fake, &id).into_iter().find(|process| process.id == name).unwrap();
    for bounded in [own, streamed] {
        eventually("killed at its deadline", async || process(&bounded).timed_out).await;
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(process(&server).outcome, None);
}

#[tokio::test]
async fn bad_commands_are_told_apart() {
    let (engine, _store, _fake) = fresh(config()).await;
    let id = engine.create(request()).await.unwrap().id;
    assert_code(engine.exec(id.as_str(), command(&[])).await, ErrorCode::BadRequest);
    assert_code(engine.exec(id.as_str(), command(&["nonsense"])).await, ErrorCode::NotFound);
    assert_code(engine.exec("sb-none", command(&["echo"])).await, ErrorCode::NotFound);
    let error = assert_code(engine.exec(id.as_str(), command(&["lose"])).await, ErrorCode::InternalError);
    assert!(error.message().contains("supervisor killed"), "{error}");
}

#[tokio::test]
async fn a_connection_that_keeps_breaking_loses_and_repeats_nothing() {
    let (engine, _store, fake) = fresh(config()).await;
    let id = engine.create(request()).await.unwrap().id;
    fake.once(Op::Attach, Act::Fail(ErrorKind::Unavailable));
    for bytes in [1, 999, 1000, 1001, 2500, 1, 1, 0, 0, 3] {
        fake.once(Op::Attach, Act::Cut(bytes));
    }
    fake.once(Op::Attach, Act::Fail(ErrorKind::Unavailable));
    let outcome = engine.exec(id.as_str(), command(&["flood", "20000"])).await.unwrap();
    let whole: Vec<u8> = (0..20_000).map(|n| (n % 251) as u8).collect();
    assert!(outcome.stdout == whole, "{} bytes", outcome.stdout.len());
    assert!(!outcome.stdout_truncated);
}

#[tokio::test]
async fn a_guest_that_repeats_or_leaves_out_bytes_is_seen_through() {
    let (engine, _store, fake) = fresh(config()).await;
    let id = engine.create(request()).await.unwrap().id;
    let whole: Vec<u8> = (0..5000).map(|n| (n % 251) as u8).collect();
    for early in [1, 500, 1500, 3000] {
        fake.once(Op::Attach, Act::Cut(3000));
        fake.once(Op::Attach, Act::Early(early));
        let outcome = engine.exec(id.as_str(), command(&["flood", "5000"])).await.unwrap();
        assert!(
            outcome.stdout == whole && !outcome.stdout_truncated,
            "{early}: {} bytes",
            outcome.stdout.len()
        );
    }
    fake.once(Op::Attach, Act::Cut(3000));
    fake.once(Op::Attach, Act::Skip(10));
    let process = engine.start_process(id.as_str(), command(&["flood", "5000"])).await.unwrap();
    let output = engine.attach(id.as_str(), &process.id, 0, true, true).await.unwrap();
    let mut next = 0;
    let mut gaps = Vec::new();
    for event in output.collect::<Vec<_>>().await {
        match event.unwrap() {
            OutputEvent::Chunk { offset, data, .. } => {
                assert_eq!(offset, next);
                next += data.len() as u64;
            }
            OutputEvent::Gap { offset, length } => {
                assert_eq!(offset, next);
                gaps.push((offset, length));
                next += length;
            }
            OutputEvent::Exit(_) => assert_eq!(next, 5000),
        }
    }
    assert_eq!(gaps, [(3000, 10)]);
    fake.once(Op::Attach, Act::Absurd);
    assert_code(engine.exec(id.as_str(), command(&["echo", "x"])).await, ErrorCode::InternalError);
}

#[tokio::test]
async fn a_guest_that_stays_away_is_an_error_not_an_exit_code() {
    let mut config = config();
    config.reconnect_window = Duration::from_millis(100);
    let (engine, _store, fake) = fresh(config).await;
    let id = engine.create(request()).await.unwrap().id;
    fake.once(Op::Attach, Act::Cut(3));
    fake.always(Op::Attach, Act::Fail(ErrorKind::Unavailable));
    assert_code(engine.exec(id.as_str(), command(&["flood", "100"])).await, ErrorCode::Unavailable);
    // One that takes every connection and ends it at once is away, too.
    fake.heal();
    fake.always(Op::Attach, Act::Cut(0));
    assert_code(engine.exec(id.as_str(), command(&["flood", "100"])).await, ErrorCode::Unavailable);
}

#[tokio::test]
async fn a_start_whose_answer_is_lost_is_asked_for_again_and_runs_once() {
    let (engine, _store, fake) = fresh(config()).await;
    let id = engine.create(request()).await.unwrap().id;
    fake.once(Op::Start, Act::FailAfter(ErrorKind::Unavailable));
    let outcome = engine.exec(id.as_str(), command(&["echo", "once"])).await.unwrap();
    assert_eq!(outcome.stdout, b"once");
    assert_eq!(processes(&fake, &id).len(), 1);
}

fn processes(fake: &crate::fake::Fake, id: &SandboxId) -> Vec<stacyvm_provider::ProcessInfo> {
    fake.world().held[id].processes.values().map(|process| process.info.clone()).collect()
}

#[tokio::test]
async fn an_exec_whose_caller_leaves_is_killed_and_a_started_process_is_not() {
    let (engine, _store, fake) = fresh(config()).await;
    let id = engine.create(request()).await.unwrap().id;
    let started = engine.start_process(id.as_str(), command(&["sleep"])).await.unwrap();
    let leaving = engine.exec(id.as_str(), command(&["sleep"]));
    assert!(tokio::time::timeout(Duration::from_millis(30), leaving).await.is_err());
    eventually("killed", async || {
        processes(&fake, &id).iter().any(|p| p.outcome == Some(Outcome::Signaled(9)))
    })
    .await;
    let all = processes(&fake, &id);
    let kept = all.iter().find(|process| process.id == started.id).unwrap();
    assert_eq!((all.len(), &kept.outcome), (2, &None));
}

#[tokio::test]
async fn an_exec_whose_caller_leaves_while_it_starts_is_killed_too() {
    let (engine, _store, fake) = fresh(config()).await;
    let id = engine.create(request()).await.unwrap().id;
    fake.once(Op::Start, Act::HangAfter);
    let leaving = engine.exec(id.as_str(), command(&["sleep"]));
    assert!(tokio::time::timeout(Duration::from_millis(30), leaving).await.is_err());
    eventually("killed", async || {
        processes(&fake, &id).iter().any(|p| p.outcome == Some(Outcome::Signaled(9)))
    })
    .await;
}

#[tokio::test]
async fn the_end_of_a_started_process_is_an_event() {
    let (engine, store, _fake) = fresh(config()).await;
    let id = engine.create(request()).await.unwrap().id;
    let process = engine.start_process(id.as_str(), command(&["sleep"])).await.unwrap();
    let guest = engine.guest(id.as_str()).await.unwrap();
    guest.signal(&process.id, stacyvm_provider::Signal::TERM, false).await.unwrap();
    eventually("reported", async || {
        let events = history(&engine, &store).await;
        events.last().is_some_and(|event| {
            event.kind == EventType::ExecCompleted
                && event.data["exit_code"] == 143
                && event.data["signal"] == 15
        })
    })
    .await;
    let rows = engine.operations();
    assert!(rows.iter().any(|row| row.operation == "exec_stream" && row.success_total == 1), "{rows:?}");
}

#[tokio::test]
async fn so_are_the_ends_of_very_many_and_of_those_from_before_a_restart() {
    let (engine, store, fake) = fresh(config()).await;
    let id = engine.create(request()).await.unwrap().id;
    let mut started = Vec::new();
    for _ in 0..40 {
        started.push(engine.start_process(id.as_str(), command(&["sleep"])).await.unwrap().id);
    }
    crate::crash(engine).await;
    let before = fake.count(Op::Watch);
    let engine = crate::start_with(config(), &store, &fake).await;
    let guest = engine.guest(id.as_str()).await.unwrap();
    eventually("watched again", async || fake.count(Op::Watch) >= before + 40).await;
    for process in &started {
        guest.signal(process, stacyvm_provider::Signal::KILL, true).await.unwrap();
    }
    eventually("reported", async || {
        let events = history(&engine, &store).await;
        let ended = events.iter().filter(|event| event.kind == EventType::ExecCompleted);
        ended
            .filter_map(|event| event.data["process_id"].as_str())
            .collect::<std::collections::BTreeSet<_>>()
            .len()
            == 40
    })
    .await;
}

#[tokio::test]
async fn an_attachment_starts_where_one_asks_and_ends_with_the_sandbox() {
    let (engine, _store, _fake) = fresh(config()).await;
    let id = engine.create(request()).await.unwrap().id;
    let process = engine.start_process(id.as_str(), command(&["sleep"])).await.unwrap();
    let mut output = engine.attach(id.as_str(), &process.id, 5, true, true).await.unwrap();
    match output.next().await.unwrap().unwrap() {
        OutputEvent::Chunk { offset, data, .. } => {
            assert_eq!((offset, data.as_ref()), (5, b"ing".as_slice()));
        }
        other => panic!("{other:?}"),
    }
    let mut now = engine.attach(id.as_str(), &process.id, 0, false, false).await.unwrap();
    assert!(matches!(now.next().await, Some(Ok(OutputEvent::Chunk { .. }))));
    assert!(now.next().await.is_none());
    assert_code(engine.attach(id.as_str(), "p-none", 0, true, true).await.map(drop), ErrorCode::NotFound);
    engine.destroy(id.as_str()).await.unwrap();
    let error = output.next().await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Destroyed, "{error:?}");
    assert!(output.next().await.is_none());
}

#[tokio::test]
async fn attached_readers_of_one_that_fails_hear_why() {
    let (engine, _store, fake) = fresh(config()).await;
    let id = engine.create(request()).await.unwrap().id;
    let process = engine.start_process(id.as_str(), command(&["sleep"])).await.unwrap();
    let output = engine.attach(id.as_str(), &process.id, 8, true, true).await.unwrap();
    fake.kill(&id, "out of memory");
    let events: Vec<_> = output.collect().await;
    let error = events.last().unwrap().as_ref().unwrap_err();
    assert!(error.message().contains("out of memory"), "{error:?}");
    crate::becomes(&engine, id.as_str(), SandboxState::Error).await;
}
