//! Sockets. A sandbox may have no network; its loopback and its own sockets are what is asked for here.

use super::{
    Entry,
    attempt::{Attempt, Judge, Not, as_linux, at, at_mut, call, raw, works},
    processes::own,
};
use rustix::{fd::OwnedFd, io::Errno};

pub(super) const TABLE: &[Entry] = &[
    ("TCP over loopback", tcp),
    ("socket AF_INET6", ipv6),
    ("socket SOCK_RAW", || socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP).map(drop_it)),
    ("socket ICMP datagrams", || socket(libc::AF_INET, libc::SOCK_DGRAM, libc::IPPROTO_ICMP).map(drop_it)),
    ("socket AF_PACKET", || socket(libc::AF_PACKET, libc::SOCK_RAW, 0).map(drop_it)),
    ("socket AF_VSOCK", || socket(libc::AF_VSOCK, libc::SOCK_STREAM, 0).map(drop_it)),
    ("socket AF_ALG", af_alg),
    ("netlink route", netlink_route),
    ("netlink netfilter", || socket(libc::AF_NETLINK, libc::SOCK_RAW, 12).map(drop_it)),
    ("unix SOCK_SEQPACKET", seqpacket),
    ("unix abstract names", abstract_name),
    ("SO_PEERCRED", peer_credentials),
    ("SCM_RIGHTS", pass_descriptor),
    ("TCP_FASTOPEN", || option(libc::IPPROTO_TCP, libc::TCP_FASTOPEN, 16)),
    ("TCP_INFO", tcp_info),
    ("SO_REUSEPORT", || option(libc::SOL_SOCKET, libc::SO_REUSEPORT, 1)),
    ("SO_ZEROCOPY", || option(libc::SOL_SOCKET, 60, 1)),
    ("UDP_SEGMENT", udp_segment),
];

fn drop_it(_: OwnedFd) -> String {
    String::new()
}

fn socket(family: i32, kind: i32, protocol: i32) -> Result<OwnedFd, Not> {
    let made = call(libc::SYS_socket, [family as usize, kind as usize, protocol as usize]);
    Ok(own(made.unknown_if(&[Errno::INVAL])?))
}

/// An address of IPv4: family, port in network order, host.
type V4 = [u8; 16];

fn loopback() -> V4 {
    let mut address = [0; 16];
    address[..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
    address[4..8].copy_from_slice(&[127, 0, 0, 1]);
    address
}

fn tcp() -> Attempt {
    let listener = socket(libc::AF_INET, libc::SOCK_STREAM, 0)?;
    let mut address = loopback();
    let mut length = 16_u32;
    call(libc::SYS_bind, [raw(&listener), at(&address), 16])?;
    call(libc::SYS_listen, [raw(&listener), 1])?;
    call(libc::SYS_getsockname, [raw(&listener), at_mut(&mut address), at_mut(&mut length)])?;
    let client = socket(libc::AF_INET, libc::SOCK_STREAM, 0)?;
    let connected = call(libc::SYS_connect, [raw(&client), at(&address), 16]);
    connected.unknown_if(&[Errno::NETUNREACH, Errno::ADDRNOTAVAIL])?;
    let server = own(call(libc::SYS_accept4, [raw(&listener), 0, 0, 0])?);
    rustix::io::write(&client, b"over")?;
    let mut bytes = [0; 8];
    as_linux(rustix::io::read(&server, &mut bytes)? == 4, "other bytes")
}

fn ipv6() -> Attempt {
    let socket = socket(libc::AF_INET6, libc::SOCK_STREAM, 0)?;
    let mut address = [0_u8; 28];
    address[..2].copy_from_slice(&(libc::AF_INET6 as u16).to_ne_bytes());
    address[23] = 1;
    match call(libc::SYS_bind, [raw(&socket), at(&address), 28]) {
        Err(Errno::ADDRNOTAVAIL) => Ok("::1 is not there".to_owned()),
        Err(errno) => Err(errno.into()),
        Ok(_) => works(),
    }
}

fn af_alg() -> Attempt {
    let socket = socket(libc::AF_ALG, libc::SOCK_SEQPACKET, 0)?;
    // Family, type in 14 bytes, feature and mask, name in 64 bytes.
    let mut address = [0_u8; 88];
    address[..2].copy_from_slice(&(libc::AF_ALG as u16).to_ne_bytes());
    address[2..6].copy_from_slice(b"hash");
    address[24..30].copy_from_slice(b"sha256");
    call(libc::SYS_bind, [raw(&socket), at(&address), 88]).unknown_if(&[Errno::NOENT])?;
    works()
}

fn netlink_route() -> Attempt {
    const GETLINK: u16 = 18;
    const REQUEST_DUMP: u16 = 0x301;
    let socket = socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE)?;
    let mut request = [0_u8; 32];
    request[..4].copy_from_slice(&32_u32.to_ne_bytes());
    request[4..6].copy_from_slice(&GETLINK.to_ne_bytes());
    request[6..8].copy_from_slice(&REQUEST_DUMP.to_ne_bytes());
    rustix::io::write(&socket, &request)?;
    let mut answer = vec![0; 32 << 10];
    let length = rustix::io::read(&socket, &mut answer)?;
    as_linux(answer[..length].windows(3).any(|name| name == b"lo\0"), "does not list lo")
}

fn pair(kind: i32) -> Result<(OwnedFd, OwnedFd), Not> {
    let mut fds = [0_i32; 2];
    call(libc::SYS_socketpair, [libc::AF_UNIX as usize, kind as usize, 0, at_mut(&mut fds)])?;
    let fds = std::hint::black_box(fds).map(|fd| own(fd as usize));
    let [one, other] = fds;
    Ok((one, other))
}

fn seqpacket() -> Attempt {
    let (one, other) = pair(libc::SOCK_SEQPACKET)?;
    rustix::io::write(&one, b"a")?;
    rustix::io::write(&one, b"b")?;
    let mut bytes = [0; 8];
    as_linux(rustix::io::read(&other, &mut bytes)? == 1, "joins packets")
}

fn abstract_name() -> Attempt {
    let socket = socket(libc::AF_UNIX, libc::SOCK_STREAM, 0)?;
    let name = format!("stacyvm-probe-{}", std::process::id());
    let address = [&(libc::AF_UNIX as u16).to_ne_bytes()[..], b"\0", name.as_bytes()].concat();
    call(libc::SYS_bind, [raw(&socket), at(address.as_slice()), address.len()])?;
    works()
}

fn get_option(socket: &OwnedFd, level: i32, name: i32, value: &mut [u32]) -> Result<u32, Errno> {
    let mut length = size_of_val(value) as u32;
    let value = at_mut(value);
    let args = [raw(socket), level as usize, name as usize, value, at_mut(&mut length)];
    call(libc::SYS_getsockopt, args)?;
    Ok(std::hint::black_box(length))
}

fn peer_credentials() -> Attempt {
    let (one, _other) = pair(libc::SOCK_STREAM)?;
    // Process, user, group.
    let mut credentials = [0_u32; 3];
    get_option(&one, libc::SOL_SOCKET, libc::SO_PEERCRED, &mut credentials)?;
    let expected =
        [std::process::id(), rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw()];
    as_linux(credentials == expected, format!("{credentials:?} instead of {expected:?}"))
}

fn pass_descriptor() -> Attempt {
    let (one, other) = pair(libc::SOCK_STREAM)?;
    let (reader, writer) = rustix::pipe::pipe()?;
    let byte = [b'x'];
    // Length, level, type, descriptor.
    let (level, rights) = (libc::SOL_SOCKET as u64, libc::SCM_RIGHTS as u64);
    let control = [20_u64, rights << 32 | level, raw(&writer) as u64];
    let buffer = [at(&byte), 1];
    // Name and its length, buffers and their count, control and its length, flags.
    let message = [0, 0, at(&buffer), 1, at(&control), size_of_val(&control), 0];
    call(libc::SYS_sendmsg, [raw(&one), at(&message), 0])?;
    let (mut byte, mut control) = ([0_u8], [0_u64; 3]);
    let buffer = [at_mut(&mut byte), 1];
    let mut message = [0, 0, at(&buffer), 1, at_mut(&mut control), size_of_val(&control), 0];
    call(libc::SYS_recvmsg, [raw(&other), at_mut(&mut message), 0])?;
    let passed = own(std::hint::black_box(control)[2] as u32 as usize);
    drop(writer);
    rustix::io::write(&passed, b"passed")?;
    let mut bytes = [0; 8];
    as_linux(rustix::io::read(&reader, &mut bytes)? == 6, "another file")
}

fn option(level: i32, name: i32, value: i32) -> Attempt {
    let socket = socket(libc::AF_INET, libc::SOCK_STREAM, 0)?;
    let set = call(libc::SYS_setsockopt, [raw(&socket), level as usize, name as usize, at(&value), 4]);
    set.unknown_if(&[Errno::INVAL])?;
    let mut now = [0; 1];
    get_option(&socket, level, name, &mut now).unknown_if(&[Errno::INVAL])?;
    as_linux(now[0] != 0, "is not kept")
}

fn tcp_info() -> Attempt {
    let socket = socket(libc::AF_INET, libc::SOCK_STREAM, 0)?;
    let length = get_option(&socket, libc::IPPROTO_TCP, libc::TCP_INFO, &mut [0; 64])?;
    // What Linux had from the first day.
    as_linux(length >= 104, format!("{length} bytes"))
}

fn udp_segment() -> Attempt {
    const SEGMENT: usize = 103;
    let socket = socket(libc::AF_INET, libc::SOCK_DGRAM, 0)?;
    let args = [raw(&socket), libc::IPPROTO_UDP as usize, SEGMENT, at(&1200_i32), 4];
    call(libc::SYS_setsockopt, args).unknown_if(&[Errno::INVAL])?;
    works()
}
