//! What stands in for a route (`fallback`), resolved and checked: it is there, it leads on, and it never leads round.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::raw::{Raw, RawFallback, RawRoute};
use crate::address::Mailbox;
use crate::diagnostic::{Diagnostic, Place, Placed, Report};
use crate::document::{list, nearest};
use crate::relay::Route;
use crate::relay::fallback::{Diversion, Fallback};
use crate::rules::RuleSet;

/// Puts into `routes` what `raw` says of their fallbacks, and reports what will not do.
pub(super) fn resolve(raw: &Raw, routes: &mut BTreeMap<String, Arc<Route>>, rules: &RuleSet, report: &mut Report) {
    let mut places: BTreeMap<String, Place> = BTreeMap::new();
    for written in &raw.routes {
        let Some(fallback) = &written.fallback else { continue };
        let resolved = Fallback {
            route: fallback.route.as_ref().and_then(|other| hosts(written, other, routes, report)),
            to: diversion(raw, fallback, rules, report),
        };
        if let Some(route) = routes.get_mut(&written.name.value) {
            Arc::make_mut(route).fallback = resolved;
            places.insert(written.name.value.clone(), fallback.place.clone());
        }
    }
    refuse_loops(routes, &places, report);
}

/// The name of a route whose hosts stand in for those of `route`.
fn hosts(
    route: &RawRoute,
    other: &Placed<String>,
    routes: &BTreeMap<String, Arc<Route>>,
    report: &mut Report,
) -> Option<String> {
    let Some(found) = routes.get(&other.value) else {
        let names: Vec<&str> = routes.keys().map(String::as_str).collect();
        let mut unknown = Diagnostic::error(format!("there is no route `{}`", other.value)).at(&other.place);
        if let Some(near) = nearest(&other.value, &names) {
            unknown = unknown.label(format!("did you mean `{near}`?"));
        }
        report.add(unknown.help(format!("there are: {}", list(&names))));
        return None;
    };
    let name = &route.name.value;
    if found.name == *name {
        let itself = format!("route `{name}` cannot stand in for itself");
        report.add(Diagnostic::error(itself).at(&other.place));
        return None;
    }
    for (route, place) in [(name, &route.name.place), (&found.name, &other.place)] {
        if routes.get(route).is_some_and(|route| route.hosts.is_empty()) {
            let bare = Diagnostic::error(format!("route `{route}` has no `hosts`")).at(place);
            report.add(bare.help(
                "the hosts of one route stand in for those of another; to go on to another target write `fallback = { to = ..., after = ... }`",
            ));
            return None;
        }
    }
    Some(found.name.clone())
}

fn diversion(raw: &Raw, fallback: &RawFallback, rules: &RuleSet, report: &mut Report) -> Option<Diversion> {
    let on_auth = fallback.on_auth.as_ref().is_some_and(|on| on.value);
    let Some(to) = &fallback.to else {
        let idle = fallback.after.as_ref().map(|after| &after.place);
        if let Some(place) = idle.or(fallback.on_auth.as_ref().map(|on| &on.place)) {
            let idle = Diagnostic::error("there is no target to go on to").at(place);
            report.add(idle.help("write `to` with the name of a target, or an address"));
        } else if fallback.route.is_none() {
            let nothing = Diagnostic::error("the fallback names neither `route` nor `to`").at(&fallback.place);
            report.add(nothing);
        }
        return None;
    };
    let named = rules.named_targets().find(|(name, ..)| *name == to.value);
    let (target, target_name, route) = match named {
        Some((name, address, route)) => (address.clone(), Some(name.to_owned()), route.to_owned()),
        None => match Mailbox::parse(&to.value) {
            Ok(address) => (address, None, "default".to_owned()),
            Err(_) => {
                let names: Vec<&str> = rules.named_targets().map(|(name, ..)| name).collect();
                let mut unknown = Diagnostic::error(format!("there is no target `{}`", to.value)).at(&to.place);
                if let Some(near) = nearest(&to.value, &names) {
                    unknown = unknown.label(format!("did you mean `{near}`?"));
                }
                report.add(unknown.help(format!("write an address, or one of: {}", list(&names))));
                return None;
            }
        },
    };
    if rules.is_alias(&target) {
        let round = Diagnostic::error(format!("`{}` is an alias of ours: it would come back", to.value)).at(&to.place);
        report.add(round);
        return None;
    }
    let after = fallback.after.as_ref().map_or(AFTER, |after| after.value);
    let expire = raw.expire.unwrap_or(super::EXPIRE);
    if let Some(written) = fallback.after.as_ref().filter(|after| after.value >= expire) {
        let late = Diagnostic::warning("a leg expires before it goes on to the fallback target").at(&written.place);
        report.add(late.help(format!("`queue.expire` is {} s", expire.as_secs())));
    }
    Some(Diversion { target, target_name, route, after, on_auth })
}

/// A leg that goes from route to route must come to an end. From a route to itself only another target of it is gone on
/// to, which ends there.
fn refuse_loops(routes: &BTreeMap<String, Arc<Route>>, places: &BTreeMap<String, Place>, report: &mut Report) {
    let next = |name: &str| -> Vec<String> {
        let Some(route) = routes.get(name) else { return Vec::new() };
        let to = route.fallback.to.as_ref().map(|to| to.route.clone());
        let others = route.fallback.route.clone().into_iter().chain(to).filter(|other| other != name);
        others.collect()
    };
    let mut told: Vec<String> = Vec::new();
    for (name, place) in places {
        // The ways from here, breadth first; there are as many as routes at the most.
        let mut ways: Vec<Vec<String>> = vec![vec![name.clone()]];
        let mut seen: Vec<String> = Vec::new();
        while let Some(way) = ways.pop() {
            for other in way.last().map(|last| next(last)).unwrap_or_default() {
                let longer: Vec<String> = way.iter().cloned().chain([other.clone()]).collect();
                if other == *name {
                    if !told.iter().any(|route| way.contains(route)) {
                        let round = format!("the fallbacks lead round: {}", longer.join(", then "));
                        report.add(Diagnostic::error(round).at(place));
                    }
                    told.push(name.clone());
                } else if !seen.contains(&other) {
                    seen.push(other);
                    ways.push(longer);
                }
            }
        }
    }
}

/// Half a working day: who waits longer for a case has telephoned.
const AFTER: Duration = Duration::from_secs(4 * 60 * 60);
