//! What operators do to legs: an action as typed becomes a plan for each leg, and the store carries it out.
//!
//! Legs that only wait in memory behind a slow target are called back into the store first, so that no action is refused
//! but for a leg that a worker is sending at this moment.

use std::collections::{BTreeSet, HashMap, HashSet};

use serde::{Deserialize, Serialize};

use super::replan;
use crate::address::Mailbox;
use crate::clock::Timestamp;
use crate::events::{self, masked};
use crate::id::LegId;
use crate::inbound::{Inbound, Ruling};
use crate::queue::sqlite::{Filter, LegRow, OperateResult, Operated, Operation, Replacement, SqliteStore};
use crate::queue::{Store, StoreError};
use crate::rules::LegPlan;

/// What is to be done.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    Retry,
    Hold,
    Release,
    Bounce,
    Drop,
    Deny,
    /// To a target's name or an address.
    Retarget {
        to: String,
    },
    Reroute {
        route: String,
    },
    Redecide,
}

impl Action {
    /// Whether it stops mail, sends it or gives it up: on everything at once that must be meant.
    #[must_use]
    pub fn is_drastic(&self) -> bool {
        match self {
            Action::Retry => false,
            Action::Hold
            | Action::Release
            | Action::Bounce
            | Action::Drop
            | Action::Deny
            | Action::Retarget { .. }
            | Action::Reroute { .. }
            | Action::Redecide => true,
        }
    }

    /// The command's word.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Action::Retry => "retry",
            Action::Hold => "hold",
            Action::Release => "release",
            Action::Bounce => "bounce",
            Action::Drop => "drop",
            Action::Deny => "deny",
            Action::Retarget { .. } => "retarget",
            Action::Reroute { .. } => "reroute",
            Action::Redecide => "redecide",
        }
    }
}

/// An action with its words looked up.
#[derive(Clone, Debug)]
pub enum Prepared {
    /// The same for each leg.
    Each(Operation),
    Release,
    Retarget(LegPlan),
    Redecide,
}

/// Looks up what an action names. The error says what there would be.
pub fn prepare(action: &Action, ruling: &Ruling) -> Result<Prepared, String> {
    Ok(match action {
        Action::Retry => Prepared::Each(Operation::Retry),
        Action::Hold => Prepared::Each(Operation::Hold),
        Action::Release => Prepared::Release,
        Action::Bounce => Prepared::Each(Operation::Bounce),
        Action::Drop => Prepared::Each(Operation::Drop),
        Action::Deny => Prepared::Each(Operation::Deny),
        Action::Retarget { to } => Prepared::Retarget(ruling.rules.leg_to(to)?),
        Action::Reroute { route } if ruling.routes.contains_key(route) => {
            Prepared::Each(Operation::Reroute { route: route.clone() })
        }
        Action::Reroute { route } => {
            let names: Vec<&str> = ruling.routes.keys().map(String::as_str).collect();
            return Err(format!("there is no route `{route}`; there are: {}", names.join(", ")));
        }
        Action::Redecide => Prepared::Redecide,
    })
}

impl Prepared {
    #[must_use]
    pub fn is_retry(&self) -> bool {
        matches!(self, Prepared::Each(Operation::Retry))
    }

    /// What is being sent, or is about to be, needs no retry; every other action wants the legs that wait in memory.
    fn wants_waiting(&self) -> bool {
        !self.is_retry()
    }
}

/// What became of one leg.
#[derive(Debug)]
pub struct Told {
    pub leg: LegRow,
    pub done: bool,
    pub result: &'static str,
    pub note: String,
}

/// Cuts a page, newest first, into what is done in one transaction; no message is cut in two.
#[must_use]
pub fn bites(rows: Vec<LegRow>) -> Vec<Vec<LegRow>> {
    let mut bites: Vec<Vec<LegRow>> = Vec::new();
    for row in rows {
        match bites.last_mut() {
            Some(bite)
                if bite.len() < LEGS_AT_ONCE || bite.last().is_some_and(|last| last.id.message == row.id.message) =>
            {
                bite.push(row);
            }
            Some(_) | None => bites.push(vec![row]),
        }
    }
    bites
}

/// Who acts, and on what.
pub struct Operator<'a> {
    pub store: &'a SqliteStore,
    pub inbound: &'a Inbound,
    pub by: &'a str,
    pub dry_run: bool,
    pub now: Timestamp,
}

/// What is to be done, leg by leg, and what else there is to say of each.
#[derive(Default)]
struct Plan {
    operations: Vec<(LegId, Operation)>,
    notes: HashMap<LegId, String>,
    /// Not done, and why.
    refused: Vec<Told>,
}

impl Operator<'_> {
    /// Acts on these legs; tells what became of each.
    pub async fn act(&self, ruling: &Ruling, prepared: &Prepared, rows: Vec<LegRow>) -> Result<Vec<Told>, String> {
        // Until they are dropped the lanes take none of these legs again.
        let lanes = match prepared.wants_waiting() {
            true => Some(self.inbound.handover.recall(routes(&rows, self.now)).await),
            false => None,
        };
        let open: HashSet<LegId> = rows.iter().filter(|row| row.state.is_open()).map(|row| row.id).collect();
        let rows = self.fresh(rows).await.map_err(said)?;
        let plan = match prepared {
            Prepared::Each(operation) => {
                let operations = rows.iter().map(|row| (row.id, operation.clone())).collect();
                Plan { operations, ..Plan::default() }
            }
            Prepared::Release => release(ruling, rows),
            Prepared::Retarget(to) => retarget(ruling, &rows, to, self.now)?,
            Prepared::Redecide => self.redecide(ruling, rows).await?,
        };
        let Plan { operations, mut notes, refused } = plan;
        let operated = self.store.operate(operations, self.dry_run, self.by, self.now).await.map_err(said)?;
        drop(lanes);
        let mut told: Vec<Told> = Vec::with_capacity(operated.len());
        for Operated { leg, result } in operated {
            let done = result == OperateResult::Done;
            if done && !self.dry_run {
                events::leg_entered(&leg.route, leg.state.as_str(), leg.reason.as_str());
            }
            let note = notes.remove(&leg.id).unwrap_or_default();
            told.push(Told { leg, done, result: word(result, self.dry_run), note });
        }
        told.extend(refused);
        // What was open when it was chosen and has ended since is no longer what was asked for.
        told.retain(|told| told.done || told.leg.state.is_open() || !open.contains(&told.leg.id));
        Ok(told)
    }

    /// The rows as they are now that their lanes gave back what waited.
    async fn fresh(&self, rows: Vec<LegRow>) -> Result<Vec<LegRow>, StoreError> {
        let mut fresh = Vec::with_capacity(rows.len());
        for row in rows {
            if row.in_flight {
                fresh.extend(self.store.query(Filter::leg(row.id)).await?);
            } else {
                fresh.push(row);
            }
        }
        Ok(fresh)
    }

    /// Decides the legs anew by today's rules, those of a message together.
    async fn redecide(&self, ruling: &Ruling, rows: Vec<LegRow>) -> Result<Plan, String> {
        let mut plan = Plan::default();
        let chosen: HashSet<LegId> = rows.iter().map(|row| row.id).collect();
        let messages: BTreeSet<_> = rows.iter().map(|row| row.id.message).collect();
        for id in messages {
            let Some(message) = self.store.message(id).await.map_err(said)? else { continue };
            let (aliases, paths): (Vec<_>, Vec<_>) = replan::return_paths(ruling, &message).into_iter().unzip();
            let known = self.store.originals(paths).await.map_err(said)?;
            let originals = aliases.into_iter().zip(known).collect();
            for redecided in replan::redecide(ruling, &message, &originals, &chosen, self.now)? {
                let to = format!("to {} by route {}", shown(&redecided.to), redecided.to.route);
                let note = if redecided.note.is_empty() { to } else { format!("{to}; {}", redecided.note) };
                plan.notes.insert(redecided.leg, note);
                plan.operations.push((redecided.leg, Operation::Redecide(Box::new(redecided.to))));
            }
        }
        let planned: HashSet<LegId> = plan.operations.iter().map(|(leg, _)| *leg).collect();
        for leg in rows.into_iter().filter(|row| !planned.contains(&row.id)) {
            let result = if leg.in_flight { OperateResult::InFlight } else { OperateResult::NotInThisState };
            let result = word(result, self.dry_run);
            plan.refused.push(Told { leg, done: false, result, note: String::new() });
        }
        Ok(plan)
    }
}

/// Where a recall may find some of the rows.
fn routes(rows: &[LegRow], now: Timestamp) -> BTreeSet<&str> {
    let may_wait = |row: &&LegRow| row.state.is_open() && (row.in_flight || row.due.is_some_and(|due| due <= now));
    rows.iter().filter(may_wait).map(|row| row.route.as_str()).collect()
}

/// A leg that the rules sent nowhere is addressed to its alias: sent there it would come back to us as new mail.
fn release(ruling: &Ruling, rows: Vec<LegRow>) -> Plan {
    let mut plan = Plan::default();
    for leg in rows {
        let addresses = (Mailbox::parse(&leg.recipient), Mailbox::parse(&leg.target));
        if let (Ok(recipient), Ok(target)) = addresses
            && ruling.comes_back(&recipient, &target, &leg.route)
        {
            let note = format!("`{target}` is an alias of ours, and it would come back: redecide or retarget it");
            plan.refused.push(Told { leg, done: false, result: "refused", note });
        } else {
            plan.operations.push((leg.id, Operation::Release));
        }
    }
    plan
}

fn retarget(ruling: &Ruling, rows: &[LegRow], to: &LegPlan, now: Timestamp) -> Result<Plan, String> {
    let mut plan = Plan::default();
    for row in rows {
        let replacement = replan::retarget(ruling, row, to, now)?;
        plan.notes.insert(row.id, format!("to {} by route {}", shown(&replacement), replacement.route));
        plan.operations.push((row.id, Operation::Retarget(Box::new(replacement))));
    }
    Ok(plan)
}

/// Where it goes: the target's name, or as much of its address as may be told.
fn shown(to: &Replacement) -> String {
    to.target_name.clone().unwrap_or_else(|| masked(to.target.as_str()))
}

fn word(result: OperateResult, dry_run: bool) -> &'static str {
    match (result, dry_run) {
        (OperateResult::Done, false) => "done",
        (OperateResult::Done, true) => "would be done",
        (OperateResult::InFlight, _) => "in flight: its attempt is under way, try again when it has ended",
        (OperateResult::NotInThisState, _) => "does not apply to its state",
    }
}

fn said(error: StoreError) -> String {
    error.to_string()
}

/// Legs moved in one transaction: what it takes of the writer's time nobody's mail notices.
const LEGS_AT_ONCE: usize = 1_000;
