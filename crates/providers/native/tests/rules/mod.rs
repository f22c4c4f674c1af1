//! What a network namespace holds of rules, interfaces and routes, and waiting for it to be as it should.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use crate::common::Host;
use stacyvm_netlink::{Answer, Socket, attribute as a, attributes};
use std::time::{Duration, Instant};

/// Host ends of sandboxes.
pub(crate) fn interfaces() -> Vec<String> {
    let text = std::fs::read_to_string("/proc/net/dev").unwrap();
    text.lines()
        .filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned()))
        .filter(|name| name.starts_with("sv-"))
        .collect()
}

pub(crate) fn our_table() -> String {
    let ours =
        tables().into_iter().find_map(|rule| Some(rule.strip_prefix("inet ")?.split(' ').next()?.to_owned()));
    ours.unwrap()
}

/// Every chain and rule in this network namespace: family, table, chain, and for a rule its expressions without what they counted.
pub(crate) fn tables() -> Vec<String> {
    let socket = Socket::open(Some(rustix::net::netlink::NETFILTER)).unwrap();
    let kind = |message: i32| (libc::NFNL_SUBSYS_NFTABLES << 8 | message) as u16;
    let mut found = Vec::new();
    for (name, family) in
        [("inet", libc::NFPROTO_INET), ("ip", libc::NFPROTO_IPV4), ("ip6", libc::NFPROTO_IPV6)]
    {
        let header = [family as u8, 0, 0, 0];
        let text = |answer: &Answer, wanted: u16| {
            let mut all = attributes(&answer.body[4..]);
            let value = all.find(|(kind, _)| *kind == wanted).map(|(_, value)| value).unwrap_or_default();
            String::from_utf8_lossy(value).trim_end_matches('\0').to_owned()
        };
        for chain in socket.list(kind(libc::NFT_MSG_GETCHAIN), &header, |_| {}).unwrap() {
            found.push(format!("{name} {} {}", text(&chain, a::CHAIN_TABLE), text(&chain, a::CHAIN_NAME)));
        }
        for rule in socket.list(kind(libc::NFT_MSG_GETRULE), &header, |_| {}).unwrap() {
            let of = attributes(&rule.body[4..])
                .filter(|(kind, _)| [a::RULE_EXPRESSIONS, a::RULE_USERDATA].contains(kind));
            let bytes: String =
                of.flat_map(|(_, value)| value.iter().map(|byte| format!("{byte:02x}"))).collect();
            // What was counted is eight bytes behind this name and its attributes: cut out as a whole.
            let bytes = match bytes.find("636f756e746572") {
                Some(at) => format!("{}{}", &bytes[..at], &bytes[(at + 2 * 40).min(bytes.len())..]),
                None => bytes,
            };
            let own = String::from_utf8_lossy(&rule.body).contains("stacyvm-");
            let own = if own { " of stacyvm-" } else { "" };
            found.push(format!(
                "{name} {} {}{own} ={bytes}",
                text(&rule, a::RULE_TABLE),
                text(&rule, a::RULE_CHAIN)
            ));
        }
    }
    found
}

#[track_caller]
pub(crate) fn until_tables_are(wanted: &[String]) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while tables() != wanted {
        assert!(Instant::now() < deadline, "the rules are not back: {:?}", tables());
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Waits until no rule is like that: the spawner removes them once its server is gone.
#[track_caller]
pub(crate) fn assert_gone(like: impl Fn(&str) -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while tables().iter().any(|rule| like(rule)) {
        assert!(Instant::now() < deadline, "left: {:?}", tables());
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[track_caller]
pub(crate) fn assert_clean(host: &Host) {
    host.assert_nothing_left();
    assert_gone(|rule| rule.contains("stacyvm-"));
    let deadline = Instant::now() + Duration::from_secs(10);
    while !interfaces().is_empty() {
        assert!(Instant::now() < deadline, "left: {:?}", interfaces());
        std::thread::sleep(Duration::from_millis(20));
    }
    let routes = std::fs::read_to_string("/proc/net/route").unwrap();
    assert!(!routes.contains("sv-"), "{routes}");
}
