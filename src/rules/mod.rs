//! The rules: facts about one recipient of one message go in, a decision and its explanation come out. Pure.
//!
//! `facts` is what conditions are asked about; `when` and `syntax` are the TOML as typed, `parse` resolves and checks it
//! into a [`RuleSet`] (`set`) of `condition`s, `eval` decides, `explain` says why (`sight`: what a condition saw),
//! `testing` runs the tests that stand beside the rules, `banding` says what a spam band makes of a decision,
//! `difference` what another rule set changes.
//! Evaluation is three-valued, because at RCPT the message is not there yet: see [`Decision`].

use crate::address::Mailbox;
use crate::clock::Timestamp;
use crate::reply::Refusal;

pub mod facts;
pub mod pattern;
pub mod calendar;
pub mod when;
pub mod standing;
mod detours;
pub mod syntax;
mod given;
pub mod set;
mod lists;
mod condition;
mod rewrite;
pub mod eval;
mod lint;
pub mod parse;
mod resolve;
mod sight;
pub mod explain;
mod testing;
pub mod banding;
pub mod difference;
#[cfg(test)]
mod tests;

pub use banding::{Fate, Handling};
pub use detours::Detours;
pub use explain::{Consideration, Considered, Explanation};
pub use facts::{AuthFacts, Fact, Facts};
pub use parse::{Parsed, Surroundings, parse};
pub use set::RuleSet;

/// What the rules say about one recipient.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    pub verdict: Verdict,
    /// The names of the rules that applied, in the order in which they did.
    pub rules: Vec<String>,
    /// Shadow rules that would have applied, had they been asked for more than that.
    pub shadows: Vec<Shadow>,
}

impl Decision {
    /// No rule had a say.
    #[must_use]
    pub fn of(verdict: Verdict) -> Decision {
        Decision { verdict, rules: Vec::new(), shadows: Vec::new() }
    }
}

/// A rule that is only watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shadow {
    pub rule: String,
    /// What it would have done: reject, quarantine, hold, defer, discard, to, also, other.
    pub action: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// 250, and these legs in this state. Never empty for `Relay`.
    Accept { action: Action, legs: Vec<LegPlan> },
    /// A rule, or the lack of any, refuses: 5xx.
    Reject(Refusal),
    /// 4xx.
    Defer(Refusal),
    /// Only with unknown facts: at least one completion would accept or defer, so RCPT must take the recipient.
    Undecided,
}

/// What becomes of the legs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    Relay,
    Quarantine { why: String },
    Hold { why: String },
    Discard { why: String },
}

/// One leg to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LegPlan {
    pub target: Mailbox,
    /// The `[target]` name that it was reached by.
    pub target_name: Option<String>,
    pub route: String,
    pub kind: LegKind,
    pub on_spam: OnSpam,
    pub bounces: Bounces,
    pub detours: Detours,
    /// Until then the vendor's own mail, such as the one that verifies the address, passes whatever else would stop it.
    pub onboarding_until: Option<Timestamp>,
}

impl LegPlan {
    /// A leg that the rules do not send anywhere: it is addressed to the alias itself and waits for an operator.
    #[must_use]
    pub fn unrouted(alias: Mailbox) -> LegPlan {
        LegPlan {
            target: alias,
            target_name: None,
            route: DEFAULT_ROUTE.to_owned(),
            kind: LegKind::To,
            on_spam: OnSpam::Quarantine,
            bounces: Bounces::Sender,
            detours: Detours::default(),
            onboarding_until: None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LegKind {
    /// `to`: it replaces the recipient.
    To,
    /// `also`: a further copy.
    Also,
    /// The recipient itself, unchanged: it belongs to the mail host.
    Mailbox,
    /// postmaster@, abuse@: to the domain's `role` address.
    Role,
}

/// What the spam bands do to a leg, from the quarantine band on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnSpam {
    Deliver,
    Tag,
    Quarantine,
    Omit,
}

/// Who is told when a leg does not arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bounces {
    /// The sender, if it is certain who he is.
    Sender,
    /// The role address of the alias's domain.
    Admin,
    /// Nobody.
    Suppress,
}

/// The route of whatever names no other.
const DEFAULT_ROUTE: &str = "default";
