//! Paused sandboxes: nothing of them runs, nothing is lost, and they are found, resumed and removed by whichever server.

mod common;

use common::{Host, collect, first_process, id, kill, run, sandbox, sh, spec};
use stacyvm_provider::{ErrorKind, Guest, ProcessSpec, Provider, RuntimeState, SandboxId, SandboxSpec};
use stacyvm_provider_native::NativeProvider;
use std::{
    fs,
    time::{Duration, Instant},
};

/// Prints the numbers up to 200, one each 10 ms.
const COUNTER: &str = "i=0; while [ $i -lt 200 ]; do i=$((i+1)); echo $i; sleep 0.01; done";

#[expect(clippy::unwrap_used, reason = "a helper of tests")]
async fn start(guest: &dyn Guest, name: &str, script: &str) {
    let argv = ["sh", "-c", script].map(str::to_owned).to_vec();
    guest.start(&ProcessSpec { id: name.to_owned(), argv, ..ProcessSpec::default() }).await.unwrap();
}

#[expect(clippy::unwrap_used, reason = "a helper of tests")]
async fn state(provider: &NativeProvider, id: &SandboxId) -> RuntimeState {
    let state = provider.status(id).await.unwrap();
    let listed = provider.list().await.unwrap().into_iter().find(|s| s.id == *id).unwrap();
    assert_eq!(state, listed.state);
    state
}

/// Numbers and used clock ticks of the processes of a sandbox.
#[expect(clippy::unwrap_used, reason = "a helper of tests")]
fn ticks(first: i32) -> Vec<(i32, u64)> {
    let namespace = fs::read_link(format!("/proc/{first}/ns/pid")).unwrap();
    let pids = fs::read_dir("/proc").unwrap().flatten();
    let pids = pids.filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
    let ours = pids.filter(|pid| fs::read_link(format!("/proc/{pid}/ns/pid")).is_ok_and(|n| n == namespace));
    let used = |pid: i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let fields: Vec<u64> =
            stat.rsplit_once(')')?.1.split_whitespace().map(|f| f.parse().unwrap_or_default()).collect();
        Some((pid, fields[11] + fields[12]))
    };
    let mut all: Vec<_> = ours.filter_map(used).collect();
    all.sort_unstable();
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_sandbox_stands_still_and_goes_on_where_it_was() {
    let host = Host::new();
    let provider = host.provider(1);
    let id = id("still");
    let guest = sandbox(&provider, &id, &spec()).await;
    assert!(!host.cgroups().iter().any(|c| c.ends_with("freezer")), "joined without need");
    start(guest.as_ref(), "count", COUNTER).await;
    for _ in 0..2 {
        tokio::time::sleep(Duration::from_millis(200)).await;
        for _ in 0..2 {
            provider.pause(&id).await.unwrap();
            assert_eq!(state(&provider, &id).await, RuntimeState::Paused);
        }
        let before = ticks(first_process(&host, &id));
        let ended = tokio::time::timeout(Duration::from_millis(500), provider.ended(&id)).await;
        assert!(ended.is_err(), "{ended:?}");
        assert_eq!(ticks(first_process(&host, &id)), before);
        for _ in 0..2 {
            provider.resume(&id).await.unwrap();
            assert_eq!(state(&provider, &id).await, RuntimeState::Running);
        }
    }
    let text: String = (1..=200).map(|n| format!("{n}\n")).collect();
    assert_eq!(collect(guest.as_ref(), "count", 0).await.ok(), text);
    provider.destroy(&id).await.unwrap();
    host.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_server_finds_it_paused_and_resumes_it() {
    let host = Host::new();
    let (kept, removed) = (id("kept"), id("removed"));
    {
        let provider = host.provider(1);
        for id in [&kept, &removed] {
            let guest = sandbox(&provider, id, &SandboxSpec { memory_mb: 128, pids: 64, ..spec() }).await;
            start(guest.as_ref(), "count", COUNTER).await;
            provider.pause(id).await.unwrap();
        }
    }
    let provider = host.provider(2);
    for id in [&kept, &removed] {
        assert_eq!(state(&provider, id).await, RuntimeState::Paused);
    }
    provider.destroy(&removed).await.unwrap();
    provider.resume(&kept).await.unwrap();
    let guest = provider.connect(&kept).await.unwrap();
    let text: String = (1..=200).map(|n| format!("{n}\n")).collect();
    assert_eq!(collect(guest.as_ref(), "count", 0).await.ok(), text);
    assert_eq!(sh(guest.as_ref(), "echo more").await, "more\n");
    // Limits hold as before: a move into the freezer is none out of them.
    assert!(run(guest.as_ref(), &["sh", "-c", "tail /dev/zero"]).await.info.oom_killed);
    provider.destroy(&kept).await.unwrap();
    host.assert_nothing_left();
}

/// Forks as fast as it can from several sides; each generation lives for a moment, and some leave their parents.
const STORM: &str = "for n in 1 2 3 4; do (while :; do (sleep 0.02; (sleep 0.01 &)) & (exit 0) & done 2>/dev/null) & done; wait";

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_whose_processes_multiply_stops_as_a_whole() {
    let host = Host::new();
    let provider = host.provider(1);
    let id = id("storm");
    let guest = sandbox(&provider, &id, &SandboxSpec { pids: 4000, ..spec() }).await;
    start(guest.as_ref(), "storm", STORM).await;
    for round in 0..4 {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let started = Instant::now();
        provider.pause(&id).await.unwrap();
        println!("round {round}: paused after {:?}", started.elapsed());
        let before = ticks(first_process(&host, &id));
        assert!(before.len() > 10, "{}", before.len());
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(ticks(first_process(&host, &id)), before, "round {round}");
        if round < 3 {
            provider.resume(&id).await.unwrap();
        }
    }
    provider.destroy(&id).await.unwrap();
    host.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn given_up_at_any_moment_it_is_one_or_the_other() {
    let host = Host::new();
    let provider = host.provider(1);
    for delay_us in [0, 100, 1_000, 5_000, 15_000, 40_000] {
        let id = id(&format!("given{delay_us}"));
        sandbox(&provider, &id, &spec()).await;
        let _ = tokio::time::timeout(Duration::from_micros(delay_us), provider.pause(&id)).await;
        // In the order of their turns: what was given up is over by then.
        provider.resume(&id).await.unwrap();
        assert_eq!(state(&provider, &id).await, RuntimeState::Running);
        assert_eq!(sh(provider.connect(&id).await.unwrap().as_ref(), "echo fine").await, "fine\n");
        let _ = tokio::time::timeout(Duration::from_micros(delay_us), provider.pause(&id)).await;
        provider.destroy(&id).await.unwrap();
    }
    host.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn one_killed_behind_our_back_ends_at_the_latest_when_it_goes_on() {
    let host = Host::new();
    let provider = host.provider(1);
    let id = id("killed");
    sandbox(&provider, &id, &spec()).await;
    provider.pause(&id).await.unwrap();
    kill(first_process(&host, &id));
    // It may have ended at once, which depends on how this host freezes.
    let _ = provider.resume(&id).await;
    let ended = tokio::time::timeout(Duration::from_secs(10), provider.ended(&id)).await;
    assert!(ended.is_ok(), "it goes on");
    assert_eq!(provider.pause(&id).await.unwrap_err().kind(), ErrorKind::Destroyed);
    provider.destroy(&id).await.unwrap();
    host.assert_nothing_left();
    for unknown in [provider.pause(&id).await, provider.resume(&id).await] {
        assert_eq!(unknown.unwrap_err().kind(), ErrorKind::NotFound);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_console_is_the_agents_log_without_what_a_terminal_obeys() {
    let host = Host::new();
    let provider = host.provider(1);
    let id = id("console");
    sandbox(&provider, &id, &spec()).await;
    let log = host.data_dir.join("sandboxes").join(id.as_str()).join("agent.log");
    fs::write(&log, "one\n\u{1b}[2Jtwo\nthree\n").unwrap();
    provider.pause(&id).await.unwrap();
    assert_eq!(provider.console(&id, 2).await.unwrap(), ["[2Jtwo", "three"]);
    fs::write(&log, "x".repeat(3 << 20) + "\nlast\n").unwrap();
    assert_eq!(provider.console(&id, 9).await.unwrap(), ["last"]);
    provider.destroy(&id).await.unwrap();
    assert_eq!(provider.console(&id, 9).await.unwrap_err().kind(), ErrorKind::NotFound);
    host.assert_nothing_left();
}
