//! A route's lane: the legs that wait in memory, who works on them, and whether the destination is left alone.
//!
//! All of it changes under one short lock that is never held across an await. `work` wakes an idle worker, `bell`
//! wakes the feeder. A worker that ends, however it ends, gives its seat back; a leg that was taken and neither
//! settled nor put back becomes an orphan, which the feeder releases.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::Notify;

use crate::clock::Timestamp;
use crate::id::LegId;
use crate::outbound::backoff::Backoff;
use crate::queue::OwnedLeg;
use crate::relay::Route;
use crate::relay::pool::Open;

pub(super) struct Lane {
    pub(super) route: Route,
    pub(super) work: Notify,
    pub(super) bell: Notify,
    pub(super) open: Open,
    inner: Mutex<Inner>,
}

struct Inner {
    waiting: VecDeque<OwnedLeg>,
    workers: usize,
    /// Workers that wait for `work`.
    idle: usize,
    backoff: Backoff,
    /// When the feeder looks into the store again.
    look: Timestamp,
    orphans: Vec<LegId>,
    draining: bool,
}

/// What a worker that asks for a leg is told.
pub(super) enum Take {
    Leg(Box<OwnedLeg>),
    /// Nothing waits. The worker counts as idle until it calls [`Lane::stop_idling`].
    Wait,
    /// It is not needed: no session and no work, or no dial allowed, or the lane drains.
    End,
}

/// What becomes of a leg whose dial failed.
pub(super) enum Unreachable {
    /// Other sessions of the route are alive: it was put back and goes with one of them.
    PutBack,
    /// The failure answers for these legs, which waited with it. `wait`: nobody dials for so long; `None` where that
    /// was known already.
    Shared { legs: Vec<OwnedLeg>, wait: Option<Duration> },
}

impl Lane {
    pub(super) fn new(route: Route, look: Timestamp) -> Lane {
        Lane {
            route,
            work: Notify::new(),
            bell: Notify::new(),
            open: Open::default(),
            inner: Mutex::new(Inner {
                waiting: VecDeque::new(),
                workers: 0,
                idle: 0,
                backoff: Backoff::default(),
                look,
                orphans: Vec::new(),
                draining: false,
            }),
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no code panics while it holds this lock")
    }

    /// How many more legs may wait. Twice the sessions keeps them busy while the feeder fetches more.
    pub(super) fn room(&self) -> usize {
        self.capacity().saturating_sub(self.inner().waiting.len())
    }

    fn capacity(&self) -> usize {
        self.route.concurrency.saturating_mul(2).clamp(WAITING_MIN, WAITING_MAX)
    }

    pub(super) fn push(&self, legs: impl IntoIterator<Item = OwnedLeg>) {
        self.inner().waiting.extend(legs);
    }

    /// Wakes idle workers for what waits, and says how many more are to be started; they are counted as started.
    pub(super) fn to_start(&self, now: Duration) -> usize {
        let mut inner = self.inner();
        for _ in 0..inner.waiting.len().min(inner.idle) {
            self.work.notify_one();
        }
        if inner.draining || !inner.backoff.wait(now).is_zero() {
            return 0;
        }
        let window = inner.backoff.window(self.route.concurrency, self.open.count());
        let unserved = inner.waiting.len().saturating_sub(inner.idle);
        let start = unserved.min(window.saturating_sub(inner.workers));
        inner.workers += start;
        start
    }

    pub(super) fn take(&self, has_session: bool, now: Duration) -> Take {
        let mut inner = self.inner();
        let may_dial = inner.backoff.wait(now).is_zero()
            && inner.workers <= inner.backoff.window(self.route.concurrency, self.open.count());
        if inner.draining || !(has_session || may_dial) {
            return Take::End;
        }
        match inner.waiting.pop_front() {
            Some(leg) => {
                // At half the room the feeder fetches more; it may be waiting for nothing else.
                if inner.waiting.len() == self.capacity() / 2 {
                    self.bell.notify_one();
                }
                Take::Leg(Box::new(leg))
            }
            None if has_session => {
                inner.idle += 1;
                Take::Wait
            }
            None => Take::End,
        }
    }

    pub(super) fn stop_idling(&self) {
        self.inner().idle -= 1;
    }

    pub(super) fn leave(&self) {
        self.inner().workers -= 1;
        self.bell.notify_one();
    }

    pub(super) fn add_orphan(&self, leg: LegId) {
        self.inner().orphans.push(leg);
        self.bell.notify_one();
    }

    pub(super) fn take_orphans(&self) -> Vec<LegId> {
        std::mem::take(&mut self.inner().orphans)
    }

    /// A session came about. Says whether a back-off ends with it.
    pub(super) fn reached(&self) -> bool {
        let reopened = self.inner().backoff.succeeded();
        if reopened {
            self.bell.notify_one();
        }
        reopened
    }

    /// An operator does not want to wait for the end of a back-off: one dial is allowed now.
    pub(super) fn end_wait(&self) {
        self.inner().backoff.end_wait();
    }

    /// A dial that began at `began` failed on all hosts.
    pub(super) fn unreachable(&self, leg: OwnedLeg, began: Duration, now: Duration) -> Unreachable {
        let mut inner = self.inner();
        let wait = inner.backoff.failed(began, now);
        self.bell.notify_one();
        if self.open.count() > 0 {
            inner.waiting.push_front(leg);
            self.work.notify_one();
            return Unreachable::PutBack;
        }
        let mut legs = vec![leg];
        if wait.is_some() {
            legs.extend(inner.waiting.drain(..));
        }
        Unreachable::Shared { legs, wait }
    }

    /// A leg is due at `due`: the store is looked into then at the latest.
    pub(super) fn look_by(&self, due: Timestamp) {
        let mut inner = self.inner();
        if due < inner.look {
            inner.look = due;
            self.bell.notify_one();
        }
    }

    /// How many legs to claim now. Where it is not zero, the next look is set to `later`.
    pub(super) fn claims(&self, now: Timestamp, monotonic: Duration, later: Timestamp) -> usize {
        let room = self.room();
        let mut inner = self.inner();
        if now < inner.look || room == 0 || inner.draining || !inner.backoff.wait(monotonic).is_zero() {
            return 0;
        }
        inner.look = later;
        room
    }

    /// How long the feeder may sleep if nothing rings.
    pub(super) fn sleep(&self, now: Timestamp, monotonic: Duration) -> Duration {
        let room = self.room();
        let inner = self.inner();
        let backoff = inner.backoff.wait(monotonic);
        let look = if room > 0 { inner.look.since(now).max(backoff) } else { LOOK_MAX };
        let probe = if inner.waiting.is_empty() || backoff.is_zero() { LOOK_MAX } else { backoff };
        look.min(probe).clamp(Duration::from_millis(1), LOOK_MAX)
    }

    /// The legs that wait, which nobody works on.
    pub(super) fn take_waiting(&self) -> Vec<OwnedLeg> {
        self.inner().waiting.drain(..).collect()
    }

    /// Ends the taking of legs; gives those that wait.
    pub(super) fn drain(&self) -> Vec<OwnedLeg> {
        let mut inner = self.inner();
        inner.draining = true;
        let waiting = inner.waiting.drain(..).collect();
        drop(inner);
        self.work.notify_waiters();
        waiting
    }

    pub(super) fn is_draining(&self) -> bool {
        self.inner().draining
    }
}

/// A worker's seat; dropped, it is free again.
pub(super) struct Seat<'a>(pub(super) &'a Lane);

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        self.0.leave();
    }
}

/// A leg in a worker's hands. Dropped without [`Flight::land`], in a panic or an abort, the leg is an orphan.
pub(super) struct Flight<'a> {
    lane: &'a Lane,
    leg: Option<LegId>,
}

impl<'a> Flight<'a> {
    pub(super) fn of(lane: &'a Lane, leg: LegId) -> Flight<'a> {
        Flight { lane, leg: Some(leg) }
    }

    /// The leg was settled, released or put back.
    pub(super) fn land(mut self) {
        self.leg = None;
    }
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        if let Some(leg) = self.leg.take() {
            self.lane.add_orphan(leg);
        }
    }
}

/// However quiet it is, the store is looked into this often: an operator's word, or a clock that jumped, waits no longer.
pub(super) const LOOK_MAX: Duration = Duration::from_secs(60);
/// One dial answers for this many legs of a dead destination at the least.
const WAITING_MIN: usize = 16;
/// Legs in memory for each route. With small bodies in memory that is 8 MiB at the most.
const WAITING_MAX: usize = 128;
