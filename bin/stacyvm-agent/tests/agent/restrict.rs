//! `--restrict-network` in a network namespace of its own, whose only neighbour is another one that answers for everything.

use rustix::{
    net::SendFlags,
    thread::{LinkNameSpaceType, move_into_link_name_space},
};
use std::{
    fs::File,
    io::{self, BufRead, BufReader},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

const PORT: u16 = 7000;
/// Time for a connection that is open.
const PATIENCE: Duration = Duration::from_secs(5);
const INTERNET: [&str; 2] = ["198.51.100.2", "2001:db8:1::1"];
/// Addresses that are blocked because they were named.
const NAMED: [&str; 3] = ["203.0.113.9", "203.0.113.65", "2001:db8:2::1"];
const PRIVATE: [&str; 7] =
    ["10.77.0.1", "10.99.0.1", "169.254.169.254", "192.0.0.1", "100.64.0.1", "fd77::1", "fd99::1"];

/// A network namespace, which is gone with the process that holds it.
struct Namespace(Child);

impl Namespace {
    fn new() -> Self {
        let mut child = Command::new("unshare")
            .args(["--net", "sh", "-c", "ip link set lo up && echo && exec sleep 1000"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "\n");
        Self(child)
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--net", "--target", &self.0.id().to_string()]).args(words);
        command
    }

    fn ip(&self, lines: &str) {
        for line in lines.lines().filter(|line| !line.trim().is_empty()) {
            let words: Vec<_> = ["ip"].into_iter().chain(line.split_whitespace()).collect();
            let output = self.command(&words).output().unwrap();
            assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        }
    }

    /// Runs something inside.
    fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(format!("/proc/{}/ns/net", self.0.id())).unwrap();
        let enter =
            || move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
        thread::scope(|scope| {
            let worker = scope.spawn(|| {
                enter();
                work()
            });
            worker.join().unwrap()
        })
    }

    /// Starts an agent until it can be reached or has ended. What it has set stays.
    fn restrict(&self, blocked: &str, before: &[&str]) -> Result<(), Output> {
        let directory = tempfile::tempdir().unwrap();
        let (root, socket) = (directory.path().to_str().unwrap(), directory.path().join("agent.sock"));
        let agent = [env!("CARGO_BIN_EXE_stacyvm-agent"), "--root", root, "--restrict-network"];
        let identity = ["--sandbox", "sb-test", "--installation", "inst"];
        let mut command = self.command(&[before, &agent, &identity].concat());
        let mut child = command
            .args(["--listen", socket.to_str().unwrap()])
            .env("STACYVM_BLOCKED_ADDRESSES", blocked)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        while !socket.exists() {
            if child.try_wait().unwrap().is_some() {
                return Err(child.wait_with_output().unwrap());
            }
            thread::sleep(Duration::from_millis(5));
        }
        child.kill().unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stderr), "");
        Ok(())
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A sandbox's namespace, the one of its router, and a server on all of the router's addresses.
struct Pair {
    sandbox: Namespace,
    router: Namespace,
    _server: TcpListener,
}

/// Only root can make network namespaces.
fn pair() -> Option<Pair> {
    if !rustix::process::getuid().is_root() {
        eprintln!("not run: needs root");
        return None;
    }
    let (sandbox, router) = (Namespace::new(), Namespace::new());
    router.ip(&format!("link add below type veth peer name eth0 netns {}", sandbox.0.id()));
    router.ip(
        "address add 10.77.0.1/24 dev below\n address add fd77::1/64 dev below nodad\n link set below up",
    );
    for address in INTERNET.iter().chain(&NAMED).chain(&PRIVATE).filter(|address| !address.contains("77")) {
        router.ip(&format!("address add {address} dev lo"));
    }
    sandbox.ip("address add 10.77.0.2/24 dev eth0
         address add fd77::2/64 dev eth0 nodad
         link set eth0 up
         route add default via 10.77.0.1
         route add default via fd77::1");
    let server = router.within(|| TcpListener::bind(("::", PORT)).unwrap());
    Some(Pair { sandbox, router, _server: server })
}

/// How a program tries to reach an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Plain,
    /// Over an interface of its choice, which makes everything a neighbour that no route leads to.
    Bound,
}

fn tcp(address: &str, way: Way) -> io::Result<()> {
    let address = SocketAddr::new(address.parse().unwrap(), PORT);
    if way == Way::Plain {
        return TcpStream::connect_timeout(&address, PATIENCE).map(drop);
    }
    let socket = bound_socket(address.is_ipv6(), libc::SOCK_STREAM);
    rustix::net::sockopt::set_socket_timeout(&socket, rustix::net::sockopt::Timeout::Send, Some(PATIENCE))?;
    Ok(rustix::net::connect(&socket, &address)?)
}

/// A socket that sends over `eth0` only, for which no privilege is needed.
#[expect(unsafe_code, reason = "socket options that rustix does not have")]
fn bound_socket(v6: bool, kind: libc::c_int) -> OwnedFd {
    let name = b"eth0\0";
    let family = if v6 { libc::AF_INET6 } else { libc::AF_INET };
    // SAFETY: plain numbers; the result is a new descriptor or is not used.
    let socket = unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, 0) };
    assert!(socket >= 0);
    // SAFETY: just made, and nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    // SAFETY: the option's value is `name`, of that length.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_BINDTODEVICE,
            name.as_ptr().cast(),
            name.len() as libc::socklen_t,
        )
    };
    assert_eq!(set, 0);
    socket
}

#[test]
fn nothing_but_the_internet_is_left() {
    let Some(Pair { sandbox, router, _server }) = pair() else { return };
    let reach = |addresses: &[&str]| -> Vec<_> {
        let ways = addresses.iter().flat_map(|address| [(*address, Way::Plain), (*address, Way::Bound)]);
        sandbox.within(|| {
            ways.filter(|(address, way)| tcp(address, *way).is_ok())
                .map(|(a, w)| format!("{a} {w:?}"))
                .collect()
        })
    };
    let everything = [&INTERNET[..], &NAMED[..], &PRIVATE[..]].concat();
    let before = reach(&everything);
    assert_eq!(before.len(), 2 * everything.len(), "the test itself sees too little: {before:?}");

    // The second time in place of the first.
    for _ in 0..2 {
        sandbox.restrict("203.0.113.9 203.0.113.64/26 2001:db8:2::/48", &[]).unwrap();
    }
    let start = Instant::now();
    assert_eq!(reach(&[&NAMED[..], &PRIVATE[..]].concat()), [""; 0]);
    assert!(
        start.elapsed() < Duration::from_secs(4),
        "a program has to wait to be refused: {:?}",
        start.elapsed()
    );
    // With neighbours that have to be found again, from both sides.
    for namespace in [&sandbox, &router] {
        namespace.ip("neighbour flush all");
    }
    let open = reach(&INTERNET);
    assert!(
        open.len() >= 3 && open[0] == "198.51.100.2 Plain" && open[2] == "2001:db8:1::1 Plain",
        "{open:?}"
    );
}

#[test]
fn datagrams_are_stopped_whichever_way_they_are_sent() {
    let Some(Pair { sandbox, router, _server }) = pair() else { return };
    sandbox.restrict("", &[]).unwrap();
    let receiver = router.within(|| UdpSocket::bind(("::", PORT)).unwrap());
    receiver.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    sandbox.within(|| {
        for v6 in [false, true] {
            let bound = UdpSocket::from(bound_socket(v6, libc::SOCK_DGRAM));
            let plain = UdpSocket::bind((if v6 { "::" } else { "0.0.0.0" }, 0)).unwrap();
            let targets: &[&str] = if v6 {
                &["fd77::1", "fd99::1", "ff02::1", "ff05::1", "::10.99.0.1", "64:ff9b::a4d:1"]
            } else {
                &[
                    "10.77.0.1",
                    "10.77.0.255",
                    "10.99.0.1",
                    "127.0.0.2",
                    "169.254.169.254",
                    "224.0.0.1",
                    "255.255.255.255",
                ]
            };
            for socket in [bound, plain] {
                let is_bound = socket.local_addr().unwrap().port() == 0;
                if !v6 {
                    socket.set_broadcast(true).unwrap();
                }
                for target in targets {
                    let address = SocketAddr::new(target.parse().unwrap(), PORT);
                    for flags in [SendFlags::empty(), SendFlags::DONTROUTE] {
                        let sent = rustix::net::sendto(&socket, b"blocked", flags, &address);
                        let local = address.ip().is_loopback() && !is_bound;
                        assert!(sent.is_err() || local, "{target} {flags:?}, bound: {is_bound}");
                    }
                }
            }
        }
        UdpSocket::bind("0.0.0.0:0").unwrap().send_to(b"open", (INTERNET[0], PORT)).unwrap();
    });
    let mut bytes = [0; 16];
    let length = receiver.recv(&mut bytes).unwrap();
    assert_eq!(&bytes[..length], b"open");
    assert!(receiver.recv(&mut bytes).is_err());
}

#[test]
fn the_namespace_reaches_itself() {
    let Some(Pair { sandbox, router: _router, _server }) = pair() else { return };
    sandbox.restrict("", &[]).unwrap();
    sandbox.within(|| {
        let server = TcpListener::bind(("::", PORT)).unwrap();
        for own in ["127.0.0.1", "127.0.0.11", "10.77.0.2", "::1", "fd77::2"] {
            tcp(own, Way::Plain).unwrap();
            let (_, from) = server.accept().unwrap();
            assert!(
                from.ip().to_canonical() == own.parse::<IpAddr>().unwrap() || own.starts_with("127"),
                "{from}"
            );
        }
    });
}

#[test]
fn a_namespace_without_a_way_out_is_restricted_too() {
    if !rustix::process::getuid().is_root() {
        return;
    }
    let lonely = Namespace::new();
    lonely.restrict("203.0.113.9", &[]).unwrap();
}

#[test]
fn what_cannot_be_done_is_said() {
    let Some(Pair { sandbox, router: _router, _server }) = pair() else { return };
    // As every process of a sandbox is: it takes a privilege to set the filter, and so to change it.
    let without = ["setpriv", "--inh-caps=-net_admin", "--bounding-set=-net_admin"];
    for (blocked, before, word) in [("1.2.3.4/33", &[][..], "1.2.3.4/33"), ("", &without, "CAP_NET_ADMIN")] {
        let output = sandbox.restrict(blocked, before).unwrap_err();
        let words = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(stacyvm_guest::start::UNRESTRICTED.into()), "{words}");
        assert!(words.contains(word), "{words}");
    }
}
