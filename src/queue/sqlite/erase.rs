//! Erasing what is kept of a person, or of a message: rows, kept bodies, and what stands in the book of commands.
//!
//! A message is erased whole or not at all. One with an open leg is still owed to somebody: it stays, unless its legs are
//! to be given up with it. The sums of the ledger count what was erased as swept. What is deleted is overwritten in its
//! pages; the log is emptied afterwards. Pages that were freed before, and what a body's file was written on, are the
//! file system's.

use std::fmt::Write;

use aws_lc_rs::digest;
use rusqlite::{Connection, params};

use crate::id::MessageId;
use crate::queue::State;
use crate::queue::sqlite::schema::SECURE_DELETE;
use crate::queue::sqlite::sweep::sweep_message;
use crate::queue::sqlite::writer::{Group, Work};

/// What is to be erased.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Whose {
    /// Of a person: as the sender, in From, as the alias, or as the target. Compared without case.
    Address(String),
    /// One message.
    Message(MessageId),
    /// All with this Message-ID, with or without angle brackets.
    MessageId(String),
}

impl Whose {
    /// What is written of it where it must not be named: a digest, by which it is known again.
    #[must_use]
    pub fn mark(&self) -> String {
        let text = match self {
            Whose::Address(address) => address.to_lowercase(),
            Whose::Message(id) => id.to_string(),
            Whose::MessageId(text) => bare(text).to_owned(),
        };
        let mut mark = "sha256:".to_owned();
        for octet in &digest::digest(&digest::SHA256, text.as_bytes()).as_ref()[..MARK_OCTETS] {
            // Writing into a String does not fail.
            let _ = write!(mark, "{octet:02x}");
        }
        mark
    }
}

/// Without angle brackets.
pub(super) fn bare(message_id: &str) -> &str {
    message_id.trim_matches(['<', '>'])
}

/// What became of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Erased {
    pub messages: Vec<MessageId>,
    /// Those that stay, because a leg of theirs is open, or is being sent.
    pub open: Vec<MessageId>,
    /// Rows of refusals.
    pub refused: usize,
    /// There may be more behind this one.
    pub(super) more: Option<MessageId>,
}

/// A bite.
pub(super) struct Erase {
    pub(super) whose: Whose,
    /// Messages behind this one.
    pub(super) after: MessageId,
    /// Open legs are given up with their message.
    pub(super) open_too: bool,
    pub(super) dry_run: bool,
}

impl Work for Erase {
    type Output = Erased;

    fn run(&self, group: &mut Group<'_>) -> rusqlite::Result<Erased> {
        let mut erased = Erased::default();
        let found = find(group.db, &self.whose, self.after)?;
        erased.more = found.last().copied().filter(|_| found.len() as i64 == AT_ONCE);
        // Pages that are freed as a whole are overwritten, too, which costs a write each.
        group.db.pragma_update(None, "secure_delete", true)?;
        for id in found {
            let (open, in_flight): (i64, i64) = group.db.query_row(
                "SELECT count(*), count(owner) FROM leg WHERE message = ?1 AND ended IS NULL",
                [id.0],
                |row| Ok((row.get(0)?, row.get(1)?)),
            )?;
            if in_flight > 0 || (open > 0 && !self.open_too) {
                erased.open.push(id);
                continue;
            }
            erased.messages.push(id);
            if !self.dry_run {
                uncount(group, id)?;
                sweep_message(group, id)?;
            }
        }
        if let (Whose::Address(address), false) = (&self.whose, self.dry_run) {
            hide_in_audit(group.db, address, &self.whose.mark())?;
        }
        group.db.pragma_update(None, "secure_delete", SECURE_DELETE)?;
        Ok(erased)
    }
}

/// Open legs that go are no longer open: the gauges must not go on counting them.
fn uncount(group: &mut Group<'_>, id: MessageId) -> rusqlite::Result<()> {
    let db = group.db;
    let mut question = db.prepare_cached("SELECT route, state FROM leg WHERE message = ?1 AND ended IS NULL")?;
    let open: Vec<(String, String)> =
        question.query_map([id.0], |row| Ok((row.get(0)?, row.get(1)?)))?.collect::<rusqlite::Result<_>>()?;
    for (route, state) in open {
        if let Some(state) = State::parse(&state) {
            group.effects.count(&route, state, -1);
        }
    }
    Ok(())
}

/// The first messages behind `after`, oldest first.
fn find(db: &Connection, whose: &Whose, after: MessageId) -> rusqlite::Result<Vec<MessageId>> {
    let (condition, value) = match whose {
        Whose::Message(id) => ("id = CAST(?1 AS INTEGER)", id.0.to_string()),
        Whose::Address(address) => (
            "(lower(sender) = ?1 OR instr(lower(header_from), ?1) OR id IN
                 (SELECT message FROM leg WHERE ?1 IN (lower(alias), lower(target))))",
            address.to_lowercase(),
        ),
        Whose::MessageId(text) => ("trim(message_id, '<>') = ?1", bare(text).to_owned()),
    };
    let mut question =
        db.prepare(&format!("SELECT id FROM message WHERE {condition} AND id > ?2 ORDER BY id LIMIT ?3"))?;
    question.query_map(params![value, after.0, AT_ONCE], |row| row.get(0).map(MessageId))?.collect()
}

/// Whoever searched or acted by the address has it in the book of commands; the digest stays in its place.
fn hide_in_audit(db: &Connection, address: &str, mark: &str) -> rusqlite::Result<()> {
    let wanted = address.to_lowercase();
    let mut question =
        db.prepare("SELECT id, chosen, outcome FROM audit WHERE instr(lower(chosen || coalesce(outcome, '')), ?1)")?;
    let rows: Vec<(i64, String, Option<String>)> = question
        .query_map([&wanted], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?
        .collect::<rusqlite::Result<_>>()?;
    for (id, chosen, outcome) in rows {
        let hide = |text: &str| {
            let words = text.split(' ').map(|word| if word.to_lowercase().contains(&wanted) { mark } else { word });
            words.collect::<Vec<_>>().join(" ")
        };
        db.execute(
            "UPDATE audit SET chosen = ?2, outcome = ?3 WHERE id = ?1",
            params![id, hide(&chosen), outcome.as_deref().map(hide)],
        )?;
    }
    Ok(())
}

/// Messages in one transaction.
const AT_ONCE: i64 = 500;
/// Enough to tell addresses apart, too few to be anybody's.
const MARK_OCTETS: usize = 12;
