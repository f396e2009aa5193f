//! Questions: they run on connections of their own that cannot write, never in the writer.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension, Row};
use tokio::sync::{mpsc, oneshot};

use crate::clock::Timestamp;
use crate::contain::{contain_now, trip};
use crate::id::{LegId, MessageId};
use crate::queue::body::{BodyRows, StoredBody, damaged};
use crate::queue::sqlite::rows::{ActionRow, AttemptRow, Filter, MessageRow, Order, attempt_row, legs};
use crate::queue::sqlite::{claim, schema};
use crate::queue::{Answer, State, StoreError};

/// A connection for questions: a thread of its own, or the caller's.
#[derive(Debug)]
pub(super) enum Reader {
    Threaded(mpsc::WeakSender<Question>),
    Inline(Arc<Mutex<Connection>>),
}

/// `None` ends the thread.
type Question = Option<Box<dyn FnOnce(&Connection) + Send>>;

/// What keeps a reading thread alive. Dropped, it waits until the thread has closed its connection: SQLite keeps its log
/// on disk unless the last connection that closes can write.
#[derive(Debug)]
pub(super) struct ReaderLife {
    sender: mpsc::Sender<Question>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for ReaderLife {
    fn drop(&mut self) {
        // Where so many questions wait that this finds no place, the thread ends by itself and is not waited for.
        if self.sender.try_send(None).is_ok()
            && let Some(thread) = self.thread.take()
        {
            // A thread that panicked has said so itself.
            let _ = thread.join();
        }
    }
}

impl Reader {
    pub(super) fn inline(path: &Path) -> rusqlite::Result<Reader> {
        Ok(Reader::Inline(Arc::new(Mutex::new(schema::open_reader(path)?))))
    }

    /// Starts a thread. It ends when its life is dropped.
    pub(super) fn threaded(path: &Path, name: &str) -> Result<(Reader, ReaderLife), schema::SchemaError> {
        let db = schema::open_reader(path)?;
        let (sender, mut questions) = mpsc::channel::<Question>(QUESTIONS_MAX);
        let started = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            while let Some(Some(question)) = questions.blocking_recv() {
                // Who asked hears that nobody answers; the next one is answered.
                let _ = contain_now("question", || {
                    trip("question");
                    question(&db);
                });
            }
        });
        let thread =
            started.map_err(|error| schema::SchemaError::Damaged(format!("cannot start a thread: {error}")))?;
        Ok((Reader::Threaded(sender.downgrade()), ReaderLife { sender, thread: Some(thread) }))
    }

    /// On the caller's connection, where it is that.
    pub(super) fn now<T>(&self, question: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> rusqlite::Result<T> {
        match self {
            Reader::Inline(db) => question(&db.lock().unwrap_or_else(PoisonError::into_inner)),
            Reader::Threaded(_) => Err(rusqlite::Error::InvalidQuery),
        }
    }

    pub(super) fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Answer<'_, T> {
        let ask = move |db: &Connection| question(db).map_err(|error| StoreError::Read(error.to_string().into()));
        match self {
            Reader::Inline(db) => {
                let db = db.lock().unwrap_or_else(PoisonError::into_inner);
                let answer = ask(&db);
                Box::pin(std::future::ready(answer))
            }
            Reader::Threaded(sender) => {
                let sender = sender.upgrade();
                Box::pin(async move {
                    let (reply, answer) = oneshot::channel();
                    let question: Question = Some(Box::new(move |db| {
                        // Who asked may be gone; there is nobody left to tell.
                        let _ = reply.send(ask(db));
                    }));
                    let sender = sender.ok_or(StoreError::Closed)?;
                    sender.send(question).await.map_err(|_| StoreError::Closed)?;
                    drop(sender);
                    answer.await.map_err(|_| StoreError::Closed)?
                })
            }
        }
    }
}

impl BodyRows for Reader {
    fn load(&self, id: MessageId) -> Answer<'_, Bytes> {
        let row = self.ask(move |db| {
            let mut question = db.prepare_cached("SELECT bytes FROM body WHERE id = ?1 AND bytes IS NOT NULL")?;
            question.query_row([id.0], |row| row.get::<_, Vec<u8>>(0)).optional()
        });
        Box::pin(async move { row.await?.map(Bytes::from).ok_or_else(|| damaged("its row is missing")) })
    }
}

/// A message whole, or `None`.
pub(super) fn message(db: &Connection, id: MessageId) -> rusqlite::Result<Option<MessageRow>> {
    let mut question = db.prepare_cached("SELECT * FROM message WHERE id = ?1")?;
    let Some(mut message) = question.query_row([id.0], message_row).optional()? else { return Ok(None) };
    let order = Order::OldestFirst;
    message.legs = legs(db, &Filter { message: Some(id), order, ..Filter::default() })?;
    let mut attempts = db.prepare_cached("SELECT * FROM attempt WHERE message = ?1 ORDER BY n, number")?;
    message.attempts = attempts
        .query_map([id.0], |row| attempt_row(row, row.get("number")?))?
        .collect::<rusqlite::Result<Vec<AttemptRow>>>()?;
    // A delivery at the first attempt stands in its leg alone.
    let alone = message.legs.iter().filter(|leg| leg.attempts == 1 && leg.state == State::Delivered);
    message.attempts.extend(alone.filter_map(|leg| leg.last.clone()));
    message.attempts.sort_by_key(|attempt| (attempt.n, attempt.number));
    message.attempts.dedup_by_key(|attempt| (attempt.n, attempt.number));
    let mut actions = db.prepare_cached("SELECT * FROM action WHERE message = ?1 ORDER BY n, at, number")?;
    let action = |row: &Row<'_>| {
        Ok(ActionRow {
            n: row.get("n")?,
            at: Timestamp(row.get("at")?),
            actor: row.get("actor")?,
            operation: row.get("operation")?,
            detail: row.get("detail")?,
        })
    };
    message.actions = actions.query_map([id.0], action)?.collect::<rusqlite::Result<_>>()?;
    Ok(Some(message))
}

fn message_row(row: &Row<'_>) -> rusqlite::Result<MessageRow> {
    Ok(MessageRow {
        id: MessageId(row.get("id")?),
        received: Timestamp(row.get("received")?),
        listener: row.get("listener")?,
        client: row.get("client")?,
        ptr: row.get("ptr")?,
        helo: row.get("helo")?,
        protocol: row.get("protocol")?,
        sender: row.get("sender")?,
        body_type: row.get("body_type")?,
        smtputf8: row.get("smtputf8")?,
        // A queue of format 1 that no daemon has opened since has no such column.
        require_tls: row.get("require_tls").unwrap_or(false),
        size: row.get::<_, i64>("size")? as u64,
        from: row.get("header_from")?,
        subject: row.get("subject")?,
        message_id: row.get("message_id")?,
        prefix: row.get("prefix")?,
        facts: row.get("facts")?,
        rules_hash: row.get("rules_hash")?,
        cause: row.get::<_, Option<String>>("cause")?.and_then(|text| leg_id(&text)),
        legs: Vec::new(),
        attempts: Vec::new(),
        actions: Vec::new(),
    })
}

fn leg_id(text: &str) -> Option<LegId> {
    let (message, n) = text.split_once('.')?;
    Some(LegId { message: MessageId(message.parse().ok()?), n: n.parse().ok()? })
}

/// A message's body while it is kept.
pub(super) fn body(
    db: &Connection,
    id: MessageId,
    bodies: &Path,
    rows: &Arc<dyn BodyRows>,
) -> rusqlite::Result<Option<StoredBody>> {
    let mut question = db.prepare_cached(
        "SELECT file AS body_file, size AS body_size, sha256 AS body_sha256, length(bytes) AS body_bytes
         FROM body WHERE id = ?1",
    )?;
    question.query_row([id.0], |row| claim::stored_body(row, id, bodies, rows)).optional()
}

/// The oldest open leg's time of arrival by route and state.
pub(super) fn oldest(db: &Connection) -> rusqlite::Result<Vec<(String, State, Timestamp)>> {
    let mut question = db.prepare_cached(
        "SELECT route, state, received FROM
             (SELECT route, state, min(message) AS id FROM leg WHERE ended IS NULL GROUP BY route, state)
         JOIN message USING (id)",
    )?;
    let row = |row: &Row<'_>| {
        let state: String = row.get(1)?;
        Ok((row.get(0)?, State::parse(&state).unwrap_or(State::Held), Timestamp(row.get(2)?)))
    };
    question.query_map([], row)?.collect()
}

/// The conservation of mail, in numbers: see [`Balance::holds`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Balance {
    pub messages_accepted: i64,
    pub messages_swept: i64,
    pub messages: i64,
    pub legs_accepted: i64,
    pub legs_swept: i64,
    pub legs: i64,
    /// Messages whose leg rows are not as many as were counted at acceptance; the first hundred.
    pub miscounted: Vec<MessageId>,
    /// Open legs without their body, in its table or as a file; the first hundred.
    pub bodiless: Vec<LegId>,
}

impl Balance {
    /// Nothing was lost: totals match the commit counters, leg rows match the counts stored at acceptance, and every
    /// open leg has its body.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.messages_accepted == self.messages_swept + self.messages
            && self.legs_accepted == self.legs_swept + self.legs
            && self.miscounted.is_empty()
            && self.bodiless.is_empty()
    }
}

/// Reads all of the ledger once; a matter of seconds for millions of legs.
pub(super) fn balance(db: &Connection, bodies: &Path) -> rusqlite::Result<Balance> {
    // One transaction: all numbers are of the same instant.
    let tx = db.unchecked_transaction()?;
    let counter = |name: &str| tx.query_row("SELECT value FROM counter WHERE name = ?1", [name], |row| row.get(0));
    let mut balance = Balance {
        messages_accepted: counter("messages-accepted")?,
        messages_swept: counter("messages-swept")?,
        messages: tx.query_row("SELECT count(*) FROM message", [], |row| row.get(0))?,
        legs_accepted: counter("legs-accepted")?,
        legs_swept: counter("legs-swept")?,
        legs: tx.query_row("SELECT count(*) FROM leg", [], |row| row.get(0))?,
        ..Balance::default()
    };
    let mut miscounted = tx.prepare(&format!(
        "SELECT id FROM message WHERE legs <> (SELECT count(*) FROM leg WHERE leg.message = id) LIMIT {LISTED_MAX}"
    ))?;
    balance.miscounted = miscounted.query_map([], |row| row.get(0).map(MessageId))?.collect::<rusqlite::Result<_>>()?;
    let mut open = tx.prepare(
        "SELECT leg.message, leg.n, body.id IS NOT NULL, body.file FROM leg LEFT JOIN body ON body.id = leg.message
         WHERE leg.ended IS NULL",
    )?;
    let mut rows = open.query([])?;
    while let Some(row) = rows.next()? {
        let has_row: bool = row.get(2)?;
        let file: Option<String> = row.get(3)?;
        if !has_row || file.is_some_and(|name| !bodies.join(name).exists()) {
            balance.bodiless.push(LegId { message: MessageId(row.get(0)?), n: row.get(1)? });
            if balance.bodiless.len() >= LISTED_MAX {
                break;
            }
        }
    }
    Ok(balance)
}

const LISTED_MAX: usize = 100;
// Who finds no place waits for one.
const QUESTIONS_MAX: usize = 256;
