//! Control answers at once, whatever stalls elsewhere.

use super::signals::ready;
use crate::{
    check::{During, Verdict, checks, ensure},
    context::Context,
};
use bytes::Bytes;
use futures::{StreamExt, stream};
use stacyvm_provider::{Outcome, ProcessSpec, Signal, WriteFile};
use std::{sync::Arc, time::Duration};

checks! {
    "control.prompt" "ping, start, signal, wait and files answer while stdin, readers and an upload are stalled" [] 60 prompt;
    "control.stalled_download" "a download that nobody reads holds up no other" [] 45 stalled_download;
}

async fn prompt(cx: Context) -> Verdict {
    let sandbox = cx.sandbox().await?;
    let mut stalled = Vec::new();

    // One process never reads its stdin, and somebody keeps writing to it.
    let deaf = ProcessSpec { stdin: true, ..sandbox.probe_spec(&["sleep", "60000"]) };
    sandbox.guest.start(&deaf).await.during("start")?;
    for _ in 0..3 {
        let (guest, id) = (Arc::clone(&sandbox.guest), deaf.id.clone());
        stalled.push(tokio::spawn(async move {
            let piece = Bytes::from(vec![1; 64 << 10]);
            let mut offset = 0;
            while let Ok(ack) = guest.write_stdin(&id, offset, piece.clone(), false).await {
                offset = ack.accepted;
            }
        }));
    }

    // Five clients attach to a flood and never read, some of them pacing it.
    let flood = sandbox.start(&["flood", "400000000"]).await?;
    let mut readers = Vec::new();
    for reader in 0..5 {
        readers.push(sandbox.guest.attach(&flood.id, 0, true, reader % 2 == 0).await.during("attach")?);
    }

    // One upload sends a piece and no more.
    let guest = Arc::clone(&sandbox.guest);
    stalled.push(tokio::spawn(async move {
        let first = stream::once(async { Ok(Bytes::from(vec![2; 64 << 10])) });
        let file = WriteFile { path: "/workspace/stalled".to_owned(), mode: 0o644, user: None };
        let _ = guest.write_file(&file, first.chain(stream::pending()).boxed()).await;
    }));
    tokio::time::sleep(Duration::from_millis(500)).await;

    for _ in 0..3 {
        cx.prompt("ping", sandbox.guest.ping()).await?.during("ping")?;
        let victim = cx.prompt("start", ready(&sandbox, &["ignore-term"])).await??;
        cx.prompt("signal", sandbox.guest.signal(&victim.id, Signal::KILL, true)).await?.during("signal")?;
        let ended = cx.prompt("wait", sandbox.wait(&victim.id)).await??;
        ensure!(ended.outcome == Some(Outcome::Signaled(9)), "it ended with {:?}", ended.outcome);
        cx.prompt("processes", sandbox.guest.processes()).await?.during("processes")?;
        cx.prompt("write", sandbox.write("/workspace/other", b"content")).await??;
        let read = cx.prompt("read", sandbox.read("/workspace/other")).await??;
        ensure!(read == b"content", "a file read back during the stall differs");
        let done = cx.prompt("exec", sandbox.probe_ok(&["echo", "through"])).await??;
        ensure!(done.text() == "through\n", "an exec during the stall printed {:?}", done.text());
    }
    cx.prompt("kill of the flood", sandbox.kill(&flood.id)).await??;
    cx.prompt("end of the flood", sandbox.wait(&flood.id)).await??;
    for task in stalled {
        task.abort();
    }
    drop(readers);
    Ok(())
}

async fn stalled_download(cx: Context) -> Verdict {
    let sandbox = cx.sandbox().await?;
    let content = crate::observe::noise(3, 4 << 20);
    sandbox.write("/workspace/large", &content).await?;
    let mut stalled = Vec::new();
    for _ in 0..5 {
        let range = stacyvm_provider::ReadRange::default();
        let (_, mut download) =
            sandbox.guest.read_file("/workspace/large", range).await.during("read_file")?;
        ensure!(download.next().await.is_some(), "the download is empty");
        stalled.push(download);
    }
    cx.prompt("ping", sandbox.guest.ping()).await?.during("ping")?;
    let read = cx.prompt("another download", sandbox.read("/workspace/large")).await??;
    crate::observe::same("another download", &read, &content)?;
    // The stalled ones go on where they stopped.
    let mut last = stalled.swap_remove(0);
    let mut bytes = 0;
    while let Some(piece) = last.next().await {
        bytes += piece.during("the rest of a stalled download")?.len();
    }
    ensure!(bytes > 0, "the rest of a stalled download is missing");
    Ok(())
}
