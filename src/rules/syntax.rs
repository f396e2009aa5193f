//! A rules file as typed: every key that it may have, every value in its own type, and where it stands.
//!
//! What one value can tell alone is checked here (an address is one, a pattern compiles). What needs other entries
//! or other files (a target exists, names are unique) is `parse`'s.

use std::sync::Arc;

use serde_json::{Value as Json, json};

use crate::address::{Domain, Mailbox, ReversePath};
use crate::clock::Timestamp;
use crate::diagnostic::{Diagnostic, Placed, Report, Source};
use crate::document::{Document, Section, Value};
use crate::reply::{Enhanced, Refusal, Reply};
use crate::sketch::Node;

use super::calendar::{self, Calendar};
use super::detours::{self, DetourEntries};
use super::given::{self, TestEntry};
use super::standing::Standing;
use super::when::When;
use super::{Bounces, OnSpam};

/// Everything that stands in one file.
#[derive(Debug, Default)]
pub struct RuleFile {
    pub domains: Vec<DomainEntry>,
    pub targets: Vec<TargetEntry>,
    pub rules: Vec<RuleEntry>,
    pub aliases: Vec<AliasEntry>,
    pub lists: Vec<ListEntry>,
    pub maps: Vec<MapEntry>,
    pub calendars: Vec<Placed<Calendar>>,
    pub conditions: Vec<ConditionEntry>,
    pub tests: Vec<TestEntry>,
    /// Keys whose function is not built yet.
    pub inert: Vec<String>,
}

/// `[domain."…"]`
#[derive(Debug)]
pub struct DomainEntry {
    pub name: Placed<Domain>,
    pub role: Option<Placed<String>>,
    pub mailboxes: Option<Placed<String>>,
    pub catch_all: Option<Placed<String>>,
    pub plus_strip: bool,
}

/// A line of `[target]`.
#[derive(Debug)]
pub struct TargetEntry {
    pub name: Placed<String>,
    pub address: Placed<String>,
    pub route: Option<Placed<String>>,
    pub on_spam: Option<OnSpam>,
    pub bounces: Option<Bounces>,
    pub detours: DetourEntries,
}

/// A `[[rule]]`.
#[derive(Debug)]
pub struct RuleEntry {
    pub name: Placed<String>,
    pub when: When,
    pub body: Body,
    pub continues: bool,
    pub standing: Standing,
}

/// A line of `[alias."…"]`.
#[derive(Debug)]
pub struct AliasEntry {
    pub address: Placed<Mailbox>,
    pub body: Body,
    pub continues: bool,
    pub plus_strip: bool,
    pub standing: Standing,
}

/// What a rule does.
#[derive(Debug, Default)]
pub struct Body {
    pub to: Option<Placed<String>>,
    pub to_local: Option<Placed<String>>,
    pub to_domain: Option<Placed<Domain>>,
    pub also: Vec<AlsoEntry>,
    pub route: Option<Placed<String>>,
    pub on_spam: Option<OnSpam>,
    pub bounces: Option<Bounces>,
    pub detours: DetourEntries,
    pub onboarding_until: Option<Timestamp>,
    pub reject: Option<Refusal>,
    pub defer: Option<Refusal>,
    pub quarantine: Option<String>,
    pub hold: Option<String>,
    pub discard: Option<String>,
}

/// A copy: a target, and what is said of this copy alone.
#[derive(Debug)]
pub struct AlsoEntry {
    pub to: Placed<String>,
    pub route: Option<Placed<String>>,
    pub on_spam: Option<OnSpam>,
    pub bounces: Option<Bounces>,
}

/// A line of `[list]`.
#[derive(Debug)]
pub struct ListEntry {
    pub name: Placed<String>,
    pub members: Vec<Placed<Member>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Member {
    Address(ReversePath),
    /// `*@domain`
    Domain(Domain),
    /// `file:customers.csv`
    File(String),
    /// `list:partners`
    List(String),
}

/// A `[map]`.
#[derive(Debug)]
pub struct MapEntry {
    pub name: Placed<String>,
    pub file: Placed<String>,
    /// Of entries that have none.
    pub domain: Option<Placed<Domain>>,
}

/// A line of `[condition]`.
#[derive(Debug)]
pub struct ConditionEntry {
    pub name: Placed<String>,
    pub when: When,
}

/// Reads one file. What is wrong goes into `report`, the rest into the result.
pub fn read(source: &Arc<Source>, report: &mut Report) -> RuleFile {
    let mut file = RuleFile::default();
    let document = match Document::parse(source) {
        Ok(document) => document,
        Err(syntax) => {
            report.append(syntax);
            return file;
        }
    };
    read_all(document.root(), &mut file);
    report.append(document.into_report());
    file
}

/// What a rules file may hold, as JSON Schema.
#[must_use]
pub fn schema() -> Json {
    let root = Node::default();
    let nothing = Source::new("", "");
    for yes in [false, true] {
        read_all(Document::sketch(&nothing, &root, yes).root(), &mut RuleFile::default());
    }
    let root = root.borrow();
    let mut schema = root.json();
    schema["$schema"] = json!("http://json-schema.org/draft-07/schema#");
    schema["title"] = json!("Rules of Pointsman");
    schema["definitions"] = json!({ "when": root.at(&["rule", "when"]) });
    schema
}

fn read_all(mut root: Section<'_>, file: &mut RuleFile) {
    for (name, value) in root.section("domain").iter().flat_map(Section::entries) {
        file.domains.extend(domain(&name, &value));
    }
    for (name, value) in root.section("target").iter().flat_map(Section::entries) {
        file.targets.extend(target(name, &value));
    }
    for section in root.sections("rule") {
        let entry = rule(section, &mut file.inert);
        file.rules.push(entry);
    }
    for (domain, value) in root.section("alias").iter().flat_map(Section::entries) {
        for (local, value) in value.section().iter().flat_map(Section::entries) {
            file.aliases.extend(alias(&domain, &local, &value, &mut file.inert));
        }
    }
    for (name, value) in root.section("list").iter().flat_map(Section::entries) {
        let members = value.one_or_many().iter().filter_map(|v| v.parsed(member)).collect();
        file.lists.push(ListEntry { name, members });
    }
    for (name, value) in root.section("map").iter().flat_map(Section::entries) {
        file.maps.extend(value.section().and_then(|section| map(name, section)));
    }
    for (name, value) in root.section("calendar").iter().flat_map(Section::entries) {
        file.calendars.extend(value.section().and_then(|section| calendar(name, section)));
    }
    for (name, value) in root.section("condition").iter().flat_map(Section::entries) {
        let when = value.section().map(When::read);
        file.conditions.extend(when.map(|when| ConditionEntry { name, when }));
    }
    for section in root.sections("test") {
        file.tests.extend(given::test(section));
    }
    root.finish();
}

fn domain(name: &Placed<String>, value: &Value<'_>) -> Option<DomainEntry> {
    let mut section = value.section()?;
    let parsed = Domain::parse(&name.value);
    if let Err(error) = &parsed {
        let wrong = Diagnostic::error(format!("`{}` is not a domain", name.value)).at(&name.place);
        section.document().report(wrong.label(error.to_string()));
    }
    let role = section.take("role").and_then(|v| v.string());
    let mailboxes = section.take("mailboxes").and_then(|v| v.string());
    let catch_all = section.take("catch-all").and_then(|v| v.string());
    let plus_strip = plus(&mut section);
    section.finish();
    let name = Placed { value: parsed.ok()?, place: name.place.clone() };
    Some(DomainEntry { name, role, mailboxes, catch_all, plus_strip })
}

fn plus(section: &mut Section<'_>) -> bool {
    let words = [("literal", false), ("strip", true)];
    section.take("plus").and_then(|v| v.choice(&words)).is_some_and(|strip| strip.value)
}

fn target(name: Placed<String>, value: &Value<'_>) -> Option<TargetEntry> {
    if !value.is_table() {
        let address = value.string()?;
        let detours = DetourEntries::default();
        return Some(TargetEntry { name, address, route: None, on_spam: None, bounces: None, detours });
    }
    let mut section = value.section()?;
    let address = section.require("address").and_then(|v| v.string());
    let route = section.take("route").and_then(|v| v.string());
    let on_spam = on_spam(&mut section);
    let bounces = bounces(&mut section);
    let detours = detours::read(&mut section);
    section.finish();
    Some(TargetEntry { name, address: address?, route, on_spam, bounces, detours })
}

fn on_spam(section: &mut Section<'_>) -> Option<OnSpam> {
    section.take("on-spam").and_then(|v| v.choice(ON_SPAM)).map(|word| word.value)
}

fn bounces(section: &mut Section<'_>) -> Option<Bounces> {
    section.take("bounces").and_then(|v| v.choice(BOUNCES)).map(|word| word.value)
}

fn rule(mut section: Section<'_>, inert: &mut Vec<String>) -> RuleEntry {
    // A rule without a name is called by its place, which is as unique and as easy to find.
    let place = section.place();
    let name = section.take("name").and_then(|v| v.string()).filter(|name| !name.value.is_empty());
    let name = name.unwrap_or_else(|| Placed { value: place.to_string(), place });
    let when = section.section("when").map(When::read).unwrap_or_default();
    let body = body(&mut section, inert);
    let continues = continues(&mut section);
    let standing = Standing::read(&mut section);
    section.finish();
    RuleEntry { name, when, body, continues, standing }
}

fn alias(
    domain: &Placed<String>,
    local: &Placed<String>,
    value: &Value<'_>,
    inert: &mut Vec<String>,
) -> Option<AliasEntry> {
    let mut section = value.section()?;
    let text = format!("{}@{}", local.value, domain.value);
    let address = Mailbox::parse(&text);
    if let Err(error) = &address {
        let wrong = Diagnostic::error(format!("`{text}` is not an address")).at(&local.place);
        section.document().report(wrong.label(error.to_string()));
    }
    let body = body(&mut section, inert);
    let continues = continues(&mut section);
    let plus_strip = plus(&mut section);
    let standing = Standing::read(&mut section);
    section.finish();
    let address = Placed { value: address.ok()?, place: local.place.clone() };
    Some(AliasEntry { address, body, continues, plus_strip, standing })
}

fn continues(section: &mut Section<'_>) -> bool {
    section.take("continue").and_then(|v| v.boolean()).is_some_and(|c| c.value)
}

fn body(section: &mut Section<'_>, inert: &mut Vec<String>) -> Body {
    let body = Body {
        to: section.take("to").and_then(|v| v.string()),
        to_local: section.take("to-local").and_then(|v| v.string()),
        to_domain: section.take("to-domain").and_then(|v| v.parsed(Domain::parse)),
        also: section.take("also").map(|v| v.one_or_many().iter().filter_map(also).collect()).unwrap_or_default(),
        route: section.take("route").and_then(|v| v.string()),
        on_spam: on_spam(section),
        bounces: bounces(section),
        detours: detours::read(section),
        onboarding_until: section
            .take("onboarding-until")
            .and_then(|v| v.parsed(detours::end_of_day))
            .map(|end| end.value),
        reject: section.take("reject").and_then(|v| refusal(&v, REJECT)),
        defer: section.take("defer").and_then(|v| refusal(&v, DEFER)),
        quarantine: section.take("quarantine").and_then(|v| reason(&v)),
        hold: section.take("hold").and_then(|v| reason(&v)),
        discard: section.take("discard").and_then(|v| reason(&v)),
    };
    if section.take("tags").is_some_and(|v| !strings(&v).is_empty()) {
        inert.push("tags".to_owned());
    }
    // Named by the design; they make a second body, which is not built yet.
    for key in ["subject-prefix", "strip-attachments"] {
        if section.take(key).is_some() {
            inert.push(key.to_owned());
        }
    }
    body
}

fn also(value: &Value<'_>) -> Option<AlsoEntry> {
    if !value.is_table() {
        return Some(AlsoEntry { to: value.string()?, route: None, on_spam: None, bounces: None });
    }
    let mut section = value.section()?;
    let to = section.require("to").and_then(|v| v.string());
    let route = section.take("route").and_then(|v| v.string());
    let (on_spam, bounces) = (on_spam(&mut section), bounces(&mut section));
    section.finish();
    Some(AlsoEntry { to: to?, route, on_spam, bounces })
}

pub(super) fn strings(value: &Value<'_>) -> Vec<Placed<String>> {
    value.one_or_many().iter().filter_map(Value::string).collect()
}

/// Why, in the administrator's words.
fn reason(value: &Value<'_>) -> Option<String> {
    let text = value.string()?.value;
    if text.is_empty() {
        value.wrong("expected the reason in a few words, as `trace` will show it");
        return None;
    }
    Some(text)
}

/// What a refusal is when only its text is given, and the class that it must keep.
#[derive(Clone, Copy)]
struct RefusalKind {
    code: u16,
    enhanced: Enhanced,
}

const REJECT: RefusalKind = RefusalKind { code: 550, enhanced: Enhanced(5, 7, 1) };
const DEFER: RefusalKind = RefusalKind { code: 451, enhanced: Enhanced(4, 7, 1) };

/// `"text"` or `{ code, enhanced, text }`.
fn refusal(value: &Value<'_>, kind: RefusalKind) -> Option<Refusal> {
    if !value.is_table() {
        return refusal_text(value).map(|text| make_refusal(kind.code, kind.enhanced, &text));
    }
    let class = u64::from(kind.code / 100);
    let mut section = value.section()?;
    let code = section.take("code").map(|v| v.integer(class * 100..=class * 100 + 54));
    let enhanced = section.take("enhanced").map(|v| v.parsed(|text| enhanced(text, kind.enhanced.0)));
    let text = section.require("text").and_then(|v| refusal_text(&v));
    section.finish();
    // A value that is there and wrong has been reported; only an absent one gets the default.
    let code = code.map_or(Some(u64::from(kind.code)), |code| code.map(|c| c.value))?;
    let enhanced = enhanced.map_or(Some(kind.enhanced), |enhanced| enhanced.map(|e| e.value))?;
    Some(make_refusal(u16::try_from(code).expect("codes end at 554"), enhanced, &text?))
}

fn make_refusal(code: u16, enhanced: Enhanced, text: &str) -> Refusal {
    Refusal::new(Reply::with_text(code, enhanced, text))
}

fn refusal_text(value: &Value<'_>) -> Option<String> {
    let text = value.string()?.value;
    // RFC 5321 §2.4: replies are ASCII unless the client said SMTPUTF8, which we do not know here.
    if text.is_empty() || text.len() > REFUSAL_OCTETS_MAX || !text.bytes().all(|b| (b' '..=b'~').contains(&b)) {
        value.wrong(format!("expected 1 to {REFUSAL_OCTETS_MAX} printable ASCII characters"));
        return None;
    }
    Some(text)
}

fn enhanced(text: &str, class: u8) -> Result<Enhanced, String> {
    let expected = || format!("expected an enhanced code of class {class}, such as `{class}.7.1`");
    let parts: Vec<&str> = text.split('.').collect();
    let [first, subject, detail] = parts[..] else { return Err(expected()) };
    // RFC 3463 §2: subject and detail have one to three digits.
    let number = |t: &str| t.parse::<u16>().ok().filter(|n| *n <= 999 && !t.starts_with('+'));
    match (number(first), number(subject), number(detail)) {
        (Some(c), Some(subject), Some(detail)) if c == u16::from(class) => Ok(Enhanced(class, subject, detail)),
        _ => Err(expected()),
    }
}

fn calendar(name: Placed<String>, mut section: Section<'_>) -> Option<Placed<Calendar>> {
    let zone = section.require("zone").and_then(|v| v.parsed(calendar::zone));
    let mut read = |key| section.take(key).map(|v| v.one_or_many());
    let days = read("days").map(|days| days.iter().filter_map(|v| v.choice(calendar::DAYS)).map(|d| d.value).collect());
    let hours =
        read("hours").map(|hours| hours.iter().filter_map(|v| v.parsed(calendar::hours)).map(|h| h.value).collect());
    let holidays = read("holidays").unwrap_or_default();
    let holidays = holidays.iter().filter_map(|v| v.parsed(calendar::date)).map(|date| date.value).collect();
    section.finish();
    let value = Calendar {
        name: name.value,
        zone: zone?.value,
        days: days.unwrap_or_else(|| calendar::DAYS.iter().map(|(_, day)| *day).collect()),
        hours: hours.unwrap_or_else(|| vec![calendar::WHOLE_DAY]),
        holidays,
    };
    Some(Placed { value, place: name.place })
}

/// An address, or `<>` for the null sender.
pub(super) fn sender(text: &str) -> Result<ReversePath, String> {
    match text {
        "<>" => Ok(ReversePath::Null),
        "" => Err("the null sender is written `<>`".to_owned()),
        address => ReversePath::parse(address).map_err(|error| error.to_string()),
    }
}

fn map(name: Placed<String>, mut section: Section<'_>) -> Option<MapEntry> {
    let file = section.require("file").and_then(|v| v.string());
    let domain = section.take("domain").and_then(|v| v.parsed(Domain::parse));
    section.finish();
    Some(MapEntry { name, file: file?, domain })
}

pub(super) fn member(text: &str) -> Result<Member, String> {
    for (prefix, make) in [("file:", Member::File as fn(String) -> Member), ("list:", Member::List)] {
        if let Some(name) = text.strip_prefix(prefix) {
            return Ok(make(name.to_owned()));
        }
    }
    match text.strip_prefix("*@") {
        Some(domain) => Domain::parse(domain).map(Member::Domain).map_err(|error| error.to_string()),
        None => sender(text).map(Member::Address),
    }
}

const BOUNCES: &[(&str, Bounces)] =
    &[("sender", Bounces::Sender), ("admin", Bounces::Admin), ("suppress", Bounces::Suppress)];

const ON_SPAM: &[(&str, OnSpam)] =
    &[("deliver", OnSpam::Deliver), ("tag", OnSpam::Tag), ("quarantine", OnSpam::Quarantine), ("omit", OnSpam::Omit)];
/// RFC 5321 §4.5.3.1.5 allows 512 octets a reply line; this leaves room for the codes, and none for a lecture.
const REFUSAL_OCTETS_MAX: usize = 400;

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(text: &str) -> Vec<String> {
        let mut report = Report::default();
        let _ = read(&Source::new("r.toml", text), &mut report);
        report.diagnostics().iter().map(|d| d.message.clone()).collect()
    }

    #[test]
    fn refusals_keep_their_class() {
        for (text, ok) in [
            ("reject = 'no'", true),
            ("reject = { text = 'no' }", true),
            ("reject = { code = 554, enhanced = '5.7.26', text = 'no' }", true),
            ("reject = { code = 451, text = 'no' }", false),
            ("reject = { code = 250, text = 'yes' }", false),
            ("reject = { enhanced = '4.7.1', text = 'no' }", false),
            ("reject = { enhanced = '5.7.1000', text = 'no' }", false),
            ("reject = { code = 550 }", false),
            ("reject = ''", false),
            ("reject = \"a\\nb\"", false),
            ("reject = 'é'", false),
            ("defer = { code = 450, enhanced = '4.2.0', text = 'later' }", true),
            ("defer = { code = 550, text = 'no' }", false),
        ] {
            assert_eq!(findings(&format!("[[rule]]\n{text}\n")).is_empty(), ok, "{text}");
        }
    }

    #[test]
    fn a_refusal_text_at_its_limit_and_one_past_it() {
        let rule = |n| format!("[[rule]]\nreject = '{}'\n", "x".repeat(n));
        assert!(findings(&rule(REFUSAL_OCTETS_MAX)).is_empty());
        assert_eq!(findings(&rule(REFUSAL_OCTETS_MAX + 1)).len(), 1);
    }

    #[test]
    fn conditions_of_every_kind_are_read() {
        let text = "[[rule]]\nto = 'x@y'\nwhen = { recipient = ['a@d', 'b@d'], recipient-matches = 'x.*', \
            recipient-in = 'l', recipient-domain = 'd', sender = '<>', sender-matches = '<>', sender-in = ['l'], \
            sender-domain = ['e'], client = ['10.0.0.0/8', '::1'], helo = 'h', spf = 'pass', dkim = ['fail', 'none'], \
            dmarc = 'none', arc = 'pass' }\n";
        assert_eq!(findings(text), Vec::<String>::new());
    }

    #[test]
    fn wrong_conditions_are_all_told() {
        let text = "[[rule]]\nwhen = { recipient = 'a', sender = '', client = '10.0.0.1/8', dmarc = 'passed', \
            recipient-matches = '(', sender-domain = 7, helo = [], recipent = 'a@d' }\n";
        assert_eq!(findings(text).len(), 8);
    }

    #[test]
    fn list_members_are_addresses_domains_and_the_null_sender() {
        assert_eq!(member("*@Example.COM"), Ok(Member::Domain(Domain::parse("example.com").unwrap())));
        assert_eq!(member("<>"), Ok(Member::Address(ReversePath::Null)));
        assert!(member("*").is_err());
        assert!(member("*@").is_err());
    }
}
