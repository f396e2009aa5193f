//! A worker: takes a leg, relays it, settles it, takes the next.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use crate::bounce;
use crate::clock::Timestamp;
use crate::events;
use crate::outbound::lane::{Flight, Lane, Seat, Take, Unreachable};
use crate::outbound::{Shared, hold, notify};
use crate::queue::handover::Trouble;
use crate::queue::{Attempt, FollowUp, GivenBack, OwnedLeg, Reason, Settled, Settlement, State, StoreError, schedule};
use crate::relay::attempt::{Ended, attempt};
use crate::relay::dial::{DialError, Security};
use crate::relay::outcome::{self, Expiry, Outcome, Refused, Us};
use crate::relay::pool::{Kept, SESSION_IDLE_MAX};
use crate::scrub::scrub;
use crate::smtp::client::{Reuse, Verdict};

/// Works until there is nothing to do for a while.
pub(super) async fn work(lane: Arc<Lane>, shared: Arc<Shared>) {
    let seat = Seat(&lane);
    let mut kept = None;
    while let Some(leg) = next_leg(&lane, &shared, &mut kept).await {
        let flight = Flight::of(&lane, leg.id);
        relay(&lane, &shared, leg, &mut kept).await;
        flight.land();
        if let Some(spent) = kept.take_if(|kept| kept.is_spent()) {
            spent.quit(&shared.settings.timeouts).await;
        }
    }
    drop(seat);
    if let Some(kept) = kept {
        kept.quit(&shared.settings.timeouts).await;
    }
}

/// The next leg. With a session in hand it is waited for, for as long as the session may idle.
async fn next_leg(lane: &Lane, shared: &Shared, kept: &mut Option<Kept>) -> Option<OwnedLeg> {
    loop {
        // Made before the look: a call between look and wait is not missed.
        let called = lane.work.notified();
        match lane.take(kept.is_some(), shared.monotonic()) {
            Take::Leg(leg) => return Some(*leg),
            Take::End => return None,
            Take::Wait => {}
        }
        let Some(session) = kept else { return None };
        let idle = tokio::select! {
            biased;
            () = called => Idle::Called,
            () = session.broken() => Idle::Broken,
            () = sleep(SESSION_IDLE_MAX) => Idle::TooLong,
        };
        lane.stop_idling();
        match idle {
            Idle::Called => {}
            Idle::Broken => *kept = None,
            Idle::TooLong => return None,
        }
    }
}

enum Idle {
    Called,
    Broken,
    TooLong,
}

/// One leg, from its first command to its settlement.
async fn relay(lane: &Lane, shared: &Shared, leg: OwnedLeg, kept: &mut Option<Kept>) {
    let started = Started { wall: shared.now(), monotonic: shared.monotonic() };
    match carry(lane, shared, &leg, kept).await {
        Carried::Attempted(said) => {
            let mut settlement = conclude(shared, &leg, &said, started);
            notify::tell(shared, &leg, &said.verdict, said.answers_for(&leg), &mut settlement).await;
            finish(lane, shared, std::slice::from_ref(&leg), vec![settlement]).await;
        }
        Carried::Unreachable { error, began } => {
            unreachable(lane, shared, leg, error, began, started).await;
        }
        Carried::NoHosts => {
            let detail = "the route has no hosts, and looking up the target's MX is not built yet";
            let settlement = hold(&leg, shared.now(), Reason::NoHosts, detail);
            finish(lane, shared, std::slice::from_ref(&leg), vec![settlement]).await;
        }
        Carried::Unread(StoreError::Damaged(what)) => {
            let mut settlement = hold(&leg, shared.now(), Reason::Damaged, &what);
            settlement.due = None;
            finish(lane, shared, std::slice::from_ref(&leg), vec![settlement]).await;
        }
        Carried::Unread(error) => {
            events::outbound_store_failed(&leg.route, "read", &error);
            let due = shared.now().after(UNREAD_WAIT);
            shared.release(&leg.route, vec![leg.id], due, GivenBack::Unattempted).await;
            lane.look_by(due);
        }
    }
}

/// What became of carrying a leg to the route's hosts.
enum Carried {
    Attempted(Said),
    /// No host of the route gave us a session; the dialling began at `began`.
    Unreachable {
        error: DialError,
        began: Duration,
    },
    NoHosts,
    /// Our own body could not be read.
    Unread(StoreError),
}

/// A verdict, and who gave it.
struct Said {
    verdict: Verdict,
    peer: String,
    local: Option<IpAddr>,
    /// It announced DSN.
    dsn: bool,
}

impl Said {
    /// What was asked about notifications was passed on to it.
    fn answers_for(&self, leg: &OwnedLeg) -> bool {
        self.dsn && leg.keeps_recipient()
    }

    fn outcome(&self) -> Outcome {
        outcome::read(&self.verdict, Us { address: self.local })
    }
}

async fn carry(lane: &Lane, shared: &Shared, leg: &OwnedLeg, kept: &mut Option<Kept>) -> Carried {
    if lane.route.hosts.is_empty() {
        return Carried::NoHosts;
    }
    let mut host = 0;
    let mut fault = None;
    loop {
        let mut session = match kept.take() {
            Some(session) => session,
            None => {
                let began = shared.monotonic();
                match dial(lane, shared, host).await {
                    Ok(session) => session,
                    // A host that spoke to us and found fault says more than one that is away.
                    Err(error) => return fault.map_or(Carried::Unreachable { error, began }, Carried::Attempted),
                }
            }
        };
        let (verdict, reuse) = match attempt(&mut session.connection, leg, &shared.settings.timeouts).await {
            // A fresh session is never stale: this goes around once.
            Ended::Stale => continue,
            Ended::Unread(error, reuse) => {
                part(kept, session, reuse);
                return Carried::Unread(error);
            }
            Ended::Verdict(verdict, reuse) => (verdict, reuse),
        };
        let connection = &session.connection;
        let dsn = connection.session.capabilities.dsn;
        let said = Said { verdict, peer: connection.peer.clone(), local: connection.local, dsn };
        let next = session.host + 1;
        if said.outcome() == Outcome::RouteFault && next < lane.route.hosts.len() {
            session.quit(&shared.settings.timeouts).await;
            (fault, host) = (Some(said), next);
            continue;
        }
        part(kept, session, reuse);
        return Carried::Attempted(said);
    }
}

fn part(kept: &mut Option<Kept>, session: Kept, reuse: Reuse) {
    match reuse {
        Reuse::Keep => *kept = Some(session),
        // Nothing can be said in a session that is out of step.
        Reuse::Close => drop(session),
    }
}

/// A session with the first host, from the `from`-th on, that gives one; else the last host's error.
async fn dial(lane: &Lane, shared: &Shared, from: usize) -> Result<Kept, DialError> {
    let route = &lane.route;
    let helo = route.helo.as_deref().unwrap_or(&shared.settings.hostname);
    let mut result = None;
    for (n, host) in route.hosts.iter().enumerate().skip(from) {
        match shared.ports.dial.dial(route, host, helo).await {
            Ok(connection) => {
                if let Security::ClearAfter(why) = &connection.security {
                    events::tls_given_up(&route.name, &connection.peer, why);
                }
                let kept = Kept::new(connection, n, &lane.open);
                if lane.reached() {
                    shared.ports.handover.reopen(&route.name);
                    events::lane_reopened(&route.name);
                }
                return Ok(kept);
            }
            Err(error) => result = Some(error),
        }
    }
    Err(result.expect("carry() dials only from a host that there is"))
}

/// No host could be reached: the answer is shared, and the lane backs off.
async fn unreachable(lane: &Lane, shared: &Shared, leg: OwnedLeg, error: DialError, began: Duration, started: Started) {
    let route = &lane.route.name;
    let (legs, wait) = match lane.unreachable(leg, began, shared.monotonic()) {
        Unreachable::PutBack => return,
        Unreachable::Shared { legs, wait } => (legs, wait),
    };
    let said = Said { verdict: error.verdict, peer: error.peer, local: error.local, dsn: false };
    if let Some(wait) = wait {
        // What is accepted from now on stays in the store, ownerless, until a dial succeeds.
        let (words, leg) = (outcome::words(&said.verdict), &legs[0]);
        let why = scrub(&words, &leg.target, &leg.alias);
        shared.ports.handover.back_off(route, Trouble { until: shared.now().after(wait), why });
        events::lane_backed_off(route, legs.len(), wait, &words, &leg.target, &leg.alias);
    }
    let mut settlements = Vec::with_capacity(legs.len());
    for leg in &legs {
        let mut settlement = conclude(shared, leg, &said, started);
        notify::tell(shared, leg, &said.verdict, said.answers_for(leg), &mut settlement).await;
        settlements.push(settlement);
    }
    finish(lane, shared, &legs, settlements).await;
}

/// Settles legs of the lane, and has them looked for when they are due again.
async fn finish(lane: &Lane, shared: &Shared, legs: &[OwnedLeg], settlements: Vec<Settlement>) {
    let due = settlements.iter().filter_map(|settlement| settlement.due).min();
    settle(shared, &lane.route.name, legs, settlements, || lane.is_draining()).await;
    if let Some(due) = due {
        lane.look_by(due);
    }
}

/// When an attempt began.
#[derive(Clone, Copy)]
struct Started {
    wall: Timestamp,
    monotonic: Duration,
}

/// Turns what was said into what the ledger records, and tells the log.
fn conclude(shared: &Shared, leg: &OwnedLeg, said: &Said, started: Started) -> Settlement {
    let now = shared.now();
    let duration = shared.monotonic().saturating_sub(started.monotonic);
    let attempts = leg.attempts.saturating_add(1);
    let due = schedule::next(&shared.settings.retry, attempts, now, shared.ports.chance.jitter());
    let too_old = schedule::expired(leg.received, now, shared.settings.expire);
    let expiry = if too_old && shared.may_expire() { Expiry::Reached } else { Expiry::Ahead };
    let refused = match bounce::told(&leg.notices, bounce::Event::Failed) {
        bounce::Told::Nobody => Refused::Waits,
        bounce::Told::Sender(_) | bounce::Told::Admin { .. } | bounce::Told::Suppressed => Refused::Ends,
    };
    let (state, reason, wait) = said.outcome().state(expiry, due.since(now), refused);
    let (words, result) = (outcome::words(&said.verdict), outcome::result(&said.verdict));

    events::attempt_ended(events::AttemptEnded {
        leg: &leg.id,
        route: &leg.route,
        alias: &leg.alias,
        target_name: leg.target_name.as_deref(),
        target: &leg.target,
        peer: &said.peer,
        stage: said.verdict.stage.as_str(),
        result,
        reply: &words,
        attempt: attempts,
        duration,
        state: state.as_str(),
        reason: reason.as_str(),
    });
    if state == State::Delivered {
        events::leg_delivered(&leg.route, now.since(leg.received));
    }
    let detail = if state == State::Delivered { String::new() } else { words.clone() };
    let attempt = Attempt {
        started: started.wall,
        duration,
        host: said.peer.clone(),
        stage: said.verdict.stage.as_str(),
        result,
        reply: words,
    };
    let due = wait.map(|wait| now.after(wait));
    Settlement {
        leg: leg.id,
        epoch: leg.epoch,
        at: now,
        state,
        reason,
        detail,
        due,
        attempt: Some(attempt),
        dsn: None,
        follow_ups: Vec::new(),
    }
}

/// Writes what became of `legs`, a settlement each in their order. A store in trouble is asked again until it answers,
/// closes, or `give_up`: the worker takes no other leg meanwhile, and a leg that stays unsettled is freed by the next
/// start.
pub(super) async fn settle(
    shared: &Shared,
    route: &str,
    legs: &[OwnedLeg],
    settlements: Vec<Settlement>,
    give_up: impl Fn() -> bool,
) {
    if settlements.is_empty() {
        return;
    }
    let mut wait = SETTLE_WAIT_MIN;
    loop {
        match shared.ports.store.settle(settlements.clone()).await {
            Ok(answers) => {
                for ((leg, settlement), answer) in legs.iter().zip(&settlements).zip(answers) {
                    match answer {
                        Settled::Done => note_settled(route, leg, settlement),
                        Settled::NotOurs => events::settlement_not_ours(&settlement.leg, route),
                    }
                }
                return;
            }
            Err(error) => {
                events::outbound_store_failed(route, "settle", &error);
                let closed = match error {
                    StoreError::Closed => true,
                    StoreError::Full | StoreError::Write(_) | StoreError::Read(_) | StoreError::Damaged(..) => false,
                };
                if closed || give_up() {
                    return;
                }
            }
        }
        sleep(wait).await;
        wait = (wait * 2).min(SETTLE_WAIT_MAX);
    }
}

fn note_settled(route: &str, leg: &OwnedLeg, settlement: &Settlement) {
    let (state, reason) = (settlement.state, settlement.reason.as_str());
    events::leg_entered(route, state.as_str(), reason);
    for follow_up in &settlement.follow_ups {
        if let FollowUp::Message(_, legs) = follow_up {
            legs.iter().for_each(|leg| events::leg_entered(&leg.route, leg.state.as_str(), leg.reason.as_str()));
        }
    }
    if state == State::Held {
        events::leg_held(&leg.id, route, reason, &settlement.detail, &leg.target, &leg.alias);
    }
}

/// A disk that cannot be read now may be read in a minute; EMFILE is the commonest cause.
const UNREAD_WAIT: Duration = Duration::from_secs(60);
const SETTLE_WAIT_MIN: Duration = Duration::from_secs(1);
const SETTLE_WAIT_MAX: Duration = Duration::from_secs(30);
