//! `stacyvm-agent bridge SOCKET`: a caller's way to the agent where the only way into a sandbox is to start a program in it.
//!
//! What comes from stdin goes to the agent, what the agent says goes to stdout, until either side ends. The caller keeps a
//! connection that is idle alive; silence means that whoever carried the bytes is gone without a word, as a container
//! engine that was killed is, and the bridge ends.

use crate::confine;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with},
};
use std::{
    ffi::OsStr,
    os::fd::{AsFd, BorrowedFd},
};

/// Silence of the caller after which it is taken for gone: several times its keepalive.
const SILENCE: Timespec = Timespec { tv_sec: 60, tv_nsec: 0 };
const PIECE: usize = 64 << 10;

/// Carries bytes until either side ends.
///
/// # Errors
/// Why the agent could not be reached; later, ends are ends.
pub(crate) fn run(socket: &OsStr) -> Result<(), String> {
    let said = |what: &'static str| move |error: Errno| format!("{what}: {error}");
    confine::hide().map_err(said("cannot hide from the sandbox's processes"))?;
    let address =
        SocketAddrUnix::new(socket.as_encoded_bytes()).map_err(said("the path of the agent's socket"))?;
    let agent = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
        .map_err(said("cannot make a socket"))?;
    connect(&agent, &address).map_err(said("the agent does not answer"))?;
    // Whoever else listens there is none of ours.
    let peer = rustix::net::sockopt::socket_peercred(&agent).map_err(said("nobody knows who answers"))?;
    if peer.uid != rustix::process::geteuid() {
        return Err(format!("who answers is user {} and not the agent", peer.uid.as_raw()));
    }
    // Only now: the socket lies in a directory that takes a capability to enter where root is not its owner.
    confine::drop_all().map_err(said("cannot drop privileges"))?;
    rustix::io::write(rustix::stdio::stdout(), stacyvm_guest::hello::BRIDGE_GREETING)
        .map_err(said("the caller is gone"))?;
    let up = agent.try_clone().map_err(|error| format!("cannot use the socket: {error}"))?;
    std::thread::Builder::new()
        .stack_size(PIECE * 3)
        .spawn(move || {
            carry(rustix::stdio::stdin(), up.as_fd(), Some(&SILENCE));
            // A caller that is gone for writing is gone: the other direction may be waiting for it for ever.
            std::process::exit(0);
        })
        .map_err(|error| format!("cannot start a thread: {error}"))?;
    carry(agent.as_fd(), rustix::stdio::stdout(), None);
    Ok(())
}

fn carry(from: BorrowedFd<'_>, to: BorrowedFd<'_>, patience: Option<&Timespec>) {
    let mut piece = vec![0; PIECE];
    loop {
        if patience.is_some() {
            match poll(&mut [PollFd::new(&from, PollFlags::IN)], patience) {
                Ok(0) => return,
                Ok(_) | Err(Errno::INTR) => {}
                Err(_) => return,
            }
        }
        let mut left = match rustix::io::read(from, &mut piece) {
            Ok(0) => return,
            Ok(read) => &piece[..read],
            Err(Errno::INTR) => continue,
            Err(_) => return,
        };
        while !left.is_empty() {
            match rustix::io::write(to, left) {
                Ok(written) => left = &left[written..],
                Err(Errno::INTR) => {}
                Err(_) => return,
            }
        }
    }
}
