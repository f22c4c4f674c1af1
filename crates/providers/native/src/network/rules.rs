//! What the table says. It names no sandbox, so it is the same text whenever it is written for the same host.

use super::{
    names::{INTERFACES, Names},
    resolvers::is_blocked,
    table,
};
use libc::c_int;
use rustix::io::Errno;
use stacyvm_netlink::{Attributes, Batch, Prefix, Rule, Side, Socket, Verdict, attribute as a};
use std::net::IpAddr;

/// Before connections are tracked and addresses translated.
const RAW: c_int = -300;
const FILTER: c_int = 0;
/// Where sources are translated.
const SOURCES: c_int = 100;

/// Bits of the state of a connection.
const INVALID: u32 = 1;
const ESTABLISHED: u32 = 1 << 1;
const RELATED: u32 = 1 << 2;
/// Bit of the status of a connection whose destination was replaced.
const REDIRECTED: u32 = 1 << 5;
/// Parts of `fib`, in `linux/netfilter/nf_tables.h`: the interface behind an address, for the source, through the interface
/// of arrival.
const INTERFACE: c_int = 1;
const OF_SOURCE: c_int = 1;
const OF_ARRIVAL: c_int = 8;
/// An answer that says "forbidden" in either family.
const FORBIDDEN: (c_int, u8) = (2, 3);
const DNS: u16 = 53;
/// How often the rules are written when others change the packet filter meanwhile.
const TRIES: u32 = 20;
/// Words of a header of IPv4 without options.
const HEADER_WORDS: u8 = 5;

/// Errors that routers send: no way there, time is up, a parameter is wrong; with IPv6 also: too long.
const ERRORS_V4: [u8; 3] = [3, 11, 12];
const ERRORS_V6: [u8; 4] = [1, 2, 3, 4];

/// Everything that the text depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rules {
    pub(crate) names: Names,
    /// What is not the internet.
    pub(crate) blocked: Vec<Prefix>,
    /// Resolvers of sandboxes.
    pub(crate) resolvers: Vec<IpAddr>,
}

impl Rules {
    /// Writes them, in place of earlier ones, and returns what the kernel made of them, as [`table::contents`] does.
    ///
    /// # Errors
    /// The kernel's; `AGAIN` if others change the packet filter all the time.
    pub(crate) fn write(&self, socket: &Socket) -> Result<Vec<Vec<u8>>, Errno> {
        for _ in 0..TRIES {
            let before = table::generation(socket)?;
            self.batch().commit()?;
            let contents = table::contents(socket, &self.names)?;
            // One change, which was ours: nobody has touched what was read. (Zero is left out of the count.)
            let next = before.checked_add(1).unwrap_or(1);
            if table::generation(socket)? == next {
                return Ok(contents);
            }
        }
        Err(Errno::AGAIN)
    }

    /// The text, in place of an earlier one.
    pub(crate) fn batch(&self) -> Batch {
        let mut batch = Batch::new();
        batch.family = libc::NFPROTO_INET as u8;
        let name = |table: &mut Attributes<'_>| table.text(a::TABLE_NAME, &self.names.table);
        // What does not exist cannot be removed.
        batch.request(libc::NFT_MSG_NEWTABLE, libc::NLM_F_CREATE, name);
        batch.request(libc::NFT_MSG_DELTABLE, 0, name);
        batch.request(libc::NFT_MSG_NEWTABLE, libc::NLM_F_CREATE, name);
        let mut table = Table { batch, rules: self };
        table.refuse();
        table.sources();
        table.incoming();
        table.outgoing();
        table.through();
        table.masquerade();
        table.batch
    }

    /// Resolvers that `internet` would block.
    fn private_resolvers(&self) -> impl Iterator<Item = &IpAddr> {
        self.resolvers.iter().filter(|address| is_blocked(**address, &self.blocked))
    }
}

struct Table<'a> {
    batch: Batch,
    rules: &'a Rules,
}

impl Table<'_> {
    fn chain(&mut self, name: &str, hook: Option<(&str, c_int, c_int)>) {
        let table = &self.rules.names.table;
        self.batch.request(libc::NFT_MSG_NEWCHAIN, libc::NLM_F_CREATE, |chain| {
            chain.text(a::CHAIN_TABLE, table);
            chain.text(a::CHAIN_NAME, name);
            if let Some((kind, number, priority)) = hook {
                chain.text(a::CHAIN_TYPE, kind);
                chain.nest(a::CHAIN_HOOK, |hook| {
                    hook.number(a::HOOK_NUMBER, number);
                    hook.number(a::HOOK_PRIORITY, priority);
                });
            }
        });
    }

    fn rule(&mut self, chain: &str, fill: impl FnOnce(&mut Rule<'_, '_>)) {
        Rule::append(&mut self.batch, &self.rules.names.table, chain, "", fill);
    }

    /// A rule for packets through one of our interfaces.
    fn ours(&mut self, chain: &str, direction: c_int, fill: impl FnOnce(&mut Rule<'_, '_>)) {
        let interfaces = self.rules.names.interfaces.clone();
        self.rule(chain, |rule| {
            interface(rule, direction, &interfaces);
            fill(rule);
        });
    }

    /// What is refused learns it at once: a connection as if nobody listened, anything else by an error.
    fn refuse(&mut self) {
        self.chain("refuse", None);
        self.rule("refuse", |rule| {
            protocol(rule, libc::IPPROTO_TCP);
            rule.refuse(libc::NFT_REJECT_TCP_RST, 0);
        });
        self.rule("refuse", |rule| rule.refuse(FORBIDDEN.0, FORBIDDEN.1));
        self.rule("refuse", |rule| rule.verdict(Verdict::Drop));
    }

    /// A sandbox has the addresses to which there is a route over its interface, and no others.
    fn sources(&mut self) {
        self.chain("prerouting", Some(("filter", libc::NF_INET_PRE_ROUTING, RAW)));
        self.chain("source", None);
        // Those that the kernel does not look up.
        for prefix in unspecified() {
            self.rule("source", |rule| {
                family(rule, &prefix);
                rule.address(Side::Source, libc::NFT_CMP_EQ, &prefix);
                rule.verdict(Verdict::Drop);
            });
        }
        // Options: a list of routers would name destinations behind the one that is looked at.
        self.rule("source", |rule| {
            family(rule, &Prefix::from(IpAddr::from([0; 4])));
            rule.payload(libc::NFT_PAYLOAD_NETWORK_HEADER, 0, 1);
            rule.mask(&[0x0f]);
            rule.compare(libc::NFT_CMP_NEQ, &[HEADER_WORDS]);
            rule.verdict(Verdict::Drop);
        });
        self.rule("source", |rule| {
            rule.route(INTERFACE, OF_SOURCE | OF_ARRIVAL);
            rule.compare(libc::NFT_CMP_EQ, &0u32.to_ne_bytes());
            rule.verdict(Verdict::Drop);
        });
        self.ours("prerouting", libc::NFT_META_IIFNAME, |rule| rule.verdict(Verdict::GoTo("source")));
    }

    /// The host is out of reach under all its addresses, but for a resolver that was named.
    fn incoming(&mut self) {
        self.chain("input", Some(("filter", libc::NF_INET_LOCAL_IN, FILTER)));
        self.chain("to-host", None);
        self.resolvers("to-host");
        self.rule("to-host", |rule| rule.verdict(Verdict::GoTo("refuse")));
        self.ours("input", libc::NFT_META_IIFNAME, |rule| rule.verdict(Verdict::GoTo("to-host")));
    }

    /// The host starts nothing with a sandbox. It answers, and says what is wrong with a packet.
    fn outgoing(&mut self) {
        self.chain("output", Some(("filter", libc::NF_INET_LOCAL_OUT, FILTER)));
        self.chain("from-host", None);
        self.rule("from-host", |rule| {
            state(rule, ESTABLISHED | RELATED);
            rule.verdict(Verdict::Accept);
        });
        let v4 = ERRORS_V4.map(|kind| (libc::IPPROTO_ICMP, kind));
        for (number, kind) in v4.into_iter().chain(ERRORS_V6.map(|kind| (libc::IPPROTO_ICMPV6, kind))) {
            self.rule("from-host", |rule| {
                protocol(rule, number);
                rule.payload(libc::NFT_PAYLOAD_TRANSPORT_HEADER, 0, 1);
                rule.compare(libc::NFT_CMP_EQ, &[kind]);
                rule.verdict(Verdict::Accept);
            });
        }
        self.rule("from-host", |rule| rule.verdict(Verdict::Drop));
        self.ours("output", libc::NFT_META_OIFNAME, |rule| rule.verdict(Verdict::GoTo("from-host")));
    }

    fn through(&mut self) {
        self.chain("forward", Some(("filter", libc::NF_INET_FORWARD, FILTER)));
        self.leaving();
        self.arriving();
        self.ours("forward", libc::NFT_META_IIFNAME, |rule| rule.verdict(Verdict::GoTo("leaving")));
        self.ours("forward", libc::NFT_META_OIFNAME, |rule| rule.verdict(Verdict::GoTo("arriving")));
    }

    /// By destination, whatever a packet claims to belong to.
    fn leaving(&mut self) {
        self.chain("leaving", None);
        // What is of no connection would leave under the sandbox's own address.
        self.rule("leaving", |rule| {
            state(rule, INVALID);
            rule.verdict(Verdict::Drop);
        });
        // Other sandboxes, also those of other installations.
        self.rule("leaving", |rule| {
            interface(rule, libc::NFT_META_OIFNAME, INTERFACES);
            rule.verdict(Verdict::GoTo("refuse"));
        });
        // What the host publishes of its own (containers, virtual machines) under an address that is not blocked.
        self.rule("leaving", |rule| {
            rule.connection(libc::NFT_CT_STATUS);
            rule.mask(&REDIRECTED.to_ne_bytes());
            rule.compare(libc::NFT_CMP_NEQ, &0u32.to_ne_bytes());
            rule.verdict(Verdict::GoTo("refuse"));
        });
        self.resolvers("leaving");
        for prefix in &self.rules.blocked {
            self.rule("leaving", |rule| {
                family(rule, prefix);
                rule.address(Side::Destination, libc::NFT_CMP_EQ, prefix);
                rule.verdict(Verdict::GoTo("refuse"));
            });
        }
        self.rule("leaving", |rule| rule.verdict(Verdict::Accept));
    }

    /// Answers, and errors about what was sent; nothing that a sandbox did not begin.
    fn arriving(&mut self) {
        self.chain("arriving", None);
        self.rule("arriving", |rule| {
            state(rule, ESTABLISHED);
            rule.verdict(Verdict::Accept);
        });
        for number in [libc::IPPROTO_ICMP, libc::IPPROTO_ICMPV6] {
            self.rule("arriving", |rule| {
                protocol(rule, number);
                state(rule, RELATED);
                rule.verdict(Verdict::Accept);
            });
        }
        self.rule("arriving", |rule| rule.verdict(Verdict::Drop));
    }

    fn masquerade(&mut self) {
        self.chain("postrouting", Some(("nat", libc::NF_INET_POST_ROUTING, SOURCES)));
        self.ours("postrouting", libc::NFT_META_IIFNAME, |rule| rule.masquerade());
    }

    /// Lets questions through to resolvers that would be out of reach.
    fn resolvers(&mut self, chain: &str) {
        for address in self.rules.private_resolvers() {
            for number in [libc::IPPROTO_UDP, libc::IPPROTO_TCP] {
                let prefix = Prefix::from(*address);
                self.rule(chain, |rule| {
                    family(rule, &prefix);
                    rule.address(Side::Destination, libc::NFT_CMP_EQ, &prefix);
                    protocol(rule, number);
                    rule.payload(libc::NFT_PAYLOAD_TRANSPORT_HEADER, 2, 2);
                    rule.compare(libc::NFT_CMP_EQ, &DNS.to_be_bytes());
                    rule.verdict(Verdict::Accept);
                });
            }
        }
    }
}

/// Goes on for interfaces whose names begin like this.
pub(crate) fn interface(rule: &mut Rule<'_, '_>, direction: c_int, start: &str) {
    rule.meta(direction);
    rule.compare(libc::NFT_CMP_EQ, start.as_bytes());
}

fn family(rule: &mut Rule<'_, '_>, prefix: &Prefix) {
    let family = if prefix.address.is_ipv4() { libc::NFPROTO_IPV4 } else { libc::NFPROTO_IPV6 };
    rule.meta(libc::NFT_META_NFPROTO);
    rule.compare(libc::NFT_CMP_EQ, &[family as u8]);
}

fn protocol(rule: &mut Rule<'_, '_>, number: c_int) {
    rule.meta(libc::NFT_META_L4PROTO);
    rule.compare(libc::NFT_CMP_EQ, &[number as u8]);
}

fn state(rule: &mut Rule<'_, '_>, states: u32) {
    rule.connection(libc::NFT_CT_STATE);
    rule.mask(&states.to_ne_bytes());
    rule.compare(libc::NFT_CMP_NEQ, &0u32.to_ne_bytes());
}

/// Sources of whoever has no address: nobody here.
fn unspecified() -> Vec<Prefix> {
    ["0.0.0.0/8", "::/96"].iter().filter_map(|text| text.parse().ok()).collect()
}
