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
mod netlink;
mod onlink;
mod prefix;
mod probe;

use filter::Family;
use prefix::Prefix;
use std::{fs, io};

/// Never reachable, wherever the sandbox is. IPv4: this host, private, shared, loopback, link-local with the metadata
/// services, protocol assignments, benchmarks, multicast, reserved with broadcast. IPv6: loopback and compatible addresses,
/// what is translated to IPv4 (SIIT, NAT64, 6to4), unique local, link-local, site-local, multicast. Mapped addresses are IPv4.
const BLOCKED: [&str; 20] = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "224.0.0.0/4",
    "240.0.0.0/4",
    "::/96",
    "::ffff:0:0:0/96",
    "64:ff9b::/96",
    "64:ff9b:1::/48",
    "2002::/16",
    "fc00::/7",
    "fe80::/10",
    "fec0::/10",
    "ff00::/8",
];

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
    let mut blocked = Vec::new();
    for text in BLOCKED {
        add(&mut blocked, text.parse()?);
    }
    for text in named {
        add(&mut blocked, text.parse()?);
    }
    for found in onlink::v4(&read("/proc/net/route")?).chain(onlink::v6(&read("/proc/net/ipv6_route")?)) {
        add(&mut blocked, found);
    }

    let set = match filter::install(&[Family::V4, Family::V6], &blocked) {
        // A kernel without IPv6 cannot filter it, and need not.
        Err(_) if !onlink::has_v6(&read("/proc/net/if_inet6")?) => filter::install(&[Family::V4], &blocked),
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

/// Adds a prefix that is not blocked yet.
fn add(blocked: &mut Vec<Prefix>, prefix: Prefix) {
    if !blocked.iter().any(|other| other.covers(&prefix)) {
        blocked.push(prefix);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::IpAddr;

    #[test]
    fn what_must_be_blocked_is_and_the_internet_is_not() {
        let blocked: Vec<Prefix> = BLOCKED.iter().map(|text| text.parse().unwrap()).collect();
        let is_blocked = |text: &str| {
            let address: IpAddr = text.parse().unwrap();
            blocked.iter().any(|prefix| prefix.covers(&address.into()))
        };
        for inside in [
            "0.0.0.1",
            "10.255.255.255",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.53",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.192",
            "192.168.0.1",
            "198.19.255.255",
            "224.0.0.251",
            "239.1.1.1",
            "240.0.0.1",
            "255.255.255.255",
            "::1",
            "::a00:1",
            "::ffff:10.0.0.1",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b:1::1",
            "2002:a00:1::",
            "fd00:ec2::254",
            "fe80::1",
            "febf::1",
            "fec0::1",
            "ff02::1",
        ] {
            assert!(is_blocked(inside), "{inside}");
        }
        for outside in [
            "1.1.1.1",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "169.253.255.255",
            "172.15.255.255",
            "172.32.0.0",
            "192.0.1.0",
            "192.167.255.255",
            "198.17.255.255",
            "198.20.0.0",
            "223.255.255.255",
            "2606:4700:4700::1111",
            "2001:4860::8888",
            "::ffff:1.1.1.1",
        ] {
            assert!(!is_blocked(outside), "{outside}");
        }
    }

    #[test]
    fn a_prefix_within_another_is_not_added() {
        let mut blocked = Vec::new();
        for text in
            ["10.0.0.0/8", "10.1.0.0/16", "203.0.113.7", "203.0.113.7/32", "2001:db8::/32", "2001:db8::1"]
        {
            add(&mut blocked, text.parse().unwrap());
        }
        let texts: Vec<_> = blocked.iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["10.0.0.0/8", "203.0.113.7/32", "2001:db8::/32"]);
    }
}
