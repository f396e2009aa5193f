//! What was delivered goes out once more: a further leg of its message, from the body that the retention keeps.
//!
//! The mark of it is in the ledger: the new leg has an action `redeliver` that names the leg it repeats, and that one an
//! action `redelivered` that names its copy. What has either is not repeated again unless that is said. The time for which the new
//! leg is tried counts from here (`claim` reads the action).

use std::time::Duration;

use rusqlite::{OptionalExtension, params};

use crate::address::ReversePath;
use crate::clock::Timestamp;
use crate::id::LegId;
use crate::queue::sqlite::settle::{Note, insert_action};
use crate::queue::sqlite::writer::{Group, Work};
use crate::queue::sqlite::{Filter, SqliteStore, returns, rows};
use crate::queue::{Authorship, State, StoreError};

/// A leg that is to go out once more.
#[derive(Clone, Debug)]
pub struct Repeat {
    pub leg: LegId,
    /// What the next hop is told now: an old return path may have run out.
    pub sender: ReversePath,
    /// Where that is one of ours.
    pub authorship: Option<Authorship>,
}

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeated {
    /// By this leg; none in a dry run.
    Done(Option<LegId>),
    /// Its body is not kept any more.
    NoBody,
    /// It was repeated before, or repeats another.
    Before,
    /// It was not delivered.
    NotDelivered,
}

pub(super) struct Redeliver {
    repeats: Vec<Repeat>,
    again: bool,
    dry_run: bool,
    by: String,
    at: Timestamp,
}

impl SqliteStore {
    /// For how long bodies are kept when their legs have ended; zero: not at all.
    #[must_use]
    pub fn bodies_kept(&self) -> Duration {
        self.shared.retention().bodies
    }

    /// How many legs the filter chooses.
    pub async fn count(&self, filter: Filter) -> Result<usize, StoreError> {
        self.questions.ask(move |db| rows::count(db, &filter)).await
    }

    /// Makes a further leg for each of these, all in one transaction, and says what became of them in the same order. `again`
    /// repeats also what was repeated before. `by` names the operator in the ledger.
    pub async fn redeliver(
        &self,
        repeats: Vec<Repeat>,
        (again, dry_run): (bool, bool),
        by: &str,
        at: Timestamp,
    ) -> Result<Vec<Repeated>, StoreError> {
        self.ask(Redeliver { repeats, again, dry_run, by: by.to_owned(), at }).await
    }
}

impl Work for Redeliver {
    type Output = Vec<Repeated>;

    fn run(&self, group: &mut Group<'_>) -> rusqlite::Result<Vec<Repeated>> {
        self.repeats.iter().map(|repeat| self.repeat(group, repeat)).collect()
    }
}

impl Redeliver {
    fn repeat(&self, group: &mut Group<'_>, repeat: &Repeat) -> rusqlite::Result<Repeated> {
        let (message, n) = (repeat.leg.message.0, repeat.leg.n);
        let mut question = group.db.prepare_cached(
            "SELECT state, route, EXISTS (SELECT 1 FROM body WHERE id = ?1),
                 EXISTS (SELECT 1 FROM action WHERE message = ?1 AND n = ?2 AND operation IN ('redeliver', 'redelivered')),
                 (SELECT max(n) + 1 FROM leg WHERE message = ?1)
             FROM leg WHERE message = ?1 AND n = ?2",
        )?;
        let found = question
            .query_row(params![message, n], |row| {
                Ok((
                    row.get::<_, String>(0)?,
                    row.get::<_, String>(1)?,
                    row.get::<_, bool>(2)?,
                    row.get::<_, bool>(3)?,
                    row.get::<_, i64>(4)?,
                ))
            })
            .optional()?;
        let Some((state, route, has_body, before, next)) = found else { return Ok(Repeated::NotDelivered) };
        let Ok(next) = u16::try_from(next) else { return Ok(Repeated::Before) };
        if state != State::Delivered.as_str() {
            return Ok(Repeated::NotDelivered);
        }
        if before && !self.again {
            return Ok(Repeated::Before);
        }
        if !has_body {
            return Ok(Repeated::NoBody);
        }
        if self.dry_run {
            return Ok(Repeated::Done(None));
        }
        let copy = LegId { n: next, ..repeat.leg };
        self.insert(group, repeat, copy)?;
        group.effects.count(&route, State::Queued, 1);
        group.effects.wake(&route);
        Ok(Repeated::Done(Some(copy)))
    }

    /// The new leg is as the old one was, but for who is told: nobody wants to hear that what he sent long ago, and what
    /// arrived, did not arrive again. No key suppresses it.
    fn insert(&self, group: &mut Group<'_>, repeat: &Repeat, copy: LegId) -> rusqlite::Result<()> {
        let Redeliver { by, at, .. } = self;
        let mut insert = group.db.prepare_cached(
            "INSERT INTO leg (message, n, alias, target, target_name, route, sender, state, reason, detail, since, due,
                 attempts, prefix, cuts, rules, body, actor)
             SELECT message, ?3, alias, target, target_name, route, ?4, 'queued', 'operator', ?5, ?6, ?6,
                 0, prefix, cuts, rules, body, ?7
             FROM leg WHERE message = ?1 AND n = ?2",
        )?;
        let (old, new) = (repeat.leg, copy);
        let detail = format!("redelivers {old}");
        insert.execute(params![old.message.0, old.n, new.n, repeat.sender.as_str(), detail, at.0, by])?;
        group.db.prepare_cached("UPDATE message SET legs = legs + 1 WHERE id = ?1")?.execute([old.message.0])?;
        group.effects.legs += 1;
        if let Some(authorship) = &repeat.authorship {
            returns::note(group.db, authorship)?;
        }
        let copied = format!("by {new}");
        insert_action(group.db, new, &Note { at: *at, actor: by, operation: "redeliver", detail: &detail })?;
        insert_action(group.db, old, &Note { at: *at, actor: by, operation: "redelivered", detail: &copied })
    }
}
