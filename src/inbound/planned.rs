//! The legs that a message will have, before they are written: what the rules decided for each recipient, brought to one
//! answer, and what checks and score make of it.

use super::Ruling;
use super::score::Scored;
use crate::address::Mailbox;
use crate::clock::Timestamp;
use crate::queue::{Reason, State};
use crate::reply::{self, Refusal};
use crate::rules::{Action, Decision, Fate, LegKind, LegPlan, Verdict};

/// A leg to be made, with where it starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Planned {
    pub(super) alias: Mailbox,
    pub(super) leg: LegPlan,
    pub(super) state: State,
    pub(super) reason: Reason,
    pub(super) detail: String,
    /// When a leg that we hold goes on by itself; none: an operator says when.
    pub(super) due: Option<Timestamp>,
    pub(super) rules: Vec<String>,
    /// A header field says that it looks like spam.
    pub(super) marked: bool,
    /// Its ARC set, or nothing.
    pub(super) seal: String,
    /// The route at whose end DMARC would fail.
    pub(super) at_risk: Option<String>,
}

impl Planned {
    /// Does what the score makes of the copy. What a rule has discarded goes nowhere, and what a rule has quarantined waits already.
    fn judge(&mut self, fate: Fate, why: &str) {
        let spam = |state| (state, Reason::Spam, why.to_owned());
        match (fate, self.state) {
            (Fate::Keep, _) => {}
            (Fate::Mark, _) => self.marked = true,
            (Fate::Quarantine, State::Queued | State::Held) => {
                (self.state, self.reason, self.detail) = spam(State::Quarantined);
            }
            (Fate::Omit, State::Queued | State::Held | State::Quarantined) => {
                (self.state, self.reason, self.detail) = spam(State::Omitted);
            }
            (Fate::Quarantine | Fate::Omit, _) => {}
        }
    }

    /// What was to be relayed waits; until `due`, or else for an operator.
    pub(super) fn hold(&mut self, reason: Reason, why: String, due: Option<Timestamp>) {
        if self.state == State::Queued {
            (self.state, self.reason, self.detail, self.due) = (State::Held, reason, why, due);
        }
    }

    /// What was to be relayed waits in the quarantine instead; what a rule parks or discards stays as it is.
    pub(super) fn quarantine(&mut self, reason: Reason, why: &str) {
        self.stop(State::Quarantined, reason, why);
    }

    /// Likewise: it goes nowhere.
    pub(super) fn discard(&mut self, reason: Reason, why: &str) {
        self.stop(State::Discarded, reason, why);
    }

    fn stop(&mut self, state: State, reason: Reason, why: &str) {
        if self.goes_out() {
            (self.state, self.reason, self.detail) = (state, reason, why.to_owned());
        }
    }

    /// It is to be relayed.
    pub(super) fn goes_out(&self) -> bool {
        self.state == State::Queued
    }

    /// It goes by this way instead. What the score and the rule say of it stays.
    pub(super) fn redirect(&mut self, way: LegPlan) {
        let (kind, on_spam, bounces) = (self.leg.kind, self.leg.on_spam, self.leg.bounces);
        self.leg = LegPlan { kind, on_spam, bounces, ..way };
    }
}

/// Brings the decisions of all recipients to one answer. If one must be deferred nothing is queued; if all are refused, the
/// first refusal; else those that are refused are quarantined, because their sender was told 250.
pub(super) fn combine(
    ruling: &Ruling,
    decided: Vec<(Mailbox, Decision)>,
    scored: &Scored,
) -> Result<Vec<Planned>, Refusal> {
    let mut planned = Vec::new();
    let mut refused: Vec<(Refusal, Vec<Planned>)> = Vec::new();
    for (alias, decision) in decided {
        // People behind us have a filter of their own, and get what they are sent.
        let for_people = decision.verdict.legs().iter().any(|leg| ruling.is_to_mailhost(leg));
        let is_spam = decision.is_refused_as_spam(scored.band) && !for_people;
        match decision.verdict {
            // Everything is known here. If a rule still cannot tell, the fault is ours: the sender keeps his mail.
            Verdict::Undecided => return Err(Refusal::new(reply::LOCAL_ERROR)),
            Verdict::Defer(refusal) => return Err(refusal),
            Verdict::Reject(refusal) => {
                let kept = quarantined_refusal(alias, &refusal, decision.rules);
                refused.push((refusal, vec![kept]));
            }
            Verdict::Accept { action, legs } => {
                let legs = judged_legs(ruling, &alias, action, legs, &decision.rules, scored);
                match is_spam {
                    true => refused.push((Refusal::new(reply::SPAM_REFUSED), legs)),
                    false => planned.extend(legs),
                }
            }
        }
    }
    if planned.is_empty() {
        let first = refused.into_iter().next().map(|(refusal, _)| refusal);
        return Err(first.unwrap_or_else(|| Refusal::new(reply::LOCAL_ERROR)));
    }
    planned.extend(refused.into_iter().flat_map(|(_, kept)| kept));
    Ok(planned)
}

/// The legs of an accepted recipient, with what the score makes of them.
fn judged_legs(
    ruling: &Ruling,
    alias: &Mailbox,
    action: Action,
    legs: Vec<LegPlan>,
    rules: &[String],
    scored: &Scored,
) -> Vec<Planned> {
    let (state, reason, detail) = start(action);
    let (why, only_copies) = (scored.why(), legs.iter().all(|leg| leg.kind == LegKind::Also));
    let mut planned: Vec<Planned> = legs
        .into_iter()
        .map(|leg| {
            let fate = leg.fate_with(scored.band, ruling.handling(&leg));
            let (alias, detail, rules) = (alias.clone(), detail.clone(), rules.to_vec());
            let (due, seal, at_risk) = (None, String::new(), None);
            let mut plan = Planned { alias, leg, state, reason, detail, due, rules, marked: false, seal, at_risk };
            plan.judge(fate, &why);
            plan
        })
        .collect();
    // Copies are left out beside a mail that somebody gets or an operator sees. Where there is no such mail, one is kept.
    if only_copies
        && planned.iter().all(|plan| plan.state == State::Omitted)
        && let Some(first) = planned.first_mut()
    {
        first.state = State::Quarantined;
    }
    planned
}

/// Where the legs of an accepted recipient start.
fn start(action: Action) -> (State, Reason, String) {
    match action {
        Action::Relay => (State::Queued, Reason::Accepted, String::new()),
        Action::Quarantine { why } => (State::Quarantined, Reason::Rule, why),
        Action::Hold { why } => (State::Held, Reason::Rule, why),
        Action::Discard { why } => (State::Discarded, Reason::Rule, why),
    }
}

/// A recipient refused beside one that was accepted: kept for an operator, addressed to the alias itself.
fn quarantined_refusal(alias: Mailbox, refusal: &Refusal, rules: Vec<String>) -> Planned {
    Planned {
        leg: LegPlan::unrouted(alias.clone()),
        alias,
        state: State::Quarantined,
        reason: Reason::MixedRefusal,
        detail: refusal.reply().to_string(),
        due: None,
        rules,
        marked: false,
        seal: String::new(),
        at_risk: None,
    }
}
