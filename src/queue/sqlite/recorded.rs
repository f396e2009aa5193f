//! What the rules saw of each message, page by page in the order of the ids: for `diff`, which reads all of it.
//!
//! A page is a transaction of its own. One over all would keep the write-ahead log of a running daemon from being
//! taken over for as long as it lasts.

use rusqlite::{Connection, OptionalExtension};

use crate::clock::Timestamp;
use crate::id::MessageId;

/// A message as the rules saw it.
#[derive(Clone, Copy, Debug)]
pub struct Recorded<'a> {
    pub id: MessageId,
    pub received: Timestamp,
    /// As in Received.
    pub protocol: &'a str,
    /// JSON
    pub facts: &'a str,
}

/// The ids of what came from `since` on and before `until`: the first and the last, where there are any.
pub(super) fn bounds(
    db: &Connection,
    since: Timestamp,
    until: Timestamp,
) -> rusqlite::Result<Option<(MessageId, MessageId)>> {
    // An id holds its time in the bits above the twentieth; by it the table is sorted, and by `received` it is not.
    let id = |at: Timestamp| at.0.clamp(0, i64::MAX >> 20) << 20;
    let end = |order: &str| {
        let question = format!("SELECT id FROM message WHERE id >= ?1 AND id < ?2 ORDER BY id {order} LIMIT 1");
        db.query_row(&question, [id(since), id(until)], |row| row.get(0).map(MessageId)).optional()
    };
    Ok(end("ASC")?.zip(end("DESC")?))
}

/// The messages from `first` to `last`, a page of them: `take` hears of each. Says where the next page begins. What we wrote ourselves, because of another message, is left out.
pub(super) fn page(
    db: &Connection,
    (first, last): (MessageId, MessageId),
    take: &mut dyn FnMut(Recorded<'_>),
) -> rusqlite::Result<Option<MessageId>> {
    let mut question = db.prepare_cached(
        "SELECT id, cause IS NULL, received, protocol, facts FROM message WHERE id >= ?1 AND id <= ?2 ORDER BY id LIMIT ?3",
    )?;
    let mut rows = question.query([first.0, last.0, PAGE])?;
    let (mut read, mut reached) = (0, first);
    while let Some(row) = rows.next()? {
        reached = MessageId(row.get(0)?);
        read += 1;
        if row.get(1)? {
            take(Recorded {
                id: reached,
                received: Timestamp(row.get(2)?),
                protocol: row.get_ref(3)?.as_str().unwrap_or_default(),
                facts: row.get_ref(4)?.as_str().unwrap_or_default(),
            });
        }
    }
    let next = reached.0.saturating_add(1);
    Ok((read == PAGE && next <= last.0).then_some(MessageId(next)))
}

/// Some ten milliseconds of reading.
const PAGE: i64 = 5_000;
