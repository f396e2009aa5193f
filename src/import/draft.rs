//! Rules that are being written: collected by an importer, printed as TOML in the order in which people read them.

use std::collections::{HashMap, HashSet};
use std::fmt::Write;

use crate::address::{Domain, Mailbox};

use super::{Counts, Imported, LeftOut};

#[derive(Debug, Default)]
pub(super) struct Draft {
    pub(super) domains: Vec<DomainDraft>,
    pub(super) targets: Targets,
    pub(super) rules: Vec<RuleDraft>,
    /// By domain, in its order of first appearance; local part and body.
    pub(super) aliases: Vec<(Domain, Vec<(String, Body)>)>,
    /// Names of lists that somebody must fill in.
    pub(super) lists: Vec<String>,
    pub(super) tests: Vec<TestDraft>,
    pub(super) routes: Vec<RouteDraft>,
    pub(super) left_out: Vec<LeftOut>,
}

#[derive(Debug)]
pub(super) struct DomainDraft {
    pub(super) name: Domain,
    pub(super) role: Option<String>,
    pub(super) mailboxes: Option<String>,
    pub(super) catch_all: Option<String>,
}

#[derive(Debug)]
pub(super) struct RuleDraft {
    pub(super) name: String,
    pub(super) comment: Option<String>,
    pub(super) when: Vec<(&'static str, Vec<String>)>,
    pub(super) body: Body,
}

/// Keys and values as they are written.
pub(super) type Body = Vec<(&'static str, Toml)>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Toml {
    Text(String),
    Texts(Vec<String>),
    Truth(bool),
    /// TOML already.
    Raw(String),
}

#[derive(Debug)]
pub(super) struct TestDraft {
    pub(super) name: String,
    pub(super) recipient: String,
    pub(super) sender: Option<String>,
    pub(super) rules: Option<Vec<String>>,
    pub(super) legs: Option<Vec<String>>,
    /// A key of `expect`, and a part of the text.
    pub(super) action: Option<(&'static str, Option<String>)>,
}

/// A section `[route.x]` of pointsman.toml.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RouteDraft {
    pub(super) name: String,
    /// Empty: they must be filled in.
    pub(super) hosts: Vec<String>,
    pub(super) comment: Option<String>,
}

/// The lines of `[target]`, each once.
#[derive(Debug, Default)]
pub(super) struct Targets {
    lines: Vec<(String, TargetDraft)>,
    names: HashMap<(String, TargetDraft), String>,
    taken: HashSet<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct TargetDraft {
    pub(super) address: String,
    pub(super) route: Option<String>,
    pub(super) on_spam: Option<&'static str>,
    pub(super) bounces: Option<&'static str>,
}

impl Targets {
    /// The name of the target that is like this one.
    pub(super) fn name(&mut self, address: &Mailbox, target: TargetDraft) -> String {
        let key = (address.key(), TargetDraft { address: String::new(), ..target.clone() });
        if let Some(name) = self.names.get(&key) {
            return name.clone();
        }
        let stem = slug(&format!("{}-{}", address.plain_local(), address.domain()));
        let name = unique(&stem, &mut self.taken);
        self.names.insert(key, name.clone());
        self.lines.push((name.clone(), target));
        name
    }
}

/// Letters, digits, dashes: what TOML takes without quotes, and a metric's label without pain.
pub(super) fn slug(text: &str) -> String {
    let mut slug = String::new();
    for c in text.chars() {
        match c {
            c if c.is_ascii_alphanumeric() => slug.push(c.to_ascii_lowercase()),
            _ if slug.ends_with('-') || slug.is_empty() => {}
            _ => slug.push('-'),
        }
    }
    let slug = slug.trim_end_matches('-');
    if slug.is_empty() { "imported".to_owned() } else { slug.to_owned() }
}

/// `stem`, or with a number behind it where that is taken.
pub(super) fn unique(stem: &str, taken: &mut HashSet<String>) -> String {
    let numbered = (2..).map(|n: u32| format!("{stem}-{n}"));
    let name = std::iter::once(stem.to_owned()).chain(numbered).find(|name| !taken.contains(name));
    let name = name.expect("numbers do not end");
    taken.insert(name.clone());
    name
}

impl Draft {
    pub(super) fn leave_out(&mut self, place: &str, what: impl Into<String>, why: impl Into<String>) {
        self.left_out.push(LeftOut { place: place.to_owned(), what: what.into(), why: why.into() });
    }

    pub(super) fn alias(&mut self, address: &Mailbox, body: Body) {
        let entry = (address.local().to_owned(), body);
        match self.aliases.iter_mut().find(|(domain, _)| domain == address.domain()) {
            Some((_, entries)) => entries.push(entry),
            None => self.aliases.push((address.domain().clone(), vec![entry])),
        }
    }

    /// The names of the routes that something goes by.
    pub(super) fn routes_used(&self) -> HashSet<String> {
        let targets = self.targets.lines.iter().filter_map(|(_, target)| target.route.clone());
        let domains = self.domains.iter().filter_map(|domain| domain.mailboxes.clone());
        let bodies = self.rules.iter().map(|rule| &rule.body);
        let bodies = bodies.chain(self.aliases.iter().flat_map(|(_, entries)| entries.iter().map(|(_, body)| body)));
        let given = bodies.flatten().filter_map(|(key, value)| match (*key, value) {
            ("route", Toml::Text(route)) => Some(route.clone()),
            _ => None,
        });
        targets.chain(domains).chain(given).collect()
    }

    /// `from` says what it was made of, in a few words.
    pub(super) fn finish(mut self, from: &str) -> Imported {
        self.left_out.sort_by(|a, b| place_key(&a.place).cmp(&place_key(&b.place)));
        let counts = Counts {
            domains: self.domains.len(),
            targets: self.targets.lines.len(),
            rules: self.rules.len(),
            aliases: self.aliases.iter().map(|(_, entries)| entries.len()).sum(),
            tests: self.tests.len(),
            routes: self.routes.len(),
        };
        let routes = self.write_routes();
        let mut out = format!("# Imported from {from} by `pointsman import`.\n");
        if !routes.is_empty() {
            out.push_str("# The routes that it names belong into pointsman.toml:\n#\n");
            routes.lines().for_each(|line| comment(&mut out, line));
        }
        out.push('\n');
        self.write_domains_and_targets(&mut out);
        self.rules.iter().for_each(|rule| write_rule(&mut out, rule));
        for (domain, entries) in &self.aliases {
            let _ = writeln!(out, "[alias.{}]", quoted(domain.as_str()));
            for (local, body) in entries {
                let _ = writeln!(out, "{} = {{ {} }}", key(local), inline(body));
            }
            out.push('\n');
        }
        if !self.lists.is_empty() {
            out.push_str("# To be filled in: nobody is in these lists yet.\n[list]\n");
            for name in &self.lists {
                let _ = writeln!(out, "{} = []", key(name));
            }
            out.push('\n');
        }
        self.tests.iter().for_each(|test| write_test(&mut out, test));
        if !self.left_out.is_empty() {
            out.push_str("# Not carried over:\n");
            for LeftOut { place, what, why } in &self.left_out {
                comment(&mut out, &format!("{place}: {what}: {why}"));
            }
        }
        Imported { rules: out, routes, left_out: self.left_out, counts }
    }

    fn write_routes(&self) -> String {
        let mut out = String::new();
        for RouteDraft { name, hosts, comment: told } in &self.routes {
            if let Some(told) = told {
                comment(&mut out, told);
            }
            let _ = writeln!(out, "[route.{}]", key(name));
            let hosts = if hosts.is_empty() { vec![HOST_TO_FILL_IN.to_owned()] } else { hosts.clone() };
            let _ = writeln!(out, "hosts = {}\n", texts(&hosts));
        }
        out
    }

    fn write_domains_and_targets(&self, out: &mut String) {
        for DomainDraft { name, role, mailboxes, catch_all } in &self.domains {
            let _ = writeln!(out, "[domain.{}]", quoted(name.as_str()));
            for (key, value) in [("role", role), ("mailboxes", mailboxes), ("catch-all", catch_all)] {
                if let Some(value) = value {
                    let _ = writeln!(out, "{key} = {}", quoted(value));
                }
            }
            out.push('\n');
        }
        if self.targets.lines.is_empty() {
            return;
        }
        out.push_str("[target]\n");
        for (name, TargetDraft { address, route, on_spam, bounces }) in &self.targets.lines {
            let mut parts = vec![format!("address = {}", quoted(address))];
            let more = [("route", route.as_deref()), ("on-spam", *on_spam), ("bounces", *bounces)];
            parts.extend(more.iter().filter_map(|(key, value)| Some(format!("{key} = {}", quoted((*value)?)))));
            let _ = writeln!(out, "{} = {{ {} }}", key(name), parts.join(", "));
        }
        out.push('\n');
    }
}

/// By file, then by line.
fn place_key(place: &str) -> (&str, u64) {
    let at = place.find(|c: char| c.is_ascii_digit()).unwrap_or(place.len());
    let digits = place[at..].split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
    (&place[..at], digits.parse().unwrap_or(0))
}

fn write_rule(out: &mut String, RuleDraft { name, comment: told, when, body }: &RuleDraft) {
    if let Some(told) = told {
        comment(out, told);
    }
    let _ = writeln!(out, "[[rule]]\nname = {}", quoted(name));
    if !when.is_empty() {
        let conditions: Vec<String> =
            when.iter().map(|(key, values)| format!("{key} = {}", one_or_many(values))).collect();
        let _ = writeln!(out, "when = {{ {} }}", conditions.join(", "));
    }
    for (key, value) in body {
        let _ = writeln!(out, "{key} = {}", written(value));
    }
    out.push('\n');
}

fn write_test(out: &mut String, TestDraft { name, recipient, sender, rules, legs, action }: &TestDraft) {
    let sender = sender.as_ref().map(|sender| format!("sender = {}, ", quoted(sender))).unwrap_or_default();
    let mut expected = Vec::new();
    expected.extend(rules.as_ref().map(|rules| format!("rules = {}", texts(rules))));
    expected.extend(legs.as_ref().map(|legs| format!("legs = {}", texts(legs))));
    expected.extend(action.as_ref().map(|(key, text)| match text {
        Some(text) => format!("{key} = {}", quoted(text)),
        None => format!("{key} = true"),
    }));
    let _ = writeln!(
        out,
        "[[test]]\nname = {}\ngiven = {{ {sender}recipient = {} }}\nexpect = {{ {} }}\n",
        quoted(name),
        quoted(recipient),
        expected.join(", ")
    );
}

/// In any number of lines.
fn comment(out: &mut String, text: &str) {
    for line in text.lines() {
        let shown: String = line.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let _ = writeln!(out, "{}", format!("# {shown}").trim_end());
    }
}

fn inline(body: &Body) -> String {
    body.iter().map(|(key, value)| format!("{key} = {}", written(value))).collect::<Vec<_>>().join(", ")
}

/// `key = value`
pub(super) fn line(key: &str, value: &Toml) -> String {
    format!("{key} = {}", written(value))
}

fn written(value: &Toml) -> String {
    match value {
        Toml::Text(text) => quoted(text),
        Toml::Texts(all) => texts(all),
        Toml::Truth(truth) => truth.to_string(),
        Toml::Raw(raw) => raw.clone(),
    }
}

fn one_or_many(values: &[String]) -> String {
    if let [value] = values { quoted(value) } else { texts(values) }
}

fn texts(values: &[String]) -> String {
    format!("[{}]", values.iter().map(|value| quoted(value)).collect::<Vec<_>>().join(", "))
}

fn key(name: &str) -> String {
    let bare = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    if bare { name.to_owned() } else { quoted(name) }
}

/// A TOML string: with single quotes where backslashes would be doubled.
pub(super) fn quoted(text: &str) -> String {
    if (text.contains('\\') || text.contains('"')) && !text.contains('\'') && !text.chars().any(char::is_control) {
        return format!("'{text}'");
    }
    let mut out = String::from('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_control() => {
                let _ = write!(out, "\\u{:04X}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// The values of a list, each once, in their order.
pub(super) fn each_once<T>(values: Vec<T>, key: impl Fn(&T) -> String) -> Vec<T> {
    let mut seen = HashSet::new();
    values.into_iter().filter(|value| seen.insert(key(value))).collect()
}

const HOST_TO_FILL_IN: &str = "fill-in.invalid";
