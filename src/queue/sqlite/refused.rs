//! Refused recipients and messages: for `trace` only, so they cost the writer nothing and may be lost in a crash.
//!
//! They stand in a data base of their own that is never synced. Refusals gather in memory and are written in bulk;
//! of too many the oldest go, in memory and on disk, so that a harvest of addresses cannot make us write for ever.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use rusqlite::{Connection, OpenFlags, params};

use crate::clock::Timestamp;
use crate::queue::Refused;
use crate::queue::sqlite::erase::{Whose, bare};

#[derive(Debug)]
pub(super) struct RefusedLog {
    pending: Mutex<VecDeque<Refused>>,
    /// `None` where it could not be opened: refusals are then only logged and counted.
    db: Mutex<Option<Connection>>,
}

/// Which refusals. All that is given must hold, as in [`super::Filter`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RefusedFilter {
    pub recipient: Option<String>,
    /// Part of the From field of a message that was refused at its end; likewise the next two.
    pub from: Option<String>,
    pub subject: Option<String>,
    pub message_id: Option<String>,
    /// With or without angle brackets; `<>` is the null sender.
    pub sender: Option<String>,
    pub client: Option<String>,
    pub since: Option<Timestamp>,
    pub until: Option<Timestamp>,
    pub limit: usize,
}

impl RefusedLog {
    /// A file that cannot be used is put aside: these rows are never worth a start that fails.
    pub(super) fn open(path: &Path) -> RefusedLog {
        let db = open(path).or_else(|_| {
            let _ = std::fs::remove_file(path);
            open(path)
        });
        RefusedLog { pending: Mutex::default(), db: Mutex::new(db.ok()) }
    }

    pub(super) fn open_read_only(path: &Path) -> RefusedLog {
        let db = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).ok();
        RefusedLog { pending: Mutex::default(), db: Mutex::new(db) }
    }

    pub(super) fn record(&self, refused: Refused) {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        if pending.len() >= PENDING_MAX {
            pending.pop_front();
        }
        pending.push_back(refused);
    }

    /// Writes what has gathered.
    pub(super) fn flush(&self) {
        let pending = std::mem::take(&mut *self.pending.lock().unwrap_or_else(PoisonError::into_inner));
        if pending.is_empty() {
            return;
        }
        if let Some(db) = &mut *self.db.lock().unwrap_or_else(PoisonError::into_inner) {
            // A full disk loses refusals, never mail.
            let _ = write(db, &pending);
        }
    }

    /// The refusals that the filter chooses, newest first.
    pub(super) fn list(&self, filter: &RefusedFilter) -> rusqlite::Result<Vec<Refused>> {
        self.flush();
        let db = self.db.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(db) = &*db else { return Ok(Vec::new()) };
        let mut question = db.prepare_cached(
            "SELECT at, listener, client, helo, sender, recipient, reply, header_from, subject, message_id FROM refused
             WHERE at >= ?1 AND at < ?2 AND (?3 IS NULL OR lower(recipient) = ?3)
                 AND (?4 IS NULL OR lower(trim(sender, '<>')) = ?4) AND (?5 IS NULL OR client = ?5)
                 AND (?6 IS NULL OR instr(lower(header_from), ?6)) AND (?7 IS NULL OR instr(lower(subject), ?7))
                 AND (?8 IS NULL OR trim(message_id, '<>') = ?8)
             ORDER BY id DESC LIMIT ?9",
        )?;
        let values = params![
            filter.since.map_or(i64::MIN, |since| since.0),
            filter.until.map_or(i64::MAX, |until| until.0),
            filter.recipient.as_deref().map(str::to_lowercase),
            filter.sender.as_deref().map(|sender| sender.trim_matches(['<', '>']).to_lowercase()),
            filter.client,
            filter.from.as_deref().map(str::to_lowercase),
            filter.subject.as_deref().map(str::to_lowercase),
            filter.message_id.as_deref().map(bare),
            i64::try_from(filter.limit).unwrap_or(i64::MAX),
        ];
        let rows = question.query_map(values, |row| {
            let client: String = row.get(2)?;
            Ok(Refused {
                at: Timestamp(row.get(0)?),
                listener: row.get(1)?,
                client: client.parse().unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
                helo: row.get(3)?,
                sender: row.get(4)?,
                recipient: row.get(5)?,
                reply: row.get(6)?,
                from: row.get(7)?,
                subject: row.get(8)?,
                message_id: row.get(9)?,
            })
        })?;
        rows.collect()
    }

    /// Erases what is kept of somebody; in a dry run only counts.
    pub(super) fn erase(&self, whose: &Whose, dry_run: bool) -> rusqlite::Result<usize> {
        self.flush();
        let db = self.db.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(db) = &*db else { return Ok(0) };
        let (condition, value) = match whose {
            Whose::Address(address) => (
                "?1 IN (lower(recipient), lower(trim(sender, '<>'))) OR instr(lower(header_from), ?1)",
                address.to_lowercase(),
            ),
            Whose::MessageId(id) => ("trim(message_id, '<>') = ?1", bare(id).to_owned()),
            // What has an id was accepted.
            Whose::Message(_) => return Ok(0),
        };
        if dry_run {
            let count = format!("SELECT count(*) FROM refused WHERE {condition}");
            return db.query_row(&count, [value], |row| row.get::<_, i64>(0)).map(|rows| rows as usize);
        }
        db.pragma_update(None, "secure_delete", true)?;
        let erased = db.execute(&format!("DELETE FROM refused WHERE {condition}"), [value])?;
        db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
        db.pragma_update(None, "secure_delete", false)?;
        Ok(erased)
    }
}

fn open(path: &Path) -> rusqlite::Result<Connection> {
    let db = Connection::open(path)?;
    db.pragma_update(None, "journal_mode", "WAL")?;
    db.pragma_update(None, "synchronous", "OFF")?;
    db.execute_batch(
        "CREATE TABLE IF NOT EXISTS refused (
             id INTEGER PRIMARY KEY,
             at INTEGER NOT NULL,
             listener TEXT NOT NULL,
             client TEXT NOT NULL,
             helo TEXT NOT NULL,
             sender TEXT NOT NULL,
             recipient TEXT NOT NULL,
             reply TEXT NOT NULL
         ) STRICT;",
    )?;
    // The file of an earlier version has no columns for these.
    for column in ["header_from", "subject", "message_id"] {
        if !db.column_exists(None, "refused", column)? {
            db.execute_batch(&format!("ALTER TABLE refused ADD COLUMN {column} TEXT NOT NULL DEFAULT ''"))?;
        }
    }
    Ok(db)
}

fn write(db: &mut Connection, refused: &VecDeque<Refused>) -> rusqlite::Result<()> {
    let tx = db.transaction()?;
    {
        let mut insert = tx.prepare_cached(
            "INSERT INTO refused (at, listener, client, helo, sender, recipient, reply, header_from, subject, message_id)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
        )?;
        for one in refused {
            let client = one.client.to_string();
            insert.execute(params![
                one.at.0,
                one.listener,
                client,
                one.helo,
                one.sender,
                one.recipient,
                one.reply,
                one.from,
                one.subject,
                one.message_id
            ])?;
        }
        let mut drop_oldest =
            tx.prepare_cached("DELETE FROM refused WHERE id <= (SELECT max(id) FROM refused) - ?1")?;
        drop_oldest.execute([ROWS_MAX])?;
    }
    tx.commit()
}

/// Rows on disk.
const ROWS_MAX: i64 = 100_000;
// Between two writes, a second apart; a harvest may be faster, and then a part of it tells enough.
const PENDING_MAX: usize = 10_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(n: usize) -> Refused {
        Refused {
            at: Timestamp(n as i64),
            listener: "mx".into(),
            client: "2001:db8::1".parse().unwrap(),
            helo: "h".into(),
            sender: String::new(),
            recipient: format!("User{n}@solarmora.com"),
            reply: "550 5.1.1 no such address here".into(),
            from: format!("Sender {n} <sender{n}@example.org>"),
            subject: "Panne".into(),
            message_id: format!("<{n}@example.org>"),
        }
    }

    #[test]
    fn refusals_are_found_again_and_the_oldest_of_too_many_are_gone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("refused.db");
        let log = RefusedLog::open(&path);
        for n in 0..PENDING_MAX + 1 {
            log.record(refused(n));
        }
        let all = RefusedFilter { limit: 1_000_000, ..RefusedFilter::default() };
        assert_eq!(log.list(&all).unwrap().len(), PENDING_MAX);
        let found = log.list(&RefusedFilter { recipient: Some("USER7@solarmora.com".into()), ..all.clone() }).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].client, refused(7).client);
        for n in 0..ROWS_MAX as usize {
            log.record(refused(n));
            if n % 5000 == 0 {
                log.flush();
            }
        }
        assert_eq!(log.list(&all).unwrap().len(), ROWS_MAX as usize);
        drop(log);
        let three = RefusedFilter { since: Some(Timestamp(5)), limit: 3, ..all };
        assert_eq!(RefusedLog::open_read_only(&path).list(&three).unwrap().len(), 3);
    }

    #[test]
    fn what_narrows_the_choice_comes_before_the_limit() {
        let dir = tempfile::tempdir().unwrap();
        let log = RefusedLog::open(&dir.path().join("refused.db"));
        for n in 0..20 {
            let sender = if n == 3 { "<>".to_owned() } else { format!("Sender{n}@example.org") };
            let client = if n == 4 { "192.0.2.4".parse().unwrap() } else { refused(n).client };
            log.record(Refused { sender, client, ..refused(n) });
        }
        let one = |filter: RefusedFilter| {
            let found = log.list(&RefusedFilter { limit: 1, ..filter }).unwrap();
            found.iter().map(|refused| refused.at.0).collect::<Vec<_>>()
        };
        let any = RefusedFilter::default;
        assert_eq!(one(RefusedFilter { sender: Some("<sender5@example.org>".into()), ..any() }), [5]);
        assert_eq!(one(RefusedFilter { sender: Some("<>".into()), ..any() }), [3]);
        assert_eq!(one(RefusedFilter { client: Some("192.0.2.4".into()), ..any() }), [4]);
        assert_eq!(one(RefusedFilter { until: Some(Timestamp(8)), ..any() }), [7]);
        assert_eq!(one(RefusedFilter { since: Some(Timestamp(19)), ..any() }), [19]);
        assert_eq!(one(RefusedFilter { since: Some(Timestamp(20)), ..any() }), Vec::<i64>::new());
        assert_eq!(one(RefusedFilter { sender: Some("nobody@example.org".into()), ..any() }), Vec::<i64>::new());
        assert_eq!(one(RefusedFilter { from: Some("SENDER6@".into()), ..any() }), [6]);
        assert_eq!(one(RefusedFilter { subject: Some("panne".into()), ..any() }), [19]);
        assert_eq!(one(RefusedFilter { message_id: Some("8@example.org".into()), ..any() }), [8]);
    }

    #[test]
    fn what_is_erased_is_gone_from_the_file_too() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("refused.db");
        let log = RefusedLog::open(&path);
        (0..20).for_each(|n| log.record(refused(n)));
        let whose = Whose::Address("Sender7@example.org".into());
        assert_eq!((log.erase(&whose, true).unwrap(), log.erase(&whose, false).unwrap()), (1, 1));
        assert_eq!(log.erase(&Whose::MessageId("<8@example.org>".into()), false).unwrap(), 1);
        let all = RefusedFilter { limit: 100, ..RefusedFilter::default() };
        assert_eq!(log.list(&all).unwrap().len(), 18);
        drop(log);
        for name in ["refused.db", "refused.db-wal"] {
            let octets = std::fs::read(dir.path().join(name)).unwrap_or_default();
            assert!(memchr::memmem::find(&octets, b"sender7@").is_none(), "{name}");
        }
    }

    #[test]
    fn a_broken_file_is_begun_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("refused.db");
        std::fs::write(&path, vec![7; 10_000]).unwrap();
        let log = RefusedLog::open(&path);
        log.record(refused(1));
        assert_eq!(log.list(&RefusedFilter { limit: 10, ..RefusedFilter::default() }).unwrap().len(), 1);
    }
}
