//! The agent as a first process with users of its own, as a real runtime starts it: what the user of the sandbox is kept from.

use crate::harness::{Agent, code, request, words};
use stacyvm_guest::proto::{
    Empty, MkdirRequest, PathRequest, SignalRequest, StartRequest, WriteFilePart, WriteFileStart,
    process::Outcome, write_file_part::Part,
};
use std::os::unix::fs::MetadataExt;
use tonic::Code;

/// Only root can make a pid namespace with several users.
fn agent() -> Option<Agent> {
    if rustix::process::getuid().is_root() {
        return Some(Agent::start_first());
    }
    eprintln!("not run: needs root");
    None
}

async fn script(agent: &Agent, id: &str, script: &str) -> (String, i32) {
    agent.sh(id, script).await;
    let output = agent.output_of(id).await;
    let code = output.code();
    (String::from_utf8([output.stdout, output.stderr].concat()).unwrap(), code)
}

#[tokio::test]
async fn a_process_is_the_sandbox_user_with_nothing_to_gain() {
    let Some(agent) = agent() else { return };
    let show = "id -u; id -g; id -G; grep -E '^(Cap|NoNewPrivs)' /proc/self/status | tr -d '\\t\\n'; echo; \
                echo again > /dev/stdout; cat /proc/sys/kernel/ns_last_pid > /dev/null";
    let (text, _) = script(&agent, "p", show).await;
    let zero = "0".repeat(16);
    let caps = ["Inh", "Prm", "Eff", "Bnd", "Amb"].map(|set| format!("Cap{set}:{zero}")).concat();
    assert_eq!(text, format!("1000\n1000\n1000\n{caps}NoNewPrivs:1\nagain\n"));
    agent.end().await;
}

#[tokio::test]
async fn the_agent_and_its_helpers_are_out_of_reach() {
    let Some(agent) = agent() else { return };
    let attack = "kill -9 -1 2>/dev/null; kill -9 1 $PPID 2>&1; cat /proc/1/mem /proc/$PPID/mem /proc/1/environ 2>&1; \
                  ls /proc/1/fd /proc/1/root/ 2>&1 | head -1; exit 5";
    // With a bystander, which may be hit; the agent, the zygote and both supervisors may not.
    agent.sh("bystander", "sleep 1000").await;
    let (text, exit) = script(&agent, "p", attack).await;
    assert_eq!(exit, 5, "{text}");
    assert_eq!(agent.end_of("bystander").await.outcome, Some(Outcome::Signal(9)));
    assert_eq!(text.matches("ermission denied").count() + text.matches("not permitted").count(), 6, "{text}");
    let (text, exit) = script(&agent, "after", "echo fine").await;
    assert_eq!((text.as_str(), exit), ("fine\n", 0));
    agent.end().await;
}

#[tokio::test]
async fn other_users_are_taken_by_name_or_number_and_root_is_not() {
    let Some(agent) = agent() else { return };
    let start = |id: &str, user: &str| StartRequest {
        user: user.into(),
        argv: words(&["sh", "-c", "id -u; id -g; echo $HOME $USER"]),
        ..request(id)
    };
    for (id, user, expected) in [
        ("named", "nobody", "65534\n65534\n/nonexistent nobody\n"),
        ("number", "12345", "12345\n12345\n/ 12345\n"),
        ("pair", "12345:77", "12345\n77\n/ 12345\n"),
    ] {
        agent.run(start(id, user)).await.unwrap();
        assert_eq!(String::from_utf8(agent.output_of(id).await.stdout).unwrap(), expected, "{user}");
    }
    for root in ["root", "0", "0:1000"] {
        assert_eq!(code(agent.run(start("p", root)).await), Code::Unimplemented, "{root}");
    }
    assert_eq!(code(agent.run(start("p", "no-such-user")).await), Code::InvalidArgument);
    agent.end().await;
}

#[tokio::test]
async fn files_belong_to_whom_they_are_for() {
    let Some(agent) = agent() else { return };
    let root = agent.host_path("/");
    let path = |name: &str| root.join("tmp").join(name).to_str().unwrap().to_owned();
    for (file, user, owner) in
        [("a/b/mine", "", (1000, 1000)), ("a/theirs", "65534:7", (65534, 7)), ("roots", "root", (0, 0))]
    {
        let start = WriteFileStart { path: path(file), mode: 0o640, user: user.into() };
        let parts = [Part::Start(start), Part::Data("x".into()), Part::Finish(Empty {})];
        let parts = parts.map(|part| WriteFilePart { part: Some(part) });
        let info = agent.bulk.clone().write_file(futures::stream::iter(parts)).await.unwrap().into_inner();
        assert_eq!((info.uid, info.gid), owner);
    }
    let owner = |name: &str| {
        let metadata = std::fs::metadata(path(name)).unwrap();
        (metadata.uid(), metadata.gid())
    };
    assert_eq!((owner("a"), owner("a/b"), owner("a/theirs")), ((1000, 1000), (1000, 1000), (65534, 7)));
    let mkdir = MkdirRequest { path: path("made"), mode: 0o700, parents: false };
    agent.bulk.clone().mkdir(mkdir).await.unwrap();
    assert_eq!(owner("made"), (1000, 1000));
    let kernel = stacyvm_guest::proto::ChmodRequest { path: "/proc/sys/kernel/hostname".into(), mode: 0o666 };
    assert_eq!(code(agent.bulk.clone().chmod(kernel).await), Code::InvalidArgument);
    let memory = PathRequest { path: "/proc/1/mem".into(), follow: true };
    assert!(agent.bulk.clone().stat(memory).await.is_ok());
    agent.end().await;
}

#[tokio::test]
async fn orphans_are_reaped_and_trees_end() {
    let Some(agent) = agent() else { return };
    agent.sh("p", "for i in 1 2 3; do (setsid sleep 1000 &); done; (sleep 0.01 &); sleep 1000").await;
    let kill = SignalRequest { id: "p".into(), signal: 9, tree: true };
    assert!(agent.control.clone().signal(kill).await.unwrap().into_inner().delivered);
    let (text, _) =
        script(&agent, "q", "cat /proc/[0-9]*/stat | grep -c ' Z '; ls -d /proc/[0-9]* | wc -l").await;
    let mut counts = text.lines().map(|line| line.parse::<u32>().unwrap());
    assert_eq!(counts.next(), Some(0), "zombies");
    // Agent, zygote, supervisor, shell, and the two of its pipeline at most.
    assert!(counts.next().unwrap() <= 6, "{text}");
    agent.end().await;
}
