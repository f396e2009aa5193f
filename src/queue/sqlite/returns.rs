//! Return paths: whom each leads to, and whether all that went out with it was his.
//!
//! One row for each sender and day, however many messages: next to nothing beside the messages themselves, and what is
//! there already is only read. Rows lie by day, so that new ones stand together and old ones are swept from one end.
//! They are no part of the balance: a row that is missing sends a return into the quarantine, and loses nothing.

use aws_lc_rs::digest;
use rusqlite::{Connection, OptionalExtension, params};

use crate::address::Mailbox;
use crate::clock::Timestamp;
use crate::queue::Authorship;
use crate::queue::sqlite::Retention;
use crate::queue::sqlite::writer::Group;
use crate::srs::{AGE_DAYS_MAX, Author, Leads, Original, Proof, ReturnPath};

/// Keeps who is behind a leg that was accepted or moved. One sender who is not proven makes the path of his day doubtful.
pub(super) fn note(db: &Connection, authorship: &Authorship) -> rusqlite::Result<()> {
    let Authorship { author, proof } = authorship;
    let proven = match proof {
        Proof::Proven => Some(true),
        Proof::Unproven => Some(false),
        Proof::Withheld => None,
    };
    if proven.is_none() && author.id.is_none() {
        return Ok(());
    }
    let mut insert = db.prepare_cached(
        "INSERT INTO return_path (day, key, sender, proven) VALUES (?1, ?2, ?3, ?4)
         ON CONFLICT (day, key) DO UPDATE
             SET proven = min(coalesce(proven, excluded.proven), coalesce(excluded.proven, proven))
             WHERE proven IS NOT min(coalesce(proven, excluded.proven), coalesce(excluded.proven, proven))",
    )?;
    let (key, sender) = row_key(author);
    insert.execute(params![author.day as i64, key, sender, proven])?;
    Ok(())
}

/// An id, or a digest of the sender: the row is not there to be read by people.
fn row_key(author: &Author) -> (Vec<u8>, Option<&str>) {
    match &author.id {
        Some(id) => (id.as_str().as_bytes().to_vec(), Some(author.sender.as_str())),
        None => (digest_of(&author.sender), None),
    }
}

fn digest_of(sender: &Mailbox) -> Vec<u8> {
    digest::digest(&digest::SHA256, sender.key().as_bytes()).as_ref()[..DIGEST_OCTETS].to_vec()
}

/// What is known of each path, in the same order. What the retention has ended is not known, whether swept or not.
pub(super) fn find(
    db: &Connection,
    paths: &[ReturnPath],
    retention: Retention,
    now: Timestamp,
) -> rusqlite::Result<Vec<Option<Original>>> {
    let known_since = ledger_begins(retention, now);
    let mut question = db.prepare_cached("SELECT sender, proven FROM return_path WHERE day = ?1 AND key = ?2")?;
    let mut answers = Vec::with_capacity(paths.len());
    for path in paths {
        let key = match &path.leads {
            Leads::To(sender) => digest_of(sender),
            Leads::Stored(id) => id.as_str().as_bytes().to_vec(),
        };
        let mut known: Option<Original> = None;
        for day in path.days.clone() {
            let row = question.query_row(params![day as i64, key], |row| {
                Ok((row.get::<_, Option<String>>(0)?, row.get::<_, Option<bool>>(1)?))
            });
            let Some((sender, proven)) = row.optional()? else { continue };
            let proof = match proven.filter(|_| day >= known_since) {
                Some(true) => Proof::Proven,
                Some(false) => Proof::Unproven,
                None => Proof::Withheld,
            };
            let sender = sender.and_then(|sender| Mailbox::parse(&sender).ok());
            known = Some(match known {
                Some(before) => Original { proof: worse(before.proof, proof), ..before },
                None => Original { sender, proof },
            });
        }
        answers.push(known);
    }
    Ok(answers)
}

/// Of two days: one doubtful message spoils the path, a day without any says nothing.
fn worse(a: Proof, b: Proof) -> Proof {
    match (a, b) {
        (Proof::Unproven, _) | (_, Proof::Unproven) => Proof::Unproven,
        (Proof::Proven, _) | (_, Proof::Proven) => Proof::Proven,
        (Proof::Withheld, Proof::Withheld) => Proof::Withheld,
    }
}

/// The first day of which the ledger still tells.
fn ledger_begins(retention: Retention, now: Timestamp) -> u64 {
    now.day().saturating_sub(retention.ledger.as_secs() / DAY_SECONDS)
}

/// One bite: paths that are too old to be used, and what the ledger's retention has ended. Senders who stand here alone
/// stay as long as their paths do: without them a return could not even be shown to an operator.
pub(super) fn sweep(group: &mut Group<'_>, now: Timestamp, bite: i64) -> rusqlite::Result<()> {
    let unusable_before = now.day().saturating_sub(AGE_DAYS_MAX);
    let forgotten_before = ledger_begins(group.shared.retention(), now);
    let mut delete = group.db.prepare_cached(
        "DELETE FROM return_path WHERE (day, key) IN
             (SELECT day, key FROM return_path WHERE day < max(?1, ?2) AND (day < ?1 OR sender IS NULL) LIMIT ?3)",
    )?;
    delete.execute(params![unusable_before as i64, forgotten_before as i64, bite])?;
    Ok(())
}

/// Of a hundred million senders no two meet.
const DIGEST_OCTETS: usize = 16;
const DAY_SECONDS: u64 = 24 * 60 * 60;
