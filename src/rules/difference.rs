//! What another rule set changes: names that came, went, or mean something else. Pure.
//!
//! Places are not compared: a rule that merely moved down a line is the same. Targets are told by their names, because
//! their addresses may be secrets; an alias whose target keeps its name and changes its address is not named itself.

use std::collections::BTreeMap;

use super::set::{Rule, RuleSet, Target, Then};

/// From one rule set to another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    pub domains: Names,
    pub targets: Names,
    /// `[[rule]]`s; `changed` also where only its place among the others did.
    pub rules: Names,
    pub aliases: Names,
    /// Rules and aliases that send mail elsewhere; they are not among the changed.
    pub retargeted: Vec<Retargeted>,
}

/// Names in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    pub added: Vec<String>,
    pub removed: Vec<String>,
    pub changed: Vec<String>,
}

/// A rule, or an alias, and where its mail went and goes: `to` first, then `also`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retargeted {
    pub name: String,
    pub from: Vec<String>,
    pub to: Vec<String>,
}

impl Names {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.removed.is_empty() && self.changed.is_empty()
    }

    /// What became of the names of `old` in `new`, where `is_same` tells whether a value is as it was.
    pub fn between<'a, T: 'a>(
        old: impl Iterator<Item = (&'a str, &'a T)>,
        new: impl Iterator<Item = (&'a str, &'a T)>,
        is_same: impl Fn(&T, &T) -> bool,
    ) -> Names {
        let (old, new): (BTreeMap<_, _>, BTreeMap<_, _>) = (old.collect(), new.collect());
        let mut names = Names::default();
        for (name, value) in &new {
            match old.get(name) {
                None => names.added.push((*name).to_owned()),
                Some(before) if !is_same(before, value) => names.changed.push((*name).to_owned()),
                Some(_) => {}
            }
        }
        names.removed = old.keys().filter(|name| !new.contains_key(*name)).map(|name| (*name).to_owned()).collect();
        names
    }
}

impl RuleSet {
    /// What `new` changes about this set.
    #[must_use]
    pub fn changes_to(&self, new: &RuleSet) -> Difference {
        let mut difference = Difference {
            domains: Names::between(domains(self), domains(new), |old, new| {
                // Its targets are compared by themselves.
                let role = |domain: &super::set::OurDomain| domain.role.as_ref().map(called);
                let catch_all = |domain: &super::set::OurDomain| domain.catch_all.as_ref().map(|rule| goes(&rule.then));
                role(old) == role(new)
                    && catch_all(old) == catch_all(new)
                    && (&old.mailboxes, old.plus_strip) == (&new.mailboxes, new.plus_strip)
            }),
            targets: Names::between(targets(self), targets(new), |old, new| old == new),
            rules: Names::between(rules(self), rules(new), is_same),
            aliases: Names::between(aliases(self), aliases(new), |old, new| {
                old.plus_strip == new.plus_strip && is_same(&old.rule, &new.rule)
            }),
            retargeted: Vec::new(),
        };
        let (before, after): (BTreeMap<_, _>, BTreeMap<_, _>) = (rules(self).collect(), rules(new).collect());
        let rule = |name: &str| Some((&before.get(name)?.then, &after.get(name)?.then));
        difference.retargeted.extend(take_retargeted(&mut difference.rules.changed, rule));
        let alias = |name: &str| Some((&self.aliases.get(name)?.rule.then, &new.aliases.get(name)?.rule.then));
        difference.retargeted.extend(take_retargeted(&mut difference.aliases.changed, alias));
        // Rules are asked in order, so those that were overtaken decide otherwise.
        let kept = |set: &RuleSet, other: &BTreeMap<&str, &Rule>| -> Vec<String> {
            set.rules
                .iter()
                .filter(|rule| other.contains_key(rule.name.as_str()))
                .map(|rule| rule.name.clone())
                .collect()
        };
        let (old_order, new_order) = (kept(self, &after), kept(new, &before));
        let moved = old_order.iter().zip(&new_order).filter(|(old, new)| old != new).map(|(_, new)| new.clone());
        difference.rules.changed.extend(moved);
        difference.rules.changed.sort_unstable();
        difference.rules.changed.dedup();
        difference
    }
}

/// Takes those that go elsewhere out of the changed.
fn take_retargeted<'r>(
    changed: &mut Vec<String>,
    find: impl Fn(&str) -> Option<(&'r Then, &'r Then)>,
) -> Vec<Retargeted> {
    let mut retargeted = Vec::new();
    changed.retain(|name| {
        let Some((old, new)) = find(name) else { return true };
        let (from, to) = (goes(old), goes(new));
        let elsewhere = from != to;
        if elsewhere {
            retargeted.push(Retargeted { name: name.clone(), from, to });
        }
        !elsewhere
    });
    retargeted
}

/// The same but for its place, and for what its targets are.
fn is_same(old: &Rule, new: &Rule) -> bool {
    let Rule { name: _, place: _, when, then, continues, names_recipients: _, standing } = old;
    let by_name = |then: &Then| Then { to: None, also: Vec::new(), ..then.clone() };
    *when == new.when
        && *continues == new.continues
        && *standing == new.standing
        && goes(then) == goes(&new.then)
        && by_name(then) == by_name(&new.then)
}

fn goes(then: &Then) -> Vec<String> {
    then.to.iter().chain(&then.also).map(called).collect()
}

fn called(target: &Target) -> String {
    target.name.clone().unwrap_or_else(|| target.address.to_string())
}

fn domains(set: &RuleSet) -> impl Iterator<Item = (&str, &super::set::OurDomain)> {
    set.domains.iter().map(|domain| (domain.name.as_str(), domain))
}

fn targets(set: &RuleSet) -> impl Iterator<Item = (&str, &Target)> {
    set.targets.iter().map(|(name, target)| (name.as_str(), target))
}

fn rules(set: &RuleSet) -> impl Iterator<Item = (&str, &Rule)> {
    set.rules.iter().map(|rule| (rule.name.as_str(), rule))
}

fn aliases(set: &RuleSet) -> impl Iterator<Item = (&str, &super::set::Alias)> {
    set.aliases.iter().map(|(name, alias)| (name.as_str(), alias))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diagnostic::{Report, Source};
    use crate::rules::{Surroundings, parse};

    fn set(more: &str) -> RuleSet {
        let text = format!(
            "[domain.'d.example']\nrole = 'r@x.example'\n[target]\na = 'a@x.example'\nb = 'b@x.example'\n{more}"
        );
        let routes = [("default".to_owned(), true)].into();
        let read = |_: &str, _: &str| Err("no such file".to_owned());
        let around = Surroundings {
            routes: &routes,
            looks_up_mx: true,
            checks: [true; 4],
            scores: true,
            now: crate::clock::Timestamp(0),
            read: &read,
        };
        let mut report = Report::default();
        let parsed = parse(&[Source::new("r.toml", text)], &around, &mut report);
        parsed.unwrap_or_else(|| panic!("{}", report.render(false))).rules
    }

    fn names(added: &[&str], removed: &[&str], changed: &[&str]) -> Names {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Names { added: owned(added), removed: owned(removed), changed: owned(changed) }
    }

    #[test]
    fn what_came_went_and_goes_elsewhere_is_told_by_name() {
        let old = set("[alias.'d.example']\nstays = { to = 'a' }\ngoes = { to = 'a' }\nmoves = { to = 'a' }\n\
             copied = { to = 'a' }\nspam = { to = 'a' }\n");
        let new = set("# a line more\n[alias.'d.example']\ncomes = { to = 'b' }\nmoves = { to = 'b' }\n\
             copied = { to = 'a', also = ['b'] }\nstays = { to = 'a' }\nspam = { to = 'a', on-spam = 'deliver' }\n");
        let difference = old.changes_to(&new);
        assert_eq!(difference.aliases, names(&["comes@d.example"], &["goes@d.example"], &["spam@d.example"]));
        let told = |r: &Retargeted| format!("{} {} {}", r.name, r.from.join("+"), r.to.join("+"));
        let told: Vec<String> = difference.retargeted.iter().map(told).collect();
        assert_eq!(told, ["copied@d.example a a+b", "moves@d.example a b"]);
        assert!(difference.domains.is_empty() && difference.targets.is_empty() && difference.rules.is_empty());
        assert_eq!(new.changes_to(&new), Difference::default());
    }

    #[test]
    fn a_target_that_changes_is_told_once() {
        let old = set("[alias.'d.example']\nx = { to = 'a' }\n");
        let mut new = set("[alias.'d.example']\nx = { to = 'a' }\n");
        new.targets.get_mut("a").unwrap().address = crate::address::Mailbox::parse("z@x.example").unwrap();
        new.aliases.get_mut("x@d.example").unwrap().rule.then.to = new.targets.get("a").cloned();
        let difference = old.changes_to(&new);
        assert_eq!(difference.targets, names(&[], &[], &["a"]));
        assert!(difference.aliases.is_empty() && difference.retargeted.is_empty());
    }

    #[test]
    fn rules_that_change_their_order_are_changed() {
        let rule =
            |name: &str| format!("[[rule]]\nname = '{name}'\nwhen = {{ sender = '{name}@x.example' }}\nto = 'a'\n");
        let all = |names: &[&str]| set(&names.iter().map(|name| rule(name)).collect::<String>());
        assert_eq!(all(&["1", "2", "3"]).changes_to(&all(&["1", "3", "2"])).rules, names(&[], &[], &["2", "3"]));
        assert_eq!(all(&["1", "2", "3"]).changes_to(&all(&["1", "3", "4"])).rules, names(&["4"], &["2"], &[]));
    }
}
