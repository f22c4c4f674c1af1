//! Network namespaces and the pairs of interfaces that lead into them, over netlink.

use crate::{
    failure::{Doing, Failure},
    sys,
};
use rustix::{
    fd::{AsRawFd, OwnedFd},
    io::Errno,
};
use serde::{Deserialize, Serialize};
use stacyvm_netlink::{Answer, Attributes, Socket, attributes};
use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::{Duration, Instant},
};

/// Bytes of the header of a link.
pub(crate) const HEADER: usize = 16;
/// Number of the loopback interface in every namespace.
const LOOPBACK: u32 = 1;
/// The interface in the sandbox.
const INSIDE: &str = "eth0";
/// Next hop of everything that leaves a sandbox, and the address as which the host's end answers.
pub(crate) const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 0, 1);
const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
/// `VETH_INFO_PEER`: the other end.
const PEER: u16 = 1;
/// `IFLA_INET6_ADDR_GEN_MODE`: which addresses the kernel gives.
const ADDRESS_MODE: u16 = 8;
/// `RTNH_F_ONLINK`.
const ON_LINK: u32 = 4;
/// `IF_OPER_UP`.
const UP: u8 = 6;
/// Time for an interface to begin to send. One that takes longer is used as it is.
const SETTLE: Duration = Duration::from_secs(2);
/// `IN6_ADDR_GEN_MODE_NONE`: no address that nobody asked for.
const NO_ADDRESSES: u8 = 1;
/// Time for an interface to go with its namespace.
const GO: Duration = Duration::from_secs(10);
/// Settings of a sandbox's namespace. Where they cannot be set (`/proc` of a container), the kernel's defaults hold, which
/// restrict the sandbox more, and nobody else.
const SETTINGS: [(&str, &str); 4] = [
    // Nobody else's ports are in there.
    ("ipv4/ip_unprivileged_port_start", "0"),
    ("ipv6/conf/all/accept_ra", "0"),
    ("ipv6/conf/default/accept_ra", "0"),
    ("ipv6/conf/default/autoconf", "0"),
];

/// A namespace that leads to the host, and its interface there.
#[derive(Debug)]
pub(crate) struct Attached {
    pub(crate) namespace: OwnedFd,
    pub(crate) attachment: Attachment,
}

/// What is recorded of a sandbox's way to the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Attachment {
    /// Name of the host's end.
    pub(crate) interface: String,
    /// Its hardware address, which tells it from a later one of the same name.
    pub(crate) link_address: String,
    pub(crate) v4: Ipv4Addr,
    pub(crate) v6: Option<Ipv6Addr>,
}

/// What a pair of interfaces is to be.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) interface: String,
    pub(crate) v4: Ipv4Addr,
    /// Its address, and the one as which the host's end answers.
    pub(crate) v6: Option<(Ipv6Addr, Ipv6Addr)>,
}

/// Why there is no namespace with a way to the host.
#[derive(Debug)]
pub(crate) enum Refused {
    /// Somebody has that name or address.
    Taken,
    Failed(Failure),
}

impl From<Failure> for Refused {
    fn from(failure: Failure) -> Self {
        if failure.errno == libc::EEXIST { Self::Taken } else { Self::Failed(failure) }
    }
}

/// A link as the kernel describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) address: Vec<u8>,
    /// It is up, as is what it leads to.
    passes: bool,
}

impl Link {
    pub(crate) fn read(answer: &Answer) -> Option<Self> {
        let index = u32::from_ne_bytes(answer.body.get(4..8)?.try_into().ok()?);
        let mut link = Self { index, name: String::new(), address: Vec::new(), passes: false };
        for (kind, value) in attributes(answer.body.get(HEADER..)?) {
            match kind {
                libc::IFLA_IFNAME => {
                    link.name = String::from_utf8_lossy(value).trim_end_matches('\0').to_owned();
                }
                libc::IFLA_ADDRESS => link.address = value.to_vec(),
                libc::IFLA_OPERSTATE => link.passes = value == [UP],
                _ => {}
            }
        }
        Some(link)
    }

    /// The one of this name.
    ///
    /// # Errors
    /// `NODEV` if there is none.
    pub(crate) fn named(socket: &Socket, name: &str) -> Result<Self, Errno> {
        let found = socket.get(libc::RTM_GETLINK, &[0; HEADER], |link| link.text(libc::IFLA_IFNAME, name))?;
        Self::read(&found).ok_or(Errno::IO)
    }
}

/// A namespace with nothing but its own loopback.
pub(crate) fn plain() -> Result<OwnedFd, Failure> {
    in_new_namespace(|namespace, _| Ok(namespace))
}

/// A namespace with a way to the host.
pub(crate) fn attached(plan: &Plan) -> Result<Attached, Refused> {
    // Opened here, where the host is.
    let host = Socket::open(None).doing(|| "ask the kernel for interfaces".to_owned())?;
    let addresses = [link_address(), link_address()];
    let [outside, inside] = addresses.map(|address| address.doing(|| "choose a hardware address".to_owned()));
    let (outside, inside) = (outside?, inside?);
    let namespace = in_new_namespace(move |namespace, sandbox| {
        connect(&host, &namespace, plan, outside, inside)
            .doing(|| format!("make the interface {}", plan.interface))?;
        configure(sandbox, plan, outside).doing(|| "configure the network of a sandbox".to_owned())?;
        settle(&host, &plan.interface);
        settle(sandbox, INSIDE);
        Ok(namespace)
    })?;
    let attachment = Attachment {
        interface: plan.interface.clone(),
        link_address: text(&outside),
        v4: plan.v4,
        v6: plan.v6.map(|(address, _)| address),
    };
    Ok(Attached { namespace, attachment })
}

/// Sees that a sandbox's interface is gone, and with it its route, so that its addresses are free. Usually its last process
/// took it along a moment ago, and the kernel is about to find out.
pub(crate) fn free(attachment: &Attachment) -> Result<(), Failure> {
    let doing = || format!("remove the interface {}", attachment.interface);
    let socket = Socket::open(None).doing(doing)?;
    let deadline = Instant::now() + GO;
    loop {
        let link = match Link::named(&socket, &attachment.interface) {
            Err(Errno::NODEV) => return Ok(()),
            result => result.doing(doing)?,
        };
        if text(&link.address) != attachment.link_address {
            // Another sandbox's, which has the name now.
            return Ok(());
        }
        match remove(&socket, link.index) {
            Ok(()) | Err(Errno::NODEV) => {}
            // It goes by itself as well.
            Err(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(20)),
            result => return result.doing(doing),
        }
    }
}

fn remove(socket: &Socket, index: u32) -> Result<(), Errno> {
    socket.change(libc::RTM_DELLINK, 0, &link_header(index, 0), |_| {})
}

/// Waits until packets pass. The kernel begins to send some time after the other end is up, and drops what comes before; recent
/// ones do it at once for whoever asks how the interface is.
fn settle(socket: &Socket, interface: &str) {
    let deadline = Instant::now() + SETTLE;
    while Link::named(socket, interface).is_ok_and(|link| !link.passes) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Makes a namespace and does something in it, in a thread that has it to itself. The socket is one of that namespace.
fn in_new_namespace<T: Send>(
    work: impl FnOnce(OwnedFd, &Socket) -> Result<T, Failure> + Send,
) -> Result<T, Failure> {
    let inside = move || {
        sys::unshare_network().doing(|| "make the namespaces of a network".to_owned())?;
        let namespace = sys::own_network().doing(|| "open a network namespace".to_owned())?;
        let socket = Socket::open(None).doing(|| "ask the kernel for interfaces".to_owned())?;
        up(&socket, LOOPBACK).doing(|| "bring up the loopback interface".to_owned())?;
        for (name, value) in SETTINGS {
            let _ = fs::write(format!("/proc/sys/net/{name}"), value);
        }
        work(namespace, &socket)
    };
    in_thread(inside)
}

/// Does something in a thread of its own, which may be in another namespace then and nobody notices.
pub(crate) fn in_thread<T: Send>(work: impl FnOnce() -> Result<T, Failure> + Send) -> Result<T, Failure> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("native-network".to_owned()).stack_size(256 << 10);
        let thread = thread.spawn_scoped(scope, work).doing(|| "start a thread".to_owned())?;
        thread.join().unwrap_or_else(|_| Err(Failure::plain("make a network: a defect in its set-up code")))
    })
}

/// Makes the pair, the host's end up and known to the host's routes.
fn connect(
    host: &Socket,
    namespace: &OwnedFd,
    plan: &Plan,
    outside: [u8; 6],
    inside: [u8; 6],
) -> Result<(), Errno> {
    let make = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
    host.change(libc::RTM_NEWLINK, make, &link_header(0, 0), |link| {
        link.text(libc::IFLA_IFNAME, &plan.interface);
        link.bytes(libc::IFLA_ADDRESS, &outside);
        link.nest(libc::IFLA_LINKINFO, |info| {
            info.bytes(libc::IFLA_INFO_KIND, b"veth");
            info.nest(libc::IFLA_INFO_DATA, |data| {
                data.nest_behind(PEER, &link_header(0, 0), |peer| {
                    peer.text(libc::IFLA_IFNAME, INSIDE);
                    peer.bytes(libc::IFLA_ADDRESS, &inside);
                    peer.bytes(libc::IFLA_NET_NS_FD, &namespace.as_raw_fd().to_ne_bytes());
                });
            });
        });
    })?;
    let index = Link::named(host, &plan.interface)?.index;
    let made = (|| {
        no_addresses(host, index, plan)?;
        // The host's address is nobody's business: answers to a sandbox (no way there, too long) carry this one.
        address(host, index, GATEWAY.into(), libc::RT_SCOPE_LINK)?;
        if let Some((_, gateway)) = plan.v6 {
            address(host, index, gateway.into(), libc::RT_SCOPE_UNIVERSE)?;
        }
        up(host, index)?;
        let own = [Some(IpAddr::V4(plan.v4)), plan.v6.map(|(address, _)| IpAddr::V6(address))];
        for own in own.into_iter().flatten() {
            // Exclusive: the one who has the route has the address.
            route(host, index, Some(own), None)?;
            neighbour(host, index, own, inside)?;
        }
        Ok(())
    })();
    if made.is_err() {
        let _ = remove(host, index);
    }
    made
}

/// Sets up the sandbox's end. Its next hop is told to it, so nobody has to be asked who that is.
fn configure(sandbox: &Socket, plan: &Plan, outside: [u8; 6]) -> Result<(), Errno> {
    // So that programs may ask whether somebody is there; the kernel knows no higher numbers of groups here.
    let _ = fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647");
    let index = Link::named(sandbox, INSIDE)?.index;
    no_addresses(sandbox, index, plan)?;
    up(sandbox, index)?;
    let own = [
        Some((IpAddr::V4(plan.v4), IpAddr::V4(GATEWAY))),
        plan.v6.map(|(address, _)| (address.into(), GATEWAY_V6.into())),
    ];
    for (own, gateway) in own.into_iter().flatten() {
        address(sandbox, index, own, libc::RT_SCOPE_UNIVERSE)?;
        neighbour(sandbox, index, gateway, outside)?;
        route(sandbox, index, None, Some(gateway))?;
    }
    Ok(())
}

/// Without a protocol that asks who is who: the one neighbour is told. A process that sends to addresses on this link would
/// otherwise fill the kernel's table of neighbours, which is one for the host and all sandboxes.
fn up(socket: &Socket, index: u32) -> Result<(), Errno> {
    socket.change(libc::RTM_NEWLINK, 0, &link_header(index, libc::IFF_UP | libc::IFF_NOARP), |_| {})
}

/// Keeps the kernel from giving the interface a link-local address of IPv6.
fn no_addresses(socket: &Socket, index: u32, plan: &Plan) -> Result<(), Errno> {
    if plan.v6.is_none() {
        return Ok(());
    }
    socket.change(libc::RTM_NEWLINK, 0, &link_header(index, 0), |link| {
        link.nest(libc::IFLA_AF_SPEC, |families| {
            families.nest(libc::AF_INET6 as u16, |v6| {
                v6.bytes(ADDRESS_MODE, &[NO_ADDRESSES]);
            });
        });
    })
}

fn address(socket: &Socket, index: u32, address: IpAddr, scope: u8) -> Result<(), Errno> {
    // Family, length, flags, scope, interface.
    let mut header = vec![family(address), length(address), 0, scope];
    header.extend(index.to_ne_bytes());
    // Nobody else has it, so nobody is asked; and what leads to it is said elsewhere.
    let flags = (libc::IFA_F_NODAD | libc::IFA_F_NOPREFIXROUTE).to_ne_bytes();
    let make = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
    socket.change(libc::RTM_NEWADDR, make, &header, |attributes| {
        attributes.bytes(libc::IFA_LOCAL, &bytes(address));
        attributes.bytes(libc::IFA_ADDRESS, &bytes(address));
        attributes.bytes(libc::IFA_FLAGS, &flags);
    })
}

fn neighbour(socket: &Socket, index: u32, address: IpAddr, link_address: [u8; 6]) -> Result<(), Errno> {
    // Family, padding, interface, state, flags, type.
    let mut header = vec![family(address), 0, 0, 0];
    header.extend(index.to_ne_bytes());
    header.extend(libc::NUD_PERMANENT.to_ne_bytes());
    header.extend([0, 0]);
    let make = libc::NLM_F_CREATE | libc::NLM_F_REPLACE;
    socket.change(libc::RTM_NEWNEIGH, make, &header, |attributes| {
        attributes.bytes(libc::NDA_DST, &bytes(address));
        attributes.bytes(libc::NDA_LLADDR, &link_address);
    })
}

/// A route to an address, or to everything, over an interface.
fn route(
    socket: &Socket,
    index: u32,
    destination: Option<IpAddr>,
    gateway: Option<IpAddr>,
) -> Result<(), Errno> {
    let Some(example) = destination.or(gateway) else { return Err(Errno::INVAL) };
    let scope = if gateway.is_some() { libc::RT_SCOPE_UNIVERSE } else { libc::RT_SCOPE_LINK };
    // Family, lengths of destination and source, service, table, protocol, scope, type; flags.
    let mut header = vec![
        family(example),
        destination.map_or(0, length),
        0,
        0,
        libc::RT_TABLE_MAIN,
        libc::RTPROT_STATIC,
        scope,
        libc::RTN_UNICAST,
    ];
    // The next hop is on the link, whatever its address looks like.
    let flags = if gateway.is_some() { ON_LINK } else { 0 };
    header.extend(flags.to_ne_bytes());
    let make = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
    socket.change(libc::RTM_NEWROUTE, make, &header, |attributes: &mut Attributes<'_>| {
        if let Some(destination) = destination {
            attributes.bytes(libc::RTA_DST, &bytes(destination));
        }
        if let Some(gateway) = gateway {
            attributes.bytes(libc::RTA_GATEWAY, &bytes(gateway));
        }
        attributes.bytes(libc::RTA_OIF, &index.to_ne_bytes());
    })
}

fn link_header(index: u32, flags: i32) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    // The flags, and which of them are meant.
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..16].copy_from_slice(&flags.to_ne_bytes());
    header
}

fn family(address: IpAddr) -> u8 {
    (if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }) as u8
}

fn length(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn bytes(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// A hardware address of nobody else: random, marked as given locally and for one interface.
fn link_address() -> Result<[u8; 6], Errno> {
    let mut address = [0; 6];
    rustix::rand::getrandom(&mut address, rustix::rand::GetRandomFlags::empty())?;
    address[0] = address[0] & 0xfc | 0x02;
    Ok(address)
}

fn text(address: &[u8]) -> String {
    address.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":")
}
