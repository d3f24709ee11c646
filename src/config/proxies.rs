//! Whose forwarded addresses are believed: `TRUSTED_PROXY_IP`, as Express's `trust proxy` reads it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::read::Reader;
use super::variables;

/// A network: an address and how many of its leading bits count. IPv4 networks also hold the IPv6 form of
/// their addresses (`::ffff:10.0.0.1`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Network {
    address: IpAddr,
    prefix: u8,
}

impl Network {
    const fn v4(a: u8, b: u8, prefix: u8) -> Network {
        Network { address: IpAddr::V4(Ipv4Addr::new(a, b, 0, 0)), prefix }
    }

    const fn v6(first: u16, last: u16, prefix: u8) -> Network {
        Network { address: IpAddr::V6(Ipv6Addr::new(first, 0, 0, 0, 0, 0, 0, last)), prefix }
    }

    /// Whether it holds that address.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                (network.to_bits() ^ address.to_bits()).leading_zeros() >= u32::from(self.prefix)
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => {
                (network.to_bits() ^ address.to_bits()).leading_zeros() >= u32::from(self.prefix)
            }
            _ => false,
        }
    }

    /// Reads `ADDRESS`, `ADDRESS/BITS` or `ADDRESS/MASK`.
    pub fn parse(text: &str) -> Option<Network> {
        let (address, length) = text.split_once('/').map_or((text, None), |(a, b)| (a, Some(b)));
        let address = address.parse::<IpAddr>().ok()?;
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let prefix = match length {
            None => bits,
            Some(length) => match length.parse::<IpAddr>() {
                Ok(mask) if mask.is_ipv4() == address.is_ipv4() => prefix_of_mask(mask)?,
                Ok(_) => return None,
                Err(_) => length.parse::<u8>().ok().filter(|prefix| *prefix <= bits && length.len() <= 3)?,
            },
        };
        Some(match address.to_canonical() {
            address @ IpAddr::V4(_) if bits == 128 => Network { address, prefix: prefix.checked_sub(96)? },
            address => Network { address, prefix },
        })
    }
}

fn prefix_of_mask(mask: IpAddr) -> Option<u8> {
    let (ones, bits_set) = match mask {
        IpAddr::V4(mask) => (mask.to_bits().leading_ones(), mask.to_bits().count_ones()),
        IpAddr::V6(mask) => (mask.to_bits().leading_ones(), mask.to_bits().count_ones()),
    };
    u8::try_from(ones).ok().filter(|_| ones == bits_set)
}

const LOOPBACK: [Network; 2] = [Network::v4(127, 0, 8), Network::v6(0, 1, 128)];
const LINK_LOCAL: [Network; 2] = [Network::v4(169, 254, 16), Network::v6(0xfe80, 0, 10)];
const UNIQUE_LOCAL: [Network; 4] =
    [Network::v4(10, 0, 8), Network::v4(172, 16, 12), Network::v4(192, 168, 16), Network::v6(0xfc00, 0, 7)];

/// The proxies whose `X-Forwarded-For` is believed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TrustedProxies(Vec<Network>);

impl Default for TrustedProxies {
    fn default() -> TrustedProxies {
        TrustedProxies(LOOPBACK.into_iter().chain(UNIQUE_LOCAL).collect())
    }
}

impl TrustedProxies {
    /// Whether that address is one of theirs.
    pub fn trusts(&self, address: IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(address))
    }
}

pub(super) fn trusted(read: &mut Reader) -> TrustedProxies {
    let Some(text) = read.text(&variables::TRUSTED_PROXY_IP) else { return TrustedProxies::default() };
    let mut networks = Vec::new();
    for entry in text.split(|c: char| c == ',' || c.is_whitespace()).filter(|entry| !entry.is_empty()) {
        match entry {
            "loopback" => networks.extend(LOOPBACK),
            "linklocal" => networks.extend(LINK_LOCAL),
            "uniquelocal" => networks.extend(UNIQUE_LOCAL),
            entry => match Network::parse(entry) {
                Some(network) => networks.push(network),
                None => {
                    let allowed = "addresses, networks such as 10.0.0.0/8, and loopback, linklocal, uniquelocal, \
                                   separated by commas or blanks";
                    read.refuse(&variables::TRUSTED_PROXY_IP, allowed);
                    break;
                }
            },
        }
    }
    TrustedProxies(networks)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn networks_hold_their_addresses() {
        for (network, inside, outside) in [
            ("10.0.0.0/8", "10.255.0.1", "11.0.0.1"),
            ("10.0.0.0/255.0.0.0", "10.255.0.1", "11.0.0.1"),
            ("192.0.2.7", "192.0.2.7", "192.0.2.8"),
            ("0.0.0.0/0", "8.8.8.8", "::1"),
            ("2001:db8::/32", "2001:db8:1::1", "2001:db9::1"),
            ("::ffff:10.0.0.0/104", "10.1.1.1", "11.1.1.1"),
            ("10.0.0.0/8", "::ffff:10.1.1.1", "::10.1.1.1"),
            ("fe80::/ffc0::", "fe80::1", "fec0::1"),
        ] {
            let network = Network::parse(network).unwrap();
            assert!(network.contains(ip(inside)), "{network:?} {inside}");
            assert!(!network.contains(ip(outside)), "{network:?} {outside}");
        }
        for text in [
            "",
            "10",
            "10.0.0.0/33",
            "10.0.0.0/-1",
            "10.0.0.0/255.0.255.0",
            "::1/129",
            "::1/255.0.0.0",
            "x/8",
        ] {
            assert_eq!(Network::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn the_default_is_loopback_and_private_networks() {
        let trusted = TrustedProxies::default();
        for address in [
            "127.0.0.1",
            "127.9.9.9",
            "::1",
            "::ffff:127.0.0.1",
            "10.1.1.1",
            "172.31.0.1",
            "192.168.0.1",
            "fd00::1",
        ] {
            assert!(trusted.trusts(ip(address)), "{address}");
        }
        for address in
            ["128.0.0.1", "172.32.0.1", "169.254.0.1", "fe80::1", "203.0.113.1", "2001:db8::1", "::2"]
        {
            assert!(!trusted.trusts(ip(address)), "{address}");
        }
    }
}
