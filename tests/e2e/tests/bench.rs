//! `stacyvm bench` measures, says what it cannot, and leaves nothing. What it measures is for people to judge.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use stacyvm_testkit::{LeakCheck, binary};
use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
};

/// `stacyvm bench` on a host that has nobody else: no tool on its path, no engine at its address.
fn bench(home: &Path, arguments: &[&str]) -> Result<Command> {
    let mut command = Command::new(binary()?);
    command.arg("bench").args(arguments).env_clear();
    command.env("PATH", home.join("bin")).env("HOME", home).env("TMPDIR", home);
    command.env("DOCKER_HOST", format!("unix://{}", home.join("none.sock").display()));
    command.current_dir(home).stdin(Stdio::null());
    Ok(command)
}

/// Nothing but what the test put there.
fn nothing_left(home: &Path) -> Result<()> {
    let names: Vec<_> = fs::read_dir(home)?.map(|entry| Ok(entry?.file_name())).collect::<Result<_>>()?;
    ensure!(names.is_empty(), "left: {names:?}");
    Ok(())
}

#[tokio::test]
async fn what_is_here_is_measured_and_what_is_not_is_named() -> Result<()> {
    let leaks = LeakCheck::before();
    let home = tempfile::tempdir()?;
    let output = bench(home.path(), &["--only", "exec", "--samples", "2", "--json"])?.output()?;
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success() && error.contains("measuring exec (native)"), "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout)?;
    for (name, kind) in
        [("cpu", "string"), ("kernel", "string"), ("filesystem", "string"), ("cores", "number")]
    {
        let value = &report["host"][name];
        ensure!(if kind == "string" { value.is_string() } else { value.is_number() }, "{name}: {value}");
    }
    ensure!(report["samples"] == 2 && report["failed"] == false && report["host"]["docker"].is_null());
    let all = report["comparisons"].as_array().context("comparisons")?;
    ensure!(all.iter().all(|comparison| comparison["scenario"] == "exec"), "{report}");

    let native = all.iter().find(|comparison| comparison["provider"] == "native").context("native")?;
    let sides = native["sides"].as_array().context("sides")?;
    let names: Vec<_> = sides.iter().filter_map(|side| side["side"].as_str()).collect();
    ensure!(names == ["stacyvm", "the host itself"], "{names:?}");
    for side in sides {
        let values = side["values"].as_array().context("values")?;
        ensure!(values.len() == 10 && values.iter().all(|value| value.as_f64() > Some(0.0)), "{side}");
    }
    let missing: Vec<_> = native["not_run"].as_array().context("not_run")?.iter().collect();
    let names: Vec<_> = missing.iter().filter_map(|side| side["side"].as_str()).collect();
    ensure!(names == ["bwrap", "runc", "docker", "podman"], "{names:?}");
    ensure!(missing.iter().all(|side| side["why"] == "not on this host"), "{missing:?}");

    let docker: Vec<_> = all.iter().filter(|comparison| comparison["provider"] != "native").collect();
    ensure!(docker.len() == 2, "{report}");
    for comparison in docker {
        let why = comparison["not_run"][0]["why"].as_str().unwrap_or_default();
        ensure!(why.contains("no Docker Engine"), "{comparison}");
        ensure!(comparison["sides"].as_array().is_some_and(Vec::is_empty), "{comparison}");
    }
    nothing_left(home.path())?;
    leaks.check().await
}

#[tokio::test]
async fn interrupted_it_takes_everything_away() -> Result<()> {
    let leaks = LeakCheck::before();
    let home = tempfile::tempdir()?;
    let arguments = ["--only", "exec", "--provider", "native", "--samples", "10000"];
    let mut child = bench(home.path(), &arguments)?.stderr(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut said = BufReader::new(child.stderr.take().context("stderr")?).lines();
    let first = said.next().context("it said nothing")??;
    ensure!(first.contains("measuring exec"), "{first}");
    // Until there is a sandbox to take away.
    let sandbox = || {
        let homes = fs::read_dir(home.path()).into_iter().flatten().flatten();
        let mut places = homes.map(|entry| entry.path().join("data/sandboxes"));
        places.any(|place| fs::read_dir(place).is_ok_and(|mut sandboxes| sandboxes.next().is_some()))
    };
    while !sandbox() {
        ensure!(child.try_wait()?.is_none(), "it ended by itself");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::INT)?;
    let rest: Vec<_> = said.collect::<std::io::Result<_>>()?;
    let output = child.wait_with_output()?;
    ensure!(output.status.code() == Some(130), "{output:?} {rest:?}");
    ensure!(String::from_utf8_lossy(&output.stdout).contains("interrupted"), "{output:?}");
    nothing_left(home.path())?;
    leaks.check().await
}

#[tokio::test]
async fn of_a_server_that_is_there_only_what_makes_sense_is_measured() -> Result<()> {
    let host = stacyvm_e2e::Host::start().await?;
    let kept = host.spawn().await?;
    let home = tempfile::tempdir()?;
    let server = host.server.base_url();
    let mut reports = Vec::new();
    for only in ["exec", "recovery"] {
        let arguments =
            ["--server", &server, "--provider", "native", "--only", only, "--samples", "1", "--json"];
        let output = bench(home.path(), &arguments)?.output()?;
        ensure!(output.status.success(), "{output:?}");
        let report: Value = serde_json::from_slice(&output.stdout)?;
        reports.push(report["comparisons"][0].clone());
    }
    let names = |side: &Value| side["side"].as_str().map(str::to_owned);
    let sides: Vec<_> = reports[0]["sides"].as_array().context("sides")?.iter().filter_map(names).collect();
    ensure!(sides == ["stacyvm"], "{sides:?}");
    ensure!(reports[1]["not_run"][0]["why"] == "it needs a server of its own", "{}", reports[1]);
    let left = host.server.get("/sandboxes").await?;
    ensure!(left.as_array().is_some_and(|all| all.len() == 1 && all[0]["id"] == *kept.id), "{left}");
    nothing_left(home.path())?;
    host.finish().await
}
