//! Prefixes of addresses.

use std::{fmt, net::IpAddr, str::FromStr};

/// All addresses with the same leading bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Prefix {
    /// The first of them.
    pub address: IpAddr,
    /// Number of leading bits that count.
    pub length: u8,
}

impl Prefix {
    /// The prefix of `address` with that many leading bits; `None` if an address has fewer.
    pub fn new(address: IpAddr, length: u8) -> Option<Self> {
        let (address, length) = match (address, length) {
            // Sockets for both send these as IPv4.
            (IpAddr::V6(v6), 96..) if v6.to_ipv4_mapped().is_some() => (address.to_canonical(), length - 96),
            pair => pair,
        };
        let address = match (address, length) {
            (IpAddr::V4(v4), 0..=32) => IpAddr::V4((v4.to_bits() & mask_v4(length)).into()),
            (IpAddr::V6(v6), 0..=128) => IpAddr::V6((v6.to_bits() & mask_v6(length)).into()),
            _ => return None,
        };
        Some(Self { address, length })
    }

    /// Whether every address of `other` is one of this.
    pub fn covers(&self, other: &Self) -> bool {
        self.length <= other.length && Self::new(other.address, self.length) == Some(*self)
    }

    /// The bits that count, in an address's bytes.
    pub fn mask(&self) -> Vec<u8> {
        match self.address {
            IpAddr::V4(_) => mask_v4(self.length).to_be_bytes().to_vec(),
            IpAddr::V6(_) => mask_v6(self.length).to_be_bytes().to_vec(),
        }
    }

    /// The first address's bytes.
    pub fn bytes(&self) -> Vec<u8> {
        match self.address {
            IpAddr::V4(v4) => v4.octets().to_vec(),
            IpAddr::V6(v6) => v6.octets().to_vec(),
        }
    }

    /// Whether some address is one of both.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.covers(other) || other.covers(self)
    }

    /// An address to try: where there are several, the second, which is often a router's.
    pub fn sample(&self) -> IpAddr {
        match self.address {
            IpAddr::V4(v4) => IpAddr::V4((v4.to_bits() | u32::from(self.length < 32)).into()),
            IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() | u128::from(self.length < 128)).into()),
        }
    }
}

fn mask_v4(length: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0)
}

fn mask_v6(length: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0)
}

impl From<IpAddr> for Prefix {
    fn from(address: IpAddr) -> Self {
        let address = address.to_canonical();
        Self { address, length: if address.is_ipv4() { 32 } else { 128 } }
    }
}

impl FromStr for Prefix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = match text.split_once('/') {
            None => text.parse::<IpAddr>().ok().map(Self::from),
            Some((address, length)) if length.bytes().all(|byte| byte.is_ascii_digit()) => address
                .parse()
                .ok()
                .zip(length.parse().ok())
                .and_then(|(address, length)| Self::new(address, length)),
            Some(_) => None,
        };
        parsed.ok_or_else(|| {
            format!("{text:?} is no address and no prefix: write them as in 203.0.113.7 or 2001:db8::/32")
        })
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn prefix(text: &str) -> Prefix {
        text.parse().unwrap()
    }

    #[test]
    fn addresses_and_prefixes_are_read() {
        for (text, meant) in [
            ("203.0.113.7", "203.0.113.7/32"),
            ("203.0.113.7/24", "203.0.113.0/24"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("2001:db8::1", "2001:db8::1/128"),
            ("2001:db8:1::1/32", "2001:db8::/32"),
            ("::/0", "::/0"),
            ("::ffff:10.1.2.3", "10.1.2.3/32"),
            ("::ffff:10.1.2.3/104", "10.0.0.0/8"),
            ("::ffff:0:0/96", "0.0.0.0/0"),
        ] {
            assert_eq!(prefix(text).to_string(), meant, "{text}");
        }
        for bad in [
            "",
            "x",
            "10.0.0/8",
            "10.0.0.0/33",
            "10.0.0.0/",
            "10.0.0.0/+8",
            "::/129",
            "::/-1",
            "fe80::1%eth0",
            "a b",
        ] {
            assert!(bad.parse::<Prefix>().unwrap_err().contains("2001:db8::/32"), "{bad}");
        }
    }

    #[test]
    fn samples_lie_within() {
        assert_eq!(prefix("10.0.0.0/8").sample().to_string(), "10.0.0.1");
        assert_eq!(prefix("203.0.113.7").sample().to_string(), "203.0.113.7");
        assert_eq!(prefix("fc00::/7").sample().to_string(), "fc00::1");
    }

    proptest! {
        #[test]
        fn a_prefix_covers_those_that_share_its_bits(one: u32, other: u32, length in 0u8..=32) {
            let block = Prefix::new(IpAddr::V4(one.into()), length).unwrap();
            let shared = (one ^ other).leading_zeros() >= u32::from(length);
            prop_assert_eq!(block.covers(&IpAddr::V4(other.into()).into()), shared);
            prop_assert!(block.covers(&block.sample().into()));
            prop_assert_eq!(prefix(&block.to_string()), block);
        }

        #[test]
        fn the_same_with_longer_addresses(one: u128, other: u128, length in 0u8..=128, flip in 0u32..128) {
            let block = Prefix::new(IpAddr::V6(one.into()), length).unwrap();
            for other in [other, one ^ 1 << flip] {
                let address = Prefix { address: IpAddr::V6(other.into()), length: 128 };
                let shared = (one ^ other).leading_zeros() >= u32::from(length);
                prop_assert_eq!(block.covers(&address), shared);
            }
            prop_assert_eq!(prefix(&block.to_string()), block);
            let bits: u32 = block.mask().iter().map(|byte| byte.count_ones()).sum();
            prop_assert_eq!(bits, u32::from(length));
        }

        #[test]
        fn no_text_is_too_strange(text: String) {
            let _ = text.parse::<Prefix>();
        }
    }
}
