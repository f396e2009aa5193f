//! What operators do to legs: each is one row moved and one row of the action table, in one transaction.
//!
//! A leg in flight is left alone and answered so: its attempt may already have been accepted by the other side, and
//! to move it now would lose it or send it twice. It can be acted on when its attempt has ended.

use rusqlite::params;

use crate::address::{Mailbox, ReversePath};
use crate::clock::Timestamp;
use crate::id::LegId;
use crate::queue::sqlite::returns;
use crate::queue::sqlite::rows::{Filter, LegRow, legs};
use crate::queue::sqlite::settle::{Note, drop_body_unless_needed, insert_action, remember_target};
use crate::queue::sqlite::writer::{Group, Work};
use crate::queue::{Authorship, Reason, State};

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Due now: queued legs, and held ones that have a due time.
    Retry,
    /// Waits for an operator.
    Hold,
    /// Held or quarantined legs go on their way.
    Release,
    /// Ends as bounced; the caller composes what the sender is told.
    Bounce,
    /// Ends as discarded.
    Drop,
    /// Ends a quarantined leg as discarded.
    Deny,
    /// To another target.
    Retarget(Box<Replacement>),
    /// To the same target by another route.
    Reroute { route: String },
    /// What today's rules say about this leg, as the caller evaluated them.
    Redecide(Box<Replacement>),
}

/// A leg as it is planned anew: all that depends on where it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replacement {
    pub target: Mailbox,
    pub target_name: Option<String>,
    pub route: String,
    pub sender: ReversePath,
    /// Where that is a return path of ours.
    pub authorship: Option<Authorship>,
    pub state: State,
    pub reason: Reason,
    pub detail: String,
    pub due: Option<Timestamp>,
    pub rules: Vec<String>,
    /// Header fields of this copy alone.
    pub prefix: Vec<u8>,
}

impl Replacement {
    /// What people call its target: the address itself may be a secret.
    #[must_use]
    pub fn target_word(&self) -> &str {
        self.target_name.as_deref().unwrap_or(self.target.as_str())
    }
}

/// What became of one leg.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operated {
    /// As it stands now; in a dry run, as it stands still.
    pub leg: LegRow,
    pub result: OperateResult,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OperateResult {
    /// It was moved; in a dry run, it would be.
    Done,
    /// Its attempt is under way: try again when it has ended.
    InFlight,
    /// The operation does not apply to its state.
    NotInThisState,
}

impl Operation {
    /// The command's word.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Operation::Retry => "retry",
            Operation::Hold => "hold",
            Operation::Release => "release",
            Operation::Bounce => "bounce",
            Operation::Drop => "drop",
            Operation::Deny => "deny",
            Operation::Retarget(_) => "retarget",
            Operation::Reroute { .. } => "reroute",
            Operation::Redecide(_) => "redecide",
        }
    }

    fn applies_to(&self, leg: &LegRow) -> bool {
        match self {
            Operation::Retry => leg.state == State::Queued || (leg.state == State::Held && leg.due.is_some()),
            Operation::Release => matches!(leg.state, State::Held | State::Quarantined),
            Operation::Deny => leg.state == State::Quarantined,
            Operation::Hold
            | Operation::Bounce
            | Operation::Drop
            | Operation::Retarget(_)
            | Operation::Reroute { .. }
            | Operation::Redecide(_) => leg.state.is_open(),
        }
    }

    /// The leg as it would stand at `now`.
    fn moved(&self, leg: &LegRow, now: Timestamp) -> Moved {
        let mut to = Moved {
            state: leg.state,
            reason: Reason::Operator,
            detail: leg.detail.clone(),
            due: leg.due,
            target: leg.target.clone(),
            target_name: leg.target_name.clone(),
            route: leg.route.clone(),
            sender: leg.sender.clone(),
            authorship: None,
            rules: leg.rules.clone(),
            prefix: None,
        };
        match self {
            Operation::Retry => {
                to.due = Some(now);
                to.reason = leg.reason;
            }
            Operation::Hold => (to.state, to.due) = (State::Held, None),
            Operation::Release => (to.state, to.due) = (State::Queued, Some(now)),
            Operation::Bounce => to.state = State::Bounced,
            Operation::Drop | Operation::Deny => to.state = State::Discarded,
            Operation::Reroute { route } => {
                to.route.clone_from(route);
                (to.state, to.due) = (State::Queued, Some(now));
            }
            Operation::Retarget(new) | Operation::Redecide(new) => {
                return Moved {
                    state: new.state,
                    reason: new.reason,
                    detail: new.detail.clone(),
                    due: new.due,
                    target: new.target.as_str().to_owned(),
                    target_name: new.target_name.clone(),
                    route: new.route.clone(),
                    sender: new.sender.as_str().to_owned(),
                    authorship: new.authorship.clone(),
                    rules: new.rules.clone(),
                    prefix: Some(new.prefix.clone()),
                };
            }
        }
        to
    }
}

struct Moved {
    state: State,
    reason: Reason,
    detail: String,
    due: Option<Timestamp>,
    target: String,
    target_name: Option<String>,
    route: String,
    sender: String,
    authorship: Option<Authorship>,
    rules: Vec<String>,
    /// `None`: as it is.
    prefix: Option<Vec<u8>>,
}

pub(super) struct Operate {
    pub(super) operations: Vec<(LegId, Operation)>,
    pub(super) dry_run: bool,
    pub(super) by: String,
    pub(super) at: Timestamp,
}

impl Work for Operate {
    type Output = Vec<Operated>;

    fn run(&self, group: &mut Group<'_>) -> rusqlite::Result<Vec<Operated>> {
        let mut done = Vec::new();
        for (id, operation) in &self.operations {
            // A leg that is not there (any more) was swept: there is nothing to say of it.
            let Some(leg) = legs(group.db, &Filter::leg(*id))?.pop() else { continue };
            let result = if leg.in_flight && leg.state.is_open() {
                OperateResult::InFlight
            } else if operation.applies_to(&leg) {
                OperateResult::Done
            } else {
                OperateResult::NotInThisState
            };
            let leg =
                if result == OperateResult::Done && !self.dry_run { self.act(group, leg, operation)? } else { leg };
            done.push(Operated { leg, result });
        }
        Ok(done)
    }
}

impl Operate {
    fn act(&self, group: &mut Group<'_>, leg: LegRow, operation: &Operation) -> rusqlite::Result<LegRow> {
        let to = operation.moved(&leg, self.at);
        let open = to.state.is_open();
        let target_changes = to.target != leg.target;
        if target_changes {
            remember_target(group.db, leg.id)?;
        }
        let mut update = group.db.prepare_cached(
            "UPDATE leg SET state = ?3, reason = ?4, detail = ?5, due = ?6, ended = ?7, target = ?8, target_name = ?9,
                 route = ?10, sender = ?11, rules = ?12, actor = ?13, dedupe = CASE WHEN ?14 THEN NULL ELSE dedupe END,
                 since = CASE state WHEN ?3 THEN since ELSE ?15 END, prefix = coalesce(?16, prefix)
             WHERE message = ?1 AND n = ?2",
        )?;
        update.execute(params![
            leg.id.message.0,
            leg.id.n,
            to.state.as_str(),
            to.reason.as_str(),
            to.detail,
            to.due.filter(|_| to.state.can_be_due()).map(|due| due.0),
            (!open).then_some(self.at.0),
            to.target,
            to.target_name,
            to.route,
            to.sender,
            crate::queue::sqlite::rows::json_list(&to.rules),
            self.by,
            target_changes,
            self.at.0,
            to.prefix,
        ])?;
        if let Some(authorship) = &to.authorship {
            returns::note(group.db, authorship)?;
        }
        let detail = format!("{} {} -> {} {}", leg.state, leg.target, to.state, to.target);
        let note = Note { at: self.at, actor: &self.by, operation: operation.as_str(), detail: &detail };
        insert_action(group.db, leg.id, &note)?;
        group.effects.count(&leg.route, leg.state, -1);
        group.effects.count(&to.route, to.state, 1);
        if !open {
            drop_body_unless_needed(group, leg.id.message)?;
        } else if to.due.is_some_and(|due| due <= self.at) {
            group.effects.wake(&to.route);
        }
        Ok(legs(group.db, &Filter::leg(leg.id))?.pop().unwrap_or(leg))
    }
}
