//! Output as a log: offsets, gaps, pacing, any bytes.

use crate::harness::{Agent, code, request, words};
use stacyvm_guest::proto::{
    AttachRequest, ListRequest, RunRequest, StartRequest, StdinRequest, output_event::Event,
};
use std::fs;
use tonic::Code;

#[tokio::test]
async fn any_bytes_come_back_from_any_offset() {
    let agent = Agent::start();
    let bytes: Vec<u8> = (0..=255u8).cycle().take(200_001).collect();
    fs::write(agent.host_path("/workspace/bytes"), &bytes).unwrap();
    agent.sh("p", "cat bytes").await;
    agent.end_of("p").await;
    for offset in [0, 1, 65_536, 123_456, bytes.len()] {
        let output = agent.attach("p", offset as u64, true, false).await.rest().await;
        assert!(output.stdout == bytes[offset..], "from {offset}");
        assert_eq!(output.code(), 0);
        let ended = agent.attach("p", offset as u64, false, false).await.rest().await;
        assert!(ended.stdout == bytes[offset..] && ended.exit.is_some(), "from {offset}");
    }
    let beyond = AttachRequest { id: "p".into(), offset: bytes.len() as u64 + 1, ..AttachRequest::default() };
    assert_eq!(code(agent.bulk.clone().attach(beyond).await), Code::InvalidArgument);
    let unknown = AttachRequest { id: "q".into(), ..AttachRequest::default() };
    assert_eq!(code(agent.bulk.clone().attach(unknown).await), Code::NotFound);
    agent.end().await;
}

#[tokio::test]
async fn a_look_without_following_ends_at_once() {
    let agent = Agent::start();
    agent.sh("p", "echo now; sleep 1000").await;
    let mut following = agent.attach("p", 0, true, false).await;
    assert!(matches!(following.next().await, Some(Event::Chunk(chunk)) if chunk.data == "now\n"));
    let output = agent.attach("p", 0, false, false).await.rest().await;
    assert_eq!((output.stdout.as_slice(), output.exit), (&b"now\n"[..], None));
    agent.end().await;
}

#[tokio::test]
async fn one_call_starts_a_process_and_reads_all_of_it() {
    let agent = Agent::start();
    let script = words(&["sh", "-c", "seq 1 100000; echo end >&2; exit 7"]);
    let start = StartRequest { argv: script, ..request("p") };
    let (process, attached) = agent.start_and_attach(start.clone(), true).await.unwrap();
    assert_eq!((process.id.as_str(), process.outcome.is_none()), ("p", true));
    let output = attached.rest().await;
    let all: String = (1..=100_000).map(|number| format!("{number}\n")).collect();
    assert!(output.stdout == all.as_bytes() && output.gaps.is_empty());
    assert_eq!((output.stderr.as_slice(), output.code()), (&b"end\n"[..], 7));

    // Whoever lost the answer asks again, and nothing runs twice.
    let (again, attached) = agent.start_and_attach(start, true).await.unwrap();
    assert_eq!((again.pid, again.started_unix_ms), (process.pid, process.started_unix_ms));
    assert_eq!(attached.rest().await.code(), 7);
    agent.end().await;
}

#[tokio::test]
async fn one_call_fails_as_a_start_does() {
    let agent = Agent::start();
    for (argv, expected) in [
        (words(&["no-such-program"]), Code::NotFound),
        (words(&["/etc"]), Code::InvalidArgument),
        (Vec::new(), Code::InvalidArgument),
    ] {
        let start = StartRequest { argv: argv.clone(), ..request("p") };
        assert_eq!(agent.start_and_attach(start, true).await.err().unwrap().code(), expected, "{argv:?}");
    }
    let empty = RunRequest { start: None, pace: true };
    assert_eq!(code(agent.bulk.clone().run(empty).await), Code::InvalidArgument);
    assert!(agent.control.clone().list(ListRequest {}).await.unwrap().into_inner().processes.is_empty());
    agent.end().await;
}

/// Numbered lines, far more than the log of the process keeps.
async fn count(agent: &Agent, id: &str, log_bytes: u64) -> Vec<u8> {
    let argv = words(&["seq", "1", "200000"]);
    agent.run(StartRequest { log_bytes, argv, ..request(id) }).await.unwrap();
    (1..=200_000).map(|number| format!("{number}\n")).collect::<String>().into_bytes()
}

#[tokio::test]
async fn without_a_paced_reader_old_output_becomes_a_gap() {
    let agent = Agent::start();
    let all = count(&agent, "p", 8192).await;
    agent.end_of("p").await;
    let output = agent.output_of("p").await;
    let [(0, length)] = output.gaps[..] else { panic!("{:?}", output.gaps) };
    assert!(length as usize + 8192 >= all.len() && output.stdout.len() <= 8192);
    assert!(output.stdout == all[length as usize..]);
    assert_eq!(output.position, all.len() as u64);
    let exit = output.exit.unwrap();
    assert_eq!((exit.output_start, exit.output_end), (length, all.len() as u64));
    agent.end().await;
}

#[tokio::test]
async fn a_paced_reader_loses_nothing_and_holds_the_process() {
    let agent = Agent::start();
    // It begins to write when the reader is there.
    let script = "while [ ! -e go ]; do sleep 0.01; done; exec seq 1 200000";
    let start = StartRequest { log_bytes: 8192, argv: words(&["sh", "-c", script]), ..request("p") };
    agent.run(start).await.unwrap();
    let reader = agent.attach("p", 0, true, true).await;
    let second = agent.attach("p", 0, true, true).await;
    fs::write(agent.host_path("/workspace/go"), "").unwrap();
    let request = stacyvm_guest::proto::WaitRequest { id: "p".into(), timeout_ms: 300 };
    assert_eq!(
        agent.control.clone().wait(request).await.unwrap().into_inner().outcome,
        None,
        "over a megabyte fits nowhere on the way"
    );
    drop(second);
    let output = reader.rest().await;
    assert!(output.gaps.is_empty(), "{:?}", output.gaps);
    assert_eq!(output.code(), 0);
    let expected: Vec<u8> = (1..=200_000).flat_map(|number| format!("{number}\n").into_bytes()).collect();
    assert!(output.stdout == expected, "{} of {} bytes", output.stdout.len(), expected.len());
    agent.end().await;
}

#[tokio::test]
async fn a_paced_reader_that_leaves_holds_nothing() {
    let agent = Agent::start();
    let reader = {
        let script = "while [ ! -e go ]; do sleep 0.01; done; exec seq 1 200000";
        let start = StartRequest { log_bytes: 8192, argv: words(&["sh", "-c", script]), ..request("p") };
        agent.run(start).await.unwrap();
        agent.attach("p", 0, true, true).await
    };
    fs::write(agent.host_path("/workspace/go"), "").unwrap();
    drop(reader);
    assert_eq!(agent.end_of("p").await.outcome, Some(stacyvm_guest::proto::process::Outcome::ExitCode(0)));
    agent.end().await;
}

#[tokio::test]
async fn output_written_just_before_the_end_is_never_cut_off() {
    let agent = Agent::start();
    let one = async |number: u32| {
        let id = format!("p-{number}");
        // A child holds the pipes, so their end cannot be waited for.
        agent.sh(&id, "sleep 1000 & head -c 60000 /dev/zero; exit 1").await;
        let output = agent.attach(&id, 0, true, true).await.rest().await;
        assert_eq!((output.stdout.len(), output.code()), (60_000, 1));
    };
    futures::future::join_all((0..20).map(one)).await;
    agent.end().await;
}

#[tokio::test]
async fn both_streams_keep_their_order_and_their_names() {
    let agent = Agent::start();
    // It writes the next line when the last one was seen.
    let script = "while read line; do echo o$line; read line; echo e$line >&2; done";
    agent
        .run(StartRequest { stdin: true, argv: words(&["sh", "-c", script]), ..request("p") })
        .await
        .unwrap();
    let mut attached = agent.attach("p", 0, true, false).await;
    for number in 0..6u32 {
        let data = format!("{number}\n");
        let (offset, eof) = (u64::from(number) * 2, number == 5);
        let write = StdinRequest { id: "p".into(), offset, data: data.into(), eof, writer: String::new() };
        agent.bulk.clone().write_stdin(write).await.unwrap();
        let (stream, text) =
            if number % 2 == 0 { (1, format!("o{number}\n")) } else { (2, format!("e{number}\n")) };
        match attached.next().await {
            Some(Event::Chunk(chunk)) => {
                assert_eq!(
                    (chunk.stream, chunk.offset, &*chunk.data),
                    (stream, u64::from(number) * 3, text.as_bytes())
                );
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(attached.rest().await.code(), 0);
    agent.end().await;
}

#[tokio::test]
async fn all_logs_together_are_bounded_and_the_oldest_go_first() {
    const BOUND: u64 = 32 << 20;
    let agent = Agent::start();
    for number in 0..40 {
        let id = format!("p-{number}");
        agent
            .run(StartRequest { argv: words(&["head", "-c", "1000000", "/dev/zero"]), ..request(&id) })
            .await
            .unwrap();
        agent.end_of(&id).await;
    }
    let listed = agent.control.clone().list(ListRequest {}).await.unwrap().into_inner().processes;
    let kept: Vec<u64> = listed.iter().map(|process| process.output_end - process.output_start).collect();
    assert!(kept.iter().sum::<u64>() <= BOUND, "{kept:?}");
    assert_eq!((kept[0], kept[39]), (0, 1_000_000), "{kept:?}");
    // What is gone is said to be gone, and its end is still known.
    let output = agent.output_of("p-0").await;
    assert_eq!((output.gaps, output.position), (vec![(0, 1_000_000)], 1_000_000));
    assert!(output.exit.is_some());
    agent.end().await;
}

#[tokio::test]
async fn a_process_without_output_does_not_keep_the_agent_busy() {
    let agent = Agent::start();
    agent.sh("p", "exec >&- 2>&-; sleep 1000").await;
    let ticks = || {
        let stat = fs::read_to_string(format!("/proc/{}/stat", agent.pid())).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    };
    crate::harness::eventually("its pipes are open", || true).await;
    let before = ticks();
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    // Half a second has 50 ticks; a loop would use them.
    assert!(ticks() - before < 10, "{} ticks", ticks() - before);
    agent.end().await;
}
