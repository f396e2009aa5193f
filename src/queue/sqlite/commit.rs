//! Storing a message with its legs.

use std::sync::Arc;

use rusqlite::{OptionalExtension, params};

use crate::clock::Timestamp;
use crate::envelope::BodyType;
use crate::id::{LegId, MessageId};
use crate::queue::body::Keep;
use crate::queue::sqlite::rows::{json_list, ranges_to_json};
use crate::queue::sqlite::shared::GiveBackTo;
use crate::queue::sqlite::writer::{Group, Work};
use crate::queue::sqlite::{Node, notices, returns};
use crate::queue::{DedupeKey, Errand, NewLeg, NewMessage, OwnedLeg, Queued, Reason, State};

/// A message and its legs, as [`crate::queue::Store::commit`] takes them.
pub(super) struct Commit {
    pub(super) message: NewMessage,
    pub(super) legs: Vec<NewLeg>,
}

impl Work for Commit {
    type Output = Queued;

    fn run(&self, group: &mut Group<'_>) -> rusqlite::Result<Queued> {
        let duplicates = insert(group, &self.message, &self.legs, None)?;
        let epoch = group.node.epoch;
        let ours = |leg: &&NewLeg| leg.handed_over && leg.state == State::Queued && !duplicates.contains(&leg.n);
        let legs = self.legs.iter().filter(ours).map(|leg| OwnedLeg::new(&self.message, leg, epoch)).collect();
        let give_back = Arc::new(GiveBackTo(Arc::clone(group.shared)));
        Ok(Queued::new(self.message.id, duplicates, legs, give_back))
    }

    fn committed(&self) {
        leave_to_store(&self.message);
    }

    fn in_doubt(&self) -> Option<MessageId> {
        // If the row is there after all, its file must be, too. If not, the next start sweeps the file.
        leave_to_store(&self.message);
        Some(self.message.id)
    }

    fn is_new_mail(&self) -> bool {
        true
    }
}

pub(super) fn leave_to_store(message: &NewMessage) {
    match message.body.keep() {
        Keep::File(file) => file.leave_to_store(),
        Keep::Bytes(_) | Keep::Row => {}
    }
}

/// Writes the rows of a message. Gives back the legs that are duplicates, by `n`.
pub(super) fn insert(
    group: &mut Group<'_>,
    message: &NewMessage,
    legs: &[NewLeg],
    cause: Option<LegId>,
) -> rusqlite::Result<Vec<u16>> {
    let mut duplicates = Vec::new();
    let mut any_open = false;
    for leg in legs {
        let duplicate = match &leg.dedupe {
            Some(key) if leg.state == State::Queued => is_duplicate(group, message.id, leg.n, key, message.received)?,
            Some(_) | None => false,
        };
        if duplicate {
            duplicates.push(leg.n);
        }
        any_open |= leg.state.is_open() && !duplicate;
        insert_leg(group, message.id, message.received, leg, duplicate)?;
    }
    insert_message(group, message, legs.len(), cause)?;
    if any_open {
        insert_body(group, message)?;
    } else if let Keep::File(file) = message.body.keep() {
        // Nobody will read it.
        group.effects.unlink.push(file.name().to_owned());
    }
    group.effects.messages += 1;
    group.effects.legs += legs.len() as i64;
    Ok(duplicates)
}

fn insert_message(group: &Group<'_>, message: &NewMessage, legs: usize, cause: Option<LegId>) -> rusqlite::Result<()> {
    let mut insert = group.db.prepare_cached(
        "INSERT INTO message (id, received, listener, client, ptr, helo, protocol, sender, body_type, smtputf8, size,
             header_from, subject, message_id, prefix, facts, rules_hash, legs, cause, require_tls)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20)",
    )?;
    insert.execute(params![
        message.id.0,
        message.received.0,
        message.listener,
        message.client.to_string(),
        message.ptr,
        message.helo,
        message.protocol,
        message.sender.as_str(),
        body_type_word(message.body_type),
        message.smtputf8,
        message.size as i64,
        message.from,
        message.subject,
        message.message_id,
        message.prefix,
        message.facts,
        message.rules_hash,
        legs as i64,
        cause.map(|leg| format!("{}.{}", leg.message.0, leg.n)),
        message.require_tls,
    ])?;
    Ok(())
}

fn insert_body(group: &Group<'_>, message: &NewMessage) -> rusqlite::Result<()> {
    let (file, bytes) = match message.body.keep() {
        Keep::Bytes(bytes) => (None, Some(bytes)),
        Keep::File(file) => (Some(file.name()), None),
        // A body that stands in a row belongs to the message that it was read for.
        Keep::Row => return Err(rusqlite::Error::InvalidQuery),
    };
    let mut insert =
        group.db.prepare_cached("INSERT INTO body (id, file, size, sha256, bytes) VALUES (?1, ?2, ?3, ?4, ?5)")?;
    insert.execute(params![message.id.0, file, message.body.len() as i64, &message.body.sha256()[..], bytes])?;
    Ok(())
}

/// Writes a leg's row; a duplicate is final at once.
pub(super) fn insert_leg(
    group: &mut Group<'_>,
    message: MessageId,
    at: Timestamp,
    leg: &NewLeg,
    duplicate: bool,
) -> rusqlite::Result<()> {
    let (state, reason) = if duplicate { (State::Duplicate, Reason::Duplicate) } else { (leg.state, leg.reason) };
    let owned = leg.handed_over && state == State::Queued;
    let due = leg.due.filter(|_| state.can_be_due());
    let mut insert = group.db.prepare_cached(
        "INSERT INTO leg (message, n, alias, target, target_name, route, sender, state, reason, detail, due, ended,
             owner, epoch, attempts, prefix, cuts, rules, notices, dedupe, since, errand)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, 0, ?15, ?16, ?17, ?18, ?19, ?20, ?21)",
    )?;
    insert.execute(params![
        message.0,
        leg.n,
        leg.alias,
        leg.target.as_str(),
        leg.target_name,
        leg.route,
        leg.sender.as_str(),
        state.as_str(),
        reason.as_str(),
        leg.detail,
        due.map(|due| due.0),
        (!state.is_open()).then_some(at.0),
        owned.then_some(Node::ID),
        owned.then_some(group.node.epoch as i64),
        leg.prefix,
        ranges_to_json(&leg.cuts),
        json_list(&leg.rules),
        notices::to_json(&leg.notices),
        leg.dedupe.as_ref().map(|key| &key.hash[..]),
        at.0,
        match leg.errand {
            Errand::Deliver => None,
            Errand::AskRcpt => Some("rcpt"),
        },
    ])?;
    if let Some(authorship) = leg.authorship.as_ref().filter(|_| !duplicate) {
        returns::note(group.db, authorship)?;
    }
    group.effects.count(&leg.route, state, 1);
    if !owned && due.is_some_and(|due| due <= at) {
        group.effects.wake(&leg.route);
    }
    Ok(())
}

/// Whether another leg stands for all with this key: it is queued, held, or was delivered within the window. If not,
/// this leg stands for them from now on.
fn is_duplicate(
    group: &Group<'_>,
    message: MessageId,
    n: u16,
    key: &DedupeKey,
    now: Timestamp,
) -> rusqlite::Result<bool> {
    let mut question = group.db.prepare_cached(
        "SELECT leg.state, leg.ended FROM dedupe JOIN leg ON leg.message = dedupe.message AND leg.n = dedupe.n
         WHERE dedupe.key = ?1",
    )?;
    let first = question
        .query_row([&key.hash[..]], |row| Ok((row.get::<_, String>(0)?, row.get::<_, Option<i64>>(1)?)))
        .optional()?;
    let suppresses = first.is_some_and(|(state, ended)| match State::parse(&state) {
        Some(State::Queued | State::Held) => true,
        Some(State::Delivered) => now.since(Timestamp(ended.unwrap_or(0))) < key.window,
        Some(
            State::Quarantined | State::Bounced | State::Expired | State::Duplicate | State::Omitted | State::Discarded,
        )
        | None => false,
    });
    if !suppresses {
        let mut insert =
            group.db.prepare_cached("INSERT OR REPLACE INTO dedupe (key, message, n) VALUES (?1, ?2, ?3)")?;
        insert.execute(params![&key.hash[..], message.0, n])?;
    }
    Ok(suppresses)
}

pub(super) fn body_type_word(body_type: BodyType) -> &'static str {
    match body_type {
        BodyType::SevenBit => "7bit",
        BodyType::EightBitMime => "8bitmime",
    }
}
