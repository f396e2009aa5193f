//! The one writer: takes all work that waits, puts it into one transaction, commits (one fsync), answers all.
//!
//! There is no artificial delay: while one group is being synced the next one gathers. Each kind of work is a type of
//! its own that implements [`Work`]; the writer knows none of them. Nothing is answered, unlinked, counted or woken
//! before the commit succeeded.
//!
//! Faults. A fault of the storage (I/O, damage) fails the whole group, the connection is closed, and no work succeeds
//! until a new connection has moved the log into the data base and made a commit of its own; SQLite never counts
//! frames whose sync failed, so a failed sync is not retried into a success. A full disk fails new mail only, and the
//! rest of its group is tried again by itself. Any other error fails the work that caused it.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode};
use tokio::sync::{mpsc, oneshot};

use crate::contain::{contain_now, trip};
use crate::id::{LegId, MessageId};
use crate::queue::sqlite::shared::Shared;
use crate::queue::sqlite::{Node, schema};
use crate::queue::{State, StoreError};

/// One thing to do inside a transaction. It may run twice, since a group that failed is tried again piece by piece.
pub(super) trait Work: Send + 'static {
    type Output: Send + 'static;

    fn run(&self, group: &mut Group<'_>) -> rusqlite::Result<Self::Output>;

    /// The group is on disk.
    fn committed(&self) {}

    /// It failed, but whether the disk has it nevertheless is not known.
    fn in_doubt(&self) -> Option<MessageId> {
        None
    }

    /// New mail: fails on a full disk, where deliveries and the ledger still go on.
    fn is_new_mail(&self) -> bool {
        false
    }

    /// Whoever asked is gone: the legs that he would have had.
    fn unheard(_output: Self::Output) -> Vec<LegId> {
        Vec::new()
    }
}

/// A transaction under way, and what is to happen once it is committed.
pub(super) struct Group<'a> {
    pub(super) db: &'a Connection,
    pub(super) node: &'a Node,
    pub(super) shared: &'a Arc<Shared>,
    pub(super) effects: Effects,
}

/// What a transaction changes outside the data base.
#[derive(Default)]
pub(super) struct Effects {
    /// Open legs by route and state, as differences.
    open: HashMap<String, [i64; OPEN_STATES]>,
    pub(super) unlink: Vec<String>,
    /// Routes that have new ownerless due legs.
    pub(super) due: HashSet<String>,
    /// Legs whose time in the quarantine is over, with their routes.
    pub(super) given_up: Vec<(LegId, String)>,
    pub(super) messages: i64,
    pub(super) legs: i64,
    pub(super) messages_swept: i64,
    pub(super) legs_swept: i64,
}

impl Effects {
    /// Counts a leg into (`by` = 1) or out of (-1) a state; final states are not counted.
    pub(super) fn count(&mut self, route: &str, state: State, by: i64) {
        let Some(at) = open_index(state) else { return };
        if !self.open.contains_key(route) {
            self.open.insert(route.to_owned(), [0; OPEN_STATES]);
        }
        if let Some(counts) = self.open.get_mut(route) {
            counts[at] += by;
        }
    }

    pub(super) fn wake(&mut self, route: &str) {
        if !self.due.contains(route) {
            self.due.insert(route.to_owned());
        }
    }
}

/// Where an open state stands in a route's counts.
pub(super) fn open_index(state: State) -> Option<usize> {
    match state {
        State::Queued => Some(0),
        State::Held => Some(1),
        State::Quarantined => Some(2),
        State::Delivered | State::Bounced | State::Expired | State::Duplicate | State::Omitted | State::Discarded => {
            None
        }
    }
}

pub(super) const OPEN_STATES: usize = 3;

/// Work of any kind, with the way back to whoever asked.
pub(super) trait Job: Send {
    fn run(&mut self, group: &mut Group<'_>) -> rusqlite::Result<()>;
    fn answer(self: Box<Self>, fault: Option<&StoreError>, shared: &Shared);
    fn in_doubt(&self) -> Option<MessageId>;
    fn is_new_mail(&self) -> bool;
}

pub(super) struct Asked<W: Work> {
    work: W,
    output: Option<W::Output>,
    reply: oneshot::Sender<Result<W::Output, StoreError>>,
}

pub(super) type Reply<W> = oneshot::Receiver<Result<<W as Work>::Output, StoreError>>;

/// Wraps work; its answer arrives at the receiver.
pub(super) fn ask<W: Work>(work: W) -> (Box<dyn Job>, Reply<W>) {
    let (reply, answer) = oneshot::channel();
    (Box::new(Asked { work, output: None, reply }), answer)
}

impl<W: Work> Job for Asked<W> {
    fn run(&mut self, group: &mut Group<'_>) -> rusqlite::Result<()> {
        self.output = Some(self.work.run(group)?);
        Ok(())
    }

    fn answer(self: Box<Self>, fault: Option<&StoreError>, shared: &Shared) {
        let answer = match (fault, self.output) {
            (None, Some(output)) => {
                self.work.committed();
                Ok(output)
            }
            (Some(fault), _) => Err(fault.clone()),
            (None, None) => Err(StoreError::Closed),
        };
        if let Err(Ok(output)) = self.reply.send(answer) {
            shared.take_back(W::unheard(output));
        }
    }

    fn in_doubt(&self) -> Option<MessageId> {
        self.work.in_doubt()
    }

    fn is_new_mail(&self) -> bool {
        self.work.is_new_mail()
    }
}

/// The connection that writes, and what it knows.
pub(super) struct Writer {
    /// `None` after a fault, until it could be opened again.
    db: Option<Connection>,
    path: PathBuf,
    synchronous: &'static str,
    node: Node,
    shared: Arc<Shared>,
    /// Messages whose commit failed in a way that leaves open whether they are there.
    in_doubt: Vec<MessageId>,
}

impl Writer {
    pub(super) fn new(
        db: Connection,
        path: PathBuf,
        synchronous: &'static str,
        node: Node,
        shared: Arc<Shared>,
    ) -> rusqlite::Result<Writer> {
        shared.set_gauges(open_legs(&db)?);
        Ok(Writer { db: Some(db), path, synchronous, node, shared, in_doubt: Vec::new() })
    }

    /// Works until all senders are gone.
    pub(super) fn work(mut self, mut jobs: mpsc::Receiver<Box<dyn Job>>) {
        let mut group = Vec::new();
        while jobs.blocking_recv_many(&mut group, GROUP_MAX) > 0 {
            self.run(&mut group);
        }
    }

    /// Runs the jobs as one group, answers them and empties the list. A panic of ours is a fault of the storage like any
    /// other: whatever the transaction had done is undone by the end of its connection, and who waits is told.
    pub(super) fn run(&mut self, jobs: &mut Vec<Box<dyn Job>>) {
        if contain_now("writer", || self.run_group(jobs)).is_err() {
            self.lose_connection(jobs, "a fault of ours");
        }
    }

    fn run_group(&mut self, jobs: &mut Vec<Box<dyn Job>>) {
        if self.db.is_none() && !self.reopen() {
            let fault = StoreError::Write("the data base could not be opened again".into());
            return self.answer(jobs, Some(&fault));
        }
        match self.transact(jobs) {
            Ok(()) => self.answer(jobs, None),
            Err(error) => self.fail(jobs, &error),
        }
        self.restart_log();
    }

    fn fail(&mut self, jobs: &mut Vec<Box<dyn Job>>, error: &rusqlite::Error) {
        match fault_of(error) {
            Fault::Full => {
                let (mail, mut rest): (Vec<_>, Vec<_>) = jobs.drain(..).partition(|job| job.is_new_mail());
                if mail.is_empty() {
                    return self.answer(&mut rest, Some(&StoreError::Full));
                }
                let mut mail = mail;
                self.answer(&mut mail, Some(&StoreError::Full));
                if !rest.is_empty() {
                    self.run(&mut rest);
                }
            }
            Fault::Storage => self.lose_connection(jobs, &error.to_string()),
            Fault::Work if jobs.len() == 1 => {
                self.answer(jobs, Some(&StoreError::Write(error.to_string().into())));
            }
            Fault::Work => {
                for job in jobs.drain(..) {
                    self.run(&mut vec![job]);
                }
            }
        }
    }

    /// Whether the disk has what the group wrote is not known: nothing succeeds until a new connection is proved.
    fn lose_connection(&mut self, jobs: &mut Vec<Box<dyn Job>>, why: &str) {
        self.shared.set_ready(false);
        self.db = None;
        self.in_doubt.extend(jobs.iter().filter_map(|job| job.in_doubt()));
        self.answer(jobs, Some(&StoreError::Write(why.into())));
    }

    fn answer(&self, jobs: &mut Vec<Box<dyn Job>>, fault: Option<&StoreError>) {
        for job in jobs.drain(..) {
            job.answer(fault, &self.shared);
        }
    }

    /// One transaction, synced; its effects take place.
    fn transact(&mut self, jobs: &mut [Box<dyn Job>]) -> rusqlite::Result<()> {
        let Some(db) = &self.db else { return Ok(()) };
        let begun = self.shared.clock.monotonic();
        db.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
        let mut group = Group { db, node: &self.node, shared: &self.shared, effects: Effects::default() };
        let ran = jobs.iter_mut().try_for_each(|job| job.run(&mut group));
        trip("writer");
        let effects = group.effects;
        let done = ran
            .and_then(|()| write_counters(db, &effects))
            .and_then(|()| db.prepare_cached("COMMIT")?.execute([]).map(drop));
        if let Err(error) = done {
            // Some faults have rolled back already; then there is nothing left to undo.
            let _ = db.execute_batch("ROLLBACK");
            return Err(error);
        }
        let took = self.shared.clock.monotonic().saturating_sub(begun);
        self.shared.committed(took, &effects);
        Ok(())
    }

    /// Opens a new connection and proves it by a commit of its own.
    fn reopen(&mut self) -> bool {
        let opened = schema::open_writer(&self.path, self.synchronous).map_err(|error| error.to_string());
        let proved = opened.and_then(|db| self.prove(&db).map(|()| db).map_err(|error| error.to_string()));
        match proved {
            Ok(db) => {
                self.db = Some(db);
                self.in_doubt.clear();
                self.shared.set_ready(true);
                true
            }
            Err(_) => false,
        }
    }

    fn prove(&self, db: &Connection) -> rusqlite::Result<()> {
        // The log's content goes into the data base, which is synced, and the log is emptied: nothing that will be
        // acknowledged stands on a log of which a part was not written.
        let busy: bool = db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))?;
        if busy {
            return Err(rusqlite::Error::QueryReturnedNoRows);
        }
        for id in &self.in_doubt {
            // Their senders were told 451 and nobody holds their legs; if they are here, they are due.
            db.execute("UPDATE leg SET owner = NULL, epoch = NULL WHERE message = ?1 AND ended IS NULL", [id.0])?;
        }
        db.execute("UPDATE counter SET value = value + 1 WHERE name = 'probe'", [])?;
        self.shared.set_gauges(open_legs(db)?);
        Ok(())
    }

    /// Begins the log anew where the checkpoints beside us could not, because we never paused.
    fn restart_log(&mut self) {
        let scour = self.shared.scour.load(Ordering::Relaxed);
        if !scour && !self.shared.log_is_long() {
            return;
        }
        if let Some(db) = &self.db {
            // Busy: a long question reads from the log. The housekeeper's next look at it makes us try again.
            let _ = db.busy_timeout(RESTART_WAIT);
            let kind = if scour { "TRUNCATE" } else { "RESTART" };
            let busy = db.query_row(&format!("PRAGMA wal_checkpoint({kind})"), [], |row| row.get::<_, bool>(0));
            if scour && busy.is_ok_and(|busy| !busy) {
                self.shared.scour.store(false, Ordering::Relaxed);
            }
            let _ = db.busy_timeout(schema::BUSY_WAIT);
            self.shared.set_log_pages(0);
        }
    }
}

fn write_counters(db: &Connection, effects: &Effects) -> rusqlite::Result<()> {
    for (name, by) in [
        ("messages-accepted", effects.messages),
        ("legs-accepted", effects.legs),
        ("messages-swept", effects.messages_swept),
        ("legs-swept", effects.legs_swept),
    ] {
        if by != 0 {
            let mut update = db.prepare_cached("UPDATE counter SET value = value + ?2 WHERE name = ?1")?;
            update.execute(rusqlite::params![name, by])?;
        }
    }
    Ok(())
}

impl Effects {
    pub(super) fn apply_open(&self, gauges: &mut HashMap<String, [i64; OPEN_STATES]>) {
        for (route, by) in &self.open {
            let counts = match gauges.get_mut(route) {
                Some(counts) => counts,
                None => gauges.entry(route.clone()).or_default(),
            };
            for (count, by) in counts.iter_mut().zip(by) {
                *count += by;
            }
        }
    }
}

/// Counts the open legs, once at each opening.
fn open_legs(db: &Connection) -> rusqlite::Result<HashMap<String, [i64; OPEN_STATES]>> {
    let mut gauges: HashMap<String, [i64; OPEN_STATES]> = HashMap::new();
    let mut question =
        db.prepare("SELECT route, state, count(*) FROM leg WHERE ended IS NULL GROUP BY route, state")?;
    let mut rows = question.query([])?;
    while let Some(row) = rows.next()? {
        let state: String = row.get(1)?;
        if let Some(at) = State::parse(&state).and_then(open_index) {
            gauges.entry(row.get(0)?).or_default()[at] = row.get(2)?;
        }
    }
    Ok(gauges)
}

enum Fault {
    Full,
    Storage,
    Work,
}

fn fault_of(error: &rusqlite::Error) -> Fault {
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => Fault::Full,
        Some(
            ErrorCode::SystemIoFailure
            | ErrorCode::DatabaseCorrupt
            | ErrorCode::NotADatabase
            | ErrorCode::CannotOpen
            | ErrorCode::ReadOnly
            | ErrorCode::DatabaseBusy
            | ErrorCode::DatabaseLocked
            | ErrorCode::FileLockingProtocolFailed
            | ErrorCode::OutOfMemory,
        ) => Fault::Storage,
        Some(_) | None => Fault::Work,
    }
}

// What a long question may cost the commits that wait meanwhile, four times a second at the most.
const RESTART_WAIT: Duration = Duration::from_millis(50);
/// Work that may wait for the writer; who finds no place waits for one.
pub(super) const JOBS_MAX: usize = 1024;
// A group's bodies are at most 16 MiB, and its answers do not wait for much more than one sync.
const GROUP_MAX: usize = 256;
