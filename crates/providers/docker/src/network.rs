//! Networks: none, one of the daemon's that an operator named, or `internet`.
//!
//! `internet` is a bridge network of this installation on which sandboxes cannot reach each other, and in each sandbox routes
//! that lead private, link-local, metadata and this host's addresses nowhere. The routes are set by our agent's own program
//! before anything of the sandbox runs, with privileges that nothing in the sandbox ever has: they hold while this server is
//! down, with a remote daemon, and beside whatever rules the host has.

use crate::{
    config::{DockerConfig, Network},
    container::{AGENT, INSTALLATION, ROLE},
    failure::{failed, is_conflict, is_missing},
};
use bollard::{
    Docker,
    container::LogOutput,
    exec::{StartExecOptions, StartExecResults},
    models::{ExecConfig, NetworkCreateRequest},
    query_parameters::InspectNetworkOptions,
};
use futures::StreamExt;
use stacyvm_provider::{Error, Result, SandboxId};
use std::{collections::HashMap, fs, net::IpAddr};

/// Resolvers where none are configured and the host's own may be private, and so out of reach.
const PUBLIC_RESOLVERS: [&str; 2] = ["1.1.1.1", "9.9.9.9"];
/// Most of the program's last words that are kept, in bytes.
const WORDS: usize = 1024;

/// The network's name for the daemon, made if it is ours to make.
///
/// # Errors
/// `Unavailable` with the fix if it does not exist.
pub(crate) async fn resolve(client: &Docker, config: &DockerConfig) -> Result<String> {
    let name = match &config.network {
        Network::None => return Ok("none".to_owned()),
        Network::Named(name) => match exists(client, name).await? {
            true => return Ok(name.clone()),
            false => return Err(Error::unavailable(missing(name))),
        },
        Network::Internet => format!("stacyvm-{}", config.installation_id),
    };
    if exists(client, &name).await? {
        return Ok(name);
    }
    let owned = |pairs: &[(&str, &str)]| -> HashMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    };
    let request = NetworkCreateRequest {
        name: name.clone(),
        driver: Some("bridge".to_owned()),
        // Sandboxes on it do not reach each other.
        options: Some(owned(&[("com.docker.network.bridge.enable_icc", "false")])),
        labels: Some(owned(&[(INSTALLATION, &config.installation_id), (ROLE, "internet")])),
        ..NetworkCreateRequest::default()
    };
    match client.create_network(request).await {
        Ok(_) => Ok(name),
        // Another create was faster.
        Err(error) if is_conflict(&error) => Ok(name),
        Err(error) => Err(failed("make the network of this installation", error)),
    }
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

/// Resolvers of sandboxes.
pub(crate) fn resolvers(config: &DockerConfig) -> Vec<String> {
    if config.network == Network::Internet && config.dns.is_empty() {
        return PUBLIC_RESOLVERS.map(str::to_owned).to_vec();
    }
    config.dns.clone()
}

/// Sets the routes of the network `internet` in a running sandbox.
///
/// # Errors
/// `Unsupported` if they cannot be set: then the sandbox must not be used.
pub(crate) async fn restrict(
    client: &Docker,
    config: &DockerConfig,
    id: &SandboxId,
    daemon_is_here: bool,
) -> Result<()> {
    let mut command = vec![AGENT.to_owned(), "restrict-network".to_owned()];
    command.extend(config.blocked_addresses.iter().cloned());
    if daemon_is_here {
        command.extend(own_addresses().iter().map(ToString::to_string));
    }
    let (code, words) =
        run_privileged(client, id, command).await.map_err(|error| failed("restrict a network", error))?;
    if code == Some(0) {
        return Ok(());
    }
    Err(Error::unsupported(
        "the network internet cannot be restricted to the internet with this runtime: use runc for it, or set providers.docker.network_mode to none",
    )
    .because(words))
}

async fn run_privileged(
    client: &Docker,
    id: &SandboxId,
    command: Vec<String>,
) -> Result<(Option<i64>, String), bollard::errors::Error> {
    let config = ExecConfig {
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        privileged: Some(true),
        user: Some("0:0".to_owned()),
        working_dir: Some("/".to_owned()),
        cmd: Some(command),
        ..ExecConfig::default()
    };
    let exec = client.create_exec(id.as_str(), config).await?;
    let mut words = Vec::new();
    if let StartExecResults::Attached { mut output, .. } =
        client.start_exec(&exec.id, None::<StartExecOptions>).await?
    {
        while let Some(said) = output.next().await {
            let message = match said? {
                LogOutput::StdErr { message }
                | LogOutput::StdOut { message }
                | LogOutput::Console { message } => message,
                LogOutput::StdIn { .. } => continue,
            };
            let room = WORDS.saturating_sub(words.len());
            words.extend_from_slice(&message[..message.len().min(room)]);
        }
    }
    let code = client.inspect_exec(&exec.id).await?.exit_code;
    Ok((code, String::from_utf8_lossy(&words).into_owned()))
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
    fn this_hosts_addresses_are_found() {
        let table = "Local:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 10.1.2.3\n        /32 host LOCAL\n     |-- 10.1.2.255\n        /32 link BROADCAST\n     |-- 127.0.0.1\n        /32 host LOCAL\n";
        assert_eq!(local_v4(table).collect::<Vec<_>>(), ["10.1.2.3".parse::<IpAddr>().unwrap()]);
        let table = "00000000000000000000000000000001 01 80 10 80 lo\n20010db8000000000000000000000007 02 40 00 80 eth0\n";
        assert_eq!(local_v6(table).collect::<Vec<_>>(), ["2001:db8::7".parse::<IpAddr>().unwrap()]);
    }
}
