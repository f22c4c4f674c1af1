//! Whether sandboxes are made with the rights of root, or as anybody could, in a user namespace with one user.

use rustix::thread::{CapabilitySet, capabilities};
use std::sync::OnceLock;

/// What it takes to make a sandbox with users of its own: namespaces and mounts, its loopback, its files, its end.
const NEEDED: [(CapabilitySet, &str); 10] = [
    (CapabilitySet::SYS_ADMIN, "SYS_ADMIN"),
    (CapabilitySet::NET_ADMIN, "NET_ADMIN"),
    (CapabilitySet::SETUID, "SETUID"),
    (CapabilitySet::SETGID, "SETGID"),
    (CapabilitySet::SETPCAP, "SETPCAP"),
    (CapabilitySet::SETFCAP, "SETFCAP"),
    (CapabilitySet::CHOWN, "CHOWN"),
    (CapabilitySet::DAC_OVERRIDE, "DAC_OVERRIDE"),
    (CapabilitySet::FOWNER, "FOWNER"),
    (CapabilitySet::KILL, "KILL"),
];

/// What this process lacks of the rights of root, in words that follow "the server"; `None` if nothing that matters. The same for
/// as long as it runs.
pub(crate) fn lacking() -> Option<&'static str> {
    static LACKING: OnceLock<Option<String>> = OnceLock::new();
    let look = || {
        if !rustix::process::geteuid().is_root() {
            return Some("does not run as root".to_owned());
        }
        let held = capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.effective);
        let missing: Vec<_> =
            NEEDED.iter().filter(|(one, _)| !held.contains(*one)).map(|(_, name)| *name).collect();
        (!missing.is_empty()).then(|| format!("lacks the capabilities {}", missing.join(", ")))
    };
    LACKING.get_or_init(look).as_deref()
}

/// Whether sandboxes are made as anybody could.
pub(crate) fn rootless() -> bool {
    lacking().is_some()
}
