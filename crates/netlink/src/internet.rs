//! What the internet is not, and who resolves its names.

use crate::Prefix;

/// Resolvers where none are configured and the host's own may be private, and so out of reach.
pub const PUBLIC_RESOLVERS: [&str; 2] = ["1.1.1.1", "9.9.9.9"];

/// Never reachable, wherever the sandbox is. IPv4: this host, private, shared, loopback, link-local with the metadata
/// services, protocol assignments, benchmarks, multicast, reserved with broadcast. IPv6: loopback and compatible addresses,
/// what is translated to IPv4 (SIIT, NAT64, 6to4), unique local, link-local, site-local, multicast. Mapped addresses are IPv4.
const BLOCKED: [&str; 21] = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    // What the hosts of Azure call their own: metadata, and a resolver that knows private names.
    "168.63.129.16/32",
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

/// What is never reachable, with these prefixes beside.
pub fn blocked(others: impl Iterator<Item = Prefix>) -> Vec<Prefix> {
    let mut blocked = Vec::new();
    let always = BLOCKED.iter().filter_map(|text| text.parse().ok());
    always.chain(others).for_each(|prefix| add(&mut blocked, prefix));
    blocked
}

/// Adds a prefix that is not blocked yet.
pub fn add(blocked: &mut Vec<Prefix>, prefix: Prefix) {
    if !blocked.iter().any(|other| other.covers(&prefix)) {
        blocked.push(prefix);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::IpAddr;

    #[test]
    fn every_text_is_a_prefix() {
        assert_eq!(super::blocked(std::iter::empty()).len(), BLOCKED.len());
    }

    #[test]
    fn what_must_be_blocked_is_and_the_internet_is_not() {
        let blocked: Vec<Prefix> = super::blocked(std::iter::empty());
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
            "168.63.129.16",
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
            "168.63.129.15",
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
