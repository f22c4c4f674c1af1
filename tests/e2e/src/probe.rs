//! What tests demand of the findings of `stacyvm probe --json`.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::collections::BTreeMap;

/// What reaches beyond a sandbox, by the names that the probe has for it.
const BEYOND: [&str; 12] = [
    "mount",
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
    for name in BEYOND {
        let outcome = findings.get(name).with_context(|| format!("{name} was not tried"))?;
        ensure!(["refused", "absent"].contains(&&**outcome), "{name}: {outcome}");
    }
    Ok(())
}
