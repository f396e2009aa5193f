//! A line of the table that an administrator copies from Gmail's routing settings, as typed and checked alone.

use std::collections::BTreeMap;

use crate::address::{Mailbox, ReversePath};

use super::re2::{self, Translated};
use super::sheet::{self, Row};

/// A setting of "Default routing", "Routing" or a recipient map.
#[derive(Debug)]
pub(super) struct Setting {
    pub(super) line: u64,
    pub(super) order: f64,
    pub(super) enabled: bool,
    pub(super) name: String,
    pub(super) recipient: Match<Mailbox>,
    pub(super) sender: Match<ReversePath>,
    pub(super) reject: bool,
    pub(super) reject_text: Option<String>,
    pub(super) change_recipient: Option<Mailbox>,
    pub(super) change_username: Option<String>,
    pub(super) change_domain: Option<String>,
    pub(super) also: Vec<Mailbox>,
    /// Name, and hosts where they are given.
    pub(super) route: Option<(String, Vec<String>)>,
    pub(super) reroute_spam: bool,
    pub(super) subject_prefix: Option<String>,
    pub(super) headers: Vec<(String, String)>,
    pub(super) gmail_headers: bool,
    pub(super) remove_attachments: bool,
    pub(super) bypass_spam: bool,
    pub(super) suppress_bounces: bool,
    pub(super) require_tls: bool,
    pub(super) spam_also: bool,
    pub(super) unrecognized_only: bool,
    pub(super) address_list: Option<String>,
}

/// Which addresses a setting is about.
#[derive(Debug)]
pub(super) enum Match<T> {
    All,
    Single(Vec<T>),
    /// As it was written, and translated.
    Pattern(String, Box<Translated>),
    Group(String),
}

/// All settings in the order in which they apply; or every mistake, a sentence each.
pub(super) fn read(text: &str) -> Result<Vec<Setting>, Vec<String>> {
    let rows = sheet::read(text, COLUMNS).map_err(|error| vec![error])?;
    let (mut settings, mut wrong) = (Vec::new(), Vec::new());
    for row in rows {
        let mut cells = Cells { row, wrong: &mut wrong };
        if let Some(setting) = cells.setting() {
            settings.push(setting);
        }
    }
    if !wrong.is_empty() {
        return Err(wrong);
    }
    settings.sort_by(|a, b| a.order.total_cmp(&b.order).then(a.line.cmp(&b.line)));
    Ok(settings)
}

struct Cells<'w> {
    row: Row,
    wrong: &'w mut Vec<String>,
}

impl Cells<'_> {
    fn setting(&mut self) -> Option<Setting> {
        let before = self.wrong.len();
        let line = self.row.line;
        let order = self.text("order").map(|order| order.parse::<f64>().ok().filter(|order| order.is_finite()));
        if order == Some(None) {
            self.complain("order", "expected a number");
        }
        let reject = self.one_of("action", &[("modify", false), ("reject", true)]).unwrap_or(false);
        let setting = Setting {
            line,
            order: order.flatten().unwrap_or(line as f64),
            enabled: self.truth("enabled", true),
            name: self.text("description").unwrap_or_else(|| format!("setting of line {line}")),
            recipient: self.matching(("match", "value"), Mailbox::parse)?,
            sender: self.matching(("sender-match", "sender-value"), sender)?,
            reject,
            reject_text: self.text("reject-text"),
            change_recipient: self.addresses("change-recipient").pop(),
            change_username: self.text("change-username"),
            change_domain: self.text("change-domain"),
            also: self.addresses("also-deliver-to"),
            route: self.text("change-route").map(|route| named_route(&route)),
            reroute_spam: self.truth("reroute-spam", false),
            subject_prefix: self.text("subject-prefix"),
            headers: self.headers(),
            gmail_headers: self.truth("gmail-headers", false),
            remove_attachments: self.truth("remove-attachments", false),
            bypass_spam: self.truth("bypass-spam", false),
            suppress_bounces: self.truth("suppress-bounces", true),
            require_tls: self.truth("require-tls", false),
            spam_also: self.truth("spam-also", false),
            unrecognized_only: self.truth("unrecognized-only", false),
            address_list: self.text("address-list"),
        };
        (self.wrong.len() == before).then_some(setting)
    }

    fn text(&self, column: &str) -> Option<String> {
        self.row.cells.get(column).cloned()
    }

    fn complain(&mut self, column: &str, what: impl std::fmt::Display) {
        self.wrong.push(format!("line {}, {column}: {what}", self.row.line));
    }

    fn truth(&mut self, column: &str, default: bool) -> bool {
        let words = [("yes", true), ("no", false), ("true", true), ("false", false), ("on", true), ("off", false)];
        self.one_of(column, &words).unwrap_or(default)
    }

    fn one_of<T: Copy>(&mut self, column: &str, words: &[(&str, T)]) -> Option<T> {
        let text = self.text(column)?;
        let found = words.iter().find(|(word, _)| text.eq_ignore_ascii_case(word)).map(|(_, value)| *value);
        if found.is_none() {
            let known: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
            self.complain(column, format!("expected {}, and it is `{text}`", known.join(", ")));
        }
        found
    }

    /// Several are separated by spaces, commas or semicolons.
    fn addresses(&mut self, column: &str) -> Vec<Mailbox> {
        let text = self.text(column).unwrap_or_default();
        let mut found = Vec::new();
        for word in words(&text) {
            match Mailbox::parse(word) {
                Ok(address) if !address.domain().is_literal() => found.push(address),
                Ok(_) => self.complain(column, format!("`{word}` names a host, and mail goes to a domain")),
                Err(error) => self.complain(column, format!("`{word}` is no address: {error}")),
            }
        }
        if column == "change-recipient" && found.len() > 1 {
            self.complain(column, "expected one address; further ones belong into also-deliver-to");
        }
        found
    }

    /// `None` where it is wrong, which has been told.
    fn matching<T, E: std::fmt::Display>(
        &mut self,
        (kind, value): (&'static str, &'static str),
        parse: impl Fn(&str) -> Result<T, E>,
    ) -> Option<Match<T>> {
        let kinds = [("all", 0), ("single", 1), ("pattern", 2), ("group", 3)];
        let written = self.row.cells.contains_key(kind);
        let Some(found) = self.one_of(kind, &kinds) else {
            if !written && kind == "match" {
                self.complain(kind, "expected single, pattern, group or all");
            }
            return (!written && kind != "match").then_some(Match::All);
        };
        let text = self.text(value).unwrap_or_default();
        if found != 0 && text.is_empty() {
            self.complain(value, "there is nothing to match");
            return None;
        }
        match found {
            0 => Some(Match::All),
            1 => {
                let parsed: Vec<Result<T, String>> = words(&text)
                    .map(|word| parse(word).map_err(|error| format!("`{word}` is no address: {error}")))
                    .collect();
                let mut all = Vec::new();
                for one in parsed {
                    match one {
                        Ok(address) => all.push(address),
                        Err(error) => self.complain(value, error),
                    }
                }
                (!all.is_empty()).then_some(Match::Single(all))
            }
            2 => match re2::translate(&text) {
                Ok(translated) => Some(Match::Pattern(text, Box::new(translated))),
                Err(error) => {
                    self.complain(value, format!("`{text}` is no pattern here: {error}"));
                    None
                }
            },
            _ => Some(Match::Group(text)),
        }
    }

    /// `Name: value`, several separated by semicolons.
    fn headers(&mut self) -> Vec<(String, String)> {
        let text = self.text("add-headers").unwrap_or_default();
        let mut found = Vec::new();
        for field in text.split(';').map(str::trim).filter(|field| !field.is_empty()) {
            match field.split_once(':') {
                Some((name, value)) => found.push((name.trim().to_owned(), value.trim().to_owned())),
                None => self.complain("add-headers", format!("expected `Name: value`, and it is `{field}`")),
            }
        }
        found
    }
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split([' ', ',', ';', '\n', '\t']).filter(|word| !word.is_empty())
}

fn sender(text: &str) -> Result<ReversePath, crate::address::AddressError> {
    if text == "<>" { Ok(ReversePath::Null) } else { ReversePath::parse(text) }
}

/// `name` or `name=host:port host:port`.
fn named_route(text: &str) -> (String, Vec<String>) {
    let (name, hosts) = text.split_once('=').unwrap_or((text, ""));
    (super::draft::slug(name), words(hosts).map(str::to_owned).collect())
}

/// By what a cell is about; shown in docs/import.md.
pub(super) const COLUMNS: &[&str] = &[
    "order",
    "enabled",
    "description",
    "match",
    "value",
    "sender-match",
    "sender-value",
    "action",
    "reject-text",
    "change-recipient",
    "change-username",
    "change-domain",
    "also-deliver-to",
    "change-route",
    "reroute-spam",
    "subject-prefix",
    "add-headers",
    "gmail-headers",
    "remove-attachments",
    "bypass-spam",
    "spam-also",
    "suppress-bounces",
    "require-tls",
    "unrecognized-only",
    "address-list",
];

/// The settings by what they are about, for those who look an address up.
pub(super) fn by_single(settings: &[Setting]) -> BTreeMap<String, Vec<&Setting>> {
    let mut found: BTreeMap<String, Vec<&Setting>> = BTreeMap::new();
    for setting in settings {
        if let Match::Single(addresses) = &setting.recipient {
            addresses.iter().for_each(|address| found.entry(address.key()).or_default().push(setting));
        }
    }
    found
}
