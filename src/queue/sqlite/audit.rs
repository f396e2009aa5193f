//! Who commanded what: a row before a command acts, and how it ended in the same row afterwards, both synced.
//!
//! So a command that was cut off by a crash is there, without an end. The newest [`ROWS_MAX`] rows are kept.

use rusqlite::types::Value;
use rusqlite::{Connection, Row, params, params_from_iter};

use crate::clock::Timestamp;
use crate::queue::sqlite::writer::{Group, Work};

/// A command that acted, or began to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AuditRow {
    pub at: Timestamp,
    /// Of the control socket's peer, as the kernel says.
    pub uid: Option<u32>,
    pub pid: Option<i32>,
    /// The user's name, as the system's list of users says.
    pub user: Option<String>,
    pub action: String,
    /// On what, as it was typed; intake addresses masked.
    pub chosen: String,
    /// `None`: under way, or cut off.
    pub outcome: Option<String>,
}

/// Which commands. All that is given must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AuditFilter {
    /// A user's name or number.
    pub user: Option<String>,
    /// The command, or its first words.
    pub action: Option<String>,
    pub since: Option<Timestamp>,
    pub until: Option<Timestamp>,
    pub limit: usize,
}

/// The row's number, for [`AuditEnd`].
pub(super) struct AuditBegin(pub(super) AuditRow);

impl Work for AuditBegin {
    type Output = i64;

    fn run(&self, group: &mut Group<'_>) -> rusqlite::Result<i64> {
        let AuditRow { at, uid, pid, user, action, chosen, outcome } = &self.0;
        let mut insert = group.db.prepare_cached(
            "INSERT INTO audit (at, uid, pid, user, action, chosen, outcome) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        )?;
        insert.execute(params![at.0, uid, pid, user, action, chosen, outcome])?;
        let id = group.db.last_insert_rowid();
        group.db.prepare_cached("DELETE FROM audit WHERE id <= ?1")?.execute([id - ROWS_MAX])?;
        Ok(id)
    }
}

pub(super) struct AuditEnd {
    pub(super) id: i64,
    pub(super) outcome: String,
}

impl Work for AuditEnd {
    type Output = ();

    fn run(&self, group: &mut Group<'_>) -> rusqlite::Result<()> {
        let mut update = group.db.prepare_cached("UPDATE audit SET outcome = ?2 WHERE id = ?1")?;
        update.execute(params![self.id, self.outcome])?;
        Ok(())
    }
}

/// Newest first.
pub(super) fn audit(db: &Connection, filter: &AuditFilter) -> rusqlite::Result<Vec<AuditRow>> {
    let mut question = db.prepare_cached(
        "SELECT at, uid, pid, user, action, chosen, outcome FROM audit
         WHERE (?1 IS NULL OR user = ?1 OR CAST(uid AS TEXT) = ?1)
             AND (?2 IS NULL OR action = ?2 OR substr(action, 1, length(?2) + 1) = ?2 || ' ')
             AND at >= ?3 AND at < ?4
         ORDER BY id DESC LIMIT ?5",
    )?;
    let text = |text: &Option<String>| text.clone().map_or(Value::Null, Value::Text);
    let values = [
        text(&filter.user),
        text(&filter.action),
        Value::Integer(filter.since.map_or(i64::MIN, |since| since.0)),
        Value::Integer(filter.until.map_or(i64::MAX, |until| until.0)),
        Value::Integer(i64::try_from(filter.limit).unwrap_or(i64::MAX)),
    ];
    question.query_map(params_from_iter(values), audit_row)?.collect()
}

fn audit_row(row: &Row<'_>) -> rusqlite::Result<AuditRow> {
    Ok(AuditRow {
        at: Timestamp(row.get(0)?),
        uid: row.get(1)?,
        pid: row.get(2)?,
        user: row.get(3)?,
        action: row.get(4)?,
        chosen: row.get(5)?,
        outcome: row.get(6)?,
    })
}

/// A command a minute for two months; at some 200 octets each 20 MiB.
pub(super) const ROWS_MAX: i64 = 100_000;
