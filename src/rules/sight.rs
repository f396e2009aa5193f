//! What a condition saw, for `explain`.

use crate::message::reading::Reading;

use super::condition::{Condition, Truth, truth};
use super::eval::{Found, Subject};
use super::facts::{Fact, Facts};
use super::set::{Check, sender_key};

/// Whoever asks has the subject and what was found, and whether plus tags are stripped.
pub(super) struct Sight<'s, 'f> {
    pub facts: &'s Facts<'f>,
    pub subject: &'s Subject<'f>,
    pub found: &'s Found<'f>,
    pub plus_strip: bool,
}

impl Sight<'_, '_> {
    /// The condition that is to blame where `condition` does not hold, as it is written, and what it saw.
    pub(super) fn blame(&self, condition: &Condition) -> (String, String) {
        match condition {
            // The first inside that fails is what an administrator looks for.
            Condition::Is(named) if named.len() == 1 => {
                let (inner, saw) = self.first_failing(&named[0].when);
                (format!("{condition}: {inner}"), saw)
            }
            Condition::All(tables) => {
                let failing = tables.iter().find(|when| !matches!(self.truth(when), Truth::Holds));
                let (inner, saw) = self.first_failing(failing.map_or(&[], |when| when.as_slice()));
                (format!("all: {inner}"), saw)
            }
            Condition::Any(tables) => (condition.to_string(), self.each(tables.iter().map(Vec::as_slice))),
            Condition::Is(named) => (condition.to_string(), self.each(named.iter().map(|named| named.when.as_slice()))),
            Condition::Not(tables) => {
                let holding = tables.iter().find(|when| matches!(self.truth(when), Truth::Holds));
                let saw: Vec<String> =
                    holding.iter().flat_map(|when| when.iter()).map(|inner| self.saw(inner)).collect();
                (condition.to_string(), saw.join(", "))
            }
            _ => (condition.to_string(), self.saw(condition)),
        }
    }

    fn truth(&self, when: &[Condition]) -> Truth {
        truth(when, self.subject, self.found, self.plus_strip)
    }

    fn first_failing(&self, when: &[Condition]) -> (String, String) {
        match self.truth(when) {
            Truth::Fails(at) | Truth::Unknown(at, _) => self.blame(&when[at]),
            Truth::Holds => (String::new(), String::new()),
        }
    }

    fn each<'c>(&self, tables: impl Iterator<Item = &'c [Condition]>) -> String {
        let saw: Vec<String> = tables
            .take(SHOWN_TABLES_MAX)
            .map(|when| {
                let (condition, saw) = self.first_failing(when);
                format!("{saw} ({condition})")
            })
            .collect();
        saw.join("; ")
    }

    fn saw(&self, condition: &Condition) -> String {
        let facts = self.facts;
        match condition {
            Condition::Recipient(_)
            | Condition::RecipientMatches(_)
            | Condition::RecipientIn(_)
            | Condition::RecipientTag(_) => facts.recipient.to_string(),
            Condition::RecipientDomain(_) => facts.recipient.domain().to_string(),
            Condition::Sender(_) | Condition::SenderMatches(_) | Condition::SenderIn(_) => sender_key_shown(facts),
            Condition::SenderDomain(_) => {
                facts.sender.mailbox().map_or_else(|| "<>".to_owned(), |sender| sender.domain().to_string())
            }
            Condition::Client(_) => facts.client.map_or_else(|| "no client address".to_owned(), |ip| ip.to_string()),
            Condition::Helo(_) => facts.helo.unwrap_or("no HELO").to_owned(),
            Condition::Tls(_) => facts.tls.to_string(),
            Condition::During(calendars) => {
                calendars.first().map_or_else(String::new, |calendar| calendar.local(facts.at))
            }
            Condition::Auth(check, _) => match facts.auth {
                Fact::Unknown => NOT_KNOWN.to_owned(),
                Fact::Known(known) => {
                    let result = match check {
                        Check::Spf => known.spf,
                        Check::Dkim => known.dkim,
                        Check::Dmarc => known.dmarc,
                        Check::Arc => known.arc,
                    };
                    result.unwrap_or("not checked").to_owned()
                }
            },
            Condition::Score(_) => match facts.score {
                Fact::Unknown => NOT_KNOWN.to_owned(),
                Fact::Known(score) => score.map_or_else(|| "no score".to_owned(), |score| format!("{score:.1}")),
            },
            Condition::Is(_) | Condition::All(_) | Condition::Any(_) | Condition::Not(_) => self.blame(condition).1,
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
            | Condition::Attachment(_) => match facts.message {
                Fact::Unknown => NOT_KNOWN.to_owned(),
                Fact::Known(message) => saw_of(condition, message),
            },
        }
    }
}

fn sender_key_shown(facts: &Facts<'_>) -> String {
    if facts.sender.mailbox().is_none() { sender_key(facts.sender) } else { facts.sender.to_string() }
}

fn saw_of(condition: &Condition, message: &Reading) -> String {
    match condition {
        Condition::From(_) | Condition::FromMatches(_) | Condition::FromIn(_) | Condition::FromDomain(_) => {
            listed(message.from.iter().map(ToString::to_string), "no From address")
        }
        Condition::Automatic(_) => message.automatic.to_string(),
        Condition::ListMail(_) => message.list.to_string(),
        Condition::Size(_) => format!("{} octets", message.size),
        Condition::Field(fields) => {
            let named = |name: &String| fields.iter().any(|field| field.name == *name);
            let values =
                message.fields.iter().filter(|(name, _)| named(name)).map(|(name, value)| format!("{name}: {value}"));
            listed(values, "no such field")
        }
        Condition::Subject(_) => message.subject.clone(),
        Condition::Body(_) => match message.text_is_cut {
            true => format!("{} octets of text, and more that was not looked at", message.text.len()),
            false => format!("{} octets of text", message.text.len()),
        },
        Condition::Attachment(_) => {
            let shown = message.attachments.iter().map(|attachment| {
                let name = if attachment.name.is_empty() { "an unnamed part" } else { &attachment.name };
                format!("{name} ({}, {} octets)", attachment.kind, attachment.size)
            });
            listed(shown, "nothing attached")
        }
        _ => String::new(),
    }
}

fn listed(values: impl Iterator<Item = String>, none: &str) -> String {
    let values: Vec<String> = values.take(SHOWN_TABLES_MAX).collect();
    if values.is_empty() { none.to_owned() } else { values.join(", ") }
}

const NOT_KNOWN: &str = "not known yet";
const SHOWN_TABLES_MAX: usize = 5;
