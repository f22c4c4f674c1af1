//! Making sandboxes, reaching them, and what the runtime says about them.

use crate::{
    check::{During, Verdict, checks, ensure, refused},
    context::Context,
    observe::{beats, eventually, host_processes, parent},
};
use futures::{StreamExt, future::join_all, stream};
use rustix::process::{Pid, Signal, kill_process};
use stacyvm_provider::{ErrorKind, RuntimeState};
use std::{collections::BTreeSet, time::Duration};

checks! {
    "lifecycle.health" "health answers at once and says that a sandbox could be created" [] 30 health;
    "lifecycle.create" "a created sandbox can be connected to and runs commands" [] 30 create;
    "lifecycle.create_idempotent" "create with a known id changes nothing and returns the same sandbox" [] 30 create_idempotent;
    "lifecycle.create_concurrent" "two creates of one id at once make one working sandbox" [] 30 create_concurrent;
    "lifecycle.create_parallel" "sandboxes created side by side are all there and apart" [] 45 create_parallel;
    "lifecycle.create_cancelled" "a create that is given up at any moment can be destroyed or done again" [] 45 create_cancelled;
    "lifecycle.missing_image" "an image that does not exist is refused and leaves nothing" [] 30 missing_image;
    "lifecycle.connect_unknown" "connect to an unknown id is NotFound" [] 30 connect_unknown;
    "lifecycle.connect_again" "a second connection sees what the first one started, and neither disturbs the other" [] 30 connect_again;
    "lifecycle.status" "status says running while it runs and NotFound before and after" [] 30 status;
    "lifecycle.list" "list names every sandbox there is, once, and none that is gone" [] 45 list;
    "lifecycle.ended_waits" "ended does not return while the sandbox runs and does once it is destroyed" [] 30 ended_waits;
    "lifecycle.agent_killed" "a sandbox whose agent is killed is reported as ended with a reason and can be destroyed" [HostProcesses] 45 agent_killed;
    "lifecycle.stats" "stats show processor time, memory and processes of a running sandbox" [Stats] 30 stats;
}

async fn health(cx: Context) -> Verdict {
    let health = cx.prompt("health", cx.provider.health()).await?;
    ensure!(health.healthy, "unhealthy: {}", health.problem.unwrap_or_default());
    ensure!(health.problem.is_none(), "healthy, yet with a problem: {:?}", health.problem);
    Ok(())
}

async fn create(cx: Context) -> Verdict {
    let sandbox = cx.sandbox().await?;
    sandbox.guest.ping().await.during("ping")?;
    let done = sandbox.probe_ok(&["echo", "hello", "world"]).await?;
    ensure!(done.text() == "hello world\n", "echo printed {:?}", done.text());
    Ok(())
}

async fn create_idempotent(cx: Context) -> Verdict {
    let (id, spec) = (cx.new_id()?, cx.spec());
    let first = cx.provider.create(&id, &spec).await.during("create")?;
    let sandbox = cx.enter(&id).await?;
    sandbox.write("/workspace/kept", b"kept").await?;
    let running = sandbox.start(&["sleep", "60000"]).await?;
    let second = cx.provider.create(&id, &spec).await.during("second create")?;
    ensure!(first == second, "create returned {first:?}, then {second:?}");
    let again = cx.provider.connect(&id).await.during("connect")?;
    let seen = again.process(&running.id).await.during("the process started before the second create")?;
    ensure!(seen.pid == running.pid && seen.outcome.is_none(), "the process became {seen:?}");
    ensure!(sandbox.read("/workspace/kept").await? == b"kept", "the file changed");
    sandbox.kill(&running.id).await?;
    Ok(())
}

async fn create_concurrent(cx: Context) -> Verdict {
    let (id, spec) = (cx.new_id()?, cx.spec());
    let (one, two) = futures::join!(cx.provider.create(&id, &spec), cx.provider.create(&id, &spec));
    ensure!(one.is_ok() || two.is_ok(), "neither create succeeded: {one:?}, {two:?}");
    cx.enter(&id).await?.probe_ok(&["exit", "0"]).await?;
    let listed = cx.provider.list().await.during("list")?;
    let times = listed.iter().filter(|entry| entry.id == id).count();
    ensure!(times == 1, "it is listed {times} times");
    cx.destroy(&id).await?;
    gone(&cx, &id).await
}

async fn create_parallel(cx: Context) -> Verdict {
    let made: Verdict<Vec<_>> = join_all((0..4).map(|_| cx.sandbox())).await.into_iter().collect();
    let made = made?;
    for (index, sandbox) in made.iter().enumerate() {
        sandbox.write("/workspace/mine", index.to_string().as_bytes()).await?;
    }
    for (index, sandbox) in made.iter().enumerate() {
        let done = sandbox.probe_ok(&["read", "mine"]).await?;
        ensure!(done.text() == index.to_string(), "sandbox {index} reads what sandbox {} wrote", done.text());
    }
    Ok(())
}

async fn create_cancelled(cx: Context) -> Verdict {
    let mut ids = Vec::new();
    for pause_us in [0, 300, 1_000, 2_000, 3_000, 5_000, 8_000, 20_000] {
        let (id, spec) = (cx.new_id()?, cx.spec());
        let create = cx.provider.create(&id, &spec);
        let _ = tokio::time::timeout(Duration::from_micros(pause_us), create).await;
        if pause_us % 2_000 == 1_000 {
            // As recovery may: finish what was begun.
            cx.provider.create(&id, &spec).await.during("create behind a cancelled one")?;
            cx.enter(&id).await?.probe_ok(&["exit", "0"]).await?;
        }
        cx.provider.destroy(&id).await.during("destroy")?;
        gone(&cx, &id).await.during(&format!("given up after {pause_us} µs and destroyed"))?;
        ids.push((pause_us, id));
    }
    // Given up as soon as begun: the runtime may not even have looked at it when the destroy comes.
    let hasty = stream::iter(0..64).map(|_| async {
        let (id, spec) = (cx.new_id()?, cx.spec());
        let _ = tokio::time::timeout(Duration::ZERO, cx.provider.create(&id, &spec)).await;
        cx.provider.destroy(&id).await.during("destroy")?;
        Ok((0, id))
    });
    let hasty: Vec<Verdict<_>> = hasty.buffer_unordered(8).collect().await;
    ids.extend(hasty.into_iter().collect::<Verdict<Vec<_>>>()?);
    // What was given up must not come back when the runtime gets round to it.
    tokio::time::sleep(cx.patient(Duration::from_secs(1))).await;
    for (pause_us, id) in ids {
        gone(&cx, &id)
            .await
            .during(&format!("given up after {pause_us} µs, destroyed, and one second later"))?;
        cx.destroy(&id).await?;
    }
    Ok(())
}

async fn missing_image(cx: Context) -> Verdict {
    let id = cx.new_id()?;
    let spec = stacyvm_provider::SandboxSpec { image: cx.options.missing_image.clone(), ..cx.spec() };
    let made = cx.provider.create(&id, &spec).await;
    refused("create from a missing image", made, &[ErrorKind::NotFound, ErrorKind::InvalidArgument])?;
    cx.destroy(&id).await?;
    gone(&cx, &id).await
}

async fn connect_unknown(cx: Context) -> Verdict {
    let id = cx.new_id()?;
    refused("connect", cx.provider.connect(&id).await, &[ErrorKind::NotFound])
}

async fn connect_again(cx: Context) -> Verdict {
    let sandbox = cx.sandbox().await?;
    let beating = sandbox.start(&["beat", "beat", "10"]).await?;
    let again = cx.enter(&sandbox.id).await?;
    let seen = again.guest.process(&beating.id).await.during("process through the second connection")?;
    ensure!(seen.pid == beating.pid, "the second connection sees another process");
    drop(sandbox);
    beats(&cx, &again, "/workspace/beat").await?;
    again.guest.ping().await.during("ping through the second connection")?;
    again.kill(&beating.id).await?;
    Ok(())
}

/// Demands that the provider knows nothing of the sandbox any more.
pub(super) async fn gone(cx: &Context, id: &stacyvm_provider::SandboxId) -> Verdict {
    refused("status of a destroyed sandbox", cx.provider.status(id).await, &[ErrorKind::NotFound])?;
    let kinds = [ErrorKind::NotFound, ErrorKind::Destroyed];
    refused("connect to a destroyed sandbox", cx.provider.connect(id).await, &kinds)?;
    if cx.options.host_processes {
        let left = host_processes(id.as_str());
        ensure!(left.is_empty(), "processes {left:?} of this host still name the destroyed sandbox");
    }
    Ok(())
}

async fn status(cx: Context) -> Verdict {
    let id = cx.new_id()?;
    refused("status of an unknown id", cx.provider.status(&id).await, &[ErrorKind::NotFound])?;
    cx.provider.create(&id, &cx.spec()).await.during("create")?;
    let state = cx.provider.status(&id).await.during("status")?;
    ensure!(state == RuntimeState::Running, "status says {state:?}");
    cx.destroy(&id).await?;
    refused("status of a destroyed sandbox", cx.provider.status(&id).await, &[ErrorKind::NotFound])
}

async fn list(cx: Context) -> Verdict {
    let mut ids = BTreeSet::new();
    for _ in 0..3 {
        let id = cx.new_id()?;
        cx.provider.create(&id, &cx.spec()).await.during("create")?;
        ids.insert(id);
    }
    let listed = cx.provider.list().await.during("list")?;
    let distinct: BTreeSet<_> = listed.iter().map(|entry| entry.id.clone()).collect();
    ensure!(distinct.len() == listed.len(), "an id is listed twice: {listed:?}");
    let missing: Vec<_> = ids.difference(&distinct).collect();
    ensure!(missing.is_empty(), "running and not listed: {missing:?}");
    for entry in listed.iter().filter(|entry| ids.contains(&entry.id)) {
        ensure!(entry.state == RuntimeState::Running, "listed as {:?}", entry.state);
        let image = entry.image.as_ref();
        ensure!(image.is_none_or(|image| *image == cx.options.image), "listed with image {image:?}");
    }
    for id in &ids {
        cx.destroy(id).await?;
        let listed = cx.provider.list().await.during("list")?;
        ensure!(listed.iter().all(|entry| entry.id != *id), "destroyed and still listed: {id}");
    }
    Ok(())
}

async fn ended_waits(cx: Context) -> Verdict {
    let sandbox = cx.sandbox().await?;
    let early = tokio::time::timeout(Duration::from_millis(300), cx.provider.ended(&sandbox.id)).await;
    ensure!(early.is_err(), "ended returned {early:?} while the sandbox runs");
    let (_, destroyed) = futures::join!(
        async {
            let ended = cx.prompt("ended", cx.provider.ended(&sandbox.id)).await;
            tracing::trace!(?ended, "ended");
        },
        cx.destroy(&sandbox.id)
    );
    destroyed?;
    cx.prompt("ended of a destroyed sandbox", cx.provider.ended(&sandbox.id)).await.map(drop)
}

async fn agent_killed(cx: Context) -> Verdict {
    let sandbox = cx.sandbox().await?;
    // All of them carry the id in their command line; the agent is the one whose parent does not.
    let named = host_processes(sandbox.id.as_str());
    let top = named.iter().copied().find(|pid| parent(*pid).is_none_or(|parent| !named.contains(&parent)));
    let Some(agent) = top.and_then(Pid::from_raw) else {
        return Err(crate::check::Failure("no process of this host names the sandbox".to_owned()));
    };
    kill_process(agent, Signal::KILL).map_err(std::io::Error::from).during("kill of the agent")?;
    let reason = cx.prompt("ended", cx.provider.ended(&sandbox.id)).await?;
    ensure!(!reason.is_empty(), "ended without a reason");
    eventually(&cx, "status of a sandbox whose agent was killed", || async {
        match cx.provider.status(&sandbox.id).await {
            Ok(RuntimeState::Ended { .. }) => Ok(true),
            Ok(_) => Ok(false),
            Err(error) => Err(error).during("status"),
        }
    })
    .await?;
    let kinds = [ErrorKind::Destroyed, ErrorKind::NotFound];
    refused("connect to an ended sandbox", cx.provider.connect(&sandbox.id).await, &kinds)?;
    cx.destroy(&sandbox.id).await?;
    gone(&cx, &sandbox.id).await
}

async fn stats(cx: Context) -> Verdict {
    let sandbox = cx.sandbox().await?;
    let before = cx.provider.stats(&sandbox.id).await.during("stats")?;
    ensure!(before.pids > 0, "no processes in a running sandbox");
    let holder = sandbox.start(&["alloc", "32", "60000"]).await?;
    let spinner = sandbox.start(&["spin", "1500"]).await?;
    eventually(&cx, "32 MiB in use and 0.1 s of processor time in the statistics", || async {
        let now = cx.provider.stats(&sandbox.id).await.during("stats")?;
        let used = now.cpu_time.saturating_sub(before.cpu_time);
        Ok(used >= Duration::from_millis(100) && now.memory_bytes >= 32 << 20 && now.pids > before.pids)
    })
    .await?;
    let busy = cx.provider.stats(&sandbox.id).await.during("stats")?;
    sandbox.wait(&spinner.id).await?;
    let idle = cx.provider.stats(&sandbox.id).await.during("stats")?;
    ensure!(
        idle.cpu_time >= busy.cpu_time,
        "time used shrank from {:?} to {:?}",
        busy.cpu_time,
        idle.cpu_time
    );
    if cx.provider.capabilities().memory_limit {
        let limit = cx.provider.stats(&sandbox.id).await.during("stats")?.memory_limit_bytes;
        ensure!(limit == u64::from(cx.spec().memory_mb) << 20, "the memory limit is shown as {limit} bytes");
    }
    sandbox.kill(&holder.id).await?;
    refused("stats of an unknown id", cx.provider.stats(&cx.new_id()?).await, &[ErrorKind::NotFound])
}
