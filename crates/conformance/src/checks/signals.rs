//! Signals: to the leader, to the whole tree, to nobody.

use crate::{
    check::{During, Verdict, checks, ensure, refused},
    context::{Context, Sandbox},
    observe::{beats, falls_silent},
};
use futures::StreamExt;
use stacyvm_provider::{ErrorKind, Outcome, ProcessInfo, Signal};
use std::time::Duration;

checks! {
    "signal.delivered" "a signal reaches the leader, which may handle it" [] 30 delivered;
    "signal.ignored" "a process that ignores SIGTERM lives on and SIGKILL ends it" [] 30 ignored;
    "signal.leader_only" "a signal without tree leaves the children alone" [] 30 leader_only;
    "signal.tree" "a signal to the tree reaches descendants in sessions of their own" [] 30 tree;
    "signal.kill_tree" "SIGKILL to the tree ends every descendant, daemons and those that ignore signals" [] 45 kill_tree;
    "signal.kill_background" "background children left by an ended leader are ended by a kill of its tree" [] 30 kill_background;
    "signal.ended" "a signal to an ended process says that it had ended" [] 30 ended;
    "signal.invalid" "a number that is no signal is InvalidArgument" [] 30 invalid;
    "signal.stop_and_continue" "a stopped process is still running and goes on when continued" [] 30 stop_and_continue;
}

/// Starts the probe and waits for the word `ready`.
pub(super) async fn ready(sandbox: &Sandbox, words: &[&str]) -> Verdict<ProcessInfo> {
    let info = sandbox.start(words).await?;
    let mut output = sandbox.guest.attach(&info.id, 0, true, false).await.during("attach")?;
    ensure!(output.next().await.is_some(), "{words:?} never got ready");
    Ok(info)
}

async fn delivered(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    let info = ready(&sandbox, &["await-term"]).await?;
    let sent = sandbox.guest.signal(&info.id, Signal::TERM, false).await.during("signal")?;
    ensure!(sent, "the signal is said to have come too late");
    let done = sandbox.finish(&info.id).await?;
    ensure!(done.info.outcome == Some(Outcome::Exited(43)), "it ended with {:?}", done.info.outcome);
    ensure!(done.text() == "ready\nterm\n", "it printed {:?}", done.text());
    Ok(())
}

async fn ignored(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    let info = ready(&sandbox, &["ignore-term"]).await?;
    sandbox.guest.signal(&info.id, Signal::TERM, false).await.during("signal")?;
    sandbox.guest.signal(&info.id, Signal::INT, true).await.during("signal")?;
    let still = sandbox.guest.wait(&info.id, Duration::from_millis(100)).await.during("wait")?;
    ensure!(still.outcome.is_none(), "it ended with {:?}", still.outcome);
    sandbox.guest.signal(&info.id, Signal::KILL, false).await.during("signal")?;
    let ended = sandbox.wait(&info.id).await?;
    ensure!(ended.outcome == Some(Outcome::Signaled(9)), "it ended with {:?}", ended.outcome);
    Ok(())
}

async fn leader_only(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    let info = ready(&sandbox, &["spawn", "child", "stay", &cx.relative("beat")]).await?;
    sandbox.guest.signal(&info.id, Signal::TERM, false).await.during("signal")?;
    let ended = sandbox.wait(&info.id).await?;
    ensure!(ended.outcome == Some(Outcome::Signaled(15)), "the leader ended with {:?}", ended.outcome);
    beats(&cx, &sandbox, &cx.path("beat")).await?;
    sandbox.kill(&info.id).await?;
    Ok(())
}

async fn tree(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    for how in ["child", "session"] {
        let info = ready(&sandbox, &["spawn", how, "stay", &cx.relative(how)]).await?;
        beats(&cx, &sandbox, &cx.path(how)).await?;
        sandbox.guest.signal(&info.id, Signal::TERM, true).await.during("signal")?;
        let ended = sandbox.wait(&info.id).await?;
        ensure!(ended.outcome == Some(Outcome::Signaled(15)), "the leader ended with {:?}", ended.outcome);
        falls_silent(&cx, &sandbox, &cx.path(how)).await?;
    }
    Ok(())
}

async fn kill_tree(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    for how in ["child", "session", "daemon", "stubborn"] {
        let info = ready(&sandbox, &["spawn", how, "stay", &cx.relative(how)]).await?;
        beats(&cx, &sandbox, &cx.path(how)).await?;
        sandbox.kill(&info.id).await?;
        let ended = sandbox.wait(&info.id).await?;
        ensure!(ended.outcome == Some(Outcome::Signaled(9)), "the leader ended with {:?}", ended.outcome);
        falls_silent(&cx, &sandbox, &cx.path(how)).await?;
    }
    Ok(())
}

async fn kill_background(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    for how in ["child", "daemon"] {
        let info = sandbox.start(&["spawn", how, "exit", &cx.relative(how)]).await?;
        sandbox.wait(&info.id).await?;
        beats(&cx, &sandbox, &cx.path(how)).await?;
        sandbox.kill(&info.id).await?;
        falls_silent(&cx, &sandbox, &cx.path(how)).await?;
    }
    Ok(())
}

async fn ended(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    let done = sandbox.probe_ok(&["exit", "0"]).await?;
    for tree in [false, true] {
        let sent = sandbox.guest.signal(&done.info.id, Signal::TERM, tree).await.during("signal")?;
        ensure!(!sent, "a signal to an ended process is said to be delivered (tree: {tree})");
    }
    Ok(())
}

async fn invalid(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    let info = ready(&sandbox, &["ignore-term"]).await?;
    for number in [0, -1, 65, 1000] {
        let sent = sandbox.guest.signal(&info.id, Signal(number), false).await;
        refused(&format!("signal {number}"), sent, &[ErrorKind::InvalidArgument])?;
    }
    sandbox.kill(&info.id).await?;
    Ok(())
}

async fn stop_and_continue(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    let info = sandbox.start(&["beat", &cx.relative("beat"), "10"]).await?;
    beats(&cx, &sandbox, &cx.path("beat")).await?;
    sandbox.guest.signal(&info.id, Signal(19), false).await.during("SIGSTOP")?;
    falls_silent(&cx, &sandbox, &cx.path("beat")).await?;
    let stopped = sandbox.guest.process(&info.id).await.during("process")?;
    ensure!(stopped.outcome.is_none(), "a stopped process is said to have ended: {:?}", stopped.outcome);
    sandbox.guest.signal(&info.id, Signal(18), false).await.during("SIGCONT")?;
    beats(&cx, &sandbox, &cx.path("beat")).await?;
    sandbox.kill(&info.id).await?;
    Ok(())
}
