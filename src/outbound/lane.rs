//! A lane: the legs that wait in memory for one destination, who works on them, and whether it is left alone.
//!
//! All of it changes under one short lock that is never held across an await. `work` wakes an idle worker, the bell
//! of the [`Desk`] wakes the feeder. A worker that ends, however it ends, gives its seat back; a leg that was taken and neither
//! settled nor put back becomes an orphan, which the feeder releases.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::Notify;

use crate::address::Domain;
use crate::clock::Timestamp;
use crate::id::LegId;
use crate::queue::OwnedLeg;
use crate::relay::breaker::{Breaker, Change, Health};
use crate::relay::pool::Open;
use crate::relay::{Host, Route};

pub(super) struct Lane {
    pub(super) route: Arc<Route>,
    pub(super) hosts: Hosts,
    pub(super) desk: Arc<Desk>,
    pub(super) work: Notify,
    pub(super) open: Open,
    inner: Mutex<Inner>,
}

/// Where the legs of a lane go.
pub(super) enum Hosts {
    /// The route names them.
    Named(Arc<[Host]>),
    /// Those of the domain in which all targets of the lane are.
    Of(Domain),
}

/// What all lanes of a route share: how they call their feeder.
pub(super) struct Desk {
    pub(super) bell: Notify,
    /// When the feeder looks into the store again.
    look: Mutex<Timestamp>,
}

impl Desk {
    pub(super) fn new(look: Timestamp) -> Desk {
        Desk { bell: Notify::new(), look: Mutex::new(look) }
    }

    fn look(&self) -> MutexGuard<'_, Timestamp> {
        self.look.lock().expect("no code panics while it holds this lock")
    }

    /// A leg is due at `due`: the store is looked into then at the latest.
    pub(super) fn look_by(&self, due: Timestamp) {
        let mut look = self.look();
        if due < *look {
            *look = due;
            self.bell.notify_one();
        }
    }

    /// Whether it is time to look; then the next look is set to `later`.
    pub(super) fn takes_turn(&self, now: Timestamp, later: Timestamp) -> bool {
        let mut look = self.look();
        let its_time = now >= *look;
        if its_time {
            *look = later;
        }
        its_time
    }

    /// How long until the next look.
    pub(super) fn wait(&self, now: Timestamp) -> Duration {
        self.look().since(now)
    }
}

struct Inner {
    waiting: VecDeque<OwnedLeg>,
    workers: usize,
    /// Workers that wait for `work`.
    idle: usize,
    breaker: Breaker,
    /// The one leg that is tried while the destination fails.
    probing: Option<LegId>,
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
    pub(super) fn new(route: Arc<Route>, hosts: Hosts, desk: Arc<Desk>) -> Lane {
        Lane {
            route,
            hosts,
            desk,
            work: Notify::new(),
            open: Open::default(),
            inner: Mutex::new(Inner {
                waiting: VecDeque::new(),
                workers: 0,
                idle: 0,
                breaker: Breaker::default(),
                probing: None,
                orphans: Vec::new(),
                draining: false,
            }),
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no code panics while it holds this lock")
    }

    /// How many more legs may wait. Twice the sessions keeps them busy while the feeder fetches more.
    pub(super) fn room(&self, now: Duration) -> usize {
        let inner = self.inner();
        let capacity = match inner.breaker.is_failing() {
            true if inner.probing.is_some() || !inner.breaker.wait(now).is_zero() => 0,
            true => 1,
            false => self.capacity(),
        };
        capacity.saturating_sub(inner.waiting.len())
    }

    fn capacity(&self) -> usize {
        match &self.hosts {
            Hosts::Named(_) => self.route.concurrency.saturating_mul(2).clamp(WAITING_MIN, WAITING_MAX),
            Hosts::Of(_) => DOMAIN_WAITING_MAX,
        }
    }

    /// More than half of the room is taken.
    pub(super) fn is_crowded(&self) -> bool {
        self.waiting() > self.capacity() / 2
    }

    /// The domain whose hosts are looked up, where they are.
    pub(super) fn domain(&self) -> Option<&Domain> {
        match &self.hosts {
            Hosts::Named(_) => None,
            Hosts::Of(domain) => Some(domain),
        }
    }

    pub(super) fn push(&self, legs: impl IntoIterator<Item = OwnedLeg>) {
        self.inner().waiting.extend(legs);
    }

    pub(super) fn waiting(&self) -> usize {
        self.inner().waiting.len()
    }

    pub(super) fn workers(&self) -> usize {
        self.inner().workers
    }

    /// How long nobody dials.
    pub(super) fn backs_off(&self, now: Duration) -> Duration {
        self.inner().breaker.wait(now)
    }

    /// Nobody works here, nothing waits, and nothing that it knows is worth keeping.
    pub(super) fn is_spent(&self, now: Duration) -> bool {
        self.is_idle() && self.inner().breaker.is_past(now)
    }

    /// Nobody works here and nothing waits.
    pub(super) fn is_idle(&self) -> bool {
        let inner = self.inner();
        inner.workers == 0 && inner.waiting.is_empty() && inner.orphans.is_empty()
    }

    /// Wakes idle workers for what waits, and says how many more are to be started, `most` at the most; they are
    /// counted as started.
    pub(super) fn to_start(&self, now: Duration, most: usize) -> usize {
        let mut inner = self.inner();
        for _ in 0..inner.waiting.len().min(inner.idle) {
            self.work.notify_one();
        }
        if inner.draining || !inner.breaker.wait(now).is_zero() {
            return 0;
        }
        let window = inner.breaker.window(self.route.concurrency, self.open.count());
        let unserved = inner.waiting.len().saturating_sub(inner.idle);
        let start = unserved.min(window.saturating_sub(inner.workers)).min(most);
        inner.workers += start;
        start
    }

    pub(super) fn take(&self, has_session: bool, now: Duration) -> Take {
        let mut inner = self.inner();
        let may_dial = inner.breaker.wait(now).is_zero()
            && inner.workers <= inner.breaker.window(self.route.concurrency, self.open.count());
        if inner.draining || !(has_session || may_dial) {
            return Take::End;
        }
        let failing = inner.breaker.is_failing();
        if failing && (inner.probing.is_some() || !inner.breaker.wait(now).is_zero()) {
            return Take::End;
        }
        match inner.waiting.pop_front() {
            Some(leg) => {
                inner.probing = failing.then_some(leg.id);
                // At half the room the feeder fetches more; it may be waiting for nothing else.
                if inner.waiting.len() == self.capacity() / 2 {
                    self.desk.bell.notify_one();
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
        self.desk.bell.notify_one();
    }

    pub(super) fn add_orphan(&self, leg: LegId) {
        self.inner().orphans.push(leg);
        self.desk.bell.notify_one();
    }

    pub(super) fn take_orphans(&self) -> Vec<LegId> {
        std::mem::take(&mut self.inner().orphans)
    }

    /// A session came about. Says whether a back-off ends with it.
    pub(super) fn reached(&self) -> bool {
        let reopened = self.inner().breaker.reached();
        if reopened {
            self.desk.bell.notify_one();
        }
        reopened
    }

    /// An attempt that began at `began` told so much of the destination. The legs are those that waited, where the
    /// breaker opens: nobody tried them.
    pub(super) fn ended(&self, health: Health, began: Duration, now: Duration) -> (Change, Vec<OwnedLeg>) {
        let mut inner = self.inner();
        let change = inner.breaker.ended(health, began, now);
        let parked = match change {
            Change::Nothing => return (change, Vec::new()),
            Change::Opened { .. } => inner.waiting.drain(..).collect(),
            Change::Closed => Vec::new(),
        };
        self.desk.bell.notify_one();
        (change, parked)
    }

    /// One leg at a time is tried: the others belong into the store.
    pub(super) fn is_failing(&self) -> bool {
        self.inner().breaker.is_failing()
    }

    /// Nobody works on the leg any more.
    fn landed(&self, leg: LegId) {
        let mut inner = self.inner();
        if inner.probing == Some(leg) {
            inner.probing = None;
            self.desk.bell.notify_one();
        }
    }

    /// An operator does not want to wait for the end of a back-off: one dial or leg is allowed now.
    pub(super) fn end_wait(&self) {
        self.inner().breaker.end_wait();
    }

    /// A dial that began at `began` failed on all hosts.
    pub(super) fn unreachable(&self, leg: OwnedLeg, began: Duration, now: Duration) -> Unreachable {
        let mut inner = self.inner();
        let wait = inner.breaker.unreachable(began, now);
        self.desk.bell.notify_one();
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

    /// How long until legs that wait may be dialled for again; as long as may be where none wait for that.
    pub(super) fn probe(&self, now: Duration) -> Duration {
        let inner = self.inner();
        let backoff = inner.breaker.wait(now);
        if inner.waiting.is_empty() || backoff.is_zero() { LOOK_MAX } else { backoff }
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
        if let Some(leg) = self.leg.take() {
            self.lane.landed(leg);
        }
    }
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        if let Some(leg) = self.leg.take() {
            self.lane.add_orphan(leg);
            self.lane.landed(leg);
        }
    }
}

/// However quiet it is, the store is looked into this often: an operator's word, or a clock that jumped, waits no longer.
pub(super) const LOOK_MAX: Duration = Duration::from_secs(60);
/// One dial answers for this many legs of a dead destination at the least.
const WAITING_MIN: usize = 16;
/// Legs in memory for each route. With small bodies in memory that is 8 MiB at the most.
const WAITING_MAX: usize = 128;
/// Legs in memory for a domain whose hosts are looked up. More than the sessions need, because what finds no place goes
/// back to the store and is looked for only seconds later; all lanes of a route share a limit of their own.
pub(super) const DOMAIN_WAITING_MAX: usize = 250;
