//! `stacyvm run` without a server. The native runtime needs root; without it, the refusal is what there is to test.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use serde_json::Value;
use std::{
    fs,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

fn stacyvm(directory: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_stacyvm"));
    command
        .args(args)
        .env_clear()
        .env("HOME", directory)
        .env("PATH", "/usr/bin:/bin")
        .env("STACYVM_DATA_DIR", directory.join("data"))
        .current_dir(directory)
        .stdin(Stdio::null());
    command
}

fn run(directory: &Path, args: &[&str]) -> Output {
    stacyvm(directory, &[&["run"], args].concat()).output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// Directories of runs that are there now.
fn runs(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory.join("data/run")).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name != "lock" && name != "images").collect()
}

#[test]
fn output_and_exit_code_go_through() {
    let directory = tempfile::tempdir().unwrap();
    let dir = directory.path();
    let output = run(
        dir,
        &["--env", "A=b", "--workdir", "/tmp", "--", "sh", "-c", "echo $A $PWD; echo e >&2; exit 7"],
    );
    assert_eq!(
        (text(&output.stdout), text(&output.stderr), output.status.code()),
        ("b /tmp\n", "e\n", Some(7))
    );
    assert_eq!(run(dir, &["--", "sh", "-c", "kill -9 $$"]).status.code(), Some(137));
    assert_eq!(run(dir, &["--", "no-such-command"]).status.code(), Some(127));
    assert_eq!(run(dir, &["--", "/etc/passwd"]).status.code(), Some(126));
    let output = run(dir, &["--timeout", "300ms", "--", "sh", "-c", "echo before; sleep 60"]);
    assert_eq!((text(&output.stdout), output.status.code()), ("before\n", Some(124)));
    let output = run(dir, &["--image", "none/such:image", "--", "true"]);
    assert_eq!(output.status.code(), Some(125), "a named image is never replaced: {output:?}");
    let result: Value = serde_json::from_slice(&run(dir, &["--json", "--", "echo", "hi"]).stdout).unwrap();
    assert_eq!((&result["stdout"], &result["exit_code"]), (&"hi\n".into(), &0.into()));
    assert!(runs(dir).is_empty());
}

#[test]
fn stdin_is_passed_on_byte_by_byte() {
    let directory = tempfile::tempdir().unwrap();
    let dir = directory.path();
    let bytes: Vec<u8> = (0..500_000_u32).map(|i| (i % 256) as u8).collect();
    let mut child =
        stacyvm(dir, &["run", "--", "cat"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let sent = bytes.clone();
    let writer = std::thread::spawn(move || stdin.write_all(&sent).unwrap());
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    assert!(output.status.success() && output.stdout == bytes, "{} bytes", output.stdout.len());
}

#[test]
fn the_hosts_files_are_not_there() {
    let directory = tempfile::tempdir().unwrap();
    let dir = directory.path();
    fs::write(dir.join("secret"), "x").unwrap();
    let path = dir.join("secret");
    let output = run(dir, &["--", "cat", path.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
}

#[test]
fn an_interrupt_reaches_the_command_and_its_exit_code_comes_back() {
    let directory = tempfile::tempdir().unwrap();
    let dir = directory.path();
    let script = "trap 'echo caught; exit 5' INT; echo started; sleep 60 & wait";
    let mut child = stacyvm(dir, &["run", "--", "sh", "-c", script])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "started");
    let pid = child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    assert_eq!(lines.next().unwrap().unwrap(), "caught");
    assert_eq!(child.wait().unwrap().code(), Some(5));
    assert!(runs(dir).is_empty());
}

#[test]
fn a_killed_run_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let dir = directory.path();
    let mark = "61234.5";
    let mut child =
        stacyvm(dir, &["run", "--", "sh", "-c", &format!("setsid sleep {mark} & echo started; wait")])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "started");
    let id = runs(dir).pop().unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    let started = Instant::now();
    while !(runs(dir).is_empty() && traces(&id, mark).is_empty()) {
        assert!(started.elapsed() < Duration::from_secs(60), "{:?} {:?}", runs(dir), traces(&id, mark));
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Processes, cgroups and mounts that name this run or its command.
fn traces(id: &str, mark: &str) -> Vec<String> {
    let mut traces = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        // Not this test's own children: those were killed and awaited.
        if command.contains(id) || command.contains(&format!("sleep {mark}")) {
            traces.push(command);
        }
    }
    for hierarchy in fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
        let group = hierarchy.path().join(format!("stacyvm-{id}"));
        traces.extend(group.exists().then(|| group.display().to_string()));
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    traces.extend(mounts.lines().filter(|line| line.contains(id)).map(str::to_owned));
    traces
}
