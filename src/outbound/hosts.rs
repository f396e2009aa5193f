//! The hosts that a lane's legs may be handed to: those that its route names, or those that DNS names for a domain.

use std::net::IpAddr;
use std::sync::Arc;

use crate::address::Domain;
use crate::outbound::Shared;
use crate::outbound::lane::{Hosts, Lane};
use crate::relay::lookup::{self, Unresolved};
use crate::relay::mx::{Destination, Reach, Us};
use crate::relay::{Host, Route};

/// The hosts in the order in which they are to be tried; never empty. Looked up for each new session, from the cache
/// mostly, so that equals share the sessions.
///
/// # Errors
/// There is none, or DNS does not answer.
pub(super) async fn find(lane: &Lane, shared: &Shared) -> Result<Arc<[Host]>, Unresolved> {
    match &lane.hosts {
        Hosts::Named(hosts) => Ok(match stand_ins(&lane.route, shared) {
            stand_ins if stand_ins.is_empty() => Arc::clone(hosts),
            stand_ins => hosts.iter().cloned().chain(stand_ins).collect(),
        }),
        Hosts::Of(domain) => look_up(&lane.route, domain, shared).await,
    }
}

/// The hosts of the route that stands in for this one.
fn stand_ins(route: &Route, shared: &Shared) -> Vec<Host> {
    let other = route.fallback.route.as_ref();
    let ways = shared.ways();
    other.and_then(|other| ways.routes.get(other)).map(|other| other.hosts.clone()).unwrap_or_default()
}

async fn look_up(route: &Route, domain: &Domain, shared: &Shared) -> Result<Arc<[Host]>, Unresolved> {
    let reach = if route.private_networks { Reach::Private } else { Reach::Public };
    let own = match reach {
        Reach::Public => own_addresses(shared).await,
        // Only our names are compared then.
        Reach::Private => Vec::new(),
    };
    let ways = shared.ways();
    let us = Us { names: &ways.names(), addresses: &own };
    let chance = shared.ports.chance.next();
    let found = lookup::destinations(domain, us, reach, route.family, chance, &*ways.dns).await?;
    Ok(found.into_iter().map(|destination| host(destination, route.port)).collect())
}

/// Where our listeners are, as far as we know: where they are bound to, and where our own name leads. A listener on all
/// addresses does not say which these are; then our name does.
async fn own_addresses(shared: &Shared) -> Vec<IpAddr> {
    let ways = shared.ways();
    let (dns, hostname) = (&*ways.dns, &*ways.settings.hostname);
    let (six, four) = tokio::join!(dns.aaaa(hostname), dns.a(hostname));
    // Without an answer the listeners' own and our name among the MX must do; the hops of a message end any loop.
    let six = six.iter().flat_map(|all| all.iter()).copied().map(IpAddr::V6);
    let four = four.iter().flat_map(|all| all.iter()).copied().map(IpAddr::V4);
    ways.settings.addresses.iter().copied().chain(six).chain(four).collect()
}

fn host(destination: Destination, port: u16) -> Host {
    let Destination { name, addresses } = destination;
    // RFC 5321 §4.1.3: a literal's name is its address, which is what its certificate bears.
    let name = match addresses.first() {
        Some(address) if name.starts_with('[') => address.to_string(),
        Some(_) | None => name,
    };
    Host { name, port, addresses }
}
