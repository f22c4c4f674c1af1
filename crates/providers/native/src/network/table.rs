//! The table in the kernel: written, looked at, taken away.

use super::names::Names;
use rustix::{io::Errno, net::netlink};
use stacyvm_netlink::{Answer, Batch, Socket, attribute as a, attributes};

/// Bytes of the header of everything about the packet filter: family, version, two more.
const HEADER: usize = 4;
/// `NFTA_GEN_ID`.
const GENERATION: u16 = 1;

/// A way to ask about the packet filter.
///
/// # Errors
/// The kernel's: it has none.
pub(crate) fn socket() -> Result<Socket, Errno> {
    Socket::open(Some(netlink::NETFILTER))
}

/// Hears of every change to any table of this network namespace.
///
/// # Errors
/// As [`socket`].
pub(crate) fn listen() -> Result<Socket, Errno> {
    // `NFNLGRP_NFTABLES`, counted from one.
    Socket::listen(Some(netlink::NETFILTER), 1 << 6)
}

fn kind(message: libc::c_int) -> u16 {
    (libc::NFNL_SUBSYS_NFTABLES << 8 | message) as u16
}

fn header(family: libc::c_int) -> [u8; HEADER] {
    [family as u8, libc::NFNETLINK_V0 as u8, 0, 0]
}

/// A number that changes with every change of any table of this network namespace.
pub(crate) fn generation(socket: &Socket) -> Result<u32, Errno> {
    let answer = socket.get(kind(libc::NFT_MSG_GETGEN), &header(libc::NFPROTO_UNSPEC), |_| {})?;
    let value = find(&answer, GENERATION).and_then(|value| value.try_into().ok());
    value.map(u32::from_be_bytes).ok_or(Errno::IO)
}

/// The value of an attribute.
pub(crate) fn find(answer: &Answer, wanted: u16) -> Option<&[u8]> {
    attributes(answer.body.get(HEADER..)?).find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
}

/// The text of an attribute.
pub(crate) fn find_text(answer: &Answer, wanted: u16) -> Option<String> {
    let value = find(answer, wanted)?;
    Some(String::from_utf8_lossy(value).trim_end_matches('\0').to_owned())
}

/// Chains of all tables of a family, or of all families.
pub(crate) fn chains(socket: &Socket, family: libc::c_int) -> Result<Vec<Answer>, Errno> {
    socket.list(kind(libc::NFT_MSG_GETCHAIN), &header(family), |_| {})
}

/// Rules of a table, or of one of its chains, in their order.
pub(crate) fn rules(
    socket: &Socket,
    family: libc::c_int,
    table: &str,
    chain: Option<&str>,
) -> Result<Vec<Answer>, Errno> {
    let listed = socket.list(kind(libc::NFT_MSG_GETRULE), &header(family), |rule| {
        rule.text(a::RULE_TABLE, table);
        if let Some(chain) = chain {
            rule.text(a::RULE_CHAIN, chain);
        }
    });
    match listed {
        Err(Errno::NOENT) => Ok(Vec::new()),
        result => result,
    }
}

/// What the kernel has of an installation's table, as far as it decides about packets: chains with where they hang, rules
/// with their expressions. Empty if there is none.
pub(crate) fn contents(socket: &Socket, names: &Names) -> Result<Vec<Vec<u8>>, Errno> {
    let mut contents = Vec::new();
    let mut add = |answer: &Answer, wanted: &[u16]| {
        let parts = wanted.iter().map(|wanted| find(answer, *wanted).unwrap_or_default());
        contents.push(parts.flat_map(|part| [&(part.len() as u32).to_ne_bytes(), part].concat()).collect());
    };
    for chain in chains(socket, libc::NFPROTO_INET)? {
        if find_text(&chain, a::CHAIN_TABLE).as_ref() == Some(&names.table) {
            add(&chain, &[a::CHAIN_NAME, a::CHAIN_TYPE, a::CHAIN_HOOK, a::CHAIN_POLICY]);
        }
    }
    for rule in rules(socket, libc::NFPROTO_INET, &names.table, None)? {
        add(&rule, &[a::RULE_CHAIN, a::RULE_EXPRESSIONS]);
    }
    Ok(contents)
}

/// Takes the table away, if it is there.
pub(crate) fn remove(names: &Names) -> Result<(), Errno> {
    let mut batch = Batch::new();
    batch.family = libc::NFPROTO_INET as u8;
    batch.request(libc::NFT_MSG_DELTABLE, 0, |table| table.text(a::TABLE_NAME, &names.table));
    match batch.commit() {
        Err(Errno::NOENT) => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        failure::Doing,
        network::{coexist, link::in_thread, rules::Rules},
        sys,
    };

    /// Does something in a network namespace of its own, as root.
    fn apart(work: impl FnOnce() + Send) {
        if !rustix::process::geteuid().is_root() {
            println!("not run: it takes root");
            return;
        }
        let inside = || {
            sys::unshare_network().doing(|| "make a network namespace".to_owned())?;
            work();
            Ok(())
        };
        in_thread(inside).unwrap();
    }

    fn rules(blocked: &[&str], resolvers: &[&str]) -> Rules {
        Rules {
            names: Names::of("x"),
            blocked: stacyvm_netlink::blocked(blocked.iter().map(|text| text.parse().unwrap())),
            resolvers: resolvers.iter().map(|text| text.parse().unwrap()).collect(),
        }
    }

    #[test]
    fn the_same_rules_are_the_same_table_and_others_another() {
        apart(|| {
            let socket = socket().unwrap();
            let names = Names::of("x");
            let written = |rules: &Rules| {
                let written = rules.write(&socket).unwrap();
                assert_eq!(contents(&socket, &names).unwrap(), written);
                written
            };
            assert!(contents(&socket, &names).unwrap().is_empty());
            let first = written(&rules(&[], &["1.1.1.1"]));
            let number = generation(&socket).unwrap();
            assert_eq!(written(&rules(&[], &["1.1.1.1"])), first);
            assert_ne!(generation(&socket).unwrap(), number);
            let blocks = written(&rules(&["203.0.113.0/24"], &["1.1.1.1"]));
            assert_eq!(blocks.len(), first.len() + 1);
            // A resolver that is blocked is let through for names, to the host and beyond, over both protocols.
            assert_eq!(written(&rules(&[], &["10.0.0.1"])).len(), first.len() + 4);
            remove(&names).unwrap();
            assert!(contents(&socket, &names).unwrap().is_empty());
            remove(&names).unwrap();
        });
    }

    #[test]
    fn a_chain_of_others_that_is_in_the_way_is_named_and_left_alone() {
        apart(|| {
            let (socket, names) = (socket().unwrap(), Names::of("x"));
            // What the older packet filter has is the whole host's.
            let open = || {
                let said = coexist::open(&socket, &names).unwrap();
                said.into_iter().filter(|text| !text.contains("iptables-legacy")).collect::<Vec<_>>()
            };
            assert_eq!(open(), Vec::<String>::new());
            let mut batch = Batch::new();
            batch.family = libc::NFPROTO_INET as u8;
            batch.request(libc::NFT_MSG_NEWTABLE, libc::NLM_F_CREATE, |table| {
                table.text(a::TABLE_NAME, "firewall");
            });
            batch.request(libc::NFT_MSG_NEWCHAIN, libc::NLM_F_CREATE, |chain| {
                chain.text(a::CHAIN_TABLE, "firewall");
                chain.text(a::CHAIN_NAME, "routed");
                chain.text(a::CHAIN_TYPE, "filter");
                chain.number(a::CHAIN_POLICY, libc::NF_DROP);
                chain.nest(a::CHAIN_HOOK, |hook| {
                    hook.number(a::HOOK_NUMBER, libc::NF_INET_FORWARD);
                    hook.number(a::HOOK_PRIORITY, 0);
                });
            });
            batch.commit().unwrap();
            let number = generation(&socket).unwrap();
            let said = open();
            assert!(said.len() == 1 && said[0].contains("routed of the table firewall"), "{said:?}");
            coexist::close(&socket, &names).unwrap();
            assert_eq!(generation(&socket).unwrap(), number, "something was changed");
        });
    }
}
