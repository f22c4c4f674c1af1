//! Stdin: positions make retries safe, a process that does not read holds nobody up.

use crate::{
    check::{During, Verdict, checks, ensure, refused},
    context::{Context, Sandbox},
    observe::{fnv1a, noise, same},
};
use bytes::Bytes;
use stacyvm_provider::{ErrorKind, ProcessSpec};
use std::time::Duration;

checks! {
    "stdin.exact" "1 MiB of any bytes reaches the process exactly" [] 45 exact;
    "stdin.echo" "what a process reads it can write back while it still reads" [] 45 echo;
    "stdin.retry" "bytes sent again at their position are not delivered again" [] 30 retry;
    "stdin.ahead" "a position ahead of what was accepted is InvalidArgument" [] 30 ahead;
    "stdin.writers" "of several who write, each by a count of their own, none loses a byte to another" [] 30 writers;
    "stdin.eof" "end of input reaches the process, and nothing can be written behind it" [] 30 eof;
    "stdin.none" "a process without stdin reads end of input at once and cannot be written to" [] 30 none;
    "stdin.not_read" "writing to a process that does not read returns soon and takes a bounded amount" [] 45 not_read;
    "stdin.after_end" "writing to a process that has ended neither hangs nor succeeds" [] 30 after_end;
}

/// Starts the probe with stdin open.
async fn open(sandbox: &Sandbox, words: &[&str]) -> Verdict<ProcessSpec> {
    let spec = ProcessSpec { stdin: true, ..sandbox.probe_spec(words) };
    sandbox.guest.start(&spec).await.during("start")?;
    Ok(spec)
}

/// Sends all of `data`, then end of input.
async fn send(sandbox: &Sandbox, id: &str, data: &[u8]) -> Verdict {
    let mut offset = 0;
    loop {
        let end = data.len().min(offset + (64 << 10));
        let piece = Bytes::copy_from_slice(&data[offset..end]);
        let ack = sandbox
            .guest
            .write_stdin(id, offset as u64, piece, end == data.len())
            .await
            .during("write_stdin")?;
        let accepted = usize::try_from(ack.accepted).unwrap_or(usize::MAX);
        ensure!((offset..=end).contains(&accepted), "sent {offset}..{end}, accepted up to {accepted}");
        offset = accepted;
        if offset == data.len() && ack.closed {
            return Ok(());
        }
    }
}

async fn exact(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    let data = noise(1, (1 << 20) + 17);
    let spec = open(&sandbox, &["stdin-hash"]).await?;
    send(&sandbox, &spec.id, &data).await?;
    let said = sandbox.finish(&spec.id).await?.ok()?.text();
    let expected = format!("{} {:016x}\n", data.len(), fnv1a(&data));
    ensure!(said == expected, "the process read {said:?}, sent was {expected:?}");
    Ok(())
}

async fn echo(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    let data = noise(2, 700_001);
    let spec = open(&sandbox, &["cat"]).await?;
    let (sent, done) = futures::join!(send(&sandbox, &spec.id, &data), sandbox.finish(&spec.id));
    sent?;
    same("what came back", &done?.ok()?.stdout, &data)
}

async fn retry(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    let spec = open(&sandbox, &["cat"]).await?;
    let write = |offset, data: &'static str, eof| {
        let (guest, id) = (sandbox.guest.clone(), spec.id.clone());
        async move { guest.write_stdin(&id, offset, Bytes::from(data), eof).await.during("write_stdin") }
    };
    for (offset, data, accepted) in [(0, "hello", 5), (0, "hello", 5), (3, "lo wor", 9), (2, "ll", 9)] {
        let ack = write(offset, data, false).await?;
        ensure!(
            ack.accepted == accepted,
            "{data:?} at {offset}: accepted up to {}, not {accepted}",
            ack.accepted
        );
    }
    write(0, "hello world", true).await?;
    let done = sandbox.finish(&spec.id).await?.ok()?;
    ensure!(done.text() == "hello world", "the process read {:?}", done.text());
    ensure!(done.info.stdin_offset == 11, "the position is {}", done.info.stdin_offset);
    Ok(())
}

async fn ahead(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    let spec = open(&sandbox, &["cat"]).await?;
    let skipped = sandbox.guest.write_stdin(&spec.id, 1, "x".into(), false).await;
    refused("a position behind nothing", skipped, &[ErrorKind::InvalidArgument])?;
    send(&sandbox, &spec.id, b"fine").await?;
    let done = sandbox.finish(&spec.id).await?.ok()?;
    ensure!(done.text() == "fine", "the process read {:?}", done.text());
    Ok(())
}

async fn writers(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    let spec = open(&sandbox, &["cat"]).await?;
    for (writer, offset, data, accepted) in
        [("one", 0, "a", 1), ("two", 0, "b", 1), ("one", 1, "c", 2), ("two", 0, "bd", 2), ("one", 1, "c", 2)]
    {
        let ack = sandbox.guest.write_stdin_as(&spec.id, writer, offset, data.into(), false).await;
        let ack = ack.during("write_stdin_as")?;
        ensure!(ack.accepted == accepted, "{writer} wrote {data:?} at {offset}: {ack:?}");
    }
    send(&sandbox, &spec.id, b"abcd!").await?;
    let done = sandbox.finish(&spec.id).await?.ok()?;
    ensure!(done.text() == "abcd!", "the process read {:?}", done.text());
    Ok(())
}

async fn eof(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    let spec = open(&sandbox, &["cat"]).await?;
    let info = sandbox.guest.process(&spec.id).await.during("process")?;
    ensure!(info.stdin_open, "stdin is not open at the start");
    let ack = sandbox.guest.write_stdin(&spec.id, 0, Bytes::new(), true).await.during("write_stdin")?;
    ensure!(ack.closed && ack.accepted == 0, "end of input is answered with {ack:?}");
    let again =
        sandbox.guest.write_stdin(&spec.id, 0, Bytes::new(), true).await.during("end of input again")?;
    ensure!(again.closed, "end of input sent again is answered with {again:?}");
    match sandbox.guest.write_stdin(&spec.id, 0, "late".into(), false).await {
        Ok(ack) => ensure!(ack.closed && ack.accepted == 0, "bytes behind the end are answered with {ack:?}"),
        Err(error) => refused::<()>("bytes behind the end", Err(error), &[ErrorKind::InvalidArgument])?,
    }
    let done = sandbox.finish(&spec.id).await?.ok()?;
    ensure!(
        done.stdout.is_empty() && !done.info.stdin_open,
        "it read {:?} and ended as {:?}",
        done.text(),
        done.info
    );
    Ok(())
}

async fn none(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    let done = cx.prompt("cat without stdin", sandbox.probe_ok(&["cat"])).await??;
    ensure!(done.stdout.is_empty(), "it read {:?}", done.text());
    let running = sandbox.start(&["sleep", "60000"]).await?;
    let written = sandbox.guest.write_stdin(&running.id, 0, "x".into(), false).await;
    refused("write_stdin", written, &[ErrorKind::InvalidArgument])?;
    sandbox.kill(&running.id).await?;
    Ok(())
}

async fn not_read(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    let spec = open(&sandbox, &["sleep", "60000"]).await?;
    let piece = Bytes::from(vec![7; 64 << 10]);
    let mut accepted = 0;
    let mut full = false;
    for _ in 0..64 {
        let write = sandbox.guest.write_stdin(&spec.id, accepted, piece.clone(), false);
        let ack =
            cx.prompt("write_stdin to a process that does not read", write).await?.during("write_stdin")?;
        ensure!(ack.accepted >= accepted && !ack.closed, "answered with {ack:?} behind {accepted}");
        full = ack.accepted == accepted;
        accepted = ack.accepted;
        if full {
            break;
        }
    }
    ensure!(full, "{accepted} bytes were taken that nobody reads");
    sandbox.kill(&spec.id).await?;
    Ok(())
}

async fn after_end(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    let spec = open(&sandbox, &["exit", "0"]).await?;
    sandbox.wait(&spec.id).await?;
    tokio::time::sleep(Duration::from_millis(20)).await;
    let write = sandbox.guest.write_stdin(&spec.id, 0, "x".into(), false);
    match cx.prompt("write_stdin to an ended process", write).await? {
        Ok(ack) => ensure!(ack.closed, "answered with {ack:?}"),
        Err(error) => refused::<()>("write_stdin", Err(error), &[ErrorKind::InvalidArgument])?,
    }
    Ok(())
}
