//! What is measured.

use super::{
    docker, images, rivals,
    samples::{Comparison, Goal, Samples},
    server::Server,
};
use anyhow::{Context, Result, ensure};
use futures::{StreamExt, future::LocalBoxFuture, stream};
use std::{
    path::PathBuf,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// One scenario.
pub(super) struct Scenario {
    /// Name for `--only`.
    pub(super) name: &'static str,
    /// Takes the binary and the number of samples.
    pub(super) run: fn(PathBuf, usize) -> LocalBoxFuture<'static, Result<Vec<Comparison>>>,
}

/// All of them, in the order of the report.
pub(super) const ALL: &[Scenario] = &[
    Scenario { name: "create", run: |binary, n| Box::pin(create(binary, n)) },
    Scenario { name: "run", run: |binary, n| Box::pin(run_command(binary, n)) },
    Scenario { name: "exec", run: |binary, n| Box::pin(exec(binary, n)) },
    Scenario { name: "files", run: |binary, n| Box::pin(files(binary, n)) },
    Scenario { name: "stream", run: |binary, n| Box::pin(stream_output(binary, n)) },
    Scenario { name: "burst", run: |binary, _| Box::pin(burst(binary)) },
    Scenario { name: "idle", run: |binary, _| Box::pin(idle(binary)) },
    Scenario { name: "recovery", run: |binary, _| Box::pin(recovery(binary)) },
    Scenario { name: "unpack", run: |binary, n| Box::pin(images::unpack(binary, n)) },
    Scenario { name: "pull", run: |binary, n| Box::pin(images::pull(binary, n)) },
    Scenario { name: "docker-exec", run: |binary, n| Box::pin(docker::exec(binary, n)) },
    Scenario { name: "docker-create", run: |binary, n| Box::pin(docker::create(binary, n)) },
];

const BULK: usize = 256 << 20;

/// Milliseconds since then.
pub(super) fn ms(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e3
}

/// A comparison of the sides that have samples.
pub(super) fn compare(
    scenario: &str,
    unit: &'static str,
    more_is_better: bool,
    sides: Vec<Samples>,
) -> Comparison {
    let (sides, empty): (Vec<_>, Vec<_>) = sides.into_iter().partition(|side| !side.values.is_empty());
    let not_run = empty.into_iter().map(|side| format!("{}: not on this host", side.side)).collect();
    Comparison { scenario: scenario.to_owned(), unit, more_is_better, sides, not_run, goal: None }
}

/// Lets the host come to rest before a sample, so that no side pays for what the one before it left to be done.
pub(super) async fn settle() {
    tokio::time::sleep(Duration::from_millis(100)).await;
}

/// Samples of one side in a row, where what is measured is warm: as many as one side takes before it is the other's turn.
pub(super) const BLOCK: usize = 10;

/// A block of one side: the host comes to rest, one round brings everything back into its caches, the rest counts.
pub(super) async fn block(into: &mut Samples, mut once: impl AsyncFnMut() -> Result<()>) -> Result<()> {
    settle().await;
    once().await?;
    for _ in 0..BLOCK {
        let start = Instant::now();
        once().await?;
        into.values.push(ms(start));
    }
    Ok(())
}

/// A block of a rival's command, if it is here.
pub(super) async fn block_of(into: &mut Samples, command: impl Fn() -> Option<Command>) -> Result<()> {
    if command().is_none() {
        return Ok(());
    }
    block(into, async || timed(command(), &mut Samples::new(""))).await
}

/// Time of a rival's command from start to end, if it is here.
pub(super) fn timed(command: Option<Command>, into: &mut Samples) -> Result<()> {
    if let Some(mut command) = command {
        let start = Instant::now();
        let output = command.output()?;
        into.values.push(ms(start));
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{command:?} failed: {error}");
    }
    Ok(())
}

/// Once with everything on that a default sandbox has, once without limits: what `bwrap` does.
async fn create(binary: PathBuf, samples: usize) -> Result<Vec<Comparison>> {
    let (everything, destroy) = create_on(&Server::start(&binary).await?, samples).await?;
    let none = ["MEMORY_MB", "VCPUS", "PIDS"].map(|limit| format!("STACYVM_DEFAULTS_{limit}"));
    let mut settings: Vec<_> = none.iter().map(|name| (&**name, "0")).collect();
    settings.push(("STACYVM_PROVIDERS_DEFAULT", "native"));
    let (bare, _) = create_on(&Server::start_with(&binary, &settings).await?, samples).await?;
    let goal = Some(Goal::new(BWRAP, 1.0));
    Ok(vec![
        compare("create → first output, all limits", "ms", false, everything),
        Comparison { goal, ..compare("create → first output, no limits", "ms", false, bare) },
        compare("destroy", "ms", false, vec![destroy]),
    ])
}

const BWRAP: &str = "bwrap --unshare-all";

async fn create_on(server: &Server, samples: usize) -> Result<(Vec<Samples>, Samples)> {
    let (mut ours, mut bwrap) = (Samples::new("stacyvm native (API)"), Samples::new(BWRAP));
    let mut destroy = Samples::new("stacyvm native (API)");
    for _ in 0..samples {
        settle().await;
        let start = Instant::now();
        let id = server.create().await?;
        ensure!(server.exec(&id, &["/bin/echo", "hi"]).await? == "hi\n");
        ours.values.push(ms(start));
        let start = Instant::now();
        server.destroy(&id).await?;
        destroy.values.push(ms(start));
        settle().await;
        timed(rivals::bwrap(&["/bin/echo", "hi"]), &mut bwrap)?;
    }
    Ok((vec![ours, bwrap], destroy))
}

async fn run_command(binary: PathBuf, samples: usize) -> Result<Vec<Comparison>> {
    let data = tempfile::Builder::new().prefix("stacyvm-bench-").tempdir()?;
    let (mut ours, mut bwrap) = (Samples::new("stacyvm run"), Samples::new("bwrap --unshare-all"));
    for _ in 0..samples {
        let mut run = Command::new(&binary);
        run.args(["run", "--", "/bin/echo", "hi"])
            .env("STACYVM_DATA_DIR", data.path())
            .env_remove("STACYVM_SERVER");
        run.stdin(Stdio::null());
        settle().await;
        timed(Some(run), &mut ours)?;
        settle().await;
        timed(rivals::bwrap(&["/bin/echo", "hi"]), &mut bwrap)?;
    }
    Ok(vec![compare("one command, start to finish", "ms", false, vec![ours, bwrap])])
}

async fn exec(binary: PathBuf, samples: usize) -> Result<Vec<Comparison>> {
    let server = Server::start(&binary).await?;
    let id = server.create().await?;
    let (mut ours, mut bwrap) = (Samples::new("stacyvm native (API)"), Samples::new("bwrap --unshare-all"));
    let mut bare = Samples::new("bare host (floor)");
    for _ in 0..(samples * 5).div_ceil(BLOCK) {
        block(&mut ours, async || server.exec(&id, &["/bin/true"]).await.map(drop)).await?;
        block_of(&mut bwrap, || rivals::bwrap(&["/bin/true"])).await?;
        block_of(&mut bare, || Some(rivals::bare(&["/bin/true"]))).await?;
    }
    server.destroy(&id).await?;
    Ok(vec![compare("warm exec", "ms", false, vec![ours, bwrap, bare])])
}

async fn files(binary: PathBuf, samples: usize) -> Result<Vec<Comparison>> {
    let server = Server::start(&binary).await?;
    let id = server.create().await?;
    let scratch = tempfile::Builder::new().prefix("stacyvm-bench-").tempdir()?;
    let (from, to) = (scratch.path().join("from"), scratch.path().join("to"));
    std::fs::write(&from, vec![0x5a; BULK])?;
    let address = server.0.url(&format!("/sandboxes/{id}/files?path=/workspace/bulk"));
    let (mut up, mut down) = (Samples::new("stacyvm native (API)"), Samples::new("stacyvm native (API)"));
    let (mut cp_up, mut cp_down) = (Samples::new("cp on the host"), Samples::new("cp on the host"));
    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    let rate = |start: Instant| (BULK >> 20) as f64 / start.elapsed().as_secs_f64();
    for _ in 0..samples.div_ceil(8) {
        let content = stream::repeat(bytes::Bytes::from_static(&[0x5a; 64 << 10]))
            .take(BULK >> 16)
            .map(std::io::Result::Ok);
        let start = Instant::now();
        let reply = server.0.http().put(&address).body(reqwest::Body::wrap_stream(content)).send().await?;
        ensure!(reply.status().is_success(), "upload: {}", reply.text().await?);
        up.values.push(rate(start));
        let start = Instant::now();
        ensure!(Command::new("cp").args([&from, &to]).status()?.success());
        cp_up.values.push(rate(start));
        let start = Instant::now();
        let mut reply = server.0.http().get(&address).send().await?;
        let mut total = 0;
        while let Some(chunk) = reply.chunk().await? {
            total += chunk.len();
        }
        ensure!(total == BULK, "download of {total} bytes");
        down.values.push(rate(start));
        let start = Instant::now();
        ensure!(Command::new("cp").args([&to, &from]).status()?.success());
        cp_down.values.push(rate(start));
    }
    server.destroy(&id).await?;
    Ok(vec![
        compare("upload 256 MiB", "MiB/s", true, vec![up, cp_up]),
        compare("download 256 MiB", "MiB/s", true, vec![down, cp_down]),
    ])
}

async fn stream_output(binary: PathBuf, samples: usize) -> Result<Vec<Comparison>> {
    let server = Server::start(&binary).await?;
    let id = server.create().await?;
    let command = format!("head -c {BULK} /dev/zero | tr '\\0' x");
    let (mut ours, mut pipe) = (Samples::new("stacyvm native (NDJSON)"), Samples::new("bwrap, a pipe"));
    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    let rate = |start: Instant| (BULK >> 20) as f64 / start.elapsed().as_secs_f64();
    for _ in 0..samples.div_ceil(8) {
        let body = serde_json::json!({"command": command, "stream": true});
        let start = Instant::now();
        let mut reply =
            server.0.http().post(server.0.url(&format!("/sandboxes/{id}/exec"))).json(&body).send().await?;
        let mut marks = 0;
        while let Some(chunk) = reply.chunk().await? {
            // 'x' stands in no key of a record.
            marks += chunk.iter().filter(|byte| **byte == b'x').count();
        }
        ensure!(marks == BULK, "{marks} of {BULK} bytes arrived");
        ours.values.push(rate(start));
        if let Some(mut bwrap) = rivals::bwrap(&["/bin/sh", "-c", &command]) {
            let start = Instant::now();
            let mut child = bwrap.spawn()?;
            let mut out = child.stdout.take().ok_or_else(|| anyhow::anyhow!("no pipe"))?;
            let total = std::io::copy(&mut out, &mut std::io::sink())?;
            ensure!(child.wait()?.success() && total == BULK as u64);
            pipe.values.push(rate(start));
        }
    }
    server.destroy(&id).await?;
    Ok(vec![compare("exec output 256 MiB", "MiB/s", true, vec![ours, pipe])])
}

async fn burst(binary: PathBuf) -> Result<Vec<Comparison>> {
    let server = Server::start(&binary).await?;
    let mut all = Samples::new("stacyvm native (API)");
    let start = Instant::now();
    let made: Vec<Result<String>> = stream::iter(0..100)
        .map(|_| async {
            let id = server.create().await?;
            ensure!(server.exec(&id, &["/bin/echo", "hi"]).await? == "hi\n");
            Ok(id)
        })
        .buffer_unordered(100)
        .collect()
        .await;
    all.values.push(ms(start));
    for id in made {
        server.destroy(&id?).await?;
    }
    Ok(vec![compare("100 at once, all answered", "ms", false, vec![all])])
}

/// What a sandbox takes of the host's memory when nothing has happened in it for a while.
async fn idle(binary: PathBuf) -> Result<Vec<Comparison>> {
    const SANDBOXES: u32 = 200;
    let server = Server::start(&binary).await?;
    // What the first one brings along is not each one's.
    let first = server.create().await?;
    server.exec(&first, &["/bin/true"]).await?;
    tokio::time::sleep(IDLE).await;
    let before = available()?;
    let mut ids = vec![first];
    for _ in 0..SANDBOXES {
        let id = server.create().await?;
        server.exec(&id, &["/bin/true"]).await?;
        ids.push(id);
    }
    tokio::time::sleep(IDLE).await;
    let mut each = Samples::new("stacyvm native (API)");
    each.values.push((before - available()?) / f64::from(SANDBOXES));
    for id in ids {
        server.destroy(&id).await?;
    }
    let comparison = compare("idle memory of each of 200", "MiB", false, vec![each]);
    Ok(vec![Comparison { goal: Some(Goal::AtMost(1.0)), ..comparison }])
}

/// Until sandboxes and the kernel behind them have come to rest.
const IDLE: Duration = Duration::from_secs(60);

/// Memory that this host could give to somebody, in MiB.
fn available() -> Result<f64> {
    let text = std::fs::read_to_string("/proc/meminfo")?;
    let kib = text.lines().find_map(|line| line.strip_prefix("MemAvailable:")?.trim().strip_suffix(" kB"));
    Ok(kib.context("no MemAvailable")?.parse::<f64>()? / 1024.0)
}

async fn recovery(binary: PathBuf) -> Result<Vec<Comparison>> {
    let mut server = Server::start(&binary).await?;
    let mut ids = Vec::new();
    for _ in 0..50 {
        let id = server.create().await?;
        let counter = "i=0; while :; do echo $i; i=$((i+1)); sleep 0.01; done";
        let body = serde_json::json!({"command": counter});
        server.0.post(&format!("/sandboxes/{id}/processes"), &body).await?;
        ids.push(id);
    }
    let (mut seconds, mut memory) =
        (Samples::new("stacyvm, 50 busy sandboxes"), Samples::new("stacyvm, 50 busy sandboxes"));
    for _ in 0..5 {
        let start = Instant::now();
        server.0.kill_9().await?;
        server.0.restart().await?;
        loop {
            let running = server
                .0
                .get("/sandboxes")
                .await?
                .as_array()
                .map_or(0, |all| all.iter().filter(|s| s["state"] == "running").count());
            if running == ids.len() {
                break;
            }
            ensure!(start.elapsed().as_secs() < 60, "only {running} came back");
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
        seconds.values.push(start.elapsed().as_secs_f64());
        #[expect(clippy::cast_precision_loss, reason = "a size for people")]
        memory.values.push(server.0.resident_bytes()? as f64 / f64::from(1 << 20));
    }
    for id in ids {
        server.destroy(&id).await?;
    }
    Ok(vec![
        compare("kill -9 → all running again", "s", false, vec![seconds]),
        compare("server memory after recovery", "MiB", false, vec![memory]),
    ])
}
