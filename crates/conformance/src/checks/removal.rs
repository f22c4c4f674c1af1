//! Destroy: idempotent, convergent, and nothing is left when it says so.

use super::lifecycle::gone;
use crate::{
    check::{During, Verdict, checks, ensure, refused},
    context::{Context, Sandbox},
    observe::{beats, host_processes},
};
use futures::{StreamExt, future::join_all};
use stacyvm_provider::ErrorKind;
use std::time::Duration;

checks! {
    "destroy.idempotent" "destroying again is fine" [] 30 idempotent;
    "destroy.unknown" "destroying an id that never existed is fine" [] 30 unknown;
    "destroy.concurrent" "several destroys at once all succeed and leave nothing" [] 30 concurrent;
    "destroy.cancelled" "a destroy that is given up at any moment is completed by the next one" [] 45 cancelled;
    "destroy.processes" "no process of a sandbox outlives it: daemons, other sessions, those that ignore signals" [HostProcesses] 30 processes;
    "destroy.streams" "open output streams end when their sandbox is destroyed" [] 30 streams;
    "destroy.old_guest" "a connection to a destroyed sandbox answers with an error, at once" [] 30 old_guest;
    "destroy.same_id_again" "a destroyed sandbox's id can be created again and starts empty" [] 30 same_id_again;
    "destroy.busy" "a sandbox is destroyed while it writes, reads and forks" [] 30 busy;
}

async fn idempotent(cx: Context) -> Verdict {
    let sandbox = cx.sandbox().await?;
    cx.provider.destroy(&sandbox.id).await.during("destroy")?;
    cx.provider.destroy(&sandbox.id).await.during("second destroy")?;
    cx.destroy(&sandbox.id).await?;
    gone(&cx, &sandbox.id).await
}

async fn unknown(cx: Context) -> Verdict {
    let id = cx.new_id()?;
    cx.destroy(&id).await?;
    refused("status of an id that never existed", cx.provider.status(&id).await, &[ErrorKind::NotFound])
}

async fn concurrent(cx: Context) -> Verdict {
    let sandbox = cx.sandbox().await?;
    sandbox.start(&["sleep", "60000"]).await?;
    for result in join_all((0..3).map(|_| cx.provider.destroy(&sandbox.id))).await {
        result.during("one of three destroys at once")?;
    }
    cx.destroy(&sandbox.id).await?;
    gone(&cx, &sandbox.id).await
}

async fn cancelled(cx: Context) -> Verdict {
    for pause_us in [0, 200, 1_000, 4_000, 10_000] {
        let sandbox = cx.sandbox().await?;
        sandbox.start(&["sleep", "60000"]).await?;
        let destroy = cx.provider.destroy(&sandbox.id);
        let _ = tokio::time::timeout(Duration::from_micros(pause_us), destroy).await;
        cx.destroy(&sandbox.id).await?;
        gone(&cx, &sandbox.id).await?;
    }
    Ok(())
}

/// Leaves a process of each kind behind that is hard to find or hard to end.
async fn fill_with_daemons(cx: &Context, sandbox: &Sandbox, token: &str) -> Verdict {
    for how in ["child", "session", "daemon", "stubborn"] {
        sandbox.start(&["spawn", how, "exit", how, token]).await?;
    }
    sandbox.start(&["ignore-term", token]).await?;
    for how in ["child", "session", "daemon", "stubborn"] {
        beats(cx, sandbox, &format!("/workspace/{how}")).await?;
    }
    Ok(())
}

async fn processes(cx: Context) -> Verdict {
    let (sandbox, token) = (cx.sandbox().await?, cx.unique("daemon"));
    fill_with_daemons(&cx, &sandbox, &token).await?;
    let living = host_processes(&token).len();
    ensure!(living >= 5, "only {living} of 5 processes are visible on this host before destroy");
    cx.destroy(&sandbox.id).await?;
    let left = host_processes(&token);
    ensure!(left.is_empty(), "processes {left:?} of this host outlived their sandbox");
    Ok(())
}

async fn streams(cx: Context) -> Verdict {
    let sandbox = cx.sandbox().await?;
    let counting = sandbox.start(&["count", "10", "6000"]).await?;
    let mut output = sandbox.guest.attach(&counting.id, 0, true, false).await.during("attach")?;
    ensure!(output.next().await.is_some(), "no output at all");
    cx.destroy(&sandbox.id).await?;
    // Whatever the last events are: the stream must come to its end, and an exit code is not one of them.
    cx.prompt("the end of an output stream", async {
        while let Some(event) = output.next().await {
            if let Ok(stacyvm_provider::OutputEvent::Exit(info)) = event {
                let exited = matches!(info.outcome, Some(stacyvm_provider::Outcome::Exited(_)));
                ensure!(!exited, "the killed process is said to have exited: {:?}", info.outcome);
            }
        }
        Ok(())
    })
    .await?
}

async fn old_guest(cx: Context) -> Verdict {
    let sandbox = cx.sandbox().await?;
    cx.destroy(&sandbox.id).await?;
    let kinds = [ErrorKind::Destroyed, ErrorKind::NotFound, ErrorKind::Unavailable];
    refused("ping", cx.prompt("ping", sandbox.guest.ping()).await?, &kinds)?;
    refused("stat", cx.prompt("stat", sandbox.guest.stat("/workspace", true)).await?, &kinds)?;
    let spec = sandbox.probe_spec(&["exit", "0"]);
    refused("start", cx.prompt("start", sandbox.guest.start(&spec)).await?, &kinds)
}

async fn same_id_again(cx: Context) -> Verdict {
    let sandbox = cx.sandbox().await?;
    sandbox.write("/workspace/old", b"old").await?;
    cx.provider.destroy(&sandbox.id).await.during("destroy")?;
    cx.provider.create(&sandbox.id, &cx.spec()).await.during("create with the id of a destroyed sandbox")?;
    let again = cx.enter(&sandbox.id).await?;
    refused(
        "stat of a file of the old one",
        again.guest.stat("/workspace/old", true).await,
        &[ErrorKind::NotFound],
    )?;
    let known = again.guest.processes().await.during("processes")?;
    ensure!(known.is_empty(), "it remembers processes of the old one: {known:?}");
    Ok(())
}

async fn busy(cx: Context) -> Verdict {
    let sandbox = cx.sandbox().await?;
    for words in [&["flood", "1000000000"][..], &["fork-many", "20", "60000"], &["beat", "beat", "1"]] {
        sandbox.start(words).await?;
    }
    let (_upload, content) = futures::channel::mpsc::channel(1);
    let guest = sandbox.guest.clone();
    let stalled = tokio::spawn(async move {
        let path = "/workspace/stalled".to_owned();
        let file = stacyvm_provider::WriteFile { path, mode: 0o644, user: None };
        guest.write_file(&file, content.boxed()).await
    });
    beats(&cx, &sandbox, "/workspace/beat").await?;
    cx.destroy(&sandbox.id).await?;
    stalled.abort();
    gone(&cx, &sandbox.id).await
}
