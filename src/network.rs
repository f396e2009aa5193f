//! A network: an address and the number of its leading bits that count (CIDR, RFC 4632 §3.1).
//!
//! Written `192.0.2.0/24`, `2001:db8::/32`, or as a plain address, which is a network of one. An IPv4 address
//! that came in through an IPv6 socket (`::ffff:192.0.2.1`) is the IPv4 address.

use std::fmt;
use std::net::IpAddr;

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
    fn what_is_no_network() {
        for text in ["", "10.0.0", "10.0.0.0/33", "::/129", "10.0.0.0/+8", "10.0.0.0/", "10.0.0.0/-1", "a/8"] {
            assert!(Network::parse(text).is_err(), "{text}");
        }
        let error = Network::parse("10.1.2.3/8").unwrap_err();
        assert_eq!(error.to_string(), "the address has bits behind the prefix; did you mean `10.0.0.0/8`?");
    }
}
