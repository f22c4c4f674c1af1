//! A person at a terminal in a sandbox: everything feels as at one's own, and nothing is lost with a connection or a server.

use anyhow::{Context, Result, ensure};
use stacyvm_e2e::{Host, tmux::Tmux};
use stacyvm_testkit::binary;
use std::time::Duration;

/// The terminal; `None`, and a word of why, where there can be none.
fn terminal(host: &Host, cols: u16, rows: u16) -> Result<Option<(Tmux, String)>> {
    if let Some(why) = Tmux::missing() {
        println!("not run: {why}");
        return Ok(None);
    }
    let environment = [("STACYVM_SERVER", host.server.base_url()), ("NO_COLOR", "1".to_owned())];
    let environment: Vec<_> = environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let tmux = Tmux::open(cols, rows, &environment)?;
    Ok(Some((tmux, binary()?.display().to_string())))
}

/// The modes of the terminal as one word.
fn modes(tmux: &Tmux, tag: &str) -> Result<String> {
    tmux.enter(&format!("echo {tag}=$(stty -g)"))?;
    let begin = format!("{tag}=");
    let screen = tmux.until(tag, |screen| screen.lines().any(|line| line.starts_with(&begin)))?;
    let line = screen.lines().find_map(|line| line.trim_end().strip_prefix(&begin)).context("no modes")?;
    Ok(line.to_owned())
}

/// The one process that runs in a sandbox.
async fn process(host: &Host, sandbox: &str) -> Result<String> {
    let list = host.server.get(&format!("/sandboxes/{sandbox}/processes")).await?;
    let running = list.as_array().context("no list")?.iter().find(|process| process["state"] == "running");
    Ok(running.context("nothing runs")?["id"].as_str().context("no id")?.to_owned())
}

#[tokio::test]
async fn a_shell_survives_the_server_and_being_left() -> Result<()> {
    let mut host = Host::start().await?;
    let id = host.spawn().await?.id;
    let Some((tmux, stacyvm)) = terminal(&host, 100, 30)? else { return host.finish().await };
    let before = modes(&tmux, "before")?;

    tmux.enter(&format!("{stacyvm} exec {id} -it -- bash --norc --noprofile"))?;
    tmux.until("the shell", |screen| screen.contains("bash-"))?;
    tmux.prompt("in> ")?;
    tmux.enter("tty; stty size; echo I am $(id -un) at $TERM")?;
    tmux.line("30 100")?;
    tmux.line("I am sandbox at xterm-256color")?;

    tmux.enter("sleep 1000")?;
    tmux.until("sleep", |screen| screen.contains("sleep 1000"))?;
    tokio::time::sleep(Duration::from_millis(300)).await;
    tmux.press(&["C-c"])?;
    tmux.enter("echo interrupted: $?")?;
    tmux.line("interrupted: 130")?;

    tmux.resize(90, 25)?;
    tmux.enter("clear; stty size")?;
    tmux.line("25 90")?;

    // A program that takes the whole screen, and the server killed under it.
    tmux.enter("seq 1 500 > numbers; less numbers")?;
    tmux.until("the first page", |screen| screen.lines().next().is_some_and(|line| line.trim() == "1"))?;
    host.server.kill_9().await?;
    tmux.press(&["Space"])?;
    tokio::time::sleep(Duration::from_millis(300)).await;
    host.server.restart().await?;
    tmux.line("48")?;
    tmux.press(&["q"])?;
    tmux.enter("echo typed on after the server came back")?;
    tmux.line("typed on after the server came back")?;

    // Left, with another program in front; the server is replaced meanwhile.
    tmux.enter("cat")?;
    tmux.enter("said before")?;
    tmux.line("said before")?;
    tmux.press(&["C-]", "d"])?;
    tmux.until("the way back", |screen| screen.contains("detached") && screen.contains("stacyvm attach"))?;
    let after = modes(&tmux, "left")?;
    ensure!(after == before, "the terminal was left as {after}, and was {before}");
    let name = process(&host, &id).await?;
    host.server.stop_gracefully().await?;
    host.server.restart().await?;

    tmux.enter(&format!("clear; {stacyvm} attach {id} {name} --from now -i"))?;
    tokio::time::sleep(Duration::from_millis(300)).await;
    tmux.enter("said after")?;
    tmux.line("said after")?;
    tmux.press(&["C-d"])?;
    tmux.enter("exit 42")?;
    tmux.until("our own prompt", |screen| screen.trim_end().ends_with("host>"))?;
    tmux.enter("echo code: $?")?;
    tmux.line("code: 42")?;
    let after = modes(&tmux, "after")?;
    ensure!(after == before, "the terminal is given back as {after}, and was {before}");
    drop(tmux);
    host.finish().await
}

#[tokio::test]
async fn the_terminal_is_given_back_whatever_ends_the_command() -> Result<()> {
    let host = Host::start().await?;
    let id = host.spawn().await?.id;
    let Some((tmux, stacyvm)) = terminal(&host, 120, 30)? else { return host.finish().await };
    let before = modes(&tmux, "before")?;
    let ends: [(&str, &str, &str); 4] = [
        // Told to end; the command is told, too.
        ("term", "kill -TERM $(cat client)", "143"),
        // The sandbox is taken away.
        ("gone", "{stacyvm} kill {id}", "125"),
        // There was nothing to talk to from the start.
        ("none", "", "125"),
        ("missing", "", "127"),
    ];
    let directory = tempfile::tempdir()?;
    tmux.enter(&format!("cd {}", directory.path().display()))?;
    for (name, end, code) in ends {
        tmux.enter("clear")?;
        let command = match name {
            "none" => format!("{stacyvm} exec sb-ffffffffffffffff -it -- sh"),
            "missing" => {
                let other = host.spawn().await?.id;
                format!("{stacyvm} exec {other} -it -- no-such-program")
            }
            _ => format!("sh -c 'echo $$ > client; exec {stacyvm} exec {id} -it -- sleep 1000'"),
        };
        tmux.enter(&format!("{command}; echo {name} ended with $?"))?;
        if !end.is_empty() {
            // It has the terminal once the process runs.
            while process(&host, &id).await.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            let end = end.replace("{stacyvm}", &stacyvm).replace("{id}", &id);
            let url = host.server.base_url();
            let mut ending = std::process::Command::new("sh");
            ending.args(["-c", &end]).current_dir(directory.path()).env("STACYVM_SERVER", url);
            ensure!(ending.status()?.success(), "{end}");
        }
        tmux.line(&format!("{name} ended with {code}"))?;
        let after = modes(&tmux, name)?;
        ensure!(after == before, "after {name} the terminal is {after}, and was {before}");
    }
    drop(tmux);
    host.finish().await
}

#[tokio::test]
async fn a_run_has_a_terminal_of_its_own() -> Result<()> {
    let host = Host::start().await?;
    let Some((tmux, stacyvm)) = terminal(&host, 100, 30)? else { return host.finish().await };
    for server in [host.server.base_url(), String::new()] {
        let data = tempfile::tempdir()?;
        tmux.enter(&format!(
            "export STACYVM_SERVER={server} STACYVM_DATA_DIR={}; clear",
            data.path().display()
        ))?;
        tmux.enter(&format!(
            "{stacyvm} run -it -- sh -c 'stty size; read line; echo \"got $line\"; exit 5'"
        ))?;
        tmux.line("30 100")?;
        tmux.enter("typed")?;
        tmux.line("got typed")?;
        tmux.until("our own prompt", |screen| screen.trim_end().ends_with("host>"))?;
        tmux.enter("echo code: $?")?;
        tmux.line("code: 5")?;
    }
    tmux.enter(&format!("clear; echo x | {stacyvm} run -it -- cat; echo code: $?"))?;
    tmux.line("code: 125")?;
    ensure!(tmux.screen()?.contains("no terminal"), "{}", tmux.screen()?);
    drop(tmux);
    host.finish().await
}
