//! `stacyvm probe` in sandboxes of the native runtime; and that its sandbox goes, also when it is interrupted.

use anyhow::{Result, ensure};
use serde_json::Value;
use stacyvm_e2e::{
    Host,
    probe::{findings, refuses_what_native_closes, refuses_what_reaches_beyond},
};
use std::{process::Stdio, time::Duration};

#[tokio::test]
async fn native_has_the_kernel_of_the_host() -> Result<()> {
    let host = Host::start().await?;
    let output = host.cli(&["probe", "--image", "host", "--json"])?;
    ensure!(output.status.success(), "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout)?;
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    ensure!(report["provider"] == "native" && report["runtime"].is_null(), "{report}");
    ensure!(report["kernel"]["release"] == release.trim() && report["kernel"]["gvisor"] == false, "{report}");
    let found = findings(&report)?;
    for name in [
        "pidfd_open",
        "ptrace of a child",
        "process_vm_readv",
        "seccomp filter",
        "openat2",
        "inotify",
        "O_TMPFILE",
        "TCP over loopback",
    ] {
        ensure!(found[name] == "works", "{name}: {}", found[name]);
    }
    ensure!(report["counts"]["differs"] == 0 && report["counts"]["failed"] == 0, "{report}");
    refuses_what_reaches_beyond(&found)?;
    refuses_what_native_closes(&found)?;
    ensure!(host.states().await?.is_empty());
    host.finish().await
}

#[tokio::test]
async fn interrupted_it_leaves_nothing() -> Result<()> {
    let host = Host::start().await?;
    for moment in [1, 50, 120, 200, 350] {
        let mut child = host.cli_command(&["probe", "--image", "host"])?.stdout(Stdio::null()).spawn()?;
        tokio::time::sleep(Duration::from_millis(moment)).await;
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::INT)?;
        let status = child.wait()?;
        // At the very first it does not listen yet, and at the end it may be done.
        ensure!(!status.success() || moment > 100, "{moment} ms: {status}");
        host.until("its sandbox is gone", <[_]>::is_empty).await?;
    }
    host.finish().await
}

/// What Python does on an ordinary day: threads, processes, pools, sockets, names, a database, a terminal.
const ORDINARY: &str = r#"
import asyncio, concurrent.futures, pty, socket, sqlite3, subprocess, threading
thread = threading.Thread(target=lambda: None)
thread.start()
thread.join()
assert subprocess.check_output("echo hi | tr a-z A-Z", shell=True) == b"HI\n"
with concurrent.futures.ProcessPoolExecutor(2) as pool:
    assert list(pool.map(abs, [-1, -2])) == [1, 2]
with socket.socket() as listener:
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    socket.create_connection(listener.getsockname()).close()
assert socket.getaddrinfo("localhost", 80)
sqlite3.connect("/workspace/db").execute("create table t (a)")
async def child():
    return await (await asyncio.create_subprocess_exec("true")).wait()
assert asyncio.run(child()) == 0
assert pty.spawn(["true"]) == 0
print("all of it")
"#;

#[tokio::test]
async fn ordinary_programs_do_not_notice_the_filter() -> Result<()> {
    let host = Host::start().await?;
    let output = host.cli(&["run", "--image", "host", "--", "python3", "-c", ORDINARY])?;
    ensure!(output.status.success() && output.stdout.ends_with(b"all of it\n"), "{output:?}");
    let output = host.cli(&["run", "--image", "host", "--", "unshare", "--user", "true"])?;
    ensure!(String::from_utf8_lossy(&output.stderr).contains("Operation not permitted"), "{output:?}");
    host.finish().await
}
