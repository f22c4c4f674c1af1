//! Which addresses sandboxes have: a number from a pool of each family. Which numbers are taken is not ours to remember: it
//! is whether there is a route to them.

use super::{names::Names, routes::Route};
use stacyvm_netlink::Prefix;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Pools that are tried, the first that no route of the host overlaps.
const POOLS: [&str; 4] = ["10.219.0.0/16", "100.99.0.0/16", "10.83.0.0/16", "172.28.0.0/16"];
/// The lowest number: what is below is the host's end in every sandbox.
pub(crate) const FIRST: u32 = 2;
/// The highest number, whatever the pool has room for: it is part of an interface's name.
pub(crate) const LAST: u32 = 0xf_ffff;

/// Pools that an operator chose.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Configured {
    v4: Option<Prefix>,
    v6: Option<Prefix>,
}

impl Configured {
    /// # Errors
    /// What is wrong with them.
    pub(crate) fn new(prefixes: &[Prefix]) -> Result<Self, String> {
        let mut configured = Self::default();
        for prefix in prefixes {
            let (place, longest) = match prefix.address {
                IpAddr::V4(_) => (&mut configured.v4, 29),
                IpAddr::V6(_) => (&mut configured.v6, 125),
            };
            if prefix.length > longest || prefix.length < 8 {
                return Err(format!("{prefix} is no pool: it has to be between /8 and /{longest}"));
            }
            if place.replace(*prefix).is_some() {
                return Err("more than one pool of a family".to_owned());
            }
        }
        Ok(configured)
    }
}

/// Pools in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pools {
    pub(crate) v4: Prefix,
    /// `None` where the host has no IPv6.
    pub(crate) v6: Option<Prefix>,
}

impl Pools {
    /// Chooses, given the host's routes and whether it has IPv6.
    ///
    /// # Errors
    /// What an operator has to change.
    pub(crate) fn choose(
        configured: Configured,
        names: &Names,
        routes: &[Route],
        has_v6: bool,
    ) -> Result<Self, String> {
        let taken = |pool: &Prefix| routes.iter().find(|route| route.is_in_the_way(pool));
        let checked = |pool: Prefix| match taken(&pool) {
            None => Ok(pool),
            Some(route) => Err(format!(
                "providers.native.address_pool: {pool} overlaps {} on {}: choose one that this host does not use",
                route.destination, route.interface
            )),
        };
        let v4 = match configured.v4 {
            Some(pool) => checked(pool)?,
            None => {
                let mut pools = POOLS.iter().filter_map(|text| text.parse().ok());
                pools.find(|pool| taken(pool).is_none()).ok_or_else(|| {
                    format!(
                        "this host has routes to every pool that sandboxes get addresses from ({}): set providers.native.address_pool to one that it does not use",
                        POOLS.join(", ")
                    )
                })?
            }
        };
        let v6 = match configured.v6 {
            _ if !has_v6 => None,
            Some(pool) => Some(checked(pool)?),
            // A random one, as RFC 4193 asks for, but the same for the same installation.
            None => {
                let mut bytes = [0; 16];
                bytes[0] = 0xfd;
                bytes[1..6].copy_from_slice(&names.seed[8..13]);
                Prefix::new(IpAddr::V6(bytes.into()), 64)
            }
        };
        Ok(Self { v4, v6 })
    }

    /// Numbers that can be had: from [`FIRST`] to this one.
    pub(crate) fn last(&self) -> u32 {
        let room = |bits: u8| u32::MAX.checked_shr(32 - u32::from(bits.min(32))).unwrap_or(0);
        let v4 = room(32 - self.v4.length);
        self.v6.map_or(v4, |v6| v4.min(room(128 - v6.length))).min(LAST)
    }

    /// The addresses with this number.
    pub(crate) fn addresses(&self, index: u32) -> (Ipv4Addr, Option<Ipv6Addr>) {
        let v4 = match self.v4.address {
            IpAddr::V4(first) => Ipv4Addr::from_bits(first.to_bits() + index),
            IpAddr::V6(_) => Ipv4Addr::UNSPECIFIED,
        };
        (v4, self.v6(index))
    }

    /// Address of every host end, as whose it answers.
    pub(crate) fn gateway_v6(&self) -> Option<Ipv6Addr> {
        self.v6(1)
    }

    fn v6(&self, index: u32) -> Option<Ipv6Addr> {
        match self.v6?.address {
            IpAddr::V6(first) => Some(Ipv6Addr::from_bits(first.to_bits() + u128::from(index))),
            IpAddr::V4(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn prefix(text: &str) -> Prefix {
        text.parse().unwrap()
    }

    fn route(destination: &str, interface: &str) -> Route {
        Route { destination: prefix(destination), interface: interface.to_owned() }
    }

    fn choose(configured: &[&str], routes: &[Route]) -> Result<Pools, String> {
        let configured: Vec<_> = configured.iter().map(|text| prefix(text)).collect();
        Pools::choose(Configured::new(&configured).unwrap(), &Names::of("x"), routes, true)
    }

    #[test]
    fn the_first_pool_that_is_free_is_taken() {
        assert_eq!(choose(&[], &[]).unwrap().v4, prefix(POOLS[0]));
        let vpn = [route("10.0.0.0/8", "tun0"), route("0.0.0.0/0", "eth0")];
        assert_eq!(choose(&[], &vpn).unwrap().v4, prefix(POOLS[1]));
        let own = [route("10.219.0.7/32", "sv-123456-7")];
        assert_eq!(choose(&[], &own).unwrap().v4, prefix(POOLS[0]));
        let all: Vec<_> = POOLS.iter().map(|pool| route(pool, "eth1")).collect();
        assert!(choose(&[], &all).unwrap_err().contains("address_pool"));
    }

    #[test]
    fn a_pool_that_was_chosen_is_taken_or_refused() {
        let chosen = choose(&["10.50.0.0/24", "fd01::/64"], &[]).unwrap();
        assert_eq!((chosen.v4, chosen.v6), (prefix("10.50.0.0/24"), Some(prefix("fd01::/64"))));
        let error = choose(&["10.50.0.0/24"], &[route("10.50.0.128/25", "docker0")]).unwrap_err();
        assert!(error.contains("10.50.0.128/25 on docker0"), "{error}");
        let none = Pools::choose(Configured::default(), &Names::of("x"), &[], false).unwrap();
        assert_eq!(none.v6, None);
    }

    proptest! {
        #[test]
        fn every_number_has_addresses_of_its_own_in_the_pool(
            one: u32, other: u32, length in 8u8..=29, v6_length in 8u8..=125,
        ) {
            let pools = Pools {
                v4: Prefix::new("10.7.9.200".parse().unwrap(), length).unwrap(),
                v6: Prefix::new("fd07::ffff".parse().unwrap(), v6_length),
            };
            let span = pools.last() - FIRST + 1;
            let (one, other) = (FIRST + one % span, FIRST + other % span);
            let (v4, v6) = pools.addresses(one);
            prop_assert!(pools.v4.covers(&IpAddr::V4(v4).into()));
            prop_assert!(pools.v6.unwrap().covers(&IpAddr::V6(v6.unwrap()).into()));
            prop_assert_eq!(pools.addresses(other) == (v4, v6), one == other);
            prop_assert!(v6 != pools.gateway_v6());
        }
    }
}
