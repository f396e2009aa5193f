//! From files as typed to one [`RuleSet`]: names are looked up across all files, and what cannot be meant is an error.
//!
//! Everything that is wrong is reported in one run. What the rules need of the world outside them (which routes there
//! are, what stands in a `file:`) comes in as [`Surroundings`], so that this stays a function of its arguments.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use aws_lc_rs::digest;

use crate::address::{Domain, Mailbox};
use crate::clock::Timestamp;
use crate::diagnostic::{Diagnostic, Place, Placed, Report, Source};
use crate::document::{list, nearest};
use crate::message::reading::Wanted;

use super::Detours;
use super::calendar::Calendar;
use super::condition::{Condition, Named};
use super::detours::DetourEntries;
use super::lint;
use super::lists::{List, Map};
use super::pattern::Pattern;
use super::resolve::has_captures;
use super::set::{Alias, AuthWords, Check, Index, OurDomain, Rule, RuleSet, Scores, Target, Then};
use super::standing::Standing;
use super::syntax::{self, AliasEntry, AlsoEntry, Body, DomainEntry, RuleEntry, RuleFile, TargetEntry};

/// What rules refer to outside of their files.
pub struct Surroundings<'a> {
    /// The names of the routes, and whether each has `hosts`.
    pub routes: &'a BTreeMap<String, bool>,
    /// A route without `hosts` looks up the MX of the target's domain; else its legs are held.
    pub looks_up_mx: bool,
    /// Which checks run on mail that comes in, by [`Check`].
    pub checks: [bool; 4],
    /// Mail that comes in gets a spam score.
    pub scores: bool,
    /// What has expired is told by it.
    pub now: Timestamp,
    /// The text of the file that a target names: given the rules file's path and the name as written. Errors are shown.
    pub read: &'a dyn Fn(&str, &str) -> Result<String, String>,
}

/// What came of the files.
#[derive(Debug)]
pub struct Parsed {
    pub rules: RuleSet,
    /// Keys that are accepted and do nothing yet.
    pub inert: Vec<String>,
}

/// Reads and resolves the files, which come in name order. `None` where `report` gained an error.
pub fn parse(sources: &[Arc<Source>], surroundings: &Surroundings<'_>, report: &mut Report) -> Option<Parsed> {
    let before = report.errors();
    let mut file = RuleFile::default();
    let mut whole = true;
    for source in sources {
        let errors = report.errors();
        let next = syntax::read(source, report);
        if report.errors() > errors {
            // Half of a file would be reported as wrong in ways that it is not; the other files are looked at.
            whole = false;
            continue;
        }
        file.domains.extend(next.domains);
        file.targets.extend(next.targets);
        file.rules.extend(next.rules);
        file.aliases.extend(next.aliases);
        file.lists.extend(next.lists);
        file.maps.extend(next.maps);
        file.calendars.extend(next.calendars);
        file.conditions.extend(next.conditions);
        file.tests.extend(next.tests);
        file.inert.extend(next.inert);
    }
    let mut resolver = Resolver {
        surroundings,
        report,
        targets: BTreeMap::new(),
        target_places: Vec::new(),
        target_files: Vec::new(),
        lists: HashMap::new(),
        calendars: HashMap::new(),
        conditions: HashMap::new(),
        domains: file.domains.iter().map(|domain| domain.name.value.clone()).collect(),
        whole,
        digest: digest::Context::new(&digest::SHA256),
    };
    let mut rules = resolver.resolve(&file);
    for source in sources {
        resolver.digest_part(&source.text);
    }
    rules.hash = resolver.digest.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    if whole {
        lint::lint(&file, &rules, surroundings.routes, surroundings.now, report);
    }
    if report.errors() > before {
        return None;
    }
    rules.tests = file.tests;
    let mut inert = file.inert;
    for (at, check) in Check::ALL.into_iter().enumerate() {
        if !rules.auth_words[at].is_empty() && !surroundings.checks[at] {
            let check = check.as_str();
            inert.push(format!("conditions on {check} (`[auth]` does not check it: they hold in tests only)"));
        }
    }
    let bodies = file.rules.iter().map(|rule| &rule.body).chain(file.aliases.iter().map(|alias| &alias.body));
    let mut bands = bodies.map(|body| body.on_spam).chain(file.targets.iter().map(|target| target.on_spam));
    if bands.any(|on_spam| on_spam.is_some()) && !surroundings.scores {
        inert.push("on-spam (no score is made without `[spam]`)".to_owned());
    }
    if !rules.score_bounds.is_empty() && !surroundings.scores {
        inert.push("conditions on score (no score is made without `[spam]`: they hold in tests only)".to_owned());
    }
    if !surroundings.looks_up_mx {
        inert.extend(lint::held_without_hosts(&rules, surroundings.routes));
    }
    inert.sort_unstable();
    inert.dedup();
    Some(Parsed { rules, inert })
}

pub(super) struct Resolver<'a> {
    surroundings: &'a Surroundings<'a>,
    pub(super) report: &'a mut Report,
    targets: BTreeMap<String, Target>,
    /// Every place that says where mail goes, to be checked when all aliases are known.
    pub(super) target_places: Vec<(Mailbox, Place)>,
    target_files: Vec<(String, Place)>,
    pub(super) lists: HashMap<String, Arc<List>>,
    pub(super) calendars: HashMap<String, Arc<Calendar>>,
    pub(super) conditions: HashMap<String, Arc<Named>>,
    domains: HashSet<Domain>,
    /// All files could be read. Else what is not found may well be declared in one that could not.
    whole: bool,
    digest: digest::Context,
}

impl Resolver<'_> {
    fn resolve(&mut self, file: &RuleFile) -> RuleSet {
        self.unique("test", file.tests.iter().map(|test| &test.name));
        self.unique("target", file.targets.iter().map(|target| &target.name));
        self.unique("list", file.lists.iter().map(|list| &list.name));
        let named_by_domain: Vec<Placed<String>> = file.domains.iter().map(|domain| lower(&domain.name)).collect();
        self.unique("domain", named_by_domain.iter());
        let aliases: Vec<Placed<String>> = file.aliases.iter().map(alias_name).collect();
        // An alias is a rule whose name is its address, so both share one space of names.
        self.unique("rule or alias", file.rules.iter().map(|rule| &rule.name).chain(&aliases));
        for entry in &file.targets {
            if let Some(target) = self.target(entry) {
                self.targets.insert(entry.name.value.clone(), target);
            }
        }
        for entry in &file.targets {
            self.detours(&entry.detours);
        }
        self.unique("map", file.maps.iter().map(|map| &map.name));
        self.lists(file);
        self.calendars(file);
        self.conditions(file);
        let domains: Vec<OurDomain> = file.domains.iter().map(|entry| self.domain(entry)).collect();
        let rules: Vec<Rule> = file.rules.iter().map(|entry| self.rule(entry)).collect();
        let aliases = file.aliases.iter().map(|entry| self.alias(entry)).collect();
        let maps: Vec<Map> = file.maps.iter().map(|entry| self.map(entry)).collect();
        let asked = Asked::by(&rules);
        let set = RuleSet {
            domain_index: domains.iter().enumerate().rev().map(|(at, domain)| (domain.name.clone(), at)).collect(),
            domains,
            index: Index::new(&rules),
            auth_words: asked.auth_words,
            score_bounds: asked.score_bounds,
            wanted: asked.wanted,
            rules,
            aliases,
            maps,
            listed: (self.lists.len(), self.lists.values().map(|list| list.len()).sum()),
            targets: std::mem::take(&mut self.targets),
            target_files: std::mem::take(&mut self.target_files),
            tests: Vec::new(),
            hash: String::new(),
        };
        self.targets_are_final(&file.rules, &set);
        set
    }

    pub(super) fn unique<'n>(&mut self, kind: &str, names: impl Iterator<Item = &'n Placed<String>>) {
        let mut seen: HashMap<&str, &Place> = HashMap::new();
        for name in names {
            match seen.get(name.value.as_str()) {
                None => {
                    seen.insert(&name.value, &name.place);
                }
                Some(first) => {
                    let twice = Diagnostic::error(format!("the {kind} `{}` is declared twice", name.value));
                    self.report.add(twice.at(&name.place).label("here again").context(first, "first here"));
                }
            }
        }
    }

    fn target(&mut self, entry: &TargetEntry) -> Option<Target> {
        if entry.name.value.contains('@') {
            let confusing = Diagnostic::error(format!("a target cannot be called `{}`", entry.name.value));
            self.report.add(confusing.at(&entry.name.place).label("with an `@` it is taken for an address"));
        }
        let route = self.route(entry.route.as_ref());
        let address = match entry.address.value.strip_prefix("file:") {
            None => self.address(&entry.address)?,
            Some(name) => self.address_in_file(name, &entry.address.place)?,
        };
        self.target_places.push((address.clone(), entry.address.place.clone()));
        Some(Target {
            address,
            name: Some(entry.name.value.clone()),
            route,
            on_spam: entry.on_spam,
            bounces: entry.bounces,
            detours: entry.detours.written(),
        })
    }

    fn address(&mut self, text: &Placed<String>) -> Option<Mailbox> {
        let wrong =
            |why: String| Diagnostic::error(format!("`{}` is not an address", text.value)).at(&text.place).label(why);
        match Mailbox::parse(&text.value) {
            Ok(address) if address.domain().is_literal() => {
                let literal = wrong(NO_LITERAL.to_owned());
                self.report.add(literal.help("give the target a route with `hosts`"));
                None
            }
            Ok(address) => Some(address),
            Err(error) => {
                self.report.add(wrong(error.to_string()));
                None
            }
        }
    }

    fn address_in_file(&mut self, name: &str, place: &Place) -> Option<Mailbox> {
        let text = self.text_of(name, place)?;
        self.target_files.push((name.to_owned(), place.clone()));
        let address = match Mailbox::parse(text.trim()) {
            Ok(address) if address.domain().is_literal() => Err(NO_LITERAL.to_owned()),
            Ok(address) => Ok(address),
            Err(error) => Err(error.to_string()),
        };
        // The content is a secret: it is not shown.
        let wrong = |why: String| Diagnostic::error(format!("`{name}` does not hold one address")).at(place).label(why);
        address.map_err(|why| self.report.add(wrong(why))).ok()
    }

    /// The text of a file that is named at `place`; it belongs to the rule set.
    pub(super) fn text_of(&mut self, name: &str, place: &Place) -> Option<String> {
        match (self.surroundings.read)(&place.source.path, name) {
            Ok(text) => {
                self.digest_part(&text);
                Some(text)
            }
            Err(error) => {
                self.report.add(Diagnostic::error(format!("cannot read `{name}`: {error}")).at(place));
                None
            }
        }
    }

    fn digest_part(&mut self, text: &str) {
        self.digest.update(&(text.len() as u64).to_be_bytes());
        self.digest.update(text.as_bytes());
    }

    fn route(&mut self, name: Option<&Placed<String>>) -> Option<String> {
        let name = name?;
        if !self.surroundings.routes.contains_key(&name.value) {
            let routes: Vec<&str> = self.surroundings.routes.keys().map(String::as_str).collect();
            self.unknown("route", name, &routes);
        }
        Some(name.value.clone())
    }

    pub(super) fn unknown(&mut self, kind: &str, name: &Placed<String>, known: &[&str]) {
        // Routes are declared elsewhere.
        if !self.whole && kind != "route" {
            return;
        }
        let mut unknown = Diagnostic::error(format!("there is no {kind} `{}`", name.value)).at(&name.place);
        if let Some(near) = nearest(&name.value, known) {
            unknown = unknown.label(format!("did you mean `{near}`?"));
        }
        self.report.add(unknown.help(format!("there are: {}", list(known))));
    }

    /// A target's name, or an address, in a file.
    pub(super) fn target_of(&mut self, text: &str, place: &Place) -> Result<Target, String> {
        if let Some(target) = self.targets.get(text) {
            return Ok(target.clone());
        }
        let address = Mailbox::parse(text).map_err(|_| format!("there is no target `{text}`, and it is no address"))?;
        if address.domain().is_literal() {
            return Err(NO_LITERAL.to_owned());
        }
        self.target_places.push((address.clone(), place.clone()));
        Ok(Target::of(address))
    }

    fn copies(&mut self, also: &AlsoEntry) -> Vec<Target> {
        let route = self.route(also.route.as_ref());
        let mut targets = self.destinations(&also.to);
        for target in &mut targets {
            // What is said of this copy wins over what is said of its target.
            target.route = route.clone().or(target.route.take());
            target.on_spam = also.on_spam.or(target.on_spam);
            target.bounces = also.bounces.or(target.bounces);
        }
        targets
    }

    /// One target, or those of a list.
    fn destinations(&mut self, text: &Placed<String>) -> Vec<Target> {
        match text.value.strip_prefix("list:") {
            Some(name) => self.list_as_targets(name, &text.place),
            None => self.destination(text).into_iter().collect(),
        }
    }

    /// A target's name, or an address.
    fn destination(&mut self, text: &Placed<String>) -> Option<Target> {
        if let Some(target) = self.targets.get(&text.value) {
            return Some(target.clone());
        }
        if !text.value.contains('@') {
            let targets = std::mem::take(&mut self.targets);
            let known: Vec<&str> = targets.keys().map(String::as_str).collect();
            self.unknown("target", text, &known);
            self.targets = targets;
            return None;
        }
        let address = self.address(text)?;
        self.target_places.push((address.clone(), text.place.clone()));
        Some(Target::of(address))
    }

    fn detours(&mut self, entries: &DetourEntries) -> Detours {
        for text in entries.auto.iter().chain(&entries.fallback) {
            // What is wrong with it is reported; it is looked up again when it is needed.
            let _ = self.destination(text);
        }
        entries.written()
    }

    fn domain(&mut self, entry: &DomainEntry) -> OurDomain {
        let mailboxes = self.route(entry.mailboxes.as_ref());
        if let Some(name) = &entry.mailboxes
            && self.surroundings.routes.get(&name.value) == Some(&false)
        {
            let lost = Diagnostic::error(format!("the route `{}` of the mailboxes has no `hosts`", name.value));
            let lost = lost.at(&name.place).label("its MX would be looked up, and that is us");
            self.report.add(lost.help(format!("give `[route.{}]` the hosts of the mail host", name.value)));
        }
        if let (Some(_), Some(catch_all)) = (&entry.mailboxes, &entry.catch_all) {
            let both = Diagnostic::error("a domain has `mailboxes` or `catch-all`, not both").at(&catch_all.place);
            self.report.add(both.label("would never be used"));
        }
        let catch_all = entry.catch_all.as_ref().and_then(|text| {
            let then = Then { to: Some(self.destination(text)?), ..Then::default() };
            let name = format!("catch-all of {}", entry.name.value);
            let place = text.place.to_string();
            let standing = Standing::default();
            Some(Rule { name, place, when: Vec::new(), then, continues: false, names_recipients: true, standing })
        });
        let role = entry.role.as_ref().and_then(|text| self.destination(text));
        let plus_strip = entry.plus_strip;
        OurDomain { name: entry.name.value.clone(), role, mailboxes, catch_all, plus_strip }
    }

    fn rule(&mut self, entry: &RuleEntry) -> Rule {
        let when = self.when(&entry.when);
        let patterns = entry.when.recipient_matches.as_deref().unwrap_or_default();
        let then = self.body(&entry.body, &entry.name, entry.continues, patterns);
        let place = entry.name.place.to_string();
        let names_recipients = when.iter().any(Condition::is_about_recipients);
        Rule {
            name: entry.name.value.clone(),
            place,
            when,
            then,
            continues: entry.continues,
            names_recipients,
            standing: entry.standing.clone(),
        }
    }

    fn alias(&mut self, entry: &AliasEntry) -> (String, Alias) {
        let name = alias_name(entry);
        self.ours(entry.address.value.domain(), &entry.address.place);
        let then = self.body(&entry.body, &name, entry.continues, &[]);
        let place = name.place.to_string();
        let rule = Rule {
            name: name.value.clone(),
            place,
            when: Vec::new(),
            then,
            continues: entry.continues,
            names_recipients: true,
            standing: entry.standing.clone(),
        };
        (name.value, Alias { rule, plus_strip: entry.plus_strip })
    }

    fn body(&mut self, body: &Body, name: &Placed<String>, continues: bool, patterns: &[Placed<Pattern>]) -> Then {
        let rewrite = self.rewrite(body, patterns);
        let to = body.to.as_ref().filter(|to| !has_captures(to, patterns));
        let then = Then {
            to: to.and_then(|text| self.destination(text)),
            rewrite,
            also: body.also.iter().flat_map(|also| self.copies(also)).collect(),
            route: self.route(body.route.as_ref()),
            on_spam: body.on_spam,
            bounces: body.bounces,
            detours: self.detours(&body.detours),
            onboarding_until: body.onboarding_until,
            reject: body.reject.clone(),
            defer: body.defer.clone(),
            quarantine: body.quarantine.clone(),
            hold: body.hold.clone(),
            discard: body.discard.clone(),
        };
        let rewrites = body.to_local.is_some() || body.to_domain.is_some();
        let goes = body.to.is_some() || rewrites || !body.also.is_empty() || body.route.is_some();
        let refuses = body.reject.is_some() || body.defer.is_some();
        let stays = body.quarantine.is_some() || body.hold.is_some() || body.discard.is_some();
        if !(continues || goes || refuses || stays) {
            let silent =
                Diagnostic::error(format!("`{}` ends the search and does not say where the mail goes", name.value));
            let silent = silent
                .at(&name.place)
                .label("no `to`, `also`, `route`, `reject`, `quarantine`, `hold`, `defer` or `discard`");
            self.report.add(silent.help("add `continue = true` if later rules are to decide that"));
        }
        then
    }

    /// Whether the domain is declared, as far as all files could be read.
    pub(super) fn is_ours(&self, domain: &Domain) -> bool {
        !self.whole || self.domains.contains(domain)
    }

    /// Mail for a domain that nobody declared would be relayed for strangers.
    pub(super) fn ours(&mut self, domain: &Domain, place: &Place) {
        if !self.is_ours(domain) {
            let foreign = Diagnostic::error(format!("`{domain}` is not a domain of ours")).at(place);
            self.report.add(foreign.help(format!("our domains are those declared: add `[domain.\"{domain}\"]`")));
        }
    }

    /// Rules are not applied to targets again, so a target that is an alias of ours would come back to us as new mail.
    fn targets_are_final(&mut self, rules: &[RuleEntry], set: &RuleSet) {
        let replaced = rules.iter().filter(|rule| rule.body.to.is_some());
        let replaced = replaced.flat_map(|rule| rule.when.recipient.iter().flatten());
        let replaced: HashMap<String, &Place> = replaced.map(|address| (address.value.key(), &address.place)).collect();
        let mut told = HashSet::new();
        for (address, place) in std::mem::take(&mut self.target_places) {
            if !set.is_alias(&address) || !told.insert((place.span.start, place.source.path.clone())) {
                continue;
            }
            let circular = Diagnostic::error(format!("the target `{address}` is an alias of ours")).at(&place);
            let circular = match replaced.get(&address.key()) {
                Some(rule) => circular.context(rule, "replaced here"),
                None => circular,
            };
            self.report.add(circular.help("targets are final: name the alias's own target instead"));
        }
    }
}

/// A target's host is its route's business, where it can be seen and changed.
const NO_LITERAL: &str = "mail goes to a domain, not to an address literal";

fn alias_name(entry: &AliasEntry) -> Placed<String> {
    Placed { value: entry.address.value.key(), place: entry.address.place.clone() }
}

fn lower(domain: &Placed<Domain>) -> Placed<String> {
    Placed { value: domain.value.to_string(), place: domain.place.clone() }
}

/// What rules ask of what is found out after the final dot.
#[derive(Default)]
struct Asked {
    auth_words: AuthWords,
    score_bounds: Vec<f64>,
    wanted: Wanted,
}

impl Asked {
    fn by(rules: &[Rule]) -> Asked {
        let mut asked = Asked::default();
        for condition in rules.iter().flat_map(|rule| &rule.when) {
            asked.wanted = asked.wanted.with(condition.wanted());
            condition.visit(&mut |condition| match condition {
                Condition::Auth(check, words) => asked.auth_words[*check as usize].extend(words),
                Condition::Score(ranges) => asked.score_bounds.extend(ranges.iter().copied().map(Scores::value)),
                _ => {}
            });
        }
        for words in &mut asked.auth_words {
            words.sort_unstable();
            words.dedup();
        }
        asked.score_bounds.sort_by(f64::total_cmp);
        asked.score_bounds.dedup();
        asked
    }
}
