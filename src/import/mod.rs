//! Rules out of other programs' settings: `gmail` out of a table of Gmail's routing settings, `postfix` out of
//! virtual(5) and transport(5). Pure.
//!
//! Both write into a [`Draft`](draft::Draft), which `draft` prints as TOML. What stands there is carried over exactly or
//! not at all, and each thing that is not is told with its reason. Each address that is carried over gets a `[[test]]`
//! whose expectation comes from the other program's way of deciding, not from ours: so `check` proves the translation.

use crate::address::{Domain, Mailbox};
use crate::clock::Timestamp;
use crate::diagnostic::{Report, Source};
use crate::rules::{Surroundings, parse};

pub mod draft;
mod sheet;
mod re2;
mod settings;
pub mod gmail;
mod tables;
mod transport;
pub mod postfix;
#[cfg(test)]
mod tests;

/// What an administrator says besides the files.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Domains of ours that the files do not name.
    pub domains: Vec<Domain>,
    /// Where postmaster@ and abuse@ go in domains that say nothing else.
    pub role: Option<Mailbox>,
    /// The route, with hosts, to the mailboxes of people in our domains.
    pub mailboxes: Option<String>,
    /// Postfix's `myorigin`: the domain of names without one.
    pub origin: Option<Domain>,
}

impl Options {
    /// Role mail must not come back to us. `is_alias` says whether the files decide about an address.
    fn role_is_elsewhere(&self, domains: &[Domain], is_alias: impl Fn(&Mailbox) -> bool) -> Result<(), Vec<String>> {
        match &self.role {
            Some(role) if domains.contains(role.domain()) && (self.mailboxes.is_none() || is_alias(role)) => {
                Err(vec![format!("`{role}` is an address of ours: name with --role where that mail goes in the end")])
            }
            Some(_) | None => Ok(()),
        }
    }
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Imported {
    /// A rules file.
    pub rules: String,
    /// A piece of pointsman.toml; empty where no routes are needed.
    pub routes: String,
    pub left_out: Vec<LeftOut>,
    pub counts: Counts,
}

/// What could not be carried over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftOut {
    /// `virtual:12`, `line 3`
    pub place: String,
    pub what: String,
    pub why: String,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub domains: usize,
    pub targets: usize,
    pub rules: usize,
    pub aliases: usize,
    pub tests: usize,
    pub routes: usize,
}

/// Whether the rule language of this program knows `line` as a part of a rule, and does something with it. Asking the
/// language itself keeps the importers true while it grows.
fn language_has(line: &str) -> bool {
    let text = format!(
        "[domain.'d.example']\nrole = 'r@x.example'\n[[rule]]\nname = 'r'\nwhen = {{ recipient = 'a@d.example' }}\n\
         to = 'b@x.example'\n{line}\n"
    );
    let routes = [("default".to_owned(), true)].into();
    let read = |_: &str, _: &str| Err(String::new());
    let around = Surroundings {
        routes: &routes,
        looks_up_mx: true,
        checks: [true; 4],
        scores: true,
        now: Timestamp(0),
        read: &read,
    };
    let mut report = Report::default();
    parse(&[Source::new("probe.toml", text)], &around, &mut report).is_some_and(|parsed| parsed.inert.is_empty())
}
