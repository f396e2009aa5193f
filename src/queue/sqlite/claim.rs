//! Taking due legs that nobody owns.

use std::path::Path;
use std::sync::Arc;

use rusqlite::types::Type;
use rusqlite::{Connection, Row, params};

use crate::address::{Mailbox, ReversePath};
use crate::clock::Timestamp;
use crate::envelope::BodyType;
use crate::id::{LegId, MessageId};
use crate::queue::body::{BodyRows, StoredBody};
use crate::queue::sqlite::rows::ranges_from_json;
use crate::queue::sqlite::writer::{Group, Work};
use crate::queue::sqlite::{Node, notices};
use crate::queue::{Errand, OwnedLeg, Reason, State};

pub(super) struct Claim {
    pub(super) route: String,
    pub(super) now: Timestamp,
    pub(super) limit: usize,
    /// Where bodies are read from later.
    pub(super) rows: Arc<dyn BodyRows>,
    pub(super) bodies: std::path::PathBuf,
}

impl Work for Claim {
    type Output = Vec<OwnedLeg>;

    fn run(&self, group: &mut Group<'_>) -> rusqlite::Result<Vec<OwnedLeg>> {
        let mut claimed = Vec::new();
        for Found { id, state, leg } in self.due_legs(group)? {
            match leg {
                Ok(leg) => {
                    let mut own = group
                        .db
                        .prepare_cached("UPDATE leg SET owner = ?3, epoch = ?4 WHERE message = ?1 AND n = ?2")?;
                    own.execute(params![leg.id.message.0, leg.id.n, Node::ID, leg.epoch as i64])?;
                    claimed.push(leg);
                }
                Err(damage) => hold_damaged(group, (id, state), &self.route, &damage, self.now)?,
            }
        }
        Ok(claimed)
    }

    fn unheard(legs: Vec<OwnedLeg>) -> Vec<LegId> {
        legs.iter().map(|leg| leg.id).collect()
    }
}

struct Found {
    id: LegId,
    state: State,
    leg: Result<OwnedLeg, String>,
}

impl Claim {
    fn due_legs(&self, group: &Group<'_>) -> rusqlite::Result<Vec<Found>> {
        let mut question = group.db.prepare_cached(DUE_LEGS)?;
        let limit = self.limit.min(CLAIM_MAX) as i64;
        let mut rows = question.query(params![self.route, self.now.0, limit])?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            let id = LegId { message: MessageId(row.get("message")?), n: row.get("n")? };
            let state = State::parse(&row.get::<_, String>("state")?).unwrap_or(State::Queued);
            // What cannot be read back as what was written is damage of this leg alone.
            let leg = self.owned_leg(row, id, group.node.epoch).map_err(|error| error.to_string());
            found.push(Found { id, state, leg });
        }
        Ok(found)
    }

    fn owned_leg(&self, row: &Row<'_>, id: LegId, epoch: u64) -> rusqlite::Result<OwnedLeg> {
        let target: String = row.get("target")?;
        let sender: String = row.get("sender")?;
        let body_type: String = row.get("body_type")?;
        let mut prefix: Vec<u8> = row.get("prefix")?;
        prefix.extend_from_slice(&row.get::<_, Vec<u8>>("common_prefix")?);
        Ok(OwnedLeg {
            id,
            epoch,
            alias: row.get("alias")?,
            target: Mailbox::parse(&target).map_err(|error| broken("target", &error.to_string()))?,
            target_name: row.get("target_name")?,
            route: row.get("route")?,
            sender: ReversePath::parse(&sender).map_err(|error| broken("sender", &error.to_string()))?,
            attempts: row.get("attempts")?,
            received: Timestamp(row.get("received")?),
            prefix,
            cuts: ranges_from_json(row.get("cuts")?).ok_or_else(|| broken("cuts", "not a list of ranges"))?,
            notices: notices::from_json(row.get("notices")?).ok_or_else(|| broken("notices", "not what we write"))?,
            errand: match row.get::<_, Option<String>>("errand")?.as_deref() {
                None => Errand::Deliver,
                // Whatever a later version may have meant: what is not known is not delivered.
                Some(_) => Errand::AskRcpt,
            },
            body_type: if body_type == "8bitmime" { BodyType::EightBitMime } else { BodyType::SevenBit },
            smtputf8: row.get("smtputf8")?,
            require_tls: row.get("require_tls")?,
            body: stored_body(row, id.message, &self.bodies, &self.rows)?,
            online: None,
        })
    }
}

/// The body that a row names; an error where it is not there or has another size.
pub(super) fn stored_body(
    row: &Row<'_>,
    id: MessageId,
    bodies: &Path,
    rows: &Arc<dyn BodyRows>,
) -> rusqlite::Result<StoredBody> {
    let Some(size) = row.get::<_, Option<i64>>("body_size")? else {
        return Err(broken("body", "the body is missing"));
    };
    let sha256: [u8; 32] = row.get("body_sha256")?;
    let Some(name) = row.get::<_, Option<String>>("body_file")? else {
        return match row.get::<_, Option<i64>>("body_bytes")? {
            Some(len) if len == size => Ok(StoredBody::in_row(id, size as u64, sha256, Arc::clone(rows))),
            Some(_) | None => Err(broken("body", "the body's row has another length than its size")),
        };
    };
    let path = bodies.join(&name);
    match std::fs::metadata(&path) {
        Ok(metadata) if metadata.len() == size as u64 => Ok(StoredBody::in_file(path, name, size as u64, sha256)),
        Ok(metadata) => Err(broken("body", &format!("the body's file has {} of {size} bytes", metadata.len()))),
        Err(error) => Err(broken("body", &format!("the body's file: {error}"))),
    }
}

fn broken(column: &str, what: &str) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(0, Type::Text, format!("{column}: {what}").into())
}

fn hold_damaged(
    group: &mut Group<'_>,
    (id, was): (LegId, State),
    route: &str,
    damage: &str,
    now: Timestamp,
) -> rusqlite::Result<()> {
    let mut hold = group.db.prepare_cached(
        "UPDATE leg SET state = ?3, reason = ?4, detail = ?5, due = NULL,
             since = CASE state WHEN ?3 THEN since ELSE ?6 END
         WHERE message = ?1 AND n = ?2",
    )?;
    let (state, reason) = (State::Held.as_str(), Reason::Damaged.as_str());
    hold.execute(params![id.message.0, id.n, state, reason, damage, now.0])?;
    group.effects.count(route, was, -1);
    group.effects.count(route, State::Held, 1);
    Ok(())
}

/// For each route with an ownerless leg that has a due time, the earliest. Jumps from route to route on the index.
pub(super) fn next_due(db: &Connection) -> rusqlite::Result<Vec<(String, Timestamp)>> {
    let mut next_route = db.prepare_cached("SELECT min(route) FROM leg WHERE ended IS NULL AND route > ?1")?;
    let mut earliest = db.prepare_cached(
        "SELECT min(due) FROM leg WHERE ended IS NULL AND route = ?1 AND owner IS NULL AND due IS NOT NULL",
    )?;
    let mut found = Vec::new();
    let mut route = String::new();
    while let Some(next) = next_route.query_row([&route], |row| row.get::<_, Option<String>>(0))? {
        if let Some(due) = earliest.query_row([&next], |row| row.get::<_, Option<i64>>(0))? {
            found.push((next.clone(), Timestamp(due)));
        }
        route = next;
    }
    Ok(found)
}

pub(super) const DUE_LEGS: &str = "
    SELECT leg.message, leg.n, leg.alias, leg.target, leg.target_name, leg.route, leg.sender, leg.state, leg.attempts,
           leg.prefix, leg.cuts, leg.notices, leg.errand, message.prefix AS common_prefix,
           message.body_type, message.smtputf8, message.require_tls, body.file AS body_file, body.size AS body_size,
           body.sha256 AS body_sha256,
           length(body.bytes) AS body_bytes,
           -- What is delivered once more is tried for as long as if it had come in then.
           coalesce((SELECT max(at) FROM action
                     WHERE action.message = leg.message AND action.n = leg.n AND operation = 'redeliver'),
                    message.received) AS received
    FROM leg JOIN message ON message.id = leg.message LEFT JOIN body ON body.id = leg.message
    WHERE leg.ended IS NULL AND leg.route = ?1 AND leg.owner IS NULL AND leg.due <= ?2
    ORDER BY leg.due LIMIT ?3";
// What an outbound route asks for at one time; more would only wait in memory.
const CLAIM_MAX: usize = 1000;
