//! The systems that mail goes to: what holds for each target of the rules, and what of the configuration does not fit it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fmt::Write;

use serde_json::{Value, json};

use crate::address::Domain;
use crate::diagnostic::{Diagnostic, Report};
use crate::relay::profile::{Basis, Chosen, Profile, Terms};

use super::{Config, MESSAGE_SIZE};

/// Targets for which the same holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct System {
    pub route: String,
    pub terms: Terms,
    /// Our names for them, or else their addresses; each once.
    pub targets: Vec<String>,
}

/// Of all targets that the rules name.
#[must_use]
pub fn all(config: &Config) -> Vec<System> {
    System::of(config, config.rules.destinations())
}

impl System {
    /// Of these destinations: what they are called, their domain, their route.
    pub fn of<'a>(config: &Config, destinations: impl Iterator<Item = (&'a str, &'a Domain, &'a str)>) -> Vec<System> {
        let mut systems: BTreeMap<(String, Terms), Vec<String>> = BTreeMap::new();
        for (called, domain, name) in destinations {
            let Some(route) = config.routes.get(name) else { continue };
            let targets = systems.entry((name.to_owned(), route.terms(domain))).or_default();
            targets.push(called.to_owned());
        }
        let system = |((route, terms), mut targets): (_, Vec<String>)| {
            targets.sort_unstable();
            targets.dedup();
            System { route, terms, targets }
        };
        systems.into_iter().map(system).collect()
    }

    /// For people who look at one message: each value in a line. Ends with a line end.
    #[must_use]
    pub fn render(&self) -> String {
        let mut out = format!("     {} by route {}: {}\n", self.called(), self.route, self.profile());
        for (key, value, basis) in self.terms.listed() {
            // Writing to a string does not fail.
            let _ = writeln!(out, "       {key:14} {value:24} {basis}");
        }
        for note in self.terms.profile.notes() {
            let _ = writeln!(out, "       note: {note}");
        }
        out
    }

    #[must_use]
    pub fn json(&self) -> Value {
        let values: serde_json::Map<String, Value> = self
            .terms
            .listed()
            .into_iter()
            .map(|(key, value, basis)| (key.to_owned(), json!({ "value": value, "basis": basis })))
            .collect();
        json!({
            "route": self.route, "targets": self.targets, "profile": self.terms.profile.as_str(),
            "chosen": chosen(self.terms.chosen), "values": values, "notes": self.terms.profile.notes(),
        })
    }

    fn profile(&self) -> String {
        format!("{}, {}", self.terms.profile, chosen(self.terms.chosen))
    }

    fn called(&self) -> String {
        let mut shown: Vec<&str> = self.targets.iter().take(SHOWN_MAX).map(String::as_str).collect();
        let more = self.targets.len().saturating_sub(SHOWN_MAX);
        let more = format!("{more} more");
        if self.targets.len() > SHOWN_MAX {
            shown.push(&more);
        }
        shown.join(", ")
    }
}

/// In one line, for `check`.
impl fmt::Display for System {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let values = self.terms.listed().into_iter().map(|(key, value, basis)| format!("{key} {value} ({basis})"));
        let values: Vec<String> = values.collect();
        write!(f, "{} by route {}: {}; {}", self.called(), self.route, self.profile(), values.join(", "))
    }
}

fn chosen(chosen: Chosen) -> &'static str {
    match chosen {
        Chosen::ByDomain => "by the target's domain",
        Chosen::ByRoute => "by the route",
    }
}

/// What may be meant and probably is not.
pub(super) fn lint(config: &Config, report: &mut Report) {
    let systems = all(config);
    message_size(config, &systems, report);
    for system in &systems {
        let profile = system.terms.profile;
        if profile.needs_srs() && config.srs.is_none() {
            let refused = Diagnostic::warning(format!("{profile} refuses mail whose sender is not rewritten"));
            report.add(refused.help(format!("it is what {} is; add `[srs]`", system.called())));
        }
        if profile.forces_dedupe() && system.terms.dedupe.value.is_none() {
            let twice = format!("`route.{}.dedupe` is off, and {profile} makes a case of every copy", system.route);
            report.add(Diagnostic::warning(twice).help("leave the key out, or write how long, such as `1h`"));
        }
    }
    let mut told_of = BTreeSet::new();
    for (called, domain, name) in
        config.rules.destinations().filter(|(called, _, name)| told_of.insert((*called, *name)))
    {
        let Some(written) = config.routes.get(name).and_then(|route| route.wishes.profile) else { continue };
        let told = Profile::of(domain);
        if told != Profile::Generic && written != told && written != Profile::Generic {
            let other = format!("the target `{called}` is {told}'s by its domain, and its route says `{written}`");
            let other = Diagnostic::warning(other);
            report.add(other.help(format!("leave `route.{name}.profile` out, or give the target another route")));
        }
    }
}

/// What we take and the system does not comes back to the sender, or waits for an operator, instead of being refused.
fn message_size(config: &Config, systems: &[System], report: &mut Report) {
    let sure = |system: &&System| match system.terms.message_size.basis {
        Basis::Documented(_) | Basis::User => true,
        Basis::Conservative(_) => false,
    };
    let limits = systems.iter().filter(sure).filter_map(|system| Some((system.terms.message_size.value?, system)));
    let Some((limit, system)) = limits.min_by_key(|(limit, _)| *limit) else { return };
    let taken = config.limits.message_size;
    // The default is above every system's limit, on purpose: the system's own decides. Who writes another means it.
    if taken > limit && taken != MESSAGE_SIZE {
        let over = format!("`limits.message-size` is {taken} octets, and {} takes {limit}", system.called());
        let over = Diagnostic::warning(over);
        report.add(
            over.help("what is larger is refused at RCPT where its size is declared, else bounced or quarantined"),
        );
    }
}

/// Enough to recognise what is meant; the rules have them all.
const SHOWN_MAX: usize = 5;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::try_resolve_with;

    const RULES: &str = "[domain.'d.example']\nrole = 'r@x.example'\n[target]\n\
        crm = { address = 'c@k.case.salesforce.com', route = 'crm' }\nhelp = 's@d.atlassian.net'\n\
        [alias.'d.example']\na = { to = 'crm' }\nb = { to = 'help' }\n";

    fn warnings(main: &str) -> Vec<String> {
        let (config, mut report) = try_resolve_with(&format!("hostname = 'mx.d.example'\n{main}"), RULES);
        lint(&config.unwrap_or_else(|| panic!("{}", report.render(false))), &mut report);
        report.diagnostics().iter().map(|finding| finding.message.clone()).collect()
    }

    const CRM: &str = "[route.crm]\nhosts = ['h.example']\n";
    const SRS: &str = "[srs]\ndomain = 'srs.d.example'\nsecrets = ['x']\n";

    #[test]
    fn what_does_not_fit_a_system_is_a_warning() {
        let with = |more: &str| warnings(&format!("{SRS}{CRM}{more}"));
        assert_eq!(with(""), [""; 0]);
        assert_eq!(warnings(CRM), ["jsm refuses mail whose sender is not rewritten"]);
        assert_eq!(with("dedupe = 'off'\n"), ["`route.crm.dedupe` is off, and salesforce makes a case of every copy"]);
        let other = "the target `crm` is salesforce's by its domain, and its route says `zendesk`";
        assert_eq!(with("profile = 'zendesk'\n"), [other]);
        assert_eq!(with("profile = 'generic'\n"), [""; 0]);
        let over = "`limits.message-size` is 31457280 octets, and help takes 25000000";
        assert_eq!(with("[limits]\nmessage-size = '30MiB'\n"), [over]);
        assert_eq!(with("message-size = '20MiB'\n[limits]\nmessage-size = '20MiB'\n"), [""; 0]);
        assert_eq!(with("[limits]\nmessage-size = '50MiB'\n"), [""; 0]);
    }

    #[test]
    fn systems_are_listed_once_with_all_their_targets() {
        let (config, _) = try_resolve_with(&format!("hostname = 'mx.d.example'\n{CRM}"), RULES);
        let systems = all(&config.unwrap());
        let shown: Vec<String> = systems.iter().map(ToString::to_string).collect();
        assert_eq!(shown.len(), 3, "{shown:#?}");
        assert!(
            shown[0].starts_with("crm by route crm: salesforce, by the target's domain; message-size 35000000B (doc")
        );
        assert!(systems[0].render().contains("header-size    30000B"), "{}", systems[0].render());
        assert_eq!(systems[0].json()["values"]["pace"]["value"], "10/m per message");
    }
}
