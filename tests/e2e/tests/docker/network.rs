//! What sandboxes reach on each kind of network, and that nothing inside or a dead server changes it.

use crate::{host, outside, outside::Outside};
use anyhow::{Context, Result, ensure};
use futures::StreamExt;
use stacyvm_provider::{ErrorKind, Guest, OutputEvent, ProcessSpec, Provider, SandboxId, SandboxSpec};
use stacyvm_provider_docker::{DockerConfig, DockerProvider, Network};
use std::{net::TcpListener, sync::Arc, time::Duration};

const ALPINE: &str = "alpine:latest";
const PYTHON: &str = "stacyvm-test/python:latest";

/// What belongs to one test at the daemon; gone when dropped, also in the middle of the test.
struct Installation(String);

impl Installation {
    fn of(config: &DockerConfig) -> Self {
        Self(config.installation_id.clone())
    }
}

impl Drop for Installation {
    fn drop(&mut self) {
        let label = format!("label=stacyvm.installation={}", self.0);
        let list = host::docker(&["ps", "--all", "--quiet", "--filter", &label]).unwrap_or_default();
        for container in list.lines() {
            let _ = host::docker(&["rm", "--force", "--volumes", container]);
        }
        let _ = host::assert_nothing_left(&self.0);
    }
}

fn spec(image: &str) -> SandboxSpec {
    SandboxSpec { memory_mb: 128, vcpus: 1, pids: 64, ..SandboxSpec::new(image) }
}

fn config(network: Network) -> Result<DockerConfig> {
    Ok(DockerConfig { network, ..host::config("runc")? })
}

async fn spawn(provider: &DockerProvider, image: &str) -> Result<(SandboxId, Arc<dyn Guest>)> {
    let id: SandboxId = format!("sb-{:08x}", rand::random::<u32>()).parse()?;
    provider.create(&id, &spec(image)).await?;
    let guest = provider.connect(&id).await?;
    Ok((id, guest))
}

fn process(script: &str) -> ProcessSpec {
    ProcessSpec {
        id: format!("p{:08x}", rand::random::<u32>()),
        argv: ["sh", "-c", script].map(str::to_owned).to_vec(),
        deadline: Some(Duration::from_secs(60)),
        ..ProcessSpec::default()
    }
}

/// Exit code and output of a script.
async fn sh(guest: &dyn Guest, script: &str) -> Result<(i32, String)> {
    let spec = process(script);
    guest.start(&spec).await?;
    let mut events = guest.attach(&spec.id, 0, true, false).await?;
    let mut output = Vec::new();
    while let Some(event) = events.next().await {
        match event? {
            OutputEvent::Chunk { data, .. } => output.extend_from_slice(&data),
            OutputEvent::Gap { .. } => {}
            OutputEvent::Exit(info) => {
                let code = info.outcome.and_then(|outcome| outcome.shell_code()).context("no exit code")?;
                return Ok((code, String::from_utf8_lossy(&output).into_owned()));
            }
        }
    }
    anyhow::bail!("the output ended without an exit: {script}")
}

async fn reaches(guest: &dyn Guest, address: &str, port: u16) -> Result<bool> {
    let (code, output) = sh(guest, &format!("nc -w 3 {address} {port} < /dev/null")).await?;
    ensure!((code == 0) == (output == "hello\n"), "{address}: {code} {output}");
    Ok(code == 0)
}

fn inspect(kind: &str, name: &str, format: &str) -> Result<String> {
    host::docker(&[kind, "inspect", "--format", format, name])
}

#[tokio::test(flavor = "multi_thread")]
async fn internet_is_all_that_is_reached() -> Result<()> {
    let _outside = Outside::new()?;
    let listener = TcpListener::bind("0.0.0.0:0")?;
    let port = listener.local_addr()?.port();
    let _server = outside::serve(listener)?;

    // What is to be out of reach is there: from a network that is not restricted it is seen.
    let open = config(Network::Named("bridge".to_owned()))?;
    let _open = Installation::of(&open);
    let (open, _) = host::provider(open).await;
    let (_, open) = spawn(&open, ALPINE).await?;
    let bridge = inspect("network", "bridge", "{{(index .IPAM.Config 0).Gateway}}")?;
    for address in outside::PRIVATE.into_iter().chain([outside::PUBLIC, outside::OTHER]) {
        ensure!(reaches(&*open, address, outside::PORT).await?, "{address} is not there");
    }
    for address in [outside::HOST, bridge.as_str()] {
        ensure!(reaches(&*open, address, port).await?, "{address} is not there");
    }

    let config = DockerConfig {
        blocked_addresses: vec![format!("{}/32", outside::OTHER)],
        ..config(Network::Internet)?
    };
    let _installation = Installation::of(&config);
    let (provider, installation) = host::provider(config.clone()).await;
    let (first, second) = tokio::join!(spawn(&provider, ALPINE), spawn(&provider, ALPINE));
    let ((first, guest), (second, neighbour)) = (first?, second?);
    let label = format!("label=stacyvm.installation={installation}");
    let networks = host::docker(&["network", "ls", "--quiet", "--filter", &label])?;
    ensure!(networks.lines().count() == 1, "one network for all: {networks}");
    let gateway =
        inspect("network", &format!("stacyvm-{installation}"), "{{(index .IPAM.Config 0).Gateway}}")?;
    let address = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
    let (own, other) =
        (inspect("container", first.as_str(), address)?, inspect("container", second.as_str(), address)?);
    for guest in [&guest, &neighbour] {
        guest.start(&process("exec nc -ll -p 7000 -e echo hello")).await?;
    }
    let up = "for i in 1 2 3 4 5 6 7 8 9; do nc 127.0.0.1 7000 < /dev/null && exit; sleep 0.2; done; exit 1";
    for guest in [&guest, &neighbour] {
        ensure!(sh(&**guest, up).await? == (0, "hello\n".to_owned()));
    }
    ensure!(reaches(&*guest, &own, 7000).await?, "a sandbox reaches itself");

    let blocked = [
        (outside::OTHER, outside::PORT),
        (outside::HOST, port),
        (&gateway, port),
        (&bridge, port),
        (&other, 7000),
    ];
    let blocked = || outside::PRIVATE.map(|address| (address, outside::PORT)).into_iter().chain(blocked);
    for (address, port) in blocked() {
        ensure!(!reaches(&*guest, address, port).await?, "{address} is reached");
    }
    ensure!(reaches(&*guest, outside::PUBLIC, outside::PORT).await?, "the internet is not reached");
    let (_, privileges) =
        sh(&*guest, "grep -hE 'Cap(Prm|Bnd|Inh)' /proc/1/status; cat /proc/1/environ").await?;
    ensure!(
        privileges.matches("0000000000000000").count() == 2,
        "the agent could still change it: {privileges}"
    );
    ensure!(!privileges.contains(outside::OTHER), "what is blocked is shown: {privileges}");
    let (code, output) = sh(&*guest, &format!("nslookup {second} 127.0.0.11")).await?;
    ensure!(code == 0 && output.contains(&other), "the resolver does not answer: {output}");

    // The filter belongs to the sandbox, not to the server.
    drop((guest, neighbour, provider));
    let greeting = |address: &str, port: u16| {
        let script = format!("nc -w 3 {address} {port} < /dev/null");
        host::docker(&["exec", "--user", "1000", first.as_str(), "sh", "-c", &script])
    };
    for (address, port) in blocked() {
        ensure!(greeting(address, port).is_err(), "{address} is reached without a server");
    }
    ensure!(greeting(outside::PUBLIC, outside::PORT)? == "hello");
    let (provider, _) = host::provider(DockerConfig { generation: 2, ..config }).await;
    let guest = provider.connect(&first).await?;
    ensure!(!reaches(&*guest, &gateway, port).await?, "the gateway is reached after a restart of the server");
    ensure!(reaches(&*guest, outside::PUBLIC, outside::PORT).await?);

    for id in [&first, &second] {
        provider.destroy(id).await?;
    }
    host::assert_nothing_left(&installation)
}

/// Tries each address without a word to say to routes: a socket of the interface's needs none to reach its link.
const AROUND_ROUTES: &str = r#"
import socket, sys
for target in sys.argv[1:]:
    address, port = target.split(":")
    for directly in 0, 1:
        s = socket.socket()
        s.settimeout(3)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
        s.setsockopt(socket.SOL_SOCKET, socket.SO_DONTROUTE, directly)
        try:
            s.connect((address, int(port)))
            print(address, "reached")
        except OSError as error:
            pass
"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_that_needs_no_route_reaches_no_more() -> Result<()> {
    if host::docker(&["image", "inspect", PYTHON]).is_err() {
        eprintln!("not run: there is no image {PYTHON}");
        return Ok(());
    }
    let listener = TcpListener::bind("0.0.0.0:0")?;
    let port = listener.local_addr()?.port();
    let _server = outside::serve(listener)?;
    for (network, expected) in [("bridge", true), ("internet", false)] {
        let config = config(network.into())?;
        let _installation = Installation::of(&config);
        let name = if expected { network.to_owned() } else { format!("stacyvm-{}", config.installation_id) };
        let (provider, installation) = host::provider(config).await;
        let (id, guest) = spawn(&provider, PYTHON).await?;
        let gateway = inspect("network", &name, "{{(index .IPAM.Config 0).Gateway}}")?;
        let attack = format!("python3 -c '{AROUND_ROUTES}' {gateway}:{port}");
        let (code, output) = sh(&*guest, &attack).await?;
        let reached = if expected { format!("{gateway} reached\n").repeat(2) } else { String::new() };
        ensure!((code, &output) == (0, &reached), "{network}: {code} {output}");
        provider.destroy(&id).await?;
        host::assert_nothing_left(&installation)?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn none_is_loopback_alone() -> Result<()> {
    let config = config(Network::None)?;
    let _installation = Installation::of(&config);
    let (provider, installation) = host::provider(config).await;
    let (id, guest) = spawn(&provider, ALPINE).await?;
    ensure!(sh(&*guest, "ls /sys/class/net; wc -l < /proc/net/route").await? == (0, "lo\n1\n".to_owned()));
    provider.destroy(&id).await?;
    host::assert_nothing_left(&installation)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_that_is_missing_is_named_with_the_fix() -> Result<()> {
    let config = config(Network::Named("no-such-network".to_owned()))?;
    let _installation = Installation::of(&config);
    let (provider, installation) = host::provider(config).await;
    let id: SandboxId = "sb-lost".parse()?;
    let error = provider.create(&id, &spec(ALPINE)).await.err().context("it was made")?;
    ensure!(error.kind() == ErrorKind::Unavailable, "{}", error.chain());
    ensure!(error.message().contains("docker network create no-such-network"), "{}", error.message());
    let problem = provider.health().await.problem.context("health finds nothing")?;
    ensure!(problem == error.message(), "{problem}");
    provider.destroy(&id).await?;
    host::assert_nothing_left(&installation)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runtime_that_cannot_restrict_is_refused() -> Result<()> {
    let config = DockerConfig { network: Network::Internet, ..host::config("runsc")? };
    let _installation = Installation::of(&config);
    let (provider, installation) = host::provider(config).await;
    let id: SandboxId = format!("sb-{:08x}", rand::random::<u32>()).parse()?;
    let error = provider.create(&id, &spec(ALPINE)).await.err().context("it was made")?;
    ensure!(error.kind() == ErrorKind::Unsupported, "{}", error.chain());
    ensure!(error.message().contains("use runc"), "{}", error.message());
    ensure!(error.chain().contains("packet filter"), "{}", error.chain());
    provider.destroy(&id).await?;
    host::assert_nothing_left(&installation)
}
