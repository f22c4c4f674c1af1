//! Files over the wire: any bytes, any end, and no way out of the sandbox's root.

use crate::harness::{Agent, code, eventually};
use futures::stream;
use stacyvm_guest::proto::{
    ChmodRequest, Empty, FileInfo, FileInfos, FileKind, GlobRequest, ListDirRequest, MkdirRequest,
    MoveRequest, PathRequest, ReadFileRequest, RemoveRequest, WriteFilePart, WriteFileStart, read_file_part,
    write_file_part::Part,
};
use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
};
use tonic::{Code, Status, Streaming};

fn begin(path: &str) -> Part {
    Part::Start(WriteFileStart { path: path.into(), mode: 0o644, user: String::new() })
}

fn data(bytes: &[u8]) -> impl Iterator<Item = Part> {
    bytes.chunks(64 << 10).map(|chunk| Part::Data(chunk.to_vec().into())).collect::<Vec<_>>().into_iter()
}

fn message(part: Part) -> WriteFilePart {
    WriteFilePart { part: Some(part) }
}

async fn send(agent: &Agent, parts: impl IntoIterator<Item = Part>) -> Result<FileInfo, Status> {
    let parts: Vec<_> = parts.into_iter().map(message).collect();
    agent.bulk.clone().write_file(stream::iter(parts)).await.map(|reply| reply.into_inner())
}

async fn upload(agent: &Agent, path: &str, bytes: &[u8]) -> Result<FileInfo, Status> {
    let parts: Vec<_> =
        [begin(path)].into_iter().chain(data(bytes)).chain([Part::Finish(Empty {})]).collect();
    send(agent, parts).await
}

async fn download(
    agent: &Agent,
    path: &str,
    offset: u64,
    length: u64,
) -> Result<(FileInfo, Vec<u8>), Status> {
    let request = ReadFileRequest { path: path.into(), offset, length };
    let mut parts = agent.bulk.clone().read_file(request).await?.into_inner();
    let Some(Some(read_file_part::Part::Info(info))) = parts.message().await?.map(|part| part.part) else {
        panic!("content before metadata");
    };
    let mut bytes = Vec::new();
    while let Some(part) = parts.message().await? {
        let Some(read_file_part::Part::Data(data)) = part.part else { panic!("metadata twice") };
        bytes.extend_from_slice(&data);
    }
    Ok((info, bytes))
}

async fn paths(mut batches: Streaming<FileInfos>) -> Vec<String> {
    let mut paths = Vec::new();
    while let Some(batch) = batches.message().await.unwrap() {
        assert!(!batch.files.is_empty());
        paths.extend(batch.files.into_iter().map(|file| file.path));
    }
    paths
}

#[tokio::test]
async fn every_byte_value_survives_both_ways() {
    let agent = Agent::start();
    let bytes: Vec<u8> = (0..=255u8).cycle().take(1_000_003).collect();
    let info = upload(&agent, "/workspace/new/deep/file", &bytes).await.unwrap();
    assert_eq!((info.size, info.mode, info.kind()), (bytes.len() as u64, 0o644, FileKind::File));
    assert!(fs::read(agent.host_path("/workspace/new/deep/file")).unwrap() == bytes);
    let (read_info, read) = download(&agent, "/workspace/new/deep/file", 0, 0).await.unwrap();
    assert!(read == bytes);
    assert_eq!(read_info, info);
    let (_, part) = download(&agent, "/workspace/new/deep/file", 70_000, 5).await.unwrap();
    assert_eq!(part, bytes[70_000..70_005]);
    upload(&agent, "/workspace/empty", &[]).await.unwrap();
    assert!(download(&agent, "/workspace/empty", 0, 0).await.unwrap().1.is_empty());
    agent.end().await;
}

#[tokio::test]
async fn an_upload_that_breaks_off_leaves_the_old_file_alone() {
    let agent = Agent::start();
    upload(&agent, "/workspace/file", b"old").await.unwrap();
    let without_finish = send(&agent, [begin("/workspace/file"), Part::Data("half".into())]).await;
    assert_eq!(code(without_finish), Code::InvalidArgument);
    // The client vanishes in the middle.
    let (sender, receiver) = tokio::sync::mpsc::channel(4);
    let parts = stream::unfold(receiver, |mut receiver| async move {
        let part: Part = receiver.recv().await?;
        Some((message(part), receiver))
    });
    let mut bulk = agent.bulk.clone();
    let call = tokio::spawn(async move { bulk.write_file(parts).await.map(drop) });
    sender.send(begin("/workspace/file")).await.unwrap();
    sender.send(Part::Data("half".into())).await.unwrap();
    let names = || fs::read_dir(agent.host_path("/workspace")).unwrap().count();
    eventually("the upload begins", || names() == 2).await;
    call.abort();
    eventually("a half file is left", || names() == 1).await;
    assert_eq!(fs::read(agent.host_path("/workspace/file")).unwrap(), b"old");
    agent.end().await;
}

#[tokio::test]
async fn no_link_leads_out_of_the_sandbox() {
    let agent = Agent::start();
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), "secret").unwrap();
    symlink(outside.path(), agent.host_path("/workspace/out")).unwrap();
    symlink(outside.path().join("secret"), agent.host_path("/workspace/file")).unwrap();
    symlink("/proc/1/root", agent.host_path("/workspace/magic")).unwrap();
    let outside_path = outside.path().to_str().unwrap();
    let up = format!("/workspace/../../../../../../../..{outside_path}/secret");
    for path in ["/workspace/out/secret", "/workspace/file", &up, "/workspace/magic/etc/passwd"] {
        assert_eq!(code(download(&agent, path, 0, 0).await), Code::NotFound, "{path}");
    }
    // What is written through a link lands inside, where the link leads from there.
    for path in ["/workspace/out/made", "/workspace/file"] {
        let _ = upload(&agent, path, b"mine").await;
    }
    let remove = RemoveRequest { path: "/workspace/out".into(), recursive: true };
    agent.bulk.clone().remove(remove).await.unwrap();
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
    assert_eq!(fs::read(outside.path().join("secret")).unwrap(), b"secret");
    agent.end().await;
}

#[tokio::test]
async fn a_file_that_never_answers_holds_nobody() {
    let agent = Agent::start();
    agent.sh("p", "mkfifo fifo").await;
    agent.end_of("p").await;
    assert_eq!(code(download(&agent, "/workspace/fifo", 0, 0).await), Code::InvalidArgument);
    assert_eq!(code(upload(&agent, "/workspace/fifo", b"x").await), Code::InvalidArgument);
    let stat = PathRequest { path: "/workspace/fifo".into(), follow: true };
    assert_eq!(agent.bulk.clone().stat(stat).await.unwrap().into_inner().kind(), FileKind::Other);
    agent.end().await;
}

#[tokio::test]
async fn directories_are_listed_and_searched_in_order() {
    let agent = Agent::start();
    for number in 0..700 {
        fs::write(agent.host_path(&format!("/workspace/{number:03}.txt")), "").unwrap();
    }
    let list = ListDirRequest { path: "/workspace".into() };
    let listed = paths(agent.bulk.clone().list_dir(list).await.unwrap().into_inner()).await;
    let expected: Vec<String> = (0..700).map(|number| format!("/workspace/{number:03}.txt")).collect();
    assert_eq!(listed, expected);
    let glob = |pattern: &str, limit| GlobRequest { pattern: pattern.into(), limit };
    let found = agent.bulk.clone().glob(glob("/**/6?0.{txt,rs}", 100)).await.unwrap().into_inner();
    let expected: Vec<String> = (60..70).map(|number| format!("/workspace/{number}0.txt")).collect();
    assert_eq!(paths(found).await, expected);
    assert_eq!(code(agent.bulk.clone().glob(glob("/workspace/*", 10)).await), Code::ResourceExhausted);
    assert_eq!(code(agent.bulk.clone().glob(glob("/workspace/[", 10)).await), Code::InvalidArgument);
    let not_a_directory = ListDirRequest { path: "/workspace/000.txt".into() };
    assert_eq!(code(agent.bulk.clone().list_dir(not_a_directory).await), Code::InvalidArgument);
    agent.end().await;
}

#[tokio::test]
async fn trees_are_changed_as_asked() {
    let agent = Agent::start();
    let mut bulk = agent.bulk.clone();
    let mkdir = MkdirRequest { path: "/workspace/a/b".into(), mode: 0o750, parents: true };
    bulk.mkdir(mkdir.clone()).await.unwrap();
    bulk.mkdir(mkdir).await.unwrap();
    upload(&agent, "/workspace/a/b/file", b"x").await.unwrap();
    let moved = MoveRequest { from: "/workspace/a/b/file".into(), to: "/workspace/c/d/moved".into() };
    bulk.r#move(moved.clone()).await.unwrap();
    assert_eq!(code(bulk.r#move(moved).await), Code::NotFound);
    bulk.chmod(ChmodRequest { path: "/workspace/c/d/moved".into(), mode: 0o4711 }).await.unwrap();
    let mode = fs::metadata(agent.host_path("/workspace/c/d/moved")).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o4711);
    let remove = |path: &str, recursive| RemoveRequest { path: path.into(), recursive };
    assert_eq!(code(bulk.remove(remove("/workspace/c", false)).await), Code::InvalidArgument);
    bulk.remove(remove("/workspace/c", true)).await.unwrap();
    assert_eq!(code(bulk.remove(remove("/workspace/c", true)).await), Code::NotFound);
    assert_eq!(code(bulk.remove(remove("/", true)).await), Code::InvalidArgument);
    assert!(!agent.host_path("/workspace/c").exists() && agent.host_path("/workspace/a/b").exists());
    assert_eq!(code(upload(&agent, "/workspace/a", b"x").await), Code::InvalidArgument);
    assert_eq!(code(upload(&agent, "workspace", b"x").await), Code::InvalidArgument);
    let stat = PathRequest { path: "/workspace/none".into(), follow: true };
    assert_eq!(code(bulk.stat(stat).await), Code::NotFound);
    agent.end().await;
}
