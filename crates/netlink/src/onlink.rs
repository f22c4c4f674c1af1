//! What this namespace's interfaces are on: subnets that need no router, the routers themselves, and whether there is IPv6.
//!
//! Their addresses may be public ones, and are other machines of whoever runs this one all the same.

use crate::Prefix;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Flag of a route that refuses.
const REJECT: u32 = 0x200;

/// Subnets and routers in `/proc/net/route`.
pub fn v4(table: &str) -> impl Iterator<Item = Prefix> + '_ {
    // The kernel prints addresses as numbers, which it keeps in the network's order.
    let number = |text: &str| Some(u32::from_be_bytes(u32::from_str_radix(text, 16).ok()?.to_ne_bytes()));
    table.lines().skip(1).filter_map(move |line| {
        let fields: Vec<_> = line.split_ascii_whitespace().collect();
        let &[_, destination, gateway, flags, _, _, _, mask, ..] = &*fields else { return None };
        let flags = u32::from_str_radix(flags, 16).ok()?;
        let length = number(mask)?.count_ones() as u8;
        let address = |number: u32| IpAddr::V4(Ipv4Addr::from_bits(number));
        direct(address(number(destination)?), length, address(number(gateway)?), flags)
    })
}

/// Subnets and routers in `/proc/net/ipv6_route`.
pub fn v6(table: &str) -> impl Iterator<Item = Prefix> + '_ {
    let address = |text: &str| Some(IpAddr::V6(Ipv6Addr::from_bits(u128::from_str_radix(text, 16).ok()?)));
    table.lines().filter_map(move |line| {
        let fields: Vec<_> = line.split_ascii_whitespace().collect();
        let &[destination, length, _, _, gateway, _, _, _, flags, interface] = &*fields else { return None };
        let (length, flags) = (u8::from_str_radix(length, 16).ok()?, u32::from_str_radix(flags, 16).ok()?);
        (interface != "lo").then(|| direct(address(destination)?, length, address(gateway)?, flags)).flatten()
    })
}

/// What a route leads to directly: its router, or where it needs none, its destination.
fn direct(destination: IpAddr, length: u8, gateway: IpAddr, flags: u32) -> Option<Prefix> {
    match () {
        () if flags & REJECT != 0 => None,
        () if !gateway.is_unspecified() => Some(gateway.into()),
        // Everything, over a link without neighbours.
        () if length == 0 => None,
        () => Prefix::new(destination, length),
    }
}

/// Whether `/proc/net/if_inet6` has an address beside those of loopback.
pub fn has_v6(addresses: &str) -> bool {
    addresses.lines().any(|line| !line.trim_end().ends_with(" lo"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(found: impl Iterator<Item = Prefix>) -> Vec<String> {
        found.map(|prefix| prefix.to_string()).collect()
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn subnets_and_routers_are_found() {
        let table = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
            eth0\t00000000\t0180D50A\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
            eth0\t0080D50A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n\
            *\t0000FEA9\t00000000\t0200\t0\t0\t0\t0000FFFF\t0\t0\t0\n\
            tun0\t00000000\t00000000\t0001\t0\t0\t0\t00000000\t0\t0\t0\n\
            short line\n";
        assert_eq!(texts(v4(table)), ["10.213.128.1/32", "10.213.128.0/24"]);
    }

    #[test]
    fn the_same_for_longer_addresses() {
        let zero = "0".repeat(32);
        let line = |destination: &str, length: u8, gateway: &str, flags: u32, interface: &str| {
            format!(
                "{destination} {length:02x} {zero} 00 {gateway} 00000100 00000001 00000000 {flags:08x} {interface}\n"
            )
        };
        let net = "20010db8000000000000000000000000";
        let router = "fe800000000000000000000000000001";
        let table = line(net, 64, &zero, 1, "eth0")
            + &line(&zero, 0, router, 3, "eth0")
            + &line(&zero, 0, &zero, 0x200, "lo")
            + &line(net, 32, &zero, 0x200, "eth0");
        assert_eq!(texts(v6(&table)), ["2001:db8::/64", "fe80::1/128"]);
    }

    #[test]
    fn loopback_alone_is_no_ipv6() {
        let loopback = "00000000000000000000000000000001 01 80 10 80       lo\n";
        let other = "fe8000000000000000fc00fffe000001 04 40 20 80     eth0\n";
        assert!(!has_v6("") && !has_v6(loopback));
        assert!(has_v6(&format!("{loopback}{other}")));
    }
}
