//! Who may connect, and that nobody who hangs holds anybody else up.

use crate::harness::{Agent, HANG, identity, request, words};
use bytes::Bytes;
use futures::stream;
use stacyvm_guest::{
    host::{self, Identity},
    proto::{
        PingRequest, Role, SignalRequest, StartRequest, StdinRequest, WriteFilePart, WriteFileStart,
        process::Outcome, write_file_part::Part,
    },
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::test]
async fn only_the_newest_generation_of_the_right_installation_is_served() {
    let agent = Agent::start();
    agent.control.clone().ping(PingRequest {}).await.unwrap();
    let stranger = Identity { installation_id: "other".into(), ..identity(9) };
    let refused = host::introduce(&mut agent.dial().await, &stranger, Role::Control).await.unwrap_err();
    assert!(refused.to_string().contains("another installation"), "{refused}");

    let (mut first, mut twin) = (agent.dial().await, agent.dial().await);
    host::introduce(&mut first, &identity(5), Role::Control).await.unwrap();
    host::introduce(&mut twin, &identity(5), Role::Bulk).await.unwrap();
    let refused = host::introduce(&mut agent.dial().await, &identity(4), Role::Control).await.unwrap_err();
    assert!(refused.to_string().contains("replaced"), "{refused}");
    // Both of the same generation live on, until a newer one comes. A server's first word is its settings.
    first.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    let mut settings = [0; 9];
    tokio::time::timeout(HANG, first.read_exact(&mut settings)).await.unwrap().unwrap();
    let welcome = host::introduce(&mut agent.dial().await, &identity(6), Role::Control).await.unwrap();
    assert_eq!((welcome.version, welcome.sandbox_id.as_str()), (1, "sb-test"));
    for stream in [&mut first, &mut twin] {
        let mut rest = Vec::new();
        tokio::time::timeout(HANG, stream.read_to_end(&mut rest))
            .await
            .expect("an old connection stays")
            .ok();
    }
    // The clients of generation 1 are shut out now, however often they try.
    assert!(agent.control.clone().ping(PingRequest {}).await.is_err());
    agent.end().await;
}

#[tokio::test]
async fn whoever_says_nothing_or_nonsense_is_dropped() {
    let agent = Agent::start();
    let mut nonsense = agent.dial().await;
    nonsense.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    tokio::time::timeout(HANG, nonsense.read_to_end(&mut answer)).await.unwrap().ok();
    assert!(answer.is_empty());
    // More silent callers than may wait at once: the ones beyond are turned away, and when the silent ones have had
    // their time, there is room again.
    let mut silent = Vec::new();
    for _ in 0..80 {
        silent.push(agent.dial().await);
    }
    let mut last = silent.pop().unwrap();
    tokio::time::timeout(HANG, last.read_to_end(&mut answer)).await.expect("it waits").ok();
    drop(silent);
    crate::harness::eventually("the callers are gone", || true).await;
    tokio::time::timeout(HANG, async {
        while agent.control.clone().ping(PingRequest {}).await.is_err() {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    })
    .await
    .unwrap();
    agent.end().await;
}

#[tokio::test]
async fn control_answers_while_everything_else_is_stuck() {
    let agent = Agent::start();
    // Reads no stdin, and writes more than all windows together take.
    let start = StartRequest { stdin: true, argv: words(&["sh", "-c", "yes; wait"]), ..request("p") };
    agent.run(start).await.unwrap();
    let mut attached = Vec::new();
    for _ in 0..5 {
        let mut reader = agent.attach("p", 0, true, true).await;
        reader.next().await.unwrap();
        attached.push(reader);
    }
    // Until the process cannot take more.
    let mut offset = 0;
    loop {
        let data = Bytes::from(vec![b'x'; 64 << 10]);
        let write = StdinRequest { id: "p".into(), offset, data, eof: false, writer: String::new() };
        let accepted = agent.bulk.clone().write_stdin(write).await.unwrap().into_inner().accepted;
        if accepted == offset {
            break;
        }
        offset = accepted;
    }
    let started =
        Part::Start(WriteFileStart { path: "/workspace/f".into(), mode: 0o600, user: String::new() });
    let parts = stream::iter([WriteFilePart { part: Some(started) }]).chain(stream::pending());
    let mut bulk = agent.bulk.clone();
    let stalled = tokio::spawn(async move { bulk.write_file(parts).await.map(drop) });
    let names = || std::fs::read_dir(agent.host_path("/workspace")).unwrap().count();
    crate::harness::eventually("the upload begins", || names() == 1).await;

    tokio::time::timeout(HANG, agent.control.clone().ping(PingRequest {})).await.unwrap().unwrap();
    let kill = SignalRequest { id: "p".into(), signal: 9, tree: true };
    let killed = tokio::time::timeout(HANG, agent.control.clone().signal(kill)).await.unwrap();
    assert!(killed.unwrap().into_inner().delivered);
    // Its readers have not read, so its output is not complete; the end is known all the same.
    assert_eq!(agent.end_of("p").await.outcome, Some(Outcome::Signal(9)));
    agent.sh("q", "exit 0").await;
    assert_eq!(agent.end_of("q").await.outcome, Some(Outcome::ExitCode(0)));
    stalled.abort();
    drop(attached);
    agent.end().await;
}

use futures::StreamExt as _;
