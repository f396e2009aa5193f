//! The lanes of a route: one where the route names its hosts, else one for each domain that has legs just now.
//!
//! A dead domain must not delay another, so domains share no queue, no back-off and no session. What they share is
//! bounded: lanes, legs in memory, and sessions beyond the first of each lane. The store is asked by route, not by
//! domain; so what is claimed and finds no place in its lane, because it is full or backs off, is given back with a
//! later due time. That costs two small writes for each such leg, and is what keeps the others moving. A lane that is
//! merely busy is waited for instead, for a moment: while it moves, nothing is written twice.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use crate::address::Domain;
use crate::clock::Timestamp;
use crate::id::LegId;
use crate::outbound::lane::{DOMAIN_WAITING_MAX, Desk, Hosts, LOOK_MAX, Lane};
use crate::queue::OwnedLeg;
use crate::relay::Route;

pub(super) enum Lanes {
    /// To the hosts that the route names.
    One(Arc<Lane>),
    ByDomain(ByDomain),
}

pub(super) struct ByDomain {
    route: Arc<Route>,
    desk: Arc<Desk>,
    lanes: HashMap<Domain, Place>,
}

struct Place {
    lane: Arc<Lane>,
    /// Since when (monotonic) it has been crowded.
    crowded: Option<Duration>,
}

/// Legs that found no place, by when they are due again.
pub(super) type Returned = BTreeMap<Timestamp, Vec<LegId>>;

impl Lanes {
    pub(super) fn new(route: Arc<Route>, desk: Arc<Desk>) -> Lanes {
        if route.hosts.is_empty() {
            return Lanes::ByDomain(ByDomain { route, desk, lanes: HashMap::new() });
        }
        let hosts = Hosts::Named(route.hosts.clone().into());
        Lanes::One(Arc::new(Lane::new(route, hosts, desk)))
    }

    /// How many legs may be brought.
    pub(super) fn room(&mut self, monotonic: Duration) -> usize {
        match self {
            Lanes::One(lane) => lane.room(monotonic),
            Lanes::ByDomain(lanes) => match lanes.patience(monotonic) {
                Some(_) => 0,
                None => BATCH,
            },
        }
    }

    /// How many legs may be claimed. While the only destination backs off, what is due stays in the store.
    pub(super) fn claims(&mut self, monotonic: Duration) -> usize {
        match self {
            Lanes::One(lane) if !lane.backs_off(monotonic).is_zero() => 0,
            Lanes::One(_) | Lanes::ByDomain(_) => self.room(monotonic),
        }
    }

    /// Brings legs into their lanes.
    #[must_use]
    pub(super) fn push(
        &mut self,
        legs: impl IntoIterator<Item = OwnedLeg>,
        now: Timestamp,
        monotonic: Duration,
    ) -> Returned {
        match self {
            Lanes::One(lane) => {
                lane.push(legs);
                Returned::new()
            }
            Lanes::ByDomain(lanes) => lanes.push(legs, now, monotonic),
        }
    }

    /// A lane for each worker that is to be started; they are counted as started.
    pub(super) fn to_start(&self, monotonic: Duration) -> Vec<Arc<Lane>> {
        match self {
            Lanes::One(lane) => {
                let workers = lane.to_start(monotonic, usize::MAX);
                std::iter::repeat_n(lane, workers).cloned().collect()
            }
            Lanes::ByDomain(lanes) => lanes.to_start(monotonic),
        }
    }

    /// How long the feeder may sleep if nothing rings; `look` is how long until it looks into the store again.
    pub(super) fn sleep(&mut self, look: Duration, monotonic: Duration) -> Duration {
        let look = match self {
            Lanes::One(lane) => match lane.backs_off(monotonic) {
                Duration::ZERO if lane.room(monotonic) == 0 => LOOK_MAX,
                rest => look.max(rest),
            },
            Lanes::ByDomain(lanes) => lanes.patience(monotonic).unwrap_or(look),
        };
        let probe = self.all().map(|lane| lane.probe(monotonic)).min().unwrap_or(LOOK_MAX);
        look.min(probe).clamp(Duration::from_millis(1), LOOK_MAX)
    }

    /// The only destination fails: what is handed over in memory belongs into the store, where one leg at a time is
    /// fetched from.
    pub(super) fn is_failing(&self) -> bool {
        match self {
            Lanes::One(lane) => lane.is_failing(),
            // Each of their lanes gives back by itself what it has no place for.
            Lanes::ByDomain(_) => false,
        }
    }

    pub(super) fn take_orphans(&self) -> Vec<LegId> {
        self.all().flat_map(|lane| lane.take_orphans()).collect()
    }

    /// The legs that wait, which nobody works on.
    pub(super) fn take_waiting(&self) -> Vec<OwnedLeg> {
        self.all().flat_map(|lane| lane.take_waiting()).collect()
    }

    /// An operator does not want to wait for the end of a back-off: one dial of each lane is allowed now.
    pub(super) fn end_waits(&self) {
        self.all().for_each(|lane| lane.end_wait());
    }

    /// Ends the taking of legs; gives those that wait.
    pub(super) fn drain(&self) -> Vec<OwnedLeg> {
        self.all().flat_map(|lane| lane.drain()).collect()
    }

    /// Nobody works in any of them, and nothing waits.
    pub(super) fn is_idle(&self) -> bool {
        self.all().all(|lane| lane.is_idle())
    }

    fn all(&self) -> Box<dyn Iterator<Item = &Arc<Lane>> + '_> {
        match self {
            Lanes::One(lane) => Box::new(std::iter::once(lane)),
            Lanes::ByDomain(lanes) => Box::new(lanes.lanes.values().map(|place| &place.lane)),
        }
    }
}

impl ByDomain {
    /// How long nothing more is brought, for a lane to get through what it has. `None`: no lane is crowded, or only
    /// such as do not move.
    fn patience(&mut self, monotonic: Duration) -> Option<Duration> {
        let mut longest = None;
        for place in self.lanes.values_mut() {
            if !place.lane.is_crowded() {
                place.crowded = None;
                continue;
            }
            let since = *place.crowded.get_or_insert(monotonic);
            let left = PATIENCE.saturating_sub(monotonic.saturating_sub(since));
            if !left.is_zero() {
                longest = longest.max(Some(left));
            }
        }
        longest
    }

    fn push(&mut self, legs: impl IntoIterator<Item = OwnedLeg>, now: Timestamp, monotonic: Duration) -> Returned {
        self.lanes.retain(|_, place| !place.lane.is_spent(monotonic));
        let mut total: usize = self.lanes.values().map(|place| place.lane.waiting()).sum();
        let mut returned = Returned::new();
        for leg in legs {
            let Some(lane) = self.lane(leg.target.domain(), monotonic) else {
                returned.entry(now.after(LANE_WAIT)).or_default().push(leg.id);
                continue;
            };
            let backs_off = lane.backs_off(monotonic);
            // An empty lane takes one leg always: however much the others have, no domain stands still.
            let full = lane.waiting() > 0 && (lane.room(monotonic) == 0 || total >= WAITING_MAX);
            match (backs_off.is_zero(), full) {
                (true, false) => {
                    total += 1;
                    lane.push([leg]);
                }
                (true, true) => returned.entry(now.after(FULL_WAIT)).or_default().push(leg.id),
                (false, _) => returned.entry(now.after(backs_off)).or_default().push(leg.id),
            }
        }
        returned
    }

    /// The domain's lane, opened where there is none. `None`: there are too many.
    fn lane(&mut self, domain: &Domain, monotonic: Duration) -> Option<&Arc<Lane>> {
        if !self.lanes.contains_key(domain) {
            if self.lanes.len() >= LANES_MAX {
                // What an idle one knows of its destination's troubles is the cheapest thing to forget.
                self.lanes.retain(|_, Place { lane, .. }| !lane.is_idle() || !lane.backs_off(monotonic).is_zero());
            }
            if self.lanes.len() >= LANES_MAX {
                return None;
            }
            let hosts = Hosts::Of(domain.clone());
            let lane = Lane::new(Arc::clone(&self.route), hosts, Arc::clone(&self.desk));
            self.lanes.insert(domain.clone(), Place { lane: Arc::new(lane), crowded: None });
        }
        self.lanes.get(domain).map(|place| &place.lane)
    }

    /// The first worker of a lane is always allowed; all others share what the route may have.
    fn to_start(&self, monotonic: Duration) -> Vec<Arc<Lane>> {
        let workers: usize = self.lanes.values().map(|place| place.lane.workers()).sum();
        let mut spare = SESSIONS_MAX.saturating_sub(workers);
        let mut start = Vec::new();
        for Place { lane, .. } in self.lanes.values() {
            let first = usize::from(lane.workers() == 0);
            let workers = lane.to_start(monotonic, spare.max(first));
            spare = spare.saturating_sub(workers);
            start.extend(std::iter::repeat_n(lane, workers).cloned());
        }
        start
    }
}

/// Domains that have legs in memory, or are known to be in trouble. A lane costs some hundred octets, and a session
/// at the least while it works.
const LANES_MAX: usize = 1_000;
/// Sessions of all lanes of a route together, beyond the first of each.
const SESSIONS_MAX: usize = 200;
/// Legs that wait in all lanes of a route, beyond the first of each. With small bodies in memory that is 64 MiB.
const WAITING_MAX: usize = 1_000;
/// Legs that are brought at once. They have a place in any lane that is not crowded.
const BATCH: usize = 100;
const _: () = assert!(BATCH <= DOMAIN_WAITING_MAX / 2);
/// A lane that gets through half of what it may have by then moves; one that does not must not keep the others waiting.
const PATIENCE: Duration = Duration::from_secs(1);
/// A lane that is too much ends its work or its back-off by then.
const LANE_WAIT: Duration = Duration::from_secs(60);
/// A full lane is half empty by then where it moves at all, and where it does not a leg is written only so often.
const FULL_WAIT: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Mailbox;
    use crate::outbound::lane::Take;
    use crate::queue::fixtures::owned_leg;
    use crate::relay::TlsMode;

    const NOW: Timestamp = Timestamp(1_800_000_000_000);

    fn lanes(concurrency: usize) -> Lanes {
        let route = Route { tls: TlsMode::Off, concurrency, ..Route::named("default") };
        Lanes::new(Arc::new(route), Arc::new(Desk::new(NOW)))
    }

    fn leg(message: i64, domain: &str) -> OwnedLeg {
        OwnedLeg { target: Mailbox::parse(&format!("a@{domain}")).unwrap(), ..owned_leg(message) }
    }

    /// After how long the legs that found no place are due again, and how many.
    fn push(lanes: &mut Lanes, legs: Vec<OwnedLeg>) -> Vec<(Duration, usize)> {
        let returned = lanes.push(legs, NOW, Duration::ZERO);
        returned.into_iter().map(|(due, legs)| (due.since(NOW), legs.len())).collect()
    }

    #[test]
    fn a_full_lane_gives_back_and_another_does_not() {
        let mut lanes = lanes(4);
        assert_eq!(push(&mut lanes, (1..=250).map(|n| leg(n, "a.example")).collect()), []);
        assert_eq!(push(&mut lanes, vec![leg(251, "A.example"), leg(252, "b.example")]), [(FULL_WAIT, 1)]);
        assert_eq!(lanes.drain().len(), 251);
    }

    #[test]
    fn a_crowded_lane_is_waited_for_as_long_as_it_moves() {
        let mut lanes = lanes(4);
        assert_eq!(push(&mut lanes, (1..=125).map(|n| leg(n, "a.example")).collect()), []);
        assert_eq!(lanes.room(Duration::ZERO), BATCH);
        assert_eq!(push(&mut lanes, vec![leg(126, "a.example")]), []);
        assert_eq!(lanes.room(Duration::ZERO), 0);
        let nearly = PATIENCE - Duration::from_millis(1);
        assert_eq!((lanes.room(nearly), lanes.sleep(Duration::ZERO, nearly)), (0, Duration::from_millis(1)));
        // It does not move: the others do.
        assert_eq!(lanes.room(PATIENCE), BATCH);
        // It does: that ends the matter, and the next crowd is a new one.
        let lane = lanes.to_start(PATIENCE).pop().expect("it has a worker");
        assert!(matches!(lane.take(true, PATIENCE), Take::Leg(_)));
        assert_eq!(lanes.room(PATIENCE), BATCH);
        assert_eq!(push(&mut lanes, vec![leg(127, "a.example")]), []);
        assert_eq!(lanes.room(PATIENCE), 0);
    }

    #[test]
    fn legs_in_memory_end_at_their_limit_but_for_one_of_each_domain() {
        let mut lanes = lanes(1_000);
        let first = |d: usize| format!("{d}.example");
        for d in 0..10 {
            assert_eq!(push(&mut lanes, (1..=100).map(|n| leg(n, &first(d))).collect()), []);
        }
        assert_eq!(push(&mut lanes, vec![leg(1, "0.example"), leg(2, "x.example")]), [(FULL_WAIT, 1)]);
        assert_eq!(push(&mut lanes, vec![leg(3, "x.example")]), [(FULL_WAIT, 1)]);
    }

    #[test]
    fn lanes_end_at_their_limit_and_idle_ones_make_room() {
        let mut lanes = lanes(1);
        let all = || (0..LANES_MAX).map(|n| leg(1, &format!("{n}.example"))).collect();
        assert_eq!(push(&mut lanes, all()), []);
        assert_eq!(push(&mut lanes, vec![leg(2, "x.example")]), [(LANE_WAIT, 1)]);
        let started = lanes.to_start(Duration::ZERO);
        assert_eq!(started.len(), LANES_MAX, "each lane has its first worker");
        for lane in started {
            assert!(matches!(lane.take(false, Duration::ZERO), Take::Leg(_)));
            lane.leave();
        }
        assert_eq!(push(&mut lanes, vec![leg(2, "x.example")]), []);
        let Lanes::ByDomain(lanes) = lanes else { unreachable!() };
        assert_eq!(lanes.lanes.len(), 1, "what is empty goes");
    }

    #[test]
    fn a_domain_has_its_share_of_sessions_and_leaves_the_others_theirs() {
        let mut lanes = lanes(150);
        let many = |domain: &str| (1..=100).map(|n| leg(n, domain)).collect::<Vec<_>>();
        for domain in ["a.example", "a.example", "b.example", "b.example"] {
            assert_eq!(push(&mut lanes, many(domain)), []);
        }
        assert_eq!(lanes.to_start(Duration::ZERO).len(), SESSIONS_MAX);
        assert_eq!(push(&mut lanes, vec![leg(1, "c.example")]), []);
        assert_eq!(lanes.to_start(Duration::ZERO).len(), 1);
    }

    #[test]
    fn a_lane_that_backs_off_gives_back_until_it_may_be_dialled_and_is_remembered() {
        let mut lanes = lanes(1);
        assert_eq!(push(&mut lanes, vec![leg(1, "a.example")]), []);
        let lane = lanes.to_start(Duration::ZERO).pop().unwrap();
        let Take::Leg(taken) = lane.take(false, Duration::ZERO) else { panic!("there is a leg") };
        let _ = lane.unreachable(*taken, Duration::ZERO, Duration::ZERO);
        lane.leave();
        let second = Duration::from_secs(1);
        assert_eq!(push(&mut lanes, vec![leg(2, "a.example"), leg(3, "b.example")]), [(second, 1)]);
        let later = |lanes: &mut Lanes, at| lanes.push([leg(4, "a.example")], NOW, at);
        assert!(later(&mut lanes, second).is_empty());
        assert_eq!(lanes.to_start(second).len(), 2);
    }
}
