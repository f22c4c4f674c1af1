//! Asking the kernel single questions over netlink.

use crate::message::{Attributes, append, messages};
use libc::c_int;
use rustix::{
    fd::OwnedFd,
    io::Errno,
    net::{
        AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, bind,
        netlink::SocketAddrNetlink,
        recv, send, socket_with,
        sockopt::{Timeout, set_socket_timeout},
    },
};
use std::{cell::Cell, time::Duration};

/// The kernel answers before the call that sent a question returns; this is for what only claims to be one.
const PATIENCE: Duration = Duration::from_secs(5);
/// Room for the kernel's answer to one question; a longer one is cut behind all that is read of it.
pub(crate) const ANSWER: usize = 16 << 10;
/// Room for a part of a list, which the kernel makes no longer than this.
const PART: usize = 64 << 10;
/// How often a list is asked for again that changed while it was read.
const TRIES: u32 = 20;

/// A way to ask the kernel, about the network namespace in which it was opened.
#[derive(Debug)]
pub struct Socket {
    socket: OwnedFd,
    sequence: Cell<u32>,
}

/// A message of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// What it is, as the kernel numbers it.
    pub kind: u16,
    /// The header of its kind, then attributes.
    pub body: Vec<u8>,
}

impl Socket {
    /// Opens one: `None` for links, addresses and routes.
    ///
    /// # Errors
    /// The kernel's: it has no such part, or this process may open no more.
    pub fn open(protocol: Option<Protocol>) -> Result<Self, Errno> {
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
        set_socket_timeout(&socket, Timeout::Recv, Some(PATIENCE))?;
        Ok(Self { socket, sequence: Cell::new(0) })
    }

    /// Opens one that hears what is said to groups, each a bit of `groups`.
    ///
    /// # Errors
    /// As [`Socket::open`].
    pub fn listen(protocol: Option<Protocol>, groups: u32) -> Result<Self, Errno> {
        let socket = Self::open(protocol)?;
        bind(&socket.socket, &SocketAddrNetlink::new(0, groups))?;
        Ok(socket)
    }

    /// Waits until something is said, for five seconds at most: whether it was.
    ///
    /// # Errors
    /// The kernel's. That more was said than there was room for is no error.
    pub fn heard(&self) -> Result<bool, Errno> {
        match self.receive(&mut vec![0; PART]) {
            Ok(_) | Err(Errno::NOBUFS) => Ok(true),
            Err(Errno::TIMEDOUT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Has something done.
    ///
    /// # Errors
    /// The kernel's; then nothing was done.
    pub fn change(
        &self,
        kind: u16,
        flags: c_int,
        header: &[u8],
        fill: impl FnOnce(&mut Attributes<'_>),
    ) -> Result<(), Errno> {
        self.ask(kind, flags | libc::NLM_F_ACK, header, fill).map(drop)
    }

    /// Asks for one thing.
    ///
    /// # Errors
    /// The kernel's, as where there is no such thing.
    pub fn get(
        &self,
        kind: u16,
        header: &[u8],
        fill: impl FnOnce(&mut Attributes<'_>),
    ) -> Result<Answer, Errno> {
        self.ask(kind, 0, header, fill)?.pop().ok_or(Errno::IO)
    }

    /// Asks for all things of a kind, as they were at one moment.
    ///
    /// # Errors
    /// The kernel's; `AGAIN` if they never stand still.
    pub fn list(
        &self,
        kind: u16,
        header: &[u8],
        fill: impl Fn(&mut Attributes<'_>),
    ) -> Result<Vec<Answer>, Errno> {
        for _ in 0..TRIES {
            match self.ask(kind, libc::NLM_F_DUMP, header, &fill) {
                Err(Errno::INTR) => {}
                result => return result,
            }
        }
        Err(Errno::AGAIN)
    }

    /// Sends a question and gathers the answer.
    fn ask(
        &self,
        kind: u16,
        flags: c_int,
        header: &[u8],
        fill: impl FnOnce(&mut Attributes<'_>),
    ) -> Result<Vec<Answer>, Errno> {
        let sequence = self.sequence.get().wrapping_add(1);
        self.sequence.set(sequence);
        let mut question = Vec::new();
        append(&mut question, kind, (libc::NLM_F_REQUEST | flags) as u16, sequence, header, fill);
        self.send(&question)?;
        let (mut answers, mut changed) = (Vec::new(), false);
        let mut buffer = vec![0; PART];
        loop {
            let read = self.receive(&mut buffer)?;
            // What is left of an answer that was given up belongs to an earlier question.
            for message in messages(&buffer[..read]).filter(|message| message.sequence == sequence) {
                changed |= c_int::from(message.flags) & libc::NLM_F_DUMP_INTR != 0;
                match c_int::from(message.kind) {
                    libc::NLMSG_ERROR => {
                        code(message.body).unwrap_or(Err(Errno::IO))?;
                        return Ok(answers);
                    }
                    libc::NLMSG_DONE => {
                        code(message.body).unwrap_or(Ok(()))?;
                        return if changed { Err(Errno::INTR) } else { Ok(answers) };
                    }
                    _ => {
                        answers.push(Answer { kind: message.kind, body: message.body.to_vec() });
                        // One thing, which nothing follows.
                        if flags & (libc::NLM_F_DUMP | libc::NLM_F_ACK) == 0 {
                            return Ok(answers);
                        }
                    }
                }
            }
        }
    }

    pub(crate) fn send(&self, bytes: &[u8]) -> Result<(), Errno> {
        send(&self.socket, bytes, SendFlags::empty()).map(drop)
    }

    pub(crate) fn receive(&self, buffer: &mut [u8]) -> Result<usize, Errno> {
        loop {
            match recv(&self.socket, &mut *buffer, RecvFlags::empty()) {
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Err(Errno::TIMEDOUT),
                result => return result.map(|(read, _)| read),
            }
        }
    }
}

/// The code at the start of an acknowledgement.
pub(crate) fn code(body: &[u8]) -> Option<Result<(), Errno>> {
    let code = i32::from_ne_bytes(body.get(..4)?.try_into().ok()?);
    Some(match code.checked_neg() {
        Some(0) => Ok(()),
        code => Err(Errno::from_raw_os_error(code.unwrap_or(libc::EIO))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_lists_its_links_and_knows_no_other() {
        let socket = Socket::open(None).unwrap();
        let links = socket.list(libc::RTM_GETLINK, &[0; 16], |_| {}).unwrap();
        assert!(links.iter().all(|link| link.kind == libc::RTM_NEWLINK) && !links.is_empty());
        let by_name =
            |name: &str| socket.get(libc::RTM_GETLINK, &[0; 16], |link| link.text(libc::IFLA_IFNAME, name));
        assert_eq!(by_name("lo").unwrap().body[4..8], 1i32.to_ne_bytes());
        assert_eq!(by_name("no-such-link"), Err(Errno::NODEV));
        // An error leaves nothing behind that a later question could take for its own.
        assert_eq!(by_name("lo").unwrap().body[4..8], 1i32.to_ne_bytes());
    }

    #[test]
    fn codes_are_negative_error_numbers() {
        assert_eq!(code(&0i32.to_ne_bytes()), Some(Ok(())));
        assert_eq!(code(&(-libc::EPERM).to_ne_bytes()), Some(Err(Errno::PERM)));
        assert_eq!(code(&i32::MIN.to_ne_bytes()), Some(Err(Errno::IO)));
        assert_eq!(code(&[1, 2]), None);
    }
}
