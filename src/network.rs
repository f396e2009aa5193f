//! A network: an address and the number of its leading bits that count (CIDR, RFC 4632 §3.1).
//!
//! Written `192.0.2.0/24`, `2001:db8::/32`, or as a plain address, which is a network of one. An IPv4 address
//! that came in through an IPv6 socket (`::ffff:192.0.2.1`) is the IPv4 address. [`is_public`] knows the blocks that
//! are nobody's on the internet.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

/// A block of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    // Invariant: bits behind the prefix are zero.
    address: IpAddr,
    prefix: u8,
}

/// Why a text is not a network.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NetworkError {
    #[error("expected an IP address or a network such as `192.0.2.0/24`")]
    Address,
    #[error("the prefix length must be a number from 0 to {0}")]
    Prefix(u8),
    #[error("the address has bits behind the prefix; did you mean `{0}`?")]
    HostBits(Network),
}

impl Network {
    /// Takes `address` or `address/prefix`. Bits behind the prefix are an error, since they are mostly a typing error.
    pub fn parse(text: &str) -> Result<Network, NetworkError> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| NetworkError::Address)?;
        let width = width(address);
        let prefix = match prefix {
            None => width,
            // `u8::from_str` takes a leading plus, which no network has.
            Some(digits) if digits.starts_with('+') => return Err(NetworkError::Prefix(width)),
            Some(digits) => digits.parse().ok().filter(|p| *p <= width).ok_or(NetworkError::Prefix(width))?,
        };
        let network = Network { address: mask(address, prefix), prefix };
        if network.address == address { Ok(network) } else { Err(NetworkError::HostBits(network)) }
    }

    #[must_use]
    pub fn contains(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        width(ip) == width(self.address) && mask(ip, self.prefix) == self.address
    }
}

/// Whether `ip` is an address of somebody on the internet: not private, loopback, link-local, multicast or reserved, and
/// no form of IPv6 that a gateway would turn into such an IPv4 address. Documentation addresses pass, since
/// nobody has them.
#[must_use]
pub fn is_public(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(v4) => is_public_v4(v4),
        IpAddr::V6(v6) => match v6.segments() {
            // NAT64 (RFC 6052) and 6to4 (RFC 3056).
            [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0x2002, high, low, ..] => is_public_v4(v4_of(high, low)),
            // Teredo (RFC 4380) hides an IPv4 address, too; no mail server lives there.
            [0x2001, 0, ..] => false,
            // RFC 4291 §2.4: global unicast, as far as it is given out.
            [first, ..] => (0x2000..=0x3fff).contains(&first),
        },
    }
}

fn v4_of(high: u16, low: u16) -> Ipv4Addr {
    Ipv4Addr::from((u32::from(high) << 16) | u32::from(low))
}

/// RFC 6890 and its registry.
fn is_public_v4(ip: Ipv4Addr) -> bool {
    match ip.octets() {
        // This network, private (RFC 1918), loopback.
        [0 | 10 | 127, ..] | [172, 16..=31, ..] | [192, 168, ..] => false,
        // A provider's own (RFC 6598), link-local, protocol assignments, benchmarks (RFC 2544).
        [100, 64..=127, ..] | [169, 254, ..] | [192, 0, 0, _] | [198, 18..=19, ..] => false,
        // Multicast, reserved, broadcast.
        [224..=255, ..] => false,
        _ => true,
    }
}

fn width(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

fn mask(address: IpAddr, prefix: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
            IpAddr::V4((v4.to_bits() & mask).into())
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
            IpAddr::V6((v6.to_bits() & mask).into())
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_network_contains() {
        for (network, ip, inside) in [
            ("10.0.0.0/8", "10.255.0.1", true),
            ("10.0.0.0/8", "11.0.0.1", false),
            ("192.0.2.7", "192.0.2.7", true),
            ("192.0.2.7", "192.0.2.8", false),
            ("0.0.0.0/0", "203.0.113.9", true),
            ("0.0.0.0/0", "2001:db8::1", false),
            ("::/0", "2001:db8::1", true),
            ("2001:db8::/32", "2001:db8:ffff::1", true),
            ("2001:db8::/32", "2001:db9::1", false),
            ("10.0.0.0/8", "::ffff:10.1.2.3", true),
        ] {
            let contains = Network::parse(network).unwrap().contains(ip.parse().unwrap());
            assert_eq!(contains, inside, "{ip} in {network}");
        }
    }

    #[test]
    fn what_is_public() {
        for (last_outside, first, last, first_outside) in [
            ("9.255.255.255", "10.0.0.0", "10.255.255.255", "11.0.0.0"),
            ("100.63.255.255", "100.64.0.0", "100.127.255.255", "100.128.0.0"),
            ("126.255.255.255", "127.0.0.0", "127.255.255.255", "128.0.0.0"),
            ("169.253.255.255", "169.254.0.0", "169.254.255.255", "169.255.0.0"),
            ("172.15.255.255", "172.16.0.0", "172.31.255.255", "172.32.0.0"),
            ("191.255.255.255", "192.0.0.0", "192.0.0.255", "192.0.1.0"),
            ("192.167.255.255", "192.168.0.0", "192.168.255.255", "192.169.0.0"),
            ("198.17.255.255", "198.18.0.0", "198.19.255.255", "198.20.0.0"),
            ("223.255.255.255", "224.0.0.0", "255.255.255.255", "1.0.0.0"),
            ("1.0.0.0", "0.0.0.0", "0.255.255.255", "1.0.0.0"),
            ("3fff:ffff::", "4000::", "1fff:ffff::", "2000::"),
            ("2600::", "fc00::", "fdff:ffff::", "2600::"),
            ("2600::", "fe80::1", "ff02::1", "2600::"),
            ("::ffff:9.9.9.9", "::", "::ffff:127.0.0.1", "::ffff:9.9.9.9"),
            ("2600::", "::1", "::ffff:0:10.0.0.1", "2600::"),
            ("64:ff9b::9.9.9.9", "64:ff9b::10.0.0.1", "64:ff9b:1::1", "64:ff9b::9.9.9.9"),
            ("2002:909:909::1", "2002:a00:1::1", "2002:7f00:1::", "2003::"),
            ("2000:ffff::", "2001::", "2001:0:ffff::", "2001:1::"),
        ] {
            for (ip, public) in [(last_outside, true), (first, false), (last, false), (first_outside, true)] {
                assert_eq!(is_public(ip.parse().unwrap()), public, "{ip}");
            }
        }
    }

    #[test]
    fn what_is_no_network() {
        for text in ["", "10.0.0", "10.0.0.0/33", "::/129", "10.0.0.0/+8", "10.0.0.0/", "10.0.0.0/-1", "a/8"] {
            assert!(Network::parse(text).is_err(), "{text}");
        }
        let error = Network::parse("10.1.2.3/8").unwrap_err();
        assert_eq!(error.to_string(), "the address has bits behind the prefix; did you mean `10.0.0.0/8`?");
    }
}
