//! A little world in network namespaces of its own: a host in which the provider runs, the internet behind its uplink, a
//! private network on its other side. Each is a process of this test program in a namespace of its own, so all of it is gone
//! when they are.
//!
//! ```text
//! internet  203.0.113.10, 2001:db8:2::10, 169.254.169.254   names from 203.0.113.53
//!    │ 198.51.100.1, 2001:db8:1::1
//!    │ 198.51.100.2, 2001:db8:1::2
//! host ──── 192.168.77.2, 10.77.0.2, fd00:77::2 ──── lan 192.168.77.1, 10.77.0.1, fd00:77::1
//! ```

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    process::{Child, Command, Stdio},
    time::Duration,
};

/// Where everything listens, for connections and datagrams.
pub(crate) const PORT: u16 = 8080;
/// Servers of the internet.
pub(crate) const INTERNET: [&str; 2] = ["203.0.113.10", "2001:db8:2::10"];
/// The resolver.
pub(crate) const RESOLVER: &str = "203.0.113.53";
/// Addresses of the host, of which the first ones are public.
pub(crate) const HOST: [&str; 5] =
    ["198.51.100.2", "2001:db8:1::2", "192.168.77.2", "10.77.0.2", "fd00:77::2"];
/// Addresses of others that must be out of reach: the private network, the uplink's router, metadata.
pub(crate) const OTHERS: [&str; 6] =
    ["192.168.77.1", "10.77.0.1", "fd00:77::1", "198.51.100.1", "2001:db8:1::1", "169.254.169.254"];

const NEIGHBOUR: &[&str] = &["ip link set lo up", "ip link set net0 up"];
const OF_INTERNET: &[&str] = &[
    "ip addr add 198.51.100.1/24 dev net0",
    "ip addr add 2001:db8:1::1/64 dev net0 nodad",
    "ip addr add 203.0.113.10/32 dev lo",
    "ip addr add 203.0.113.53/32 dev lo",
    "ip addr add 169.254.169.254/32 dev lo",
    "ip addr add 2001:db8:2::10/128 dev lo nodad",
    // Whoever wants in from out there knows the way.
    "ip route add 10.0.0.0/8 via 198.51.100.2",
    "ip -6 route add fc00::/7 via 2001:db8:1::2",
];
const OF_LAN: &[&str] = &[
    "ip addr add 192.168.77.1/24 dev net0",
    "ip addr add 10.77.0.1/24 dev net0",
    "ip addr add fd00:77::1/64 dev net0 nodad",
    "ip route add 10.0.0.0/8 via 192.168.77.2",
    "ip -6 route add fc00::/7 via fd00:77::2",
];
const OF_HOST: &[&str] = &[
    "ip link set lo up",
    "ip link set up0 up",
    "ip link set lan0 up",
    "ip addr add 198.51.100.2/24 dev up0",
    "ip addr add 2001:db8:1::2/64 dev up0 nodad",
    "ip addr add 192.168.77.2/24 dev lan0",
    "ip addr add 10.77.0.2/24 dev lan0",
    "ip addr add fd00:77::2/64 dev lan0 nodad",
    "ip route add default via 198.51.100.1",
    "ip -6 route add default via 2001:db8:1::1",
];

/// Runs a command of `iproute2`.
#[track_caller]
pub(crate) fn ip(command: &str) {
    let mut words = command.split(' ');
    let status = Command::new(words.next().unwrap()).args(words).status().unwrap();
    assert!(status.success(), "{command}: {status}");
}

/// This program in a network namespace of its own.
pub(crate) fn in_namespace(arguments: &[&str]) -> Command {
    let mut command = Command::new("unshare");
    command.arg("--net").arg("--").arg(std::env::current_exe().unwrap()).args(arguments);
    command
}

/// The world around the namespace that this process is in.
pub(crate) struct World {
    pub(crate) internet: Neighbour,
    pub(crate) lan: Neighbour,
}

impl World {
    pub(crate) fn make() -> Self {
        let world =
            Self { internet: Neighbour::start("internet", "up0"), lan: Neighbour::start("lan", "lan0") };
        OF_HOST.iter().for_each(|command| ip(command));
        ip("ip route add 169.254.169.254/32 via 198.51.100.1");
        serve(&HOST);
        world
    }
}

/// Another machine.
pub(crate) struct Neighbour {
    process: Child,
    answers: BufReader<std::process::ChildStdout>,
}

impl Neighbour {
    fn start(name: &str, interface: &str) -> Self {
        let mut process = in_namespace(&[name]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let answers = BufReader::new(process.stdout.take().unwrap());
        let mut neighbour = Self { process, answers };
        assert_eq!(neighbour.answer(), "there");
        let pid = neighbour.process.id();
        ip(&format!("ip link add {interface} type veth peer name net0 netns {pid}"));
        assert_eq!(neighbour.ask("configure"), "ready");
        neighbour
    }

    fn answer(&mut self) -> String {
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    fn ask(&mut self, question: &str) -> String {
        writeln!(self.process.stdin.as_mut().unwrap(), "{question}").unwrap();
        self.answer()
    }

    /// Whether it gets a connection or an answer to a datagram from there.
    pub(crate) fn reaches(&mut self, address: IpAddr, port: u16) -> bool {
        match self.ask(&format!("reach {address} {port}")).as_str() {
            "yes" => true,
            "no" => false,
            other => panic!("{other}"),
        }
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What the process of a neighbour does, until whoever started it is gone.
pub(crate) fn be(name: &str) {
    println!("there");
    let mut commands = std::io::stdin().lines().map_while(Result::ok);
    assert_eq!(commands.next().as_deref(), Some("configure"));
    let own = if name == "internet" { OF_INTERNET } else { OF_LAN };
    NEIGHBOUR.iter().chain(own).for_each(|command| ip(command));
    let (own, others) =
        if name == "internet" { (&INTERNET[..], &OTHERS[3..]) } else { (&OTHERS[..3], &[][..]) };
    serve(&[own, others].concat());
    if name == "internet" {
        resolve();
    }
    println!("ready");
    for command in commands {
        let words: Vec<_> = command.split(' ').collect();
        let [_, address, port] = words[..] else { panic!("{command}") };
        let there = SocketAddr::new(address.parse().unwrap(), port.parse().unwrap());
        println!("{}", if reaches(there) { "yes" } else { "no" });
    }
}

fn reaches(there: SocketAddr) -> bool {
    let patience = Duration::from_millis(700);
    if TcpStream::connect_timeout(&there, patience).is_ok() {
        return true;
    }
    let any: IpAddr =
        if there.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).unwrap();
    socket.set_read_timeout(Some(patience)).unwrap();
    socket.send_to(b"x", there).is_ok() && socket.recv(&mut [0; 100]).is_ok()
}

/// Answers every connection and datagram with the address that it came from, then with whatever is said.
fn serve(addresses: &[&str]) {
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT)).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || talk(stream));
        }
    });
    // One for each address: an answer comes from where the question went.
    for address in addresses {
        let socket = UdpSocket::bind((*address, PORT)).unwrap();
        std::thread::spawn(move || {
            let mut bytes = [0; 100];
            while let Ok((_, from)) = socket.recv_from(&mut bytes) {
                let _ = socket.send_to(from.ip().to_string().as_bytes(), from);
            }
        });
    }
}

fn talk(mut stream: TcpStream) {
    let Ok(from) = stream.peer_addr() else { return };
    let _ = stream.write_all(format!("{}\n", from.ip().to_canonical()).as_bytes());
    let mut bytes = [0; 100];
    while let Ok(read @ 1..) = stream.read(&mut bytes) {
        if stream.write_all(&bytes[..read]).is_err() {
            return;
        }
    }
}

/// A resolver that tells what it is asked, private addresses too.
fn resolve() {
    let socket = UdpSocket::bind((RESOLVER, 53)).unwrap();
    std::thread::spawn(move || {
        let mut bytes = [0; 512];
        while let Ok((read, from)) = socket.recv_from(&mut bytes) {
            if let Some(answer) = name_answer(&bytes[..read]) {
                let _ = socket.send_to(&answer, from);
            }
        }
    });
}

fn name_answer(question: &[u8]) -> Option<Vec<u8>> {
    let (mut at, mut labels) = (12, Vec::new());
    loop {
        let length = usize::from(*question.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        labels.push(String::from_utf8_lossy(question.get(at..at + length)?).to_lowercase());
        at += length;
    }
    let kind = question.get(at + 1)?;
    let address: Option<IpAddr> = match (labels.join(".").as_str(), kind) {
        ("good.test", 1) => Some(INTERNET[0].parse().unwrap()),
        ("good.test", 28) => Some(INTERNET[1].parse().unwrap()),
        ("private.test", 1) => Some("10.77.0.1".parse().unwrap()),
        ("private.test", 28) => Some("fd00:77::1".parse().unwrap()),
        ("metadata.test", 1) => Some("169.254.169.254".parse().unwrap()),
        _ => None,
    };
    let mut answer = question[..2].to_vec();
    // A response of who knows, with one question and as many answers as there are.
    answer.extend([0x85, 0x80, 0, 1, 0, u8::from(address.is_some()), 0, 0, 0, 0]);
    answer.extend(question.get(12..at + 4)?);
    if let Some(address) = address {
        answer.extend([0xc0, 12, 0, *kind, 0, 1, 0, 0, 0, 0, 0]);
        match address {
            IpAddr::V4(v4) => answer.extend([&[4][..], &v4.octets()].concat()),
            IpAddr::V6(v6) => answer.extend([&[16][..], &v6.octets()].concat()),
        }
    }
    Some(answer)
}
