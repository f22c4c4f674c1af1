//! What an operator and the caller of a create may say about networks.

use super::addresses;
use stacyvm_netlink::Prefix;
use stacyvm_provider::{Error, Result};
use std::net::IpAddr;

/// Settings of networks. The default is `none`, with everything that `internet` needs chosen by ourselves.
#[derive(Debug, Clone, Default)]
pub struct NetworkConfig {
    /// Network of sandboxes that name none: `none` or `internet` (also `nat`); empty: `none`.
    pub mode: String,
    /// Resolvers of sandboxes with the network `internet`; empty: those of the host that are public, else public ones.
    pub dns: Vec<String>,
    /// Addresses and prefixes that `internet` blocks beside private ones and this host's: `203.0.113.7`, `2001:db8::/32`.
    pub blocked_addresses: Vec<String>,
    /// Prefixes from which sandboxes get addresses, at most one of each family; empty: ones that the host does not use.
    pub address_pool: Vec<String>,
    /// Namespaces of each kind to have ready for sandboxes to come; 0: they are made when they are needed.
    pub ready: usize,
}

/// Network of a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    None,
    Internet,
}

impl Mode {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Internet => "internet",
        }
    }

    /// # Errors
    /// `InvalidArgument` for any other word.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        match text {
            "" | "none" => Ok(Self::None),
            "internet" | "nat" => Ok(Self::Internet),
            other => Err(Error::invalid_argument(format!(
                "the native provider has no network {other}: use internet, or none"
            ))),
        }
    }
}

/// The same, checked.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) mode: Mode,
    pub(crate) dns: Vec<IpAddr>,
    pub(crate) blocked: Vec<Prefix>,
    pub(crate) pool: addresses::Configured,
    pub(crate) ready: usize,
}

impl Settings {
    /// # Errors
    /// `InvalidArgument` that names the key.
    pub(crate) fn new(config: &NetworkConfig) -> Result<Self> {
        let wrong =
            |key: &str, what: &str| Error::invalid_argument(format!("providers.native.{key}: {what}"));
        let prefixes = |key: &str, texts: &[String]| -> Result<Vec<Prefix>> {
            texts.iter().map(|text| text.trim().parse().map_err(|what: String| wrong(key, &what))).collect()
        };
        let mut dns = Vec::new();
        for text in &config.dns {
            let address: IpAddr = text.trim().parse().map_err(|_| {
                wrong("dns", &format!("{text:?} is no address: write that of a resolver, as in 1.1.1.1"))
            })?;
            let address = address.to_canonical();
            if address.is_loopback() || address.is_unspecified() || address.is_multicast() {
                let what = format!(
                    "{address} means something else in a sandbox: name an address that leads to the resolver"
                );
                return Err(wrong("dns", &what));
            }
            dns.push(address);
        }
        let pool = addresses::Configured::new(&prefixes("address_pool", &config.address_pool)?)
            .map_err(|what| wrong("address_pool", &what))?;
        Ok(Self {
            mode: Mode::parse(config.mode.trim()).map_err(|error| wrong("network_mode", error.message()))?,
            dns,
            blocked: prefixes("blocked_addresses", &config.blocked_addresses)?,
            pool,
            ready: config.ready,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_have_their_spellings_and_no_others() {
        for (text, mode) in
            [("", Mode::None), ("none", Mode::None), ("internet", Mode::Internet), ("nat", Mode::Internet)]
        {
            assert_eq!(Mode::parse(text).unwrap(), mode, "{text}");
        }
        assert!(Mode::parse("bridge").unwrap_err().message().contains("use internet, or none"));
    }

    #[test]
    fn what_is_wrong_names_its_key() {
        let config = |fill: fn(&mut NetworkConfig)| {
            let mut config = NetworkConfig::default();
            fill(&mut config);
            Settings::new(&config)
        };
        for (key, result) in [
            ("network_mode", config(|c| c.mode = "bridge".into())),
            ("dns", config(|c| c.dns = vec!["resolver".into()])),
            ("dns", config(|c| c.dns = vec!["127.0.0.53".into()])),
            ("blocked_addresses", config(|c| c.blocked_addresses = vec!["10.0.0.0/33".into()])),
            ("address_pool", config(|c| c.address_pool = vec!["10.0.0.0/8".into(), "10.0.0.0/16".into()])),
            ("address_pool", config(|c| c.address_pool = vec!["10.0.0.0/31".into()])),
        ] {
            let error = result.unwrap_err();
            assert!(error.message().starts_with(&format!("providers.native.{key}: ")), "{}", error.message());
        }
        config(|c| c.dns = vec!["10.0.0.1".into(), "2606:4700:4700::1111".into()]).unwrap();
    }
}
