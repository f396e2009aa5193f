//! Lists of addresses and maps from addresses to targets: from the rules, from text files and from CSV, nested.
//!
//! A million entries are ordinary: an entry is its key and a place in a table, and what lines have in common (the targets
//! of a map) stands once.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::address::{Domain, Mailbox};
use crate::diagnostic::{Diagnostic, Place, Placed, Source};

use super::parse::Resolver;
use super::set::{Rule, Target, Then, sender_key};
use super::standing::Standing;
use super::syntax::{ListEntry, MapEntry, Member, RuleFile, member};

/// A `[list]`.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct List {
    pub name: String,
    /// [`sender_key`]s.
    addresses: HashSet<Box<str>>,
    domains: HashSet<Domain>,
    /// Lists that it holds whole.
    within: Vec<Arc<List>>,
}

impl List {
    /// `key` is a [`Mailbox::key`] or a [`sender_key`], `domain` that of the same address.
    pub(super) fn contains(&self, key: &str, domain: Option<&Domain>) -> bool {
        self.addresses.contains(key)
            || domain.is_some_and(|domain| self.domains.contains(domain))
            || self.within.iter().any(|list| list.contains(key, domain))
    }

    /// How many members it has, those of lists within it included.
    pub(super) fn len(&self) -> usize {
        self.addresses.len() + self.domains.len() + self.within.iter().map(|list| list.len()).sum::<usize>()
    }

    fn add(&mut self, member: Member) {
        match member {
            Member::Address(address) => {
                self.addresses.insert(sender_key(&address).into_boxed_str());
            }
            Member::Domain(domain) => {
                self.domains.insert(domain);
            }
            Member::List(_) | Member::File(_) => {}
        }
    }

    /// Its addresses in order, where it has nothing else.
    fn mailboxes(&self) -> Result<Vec<Mailbox>, String> {
        let nested = self.within.iter().map(|list| list.mailboxes()).collect::<Result<Vec<_>, _>>()?;
        if !self.domains.is_empty() {
            return Err("it holds whole domains".to_owned());
        }
        let parsed = self.addresses.iter().map(|key| Mailbox::parse(key));
        let mut all: Vec<Mailbox> =
            parsed.collect::<Result<_, _>>().map_err(|_| "it holds the null sender".to_owned())?;
        all.extend(nested.into_iter().flatten());
        all.sort_by_key(Mailbox::key);
        all.dedup();
        match all.len() {
            0 => Err("it is empty".to_owned()),
            n if n > TARGETS_MAX => Err(format!("it holds {n} addresses, and a rule sends to {TARGETS_MAX} at most")),
            _ => Ok(all),
        }
    }
}

/// A `[map]`: addresses of ours, each with where its mail goes, as aliases.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Map {
    /// By [`Mailbox::key`]: the place of its rule.
    entries: HashMap<Box<str>, u32>,
    /// One for all addresses that go to the same targets.
    pub(super) rules: Vec<Rule>,
}

impl Map {
    pub(super) fn rule(&self, key: &str) -> Option<&Rule> {
        self.entries.get(key).map(|at| &self.rules[*at as usize])
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }
}

impl Resolver<'_> {
    /// A list may hold others, and none that leads back to itself.
    pub(super) fn lists(&mut self, file: &RuleFile) {
        let entries: HashMap<&str, &ListEntry> =
            file.lists.iter().map(|entry| (entry.name.value.as_str(), entry)).collect();
        for entry in &file.lists {
            self.list(entry, &entries, &mut Vec::new());
        }
    }

    fn list<'e>(&mut self, entry: &'e ListEntry, entries: &HashMap<&str, &'e ListEntry>, path: &mut Vec<&'e str>) {
        let name = entry.name.value.as_str();
        if self.lists.contains_key(name) {
            return;
        }
        path.push(name);
        let mut list = List { name: name.to_owned(), ..List::default() };
        for member in &entry.members {
            match &member.value {
                Member::Address(_) | Member::Domain(_) => list.add(member.value.clone()),
                Member::File(file) => self.read_list(file, &member.place, &mut list),
                Member::List(other) if path.contains(&other.as_str()) => {
                    let circle = Diagnostic::error(format!("the list `{name}` holds itself")).at(&member.place);
                    self.report.add(circle.label(format!("by way of {}", path.join(", "))));
                }
                Member::List(other) => {
                    if let Some(next) = entries.get(other.as_str()) {
                        self.list(next, entries, path);
                    }
                    match self.lists.get(other) {
                        Some(other) => list.within.push(Arc::clone(other)),
                        None => {
                            let mut known: Vec<&str> = entries.keys().copied().collect();
                            known.sort_unstable();
                            let name = Placed { value: other.clone(), place: member.place.clone() };
                            self.unknown("list", &name, &known);
                        }
                    }
                }
            }
        }
        path.pop();
        self.lists.insert(name.to_owned(), Arc::new(list));
    }

    fn read_list(&mut self, name: &str, place: &Place, list: &mut List) {
        let Some(text) = self.text_of(name, place) else { return };
        let mut wrong = Wrong::new(name, &text);
        each_row(name, &mut wrong, &mut |line, cells, wrong| match member(cells[0]) {
            Ok(member @ (Member::Address(_) | Member::Domain(_))) => list.add(member),
            Ok(Member::File(_) | Member::List(_)) => wrong.add(line, "files and lists are named in the rules only"),
            Err(error) => wrong.add(line, &error),
        });
        wrong.report(self, place);
    }

    /// The map of an entry, with what is wrong with its lines reported.
    pub(super) fn map(&mut self, entry: &MapEntry) -> Map {
        let mut map = Map::default();
        let Some(text) = self.text_of(&entry.file.value, &entry.file.place) else { return map };
        let mut wrong = Wrong::new(&entry.file.value, &text);
        let mut known: HashMap<String, Option<u32>> = HashMap::new();
        let mut domains: HashSet<Domain> = HashSet::new();
        each_row(&entry.file.value, &mut wrong, &mut |line, cells, wrong| {
            let address = match &entry.domain {
                Some(domain) if !cells[0].contains('@') => Mailbox::parse(&format!("{}@{}", cells[0], domain.value)),
                Some(_) | None => Mailbox::parse(cells[0]),
            };
            let address = match address {
                Ok(address) => address,
                Err(error) => return wrong.add(line, &error.to_string()),
            };
            if !domains.contains(address.domain()) {
                domains.insert(address.domain().clone());
                if !self.is_ours(address.domain()) {
                    wrong.add(line, &format!("`{}` is not a domain of ours", address.domain()));
                }
            }
            let targets = cells[1..].iter().flat_map(|cell| cell.split_whitespace()).collect::<Vec<_>>().join(" ");
            let at = match known.get(&targets) {
                Some(at) => *at,
                None => {
                    let at = self.map_rule(entry, &targets, line, wrong).map(|rule| {
                        map.rules.push(rule);
                        u32::try_from(map.rules.len() - 1).expect("a file of 128 MiB has fewer lines")
                    });
                    known.insert(targets, at);
                    at
                }
            };
            let Some(at) = at else { return };
            if map.entries.insert(address.key().into_boxed_str(), at).is_some() {
                wrong.add(line, &format!("`{address}` stands in the file twice"));
            }
        });
        wrong.report(self, &entry.file.place);
        map
    }

    fn map_rule(&mut self, entry: &MapEntry, targets: &str, line: usize, wrong: &mut Wrong<'_>) -> Option<Rule> {
        let Some(to) = targets.split(' ').next().filter(|to| !to.is_empty()) else {
            wrong.add(line, "an address without a target");
            return None;
        };
        let mut find = |text: &str| match self.target_of(text, &entry.file.place) {
            Ok(target) => Some(target),
            Err(error) => {
                wrong.add(line, &error);
                None
            }
        };
        let to = find(to)?;
        let also = targets.split(' ').skip(1).map(find).collect::<Option<Vec<_>>>()?;
        let then = Then { to: Some(to), also, ..Then::default() };
        Some(Rule {
            name: format!("map {}", entry.name.value),
            place: format!("{}:{line}", entry.file.value),
            when: Vec::new(),
            then,
            continues: false,
            names_recipients: true,
            standing: Standing::default(),
        })
    }

    /// The addresses of a list that stands where a target does.
    pub(super) fn list_as_targets(&mut self, name: &str, place: &Place) -> Vec<Target> {
        let placed = Placed { value: name.to_owned(), place: place.clone() };
        let Some(list) = self.lists.get(name).cloned() else {
            let known: Vec<String> = self.lists.keys().cloned().collect();
            let mut known: Vec<&str> = known.iter().map(String::as_str).collect();
            known.sort_unstable();
            self.unknown("list", &placed, &known);
            return Vec::new();
        };
        match list.mailboxes() {
            Ok(mailboxes) => {
                self.target_places.extend(mailboxes.iter().map(|mailbox| (mailbox.clone(), place.clone())));
                mailboxes.into_iter().map(Target::of).collect()
            }
            Err(why) => {
                let wrong = Diagnostic::error(format!("mail cannot go to the list `{name}`")).at(place);
                self.report.add(wrong.label(why));
                Vec::new()
            }
        }
    }
}

/// Calls `row` with the cells of each row and the line on which it stands. A text file has an entry a line, behind which white
/// space and more may stand, and `#` begins a comment; a `.csv` has cells between commas or semicolons (RFC 4180), and may have
/// a first row that names its columns.
fn each_row<'t>(name: &str, wrong: &mut Wrong<'t>, row: &mut dyn FnMut(usize, &[&str], &mut Wrong<'t>)) {
    let text = wrong.text.trim_start_matches('\u{feff}');
    if !name.to_ascii_lowercase().ends_with(".csv") {
        for (at, line) in text.lines().enumerate() {
            let line = line.split_once('#').map_or(line, |(before, _)| before).trim();
            let (first, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
            if !first.is_empty() {
                row(at + 1, &[first, rest], wrong);
            }
        }
        return;
    }
    let first_line = text.lines().next().unwrap_or_default();
    let delimiter = if first_line.contains(';') && !first_line.contains(',') { b';' } else { b',' };
    let mut reader = csv::ReaderBuilder::new();
    let reader = reader.has_headers(false).flexible(true).trim(csv::Trim::All).delimiter(delimiter);
    let mut reader = reader.from_reader(text.as_bytes());
    let mut record = csv::StringRecord::new();
    let mut is_first = true;
    while reader.read_record(&mut record).is_ok_and(|more| more) {
        let line = record.position().map_or(1, |position| usize::try_from(position.line()).unwrap_or(1));
        let cells: Vec<&str> = record.iter().collect();
        let is_heading = std::mem::take(&mut is_first) && HEADINGS.contains(&cells[0].to_ascii_lowercase().as_str());
        if !is_heading && cells.iter().any(|cell| !cell.is_empty()) {
            row(line, &cells, wrong);
        }
    }
}

/// What is wrong with lines of a file: the first few are shown, the others counted.
struct Wrong<'t> {
    name: String,
    text: &'t str,
    lines: Vec<(usize, String)>,
    count: usize,
}

impl<'t> Wrong<'t> {
    fn new(name: &str, text: &'t str) -> Wrong<'t> {
        Wrong { name: name.to_owned(), text, lines: Vec::new(), count: 0 }
    }

    fn add(&mut self, line: usize, why: &str) {
        self.count += 1;
        if self.lines.len() < WRONG_SHOWN_MAX {
            self.lines.push((line, why.to_owned()));
        }
    }

    fn report(self, resolver: &mut Resolver<'_>, named_at: &Place) {
        if self.count == 0 {
            return;
        }
        let source = Source::new(self.name.clone(), self.text);
        let starts: Vec<usize> =
            std::iter::once(0).chain(self.text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        let last = self.lines.len() - 1;
        for (n, (line, why)) in self.lines.into_iter().enumerate() {
            let start = starts.get(line - 1).copied().unwrap_or(0);
            let end = self.text[start..].find(['\r', '\n']).map_or(self.text.len(), |len| start + len);
            let place = Place { source: Arc::clone(&source), span: start..end };
            let mut finding = Diagnostic::error(why).at(&place).context(named_at, "named here");
            if n == last && self.count > WRONG_SHOWN_MAX {
                finding = finding.help(format!("and {} more lines of this file", self.count - WRONG_SHOWN_MAX));
            }
            resolver.report.add(finding);
        }
    }
}

/// First cells that are a heading and no address.
const HEADINGS: [&str; 6] = ["address", "alias", "email", "e-mail", "mail", "recipient"];
/// As many as Gmail adds recipients.
const TARGETS_MAX: usize = 100;
/// Who sees these has seen what is wrong.
const WRONG_SHOWN_MAX: usize = 10;
