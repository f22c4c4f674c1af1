//! `stacyvm probe` in sandboxes of the native runtime; and that its sandbox goes, also when it is interrupted.

use anyhow::{Result, ensure};
use serde_json::Value;
use stacyvm_e2e::{
    Host,
    probe::{findings, refuses_what_reaches_beyond},
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
    for name in ["clone3", "pidfd_open", "openat2", "inotify", "O_TMPFILE", "TCP over loopback"] {
        ensure!(found[name] == "works", "{name}: {}", found[name]);
    }
    ensure!(report["counts"]["differs"] == 0 && report["counts"]["failed"] == 0, "{report}");
    refuses_what_reaches_beyond(&found)?;
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
