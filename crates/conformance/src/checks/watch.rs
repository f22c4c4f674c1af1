//! Watching a directory. A runtime whose kernel cannot says `Unsupported`, which is an answer.

use crate::{
    check::{During, Failure, Verdict, checks, ensure, refused},
    context::{Context, Sandbox},
};
use futures::StreamExt;
use stacyvm_provider::{ChangeStream, ErrorKind, FileChange};
use std::{collections::BTreeSet, fs};

checks! {
    "watch.changes" "creation, change, move and deletion of a file are told once the watch is there" [] 60 changes;
    "watch.new_directories" "what appears in directories that are made meanwhile is told, nothing missed" [] 60 new_directories;
    "watch.not_recursive" "without recursive, only what is directly in the directory is told" [] 60 not_recursive;
    "watch.overflow" "changes that are lost because nobody reads are said to be lost" [] 120 overflow;
    "watch.ends" "the deletion of the directory itself is told, and ends the stream" [] 60 ends;
    "watch.kinds" "what is missing or no directory is not watched" [] 30 kinds;
}

/// A watch of `path`, or `None` where the runtime has none.
async fn watch(sandbox: &Sandbox, path: &str, recursive: bool) -> Verdict<Option<ChangeStream>> {
    match sandbox.guest.watch(path, recursive).await {
        Err(error) if error.kind() == ErrorKind::Unsupported && !error.message().is_empty() => Ok(None),
        result => result.map(Some).during("watch"),
    }
}

/// Reads changes until `done` has seen enough.
async fn until(
    cx: &Context,
    changes: &mut ChangeStream,
    what: &str,
    mut done: impl FnMut(&FileChange) -> bool,
) -> Verdict<Vec<FileChange>> {
    let mut seen = Vec::new();
    loop {
        match cx.prompt(&format!("{what} (seen: {})", seen.len()), changes.next()).await? {
            Some(Ok(change)) => {
                let enough = done(&change);
                seen.push(change);
                if enough {
                    return Ok(seen);
                }
            }
            Some(Err(error)) => return Err(error).during(what),
            None => return Err(Failure(format!("the watch ended before {what}"))),
        }
    }
}

async fn directory(cx: &Context, sandbox: &Sandbox, name: &str) -> Verdict<String> {
    sandbox.guest.mkdir(&cx.path(name), 0o777, true).await.during("mkdir")?;
    sandbox.guest.chmod(&cx.path(name), 0o777).await.during("chmod")?;
    Ok(cx.path(name))
}

async fn changes(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    let top = directory(&cx, &sandbox, "t/deep").await?;
    let Some(mut changes) = watch(&sandbox, &cx.path("t"), true).await? else { return Ok(()) };
    let file = format!("{top}/file");
    sandbox.probe_ok(&["write", &cx.relative("t/deep/file"), "1"]).await?;
    until(&cx, &mut changes, "a creation by a process", |change| {
        *change == FileChange::Created { path: file.clone(), directory: false }
    })
    .await?;
    sandbox.probe_ok(&["append", &cx.relative("t/deep/file"), "2"]).await?;
    until(&cx, &mut changes, "a change", |change| *change == FileChange::Modified { path: file.clone() })
        .await?;
    sandbox.guest.chmod(&file, 0o600).await.during("chmod")?;
    until(&cx, &mut changes, "a change of mode", |change| {
        *change == FileChange::Attributes { path: file.clone(), directory: false }
    })
    .await?;
    let moved = cx.path("t/moved");
    sandbox.guest.move_file(&file, &moved).await.during("move")?;
    let mut gone = false;
    until(&cx, &mut changes, "a move", |change| match change {
        FileChange::Moved { from, path, .. } => *from == file && *path == moved,
        FileChange::Deleted { path, .. } if *path == file => {
            gone = true;
            false
        }
        FileChange::Created { path, .. } => gone && *path == moved,
        _ => false,
    })
    .await?;
    sandbox.guest.remove(&moved, false).await.during("remove")?;
    until(&cx, &mut changes, "a deletion", |change| {
        *change == FileChange::Deleted { path: moved.clone(), directory: false }
    })
    .await
    .map(drop)
}

async fn new_directories(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    let top = directory(&cx, &sandbox, "t").await?;
    let Some(mut changes) = watch(&sandbox, &top, true).await? else { return Ok(()) };
    let mut expected = BTreeSet::new();
    for number in 0..20 {
        let name = format!("t/d{number}/e/f");
        sandbox.write(&cx.path(&name), b"x").await?;
        expected.insert(cx.path(&name));
    }
    let mut lost = false;
    until(&cx, &mut changes, "20 files in new directories", |change| {
        if let FileChange::Created { path, .. } = change {
            expected.remove(path);
        }
        lost |= *change == FileChange::Overflow;
        lost || expected.is_empty()
    })
    .await?;
    ensure!(!lost, "60 changes are too many");
    Ok(())
}

async fn not_recursive(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    let top = directory(&cx, &sandbox, "t").await?;
    directory(&cx, &sandbox, "t/below").await?;
    let Some(mut changes) = watch(&sandbox, &top, false).await? else { return Ok(()) };
    sandbox.write(&cx.path("t/below/unseen"), b"x").await?;
    sandbox.write(&cx.path("t/new/unseen"), b"x").await?;
    sandbox.write(&cx.path("t/seen"), b"x").await?;
    let seen = FileChange::Created { path: cx.path("t/seen"), directory: false };
    let told = until(&cx, &mut changes, "a file directly in it", |change| *change == seen).await?;
    let unseen = told.into_iter().find(|change| format!("{change:?}").contains("/unseen"));
    ensure!(unseen.is_none(), "told of {unseen:?}");
    Ok(())
}

async fn overflow(cx: Context) -> Verdict {
    // One of its own: what it does there is a burden.
    let sandbox = cx.sandbox().await?;
    let top = directory(&cx, &sandbox, "t").await?;
    let Some(mut changes) = watch(&sandbox, &top, true).await? else { return Ok(()) };
    // The kernel's queue, and what is under way between us and the guest.
    let queue = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap_or_default();
    let number = queue.trim().parse::<u32>().unwrap_or(16_384) / 2 + 20_000;
    sandbox.probe_ok(&["rename-many", &cx.relative("t"), &number.to_string()]).await?;
    let mut told = 0;
    until(&cx, &mut changes, "an overflow", |change| {
        told += 1;
        *change == FileChange::Overflow || told >= number
    })
    .await
    .during(&format!("{number} renames that nobody looked at"))?;
    // And it goes on behind it.
    sandbox.write(&cx.path("t/new/behind"), b"x").await?;
    let behind = FileChange::Created { path: cx.path("t/new/behind"), directory: false };
    until(&cx, &mut changes, "a change behind the overflow", |change| *change == behind).await.map(drop)
}

async fn ends(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    let top = directory(&cx, &sandbox, "t").await?;
    sandbox.write(&cx.path("t/a/b"), b"x").await?;
    let Some(mut changes) = watch(&sandbox, &top, true).await? else { return Ok(()) };
    sandbox.guest.remove(&top, true).await.during("remove")?;
    let gone = FileChange::Deleted { path: top, directory: true };
    until(&cx, &mut changes, "the directory's deletion", |change| *change == gone).await?;
    let more = cx.prompt("the end of the stream", changes.next()).await?;
    ensure!(more.is_none(), "the watch of a directory that is gone goes on: {more:?}");
    Ok(())
}

async fn kinds(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    let none = [ErrorKind::NotFound, ErrorKind::Unsupported];
    refused("watch", sandbox.guest.watch(&cx.path("none"), true).await.map(drop), &none)?;
    sandbox.write(&cx.path("file"), b"x").await?;
    let wrong = [ErrorKind::InvalidArgument, ErrorKind::Unsupported];
    refused("watch of a file", sandbox.guest.watch(&cx.path("file"), true).await.map(drop), &wrong)
}
