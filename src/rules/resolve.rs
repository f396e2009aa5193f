//! Conditions as typed to conditions that can be asked: names of lists, calendars and conditions are looked up.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::address::Domain;
use crate::diagnostic::{Diagnostic, Placed};

use super::condition::{AttachmentCondition, Condition, FieldCondition, Named};
use super::lists::List;
use super::parse::Resolver;
use super::pattern::Pattern;
use super::rewrite::{Rewrite, groups};
use super::set::{Check, sender_key};
use super::syntax::{Body, ConditionEntry, RuleFile};
use super::when::{AttachmentEntry, FieldEntry, When};

impl Resolver<'_> {
    pub(super) fn calendars(&mut self, file: &RuleFile) {
        let names: Vec<Placed<String>> = file
            .calendars
            .iter()
            .map(|entry| Placed { value: entry.value.name.clone(), place: entry.place.clone() })
            .collect();
        self.unique("calendar", names.iter());
        let entries = file.calendars.iter().map(|entry| (entry.value.name.clone(), Arc::new(entry.value.clone())));
        self.calendars = entries.collect();
    }

    /// A condition may name others, and none that leads back to itself.
    pub(super) fn conditions(&mut self, file: &RuleFile) {
        self.unique("condition", file.conditions.iter().map(|entry| &entry.name));
        let entries: HashMap<&str, &ConditionEntry> =
            file.conditions.iter().map(|entry| (entry.name.value.as_str(), entry)).collect();
        for entry in &file.conditions {
            self.condition(entry, &entries, &mut Vec::new());
        }
    }

    fn condition<'e>(
        &mut self,
        entry: &'e ConditionEntry,
        entries: &HashMap<&str, &'e ConditionEntry>,
        path: &mut Vec<&'e str>,
    ) {
        let name = entry.name.value.as_str();
        if self.conditions.contains_key(name) {
            return;
        }
        path.push(name);
        for other in entry.when.tables().into_iter().flat_map(|when| when.is.iter().flatten()) {
            match entries.get(other.value.as_str()) {
                Some(next) if path.contains(&next.name.value.as_str()) => {
                    let circle = Diagnostic::error(format!("the condition `{name}` asks for itself")).at(&other.place);
                    self.report.add(circle.label(format!("by way of {}", path.join(", "))));
                    path.pop();
                    // Whoever names it shall not be told that it is not there.
                    let named = Named { name: name.to_owned(), when: Vec::new() };
                    self.conditions.insert(name.to_owned(), Arc::new(named));
                    return;
                }
                Some(next) => self.condition(next, entries, path),
                None => {}
            }
        }
        path.pop();
        let named = Named { name: name.to_owned(), when: self.when(&entry.when) };
        self.conditions.insert(name.to_owned(), Arc::new(named));
    }

    pub(super) fn when(&mut self, when: &When) -> Vec<Condition> {
        for address in when.recipient.iter().flatten() {
            self.ours(address.value.domain(), &address.place);
        }
        for domain in when.recipient_domain.iter().flatten() {
            self.ours(&domain.value, &domain.place);
        }
        let mut found = self.of_envelope(when);
        found.extend(self.of_message(when));
        if let Some(names) = &when.during {
            let (calendars, strange) = find(&self.calendars, names);
            found.push(Condition::During(calendars));
            self.strange("calendar", strange);
        }
        if let Some(names) = &when.is {
            let (conditions, strange) = find(&self.conditions, names);
            found.push(Condition::Is(conditions));
            self.strange("condition", strange);
        }
        for (tables, make) in [
            (&when.all, Condition::All as fn(Vec<Vec<Condition>>) -> Condition),
            (&when.any, Condition::Any),
            (&when.not, Condition::Not),
        ] {
            let tables = tables.as_ref().map(|tables| tables.iter().map(|table| self.when(table)).collect());
            found.extend(tables.map(make));
        }
        found
    }

    /// What is known at RCPT. What is cheap and sharp stands first; `explain` names the first that fails in this order.
    fn of_envelope(&mut self, when: &When) -> Vec<Condition> {
        let recipient_in = when.recipient_in.as_ref().map(|names| self.lists_named(names));
        let sender_in = when.sender_in.as_ref().map(|names| self.lists_named(names));
        let conditions = [
            when.recipient.as_ref().map(|v| Condition::Recipient(v.iter().map(|m| m.value.key()).collect())),
            when.recipient_domain.as_ref().map(|v| Condition::RecipientDomain(set(v))),
            when.recipient_tag.as_ref().map(|v| Condition::RecipientTag(lower(v))),
            recipient_in.map(Condition::RecipientIn),
            when.recipient_matches.as_ref().map(|v| Condition::RecipientMatches(values(v))),
            when.sender.as_ref().map(|v| Condition::Sender(v.iter().map(|s| sender_key(&s.value)).collect())),
            when.sender_domain.as_ref().map(|v| Condition::SenderDomain(set(v))),
            sender_in.map(Condition::SenderIn),
            when.sender_matches.as_ref().map(|v| Condition::SenderMatches(values(v))),
            when.client.as_ref().map(|v| Condition::Client(values(v))),
            when.helo.as_ref().map(|v| Condition::Helo(lower(v))),
            when.tls.as_ref().map(|v| Condition::Tls(v.value)),
        ];
        conditions.into_iter().flatten().collect()
    }

    /// What the message decides.
    fn of_message(&mut self, when: &When) -> Vec<Condition> {
        let from_in = when.from_in.as_ref().map(|names| self.lists_named(names));
        let auth = |check, words: &Option<Vec<Placed<&'static str>>>| {
            words.as_ref().map(|words| Condition::Auth(check, values(words)))
        };
        let conditions = [
            auth(Check::Spf, &when.spf),
            auth(Check::Dkim, &when.dkim),
            auth(Check::Dmarc, &when.dmarc),
            auth(Check::Arc, &when.arc),
            when.score.as_ref().map(|v| Condition::Score(values(v))),
            when.automatic.as_ref().map(|v| Condition::Automatic(v.value)),
            when.list_mail.as_ref().map(|v| Condition::ListMail(v.value)),
            when.size.as_ref().map(|v| Condition::Size(values(v))),
            when.from.as_ref().map(|v| Condition::From(v.iter().map(|m| m.value.key()).collect())),
            when.from_domain.as_ref().map(|v| Condition::FromDomain(set(v))),
            from_in.map(Condition::FromIn),
            when.from_matches.as_ref().map(|v| Condition::FromMatches(values(v))),
            when.header.as_ref().map(|v| Condition::Field(v.iter().map(field).collect())),
            when.subject_matches.as_ref().map(|v| Condition::Subject(values(v))),
            when.attachment.as_ref().map(|v| Condition::Attachment(v.iter().map(attachment).collect())),
            when.body_matches.as_ref().map(|v| Condition::Body(values(v))),
        ];
        conditions.into_iter().flatten().collect()
    }

    /// What makes a target of the recipient: `to-local` and `to-domain`, or a `to` with captures of the rule's patterns.
    pub(super) fn rewrite(&mut self, body: &Body, patterns: &[Placed<Pattern>]) -> Option<Rewrite> {
        let captures = body.to.as_ref().filter(|to| has_captures(to, patterns));
        let (local, domain) = match (captures, &body.to_local, &body.to_domain) {
            (None, None, None) => return None,
            (Some(to), None, None) => self.template(to)?,
            (None, local, domain) if body.to.is_none() => (local.clone(), domain.as_ref().map(|d| d.value.clone())),
            (_, local, domain) => {
                let place = local.as_ref().map(|l| &l.place).or(domain.as_ref().map(|d| &d.place));
                let both = Diagnostic::error("a rule has `to`, or `to-local` and `to-domain`, not both");
                self.report.add(place.map_or(both.clone(), |place| both.at(place)));
                return None;
            }
        };
        for group in local.iter().flat_map(|local| groups(&local.value)) {
            let at = &local.as_ref().expect("it has a group").place;
            if patterns.iter().any(|pattern| !pattern.value.has_group(&group)) || patterns.is_empty() {
                let strange = Diagnostic::error(format!("there is no group `{group}` in `recipient-matches`")).at(at);
                self.report
                    .add(strange.help("`$1` is the first group; write `${1}x` where a letter follows, `$$` for a `$`"));
            }
        }
        let patterns = patterns.iter().map(|pattern| pattern.value.clone()).collect();
        Some(Rewrite { local: local.map(|local| local.value), domain, patterns })
    }

    /// An address with captures in its local part, taken apart.
    fn template(&mut self, to: &Placed<String>) -> Option<(Option<Placed<String>>, Option<Domain>)> {
        let parts = to.value.rsplit_once('@');
        let parsed = parts.and_then(|(local, domain)| Some((local, Domain::parse(domain).ok()?)));
        let Some((local, domain)) = parsed.filter(|(_, domain)| !domain.is_literal()) else {
            let wrong = Diagnostic::error(format!("`{}` is not an address with captures", to.value)).at(&to.place);
            self.report.add(wrong.label("they stand in the local part only, never in the domain"));
            return None;
        };
        Some((Some(Placed { value: local.to_owned(), place: to.place.clone() }), Some(domain)))
    }

    fn lists_named(&mut self, names: &[Placed<String>]) -> Vec<Arc<List>> {
        let (lists, strange) = find(&self.lists, names);
        self.strange("list", strange);
        lists
    }

    fn strange(&mut self, kind: &str, strange: Option<Strange<'_>>) {
        for name in strange.iter().flat_map(|strange| &strange.names) {
            let known = strange.iter().flat_map(|strange| &strange.known);
            self.unknown(kind, name, &known.map(String::as_str).collect::<Vec<_>>());
        }
    }
}

/// A dollar sign is a letter like any other where no pattern is there to capture from.
pub(super) fn has_captures(to: &Placed<String>, patterns: &[Placed<Pattern>]) -> bool {
    to.value.contains('$') && !patterns.is_empty()
}

/// Names that nothing bears, and those that something does.
struct Strange<'n> {
    names: Vec<&'n Placed<String>>,
    known: Vec<String>,
}

fn find<'n, T>(all: &HashMap<String, Arc<T>>, names: &'n [Placed<String>]) -> (Vec<Arc<T>>, Option<Strange<'n>>) {
    let found = names.iter().filter_map(|name| all.get(&name.value)).cloned().collect();
    let names: Vec<_> = names.iter().filter(|name| !all.contains_key(&name.value)).collect();
    if names.is_empty() {
        return (found, None);
    }
    let mut known: Vec<String> = all.keys().cloned().collect();
    known.sort_unstable();
    (found, Some(Strange { names, known }))
}

fn field(entry: &FieldEntry) -> FieldCondition {
    FieldCondition { name: entry.name.clone(), matches: entry.matches.as_deref().map(values).unwrap_or_default() }
}

fn attachment(entry: &AttachmentEntry) -> AttachmentCondition {
    AttachmentCondition {
        name_matches: entry.name_matches.as_deref().map(values).unwrap_or_default(),
        kinds: entry.kinds.as_deref().map(values).unwrap_or_default(),
        size: entry.size.as_deref().map(values).unwrap_or_default(),
        inside_matches: entry.inside_matches.as_deref().map(values).unwrap_or_default(),
    }
}

fn values<T: Clone>(placed: &[Placed<T>]) -> Vec<T> {
    placed.iter().map(|p| p.value.clone()).collect()
}

fn set<T: Clone + Eq + std::hash::Hash>(placed: &[Placed<T>]) -> HashSet<T> {
    placed.iter().map(|p| p.value.clone()).collect()
}

fn lower(placed: &[Placed<String>]) -> Vec<String> {
    placed.iter().map(|p| p.value.to_lowercase()).collect()
}
