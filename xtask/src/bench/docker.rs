//! Containers: our server in front of a Docker Engine, beside what that engine and its command do by themselves.

use super::{
    engine::Engine,
    samples::{Comparison, Goal, Samples},
    scenarios::{BLOCK, block, block_of, compare, ms, settle},
    server::Server,
};
use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::{io::Read, path::PathBuf, process::Stdio, time::Instant};

/// What isolates, in the order of the report.
const RUNTIMES: [&str; 2] = ["runc", "runsc"];
/// An image that the daemon has.
const IMAGE: &str = "alpine:latest";

/// A scenario, for one runtime.
#[derive(Clone, Copy)]
enum What {
    Exec,
    Create,
}

/// Warm exec in a container that is there.
pub(super) async fn exec(binary: PathBuf, samples: usize) -> Result<Vec<Comparison>> {
    measure(What::Exec, binary, samples).await
}

/// Create → first output.
pub(super) async fn create(binary: PathBuf, samples: usize) -> Result<Vec<Comparison>> {
    measure(What::Create, binary, samples).await
}

async fn measure(what: What, binary: PathBuf, samples: usize) -> Result<Vec<Comparison>> {
    let engine = match Engine::find().await {
        Ok(engine) => engine,
        Err(why) => {
            let why = format!("{why:#}");
            return Ok(RUNTIMES.iter().map(|runtime| what.result(runtime, Vec::new(), Some(&why))).collect());
        }
    };
    let server = Server::start_with(
        &binary,
        &[
            ("STACYVM_PROVIDERS_DEFAULT", "docker"),
            ("STACYVM_PROVIDERS_DOCKER_SOCKET", engine.address()),
            ("STACYVM_PROVIDERS_DOCKER_NETWORK_MODE", "none"),
            ("STACYVM_PROVIDERS_DOCKER_ALLOWED_RUNTIMES", "runsc"),
        ],
    )
    .await?;
    let installation = std::fs::read_to_string(server.0.data_dir().join("installation"))?;
    let mut report = Vec::new();
    for runtime in RUNTIMES {
        if !engine.has(runtime) {
            let why = format!("the Docker Engine has no runtime {runtime}");
            report.push(Ok(what.result(runtime, Vec::new(), Some(&why))));
            continue;
        }
        let sides = match what {
            What::Exec => execs(&server, &engine, runtime, samples).await,
            What::Create => creates(&server, &engine, runtime, samples).await,
        };
        report.push(sides.map(|sides| what.result(runtime, sides, None)));
    }
    drop(server);
    // Also what a scenario that failed has left.
    engine.clear(installation.trim()).await.context("cleaning up")?;
    report.into_iter().collect()
}

impl What {
    fn result(self, runtime: &str, sides: Vec<Samples>, why_not: Option<&str>) -> Comparison {
        let (name, goal) = match self {
            Self::Exec => ("docker: warm exec", Goal::new("Engine API exec", 25.0)),
            Self::Create => ("docker: create → first output", Goal::new("docker run", 1.0)),
        };
        let mut comparison = compare(&format!("{name}, {runtime}"), "ms", false, sides);
        comparison.not_run.extend(why_not.map(str::to_owned));
        // What hardens is measured beside the others, without a goal of its own.
        Comparison { goal: (runtime == RUNTIMES[0]).then_some(goal), ..comparison }
    }
}

/// Both sides run in the same container.
async fn execs(server: &Server, engine: &Engine, runtime: &str, samples: usize) -> Result<Vec<Samples>> {
    let (mut ours, mut api) = (Samples::new("stacyvm docker (API)"), Samples::new("Engine API exec"));
    let mut cli = Samples::new("docker exec");
    let id = create_one(server, runtime).await?;
    for _ in 0..samples.div_ceil(BLOCK) {
        block(&mut ours, async || server.exec(&id, &["/bin/true"]).await.map(drop)).await?;
        block(&mut api, async || engine.exec(&id, &["/bin/true"]).await).await?;
        block_of(&mut cli, || engine.cli(&["exec", &id, "/bin/true"])).await?;
    }
    server.destroy(&id).await?;
    Ok(vec![ours, api, cli])
}

/// Pairs, each side first in every other one; what removes is not timed. The first pair is not counted: it fills the
/// agent's volume.
async fn creates(server: &Server, engine: &Engine, runtime: &str, samples: usize) -> Result<Vec<Samples>> {
    let (mut ours, mut theirs) = (Samples::new("stacyvm docker (API)"), Samples::new("docker run"));
    for round in 0..=samples {
        if round % 2 == 0 {
            create_and_destroy(server, engine, runtime, &mut ours).await?;
        }
        settle().await;
        docker_run(engine, runtime, &mut theirs)?;
        if round % 2 == 1 {
            create_and_destroy(server, engine, runtime, &mut ours).await?;
        }
        if round == 0 {
            ours.values.clear();
            theirs.values.clear();
        }
    }
    Ok(vec![ours, theirs])
}

async fn create_and_destroy(
    server: &Server,
    engine: &Engine,
    runtime: &str,
    into: &mut Samples,
) -> Result<()> {
    settle().await;
    let start = Instant::now();
    let id = create_one(server, runtime).await?;
    ensure!(server.exec(&id, &["echo", "ok"]).await? == "ok\n");
    into.values.push(ms(start));
    server.destroy(&id).await?;
    engine.see_gone(&id).await
}

/// Time to the first byte of output. The command returns when the container is removed.
fn docker_run(engine: &Engine, runtime: &str, into: &mut Samples) -> Result<()> {
    let limits = ["--network", "none", "-m", "1g", "--cpus", "1", "--runtime", runtime];
    let arguments = [&["run", "--rm"], &limits[..], &[IMAGE, "echo", "ok"]].concat();
    let Some(mut docker) = engine.cli(&arguments) else { return Ok(()) };
    let start = Instant::now();
    let mut child = docker.stdout(Stdio::piped()).spawn()?;
    let mut out = child.stdout.take().context("no pipe")?;
    let read = out.read_exact(&mut [0]);
    into.values.push(ms(start));
    let status = child.wait()?;
    ensure!(status.success() && read.is_ok(), "docker {arguments:?} failed");
    Ok(())
}

/// With the default limits, which are those of [`docker_run`].
async fn create_one(server: &Server, runtime: &str) -> Result<String> {
    server.create_from(&json!({"image": IMAGE, "runtime": runtime, "ttl": "30m"})).await
}
