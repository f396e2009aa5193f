//! The tables, and how a connection to them is opened. An administrator may read them with `sqlite3 -readonly`.
//!
//! A message and its legs are rows from acceptance until the retention sweeps them. `ended` says when a leg became
//! final and is NULL while it is open: the one partial index covers the open legs alone, so that the ledger costs the
//! dequeue nothing. Times are milliseconds since 1970; `message.id` holds its time in the bits above the twentieth.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

/// Why a file is no queue of ours.
#[derive(Debug, thiserror::Error)]
pub(super) enum SchemaError {
    #[error("{0}")]
    Sqlite(#[from] rusqlite::Error),
    #[error("it is another program's data base (application_id {0:#x})")]
    Foreign(i64),
    #[error("its format {0} is newer than this program's ({VERSION})")]
    Newer(i64),
    #[error("{0}")]
    Damaged(String),
}

/// Opens the queue for the writer, makes its tables where the file is new, and checks it.
pub(super) fn open_writer(path: &Path, synchronous: &str) -> Result<Connection, SchemaError> {
    let db = Connection::open(path)?;
    db.busy_timeout(BUSY_WAIT)?;
    let version: i64 = db.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let application: i64 = db.pragma_query_value(None, "application_id", |row| row.get(0))?;
    let empty: bool = db.query_row("SELECT NOT EXISTS (SELECT 1 FROM sqlite_schema)", [], |row| row.get(0))?;
    if !(empty && application == 0) && application != APPLICATION_ID {
        return Err(SchemaError::Foreign(application));
    }
    if version > VERSION {
        return Err(SchemaError::Newer(version));
    }
    // Up to here nothing was written: what is not ours is left as it is.
    if empty {
        // Both only take effect before the first table exists.
        db.pragma_update(None, "page_size", PAGE_SIZE)?;
        db.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
    }
    db.pragma_update(None, "journal_mode", "WAL")?;
    db.pragma_update(None, "synchronous", synchronous)?;
    db.pragma_update(None, "foreign_keys", false)?;
    db.pragma_update(None, "secure_delete", SECURE_DELETE)?;
    // Checkpoints are made beside the writer, never inside somebody's commit.
    db.pragma_update(None, "wal_autocheckpoint", 0)?;
    db.pragma_update(None, "cache_size", -CACHE_KIB)?;
    db.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
    if empty {
        db.execute_batch(&format!(
            "BEGIN IMMEDIATE; {TABLES} PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {BASE}; COMMIT;"
        ))?;
    }
    upgrade(&db, if empty { BASE } else { version })?;
    Ok(db)
}

/// Brings the tables of an older program, or new ones, to this one's format: all of it or nothing.
fn upgrade(db: &Connection, version: i64) -> rusqlite::Result<()> {
    let steps: String = STEPS.iter().filter(|(next, _)| *next > version).map(|(_, step)| *step).collect();
    if steps.is_empty() {
        return Ok(());
    }
    db.execute_batch(&format!("BEGIN IMMEDIATE; {steps} PRAGMA user_version = {VERSION}; COMMIT;"))
}

/// Opens the queue for questions only.
pub(super) fn open_reader(path: &Path) -> rusqlite::Result<Connection> {
    let db = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    db.busy_timeout(BUSY_WAIT)?;
    db.pragma_update(None, "query_only", true)?;
    db.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
    Ok(db)
}

/// A queue that an earlier version wrote may be looked at before the daemon has brought it to ours: what it does not have
/// is empty.
pub(super) fn stand_in(db: &Connection) -> rusqlite::Result<()> {
    if db.pragma_query_value(None, "user_version", |row| row.get::<_, i64>(0))? < 3 {
        db.pragma_update(None, "query_only", false)?;
        db.execute_batch(ABSENT_BEFORE_3)?;
        db.pragma_update(None, "query_only", true)?;
    }
    Ok(())
}

/// Reads the whole data base once, where that takes seconds and not minutes.
pub(super) fn check(db: &Connection) -> Result<(), SchemaError> {
    let pages: i64 = db.pragma_query_value(None, "page_count", |row| row.get(0))?;
    let found: String = if pages * PAGE_SIZE <= CHECKED_BYTES_MAX {
        db.pragma_query_value(None, "quick_check", |row| row.get(0))?
    } else {
        // Too large to read at each start; what legs and messages are still owed is read in any case.
        db.query_row("SELECT count(*) FROM leg WHERE ended IS NULL", [], |row| row.get::<_, i64>(0))?;
        "ok".to_owned()
    };
    if found == "ok" { Ok(()) } else { Err(SchemaError::Damaged(found)) }
}

// "Pnts". `file(1)` and a careless start in the wrong directory can tell our data base from others.
const APPLICATION_ID: i64 = 0x506e_7473;
const VERSION: i64 = 4;
const _: () = assert!(STEPS[STEPS.len() - 1].0 == VERSION);
// The format that the tables below have; a new file goes on from there.
const BASE: i64 = 2;
// Measured with 4 KiB messages: 20,900/s against 16,000/s with pages of 8192, which put more bytes into the log.
pub(super) const PAGE_SIZE: i64 = 4096;
/// What is deleted or changed is overwritten in its page, which is written anyway: so that `erase` leaves nothing of it.
pub(super) const SECURE_DELETE: &str = "FAST";
const CACHE_KIB: i64 = 8 * 1024;
// More than there are different statements.
const STATEMENTS_MAX: usize = 128;
// Only a checkpoint or an administrator's shell can be in the way.
pub(super) const BUSY_WAIT: Duration = Duration::from_secs(5);
// About two seconds of reading.
const CHECKED_BYTES_MAX: i64 = 512 * 1024 * 1024;

const TABLES: &str = "
CREATE TABLE node (                  -- who may own legs; a settle with another epoch is refused
    id TEXT PRIMARY KEY,
    epoch INTEGER NOT NULL,
    alive_until INTEGER              -- for a fleet; NULL: owns until its next start
) STRICT, WITHOUT ROWID;

CREATE TABLE counter (               -- what was ever accepted and swept, for the balance
    name TEXT PRIMARY KEY,
    value INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
INSERT INTO counter VALUES
    ('messages-accepted', 0), ('legs-accepted', 0), ('messages-swept', 0), ('legs-swept', 0), ('probe', 0);

CREATE TABLE message (
    id INTEGER PRIMARY KEY,
    received INTEGER NOT NULL,
    listener TEXT NOT NULL,
    client TEXT NOT NULL,
    ptr TEXT,
    helo TEXT NOT NULL,
    protocol TEXT NOT NULL,
    sender TEXT NOT NULL,            -- '' is the null sender
    body_type TEXT NOT NULL,         -- 7bit, 8bitmime
    smtputf8 INTEGER NOT NULL,
    require_tls INTEGER NOT NULL DEFAULT 0,
    size INTEGER NOT NULL,
    header_from TEXT NOT NULL,
    subject TEXT NOT NULL,
    message_id TEXT NOT NULL,
    prefix BLOB NOT NULL,            -- header fields that every leg carries
    facts TEXT NOT NULL,             -- JSON: what was known when the rules decided
    rules_hash TEXT NOT NULL,
    legs INTEGER NOT NULL,           -- as counted at acceptance
    cause TEXT                       -- the leg whose end made this message, <message number>.<n>
) STRICT;

CREATE TABLE body (                  -- there while a leg needs it
    id INTEGER PRIMARY KEY,          -- the message's id
    file TEXT,                       -- under bodies/; NULL: the bytes stand here
    size INTEGER NOT NULL,
    sha256 BLOB NOT NULL,
    bytes BLOB
) STRICT;
CREATE INDEX body_file ON body (file) WHERE file IS NOT NULL;

CREATE TABLE leg (
    message INTEGER NOT NULL,
    n INTEGER NOT NULL,
    alias TEXT NOT NULL,             -- as given at RCPT
    target TEXT NOT NULL,
    target_name TEXT,
    earlier_targets TEXT,            -- JSON: where it was to go before
    route TEXT NOT NULL,
    sender TEXT NOT NULL,
    state TEXT NOT NULL,
    reason TEXT NOT NULL,
    detail TEXT NOT NULL,
    since INTEGER NOT NULL,          -- when it entered its state
    due INTEGER,                     -- NULL: waits for an operator, or is final
    ended INTEGER,                   -- NULL: open
    owner TEXT,                      -- node.id while it is in flight
    epoch INTEGER,
    attempts INTEGER NOT NULL,
    prefix BLOB NOT NULL,            -- header fields of this copy
    cuts TEXT,                       -- JSON [[from, to], ...]: ranges of the original left out
    rules TEXT NOT NULL,             -- JSON: names of the rules that applied
    notices TEXT,                    -- JSON: whom its end may be told, what was asked; NULL: nobody, nothing
    body INTEGER,                    -- body.id of an altered copy; NULL: the message's own
    dedupe BLOB,
    dsn TEXT,                        -- sent, admin, suppressed, none
    actor TEXT,                      -- the operator who moved it last
    started INTEGER,                 -- the last attempt
    took INTEGER,
    host TEXT,
    stage TEXT,
    result TEXT,
    reply TEXT,
    PRIMARY KEY (message, n)
) STRICT, WITHOUT ROWID;
-- `ended` is NULL in all of it; it stands there so that counting needs no look into the table.
CREATE INDEX leg_open ON leg (route, owner, due, state, ended) WHERE ended IS NULL;

CREATE TABLE attempt (               -- all but a delivery at the first attempt, which stands in its leg
    message INTEGER NOT NULL,
    n INTEGER NOT NULL,
    number INTEGER NOT NULL,
    started INTEGER NOT NULL,
    took INTEGER NOT NULL,           -- milliseconds
    host TEXT NOT NULL,
    stage TEXT NOT NULL,
    result TEXT NOT NULL,
    reply TEXT NOT NULL,
    PRIMARY KEY (message, n, number)
) STRICT, WITHOUT ROWID;

CREATE TABLE action (                -- what operators did
    message INTEGER NOT NULL,
    n INTEGER NOT NULL,
    at INTEGER NOT NULL,
    number INTEGER NOT NULL,
    actor TEXT NOT NULL,
    operation TEXT NOT NULL,
    detail TEXT NOT NULL,
    PRIMARY KEY (message, n, at, number)
) STRICT, WITHOUT ROWID;

CREATE TABLE dedupe (                -- the leg that stands for all its like
    key BLOB PRIMARY KEY,
    message INTEGER NOT NULL,
    n INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
";

/// What each version added, in order. An older program refuses a newer file.
const STEPS: &[(i64, &str)] = &[
    (2, "ALTER TABLE message ADD COLUMN require_tls INTEGER NOT NULL DEFAULT 0;"),
    (
        3,
        "
CREATE TABLE pause (                 -- routes that an operator paused
    route TEXT PRIMARY KEY,
    since INTEGER NOT NULL,
    until INTEGER,                   -- NULL: until somebody resumes it
    actor TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE audit (                 -- commands that acted, by whom
    id INTEGER PRIMARY KEY,
    at INTEGER NOT NULL,
    uid INTEGER,                     -- of the socket's peer
    pid INTEGER,
    user TEXT,
    action TEXT NOT NULL,
    chosen TEXT NOT NULL,            -- on what
    outcome TEXT                     -- NULL: under way, or cut off
) STRICT;

ALTER TABLE leg ADD COLUMN errand TEXT; -- 'rcpt': a probe that ends at the answer to RCPT; NULL: delivery
",
    ),
    (
        4,
        "
CREATE TABLE return_path (           -- whom what comes back by a path of ours goes to
    day INTEGER NOT NULL,            -- when the path was made, in days since 1970
    key BLOB NOT NULL,               -- the id that it holds, or a digest of the sender that it names
    sender TEXT,                     -- NULL: the path names him
    proven INTEGER,                  -- 1: all that went out was his; 0: some may not be; NULL: nothing went out
    PRIMARY KEY (day, key)
) STRICT, WITHOUT ROWID;
",
    ),
];

/// For questions to an older file: nothing was paused, nobody was recorded.
const ABSENT_BEFORE_3: &str = "
CREATE TEMP TABLE pause (route TEXT PRIMARY KEY, since INTEGER, until INTEGER, actor TEXT);
CREATE TEMP TABLE audit (id INTEGER PRIMARY KEY, at, uid, pid, user, action, chosen, outcome);
";
