//! The hosts of a domain: by preference, each once, never ourselves nor what is no better than we are, and nothing that must
//! not be dialled.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use pointsman::network::is_public;
use pointsman::relay::mx::{Exchange, Reach, Us, destinations, exchanges};

use super::input::Input;

pub fn check(data: &[u8]) {
    let mut input = Input::new(data);
    let (chance, reach) = (input.number(), input.one_of(&[Reach::Public, Reach::Private]));
    let own = [input.text(), "MX.solarmora.com."].map(str::to_owned);
    let (mut records, mut addresses) = (Vec::new(), Vec::new());
    while !input.is_empty() && records.len() < 200 {
        let preference = u16::from(input.octet() % 4);
        let found: Vec<IpAddr> = (0..input.octet() % 12).map(|_| address(&mut input)).collect();
        records.push((preference, input.text().to_owned()));
        addresses.push(found);
    }
    let us_addresses: Vec<IpAddr> = addresses.first().into_iter().flatten().take(1).copied().collect();
    let us = Us { names: &own, addresses: &us_addresses };

    let Ok(found) = exchanges("crm.example", &records, us, chance) else { return };
    let plain = |name: &str| name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    assert!((1..=20).contains(&found.len()) && found.is_sorted_by_key(|exchange| exchange.preference), "{found:?}");
    let ourselves = records
        .iter()
        .take(100)
        .filter(|(_, name)| !plain(name).is_empty() && own.iter().any(|own| plain(own) == plain(name)));
    let ourselves = ourselves.map(|(preference, _)| *preference).min();
    for (at, exchange) in found.iter().enumerate() {
        assert!(found[..at].iter().all(|other| other.name != exchange.name), "{} twice", exchange.name);
        assert!(ourselves.is_none_or(|ours| exchange.preference < ours), "{found:?}");
        let said =
            |(preference, name): &(u16, String)| *preference == exchange.preference && plain(name) == exchange.name;
        assert!(records.iter().any(said) || (records.is_empty() && exchange.name == "crm.example"));
    }
    let again = exchanges("crm.example", &records, us, chance);
    assert_eq!(again.as_ref(), Ok(&found), "the same dice give the same order");
    assert_destinations(found, addresses, us, reach);
}

fn assert_destinations(found: Vec<Exchange>, addresses: Vec<Vec<IpAddr>>, us: Us<'_>, reach: Reach) {
    let looked_up: Vec<(Exchange, Vec<IpAddr>)> = found.into_iter().zip(addresses).collect();
    let Ok(destinations) = destinations(looked_up.clone(), us, reach) else { return };
    let mut places = looked_up.iter();
    for destination in &destinations {
        let (_, all) =
            places.find(|(exchange, _)| exchange.name == destination.name).expect("in the order of the exchanges");
        assert!((1..=8).contains(&destination.addresses.len()));
        for ip in &destination.addresses {
            assert!(all.contains(ip));
            let ours = us.addresses.iter().any(|own| own.to_canonical() == ip.to_canonical());
            assert!(reach == Reach::Private || (is_public(*ip) && !ours), "{ip}");
            assert!(!(reach == Reach::Public && is_plainly_private(ip.to_canonical())), "{ip}");
        }
    }
}

/// What the standard library knows to be nobody's on the internet.
fn is_plainly_private(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => {
            v4.is_private()
                || v4.is_loopback()
                || v4.is_link_local()
                || v4.is_unspecified()
                || v4.is_multicast()
                || v4.is_broadcast()
        }
        IpAddr::V6(v6) => {
            v6.is_loopback()
                || v6.is_unspecified()
                || v6.is_multicast()
                || v6.is_unique_local()
                || v6.is_unicast_link_local()
        }
    }
}

fn address(input: &mut Input<'_>) -> IpAddr {
    match input.octet() {
        0 => IpAddr::V4(Ipv4Addr::LOCALHOST),
        1 => Ipv4Addr::new(10, 0, 0, input.octet()).into(),
        2 => Ipv4Addr::new(9, 9, 9, 9).into(),
        3 => Ipv6Addr::LOCALHOST.into(),
        4 => Ipv4Addr::new(127, 0, 0, 1).to_ipv6_mapped().into(),
        5..=99 => Ipv4Addr::from(u32::try_from(input.number() >> 32).unwrap_or(0)).into(),
        _ => (u128::from(input.number()) << 64 | u128::from(input.number())).to_be_bytes().into(),
    }
}
