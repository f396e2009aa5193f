//! The rules, resolved: every name looked up, every address normalised, ready to be asked a million times.
//!
//! Exact addresses and domains stand in hash maps, so that ten thousand aliases cost one look-up. A `[[rule]]` that
//! names its recipients is found through them; the others are tried in order. The index only leaves out rules whose
//! recipient condition cannot hold: `explain` walks all of them and arrives at the same decision.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::address::{Domain, Mailbox, ReversePath};
use crate::clock::Timestamp;
use crate::diagnostic::Place;
use crate::message::reading::Wanted;
use crate::reply::Refusal;

use super::condition::Condition;
use super::eval::untagged;
use super::given::TestEntry;
use super::lists::Map;
use super::rewrite::Rewrite;
use super::standing::Standing;
use super::{Bounces, DEFAULT_ROUTE, Detours, OnSpam};

/// All rules of a configuration.
#[derive(Debug, Default)]
pub struct RuleSet {
    pub(super) domains: Vec<OurDomain>,
    pub(super) domain_index: HashMap<Domain, usize>,
    pub(super) rules: Vec<Rule>,
    pub(super) index: Index,
    /// By [`Mailbox::key`].
    pub(super) aliases: HashMap<String, Alias>,
    /// Asked after the aliases, in the order of the files.
    pub(super) maps: Vec<Map>,
    pub(super) targets: BTreeMap<String, Target>,
    /// Lists that rules name, and their members.
    pub(super) listed: (usize, usize),
    pub(super) tests: Vec<TestEntry>,
    pub(super) hash: String,
    pub(super) auth_words: AuthWords,
    /// The scores that conditions name, each once, ascending.
    pub(super) score_bounds: Vec<f64>,
    /// What conditions ask of a message.
    pub(super) wanted: Wanted,
    /// The files that targets name, and where they are named.
    pub(super) target_files: Vec<(String, Place)>,
}

/// The results that rules ask for, by [`Check`]: with them and "something else" all completions are told apart.
pub(super) type AuthWords = [Vec<&'static str>; 4];

/// A domain of ours.
#[derive(Debug, PartialEq)]
pub(super) struct OurDomain {
    pub name: Domain,
    pub role: Option<Target>,
    /// The route to the mail host of its people.
    pub mailboxes: Option<String>,
    pub catch_all: Option<Rule>,
    pub plus_strip: bool,
}

#[derive(Debug, PartialEq)]
pub(super) struct Alias {
    pub rule: Rule,
    pub plus_strip: bool,
}

/// A rule, an alias, or a catch-all.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Rule {
    pub name: String,
    /// `path:line`, for people.
    pub place: String,
    pub when: Vec<Condition>,
    pub then: Then,
    /// The search goes on after it.
    pub continues: bool,
    /// It is about certain recipients, which exist by it, wherever their mail goes.
    pub names_recipients: bool,
    pub standing: Standing,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Then {
    pub to: Option<Target>,
    /// Instead of `to`.
    pub rewrite: Option<Rewrite>,
    pub also: Vec<Target>,
    pub route: Option<String>,
    pub on_spam: Option<OnSpam>,
    pub bounces: Option<Bounces>,
    pub detours: Detours,
    pub onboarding_until: Option<Timestamp>,
    pub reject: Option<Refusal>,
    pub defer: Option<Refusal>,
    pub quarantine: Option<String>,
    pub hold: Option<String>,
    pub discard: Option<String>,
}

impl Then {
    /// It puts another address in the recipient's place.
    pub(super) fn goes_elsewhere(&self) -> bool {
        self.to.is_some() || self.rewrite.is_some()
    }

    /// What it does first of all, for the count of what shadows would have done.
    pub(super) fn word(&self) -> &'static str {
        [
            (self.reject.is_some(), "reject"),
            (self.quarantine.is_some(), "quarantine"),
            (self.hold.is_some(), "hold"),
            (self.defer.is_some(), "defer"),
            (self.discard.is_some(), "discard"),
            (self.goes_elsewhere(), "to"),
            (!self.also.is_empty(), "also"),
        ]
        .into_iter()
        .find_map(|(does, word)| does.then_some(word))
        .unwrap_or("other")
    }
}

/// Where a leg goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub address: Mailbox,
    /// `None` where a rule gives the address itself.
    pub name: Option<String>,
    pub route: Option<String>,
    pub on_spam: Option<OnSpam>,
    pub bounces: Option<Bounces>,
    pub detours: Detours,
}

impl Target {
    /// An address that nobody said anything else about.
    pub(super) fn of(address: Mailbox) -> Target {
        Target { address, name: None, route: None, on_spam: None, bounces: None, detours: Detours::default() }
    }
}

/// A range of spam scores.
pub type Scores = Bound<f64>;
/// A range of sizes, in octets.
pub type Sizes = Bound<u64>;

/// Half of a line.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bound<T> {
    AtLeast(T),
    Below(T),
}

impl<T: PartialOrd + Copy> Bound<T> {
    pub(super) fn contains(self, value: T) -> bool {
        match self {
            Bound::AtLeast(bound) => value >= bound,
            Bound::Below(bound) => value < bound,
        }
    }

    pub(super) fn value(self) -> T {
        match self {
            Bound::AtLeast(bound) | Bound::Below(bound) => bound,
        }
    }
}

/// As it is written; sizes in octets.
impl<T: std::fmt::Display> std::fmt::Display for Bound<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Bound::AtLeast(bound) => write!(f, ">={bound}"),
            Bound::Below(bound) => write!(f, "<{bound}"),
        }
    }
}

/// An authentication check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    Spf,
    Dkim,
    Dmarc,
    Arc,
}

impl Check {
    pub const ALL: [Check; 4] = [Check::Spf, Check::Dkim, Check::Dmarc, Check::Arc];

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Check::Spf => "spf",
            Check::Dkim => "dkim",
            Check::Dmarc => "dmarc",
            Check::Arc => "arc",
        }
    }
}

/// What senders are compared by: the key of the mailbox, or `<>`.
pub(super) fn sender_key(sender: &ReversePath) -> String {
    match sender {
        ReversePath::Null => "<>".to_owned(),
        ReversePath::Mailbox(mailbox) => mailbox.key(),
    }
}

/// Which rules may apply to a recipient, by their positions.
#[derive(Debug, Default)]
pub(super) struct Index {
    by_address: HashMap<String, Vec<usize>>,
    by_domain: HashMap<Domain, Vec<usize>>,
    anywhere: Vec<usize>,
}

impl Index {
    pub(super) fn new(rules: &[Rule]) -> Index {
        let mut index = Index::default();
        for (at, rule) in rules.iter().enumerate() {
            // All conditions must hold, so any single one is a right filter; the address is the sharpest.
            let exact =
                rule.when.iter().find_map(|c| if let Condition::Recipient(keys) = c { Some(keys) } else { None });
            let domains = rule
                .when
                .iter()
                .find_map(|c| if let Condition::RecipientDomain(names) = c { Some(names) } else { None });
            match (exact, domains) {
                (Some(keys), _) => {
                    keys.iter().for_each(|key| index.by_address.entry(key.clone()).or_default().push(at));
                }
                (None, Some(names)) => {
                    names.iter().for_each(|name| index.by_domain.entry(name.clone()).or_default().push(at));
                }
                (None, None) => index.anywhere.push(at),
            }
        }
        index
    }

    /// Positions in the order of the files, none twice.
    pub(super) fn candidates(&self, key: &str, stripped: Option<&str>, domain: &Domain) -> Vec<usize> {
        let mut found = self.anywhere.clone();
        let exact = [Some(key), stripped].into_iter().flatten().filter_map(|key| self.by_address.get(key));
        found.extend(exact.chain(self.by_domain.get(domain)).flatten());
        found.sort_unstable();
        found.dedup();
        found
    }
}

/// How much a rule set holds, for `check` and `status`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub domains: usize,
    pub targets: usize,
    pub rules: usize,
    pub aliases: usize,
    pub lists: usize,
    pub list_members: usize,
    pub maps: usize,
    pub map_entries: usize,
    pub tests: usize,
}

impl RuleSet {
    /// The domain is declared by a `[domain]`.
    #[must_use]
    pub fn is_ours(&self, domain: &Domain) -> bool {
        self.domain_index.contains_key(domain)
    }

    /// Our domains, in the order of the files.
    pub fn domains(&self) -> impl Iterator<Item = &Domain> {
        self.domains.iter().map(|domain| &domain.name)
    }

    /// Each `[target]`: its name, its address, and the route of its legs unless a rule says another.
    pub fn named_targets(&self) -> impl Iterator<Item = (&str, &Mailbox, &str)> {
        self.targets
            .iter()
            .map(|(name, target)| (name.as_str(), &target.address, self.route_of(target, target.route.as_deref())))
    }

    /// What a bare `<postmaster>` stands for (RFC 5321 §4.5.1): postmaster at the first domain declared.
    #[must_use]
    pub fn postmaster(&self) -> Option<Mailbox> {
        let first = self.domains.first()?;
        Mailbox::parse(&format!("postmaster@{}", first.name)).ok()
    }

    /// How much of a message must be read to decide.
    #[must_use]
    pub fn wanted(&self) -> Wanted {
        self.wanted
    }

    /// SHA-256 of the rules files and of the files they name, in hex.
    #[must_use]
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// The first twelve digits of [`RuleSet::hash`], as people see it.
    #[must_use]
    pub fn short_hash(&self) -> &str {
        self.hash.get(..12).unwrap_or(&self.hash)
    }

    #[must_use]
    pub fn counts(&self) -> Counts {
        Counts {
            domains: self.domains.len(),
            targets: self.targets.len(),
            rules: self.rules.len(),
            aliases: self.aliases.len(),
            lists: self.listed.0,
            list_members: self.listed.1,
            maps: self.maps.len(),
            map_entries: self.maps.iter().map(Map::len).sum(),
            tests: self.tests.len(),
        }
    }

    /// The names of all rules that can apply, aliases included: the values of the metric label `rule`.
    pub fn rule_names(&self) -> impl Iterator<Item = &str> {
        let catch_alls = self.domains.iter().filter_map(|domain| domain.catch_all.as_ref());
        let aliases = self.aliases.values().map(|alias| &alias.rule);
        // All of a map have one name.
        let maps = self.maps.iter().filter_map(|map| map.rules.first());
        self.rules.iter().chain(aliases).chain(maps).chain(catch_alls).map(|rule| rule.name.as_str())
    }

    /// The address behind a `[target]` name, or else an address as it stands.
    #[must_use]
    pub fn target(&self, name_or_address: &str) -> Option<Mailbox> {
        match self.targets.get(name_or_address) {
            Some(target) => Some(target.address.clone()),
            None => Mailbox::parse(name_or_address).ok(),
        }
    }

    /// Whether the rules would decide about mail to this address again: it is an alias of ours, or a rule replaces it.
    /// Such an address is nobody's final target.
    #[must_use]
    pub fn is_alias(&self, address: &Mailbox) -> bool {
        let key = address.key();
        let tagless = untagged(&key);
        let strips = self.domain(address.domain()).is_some_and(|domain| domain.plus_strip);
        let alias_strips = |key: &String| self.aliases.get(key).is_some_and(|alias| strips || alias.plus_strip);
        // An address that a rule replaces exists in that rule only, like an alias.
        let replaced = |key: &String| {
            let rules = self.index.by_address.get(key).into_iter().flatten();
            rules.map(|at| &self.rules[*at]).any(|rule| rule.then.goes_elsewhere())
        };
        self.aliases.contains_key(&key)
            || self.mapped(&key).is_some()
            || replaced(&key)
            || tagless.is_some_and(|key| alias_strips(&key) || (strips && replaced(&key)))
    }

    /// Whether a leg that goes to `target` by `route` would come back to us as new mail: nobody has that mailbox, and the
    /// domain is ours. `recipient` is what the sender wrote to: going on unchanged by a route of its own is in order.
    #[must_use]
    pub fn comes_back(&self, recipient: &Mailbox, target: &Mailbox, route: &str) -> bool {
        if self.domain(target.domain()).is_none_or(|domain| domain.mailboxes.is_some()) {
            return false;
        }
        if recipient == target { route == DEFAULT_ROUTE } else { self.is_alias(target) }
    }

    /// The domains of ours in which targets are, each with the route that its mail goes by. Where that route has no hosts
    /// the domain's MX decides, and that may be ourselves.
    #[must_use]
    pub fn domains_of_own_targets(&self) -> BTreeSet<(&str, &str)> {
        self.all_targets()
            .filter(|(target, _)| self.is_ours(target.address.domain()))
            .map(|(target, route)| (target.address.domain().as_str(), self.route_of(target, route)))
            .collect()
    }

    /// Everywhere that legs may go: the target's name or else its address, its domain, and the route. For the people of a
    /// mail host that is the domain.
    pub fn destinations(&self) -> impl Iterator<Item = (&str, &Domain, &str)> {
        let targets = self.all_targets().map(|(target, route)| {
            let called = target.name.as_deref().unwrap_or(target.address.as_str());
            (called, target.address.domain(), self.route_of(target, route))
        });
        let people = self.domains.iter().filter_map(|domain| {
            let route = domain.mailboxes.as_deref()?;
            Some((domain.name.as_str(), &domain.name, route))
        });
        targets.chain(people)
    }

    /// Every target, some of them several times, with the route that it, or the rule that names it, has.
    fn all_targets(&self) -> impl Iterator<Item = (&Target, Option<&str>)> {
        let catch_alls = self.domains.iter().filter_map(|domain| domain.catch_all.as_ref());
        let mapped = self.maps.iter().flat_map(|map| &map.rules);
        let rules = self.rules.iter().chain(self.aliases.values().map(|alias| &alias.rule)).chain(catch_alls);
        let rules = rules.chain(mapped);
        let of_rules = rules.flat_map(|rule| {
            let to = rule.then.to.iter().map(|to| (to, to.route.as_deref().or(rule.then.route.as_deref())));
            to.chain(rule.then.also.iter().map(|also| (also, also.route.as_deref())))
        });
        let named = self.targets.values().chain(self.domains.iter().filter_map(|domain| domain.role.as_ref()));
        of_rules.chain(named.map(|target| (target, target.route.as_deref())))
    }

    /// The files that hold targets' addresses, as named, and the place that names each.
    pub fn target_files(&self) -> impl Iterator<Item = (&str, &Place)> {
        self.target_files.iter().map(|(name, place)| (name.as_str(), place))
    }

    /// The route of a leg to `target`; `route` is what the target, or for `to` the rule, says.
    pub(super) fn route_of<'r>(&'r self, target: &Target, route: Option<&'r str>) -> &'r str {
        let mailboxes = || self.domain(target.address.domain())?.mailboxes.as_deref();
        route.or_else(mailboxes).unwrap_or(DEFAULT_ROUTE)
    }

    /// The rule of the first map that has the address.
    pub(super) fn mapped(&self, key: &str) -> Option<&Rule> {
        self.maps.iter().find_map(|map| map.rule(key))
    }

    pub(super) fn domain(&self, name: &Domain) -> Option<&OurDomain> {
        self.domain_index.get(name).map(|at| &self.domains[*at])
    }
}
