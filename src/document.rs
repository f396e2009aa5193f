//! A TOML file read key by key, so that every mistake in it is found in one run and drawn where it stands.
//!
//! serde stops at the first error and loses places in untagged values. Here a reader asks a [`Section`] for the keys
//! that it knows; what it asked for is, by that alone, what would have been accepted. A wrong value is reported and
//! then treated as absent, so that reading goes on. [`Section::finish`] reports the keys that nobody asked for.
//!
//! Left out: what keys mean. That is `rules::syntax`' and `config::raw`'s.

use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::diagnostic::{Diagnostic, Place, Placed, Report, Source};
use crate::sketch::{Node, Shape};

/// A file whose syntax is right, and what was found to be wrong with it beyond.
pub struct Document<'s> {
    source: Arc<Source>,
    root: Spanned<DeTable<'s>>,
    // Sections and values of one document are alive at the same time and all report.
    report: RefCell<Report>,
    /// There is no file: what is asked for is noted.
    sketch: Option<Sketch>,
}

/// A document that draws itself. Where a reader asks what a value is, the answer is `yes`: who draws asks both ways.
struct Sketch {
    root: Node,
    yes: bool,
}

impl<'s> Document<'s> {
    /// All syntax errors at once where there are any: meaning is not looked for in a file that is not TOML.
    pub fn parse(source: &'s Arc<Source>) -> Result<Document<'s>, Report> {
        let (root, errors) = DeTable::parse_recoverable(&source.text);
        if errors.is_empty() {
            return Ok(Document { source: source.clone(), root, report: RefCell::default(), sketch: None });
        }
        let mut report = Report::default();
        for error in errors {
            let span = error.span().unwrap_or(0..0);
            report.add(Diagnostic::error(error.message()).at(&Place { source: source.clone(), span }));
        }
        Err(report)
    }

    /// A document that notes in `root` what a reader asks of it. To be read twice, with both answers to what a value is.
    #[must_use]
    pub fn sketch(source: &'s Arc<Source>, root: &Node, yes: bool) -> Document<'s> {
        let (table, _) = DeTable::parse_recoverable("");
        let sketch = Some(Sketch { root: Rc::clone(root), yes });
        Document { source: source.clone(), root: table, report: RefCell::default(), sketch }
    }

    #[must_use]
    pub fn root(&self) -> Section<'_> {
        let sketched = self.sketch.as_ref().map(|sketch| Rc::clone(&sketch.root));
        Section::new(self, String::new(), 0..0, self.root.get_ref(), sketched)
    }

    pub fn report(&self, diagnostic: Diagnostic) {
        self.report.borrow_mut().add(diagnostic);
    }

    #[must_use]
    pub fn into_report(self) -> Report {
        self.report.into_inner()
    }

    fn place(&self, span: Range<usize>) -> Place {
        Place { source: self.source.clone(), span }
    }
}

/// A table whose keys are known by name, or ([`Section::entries`]) chosen by the administrator.
pub struct Section<'d> {
    document: &'d Document<'d>,
    name: String,
    span: Range<usize>,
    table: &'d DeTable<'d>,
    known: Vec<&'static str>,
    sketched: Option<Node>,
}

impl<'d> Section<'d> {
    fn new(
        document: &'d Document<'d>,
        name: String,
        span: Range<usize>,
        table: &'d DeTable<'d>,
        sketched: Option<Node>,
    ) -> Section<'d> {
        if let Some(node) = &sketched {
            node.borrow_mut().table();
        }
        Section { document, name, span, table, known: Vec::new(), sketched }
    }

    /// Where the table stands.
    #[must_use]
    pub fn place(&self) -> Place {
        self.document.place(self.span.clone())
    }

    #[must_use]
    pub fn document(&self) -> &'d Document<'d> {
        self.document
    }

    /// The value of a key that this table may have.
    pub fn take(&mut self, key: &'static str) -> Option<Value<'d>> {
        self.known.push(key);
        if let Some(node) = &self.sketched {
            return Some(self.sketched_value(key, node.borrow_mut().key(key)));
        }
        let (found, value) = self.table.get_key_value(key)?;
        Some(self.value(found.get_ref(), value))
    }

    /// A key that must be there; its absence is reported.
    pub fn require(&mut self, key: &'static str) -> Option<Value<'d>> {
        let value = self.take(key);
        if let Some(node) = &self.sketched {
            node.borrow_mut().require(key);
        }
        if value.is_none() {
            let section = if self.name.is_empty() { "the file".to_owned() } else { format!("`{}`", self.name) };
            let mut missing = Diagnostic::error(format!("{section} has no `{key}`"));
            // An empty span at the start of a file would point at nothing.
            missing = missing.at(&self.place()).label(format!("`{key}` is missing"));
            self.document.report(missing);
        }
        value
    }

    /// The table at `key`, where there is one.
    pub fn section(&mut self, key: &'static str) -> Option<Section<'d>> {
        self.take(key).and_then(|value| value.section())
    }

    /// The tables of `[[key]]`.
    pub fn sections(&mut self, key: &'static str) -> Vec<Section<'d>> {
        self.take(key).map(|value| value.sections()).unwrap_or_default()
    }

    /// Every key and value in the order of the file: the keys are names of the administrator's.
    #[must_use]
    pub fn entries(&self) -> Vec<(Placed<String>, Value<'d>)> {
        if let Some(node) = &self.sketched {
            let name = Placed { value: ANY_NAME.to_owned(), place: self.place() };
            return vec![(name, self.sketched_value(ANY_NAME, node.borrow_mut().any_key()))];
        }
        let mut entries: Vec<_> = self.table.iter().collect();
        entries.sort_by_key(|(key, _)| key.span().start);
        entries
            .into_iter()
            .map(|(key, value)| {
                let name = Placed { value: key.get_ref().to_string(), place: self.document.place(key.span()) };
                (name, self.value(key.get_ref(), value))
            })
            .collect()
    }

    /// Reports the keys that were not asked for.
    pub fn finish(self) {
        for (key, _) in self.table {
            let name = key.get_ref().as_ref();
            if self.known.contains(&name) {
                continue;
            }
            let section = if self.name.is_empty() { String::new() } else { format!(" in `{}`", self.name) };
            let label = match nearest(name, &self.known) {
                Some(near) => format!("did you mean `{near}`?"),
                None => "unknown key".to_owned(),
            };
            let mut known = self.known.clone();
            known.sort_unstable();
            let unknown = Diagnostic::error(format!("unknown key `{name}`{section}"))
                .at(&self.document.place(key.span()))
                .label(label)
                .help(format!("accepted: {}", list(&known)));
            self.document.report(unknown);
        }
    }

    fn value(&self, key: &str, value: &'d Spanned<DeValue<'d>>) -> Value<'d> {
        let key = if self.name.is_empty() { key.to_owned() } else { format!("{}.{key}", self.name) };
        Value { document: self.document, key, value: Some(value), sketched: None }
    }

    fn sketched_value(&self, key: &str, node: Node) -> Value<'d> {
        Value { document: self.document, key: key.to_owned(), value: None, sketched: Some(node) }
    }
}

/// A value and the dotted name that messages call it by.
#[derive(Clone)]
pub struct Value<'d> {
    document: &'d Document<'d>,
    key: String,
    /// Absent in a sketch.
    value: Option<&'d Spanned<DeValue<'d>>>,
    sketched: Option<Node>,
}

impl<'d> Value<'d> {
    #[must_use]
    pub fn place(&self) -> Place {
        self.document.place(self.value.map_or(0..0, Spanned::span))
    }

    #[must_use]
    pub fn is_table(&self) -> bool {
        self.asked(DeValue::is_table)
    }

    #[must_use]
    pub fn is_bool(&self) -> bool {
        self.asked(DeValue::is_bool)
    }

    #[must_use]
    pub fn is_string(&self) -> bool {
        self.asked(DeValue::is_str)
    }

    fn asked(&self, is: fn(&DeValue<'d>) -> bool) -> bool {
        match self.value {
            Some(value) => is(value.get_ref()),
            None => self.document.sketch.as_ref().is_some_and(|sketch| sketch.yes),
        }
    }

    /// Notes what is asked for, where this is a sketch, and says that it is one.
    fn notes(&self, note: impl FnOnce(&mut Shape)) -> bool {
        if let Some(node) = &self.sketched {
            note(&mut node.borrow_mut());
        }
        self.sketched.is_some()
    }

    /// In a sketch: that a table stands here which is drawn elsewhere, so that what holds itself comes to an end. Whoever
    /// reads goes on where it is none.
    #[must_use]
    pub fn is_drawn_elsewhere(&self, table: &'static str) -> bool {
        self.notes(|shape| shape.refer_to(table))
    }

    /// Reports that the value is wrong: `message` says what is, in a sentence about the value.
    pub fn wrong(&self, message: impl Into<String>) {
        let message = message.into();
        let wrong = Diagnostic::error(format!("`{}`: {message}", self.key)).at(&self.place());
        self.document.report(wrong);
    }

    #[must_use]
    pub fn string(&self) -> Option<Placed<String>> {
        self.notes(Shape::string);
        let text = self.value?.get_ref().as_str();
        self.of_type("a string", text.map(str::to_owned))
    }

    #[must_use]
    pub fn boolean(&self) -> Option<Placed<bool>> {
        self.notes(Shape::boolean);
        self.of_type("`true` or `false`", self.value?.get_ref().as_bool())
    }

    /// A whole number within `range`.
    #[must_use]
    pub fn integer(&self, range: std::ops::RangeInclusive<u64>) -> Option<Placed<u64>> {
        self.notes(|shape| shape.integer(range.clone()));
        let digits = self.of_type("a whole number", self.value?.get_ref().as_integer())?;
        let number = u64::from_str_radix(digits.value.as_str(), digits.value.radix()).ok();
        match number.filter(|n| range.contains(n)) {
            Some(value) => Some(Placed { value, place: digits.place }),
            None => {
                self.wrong(format!("expected a number from {} to {}", range.start(), range.end()));
                None
            }
        }
    }

    /// A number with or without a fraction.
    #[must_use]
    pub fn number(&self) -> Option<Placed<f64>> {
        self.notes(Shape::number);
        let value = self.value?.get_ref();
        let text = value.as_float().map(|f| f.as_str()).or(value.as_integer().map(|i| i.as_str()));
        let number = text.and_then(|text| text.parse::<f64>().ok()).filter(|n| n.is_finite());
        self.of_type("a number", number)
    }

    /// A string that `parse` understands; its error is reported as what would be accepted.
    #[must_use]
    pub fn parsed<T, E: std::fmt::Display>(&self, parse: impl Fn(&str) -> Result<T, E>) -> Option<Placed<T>> {
        let text = self.string()?;
        match parse(&text.value) {
            Ok(value) => Some(Placed { value, place: text.place }),
            Err(error) => {
                let wrong = Diagnostic::error(format!("`{}` cannot be `{}`", self.key, text.value));
                self.document.report(wrong.at(&text.place).label(error.to_string()));
                None
            }
        }
    }

    /// One of a few words.
    #[must_use]
    pub fn choice<T: Copy>(&self, words: &[(&str, T)]) -> Option<Placed<T>> {
        if self.notes(|shape| shape.words(words.iter().map(|(word, _)| *word))) {
            return None;
        }
        let text = self.string()?;
        if let Some((_, value)) = words.iter().find(|(word, _)| *word == text.value) {
            return Some(Placed { value: *value, place: text.place });
        }
        let words: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        let mut wrong = Diagnostic::error(format!("`{}` cannot be `{}`", self.key, text.value)).at(&text.place);
        if let Some(near) = nearest(&text.value, &words) {
            wrong = wrong.label(format!("did you mean `{near}`?"));
        }
        self.document.report(wrong.help(format!("accepted: {}", list(&words))));
        None
    }

    #[must_use]
    pub fn section(&self) -> Option<Section<'d>> {
        if let Some(node) = &self.sketched {
            return Some(self.sketched_section(node));
        }
        let table = self.of_type("a table", self.value?.get_ref().as_table())?;
        let span = self.value?.span();
        Some(Section::new(self.document, self.key.clone(), span, table.value, None))
    }

    fn sketched_section(&self, node: &Node) -> Section<'d> {
        let empty = self.document.root.get_ref();
        Section::new(self.document, self.key.clone(), 0..0, empty, Some(Rc::clone(node)))
    }

    /// The tables of an array of tables.
    #[must_use]
    pub fn sections(&self) -> Vec<Section<'d>> {
        if let Some(node) = &self.sketched {
            node.borrow_mut().tables();
            return vec![self.sketched_section(node)];
        }
        let hint = format!("an array of tables, written `[[{}]]`", self.key);
        self.array(&hint).iter().filter_map(Value::section).collect()
    }

    /// The elements of an array.
    #[must_use]
    pub fn elements(&self) -> Vec<Value<'d>> {
        if self.notes(|shape| shape.many(false)) { vec![self.clone()] } else { self.array("an array") }
    }

    /// The elements of an array, or the value itself where it is none.
    #[must_use]
    pub fn one_or_many(&self) -> Vec<Value<'d>> {
        let is_array = self.value.is_some_and(|value| value.get_ref().is_array());
        self.notes(|shape| shape.many(true));
        if is_array { self.array("an array") } else { vec![self.clone()] }
    }

    fn array(&self, wanted: &str) -> Vec<Value<'d>> {
        let array = self.value.and_then(|value| self.of_type(wanted, value.get_ref().as_array()));
        let of = |value| Value { document: self.document, key: self.key.clone(), value: Some(value), sketched: None };
        array.iter().flat_map(|array| array.value.iter().map(of)).collect()
    }

    fn of_type<T>(&self, wanted: &str, value: Option<T>) -> Option<Placed<T>> {
        let place = self.place();
        if let Some(value) = value {
            return Some(Placed { value, place });
        }
        let found = self.value?.get_ref().type_str();
        let article = if found.starts_with(['a', 'i']) { "an" } else { "a" };
        let wrong = Diagnostic::error(format!("`{}` must be {wanted}, not {article} {found}", self.key));
        self.document.report(wrong.at(&place).label(format!("expected {wanted}")));
        None
    }
}

/// The candidate that a typing error away from `word`, if there is one.
#[must_use]
pub fn nearest<'c>(word: &str, candidates: &[&'c str]) -> Option<&'c str> {
    // Longer words are no typing errors, and the distance costs their product.
    if word.chars().count() > NEAREST_CHARS_MAX {
        return None;
    }
    let slips_max = (word.chars().count() / 3).max(1);
    let ranked = candidates.iter().map(|candidate| (distance(word, candidate), *candidate));
    ranked.filter(|(slips, _)| *slips <= slips_max).min().map(|(_, candidate)| candidate)
}

/// How many single characters must be put in, taken out, exchanged, or swapped with their neighbour.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    // rows[i][j]: from the first i characters of `a` to the first j of `b`.
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            if i == 0 || j == 0 {
                rows[i][j] = i + j;
                continue;
            }
            let exchanged = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = exchanged.min(rows[i][j - 1] + 1).min(rows[i - 1][j] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = best;
        }
    }
    rows[a.len()][b.len()]
}

/// `` `a`, `b` ``, cut at [`LISTED_MAX`].
#[must_use]
pub fn list(words: &[&str]) -> String {
    let mut shown: Vec<String> = words.iter().take(LISTED_MAX).map(|word| format!("`{word}`")).collect();
    if words.len() > LISTED_MAX {
        shown.push(format!("and {} more", words.len() - LISTED_MAX));
    }
    if shown.is_empty() { "none".to_owned() } else { shown.join(", ") }
}

const NEAREST_CHARS_MAX: usize = 64;
/// Our longest set of keys has some 25; names of targets can be thousands.
const LISTED_MAX: usize = 30;

/// A name that an administrator could have chosen: it is a domain, a local part and a name.
const ANY_NAME: &str = "name";

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(text: &str, read: impl Fn(&mut Section<'_>)) -> Vec<String> {
        let source = Source::new("f.toml", text);
        let document = match Document::parse(&source) {
            Ok(document) => document,
            Err(report) => return report.diagnostics().iter().map(|d| d.message.clone()).collect(),
        };
        let mut root = document.root();
        read(&mut root);
        root.finish();
        document.into_report().diagnostics().iter().map(|d| d.message.clone()).collect()
    }

    #[test]
    fn every_mistake_is_found_in_one_run() {
        let found = messages("a = 1\nb = 'x'\nc = 70\nd = 'of'\ntypo = 1\n", |root| {
            root.take("a").and_then(|v| v.string());
            root.take("b").and_then(|v| v.boolean());
            root.take("c").and_then(|v| v.integer(1..=69));
            root.take("d").and_then(|v| v.choice(&[("off", 0), ("on", 1)]));
            root.require("e");
        });
        assert_eq!(
            found,
            [
                "`a` must be a string, not an integer",
                "`b` must be `true` or `false`, not a string",
                "`c`: expected a number from 1 to 69",
                "`d` cannot be `of`",
                "the file has no `e`",
                "unknown key `typo`",
            ]
        );
    }

    #[test]
    fn all_syntax_errors_are_told_at_once() {
        assert_eq!(messages("a = \nb = [1\n", |_| {}).len(), 2);
    }

    #[test]
    fn a_typing_error_gets_its_word() {
        for (word, expected) in [
            ("recipent", Some("recipient")),
            ("tos", Some("to")),
            ("ot", Some("to")),
            ("sendre", Some("sender")),
            ("zebra", None),
            ("", None),
        ] {
            assert_eq!(nearest(word, &["recipient", "sender", "to"]), expected, "{word}");
        }
        assert_eq!(nearest(&"x".repeat(NEAREST_CHARS_MAX + 1), &["x"]), None);
    }

    #[test]
    fn long_lists_are_cut() {
        let words = vec!["w"; LISTED_MAX + 1];
        assert!(!list(&words[1..]).contains("more"));
        assert!(list(&words).ends_with("and 1 more"));
        assert_eq!(list(&[]), "none");
    }
}
