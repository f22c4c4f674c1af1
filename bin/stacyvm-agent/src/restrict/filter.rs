//! The packet filter: for each address family a table with a chain for everything that the namespace sends, and one for what
//! of it is refused.
//!
//! That is answered, so that a program learns it at once: a connection as if nobody listened, anything else as a router
//! would that has no way to go on. (To the latter, a connection that is being made listens only a second later.)

use rustix::io::Errno;
use stacyvm_netlink::{Attributes, Batch, Prefix, Rule, Side, Verdict, attribute as a};

const TABLE: &str = "stacyvm";
const OUTPUT: &str = "output";
const REFUSE: &str = "refuse";
/// Index of the loopback interface in every network namespace.
const LOOPBACK: u32 = 1;
/// The least type of ICMPv6 behind errors and echoes: neighbour discovery and group membership, which only the kernel and
/// privileged processes send, and without which an interface has no neighbours.
const DISCOVERY: u8 = 130;

/// Address family of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    fn number(self) -> u8 {
        match self {
            Self::V4 => libc::NFPROTO_IPV4 as u8,
            Self::V6 => libc::NFPROTO_IPV6 as u8,
        }
    }

    /// Code of the answer "destination unreachable" with which programs see `EHOSTUNREACH`: administratively prohibited,
    /// and its nearest with IPv6, address unreachable.
    fn code(self) -> u8 {
        match self {
            Self::V4 => 13,
            Self::V6 => 3,
        }
    }

    fn has(self, prefix: &Prefix) -> bool {
        prefix.address.is_ipv4() == (self == Self::V4)
    }
}

/// Sets the filter of these families, in place of the one that is there.
///
/// # Errors
/// The kernel's; then nothing has changed.
pub(crate) fn install(families: &[Family], blocked: &[Prefix]) -> Result<(), Errno> {
    // All in one: the kernel takes some ten milliseconds to let go of what carried a batch.
    let mut batch = Batch::new();
    for family in families {
        add_table(&mut batch, *family, blocked);
    }
    batch.commit()
}

fn add_table(batch: &mut Batch, family: Family, blocked: &[Prefix]) {
    batch.family = family.number();
    let name = |table: &mut Attributes<'_>| table.text(a::TABLE_NAME, TABLE);
    // What does not exist cannot be removed.
    batch.request(libc::NFT_MSG_NEWTABLE, libc::NLM_F_CREATE, name);
    batch.request(libc::NFT_MSG_DELTABLE, 0, name);
    batch.request(libc::NFT_MSG_NEWTABLE, libc::NLM_F_CREATE, name);
    batch.request(libc::NFT_MSG_NEWCHAIN, libc::NLM_F_CREATE, |chain| {
        chain.text(a::CHAIN_TABLE, TABLE);
        chain.text(a::CHAIN_NAME, REFUSE);
    });
    rule(batch, REFUSE, |rule| {
        rule.meta(libc::NFT_META_L4PROTO);
        rule.compare(libc::NFT_CMP_EQ, &[libc::IPPROTO_TCP as u8]);
        rule.refuse(libc::NFT_REJECT_TCP_RST, 0);
    });
    rule(batch, REFUSE, |rule| rule.refuse(libc::NFT_REJECT_ICMP_UNREACH, family.code()));
    batch.request(libc::NFT_MSG_NEWCHAIN, libc::NLM_F_CREATE, |chain| {
        chain.text(a::CHAIN_TABLE, TABLE);
        chain.text(a::CHAIN_NAME, OUTPUT);
        chain.text(a::CHAIN_TYPE, "filter");
        chain.nest(a::CHAIN_HOOK, |hook| {
            hook.number(a::HOOK_NUMBER, libc::NF_INET_LOCAL_OUT);
            hook.number(a::HOOK_PRIORITY, libc::NF_IP_PRI_FILTER);
        });
    });
    // Whatever has this way out is in this namespace, under whatever address.
    rule(batch, OUTPUT, |rule| {
        rule.meta(libc::NFT_META_OIF);
        rule.compare(libc::NFT_CMP_EQ, &LOOPBACK.to_ne_bytes());
        rule.verdict(Verdict::Accept);
    });
    if family == Family::V6 {
        rule(batch, OUTPUT, |rule| {
            rule.meta(libc::NFT_META_L4PROTO);
            rule.compare(libc::NFT_CMP_EQ, &[libc::IPPROTO_ICMPV6 as u8]);
            rule.payload(libc::NFT_PAYLOAD_TRANSPORT_HEADER, 0, 1);
            rule.compare(libc::NFT_CMP_GTE, &[DISCOVERY]);
            rule.verdict(Verdict::Accept);
        });
    }
    for prefix in blocked.iter().filter(|prefix| family.has(prefix)) {
        rule(batch, OUTPUT, |rule| {
            rule.address(Side::Destination, libc::NFT_CMP_EQ, prefix);
            rule.verdict(Verdict::GoTo(REFUSE));
        });
    }
}

/// Adds a rule behind the others of a chain.
fn rule(batch: &mut Batch, chain: &str, fill: impl FnOnce(&mut Rule<'_, '_>)) {
    Rule::append(batch, TABLE, chain, "", fill);
}
