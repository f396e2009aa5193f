//! The retention, in small bites between groups: ledger rows, kept bodies, old quarantine, return paths, free pages.
//!
//! Only a message whose legs are all final is ever swept. A bite reads on from where the last one stopped, oldest
//! first, and begins anew when it meets what is too young.

use rusqlite::params;

use crate::clock::Timestamp;
use crate::id::{LegId, MessageId};
use crate::queue::sqlite::returns;
use crate::queue::sqlite::settle::{drop_body, drop_body_unless_needed};
use crate::queue::sqlite::writer::{Group, Work};
use crate::queue::{Reason, State};

/// One bite.
pub(super) struct Sweep {
    pub(super) now: Timestamp,
    /// Quarantine is looked through, too, which reads all open legs: once a minute is enough.
    pub(super) quarantine: bool,
}

/// Where the next bite begins.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Cursor {
    message: i64,
    body: i64,
}

impl Work for Sweep {
    type Output = ();

    fn run(&self, group: &mut Group<'_>) -> rusqlite::Result<()> {
        let mut cursor = group.shared.cursor();
        cursor.message = self.sweep_ledger(group, cursor.message)?;
        if !group.shared.retention().bodies.is_zero() {
            cursor.body = self.sweep_bodies(group, cursor.body)?;
        }
        if self.quarantine {
            self.end_quarantine(group)?;
            returns::sweep(group, self.now, BITE)?;
        }
        vacuum(group)?;
        group.shared.set_cursor(cursor);
        Ok(())
    }
}

impl Sweep {
    fn sweep_ledger(&self, group: &mut Group<'_>, from: i64) -> rusqlite::Result<i64> {
        let mut question = group.db.prepare_cached(
            "SELECT id, received,
                 (SELECT CASE WHEN count(ended) = count(*) THEN coalesce(max(ended), 0) END FROM leg
                  WHERE message = id)
             FROM message WHERE id > ?1 ORDER BY id LIMIT ?2",
        )?;
        let found: Vec<(i64, i64, Option<i64>)> = question
            .query_map(params![from, BITE], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?
            .collect::<rusqlite::Result<_>>()?;
        let ledger = group.shared.retention().ledger;
        let old = |at: i64| self.now.since(Timestamp(at)) > ledger;
        for (id, received, ended) in &found {
            if !old(*received) {
                return Ok(0);
            }
            if ended.is_some_and(old) {
                sweep_message(group, MessageId(*id))?;
            }
        }
        Ok(next_cursor(&found, |(id, _, _)| *id))
    }

    fn sweep_bodies(&self, group: &mut Group<'_>, from: i64) -> rusqlite::Result<i64> {
        let mut question = group.db.prepare_cached(
            "SELECT id, (SELECT CASE WHEN count(ended) = count(*) THEN coalesce(max(ended), 0) END FROM leg
                         WHERE message = body.id)
             FROM body WHERE id > ?1 ORDER BY id LIMIT ?2",
        )?;
        let found: Vec<(i64, Option<i64>)> = question
            .query_map(params![from, BITE], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect::<rusqlite::Result<_>>()?;
        let kept = group.shared.retention().bodies;
        for (id, ended) in &found {
            if ended.is_some_and(|at| self.now.since(Timestamp(at)) > kept) {
                drop_body(group, MessageId(*id))?;
            }
        }
        Ok(next_cursor(&found, |(id, _)| *id))
    }

    /// What nobody released in time is discarded, and says so. The time counts from when the leg came into the
    /// quarantine: an old message that an operator puts there has its days like a new one.
    fn end_quarantine(&self, group: &mut Group<'_>) -> rusqlite::Result<()> {
        let kept = group.shared.retention().quarantine;
        let before = self.now.0.saturating_sub(i64::try_from(kept.as_millis()).unwrap_or(i64::MAX));
        let mut question = group.db.prepare_cached(
            "SELECT message, n, route FROM leg WHERE ended IS NULL AND state = 'quarantined' AND since < ?1 LIMIT ?2",
        )?;
        let found: Vec<(i64, u16, String)> = question
            .query_map(params![before, BITE], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?
            .collect::<rusqlite::Result<_>>()?;
        let mut end = group.db.prepare_cached(
            "UPDATE leg SET state = ?3, reason = ?4, detail = ?5, due = NULL, ended = ?6, since = ?6
             WHERE message = ?1 AND n = ?2",
        )?;
        for (message, n, route) in found {
            let (state, reason) = (State::Discarded.as_str(), Reason::Expired.as_str());
            let detail = format!("nobody released it within {} days", kept.as_secs() / 86_400);
            end.execute(params![message, n, state, reason, detail, self.now.0])?;
            group.effects.count(&route, State::Quarantined, -1);
            drop_body_unless_needed(group, MessageId(message))?;
            group.effects.given_up.push((LegId { message: MessageId(message), n }, route));
        }
        Ok(())
    }
}

/// Behind the last row of a full bite, else at the beginning again.
fn next_cursor<T>(found: &[T], id: impl Fn(&T) -> i64) -> i64 {
    if (found.len() as i64) < BITE { 0 } else { found.last().map_or(0, id) }
}

fn sweep_message(group: &mut Group<'_>, id: MessageId) -> rusqlite::Result<()> {
    drop_body(group, id)?;
    let db = group.db;
    db.prepare_cached("DELETE FROM attempt WHERE message = ?1")?.execute([id.0])?;
    db.prepare_cached("DELETE FROM action WHERE message = ?1")?.execute([id.0])?;
    db.prepare_cached(
        "DELETE FROM dedupe WHERE message = ?1 AND key IN
             (SELECT dedupe FROM leg WHERE message = ?1 AND dedupe IS NOT NULL)",
    )?
    .execute([id.0])?;
    let legs = db.prepare_cached("DELETE FROM leg WHERE message = ?1")?.execute([id.0])?;
    db.prepare_cached("DELETE FROM message WHERE id = ?1")?.execute([id.0])?;
    group.effects.messages_swept += 1;
    group.effects.legs_swept += legs as i64;
    Ok(())
}

/// Gives free pages back to the file system, a few at a time, once there are many more than the next hour will use.
fn vacuum(group: &Group<'_>) -> rusqlite::Result<()> {
    let mut free = group.db.prepare_cached("PRAGMA freelist_count")?;
    if free.query_row([], |row| row.get::<_, i64>(0))? > FREE_PAGES_KEPT {
        let mut vacuum = group.db.prepare(&format!("PRAGMA incremental_vacuum({VACUUM_PAGES})"))?;
        let mut rows = vacuum.query([])?;
        while rows.next()?.is_some() {}
    }
    Ok(())
}

// A few milliseconds of the writer's time.
const BITE: i64 = 250;
// 256 MiB of 4 KiB pages.
const FREE_PAGES_KEPT: i64 = 65_536;
const VACUUM_PAGES: i64 = 256;
