//! Stdin over the wire: retries, readers that do not read, ends.

use crate::harness::{Agent, code, request, words};
use bytes::Bytes;
use stacyvm_guest::proto::{StartRequest, StdinReply, StdinRequest};
use tonic::{Code, Status};

async fn write(agent: &Agent, offset: u64, data: impl Into<Bytes>, eof: bool) -> Result<StdinReply, Status> {
    let request = StdinRequest { id: "p".into(), offset, data: data.into(), eof, writer: String::new() };
    agent.bulk.clone().write_stdin(request).await.map(|reply| reply.into_inner())
}

async fn start(agent: &Agent, script: &str) {
    let start = StartRequest { stdin: true, argv: words(&["sh", "-c", script]), ..request("p") };
    agent.run(start).await.unwrap();
}

#[tokio::test]
async fn every_byte_arrives_once_however_often_it_is_sent() {
    let agent = Agent::start();
    start(&agent, "cat").await;
    let all: Vec<u8> = (0..=255u8).cycle().take(300_000).collect();
    let mut offset = 0;
    let mut call = 0usize;
    while offset < all.len() {
        // Every third call repeats part of what was accepted already.
        call += 1;
        let from = if call.is_multiple_of(3) { offset.saturating_sub(10_000) } else { offset };
        let data = all[from..(from + 50_000).min(all.len())].to_vec();
        offset = usize::try_from(write(&agent, from as u64, data, false).await.unwrap().accepted).unwrap();
    }
    assert_eq!(code(write(&agent, offset as u64 + 1, "x", false).await), Code::InvalidArgument);
    assert!(write(&agent, offset as u64, "", true).await.unwrap().closed);
    assert!(write(&agent, offset as u64, "", true).await.unwrap().closed);
    let output = agent.output_of("p").await;
    assert_eq!(output.code(), 0);
    assert!(output.stdout == all, "{} bytes", output.stdout.len());
    assert_eq!(output.exit.unwrap().stdin_offset, all.len() as u64);
    agent.end().await;
}

#[tokio::test]
async fn without_stdin_there_is_nothing_to_read_or_write() {
    let agent = Agent::start();
    let start = StartRequest { argv: words(&["sh", "-c", "cat; readlink /proc/self/fd/0"]), ..request("p") };
    agent.run(start).await.unwrap();
    assert_eq!(agent.output_of("p").await.stdout, b"/dev/null\n");
    assert_eq!(code(write(&agent, 0, "x", false).await), Code::InvalidArgument);
    agent.end().await;
}

#[tokio::test]
async fn a_process_that_closed_its_end_says_so() {
    let agent = Agent::start();
    start(&agent, "exec <&-; echo closed; sleep 1000").await;
    let mut output = agent.attach("p", 0, true, false).await;
    output.next().await.unwrap();
    let reply = write(&agent, 0, "x", false).await.unwrap();
    assert_eq!((reply.accepted, reply.closed), (0, true));
    agent.end().await;
}
