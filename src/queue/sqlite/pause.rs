//! Routes that an operator paused: a row for each, so that a restart does not set mail going that somebody stopped.

use rusqlite::{Connection, OptionalExtension, Row, params};

use crate::clock::Timestamp;
use crate::queue::sqlite::rows::PauseRow;
use crate::queue::sqlite::writer::{Group, Work};

/// Pauses a route, or gives its pause another end.
pub(super) struct Pause(pub(super) PauseRow);

impl Work for Pause {
    type Output = ();

    fn run(&self, group: &mut Group<'_>) -> rusqlite::Result<()> {
        let mut insert = group
            .db
            .prepare_cached("INSERT OR REPLACE INTO pause (route, since, until, actor) VALUES (?1, ?2, ?3, ?4)")?;
        let PauseRow { route, since, until, actor } = &self.0;
        insert.execute(params![route, since.0, until.map(|until| until.0), actor])?;
        Ok(())
    }
}

/// Ends a pause. Gives back what it was, if there was one.
pub(super) struct Resume(pub(super) String);

impl Work for Resume {
    type Output = Option<PauseRow>;

    fn run(&self, group: &mut Group<'_>) -> rusqlite::Result<Option<PauseRow>> {
        let mut delete =
            group.db.prepare_cached("DELETE FROM pause WHERE route = ?1 RETURNING route, since, until, actor")?;
        delete.query_row([&self.0], pause_row).optional()
    }
}

pub(super) fn pauses(db: &Connection) -> rusqlite::Result<Vec<PauseRow>> {
    let mut question = db.prepare_cached("SELECT route, since, until, actor FROM pause ORDER BY route")?;
    question.query_map([], pause_row)?.collect()
}

fn pause_row(row: &Row<'_>) -> rusqlite::Result<PauseRow> {
    Ok(PauseRow {
        route: row.get(0)?,
        since: Timestamp(row.get(1)?),
        until: row.get::<_, Option<i64>>(2)?.map(Timestamp),
        actor: row.get(3)?,
    })
}
