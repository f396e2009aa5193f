//! Conditions, resolved: whether one holds, how it is written, and what it saw.
//!
//! Evaluation is three-valued: what asks for a fact that is not known yet neither holds nor fails, and says what it needs.
//! A condition that fails for certain decides, also behind one that is open; so does one that holds, within `any`.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use crate::address::{Domain, Mailbox};
use crate::message::reading::{Attachment, Reading, Wanted};
use crate::network::Network;

use super::calendar::Calendar;
use super::eval::{Found, Subject};
use super::facts::Fact;
use super::lists::List;
use super::pattern::Pattern;
use super::set::{Check, Scores, Sizes};

/// One key of `when`; it holds if any of its values does.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Condition {
    /// [`Mailbox::key`]s.
    Recipient(HashSet<String>),
    RecipientMatches(Vec<Pattern>),
    RecipientIn(Vec<Arc<List>>),
    RecipientDomain(HashSet<Domain>),
    /// In lower case.
    RecipientTag(Vec<String>),
    Sender(HashSet<String>),
    SenderMatches(Vec<Pattern>),
    SenderIn(Vec<Arc<List>>),
    SenderDomain(HashSet<Domain>),
    /// [`Mailbox::key`]s.
    From(HashSet<String>),
    FromMatches(Vec<Pattern>),
    FromIn(Vec<Arc<List>>),
    FromDomain(HashSet<Domain>),
    Client(Vec<Network>),
    /// In lower case.
    Helo(Vec<String>),
    Tls(bool),
    During(Vec<Arc<Calendar>>),
    Auth(Check, Vec<&'static str>),
    Score(Vec<Scores>),
    Automatic(bool),
    ListMail(bool),
    Size(Vec<Sizes>),
    Field(Vec<FieldCondition>),
    Subject(Vec<Pattern>),
    Body(Vec<Pattern>),
    Attachment(Vec<AttachmentCondition>),
    /// A `[condition]` by its name.
    Is(Vec<Arc<Named>>),
    All(Vec<Vec<Condition>>),
    Any(Vec<Vec<Condition>>),
    Not(Vec<Vec<Condition>>),
}

/// A `[condition]`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Named {
    pub name: String,
    pub when: Vec<Condition>,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct FieldCondition {
    pub name: String,
    /// Empty: it is enough that the field is there.
    pub matches: Vec<Pattern>,
}

/// What is empty is not asked.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct AttachmentCondition {
    pub name_matches: Vec<Pattern>,
    pub kinds: Vec<String>,
    pub size: Vec<Sizes>,
    pub inside_matches: Vec<Pattern>,
}

/// What a condition needs that is not known yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Missing {
    Check(Check),
    Score,
    Message,
}

/// Whether all conditions hold; else the position of the first that does not, or, where none fails for certain, of the first
/// that is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Truth {
    Holds,
    Fails(usize),
    Unknown(usize, Missing),
}

pub(super) fn truth(when: &[Condition], subject: &Subject<'_>, found: &Found<'_>, plus_strip: bool) -> Truth {
    let mut unknown = None;
    for (at, condition) in when.iter().enumerate() {
        match condition.holds(subject, found, plus_strip) {
            Ok(true) => {}
            Ok(false) => return Truth::Fails(at),
            Err(missing) => unknown = unknown.or(Some(Truth::Unknown(at, missing))),
        }
    }
    unknown.unwrap_or(Truth::Holds)
}

impl Condition {
    fn holds(&self, subject: &Subject<'_>, found: &Found<'_>, plus_strip: bool) -> Result<bool, Missing> {
        let recipient = subject.recipient;
        let sender_domain = subject.sender.mailbox().map(Mailbox::domain);
        let all = |when: &[Condition]| match truth(when, subject, found, plus_strip) {
            Truth::Holds => Ok(true),
            Truth::Fails(_) => Ok(false),
            Truth::Unknown(_, missing) => Err(missing),
        };
        Ok(match self {
            Condition::Recipient(keys) => subject.keys(plus_strip).any(|key| keys.contains(key)),
            Condition::RecipientMatches(patterns) => any_matches(patterns, &subject.recipient_texts),
            Condition::RecipientIn(lists) => {
                let keys = || subject.keys(plus_strip);
                lists.iter().any(|list| keys().any(|key| list.contains(key, Some(recipient.domain()))))
            }
            Condition::RecipientDomain(domains) => domains.contains(recipient.domain()),
            Condition::RecipientTag(tags) => subject.tag().is_some_and(|tag| tags.iter().any(|other| other == tag)),
            Condition::Sender(keys) => keys.contains(&subject.sender_key),
            Condition::SenderMatches(patterns) => any_matches(patterns, &subject.sender_texts),
            Condition::SenderIn(lists) => lists.iter().any(|list| list.contains(&subject.sender_key, sender_domain)),
            Condition::SenderDomain(domains) => sender_domain.is_some_and(|domain| domains.contains(domain)),
            Condition::Client(networks) => subject.client.is_some_and(|ip| networks.iter().any(|n| n.contains(ip))),
            Condition::Helo(names) => subject.helo.as_ref().is_some_and(|helo| names.contains(helo)),
            Condition::Tls(wanted) => subject.tls == *wanted,
            Condition::During(calendars) => calendars.iter().any(|calendar| calendar.contains(subject.at)),
            Condition::Auth(check, words) => match found.checks[*check as usize] {
                Fact::Unknown => return Err(Missing::Check(*check)),
                Fact::Known(result) => result.is_some_and(|result| words.contains(&result)),
            },
            Condition::Score(ranges) => match found.score {
                Fact::Unknown => return Err(Missing::Score),
                Fact::Known(score) => score.is_some_and(|score| ranges.iter().any(|range| range.contains(score))),
            },
            Condition::Is(named) => return any(named.iter().map(|named| all(&named.when))),
            Condition::Any(tables) => return any(tables.iter().map(|when| all(when))),
            Condition::Not(tables) => return any(tables.iter().map(|when| all(when))).map(|holds| !holds),
            Condition::All(tables) => {
                return any(tables.iter().map(|when| all(when).map(|holds| !holds))).map(|fails| !fails);
            }
            Condition::From(_)
            | Condition::FromMatches(_)
            | Condition::FromIn(_)
            | Condition::FromDomain(_)
            | Condition::Automatic(_)
            | Condition::ListMail(_)
            | Condition::Size(_)
            | Condition::Field(_)
            | Condition::Subject(_)
            | Condition::Body(_)
            | Condition::Attachment(_) => match found.message {
                Fact::Unknown => return Err(Missing::Message),
                Fact::Known(message) => self.holds_of(message),
            },
        })
    }

    /// Of a message that is there.
    fn holds_of(&self, message: &Reading) -> bool {
        match self {
            Condition::From(keys) => message.from.iter().any(|from| keys.contains(&from.key())),
            Condition::FromMatches(patterns) => message.from.iter().any(|from| {
                patterns.iter().any(|pattern| pattern.matches(from.as_str()) || pattern.matches(&from.key()))
            }),
            Condition::FromIn(lists) => {
                message.from.iter().any(|from| lists.iter().any(|list| list.contains(&from.key(), Some(from.domain()))))
            }
            Condition::FromDomain(domains) => message.from.iter().any(|from| domains.contains(from.domain())),
            Condition::Automatic(wanted) => message.automatic == *wanted,
            Condition::ListMail(wanted) => message.list == *wanted,
            Condition::Size(ranges) => ranges.iter().any(|range| range.contains(message.size)),
            Condition::Field(fields) => fields.iter().any(|field| field.holds(message)),
            Condition::Subject(patterns) => matches_one(patterns, &message.subject),
            Condition::Body(patterns) => matches_one(patterns, &message.text),
            Condition::Attachment(wanted) => {
                message.attachments.iter().any(|attachment| wanted.iter().any(|wanted| wanted.holds(attachment)))
            }
            Condition::Recipient(_)
            | Condition::RecipientMatches(_)
            | Condition::RecipientIn(_)
            | Condition::RecipientDomain(_)
            | Condition::RecipientTag(_)
            | Condition::Sender(_)
            | Condition::SenderMatches(_)
            | Condition::SenderIn(_)
            | Condition::SenderDomain(_)
            | Condition::Client(_)
            | Condition::Helo(_)
            | Condition::Tls(_)
            | Condition::During(_)
            | Condition::Auth(..)
            | Condition::Score(_)
            | Condition::Is(_)
            | Condition::All(_)
            | Condition::Any(_)
            | Condition::Not(_) => false,
        }
    }

    /// Whether it asks who the recipient is.
    pub(super) fn is_about_recipients(&self) -> bool {
        let mut asks = false;
        self.visit(&mut |condition| {
            asks |= matches!(
                condition,
                Condition::Recipient(_)
                    | Condition::RecipientMatches(_)
                    | Condition::RecipientIn(_)
                    | Condition::RecipientDomain(_)
                    | Condition::RecipientTag(_)
            );
        });
        asks
    }

    /// Visits this condition and all that stand within it.
    pub(super) fn visit(&self, see: &mut dyn FnMut(&Condition)) {
        see(self);
        match self {
            Condition::Is(named) => named.iter().flat_map(|named| &named.when).for_each(|inner| inner.visit(see)),
            Condition::All(tables) | Condition::Any(tables) | Condition::Not(tables) => {
                tables.iter().flatten().for_each(|inner| inner.visit(see));
            }
            _ => {}
        }
    }

    /// What must be read of a message to tell.
    pub(super) fn wanted(&self) -> Wanted {
        let mut wanted = Wanted::default();
        self.visit(&mut |condition| match condition {
            Condition::Body(_) => wanted.text = true,
            Condition::Attachment(_) => wanted.attachments = true,
            Condition::From(_)
            | Condition::FromMatches(_)
            | Condition::FromIn(_)
            | Condition::FromDomain(_)
            | Condition::Automatic(_)
            | Condition::ListMail(_)
            | Condition::Size(_)
            | Condition::Subject(_) => wanted.header = true,
            Condition::Field(_) => wanted.fields = true,
            _ => {}
        });
        wanted
    }
}

/// Whether one holds; open where none does for certain and one is open.
fn any(truths: impl Iterator<Item = Result<bool, Missing>>) -> Result<bool, Missing> {
    let mut unknown = None;
    for truth in truths {
        match truth {
            Ok(true) => return Ok(true),
            Ok(false) => {}
            Err(missing) => unknown = unknown.or(Some(missing)),
        }
    }
    unknown.map_or(Ok(false), Err)
}

fn any_matches(patterns: &[Pattern], texts: &[String]) -> bool {
    texts.iter().any(|text| matches_one(patterns, text))
}

fn matches_one(patterns: &[Pattern], text: &str) -> bool {
    patterns.iter().any(|pattern| pattern.matches(text))
}

impl FieldCondition {
    fn holds(&self, message: &Reading) -> bool {
        let mut values = message.fields.iter().filter(|(name, _)| *name == self.name).map(|(_, value)| value);
        if self.matches.is_empty() {
            values.next().is_some()
        } else {
            values.any(|value| matches_one(&self.matches, value))
        }
    }
}

impl AttachmentCondition {
    fn holds(&self, attachment: &Attachment) -> bool {
        let kinds = || std::iter::once(attachment.kind.as_str()).chain(attachment.detected);
        (self.name_matches.is_empty() || matches_one(&self.name_matches, &attachment.name))
            && (self.kinds.is_empty() || kinds().any(|kind| self.kinds.iter().any(|wanted| is_kind(kind, wanted))))
            && (self.size.is_empty() || self.size.iter().any(|range| range.contains(attachment.size)))
            && (self.inside_matches.is_empty()
                || attachment.inside.iter().any(|name| matches_one(&self.inside_matches, name)))
    }
}

fn is_kind(kind: &str, wanted: &str) -> bool {
    match wanted.strip_suffix("/*") {
        Some(all) => kind.split_once('/').is_some_and(|(kind, _)| kind == all),
        None => kind == wanted,
    }
}

/// As it would be written.
impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = |lists: &[Arc<List>]| lists.iter().map(|list| list.name.clone()).collect::<Vec<_>>();
        let texts = |patterns: &[Pattern]| patterns.iter().map(|p| p.as_str().to_owned()).collect::<Vec<_>>();
        let (key, values): (&str, Vec<String>) = match self {
            Condition::Recipient(keys) => ("recipient", sorted(keys)),
            Condition::RecipientMatches(patterns) => ("recipient-matches", texts(patterns)),
            Condition::RecipientIn(lists) => ("recipient-in", names(lists)),
            Condition::RecipientDomain(domains) => ("recipient-domain", sorted(domains)),
            Condition::RecipientTag(tags) => ("recipient-tag", tags.clone()),
            Condition::Sender(keys) => ("sender", sorted(keys)),
            Condition::SenderMatches(patterns) => ("sender-matches", texts(patterns)),
            Condition::SenderIn(lists) => ("sender-in", names(lists)),
            Condition::SenderDomain(domains) => ("sender-domain", sorted(domains)),
            Condition::From(keys) => ("from", sorted(keys)),
            Condition::FromMatches(patterns) => ("from-matches", texts(patterns)),
            Condition::FromIn(lists) => ("from-in", names(lists)),
            Condition::FromDomain(domains) => ("from-domain", sorted(domains)),
            Condition::Client(networks) => ("client", networks.iter().map(ToString::to_string).collect()),
            Condition::Helo(names) => ("helo", names.clone()),
            Condition::Tls(wanted) => return write!(f, "tls = {wanted}"),
            Condition::During(calendars) => ("during", calendars.iter().map(|c| c.name.clone()).collect()),
            Condition::Auth(check, words) => (check.as_str(), words.iter().map(|word| (*word).to_owned()).collect()),
            Condition::Score(ranges) => ("score", ranges.iter().map(ToString::to_string).collect()),
            Condition::Automatic(wanted) => return write!(f, "automatic = {wanted}"),
            Condition::ListMail(wanted) => return write!(f, "list-mail = {wanted}"),
            Condition::Size(ranges) => ("size", ranges.iter().map(ToString::to_string).collect()),
            Condition::Field(fields) => return write_tables(f, "header", fields),
            Condition::Subject(patterns) => ("subject-matches", texts(patterns)),
            Condition::Body(patterns) => ("body-matches", texts(patterns)),
            Condition::Attachment(wanted) => return write_tables(f, "attachment", wanted),
            Condition::Is(named) => ("is", named.iter().map(|named| named.name.clone()).collect()),
            Condition::All(tables) => {
                return write_tables(f, "all", &tables.iter().map(|t| Table(t)).collect::<Vec<_>>());
            }
            Condition::Any(tables) => {
                return write_tables(f, "any", &tables.iter().map(|t| Table(t)).collect::<Vec<_>>());
            }
            Condition::Not(tables) => {
                return write_tables(f, "not", &tables.iter().map(|t| Table(t)).collect::<Vec<_>>());
            }
        };
        write_values(f, key, values)
    }
}

struct Table<'c>(&'c [Condition]);

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let conditions: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        write!(f, "{{ {} }}", conditions.join(", "))
    }
}

impl fmt::Display for FieldCondition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.matches.is_empty() {
            return write!(f, "{:?}", self.name);
        }
        write!(f, "{{ name = {:?}, ", self.name)?;
        write_values(f, "matches", self.matches.iter().map(|p| p.as_str().to_owned()).collect())?;
        f.write_str(" }")
    }
}

impl fmt::Display for AttachmentCondition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let texts = |patterns: &[Pattern]| patterns.iter().map(|p| p.as_str().to_owned()).collect::<Vec<_>>();
        let parts = [
            ("name-matches", texts(&self.name_matches)),
            ("type", self.kinds.clone()),
            ("size", self.size.iter().map(ToString::to_string).collect()),
            ("inside-matches", texts(&self.inside_matches)),
        ];
        f.write_str("{")?;
        for (n, (key, values)) in parts.into_iter().filter(|(_, values)| !values.is_empty()).enumerate() {
            f.write_str(if n == 0 { " " } else { ", " })?;
            write_values(f, key, values)?;
        }
        f.write_str(" }")
    }
}

fn write_tables<T: fmt::Display>(f: &mut fmt::Formatter<'_>, key: &str, tables: &[T]) -> fmt::Result {
    let shown: Vec<String> = tables.iter().take(SHOWN_VALUES_MAX).map(ToString::to_string).collect();
    match &shown[..] {
        [one] => write!(f, "{key} = {one}"),
        _ => write!(f, "{key} = [{}]", shown.join(", ")),
    }
}

fn write_values(f: &mut fmt::Formatter<'_>, key: &str, mut values: Vec<String>) -> fmt::Result {
    if let [value] = &values[..] {
        return write!(f, "{key} = {value:?}");
    }
    let more = values.len().saturating_sub(SHOWN_VALUES_MAX);
    values.truncate(SHOWN_VALUES_MAX);
    let mut shown: Vec<String> = values.iter().map(|value| format!("{value:?}")).collect();
    if more > 0 {
        shown.push(format!("and {more} more"));
    }
    write!(f, "{key} = [{}]", shown.join(", "))
}

fn sorted<T: ToString>(values: &HashSet<T>) -> Vec<String> {
    let mut values: Vec<String> = values.iter().map(ToString::to_string).collect();
    values.sort_unstable();
    values
}

/// A condition is a reminder here; the file has it whole.
const SHOWN_VALUES_MAX: usize = 5;
