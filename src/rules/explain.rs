//! Why: every rule that was considered, whether it applied, else the first condition that failed and what it saw.
//!
//! The reasons come from the walk that also decides (`eval`), so they cannot disagree with the decision.

use std::fmt::Write;

use serde_json::{Value, json};

use super::condition::Truth;
use super::eval::{Found, OnUnknown, Scope, Subject};
use super::set::{Rule, RuleSet};
use super::sight::Sight;
use super::standing::Force;
use super::{Action, Bounces, Decision, Facts, LegKind, LegPlan, OnSpam, Verdict};

/// A decision and the way to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    pub recipient: String,
    /// [`RuleSet::short_hash`]
    pub rule_set: String,
    /// In the order in which they were considered; none behind the one that ended the search.
    pub considered: Vec<Considered>,
    pub decision: Decision,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Considered {
    pub rule: String,
    /// `path:line`
    pub place: String,
    pub result: Consideration,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Consideration {
    Applied {
        ended_the_search: bool,
    },
    /// The condition as it would be written, and the value it saw.
    Failed {
        condition: String,
        saw: String,
    },
    /// It is not in force, for this reason.
    Idle {
        why: &'static str,
    },
    /// It would apply, and do this, were it not a shadow.
    Shadow {
        action: &'static str,
    },
    /// It depends on what is not known yet.
    Open {
        condition: String,
    },
}

impl RuleSet {
    /// As [`RuleSet::decide`], with reasons.
    pub fn explain(&self, facts: &Facts<'_>) -> Explanation {
        let (subject, found) = (Subject::new(facts), Found::new(facts));
        let plus_strip = self.domain(facts.recipient.domain()).is_some_and(|domain| domain.plus_strip);
        let sight = Sight { facts, subject: &subject, found: &found, plus_strip };
        let mut considered = Vec::new();
        let mut observe = |rule: &Rule, force: Force, truth: Truth| {
            if let Force::Idle(why) = force {
                let (rule, place) = (rule.name.clone(), rule.place.clone());
                considered.push(Considered { rule, place, result: Consideration::Idle { why } });
                return;
            }
            let result = match truth {
                Truth::Holds if force == Force::Shadow => Consideration::Shadow { action: rule.then.word() },
                Truth::Holds => Consideration::Applied { ended_the_search: !rule.continues },
                Truth::Fails(at) => {
                    let (condition, saw) = sight.blame(&rule.when[at]);
                    Consideration::Failed { condition, saw }
                }
                Truth::Unknown(at, _) => Consideration::Open { condition: rule.when[at].to_string() },
            };
            considered.push(Considered { rule: rule.name.clone(), place: rule.place.clone(), result });
        };
        // `Err` does not come with `PassOver`, and the decision is `decide`'s in any case.
        let _ = self.walk(&subject, &found, Scope::Everything, OnUnknown::PassOver, &mut observe);
        Explanation {
            recipient: facts.recipient.to_string(),
            rule_set: self.short_hash().to_owned(),
            considered,
            decision: self.decide(facts),
        }
    }
}

impl Explanation {
    /// For people: a line for each rule, then the decision and its legs. Ends with a line end.
    #[must_use]
    pub fn render(&self) -> String {
        let mut out = format!("{} by rule set {}\n", escape(&self.recipient), self.rule_set);
        for considered in &self.considered {
            let Considered { rule, place, result } = considered;
            let line = match result {
                Consideration::Applied { ended_the_search: true } => {
                    format!("  + {rule}  ({place})  applies, and ends the search")
                }
                Consideration::Applied { ended_the_search: false } => format!("  + {rule}  ({place})  applies"),
                Consideration::Failed { condition, saw } => {
                    format!("  - {rule}  ({place})  {condition}, but saw {}", escape(saw))
                }
                Consideration::Idle { why } => format!("  . {rule}  ({place})  {why}"),
                Consideration::Shadow { action } => {
                    format!("  ~ {rule}  ({place})  a shadow: it would apply ({action})")
                }
                Consideration::Open { condition } => format!("  ? {rule}  ({place})  {condition} is not known yet"),
            };
            out.push_str(&line);
            out.push('\n');
        }
        out.push_str(&self.decision.render());
        out
    }

    /// The same as one JSON object.
    #[must_use]
    pub fn json(&self) -> Value {
        let considered: Vec<Value> = self
            .considered
            .iter()
            .map(|considered| {
                let (result, condition, saw) = match &considered.result {
                    Consideration::Applied { .. } => ("applied", None, None),
                    Consideration::Failed { condition, saw } => ("failed", Some(condition), Some(saw)),
                    Consideration::Open { condition } => ("unknown", Some(condition), None),
                    Consideration::Idle { .. } => ("idle", None, None),
                    Consideration::Shadow { .. } => ("shadow", None, None),
                };
                let ended = considered.result == Consideration::Applied { ended_the_search: true };
                json!({
                    "rule": considered.rule, "place": considered.place, "result": result,
                    "condition": condition, "saw": saw, "ended_the_search": ended,
                })
            })
            .collect();
        let mut object = self.decision.json();
        object["recipient"] = json!(self.recipient);
        object["rule_set"] = json!(self.rule_set);
        object["considered"] = json!(considered);
        object
    }
}

impl Decision {
    /// For people: the verdict, and a line for each leg. Ends with a line end.
    #[must_use]
    pub fn render(&self) -> String {
        let mut out = match &self.verdict {
            Verdict::Reject(refusal) => format!("  => rejected: {}\n", refusal.reply()),
            Verdict::Defer(refusal) => format!("  => deferred: {}\n", refusal.reply()),
            Verdict::Undecided => "  => undecided until the message is there\n".to_owned(),
            Verdict::Accept { action, .. } => match action {
                Action::Relay => "  => relayed\n".to_owned(),
                Action::Quarantine { why } => format!("  => quarantined: {why}\n"),
                Action::Hold { why } => format!("  => held: {why}\n"),
                Action::Discard { why } => format!("  => discarded: {why}\n"),
            },
        };
        for leg in self.verdict.legs() {
            let name = leg.target_name.as_ref().map(|name| format!(" ({name})")).unwrap_or_default();
            // Writing to a string does not fail.
            let _ = writeln!(
                out,
                "     {} {}{name} by route {}, on-spam {}",
                leg.kind.as_str(),
                escape(leg.target.as_str()),
                leg.route,
                leg.on_spam.as_str()
            );
        }
        out
    }

    /// `verdict`, `reply` or `why` where there is one, `rules`, `legs`.
    #[must_use]
    pub fn json(&self) -> Value {
        let (verdict, reply, why) = match &self.verdict {
            Verdict::Reject(refusal) => ("reject", Some(refusal.reply().to_string()), None),
            Verdict::Defer(refusal) => ("defer", Some(refusal.reply().to_string()), None),
            Verdict::Undecided => ("undecided", None, None),
            Verdict::Accept { action, .. } => match action {
                Action::Relay => ("relay", None, None),
                Action::Quarantine { why } => ("quarantine", None, Some(why)),
                Action::Hold { why } => ("hold", None, Some(why)),
                Action::Discard { why } => ("discard", None, Some(why)),
            },
        };
        let legs: Vec<Value> = self.verdict.legs().iter().map(LegPlan::json).collect();
        json!({ "verdict": verdict, "reply": reply, "why": why, "rules": self.rules, "legs": legs })
    }
}

impl Verdict {
    /// The legs to be made; none unless the recipient is accepted.
    #[must_use]
    pub fn legs(&self) -> &[LegPlan] {
        match self {
            Verdict::Accept { legs, .. } => legs,
            Verdict::Reject(_) | Verdict::Defer(_) | Verdict::Undecided => &[],
        }
    }
}

impl LegPlan {
    fn json(&self) -> Value {
        json!({
            "target": self.target.as_str(), "name": self.target_name, "route": self.route,
            "kind": self.kind.as_str(), "on_spam": self.on_spam.as_str(),
            "bounces": self.bounces.as_str(),
        })
    }
}

impl LegKind {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            LegKind::To => "to",
            LegKind::Also => "also",
            LegKind::Mailbox => "mailbox",
            LegKind::Role => "role",
        }
    }
}

impl Bounces {
    /// The word in rules and in `explain`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Bounces::Sender => "sender",
            Bounces::Admin => "admin",
            Bounces::Suppress => "suppress",
        }
    }
}

impl OnSpam {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            OnSpam::Deliver => "deliver",
            OnSpam::Tag => "tag",
            OnSpam::Quarantine => "quarantine",
            OnSpam::Omit => "omit",
        }
    }
}

/// Peer text on a terminal: what is not printable is escaped, and it ends somewhere.
fn escape(text: &str) -> String {
    let escaped: String = text.chars().take(SHOWN_CHARS_MAX).flat_map(char::escape_debug).collect();
    // Quotes are printable; escaping them would show another address than the one given.
    escaped.replace("\\\"", "\"").replace("\\'", "'")
}

/// An address has 254 octets at most, a HELO name 255.
const SHOWN_CHARS_MAX: usize = 256;
