//! The `[[test]]`s of a rules file as typed: what is given, and what is expected.

use std::net::IpAddr;

use crate::address::{Mailbox, ReversePath};
use crate::clock::Timestamp;
use crate::diagnostic::{Place, Placed};
use crate::document::{Section, Value};
use crate::message::reading::{Attachment, Reading};
use crate::units;

use super::facts::AuthFacts;
use super::syntax::{sender, strings};
use super::when::{ARC_WORDS, DKIM_WORDS, DMARC_WORDS, SPF_WORDS, word};

/// A `[[test]]`.
#[derive(Debug)]
pub struct TestEntry {
    pub name: Placed<String>,
    pub recipient: Mailbox,
    pub sender: ReversePath,
    pub client: Option<IpAddr>,
    pub helo: Option<String>,
    pub tls: bool,
    pub at: Timestamp,
    pub auth: AuthFacts,
    /// `None`: no score was made.
    pub score: Option<f64>,
    pub message: Reading,
    pub expect: Expect,
    pub place: Place,
}

#[derive(Debug, Default)]
pub struct Expect {
    pub rules: Option<Vec<Placed<String>>>,
    pub legs: Option<Vec<Placed<String>>>,
    /// Of the legs, those that the score has marked, quarantined, omitted.
    pub tagged: Option<Vec<Placed<String>>>,
    pub quarantined: Option<Vec<Placed<String>>>,
    pub omitted: Option<Vec<Placed<String>>>,
    /// `None`: the mail is relayed.
    pub action: Option<ExpectedAction>,
}

/// An action by its key, and a part of its text where the test names one.
#[derive(Debug)]
pub struct ExpectedAction {
    pub key: &'static str,
    pub text: Option<String>,
}

pub(super) fn test(mut section: Section<'_>) -> Option<TestEntry> {
    let place = section.place();
    let name = section.take("name").and_then(|v| v.string());
    let given = section.require("given").and_then(|v| v.section());
    let expected = section.require("expect").and_then(|v| v.section());
    section.finish();
    let expect = expected.map(expect);
    let mut given = given?;
    let recipient = given.require("recipient").and_then(|v| v.parsed(Mailbox::parse));
    let from = given.take("sender").and_then(|v| v.parsed(sender)).map(|s| s.value);
    let client = given.take("client").and_then(|v| v.parsed(str::parse::<IpAddr>)).map(|c| c.value);
    let helo = given.take("helo").and_then(|v| v.string()).map(|h| h.value);
    let mut result = |key, words| given.take(key).and_then(|v| word(&v, words)).map(|w| w.value);
    let auth = AuthFacts {
        spf: result("spf", SPF_WORDS),
        dkim: result("dkim", DKIM_WORDS),
        dmarc: result("dmarc", DMARC_WORDS),
        arc: result("arc", ARC_WORDS),
    };
    let score = given.take("score").and_then(|v| v.number()).map(|score| score.value);
    let tls = given.take("tls").and_then(|v| v.boolean()).is_some_and(|tls| tls.value);
    let at = given.take("at").and_then(|v| v.parsed(instant)).map(|at| at.value);
    let message = message(&mut given);
    given.finish();
    let default_sender = || sender(TEST_SENDER).expect("the default sender is an address");
    Some(TestEntry {
        name: name.unwrap_or_else(|| Placed { value: place.to_string(), place: place.clone() }),
        recipient: recipient?.value,
        sender: from.unwrap_or_else(default_sender),
        client,
        helo,
        tls,
        at: at.unwrap_or(TEST_TIME),
        auth,
        score,
        message,
        expect: expect?,
        place,
    })
}

/// What a test says of the message; without a word about it, one that has nothing.
fn message(given: &mut Section<'_>) -> Reading {
    let mut text = |key| given.take(key).and_then(|v| v.string()).map(|text| text.value).unwrap_or_default();
    let (subject, body) = (text("subject"), text("body"));
    let mut flag = |key| given.take(key).and_then(|v| v.boolean()).is_some_and(|flag| flag.value);
    let (automatic, list) = (flag("automatic"), flag("list-mail"));
    let from = given.take("from").map(|v| v.one_or_many()).unwrap_or_default();
    let from = from.iter().filter_map(|v| v.parsed(Mailbox::parse)).map(|from| from.value).collect();
    let header = given.section("header");
    let header = header.iter().flat_map(Section::entries);
    let fields = header.filter_map(|(name, value)| Some((name.value.to_ascii_lowercase(), value.string()?.value)));
    let mut fields: Vec<(String, String)> = fields.collect();
    if !subject.is_empty() {
        fields.push(("subject".to_owned(), subject.clone()));
    }
    let size = given.take("size").and_then(|v| v.parsed(units::size)).map_or(0, |size| size.value);
    let attachments = given.take("attachments").map(|v| v.one_or_many()).unwrap_or_default();
    let attachments = attachments.iter().filter_map(Value::section).map(given_attachment).collect();
    Reading { from, fields, subject, text: body, text_is_cut: false, size, attachments, automatic, list }
}

fn given_attachment(mut section: Section<'_>) -> Attachment {
    let mut text =
        |key| section.take(key).and_then(|v| v.string()).map_or_else(String::new, |text| text.value.to_lowercase());
    let (name, kind) = (text("name"), text("type"));
    let size = section.take("size").and_then(|v| v.parsed(units::size)).map_or(0, |size| size.value);
    let inside = section.take("inside").map(|v| strings(&v)).unwrap_or_default();
    section.finish();
    Attachment {
        name,
        kind,
        detected: None,
        size,
        inside: inside.into_iter().map(|n| n.value.to_lowercase()).collect(),
    }
}

/// `2026-12-24T18:00:00+01:00`
fn instant(text: &str) -> Result<Timestamp, &'static str> {
    let instant = text.parse::<jiff::Timestamp>();
    instant.map(|at| Timestamp(at.as_millisecond())).map_err(|_| "expected a time such as `2026-12-24T18:00:00+01:00`")
}

fn expect(mut section: Section<'_>) -> Expect {
    let mut expect = Expect {
        rules: section.take("rules").map(|v| strings(&v)),
        legs: section.take("legs").map(|v| strings(&v)),
        tagged: section.take("tagged").map(|v| strings(&v)),
        quarantined: section.take("quarantined").map(|v| strings(&v)),
        omitted: section.take("omitted").map(|v| strings(&v)),
        action: None,
    };
    for key in ["reject", "quarantine", "hold", "defer", "discard"] {
        let Some(value) = section.take(key) else { continue };
        if expect.action.is_some() {
            value.wrong("a recipient has one fate; another action is expected already");
        }
        // `true`: whatever the text.
        let text = if value.is_bool() { None } else { value.string().map(|t| t.value) };
        if value.is_bool() && value.boolean().is_some_and(|b| !b.value) {
            value.wrong("expected `true` or a part of the text; what is not expected is left out");
        }
        expect.action = Some(ExpectedAction { key, text });
    }
    section.finish();
    expect
}

/// A test that names no sender is about something else than the sender.
const TEST_SENDER: &str = "sender@example.org";
/// And one that names no time about something else than time: 2026-01-01, a holiday almost everywhere.
const TEST_TIME: Timestamp = Timestamp(1_767_225_600_000);
