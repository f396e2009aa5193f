//! The conductor of the way out: what is due is claimed, relayed, settled.
//!
//! Each route has a lane, or where its hosts are looked up one for each domain. Its *feeder* brings legs into the
//! lanes: those handed over in memory by the inbound side, and those that it claims from the store when they are due.
//! *Workers*, up to the route's concurrency for each lane, take them out; each leads one transaction at a time, keeps its session while there is work, and takes its next leg only when the
//! last one is settled, so that a crash repeats at most one delivery for each leg in flight.
//!
//! When no host of a lane can be reached, that one answer settles all legs that wait in the lane, each on its own
//! schedule; then the lane backs off, and what is accepted meanwhile stays in the store. A 4xx concerns its leg alone.
//! One lane's trouble costs another nothing: they share no queue, no worker and no session.
//!
//! Time, the store, the dialler and chance are given to it, so that a day of mail passes in seconds in a test.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout_at};

use crate::auth::sign::Signer;
use crate::clock::{Clock, Timestamp};
use crate::contain::{contain, trip};
use crate::dns::Dns;
use crate::events;
use crate::id::{Chance, Ids, LegId};
use crate::queue::handover::{Handover, Recall};
use crate::queue::schedule::{Jump, JumpWatch};
use crate::queue::{Errand, GivenBack, OwnedLeg, Reason, Settlement, State, Store};
use crate::relay::Route;
use crate::relay::dial::{Dial, Timeouts};

mod backoff;
mod lane;
mod lanes;
mod hosts;
mod notify;
mod worker;

#[cfg(test)]
mod tests;

use lane::{Desk, LOOK_MAX};
use lanes::Lanes;

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

/// The ports that the conductor stands on.
#[derive(Clone)]
pub struct Ports {
    pub clock: Arc<dyn Clock>,
    pub store: Arc<dyn Store>,
    pub dial: Arc<dyn Dial>,
    pub chance: Arc<Chance>,
    /// For the notifications that we write.
    pub ids: Arc<Ids>,
    pub handover: Arc<Handover>,
    /// For the hosts of domains.
    pub dns: Arc<dyn Dns>,
}

/// The running way out.
pub struct Outbound {
    feeders: JoinSet<()>,
    /// `Some`: drain, and be done by then.
    stop: watch::Sender<Option<Instant>>,
    /// Turns true when a feeder has panicked.
    faulted: watch::Sender<bool>,
}

/// What all lanes share.
struct Shared {
    ports: Ports,
    settings: Settings,
    /// How we may be named in somebody's MX.
    names: Vec<String>,
    jumps: Mutex<JumpWatch>,
}

impl Outbound {
    /// Starts a feeder for each route. `ports.handover` must know the same routes; a lane whose receiver is taken already
    /// lives from the store alone. Must be called inside a tokio runtime.
    #[must_use]
    pub fn start(ports: Ports, settings: Settings, routes: Vec<Route>) -> Outbound {
        let (stop, _) = watch::channel(None);
        let faulted = watch::Sender::new(false);
        let mut feeders = JoinSet::new();
        let now = ports.clock.now();
        let greeted = routes.iter().filter_map(|route| route.helo.clone());
        let our_names = std::iter::once(settings.hostname.clone()).chain(greeted).collect();
        let jumps = Mutex::new(JumpWatch::default());
        let shared = Arc::new(Shared { ports, settings, names: our_names, jumps });
        let names: HashSet<String> = routes.iter().map(|route| route.name.clone()).collect();
        for route in routes {
            let desk = Arc::new(Desk::new(now));
            let feeder = Feeder {
                route: route.name.clone(),
                handed: shared.ports.handover.take_receiver(&route.name),
                due: shared.ports.handover.bell(&route.name).unwrap_or_default(),
                recalls: shared.ports.handover.take_recalls(&route.name),
                lanes: Lanes::new(route, Arc::clone(&desk)),
                desk,
                shared: Arc::clone(&shared),
                workers: JoinSet::new(),
                stop: stop.subscribe(),
            };
            feeders.spawn(watched(feeder.run(), faulted.clone()));
        }
        feeders.spawn(watched(hold_strays(shared, names, stop.subscribe()), faulted.clone()));
        Outbound { feeders, stop, faulted }
    }

    /// Turns true when a feeder has panicked: its route stands still, and what it had in its hands is freed by the next
    /// start only.
    #[must_use]
    pub fn faulted(&self) -> watch::Receiver<bool> {
        self.faulted.subscribe()
    }

    /// Drains: claims no more, gives back what waits, lets transactions in flight end for up to `grace`, closes
    /// sessions with QUIT. What is still in flight then is cut off, and its legs are given back.
    pub async fn shutdown(mut self, grace: Duration) {
        self.stop.send_replace(Some(tokio::time::Instant::now() + grace));
        while self.feeders.join_next().await.is_some() {}
    }
}

impl Shared {
    fn now(&self) -> Timestamp {
        self.ports.clock.now()
    }

    fn monotonic(&self) -> Duration {
        self.ports.clock.monotonic()
    }

    /// Whether a failed attempt may end in `expired`: not within an hour of a jump of the wall clock.
    fn may_expire(&self) -> bool {
        let (now, monotonic) = (self.now(), self.monotonic());
        let mut jumps = self.jumps.lock().expect("no code panics while it holds this lock");
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
    route: String,
    lanes: Lanes,
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
            self.release_orphans().await;
            let paused = self.shared.ports.handover.is_paused(&self.route);
            let rest = if paused { self.stand_still().await } else { self.go_on().await };
            let room = self.lanes.room(self.shared.monotonic());
            tokio::select! {
                taken = receive(&mut self.handed, &mut batch, room), if room > 0 => {
                    // The slot of a leg may be older than the pause.
                    if self.shared.ports.handover.is_paused(&self.route) {
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
                    if self.shared.ports.handover.take_probe(&self.route) {
                        self.lanes.end_waits();
                    }
                    self.desk.look_by(self.shared.now());
                }
                () = self.desk.bell.notified() => {}
                Some(ended) = self.workers.join_next() => self.note_end(ended),
                // The sender outlives the feeders: what changes is the value.
                _ = self.stop.changed() => {}
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
                events::outbound_store_failed(&self.route, "release", &error);
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
        let orphans = self.lanes.take_orphans();
        if orphans.is_empty() {
            return;
        }
        // What made a worker panic may do so again: not at once.
        let due = self.shared.now().after(ORPHAN_WAIT);
        self.shared.release(&self.route, orphans, due, GivenBack::CutOff { by: "a fault of ours" }).await;
        self.desk.look_by(due);
    }

    /// Puts legs where they belong, and gives back those for which there is no place now.
    async fn bring(&mut self, legs: impl IntoIterator<Item = OwnedLeg>) {
        for (due, legs) in self.lanes.push(legs, self.shared.now(), self.shared.monotonic()) {
            self.shared.release(&self.route, legs, due, GivenBack::Unattempted).await;
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
        let legs = match shared.ports.store.claim(&self.route, now, limit).await {
            Ok(legs) => legs,
            Err(error) => {
                events::outbound_store_failed(&self.route, "claim", &error);
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
                if let Some((_, due)) = dues.iter().find(|(name, _)| *name == self.route) {
                    // What is due and was not claimed cannot be claimed yet: asking at once would not change it.
                    self.desk.look_by((*due).max(now.after(STORE_WAIT_MIN)));
                }
            }
            Err(error) => events::outbound_store_failed(&self.route, "next due", &error),
        }
    }

    async fn drain(mut self, deadline: Instant) {
        self.shared.ports.handover.close(&self.route);
        let mut waiting = self.lanes.drain();
        if let Some(handed) = &mut self.handed {
            handed.close();
            // A slot reserved before the drain may still be filled; then it is given back.
            while let Ok(Some(leg)) = timeout_at(deadline, handed.recv()).await {
                waiting.push(leg.id);
            }
        }
        self.shared.release(&self.route, waiting, self.shared.now(), GivenBack::Unattempted).await;
        while let Ok(Some(ended)) = timeout_at(deadline, self.workers.join_next()).await {
            self.note_end(ended);
        }
        self.workers.shutdown().await;
        // A worker may have put a leg back at the last moment.
        let left = self.lanes.drain();
        self.shared.release(&self.route, left, self.shared.now(), GivenBack::Unattempted).await;
        let cut_off = self.lanes.take_orphans();
        self.shared.release(&self.route, cut_off, self.shared.now(), GivenBack::CutOff { by: "a restart" }).await;
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

/// Holds the legs of routes that the configuration does not have (any more), so that they do not lie unseen.
async fn hold_strays(shared: Arc<Shared>, routes: HashSet<String>, mut stop: watch::Receiver<Option<Instant>>) {
    loop {
        match shared.ports.store.next_due().await {
            Ok(dues) => {
                for (route, due) in dues {
                    if !routes.contains(&route) && due <= shared.now() {
                        hold_route(&shared, &route).await;
                    }
                }
            }
            Err(error) => events::outbound_store_failed("", "next due", &error),
        }
        tokio::select! {
            _ = stop.changed() => return,
            () = sleep(LOOK_MAX) => {}
        }
    }
}

async fn hold_route(shared: &Shared, route: &str) {
    let now = shared.now();
    let legs = match shared.ports.store.claim(route, now, STRAYS_AT_ONCE).await {
        Ok(legs) => legs,
        Err(error) => return events::outbound_store_failed(route, "claim", &error),
    };
    let detail = format!("the configuration has no route `{route}`");
    let settlements = legs.iter().map(|leg| hold(leg, now, Reason::Route, &detail)).collect();
    worker::settle(shared, route, &legs, settlements, || false).await;
}

/// A leg that waits an hour for an administrator to mend the configuration; a probe ends. No attempt was made.
fn hold(leg: &OwnedLeg, now: Timestamp, reason: Reason, detail: &str) -> Settlement {
    let (state, reason) = match leg.errand {
        Errand::Deliver => (State::Held, reason),
        Errand::AskRcpt => (State::Discarded, Reason::Probe),
    };
    Settlement {
        leg: leg.id,
        epoch: leg.epoch,
        at: now,
        state,
        reason,
        detail: detail.to_owned(),
        due: Some(now.after(CONFIGURATION_WAIT)),
        attempt: None,
        dsn: None,
        follow_ups: Vec::new(),
    }
}

const ORPHAN_WAIT: Duration = Duration::from_secs(60);
/// An operator's transaction takes a second; whoever takes longer finds legs in flight again.
const RECALL_MAX: Duration = Duration::from_secs(30);
const STORE_WAIT: Duration = Duration::from_secs(5);
const STORE_WAIT_MIN: Duration = Duration::from_secs(1);
/// An administrator mends a configuration in hours, not in minutes.
const CONFIGURATION_WAIT: Duration = Duration::from_secs(60 * 60);
const STRAYS_AT_ONCE: usize = 100;
