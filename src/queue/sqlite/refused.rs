//! Refused recipients and messages: for `trace` only, so they cost the writer nothing and may be lost in a crash.
//!
//! They stand in a data base of their own that is never synced. Refusals gather in memory and are written in bulk;
//! of too many the oldest go, in memory and on disk, so that a harvest of addresses cannot make us write for ever.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Mutex;

use rusqlite::{Connection, OpenFlags, params};

use crate::clock::Timestamp;
use crate::queue::Refused;

#[derive(Debug)]
pub(super) struct RefusedLog {
    pending: Mutex<VecDeque<Refused>>,
    /// `None` where it could not be opened: refusals are then only logged and counted.
    db: Mutex<Option<Connection>>,
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
        let mut pending = self.pending.lock().expect("no code panics while it holds this lock");
        if pending.len() >= PENDING_MAX {
            pending.pop_front();
        }
        pending.push_back(refused);
    }

    /// Writes what has gathered.
    pub(super) fn flush(&self) {
        let pending = std::mem::take(&mut *self.pending.lock().expect("no code panics while it holds this lock"));
        if pending.is_empty() {
            return;
        }
        if let Some(db) = &mut *self.db.lock().expect("no code panics while it holds this lock") {
            // A full disk loses refusals, never mail.
            let _ = write(db, &pending);
        }
    }

    /// The newest refusals since `since` for which `recipient` holds, up to `limit`, newest first.
    pub(super) fn list(
        &self,
        recipient: Option<&str>,
        since: Option<Timestamp>,
        limit: usize,
    ) -> rusqlite::Result<Vec<Refused>> {
        self.flush();
        let db = self.db.lock().expect("no code panics while it holds this lock");
        let Some(db) = &*db else { return Ok(Vec::new()) };
        let mut question = db.prepare_cached(
            "SELECT at, listener, client, helo, sender, recipient, reply FROM refused
             WHERE at >= ?1 AND (?2 IS NULL OR lower(recipient) = ?2) ORDER BY id DESC LIMIT ?3",
        )?;
        let since = since.map_or(i64::MIN, |since| since.0);
        let rows = question.query_map(params![since, recipient.map(str::to_lowercase), limit as i64], |row| {
            let client: String = row.get(2)?;
            Ok(Refused {
                at: Timestamp(row.get(0)?),
                listener: row.get(1)?,
                client: client.parse().unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
                helo: row.get(3)?,
                sender: row.get(4)?,
                recipient: row.get(5)?,
                reply: row.get(6)?,
            })
        })?;
        rows.collect()
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
    Ok(db)
}

fn write(db: &mut Connection, refused: &VecDeque<Refused>) -> rusqlite::Result<()> {
    let tx = db.transaction()?;
    {
        let mut insert = tx.prepare_cached(
            "INSERT INTO refused (at, listener, client, helo, sender, recipient, reply)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        )?;
        for one in refused {
            let client = one.client.to_string();
            insert.execute(params![one.at.0, one.listener, client, one.helo, one.sender, one.recipient, one.reply])?;
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
        assert_eq!(log.list(None, None, 1_000_000).unwrap().len(), PENDING_MAX);
        let found = log.list(Some("USER7@solarmora.com"), None, 10).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].client, refused(7).client);
        for n in 0..ROWS_MAX as usize {
            log.record(refused(n));
            if n % 5000 == 0 {
                log.flush();
            }
        }
        assert_eq!(log.list(None, None, 1_000_000).unwrap().len(), ROWS_MAX as usize);
        drop(log);
        assert_eq!(RefusedLog::open_read_only(&path).list(None, Some(Timestamp(5)), 3).unwrap().len(), 3);
    }

    #[test]
    fn a_broken_file_is_begun_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("refused.db");
        std::fs::write(&path, vec![7; 10_000]).unwrap();
        let log = RefusedLog::open(&path);
        log.record(refused(1));
        assert_eq!(log.list(None, None, 10).unwrap().len(), 1);
    }
}
