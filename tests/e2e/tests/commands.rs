//! Commands that look at processes, follow them, and move files around a run.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use stacyvm_e2e::Host;
use stacyvm_testkit::{LeakCheck, binary};
use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    path::Path,
    process::{Command, Output, Stdio},
};

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn lines(bytes: &[u8]) -> Result<Vec<Value>> {
    text(bytes).lines().map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
}

#[tokio::test]
async fn processes_are_listed_and_signalled() -> Result<()> {
    let host = Host::start().await?;
    let sandbox = host.spawn().await?;
    let id = sandbox.id.as_str();
    ensure!(text(&host.cli(&["ps", id])?.stdout).starts_with("No processes run"));
    let process = sandbox.start("trap 'exit 5' USR1; echo up; while :; do sleep 0.05; done", false).await?;
    let table = text(&host.cli(&["ps", id])?.stdout);
    ensure!(table.lines().count() == 2 && table.contains(&process) && table.contains("running"), "{table}");
    // Until its trap is set.
    let attach = host.cli_command(&["attach", id, &process])?.stdout(Stdio::piped()).spawn()?;
    let mut reader = BufReader::new(attach.stdout.context("stdout")?);
    reader.read_line(&mut String::new())?;

    let sent: Value = serde_json::from_slice(&host.cli(&["signal", id, &process, "usr1", "--json"])?.stdout)?;
    ensure!(sent["delivered"] == true && sent["signal"] == 10, "{sent}");
    let attached = host.cli(&["attach", id, &process])?;
    ensure!(attached.status.code() == Some(5) && attached.stdout == b"up\n", "{attached:?}");
    let late = host.cli(&["signal", id, &process])?;
    ensure!(late.status.code() == Some(1) && text(&late.stderr).contains("had ended already"), "{late:?}");
    ensure!(text(&host.cli(&["ps", id])?.stdout).starts_with("No processes run"));
    let all: Value = serde_json::from_slice(&host.cli(&["ps", id, "--all", "--json"])?.stdout)?;
    ensure!(all[0]["exit_code"] == 5, "{all}");

    let tree = sandbox.start("sleep 600 & wait", false).await?;
    ensure!(host.cli(&["signal", id, &tree, "KILL", "--tree"])?.status.success());
    ensure!(host.cli(&["attach", id, &tree])?.status.code() == Some(137));
    for arguments in [&["ps", "sb-none"][..], &["signal", "sb-none", "p"], &["stats", "sb-none"]] {
        let output = host.cli(arguments)?;
        ensure!(output.status.code() == Some(1), "{arguments:?}: {output:?}");
        ensure!(text(&output.stderr).contains("`stacyvm list` shows"), "{arguments:?}: {output:?}");
    }
    let unknown = host.cli(&["attach", id, "p-none"])?;
    ensure!(
        unknown.status.code() == Some(125) && text(&unknown.stderr).contains("stacyvm ps"),
        "{unknown:?}"
    );
    host.finish().await
}

#[tokio::test]
async fn an_attachment_outlives_the_server_and_ends_as_the_process_does() -> Result<()> {
    let mut host = Host::start().await?;
    let id = host.spawn().await?.id;
    let counter = "i=0; while [ $i -lt 400 ]; do echo $i; i=$((i+1)); sleep 0.01; done; exit 6";
    let process = host.sandbox(&id)?.start(counter, false).await?;
    let mut attach = host.cli_command(&["attach", &id, &process])?.stdout(Stdio::piped()).spawn()?;
    let mut reader = BufReader::new(attach.stdout.take().context("stdout")?);
    let mut got = String::new();
    reader.read_line(&mut got)?;
    host.server.kill_9().await?;
    host.server.restart().await?;
    reader.read_to_string(&mut got)?;
    let expected: String = (0..400).map(|number| format!("{number}\n")).collect();
    ensure!(got == expected, "{got}");
    ensure!(attach.wait()?.code() == Some(6));
    // From an offset: what is behind it, and nothing when all is behind.
    let from = |place: &str| host.cli(&["attach", &id, &process, "--from", place]);
    ensure!(text(&from("1486")?.stdout) == "399\n", "{:?}", from("1486")?);
    ensure!(from("now")?.stdout.is_empty() && from("now")?.status.code() == Some(6));
    host.finish().await
}

#[tokio::test]
async fn whoever_watches_a_process_does_it_no_harm() -> Result<()> {
    let host = Host::start().await?;
    let sandbox = host.spawn().await?;
    let id = sandbox.id.as_str();
    let process = sandbox.start("while read line; do echo \"got $line\"; done; exit 3", true).await?;
    let deaf = host.cli(&["attach", id, &sandbox.start("sleep 600", false).await?, "-i"])?;
    ensure!(deaf.status.code() == Some(125) && text(&deaf.stderr).contains("leave out -i"), "{deaf:?}");

    let start = || -> Result<_> {
        let mut command = host.cli_command(&["attach", id, &process, "-i"])?;
        Ok(command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?)
    };
    let mut first = start()?;
    let mut stdin = first.stdin.take().context("stdin")?;
    stdin.write_all(b"one\n")?;
    let mut reader = BufReader::new(first.stdout.take().context("stdout")?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    ensure!(line == "got one\n", "{line}");
    let pid = rustix::process::Pid::from_child(&first);
    rustix::process::kill_process(pid, rustix::process::Signal::INT)?;
    let left = first.wait_with_output()?;
    ensure!(left.status.code() == Some(130) && text(&left.stderr).contains("--from 8"), "{left:?}");
    drop(stdin);

    // Its input goes on where it was, and ends when ours does.
    let mut second = start()?;
    second.stdin.take().context("stdin")?.write_all(b"two\n")?;
    let output = second.wait_with_output()?;
    ensure!(output.status.code() == Some(3) && output.stdout == b"got one\ngot two\n", "{output:?}");
    host.finish().await
}

#[tokio::test]
async fn stats_are_shown_once_or_again_and_again() -> Result<()> {
    let host = Host::start().await?;
    ensure!(host.cli(&["stats"])?.stdout == b"No sandboxes run\n");
    let (one, two) = (host.spawn().await?, host.spawn().await?);
    let table = text(&host.cli(&["stats"])?.stdout);
    ensure!(table.lines().count() == 3 && table.starts_with("ID"), "{table}");
    let output = host.cli(&["stats", &one.id, "--json"])?;
    let looks = lines(&output.stdout)?;
    ensure!(looks.len() == 1 && looks[0]["id"] == one.id.as_str() && looks[0]["pids"].is_u64(), "{looks:?}");
    let some = host.cli(&["stats", "sb-none", &two.id])?;
    ensure!(some.status.code() == Some(1) && text(&some.stdout).contains(&two.id), "{some:?}");

    let mut command = host.cli_command(&["stats", "--follow", "--interval", "100ms", "--json", &one.id])?;
    let mut follow = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut reader = BufReader::new(follow.stdout.take().context("stdout")?);
    for _ in 0..3 {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let look: Value = serde_json::from_str(&line)?;
        ensure!(look["supported"] == true, "{look}");
    }
    // The last one that was named is gone.
    one.destroy().await?;
    reader.read_to_string(&mut String::new())?;
    ensure!(follow.wait()?.code() == Some(1));
    host.finish().await
}

#[tokio::test]
async fn events_are_followed_over_a_killed_server() -> Result<()> {
    let mut host = Host::start().await?;
    let id = host.spawn().await?.id;
    host.sandbox(&id)?.stdout("true").await?;
    let past = lines(&host.cli(&["events", "--json"])?.stdout)?;
    let kinds: Vec<_> = past.iter().map(|event| event["type"].as_str().unwrap_or_default()).collect();
    ensure!(kinds == ["sandbox.created", "sandbox.running", "exec.started", "exec.completed"], "{kinds:?}");
    let filtered = host.cli(&["events", "--type", "exec", "--sandbox", &id, "--after", "evt-3"])?;
    let line = text(&filtered.stdout);
    ensure!(line.lines().count() == 1 && line.contains("exec.completed") && line.contains(&id), "{line}");
    let unknown = host.cli(&["events", "--type", "exec.nope"])?;
    ensure!(unknown.status.code() == Some(2) && text(&unknown.stderr).contains("sandbox"), "{unknown:?}");

    let mut command =
        host.cli_command(&["events", "--follow", "--after", "evt-2", "--type", "exec", "--json"])?;
    let mut follow = command.stdout(Stdio::piped()).spawn()?;
    let mut reader = BufReader::new(follow.stdout.take().context("stdout")?);
    let mut next = || -> Result<Value> {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        Ok(serde_json::from_str(&line)?)
    };
    ensure!(next()?["id"] == "evt-3" && next()?["id"] == "evt-4");
    host.server.kill_9().await?;
    host.server.restart().await?;
    host.until("it is found again", |states| states == [(id.clone(), "running".to_owned())]).await?;
    host.sandbox(&id)?.stdout("true").await?;
    let (started, ended) = (next()?, next()?);
    ensure!(started["type"] == "exec.started" && ended["type"] == "exec.completed", "{started} {ended}");
    follow.kill()?;
    follow.wait()?;
    host.finish().await
}

/// `stacyvm run` in a directory of its own, with or without a server.
fn run(home: &Path, server: Option<&str>, arguments: &[&str]) -> Result<Output> {
    let mut command = Command::new(binary()?);
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("HOME", home);
    command.env("STACYVM_DATA_DIR", home.join("data")).current_dir(home).stdin(Stdio::null());
    command.envs(server.map(|server| ("STACYVM_SERVER", server)));
    Ok(command.arg("run").args(arguments).output()?)
}

#[tokio::test]
async fn files_go_into_a_run_and_come_out_of_it() -> Result<()> {
    let leaks = LeakCheck::before();
    let host = Host::start().await?;
    let url = host.server.base_url();
    for server in [None, Some(url.as_str())] {
        let home = tempfile::tempdir()?;
        let at = |path: &str| home.path().join(path);
        fs::create_dir_all(at("src/sub"))?;
        fs::write(at("src/sub/in"), "42\n")?;
        let script = "mkdir -p out/deep && cp src/sub/in out/deep/copy && ln -s /etc/passwd out/link && chmod 700 out/deep/copy; exit 7";
        let copies =
            ["--copy-in", "src:/workspace", "--copy-out", "out:.", "--copy-out", "out/deep/copy:named"];
        let output = run(home.path(), server, &[&copies[..], &["--", "sh", "-c", script]].concat())?;
        ensure!(output.status.code() == Some(7), "{server:?}: {output:?}");
        ensure!(text(&output.stderr).contains("one link or special file was left out"), "{output:?}");
        ensure!(fs::read(at("out/deep/copy"))? == b"42\n" && fs::read(at("named"))? == b"42\n");
        ensure!(!at("out/link").exists());

        // What cannot be copied out is an error that does not hide how the command ended.
        let copies = ["--json", "--copy-out", "none:.", "--copy-out", "yes:kept"];
        let output =
            run(home.path(), server, &[&copies[..], &["--", "sh", "-c", "echo 1 > yes; exit 7"]].concat())?;
        ensure!(output.status.code() == Some(123), "{server:?}: {output:?}");
        let (result, error): (Value, Value) =
            (serde_json::from_slice(&output.stdout)?, serde_json::from_slice(&output.stderr)?);
        ensure!(result["exit_code"] == 7, "{result}");
        let what = error["error"].as_str().unwrap_or_default();
        ensure!(
            what.contains("cannot copy none out") && what.ends_with("the command ended with 7"),
            "{error}"
        );
        ensure!(fs::read(at("kept"))? == b"1\n");

        // What cannot be copied in keeps the command from running.
        let output = run(home.path(), server, &["--copy-in", "none:/x", "--", "sh", "-c", "echo ran"])?;
        ensure!(output.status.code() == Some(125) && output.stdout.is_empty(), "{server:?}: {output:?}");
        ensure!(text(&output.stderr).contains("cannot copy none into the sandbox"), "{output:?}");
    }
    host.finish().await?;
    leaks.check().await
}

/// What bash would offer for the last of these words, by the script that we print.
fn completed(home: &Path, server: &str, words: &[&str]) -> Result<Vec<String>> {
    let program = binary()?;
    let script = r#"
        source <("$PROGRAM" completion bash)
        COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMP_LINE="$*" COMP_TYPE=9
        _clap_complete_stacyvm stacyvm "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
        printf '%s\n' "${COMPREPLY[@]}"
    "#;
    let mut command = Command::new("bash");
    command.args(["--norc", "--noprofile", "-c", script, "bash", "stacyvm"]).args(words);
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("HOME", home);
    command.env("PROGRAM", program).env("STACYVM_DATA_DIR", home.join("data")).env("STACYVM_SERVER", server);
    let output = command.stdin(Stdio::null()).output()?;
    ensure!(output.status.success() && output.stderr.is_empty(), "{words:?}: {output:?}");
    Ok(text(&output.stdout).lines().filter(|line| !line.starts_with('-')).map(str::to_owned).collect())
}

#[tokio::test]
async fn bash_completes_what_the_server_has() -> Result<()> {
    let host = Host::start().await?;
    let sandbox = host.spawn().await?;
    let process = sandbox.start("sleep 600", false).await?;
    let home = tempfile::tempdir()?;
    let url = host.server.base_url();
    let ask = |words: &[&str]| completed(home.path(), &url, words);
    let id = sandbox.id.as_str();
    for command in ["kill", "exec", "logs", "pause", "resume", "ps", "attach", "signal", "stats"] {
        ensure!(ask(&[command, "sb-"])? == [id], "{command}: {:?}", ask(&[command, "sb-"])?);
    }
    ensure!(ask(&["kill", "sb-0000"])?.iter().all(|word| word.is_empty()));
    ensure!(ask(&["attach", id, "p-"])? == [process.as_str()]);
    ensure!(ask(&["signal", id, &process, "KI"])? == ["KILL"]);
    ensure!(ask(&["spawn", "--image", "ho"])? == ["host"]);
    ensure!(ask(&["events", "--type", "exec.st"])? == ["exec.started"]);
    ensure!(ask(&["att"])? == ["attach"]);
    // A server that is named on the line, and is not there: nothing is offered, nothing is said.
    ensure!(ask(&["--server", "http://127.0.0.1:9", "kill", "sb-"])?.iter().all(|word| word.is_empty()));
    ensure!(!home.path().join("data").exists(), "nothing is made by asking");
    host.finish().await
}
