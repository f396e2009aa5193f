//! Legs that go on to another target: because an attempt failed too long after their reception, because of what was answered, or because their
//! route is left alone for so long that nobody will try them in time.

use std::time::Duration;

use crate::address::{Mailbox, ReversePath};
use crate::clock::Timestamp;
use crate::events;
use crate::id::LegId;
use crate::outbound::lane::Lane;
use crate::outbound::worker::settle;
use crate::outbound::{Shared, Ways};
use crate::queue::{Authorship, FollowUp, GivenBack, NoticeTo, OwnedLeg, Reason, Redirect, Settlement, State};
use crate::relay::fallback::Diversion;
use crate::relay::outcome::Outcome;
use crate::srs::{Proof, Rewritten};
use crate::stamp::{self, Copy, Forwarding};

/// Turns a leg whose attempt ended so to the fallback target of its route, where it has one and this is the time.
pub(super) fn divert(shared: &Shared, leg: &OwnedLeg, outcome: &Outcome, settlement: &mut Settlement) {
    let ways = shared.ways();
    let Some(to) = ways.routes.get(&leg.route).and_then(|route| route.fallback.to.as_ref()) else { return };
    if !to.takes(leg, outcome, settlement.at.since(leg.received)) {
        return;
    }
    settlement.reason = match outcome {
        Outcome::Retry(reason) | Outcome::Hold(reason, _) | Outcome::Quarantine(reason) | Outcome::Bounce(reason) => {
            *reason
        }
        Outcome::RouteFault | Outcome::Delivered => Reason::Route,
    };
    (settlement.state, settlement.due) = (State::Queued, Some(settlement.at));
    settlement.follow_ups.push(redirect(&ways, leg, to, settlement.at));
}

/// The route is left alone for `wait` more: what waits in the store and is too old goes on untried. What is younger is due
/// again when the wait is over. Of a long queue each call looks at a part, oldest due first.
pub(super) async fn divert_overdue(lane: &Lane, shared: &Shared, wait: Duration, why: &str) {
    let ways = shared.ways();
    let route = &lane.route.name;
    let Some(to) = ways.routes.get(route).and_then(|route| route.fallback.to.as_ref()) else { return };
    for _ in 0..ROUNDS_MAX {
        // A domain's lane would be given other domains' legs.
        if lane.is_draining() || lane.domain().is_some() {
            return;
        }
        let now = shared.now();
        let legs = match shared.ports.store.claim(route, now, BATCH).await {
            Ok(legs) => legs,
            Err(error) => return events::outbound_store_failed(route, "claim", &error),
        };
        let all = legs.len() < BATCH;
        let (over, young): (Vec<OwnedLeg>, Vec<OwnedLeg>) =
            legs.into_iter().partition(|leg| to.takes_untried(leg, now.since(leg.received)));
        let young: Vec<LegId> = young.iter().map(|leg| leg.id).collect();
        shared.release(route, young, now.after(wait), GivenBack::Unattempted).await;
        let settlements: Vec<Settlement> = over.iter().map(|leg| untried(&ways, leg, to, now, why)).collect();
        settle(shared, route, &over, settlements, || lane.is_draining()).await;
        if all {
            return;
        }
    }
}

fn untried(ways: &Ways, leg: &OwnedLeg, to: &Diversion, now: Timestamp, why: &str) -> Settlement {
    Settlement {
        leg: leg.id,
        epoch: leg.epoch,
        at: now,
        state: State::Queued,
        reason: Reason::Route,
        detail: format!("its route was left alone: {why}"),
        due: Some(now),
        attempt: None,
        dsn: None,
        follow_ups: vec![redirect(ways, leg, to, now)],
    }
}

fn redirect(ways: &Ways, leg: &OwnedLeg, to: &Diversion, now: Timestamp) -> FollowUp {
    let (sender, authorship) = reverse_path(ways, leg, &to.target, now);
    // The fields that name the alias are there already, but where the recipient was unchanged.
    let prefix = match Mailbox::parse(&leg.alias) {
        Ok(alias) if leg.keeps_recipient() => {
            let forwarding = Forwarding::Untold;
            let (alias, target) = (&alias, &to.target);
            Some(Copy { alias, target, forwarding, spam: "", mark: "", seal: "", withheld: &[] }.prefix())
        }
        // Those that name the target must not tell it to another.
        Ok(alias) => Some(stamp::readdressed(&leg.prefix, &alias, &to.target)),
        Err(_) => None,
    };
    let (target, target_name, route) = (to.target.clone(), to.target_name.clone(), to.route.clone());
    FollowUp::Redirect(Box::new(Redirect { target, target_name, route, sender, authorship, prefix }))
}

/// A path that was rewritten for the first target leads back as well from the next; a sender's own is rewritten where
/// the mail leaves our domains only now.
fn reverse_path(ways: &Ways, leg: &OwnedLeg, target: &Mailbox, now: Timestamp) -> (ReversePath, Option<Authorship>) {
    let rewritten = ways.srs.as_ref().and_then(|srs| srs.reverse_path(&leg.sender, target, now, |d| (ways.is_ours)(d)));
    let Some(Rewritten { path, author }) = rewritten else { return (leg.sender.clone(), None) };
    // What else is known of who sent it stands in the ledger, not in the leg: in doubt what comes back waits.
    let his = leg.sender.mailbox().is_some_and(|mailbox| mailbox.domain() == author.sender.domain());
    let proof = match &leg.notices.to {
        NoticeTo::Sender(_) if his => Proof::Proven,
        NoticeTo::Sender(_) | NoticeTo::Nobody | NoticeTo::Admin { .. } | NoticeTo::Suppressed => Proof::Unproven,
    };
    (ReversePath::Mailbox(path), Some(Authorship { author, proof }))
}

/// Legs in one transaction.
const BATCH: usize = 500;
/// A long queue is looked through in parts, so that the store has time for others.
const ROUNDS_MAX: usize = 4;
