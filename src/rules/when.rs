//! The conditions of a rule as typed.
//!
//! A key that is not there is `None`, and one that is there has at least one value.

use crate::address::{Domain, Mailbox, ReversePath};
use crate::diagnostic::Placed;
use crate::document::{Section, Value};
use crate::network::Network;
use crate::units;

use super::AuthFacts;
use super::pattern::Pattern;
use super::set::{Scores, Sizes};
use super::syntax::sender;

/// A table of conditions, all of which must hold.
#[derive(Debug, Default)]
pub struct When {
    pub recipient: Option<Vec<Placed<Mailbox>>>,
    pub recipient_matches: Option<Vec<Placed<Pattern>>>,
    pub recipient_in: Option<Vec<Placed<String>>>,
    pub recipient_domain: Option<Vec<Placed<Domain>>>,
    pub recipient_tag: Option<Vec<Placed<String>>>,
    pub sender: Option<Vec<Placed<ReversePath>>>,
    pub sender_matches: Option<Vec<Placed<Pattern>>>,
    pub sender_in: Option<Vec<Placed<String>>>,
    pub sender_domain: Option<Vec<Placed<Domain>>>,
    pub from: Option<Vec<Placed<Mailbox>>>,
    pub from_matches: Option<Vec<Placed<Pattern>>>,
    pub from_in: Option<Vec<Placed<String>>>,
    pub from_domain: Option<Vec<Placed<Domain>>>,
    pub client: Option<Vec<Placed<Network>>>,
    pub helo: Option<Vec<Placed<String>>>,
    pub tls: Option<Placed<bool>>,
    pub during: Option<Vec<Placed<String>>>,
    pub spf: Option<Vec<Placed<&'static str>>>,
    pub dkim: Option<Vec<Placed<&'static str>>>,
    pub dmarc: Option<Vec<Placed<&'static str>>>,
    pub arc: Option<Vec<Placed<&'static str>>>,
    pub score: Option<Vec<Placed<Scores>>>,
    pub automatic: Option<Placed<bool>>,
    pub list_mail: Option<Placed<bool>>,
    pub size: Option<Vec<Placed<Sizes>>>,
    pub header: Option<Vec<FieldEntry>>,
    pub subject_matches: Option<Vec<Placed<Pattern>>>,
    pub body_matches: Option<Vec<Placed<Pattern>>>,
    pub attachment: Option<Vec<AttachmentEntry>>,
    /// Names of `[condition]`s.
    pub is: Option<Vec<Placed<String>>>,
    pub all: Option<Vec<When>>,
    pub any: Option<Vec<When>>,
    /// None of them holds.
    pub not: Option<Vec<When>>,
}

/// A header field: `{ name = "X-Order", matches = '^\d+$' }`; without `matches` it is enough that it is there.
#[derive(Debug)]
pub struct FieldEntry {
    /// In lower case.
    pub name: String,
    pub matches: Option<Vec<Placed<Pattern>>>,
}

/// An attachment of which all that is said holds; `{}` is any attachment.
#[derive(Debug, Default)]
pub struct AttachmentEntry {
    pub name_matches: Option<Vec<Placed<Pattern>>>,
    /// As declared or as detected, in lower case; `image/*` is every subtype.
    pub kinds: Option<Vec<Placed<String>>>,
    pub size: Option<Vec<Placed<Sizes>>>,
    /// Of a name inside a zip archive.
    pub inside_matches: Option<Vec<Placed<Pattern>>>,
}

impl When {
    /// Reads the table. What is wrong is reported.
    pub(super) fn read(section: Section<'_>) -> When {
        When::read_within(section, 0)
    }

    fn read_within(mut section: Section<'_>, depth: usize) -> When {
        let when = When {
            recipient: any_of(section.take("recipient"), |v| v.parsed(Mailbox::parse)),
            recipient_matches: patterns(section.take("recipient-matches")),
            recipient_in: any_of(section.take("recipient-in"), Value::string),
            recipient_domain: any_of(section.take("recipient-domain"), |v| v.parsed(Domain::parse)),
            recipient_tag: any_of(section.take("recipient-tag"), Value::string),
            sender: any_of(section.take("sender"), |v| v.parsed(sender)),
            sender_matches: patterns(section.take("sender-matches")),
            sender_in: any_of(section.take("sender-in"), Value::string),
            sender_domain: any_of(section.take("sender-domain"), |v| v.parsed(Domain::parse)),
            from: any_of(section.take("from"), |v| v.parsed(Mailbox::parse)),
            from_matches: patterns(section.take("from-matches")),
            from_in: any_of(section.take("from-in"), Value::string),
            from_domain: any_of(section.take("from-domain"), |v| v.parsed(Domain::parse)),
            client: any_of(section.take("client"), |v| v.parsed(Network::parse)),
            helo: any_of(section.take("helo"), Value::string),
            tls: section.take("tls").and_then(|v| v.boolean()),
            during: any_of(section.take("during"), Value::string),
            spf: any_of(section.take("spf"), |v| word(v, SPF_WORDS)),
            dkim: any_of(section.take("dkim"), |v| word(v, DKIM_WORDS)),
            dmarc: any_of(section.take("dmarc"), |v| word(v, DMARC_WORDS)),
            arc: any_of(section.take("arc"), |v| word(v, ARC_WORDS)),
            score: any_of(section.take("score"), |v| scores(v)),
            automatic: section.take("automatic").and_then(|v| v.boolean()),
            list_mail: section.take("list-mail").and_then(|v| v.boolean()),
            size: any_of(section.take("size"), |v| v.parsed(sizes)),
            header: any_of(section.take("header"), field),
            subject_matches: searches(section.take("subject-matches")),
            body_matches: searches(section.take("body-matches")),
            attachment: any_of(section.take("attachment"), attachment),
            is: any_of(section.take("is"), Value::string),
            all: nested(section.take("all"), depth),
            any: nested(section.take("any"), depth),
            not: nested(section.take("not"), depth),
        };
        section.finish();
        when
    }

    /// How many conditions the table has itself.
    pub(super) fn count(&self) -> usize {
        [
            self.recipient.is_some(),
            self.recipient_matches.is_some(),
            self.recipient_in.is_some(),
            self.recipient_domain.is_some(),
            self.recipient_tag.is_some(),
            self.sender.is_some(),
            self.sender_matches.is_some(),
            self.sender_in.is_some(),
            self.sender_domain.is_some(),
            self.from.is_some(),
            self.from_matches.is_some(),
            self.from_in.is_some(),
            self.from_domain.is_some(),
            self.client.is_some(),
            self.helo.is_some(),
            self.tls.is_some(),
            self.during.is_some(),
            self.spf.is_some(),
            self.dkim.is_some(),
            self.dmarc.is_some(),
            self.arc.is_some(),
            self.score.is_some(),
            self.automatic.is_some(),
            self.list_mail.is_some(),
            self.size.is_some(),
            self.header.is_some(),
            self.subject_matches.is_some(),
            self.body_matches.is_some(),
            self.attachment.is_some(),
            self.is.is_some(),
            self.all.is_some(),
            self.any.is_some(),
            self.not.is_some(),
        ]
        .into_iter()
        .filter(|there| *there)
        .count()
    }

    /// This table and all that stand within it.
    pub(super) fn tables(&self) -> Vec<&When> {
        let within = [&self.all, &self.any, &self.not];
        let within = within.into_iter().flatten().flatten().flat_map(When::tables);
        std::iter::once(self).chain(within).collect()
    }
}

fn any_of<'d, T>(value: Option<Value<'d>>, read: impl Fn(&Value<'d>) -> Option<T>) -> Option<Vec<T>> {
    let value = value?;
    let values = value.one_or_many();
    if values.is_empty() {
        value.wrong("an empty array never holds; leave the key out or name a value");
    }
    Some(values.iter().filter_map(read).collect())
}

/// Of addresses: they match the whole.
fn patterns(value: Option<Value<'_>>) -> Option<Vec<Placed<Pattern>>> {
    any_of(value, |v| v.parsed(Pattern::parse))
}

/// Of text: they match somewhere.
fn searches(value: Option<Value<'_>>) -> Option<Vec<Placed<Pattern>>> {
    any_of(value, |v| v.parsed(Pattern::parse_search))
}

fn nested(value: Option<Value<'_>>, depth: usize) -> Option<Vec<When>> {
    any_of(value, |v| {
        if depth == DEPTH_MAX {
            v.wrong(format!("conditions stand at most {DEPTH_MAX} levels deep; name them in `[condition]`"));
            return None;
        }
        if v.is_drawn_elsewhere("when") {
            return None;
        }
        let place = v.place();
        let section = v.section()?;
        let document = section.document();
        let when = When::read_within(section, depth + 1);
        if when.count() == 0 {
            let empty = crate::diagnostic::Diagnostic::error("a table of conditions is empty").at(&place);
            document.report(empty.label("it would always hold"));
        }
        Some(when)
    })
}

fn field(value: &Value<'_>) -> Option<FieldEntry> {
    if value.is_string() {
        let name = value.parsed(field_name)?.value;
        return Some(FieldEntry { name, matches: None });
    }
    let mut section = value.section()?;
    let name = section.require("name").and_then(|v| v.parsed(field_name));
    let matches = searches(section.take("matches"));
    section.finish();
    Some(FieldEntry { name: name?.value, matches })
}

/// RFC 5322 §2.2, in lower case.
fn field_name(text: &str) -> Result<String, &'static str> {
    let is_name = !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic() && b != b':');
    if is_name { Ok(text.to_ascii_lowercase()) } else { Err("expected the name of a header field, such as `X-Order`") }
}

fn attachment(value: &Value<'_>) -> Option<AttachmentEntry> {
    let mut section = value.section()?;
    let entry = AttachmentEntry {
        name_matches: searches(section.take("name-matches")),
        kinds: any_of(section.take("type"), |v| v.parsed(kind)),
        size: any_of(section.take("size"), |v| v.parsed(sizes)),
        inside_matches: searches(section.take("inside-matches")),
    };
    section.finish();
    Some(entry)
}

fn kind(text: &str) -> Result<String, &'static str> {
    match text.split_once('/') {
        Some((kind, subtype)) if !kind.is_empty() && !subtype.is_empty() => Ok(text.to_ascii_lowercase()),
        Some(_) | None => Err("expected a media type, such as `application/pdf` or `image/*`"),
    }
}

/// `">=10MiB"`, `"<1MiB"`; a size alone is the least that holds.
pub(super) fn sizes(text: &str) -> Result<Sizes, String> {
    if let Some(bound) = text.strip_prefix('<') {
        return units::size(bound.trim()).map(Sizes::Below);
    }
    units::size(text.strip_prefix(">=").unwrap_or(text).trim()).map(Sizes::AtLeast)
}

/// A number, which is the least that holds, or `">=8.0"`, `"<5.0"`.
fn scores(value: &Value<'_>) -> Option<Placed<Scores>> {
    if !value.is_string() {
        let least = value.number()?;
        return Some(Placed { value: Scores::AtLeast(least.value), place: least.place });
    }
    let number = |text: &str| text.trim().parse::<f64>().ok().filter(|number| number.is_finite());
    value.parsed(|text| {
        let at_least = text.strip_prefix(">=").and_then(number).map(Scores::AtLeast);
        let range = at_least.or_else(|| text.strip_prefix('<').and_then(number).map(Scores::Below));
        range.ok_or("expected a score, such as `8.0`, `\">=8.0\"` or `\"<5.0\"`")
    })
}

pub(super) fn word(value: &Value<'_>, words: &[&'static str]) -> Option<Placed<&'static str>> {
    let pairs: Vec<(&str, &'static str)> = words.iter().map(|word| (*word, *word)).collect();
    value.choice(&pairs)
}

impl AuthFacts {
    /// Results as they were recorded; a word that conditions do not know is none of theirs.
    #[must_use]
    pub fn recorded(spf: Option<&str>, dkim: Option<&str>, dmarc: Option<&str>, arc: Option<&str>) -> AuthFacts {
        let known =
            |word: Option<&str>, words: &[&'static str]| words.iter().copied().find(|known| word == Some(known));
        AuthFacts {
            spf: known(spf, SPF_WORDS),
            dkim: known(dkim, DKIM_WORDS),
            dmarc: known(dmarc, DMARC_WORDS),
            arc: known(arc, ARC_WORDS),
        }
    }
}

// RFC 8601 §2.7 and RFC 8617 §4.1.
pub(super) const SPF_WORDS: &[&str] =
    &["none", "pass", "fail", "softfail", "neutral", "policy", "temperror", "permerror"];
pub(super) const DKIM_WORDS: &[&str] = &["none", "pass", "fail", "policy", "neutral", "temperror", "permerror"];
pub(super) const DMARC_WORDS: &[&str] = &["none", "pass", "fail", "temperror", "permerror"];
pub(super) const ARC_WORDS: &[&str] = &["none", "pass", "fail"];
/// Deeper than anybody reads.
const DEPTH_MAX: usize = 8;
