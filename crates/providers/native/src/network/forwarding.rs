//! That the host forwards packets. It is a setting of the whole host, as with every program that gives containers a network.

use std::{fs, io};

const V4: &str = "/proc/sys/net/ipv4/ip_forward";
const V6: &str = "/proc/sys/net/ipv6/conf";

/// Whether this kernel has IPv6 and uses it.
pub(crate) fn has_v6() -> bool {
    fs::read_to_string(format!("{V6}/all/disable_ipv6")).is_ok_and(|text| text.trim() == "0")
}

/// Turns it on where it is off.
///
/// # Errors
/// What an operator has to do.
pub(crate) fn enable(v6: bool) -> Result<(), String> {
    set(V4, "1")?;
    if !v6 {
        return Ok(());
    }
    let all = format!("{V6}/all/forwarding");
    if is(&all, "1") {
        return Ok(());
    }
    // A router does not listen to other routers unless it is told to: interfaces that learned their address or their
    // way out from one would lose it.
    for entry in fs::read_dir(V6).into_iter().flatten().flatten() {
        let accept = entry.path().join("accept_ra").to_string_lossy().into_owned();
        if is(&accept, "1") {
            set(&accept, "2")?;
        }
    }
    set(&all, "1")
}

fn is(path: &str, value: &str) -> bool {
    fs::read_to_string(path).is_ok_and(|text| text.trim() == value)
}

fn set(path: &str, value: &str) -> Result<(), String> {
    if is(path, value) {
        return Ok(());
    }
    let failed = |error: io::Error| {
        format!(
            "{path} cannot be set to {value} ({error}): set it on the host, as the network internet takes it"
        )
    };
    fs::write(path, value).map_err(failed)
}
