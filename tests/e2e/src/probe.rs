//! What tests demand of the findings of `stacyvm probe --json`.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::collections::BTreeMap;

/// What reaches beyond a sandbox, by the names that the probe has for it.
const BEYOND: [&str; 18] = [
    "mount",
    "mount in a user namespace",
    "user namespace with a map",
    "add_key",
    "keyctl",
    "perf_event_open",
    "userfaultfd",
    "pivot_root",
    "fsopen",
    "setns",
    "bpf",
    "kexec_load",
    "init_module",
    "delete_module",
    "open_by_handle_at",
    "clock_settime",
    "settimeofday",
    "reboot",
];

/// What native closes besides, whatever others do.
const CLOSED_BY_NATIVE: [&str; 18] = [
    "clone3",
    "process_vm_readv",
    "name_to_handle_at",
    "pkey_alloc",
    "pidfd_getfd",
    "kcmp",
    "io_uring_setup",
    "mbind",
    "set_mempolicy",
    "unshare user",
    "chroot",
    "open_tree OPEN_TREE_CLONE",
    "fanotify_init",
    "syslog",
    "socket AF_PACKET",
    "socket AF_VSOCK",
    "socket AF_ALG",
    "netlink netfilter",
];

/// Outcomes by name.
///
/// # Errors
/// When it is another JSON.
pub fn findings(report: &Value) -> Result<BTreeMap<String, String>> {
    let entries = report["entries"].as_array().context("no entries")?;
    let text = |value: &Value| value.as_str().map(str::to_owned).context("no text");
    entries.iter().map(|entry| Ok((text(&entry["name"])?, text(&entry["outcome"])?))).collect()
}

/// Demands that nothing works which reaches beyond a sandbox.
///
/// # Errors
/// When something does, or was not tried.
pub fn refuses_what_reaches_beyond(findings: &BTreeMap<String, String>) -> Result<()> {
    none_works(findings, &BEYOND)
}

/// Demands that nothing works that native's filter of system calls closes.
///
/// # Errors
/// When something does, or was not tried.
pub fn refuses_what_native_closes(findings: &BTreeMap<String, String>) -> Result<()> {
    none_works(findings, &CLOSED_BY_NATIVE)
}

fn none_works(findings: &BTreeMap<String, String>, names: &[&str]) -> Result<()> {
    for name in names {
        let name = *name;
        let outcome = findings.get(name).with_context(|| format!("{name} was not tried"))?;
        ensure!(["refused", "absent"].contains(&&**outcome), "{name}: {outcome}");
    }
    Ok(())
}
