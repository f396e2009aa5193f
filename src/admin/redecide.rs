//! Deciding a waiting leg anew by today's rules, from what was recorded when it was accepted. Pure.

use std::net::IpAddr;

use crate::address::{Mailbox, ReversePath};
use crate::clock::Timestamp;
use crate::queue::sqlite::{LegRow, MessageRow, Replacement};
use crate::queue::{Reason, State};
use crate::rules::{Action, AuthFacts, Decision, Fact, Facts, LegPlan, RuleSet, Verdict};

/// What today's rules make of `row`, a leg of `message`.
///
/// Its place among the legs of its alias tells which of the rules' legs it is. Where the rules now refuse the alias, or make
/// fewer legs, it waits in the quarantine and says so: its sender was told 250.
pub fn leg(rules: &RuleSet, message: &MessageRow, row: &LegRow, now: Timestamp) -> Result<Replacement, String> {
    let recipient = Mailbox::parse(&row.recipient).map_err(|error| format!("{}: {error}", row.id))?;
    let sender = ReversePath::parse(&message.sender).map_err(|error| format!("{}: {error}", row.id))?;
    let facts = Facts {
        recipient: &recipient,
        sender: &sender,
        client: message.client.parse::<IpAddr>().ok(),
        helo: Some(&message.helo),
        auth: Fact::Known(AuthFacts::default()),
    };
    let decision = rules.decide(&facts);
    let place = message.legs.iter().filter(|leg| leg.recipient == row.recipient).position(|leg| leg.id == row.id);
    Ok(replacement(decision, row, place.unwrap_or(0), recipient, sender, now))
}

fn replacement(
    decision: Decision,
    row: &LegRow,
    place: usize,
    recipient: Mailbox,
    sender: ReversePath,
    now: Timestamp,
) -> Replacement {
    let Decision { verdict, rules } = decision;
    let (state, reason, detail, plan) = match verdict {
        Verdict::Accept { action, legs } => {
            let same = legs.iter().find(|plan| plan.target.as_str() == row.target).cloned();
            match same.or_else(|| legs.get(place).cloned()) {
                Some(plan) => {
                    let (state, detail) = start(action);
                    (state, Reason::Rule, detail, plan)
                }
                None => quarantine(recipient, "today's rules make no such copy".to_owned()),
            }
        }
        Verdict::Reject(refusal) | Verdict::Defer(refusal) => {
            quarantine(recipient, format!("today's rules refuse it: {}", refusal.reply()))
        }
        Verdict::Undecided => quarantine(recipient, "today's rules cannot decide it".to_owned()),
    };
    let (target, target_name, route) = (plan.target, plan.target_name, plan.route);
    let due = (state == State::Queued).then_some(now);
    Replacement { target, target_name, route, sender, state, reason, detail, due, rules }
}

fn quarantine(recipient: Mailbox, why: String) -> (State, Reason, String, LegPlan) {
    (State::Quarantined, Reason::MixedRefusal, why, LegPlan::unrouted(recipient))
}

fn start(action: Action) -> (State, String) {
    match action {
        Action::Relay => (State::Queued, "decided anew".to_owned()),
        Action::Quarantine { why } => (State::Quarantined, why),
        Action::Hold { why } => (State::Held, why),
        Action::Discard { why } => (State::Discarded, why),
    }
}
