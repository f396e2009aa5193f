//! The queue on SQLite: one writer that commits whatever waits (`writer`), readers beside it, a housekeeper.
//!
//! Every legal state on disk, of a message and its body. A start after a crash finds one of them and ends in the same
//! row; whatever is between two rows is undone by SQLite or by the sweep of files.
//!
//! | | file under `bodies/` | rows of message and legs | body row | how it goes on |
//! |---|---|---|---|---|
//! | 1 | - | - | - | nothing was promised |
//! | 2 | partial or whole | - | - | not acknowledged: the next start unlinks the file |
//! | 3 | - | legs open, ownerless | bytes | claimed when due |
//! | 4 | whole | legs open, ownerless | names the file | claimed when due |
//! | 5 | as 3 or 4 | legs open, owned by an epoch | as 3 or 4 | attempted; the next start's epoch frees it (one repeat) |
//! | 6 | whole | all legs final | - | the file is unlinked after the commit, or by the next start |
//! | 7 | - | all legs final | - | swept after the retention |
//! | 8 | as 3 or 4 | all legs final | as 3 or 4 | `retention.bodies`: dropped when that is over |
//! | 9 | cut short or missing | legs open | names the file | damage: the leg is held, the rest goes on |
//!
//! A row of 3, 4 or 5 is acknowledged by a 250 only after its commit was synced.

use std::collections::HashSet;
use std::fmt;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use rusqlite::Connection;
use tokio::sync::mpsc;

use crate::clock::{Clock, Timestamp};
use crate::id::{LegId, MessageId};
use crate::queue::body::{self, Bodies, BodyRows, BodyWriter, StoredBody};
use crate::queue::budget::Budget;
use crate::queue::{
    Answer, GivenBack, NewLeg, NewMessage, OwnedLeg, Queued, Refused, Settled, Settlement, State, Store, StoreError,
};
use crate::srs::{Original, ReturnPath};

mod schema;
mod ground;
mod shared;
mod writer;
mod rows;
mod notices;
mod commit;
mod settle;
mod claim;
mod operate;
mod redeliver;
mod pause;
mod audit;
mod erase;
pub mod backup;
mod sweep;
mod refused;
mod returns;
mod read;
mod recorded;
mod read_only;
mod housekeeper;
#[cfg(test)]
mod tests;

pub use audit::{AuditFilter, AuditRow};
pub use erase::{Erased, Whose};
pub use operate::{OperateResult, Operated, Operation, Replacement};
pub use read::Balance;
pub use read_only::ReadOnly;
pub use recorded::Recorded;
pub use redeliver::{Repeat, Repeated};
pub use refused::RefusedFilter;
pub use rows::{ActionRow, AttemptRow, Filter, LegRow, MessageRow, Order, PauseRow, ROWS_MAX};

use audit::{AuditBegin, AuditEnd};
use claim::Claim;
use commit::Commit;
use erase::Erase;
use ground::Ground;
use operate::Operate;
use pause::{Pause, Resume};
use read::{Reader, ReaderLife};
use schema::SchemaError;
use settle::{Release, Settle};
use shared::Shared;
use sweep::Sweep;
use writer::{JOBS_MAX, Job, Work, Writer, ask, open_index};

/// How a store is opened.
pub struct Options {
    pub retention: Retention,
    /// Below so many free bytes new mail is answered 452, while deliveries go on.
    pub min_free: u64,
    pub mode: Mode,
    pub clock: Arc<dyn Clock>,
    pub observer: Arc<dyn Observer>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// For final legs and their messages.
    pub ledger: Duration,
    /// For bodies after their last leg ended.
    pub bodies: Duration,
    /// A leg that has been in the quarantine for longer is discarded.
    pub quarantine: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// A thread writes, others read and tidy up.
    Threaded,
    /// Every operation is done by its caller at the call, unsynced, so that a whole daemon can live on a virtual
    /// clock. For tests alone: nothing is durable. [`SqliteStore::tidy`] is then the caller's to call.
    Inline,
}

/// Who is told what the store does, from its threads; it must not block.
pub trait Observer: Send + Sync + 'static {
    /// A group was committed: how long it took, and how many new messages were in it.
    fn committed(&self, took: Duration, messages: usize);
    /// Ownerless legs of the route are due: [`crate::queue::handover::Handover::wake`] it.
    fn due(&self, route: &str);
    /// Nobody released the leg within [`Retention::quarantine`]: it was discarded, reason expired.
    fn quarantine_over(&self, leg: LegId, route: &str);
    /// Commits fail (`false`), or succeed again.
    fn ready(&self, ready: bool);
}

/// An observer that does nothing.
pub struct Unobserved;

impl Observer for Unobserved {
    fn committed(&self, _took: Duration, _messages: usize) {}
    fn due(&self, _route: &str) {}
    fn quarantine_over(&self, _leg: LegId, _route: &str) {}
    fn ready(&self, _ready: bool) {}
}

/// Why a store cannot be opened. Nothing was changed or deleted.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("cannot use `{}`", path.display())]
    Directory { path: PathBuf, source: io::Error },
    #[error("another pointsman is running on `{}`", path.display())]
    Locked { path: PathBuf },
    #[error("`{}` is on a network file system ({kind}): the queue needs a local one", path.display())]
    Network { path: PathBuf, kind: &'static str },
    #[error("there is no queue in `{}`", path.display())]
    Missing { path: PathBuf },
    #[error("`{}` cannot be used: {what}", path.display())]
    NotOurs { path: PathBuf, what: String },
    #[error(
        "the queue `{0}` is damaged: {what}; put the directory aside, restore a backup, or copy what is readable with \
         `sqlite3 {0} .recover`", path.display()
    )]
    Damaged { path: PathBuf, what: String },
    #[error("cannot open the queue `{}`: {what}", path.display())]
    Database { path: PathBuf, what: String },
}

fn open_error(path: &Path, error: SchemaError) -> OpenError {
    let path = path.to_owned();
    match error {
        SchemaError::Foreign(_) | SchemaError::Newer(_) => OpenError::NotOurs { path, what: error.to_string() },
        SchemaError::Damaged(what) => OpenError::Damaged { path, what },
        SchemaError::Sqlite(error) => match error.sqlite_error_code() {
            Some(rusqlite::ErrorCode::DatabaseCorrupt | rusqlite::ErrorCode::NotADatabase) => {
                OpenError::Damaged { path, what: error.to_string() }
            }
            _ => OpenError::Database { path, what: error.to_string() },
        },
    }
}

/// Who owns what is claimed.
#[derive(Clone, Copy, Debug)]
struct Node {
    epoch: u64,
}

impl Node {
    /// A queue on SQLite has one node, whoever it is: `data/` is locked. A name of the administrator's, such as the
    /// hostname, may change between two starts, and what the old name owned would be nobody's.
    const ID: &str = "local";
}

/// The store. Dropping it finishes what waits, then ends its threads and its lock.
pub struct SqliteStore {
    line: Line,
    node: Node,
    shared: Arc<Shared>,
    bodies: Arc<Bodies>,
    /// For bodies on their way out and for what comes back: never behind a long question.
    body_reader: Arc<Reader>,
    questions: Reader,
    lives: Vec<ReaderLife>,
    threads: Vec<JoinHandle<()>>,
    _lock: File,
}

/// See [`SqliteStore::keep_bodies`].
#[must_use]
pub struct BodiesKept(Arc<Shared>);

impl Drop for BodiesKept {
    fn drop(&mut self) {
        self.0.let_bodies_go();
    }
}

enum Line {
    Threaded(mpsc::Sender<Box<dyn Job>>),
    Inline(Box<Mutex<Writer>>),
    /// Only while it is dropped.
    Closed,
}

impl SqliteStore {
    /// Opens the queue in `dir`, made where it is missing. Frees what the last start of this node had in flight and
    /// sweeps body files that no row names.
    pub fn open(dir: &Path, options: Options) -> Result<SqliteStore, OpenError> {
        let ground = Ground { dir: dir.to_owned() };
        ground.prepare()?;
        let lock = ground.lock()?;
        let path = ground.database();
        let synchronous = match options.mode {
            Mode::Threaded => "FULL",
            Mode::Inline => "OFF",
        };
        let db = schema::open_writer(&path, synchronous).map_err(|error| open_error(&path, error))?;
        schema::check(&db).map_err(|error| open_error(&path, error))?;
        let fault = |error: rusqlite::Error| open_error(&path, SchemaError::Sqlite(error));
        let node = Node { epoch: begin_epoch(&db, options.clock.now()).map_err(fault)? };
        let named = body_files(&db).map_err(fault)?;
        let swept = ground.sweep_bodies(&named);
        swept.map_err(|source| OpenError::Directory { path: ground.bodies(), source })?;
        let shared = Arc::new(Shared::new(&options, ground));
        shared.look_at_space();
        let writer = Writer::new(db, path.clone(), synchronous, node, Arc::clone(&shared)).map_err(fault)?;
        assemble(options.mode, &path, writer, node, shared, lock)
    }

    /// Opens the queue for questions without a daemon; also beside a running one.
    pub fn open_read_only(dir: &Path) -> Result<ReadOnly, OpenError> {
        ReadOnly::open(dir)
    }

    /// The largest id that the queue knows, for [`crate::id::Ids::after`].
    pub async fn max_message_id(&self) -> Result<MessageId, StoreError> {
        let max = |db: &Connection| db.query_row("SELECT coalesce(max(id), 0) FROM message", [], |row| row.get(0));
        self.questions.ask(max).await.map(MessageId)
    }

    /// This start's epoch.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.node.epoch
    }

    /// Whether the last commit succeeded.
    #[must_use]
    pub fn ready(&self) -> bool {
        self.shared.ready.load(Ordering::Relaxed)
    }

    /// Whether its writer is there. One that has ended cannot be replaced: nothing is committed any more.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        match &self.line {
            Line::Threaded(sender) => !sender.is_closed(),
            Line::Inline(_) => true,
            Line::Closed => false,
        }
    }

    /// Whether new mail can be taken, or why not.
    pub fn readiness(&self) -> Result<(), &'static str> {
        match (self.ready(), self.accepting()) {
            (true, true) => Ok(()),
            (false, _) => Err("the queue cannot be written"),
            (true, false) => Err("too little free space for new mail"),
        }
    }

    /// Keeps what is over for so long from now on, and takes new mail while more than `min_free` bytes are free.
    pub fn keep(&self, retention: Retention, min_free: u64) {
        self.shared.keep(retention, min_free);
    }

    /// Below so many free bytes no new mail is taken.
    #[must_use]
    pub fn min_free(&self) -> u64 {
        self.shared.min_free.load(Ordering::Relaxed)
    }

    /// Free bytes on the data directory's disk, looked at once a second.
    #[must_use]
    pub fn free_bytes(&self) -> u64 {
        self.shared.free_bytes.load(Ordering::Relaxed)
    }

    /// Open legs by route and open state, from the writer's own counters.
    #[must_use]
    pub fn open_legs(&self) -> Vec<(String, State, u64)> {
        let gauges = self.shared.gauges.lock().expect(NO_PANIC);
        let mut list = Vec::new();
        for (route, counts) in gauges.iter() {
            for state in State::ALL {
                if let Some(at) = open_index(state) {
                    list.push((route.clone(), state, u64::try_from(counts[at]).unwrap_or(0)));
                }
            }
        }
        list.sort();
        list
    }

    /// When the oldest open leg arrived, by route and state. Reads the index of open legs.
    pub async fn oldest(&self) -> Result<Vec<(String, State, Timestamp)>, StoreError> {
        self.questions.ask(read::oldest).await
    }

    /// Acts on each of these legs, all in one transaction, and says what became of it, in the same order. `by` names the
    /// operator in the ledger. A leg in flight is left alone and answered so; one that is not there is left out.
    pub async fn operate(
        &self,
        operations: Vec<(LegId, Operation)>,
        dry_run: bool,
        by: &str,
        at: Timestamp,
    ) -> Result<Vec<Operated>, StoreError> {
        self.ask(Operate { operations, dry_run, by: by.to_owned(), at }).await
    }

    /// Writes down that a route is paused, or that its pause ends elsewhen: [`crate::queue::handover::Handover::pause`]
    /// makes it so.
    pub async fn pause(&self, pause: PauseRow) -> Result<(), StoreError> {
        self.ask(Pause(pause)).await
    }

    /// Ends a route's pause; what it was, if there was one.
    pub async fn resume(&self, route: &str) -> Result<Option<PauseRow>, StoreError> {
        self.ask(Resume(route.to_owned())).await
    }

    /// The routes that are paused.
    pub async fn pauses(&self) -> Result<Vec<PauseRow>, StoreError> {
        self.questions.ask(pause::pauses).await
    }

    /// Writes down that a command is about to act. Synced when this returns.
    pub async fn audit_begin(&self, row: AuditRow) -> Result<i64, StoreError> {
        self.ask(AuditBegin(row)).await
    }

    /// Writes down how the command ended.
    pub async fn audit_end(&self, id: i64, outcome: &str) -> Result<(), StoreError> {
        self.ask(AuditEnd { id, outcome: outcome.to_owned() }).await
    }

    /// Erases what is kept of somebody, or of a message, refusals too. Messages with open legs stay, unless `open_too`;
    /// those that are being sent stay in any case. A dry run says what would go. What is over some thousand messages
    /// takes several transactions; each is whole.
    pub async fn erase(&self, whose: Whose, open_too: bool, dry_run: bool) -> Result<Erased, StoreError> {
        let mut erased = Erased { refused: self.erase_refused(&whose, dry_run).await?, ..Erased::default() };
        let mut after = MessageId(0);
        loop {
            let found = self.ask(Erase { whose: whose.clone(), after, open_too, dry_run }).await?;
            erased.messages.extend(found.messages);
            erased.open.extend(found.open);
            match found.more {
                Some(last) => after = last,
                None => break,
            }
        }
        self.shared.scour.store(!dry_run, Ordering::Relaxed);
        Ok(erased)
    }

    async fn erase_refused(&self, whose: &Whose, dry_run: bool) -> Result<usize, StoreError> {
        let (shared, whose) = (Arc::clone(&self.shared), whose.clone());
        self.questions.ask(move |_| shared.refused.erase(&whose, dry_run)).await
    }

    /// Until this is dropped no body's file is unlinked, so that a copy of the data base finds all that it names.
    pub fn keep_bodies(&self) -> BodiesKept {
        self.shared.keep_bodies();
        BodiesKept(Arc::clone(&self.shared))
    }

    /// Commands that acted, newest first.
    pub async fn audit(&self, filter: AuditFilter) -> Result<Vec<AuditRow>, StoreError> {
        self.questions.ask(move |db| audit::audit(db, &filter)).await
    }

    /// The legs that the filter chooses.
    pub async fn query(&self, filter: Filter) -> Result<Vec<LegRow>, StoreError> {
        self.questions.ask(move |db| rows::legs(db, &filter)).await
    }

    /// A message with its legs, attempts and what operators did.
    pub async fn message(&self, id: MessageId) -> Result<Option<MessageRow>, StoreError> {
        self.questions.ask(move |db| read::message(db, id)).await
    }

    /// A message's body while it is kept.
    pub async fn body(&self, id: MessageId) -> Result<Option<StoredBody>, StoreError> {
        let (bodies, rows) = (self.shared.ground.bodies(), self.body_rows());
        self.questions.ask(move |db| read::body(db, id, &bodies, &rows)).await
    }

    /// Refusals, newest first.
    pub async fn refused(&self, filter: RefusedFilter) -> Result<Vec<Refused>, StoreError> {
        let shared = Arc::clone(&self.shared);
        self.questions.ask(move |_| shared.refused.list(&filter)).await
    }

    /// The conservation of mail, checked over the whole ledger.
    pub async fn balance(&self) -> Result<Balance, StoreError> {
        let bodies = self.shared.ground.bodies();
        self.questions.ask(move |db| read::balance(db, &bodies)).await
    }

    /// What the housekeeper does now and then; in [`Mode::Inline`] the caller does.
    pub async fn tidy(&self, now: Timestamp) -> Result<(), StoreError> {
        self.shared.refused.flush();
        self.shared.look_at_space();
        self.ask(Sweep { now, quarantine: true }).await
    }

    fn body_rows(&self) -> Arc<dyn BodyRows> {
        Arc::clone(&self.body_reader) as Arc<dyn BodyRows>
    }

    /// Hands work to the writer and waits for its group.
    fn ask<W: Work>(&self, work: W) -> Answer<'_, W::Output> {
        match &self.line {
            Line::Threaded(sender) => Box::pin(async move {
                let orphans = self.shared.orphans().map(|release| ask(release).0);
                let (job, answer) = ask(work);
                for job in orphans.into_iter().chain([job]) {
                    sender.send(job).await.map_err(|_| StoreError::Closed)?;
                }
                answer.await.map_err(|_| StoreError::Closed)?
            }),
            Line::Inline(writer) => {
                let mut writer = writer.lock().expect(NO_PANIC);
                if let Some(release) = self.shared.orphans() {
                    writer.run(&mut vec![ask(release).0]);
                }
                let (job, mut answer) = ask(work);
                writer.run(&mut vec![job]);
                Box::pin(std::future::ready(answer.try_recv().unwrap_or(Err(StoreError::Closed))))
            }
            Line::Closed => Box::pin(std::future::ready(Err(StoreError::Closed))),
        }
    }
}

fn assemble(
    mode: Mode,
    path: &Path,
    writer: Writer,
    node: Node,
    shared: Arc<Shared>,
    lock: File,
) -> Result<SqliteStore, OpenError> {
    let budget = Budget::new(body::IN_MEMORY_TOTAL);
    let bodies = Arc::new(Bodies::new(shared.ground.bodies(), budget, node.epoch, mode == Mode::Inline));
    let fault = |error| open_error(path, error);
    match mode {
        Mode::Inline => {
            let reader = || Reader::inline(path).map_err(|error| fault(SchemaError::Sqlite(error)));
            let (body_reader, questions) = (Arc::new(reader()?), reader()?);
            let line = Line::Inline(Box::new(Mutex::new(writer)));
            let (lives, threads) = (Vec::new(), Vec::new());
            Ok(SqliteStore { line, node, shared, bodies, body_reader, questions, lives, threads, _lock: lock })
        }
        Mode::Threaded => {
            let (body_reader, body_life) = Reader::threaded(path, "queue-bodies").map_err(fault)?;
            let (questions, question_life) = Reader::threaded(path, "queue-questions").map_err(fault)?;
            let (sender, jobs) = mpsc::channel(JOBS_MAX);
            let thread = |name: &str, work: Box<dyn FnOnce() + Send>| {
                let started = std::thread::Builder::new().name(name.to_owned()).spawn(work);
                started.map_err(|source| OpenError::Directory { path: path.to_owned(), source })
            };
            let house = housekeeper::Housekeeper::new(path, Arc::clone(&shared), sender.downgrade());
            let house = house.map_err(|error| fault(SchemaError::Sqlite(error)))?;
            let threads = vec![
                thread("queue-writer", Box::new(move || writer.work(jobs)))?,
                thread("queue-house", Box::new(move || house.work()))?,
            ];
            Ok(SqliteStore {
                line: Line::Threaded(sender),
                node,
                shared,
                bodies,
                body_reader: Arc::new(body_reader),
                questions,
                lives: vec![body_life, question_life],
                threads,
                _lock: lock,
            })
        }
    }
}

impl Drop for SqliteStore {
    fn drop(&mut self) {
        // The readers go first, so that the last connection to close can write and SQLite removes its log.
        self.lives.clear();
        // The writer works off what waits, then ends; the housekeeper sees that the writer's door is shut.
        self.line = Line::Closed;
        for thread in self.threads.drain(..) {
            thread.thread().unpark();
            // A thread that panicked has said so itself.
            let _ = thread.join();
        }
        self.shared.refused.flush();
    }
}

impl fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteStore").field("node", &self.node).finish_non_exhaustive()
    }
}

impl Store for SqliteStore {
    fn write_body(&self) -> BodyWriter {
        self.bodies.writer()
    }

    fn accepting(&self) -> bool {
        self.ready() && self.shared.has_space.load(Ordering::Relaxed)
    }

    fn commit(&self, message: NewMessage, legs: Vec<NewLeg>) -> Answer<'_, Queued> {
        self.ask(Commit { message, legs })
    }

    fn settle(&self, settlements: Vec<Settlement>) -> Answer<'_, Vec<Settled>> {
        self.ask(Settle { settlements })
    }

    fn claim(&self, route: &str, now: Timestamp, limit: usize) -> Answer<'_, Vec<OwnedLeg>> {
        let (rows, bodies) = (self.body_rows(), self.shared.ground.bodies());
        self.ask(Claim { route: route.to_owned(), now, limit, rows, bodies })
    }

    fn release(&self, legs: Vec<LegId>, due: Timestamp, how: GivenBack) -> Answer<'_, ()> {
        self.ask(Release { legs, due: Some(due), how })
    }

    fn next_due(&self) -> Answer<'_, Vec<(String, Timestamp)>> {
        self.questions.ask(claim::next_due)
    }

    fn originals(&self, paths: Vec<ReturnPath>) -> Answer<'_, Vec<Option<Original>>> {
        let (retention, now) = (self.shared.retention(), self.shared.clock.now());
        // Somebody waits for his 250: never behind an operator's long question.
        self.body_reader.ask(move |db| returns::find(db, &paths, retention, now))
    }

    fn record_refused(&self, refused: Refused) {
        self.shared.refused.record(refused);
    }
}

/// Counts this start and frees what any earlier one had in its hands, whatever its owner was called. Which
/// of these legs a worker was sending nobody wrote down, to spare each attempt a write: all are noted as cut off.
fn begin_epoch(db: &Connection, now: Timestamp) -> rusqlite::Result<u64> {
    let tx = db.unchecked_transaction()?;
    let epoch: i64 = tx.query_row(
        "INSERT INTO node (id, epoch) VALUES (?1, 1) ON CONFLICT (id) DO UPDATE SET epoch = epoch + 1 RETURNING epoch",
        [Node::ID],
        |row| row.get(0),
    )?;
    let owned: Vec<LegId> = tx
        .prepare(
            "UPDATE leg SET owner = NULL, epoch = NULL WHERE ended IS NULL AND owner IS NOT NULL
             RETURNING message, n",
        )?
        .query_map([], |row| Ok(LegId { message: MessageId(row.get(0)?), n: row.get(1)? }))?
        .collect::<rusqlite::Result<_>>()?;
    for leg in owned {
        settle::note_cut_off(&tx, leg, "a restart", now)?;
    }
    tx.commit()?;
    Ok(epoch as u64)
}

fn body_files(db: &Connection) -> rusqlite::Result<HashSet<String>> {
    let mut question = db.prepare("SELECT file FROM body WHERE file IS NOT NULL")?;
    question.query_map([], |row| row.get(0))?.collect()
}

const NO_PANIC: &str = "no code panics while it holds this lock";
