//! Pause: nothing of the sandbox runs, nothing of it is lost, and it can be ended like any other.

use super::lifecycle::gone;
use crate::{
    check::{During, Verdict, checks, ensure, refused},
    context::{Context, Sandbox},
    observe::{beats, eventually, host_processes},
};
use futures::future::join_all;
use stacyvm_provider::{ErrorKind, RuntimeState, SandboxId};
use std::{
    fs,
    time::{Duration, Instant},
};

checks! {
    "pause.stops" "a paused sandbox makes no progress, and goes on when it is resumed" [Pause] 45 stops;
    "pause.state" "status and list say paused while it is, and ended waits" [Pause] 30 state;
    "pause.output" "no output is lost or repeated over a pause" [Pause] 45 output;
    "pause.idempotent" "pausing and resuming twice are fine, and so is resuming one that runs" [Pause] 30 idempotent;
    "pause.unknown" "pause and resume of an unknown id are NotFound" [Pause] 30 unknown;
    "pause.destroy" "a paused sandbox can be destroyed and leaves nothing" [Pause] 30 destroy;
    "pause.busy" "a sandbox that spins, writes and forks is paused as a whole" [Pause, HostProcesses] 60 busy;
    "pause.cancelled" "a pause that is given up at any moment leaves a sandbox that can be resumed" [Pause] 60 cancelled;
    "pause.concurrent" "pauses and resumes at once leave a sandbox that can be resumed" [Pause] 45 concurrent;
}

/// How long a sandbox is paused to see that it stands still.
const STILL: Duration = Duration::from_millis(1500);
/// Pause between two beats of the probe, in milliseconds.
const BEAT_MS: u64 = 10;

async fn pause(cx: &Context, id: &SandboxId) -> Verdict {
    cx.prompt("pause", cx.provider.pause(id)).await?.during("pause")
}

async fn resume(cx: &Context, id: &SandboxId) -> Verdict {
    cx.prompt("resume", cx.provider.resume(id)).await?.during("resume")
}

/// The sandbox through a connection that was made behind a pause: an earlier one may be lost.
async fn again(cx: &Context, sandbox: &Sandbox) -> Verdict<Sandbox> {
    let guest = cx.prompt("connect", cx.provider.connect(&sandbox.id)).await?.during("connect")?;
    Ok(sandbox.through(guest))
}

async fn works(cx: &Context, sandbox: &Sandbox) -> Verdict {
    let sandbox = again(cx, sandbox).await?;
    let done = cx.prompt("exec behind a pause", sandbox.probe_ok(&["echo", "on"])).await??;
    ensure!(done.text() == "on\n", "it printed {:?}", done.text());
    Ok(())
}

async fn stops(cx: Context) -> Verdict {
    let sandbox = cx.sandbox().await?;
    sandbox.start(&["beat", "beat", &BEAT_MS.to_string()]).await?;
    beats(&cx, &sandbox, "/workspace/beat").await?;
    let (before, started) = (sandbox.size("/workspace/beat").await?, Instant::now());
    pause(&cx, &sandbox.id).await?;
    let paused = Instant::now();
    tokio::time::sleep(STILL).await;
    let still = paused.elapsed();
    resume(&cx, &sandbox.id).await?;
    let sandbox = again(&cx, &sandbox).await?;
    let after = sandbox.size("/workspace/beat").await?;
    // What it could do in the time before and behind the pause, and a few beats more.
    let awake = started.elapsed().saturating_sub(still);
    let most = u64::try_from(awake.as_millis()).unwrap_or(u64::MAX) / BEAT_MS + 30;
    let seen = after.saturating_sub(before);
    ensure!(seen <= most, "{seen} beats where {most} are possible in the {awake:?} that it was not paused");
    beats(&cx, &sandbox, "/workspace/beat").await
}

async fn state(cx: Context) -> Verdict {
    let sandbox = cx.sandbox().await?;
    pause(&cx, &sandbox.id).await?;
    let status = cx.prompt("status", cx.provider.status(&sandbox.id)).await?.during("status")?;
    ensure!(status == RuntimeState::Paused, "status says {status:?}");
    let listed = cx.prompt("list", cx.provider.list()).await?.during("list")?;
    let listed = listed.into_iter().find(|entry| entry.id == sandbox.id).map(|entry| entry.state);
    ensure!(listed == Some(RuntimeState::Paused), "it is listed as {listed:?}");
    let early = tokio::time::timeout(Duration::from_millis(300), cx.provider.ended(&sandbox.id)).await;
    ensure!(early.is_err(), "ended returned {early:?} while the sandbox is paused");
    resume(&cx, &sandbox.id).await?;
    let status = cx.provider.status(&sandbox.id).await.during("status")?;
    ensure!(status == RuntimeState::Running, "status says {status:?} behind the resume");
    Ok(())
}

async fn output(cx: Context) -> Verdict {
    let sandbox = cx.sandbox().await?;
    let counting = sandbox.start(&["count", "10", "200"]).await?;
    for pause_ms in [0, 20, 700] {
        tokio::time::sleep(Duration::from_millis(150)).await;
        pause(&cx, &sandbox.id).await?;
        tokio::time::sleep(Duration::from_millis(pause_ms)).await;
        resume(&cx, &sandbox.id).await?;
    }
    let done = again(&cx, &sandbox).await?.finish(&counting.id).await?.ok()?;
    let expected: String = (0..200).map(|number| format!("{number}\n")).collect();
    crate::observe::same("what a paused process wrote", &done.stdout, expected.as_bytes())
}

async fn idempotent(cx: Context) -> Verdict {
    let sandbox = cx.sandbox().await?;
    resume(&cx, &sandbox.id).await.during("one that runs")?;
    for _ in 0..2 {
        pause(&cx, &sandbox.id).await?;
        pause(&cx, &sandbox.id).await.during("one that is paused")?;
        resume(&cx, &sandbox.id).await?;
        resume(&cx, &sandbox.id).await.during("one that goes on")?;
    }
    works(&cx, &sandbox).await
}

async fn unknown(cx: Context) -> Verdict {
    let id = cx.new_id()?;
    refused("pause of an unknown id", cx.provider.pause(&id).await, &[ErrorKind::NotFound])?;
    refused("resume of an unknown id", cx.provider.resume(&id).await, &[ErrorKind::NotFound])?;
    refused("status of an unknown id", cx.provider.status(&id).await, &[ErrorKind::NotFound])
}

async fn destroy(cx: Context) -> Verdict {
    let (sandbox, token) = (cx.sandbox().await?, cx.unique("paused"));
    sandbox.start(&["spawn", "daemon", "exit", "daemon", &token]).await?;
    sandbox.start(&["ignore-term", &token]).await?;
    beats(&cx, &sandbox, "/workspace/daemon").await?;
    pause(&cx, &sandbox.id).await?;
    cx.destroy(&sandbox.id).await?;
    gone(&cx, &sandbox.id).await?;
    if cx.options.host_processes {
        let left = host_processes(&token);
        ensure!(left.is_empty(), "processes {left:?} of this host outlived their paused sandbox");
    }
    Ok(())
}

/// Processor time that a process of this host has used, in clock ticks.
fn used(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

async fn busy(cx: Context) -> Verdict {
    let (sandbox, token) = (cx.sandbox().await?, cx.unique("busy"));
    // The loud ones end soon: whatever else the suite does on this host goes on beside them.
    for words in
        [&["fork-many", "20", "60000"][..], &["beat", "beat", "1"], &["spin", "4000"], &["churn", "4000"]]
    {
        sandbox.start(&[words, &[token.as_str()]].concat()).await?;
    }
    eventually(&cx, "signs of the busy processes on this host", || async {
        Ok(host_processes(&token).len() > 20)
    })
    .await?;
    for _ in 0..2 {
        pause(&cx, &sandbox.id).await?;
        let before: Vec<_> = host_processes(&token).into_iter().map(|pid| (pid, used(pid))).collect();
        ensure!(before.len() > 20, "only {} processes are visible on this host", before.len());
        tokio::time::sleep(cx.patient(Duration::from_millis(300))).await;
        let after: Vec<_> = host_processes(&token).into_iter().map(|pid| (pid, used(pid))).collect();
        ensure!(before == after, "some of its processes run, or others do, while it is paused");
        resume(&cx, &sandbox.id).await?;
    }
    works(&cx, &sandbox).await?;
    pause(&cx, &sandbox.id).await?;
    cx.destroy(&sandbox.id).await?;
    gone(&cx, &sandbox.id).await
}

async fn cancelled(cx: Context) -> Verdict {
    let sandbox = cx.sandbox().await?;
    for pause_us in [0, 200, 1_000, 4_000, 15_000] {
        let pausing = cx.provider.pause(&sandbox.id);
        let _ = tokio::time::timeout(Duration::from_micros(pause_us), pausing).await;
        resume(&cx, &sandbox.id).await.during(&format!("behind a pause given up after {pause_us} µs"))?;
        works(&cx, &sandbox).await.during(&format!("behind a pause given up after {pause_us} µs"))?;
    }
    pause(&cx, &sandbox.id).await?;
    let resuming = cx.provider.resume(&sandbox.id);
    let _ = tokio::time::timeout(Duration::from_micros(100), resuming).await;
    resume(&cx, &sandbox.id).await?;
    works(&cx, &sandbox).await
}

async fn concurrent(cx: Context) -> Verdict {
    let sandbox = cx.sandbox().await?;
    for _ in 0..3 {
        let turns = (0..6).map(|turn| {
            let (provider, id) = (&cx.provider, &sandbox.id);
            async move { if turn % 2 == 0 { provider.pause(id).await } else { provider.resume(id).await } }
        });
        for result in cx.prompt("pauses and resumes at once", join_all(turns)).await? {
            result.during("one of several pauses and resumes at once")?;
        }
    }
    resume(&cx, &sandbox.id).await?;
    works(&cx, &sandbox).await
}
