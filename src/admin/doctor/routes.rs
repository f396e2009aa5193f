//! The ways out: each is dialled, greeted and asked for the targets that take it, up to the answer to RCPT.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Finding, Subject};
use crate::address::{Mailbox, ReversePath};
use crate::admin::probe;
use crate::clock::Timestamp;
use crate::dns::Dns;
use crate::events::masked;
use crate::queue::{Errand, OwnedLeg};
use crate::relay::attempt::{Ended, attempt};
use crate::relay::dial::{Dial, TcpDial, Timeouts};
use crate::relay::lookup::{self, Unresolved};
use crate::relay::mx::{Destination, Reach, Us};
use crate::relay::outcome;
use crate::relay::{Demand, Host, Route};
use crate::scrub::scrub;

pub(super) async fn look(subject: &Subject, dns: &dyn Dns) -> Vec<Finding> {
    let mut by_route: BTreeMap<&str, Vec<(&str, &Mailbox)>> = BTreeMap::new();
    for (name, address, route) in subject.rules.named_targets() {
        by_route.entry(route).or_default().push((name, address));
    }
    let mut looks = tokio::task::JoinSet::new();
    let mut found = Vec::new();
    for (name, targets) in by_route {
        let Some(route) = subject.routes.get(name) else { continue };
        let dial = TcpDial::new(TIMEOUTS, [&**route]);
        let mut asked = Vec::new();
        for (target, address) in targets.into_iter().take(TARGETS_MAX) {
            let word = format!("{name}: {target} ({})", masked(address.as_str()));
            match hosts(subject, dns, route, address).await {
                Ok(hosts) => asked.push((word, address.clone(), hosts)),
                Err(finding) => found.push(Finding { subject: word, ..finding }),
            }
        }
        let route = Route::clone(route);
        let (hostname, now) = (subject.hostname.clone(), subject.now);
        let sender = subject.rules.postmaster().map_or(ReversePath::Null, ReversePath::Mailbox);
        looks.spawn(async move {
            let mut found = Vec::new();
            for (word, address, hosts) in asked {
                let leg = leg(&route.name, &address, &sender, now);
                let asked = tokio::time::timeout(ROUTE_WAIT, ask(&dial, &route, &hosts, &hostname, &leg)).await;
                found.push(asked.map_or_else(
                    |_| Finding::unknown("route", word.clone(), format!("no answer within {} s", ROUTE_WAIT.as_secs())),
                    |finding| Finding { subject: word.clone(), ..finding },
                ));
            }
            found
        });
    }
    while let Some(looked) = looks.join_next().await {
        match looked {
            Ok(more) => found.extend(more),
            Err(error) => found.push(Finding::unknown("route", "", error.to_string())),
        }
    }
    found.sort_by(|a, b| a.subject.cmp(&b.subject));
    found
}

async fn hosts(subject: &Subject, dns: &dyn Dns, route: &Route, target: &Mailbox) -> Result<Vec<Host>, Finding> {
    if !route.hosts.is_empty() {
        return Ok(route.hosts.clone());
    }
    let reach = if route.private_networks { Reach::Private } else { Reach::Public };
    let names = [subject.hostname.clone()];
    let us = Us { names: &names, addresses: &[] };
    let looked = lookup::destinations(target.domain(), us, reach, route.family, 0, dns);
    match tokio::time::timeout(LOOKUP_WAIT, looked).await {
        Ok(Ok(found)) => {
            let host = |to: Destination| Host { name: to.name, port: route.port, addresses: to.addresses };
            Ok(found.into_iter().map(host).collect())
        }
        Ok(Err(Unresolved::None(why))) => {
            Err(Finding::fault("route", "", why.to_string(), "look at the target's domain in the rules"))
        }
        Ok(Err(later @ Unresolved::Later)) => Err(Finding::unknown("route", "", later.to_string())),
        Err(_) => Err(Finding::unknown("route", "", "DNS gave no answer in time")),
    }
}

/// Asks one host after the other, as for a message.
async fn ask(dial: &TcpDial, route: &Route, hosts: &[Host], hostname: &str, leg: &OwnedLeg) -> Finding {
    let helo = route.helo.as_deref().unwrap_or(hostname);
    let mut last = Finding::unknown("route", "", "there is no host");
    for host in hosts {
        let mut connection = match dial.dial(route, host, helo, Demand::Usual).await {
            Ok(connection) => connection,
            Err(error) => {
                let words = format!("{}: {}", error.peer, said(&outcome::words(&error.verdict), leg));
                last = Finding::fault("route", "", words, "is the host right, is it up, does a firewall let us out?");
                continue;
            }
        };
        let verdict = match attempt(&mut connection, leg, &TIMEOUTS).await {
            Ended::Verdict(verdict, _) => verdict,
            Ended::Stale | Ended::Unread(..) => return Finding::unknown("route", "", "the session ended"),
        };
        let words = format!("{} at {}: {}", connection.peer, verdict.stage, said(&outcome::words(&verdict), leg));
        return match outcome::result(&verdict) {
            "ok" => Finding::ok("route", "", words),
            "tempfail" => Finding::unknown("route", "", words),
            _ => Finding::fault("route", "", words, "mail by this route waits or fails: ask whoever runs the host"),
        };
    }
    last
}

/// What a host said, without the target.
fn said(words: &str, leg: &OwnedLeg) -> String {
    scrub(words, &leg.target, &leg.alias)
}

fn leg(route: &str, target: &Mailbox, sender: &ReversePath, now: Timestamp) -> OwnedLeg {
    let (alias, route, errand) = (String::new(), route.to_owned(), Errand::AskRcpt);
    OwnedLeg { alias, route, errand, ..probe::leg(target, sender, b"\r\n".to_vec(), now) }
}

const STEP: Duration = Duration::from_secs(8);
const TIMEOUTS: Timeouts = Timeouts {
    connect: STEP,
    banner: STEP,
    ehlo: STEP,
    tls: STEP,
    mail: STEP,
    rcpt: STEP,
    data: STEP,
    block: STEP,
    dot: STEP,
    quit: Duration::from_secs(1),
};
const ROUTE_WAIT: Duration = Duration::from_secs(20);
const LOOKUP_WAIT: Duration = Duration::from_secs(8);
/// Of one route: each is a session, and what refuses one mostly refuses all.
const TARGETS_MAX: usize = 10;
