//! What the writer, the housekeeper and the store's callers share: switches, counts and lists, each behind its own lock.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use crate::clock::Clock;
use crate::id::LegId;
use crate::queue::sqlite::ground::Ground;
use crate::queue::sqlite::refused::RefusedLog;
use crate::queue::sqlite::schema;
use crate::queue::sqlite::settle::Release;
use crate::queue::sqlite::sweep::Cursor;
use crate::queue::sqlite::writer::{Effects, OPEN_STATES};
use crate::queue::sqlite::{NO_PANIC, Observer, Options, Retention};
use crate::queue::{GiveBack, GivenBack};

/// What the writer, the housekeeper and the store's callers share.
pub(super) struct Shared {
    pub(super) clock: Arc<dyn Clock>,
    pub(super) observer: Arc<dyn Observer>,
    retention: RwLock<Retention>,
    pub(super) min_free: AtomicU64,
    pub(super) ground: Ground,
    pub(super) ready: AtomicBool,
    /// More than `min_free` was free when somebody last looked.
    pub(super) has_space: AtomicBool,
    pub(super) free_bytes: AtomicU64,
    /// Pages in the write-ahead log when somebody last looked.
    pub(super) log_pages: AtomicU64,
    pub(super) gauges: Mutex<HashMap<String, [i64; OPEN_STATES]>>,
    /// Legs whose holder is gone; they are released at the next opportunity.
    pub(super) orphans: Mutex<Vec<LegId>>,
    pub(super) cursor: Mutex<Cursor>,
    pub(super) refused: RefusedLog,
}

impl Shared {
    pub(super) fn new(options: &Options, ground: Ground) -> Shared {
        Shared {
            clock: Arc::clone(&options.clock),
            observer: Arc::clone(&options.observer),
            retention: RwLock::new(options.retention),
            min_free: AtomicU64::new(options.min_free),
            ready: AtomicBool::new(true),
            has_space: AtomicBool::new(true),
            free_bytes: AtomicU64::new(0),
            log_pages: AtomicU64::new(0),
            gauges: Mutex::default(),
            orphans: Mutex::default(),
            cursor: Mutex::default(),
            refused: RefusedLog::open(&ground.refused()),
            ground,
        }
    }

    pub(super) fn retention(&self) -> Retention {
        *self.retention.read().expect(NO_PANIC)
    }

    pub(super) fn keep(&self, retention: Retention, min_free: u64) {
        *self.retention.write().expect(NO_PANIC) = retention;
        self.min_free.store(min_free, Ordering::Relaxed);
        self.look_at_space();
    }

    pub(super) fn committed(&self, took: Duration, effects: &Effects) {
        effects.apply_open(&mut self.gauges.lock().expect(NO_PANIC));
        if effects.messages > 0 {
            self.observer.committed(took, usize::try_from(effects.messages).unwrap_or(0));
        }
        self.ground.unlink(&effects.unlink);
        for route in &effects.due {
            self.observer.due(route);
        }
        for (leg, route) in &effects.given_up {
            self.observer.quarantine_over(*leg, route);
        }
    }

    pub(super) fn take_back(&self, legs: Vec<LegId>) {
        if !legs.is_empty() {
            self.orphans.lock().expect(NO_PANIC).extend(legs);
        }
    }

    /// What is to be released, if anything.
    pub(super) fn orphans(&self) -> Option<Release> {
        let mut orphans = self.orphans.lock().expect(NO_PANIC);
        (!orphans.is_empty()).then(|| Release {
            legs: std::mem::take(&mut *orphans),
            due: None,
            how: GivenBack::Unattempted,
        })
    }

    pub(super) fn set_ready(&self, ready: bool) {
        if self.ready.swap(ready, Ordering::Relaxed) != ready {
            self.observer.ready(ready);
        }
    }

    pub(super) fn set_gauges(&self, gauges: HashMap<String, [i64; OPEN_STATES]>) {
        *self.gauges.lock().expect(NO_PANIC) = gauges;
    }

    pub(super) fn set_log_pages(&self, pages: u64) {
        self.log_pages.store(pages, Ordering::Relaxed);
    }

    pub(super) fn log_is_long(&self) -> bool {
        self.log_pages.load(Ordering::Relaxed) * schema::PAGE_SIZE as u64 > LOG_BYTES_MAX
    }

    pub(super) fn cursor(&self) -> Cursor {
        *self.cursor.lock().expect(NO_PANIC)
    }

    pub(super) fn set_cursor(&self, cursor: Cursor) {
        *self.cursor.lock().expect(NO_PANIC) = cursor;
    }

    pub(super) fn look_at_space(&self) {
        // Where even this cannot be asked, the commits will say what is wrong.
        if let Ok(free) = self.ground.free_bytes() {
            self.free_bytes.store(free, Ordering::Relaxed);
            self.has_space.store(free > self.min_free.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }
}

/// The way back into the store for legs whose holder is gone.
pub(super) struct GiveBackTo(pub(super) Arc<Shared>);

impl GiveBack for GiveBackTo {
    fn give_back(&self, legs: Vec<LegId>) {
        self.0.take_back(legs);
    }
}

// Above it the writer begins the log anew itself; a longer log makes every read and the next start slower.
const LOG_BYTES_MAX: u64 = 64 * 1024 * 1024;
