//! Netlink messages: a batch of them, and the kernel's answer to it.
//!
//! Written by hand, as the few bytes that they are: a library for it would be felt in the size of every sandbox.

use libc::c_int;
use rustix::{
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with,
        sockopt::{Timeout, set_socket_timeout},
    },
};
use std::time::Duration;

/// The kernel answers before the call that sent the batch returns; this is for what only claims to be one.
const PATIENCE: Duration = Duration::from_secs(5);
/// Bytes before a message's body: length, type, flags, sequence, port.
const HEADER: usize = 16;
/// Room for the kernel's answers; a longer one is cut behind all that is read of it.
const ANSWER: usize = 16 << 10;

/// Requests to the packet filter that take effect together or not at all.
pub(crate) struct Batch {
    bytes: Vec<u8>,
    /// Address family of the tables that requests are about.
    pub(crate) family: u8,
    /// Where the latest request begins, and its number.
    latest: usize,
    sequence: u32,
}

impl Batch {
    /// An empty batch.
    pub(crate) fn new() -> Self {
        let family = libc::NFPROTO_UNSPEC as u8;
        let mut batch = Self { bytes: Vec::new(), family, latest: 0, sequence: 0 };
        batch.edge(libc::NFNL_MSG_BATCH_BEGIN);
        batch
    }

    /// Adds a request.
    pub(crate) fn request(&mut self, kind: c_int, flags: c_int, fill: impl FnOnce(&mut Attributes<'_>)) {
        self.latest = self.bytes.len();
        self.sequence += 1;
        let header = [self.family, libc::NFNETLINK_V0 as u8, 0, 0];
        self.message(libc::NFNL_SUBSYS_NFTABLES << 8 | kind, flags, header, fill);
    }

    /// The message before the first or behind the last request.
    fn edge(&mut self, kind: c_int) {
        let [high, low] = (libc::NFNL_SUBSYS_NFTABLES as u16).to_be_bytes();
        self.message(kind, 0, [libc::AF_UNSPEC as u8, libc::NFNETLINK_V0 as u8, high, low], |_| {});
    }

    fn message(
        &mut self,
        kind: c_int,
        flags: c_int,
        header: [u8; 4],
        fill: impl FnOnce(&mut Attributes<'_>),
    ) {
        let start = self.bytes.len();
        self.bytes.extend([0; 4]);
        self.bytes.extend((kind as u16).to_ne_bytes());
        self.bytes.extend(((libc::NLM_F_REQUEST | flags) as u16).to_ne_bytes());
        self.bytes.extend(self.sequence.to_ne_bytes());
        self.bytes.extend([0; 4]);
        self.bytes.extend(header);
        fill(&mut Attributes(&mut self.bytes));
        let length = (self.bytes.len() - start) as u32;
        self.bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
    }

    /// The finished bytes. The last request is acknowledged when all have taken effect; failures are reported anyway.
    fn finish(mut self) -> Vec<u8> {
        // Bytes 6 and 7 of a message are its flags, and this one is among the lower eight of them.
        let flags = self.latest + if cfg!(target_endian = "little") { 6 } else { 7 };
        self.bytes[flags] |= libc::NLM_F_ACK as u8;
        self.edge(libc::NFNL_MSG_BATCH_END);
        self.bytes
    }

    /// Hands the batch to the kernel and waits for its word.
    ///
    /// # Errors
    /// The first that the kernel reports, `TIMEDOUT` if it reports nothing.
    pub(crate) fn commit(self) -> Result<(), Errno> {
        let socket = socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            Some(netlink::NETFILTER),
        )?;
        set_socket_timeout(&socket, Timeout::Recv, Some(PATIENCE))?;
        let sequence = self.sequence;
        send(&socket, &self.finish(), SendFlags::empty())?;
        let mut answer = vec![0; ANSWER];
        loop {
            let read = match recv(&socket, &mut *answer, RecvFlags::empty()) {
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => return Err(Errno::TIMEDOUT),
                result => result?.0,
            };
            if let Some(outcome) = outcome(&answer[..read], sequence) {
                return outcome;
            }
        }
    }
}

/// What the kernel says of a batch whose last request is `sequence`, if it says that already.
fn outcome(mut answers: &[u8], sequence: u32) -> Option<Result<(), Errno>> {
    let word = |bytes: &[u8], at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let mut done = None;
    while let Some(length) = word(answers, 0).map(|length| length as usize)
        && length >= HEADER
    {
        let kind = answers.get(4..6).map(|kind| c_int::from(u16::from_ne_bytes([kind[0], kind[1]])));
        if kind == Some(libc::NLMSG_ERROR)
            && let (Some(about), Some(code)) = (word(answers, 8), word(answers, HEADER))
        {
            match (code as i32).checked_neg() {
                Some(0) if about == sequence => done = Some(Ok(())),
                Some(0) => {}
                code => return Some(Err(Errno::from_raw_os_error(code.unwrap_or(libc::EIO)))),
            }
        }
        answers = answers.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    done
}

/// Attributes at the end of a message: length, type, value, padded to four bytes.
pub(crate) struct Attributes<'a>(&'a mut Vec<u8>);

impl Attributes<'_> {
    /// Adds one with these bytes.
    pub(crate) fn bytes(&mut self, kind: u16, value: &[u8]) {
        self.attribute(kind, |inner| inner.0.extend(value));
    }

    /// Adds one with a text.
    pub(crate) fn text(&mut self, kind: u16, value: &str) {
        self.attribute(kind, |inner| {
            inner.0.extend(value.bytes());
            inner.0.push(0);
        });
    }

    /// Adds one with a number, as the packet filter takes them.
    pub(crate) fn number(&mut self, kind: u16, value: c_int) {
        self.bytes(kind, &value.to_be_bytes());
    }

    /// Adds one that holds others.
    pub(crate) fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        self.attribute(kind | libc::NLA_F_NESTED as u16, fill);
    }

    fn attribute(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let start = self.0.len();
        self.0.extend([0; 2]);
        self.0.extend(kind.to_ne_bytes());
        fill(self);
        let length = (self.0.len() - start) as u16;
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Type and value of each attribute.
    fn attributes(mut bytes: &[u8]) -> Vec<(u16, Vec<u8>)> {
        let mut found = Vec::new();
        while !bytes.is_empty() {
            let half = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
            let length = usize::from(half(0));
            found.push((half(2), bytes[4..length].to_vec()));
            bytes = &bytes[length.next_multiple_of(4)..];
        }
        found
    }

    /// Type, flags, sequence and body of each message.
    fn messages(mut bytes: &[u8]) -> Vec<(u16, u16, u32, Vec<u8>)> {
        let mut found = Vec::new();
        while !bytes.is_empty() {
            let half = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
            let word = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
            let length = word(0) as usize;
            found.push((half(4), half(6), word(8), bytes[HEADER..length].to_vec()));
            bytes = &bytes[length..];
        }
        found
    }

    fn answer(kind: c_int, sequence: u32, code: i32) -> Vec<u8> {
        let mut bytes = 36u32.to_ne_bytes().to_vec();
        bytes.extend((kind as u16).to_ne_bytes());
        bytes.extend([0; 2]);
        bytes.extend(sequence.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend(code.to_ne_bytes());
        bytes.extend([0; 16]);
        bytes
    }

    #[test]
    fn a_batch_is_framed_and_its_last_request_acknowledged() {
        let mut batch = Batch::new();
        batch.family = libc::NFPROTO_IPV4 as u8;
        batch.request(libc::NFT_MSG_NEWTABLE, 0, |table| table.text(1, "abc"));
        batch.request(libc::NFT_MSG_DELTABLE, libc::NLM_F_CREATE, |table| table.number(2, 7));
        let bytes = batch.finish();
        let found = messages(&bytes);
        let kinds: Vec<_> =
            found.iter().map(|(kind, flags, sequence, _)| (*kind, *flags, *sequence)).collect();
        assert_eq!(kinds, [(16, 1, 0), (0xa00, 1, 1), (0xa02, 0x405, 2), (17, 1, 2)]);
        assert_eq!(found[0].3, [0, 0, 0, 10]);
        assert_eq!(found[1].3[..4], [2, 0, 0, 0]);
        assert_eq!(attributes(&found[1].3[4..]), [(1, b"abc\0".to_vec())]);
        assert_eq!(attributes(&found[2].3[4..]), [(2, vec![0, 0, 0, 7])]);
    }

    #[test]
    fn only_the_last_acknowledgement_is_success() {
        let error = libc::NLMSG_ERROR;
        assert_eq!(outcome(&answer(error, 3, 0), 3), Some(Ok(())));
        assert_eq!(outcome(&answer(error, 2, 0), 3), None);
        assert_eq!(outcome(&answer(libc::NLMSG_NOOP, 3, 0), 3), None);
        let both = [answer(error, 3, 0), answer(error, 1, -libc::EPERM)].concat();
        assert_eq!(outcome(&both, 3), Some(Err(Errno::PERM)));
    }

    proptest! {
        #[test]
        fn attributes_are_read_as_they_were_written(values: Vec<(u16, Vec<u8>)>, outer in 0u16..0x4000) {
            let mut bytes = Vec::new();
            Attributes(&mut bytes).nest(outer, |inner| {
                for (kind, value) in &values {
                    inner.bytes(*kind, value);
                }
            });
            let found = attributes(&bytes);
            prop_assert_eq!(found.len(), 1);
            prop_assert_eq!(found[0].0, outer | 0x8000);
            prop_assert_eq!(attributes(&found[0].1), values);
        }

        #[test]
        fn no_answer_is_too_strange(mut bytes: Vec<u8>, length: u8, sequence: u32) {
            let _ = outcome(&bytes, sequence);
            if let Some(first) = bytes.first_mut() {
                *first = length;
            }
            let _ = outcome(&bytes, sequence);
        }
    }
}
