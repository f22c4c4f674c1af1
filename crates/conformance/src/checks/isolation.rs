//! What a sandbox must not see or do, where the runtime says that it isolates.

use super::signals::ready;
use crate::{
    check::{During, Verdict, checks, ensure},
    context::{Context, Sandbox},
    observe::host_processes,
};
use std::{collections::BTreeSet, fs};

checks! {
    "isolation.hostname" "a sandbox does not have the host's name" [Isolated] 30 hostname;
    "isolation.processes" "a sandbox sees no processes but its own" [Isolated] 30 processes;
    "isolation.other_sandbox" "a sandbox sees nothing of another one" [Isolated] 30 other_sandbox;
    "isolation.host_files" "files of the host cannot be read, and nothing written lands there" [Isolated] 30 host_files;
    "isolation.network" "the only network interface is the sandbox's own loopback" [Isolated, NoNetwork] 30 network;
    "isolation.agent_protected" "a process can neither signal, trace, read nor end its sandbox's agent" [Isolated] 30 agent_protected;
    "isolation.kernel_settings" "kernel settings can be read at most" [Isolated] 30 kernel_settings;
    "isolation.no_mounts_or_devices" "nothing can be mounted, and no device made that could be opened" [Isolated] 30 no_mounts_or_devices;
    "isolation.zombies" "ended orphans do not pile up" [Isolated] 30 zombies;
}

async fn hostname(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    let host = String::from_utf8_lossy(rustix::system::uname().nodename().to_bytes()).into_owned();
    let inside = sandbox.probe_ok(&["hostname"]).await?.text();
    ensure!(inside.trim() != host, "it is called {host:?}, as the host");
    Ok(())
}

async fn processes(cx: Context) -> Verdict {
    let sandbox = cx.sandbox().await?;
    let seen = sandbox.probe_ok(&["ps"]).await?.text();
    let count = seen.lines().count();
    ensure!((1..=16).contains(&count), "an idle sandbox sees {count} processes");
    let own = fs::read("/proc/self/cmdline")?;
    let own = String::from_utf8_lossy(&own).replace('\0', " ");
    ensure!(own.trim().is_empty() || !seen.contains(own.trim()), "it sees the process that runs this suite");
    Ok(())
}

async fn other_sandbox(cx: Context) -> Verdict {
    let (one, two, token) = (cx.sandbox().await?, cx.sandbox().await?, cx.unique("other"));
    let running = ready(&one, &["ignore-term", &token]).await?;
    if cx.options.host_processes {
        ensure!(!host_processes(&token).is_empty(), "the process is not visible where it should be");
    }
    let own = one.probe_ok(&["ps"]).await?.text();
    ensure!(own.contains(&token), "a sandbox does not see its own process");
    let seen = two.probe_ok(&["ps"]).await?.text();
    ensure!(!seen.contains(&token), "a sandbox sees a process of another one");
    one.write(&format!("/tmp/{token}"), b"x").await?;
    let there = two.guest.stat(&format!("/tmp/{token}"), false).await;
    ensure!(there.is_err(), "a sandbox sees a file of another one");
    one.kill(&running.id).await?;
    Ok(())
}

async fn host_files(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    let path = std::env::temp_dir().join(cx.unique("stacyvm-host"));
    fs::write(&path, b"of the host")?;
    let name = path.to_string_lossy().into_owned();
    let seen = sandbox.probe(&["try", "read", &name]).await;
    let written = sandbox.probe(&["write", &name, "from inside"]).await;
    let content = fs::read(&path);
    let _ = fs::remove_file(&path);
    let seen = seen?.text();
    ensure!(seen.starts_with("errno"), "a file of the host can be read: {seen:?}");
    written?;
    ensure!(content? == b"of the host", "a file of the host was overwritten");
    for path in ["/proc/1/root/etc/shadow", "/etc/shadow"] {
        let seen = sandbox.probe_ok(&["try", "read", path]).await?.text();
        ensure!(seen.starts_with("errno"), "{path} can be read: {seen:?}");
    }
    Ok(())
}

async fn network(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    let interfaces = sandbox.probe_ok(&["net"]).await?.text();
    ensure!(interfaces == "lo\n", "interfaces: {interfaces:?}");
    Ok(())
}

async fn agent_protected(cx: Context) -> Verdict {
    let sandbox = cx.sandbox().await?;
    for words in [
        &["kill", "1", "9"][..],
        &["kill", "1", "19"],
        &["kill", "1", "15"],
        &["try", "trace"],
        &["try", "read", "/proc/1/mem"],
        &["try", "write", "/proc/1/mem"],
        &["try", "write", "/proc/1/oom_score_adj"],
    ] {
        let said = sandbox.probe_ok(words).await?.text();
        // Sending a signal that PID 1 does not handle "succeeds" without effect; the ping below tells.
        let tolerated = words[0] == "kill" && said == "ok\n";
        ensure!(said.starts_with("errno") || tolerated, "{words:?} gives {said:?}");
        cx.prompt("ping", sandbox.guest.ping()).await?.during("ping")?;
    }
    agents_environment(&sandbox).await?;
    let bystander = sandbox.start(&["sleep", "60000"]).await?;
    // Where processes have the user of what watches them, it ends that too, and may not be heard of again.
    let _ = sandbox.probe(&["kill-all", "9"]).await;
    cx.prompt("ping behind kill(-1)", sandbox.guest.ping()).await?.during("ping")?;
    cx.prompt("the bystander", sandbox.wait(&bystander.id)).await??;
    let done = sandbox.probe_ok(&["echo", "alive"]).await?;
    ensure!(done.text() == "alive\n", "behind kill(-1), echo printed {:?}", done.text());
    Ok(())
}

/// Where a kernel shows the agent's environment, there is nothing in it that a process does not have itself.
async fn agents_environment(sandbox: &Sandbox) -> Verdict {
    let path = "/proc/1/environ";
    if sandbox.probe_ok(&["try", "read", path]).await?.text().starts_with("errno") {
        return Ok(());
    }
    let names = |text: String| -> BTreeSet<String> {
        text.split('\0').filter_map(|pair| Some(pair.split_once('=')?.0.to_owned())).collect()
    };
    let agent = names(sandbox.probe_ok(&["read", path]).await?.text());
    let own = names(sandbox.probe_ok(&["env"]).await?.text());
    let more: Vec<_> = agent.difference(&own).filter(|name| *name != "HOSTNAME").collect();
    ensure!(more.is_empty(), "the agent's environment shows {more:?}");
    Ok(())
}

async fn kernel_settings(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    for path in [
        "/proc/sys/kernel/hostname",
        "/proc/sys/kernel/core_pattern",
        "/proc/sys/vm/drop_caches",
        "/proc/sysrq-trigger",
    ] {
        let said = sandbox.probe_ok(&["try", "write", path]).await?.text();
        ensure!(said.starts_with("errno"), "{path} can be opened for writing");
    }
    for path in ["/proc/kcore", "/dev/mem", "/dev/kmsg", "/proc/kmsg"] {
        let said = sandbox.probe_ok(&["try", "read", path]).await?.text();
        ensure!(said.starts_with("errno"), "{path} can be read");
    }
    Ok(())
}

async fn no_mounts_or_devices(cx: Context) -> Verdict {
    let sandbox = cx.shared().await?;
    // A kernel of the sandbox's own may let anybody make nodes of devices that it does not have.
    if sandbox.probe_ok(&["try", "mknod", "/workspace/device"]).await?.text() == "ok\n" {
        for how in ["read", "write"] {
            let said = sandbox.probe_ok(&["try", how, "/workspace/device"]).await?.text();
            ensure!(
                said.starts_with("errno"),
                "a device that was made inside can be opened: {how} gives {said:?}"
            );
        }
    }
    for words in [["mount", "/workspace"], ["hostname", ""]] {
        let said = sandbox.probe_ok(&["try", words[0], words[1]]).await?.text();
        ensure!(said.starts_with("errno"), "{words:?} gives {said:?}");
    }
    Ok(())
}

async fn zombies(cx: Context) -> Verdict {
    let sandbox = cx.sandbox().await?;
    for _ in 0..3 {
        sandbox.probe_ok(&["orphans", "30"]).await?;
    }
    crate::observe::eventually(&cx, "the end of the last zombie", || async {
        let seen = sandbox.probe_ok(&["ps"]).await?.text();
        Ok(seen.lines().all(|line| line.split(' ').nth(1) != Some("Z")))
    })
    .await
}
