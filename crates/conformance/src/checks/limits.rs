//! Limits that a runtime offers hold, and reaching one leaves the sandbox usable.

use super::{lifecycle::gone, signals::ready};
use crate::{
    check::{During, Failure, Verdict, checks, ensure},
    context::{Context, Sandbox},
};
use futures::{StreamExt, future::join_all};
use stacyvm_provider::{
    Error, ErrorKind, Limit, Outcome, OutputEvent, ProcessInfo, RuntimeState, SandboxSpec,
};
use std::time::{Duration, Instant};

checks! {
    "limits.memory" "a process that takes more memory than the sandbox has is ended, and said to be" [MemoryLimit, OomEndsProcess] 45 memory;
    "limits.memory_together" "processes that together take more memory than the sandbox has do not get it" [MemoryLimit, OomEndsProcess] 45 memory_together;
    "limits.memory_survived" "a sandbox that ran out of memory answers and works on" [MemoryLimit, OomEndsProcess] 60 memory_survived;
    "limits.memory_sandbox" "a process that takes more memory than the sandbox has does not get it, and a sandbox that ends of it says so" [MemoryLimit, OomEndsSandbox] 60 memory_sandbox;
    "limits.pids" "no more processes than the limit can be made, and the sandbox answers when it is reached" [PidsLimit] 45 pids;
    "limits.pids_start" "start is ResourceLimit while there is no room for another process, and works again behind that" [PidsLimit] 45 pids_start;
    "limits.oom_reported" "a process that ran out of the sandbox's memory is said to have hit oom, and others that nothing hit are not" [MemoryLimit, OomEndsProcess] 45 oom_reported;
    "limits.pids_reported" "a process that was let make no more processes is said to have hit pids, while it runs and behind its end, and so is a start that is refused for that" [PidsLimit] 45 pids_reported;
    "limits.disk" "a sandbox writes no more than its disk limit, goes on when that is reached, and others write on" [DiskLimit] 60 disk;
    "limits.disk_reported" "a process that found the sandbox's disk full is said to have hit disk_full, and others that nothing hit are not" [DiskLimit] 45 disk_reported;
    "limits.cpu" "busy processes get no more processor time than the sandbox has processors" [CpuLimit] 45 cpu;
}

const MEMORY_MB: u32 = 64;
const PIDS: u32 = 24;
const DISK_MB: u32 = 32;
/// What fits on that disk beside whatever a filesystem needs for itself, in MiB.
const FITS: &str = "8";

async fn small(cx: &Context) -> Verdict<Sandbox> {
    cx.sandbox_with(SandboxSpec { memory_mb: MEMORY_MB, pids: PIDS, ..cx.spec() }).await
}

/// The last number of MiB that `probe alloc` says it has.
fn allocated(output: &str) -> u32 {
    output.lines().last().and_then(|line| line.parse().ok()).unwrap_or_default()
}

async fn memory(cx: Context) -> Verdict {
    let sandbox = small(&cx).await?;
    let done = sandbox.probe(&["alloc", &(MEMORY_MB * 3).to_string(), "0"]).await?;
    let got = allocated(&done.text());
    ensure!(got <= MEMORY_MB, "{got} MiB were taken, the limit is {MEMORY_MB}");
    ensure!(done.info.outcome == Some(Outcome::Signaled(9)), "it ended with {:?}", done.info.outcome);
    ensure!(done.info.oom_killed, "nothing says that memory was the reason: {:?}", done.info);
    Ok(())
}

async fn memory_together(cx: Context) -> Verdict {
    let sandbox = small(&cx).await?;
    let share = (MEMORY_MB * 2 / 3).to_string();
    let spec = || sandbox.probe_spec(&["alloc", &share, "1500"]);
    let specs = [spec(), spec(), spec()];
    let runs = join_all(specs.iter().map(|spec| sandbox.run(spec))).await;
    let runs: Vec<_> = runs.into_iter().collect::<Verdict<_>>()?;
    let whole = runs.iter().filter(|done| done.info.outcome == Some(Outcome::Exited(0))).count();
    ensure!(whole <= 1, "{whole} processes got {share} MiB each at once, the limit is {MEMORY_MB}");
    Ok(())
}

async fn memory_survived(cx: Context) -> Verdict {
    let sandbox = small(&cx).await?;
    sandbox.write("/workspace/before", b"before").await?;
    for _ in 0..3 {
        sandbox.probe(&["alloc", &(MEMORY_MB * 2).to_string(), "0"]).await?;
        cx.prompt("ping", sandbox.guest.ping()).await?.during("ping")?;
    }
    let done = sandbox.probe_ok(&["read", "before"]).await?;
    ensure!(done.text() == "before", "a file reads {:?}", done.text());
    let fits = sandbox.probe(&["alloc", &(MEMORY_MB / 2).to_string(), "0"]).await?.info;
    ensure!(fits.outcome == Some(Outcome::Exited(0)), "half the memory can not be had any more: {fits:?}");
    Ok(())
}

async fn memory_sandbox(cx: Context) -> Verdict {
    let sandbox = small(&cx).await?;
    let info = sandbox.start(&["alloc", &(MEMORY_MB * 3).to_string(), "0"]).await?;
    let mut taken = Vec::new();
    // The stream of a sandbox that ends may do so in any way but one: with a status that says that all was well.
    let outcome = cx
        .prompt("the end of a process that takes too much memory, or of its sandbox", async {
            let mut output = sandbox.guest.attach(&info.id, 0, true, true).await.ok()?;
            while let Some(Ok(event)) = output.next().await {
                match event {
                    OutputEvent::Chunk { data, .. } => taken.extend_from_slice(&data),
                    OutputEvent::Gap { .. } => {}
                    OutputEvent::Exit(info) => return info.outcome,
                }
            }
            None
        })
        .await?;
    let got = allocated(&String::from_utf8_lossy(&taken));
    ensure!(got <= MEMORY_MB, "{got} MiB were taken, the limit is {MEMORY_MB}");
    ensure!(outcome != Some(Outcome::Exited(0)), "it is said to have ended well");
    // Where only the process ended, the sandbox goes on and there is nothing to be said about it.
    let settled = cx.prompt("an answer of the guest, or the end of the sandbox", async {
        loop {
            match cx.provider.status(&sandbox.id).await {
                Ok(RuntimeState::Running) if sandbox.guest.ping().await.is_err() => {}
                other => return other,
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    match settled.await?.during("status")? {
        RuntimeState::Running => {
            sandbox.probe_ok(&["exit", "0"]).await?;
        }
        RuntimeState::Ended { reason } => {
            ensure!(names_memory(&reason), "status says that it ended of {reason:?}");
            let told = cx.prompt("ended", cx.provider.ended(&sandbox.id)).await?;
            ensure!(names_memory(&told), "ended says that it ended of {told:?}");
            let limits = cx.prompt("ended_by", cx.provider.ended_by(&sandbox.id)).await?;
            ensure!(limits == [Limit::Oom], "it is said to have been ended by {limits:?}");
        }
        RuntimeState::Paused => return Err(Failure("it is said to be paused".to_owned())),
    }
    cx.destroy(&sandbox.id).await?;
    gone(&cx, &sandbox.id).await
}

fn names_memory(reason: &str) -> bool {
    reason.to_lowercase().contains("memory")
}

/// Fills the sandbox with processes; the one that did and how many it made.
async fn fill(sandbox: &Sandbox) -> Verdict<(ProcessInfo, u32)> {
    let info = sandbox.start(&["fork-many", "200", "60000"]).await?;
    let mut output = sandbox.guest.attach(&info.id, 0, true, false).await.during("attach")?;
    match output.next().await {
        Some(Ok(OutputEvent::Chunk { data, .. })) => {
            let text = String::from_utf8_lossy(&data).into_owned();
            let made = text.trim().strip_prefix("forked ").and_then(|made| made.parse().ok());
            Ok((info, made.ok_or_else(|| Failure(format!("it printed {text:?}")))?))
        }
        other => Err(Failure(format!("no word from a process that forks: {other:?}"))),
    }
}

/// Starts processes in a full sandbox until one is refused, and why.
async fn until_refused(cx: &Context, sandbox: &Sandbox) -> Verdict<Error> {
    // A runtime may take its agent out of the count while the sandbox is in use: a few more fit then, and stay.
    let mut more = 0;
    loop {
        match cx.prompt("start", sandbox.guest.start(&sandbox.probe_spec(&["sleep", "60000"]))).await? {
            Err(error) if error.kind() == ErrorKind::ResourceLimit => return Ok(error),
            Ok(_) if more < 10 => more += 1,
            other => return Err(Failure(format!("start in a full sandbox gives {other:?}"))),
        }
    }
}

async fn pids(cx: Context) -> Verdict {
    let sandbox = small(&cx).await?;
    let (forker, made) = fill(&sandbox).await?;
    ensure!((1..PIDS).contains(&made), "{made} more processes were made, the limit is {PIDS} in all");
    cx.prompt("ping", sandbox.guest.ping()).await?.during("ping")?;
    cx.prompt("processes", sandbox.guest.processes()).await?.during("processes")?;
    cx.prompt("write", sandbox.write("/workspace/file", b"x")).await??;
    cx.prompt("kill", sandbox.kill(&forker.id)).await??;
    cx.prompt("wait", sandbox.wait(&forker.id)).await??;
    Ok(())
}

async fn pids_start(cx: Context) -> Verdict {
    let sandbox = small(&cx).await?;
    let (forker, _) = fill(&sandbox).await?;
    until_refused(&cx, &sandbox).await?;
    sandbox.kill(&forker.id).await?;
    sandbox.wait(&forker.id).await?;
    crate::observe::eventually(&cx, "room for a process behind the end of the others", || async {
        match sandbox.probe(&["exit", "0"]).await {
            Ok(done) => done.ok().map(|_| true),
            Err(_) => Ok(false),
        }
    })
    .await
}

/// A process that ends badly and hits nothing is not said to have hit anything.
async fn says_nothing(sandbox: &Sandbox, when: &str) -> Verdict {
    let done = sandbox.probe(&["exit", "3"]).await?.info;
    ensure!(done.limits_hit.is_empty(), "{when}, a process is said to have hit {:?}", done.limits_hit);
    Ok(())
}

/// That a process which is `done` has hit this limit is told with its output's end, and to who asks later.
async fn says(cx: &Context, sandbox: &Sandbox, done: &ProcessInfo, limit: Limit) -> Verdict {
    ensure!(done.limits_hit == [limit], "the end of its output says that it hit {:?}", done.limits_hit);
    let known = cx.prompt("process", sandbox.guest.process(&done.id)).await?.during("process")?;
    ensure!(known.limits_hit == [limit], "asked behind its end, it hit {:?}", known.limits_hit);
    Ok(())
}

async fn oom_reported(cx: Context) -> Verdict {
    let sandbox = small(&cx).await?;
    says_nothing(&sandbox, "before anything was hit").await?;
    let done = sandbox.probe(&["alloc", &(MEMORY_MB * 3).to_string(), "0"]).await?.info;
    says(&cx, &sandbox, &done, Limit::Oom).await?;
    says_nothing(&sandbox, "once that process is gone").await?;
    Ok(())
}

async fn pids_reported(cx: Context) -> Verdict {
    let sandbox = small(&cx).await?;
    says_nothing(&sandbox, "before anything was hit").await?;
    let (forker, _) = fill(&sandbox).await?;
    let running = cx.prompt("process", sandbox.guest.process(&forker.id)).await?.during("process")?;
    ensure!(running.outcome.is_none(), "it ended: {running:?}");
    ensure!(running.limits_hit == [Limit::Pids], "while it runs, it hit {:?}", running.limits_hit);
    let refused = until_refused(&cx, &sandbox).await?;
    ensure!(refused.limit() == Some(Limit::Pids), "the reason of {refused:?} is {:?}", refused.limit());
    sandbox.kill(&forker.id).await?;
    let ended = sandbox.wait(&forker.id).await?;
    ensure!(ended.limits_hit == [Limit::Pids], "behind its end, it hit {:?}", ended.limits_hit);
    Ok(())
}

/// A sandbox with a small disk, and [`FITS`] in `before` on it.
async fn small_disk(cx: &Context) -> Verdict<Sandbox> {
    let sandbox = cx.sandbox_with(SandboxSpec { disk_mb: DISK_MB, ..cx.spec() }).await?;
    sandbox.probe_ok(&["fill", "before", FITS]).await?;
    Ok(sandbox)
}

async fn fill_disk(sandbox: &Sandbox) -> Verdict<ProcessInfo> {
    let done = sandbox.probe(&["fill", "rest", &(DISK_MB * 3).to_string()]).await?;
    let got = allocated(&done.text());
    ensure!(got < DISK_MB, "{got} MiB more were written, the limit is {DISK_MB}");
    ensure!(done.info.outcome == Some(Outcome::Exited(126)), "it ended with {:?}", done.info.outcome);
    Ok(done.info)
}

async fn disk(cx: Context) -> Verdict {
    let (sandbox, other) = (small_disk(&cx).await?, small_disk(&cx).await?);
    fill_disk(&sandbox).await?;
    cx.prompt("ping", sandbox.guest.ping()).await?.during("ping")?;
    cx.prompt("processes", sandbox.guest.processes()).await?.during("processes")?;
    sandbox.probe_ok(&["exit", "0"]).await?;
    other.probe_ok(&["fill", "more", FITS]).await?;
    // What is given back can be had again.
    sandbox.guest.remove("/workspace/before", false).await.during("remove on a full disk")?;
    sandbox.probe_ok(&["fill", "again", "4"]).await?;
    fill_disk(&sandbox).await?;
    cx.destroy(&sandbox.id).await?;
    gone(&cx, &sandbox.id).await?;
    other.probe_ok(&["fill", "after", "4"]).await?;
    Ok(())
}

async fn disk_reported(cx: Context) -> Verdict {
    let sandbox = small_disk(&cx).await?;
    says_nothing(&sandbox, "before anything was hit").await?;
    let done = fill_disk(&sandbox).await?;
    says(&cx, &sandbox, &done, Limit::DiskFull).await?;
    sandbox.guest.remove("/workspace/before", false).await.during("remove on a full disk")?;
    says_nothing(&sandbox, "once that process is gone").await?;
    Ok(())
}

async fn cpu(cx: Context) -> Verdict {
    let sandbox = cx.sandbox_with(SandboxSpec { vcpus: 1, ..cx.spec() }).await?;
    let spinners = 3;
    for _ in 0..spinners {
        ready(&sandbox, &["spawn", "child", "stay", "warm"]).await?;
    }
    let before = cpu_time(&cx, &sandbox).await?;
    let started = Instant::now();
    let runs = join_all((0..spinners).map(|_| sandbox.probe_ok(&["spin", "1500"]))).await;
    let elapsed = started.elapsed();
    let mut used = Duration::ZERO;
    for done in runs {
        let text = done?.text();
        let ms = text.trim().parse().map_err(|_| Failure(format!("it printed {text:?}")))?;
        used += Duration::from_millis(ms);
    }
    // What a kernel of the sandbox's own says of its processes is not what the host gave it.
    if let (Some(before), Some(after)) = (before, cpu_time(&cx, &sandbox).await?) {
        used = after.saturating_sub(before);
    }
    // Periods of accounting let a burst through; half a processor more is far from two.
    ensure!(used < elapsed.mul_f64(1.5), "{used:?} of processor time in {elapsed:?} with one processor");
    Ok(())
}

/// Processor time of the whole sandbox, as the host counts it, where the provider can tell.
async fn cpu_time(cx: &Context, sandbox: &Sandbox) -> Verdict<Option<Duration>> {
    if !cx.provider.capabilities().stats {
        return Ok(None);
    }
    Ok(Some(cx.provider.stats(&sandbox.id).await.during("stats")?.cpu_time))
}
