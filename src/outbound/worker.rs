//! A worker: takes a leg, relays it, settles it, takes the next.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use crate::bounce;
use crate::clock::Timestamp;
use crate::contain::{contain, trip};
use crate::events;
use crate::id::LegId;
use crate::outbound::divert::{divert, divert_overdue};
use crate::outbound::holding::{CONFIGURATION_WAIT, hold};
use crate::outbound::lane::{Flight, Lane, Seat, Take, Unreachable};
use crate::outbound::standing::{self, backed_off, reopened};
use crate::outbound::{Shared, Ways, hosts, notify, pace};
use crate::queue::online::Why;
use crate::queue::{
    Attempt, Errand, FollowUp, GivenBack, OwnedLeg, Reason, Settled, Settlement, State, StoreError, schedule,
};
use crate::relay::attempt::{Ended, attempt};
use crate::relay::breaker::Health;
use crate::relay::dial::{DialError, Security};
use crate::relay::lookup::Unresolved;
use crate::relay::mx::NoHost;
use crate::relay::outcome::{self, Expiry, Outcome, Refused, Us};
use crate::relay::pool::{Kept, SESSION_IDLE_MAX};
use crate::relay::{Demand, Host, Route, TlsMode};
use crate::scrub::scrub;
use crate::smtp::client::{Answer, Reuse, Stage, TlsLack, Verdict};

/// Works until there is nothing to do for a while.
pub(super) async fn work(lane: Arc<Lane>, shared: Arc<Shared>) {
    let seat = Seat(&lane);
    let mut kept = None;
    while let Some(leg) = next_leg(&lane, &shared, &mut kept).await {
        let flight = Flight::of(&lane, leg.id);
        let (id, epoch) = (leg.id, leg.epoch);
        if contain("worker", relay(&lane, &shared, leg, &mut kept)).await.is_err() {
            // The session is in whatever state the panic left it in.
            kept = None;
            hold_faulted(&lane, &shared, id, epoch).await;
        }
        flight.land();
        if let Some(spent) = kept.take_if(|kept| kept.is_spent()) {
            spent.quit(&shared.ways().settings.timeouts).await;
        }
    }
    drop(seat);
    if let Some(kept) = kept {
        kept.quit(&shared.ways().settings.timeouts).await;
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
    trip("worker");
    if let Some(waits) = pace::hold_back(shared, &lane.route, &leg).await {
        return finish(lane, shared, std::slice::from_ref(&leg), vec![waits]).await;
    }
    let limit = lane.route.terms(leg.target.domain()).message_size.value.filter(|limit| leg.size() > *limit);
    let carried = match limit {
        Some(limit) => Carried::Attempted(Said::too_large(limit)),
        None => carry(lane, shared, &leg, kept).await,
    };
    match carried {
        Carried::Attempted(said) => {
            trip("worker-sent");
            let health = said.health();
            standing::attempted(lane, shared, &leg, (health, &said.verdict), started.monotonic).await;
            let mut settlement = concluded(shared, &leg, &said, started);
            notify::tell(shared, &leg, &said.verdict, said.answers_for(&leg), &mut settlement).await;
            finish(lane, shared, std::slice::from_ref(&leg), vec![settlement]).await;
        }
        Carried::Unreachable { error, began } => {
            unreachable(lane, shared, leg, error, began, started).await;
        }
        Carried::NoHost(why) => {
            let said = Said::no_host(lane, why);
            let mut settlement = concluded(shared, &leg, &said, started);
            notify::tell(shared, &leg, &said.verdict, said.answers_for(&leg), &mut settlement).await;
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
            lane.desk.look_by(due);
        }
    }
}

/// A panic of ours ended the attempt, so what made it may make it again, and the remote may have taken the message: the
/// leg waits an hour and is seen. Where even this cannot be written, the feeder gives it back.
async fn hold_faulted(lane: &Lane, shared: &Shared, leg: LegId, epoch: u64) {
    let now = shared.now();
    let due = now.after(CONFIGURATION_WAIT);
    let settlement = Settlement {
        leg,
        epoch,
        at: now,
        state: State::Held,
        reason: Reason::Lost,
        detail: FAULT.to_owned(),
        due: Some(due),
        attempt: None,
        dsn: None,
        follow_ups: Vec::new(),
    };
    match shared.ports.store.settle(vec![settlement]).await {
        Ok(answers) if answers == [Settled::Done] => {
            events::leg_faulted(&leg, &lane.route.name, State::Held.as_str(), Reason::Lost.as_str());
            lane.desk.look_by(due);
        }
        // It was settled before the panic.
        Ok(_) => {}
        Err(error) => {
            events::outbound_store_failed(&lane.route.name, "settle", &error);
            lane.add_orphan(leg);
        }
    }
}

/// What became of carrying a leg to the lane's hosts.
enum Carried {
    Attempted(Said),
    /// No host of the lane gave us a session; the dialling began at `began`.
    Unreachable {
        error: DialError,
        began: Duration,
    },
    /// There is none.
    NoHost(NoHost),
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
    /// DNS knows no host for us, which was an attempt: the leg ends by one when it is too old, as by any other.
    no_host: Option<Outcome>,
}

impl Said {
    /// What was asked about notifications was passed on to it.
    fn answers_for(&self, leg: &OwnedLeg) -> bool {
        self.dsn && leg.keeps_recipient()
    }

    /// The route, or the target's profile, says that so much would be refused: nobody was asked.
    fn too_large(limit: u64) -> Said {
        let verdict = Verdict { stage: Stage::Mail, answer: Answer::TooLarge { limit } };
        Said { verdict, peer: String::new(), local: None, dsn: false, no_host: None }
    }

    /// What a way out lacks that REQUIRETLS needs. It concerns this leg alone.
    fn without_tls(peer: String, local: Option<IpAddr>, lack: TlsLack) -> Said {
        Said {
            verdict: Verdict { stage: Stage::Tls, answer: Answer::RequireTls(lack) },
            peer,
            local,
            dsn: false,
            no_host: None,
        }
    }

    /// A dial that failed for what only this leg demanded: others may do with less, so nobody else is to wait for it.
    fn of_demand(error: &DialError, demand: Demand) -> Option<Said> {
        let lack = match (demand, &error.verdict.answer) {
            (Demand::Usual, _) => return None,
            (Demand::VerifiedTls, Answer::Tls(why)) => TlsLack::Session(why.clone()),
            (Demand::VerifiedTls, Answer::Timeout) if error.verdict.stage == Stage::Tls => {
                TlsLack::Session(outcome::words(&error.verdict))
            }
            (Demand::VerifiedTls, Answer::RequireTls(lack)) => lack.clone(),
            (Demand::VerifiedTls, _) => return None,
        };
        Some(Said::without_tls(error.peer.clone(), error.local, lack))
    }

    /// The next host may take what this one does not: it is at fault, or keeps no promise of TLS (RFC 8689 §4.2.1).
    fn asks_for_next_host(&self) -> bool {
        let lacks_tls = matches!(self.verdict.answer, Answer::RequireTls(TlsLack::Extension));
        lacks_tls || self.outcome() == Outcome::RouteFault
    }

    fn no_host(lane: &Lane, why: NoHost) -> Said {
        let outcome = Outcome::Hold(why.reason(), CONFIGURATION_WAIT);
        let peer = lane.domain().map_or(String::new(), ToString::to_string);
        let verdict = Verdict { stage: Stage::Connect, answer: Answer::Connect(why.to_string()) };
        Said { verdict, peer, local: None, dsn: false, no_host: Some(outcome) }
    }

    fn health(&self) -> Health {
        outcome::health(&self.verdict, Us { address: self.local })
    }

    fn outcome(&self) -> Outcome {
        if let Some(outcome) = &self.no_host {
            return outcome.clone();
        }
        outcome::read(&self.verdict, Us { address: self.local })
    }
}

async fn carry(lane: &Lane, shared: &Shared, leg: &OwnedLeg, kept: &mut Option<Kept>) -> Carried {
    let demand = if leg.needs_tls() { Demand::VerifiedTls } else { Demand::Usual };
    if demand == Demand::VerifiedTls {
        // RFC 8689 §4.2.1: a name that DNS gave must be vouched for, by DNSSEC or MTA-STS, and we know neither.
        if let Some(domain) = lane.domain() {
            return Carried::Attempted(Said::without_tls(domain.to_string(), None, TlsLack::Host));
        }
        if let Some(unfit) = kept.take_if(|kept| !kept.connection.keeps_to_tls()) {
            unfit.quit(&shared.ways().settings.timeouts).await;
        }
    }
    // What a host that spoke to us and found fault has said.
    let mut fault = None;
    loop {
        let mut session = match kept.take() {
            Some(session) => session,
            None => {
                let began = shared.monotonic();
                match open(lane, shared, fault.as_ref(), demand).await {
                    Ok(session) => session,
                    Err(NoSession::NoHost(why)) => return Carried::NoHost(why),
                    // Nothing that the remote could mend.
                    Err(NoSession::Failed(_)) if out_of_descriptors() => {
                        return Carried::Unread(StoreError::Read("too many open files".into()));
                    }
                    Err(NoSession::Failed(error)) => {
                        // It says more than one that is away.
                        let said = fault.map(|Fault { said, .. }| said).or_else(|| Said::of_demand(&error, demand));
                        return said.map_or(Carried::Unreachable { error, began }, Carried::Attempted);
                    }
                }
            }
        };
        let (verdict, reuse) = match attempt(&mut session.connection, leg, &shared.ways().settings.timeouts).await {
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
        let said = Said { verdict, peer: connection.peer.clone(), local: connection.local, dsn, no_host: None };
        let next = session.host + 1;
        if said.asks_for_next_host() && next < session.hosts.len() {
            fault = Some(Fault { said, hosts: Arc::clone(&session.hosts), next });
            session.quit(&shared.ways().settings.timeouts).await;
            continue;
        }
        // Others shall not be bound to the host that met a stranger's demand.
        if demand == Demand::VerifiedTls && lane.route.tls != TlsMode::Verify && reuse == Reuse::Keep {
            session.quit(&shared.ways().settings.timeouts).await;
        } else {
            part(kept, session, reuse);
        }
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

/// What a host said against us rather than against the leg; those from the `next`-th on have not been asked.
struct Fault {
    said: Said,
    hosts: Arc<[Host]>,
    next: usize,
}

/// Why there is no session.
enum NoSession {
    /// For good.
    NoHost(NoHost),
    /// For now.
    Failed(DialError),
}

/// A session with the lane's first host that gives one, or with the first behind the one that found fault.
async fn open(lane: &Lane, shared: &Shared, fault: Option<&Fault>, demand: Demand) -> Result<Kept, NoSession> {
    let (hosts, from) = match fault {
        Some(Fault { hosts, next, .. }) => (Arc::clone(hosts), *next),
        None => match hosts::find(lane, shared).await {
            Ok(hosts) => (hosts, 0),
            Err(Unresolved::None(why)) => return Err(NoSession::NoHost(why)),
            Err(later @ Unresolved::Later) => {
                let peer = lane.domain().map_or(String::new(), ToString::to_string);
                let verdict = Verdict { stage: Stage::Connect, answer: Answer::Connect(later.to_string()) };
                return Err(NoSession::Failed(DialError { peer, local: None, verdict }));
            }
        },
    };
    dial(lane, shared, hosts, from, demand).await.map_err(NoSession::Failed)
}

/// A session with the first host, from the `from`-th on, that gives one; else the last host's error.
async fn dial(
    lane: &Lane,
    shared: &Shared,
    hosts: Arc<[Host]>,
    from: usize,
    demand: Demand,
) -> Result<Kept, DialError> {
    let ways = shared.ways();
    let mut result = None;
    for (n, host) in hosts.iter().enumerate().skip(from) {
        let Some(route) = route_of(lane, &ways, n) else { continue };
        let helo = route.helo.as_deref().unwrap_or(&ways.settings.hostname);
        match ways.dial.dial(route, host, helo, demand).await {
            Ok(connection) => {
                if let Security::ClearAfter(why) = &connection.security {
                    events::tls_given_up(&route.name, &connection.peer, why);
                }
                let kept = Kept::new(connection, Arc::clone(&hosts), n, &lane.open);
                if lane.reached() {
                    reopened(lane, shared);
                }
                return Ok(kept);
            }
            Err(error) => result = Some(error),
        }
    }
    Err(result.expect("`hosts` is never empty, and a fault that ends them is the answer"))
}

/// By which route the `n`-th host is spoken to: the lane's own, or the one that stands in behind it. `None`: a reload has
/// just taken that away.
fn route_of<'a>(lane: &'a Lane, ways: &'a Ways, n: usize) -> Option<&'a Arc<Route>> {
    match (lane.domain(), &lane.route.fallback.route) {
        (None, Some(other)) if n >= lane.route.hosts.len() => ways.routes.get(other),
        (None, None | Some(_)) | (Some(_), _) => Some(&lane.route),
    }
}

/// No host could be reached: the answer is shared, and the lane backs off.
async fn unreachable(lane: &Lane, shared: &Shared, leg: OwnedLeg, error: DialError, began: Duration, started: Started) {
    let (legs, wait) = match lane.unreachable(leg, began, shared.monotonic()) {
        Unreachable::PutBack => return,
        Unreachable::Shared { legs, wait } => (legs, wait),
    };
    let said = Said { verdict: error.verdict, peer: error.peer, local: error.local, dsn: false, no_host: None };
    if let Some(wait) = wait {
        backed_off(lane, shared, &legs, wait, &outcome::words(&said.verdict));
    }
    let mut settlements = Vec::with_capacity(legs.len());
    for leg in &legs {
        let mut settlement = concluded(shared, leg, &said, started);
        notify::tell(shared, leg, &said.verdict, said.answers_for(leg), &mut settlement).await;
        settlements.push(settlement);
    }
    let why = scrub(&outcome::words(&said.verdict), &legs[0].target, &legs[0].alias);
    finish(lane, shared, &legs, settlements).await;
    if let Some(wait) = wait {
        divert_overdue(lane, shared, wait, &why).await;
    }
}

/// Settles legs of the lane, and has them looked for when they are due again.
async fn finish(lane: &Lane, shared: &Shared, legs: &[OwnedLeg], settlements: Vec<Settlement>) {
    let due = settlements.iter().filter_map(|settlement| settlement.due).min();
    settle(shared, &lane.route.name, legs, settlements, || lane.is_draining()).await;
    if let Some(due) = due {
        lane.desk.look_by(due);
    }
}

/// When an attempt began.
#[derive(Clone, Copy)]
struct Started {
    wall: Timestamp,
    monotonic: Duration,
}

/// What the ledger records of an attempt, and where the leg goes on to if not to its target.
fn concluded(shared: &Shared, leg: &OwnedLeg, said: &Said, started: Started) -> Settlement {
    let mut settlement = conclude(shared, leg, said, started);
    divert(shared, leg, &said.outcome(), &mut settlement);
    settlement
}

/// Turns what was said into what the ledger records, and tells the log.
fn conclude(shared: &Shared, leg: &OwnedLeg, said: &Said, started: Started) -> Settlement {
    let now = shared.now();
    let duration = shared.monotonic().saturating_sub(started.monotonic);
    let attempts = leg.attempts.saturating_add(1);
    let ways = shared.ways();
    let due = schedule::next(&ways.settings.retry, attempts, now, shared.ports.chance.jitter());
    let too_old = schedule::expired(leg.received, now, ways.settings.expire);
    let expiry = if too_old && shared.may_expire() { Expiry::Reached } else { Expiry::Ahead };
    let refused = match bounce::told(&leg.notices, bounce::Event::Failed) {
        bounce::Told::Nobody => Refused::Waits,
        bounce::Told::Sender(_) | bounce::Told::Admin { .. } | bounce::Told::Suppressed => Refused::Ends,
    };
    let outcome = if leg.keeps_recipient() { said.outcome().of_kept_recipient() } else { said.outcome() };
    let (state, reason, wait) = match leg.errand {
        Errand::Deliver if is_told_online(leg, &outcome) => (State::Discarded, Reason::RemoteContent, None),
        Errand::Deliver => outcome.state(expiry, due.since(now), refused),
        Errand::AskRcpt => (State::Discarded, Reason::Probe, None),
    };
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

/// Whether a client waits and is told himself what the target holds against his message: then it is no longer ours.
fn is_told_online(leg: &OwnedLeg, outcome: &Outcome) -> bool {
    let why = match outcome {
        Outcome::Quarantine(Reason::RemoteContent) => Why::Content,
        Outcome::Bounce(Reason::TooLarge) => Why::TooLarge,
        Outcome::Delivered
        | Outcome::Retry(_)
        | Outcome::Hold(..)
        | Outcome::Quarantine(_)
        | Outcome::Bounce(_)
        | Outcome::RouteFault => return false,
    };
    leg.online.as_ref().is_some_and(|ticket| ticket.claim(why))
}

fn note_settled(route: &str, leg: &OwnedLeg, settlement: &Settlement) {
    if let Some(ticket) = &leg.online {
        ticket.settled();
    }
    let (state, reason) = (settlement.state, settlement.reason.as_str());
    let diverted = settlement.follow_ups.iter().find_map(|follow_up| match follow_up {
        FollowUp::Redirect(to) => Some(to),
        FollowUp::Message(..) | FollowUp::Leg(_) => None,
    });
    if let Some(to) = diverted {
        events::leg_diverted(&leg.id, route, &to.route, to.target_name.as_deref(), &to.target, reason);
    }
    events::leg_entered(diverted.map_or(route, |to| &to.route), state.as_str(), reason);
    for follow_up in &settlement.follow_ups {
        if let FollowUp::Message(_, legs) = follow_up {
            legs.iter().for_each(|leg| events::leg_entered(&leg.route, leg.state.as_str(), leg.reason.as_str()));
        }
    }
    if state == State::Held {
        events::leg_held(&leg.id, route, reason, &settlement.detail, &leg.target, &leg.alias);
    }
}

/// Whether this process can open nothing more just now.
fn out_of_descriptors() -> bool {
    use rustix::io::Errno;
    let error = std::fs::File::open("/dev/null").err().and_then(|error| error.raw_os_error());
    matches!(error.map(Errno::from_raw_os_error), Some(Errno::MFILE | Errno::NFILE))
}

const FAULT: &str = "a fault of ours ended the attempt; the remote may have taken the message";
/// What cannot be opened or read now may be in a moment; EMFILE is the commonest cause, and it passes.
const UNREAD_WAIT: Duration = Duration::from_secs(10);
const SETTLE_WAIT_MIN: Duration = Duration::from_secs(1);
const SETTLE_WAIT_MAX: Duration = Duration::from_secs(30);
