//! A copy of the queue while it is at work: the data base of one instant, and every body file that it names.
//!
//! The data base is copied page by page inside one read, so that the writer goes on and the copy is of one instant. The
//! daemon meanwhile unlinks no body ([`super::SqliteStore::keep_bodies`]), so that what the copy names is there. A body is
//! copied and read again by its checksum; a copy is checked as a start would check it, and by its balance.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use aws_lc_rs::digest;
use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, OpenFlags, params};

use crate::clock::Timestamp;
use crate::queue::sqlite::ground::Ground;
use crate::queue::sqlite::read::{self, Balance};
use crate::queue::sqlite::{Node, schema};
use crate::queue::{Reason, State};

/// Why a copy could not be made, or is not worth anything.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    #[error("there is no queue in `{}`", .0.display())]
    Missing(PathBuf),
    #[error("`{}` is not empty", .0.display())]
    NotEmpty(PathBuf),
    #[error("cannot use `{}`", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("cannot copy the data base: {0}")]
    Database(#[from] rusqlite::Error),
    #[error("the copy's data base is damaged: {0}")]
    Damaged(String),
    #[error("the body `{}` is not what its row says", .0.display())]
    Body(PathBuf),
    #[error("the copy's sums do not agree: {0:?}")]
    Unbalanced(Box<Balance>),
}

/// How far it has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    pub part: &'static str,
    pub done: u64,
    pub total: u64,
}

/// What a copy holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    pub messages: i64,
    pub legs: i64,
    /// Those that a start would go on with.
    pub open: i64,
    pub bodies: u64,
}

/// Copies the queue in `from` to `to`, which is made, or empty.
pub fn copy(from: &Path, to: &Path, tell: &mut dyn FnMut(Progress)) -> Result<(), BackupError> {
    let (source, copy) = (Ground { dir: from.to_owned() }, Ground { dir: to.to_owned() });
    if !source.database().exists() {
        return Err(BackupError::Missing(from.to_owned()));
    }
    make_empty(to)?;
    copy_database(&source.database(), &copy.database(), tell)?;
    let names = body_names(&copy.database())?;
    let total = names.len() as u64;
    for (done, name) in (1..).zip(&names) {
        copy_file(&source.bodies().join(name), &copy.bodies().join(name))?;
        tell(Progress { part: "bodies", done, total });
    }
    sync_folder(&copy.bodies())?;
    sync_folder(to)
}

/// Reads a copy whole, and says what it holds.
pub fn verify(dir: &Path, tell: &mut dyn FnMut(Progress)) -> Result<Held, BackupError> {
    let ground = Ground { dir: dir.to_owned() };
    if !ground.database().exists() {
        return Err(BackupError::Missing(dir.to_owned()));
    }
    let db = open(&ground.database())?;
    let found: String = db.pragma_query_value(None, "quick_check", |row| row.get(0))?;
    if found != "ok" {
        return Err(BackupError::Damaged(found));
    }
    let mut question = db.prepare("SELECT file, size, sha256 FROM body WHERE file IS NOT NULL")?;
    let files: Vec<(String, u64, [u8; 32])> = question
        .query_map([], |row| Ok((row.get(0)?, row.get::<_, i64>(1)? as u64, row.get(2)?)))?
        .collect::<rusqlite::Result<_>>()?;
    let total = files.len() as u64;
    for (done, (name, size, sha256)) in (1..).zip(&files) {
        let path = ground.bodies().join(name);
        if !is_body(&path, *size, sha256)? {
            return Err(BackupError::Body(path));
        }
        tell(Progress { part: "verified", done, total });
    }
    let balance = read::balance(&db, &ground.bodies())?;
    if !balance.holds() {
        return Err(BackupError::Unbalanced(Box::new(balance)));
    }
    let open = db.query_row("SELECT count(*) FROM leg WHERE ended IS NULL", [], |row| row.get(0))?;
    Ok(Held { messages: balance.messages, legs: balance.legs, open, bodies: total })
}

/// Lets every queued leg of a queue that no daemon has wait for an operator. Gives back how many.
pub fn hold_all(dir: &Path, now: Timestamp) -> Result<usize, BackupError> {
    let db = Connection::open(Ground { dir: dir.to_owned() }.database())?;
    let mut hold = db.prepare(
        "UPDATE leg SET state = ?1, reason = ?2, detail = ?3, due = NULL, owner = NULL, epoch = NULL, since = ?4
         WHERE ended IS NULL AND state = ?5",
    )?;
    let (state, reason) = (State::Held.as_str(), Reason::Operator.as_str());
    let detail = "restored from a backup: it may have been delivered since";
    Ok(hold.execute(params![state, reason, detail, now.0, State::Queued.as_str()])?)
}

fn make_empty(dir: &Path) -> Result<(), BackupError> {
    let fault = |source| BackupError::File { path: dir.to_owned(), source };
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(fault)?;
    match fs::read_dir(dir).map_err(fault)?.next() {
        None => Ok(()),
        Some(_) => Err(BackupError::NotEmpty(dir.to_owned())),
    }
}

fn copy_database(from: &Path, to: &Path, tell: &mut dyn FnMut(Progress)) -> Result<(), BackupError> {
    let source = schema::open_reader(from)?;
    // The first read fixes the instant; without it each step could be of another.
    source.execute_batch("BEGIN")?;
    source.query_row("SELECT count(*) FROM node", [], |row| row.get::<_, i64>(0))?;
    let mut copy = Connection::open(to)?;
    {
        let backup = Backup::new(&source, &mut copy)?;
        loop {
            let step = backup.step(PAGES_A_STEP)?;
            let progress = backup.progress();
            let total = u64::try_from(progress.pagecount).unwrap_or(0);
            let left = u64::try_from(progress.remaining).unwrap_or(0);
            tell(Progress { part: "queue", done: total.saturating_sub(left), total });
            match step {
                StepResult::Done => break,
                StepResult::More => {}
                // A checkpoint has the file for a moment.
                _ => std::thread::sleep(BUSY_WAIT),
            }
        }
    }
    // One file, with no log beside it that could be left behind.
    copy.pragma_update(None, "journal_mode", "DELETE")?;
    // Whoever had legs in his hands is not there any more.
    copy.execute("UPDATE leg SET owner = NULL, epoch = NULL WHERE owner = ?1 AND ended IS NULL", [Node::ID])?;
    drop(copy);
    let fault = |source| BackupError::File { path: to.to_owned(), source };
    File::open(to).and_then(|file| file.sync_all()).map_err(fault)
}

fn body_names(database: &Path) -> Result<Vec<String>, BackupError> {
    let db = open(database)?;
    let mut question = db.prepare("SELECT file FROM body WHERE file IS NOT NULL ORDER BY file")?;
    Ok(question.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?)
}

fn open(database: &Path) -> rusqlite::Result<Connection> {
    Connection::open_with_flags(database, OpenFlags::SQLITE_OPEN_READ_ONLY)
}

/// Copies a file whole, and syncs it; folders are made.
pub fn copy_file(from: &Path, to: &Path) -> Result<(), BackupError> {
    let fault = |path: &Path| {
        let path = path.to_owned();
        move |source| BackupError::File { path, source }
    };
    if let Some(folder) = to.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(fault(folder))?;
    }
    fs::copy(from, to).map_err(fault(from))?;
    File::open(to).and_then(|file| file.sync_all()).map_err(fault(to))
}

fn sync_folder(dir: &Path) -> Result<(), BackupError> {
    if !dir.exists() {
        return Ok(());
    }
    let synced = File::open(dir).and_then(|folder| folder.sync_all());
    synced.map_err(|source| BackupError::File { path: dir.to_owned(), source })
}

fn is_body(path: &Path, size: u64, sha256: &[u8; 32]) -> Result<bool, BackupError> {
    let fault = |source| BackupError::File { path: path.to_owned(), source };
    let mut file = File::open(path).map_err(fault)?;
    let mut context = digest::Context::new(&digest::SHA256);
    let mut buffer = vec![0; READ_OCTETS];
    let mut read = 0;
    loop {
        match file.read(&mut buffer).map_err(fault)? {
            0 => break,
            octets => {
                context.update(&buffer[..octets]);
                read += octets as u64;
            }
        }
    }
    Ok(read == size && context.finish().as_ref() == sha256)
}

/// 4 MiB: a progress bar that moves, and few steps.
const PAGES_A_STEP: i32 = 1024;
const BUSY_WAIT: Duration = Duration::from_millis(20);
const READ_OCTETS: usize = 128 * 1024;
