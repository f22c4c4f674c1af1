//! Trying out, from a sandbox's namespace, that what must be out of reach is.

use super::link::{Attached, GATEWAY, in_thread};
use crate::{
    failure::{Doing, Failure},
    sys,
};
use rustix::fd::AsFd;
use std::{
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

/// The port of the service that throws everything away.
const DISCARD: u16 = 9;
/// Time for the kernel's answers, which it gives on the way.
const PATIENCE: Duration = Duration::from_secs(10);
/// Time for one of them.
const ANSWER: Duration = Duration::from_millis(250);

/// What is tried: an address of a network, metadata, and the host. Few, as the kernel gives only so many answers a second;
/// that every rule is there is known from reading them back.
const V4: [IpAddr; 3] = [
    IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)),
    IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)),
    IpAddr::V4(GATEWAY),
];
const V6: [IpAddr; 2] = [
    IpAddr::V6(Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 1)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
];

/// Sends something to where nothing may arrive, and demands to be refused.
pub(crate) fn refused(attached: &Attached) -> Result<(), Failure> {
    in_thread(move || {
        sys::enter_network(attached.namespace.as_fd()).doing(|| "enter a network namespace".to_owned())?;
        let v6: &[IpAddr] = if attached.attachment.v6.is_some() { &V6 } else { &[] };
        let deadline = Instant::now() + PATIENCE;
        for address in V4.iter().chain(v6) {
            while !is_refused(*address).doing(|| format!("try {address}"))? {
                if Instant::now() > deadline {
                    return Err(Failure::plain(format!(
                        "restrict the network internet: {address} is not refused, so something on this host takes packets past the table of the packet filter"
                    )));
                }
            }
        }
        Ok(())
    })
}

/// Whether the kernel says of a datagram to this address that it went nowhere.
fn is_refused(address: IpAddr) -> std::io::Result<bool> {
    let any: IpAddr =
        if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = match UdpSocket::bind(SocketAddr::new(any, 0)) {
        // No IPv6, or none here.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)) => {
            return Ok(true);
        }
        result => result?,
    };
    // A host without a way there says so, which is as good.
    sys::report_errors(socket.as_fd(), address.is_ipv6())?;
    if socket.connect(SocketAddr::new(address, DISCARD)).is_err() {
        return Ok(true);
    }
    if socket.send(&[0]).is_err() {
        return Ok(true);
    }
    socket.set_read_timeout(Some(ANSWER))?;
    match socket.recv(&mut [0]) {
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
            ) =>
        {
            Ok(false)
        }
        Err(_) => Ok(true),
        // Somebody answered.
        Ok(_) => Ok(false),
    }
}
