//! Looking up the hosts of a domain: the questions between and before the two steps of `mx`.
//!
//! What nobody told us is no answer: where a look-up failed and nothing is left to dial, the leg is tried again
//! later rather than held. Where something is left, it is dialled.

use std::net::IpAddr;

use crate::address::Domain;
use crate::dns::{Dns, DnsError};
use crate::relay::Family;
use crate::relay::mx::{self, Destination, Exchange, NoHost, Reach, Us};

/// Why there is nothing to dial now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unresolved {
    /// For good: the leg is held.
    #[error(transparent)]
    None(#[from] NoHost),
    /// For now: the leg is deferred.
    #[error("DNS gave no answer about the hosts of the domain")]
    Later,
}

/// The hosts of `domain` in the order in which they are to be tried. `chance` decides among equals.
///
/// # Errors
/// There is none, or DNS does not answer.
pub async fn destinations(
    domain: &Domain,
    us: Us<'_>,
    reach: Reach,
    family: Family,
    chance: u64,
    dns: &dyn Dns,
) -> Result<Vec<Destination>, Unresolved> {
    // RFC 5321 §4.1.3: an address literal is dialled as it stands, as far as it may be.
    if let Some(ip) = literal(domain) {
        let exchange = Exchange { preference: 0, name: domain.as_str().to_owned() };
        let ips = [ip].into_iter().filter(|ip| family.allows(*ip)).collect();
        return Ok(mx::destinations(vec![(exchange, ips)], us, reach)?);
    }
    let records = match dns.mx(domain.as_str()).await {
        Ok(records) => records.iter().map(|mx| (mx.preference, mx.exchange.clone())).collect(),
        Err(DnsError::NoRecords) => Vec::new(),
        Err(DnsError::NotFound) => return Err(NoHost::NoDomain.into()),
        Err(DnsError::Temporary | DnsError::OverBudget) => return Err(Unresolved::Later),
    };
    let mut found = Vec::new();
    let mut unanswered = false;
    // One after the other: nearly always the first ones are enough, and answer at once.
    for exchange in mx::exchanges(domain.as_str(), &records, us, chance)? {
        let (six, four) = tokio::join!(dns.aaaa(&exchange.name), dns.a(&exchange.name));
        let failed = |error: Option<DnsError>| error.is_some_and(|error| !error.is_void());
        unanswered |= failed(six.as_ref().err().copied()) || failed(four.as_ref().err().copied());
        let six = six.iter().flat_map(|all| all.iter()).copied().map(IpAddr::V6);
        let four = four.iter().flat_map(|all| all.iter()).copied().map(IpAddr::V4);
        // All of them are asked for even so: by its other address a host may be ourselves.
        found.push((exchange, six.chain(four).collect()));
    }
    match mx::destinations(found, us, reach).and_then(|found| of_family(found, family)) {
        Ok(destinations) => Ok(destinations),
        Err(_) if unanswered => Err(Unresolved::Later),
        Err(none) => Err(none.into()),
    }
}

/// What of the destinations the route may connect to.
fn of_family(mut found: Vec<Destination>, family: Family) -> Result<Vec<Destination>, NoHost> {
    found.iter_mut().for_each(|host| host.addresses.retain(|ip| family.allows(*ip)));
    found.retain(|host| !host.addresses.is_empty());
    if found.is_empty() { Err(NoHost::NoAddress) } else { Ok(found) }
}

/// The address of a domain in brackets.
fn literal(domain: &Domain) -> Option<IpAddr> {
    let inner = domain.as_str().strip_prefix('[')?.strip_suffix(']')?;
    let tag = inner.get(..5).filter(|tag| tag.eq_ignore_ascii_case("ipv6:"));
    inner[tag.map_or(0, str::len)..].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dns::zone::Zone;

    const ZONE: &str = "\
crm.example MX 10 mx1.crm.example
crm.example MX 20 mx2.crm.example
mx1.crm.example A 9.9.9.9
mx1.crm.example AAAA 2600::9
mx2.crm.example A 9.9.9.10
plain.example A 9.9.9.11
null.example MX 0 .
empty.example TXT nothing else
inner.example MX 10 db.inner.example
db.inner.example A 10.0.0.5
flaky.example MX 10 a.flaky.example
flaky.example MX 20 mx2.crm.example
flaky.example MX 30 c.flaky.example
a.flaky.example SERVFAIL
c.flaky.example SERVFAIL AAAA
half.example MX 10 a.flaky.example
broken.example SERVFAIL MX
backup.example MX 10 mx1.crm.example
backup.example MX 20 mx.solarmora.com
backup.example MX 30 mx2.crm.example
mx.solarmora.com A 9.9.9.25
ours.example MX 10 mx.solarmora.com
alias.example MX 10 other-name.example
other-name.example A 9.9.9.25
";

    async fn look_up(domain: &str) -> Result<String, Unresolved> {
        look_up_in(domain, Family::Any).await
    }

    #[tokio::test]
    async fn a_route_of_one_family_connects_to_no_other() {
        for (domain, family, want) in [
            ("crm.example", Family::Ipv4, Ok("mx1.crm.example 9.9.9.9, mx2.crm.example 9.9.9.10")),
            ("crm.example", Family::Ipv6, Ok("mx1.crm.example 2600::9")),
            ("plain.example", Family::Ipv6, Err(Unresolved::None(NoHost::NoAddress))),
            ("[9.9.9.9]", Family::Ipv6, Err(Unresolved::None(NoHost::NoAddress))),
            ("[9.9.9.9]", Family::Ipv4, Ok("[9.9.9.9] 9.9.9.9")),
            // What we do not connect to tells us all the same that it is ourselves.
            ("alias.example", Family::Ipv6, Err(Unresolved::None(NoHost::Loop))),
        ] {
            assert_eq!(look_up_in(domain, family).await, want.map(str::to_owned), "{domain} {family:?}");
        }
    }

    async fn look_up_in(domain: &str, family: Family) -> Result<String, Unresolved> {
        let zone = Zone::parse(ZONE);
        let (names, addresses) = (["mx.solarmora.com".to_owned()], ["9.9.9.25".parse().unwrap()]);
        let us = Us { names: &names, addresses: &addresses };
        let domain = Domain::parse(domain).unwrap();
        let found = destinations(&domain, us, Reach::Public, family, 7, &zone).await?;
        let written = |d: &Destination| {
            let addresses: Vec<String> = d.addresses.iter().map(ToString::to_string).collect();
            format!("{} {}", d.name, addresses.join(" "))
        };
        Ok(found.iter().map(written).collect::<Vec<_>>().join(", "))
    }

    #[tokio::test]
    async fn hosts_of_domains() {
        for (domain, want) in [
            ("CRM.example", Ok("mx1.crm.example 2600::9 9.9.9.9, mx2.crm.example 9.9.9.10")),
            ("plain.example", Ok("plain.example 9.9.9.11")),
            ("[9.9.9.9]", Ok("[9.9.9.9] 9.9.9.9")),
            ("[IPv6:2600::9]", Ok("[ipv6:2600::9] 2600::9")),
            ("flaky.example", Ok("mx2.crm.example 9.9.9.10")),
            ("backup.example", Ok("mx1.crm.example 2600::9 9.9.9.9")),
            ("nowhere.example", Err(Unresolved::None(NoHost::NoDomain))),
            ("null.example", Err(Unresolved::None(NoHost::NullMx))),
            ("empty.example", Err(Unresolved::None(NoHost::NoAddress))),
            ("inner.example", Err(Unresolved::None(NoHost::Private))),
            ("[127.0.0.1]", Err(Unresolved::None(NoHost::Private))),
            ("ours.example", Err(Unresolved::None(NoHost::Loop))),
            ("alias.example", Err(Unresolved::None(NoHost::Loop))),
            ("[9.9.9.25]", Err(Unresolved::None(NoHost::Loop))),
            ("half.example", Err(Unresolved::Later)),
            ("broken.example", Err(Unresolved::Later)),
        ] {
            assert_eq!(look_up(domain).await, want.map(str::to_owned), "{domain}");
        }
    }
}
