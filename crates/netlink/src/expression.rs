//! The expressions of the packet filter's rules.

use crate::{Attributes, Batch, Prefix};
use libc::c_int;
use std::net::IpAddr;

/// Bytes that one comparison takes.
const REGISTER: c_int = libc::NFT_REG_1;
/// Type of a comment in what the kernel keeps for whoever lists rules, as `nft` and `iptables` read it.
const COMMENT: u8 = 0;
/// Longest comment, with its end, that those read.
const COMMENT_BYTES: usize = 128;

/// Types of attributes, which are those of `linux/netfilter/nf_tables.h`.
#[expect(missing_docs, reason = "the kernel's names")]
pub mod attribute {
    pub const LIST_ELEMENT: u16 = 1;
    pub const TABLE_NAME: u16 = 1;
    pub const CHAIN_TABLE: u16 = 1;
    pub const CHAIN_NAME: u16 = 3;
    pub const CHAIN_HOOK: u16 = 4;
    pub const CHAIN_POLICY: u16 = 5;
    pub const CHAIN_TYPE: u16 = 7;
    pub const HOOK_NUMBER: u16 = 1;
    pub const HOOK_PRIORITY: u16 = 2;
    pub const RULE_TABLE: u16 = 1;
    pub const RULE_CHAIN: u16 = 2;
    pub const RULE_HANDLE: u16 = 3;
    pub const RULE_EXPRESSIONS: u16 = 4;
    pub const RULE_USERDATA: u16 = 7;
    pub const EXPRESSION_NAME: u16 = 1;
    pub const EXPRESSION_DATA: u16 = 2;
    pub const DATA_VALUE: u16 = 1;
    pub const DATA_VERDICT: u16 = 2;
    pub const VERDICT_CODE: u16 = 1;
    pub const VERDICT_CHAIN: u16 = 2;
    pub const META_REGISTER: u16 = 1;
    pub const META_KEY: u16 = 2;
    pub const CONNECTION_REGISTER: u16 = 1;
    pub const CONNECTION_KEY: u16 = 2;
    pub const ROUTE_REGISTER: u16 = 1;
    pub const ROUTE_RESULT: u16 = 2;
    pub const ROUTE_FLAGS: u16 = 3;
    pub const PAYLOAD_REGISTER: u16 = 1;
    pub const PAYLOAD_BASE: u16 = 2;
    pub const PAYLOAD_OFFSET: u16 = 3;
    pub const PAYLOAD_LENGTH: u16 = 4;
    pub const BITWISE_SOURCE: u16 = 1;
    pub const BITWISE_REGISTER: u16 = 2;
    pub const BITWISE_LENGTH: u16 = 3;
    pub const BITWISE_MASK: u16 = 4;
    pub const BITWISE_XOR: u16 = 5;
    pub const COMPARE_REGISTER: u16 = 1;
    pub const COMPARE_OPERATION: u16 = 2;
    pub const COMPARE_DATA: u16 = 3;
    pub const IMMEDIATE_REGISTER: u16 = 1;
    pub const IMMEDIATE_DATA: u16 = 2;
    pub const REJECT_TYPE: u16 = 1;
    pub const REJECT_CODE: u16 = 2;
}
use attribute as a;

/// What becomes of a packet that a rule matches.
#[derive(Debug, Clone, Copy)]
pub enum Verdict<'a> {
    /// It passes this chain.
    Accept,
    /// It is gone.
    Drop,
    /// It goes through another chain, and if that has no verdict, on in this one.
    Jump(&'a str),
    /// It goes through another chain, and on behind this one's caller.
    GoTo(&'a str),
}

/// The expressions of a rule. A comparison that fails ends it.
pub struct Rule<'a, 'b>(&'a mut Attributes<'b>);

impl Rule<'_, '_> {
    /// Adds a rule behind the others of a chain, with a comment unless that is empty.
    pub fn append(
        batch: &mut Batch,
        table: &str,
        chain: &str,
        comment: &str,
        fill: impl FnOnce(&mut Rule<'_, '_>),
    ) {
        batch.request(libc::NFT_MSG_NEWRULE, libc::NLM_F_CREATE | libc::NLM_F_APPEND, |rule| {
            rule.text(a::RULE_TABLE, table);
            rule.text(a::RULE_CHAIN, chain);
            rule.nest(a::RULE_EXPRESSIONS, |list| fill(&mut Rule(list)));
            if !comment.is_empty() {
                rule.bytes(a::RULE_USERDATA, &userdata(comment));
            }
        });
    }

    fn expression(&mut self, name: &str, fill: impl FnOnce(&mut Attributes<'_>)) {
        self.0.nest(a::LIST_ELEMENT, |element| {
            element.text(a::EXPRESSION_NAME, name);
            element.nest(a::EXPRESSION_DATA, |data| fill(data));
        });
    }

    /// Loads what the kernel knows of the packet.
    pub fn meta(&mut self, key: c_int) {
        self.expression("meta", |meta| {
            meta.number(a::META_REGISTER, REGISTER);
            meta.number(a::META_KEY, key);
        });
    }

    /// Loads what is known of the packet's connection, a number in this machine's order.
    pub fn connection(&mut self, key: c_int) {
        self.expression("ct", |connection| {
            connection.number(a::CONNECTION_REGISTER, REGISTER);
            connection.number(a::CONNECTION_KEY, key);
        });
    }

    /// Loads what the host's routes say of an address of the packet.
    pub fn route(&mut self, result: c_int, flags: c_int) {
        self.expression("fib", |route| {
            route.number(a::ROUTE_REGISTER, REGISTER);
            route.number(a::ROUTE_RESULT, result);
            route.number(a::ROUTE_FLAGS, flags);
        });
    }

    /// Loads bytes of the packet.
    pub fn payload(&mut self, base: c_int, offset: c_int, length: c_int) {
        self.expression("payload", |payload| {
            payload.number(a::PAYLOAD_REGISTER, REGISTER);
            payload.number(a::PAYLOAD_BASE, base);
            payload.number(a::PAYLOAD_OFFSET, offset);
            payload.number(a::PAYLOAD_LENGTH, length);
        });
    }

    /// Keeps the bits of a mask in what was loaded.
    pub fn mask(&mut self, mask: &[u8]) {
        self.expression("bitwise", |bitwise| {
            bitwise.number(a::BITWISE_SOURCE, REGISTER);
            bitwise.number(a::BITWISE_REGISTER, REGISTER);
            bitwise.number(a::BITWISE_LENGTH, mask.len() as c_int);
            bitwise.nest(a::BITWISE_MASK, |data| data.bytes(a::DATA_VALUE, mask));
            bitwise.nest(a::BITWISE_XOR, |data| data.bytes(a::DATA_VALUE, &vec![0; mask.len()]));
        });
    }

    /// Goes on only if what was loaded compares to `value` like this.
    pub fn compare(&mut self, operation: c_int, value: &[u8]) {
        self.expression("cmp", |compare| {
            compare.number(a::COMPARE_REGISTER, REGISTER);
            compare.number(a::COMPARE_OPERATION, operation);
            compare.nest(a::COMPARE_DATA, |data| data.bytes(a::DATA_VALUE, value));
        });
    }

    /// Goes on only if the packet's destination (or its source) is, or is not, in this prefix. That it is of the prefix's
    /// family must be known.
    pub fn address(&mut self, side: Side, operation: c_int, prefix: &Prefix) {
        let (source, length) = match prefix.address {
            IpAddr::V4(_) => (12, 4),
            IpAddr::V6(_) => (8, 16),
        };
        let offset = if side == Side::Source { source } else { source + length };
        self.payload(libc::NFT_PAYLOAD_NETWORK_HEADER, offset, length);
        self.mask(&prefix.mask());
        self.compare(operation, &prefix.bytes());
    }

    /// Counts what comes this far.
    pub fn count(&mut self) {
        self.expression("counter", |_| {});
    }

    /// Gives the packet the address of the interface through which it leaves.
    pub fn masquerade(&mut self) {
        self.expression("masq", |_| {});
    }

    /// Decides.
    pub fn verdict(&mut self, verdict: Verdict<'_>) {
        let (code, chain) = match verdict {
            Verdict::Accept => (libc::NF_ACCEPT, None),
            Verdict::Drop => (libc::NF_DROP, None),
            Verdict::Jump(chain) => (libc::NFT_JUMP, Some(chain)),
            Verdict::GoTo(chain) => (libc::NFT_GOTO, Some(chain)),
        };
        self.expression("immediate", |immediate| {
            immediate.number(a::IMMEDIATE_REGISTER, libc::NFT_REG_VERDICT);
            immediate.nest(a::IMMEDIATE_DATA, |data| {
                data.nest(a::DATA_VERDICT, |verdict| {
                    verdict.number(a::VERDICT_CODE, code);
                    if let Some(chain) = chain {
                        verdict.text(a::VERDICT_CHAIN, chain);
                    }
                });
            });
        });
    }

    /// Refuses the packet with an answer of this type and code.
    pub fn refuse(&mut self, kind: c_int, code: u8) {
        self.expression("reject", |reject| {
            reject.number(a::REJECT_TYPE, kind);
            reject.bytes(a::REJECT_CODE, &[code]);
        });
    }
}

/// An address of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Where it comes from.
    Source,
    /// Where it goes.
    Destination,
}

/// A comment as the kernel keeps it: type, length, text with its end.
pub fn userdata(comment: &str) -> Vec<u8> {
    let text = &comment.as_bytes()[..comment.len().min(COMMENT_BYTES - 1)];
    let mut bytes = vec![COMMENT, text.len() as u8 + 1];
    bytes.extend(text);
    bytes.push(0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comment_is_cut_where_its_readers_end() {
        assert_eq!(userdata("ab"), [0, 3, b'a', b'b', 0]);
        let long = userdata(&"x".repeat(1000));
        assert_eq!((long.len(), long[1], long.last()), (130, 128, Some(&0)));
    }
}
