//! What is done beside the writer: checkpoints, the sweep's bites, the look at free space, refusals in bulk.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rusqlite::Connection;
use tokio::sync::mpsc;

use crate::contain::{contain_now, trip};
use crate::queue::sqlite::shared::Shared;
use crate::queue::sqlite::sweep::Sweep;
use crate::queue::sqlite::writer::{Job, ask};

pub(super) struct Housekeeper {
    /// For checkpoints: they are its only writes, and SQLite lets them run beside the writer's.
    db: Connection,
    shared: Arc<Shared>,
    writer: mpsc::WeakSender<Box<dyn Job>>,
}

impl Housekeeper {
    pub(super) fn new(
        path: &Path,
        shared: Arc<Shared>,
        writer: mpsc::WeakSender<Box<dyn Job>>,
    ) -> rusqlite::Result<Housekeeper> {
        let db = Connection::open(path)?;
        Ok(Housekeeper { db, shared, writer })
    }

    /// Works until the store is closed, which unparks its thread.
    pub(super) fn work(self) {
        let mut round: u64 = 0;
        while self.writer.upgrade().is_some() {
            std::thread::park_timeout(ROUND);
            // What made it panic may be over by the next round.
            let _ = contain_now("house", || self.round(round));
            round += 1;
        }
    }

    fn round(&self, round: u64) {
        trip("house");
        self.checkpoint();
        if round.is_multiple_of(ROUNDS_A_SECOND) {
            self.shared.look_at_space();
            self.shared.refused.flush();
        }
        self.ask_writer(round.is_multiple_of(60 * ROUNDS_A_SECOND));
    }

    /// Moves what is committed into the data base as far as no reader or writer is in the way.
    fn checkpoint(&self) {
        let row = self.db.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |row| row.get::<_, i64>(1));
        // A fault here is not ours to report: the next commit meets it, too.
        if let Ok(pages) = row {
            self.shared.set_log_pages(u64::try_from(pages).unwrap_or(0));
        }
    }

    fn ask_writer(&self, quarantine: bool) {
        let Some(writer) = self.writer.upgrade() else { return };
        let sweep = ask(Sweep { now: self.shared.clock.now(), quarantine }).0;
        let orphans = self.shared.orphans().map(|release| ask(release).0);
        for job in orphans.into_iter().chain([sweep]) {
            // This thread may wait where the line is full; after a fault this is also the writer's call to try again.
            if writer.blocking_send(job).is_err() {
                return;
            }
        }
    }
}

const ROUNDS_A_SECOND: u64 = 4;
const ROUND: Duration = Duration::from_millis(1000 / ROUNDS_A_SECOND);
