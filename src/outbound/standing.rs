//! Whether a destination is left alone: what the breaker says goes to the hand-over, the log and the store.

use std::time::Duration;

use crate::events;
use crate::id::LegId;
use crate::outbound::Shared;
use crate::outbound::divert::divert_overdue;
use crate::outbound::lane::Lane;
use crate::queue::handover::Trouble;
use crate::queue::{GivenBack, OwnedLeg};
use crate::relay::breaker::{Change, Health};
use crate::relay::outcome;
use crate::scrub::scrub;
use crate::smtp::client::Verdict;

/// An attempt for `leg`, begun at `began`, has ended with a verdict and says so much of its destination. Where the
/// breaker opens, the legs that wait in memory go back to the store, untried.
pub(super) async fn attempted(
    lane: &Lane,
    shared: &Shared,
    leg: &OwnedLeg,
    (health, verdict): (Health, &Verdict),
    began: Duration,
) {
    let (change, parked) = lane.ended(health, began, shared.monotonic());
    let wait = match change {
        Change::Nothing => return,
        Change::Closed => return reopened(lane, shared),
        Change::Opened { wait } => wait,
    };
    let words = outcome::words(verdict);
    let parked: Vec<LegId> = parked.iter().map(|leg| leg.id).collect();
    left_alone(lane, shared, leg, &Alone { cause: Cause::Failing, legs: parked.len(), wait, words: &words });
    let now = shared.now();
    // A route's one lane claims nothing before; that of a domain is offered what is due, whatever it may take.
    let due = if lane.domain().is_some() { now.after(wait) } else { now };
    shared.release(&lane.route.name, parked, due, GivenBack::Unattempted).await;
    divert_overdue(lane, shared, wait, &scrub(&words, &leg.target, &leg.alias)).await;
    lane.desk.look_by(due);
}

/// No host was reached. `legs` share the answer; the first is the one that was dialled for.
pub(super) fn backed_off(lane: &Lane, shared: &Shared, legs: &[OwnedLeg], wait: Duration, words: &str) {
    left_alone(lane, shared, &legs[0], &Alone { cause: Cause::Unreachable, legs: legs.len(), wait, words });
}

/// What opened the breaker.
#[derive(Clone, Copy)]
enum Cause {
    Unreachable,
    Failing,
}

struct Alone<'a> {
    cause: Cause,
    legs: usize,
    wait: Duration,
    /// What the remote said, as it is.
    words: &'a str,
}

fn left_alone(lane: &Lane, shared: &Shared, leg: &OwnedLeg, alone: &Alone<'_>) {
    // What was found out about a route as it was says nothing of the route as it is.
    if lane.is_draining() {
        return;
    }
    let (route, wait) = (&lane.route.name, alone.wait);
    let why = match alone.cause {
        Cause::Unreachable => scrub(alone.words, &leg.target, &leg.alias),
        Cause::Failing => format!("most attempts fail: {}", scrub(alone.words, &leg.target, &leg.alias)),
    };
    let trouble = Trouble { until: shared.now().after(wait), why };
    let cause = match alone.cause {
        Cause::Unreachable => "unreachable",
        Cause::Failing => "failing",
    };
    match lane.domain() {
        // What is accepted from now on stays in the store, ownerless, until the breaker closes.
        None => {
            events::lane_backed_off(route, cause, alone.legs, wait, &trouble.why);
            shared.ports.handover.back_off(route, trouble);
            // It may have been retired at this very moment, and its successor opened before we closed it.
            if lane.is_draining() {
                shared.ports.handover.reopen(route);
            }
        }
        // The other domains' mail goes on being handed over.
        Some(domain) => {
            events::domain_backed_off(route, domain.as_str(), cause, alone.legs, wait, &trouble.why);
            shared.ports.handover.domain_backs_off(route, domain.as_str(), trouble);
        }
    }
}

/// A destination that was left alone is well again.
pub(super) fn reopened(lane: &Lane, shared: &Shared) {
    if lane.is_draining() {
        return;
    }
    let route = &lane.route.name;
    match lane.domain() {
        None => {
            shared.ports.handover.reopen(route);
            events::lane_reopened(route);
        }
        Some(domain) => {
            shared.ports.handover.domain_reopened(route, domain.as_str());
            events::domain_reopened(route, domain.as_str());
        }
    }
}
