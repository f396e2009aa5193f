//! What a TOML file may hold, drawn by the readers themselves: each says by what it asks for what it would accept.
//!
//! A reader that is given a sketch instead of a file ([`crate::document::Document::sketch`]) meets every key that it knows
//! once, and what it asks of the value is noted here. JSON Schema (draft 7, which TOML language servers read) comes out, so
//! that an editor completes and checks what the daemon would.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::rc::Rc;

use serde_json::{Map, Value as Json, json};

/// What one value may be.
#[derive(Debug, Default)]
pub struct Shape {
    string: bool,
    words: BTreeSet<String>,
    boolean: bool,
    number: bool,
    integer: Option<RangeInclusive<u64>>,
    /// An array of such values, beside one of them or instead of one.
    many: bool,
    one: bool,
    /// A table, with these keys.
    table: Option<Keys>,
    /// An array of such tables.
    tables: bool,
    /// The table of this name.
    refers_to: Option<&'static str>,
}

#[derive(Debug, Default)]
struct Keys {
    known: BTreeMap<&'static str, Node>,
    required: BTreeSet<&'static str>,
    /// Of every other key.
    any: Option<Node>,
}

/// A place of the drawing.
pub type Node = Rc<RefCell<Shape>>;

impl Shape {
    pub fn string(&mut self) {
        self.string = true;
    }

    pub fn words<'w>(&mut self, words: impl Iterator<Item = &'w str>) {
        self.words.extend(words.map(str::to_owned));
    }

    pub fn boolean(&mut self) {
        self.boolean = true;
    }

    pub fn number(&mut self) {
        self.number = true;
    }

    pub fn integer(&mut self, range: RangeInclusive<u64>) {
        self.integer = Some(range);
    }

    /// The elements of an array; `or_one` is allowed without one, too.
    pub fn many(&mut self, or_one: bool) {
        self.many = true;
        self.one |= or_one;
    }

    pub fn refer_to(&mut self, table: &'static str) {
        self.refers_to = Some(table);
    }

    pub fn table(&mut self) {
        self.table.get_or_insert_default();
    }

    pub fn tables(&mut self) {
        self.tables = true;
        self.table();
    }

    /// The value of a key.
    pub fn key(&mut self, key: &'static str) -> Node {
        Rc::clone(self.table.get_or_insert_default().known.entry(key).or_default())
    }

    pub fn require(&mut self, key: &'static str) {
        self.table.get_or_insert_default().required.insert(key);
    }

    /// The value of whatever key the administrator chose.
    pub fn any_key(&mut self) -> Node {
        Rc::clone(self.table.get_or_insert_default().any.get_or_insert_default())
    }

    /// As JSON Schema.
    #[must_use]
    pub fn json(&self) -> Json {
        if let Some(table) = self.refers_to {
            return self.alone_or_many(json!({ "$ref": format!("#/definitions/{table}") }));
        }
        let mut kinds: Vec<Json> = Vec::new();
        if !self.words.is_empty() {
            kinds.push(json!({ "enum": self.words }));
        }
        if self.string {
            kinds.push(json!({ "type": "string" }));
        }
        if self.boolean {
            kinds.push(json!({ "type": "boolean" }));
        }
        if self.number {
            kinds.push(json!({ "type": "number" }));
        }
        if let Some(range) = &self.integer {
            kinds.push(json!({ "type": "integer", "minimum": range.start(), "maximum": range.end() }));
        }
        if let Some(keys) = &self.table {
            let table = keys.json();
            kinds.push(if self.tables { json!({ "type": "array", "items": table }) } else { table });
        }
        let one = match kinds.len() {
            // Nobody asked what it is: what is not built yet may be anything.
            0 => json!({}),
            1 => kinds.remove(0),
            _ => json!({ "anyOf": kinds }),
        };
        self.alone_or_many(one)
    }

    fn alone_or_many(&self, one: Json) -> Json {
        match (self.many, self.one) {
            (false, _) => one,
            (true, false) => json!({ "type": "array", "items": one }),
            (true, true) => json!({ "anyOf": [one, { "type": "array", "items": one }] }),
        }
    }

    /// The part of the drawing that stands at these keys.
    #[must_use]
    pub fn at(&self, path: &[&str]) -> Option<Json> {
        match path {
            [] => Some(self.table.as_ref()?.json()),
            [key, rest @ ..] => self.table.as_ref()?.known.get(key)?.borrow().at(rest),
        }
    }
}

impl Keys {
    fn json(&self) -> Json {
        let known: Map<String, Json> =
            self.known.iter().map(|(key, node)| ((*key).to_owned(), node.borrow().json())).collect();
        let others = self.any.as_ref().map_or(json!(false), |node| node.borrow().json());
        let mut table = json!({ "type": "object", "properties": known, "additionalProperties": others });
        if !self.required.is_empty() {
            table["required"] = json!(self.required);
        }
        table
    }
}
