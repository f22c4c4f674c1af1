//! The command line as people and scripts use it.

use anyhow::{Context, Result, ensure};
use stacyvm_e2e::Host;
use stacyvm_testkit::{LeakCheck, binary};
use std::{
    io::Write,
    path::Path,
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

/// `stacyvm` with an installation of its own and no server.
fn stacyvm(home: &Path) -> Result<Command> {
    let mut command = Command::new(binary()?);
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("HOME", home);
    command.env("STACYVM_DATA_DIR", home.join("data")).stdin(Stdio::null());
    Ok(command)
}

fn run(home: &Path, arguments: &[&str]) -> Result<Output> {
    Ok(stacyvm(home)?.arg("run").args(arguments).output()?)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[tokio::test]
async fn run_passes_output_and_exit_codes_through() -> Result<()> {
    let leaks = LeakCheck::before();
    let home = tempfile::tempdir()?;
    let home = home.path();
    let output = run(home, &["--image", "host", "--", "python3", "-c", "print(40+2)"])?;
    ensure!(output.status.success() && output.stdout == b"42\n" && output.stderr.is_empty(), "{output:?}");
    for (command, code) in [("exit 7", 7), ("kill -9 $$", 137), ("true", 0), ("exit 255", 255)] {
        let output = run(home, &["--", "sh", "-c", command])?;
        ensure!(output.status.code() == Some(code), "{command}: {output:?}");
    }
    ensure!(run(home, &["--", "no-such-command"])?.status.code() == Some(127));
    ensure!(run(home, &["--", "/etc/passwd"])?.status.code() == Some(126));
    let output = run(home, &["--timeout", "300ms", "--", "sh", "-c", "echo early; sleep 60"])?;
    ensure!(output.status.code() == Some(124) && output.stdout == b"early\n", "{output:?}");
    let output = run(home, &["--image", "no-such-image:1", "--", "true"])?;
    ensure!(
        output.status.code() == Some(125) && text(&output.stderr).contains("no-such-image"),
        "{output:?}"
    );
    let output =
        run(home, &["--env", "WHO=me", "--workdir", "/tmp", "--", "sh", "-c", "echo $WHO $PWD >&2"])?;
    ensure!(output.stderr == b"me /tmp\n" && output.stdout.is_empty(), "{output:?}");
    leaks.check().await
}

#[tokio::test]
async fn run_moves_every_byte_through_stdin_and_stdout() -> Result<()> {
    let leaks = LeakCheck::before();
    let home = tempfile::tempdir()?;
    let all: Vec<u8> = (0..=255).cycle().take(1 << 20).collect();
    let mut child = stacyvm(home.path())?
        .args(["run", "--", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut stdin = child.stdin.take().context("stdin")?;
    let sent = all.clone();
    let writer = std::thread::spawn(move || stdin.write_all(&sent));
    let output = child.wait_with_output()?;
    ensure!(writer.join().is_ok_and(|result| result.is_ok()));
    ensure!(output.status.success() && output.stdout == all, "{} bytes came back", output.stdout.len());
    leaks.check().await
}

#[tokio::test]
async fn run_killed_with_9_takes_its_sandbox_along() -> Result<()> {
    let leaks = LeakCheck::before();
    let home = tempfile::tempdir()?;
    let mut child = stacyvm(home.path())?
        .args(["run", "--", "sh", "-c", "echo up; (setsid sleep 600 &) ; sleep 600"])
        .stdout(Stdio::piped())
        .spawn()?;
    let mut first = [0; 3];
    std::io::Read::read_exact(child.stdout.as_mut().context("stdout")?, &mut first)?;
    child.kill()?;
    child.wait()?;
    leaks.check().await
}

#[tokio::test]
async fn run_side_by_side() -> Result<()> {
    let leaks = LeakCheck::before();
    let home = tempfile::tempdir()?;
    let children: Vec<_> = (0..8)
        .map(|n| {
            let script = format!("echo {n}; sleep 0.2; echo {n}");
            Ok((
                n,
                stacyvm(home.path())?
                    .args(["run", "--", "sh", "-c", &script])
                    .stdout(Stdio::piped())
                    .spawn()?,
            ))
        })
        .collect::<Result<_>>()?;
    for (n, child) in children {
        let output = child.wait_with_output()?;
        ensure!(text(&output.stdout) == format!("{n}\n{n}\n"), "{output:?}");
    }
    leaks.check().await
}

#[tokio::test]
async fn the_commands_of_a_session() -> Result<()> {
    let host = Host::start().await?;
    let home = tempfile::tempdir()?;
    let cli = |arguments: &[&str]| -> Result<Output> {
        Ok(stacyvm(home.path())?.args(["--server", &host.server.base_url()]).args(arguments).output()?)
    };
    ensure!(text(&cli(&["list"])?.stdout).contains("No active sandboxes"));
    let spawned = cli(&["spawn", "--image", "host", "--ttl", "5m"])?;
    let line = text(&spawned.stdout);
    let id = line.split_whitespace().nth(1).context("an id")?.to_owned();
    ensure!(line == format!("Sandbox {id} spawned (provider: native, image: host)\n"), "{line}");
    let table = text(&cli(&["list"])?.stdout);
    ensure!(table.starts_with("ID") && table.contains(&id) && table.contains("running"), "{table}");
    let json: serde_json::Value = serde_json::from_slice(&cli(&["list", "--json"])?.stdout)?;
    ensure!(json[0]["id"] == id.as_str(), "{json}");

    let all: Vec<u8> = (0..=255).collect();
    std::fs::write(home.path().join("all"), &all)?;
    let inside = format!("{id}:/workspace/all");
    ensure!(cli(&["cp", &home.path().join("all").display().to_string(), &inside])?.status.success());
    ensure!(cli(&["exec", &id, "--", "cat", "all"])?.stdout == all);
    let back = home.path().join("back");
    ensure!(cli(&["cp", &inside, &back.display().to_string()])?.status.success());
    ensure!(std::fs::read(back)? == all);

    let output = cli(&["exec", &id, "--", "sh", "-c", "echo out; echo err >&2; exit 9"])?;
    ensure!(
        output.status.code() == Some(9) && output.stdout == b"out\n" && output.stderr == b"err\n",
        "{output:?}"
    );
    ensure!(text(&cli(&["logs", &id])?.stdout).contains("out\n"));
    ensure!(cli(&["logs", &id, "--console"])?.status.success());
    ensure!(cli(&["pause", &id])?.stdout == format!("Sandbox {id} paused\n").as_bytes());
    let refused = cli(&["exec", &id, "--", "true"])?;
    ensure!(!refused.status.success() && text(&refused.stderr).contains("resume it"), "{refused:?}");
    let resumed: serde_json::Value = serde_json::from_slice(&cli(&["resume", &id, "--json"])?.stdout)?;
    ensure!(resumed["state"] == "running", "{resumed}");
    ensure!(cli(&["exec", &id, "--", "true"])?.status.success());
    ensure!(cli(&["kill", &id])?.stdout == format!("Sandbox {id} destroyed\n").as_bytes());
    ensure!(cli(&["exec", &id, "--", "true"])?.status.code() == Some(125));
    ensure!(!cli(&["kill", &id])?.status.success());
    host.finish().await
}

#[tokio::test]
async fn a_gibibyte_goes_in_and_comes_back_in_bounded_memory() -> Result<()> {
    const SIZE: usize = 1 << 30;
    let host = Host::start().await?;
    let sandbox = host.spawn().await?;
    let home = tempfile::tempdir()?;
    let (source, back) = (home.path().join("source"), home.path().join("back"));
    {
        let mut file = std::io::BufWriter::new(std::fs::File::create(&source)?);
        // A generator that repeats nothing within the file: an exchanged or lost block would show.
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        for _ in 0..SIZE / 8 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            file.write_all(&state.to_le_bytes())?;
        }
    }
    let before = host.server.resident_bytes()?;
    let mut most = before;
    for (from, to) in [
        (source.display().to_string(), format!("{}:/workspace/big", sandbox.id)),
        (format!("{}:/workspace/big", sandbox.id), back.display().to_string()),
    ] {
        let mut child =
            stacyvm(home.path())?.args(["--server", &host.server.base_url(), "cp", &from, &to]).spawn()?;
        let deadline = Instant::now() + Duration::from_secs(120);
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            ensure!(Instant::now() < deadline, "cp takes too long");
            most = most.max(host.server.resident_bytes()?);
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        ensure!(status.success(), "cp {from} {to}: {status}");
    }
    ensure!(Command::new("cmp").arg(&source).arg(&back).status()?.success(), "the file changed on the way");
    eprintln!("the server grew by {} MiB", (most - before) >> 20);
    ensure!(most - before < 64 << 20, "the server grew by {} MiB", (most - before) >> 20);
    host.finish().await
}
