//! A batch of requests to the packet filter, and the kernel's answer to it.

use crate::{
    message::{Attributes, append, messages},
    socket::{ANSWER, Socket},
};
use libc::c_int;
use rustix::{io::Errno, net::netlink};

/// Requests to the packet filter that take effect together or not at all.
pub struct Batch {
    bytes: Vec<u8>,
    /// Address family of the tables that requests are about.
    pub family: u8,
    /// Where the latest request begins, and its number.
    latest: usize,
    sequence: u32,
}

impl Default for Batch {
    fn default() -> Self {
        Self::new()
    }
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Self {
        let family = libc::NFPROTO_UNSPEC as u8;
        let mut batch = Self { bytes: Vec::new(), family, latest: 0, sequence: 0 };
        batch.edge(libc::NFNL_MSG_BATCH_BEGIN);
        batch
    }

    /// Adds a request.
    pub fn request(&mut self, kind: c_int, flags: c_int, fill: impl FnOnce(&mut Attributes<'_>)) {
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
        let flags = (libc::NLM_F_REQUEST | flags) as u16;
        append(&mut self.bytes, kind as u16, flags, self.sequence, &header, fill);
    }

    /// The finished bytes. The last request is acknowledged when all have taken effect; failures are reported anyway.
    fn finish(mut self) -> Vec<u8> {
        // Bytes 6 and 7 of a message are its flags, and this one is among the lower eight of them.
        let flags = self.latest + if cfg!(target_endian = "little") { 6 } else { 7 };
        self.bytes[flags] |= libc::NLM_F_ACK as u8;
        self.edge(libc::NFNL_MSG_BATCH_END);
        self.bytes
    }

    /// Hands the batch, which is not empty, to the kernel and waits for its word.
    ///
    /// # Errors
    /// The first that the kernel reports, `TIMEDOUT` if it reports nothing.
    pub fn commit(self) -> Result<(), Errno> {
        let socket = Socket::open(Some(netlink::NETFILTER))?;
        let sequence = self.sequence;
        socket.send(&self.finish())?;
        let mut answer = vec![0; ANSWER];
        loop {
            let read = socket.receive(&mut answer)?;
            if let Some(outcome) = outcome(&answer[..read], sequence) {
                return outcome;
            }
        }
    }
}

/// What the kernel says of a batch whose last request is `sequence`, if it says that already.
fn outcome(answers: &[u8], sequence: u32) -> Option<Result<(), Errno>> {
    let mut done = None;
    for message in messages(answers).filter(|message| c_int::from(message.kind) == libc::NLMSG_ERROR) {
        match crate::socket::code(message.body) {
            Some(Ok(())) if message.sequence == sequence => done = Some(Ok(())),
            Some(Err(error)) => return Some(Err(error)),
            _ => {}
        }
    }
    done
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::attributes;
    use proptest::prelude::*;

    fn answer(kind: c_int, sequence: u32, code: i32) -> Vec<u8> {
        let mut bytes = Vec::new();
        append(&mut bytes, kind as u16, 0, sequence, &[&code.to_ne_bytes()[..], &[0; 16]].concat(), |_| {});
        bytes
    }

    #[test]
    fn a_batch_is_framed_and_its_last_request_acknowledged() {
        let mut batch = Batch::new();
        batch.family = libc::NFPROTO_IPV4 as u8;
        batch.request(libc::NFT_MSG_NEWTABLE, 0, |table| table.text(1, "abc"));
        batch.request(libc::NFT_MSG_DELTABLE, libc::NLM_F_CREATE, |table| table.number(2, 7));
        let bytes = batch.finish();
        let found: Vec<_> = messages(&bytes).collect();
        let kinds: Vec<_> =
            found.iter().map(|message| (message.kind, message.flags, message.sequence)).collect();
        assert_eq!(kinds, [(16, 1, 0), (0xa00, 1, 1), (0xa02, 0x405, 2), (17, 1, 2)]);
        assert_eq!(found[0].body, [0, 0, 0, 10]);
        assert_eq!(found[1].body[..4], [2, 0, 0, 0]);
        assert_eq!(attributes(&found[1].body[4..]).collect::<Vec<_>>(), [(1, &b"abc\0"[..])]);
        assert_eq!(attributes(&found[2].body[4..]).collect::<Vec<_>>(), [(2, &[0, 0, 0, 7][..])]);
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
        fn no_answer_is_too_strange(mut bytes: Vec<u8>, length: u8, sequence: u32) {
            let _ = outcome(&bytes, sequence);
            if let Some(first) = bytes.first_mut() {
                *first = length;
            }
            let _ = outcome(&bytes, sequence);
        }
    }
}
