//! Trying an address: a datagram, which the kernel refuses to send if the filter holds.

use rustix::{
    io::Errno,
    net::{AddressFamily, SendFlags, SocketFlags, SocketType, connect, getsockname, send, socket_with},
};
use std::net::{IpAddr, SocketAddr};

/// The port of the service that throws everything away.
const DISCARD: u16 = 9;

/// Whether a packet for `address` leaves this namespace.
///
/// # Errors
/// It cannot be told.
pub(crate) fn leaves(address: IpAddr) -> Result<bool, Errno> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = match socket_with(family, SocketType::DGRAM, SocketFlags::CLOEXEC, None) {
        Err(Errno::AFNOSUPPORT) => return Ok(false),
        result => result?,
    };
    if connect(&socket, &SocketAddr::new(address, DISCARD)).is_err() {
        return Ok(false);
    }
    // What has this address is in here.
    let own = SocketAddr::try_from(getsockname(&socket)?)?.ip() == address;
    Ok(!own && send(&socket, &[0], SendFlags::empty()).is_ok())
}
