//! The hosts of a domain, from what DNS says: in which order, and whether there are any for us.
//!
//! Two steps, since the second needs the addresses of what the first names. [`exchanges`] orders the MX records,
//! knows what their absence means, and drops ourselves by name; [`destinations`] drops ourselves by address and
//! whatever must not be dialled. The look-ups between them are their caller's.
//!
//! A target's domain may belong to anybody (a sender whose notification we owe, a rule with a stranger's address). So
//! its records must not lead us into our own network (`private-networks` of the route says otherwise), nor
//! back to ourselves: where we are an MX, we and all that are no better than we are dropped, else two servers of one
//! domain would pass a message between them for ever (RFC 5321 §5.1).

use std::net::IpAddr;

use crate::network;
use crate::queue::Reason;

/// A host that takes mail for a domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exchange {
    /// The lower the better.
    pub preference: u16,
    /// In lower case, without final dot.
    pub name: String,
}

/// A host and where to dial it: to these addresses and no others, so that nothing is dialled that was not looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    pub name: String,
    /// Never empty; in the order in which they are to be tried.
    pub addresses: Vec<IpAddr>,
}

/// How we may be named in somebody's MX records.
#[derive(Clone, Copy, Debug)]
pub struct Us<'a> {
    /// Our hostname and the names that our routes greet with.
    pub names: &'a [String],
    /// Addresses that lead to our listeners.
    pub addresses: &'a [IpAddr],
}

/// Which addresses a route may dial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    Public,
    /// `private-networks = true`: private, loopback, link-local and own addresses as well.
    Private,
}

/// Why a domain has no host for us. All of these are held, none is the sender's fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoHost {
    #[error("the domain takes no mail (null MX)")]
    NullMx,
    #[error("the domain does not exist")]
    NoDomain,
    #[error("no host of the domain has an address")]
    NoAddress,
    #[error("the best host of the domain is ourselves")]
    Loop,
    #[error("all hosts of the domain have private addresses, and the route does not say `private-networks = true`")]
    Private,
}

impl NoHost {
    /// Why the leg is held.
    #[must_use]
    pub fn reason(self) -> Reason {
        match self {
            NoHost::NullMx | NoHost::NoDomain => Reason::UnknownTarget,
            NoHost::NoAddress | NoHost::Private => Reason::NoHosts,
            NoHost::Loop => Reason::Loop,
        }
    }
}

/// The exchanges to look up, the best first. `records`: preference and name of each MX record of `domain`, which
/// exists; none where it has no MX. `chance` decides among equals, which share the load so (RFC 5321 §5.1).
///
/// # Errors
/// The domain takes no mail, or not from us.
pub fn exchanges(
    domain: &str,
    records: &[(u16, String)],
    us: Us<'_>,
    mut chance: u64,
) -> Result<Vec<Exchange>, NoHost> {
    let mut exchanges: Vec<Exchange> = Vec::new();
    for (preference, name) in records.iter().take(RECORDS_MAX) {
        let name = canonical(name);
        // RFC 7505 §3: a null MX beside others means nothing. RFC 5321 §2.3.5: an MX is a name.
        if name.is_empty() || name.parse::<IpAddr>().is_ok() {
            continue;
        }
        match exchanges.iter_mut().find(|other| other.name == name) {
            Some(other) => other.preference = other.preference.min(*preference),
            None => exchanges.push(Exchange { preference: *preference, name }),
        }
    }
    match (records, exchanges.is_empty()) {
        // RFC 5321 §5.1: without an MX the domain is its own, but never where it has one.
        ([], _) => exchanges.push(Exchange { preference: 0, name: canonical(domain) }),
        ([.., (_, name)], true) if canonical(name).is_empty() => return Err(NoHost::NullMx),
        (_, true) => return Err(NoHost::NoAddress),
        (_, false) => {}
    }
    shuffle(&mut exchanges, &mut chance);
    exchanges.sort_by_key(|exchange| exchange.preference);
    let ours = |exchange: &Exchange| us.names.iter().any(|name| canonical(name) == exchange.name);
    let ourselves = exchanges.iter().filter(|exchange| ours(exchange)).map(|exchange| exchange.preference).min();
    exchanges.retain(|exchange| ourselves.is_none_or(|ourselves| exchange.preference < ourselves));
    exchanges.truncate(EXCHANGES_MAX);
    if exchanges.is_empty() { Err(NoHost::Loop) } else { Ok(exchanges) }
}

/// What to dial, the best first. `found`: the exchanges, in order, each with the addresses of both families.
///
/// # Errors
/// There is nothing to dial. Where a look-up had failed that is no answer, and its caller tries again instead.
pub fn destinations(found: Vec<(Exchange, Vec<IpAddr>)>, us: Us<'_>, reach: Reach) -> Result<Vec<Destination>, NoHost> {
    let ours = |ip: &IpAddr| us.addresses.iter().any(|own| own.to_canonical() == ip.to_canonical());
    let of_ourselves = |(exchange, addresses): &(Exchange, Vec<IpAddr>)| {
        (reach == Reach::Public && addresses.iter().any(ours)).then_some(exchange.preference)
    };
    let ourselves = found.iter().filter_map(of_ourselves).min();
    let mut none = if ourselves.is_some() { NoHost::Loop } else { NoHost::NoAddress };
    let mut destinations = Vec::new();
    for (exchange, addresses) in found {
        if ourselves.is_some_and(|ourselves| exchange.preference >= ourselves) {
            continue;
        }
        let may_dial = |ip: &IpAddr| reach == Reach::Private || network::is_public(*ip);
        let (allowed, forbidden): (Vec<IpAddr>, Vec<IpAddr>) = addresses.into_iter().partition(may_dial);
        if !forbidden.is_empty() && none == NoHost::NoAddress {
            none = NoHost::Private;
        }
        if !allowed.is_empty() {
            destinations.push(Destination { name: exchange.name, addresses: by_turns(allowed) });
        }
    }
    if destinations.is_empty() { Err(none) } else { Ok(destinations) }
}

/// Both families by turns, so that one which leads nowhere costs a single wait (RFC 8305 §4). The first given begins.
fn by_turns(addresses: Vec<IpAddr>) -> Vec<IpAddr> {
    let first_is_v4 = addresses.first().is_some_and(IpAddr::is_ipv4);
    let (first, second): (Vec<IpAddr>, Vec<IpAddr>) = addresses.into_iter().partition(|ip| ip.is_ipv4() == first_is_v4);
    let (mut first, mut second) = (first.into_iter(), second.into_iter());
    let mut turns = Vec::new();
    while turns.len() < ADDRESSES_MAX {
        let before = turns.len();
        turns.extend(first.next().into_iter().chain(second.next()));
        if turns.len() == before {
            break;
        }
    }
    turns.truncate(ADDRESSES_MAX);
    turns
}

fn canonical(name: &str) -> String {
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}

/// Fisher and Yates, on a sequence that `chance` begins. It spreads load, so it need not be fairer than that.
fn shuffle(exchanges: &mut [Exchange], chance: &mut u64) {
    for last in (1..exchanges.len()).rev() {
        // Knuth's linear congruential generator; its upper half is the better one.
        *chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let other = usize::try_from(*chance >> 33).unwrap_or(0) % (last + 1);
        exchanges.swap(last, other);
    }
}

/// What one answer of DNS holds and more; the names after it are not compared.
const RECORDS_MAX: usize = 100;

/// Hosts that are tried for one domain. The largest providers name five.
const EXCHANGES_MAX: usize = 20;

/// As for a host that a route names.
const ADDRESSES_MAX: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    fn records(text: &str) -> Vec<(u16, String)> {
        let record = |word: &str| {
            let (preference, name) = word.split_once('=').unwrap();
            (preference.parse().unwrap(), name.to_owned())
        };
        text.split_whitespace().map(record).collect()
    }

    fn names() -> Vec<String> {
        vec!["MX.solarmora.com".to_owned()]
    }

    fn ordered(text: &str, chance: u64) -> Result<String, NoHost> {
        let us = Us { names: &names(), addresses: &[] };
        let found = exchanges("Crm.Example.", &records(text), us, chance)?;
        Ok(found.iter().map(|e| format!("{}={}", e.preference, e.name)).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn records_are_tried_by_preference() {
        for (text, want) in [
            ("20=b 10=a. 30=C", Ok("10=a 20=b 30=c")),
            ("0=a 65535=b", Ok("0=a 65535=b")),
            ("20=a 10=A. 15=b", Ok("10=a 15=b")),
            // No MX: the domain itself.
            ("", Ok("0=crm.example")),
            // RFC 7505.
            ("0=", Err(NoHost::NullMx)),
            ("0=.", Err(NoHost::NullMx)),
            ("0=. 10=a", Ok("10=a")),
            // An MX that names an address is none, and does not make the domain its own.
            ("10=192.0.2.1", Err(NoHost::NoAddress)),
            ("10=192.0.2.1 20=b", Ok("20=b")),
        ] {
            assert_eq!(ordered(text, 1), want.map(str::to_owned), "{text}");
        }
        let many: String = (0..30).map(|n| format!("{n}=h{n} ")).collect();
        assert_eq!(ordered(&many, 1).unwrap().split(' ').count(), EXCHANGES_MAX);
    }

    #[test]
    fn ourselves_and_all_that_are_no_better_are_dropped() {
        for (text, want) in [
            ("10=a 20=mx.solarmora.com 20=b 30=c", Ok("10=a")),
            ("10=a 20=MX.Solarmora.com. 15=b", Ok("10=a 15=b")),
            ("10=mx.solarmora.com 20=b", Err(NoHost::Loop)),
            ("10=b 10=mx.solarmora.com", Err(NoHost::Loop)),
        ] {
            assert_eq!(ordered(text, 1), want.map(str::to_owned), "{text}");
        }
        let us = Us { names: &names(), addresses: &[] };
        assert_eq!(exchanges("mx.solarmora.com", &[], us, 1), Err(NoHost::Loop), "the domain is our own name");
    }

    #[test]
    fn equals_share_the_load() {
        let mut first = [0; 3];
        for chance in 0..3000 {
            let order = ordered("10=a 10=b 10=c 20=d 5=e", chance).unwrap();
            assert!(order.starts_with("5=e ") && order.ends_with(" 20=d"), "{order}");
            first[usize::from(order.as_bytes()["5=e 10=".len()] - b'a')] += 1;
        }
        assert!(first.iter().all(|&times| times > 800), "{first:?}");
    }

    fn dialled(hosts: &[(u16, &[&str])], reach: Reach) -> Result<Vec<String>, NoHost> {
        let own = ["198.51.100.25".parse().unwrap(), "2001:db8::25".parse().unwrap()];
        let us = Us { names: &[], addresses: &own };
        let found = hosts.iter().enumerate().map(|(n, (preference, addresses))| {
            let exchange = Exchange { preference: *preference, name: format!("h{n}") };
            (exchange, addresses.iter().map(|ip| ip.parse().unwrap()).collect())
        });
        let written = |d: &Destination| {
            let addresses: Vec<String> = d.addresses.iter().map(ToString::to_string).collect();
            format!("{} {}", d.name, addresses.join(" "))
        };
        Ok(destinations(found.collect(), us, reach)?.iter().map(written).collect())
    }

    #[test]
    fn both_families_take_turns() {
        let hosts: &[(u16, &[&str])] = &[
            (10, &["2600::1", "2600::2", "2600::3", "9.9.9.9", "9.9.9.10"]),
            (20, &[]),
            (30, &["9.9.9.11", "2600::4"]),
        ];
        let want = ["h0 2600::1 9.9.9.9 2600::2 9.9.9.10 2600::3", "h2 9.9.9.11 2600::4"];
        assert_eq!(dialled(hosts, Reach::Public).unwrap(), want);
        let many: Vec<String> = (1..=20).map(|n| format!("9.9.9.{n}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert_eq!(dialled(&[(1, &many)], Reach::Public).unwrap()[0].split(' ').count(), 1 + ADDRESSES_MAX);
    }

    #[test]
    fn a_peer_chosen_destination_is_never_private_nor_ourselves() {
        let private: &[&str] = &["10.1.2.3", "127.0.0.1", "::1", "fe80::1", "::ffff:192.168.1.1", "169.254.169.254"];
        assert_eq!(dialled(&[(10, private)], Reach::Public), Err(NoHost::Private));
        assert_eq!(dialled(&[(10, &["10.1.2.3", "9.9.9.9"])], Reach::Public).unwrap(), ["h0 9.9.9.9"]);
        assert_eq!(dialled(&[(10, &["127.0.0.1"])], Reach::Private).unwrap(), ["h0 127.0.0.1"]);
        let with_us: &[(u16, &[&str])] = &[(10, &["9.9.9.9"]), (20, &["198.51.100.25"]), (30, &["9.9.9.10"])];
        assert_eq!(dialled(with_us, Reach::Public).unwrap(), ["h0 9.9.9.9"]);
        assert_eq!(dialled(with_us, Reach::Private).unwrap().len(), 3);
        let we_first: &[(u16, &[&str])] = &[(10, &["9.9.9.9", "2001:db8::25"]), (20, &["9.9.9.10"])];
        assert_eq!(dialled(we_first, Reach::Public), Err(NoHost::Loop));
        assert_eq!(dialled(&[(10, &["::ffff:198.51.100.25"])], Reach::Public), Err(NoHost::Loop));
        assert_eq!(dialled(&[(10, &[]), (20, &[])], Reach::Public), Err(NoHost::NoAddress));
    }
}
