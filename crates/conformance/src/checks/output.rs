//! Output: every byte once, in order, resumable by offset, and lost bytes are named.

use crate::{
    check::{During, Failure, Verdict, checks, ensure},
    context::{Collected, Context, Sandbox},
    observe::{flood, same},
};
use bytes::Bytes;
use futures::{StreamExt, future::join_all};
use stacyvm_provider::{Outcome, OutputEvent, OutputStream, ProcessSpec};
use std::time::Duration;

checks! {
    "output.separate" "stdout and stderr arrive apart, each in order" [] 30 separate;
    "output.bytes_256" "all 256 byte values arrive on both streams" [] 10 bytes_256;
    "output.large" "8 MiB of output arrive exactly" [] 45 large;
    "output.paced" "a process waits for a slow reader that paces it, and nothing is lost" [] 45 paced;
    "output.first_reader" "a process that floods waits for a reader that attaches right behind its start" [] 45 first_reader;
    "output.reader_returns" "a pacing reader that was cut off and comes back at its offset has lost nothing" [] 45 reader_returns;
    "output.gap" "without pace, bytes that are not kept are named with their exact range" [] 45 gap;
    "output.resume" "attaching again at an offset continues exactly there" [] 45 resume;
    "output.every_offset" "attaching at any offset of an ended process gives the rest" [] 45 every_offset;
    "output.several_readers" "several readers at once each get everything" [] 45 several_readers;
    "output.late_reader" "a reader that comes behind the end gets everything and the exit" [] 30 late_reader;
    "output.without_follow" "without follow, attach ends at the bytes that are there, without an exit" [] 30 without_follow;
    "output.exit_behind_last_byte" "the exit comes behind the last byte, and its counts agree" [] 45 exit_behind_last_byte;
    "output.abandoned_reader" "a pacing reader that goes away does not stop the process" [] 30 abandoned_reader;
}

async fn separate(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    let done = sandbox.probe_ok(&["both", "200"]).await?;
    let lines = |word: &str| (0..200).map(|line| format!("{word} {line}\n")).collect::<String>();
    same("stdout", &done.stdout, lines("out").as_bytes())?;
    same("stderr", &done.stderr, lines("err").as_bytes())
}

async fn bytes_256(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    let done = sandbox.probe_ok(&["bytes", "20"]).await?;
    let up: Vec<u8> = (0..=255).collect();
    let down: Vec<u8> = (0..=255).rev().collect();
    same("stdout", &done.stdout, &up.repeat(20))?;
    same("stderr", &done.stderr, &down.repeat(20))
}

async fn large(cx: Context) -> Verdict {
    const BYTES: u64 = 8 << 20;
    let sandbox = cx.shared().await?;
    let (spec, mut output) = dammed(&sandbox, BYTES).await?;
    open_the_dam(&sandbox, &spec).await?;
    let mut collected = Collected::from(0);
    while collected.next(&mut output).await?.is_none() {}
    same("stdout", &collected.stdout, &flood(0, BYTES))
}

/// A process that floods, with a log much smaller than that.
fn flooding(sandbox: &Sandbox, bytes: u64) -> ProcessSpec {
    ProcessSpec { log_bytes: Some(128 << 10), ..sandbox.probe_spec(&["flood", &bytes.to_string()]) }
}

/// The same, held back until a pacing reader is attached: nothing may be lost from then on.
async fn dammed(sandbox: &Sandbox, bytes: u64) -> Verdict<(ProcessSpec, OutputStream)> {
    let words = ["flood", &bytes.to_string(), "wait"];
    let spec = ProcessSpec { log_bytes: Some(128 << 10), stdin: true, ..sandbox.probe_spec(&words) };
    sandbox.guest.start(&spec).await.during("start")?;
    let output = sandbox.guest.attach(&spec.id, 0, true, true).await.during("attach")?;
    Ok((spec, output))
}

async fn open_the_dam(sandbox: &Sandbox, spec: &ProcessSpec) -> Verdict {
    sandbox.guest.write_stdin(&spec.id, 0, Bytes::new(), true).await.during("end of stdin").map(drop)
}

async fn paced(cx: Context) -> Verdict {
    const BYTES: u64 = 2 << 20;
    let sandbox = cx.shared().await?;
    let (spec, mut output) = dammed(&sandbox, BYTES).await?;
    open_the_dam(&sandbox, &spec).await?;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let mut collected = Collected::from(0);
    let mut pieces = 0;
    while collected.next(&mut output).await?.is_none() {
        pieces += 1;
        if pieces % 16 == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    same("stdout", &collected.stdout, &flood(0, BYTES))
}

async fn first_reader(cx: Context) -> Verdict {
    const BYTES: u64 = 8 << 20;
    let sandbox = cx.shared().await?;
    // As an exec does: start, then attach, with whatever delay a busy host puts between them.
    let started = sandbox.start(&["flood", &BYTES.to_string()]).await?;
    tokio::time::sleep(Duration::from_millis(200)).await;
    same("stdout", &sandbox.finish(&started.id).await?.ok()?.stdout, &flood(0, BYTES))
}

async fn reader_returns(cx: Context) -> Verdict {
    const BYTES: u64 = 8 << 20;
    let sandbox = cx.shared().await?;
    let started = sandbox.start(&["flood", &BYTES.to_string()]).await?;
    let mut collected = Collected::from(0);
    for cut in 1..=3 {
        let mut output =
            sandbox.guest.attach(&started.id, collected.offset, true, true).await.during("attach")?;
        while collected.offset < cut << 20 {
            ensure!(collected.next(&mut output).await?.is_none(), "it ended at offset {}", collected.offset);
        }
        drop(output);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let mut output =
        sandbox.guest.attach(&started.id, collected.offset, true, true).await.during("attach")?;
    while collected.next(&mut output).await?.is_none() {}
    same("all attachments together", &collected.stdout, &flood(0, BYTES))
}

async fn gap(cx: Context) -> Verdict {
    const BYTES: u64 = 2 << 20;
    let sandbox = cx.shared().await?;
    let spec = flooding(&sandbox, BYTES);
    sandbox.guest.start(&spec).await.during("start")?;
    // Nobody reads: the process must not wait, and the oldest bytes go.
    let ended = sandbox.wait(&spec.id).await?;
    ensure!(ended.outcome == Some(Outcome::Exited(0)), "it ended with {:?}", ended.outcome);
    let mut output = sandbox.guest.attach(&spec.id, 0, true, false).await.during("attach")?;
    let first = output.next().await;
    let Some(Ok(OutputEvent::Gap { offset: 0, length })) = first else {
        return Err(Failure(format!("lost bytes are not named first: {first:?}")));
    };
    ensure!(length > 0 && length < BYTES, "{length} of {BYTES} bytes are said to be lost");
    let mut rest = Collected::from(length);
    let info = loop {
        if let Some(info) = rest.next(&mut output).await? {
            break info;
        }
    };
    same("the bytes behind the gap", &rest.stdout, &flood(length, BYTES))?;
    ensure!(
        (info.output_start, info.output_end) == (length, BYTES),
        "kept {}..{}",
        info.output_start,
        info.output_end
    );
    Ok(())
}

async fn resume(cx: Context) -> Verdict {
    const NUMBERS: u64 = 400;
    let sandbox = cx.shared().await?;
    let counting = sandbox.start(&["count", "1", &NUMBERS.to_string()]).await?;
    let mut collected = Collected::from(0);
    let mut take = 1;
    loop {
        let mut output = sandbox
            .guest
            .attach(&counting.id, collected.offset, true, take % 2 == 0)
            .await
            .during("attach")?;
        for _ in 0..take {
            if collected.next(&mut output).await?.is_some() {
                let expected: String = (0..NUMBERS).map(|number| format!("{number}\n")).collect();
                return same("all attachments together", &collected.stdout, expected.as_bytes());
            }
        }
        take = take % 7 + 1;
    }
}

async fn every_offset(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    let started = sandbox.start(&["flood", "200000"]).await?;
    sandbox.wait(&started.id).await?;
    for from in [0, 1, 2, 4_095, 4_096, 65_535, 65_536, 65_537, 131_071, 199_999, 200_000] {
        let mut output = sandbox.guest.attach(&started.id, from, true, false).await.during("attach")?;
        let mut collected = Collected::from(from);
        while collected.next(&mut output).await?.is_none() {}
        same(&format!("output from {from} on"), &collected.stdout, &flood(from, 200_000))?;
    }
    Ok(())
}

async fn several_readers(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    let counting = sandbox.start(&["count", "2", "150"]).await?;
    let expected: String = (0..150).map(|number| format!("{number}\n")).collect();
    let readers = (0..5).map(|reader| {
        let (sandbox, id, expected) = (&sandbox, &counting.id, &expected);
        async move {
            let mut output = sandbox.guest.attach(id, 0, true, reader % 2 == 0).await.during("attach")?;
            let mut collected = Collected::from(0);
            while collected.next(&mut output).await?.is_none() {}
            same(&format!("reader {reader}"), &collected.stdout, expected.as_bytes())
        }
    });
    join_all(readers).await.into_iter().collect()
}

async fn late_reader(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    let ended = sandbox.start(&["both", "50"]).await?;
    sandbox.wait(&ended.id).await?;
    let first = sandbox.finish(&ended.id).await?.ok()?;
    let second = sandbox.finish(&ended.id).await?.ok()?;
    let all = (first.stdout.len() + first.stderr.len()) as u64;
    ensure!(all > 0 && first.info.output_end == all, "{all} of {} bytes are there", first.info.output_end);
    same("the second reading", &second.stdout, &first.stdout)?;
    same("the second reading", &second.stderr, &first.stderr)
}

async fn without_follow(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    let running = sandbox.start(&["count", "1", "60000"]).await?;
    tokio::time::sleep(Duration::from_millis(50)).await;
    let reading = async {
        let mut output = sandbox.guest.attach(&running.id, 0, false, false).await.during("attach")?;
        let mut seen = 0;
        while let Some(event) = output.next().await {
            match event.during("output")? {
                OutputEvent::Chunk { offset, data, .. } if offset == seen => seen += data.len() as u64,
                other => return Err(Failure(format!("{other:?} at {seen}"))),
            }
        }
        Ok(seen)
    };
    let seen = cx.prompt("attach without follow", reading).await??;
    ensure!(seen > 0, "it showed nothing of what was there");
    sandbox.kill(&running.id).await?;
    Ok(())
}

async fn exit_behind_last_byte(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    for bytes in [0_u64, 1, 65_536, 65_537, 300_000] {
        let done = sandbox.probe_ok(&["flood", &bytes.to_string()]).await?;
        same("output in front of the exit", &done.stdout, &flood(0, bytes))?;
        ensure!(done.info.output_end == bytes, "{bytes} bytes are counted as {}", done.info.output_end);
    }
    Ok(())
}

async fn abandoned_reader(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    let (spec, mut output) = dammed(&sandbox, 4 << 20).await?;
    open_the_dam(&sandbox, &spec).await?;
    let _ = output.next().await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    drop(output);
    let ended = cx.prompt("the end of a process whose reader went away", sandbox.wait(&spec.id)).await??;
    ensure!(ended.outcome == Some(Outcome::Exited(0)), "it ended with {:?}", ended.outcome);
    Ok(())
}
