//! The network `internet`, for real: sandboxes in a world of namespaces, which they attack, and whose rules are killed,
//! deleted and surrounded by others'. The program starts itself again in every role, so it has a `main` of its own.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test, which clippy does not see without a harness")]

mod common;
mod rules;
mod world;

use common::{Host, id, run, sandbox, sh, spec};
use rules::{assert_clean, assert_gone, interfaces, our_table, tables, until_tables_are};
use stacyvm_netlink::{Batch, Rule, Verdict, attribute as a};
use stacyvm_provider::{ErrorKind, Guest, Provider, RuntimeState, SandboxSpec};
use stacyvm_provider_native::{NativeConfig, NativeProvider, NetworkConfig};
use std::{
    net::IpAddr,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};
use world::{HOST, INTERNET, OTHERS, PORT, RESOLVER, World, in_namespace};

/// Tests by name. Each has a world to itself.
const TESTS: &[&str] = &[
    "the_internet_and_nothing_else",
    "none_is_none",
    "a_private_resolver_answers_names_only",
    "rules_outlive_the_server_and_are_the_same_behind_it",
    "rules_that_somebody_deletes_are_back_before_the_next_sandbox",
    "others_rules_stay_and_are_no_obstacle",
    "a_host_without_a_way_out_is_as_closed",
    "what_cannot_be_restricted_is_not_made",
    "nothing_is_left_of_many",
    "two_installations_share_a_pool",
    "every_check_holds_with_a_network",
];
/// Sandboxes that come and go, unless the environment says how many.
const CYCLES: u32 = 40;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let words: Vec<_> = arguments.iter().skip(1).map(String::as_str).collect();
    match words[..] {
        [name @ ("internet" | "lan")] => world::be(name),
        ["host", test] => block_on(on_host(test)),
        ["server", data_dir, installation] => block_on(server(Path::new(data_dir), installation)),
        ["create", data_dir, installation] => block_on(create_once(Path::new(data_dir), installation)),
        _ => {
            let filters: Vec<_> = words.iter().filter(|word| !word.starts_with('-')).collect();
            for test in
                TESTS.iter().filter(|test| filters.is_empty() || filters.iter().any(|f| test.contains(**f)))
            {
                let status = in_namespace(&["host", test]).status().unwrap();
                assert!(status.success(), "{test}: {status}");
                println!("{test} ... ok");
            }
        }
    }
}

fn block_on(work: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(work);
}

async fn on_host(test: &str) {
    let mut world = World::make();
    match test {
        "the_internet_and_nothing_else" => the_internet_and_nothing_else(&mut world).await,
        "none_is_none" => none_is_none().await,
        "a_private_resolver_answers_names_only" => a_private_resolver_answers_names_only().await,
        "rules_outlive_the_server_and_are_the_same_behind_it" => rules_outlive_the_server().await,
        "rules_that_somebody_deletes_are_back_before_the_next_sandbox" => rules_come_back().await,
        "others_rules_stay_and_are_no_obstacle" => others_rules_stay().await,
        "a_host_without_a_way_out_is_as_closed" => a_host_without_a_way_out().await,
        "what_cannot_be_restricted_is_not_made" => what_cannot_be_restricted_is_not_made().await,
        "nothing_is_left_of_many" => nothing_is_left_of_many().await,
        "two_installations_share_a_pool" => two_installations_share_a_pool().await,
        "every_check_holds_with_a_network" => every_check_holds_with_a_network().await,
        other => panic!("no test {other}"),
    }
}

fn network(ready: usize) -> NetworkConfig {
    NetworkConfig { dns: vec![RESOLVER.into()], ready, ..NetworkConfig::default() }
}

fn provider(host: &Host, network: NetworkConfig) -> NativeProvider {
    NativeProvider::start(NativeConfig { network, ..host.config(1) }).unwrap()
}

fn internet() -> SandboxSpec {
    SandboxSpec { network: Some("internet".into()), pids: 64, ..spec() }
}

/// What a connection and a datagram to an address get: the address as which they arrived, or `-`.
async fn reach(guest: &dyn Guest, targets: &[&str]) -> Vec<(String, String)> {
    const SCRIPT: &str = r#"
import socket, sys
def tcp(target, port):
    try:
        with socket.create_connection((target, port), 1.5) as s: return s.recv(100).decode().strip()
    except OSError: return "-"
def udp(target, port):
    for family, kind, proto, _, address in socket.getaddrinfo(target, port, type=socket.SOCK_DGRAM):
        try:
            with socket.socket(family, kind, proto) as s:
                s.settimeout(1.5); s.connect(address); s.send(b"x"); return s.recv(100).decode().strip()
        except OSError: pass
    return "-"
for target in sys.argv[2:]:
    try: print(tcp(target, int(sys.argv[1])), udp(target, int(sys.argv[1])), flush=True)
    except OSError as e: print("- -", flush=True)
"#;
    let port = PORT.to_string();
    let argv: Vec<&str> =
        ["python3", "-c", SCRIPT, &port].into_iter().chain(targets.iter().copied()).collect();
    let text = run(guest, &argv).await.ok();
    let lines: Vec<_> = text.lines().filter_map(|line| line.split_once(' ')).collect();
    assert_eq!(lines.len(), targets.len(), "{text}");
    lines.into_iter().map(|(tcp, udp)| (tcp.to_owned(), udp.to_owned())).collect()
}

/// Sees that the sandbox reaches all of the first and none of the second.
async fn expect(guest: &dyn Guest, reached: &[&str], not: &[&str]) {
    for (target, got) in reached.iter().zip(reach(guest, reached).await) {
        assert!(got.0 != "-" && got.1 != "-", "{target} was not reached: {got:?}");
    }
    for (target, got) in not.iter().zip(reach(guest, not).await) {
        assert_eq!(got, ("-".to_owned(), "-".to_owned()), "{target} was reached");
    }
}

async fn own_addresses(guest: &dyn Guest) -> Vec<IpAddr> {
    let text = sh(guest, "ip -o addr show dev eth0 | awk '{print $4}'").await;
    text.lines().map(|line| line.split('/').next().unwrap().parse().unwrap()).collect()
}

async fn the_internet_and_nothing_else(world: &mut World) {
    let host = Host::new();
    let provider = provider(&host, network(2));
    let (one, other) = (id("one"), id("other"));
    let spec = internet();
    let (first, second) = tokio::join!(sandbox(&provider, &one, &spec), sandbox(&provider, &other, &spec));

    // To the internet, by number and by name, under the host's address.
    for guest in [&first, &second] {
        let got = reach(guest.as_ref(), &[INTERNET[0], INTERNET[1], "good.test"]).await;
        let (v4, v6) = ((HOST[0].to_owned(), HOST[0].to_owned()), (HOST[1].to_owned(), HOST[1].to_owned()));
        assert_eq!(got[..2], [v4.clone(), v6.clone()]);
        assert!(got[2] == v4 || got[2].0 == v6.0, "{got:?}");
        assert_eq!(sh(guest.as_ref(), "cat /etc/resolv.conf").await, format!("nameserver {RESOLVER}\n"));
    }
    assert_ne!(own_addresses(first.as_ref()).await, own_addresses(second.as_ref()).await);

    // Nowhere else: the host under every address, others, the other sandbox, however it is spelled.
    let neighbour: Vec<String> =
        own_addresses(second.as_ref()).await.iter().map(ToString::to_string).collect();
    assert_eq!(neighbour.len(), 2, "{neighbour:?}");
    let listening = r#"python3 -c "
import socket, threading
s = socket.create_server(('::', 8080), family=socket.AF_INET6, dualstack_ipv6=True)
u = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); u.bind(('::', 8080))
def answer():
    while True: u.sendto(b'here', u.recvfrom(10)[1])
threading.Thread(target=answer, daemon=True).start()
print('listens', flush=True)
while True: s.accept()[0].sendall(b'here')
" >/tmp/log 2>&1 & while ! grep -q listens /tmp/log; do sleep 0.05; done"#;
    sh(second.as_ref(), listening).await;
    expect(second.as_ref(), &["127.0.0.1", "::1", "localhost"], &[]).await;
    let mut targets: Vec<&str> = HOST.iter().chain(&OTHERS).copied().collect();
    targets.extend(neighbour.iter().map(String::as_str));
    targets.extend([
        "private.test",
        "metadata.test",
        // Other spellings of 10.77.0.1, 192.168.77.1, 169.254.169.254 and the host.
        "0x0a4d0001",
        "172818433",
        "0300.0250.0115.1",
        "192.168.19713",
        "2852039166",
        "0xa9.0xfe.0xa9.0xfe",
        "::ffff:10.77.0.1",
        "::ffff:169.254.169.254",
        "::ffff:c0a8:4d02",
        "::10.77.0.1",
        "64:ff9b::10.77.0.1",
        "2002:a4d:1::1",
        "169.254.0.1",
        "fe80::1%eth0",
        "0.0.0.0",
        "255.255.255.255",
        "224.0.0.1",
        "ff02::1%eth0",
    ]);
    expect(first.as_ref(), &INTERNET, &targets).await;
    let bound = r#"
import socket
for family, address in ((socket.AF_INET, "192.168.77.1"), (socket.AF_INET, "198.51.100.2"), (socket.AF_INET6, "fd00:77::1"), (socket.AF_INET6, "2001:db8:1::2")):
    s = socket.socket(family, socket.SOCK_STREAM); s.settimeout(1)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0\0")
    try: s.connect((address, 8080)); print("reached", address)
    except OSError: pass
"#;
    assert_eq!(run(first.as_ref(), &["python3", "-c", bound]).await.ok(), "");

    // And nobody comes in: not the internet, not the private network, not the host.
    for address in own_addresses(second.as_ref()).await {
        assert!(!world.internet.reaches(address, PORT), "{address} from the internet");
        assert!(!world.lan.reaches(address, PORT), "{address} from the private network");
        let there = (address, PORT).into();
        assert!(
            std::net::TcpStream::connect_timeout(&there, Duration::from_millis(700)).is_err(),
            "{address}"
        );
    }
    for id in [&one, &other] {
        provider.destroy(id).await.unwrap();
    }
    drop(provider);
    assert_clean(&host);
}

async fn none_is_none() {
    let host = Host::new();
    for ready in [0, 3] {
        let provider = provider(&host, network(ready));
        assert_eq!(provider.network(None).unwrap().as_deref(), Some("none"));
        assert_eq!(provider.network(Some("nat")).unwrap().as_deref(), Some("internet"));
        assert_eq!(provider.network(Some("bridge")).unwrap_err().kind(), ErrorKind::InvalidArgument);
        for n in 0..5 {
            let id = id(&format!("plain{n}"));
            let guest = sandbox(&provider, &id, &spec()).await;
            assert_eq!(sh(guest.as_ref(), "ls /proc/sys/net/ipv4/conf | xargs").await, "all default lo\n");
            expect(guest.as_ref(), &[], &[INTERNET[0], HOST[0], OTHERS[0]]).await;
            let port = "import socket; socket.create_server(('127.0.0.1', 80)); print('bound')";
            assert_eq!(run(guest.as_ref(), &["python3", "-c", port]).await.ok(), "bound\n");
            provider.destroy(&id).await.unwrap();
        }
        drop(provider);
    }
    assert_clean(&host);
}

async fn a_private_resolver_answers_names_only() {
    // The host itself: its own resolver is what operators have.
    let host = Host::new();
    let resolver = std::net::UdpSocket::bind((HOST[3], 53)).unwrap();
    std::thread::spawn(move || {
        let mut bytes = [0; 512];
        while let Ok((read, from)) = resolver.recv_from(&mut bytes) {
            let _ = resolver.send_to(&bytes[..read], from);
        }
    });
    let provider = provider(&host, NetworkConfig { dns: vec![HOST[3].into()], ..network(0) });
    let one = id("one");
    let guest = sandbox(&provider, &one, &internet()).await;
    let asked = format!(
        "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(3); s.sendto(b'name?', ('{}', 53)); print(s.recv(100).decode())",
        HOST[3]
    );
    assert_eq!(run(guest.as_ref(), &["python3", "-c", &asked]).await.ok(), "name?\n");
    expect(guest.as_ref(), &INTERNET, &HOST).await;
    let warnings = provider.health().await.warnings;
    assert!(
        warnings.iter().any(|warning| warning.contains(HOST[3]) && warning.contains("dns")),
        "{warnings:?}"
    );
    provider.destroy(&one).await.unwrap();
    drop(provider);
    assert_clean(&host);
}

async fn rules_outlive_the_server() {
    let host = Host::new();
    let mut server = start_server(&host);
    // The server's own provider holds the sandbox; this one looks at the same directory.
    let provider = provider(&host, network(0));
    let one = id("one");
    wait_for(&provider, &one).await;
    let guest = provider.connect(&one).await.unwrap();
    let talk = format!(
        r#"nohup python3 -c "
import socket, time
s = socket.create_connection(('{}', 8080)); s.recv(100)
for n in range(10000):
    s.sendall(b'x'); assert s.recv(1) == b'x'; open('/tmp/count', 'w').write(str(n)); time.sleep(0.05)
" >/tmp/talk 2>&1 & while ! test -s /tmp/count; do sleep 0.05; done"#,
        INTERNET[0]
    );
    sh(guest.as_ref(), &talk).await;
    let before = tables();
    assert!(before.iter().any(|rule| rule.starts_with("inet stacyvm-")), "{before:?}");

    server.kill().unwrap();
    server.wait().unwrap();
    let count = || async { sh(guest.as_ref(), "cat /tmp/count").await.trim().parse::<u32>().unwrap_or(0) };
    let seen = count().await;
    expect(guest.as_ref(), &INTERNET, &[HOST[0], HOST[2], OTHERS[0], OTHERS[5]]).await;
    assert_eq!(tables(), before);

    let mut server = start_server(&host);
    let next = id("next");
    wait_for(&provider, &next).await;
    assert_eq!(tables(), before, "the rules are others behind a restart");
    expect(guest.as_ref(), &INTERNET, &[HOST[0], OTHERS[0]]).await;
    let deadline = Instant::now() + Duration::from_secs(10);
    while count().await <= seen + 20 {
        assert!(
            Instant::now() < deadline,
            "the connection did not go on: {}",
            sh(guest.as_ref(), "cat /tmp/talk").await
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    server.kill().unwrap();
    server.wait().unwrap();
    for id in provider.list().await.unwrap() {
        provider.destroy(&id.id).await.unwrap();
    }
    drop(provider);
    assert_clean(&host);
}

async fn rules_come_back() {
    let host = Host::new();
    let mut provider = provider(&host, network(1));
    let (one, other) = (id("one"), id("other"));
    let guest = sandbox(&provider, &one, &internet()).await;
    expect(guest.as_ref(), &INTERNET, &HOST[..1]).await;
    let before = tables();
    let table = our_table();
    let delete = |what: &str| {
        let mut batch = Batch::new();
        batch.family = libc::NFPROTO_INET as u8;
        match what {
            "table" => batch.request(libc::NFT_MSG_DELTABLE, 0, |t| t.text(a::TABLE_NAME, &table)),
            // All rules of one chain.
            _ => batch.request(libc::NFT_MSG_DELRULE, 0, |rule| {
                rule.text(a::RULE_TABLE, &table);
                rule.text(a::RULE_CHAIN, "leaving");
            }),
        }
        batch.commit().unwrap();
    };
    for what in ["table", "rule"] {
        delete(what);
        let next = sandbox(&provider, &other, &internet()).await;
        assert_eq!(tables(), before, "{what}");
        expect(next.as_ref(), &INTERNET, &[HOST[0], OTHERS[0]]).await;
        provider.destroy(&other).await.unwrap();
        // Also where nobody asks for another sandbox.
        delete(what);
        until_tables_are(&before);
    }

    // With no server: what is out of reach is so by the rules, and by nothing else in this world.
    drop(provider);
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(tables(), before, "rules went with the server");
    delete("table");
    expect(guest.as_ref(), &[HOST[0], HOST[2], OTHERS[0], OTHERS[1], OTHERS[2]], &[]).await;
    provider = self::provider(&host, network(0));
    until_tables_are(&before);
    expect(guest.as_ref(), &INTERNET, &[HOST[0], HOST[2], OTHERS[0], OTHERS[1], OTHERS[2]]).await;
    provider.destroy(&one).await.unwrap();
    drop(provider);
    assert_clean(&host);
}

async fn others_rules_stay() {
    // As Docker leaves it, with something of an operator's in it, and a table of their own.
    let mut batch = Batch::new();
    for family in [libc::NFPROTO_IPV4, libc::NFPROTO_IPV6] {
        batch.family = family as u8;
        for table in ["filter", "mine"] {
            batch.request(libc::NFT_MSG_NEWTABLE, libc::NLM_F_CREATE, |t| t.text(a::TABLE_NAME, table));
            batch.request(libc::NFT_MSG_NEWCHAIN, libc::NLM_F_CREATE, |chain| {
                chain.text(a::CHAIN_TABLE, table);
                chain.text(a::CHAIN_NAME, "FORWARD");
                chain.text(a::CHAIN_TYPE, "filter");
                let policy = if table == "filter" { libc::NF_DROP } else { libc::NF_ACCEPT };
                chain.number(a::CHAIN_POLICY, policy);
                chain.nest(a::CHAIN_HOOK, |hook| {
                    hook.number(a::HOOK_NUMBER, libc::NF_INET_FORWARD);
                    hook.number(a::HOOK_PRIORITY, 0);
                });
            });
            Rule::append(&mut batch, table, "FORWARD", "an operator's", |rule| {
                rule.meta(libc::NFT_META_OIFNAME);
                rule.compare(libc::NFT_CMP_EQ, b"docker0\0");
                rule.count();
                rule.verdict(Verdict::Accept);
            });
        }
    }
    batch.commit().unwrap();
    let before = tables();

    let host = Host::new();
    let provider = provider(&host, network(0));
    let one = id("one");
    let guest = sandbox(&provider, &one, &internet()).await;
    expect(guest.as_ref(), &INTERNET, &[HOST[0], OTHERS[0], OTHERS[1]]).await;
    let with_ours = tables();
    assert!(before.iter().all(|rule| with_ours.contains(rule)), "{with_ours:?}");
    let ours = |rules: &[String]| rules.iter().filter(|rule| rule.contains(" filter FORWARD")).count();
    assert_eq!(ours(&with_ours), ours(&before) + 4);

    // Docker starts anew and takes everything of the chain with it.
    let mut batch = Batch::new();
    for family in [libc::NFPROTO_IPV4, libc::NFPROTO_IPV6] {
        batch.family = family as u8;
        batch.request(libc::NFT_MSG_DELRULE, 0, |rule| {
            rule.text(a::RULE_TABLE, "filter");
            rule.text(a::RULE_CHAIN, "FORWARD");
        });
    }
    batch.commit().unwrap();
    let other = id("other");
    let next = sandbox(&provider, &other, &internet()).await;
    expect(next.as_ref(), &INTERNET, &[HOST[0]]).await;
    for id in [&one, &other] {
        provider.destroy(id).await.unwrap();
    }
    drop(provider);
    assert_gone(|rule| rule.contains("stacyvm-"));
    let left: Vec<_> =
        before.iter().filter(|rule| !(rule.contains(" filter FORWARD") && rule.contains('='))).collect();
    assert!(left.iter().all(|rule| tables().contains(rule)), "{:?}", tables());
    host.assert_nothing_left();
}

async fn a_host_without_a_way_out() {
    world::ip("ip -6 route del default");
    let host = Host::new();
    let provider = provider(&host, network(0));
    let (one, other) = (id("one"), id("other"));
    let guest = sandbox(&provider, &one, &internet()).await;
    expect(guest.as_ref(), &INTERNET[..1], &[INTERNET[1], HOST[0], HOST[1], OTHERS[0], OTHERS[2]]).await;
    provider.destroy(&one).await.unwrap();
    drop(provider);
    assert_gone(|rule| rule.contains("stacyvm-"));
    world::ip("ip route del default");
    let provider = self::provider(&host, network(0));
    let guest = sandbox(&provider, &other, &internet()).await;
    expect(guest.as_ref(), &[], &[INTERNET[0], INTERNET[1], HOST[0], OTHERS[0]]).await;
    provider.destroy(&other).await.unwrap();
    drop(provider);
    assert_clean(&host);
}

async fn what_cannot_be_restricted_is_not_made() {
    let host = Host::new();
    let me = std::env::current_exe().unwrap();
    // Root without the right to set rules.
    let output = Command::new("setpriv")
        .args(["--bounding-set", "-net_admin", "--"])
        .arg(&me)
        .args(["create", host.data_dir.to_str().unwrap(), &host.installation])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("refused: ") && text.contains("CAP_NET_ADMIN"), "{output:?}");
    host.assert_nothing_left();
}

async fn create_once(data_dir: &Path, installation: &str) {
    let provider = provider(&Host::at(data_dir, installation), network(0));
    match provider.create(&id("one"), &internet()).await {
        Ok(_) => println!("made"),
        Err(error) => println!("refused: {}", error.message()),
    }
    assert_eq!(provider.status(&id("one")).await.unwrap_err().kind(), ErrorKind::NotFound);
}

async fn nothing_is_left_of_many() {
    let host = Host::new();
    let cycles = std::env::var("STACYVM_TEST_CYCLES").ok().and_then(|n| n.parse().ok()).unwrap_or(CYCLES);
    let provider = provider(&host, network(2));
    // The rules are there as long as there is one that needs them.
    let (kept, spec) = (id("kept"), internet());
    sandbox(&provider, &kept, &spec).await;
    let rules = tables();
    let started = Instant::now();
    for n in 0..cycles {
        let (one, other) = (id(&format!("a{n}")), id(&format!("b{n}")));
        let (first, second) =
            tokio::join!(sandbox(&provider, &one, &spec), sandbox(&provider, &other, &spec));
        if n % 10 == 0 {
            expect(first.as_ref(), &INTERNET[..1], &HOST[..1]).await;
            expect(second.as_ref(), &INTERNET[..1], &HOST[..1]).await;
        }
        let (gone, too) = tokio::join!(provider.destroy(&one), provider.destroy(&other));
        gone.and(too).unwrap();
        // One that is in use, and those that are ready or about to be.
        assert!(interfaces().len() <= 5, "{:?}", interfaces());
    }
    println!("{} sandboxes in {:?}", cycles * 2, started.elapsed());
    assert_eq!(tables(), rules);
    provider.destroy(&kept).await.unwrap();
    drop(provider);
    assert_clean(&host);
}

async fn two_installations_share_a_pool() {
    let hosts = [Host::new(), Host::new()];
    let small =
        NetworkConfig { address_pool: vec!["10.99.0.0/28".into(), "fd99::/124".into()], ..network(0) };
    let providers = hosts.each_ref().map(|host| provider(host, small.clone()));
    let mut addresses = Vec::new();
    for n in 0..7 {
        for (provider, name) in providers.iter().zip(["x", "y"]) {
            let guest = sandbox(provider, &id(&format!("{name}{n}")), &internet()).await;
            addresses.extend(own_addresses(guest.as_ref()).await);
            expect(guest.as_ref(), &INTERNET[..1], &HOST[..1]).await;
        }
    }
    let count = addresses.len();
    addresses.sort();
    addresses.dedup();
    assert_eq!((addresses.len(), count), (28, 28));
    let error = providers[0].create(&id("more"), &internet()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ResourceLimit, "{error:?}");
    // A sandbox of one installation is as far away as any other.
    let own: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    let own: Vec<&str> = own.iter().map(String::as_str).collect();
    let guest = providers[0].connect(&id("x0")).await.unwrap();
    let mine: Vec<String> = own_addresses(guest.as_ref()).await.iter().map(ToString::to_string).collect();
    let others: Vec<&str> =
        own.into_iter().filter(|address| !mine.iter().any(|m| m == address)).take(6).collect();
    expect(guest.as_ref(), &[], &others).await;
    for provider in &providers {
        for sandbox in provider.list().await.unwrap() {
            provider.destroy(&sandbox.id).await.unwrap();
        }
    }
    drop(providers);
    hosts.iter().for_each(assert_clean);
}

async fn every_check_holds_with_a_network() {
    let host = Host::new();
    let provider = provider(&host, NetworkConfig { mode: "internet".into(), ..network(2) });
    assert_eq!(provider.network(None).unwrap().as_deref(), Some("internet"));
    let options = stacyvm_conformance::Options { no_network: false, ..Default::default() };
    let provider = std::sync::Arc::new(provider);
    let report = stacyvm_conformance::run(std::sync::Arc::clone(&provider) as _, options).await;
    println!("{report}");
    assert!(report.is_success(), "{report}");
    drop(provider);
    assert_clean(&host);
}

/// A server of its own process, with sandboxes as long as it lives: `one`, or `next` if that is there.
async fn server(data_dir: &Path, installation: &str) {
    let host = Host::at(data_dir, installation);
    let config = host.config(1);
    let provider = NativeProvider::start(NativeConfig { network: network(2), ..config }).unwrap();
    let name = if provider.status(&id("one")).await.is_ok() { "next" } else { "one" };
    sandbox(&provider, &id(name), &internet()).await;
    tokio::time::sleep(Duration::from_secs(600)).await;
}

fn start_server(host: &Host) -> Child {
    let arguments = ["server", host.data_dir.to_str().unwrap(), &host.installation];
    Command::new(std::env::current_exe().unwrap()).args(arguments).stdin(Stdio::null()).spawn().unwrap()
}

async fn wait_for(provider: &NativeProvider, id: &stacyvm_provider::SandboxId) {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let runs = matches!(provider.status(id).await, Ok(RuntimeState::Running));
        if runs && provider.connect(id).await.is_ok() {
            return;
        }
        assert!(Instant::now() < deadline, "{id} did not come up");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
