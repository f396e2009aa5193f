//! Moving a leg on: an attempt's outcome, and what it causes, in one transaction.

use rusqlite::{Connection, OptionalExtension, params};

use crate::clock::Timestamp;
use crate::id::{LegId, MessageId};
use crate::queue::sqlite::commit::{insert, insert_leg, leave_to_store};
use crate::queue::sqlite::rows::json_list;
use crate::queue::sqlite::writer::{Group, Work};
use crate::queue::sqlite::{Node, returns};
use crate::queue::{Attempt, FollowUp, GivenBack, Redirect, Settled, Settlement, State};

pub(super) struct Settle {
    pub(super) settlements: Vec<Settlement>,
}

impl Work for Settle {
    type Output = Vec<Settled>;

    fn run(&self, group: &mut Group<'_>) -> rusqlite::Result<Vec<Settled>> {
        self.settlements.iter().map(|settlement| settle(group, settlement)).collect()
    }

    fn committed(&self) {
        for follow_up in self.settlements.iter().flat_map(|settlement| &settlement.follow_ups) {
            if let FollowUp::Message(message, _) = follow_up {
                leave_to_store(message);
            }
        }
    }
}

fn settle(group: &mut Group<'_>, to: &Settlement) -> rusqlite::Result<Settled> {
    let mut question = group.db.prepare_cached(
        "SELECT state, route, attempts FROM leg
         WHERE message = ?1 AND n = ?2 AND owner = ?3 AND epoch = ?4 AND ended IS NULL",
    )?;
    let key = params![to.leg.message.0, to.leg.n, Node::ID, to.epoch as i64];
    let before = question
        .query_row(key, |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?, row.get::<_, u32>(2)?)))
        .optional()?;
    let Some((state, route, attempts)) = before else { return Ok(Settled::NotOurs) };
    if let Some(state) = State::parse(&state) {
        group.effects.count(&route, state, -1);
    }
    group.effects.count(&route, to.state, 1);
    let attempts = attempts + u32::from(to.attempt.is_some());
    update(group, to, attempts)?;
    if let Some(attempt) = &to.attempt {
        // Nearly all mail is delivered at its first attempt; its leg's own row tells all of that.
        if !(attempts == 1 && to.state == State::Delivered) {
            insert_attempt(group.db, to.leg, attempts, attempt)?;
        }
    }
    for follow_up in &to.follow_ups {
        follow(group, to, follow_up)?;
    }
    if !to.state.is_open() {
        drop_body_unless_needed(group, to.leg.message)?;
    } else if to.due.is_some_and(|due| due <= to.at) {
        group.effects.wake(&route);
    }
    Ok(Settled::Done)
}

fn update(group: &Group<'_>, to: &Settlement, attempts: u32) -> rusqlite::Result<()> {
    let open = to.state.is_open();
    let mut update = group.db.prepare_cached(
        "UPDATE leg SET state = ?3, reason = ?4, detail = ?5, due = ?6, ended = ?7, owner = NULL, epoch = NULL,
             attempts = ?8, dsn = ?9, since = CASE state WHEN ?3 THEN since ELSE ?10 END
         WHERE message = ?1 AND n = ?2",
    )?;
    let mut update_with_attempt = group.db.prepare_cached(
        "UPDATE leg SET state = ?3, reason = ?4, detail = ?5, due = ?6, ended = ?7, owner = NULL, epoch = NULL,
             attempts = ?8, dsn = ?9, since = CASE state WHEN ?3 THEN since ELSE ?10 END, started = ?11, took = ?12,
             host = ?13, stage = ?14, result = ?15, reply = ?16
         WHERE message = ?1 AND n = ?2",
    )?;
    let (message, n, state, reason) = (to.leg.message.0, to.leg.n, to.state.as_str(), to.reason.as_str());
    let due = to.due.filter(|_| to.state.can_be_due()).map(|due| due.0);
    let ended = (!open).then_some(to.at.0);
    let dsn = to.dsn.map(|dsn| dsn.as_str());
    match &to.attempt {
        None => update.execute(params![message, n, state, reason, to.detail, due, ended, attempts, dsn, to.at.0])?,
        Some(last) => update_with_attempt.execute(params![
            message,
            n,
            state,
            reason,
            to.detail,
            due,
            ended,
            attempts,
            dsn,
            to.at.0,
            last.started.0,
            last.duration.as_millis() as i64,
            last.host,
            last.stage,
            last.result,
            last.reply
        ])?,
    };
    Ok(())
}

fn insert_attempt(db: &Connection, leg: LegId, number: u32, attempt: &Attempt) -> rusqlite::Result<()> {
    let mut insert = db.prepare_cached(
        "INSERT INTO attempt (message, n, number, started, took, host, stage, result, reply)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
    )?;
    insert.execute(params![
        leg.message.0,
        leg.n,
        number,
        attempt.started.0,
        attempt.duration.as_millis() as i64,
        attempt.host,
        attempt.stage,
        attempt.result,
        attempt.reply
    ])?;
    Ok(())
}

fn follow(group: &mut Group<'_>, to: &Settlement, follow_up: &FollowUp) -> rusqlite::Result<()> {
    match follow_up {
        FollowUp::Message(message, legs) => insert(group, message, legs, Some(to.leg)).map(drop),
        FollowUp::Leg(leg) => {
            let message = to.leg.message;
            let mut next = group.db.prepare_cached("SELECT max(n) + 1 FROM leg WHERE message = ?1")?;
            let mut leg = (**leg).clone();
            leg.n = next.query_row([message.0], |row| row.get(0))?;
            // Nobody holds a slot for it.
            leg.handed_over = false;
            insert_leg(group, message, to.at, &leg, false)?;
            group.db.prepare_cached("UPDATE message SET legs = legs + 1 WHERE id = ?1")?.execute([message.0])?;
            group.effects.legs += 1;
            Ok(())
        }
        FollowUp::Redirect(redirect) => {
            let Redirect { target, target_name, route, sender, authorship, prefix } = &**redirect;
            remember_target(group.db, to.leg)?;
            let (old, before): (String, String) = group.db.query_row(
                "SELECT route, target FROM leg WHERE message = ?1 AND n = ?2",
                params![to.leg.message.0, to.leg.n],
                |row| Ok((row.get(0)?, row.get(1)?)),
            )?;
            let detail = format!("{before} by {old} -> {target} by {route}");
            insert_action(
                group.db,
                to.leg,
                &Note { at: to.at, actor: "pointsman", operation: "fallback", detail: &detail },
            )?;
            if let Some(authorship) = authorship {
                returns::note(group.db, authorship)?;
            }
            group.effects.count(&old, to.state, -1);
            group.effects.count(route, to.state, 1);
            let mut update = group.db.prepare_cached(
                "UPDATE leg SET target = ?3, target_name = ?4, route = ?5, sender = ?6, prefix = coalesce(?7, prefix), dedupe = NULL
                 WHERE message = ?1 AND n = ?2",
            )?;
            let (target, sender) = (target.as_str(), sender.as_str());
            update.execute(params![to.leg.message.0, to.leg.n, target, target_name, route, sender, prefix])?;
            if to.due.is_some_and(|due| due <= to.at) {
                group.effects.wake(route);
            }
            Ok(())
        }
    }
}

/// Puts a leg's target on the list of its earlier ones, before it gets another.
pub(super) fn remember_target(db: &Connection, leg: LegId) -> rusqlite::Result<()> {
    let (target, earlier): (String, Option<String>) = db.query_row(
        "SELECT target, earlier_targets FROM leg WHERE message = ?1 AND n = ?2",
        params![leg.message.0, leg.n],
        |row| Ok((row.get(0)?, row.get(1)?)),
    )?;
    let mut list: Vec<String> = earlier.and_then(|json| serde_json::from_str(&json).ok()).unwrap_or_default();
    list.push(target);
    // The first targets tell most; a leg that is sent round and round must not grow without end.
    list.truncate(EARLIER_TARGETS_MAX);
    let mut update = db.prepare_cached("UPDATE leg SET earlier_targets = ?3 WHERE message = ?1 AND n = ?2")?;
    update.execute(params![leg.message.0, leg.n, json_list(&list)])?;
    Ok(())
}

/// Drops a message's body after its last leg ended, unless bodies are kept for redelivery; then the sweep does it.
pub(super) fn drop_body_unless_needed(group: &mut Group<'_>, message: MessageId) -> rusqlite::Result<()> {
    if group.shared.retention().bodies.is_zero() {
        let mut open =
            group.db.prepare_cached("SELECT EXISTS (SELECT 1 FROM leg WHERE message = ?1 AND ended IS NULL)")?;
        if !open.query_row([message.0], |row| row.get::<_, bool>(0))? {
            drop_body(group, message)?;
        }
    }
    Ok(())
}

pub(super) fn drop_body(group: &mut Group<'_>, message: MessageId) -> rusqlite::Result<()> {
    let mut delete = group.db.prepare_cached("DELETE FROM body WHERE id = ?1 RETURNING file")?;
    let file: Option<Option<String>> = delete.query_row([message.0], |row| row.get(0)).optional()?;
    group.effects.unlink.extend(file.flatten());
    Ok(())
}

/// Legs given back unsettled.
pub(super) struct Release {
    pub(super) legs: Vec<LegId>,
    /// `None`: as due as it was.
    pub(super) due: Option<Timestamp>,
    pub(super) how: GivenBack,
}

impl Work for Release {
    type Output = ();

    fn run(&self, group: &mut Group<'_>) -> rusqlite::Result<()> {
        let mut update = group.db.prepare_cached(
            "UPDATE leg SET owner = NULL, epoch = NULL, due = coalesce(?5, due)
             WHERE message = ?1 AND n = ?2 AND owner = ?3 AND epoch = ?4 AND ended IS NULL RETURNING route",
        )?;
        for leg in &self.legs {
            let key = params![leg.message.0, leg.n, Node::ID, group.node.epoch as i64, self.due.map(|due| due.0)];
            let route: Option<String> = update.query_row(key, |row| row.get(0)).optional()?;
            let Some(route) = route else { continue };
            match self.how {
                GivenBack::Unattempted => {}
                GivenBack::CutOff { by } => note_cut_off(group.db, *leg, by, group.shared.clock.now())?,
            }
            if self.due.is_none() {
                // Given back because nobody took it: somebody should.
                group.effects.wake(&route);
            }
        }
        Ok(())
    }
}

/// Writes down that an attempt had no end, where `trace` shows it for good: it may explain a message that came twice.
pub(super) fn note_cut_off(db: &Connection, leg: LegId, by: &str, at: Timestamp) -> rusqlite::Result<()> {
    let detail = format!("cut off by {by}; the remote may have taken the message");
    let mut update = db.prepare_cached("UPDATE leg SET detail = ?3 WHERE message = ?1 AND n = ?2")?;
    update.execute(params![leg.message.0, leg.n, detail])?;
    insert_action(db, leg, &Note { at, actor: "pointsman", operation: "cut-off", detail: &detail })
}

/// A line of a leg's story that is no attempt.
pub(super) struct Note<'a> {
    pub(super) at: Timestamp,
    pub(super) actor: &'a str,
    pub(super) operation: &'a str,
    pub(super) detail: &'a str,
}

pub(super) fn insert_action(db: &Connection, leg: LegId, note: &Note<'_>) -> rusqlite::Result<()> {
    let mut insert = db.prepare_cached(
        "INSERT INTO action (message, n, at, number, actor, operation, detail)
         VALUES (?1, ?2, ?3,
             (SELECT coalesce(max(number), 0) + 1 FROM action WHERE message = ?1 AND n = ?2 AND at = ?3), ?4, ?5, ?6)",
    )?;
    insert.execute(params![leg.message.0, leg.n, note.at.0, note.actor, note.operation, note.detail])?;
    Ok(())
}

// An operator's patience ends before.
const EARLIER_TARGETS_MAX: usize = 32;
