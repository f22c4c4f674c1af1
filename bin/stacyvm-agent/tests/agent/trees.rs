//! Whole process trees: deadlines, signals, orphans, and what is left when one of ours is killed.

use crate::harness::{Agent, eventually, request, words};
use stacyvm_guest::proto::{GetRequest, Process, SignalRequest, StartRequest, process::Outcome};
use std::{fs, time::Duration};

/// A child, one in its own session, and one whose parent is gone; each marks that it runs.
const FAMILY: &str =
    "sleep 1000 & setsid sleep 1000 & (setsid sh -c 'sleep 1000 & sleep 1000' &) ; echo ready";

async fn signal(agent: &Agent, id: &str, signal: i32, tree: bool) -> bool {
    let request = SignalRequest { id: id.into(), signal, tree };
    agent.control.clone().signal(request).await.unwrap().into_inner().delivered
}

async fn get(agent: &Agent, id: &str) -> Process {
    agent.control.clone().get(GetRequest { id: id.into() }).await.unwrap().into_inner()
}

#[tokio::test]
async fn a_deadline_ends_everything_and_keeps_the_output() {
    let agent = Agent::start();
    let script = format!("trap '' TERM INT HUP; {FAMILY}; while :; do sleep 1000; done");
    let start = StartRequest { deadline_ms: 400, argv: words(&["sh", "-c", &script]), ..request("p") };
    agent.run(start).await.unwrap();
    let output = agent.output_of("p").await;
    assert_eq!(output.stdout, b"ready\n");
    let exit = output.exit.unwrap();
    assert!(exit.timed_out && !exit.oom_killed, "{exit:?}");
    assert_eq!(exit.outcome, Some(Outcome::Signal(9)));
    agent.only_agent_left().await;
    agent.end().await;
}

#[tokio::test]
async fn children_outlive_their_leader_and_can_still_be_ended() {
    let agent = Agent::start();
    agent.sh("p", &format!("{FAMILY}; exit 3")).await;
    let output = agent.output_of("p").await;
    assert_eq!(output.code(), 3);
    assert!(output.exit.unwrap().output_open, "the children hold the pipes");
    // The zygote, the agent, a supervisor, and five that sleep or wait for one.
    assert!(agent.processes().len() >= 6, "{:?}", agent.processes());
    assert!(!signal(&agent, "p", 15, false).await, "the leader is gone");
    assert!(signal(&agent, "p", 9, true).await);
    agent.only_agent_left().await;
    eventually("the pipes stay open", || agent.processes().len() <= 2).await;
    let process = get(&agent, "p").await;
    assert_eq!((process.outcome, process.timed_out), (Some(Outcome::ExitCode(3)), false));
    agent.end().await;
}

#[tokio::test]
async fn a_signal_to_the_tree_reaches_every_session() {
    let agent = Agent::start();
    let note = "sh -c 'trap \"echo got >> log; exit\" TERM; echo up >> ups; while :; do sleep 0.02; done'";
    agent.sh("p", &format!("{note} & setsid {note} & trap 'echo got >> log' TERM; wait; wait; wait")).await;
    let ups = agent.host_path("/workspace/ups");
    eventually("the children are up", || fs::read_to_string(&ups).unwrap_or_default().lines().count() == 2)
        .await;
    assert!(signal(&agent, "p", 15, true).await);
    agent.end_of("p").await;
    let log = agent.host_path("/workspace/log");
    eventually("somebody was left out", || fs::read_to_string(&log).unwrap_or_default().lines().count() >= 3)
        .await;
    assert_eq!(fs::read_to_string(&log).unwrap(), "got\n".repeat(3));
    agent.only_agent_left().await;
    agent.end().await;
}

#[tokio::test]
async fn a_tree_that_never_stops_growing_is_ended() {
    let agent = Agent::start();
    // Bounded in width by how fast its members end, not by the agent.
    let script = "for i in 1 2 3 4 5 6; do (trap '' TERM; while :; do setsid sleep 0.05 & sleep 0.01; done) & done; wait";
    agent.sh("p", script).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(signal(&agent, "p", 9, true).await);
    agent.only_agent_left().await;
    assert_eq!(agent.end_of("p").await.outcome, Some(Outcome::Signal(9)));
    agent.end().await;
}

#[tokio::test]
async fn a_signal_to_the_leader_leaves_the_others_alone() {
    let agent = Agent::start();
    agent.sh("p", "sleep 1000 & echo $! > child; exec sleep 1000").await;
    let child = agent.host_path("/workspace/child");
    eventually("the child is up", || fs::read_to_string(&child).is_ok_and(|text| text.ends_with('\n'))).await;
    assert!(signal(&agent, "p", 15, false).await);
    assert_eq!(agent.end_of("p").await.outcome, Some(Outcome::Signal(15)));
    let child: i32 = fs::read_to_string(&child).unwrap().trim().parse().unwrap();
    assert!(agent.processes().contains(&child));
    // An agent that is told to end ends its sandbox.
    agent.end().await;
}

#[tokio::test]
async fn an_exit_status_that_nobody_saw_is_not_invented() {
    let agent = Agent::start();
    let process = agent.sh("p", "sleep 1000 & sleep 1000").await;
    kill_parent(process.pid);
    let process = agent.end_of("p").await;
    assert!(matches!(process.outcome, Some(Outcome::Lost(_))), "{process:?}");
    // Nobody could enforce a deadline on what it left.
    agent.only_agent_left().await;
    // And the next one runs as if nothing had happened.
    agent.sh("q", "exit 4").await;
    assert_eq!(agent.end_of("q").await.outcome, Some(Outcome::ExitCode(4)));
    agent.end().await;
}

#[tokio::test]
async fn children_without_leader_and_supervisor_do_not_stay() {
    let agent = Agent::start();
    agent.sh("p", "sleep 1000 & echo $! > child; exit 0").await;
    agent.end_of("p").await;
    kill_parent(fs::read_to_string(agent.host_path("/workspace/child")).unwrap().trim().parse().unwrap());
    agent.only_agent_left().await;
    assert_eq!(agent.end_of("p").await.outcome, Some(Outcome::ExitCode(0)));
    agent.end().await;
}

/// Kills the supervisor above a process.
fn kill_parent(pid: u32) {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let parent: i32 = stat.rsplit_once(')').unwrap().1.split_whitespace().nth(1).unwrap().parse().unwrap();
    let parent = rustix::process::Pid::from_raw(parent).unwrap();
    rustix::process::kill_process(parent, rustix::process::Signal::KILL).unwrap();
}

#[tokio::test]
async fn nothing_outlives_an_agent_that_is_killed() {
    let agent = Agent::start();
    agent.sh("p", &format!("{FAMILY}; sleep 1000")).await;
    agent.sh("q", "exit 0").await;
    agent.end_of("q").await;
    agent.kill().await;
}

#[tokio::test]
async fn wait_answers_in_time_for_a_process_that_goes_on() {
    let agent = Agent::start();
    agent.sh("p", "sleep 1000").await;
    let request = stacyvm_guest::proto::WaitRequest { id: "p".into(), timeout_ms: 50 };
    let process = agent.control.clone().wait(request).await.unwrap().into_inner();
    assert_eq!(process.outcome, None);
    agent.end().await;
}
