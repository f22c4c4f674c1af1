//! The packet filter: for each address family a table with a chain for everything that the namespace sends, and one for what
//! of it is refused.
//!
//! That is answered, so that a program learns it at once: a connection as if nobody listened, anything else as a router
//! would that has no way to go on. (To the latter, a connection that is being made listens only a second later.)

use super::{
    netlink::{Attributes, Batch},
    prefix::Prefix,
};
use libc::c_int;
use rustix::io::Errno;

const TABLE: &str = "stacyvm";
const OUTPUT: &str = "output";
const REFUSE: &str = "refuse";
/// Bytes that one comparison takes.
const REGISTER: c_int = libc::NFT_REG_1;
/// Index of the loopback interface in every network namespace.
const LOOPBACK: u32 = 1;
/// The least type of ICMPv6 behind errors and echoes: neighbour discovery and group membership, which only the kernel and
/// privileged processes send, and without which an interface has no neighbours.
const DISCOVERY: u8 = 130;

/// Types of attributes, which are those of `linux/netfilter/nf_tables.h`.
mod attribute {
    pub(super) const LIST_ELEMENT: u16 = 1;
    pub(super) const TABLE_NAME: u16 = 1;
    pub(super) const CHAIN_TABLE: u16 = 1;
    pub(super) const CHAIN_NAME: u16 = 3;
    pub(super) const CHAIN_HOOK: u16 = 4;
    pub(super) const CHAIN_TYPE: u16 = 7;
    pub(super) const HOOK_NUMBER: u16 = 1;
    pub(super) const HOOK_PRIORITY: u16 = 2;
    pub(super) const RULE_TABLE: u16 = 1;
    pub(super) const RULE_CHAIN: u16 = 2;
    pub(super) const RULE_EXPRESSIONS: u16 = 4;
    pub(super) const EXPRESSION_NAME: u16 = 1;
    pub(super) const EXPRESSION_DATA: u16 = 2;
    pub(super) const DATA_VALUE: u16 = 1;
    pub(super) const DATA_VERDICT: u16 = 2;
    pub(super) const VERDICT_CODE: u16 = 1;
    pub(super) const VERDICT_CHAIN: u16 = 2;
    pub(super) const META_REGISTER: u16 = 1;
    pub(super) const META_KEY: u16 = 2;
    pub(super) const PAYLOAD_REGISTER: u16 = 1;
    pub(super) const PAYLOAD_BASE: u16 = 2;
    pub(super) const PAYLOAD_OFFSET: u16 = 3;
    pub(super) const PAYLOAD_LENGTH: u16 = 4;
    pub(super) const BITWISE_SOURCE: u16 = 1;
    pub(super) const BITWISE_REGISTER: u16 = 2;
    pub(super) const BITWISE_LENGTH: u16 = 3;
    pub(super) const BITWISE_MASK: u16 = 4;
    pub(super) const BITWISE_XOR: u16 = 5;
    pub(super) const COMPARE_REGISTER: u16 = 1;
    pub(super) const COMPARE_OPERATION: u16 = 2;
    pub(super) const COMPARE_DATA: u16 = 3;
    pub(super) const IMMEDIATE_REGISTER: u16 = 1;
    pub(super) const IMMEDIATE_DATA: u16 = 2;
    pub(super) const REJECT_TYPE: u16 = 1;
    pub(super) const REJECT_CODE: u16 = 2;
}
use attribute as a;

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

    /// Where a header of this family has the destination.
    fn destination(self) -> c_int {
        match self {
            Self::V4 => 16,
            Self::V6 => 24,
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
        rule.accept();
    });
    if family == Family::V6 {
        rule(batch, OUTPUT, |rule| {
            rule.meta(libc::NFT_META_L4PROTO);
            rule.compare(libc::NFT_CMP_EQ, &[libc::IPPROTO_ICMPV6 as u8]);
            rule.payload(libc::NFT_PAYLOAD_TRANSPORT_HEADER, 0, 1);
            rule.compare(libc::NFT_CMP_GTE, &[DISCOVERY]);
            rule.accept();
        });
    }
    for prefix in blocked.iter().filter(|prefix| family.has(prefix)) {
        let address = prefix.bytes();
        rule(batch, OUTPUT, |rule| {
            rule.payload(libc::NFT_PAYLOAD_NETWORK_HEADER, family.destination(), address.len() as c_int);
            rule.mask(&prefix.mask());
            rule.compare(libc::NFT_CMP_EQ, &address);
            rule.go_to(REFUSE);
        });
    }
}

/// Adds a rule behind the others of a chain.
fn rule(batch: &mut Batch, chain: &str, fill: impl FnOnce(&mut Rule<'_, '_>)) {
    batch.request(libc::NFT_MSG_NEWRULE, libc::NLM_F_CREATE | libc::NLM_F_APPEND, |rule| {
        rule.text(a::RULE_TABLE, TABLE);
        rule.text(a::RULE_CHAIN, chain);
        rule.nest(a::RULE_EXPRESSIONS, |list| fill(&mut Rule(list)));
    });
}

/// The expressions of a rule. A comparison that fails ends it.
struct Rule<'a, 'b>(&'a mut Attributes<'b>);

impl Rule<'_, '_> {
    fn expression(&mut self, name: &str, fill: impl FnOnce(&mut Attributes<'_>)) {
        self.0.nest(a::LIST_ELEMENT, |element| {
            element.text(a::EXPRESSION_NAME, name);
            element.nest(a::EXPRESSION_DATA, |data| fill(data));
        });
    }

    /// Loads what the kernel knows of the packet.
    fn meta(&mut self, key: c_int) {
        self.expression("meta", |meta| {
            meta.number(a::META_REGISTER, REGISTER);
            meta.number(a::META_KEY, key);
        });
    }

    /// Loads bytes of the packet.
    fn payload(&mut self, base: c_int, offset: c_int, length: c_int) {
        self.expression("payload", |payload| {
            payload.number(a::PAYLOAD_REGISTER, REGISTER);
            payload.number(a::PAYLOAD_BASE, base);
            payload.number(a::PAYLOAD_OFFSET, offset);
            payload.number(a::PAYLOAD_LENGTH, length);
        });
    }

    /// Keeps the bits of a mask in what was loaded.
    fn mask(&mut self, mask: &[u8]) {
        self.expression("bitwise", |bitwise| {
            bitwise.number(a::BITWISE_SOURCE, REGISTER);
            bitwise.number(a::BITWISE_REGISTER, REGISTER);
            bitwise.number(a::BITWISE_LENGTH, mask.len() as c_int);
            bitwise.nest(a::BITWISE_MASK, |data| data.bytes(a::DATA_VALUE, mask));
            bitwise.nest(a::BITWISE_XOR, |data| data.bytes(a::DATA_VALUE, &vec![0; mask.len()]));
        });
    }

    /// Goes on only if what was loaded compares to `value` like this.
    fn compare(&mut self, operation: c_int, value: &[u8]) {
        self.expression("cmp", |compare| {
            compare.number(a::COMPARE_REGISTER, REGISTER);
            compare.number(a::COMPARE_OPERATION, operation);
            compare.nest(a::COMPARE_DATA, |data| data.bytes(a::DATA_VALUE, value));
        });
    }

    /// Lets the packet pass.
    fn accept(&mut self) {
        self.verdict(|verdict| verdict.number(a::VERDICT_CODE, libc::NF_ACCEPT));
    }

    /// Hands the packet over to another chain.
    fn go_to(&mut self, chain: &str) {
        self.verdict(|verdict| {
            verdict.number(a::VERDICT_CODE, libc::NFT_GOTO);
            verdict.text(a::VERDICT_CHAIN, chain);
        });
    }

    fn verdict(&mut self, fill: impl FnOnce(&mut Attributes<'_>)) {
        self.expression("immediate", |immediate| {
            immediate.number(a::IMMEDIATE_REGISTER, libc::NFT_REG_VERDICT);
            immediate.nest(a::IMMEDIATE_DATA, |data| data.nest(a::DATA_VERDICT, fill));
        });
    }

    /// Refuses the packet with an answer of this type and code.
    fn refuse(&mut self, kind: c_int, code: u8) {
        self.expression("reject", |reject| {
            reject.number(a::REJECT_TYPE, kind);
            reject.bytes(a::REJECT_CODE, &[code]);
        });
    }
}
