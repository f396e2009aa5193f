//! The conductor of the way out: what is due is claimed, relayed, settled.
//!
//! Each route has a lane, or where its hosts are looked up one for each domain. Its *feeder* brings legs into the
//! lanes: those handed over in memory by the inbound side, and those that it claims from the store when they are due.
//! *Workers*, up to the route's concurrency for each lane, take them out; each leads one transaction at a time, keeps its session while there is work, and takes its next leg only when the
//! last one is settled, so that a crash repeats at most one delivery for each leg in flight.
//!
//! When no host of a lane can be reached, that one answer settles all legs that wait in the lane, each on its own
//! schedule; then the lane backs off, and what is accepted meanwhile stays in the store. A 4xx concerns its leg alone,
//! until most attempts fail: then what waits goes back to the store, and one leg at a time is tried (`relay::breaker`).
//! One lane's trouble costs another nothing: they share no queue, no worker and no session.
//!
//! A reload replaces the [`Ways`] as a whole. What a worker has in hand goes on by the route as it was; what waits
//! turns to the route as it is, or, where that is gone, goes back to the store and is held there.
//!
//! Time, the store, the dialler and chance are given to it, so that a day of mail passes in seconds in a test.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, RwLock};
use std::time::Duration;

use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use crate::address::Domain;
use crate::auth::sign::Signer;
use crate::clock::{Clock, Timestamp};
use crate::contain::{contain, trip};
use crate::dns::Dns;
use crate::events;
use crate::id::{Chance, Ids, LegId};
use crate::queue::handover::{Handover, Recall};
use crate::queue::schedule::{Jump, JumpWatch};
use crate::queue::{GivenBack, OwnedLeg, Store};
use crate::relay::Route;
use crate::relay::dial::{Dial, Timeouts};
use crate::srs::Srs;

mod lane;
mod lanes;
mod divert;
mod hosts;
mod notify;
mod pace;
mod standing;
mod holding;
mod strays;
mod worker;

#[cfg(test)]
mod tests;

use lane::{Desk, LOOK_MAX};
use lanes::Lanes;
use pace::Pacer;
pub use strays::no_such_route;

/// What the administrator chose for the way out.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Our name in EHLO where a route has none of its own.
    pub hostname: String,
    /// Waits between attempts; the last repeats.
    pub retry: Vec<Duration>,
    /// A leg that fails when it is older than this is given up.
    pub expire: Duration,
    pub timeouts: Timeouts,
    /// Of our listeners, where they are bound to one: an MX that leads there is ourselves.
    pub addresses: Vec<IpAddr>,
    /// What notifications are signed with; without it they go out unsigned.
    pub signer: Option<Arc<Signer>>,
}

/// What a reload replaces: the routes, and what is needed to go by them.
pub struct Ways {
    pub settings: Settings,
    /// By name.
    pub routes: BTreeMap<String, Arc<Route>>,
    pub dial: Arc<dyn Dial>,
    /// For the hosts of domains.
    pub dns: Arc<dyn Dns>,
    /// For a leg that goes on to another target, with what domains are ours. Absent: no sender is rewritten.
    pub srs: Option<Arc<Srs>>,
    pub is_ours: Arc<dyn Fn(&Domain) -> bool + Send + Sync>,
}

impl Ways {
    /// How we may be named in somebody's MX.
    fn names(&self) -> Vec<String> {
        let greeted = self.routes.values().filter_map(|route| route.helo.clone());
        std::iter::once(self.settings.hostname.clone()).chain(greeted).collect()
    }
}

/// The ports that the conductor stands on.
#[derive(Clone)]
pub struct Ports {
    pub clock: Arc<dyn Clock>,
    pub store: Arc<dyn Store>,
    pub chance: Arc<Chance>,
    /// For the notifications that we write.
    pub ids: Arc<Ids>,
    pub handover: Arc<Handover>,
}

/// The running way out.
pub struct Outbound {
    shared: Arc<Shared>,
    feeders: Mutex<Feeders>,
    /// `Some`: drain, and be done by then.
    stop: watch::Sender<Option<Instant>>,
    /// Turns true when a feeder has panicked.
    faulted: watch::Sender<bool>,
}

#[derive(Default)]
struct Feeders {
    tasks: JoinSet<()>,
    /// By route: where its feeder hears what became of it.
    routes: BTreeMap<String, watch::Sender<Option<Arc<Route>>>>,
}

/// What all lanes share.
struct Shared {
    ports: Ports,
    ways: RwLock<Arc<Ways>>,
    jumps: Mutex<JumpWatch>,
    pacer: Pacer,
    /// Rings when legs of a route that is gone may have come into the store.
    strays: Notify,
}

impl Outbound {
    /// Starts a feeder for each route. `ports.handover` must know the same routes; a lane whose receiver is taken already
    /// lives from the store alone. Must be called inside a tokio runtime.
    #[must_use]
    pub fn start(ports: Ports, ways: Ways) -> Outbound {
        let (stop, _) = watch::channel(None);
        let routes: Vec<Arc<Route>> = ways.routes.values().cloned().collect();
        let shared = Arc::new(Shared {
            pacer: Pacer::new(ports.clock.monotonic()),
            ports,
            ways: RwLock::new(Arc::new(ways)),
            jumps: Mutex::new(JumpWatch::default()),
            strays: Notify::new(),
        });
        let faulted = watch::Sender::new(false);
        let outbound = Outbound { shared: Arc::clone(&shared), feeders: Mutex::default(), stop, faulted };
        let mut feeders = outbound.feeders();
        for route in routes {
            outbound.open(&mut feeders, route);
        }
        feeders.tasks.spawn(watched(strays::hold_strays(shared, outbound.stop.subscribe()), outbound.faulted.clone()));
        drop(feeders);
        outbound
    }

    /// Goes by these ways from now on. Lanes of new routes are opened; what waits on a changed route goes by it as it is
    /// now; what waits on one that is gone goes back to the store and is held as it comes due. Transactions under way
    /// end as they began. Must be called inside a tokio runtime.
    pub fn reload(&self, ways: Ways) {
        let mut feeders = self.feeders();
        if self.stop.borrow().is_some() {
            return;
        }
        while let Some(ended) = feeders.tasks.try_join_next() {
            // A feeder whose route is gone has nothing more to say.
            drop(ended);
        }
        let routes = ways.routes.clone();
        *self.shared.ways.write().expect(NO_PANIC) = Arc::new(ways);
        for (name, feeder) in &feeders.routes {
            match routes.get(name) {
                Some(route) => {
                    feeder.send_if_modified(|wanted| {
                        let changed = wanted.as_ref() != Some(route);
                        if changed {
                            *wanted = Some(Arc::clone(route));
                        }
                        changed
                    });
                }
                None => {
                    self.shared.ports.handover.remove_route(name);
                    feeder.send_replace(None);
                }
            }
        }
        feeders.routes.retain(|name, _| routes.contains_key(name));
        for (name, route) in routes {
            if !feeders.routes.contains_key(&name) {
                self.shared.ports.handover.add_route(&name, LANE_PLACES);
                self.open(&mut feeders, route);
            }
        }
        self.shared.strays.notify_one();
    }

    /// Turns true when a feeder has panicked: its route stands still, and what it had in its hands is freed by the next
    /// start only.
    #[must_use]
    pub fn faulted(&self) -> watch::Receiver<bool> {
        self.faulted.subscribe()
    }

    fn open(&self, feeders: &mut Feeders, route: Arc<Route>) {
        let (shared, name) = (&self.shared, route.name.clone());
        let (sender, wanted) = watch::channel(Some(Arc::clone(&route)));
        let desk = Arc::new(Desk::new(shared.now()));
        let handover = &shared.ports.handover;
        let feeder = Feeder {
            handed: handover.take_receiver(&name),
            due: handover.bell(&name).unwrap_or_default(),
            recalls: handover.take_recalls(&name),
            lanes: Lanes::new(Arc::clone(&route), Arc::clone(&desk)),
            retired: Vec::new(),
            desk,
            route,
            wanted,
            shared: Arc::clone(shared),
            workers: JoinSet::new(),
            stop: self.stop.subscribe(),
        };
        feeders.tasks.spawn(watched(feeder.run(), self.faulted.clone()));
        feeders.routes.insert(name, sender);
    }

    fn feeders(&self) -> MutexGuard<'_, Feeders> {
        self.feeders.lock().expect(NO_PANIC)
    }

    /// Drains: claims no more, gives back what waits, lets transactions in flight end for up to `grace`, closes
    /// sessions with QUIT. What is still in flight then is cut off, and its legs are given back.
    pub async fn shutdown(&self, grace: Duration) {
        self.stop.send_replace(Some(tokio::time::Instant::now() + grace));
        // Nobody opens a lane any more: a reload looks at `stop` under the same lock.
        let mut tasks = std::mem::take(&mut self.feeders().tasks);
        while tasks.join_next().await.is_some() {}
    }
}

impl Shared {
    fn now(&self) -> Timestamp {
        self.ports.clock.now()
    }

    fn monotonic(&self) -> Duration {
        self.ports.clock.monotonic()
    }

    /// What is gone by now. Whoever does one thing in several steps asks once.
    fn ways(&self) -> Arc<Ways> {
        Arc::clone(&self.ways.read().expect(NO_PANIC))
    }

    /// Whether a failed attempt may end in `expired`: not within an hour of a jump of the wall clock.
    fn may_expire(&self) -> bool {
        let (now, monotonic) = (self.now(), self.monotonic());
        let mut jumps = self.jumps.lock().expect(NO_PANIC);
        match jumps.look(now, monotonic) {
            Jump::None => {}
            Jump::Forward { by } | Jump::Backward { by } => events::clock_jumped(by),
        }
        jumps.may_expire(monotonic)
    }

    /// Gives legs back to the store. Where that fails they stay ours, and the next start frees them.
    async fn release(&self, route: &str, legs: Vec<LegId>, due: Timestamp, how: GivenBack) {
        if legs.is_empty() {
            return;
        }
        if let Err(error) = self.ports.store.release(legs, due, how).await {
            events::outbound_store_failed(route, "release", &error);
        }
    }
}

async fn watched(work: impl Future<Output = ()>, faulted: watch::Sender<bool>) {
    if contain("feeder", work).await.is_err() {
        faulted.send_replace(true);
    }
}

/// Brings legs into the lanes of one route and starts their workers.
struct Feeder {
    route: Arc<Route>,
    /// The route as it shall be; `None`: the configuration has it no more.
    wanted: watch::Receiver<Option<Arc<Route>>>,
    lanes: Lanes,
    /// By the route as it was, until the last worker has ended.
    retired: Vec<Lanes>,
    desk: Arc<Desk>,
    shared: Arc<Shared>,
    handed: Option<mpsc::Receiver<OwnedLeg>>,
    /// Rings when ownerless legs were committed.
    due: Arc<Notify>,
    /// Brings operators' wishes to move what waits.
    recalls: Option<mpsc::Receiver<Recall>>,
    workers: JoinSet<()>,
    stop: watch::Receiver<Option<Instant>>,
}

impl Feeder {
    async fn run(mut self) {
        let mut batch = Vec::new();
        loop {
            let stop = *self.stop.borrow_and_update();
            if let Some(deadline) = stop {
                return self.drain(deadline).await;
            }
            trip("feeder");
            let wanted = self.wanted.borrow_and_update().clone();
            match wanted {
                Some(route) if route != self.route => self.turn(route).await,
                Some(_) => {}
                None => return self.drain(tokio::time::Instant::now() + LEAVE_MAX).await,
            }
            self.release_orphans().await;
            self.clear_retired().await;
            let paused = self.shared.ports.handover.is_paused(&self.route.name);
            let rest = if paused { self.stand_still().await } else { self.go_on().await };
            // What was handed over while the destination fails goes to the store.
            let parked = self.lanes.is_failing();
            let room = if parked { PARKED_BATCH } else { self.lanes.room(self.shared.monotonic()) };
            tokio::select! {
                taken = receive(&mut self.handed, &mut batch, room), if room > 0 => {
                    // The slot of a leg may be older than the pause.
                    if parked || self.shared.ports.handover.is_paused(&self.route.name) {
                        self.put_back(std::mem::take(&mut batch)).await;
                    } else {
                        self.bring(batch.drain(..)).await;
                    }
                    if taken == 0 {
                        self.handed = None;
                    }
                }
                Some(recall) = recalled(&mut self.recalls) => self.give_back(recall).await,
                () = self.due.notified() => {
                    if self.shared.ports.handover.take_probe(&self.route.name) {
                        self.lanes.end_waits();
                    }
                    self.desk.look_by(self.shared.now());
                }
                () = self.desk.bell.notified() => {}
                Some(ended) = self.workers.join_next() => self.note_end(ended),
                // The senders outlive the feeders, or say that the route is gone: what changes is the value.
                _ = self.stop.changed() => {}
                _ = self.wanted.changed() => {}
                () = sleep(rest) => {}
            }
        }
    }

    /// Claims and starts workers. How long there is nothing to do afterwards unless something rings.
    async fn go_on(&mut self) -> Duration {
        self.claim().await;
        for lane in self.lanes.to_start(self.shared.monotonic()) {
            self.workers.spawn(worker::work(lane, Arc::clone(&self.shared)));
        }
        self.lanes.sleep(self.desk.wait(self.shared.now()), self.shared.monotonic())
    }

    /// An operator paused the route: what waits in memory goes back, nothing is claimed. What workers have in their
    /// hands goes on. How long there is nothing to do afterwards, the end of the pause rings.
    async fn stand_still(&mut self) -> Duration {
        let waiting = self.take_waiting();
        if self.put_back(waiting).await { LOOK_MAX } else { STORE_WAIT }
    }

    /// Goes by the route as it is now. What waits goes along, what workers have in hand ends as it began.
    async fn turn(&mut self, route: Arc<Route>) {
        let lanes = Lanes::new(Arc::clone(&route), Arc::clone(&self.desk));
        let old = std::mem::replace(&mut self.lanes, lanes);
        self.route = route;
        let waiting = old.drain();
        self.retired.push(old);
        // Whatever was in the way may be what was changed.
        self.shared.ports.handover.reopen(&self.route.name);
        self.bring(waiting).await;
        self.desk.look_by(self.shared.now());
    }

    /// Takes over what workers of the route as it was have put back, and forgets lanes that nobody works in.
    async fn clear_retired(&mut self) {
        if self.retired.is_empty() {
            return;
        }
        let put_back: Vec<OwnedLeg> = self.retired.iter().flat_map(Lanes::take_waiting).collect();
        self.retired.retain(|lanes| !lanes.is_idle());
        self.bring(put_back).await;
    }

    /// Gives back what waits in memory, and leaves the store alone until the operator is done with it. What workers
    /// have in their hands goes on.
    async fn give_back(&mut self, recall: Recall) {
        let waiting = self.take_waiting();
        if !self.put_back(waiting).await {
            return;
        }
        if recall.given_back.send(()).is_ok() {
            tokio::select! {
                _ = recall.over => {}
                _ = self.stop.changed() => {}
                () = sleep(RECALL_MAX) => {}
            }
        }
        self.desk.look_by(self.shared.now());
    }

    /// The legs that nobody works on.
    fn take_waiting(&mut self) -> Vec<OwnedLeg> {
        let mut waiting = self.lanes.take_waiting();
        waiting.extend(self.retired.iter().flat_map(Lanes::take_waiting));
        while let Some(leg) = self.handed.as_mut().and_then(|handed| handed.try_recv().ok()) {
            waiting.push(leg);
        }
        waiting
    }

    /// Gives legs back to the store, due. Where the store cannot they stay here, and the result is false.
    async fn put_back(&mut self, legs: Vec<OwnedLeg>) -> bool {
        let ids: Vec<LegId> = legs.iter().map(|leg| leg.id).collect();
        if ids.is_empty() {
            return true;
        }
        match self.shared.ports.store.release(ids, self.shared.now(), GivenBack::Unattempted).await {
            Ok(()) => true,
            Err(error) => {
                events::outbound_store_failed(&self.route.name, "release", &error);
                // Still ours: they must not be forgotten.
                self.bring(legs).await;
                false
            }
        }
    }

    fn note_end(&self, ended: Result<(), tokio::task::JoinError>) {
        if ended.is_err_and(|error| error.is_panic()) {
            events::panicked("worker");
        }
    }

    async fn release_orphans(&self) {
        let orphans = self.take_orphans();
        if orphans.is_empty() {
            return;
        }
        // What made a worker panic may do so again: not at once.
        let due = self.shared.now().after(ORPHAN_WAIT);
        self.shared.release(&self.route.name, orphans, due, GivenBack::CutOff { by: "a fault of ours" }).await;
        self.desk.look_by(due);
    }

    fn take_orphans(&self) -> Vec<LegId> {
        self.retired.iter().chain([&self.lanes]).flat_map(Lanes::take_orphans).collect()
    }

    /// Puts legs where they belong, and gives back those for which there is no place now.
    async fn bring(&mut self, legs: impl IntoIterator<Item = OwnedLeg>) {
        for (due, legs) in self.lanes.push(legs, self.shared.now(), self.shared.monotonic()) {
            self.shared.release(&self.route.name, legs, due, GivenBack::Unattempted).await;
            self.desk.look_by(due);
        }
    }

    /// Claims what is due, if it is time to look and there is room.
    async fn claim(&mut self) {
        let shared = Arc::clone(&self.shared);
        let now = shared.now();
        let limit = self.lanes.claims(shared.monotonic());
        if limit == 0 || !self.desk.takes_turn(now, now.after(LOOK_MAX)) {
            return;
        }
        let legs = match shared.ports.store.claim(&self.route.name, now, limit).await {
            Ok(legs) => legs,
            Err(error) => {
                events::outbound_store_failed(&self.route.name, "claim", &error);
                return self.desk.look_by(now.after(STORE_WAIT));
            }
        };
        let all = legs.len() < limit;
        self.bring(legs).await;
        if !all {
            return self.desk.look_by(now);
        }
        match shared.ports.store.next_due().await {
            Ok(dues) => {
                if let Some((_, due)) = dues.iter().find(|(name, _)| *name == self.route.name) {
                    // What is due and was not claimed cannot be claimed yet: asking at once would not change it.
                    self.desk.look_by((*due).max(now.after(STORE_WAIT_MIN)));
                }
            }
            Err(error) => events::outbound_store_failed(&self.route.name, "next due", &error),
        }
    }

    /// Ends by `latest`, or sooner where the daemon stops.
    async fn drain(mut self, latest: Instant) {
        let stop = self.stop.clone();
        // A route that is gone has no lane in the hand-over any more; one of its name may have been opened since.
        if self.wanted.borrow().is_some() {
            self.shared.ports.handover.close(&self.route.name);
        }
        let mut waiting = ids(self.lanes.drain());
        if let Some(handed) = &mut self.handed {
            handed.close();
            // A slot reserved before the drain may still be filled; then it is given back.
            while let Some(leg) = before(&stop, latest, handed.recv()).await {
                waiting.push(leg.id);
            }
        }
        self.shared.release(&self.route.name, waiting, self.shared.now(), GivenBack::Unattempted).await;
        self.shared.strays.notify_one();
        while let Some(ended) = before(&stop, latest, self.workers.join_next()).await {
            self.note_end(ended);
        }
        self.workers.shutdown().await;
        // A worker may have put a leg back at the last moment.
        let left = ids(self.retired.iter().chain([&self.lanes]).flat_map(Lanes::drain));
        self.shared.release(&self.route.name, left, self.shared.now(), GivenBack::Unattempted).await;
        let cut_off = self.take_orphans();
        let how = GivenBack::CutOff { by: "a restart" };
        self.shared.release(&self.route.name, cut_off, self.shared.now(), how).await;
        self.shared.strays.notify_one();
    }
}

fn ids(legs: impl IntoIterator<Item = OwnedLeg>) -> Vec<LegId> {
    legs.into_iter().map(|leg| leg.id).collect()
}

/// What `wanted` gives, if it does so by `latest`, and before the time of a stop that comes meanwhile is up.
async fn before<T>(
    stop: &watch::Receiver<Option<Instant>>,
    latest: Instant,
    wanted: impl Future<Output = Option<T>>,
) -> Option<T> {
    let mut stop = stop.clone();
    let time_is_up = async {
        let deadline = match timeout_at(latest, stop.wait_for(Option::is_some)).await {
            Ok(Ok(said)) => said.map_or(latest, |deadline| deadline.min(latest)),
            // There is nobody left to stop us, or it is time.
            Ok(Err(_)) | Err(_) => latest,
        };
        sleep_until(deadline).await;
    };
    tokio::select! {
        biased;
        given = wanted => given,
        () = time_is_up => None,
    }
}

/// Up to `room` legs that were handed over; 0 when nobody can hand over any more. Safe to cancel.
async fn receive(handed: &mut Option<mpsc::Receiver<OwnedLeg>>, batch: &mut Vec<OwnedLeg>, room: usize) -> usize {
    match handed {
        Some(handed) => handed.recv_many(batch, room).await,
        None => std::future::pending().await,
    }
}

async fn recalled(recalls: &mut Option<mpsc::Receiver<Recall>>) -> Option<Recall> {
    match recalls {
        Some(recalls) => recalls.recv().await,
        None => std::future::pending().await,
    }
}

/// Legs that go to the store together, in one transaction.
const PARKED_BATCH: usize = 100;
const ORPHAN_WAIT: Duration = Duration::from_secs(60);
/// An operator's transaction takes a second; whoever takes longer finds legs in flight again.
const RECALL_MAX: Duration = Duration::from_secs(30);
const STORE_WAIT: Duration = Duration::from_secs(5);
const STORE_WAIT_MIN: Duration = Duration::from_secs(1);
/// What a transaction may take at the longest by RFC 5321 §4.5.3.2, all its waits together.
const LEAVE_MAX: Duration = Duration::from_secs(60 * 60);
/// Legs that wait in memory for each route. Beyond them the queue on disk serves as well, at some cost.
pub const LANE_PLACES: usize = 1_000;
const NO_PANIC: &str = "no code panics while it holds this lock";
