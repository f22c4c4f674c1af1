//! `--restrict-network`: leaves this network namespace nothing but the internet.
//!
//! A packet filter on what the namespace sends refuses private, link-local, metadata and multicast addresses, the subnets
//! and routers that its interfaces are on, and the prefixes that were named. Routes could not do this: a process without
//! any privilege may bind its socket to an interface, and the kernel then takes a destination that has no route, or an
//! unreachable one, for a neighbour on that link. The filter sees every packet behind all of that.
//!
//! It is set before there is a way into the sandbox, each time the agent starts, and tried out before that goes on. To change
//! it takes `CAP_NET_ADMIN`, which the agent gives up, for itself and for good, right behind.

mod filter;
mod probe;

use filter::Family;
use std::{fs, io};

/// Sets the filter and sees that it holds.
///
/// # Errors
/// What is wrong with what was `named`, or why the namespace is not restricted.
pub(crate) fn run<'a>(named: impl Iterator<Item = &'a str>) -> Result<(), String> {
    let read = |path: &str| match fs::read_to_string(path) {
        // As where there is no IPv6.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        result => result.map_err(|error| format!("cannot read {path}: {error}")),
    };
    let named = named.map(str::parse).collect::<Result<Vec<_>, _>>()?;
    let found = stacyvm_netlink::v4(&read("/proc/net/route")?)
        .chain(stacyvm_netlink::v6(&read("/proc/net/ipv6_route")?))
        .collect::<Vec<_>>();
    let blocked = stacyvm_netlink::blocked(named.into_iter().chain(found));

    let set = match filter::install(&[Family::V4, Family::V6], &blocked) {
        // A kernel without IPv6 cannot filter it, and need not.
        Err(_) if !stacyvm_netlink::has_v6(&read("/proc/net/if_inet6")?) => {
            filter::install(&[Family::V4], &blocked)
        }
        result => result,
    };
    set.map_err(|error| {
        format!("cannot set the packet filter: {error}; it takes nf_tables in the kernel, and CAP_NET_ADMIN")
    })?;
    for prefix in &blocked {
        let address = prefix.sample();
        if probe::leaves(address).map_err(|error| format!("cannot try {address}: {error}"))? {
            return Err(format!(
                "the packet filter has no effect: {address} of {prefix} can still be reached"
            ));
        }
    }
    Ok(())
}
