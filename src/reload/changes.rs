//! What another configuration changes, for people. Pure.

use crate::config::{Config, Prints};
use crate::relay::Route;
use crate::rules::difference::{Difference, Names};

/// From the configuration that was in force to another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// The files whose texts differ.
    pub files: Names,
    /// The sections of the main file that mean something else, `route` and rules apart.
    pub sections: Vec<&'static str>,
    pub routes: Names,
    pub rules: Difference,
}

impl Changes {
    #[must_use]
    pub fn between(old: &Config, new: &Config) -> Changes {
        Changes {
            files: files(old, new),
            sections: sections(old, new),
            routes: Names::between(routes(old), routes(new), |old, new| old == new),
            rules: old.rules.changes_to(&new.rules),
        }
    }

    /// One line for the log: counts, and no names that could be long.
    #[must_use]
    pub fn summary(&self) -> String {
        let mut parts = Vec::new();
        let mut count = |what: &str, names: &Names, retargeted: usize| {
            let counts =
                [('+', names.added.len()), ('-', names.removed.len()), ('~', names.changed.len() + retargeted)];
            let counts: Vec<String> =
                counts.iter().filter(|(_, n)| *n > 0).map(|(sign, n)| format!("{sign}{n}")).collect();
            if !counts.is_empty() {
                parts.push(format!("{what} {}", counts.join(" ")));
            }
        };
        count("domains", &self.rules.domains, 0);
        count("targets", &self.rules.targets, 0);
        count("rules", &self.rules.rules, 0);
        count("aliases", &self.rules.aliases, 0);
        count("routes", &self.routes, 0);
        if !self.rules.retargeted.is_empty() {
            parts.push(format!("retargeted {}", self.rules.retargeted.len()));
        }
        parts.extend(self.sections.iter().map(|section| (*section).to_owned()));
        if parts.is_empty() { "none".to_owned() } else { parts.join(", ") }
    }
}

fn files(old: &Config, new: &Config) -> Names {
    let name = |config: &Config| config.path.file_name().map_or_else(String::new, |name| name.display().to_string());
    let (old_name, new_name) = (name(old), name(new));
    fn all<'a>(main: &'a str, prints: &'a Prints) -> impl Iterator<Item = (&'a str, &'a String)> {
        std::iter::once((main, &prints.main)).chain(prints.each.iter().map(|(name, print)| (name.as_str(), print)))
    }
    Names::between(all(&old_name, &old.prints), all(&new_name, &new.prints), |old, new| old == new)
}

fn routes(config: &Config) -> impl Iterator<Item = (&str, &Route)> {
    config.routes.iter().map(|(name, route)| (name.as_str(), &**route))
}

fn sections(old: &Config, new: &Config) -> Vec<&'static str> {
    // Whole, so that nobody forgets a section that comes to be.
    let Config {
        path: _,
        hostname,
        data,
        listeners,
        upstream,
        auth,
        dns_servers,
        tls,
        limits,
        routes: _,
        queue,
        retention,
        admin,
        log,
        srs,
        dkim,
        rules: _,
        rule_files: _,
        prints: _,
        inert: _,
    } = old;
    let mut sections = Vec::new();
    let mut section = |name, differs| {
        if differs {
            sections.push(name);
        }
    };
    section("hostname", *hostname != new.hostname);
    section("data", *data != new.data);
    section("listener", *listeners != new.listeners);
    section("tls", *tls != new.tls);
    section("dns", *dns_servers != new.dns_servers);
    section("upstream", *upstream != new.upstream);
    section("limits", *limits != new.limits);
    section("auth", *auth != new.auth);
    // Its secrets are seen by the files, or not at all.
    section("srs", srs.as_ref().map(|srs| srs.domain()) != new.srs.as_ref().map(|srs| srs.domain()));
    section("dkim", *dkim != new.dkim);
    section("queue", *queue != new.queue);
    section("retention", *retention != new.retention);
    section("admin", *admin != new.admin);
    section("log", *log != new.log);
    sections
}
