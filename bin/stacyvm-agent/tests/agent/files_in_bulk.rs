//! Trees over the wire: archives both ways, changes as they happen, disk usage.

use crate::harness::{Agent, HANG, code, eventually};
use futures::stream;
use stacyvm_guest::proto::{
    ArchiveRequest, Empty, ExtractPart, ExtractReply, ExtractStart, UsageRequest, WatchEvent, WatchEvents,
    WatchKind, WatchRequest, extract_part::Part,
};
use stacyvm_tar::{END, Entry, Kind, encode};
use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
};
use tonic::{Code, Status, Streaming};

async fn archive(agent: &Agent, path: &str) -> Result<Vec<u8>, Status> {
    let mut parts = agent.bulk.clone().archive(ArchiveRequest { path: path.into() }).await?.into_inner();
    let mut all = Vec::new();
    while let Some(part) = parts.message().await? {
        assert!(!part.data.is_empty() && part.data.len() <= 128 << 10);
        all.extend_from_slice(&part.data);
    }
    Ok(all)
}

async fn send(agent: &Agent, parts: Vec<Part>) -> Result<ExtractReply, Status> {
    let parts: Vec<_> = parts.into_iter().map(|part| ExtractPart { part: Some(part) }).collect();
    agent.bulk.clone().extract(stream::iter(parts)).await.map(|reply| reply.into_inner())
}

fn start(path: &str) -> Part {
    Part::Start(ExtractStart { path: path.into(), user: String::new() })
}

async fn extract(agent: &Agent, path: &str, archive: &[u8]) -> Result<ExtractReply, Status> {
    let data = archive.chunks(10_000).map(|piece| Part::Data(piece.to_vec().into()));
    let parts = [start(path)].into_iter().chain(data).chain([Part::Finish(Empty {})]);
    send(agent, parts.collect()).await
}

fn entry(kind: Kind, path: &str, link: &str, out: &mut Vec<u8>) {
    let entry = Entry {
        kind,
        path: path.into(),
        link: link.into(),
        mode: 0o644,
        uid: 0,
        gid: 0,
        mtime: (1_700_000_000, 0),
        size: 0,
    };
    encode(&entry, out);
}

#[tokio::test]
async fn a_tree_comes_back_as_it_went() {
    let agent = Agent::start();
    let at = |path: &str| agent.host_path(&format!("/workspace/{path}"));
    fs::create_dir_all(at("t/deep/er")).unwrap();
    let bytes: Vec<u8> = (0..=255_u8).cycle().take(1_000_003).collect();
    fs::write(at("t/deep/er/file"), &bytes).unwrap();
    fs::hard_link(at("t/deep/er/file"), at("t/same")).unwrap();
    symlink("/etc/passwd", at("t/link")).unwrap();
    let packed = archive(&agent, "/workspace/t").await.unwrap();
    let made = extract(&agent, "/workspace/new/place", &packed).await.unwrap();
    assert_eq!((made.files, made.directories, made.links, made.bytes), (2, 2, 1, bytes.len() as u64));
    assert!(fs::read(at("new/place/deep/er/file")).unwrap() == bytes);
    assert_eq!(fs::read_link(at("new/place/link")).unwrap().to_str(), Some("/etc/passwd"));
    let inode = |path: &str| fs::metadata(at(path)).unwrap().ino();
    assert_eq!(inode("new/place/same"), inode("new/place/deep/er/file"));
    let times = |path: &str| fs::metadata(at(path)).map(|m| (m.mtime(), m.mtime_nsec(), m.mode())).unwrap();
    for path in ["", "/deep", "/deep/er", "/same"] {
        assert_eq!(times(&format!("t{path}")), times(&format!("new/place{path}")), "{path}");
    }
    let one = archive(&agent, "/workspace/t/same").await.unwrap();
    extract(&agent, "/workspace", &one).await.unwrap();
    assert!(fs::read(at("same")).unwrap() == bytes);
    assert_eq!(code(archive(&agent, "/workspace/none").await), Code::NotFound);
    assert_eq!(code(extract(&agent, "/workspace/same", &packed).await), Code::InvalidArgument);
    agent.end().await;
}

#[tokio::test]
async fn what_leads_out_is_refused_by_name_and_what_came_before_stays() {
    let agent = Agent::start();
    let outside = tempfile::tempdir().unwrap();
    symlink(outside.path(), agent.host_path("/workspace/was-here")).unwrap();
    for (kind, path, link) in [
        (Kind::File, "../up", ""),
        (Kind::File, "/absolute", ""),
        (Kind::File, "was-here/x", ""),
        (Kind::HardLink, "hard", "/etc/passwd"),
        (Kind::HardLink, "hard", "was-here"),
        (Kind::Other(b'3'), "device", ""),
    ] {
        let mut bytes = Vec::new();
        entry(Kind::File, "before", "", &mut bytes);
        entry(kind, path, link, &mut bytes);
        entry(Kind::File, "behind", "", &mut bytes);
        bytes.extend_from_slice(&END);
        let status = extract(&agent, "/workspace", &bytes).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().contains(path), "{status}");
        fs::remove_file(agent.host_path("/workspace/before")).unwrap();
        assert!(!agent.host_path("/workspace/behind").exists());
    }
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    agent.end().await;
}

#[tokio::test]
async fn an_archive_that_breaks_off_leaves_whole_files_only() {
    let agent = Agent::start();
    fs::write(agent.host_path("/workspace/b"), "old").unwrap();
    fs::create_dir(agent.host_path("/workspace/t")).unwrap();
    for name in ["a", "b"] {
        fs::write(agent.host_path(&format!("/workspace/t/{name}")), vec![7; 50_000]).unwrap();
    }
    let (a, b) =
        (archive(&agent, "/workspace/t/a").await.unwrap(), archive(&agent, "/workspace/t/b").await.unwrap());
    let bytes = [&a[..a.len() - END.len()], &b[..30_000]].concat();
    assert_eq!(code(extract(&agent, "/workspace", &bytes).await), Code::InvalidArgument);
    let without_finish = vec![start("/workspace"), Part::Data(a.clone().into())];
    assert_eq!(code(send(&agent, without_finish).await), Code::InvalidArgument);
    let names = || fs::read_dir(agent.host_path("/workspace")).unwrap().count();
    assert_eq!(names(), 3, "a, b and t");
    assert_eq!(fs::read(agent.host_path("/workspace/a")).unwrap(), vec![7; 50_000]);
    assert_eq!(fs::read(agent.host_path("/workspace/b")).unwrap(), b"old");
    // The client vanishes in the middle of a file.
    let (sender, receiver) = tokio::sync::mpsc::channel(4);
    let parts = stream::unfold(receiver, |mut receiver| async move {
        let part: Part = receiver.recv().await?;
        Some((ExtractPart { part: Some(part) }, receiver))
    });
    let mut bulk = agent.bulk.clone();
    let call = tokio::spawn(async move { bulk.extract(parts).await.map(drop) });
    sender.send(start("/workspace")).await.unwrap();
    sender.send(Part::Data(b[..20_000].to_vec().into())).await.unwrap();
    eventually("the file begins", || names() == 4).await;
    call.abort();
    eventually("a half file is left", || names() == 3).await;
    assert_eq!(fs::read(agent.host_path("/workspace/b")).unwrap(), b"old");
    agent.end().await;
}

async fn watch(agent: &Agent, path: &str, recursive: bool) -> Result<Streaming<WatchEvents>, Status> {
    let request = WatchRequest { path: path.into(), recursive };
    let mut changes = agent.bulk.clone().watch(request).await?.into_inner();
    assert!(changes.message().await?.unwrap().events.is_empty());
    Ok(changes)
}

/// Events until `done` says that it has seen enough.
async fn until(
    changes: &mut Streaming<WatchEvents>,
    done: impl Fn(&[WatchEvent]) -> bool,
) -> Vec<WatchEvent> {
    let mut all = Vec::new();
    while !done(&all) {
        let batch = tokio::time::timeout(HANG, changes.message()).await;
        let batch = batch.unwrap_or_else(|_| panic!("waited in vain, with {all:?}"));
        all.extend(batch.unwrap().unwrap_or_else(|| panic!("it ended, with {all:?}")).events);
    }
    all
}

fn has(events: &[WatchEvent], kind: WatchKind, path: &str) -> bool {
    events.iter().any(|event| event.kind() == kind && event.path == path)
}

#[tokio::test]
async fn what_happens_in_a_tree_is_told() {
    let agent = Agent::start();
    let at = |path: &str| agent.host_path(&format!("/workspace/{path}"));
    fs::create_dir_all(at("a/b")).unwrap();
    fs::write(at("a/b/old"), "x").unwrap();
    let mut changes = watch(&agent, "/workspace", true).await.unwrap();
    fs::write(at("a/b/new"), "x").unwrap();
    until(&mut changes, |seen| has(seen, WatchKind::Create, "/workspace/a/b/new")).await;
    fs::write(at("a/b/new"), "y").unwrap();
    until(&mut changes, |seen| has(seen, WatchKind::Modify, "/workspace/a/b/new")).await;
    fs::set_permissions(at("a/b"), fs::Permissions::from_mode(0o700)).unwrap();
    until(&mut changes, |seen| has(seen, WatchKind::Attribute, "/workspace/a/b")).await;
    // A directory takes its paths along.
    fs::rename(at("a/b"), at("c")).unwrap();
    let moved = until(&mut changes, |seen| has(seen, WatchKind::Move, "/workspace/c")).await;
    let moved = moved.iter().find(|event| event.kind() == WatchKind::Move).unwrap();
    assert_eq!((moved.from.as_str(), moved.directory), ("/workspace/a/b", true));
    fs::write(at("c/later"), "x").unwrap();
    until(&mut changes, |seen| has(seen, WatchKind::Create, "/workspace/c/later")).await;
    fs::remove_file(at("c/later")).unwrap();
    until(&mut changes, |seen| has(seen, WatchKind::Delete, "/workspace/c/later")).await;
    // One that leaves the tree is not heard of any more.
    let outside = agent.host_path("/tmp/outside");
    fs::rename(at("c"), &outside).unwrap();
    until(&mut changes, |seen| has(seen, WatchKind::Delete, "/workspace/c")).await;
    fs::write(outside.join("unseen"), "x").unwrap();
    fs::write(at("mark"), "x").unwrap();
    let seen = until(&mut changes, |seen| has(seen, WatchKind::Create, "/workspace/mark")).await;
    assert!(seen.iter().all(|event| !event.path.contains("unseen")), "{seen:?}");
    // And one that comes back brings everything in it.
    fs::rename(&outside, at("d")).unwrap();
    until(&mut changes, |seen| has(seen, WatchKind::Create, "/workspace/d/unseen")).await;
    fs::remove_dir_all(at("")).unwrap();
    until(&mut changes, |seen| has(seen, WatchKind::Delete, "/workspace")).await;
    assert!(tokio::time::timeout(HANG, changes.message()).await.unwrap().unwrap().is_none());
    agent.end().await;
}

#[tokio::test]
async fn nothing_is_missed_in_directories_that_are_made_meanwhile() {
    let agent = Agent::start();
    let mut changes = watch(&agent, "/workspace", true).await.unwrap();
    agent.sh("p", "for i in $(seq 60); do mkdir -p d$i/e/f; echo x > d$i/e/f/g; done").await;
    let expected: BTreeSet<String> = (1..=60).map(|i| format!("/workspace/d{i}/e/f/g")).collect();
    let seen =
        until(&mut changes, |seen| expected.iter().all(|path| has(seen, WatchKind::Create, path))).await;
    assert!(seen.iter().all(|event| event.kind() != WatchKind::Overflow));
    agent.end().await;
}

#[tokio::test]
async fn what_is_lost_is_said_to_be() {
    let agent = Agent::start();
    let mut changes = watch(&agent, "/workspace", true).await.unwrap();
    // Nobody reads meanwhile, and the kernel's queue is short.
    let length: usize =
        fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap().trim().parse().unwrap();
    let (a, b) = (agent.host_path("/workspace/a"), agent.host_path("/workspace/b"));
    fs::write(&a, "").unwrap();
    // The agent empties the queue for as long as its own buffers last.
    for _ in 0..(20 * length).min(2_000_000) {
        fs::rename(&a, &b).unwrap();
        fs::rename(&b, &a).unwrap();
    }
    until(&mut changes, |seen| seen.iter().any(|event| event.kind() == WatchKind::Overflow)).await;
    // Directories that were made in the gap are watched all the same.
    fs::create_dir_all(agent.host_path("/workspace/x/y")).unwrap();
    fs::write(agent.host_path("/workspace/x/y/z"), "").unwrap();
    until(&mut changes, |seen| has(seen, WatchKind::Create, "/workspace/x/y/z")).await;
    agent.end().await;
}

#[tokio::test]
async fn what_cannot_be_watched_is_said_and_watchers_are_bounded() {
    let agent = Agent::start();
    fs::write(agent.host_path("/workspace/f"), "").unwrap();
    assert_eq!(code(watch(&agent, "/workspace/f", true).await), Code::InvalidArgument);
    assert_eq!(code(watch(&agent, "/workspace/none", true).await), Code::NotFound);
    let mut held = Vec::new();
    let refused = loop {
        match watch(&agent, "/workspace", false).await {
            Ok(changes) => held.push(changes),
            Err(status) => break status,
        }
        assert!(held.len() <= 100);
    };
    assert_eq!(refused.code(), Code::ResourceExhausted);
    // Whoever leaves makes room.
    held.clear();
    for attempt in 0.. {
        match watch(&agent, "/workspace", false).await {
            Ok(mut changes) => {
                fs::create_dir(agent.host_path("/workspace/d")).unwrap();
                fs::write(agent.host_path("/workspace/d/deep"), "").unwrap();
                fs::write(agent.host_path("/workspace/mark"), "").unwrap();
                let seen = until(&mut changes, |seen| has(seen, WatchKind::Create, "/workspace/mark")).await;
                assert!(seen.iter().all(|event| !event.path.contains("deep")), "not recursive: {seen:?}");
                break;
            }
            Err(status) => assert!(attempt < 1000, "{status}"),
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    agent.end().await;
}

#[tokio::test]
async fn disk_usage_counts_each_file_once() {
    let agent = Agent::start();
    fs::create_dir(agent.host_path("/workspace/t")).unwrap();
    fs::write(agent.host_path("/workspace/t/a"), vec![1; 100_000]).unwrap();
    fs::hard_link(agent.host_path("/workspace/t/a"), agent.host_path("/workspace/t/b")).unwrap();
    let usage = agent.bulk.clone().usage(UsageRequest { path: "/workspace/t".into() }).await.unwrap();
    let usage = usage.into_inner();
    assert_eq!((usage.apparent_bytes, usage.files, usage.directories), (100_000, 2, 1));
    assert!((100_000..200_000).contains(&usage.bytes), "{usage:?}");
    agent.end().await;
}
