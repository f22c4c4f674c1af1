//! Networks: none, one of the daemon's that an operator named, or `internet`.
//!
//! `internet` is a bridge network of this installation on which sandboxes cannot reach each other, and in each sandbox a
//! packet filter on what it sends, which refuses private, link-local, metadata and this host's addresses. The agent sets
//! it before it can be reached, with a capability that it gives up right behind, that bridges give up once they are
//! connected, and that no process of the sandbox ever has: the filter holds while this server is down, with a remote
//! daemon, and beside whatever rules the host has. (Routes that lead nowhere would not hold: a process may bind its
//! socket to an interface, and reaches what is on the bridge without a route.) The network has IPv6 only if the daemon is
//! configured to give it, and the filter covers both.
//!
//! Names: the daemon's resolver answers within the sandbox at 127.0.0.11, which is loopback and stays open. It knows the
//! sandboxes on the network by id and may give their addresses and, asked for an address, their ids; it passes other names
//! on from within the sandbox, so that resolvers with private addresses are out of reach like everything there. A name that
//! leads to a private address is of no use: what counts is where a packet goes.

use crate::{
    config::{DockerConfig, Network},
    container::{INSTALLATION, ROLE},
    failure::{failed, is_conflict, is_missing},
};
use bollard::{
    Docker,
    models::NetworkCreateRequest,
    query_parameters::{InspectNetworkOptions, ListNetworksOptions},
};
use stacyvm_netlink::PUBLIC_RESOLVERS;
use stacyvm_provider::{Error, Result};
use std::{collections::HashMap, fs, net::IpAddr};
use tokio::sync::Mutex;

/// Value of [`ROLE`] on networks that are restricted to the internet.
const INTERNET: &str = "internet";

/// The network of a sandbox that asks for this one, or for none in particular.
///
/// # Errors
/// `InvalidArgument` for what an operator did not choose.
pub(crate) fn chosen(config: &DockerConfig, asked: Option<&str>) -> Result<Network> {
    let Some(asked) = asked else { return Ok(config.network.clone()) };
    let network = Network::from(asked);
    if network == Network::None || network == config.network {
        return Ok(network);
    }
    let configured = match &config.network {
        Network::None => String::new(),
        other => format!("{other} or "),
    };
    Err(Error::invalid_argument(format!(
        "the network {network} is not allowed here: use {configured}none, or set providers.docker.network_mode to it"
    )))
}

/// The network's name or id for the daemon, made if it is ours to make. `turn` is that of all callers.
///
/// # Errors
/// `Unavailable` with the fix if it does not exist.
pub(crate) async fn resolve(
    client: &Docker,
    config: &DockerConfig,
    network: &Network,
    turn: &Mutex<()>,
) -> Result<String> {
    match network {
        Network::None => return Ok("none".to_owned()),
        Network::Named(name) => match exists(client, name).await? {
            true => return Ok(name.clone()),
            false => return Err(Error::unavailable(missing(name))),
        },
        Network::Internet => {}
    }
    // Engines before 25 make any number of networks with the same name, and know them apart by id.
    let _turn = turn.lock().await;
    if let Some(id) = ours(client, config).await? {
        return Ok(id);
    }
    let name = format!("stacyvm-{}", config.installation_id);
    let owned = |pairs: &[(&str, &str)]| -> HashMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    };
    let request = NetworkCreateRequest {
        name: name.clone(),
        driver: Some("bridge".to_owned()),
        // Sandboxes on it do not reach each other.
        options: Some(owned(&[("com.docker.network.bridge.enable_icc", "false")])),
        labels: Some(owned(&[(INSTALLATION, &config.installation_id), (ROLE, INTERNET)])),
        ..NetworkCreateRequest::default()
    };
    match client.create_network(request).await {
        Ok(made) => Ok(made.id),
        // Another server of this installation was faster; or the name is taken.
        Err(error) if is_conflict(&error) => ours(client, config).await?.ok_or_else(|| {
            let problem = format!("the docker daemon has a network {name} that is not ours: remove it with `docker network rm {name}`");
            Error::unavailable(problem).because(error)
        }),
        Err(error) => Err(failed("make the network of this installation", error)),
    }
}

/// Id of this installation's network `internet`, if there is one.
async fn ours(client: &Docker, config: &DockerConfig) -> Result<Option<String>> {
    let labels = vec![format!("{INSTALLATION}={}", config.installation_id), format!("{ROLE}={INTERNET}")];
    let options = ListNetworksOptions { filters: Some(HashMap::from([("label".to_owned(), labels)])) };
    let found =
        client.list_networks(Some(options)).await.map_err(|error| failed("list its networks", error))?;
    // The same for everybody, should there be several.
    Ok(found.into_iter().filter_map(|network| network.id).min())
}

/// Whether the daemon has a network of this name.
///
/// # Errors
/// The daemon cannot be asked.
pub(crate) async fn exists(client: &Docker, name: &str) -> Result<bool> {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if name.is_empty() || !name.bytes().all(legal) {
        return Ok(false);
    }
    match client.inspect_network(name, None::<InspectNetworkOptions>).await {
        Ok(_) => Ok(true),
        Err(error) if is_missing(&error) => Ok(false),
        Err(error) => Err(failed("look at a network", error)),
    }
}

/// What to say about a network that does not exist.
pub(crate) fn missing(name: &str) -> String {
    format!(
        "the docker daemon has no network {name}: make it with `docker network create {name}`, or set providers.docker.network_mode to bridge, internet or none"
    )
}

/// Resolvers of sandboxes with this network.
pub(crate) fn resolvers(config: &DockerConfig, network: &Network) -> Vec<String> {
    if *network == Network::Internet && config.dns.is_empty() {
        return PUBLIC_RESOLVERS.map(str::to_owned).to_vec();
    }
    config.dns.clone()
}

/// What the network `internet` blocks beside the usual, in the agent's words.
pub(crate) fn blocked(config: &DockerConfig, daemon_is_here: bool) -> String {
    let own = if daemon_is_here { own_addresses() } else { Vec::new() };
    let named = config.blocked_addresses.iter().cloned();
    named.chain(own.iter().map(ToString::to_string)).collect::<Vec<_>>().join(" ")
}

/// What to say when the agent could not set the filter.
pub(crate) fn unrestricted() -> Error {
    Error::unsupported(
        "the network internet cannot be restricted to the internet with this runtime: use runc on a kernel with nf_tables for it, or set providers.docker.network_mode to none",
    )
}

/// Addresses of this host that are not loopback.
fn own_addresses() -> Vec<IpAddr> {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let mut addresses: Vec<_> =
        local_v4(&read("/proc/net/fib_trie")).chain(local_v6(&read("/proc/net/if_inet6"))).collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

/// Local addresses in the kernel's table: each stands on the line above its `host LOCAL`.
fn local_v4(table: &str) -> impl Iterator<Item = IpAddr> + '_ {
    let lines = table.lines();
    lines.clone().zip(lines.skip(1)).filter(|(_, next)| next.trim() == "/32 host LOCAL").filter_map(
        |(line, _)| {
            let address: IpAddr = line.trim().strip_prefix("|-- ")?.parse().ok()?;
            (!address.is_loopback()).then_some(address)
        },
    )
}

fn local_v6(table: &str) -> impl Iterator<Item = IpAddr> + '_ {
    table.lines().filter_map(|line| {
        let bits = u128::from_str_radix(line.split_ascii_whitespace().next()?, 16).ok()?;
        let address = IpAddr::from(bits.to_be_bytes());
        (!address.is_loopback()).then_some(address)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sandbox_may_have_no_network_or_the_one_that_is_configured() {
        let with =
            |network: &str| DockerConfig { network: network.into(), ..crate::container::tests::config() };
        let internet = with("internet");
        assert_eq!(chosen(&internet, None).unwrap(), Network::Internet);
        assert_eq!(chosen(&internet, Some("internet")).unwrap(), Network::Internet);
        assert_eq!(chosen(&internet, Some("none")).unwrap(), Network::None);
        for (config, asked) in [(internet, "bridge"), (with("none"), "internet"), (with("web"), "host")] {
            let error = chosen(&config, Some(asked)).unwrap_err();
            assert!(error.message().contains("providers.docker.network_mode"), "{}", error.message());
        }
    }

    #[test]
    fn this_hosts_addresses_are_found() {
        let table = "Local:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 10.1.2.3\n        /32 host LOCAL\n     |-- 10.1.2.255\n        /32 link BROADCAST\n     |-- 127.0.0.1\n        /32 host LOCAL\n";
        assert_eq!(local_v4(table).collect::<Vec<_>>(), ["10.1.2.3".parse::<IpAddr>().unwrap()]);
        let table = "00000000000000000000000000000001 01 80 10 80 lo\n20010db8000000000000000000000007 02 40 00 80 eth0\n";
        assert_eq!(local_v6(table).collect::<Vec<_>>(), ["2001:db8::7".parse::<IpAddr>().unwrap()]);
    }
}
