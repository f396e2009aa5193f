//! Handing a fresh leg to its route in memory, so that it is never read back from the disk.
//!
//! Each route has a bounded lane. Who accepts a message reserves a [`Slot`] in it *before* the commit; the leg is then
//! committed as ours and put into the slot. Without a slot the leg is committed ownerless and due, and the route is
//! woken to claim it. A leg in a lane is owned: whoever takes the receiver must attempt or release what is in it.
//!
//! A lane also says whether its route backs off and why, for `status`, and carries an operator's word back to it: to
//! try at once, or to pause.
//! An operator may want to move a leg that only waits. [`Handover::recall`] has the lane's feeder give back to the
//! store whatever waits in memory, and take nothing more until the operator is done.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use tokio::sync::{Notify, mpsc, oneshot};

use crate::clock::Timestamp;
use crate::queue::OwnedLeg;

/// The lanes of all routes.
#[derive(Default)]
pub struct Handover {
    lanes: RwLock<BTreeMap<String, Arc<Lane>>>,
    /// Routes without a lane that an operator paused: a reload may bring them back.
    paused: Mutex<BTreeSet<String>>,
}

struct Lane {
    sender: mpsc::Sender<OwnedLeg>,
    receiver: Mutex<Option<mpsc::Receiver<OwnedLeg>>>,
    /// The route backs off, or the daemon drains.
    closed: AtomicBool,
    /// An operator paused the route.
    paused: AtomicBool,
    due: Arc<Notify>,
    trouble: Mutex<Option<Trouble>>,
    /// The same for each domain of a route that looks its hosts up: the others go on.
    domains: Mutex<BTreeMap<String, Trouble>>,
    /// An operator wants the route tried now.
    probe: AtomicBool,
    recall: mpsc::Sender<Recall>,
    recalls: Mutex<Option<mpsc::Receiver<Recall>>>,
}

/// Why a route backs off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// Nobody dials before.
    pub until: Timestamp,
    /// What was answered, without what could tell a target.
    pub why: String,
}

/// To a lane's feeder: give back what waits, say so, and take nothing until `over` is closed.
#[derive(Debug)]
pub struct Recall {
    pub given_back: oneshot::Sender<()>,
    pub over: oneshot::Receiver<()>,
}

/// Lanes that were emptied. Dropped, they go on.
#[derive(Debug)]
#[must_use]
pub struct Recalled {
    // A sender that is dropped closes the receiver at the lane's feeder.
    _overs: Vec<oneshot::Sender<()>>,
}

/// A place in a lane. Dropped unfilled it goes back.
#[derive(Debug)]
#[must_use]
pub struct Slot {
    place: mpsc::OwnedPermit<OwnedLeg>,
}

impl Slot {
    /// Hands the leg over.
    pub fn fill(self, leg: OwnedLeg) {
        self.place.send(leg);
    }
}

impl Handover {
    /// Lanes of `places` for each of `routes`.
    #[must_use]
    pub fn new(routes: impl IntoIterator<Item = String>, places: usize) -> Handover {
        let handover = Handover::default();
        for route in routes {
            handover.add_route(&route, places);
        }
        handover
    }

    /// Opens a lane of `places` (1 at the least) for a route that a reload brought. A route that has one keeps it.
    pub fn add_route(&self, route: &str, places: usize) {
        let mut lanes = self.lanes.write().expect("no code panics while it holds this lock");
        lanes.entry(route.to_owned()).or_insert_with(|| {
            let (sender, receiver) = mpsc::channel(places.clamp(1, PLACES_MAX));
            let (recall, recalls) = mpsc::channel(RECALLS_MAX);
            let paused = self.paused.lock().expect("no code panics while it holds this lock").remove(route);
            Arc::new(Lane {
                sender,
                receiver: Mutex::new(Some(receiver)),
                closed: AtomicBool::new(false),
                paused: AtomicBool::new(paused),
                due: Arc::new(Notify::new()),
                trouble: Mutex::default(),
                domains: Mutex::default(),
                probe: AtomicBool::new(false),
                recall,
                recalls: Mutex::new(Some(recalls)),
            })
        });
    }

    /// Takes the lane of a route that a reload dropped away. Slots that were reserved may still be filled.
    pub fn remove_route(&self, route: &str) {
        let lane = self.lanes.write().expect("no code panics while it holds this lock").remove(route);
        if let Some(lane) = lane {
            lane.closed.store(true, Ordering::Relaxed);
            self.set_paused(route, lane.paused.load(Ordering::Relaxed));
        }
    }

    /// A place in the route's lane. `None`: no such route, the lane is full or paused, or its receiver is gone.
    #[must_use]
    pub fn reserve(&self, route: &str) -> Option<Slot> {
        let lane = self.lane(route).filter(|lane| lane.takes_legs())?;
        lane.sender.clone().try_reserve_owned().ok().map(|place| Slot { place })
    }

    /// As [`Handover::reserve`], but where the lane is merely full, waits for a place for up to `patience`: a leg that
    /// is handed over costs half of one that is read back, so a lane that moves is worth a moment.
    pub async fn reserve_within(&self, route: &str, patience: Duration) -> Option<Slot> {
        if let Some(slot) = self.reserve(route) {
            return Some(slot);
        }
        let lane = self.lane(route).filter(|lane| lane.takes_legs())?;
        let place = tokio::time::timeout(patience, lane.sender.clone().reserve_owned()).await;
        place.ok()?.ok().map(|place| Slot { place })
    }

    /// The legs' end of a lane; it can be taken once.
    #[must_use]
    pub fn take_receiver(&self, route: &str) -> Option<mpsc::Receiver<OwnedLeg>> {
        self.lane(route)?.receiver.lock().expect("no code panics while it holds this lock").take()
    }

    /// Empties the lanes of `routes`: legs that only wait in memory are back in the store when this returns, and none
    /// is taken until the result is dropped. A lane whose feeder does not answer in time, or has none, is left as it is:
    /// its legs go on counting as in flight.
    pub async fn recall(&self, routes: impl IntoIterator<Item = &str>) -> Recalled {
        let mut overs = Vec::new();
        let mut answers = Vec::new();
        for lane in routes.into_iter().filter_map(|route| self.lane(route)) {
            let (over, lane_over) = oneshot::channel();
            let (given_back, answer) = oneshot::channel();
            if lane.recall.try_send(Recall { given_back, over: lane_over }).is_ok() {
                overs.push(over);
                answers.push(answer);
            }
        }
        let all = async {
            for answer in answers {
                // A feeder that drains gives everything back anyway.
                let _ = answer.await;
            }
        };
        let _ = tokio::time::timeout(RECALL_WAIT, all).await;
        Recalled { _overs: overs }
    }

    /// The feeder's end of [`Handover::recall`]; it can be taken once.
    #[must_use]
    pub fn take_recalls(&self, route: &str) -> Option<mpsc::Receiver<Recall>> {
        self.lane(route)?.recalls.lock().expect("no code panics while it holds this lock").take()
    }

    /// Closes the lane to new legs: the daemon drains.
    pub fn close(&self, route: &str) {
        if let Some(lane) = self.lane(route) {
            lane.closed.store(true, Ordering::Relaxed);
        }
    }

    /// Closes the lane to new legs, until [`Handover::reopen`]: the route backs off.
    pub fn back_off(&self, route: &str, trouble: Trouble) {
        if let Some(lane) = self.lane(route) {
            lane.closed.store(true, Ordering::Relaxed);
            *lane.trouble.lock().expect("no code panics while it holds this lock") = Some(trouble);
        }
    }

    /// The route is reached again.
    pub fn reopen(&self, route: &str) {
        if let Some(lane) = self.lane(route) {
            lane.closed.store(false, Ordering::Relaxed);
            *lane.trouble.lock().expect("no code panics while it holds this lock") = None;
        }
    }

    /// An operator pauses the route: nothing is handed over or claimed, and what waits in memory goes back to the store.
    /// What is being sent goes on.
    pub fn pause(&self, route: &str) {
        self.set_paused(route, true);
    }

    /// The route goes on.
    pub fn resume(&self, route: &str) {
        self.set_paused(route, false);
    }

    fn set_paused(&self, route: &str, paused: bool) {
        if let Some(lane) = self.lane(route) {
            lane.paused.store(paused, Ordering::Relaxed);
            lane.due.notify_one();
            return;
        }
        let mut without_lane = self.paused.lock().expect("no code panics while it holds this lock");
        if paused {
            without_lane.insert(route.to_owned());
        } else {
            without_lane.remove(route);
        }
    }

    /// Whether an operator paused the route.
    #[must_use]
    pub fn is_paused(&self, route: &str) -> bool {
        self.lane(route).is_some_and(|lane| lane.paused.load(Ordering::Relaxed))
    }

    /// Each route, whether it stands still (paused by an operator, or backing off), and whether it backs off.
    #[must_use]
    pub fn standing(&self) -> Vec<(String, bool, bool)> {
        let lanes = self.lanes.read().expect("no code panics while it holds this lock");
        let open = |lane: &Lane| lane.trouble.lock().expect("no code panics while it holds this lock").is_some();
        lanes.iter().map(|(route, lane)| (route.clone(), !lane.takes_legs(), open(lane))).collect()
    }

    /// A domain of the route backs off; the route's lane stays open. Of more than [`DOMAINS_TOLD_MAX`] the others are
    /// not told of.
    pub fn domain_backs_off(&self, route: &str, domain: &str, trouble: Trouble) {
        let Some(lane) = self.lane(route) else { return };
        let mut domains = lane.domains.lock().expect("no code panics while it holds this lock");
        // A domain for which nothing is queued any more is not dialled again, and nobody says that it is well.
        domains.retain(|_, old| trouble.until.since(old.until) < DOMAIN_TOLD_FOR);
        if domains.len() < DOMAINS_TOLD_MAX || domains.contains_key(domain) {
            domains.insert(domain.to_owned(), trouble);
        }
    }

    /// The domain is reached again.
    pub fn domain_reopened(&self, route: &str, domain: &str) {
        if let Some(lane) = self.lane(route) {
            lane.domains.lock().expect("no code panics while it holds this lock").remove(domain);
        }
    }

    /// The routes that back off, by name, and behind each the domains that do.
    #[must_use]
    pub fn troubles(&self) -> Vec<(String, Option<String>, Trouble)> {
        let lanes = self.lanes.read().expect("no code panics while it holds this lock");
        let mut troubles = Vec::new();
        for (route, lane) in lanes.iter() {
            let whole = lane.trouble.lock().expect("no code panics while it holds this lock").clone();
            troubles.extend(whole.map(|trouble| (route.clone(), None, trouble)));
            let domains = lane.domains.lock().expect("no code panics while it holds this lock");
            troubles.extend(domains.iter().map(|(name, at)| (route.clone(), Some(name.clone()), at.clone())));
        }
        troubles
    }

    /// Wakes the route, and ends its wait where it backs off: an operator wants it tried now.
    pub fn probe(&self, route: &str) {
        if let Some(lane) = self.lane(route) {
            lane.probe.store(true, Ordering::Relaxed);
            lane.due.notify_one();
        }
    }

    /// Whether [`Handover::probe`] was called since the last time.
    #[must_use]
    pub fn take_probe(&self, route: &str) -> bool {
        self.lane(route).is_some_and(|lane| lane.probe.swap(false, Ordering::Relaxed))
    }

    /// Says that ownerless due legs of the route were committed. A wake before anybody waits is kept.
    pub fn wake(&self, route: &str) {
        if let Some(lane) = self.lane(route) {
            lane.due.notify_one();
        }
    }

    /// What [`Handover::wake`] rings; one task waits on it.
    #[must_use]
    pub fn bell(&self, route: &str) -> Option<Arc<Notify>> {
        self.lane(route).map(|lane| lane.due.clone())
    }

    fn lane(&self, route: &str) -> Option<Arc<Lane>> {
        self.lanes.read().expect("no code panics while it holds this lock").get(route).cloned()
    }
}

impl Lane {
    fn takes_legs(&self) -> bool {
        !self.closed.load(Ordering::Relaxed) && !self.paused.load(Ordering::Relaxed)
    }
}

// A leg in a lane weighs about 1 KiB beside its body, which the byte budget counts.
const PLACES_MAX: usize = 10_000;
// Operators who act at one time; the next one finds what waits in flight.
const RECALLS_MAX: usize = 16;
// A feeder answers within a commit. Where the disk hangs, an operator is told «in flight» rather than nothing.
const RECALL_WAIT: Duration = Duration::from_secs(5);

/// What a screen holds; the log has them all.
const DOMAINS_TOLD_MAX: usize = 100;
/// Waits are a minute at the most while there is anything to send, and the log tells of older trouble.
const DOMAIN_TOLD_FOR: Duration = Duration::from_secs(60 * 60);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::fixtures::owned_leg;

    #[test]
    fn a_lane_takes_its_places_and_not_one_more() {
        let handover = Handover::new(["crm".to_owned()], 2);
        let (first, second) = (handover.reserve("crm").unwrap(), handover.reserve("crm").unwrap());
        assert!(handover.reserve("crm").is_none());
        drop(first);
        let again = handover.reserve("crm").unwrap();
        again.fill(owned_leg(1));
        second.fill(owned_leg(2));
        let mut receiver = handover.take_receiver("crm").unwrap();
        assert_eq!(receiver.try_recv().unwrap().id.message.0, 1);
        assert_eq!(receiver.try_recv().unwrap().id.message.0, 2);
        assert!(handover.take_receiver("crm").is_none(), "it is taken once");
    }

    #[test]
    fn unknown_paused_and_abandoned_lanes_give_no_slot() {
        let handover = Handover::new(["crm".to_owned()], 2);
        assert!(handover.reserve("other").is_none());
        handover.close("crm");
        assert!(handover.reserve("crm").is_none());
        handover.reopen("crm");
        assert!(handover.reserve("crm").is_some());
        drop(handover.take_receiver("crm"));
        assert!(handover.reserve("crm").is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_lane_is_waited_for_and_a_paused_one_is_not() {
        let handover = Arc::new(Handover::new(["crm".to_owned()], 1));
        let taken = handover.reserve("crm").unwrap();
        let started = tokio::time::Instant::now();
        assert!(handover.reserve_within("crm", Duration::from_millis(20)).await.is_none());
        assert_eq!(started.elapsed(), Duration::from_millis(20));
        let waiting = tokio::spawn({
            let handover = Arc::clone(&handover);
            async move { handover.reserve_within("crm", Duration::from_secs(9)).await.is_some() }
        });
        tokio::task::yield_now().await;
        drop(taken);
        assert!(waiting.await.unwrap());
        handover.close("crm");
        let started = tokio::time::Instant::now();
        assert!(handover.reserve_within("crm", Duration::from_secs(9)).await.is_none());
        assert_eq!(started.elapsed(), Duration::ZERO);
    }

    #[tokio::test]
    async fn a_route_that_backs_off_says_why_and_hears_an_operator() {
        let handover = Handover::new(["crm".to_owned(), "archive".to_owned()], 2);
        let trouble = Trouble { until: Timestamp(5_000), why: "connection refused".into() };
        handover.back_off("crm", trouble.clone());
        assert!(handover.reserve("crm").is_none());
        assert_eq!(handover.troubles(), [("crm".to_owned(), None, trouble)]);
        assert!(!handover.take_probe("crm"));
        handover.probe("crm");
        handover.bell("crm").unwrap().notified().await;
        assert!(handover.take_probe("crm") && !handover.take_probe("crm"));
        handover.reopen("crm");
        assert!(handover.reserve("crm").is_some() && handover.troubles().is_empty());
    }

    #[test]
    fn a_pause_and_a_back_off_do_not_end_each_other() {
        let handover = Handover::new(["crm".to_owned()], 2);
        handover.pause("crm");
        handover.back_off("crm", Trouble { until: Timestamp(5_000), why: "connection refused".into() });
        handover.reopen("crm");
        assert!(handover.is_paused("crm") && handover.reserve("crm").is_none());
        assert_eq!(handover.standing(), [("crm".to_owned(), true, false)]);
        handover.resume("crm");
        assert!(handover.reserve("crm").is_some());
        assert_eq!(handover.standing(), [("crm".to_owned(), false, false)]);
    }

    #[test]
    fn a_pause_outlives_the_lane_of_its_route() {
        let handover = Handover::new(["crm".to_owned()], 1);
        handover.pause("crm");
        handover.remove_route("crm");
        assert!(handover.reserve("crm").is_none() && !handover.is_paused("crm"));
        handover.add_route("crm", 1);
        assert!(handover.is_paused("crm") && handover.reserve("crm").is_none());
        handover.remove_route("crm");
        handover.resume("crm");
        handover.add_route("crm", 1);
        assert!(handover.reserve("crm").is_some());
    }

    #[test]
    fn a_domain_that_backs_off_is_told_of_and_the_route_stays_open() {
        let handover = Handover::new(["default".to_owned()], 2);
        let at = |seconds: i64| Trouble { until: Timestamp(seconds * 1000), why: "refused".into() };
        handover.domain_backs_off("default", "dead.example", at(5));
        assert!(handover.reserve("default").is_some());
        let told = |handover: &Handover| handover.troubles().into_iter().filter_map(|(_, name, _)| name).count();
        assert_eq!(handover.troubles(), [("default".to_owned(), Some("dead.example".to_owned()), at(5))]);
        handover.domain_reopened("default", "dead.example");
        assert_eq!(told(&handover), 0);
        for n in 0..=DOMAINS_TOLD_MAX {
            handover.domain_backs_off("default", &format!("{n}.example"), at(5));
        }
        assert_eq!(told(&handover), DOMAINS_TOLD_MAX);
        // Those of whom nothing was heard for long make room.
        handover.domain_backs_off("default", "late.example", at(5 + DOMAIN_TOLD_FOR.as_secs() as i64));
        assert_eq!(told(&handover), 1);
    }

    #[tokio::test]
    async fn a_wake_before_anybody_waits_is_kept() {
        let handover = Handover::new(["crm".to_owned()], 1);
        handover.wake("crm");
        handover.bell("crm").unwrap().notified().await;
    }
}
