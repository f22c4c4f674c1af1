//! Who resolves names for sandboxes with the network `internet`.
//!
//! What a resolver answers is not filtered and need not be: a name that leads to a private address is of no use, as what
//! counts is where a packet goes.

use stacyvm_netlink::{PUBLIC_RESOLVERS, Prefix};
use std::{fs, net::IpAddr};

/// Where the host names its resolvers. The first is a stub's on many, and the second then what is behind that.
const FILES: [&str; 2] = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];
/// Programs read no more.
const MOST: usize = 3;

/// Resolvers for sandboxes: those that are configured, else those of the host that can be reached, else public ones.
pub(crate) fn resolvers(configured: &[IpAddr], blocked: &[Prefix]) -> Vec<IpAddr> {
    if !configured.is_empty() {
        return configured.iter().copied().take(MOST).collect();
    }
    let files = FILES.iter().filter_map(|path| fs::read_to_string(path).ok());
    files
        .map(|text| public(&text, blocked))
        .find(|found| !found.is_empty())
        .unwrap_or_else(|| PUBLIC_RESOLVERS.iter().filter_map(|text| text.parse().ok()).collect())
}

/// Resolvers of a `resolv.conf` that are not blocked.
fn public(text: &str, blocked: &[Prefix]) -> Vec<IpAddr> {
    let words = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver")?.split_ascii_whitespace().next());
    let addresses = words.filter_map(|word| word.parse::<IpAddr>().ok());
    addresses.filter(|address| !is_blocked(*address, blocked)).take(MOST).collect()
}

/// Whether `internet` blocks this address.
pub(crate) fn is_blocked(address: IpAddr, blocked: &[Prefix]) -> bool {
    blocked.iter().any(|prefix| prefix.covers(&address.into()))
}

/// What `/etc/resolv.conf` says in a sandbox.
pub(crate) fn file(resolvers: &[IpAddr]) -> String {
    resolvers.iter().map(|address| format!("nameserver {address}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolvers_that_can_be_reached_are_taken_over() {
        let blocked = stacyvm_netlink::blocked(["198.51.100.0/24".parse().unwrap()].into_iter());
        let text = "# nameserver 8.8.4.4\nnameserver 127.0.0.53\nnameserver 192.168.1.1\nnameserver fe80::1%eth0\n\
            nameserver 198.51.100.1\n  nameserver  8.8.8.8 \nnameserver 2001:4860:4860::8888\noptions edns0\n";
        let found: Vec<_> = public(text, &blocked).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["8.8.8.8", "2001:4860:4860::8888"]);
        assert!(public("nameserver 10.0.0.1\n", &blocked).is_empty());
        let private: Vec<IpAddr> = vec!["10.0.0.1".parse().unwrap()];
        assert_eq!(resolvers(&private, &blocked), private);
        assert_eq!(file(&private), "nameserver 10.0.0.1\n");
    }
}
