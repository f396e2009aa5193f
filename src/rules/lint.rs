//! What is allowed in rules and probably not meant: warnings; and what is often meant, but worth a thought: advice.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::address::{Domain, Mailbox};
use crate::clock::Timestamp;
use crate::diagnostic::{Diagnostic, Place, Placed, Report};

use super::set::{RuleSet, Target};
use super::syntax::{RuleEntry, RuleFile};
use super::{DEFAULT_ROUTE, OnSpam};

/// Looks at files that resolve. `routes` says of each route whether it has `hosts`.
pub(super) fn lint(
    file: &RuleFile,
    rules: &RuleSet,
    routes: &BTreeMap<String, bool>,
    now: Timestamp,
    report: &mut Report,
) {
    patterns(file, report);
    expired(file, now, report);
    unreachable(file, report);
    same_target(file, report);
    to_and_also(file, rules, report);
    domains(file, rules, report);
    targets_by_our_own_mx(file, rules, routes, report);
}

fn patterns(file: &RuleFile, report: &mut Report) {
    let whens = file.rules.iter().map(|rule| &rule.when).chain(file.conditions.iter().map(|condition| &condition.when));
    let tables = whens.flat_map(super::when::When::tables);
    let patterns = tables.flat_map(|when| [&when.recipient_matches, &when.sender_matches, &when.from_matches]);
    for pattern in patterns.flatten().flatten() {
        if pattern.value.has_unescaped_dot() {
            let dot = Diagnostic::warning(format!("a dot in `{}` stands for any character", pattern.value.as_str()));
            report.add(dot.at(&pattern.place).help("write `\\.` for a dot; in a TOML string 'with single quotes'"));
        }
        if pattern.value.has_needless_anchor() {
            let anchor = Diagnostic::warning("`^` and `$` are needless here").at(&pattern.place);
            report.add(anchor.label("address patterns match the whole address anyway"));
        }
    }
}

/// What is over will not come back.
fn expired(file: &RuleFile, now: Timestamp, report: &mut Report) {
    let rules = file.rules.iter().map(|rule| (rule.name.clone(), &rule.standing));
    let aliases = file.aliases.iter().map(|alias| {
        let name = Placed { value: alias.address.value.key(), place: alias.address.place.clone() };
        (name, &alias.standing)
    });
    for (name, standing) in rules.chain(aliases) {
        if standing.not_after.is_some_and(|until| until < now) {
            let over = Diagnostic::warning(format!("the time of `{}` is over", name.value)).at(&name.place);
            report.add(over.label("its `not-after` has passed").help("take it out, or give it another time"));
        }
    }
}

/// What comes behind a rule that ends the search for certain never applies.
fn unreachable(file: &RuleFile, report: &mut Report) {
    let mut ended = Ended::default();
    for rule in &file.rules {
        let addresses = rule.when.recipient.as_deref().unwrap_or_default();
        let ends: Vec<&Place> = addresses.iter().filter_map(|address| ended.before(&address.value)).collect();
        let all = !addresses.is_empty() && ends.len() == addresses.len();
        if let Some(place) = ended.everywhere.or(ends.first().copied().filter(|_| all)) {
            report.add(never(&rule.name, place));
        }
        if !rule.continues && rule.standing.is_plain() {
            ended.add(rule);
        }
    }
    for alias in &file.aliases {
        if let Some(place) = ended.before(&alias.address.value) {
            let name = Placed { value: alias.address.value.key(), place: alias.address.place.clone() };
            report.add(never(&name, place));
        }
    }
}

/// The rules that end the search whatever the message is: those with no condition, or with one on the recipient alone.
#[derive(Default)]
struct Ended<'f> {
    everywhere: Option<&'f Place>,
    domains: HashMap<&'f Domain, &'f Place>,
    addresses: HashMap<String, &'f Place>,
}

impl<'f> Ended<'f> {
    fn add(&mut self, rule: &'f RuleEntry) {
        let place = &rule.name.place;
        match rule.when.count() {
            0 => self.everywhere = self.everywhere.or(Some(place)),
            1 => {
                for domain in rule.when.recipient_domain.iter().flatten() {
                    self.domains.entry(&domain.value).or_insert(place);
                }
                for address in rule.when.recipient.iter().flatten() {
                    self.addresses.entry(address.value.key()).or_insert(place);
                }
            }
            _ => {}
        }
    }

    fn before(&self, address: &Mailbox) -> Option<&'f Place> {
        let by_address = || self.addresses.get(&address.key()).copied();
        self.everywhere.or_else(|| self.domains.get(address.domain()).copied()).or_else(by_address)
    }
}

fn never(rule: &Placed<String>, ended_at: &Place) -> Diagnostic {
    Diagnostic::warning(format!("`{}` can never apply", rule.value))
        .at(&rule.place)
        .context(ended_at, "this rule ends the search before it")
        .help("put it before that rule, or give that rule `continue = true`")
}

/// Two aliases of one address in one transaction make two mails, and so two cases, of one.
fn same_target(file: &RuleFile, report: &mut Report) {
    let mut seen: HashMap<&str, (&Place, usize)> = HashMap::new();
    for alias in &file.aliases {
        let Some(to) = &alias.body.to else { continue };
        let (first, count) = seen.entry(to.value.as_str()).or_insert((&to.place, 0));
        *count += 1;
        // Once for a target: an administrator of a hundred such aliases means it.
        if *count == 2 {
            // Advice: two addresses for one CRM are common and often meant.
            let twice = Diagnostic::advice(format!("several aliases go to `{}`", to.value)).at(&to.place);
            let twice = twice.context(first, "the first of them");
            report.add(
                twice.help("a mail to both makes two cases there: `dedupe` tells mail to different aliases apart"),
            );
        }
    }
}

fn to_and_also(file: &RuleFile, rules: &RuleSet, report: &mut Report) {
    let bodies = file.rules.iter().map(|rule| &rule.body).chain(file.aliases.iter().map(|alias| &alias.body));
    for body in bodies {
        let Some(to) = &body.to else { continue };
        let Some(address) = rules.target(&to.value) else { continue };
        for also in body.also.iter().map(|also| &also.to) {
            if rules.target(&also.value).as_ref() != Some(&address) {
                continue;
            }
            let both = Diagnostic::warning(format!("`{}` stands in `to` and in `also`", also.value));
            report.add(both.at(&also.place).label("one mail is sent, as `to`").context(&to.place, "here already"));
        }
    }
}

fn domains(file: &RuleFile, rules: &RuleSet, report: &mut Report) {
    for (entry, domain) in file.domains.iter().zip(&rules.domains) {
        if entry.role.is_none() && entry.mailboxes.is_none() {
            let nobody = Diagnostic::warning(format!("nobody reads postmaster@{}", entry.name.value));
            let nobody = nobody.at(&entry.name.place).label("RFC 5321 §4.5.1 wants postmaster to be taken");
            report.add(nobody.help("add `role = \"an address that people read\"`"));
        }
        let to = domain.catch_all.as_ref().and_then(|rule| rule.then.to.as_ref());
        if let (Some(OnSpam::Deliver), Some(catch_all)) = (to.and_then(|target| target.on_spam), &entry.catch_all) {
            let open = Diagnostic::warning(format!("the catch-all's target `{}` takes all spam", catch_all.value));
            report.add(open.at(&catch_all.place).label("its `on-spam` is `deliver`"));
        }
    }
}

/// What goes by a route without `hosts` while nobody looks up an MX, a sentence a route: it is accepted and held.
///
/// A rule further up that goes on may give another route; that is not looked at.
pub(super) fn held_without_hosts(rules: &RuleSet, routes: &BTreeMap<String, bool>) -> Vec<String> {
    let mut held: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    let mut goes = |what: String, route| {
        if routes.get(route) == Some(&false) {
            held.entry(route).or_default().insert(what);
        }
    };
    // A target's name rather than its address, which may be a secret.
    let called = |target: &Target| target.name.clone().unwrap_or_else(|| target.address.to_string());
    let catch_alls = rules.domains.iter().filter_map(|domain| domain.catch_all.as_ref());
    for rule in rules.rules.iter().chain(rules.aliases.values().map(|alias| &alias.rule)).chain(catch_alls) {
        let given = rule.then.route.as_deref();
        if let Some(to) = &rule.then.to {
            goes(called(to), rules.route_of(to, to.route.as_deref().or(given)));
        } else if let Some(given) = given {
            goes(rule.name.clone(), given);
        }
        for also in &rule.then.also {
            goes(called(also), rules.route_of(also, also.route.as_deref()));
        }
    }
    for role in rules.domains.iter().filter_map(|domain| domain.role.as_ref()) {
        goes(called(role), rules.route_of(role, role.route.as_deref()));
    }
    let sentence = |(route, whats): (&str, BTreeSet<String>)| {
        let mut shown: Vec<String> = whats.iter().take(SHOWN_MAX).cloned().collect();
        if whats.len() > SHOWN_MAX {
            shown.push(format!("{} more", whats.len() - SHOWN_MAX));
        }
        format!("MX look-up: mail by route `{route}`, which has no `hosts`, is held ({})", shown.join(", "))
    };
    held.into_iter().map(sentence).collect()
}

/// Enough to recognise what is meant; the rules have them all.
const SHOWN_MAX: usize = 5;

fn targets_by_our_own_mx(file: &RuleFile, rules: &RuleSet, routes: &BTreeMap<String, bool>, report: &mut Report) {
    for entry in &file.targets {
        let Some(target) = rules.targets.get(&entry.name.value) else { continue };
        let Some(domain) = rules.domain(target.address.domain()) else { continue };
        let route = target.route.as_deref().or(domain.mailboxes.as_deref()).unwrap_or(DEFAULT_ROUTE);
        if routes.get(route) == Some(&false) {
            let circle = Diagnostic::warning(format!("mail for the target `{}` may come back to us", entry.name.value));
            let circle = circle.at(&entry.address.place).label("in a domain of ours, by a route without `hosts`");
            report.add(circle.help("its MX is looked up and is probably this host: name a route with `hosts`"));
        }
    }
}
