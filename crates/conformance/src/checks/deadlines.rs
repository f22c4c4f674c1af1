//! Deadlines and background work: what ends a process, and what must not.

use super::signals::ready;
use crate::{
    check::{During, Verdict, checks, ensure},
    context::Context,
    observe::{beats, falls_silent},
};
use stacyvm_provider::{Outcome, ProcessSpec};
use std::time::{Duration, Instant};

checks! {
    "deadline.kills" "at its deadline a process is killed and reported as timed out" [] 30 kills;
    "deadline.output" "output written in front of the deadline is there, to the last byte" [] 30 output;
    "deadline.descendants" "a deadline ends descendants too: other sessions, daemons, those that ignore signals" [] 45 descendants;
    "deadline.background" "a deadline also ends what an ended leader left running" [] 30 background;
    "deadline.in_time" "a process that ends in front of its deadline is not touched by it" [] 30 in_time;
    "background.outlives_exec" "an exec ends with its leader while a background child that holds its output runs on" [] 30 outlives_exec;
    "background.output_reported" "output held open by a background child is reported until it ends" [] 30 output_reported;
    "background.daemon" "a daemon runs on behind the end of its exec" [] 30 daemon;
}

const SOON: Option<Duration> = Some(Duration::from_millis(300));
/// A deadline that leaves also a busy host the time to look before it.
const LATEST: Duration = Duration::from_secs(6);

async fn kills(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    for words in [&["sleep", "60000"][..], &["ignore-term"]] {
        let spec = ProcessSpec { deadline: SOON, ..sandbox.probe_spec(words) };
        let info = cx.prompt("a process with a deadline", sandbox.run(&spec)).await??.info;
        ensure!(info.timed_out, "it is not reported as timed out: {info:?}");
        ensure!(info.outcome == Some(Outcome::Signaled(9)), "it ended with {:?}", info.outcome);
    }
    Ok(())
}

async fn output(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    let spec = ProcessSpec { deadline: SOON, ..sandbox.probe_spec(&["count", "5", "60000"]) };
    let done = cx.prompt("a process with a deadline", sandbox.run(&spec)).await??;
    let text = done.text();
    let expected: String = (0..text.lines().count()).map(|number| format!("{number}\n")).collect();
    ensure!(!text.is_empty(), "none of its output is there");
    ensure!(text == expected, "its output is damaged: {text:?}");
    ensure!(
        done.info.output_end == text.len() as u64,
        "{} bytes are counted as {}",
        text.len(),
        done.info.output_end
    );
    Ok(())
}

async fn descendants(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    for how in ["child", "session", "daemon", "stubborn"] {
        let spec = ProcessSpec {
            deadline: Some(Duration::from_millis(500)),
            ..sandbox.probe_spec(&["spawn", how, "stay", &cx.relative(how)])
        };
        cx.prompt("a process with a deadline", sandbox.run(&spec)).await??;
        falls_silent(&cx, &sandbox, &cx.path(how)).await?;
    }
    Ok(())
}

async fn background(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    let mut deadline = Duration::from_millis(1500);
    loop {
        let beat = format!("beat-{}", deadline.as_millis());
        let words = ["spawn", "daemon", "exit", &cx.relative(&beat)];
        let spec = ProcessSpec { deadline: Some(deadline), ..sandbox.probe_spec(&words) };
        let started = Instant::now();
        let done = sandbox.run(&spec).await?.ok()?;
        // A host with much else to do may take so long that there is nothing left to see.
        if started.elapsed() > deadline / 2 && deadline < LATEST {
            deadline = LATEST;
            continue;
        }
        ensure!(!done.info.timed_out, "the leader ended in time and is reported as timed out");
        beats(&cx, &sandbox, &cx.path(&beat)).await?;
        return falls_silent(&cx, &sandbox, &cx.path(&beat)).await;
    }
}

async fn in_time(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    let spec = ProcessSpec { deadline: SOON, ..sandbox.probe_spec(&["exit", "7"]) };
    sandbox.run(&spec).await?;
    tokio::time::sleep(Duration::from_millis(400)).await;
    let info = sandbox.guest.process(&spec.id).await.during("process")?;
    ensure!(
        info.outcome == Some(Outcome::Exited(7)) && !info.timed_out,
        "behind its deadline it reads {info:?}"
    );
    Ok(())
}

async fn outlives_exec(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    let spec = sandbox.probe_spec(&["spawn", "child", "exit", &cx.relative("beat")]);
    let run = cx.prompt("the end of an exec whose child holds its output", sandbox.run(&spec)).await?;
    let done = run?.ok()?;
    beats(&cx, &sandbox, &cx.path("beat")).await?;
    sandbox.kill(&done.info.id).await?;
    Ok(())
}

async fn output_reported(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    sandbox.guest.mkdir(&cx.path("held"), 0o755, false).await.during("mkdir")?;
    let done = sandbox.probe_ok(&["spawn", "child", "exit", &cx.relative("held/beat")]).await?;
    let info = sandbox.guest.process(&done.info.id).await.during("process")?;
    ensure!(info.output_open, "a child holds the output and nothing says so");
    // The child ends when it cannot beat any more.
    sandbox.guest.remove(&cx.path("held"), true).await.during("remove")?;
    crate::observe::eventually(&cx, "the end of the output when nobody holds it any more", || async {
        Ok(!sandbox.guest.process(&done.info.id).await.during("process")?.output_open)
    })
    .await
}

async fn daemon(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    let done = sandbox.probe_ok(&["spawn", "daemon", "exit", &cx.relative("beat")]).await?;
    // Another process comes and goes, and so does its whole tree.
    let other = ready(&sandbox, &["ignore-term"]).await?;
    sandbox.kill(&other.id).await?;
    sandbox.wait(&other.id).await?;
    beats(&cx, &sandbox, &cx.path("beat")).await?;
    sandbox.kill(&done.info.id).await?;
    Ok(())
}
