//! Getting along with what else decides about forwarded packets on this host.
//!
//! A drop anywhere is final, so nothing of others can open what our table closes, and theirs can close what ours leaves open.
//! Docker does: it sets the policy of `FORWARD` to drop. Two rules at the very end of that chain then let our interfaces
//! through; every rule that an operator has there comes before them. They carry our table's name as a comment, by which
//! they are found and removed. Nothing else that is not ours is ever changed.

use super::{
    names::Names,
    rules::interface,
    table::{chains, find, find_text, rules},
};
use rustix::io::Errno;
use stacyvm_netlink::{Answer, Batch, Rule, Socket, Verdict, attribute as a, attributes, userdata};
use std::fs;

/// The chain that `iptables` makes, which is one of the packet filter's like any other.
const TABLE: &str = "filter";
const CHAIN: &str = "FORWARD";
const FAMILIES: [libc::c_int; 2] = [libc::NFPROTO_IPV4, libc::NFPROTO_IPV6];
/// A rule for each.
const DIRECTIONS: [libc::c_int; 2] = [libc::NFT_META_IIFNAME, libc::NFT_META_OIFNAME];
const DROP: [u8; 4] = (libc::NF_DROP as u32).to_be_bytes();

/// Sees that our interfaces come through; what remains in the way is returned, with what to do about it.
pub(crate) fn open(socket: &Socket, names: &Names) -> Result<Vec<String>, Errno> {
    let mut in_the_way = Vec::new();
    for chain in chains(socket, libc::NFPROTO_UNSPEC)? {
        let text = |kind| find_text(&chain, kind).unwrap_or_default();
        let (table, name) = (text(a::CHAIN_TABLE), text(a::CHAIN_NAME));
        let family = libc::c_int::from(chain.body[0]);
        if table == names.table || !drops_forwarded(&chain) {
            continue;
        }
        if FAMILIES.contains(&family) && table == TABLE && name == CHAIN {
            // One of the two is as good as none.
            if ours(socket, names, family)?.len() != DIRECTIONS.len() {
                remove(socket, names, family)?;
                insert(names, family)?;
            }
        } else if matches!(family, libc::NFPROTO_IPV4 | libc::NFPROTO_IPV6 | libc::NFPROTO_INET) {
            in_the_way.push(format!(
                "the chain {name} of the table {table} drops what sandboxes send and receive: let interfaces {}* through there",
                names.interfaces
            ));
        }
    }
    in_the_way.extend(legacy(names));
    Ok(in_the_way)
}

/// Takes our rules out of the chains of others.
pub(crate) fn close(socket: &Socket, names: &Names) -> Result<(), Errno> {
    FAMILIES.into_iter().try_for_each(|family| remove(socket, names, family))
}

fn remove(socket: &Socket, names: &Names, family: libc::c_int) -> Result<(), Errno> {
    let handles = ours(socket, names, family)?;
    if handles.is_empty() {
        return Ok(());
    }
    let mut batch = Batch::new();
    batch.family = family as u8;
    for handle in handles {
        batch.request(libc::NFT_MSG_DELRULE, 0, |rule| {
            rule.text(a::RULE_TABLE, TABLE);
            rule.text(a::RULE_CHAIN, CHAIN);
            rule.bytes(a::RULE_HANDLE, &handle);
        });
    }
    match batch.commit() {
        // Somebody flushed the chain meanwhile.
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Handles of our rules.
fn ours(socket: &Socket, names: &Names, family: libc::c_int) -> Result<Vec<Vec<u8>>, Errno> {
    let comment = userdata(&names.table);
    let rules = match rules(socket, family, TABLE, Some(CHAIN)) {
        // A kernel without that family.
        Err(Errno::AFNOSUPPORT | Errno::OPNOTSUPP) => Vec::new(),
        result => result?,
    };
    let is_ours = |rule: &&Answer| find(rule, a::RULE_USERDATA) == Some(&comment);
    Ok(rules
        .iter()
        .filter(is_ours)
        .filter_map(|rule| find(rule, a::RULE_HANDLE).map(<[u8]>::to_vec))
        .collect())
}

fn insert(names: &Names, family: libc::c_int) -> Result<(), Errno> {
    let mut batch = Batch::new();
    batch.family = family as u8;
    for direction in DIRECTIONS {
        // As `iptables -A FORWARD -i sv-…+ -j ACCEPT` would write it, counter included: it lists the whole table or none
        // of it.
        Rule::append(&mut batch, TABLE, CHAIN, &names.table, |rule| {
            interface(rule, direction, &names.interfaces);
            rule.count();
            rule.verdict(Verdict::Accept);
        });
    }
    batch.commit()
}

/// Whether a chain sees forwarded packets and drops those that none of its rules decides about.
fn drops_forwarded(chain: &Answer) -> bool {
    let hook = find(chain, a::CHAIN_HOOK).unwrap_or_default();
    let number = attributes(hook).find(|(kind, _)| *kind == a::HOOK_NUMBER).map(|(_, value)| value);
    number == Some(&(libc::NF_INET_FORWARD as u32).to_be_bytes())
        && find(chain, a::CHAIN_POLICY) == Some(&DROP)
}

/// The older packet filter cannot be looked into by the same means.
fn legacy(names: &Names) -> Option<String> {
    let filters =
        |path: &str| fs::read_to_string(path).is_ok_and(|text| text.lines().any(|line| line == TABLE));
    if !filters("/proc/net/ip_tables_names") && !filters("/proc/net/ip6_tables_names") {
        return None;
    }
    let interfaces = &names.interfaces;
    Some(format!(
        "this host uses iptables-legacy, which may drop what sandboxes send and receive: if they do not reach the internet, run `iptables-legacy -A FORWARD -i {interfaces}+ -j ACCEPT; iptables-legacy -A FORWARD -o {interfaces}+ -j ACCEPT`, and the same with ip6tables-legacy"
    ))
}
