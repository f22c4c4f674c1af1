//! The host's routes, as far as they tell what is taken and what is near.

use super::names::INTERFACES;
use rustix::io::Errno;
use stacyvm_netlink::{Answer, Prefix, Socket, attributes};
use std::{collections::HashMap, net::IpAddr};

/// Bytes of the header of a route.
const HEADER: usize = 12;
/// Routes no more specific than this send everything somewhere, and are in nobody's way.
const EVERYTHING: u8 = 1;

/// A route to somewhere that exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) destination: Prefix,
    pub(crate) interface: String,
}

impl Route {
    /// Whether sandboxes cannot have addresses of this pool because of it. Routes to sandboxes, ours or another
    /// installation's, are not in the way: they name single addresses, and nobody gets one that has a route.
    pub(crate) fn is_in_the_way(&self, pool: &Prefix) -> bool {
        self.destination.length > EVERYTHING
            && !self.interface.starts_with(INTERFACES)
            && self.destination.overlaps(pool)
    }
}

/// All routes of this network namespace that lead somewhere, those to its own addresses included.
///
/// # Errors
/// The kernel's.
pub(crate) fn all(socket: &Socket) -> Result<Vec<Route>, Errno> {
    let links = names(socket)?;
    let mut routes = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        let mut header = [0; HEADER];
        header[0] = family as u8;
        let listed = match socket.list(libc::RTM_GETROUTE, &header, |_| {}) {
            // A kernel without IPv6.
            Err(Errno::OPNOTSUPP | Errno::AFNOSUPPORT) => continue,
            result => result?,
        };
        routes.extend(listed.iter().filter_map(|answer| route(answer, &links)));
    }
    Ok(routes)
}

fn route(answer: &Answer, links: &HashMap<u32, String>) -> Option<Route> {
    let header = answer.body.get(..HEADER)?;
    let (family, length, kind) = (header[0], header[1], header[7]);
    if kind != libc::RTN_UNICAST && kind != libc::RTN_LOCAL {
        return None;
    }
    let (mut destination, mut interface) = (None, String::new());
    for (kind, value) in attributes(&answer.body[HEADER..]) {
        match kind {
            libc::RTA_DST => destination = address(value),
            libc::RTA_OIF => {
                let index = u32::from_ne_bytes(value.try_into().ok()?);
                interface = links.get(&index).cloned().unwrap_or_default();
            }
            _ => {}
        }
    }
    let everywhere = if i32::from(family) == libc::AF_INET { [0; 4].into() } else { [0; 16].into() };
    Some(Route { destination: Prefix::new(destination.unwrap_or(everywhere), length)?, interface })
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

/// Names of all links by their numbers.
fn names(socket: &Socket) -> Result<HashMap<u32, String>, Errno> {
    let links = socket.list(libc::RTM_GETLINK, &[0; super::link::HEADER], |_| {})?;
    Ok(links.iter().filter_map(super::link::Link::read).map(|link| (link.index, link.name)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_among_the_routes() {
        let routes = all(&Socket::open(None).unwrap()).unwrap();
        let loopback: Prefix = "127.0.0.1".parse().unwrap();
        assert!(routes.iter().any(|route| route.interface == "lo" && route.destination.covers(&loopback)));
    }
}
