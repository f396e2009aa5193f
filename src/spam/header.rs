//! What speaks against the form of a header: fields that are missing, twice, or not what they say. Pure.
//!
//! Customers write with old programs, shops with home-made ones: what a careless honest sender does counts for little.

use super::evidence::{Evidence, Found};
use crate::message::content::{Author, Content, Date};

pub(super) fn look(evidence: &Evidence<'_>) -> Found {
    let mut found = Found::default();
    let content = &evidence.reading.content;
    let count = |name: &str| evidence.header.fields.iter().filter(|field| field.name == name).count();
    let has = |name: &str| count(name) > 0;
    let is_list = has("list-id") || has("list-unsubscribe") || has("list-post");

    found.note("no-from", 2.0, content.from.is_empty());
    found.note("no-message-id", 0.5, !has("message-id"));
    found.note("odd-message-id", 1.0, has("message-id") && !is_message_id(&content.message_id));
    found.note("no-date", 1.0, content.date == Date::Absent);
    found.note("odd-date", 1.5, content.date == Date::Unreadable);
    found.note("date-ahead", 1.5, is_ahead(content.date, evidence.received.0 / 1000));
    found.note("no-recipient", 0.5, !has("to") && !has("cc"));
    // RFC 5322 §3.6: once at the most. What two programs read differently is written twice.
    let twice = ["from", "subject", "date", "to", "message-id", "reply-to"].iter().any(|name| count(name) > 1);
    found.note("field-twice", 1.5, twice);
    found.note("subject-capitals", 1.5, is_shouted(&content.subject));
    found.note("subject-gap", 2.5, has_gap(&content.subject));
    found.note("subject-shouts", 1.0, content.subject.matches('!').count() > 1 || content.subject.contains("$$"));
    found.note("name-is-address", 2.0, !is_list && content.from.iter().any(names_another_address));
    found.note("reply-elsewhere", 1.0, !is_list && replies_to_free_mail(content));
    found
}

/// `local@domain`, or at least something on both sides of one `@` (RFC 5322 §3.6.4).
fn is_message_id(id: &str) -> bool {
    let id = id.trim();
    let odd = id.chars().any(|c| c.is_whitespace() || c.is_control());
    !odd && id.split_once('@').is_some_and(|(left, right)| !left.is_empty() && !right.is_empty())
}

/// Beyond any time zone and any clock that somebody looks at.
fn is_ahead(date: Date, now: i64) -> bool {
    matches!(date, Date::At(at) if at > now.saturating_add(AHEAD_SECONDS))
}

/// All its letters, and there are some, are capitals.
fn is_shouted(subject: &str) -> bool {
    let (mut capitals, mut words) = (0, 0);
    for word in subject.split_whitespace() {
        if word.chars().any(char::is_lowercase) {
            return false;
        }
        let letters = word.chars().filter(|c| c.is_uppercase()).count();
        capitals += letters;
        // `RE: PROJ-117 VAT` is no shouting.
        words += usize::from(letters > 3 && word.chars().all(|c| c.is_alphabetic() || c.is_ascii_punctuation()));
    }
    capitals > 10 && words > 1
}

/// A long run of blanks, and behind it what makes each copy different.
fn has_gap(subject: &str) -> bool {
    let trimmed = subject.trim();
    let gap = trimmed.find("      ");
    gap.is_some_and(|at| !trimmed[at..].trim_start().contains(char::is_whitespace))
}

/// The display name shows an address that is not the sender's: most programs show nothing else.
fn names_another_address(author: &Author) -> bool {
    let shown =
        author.name.split(|c: char| c.is_whitespace() || "<>()\"',;".contains(c)).find(|word| word.contains('@'));
    let Some((_, shown)) = shown.and_then(|word| word.rsplit_once('@')) else { return false };
    let (shown, real) = (shown.trim_end_matches('.').to_lowercase(), author.domain());
    let related = |a: &str, b: &str| a == b || a.ends_with(&format!(".{b}"));
    shown.contains('.') && !real.is_empty() && !related(&shown, &real) && !related(&real, &shown)
}

/// Answers go to a mailbox that anybody can have, and the sender is somebody else.
fn replies_to_free_mail(content: &Content) -> bool {
    let Some(reply) = content.reply_to.as_ref().map(Author::domain) else { return false };
    let free = |domain: &str| FREE_MAIL.contains(&domain);
    free(&reply) && content.from.first().is_some_and(|from| from.domain() != reply)
}

const AHEAD_SECONDS: i64 = 2 * 24 * 60 * 60;
/// Mailboxes for whoever asks, by the number of people who do.
const FREE_MAIL: &[&str] = &[
    "gmail.com",
    "yahoo.com",
    "hotmail.com",
    "outlook.com",
    "aol.com",
    "mail.ru",
    "yandex.ru",
    "yandex.com",
    "gmx.com",
    "gmx.net",
    "gmx.de",
    "web.de",
    "live.com",
    "msn.com",
    "protonmail.com",
    "proton.me",
    "icloud.com",
    "yahoo.co.uk",
    "yahoo.fr",
    "orange.fr",
    "free.fr",
    "qq.com",
    "163.com",
    "126.com",
    "mail.com",
    "zoho.com",
    "excite.com",
    "lycos.com",
    "netscape.net",
];
