//! File content: any size, any bytes, whole or not at all.

use crate::{
    check::{During, Failure, Verdict, checks, ensure, refused},
    context::{Context, pieces},
    observe::{noise, same},
};
use bytes::Bytes;
use futures::{StreamExt, channel::mpsc, future::join_all, stream};
use stacyvm_provider::{Error, ErrorKind, FileKind, ReadRange, WriteFile};
use std::{sync::Arc, time::Duration};

checks! {
    "files.sizes" "files of any size come back as they were written" [] 45 sizes;
    "files.bytes_256" "all 256 byte values survive upload and download" [] 10 bytes_256;
    "files.pieces" "it does not matter how an upload is cut into pieces" [] 30 cut_in_pieces;
    "files.ranges" "a range gives exactly the bytes asked for" [] 30 ranges;
    "files.seen_by_processes" "files written through the API and by processes are the same files" [] 30 seen_by_processes;
    "files.failed_upload" "an upload that fails leaves the old file and nothing else" [] 30 failed_upload;
    "files.cancelled_upload" "an upload that is given up leaves the old file and nothing else" [] 30 cancelled_upload;
    "files.replaced_in_one_step" "until an upload is complete readers see the old content, then the new" [] 30 replaced_in_one_step;
    "files.concurrent_writes" "of several writes of one file at once, one wins completely" [] 45 concurrent_writes;
    "files.mode" "permission bits are set on write and by chmod, and replace those of the old file" [] 30 mode;
    "files.owner" "files and the parents made for them belong to the sandbox user" [Isolated] 30 owner;
    "files.parents" "parents are made on write" [] 30 parents;
    "files.missing" "every call about a path that does not exist is NotFound" [] 30 missing;
    "files.in_the_way" "a directory or file in the way is InvalidArgument and stays" [] 30 in_the_way;
    "files.relative_path" "a path that is not absolute is InvalidArgument" [] 30 relative_path;
    "files.fifo" "a pipe is listed, not waited for" [] 30 fifo;
    "files.shrunk" "a file that shrinks during a download ends it with an error" [] 30 shrunk;
}

async fn sizes(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    for size in [0, 1, 65_535, 65_536, 65_537, (8 << 20) + 3] {
        let (path, content) = (cx.path("sized"), noise(size as u64, size));
        let written = sandbox.write(&path, &content).await?;
        ensure!(written.size == size as u64, "{size} bytes written, answered with {}", written.size);
        ensure!(written.path == path && written.kind == FileKind::File, "answered with {written:?}");
        same(&format!("a file of {size} bytes"), &sandbox.read(&path).await?, &content)?;
        let stat = sandbox.guest.stat(&path, true).await.during("stat")?;
        ensure!(stat.size == size as u64, "stat says {} for {size} bytes", stat.size);
    }
    Ok(())
}

async fn bytes_256(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    let content: Vec<u8> = (0..=255).collect::<Vec<u8>>().repeat(33);
    sandbox.write(&cx.path("all"), &content).await?;
    same("the file", &sandbox.read(&cx.path("all")).await?, &content)?;
    same(
        "the file as a process reads it",
        &sandbox.probe_ok(&["read", &cx.relative("all")]).await?.stdout,
        &content,
    )
}

async fn cut_in_pieces(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    let content = noise(4, 300_000);
    let file = WriteFile { path: cx.path("cut"), mode: 0o644, user: None };
    for size in [777, 65_537, 262_145, 300_000] {
        sandbox.guest.write_file(&file, pieces(&content, size)).await.during("write_file")?;
        same(&format!("a file sent in pieces of {size}"), &sandbox.read(&file.path).await?, &content)?;
    }
    let with_empty =
        stream::iter([Ok(Bytes::new()), Ok(Bytes::from_static(b"ab")), Ok(Bytes::new())]).boxed();
    sandbox.guest.write_file(&file, with_empty).await.during("write_file with empty pieces")?;
    same("a file sent with empty pieces", &sandbox.read(&file.path).await?, b"ab")
}

async fn ranges(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    let content = noise(5, 200_000);
    sandbox.write(&cx.path("ranged"), &content).await?;
    let cases = [
        (0, Some(0)),
        (0, Some(1)),
        (1, Some(65_536)),
        (65_535, Some(2)),
        (199_999, Some(1)),
        (199_999, Some(100)),
        (150_000, None),
        (200_000, None),
        (200_000, Some(5)),
        (100_000, Some(u64::MAX)),
        (5, Some(0)),
    ];
    for (offset, length) in cases {
        let read = sandbox.read_range(&cx.path("ranged"), ReadRange { offset, length }).await;
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let wanted = length.and_then(|length| usize::try_from(length).ok()).unwrap_or(usize::MAX);
        let expected = &content[start..content.len().min(start.saturating_add(wanted))];
        same(&format!("{length:?} bytes from {offset}"), &read.during("read_file")?, expected)?;
    }
    let (entry, _) = sandbox
        .guest
        .read_file(&cx.path("ranged"), ReadRange { offset: 10, length: Some(1) })
        .await
        .during("read_file")?;
    ensure!(entry.size == 200_000, "the metadata of a ranged read says {} bytes", entry.size);
    Ok(())
}

async fn seen_by_processes(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    sandbox.write(&cx.path("from_api"), b"from the api").await?;
    let read = sandbox.probe_ok(&["read", &cx.relative("from_api")]).await?;
    same("what a process reads", &read.stdout, b"from the api")?;
    sandbox.probe_ok(&["write", &cx.relative("from_process"), "from a process"]).await?;
    same("what the API reads", &sandbox.read(&cx.path("from_process")).await?, b"from a process")?;
    sandbox.probe_ok(&["append", &cx.relative("from_api"), "!"]).await?;
    same("what the API reads", &sandbox.read(&cx.path("from_api")).await?, b"from the api!")
}

/// Demands that the directory of the check holds just one file with this content.
async fn only(cx: &Context, sandbox: &crate::context::Sandbox, name: &str, content: &[u8]) -> Verdict {
    let paths: Vec<String> = sandbox
        .guest
        .list_dir(&cx.dir())
        .await
        .during("list_dir")?
        .into_iter()
        .map(|entry| entry.path)
        .collect();
    ensure!(paths == [cx.path(name)], "the directory holds {paths:?}");
    same("the old file", &sandbox.read(&cx.path(name)).await?, content)
}

async fn failed_upload(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    sandbox.write(&cx.path("kept"), b"old").await?;
    let file = WriteFile { path: cx.path("kept"), mode: 0o600, user: None };
    let broken = stream::iter([
        Ok(Bytes::from(noise(6, 60_000))),
        Ok(Bytes::from(noise(7, 60_000))),
        Err(Error::invalid_argument("the client went away")),
    ]);
    let written = sandbox.guest.write_file(&file, broken.boxed()).await;
    ensure!(written.is_err(), "an upload whose content failed is said to be complete");
    crate::observe::eventually(&cx, "the end of a failed upload", || async {
        Ok(sandbox.guest.list_dir(&cx.dir()).await.during("list_dir")?.len() == 1)
    })
    .await?;
    only(&cx, &sandbox, "kept", b"old").await
}

async fn cancelled_upload(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    sandbox.write(&cx.path("kept"), b"old").await?;
    let file = WriteFile { path: cx.path("kept"), mode: 0o600, user: None };
    for sent in [0, 1, 5] {
        let begin = stream::iter((0..sent).map(|piece| Ok(Bytes::from(noise(piece, 60_000)))));
        let upload = sandbox.guest.write_file(&file, begin.chain(stream::pending()).boxed());
        let ended = tokio::time::timeout(Duration::from_millis(100), upload).await;
        ensure!(ended.is_err(), "an upload without an end ended: {ended:?}");
        crate::observe::eventually(&cx, "the end of an upload that was given up", || async {
            Ok(sandbox.guest.list_dir(&cx.dir()).await.during("list_dir")?.len() == 1)
        })
        .await?;
        only(&cx, &sandbox, "kept", b"old").await?;
    }
    Ok(())
}

async fn replaced_in_one_step(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    let (path, old, new) = (cx.path("replaced"), noise(8, 100_000), noise(9, 150_000));
    sandbox.write(&path, &old).await?;
    let (mut upload, content) = mpsc::unbounded::<stacyvm_provider::Result<Bytes>>();
    let guest = Arc::clone(&sandbox.guest);
    let file = WriteFile { path: path.clone(), mode: 0o640, user: None };
    let writing = tokio::spawn(async move { guest.write_file(&file, content.boxed()).await });
    for piece in new.chunks(50_000) {
        let sent = upload.start_send(Ok(Bytes::copy_from_slice(piece)));
        sent.map_err(|_| Failure("the upload ended early".to_owned()))?;
        tokio::time::sleep(Duration::from_millis(40)).await;
        same("a file whose replacement is under way", &sandbox.read(&path).await?, &old)?;
    }
    drop(upload);
    let entry = writing.await.map_err(|e| Failure(e.to_string()))?.during("write_file")?;
    ensure!(entry.size == 150_000, "answered with {entry:?}");
    same("the replaced file", &sandbox.read(&path).await?, &new)
}

async fn concurrent_writes(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    let contents: Vec<Vec<u8>> = (0..8).map(|writer| noise(writer, 100_000 + writer as usize)).collect();
    let path = cx.path("contested");
    for written in join_all(contents.iter().map(|content| sandbox.write(&path, content))).await {
        written?;
    }
    let read = sandbox.read(&path).await?;
    ensure!(contents.contains(&read), "{} bytes that nobody wrote like this", read.len());
    only(&cx, &sandbox, "contested", &read).await
}

async fn mode(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    let path = cx.path("moded");
    for mode in [0o644, 0o600, 0o755, 0o400, 0o777] {
        let written = sandbox.write_mode(&path, b"x", mode).await.during("write_file")?;
        ensure!(written.mode & 0o7777 == mode, "written with {mode:o}, answered with {:o}", written.mode);
        let stat = sandbox.guest.stat(&path, true).await.during("stat")?;
        ensure!(stat.mode & 0o7777 == mode, "written with {mode:o}, stat says {:o}", stat.mode);
    }
    for mode in [0o000, 0o640, 0o751] {
        sandbox.guest.chmod(&path, mode).await.during("chmod")?;
        let stat = sandbox.guest.stat(&path, true).await.during("stat")?;
        ensure!(stat.mode & 0o7777 == mode, "chmod {mode:o}, stat says {:o}", stat.mode);
    }
    Ok(())
}

async fn owner(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    let said = sandbox.probe_ok(&["id"]).await?.text();
    let uid = said.lines().find_map(|line| line.strip_prefix("uid=")).unwrap_or_default().to_owned();
    let written = sandbox.write(&cx.path("made/parents/owned"), b"x").await?;
    ensure!(written.uid.to_string() == uid, "the file belongs to {}, the user is {uid}", written.uid);
    for parent in ["made", "made/parents"] {
        let stat = sandbox.guest.stat(&cx.path(parent), true).await.during("stat")?;
        ensure!(stat.uid.to_string() == uid, "{parent} belongs to {}, the user is {uid}", stat.uid);
    }
    sandbox.probe_ok(&["write", &cx.relative("made/parents/owned"), "y"]).await?;
    sandbox.probe_ok(&["write", &cx.relative("made/new"), "z"]).await?;
    Ok(())
}

async fn parents(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    sandbox.write(&cx.path("a/b/c/d/e"), b"deep").await?;
    same("the file", &sandbox.read(&cx.path("a/b/c/d/e")).await?, b"deep")?;
    let stat = sandbox.guest.stat(&cx.path("a/b"), true).await.during("stat")?;
    ensure!(stat.kind == FileKind::Directory && stat.mode & 0o700 == 0o700, "a parent is {stat:?}");
    Ok(())
}

async fn missing(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    let (guest, none) = (&sandbox.guest, &[ErrorKind::NotFound]);
    for name in ["none", "none/below/that"] {
        let path = cx.path(name);
        refused("read_file", sandbox.read_range(&path, ReadRange::default()).await, none)?;
        refused("stat", guest.stat(&path, true).await, none)?;
        refused("stat without follow", guest.stat(&path, false).await, none)?;
        refused("list_dir", guest.list_dir(&path).await, none)?;
        refused("chmod", guest.chmod(&path, 0o600).await, none)?;
        refused("remove", guest.remove(&path, false).await, none)?;
        refused("recursive remove", guest.remove(&path, true).await, none)?;
        refused("move_file", guest.move_file(&path, &cx.path("to")).await, none)?;
    }
    refused("stat of where nothing was moved", guest.stat(&cx.path("to"), false).await, none)
}

async fn in_the_way(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    let (guest, wrong) = (&sandbox.guest, &[ErrorKind::InvalidArgument]);
    sandbox.write(&cx.path("directory/inside"), b"inside").await?;
    sandbox.write(&cx.path("file"), b"file").await?;
    refused("write over a directory", sandbox.write_mode(&cx.path("directory"), b"x", 0o644).await, wrong)?;
    refused("write below a file", sandbox.write_mode(&cx.path("file/below"), b"x", 0o644).await, wrong)?;
    refused(
        "read of a directory",
        sandbox.read_range(&cx.path("directory"), ReadRange::default()).await,
        wrong,
    )?;
    refused("list of a file", guest.list_dir(&cx.path("file")).await, wrong)?;
    refused("mkdir over a file", guest.mkdir(&cx.path("file"), 0o755, true).await, wrong)?;
    refused(
        "move of a file over a directory",
        guest.move_file(&cx.path("file"), &cx.path("directory")).await,
        wrong,
    )?;
    same("the file in the directory", &sandbox.read(&cx.path("directory/inside")).await?, b"inside")?;
    same("the file", &sandbox.read(&cx.path("file")).await?, b"file")
}

async fn relative_path(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    let (guest, wrong) = (&sandbox.guest, &[ErrorKind::InvalidArgument]);
    for path in ["", "relative", "./relative", "nul\0byte", "/nul\0byte"] {
        refused("write_file", sandbox.write_mode(path, b"x", 0o644).await, wrong)?;
        refused("read_file", sandbox.read_range(path, ReadRange::default()).await, wrong)?;
        refused("stat", guest.stat(path, true).await, wrong)?;
        refused("list_dir", guest.list_dir(path).await, wrong)?;
        refused("mkdir", guest.mkdir(path, 0o755, true).await, wrong)?;
        refused("remove", guest.remove(path, true).await, wrong)?;
        refused("glob", guest.glob(path).await, wrong)?;
    }
    Ok(())
}

async fn fifo(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    sandbox.probe_ok(&["mkfifo", &cx.relative("pipe")]).await?;
    let path = cx.path("pipe");
    let stat = cx.prompt("stat", sandbox.guest.stat(&path, true)).await?.during("stat")?;
    ensure!(stat.kind == FileKind::Other, "a pipe is {:?}", stat.kind);
    let read = cx.prompt("read_file", sandbox.read_range(&path, ReadRange::default())).await?;
    refused("read_file", read, &[ErrorKind::InvalidArgument])?;
    // Replacing it is fine, refusing is fine, waiting for a reader is not.
    if let Err(error) = cx.prompt("write_file", sandbox.write_mode(&path, b"x", 0o644)).await? {
        refused::<()>("write_file", Err(error), &[ErrorKind::InvalidArgument])?;
    }
    cx.prompt("remove", sandbox.guest.remove(&path, false)).await?.during("remove")
}

async fn shrunk(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    let content = noise(10, 6 << 20);
    sandbox.write(&cx.path("shrinking"), &content).await?;
    let range = ReadRange::default();
    let (entry, mut download) =
        sandbox.guest.read_file(&cx.path("shrinking"), range).await.during("read_file")?;
    ensure!(entry.size == content.len() as u64, "the metadata says {} bytes", entry.size);
    ensure!(matches!(download.next().await, Some(Ok(_))), "the download does not start");
    sandbox.probe_ok(&["truncate", &cx.relative("shrinking"), "1000"]).await?;
    let ending = async {
        while let Some(piece) = download.next().await {
            if piece.is_err() {
                return true;
            }
        }
        false
    };
    let failed = cx.prompt("the end of the download", ending).await?;
    ensure!(failed, "a download that lost its end looks complete");
    Ok(())
}
