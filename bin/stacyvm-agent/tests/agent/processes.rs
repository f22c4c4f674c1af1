//! Starting, ending, and everything that can be wrong with a request.

use crate::harness::{Agent, code, request, words};
use stacyvm_guest::proto::{
    GetRequest, ListRequest, LogsRequest, PingRequest, SignalRequest, StartRequest, process::Outcome,
};
use std::{fs, os::unix::fs::PermissionsExt};
use tonic::Code;

#[tokio::test]
async fn a_command_runs_and_its_true_code_comes_back() {
    let agent = Agent::start();
    let process = agent.sh("p-1", "echo out; echo err >&2; pwd; exit 7").await;
    assert!(process.pid > 1 && process.argv == ["sh", "-c", "echo out; echo err >&2; pwd; exit 7"]);
    let output = agent.output_of("p-1").await;
    let workspace = fs::canonicalize(agent.host_path("/workspace")).unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), format!("out\n{}\n", workspace.display()));
    assert_eq!(output.stderr, b"err\n");
    assert_eq!(output.code(), 7);
    let exit = output.exit.unwrap();
    assert!(
        exit.ended_unix_ms >= exit.started_unix_ms
            && !exit.timed_out
            && !exit.oom_killed
            && !exit.output_open
    );
    assert_eq!((exit.output_start, exit.output_end), (0, output.position));

    agent.sh("p-2", "kill -SEGV $$").await;
    assert_eq!(agent.end_of("p-2").await.outcome, Some(Outcome::Signal(11)));
    let ids: Vec<String> = {
        let reply = agent.control.clone().list(ListRequest {}).await.unwrap().into_inner();
        reply.processes.into_iter().map(|process| process.id).collect()
    };
    assert_eq!(ids, ["p-1", "p-2"]);
    let ping = agent.control.clone().ping(PingRequest {}).await.unwrap().into_inner();
    assert_eq!((ping.live_processes, ping.ended_processes), (0, 2));
    agent.end().await;
}

#[tokio::test]
async fn a_process_gets_a_clean_environment_and_no_privileges() {
    let agent = Agent::start();
    let script = "env | sort; grep -E '^(Cap|NoNewPrivs|SigBlk|SigIgn)' /proc/self/status; ls /proc/$$/fd; ulimit -c; umask";
    let start = StartRequest {
        env: [("ADDED".to_owned(), "yes=really".to_owned()), ("LANG".to_owned(), "de".to_owned())].into(),
        argv: words(&["sh", "-c", script]),
        ..request("p")
    };
    agent.run(start).await.unwrap();
    let output = agent.output_of("p").await;
    let text = String::from_utf8(output.stdout).unwrap();
    let home = fs::canonicalize(agent.host_path("/home/sandbox")).unwrap();
    assert!(
        text.contains("ADDED=yes=really\n") && text.contains("LANG=de\n") && text.contains("TERM=xterm\n"),
        "{text}"
    );
    assert!(
        text.contains(&format!("HOME={}\n", home.display())) && text.contains("USER=sandbox\n"),
        "{text}"
    );
    assert!(!text.contains("SECRET"), "{text}");
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "SigBlk", "SigIgn"] {
        if set == "CapBnd" && !rustix::process::getuid().is_root() {
            continue;
        }
        assert!(text.contains(&format!("{set}:\t0000000000000000\n")), "{set} in {text}");
    }
    assert!(text.contains("NoNewPrivs:\t1\n"), "{text}");
    // Its three standard descriptors, then no core files and the usual mask.
    assert!(text.ends_with("\n0\n1\n2\n0\n0022\n"), "{text}");
    agent.end().await;
}

#[tokio::test]
async fn what_cannot_be_started_is_refused_for_the_right_reason() {
    let agent = Agent::start();
    fs::write(agent.host_path("/workspace/plain"), "#!/bin/sh\n").unwrap();
    for (name, content) in [("text", "no program\n"), ("orphan", "#!/no/such/interpreter\n")] {
        let path = agent.host_path(&format!("/workspace/{name}"));
        fs::write(&path, content).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let start = |argv: &[&str]| StartRequest { argv: words(argv), ..request("p") };
    for (request, expected) in [
        (start(&["no-such-command"]), Code::NotFound),
        (start(&["/no/such/command"]), Code::NotFound),
        (start(&["./plain"]), Code::InvalidArgument),
        (start(&["./text"]), Code::InvalidArgument),
        (start(&["./orphan"]), Code::InvalidArgument),
        (start(&["/workspace"]), Code::InvalidArgument),
        (start(&[]), Code::InvalidArgument),
        (start(&["true", &"x".repeat(200_000)]), Code::InvalidArgument),
        (StartRequest { cwd: "/none".into(), ..start(&["true"]) }, Code::NotFound),
        (StartRequest { cwd: "relative".into(), ..start(&["true"]) }, Code::InvalidArgument),
        (StartRequest { cwd: "/workspace/text".into(), ..start(&["true"]) }, Code::NotFound),
        (StartRequest { user: "somebody-else".into(), ..start(&["true"]) }, Code::Unimplemented),
        (StartRequest { id: String::new(), ..start(&["true"]) }, Code::InvalidArgument),
    ] {
        let shown = format!("{request:.200?}");
        assert_eq!(code(agent.run(request).await), expected, "{shown}");
    }
    // None of these left its id behind.
    agent.run(start(&["true"])).await.unwrap();
    assert_eq!(agent.end_of("p").await.outcome, Some(Outcome::ExitCode(0)));
    assert_eq!(code(agent.control.clone().get(GetRequest { id: "other".into() }).await), Code::NotFound);
    let no_signal = SignalRequest { id: "p".into(), signal: 65, tree: false };
    assert_eq!(code(agent.control.clone().signal(no_signal).await), Code::InvalidArgument);
    let late = SignalRequest { id: "p".into(), signal: 9, tree: true };
    assert!(!agent.control.clone().signal(late).await.unwrap().into_inner().delivered);
    agent.end().await;
}

#[tokio::test]
async fn a_known_id_is_never_started_twice() {
    let agent = Agent::start();
    let start = |script: &str| StartRequest { argv: words(&["sh", "-c", script]), ..request("p") };
    // The first caller leaves, perhaps before anything happened, perhaps in the middle.
    let hasty = agent.run(start("echo once >> log; sleep 0.1"));
    let _ = tokio::time::timeout(std::time::Duration::from_millis(2), hasty).await;
    let many = (0..8).map(|_| agent.run(start("echo once >> log; sleep 0.1")));
    let first: Vec<u32> = futures::future::join_all(many).await.into_iter().map(|p| p.unwrap().pid).collect();
    assert!(first.iter().all(|pid| *pid == first[0]), "{first:?}");
    agent.end_of("p").await;
    let again = agent.run(start("echo twice >> log")).await.unwrap();
    assert_eq!((again.pid, again.outcome), (first[0], Some(Outcome::ExitCode(0))));
    assert_eq!(fs::read_to_string(agent.host_path("/workspace/log")).unwrap(), "once\n");
    agent.end().await;
}

#[tokio::test]
async fn a_mebibyte_of_arguments_arrives() {
    let agent = Agent::start();
    let mut argv = words(&["sh", "-c", "printf '%s' \"$@\" | wc -c", "sh"]);
    argv.extend((0..16).map(|_| "x".repeat(60_000)));
    agent.run(StartRequest { argv, ..request("p") }).await.unwrap();
    let output = agent.output_of("p").await;
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "960000");
    // A short one is remembered whole, a long one in part, so that lists stay small.
    assert!(output.exit.unwrap().argv.iter().map(String::len).sum::<usize>() < 5000);
    agent.end().await;
}

#[tokio::test]
async fn many_ended_processes_are_forgotten_from_the_oldest() {
    let agent = Agent::start();
    let limit = stacyvm_guest::limits::ENDED_PROCESSES;
    let one = async |id: String| {
        agent.run(StartRequest { argv: words(&["true"]), ..request(&id) }).await.unwrap();
        agent.end_of(&id).await;
    };
    one("first".to_owned()).await;
    let names: Vec<String> = (0..limit + 20).map(|number| format!("p-{number}")).collect();
    for some in names.chunks(64) {
        futures::future::join_all(some.iter().cloned().map(one)).await;
    }
    one("last".to_owned()).await;
    let listed =
        || async { agent.control.clone().list(ListRequest {}).await.unwrap().into_inner().processes };
    // A process is forgotten when its supervisor has left too, which is soon.
    while listed().await.len() > limit {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    assert_eq!(listed().await.len(), limit);
    assert_eq!(code(agent.control.clone().get(GetRequest { id: "first".into() }).await), Code::NotFound);
    assert!(agent.control.clone().get(GetRequest { id: "last".into() }).await.is_ok());
    agent.end().await;
}

#[tokio::test]
async fn more_processes_than_fit_are_refused_and_the_others_unharmed() {
    let agent = Agent::start();
    let start = |number: u32| {
        let argv = words(&["sleep", "1000"]);
        agent.run(StartRequest { argv, ..request(&format!("p-{number}")) })
    };
    let numbers: Vec<u32> = (0..512).collect();
    for some in numbers.chunks(64) {
        for process in futures::future::join_all(some.iter().copied().map(start)).await {
            process.unwrap();
        }
    }
    assert_eq!(code(start(512).await), Code::ResourceExhausted);
    let kill = SignalRequest { id: "p-7".into(), signal: 9, tree: true };
    assert!(agent.control.clone().signal(kill).await.unwrap().into_inner().delivered);
    start(513).await.unwrap();
    assert_eq!(
        agent.control.clone().list(ListRequest {}).await.unwrap().into_inner().processes.len(),
        514 - 1
    );
    agent.end().await;
}

#[tokio::test]
async fn the_last_lines_of_all_processes_are_kept() {
    let agent = Agent::start();
    agent.sh("a", "echo one; echo two >&2").await;
    agent.end_of("a").await;
    agent.sh("b", "printf 'three\\nfour'").await;
    agent.end_of("b").await;
    let logs = agent.control.clone().logs(LogsRequest { lines: 2 }).await.unwrap().into_inner();
    assert_eq!(logs.lines, ["three", "four"]);
    let logs = agent.control.clone().logs(LogsRequest { lines: 100 }).await.unwrap().into_inner();
    assert_eq!(logs.lines.len(), 4);
    agent.end().await;
}
