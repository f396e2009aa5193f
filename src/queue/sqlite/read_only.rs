//! The queue for commands that run without a daemon: questions only, no lock, nothing is changed.

use std::path::Path;
use std::sync::Arc;

use crate::clock::Timestamp;
use crate::id::MessageId;
use crate::queue::body::BodyRows;
use crate::queue::sqlite::ground::Ground;
use crate::queue::sqlite::read::{self, Balance, Reader};
use crate::queue::sqlite::recorded::Recorded;
use crate::queue::sqlite::refused::{RefusedFilter, RefusedLog};
use crate::queue::sqlite::rows::{self, Filter, LegRow, MessageRow, PauseRow};
use crate::queue::sqlite::schema::{self, SchemaError};
use crate::queue::sqlite::{OpenError, open_error, pause, recorded};
use crate::queue::{Refused, StoreError, StoredBody};

/// The queue for questions alone. Its answers are ready at once: it reads on the calling thread.
#[derive(Debug)]
pub struct ReadOnly {
    reader: Arc<Reader>,
    refused: RefusedLog,
    ground: Ground,
}

impl ReadOnly {
    pub(super) fn open(dir: &Path) -> Result<ReadOnly, OpenError> {
        let ground = Ground { dir: dir.to_owned() };
        let path = ground.database();
        if !path.exists() {
            return Err(OpenError::Missing { path: dir.to_owned() });
        }
        let fault = |error| open_error(&path, SchemaError::Sqlite(error));
        let reader = Reader::inline(&path).map_err(fault)?;
        reader.now(schema::stand_in).map_err(fault)?;
        Ok(ReadOnly { reader: Arc::new(reader), refused: RefusedLog::open_read_only(&ground.refused()), ground })
    }

    /// See [`super::SqliteStore::query`].
    pub async fn query(&self, filter: Filter) -> Result<Vec<LegRow>, StoreError> {
        self.reader.ask(move |db| rows::legs(db, &filter)).await
    }

    /// See [`super::SqliteStore::message`].
    pub async fn message(&self, id: MessageId) -> Result<Option<MessageRow>, StoreError> {
        self.reader.ask(move |db| read::message(db, id)).await
    }

    /// See [`super::SqliteStore::pauses`].
    pub async fn pauses(&self) -> Result<Vec<PauseRow>, StoreError> {
        self.reader.ask(pause::pauses).await
    }

    /// The ids of what came from `since` on and before `until`: the first and the last, where there are any.
    pub fn recorded_bounds(
        &self,
        since: Timestamp,
        until: Timestamp,
    ) -> Result<Option<(MessageId, MessageId)>, StoreError> {
        self.reader.now(|db| recorded::bounds(db, since, until)).map_err(unread)
    }

    /// A page of the messages from the first to the last of `range`, in the order of their ids: `take` hears of each
    /// what the rules saw. Says where the next page begins. Our own notifications are left out.
    pub fn recorded(
        &self,
        range: (MessageId, MessageId),
        take: &mut dyn FnMut(Recorded<'_>),
    ) -> Result<Option<MessageId>, StoreError> {
        self.reader.now(|db| recorded::page(db, range, take)).map_err(unread)
    }

    /// See [`super::SqliteStore::body`].
    pub async fn body(&self, id: MessageId) -> Result<Option<StoredBody>, StoreError> {
        let (bodies, rows) = (self.ground.bodies(), Arc::clone(&self.reader) as Arc<dyn BodyRows>);
        self.reader.ask(move |db| read::body(db, id, &bodies, &rows)).await
    }

    /// See [`super::SqliteStore::balance`].
    pub async fn balance(&self) -> Result<Balance, StoreError> {
        let bodies = self.ground.bodies();
        self.reader.ask(move |db| read::balance(db, &bodies)).await
    }

    /// See [`super::SqliteStore::refused`].
    pub fn refused(&self, filter: &RefusedFilter) -> Result<Vec<Refused>, StoreError> {
        self.refused.list(filter).map_err(|error| StoreError::Read(error.to_string().into()))
    }
}

fn unread(error: impl std::fmt::Display) -> StoreError {
    StoreError::Read(error.to_string().into())
}
