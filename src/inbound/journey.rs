//! From the final dot to the queue: what every message goes through, in order.
//!
//! Each step takes values and returns a value; only here are they put in sequence. The whole is one answer: SMTP
//! has a single reply for all recipients after DATA, so what the rules say of each must be brought together first.

use std::collections::HashSet;
use std::time::Duration;

use super::checks::Checked;
use super::planned::{Planned, combine};
use super::score::Scored;
use super::{Inbound, Ruling, duplicates, online};
use crate::address::Mailbox;
use crate::bounce::{self, Admin, Authentication};
use crate::clock::Timestamp;
use crate::envelope::{Client, Envelope};
use crate::events;
use crate::id::MessageId;
use crate::message::reading::Reading;
use crate::message::{Head, Header};
use crate::queue::handover::Slot;
use crate::queue::online::Ticket;
use crate::queue::{
    BodyWriter, DedupeKey, Errand, NewLeg, NewMessage, Notices, Queued, Reason, State, StoreError, StoredBody,
};
use crate::reply::{self, Refusal};
use crate::rules::{Decision, Fact, Facts};
use crate::srs::Original;
use crate::stamp;

/// A message whose real end was seen.
pub(super) struct Arrived<'a> {
    pub listener: &'a str,
    pub client: &'a Client,
    pub envelope: Envelope,
    pub head: &'a Head,
    pub at: Timestamp,
}

impl Inbound {
    /// Takes a whole message through checks and rules into the queue. The proof is what a 250 is made of.
    pub(super) async fn last_dot(
        &self,
        ruling: &Ruling,
        message: Arrived<'_>,
        body: BodyWriter,
    ) -> Result<Queued, Refusal> {
        let started = self.clock.monotonic();
        let header = Header::index(message.head.as_bytes());
        if header.hops() > HOPS_MAX {
            events::loop_seen("hops");
            return Err(Refusal::new(reply::TOO_MANY_HOPS));
        }

        let body = body.finish().await.map_err(|error| store_refusal(&error))?;
        // A probe is ours: who sent it is known, and what a check would say of it says nothing of anybody's mail.
        let probe = self.probes.errand(&header.message_id);
        let id = self.ids.next(message.at, &self.chance);
        let (checked, scored) = match probe {
            Some(_) => (Checked::unchecked(), Scored::none()),
            None => {
                let checked = self.check(ruling, &message, &header, &body).await?;
                let scored = self.score(ruling, &message, &header, &body, &checked, id).await?;
                (checked, scored)
            }
        };

        let reading = self.read_for_rules(ruling, &message, &body).await?;
        let found = (&checked, &scored, &reading);
        let (mut planned, notes) = self.plan(ruling, &message, &header, found, (body.len(), probe.is_some())).await?;
        self.seal(ruling, &message, &header, &body, (&checked, id), &mut planned).await?;

        let record = record(ruling, &message, &header, &body, (&checked, &scored, &reading, &notes), id);
        let body_hash = body_hash(ruling, &planned, &message, &body).await?;
        let mut legs = Vec::with_capacity(planned.len());
        for (n, plan) in (1u16..).zip(&mut planned) {
            let notices = notices(ruling, plan, &message.envelope, checked.authentication);
            let mut leg = new_leg(ruling, plan, n, &record, (&checked, &scored), notices.clone());
            let (common, head) = (record.prefix.len(), message.head.as_bytes().len());
            if let Some(why) = ruling.header_too_large(&plan.leg, &leg, common, head) {
                plan.quarantine(Reason::HeaderSize, &why);
                leg = new_leg(ruling, plan, n, &record, (&checked, &scored), notices);
            }
            leg.errand = probe.unwrap_or_default();
            leg.dedupe = body_hash.and_then(|body| dedupe(ruling, plan, &header.message_id, &body));
            legs.push(leg);
        }
        let slots = self.reserve(&mut legs).await;
        let (ticket, waiting) = self.online(ruling, &planned, checked.authentication, probe).unzip();
        let size = record.size;
        let mut queued = self.store.commit(record, legs).await.map_err(|error| store_refusal(&error))?;

        tell_at_risk(&queued, &planned);
        self.hand_over(&mut queued, slots, &planned, ticket);
        online::answer(waiting).await?;
        let took = self.clock.monotonic().saturating_sub(started);
        self.report(&message, (id, size, &header.message_id), &planned, took);
        Ok(queued)
    }

    /// What the rules ask for of the message; nothing where they ask for nothing.
    async fn read_for_rules(
        &self,
        ruling: &Ruling,
        message: &Arrived<'_>,
        body: &StoredBody,
    ) -> Result<Reading, Refusal> {
        let (wanted, head) = (ruling.rules.wanted(), message.head.as_bytes());
        if wanted.is_nothing() {
            return Ok(Reading::default());
        }
        if !wanted.needs_body() {
            return Ok(Reading::of(head, &[], body.len(), wanted));
        }
        let (_permit, octets) = self.whole(body).await?;
        let (head, size) = (head.to_vec(), body.len());
        // Fifty megabytes of archives take longer to decode than a session may be in another's way.
        let reading = tokio::task::spawn_blocking(move || Reading::of(&head, &octets, size, wanted)).await;
        reading.map_err(|_| Refusal::new(reply::LOCAL_ERROR))
    }

    /// Reserves the slots of the legs that can go at once, before the commit: a leg without one is committed ownerless and due.
    async fn reserve(&self, legs: &mut [NewLeg]) -> Vec<Option<Slot>> {
        let mut slots = Vec::with_capacity(legs.len());
        for leg in legs {
            let slot = match leg.state {
                State::Queued => self.handover.reserve_within(&leg.route, SLOT_PATIENCE).await,
                _ => None,
            };
            leg.handed_over = slot.is_some();
            slots.push(slot);
        }
        slots
    }

    /// The legs that the message of `size` octets will have, and what is worth knowing about them; or why nobody gets it.
    async fn plan(
        &self,
        ruling: &Ruling,
        message: &Arrived<'_>,
        header: &Header,
        (checked, scored, reading): (&Checked, &Scored, &Reading),
        (size, is_probe): (u64, bool),
    ) -> Result<(Vec<Planned>, Vec<String>), Refusal> {
        let originals = self.originals(ruling, message).await?;
        let mut decided = decide(ruling, message, (checked, scored, reading), &originals);
        ruling.turn_back(&mut decided, checked);
        tell_shadows(&decided);
        ruling.onboard(&mut decided, checked, message.at);
        let mut planned = combine(ruling, decided, scored)?;
        set_aside(ruling, checked, message.at, &mut planned)?;
        self.turn_from_mailhost(ruling, message.client.ip, &mut planned).await;
        self.pace_returns(ruling, message, &mut planned);
        let notes = ruling.suit(message, header, checked, &mut planned);
        if !is_probe {
            self.hold_loops(ruling, message, header, checked, &mut planned);
        }
        refuse_size(ruling, &planned, size)?;
        if planned.len() > ruling.legs_max {
            return Err(Refusal::new(reply::TOO_MANY_LEGS));
        }
        Ok((planned, notes))
    }

    /// Gives the legs that have a slot to their lanes, and wakes the lanes of those that have none.
    fn hand_over(
        &self,
        queued: &mut Queued,
        mut slots: Vec<Option<Slot>>,
        planned: &[Planned],
        mut ticket: Option<Ticket>,
    ) {
        let had_slot: Vec<bool> = slots.iter().map(Option::is_some).collect();
        for mut leg in queued.take_legs() {
            leg.online = ticket.take();
            if let Some(slot) = slots.get_mut(usize::from(leg.id.n) - 1).and_then(Option::take) {
                slot.fill(leg);
            }
        }
        for ((n, plan), had_slot) in (1u16..).zip(planned).zip(had_slot) {
            let duplicate = queued.duplicates().contains(&n);
            let (state, reason) =
                if duplicate { (State::Duplicate, Reason::Duplicate) } else { (plan.state, plan.reason) };
            events::leg_entered(&plan.leg.route, state.as_str(), reason.as_str());
            // A lane that had no room for the leg finds it in the store.
            if state == State::Queued && !had_slot {
                self.handover.wake(&plan.leg.route);
            }
        }
    }

    fn report(
        &self,
        message: &Arrived<'_>,
        (id, size, message_id): (MessageId, u64, &str),
        planned: &[Planned],
        took: Duration,
    ) {
        // Once for each recipient, however many legs it has; the log names each once.
        let mut hits = HashSet::new();
        let mut rules: Vec<&str> = Vec::new();
        for (plan, rule) in planned.iter().flat_map(|plan| plan.rules.iter().map(move |rule| (plan, rule.as_str()))) {
            if hits.insert((plan.alias.as_str(), rule)) {
                events::rule_hit(rule, message.at);
            }
            if !rules.contains(&rule) {
                rules.push(rule);
            }
        }
        events::message_accepted(&events::MessageAccepted {
            id: &id.to_string(),
            listener: message.listener,
            client: message.client.ip,
            helo: &message.client.helo,
            sender: message.envelope.sender.as_str(),
            recipients: &list(&message.envelope.recipients),
            message_id,
            size,
            legs: planned.len(),
            rules: &rules.join(", "),
            took,
        });
    }
}

/// What the rules are told about one recipient.
pub(super) fn facts<'a>(
    client: &'a Client,
    envelope: &'a Envelope,
    recipient: &'a Mailbox,
    at: Timestamp,
) -> Facts<'a> {
    let (client, helo, tls) = (Some(client.ip), Some(client.helo.as_str()), client.tls);
    Facts { client, helo, tls, ..Facts::of(recipient, &envelope.sender, at) }
}

/// The reply for a store that cannot: our trouble is never a 5xx.
pub(super) fn store_refusal(error: &StoreError) -> Refusal {
    Refusal::new(match error {
        StoreError::Full => reply::DISK_FULL,
        StoreError::Closed => reply::SHUTTING_DOWN,
        StoreError::Write(_) | StoreError::Read(_) | StoreError::Damaged(..) => reply::LOCAL_ERROR,
    })
}

/// Addresses as a log line shows them.
pub(super) fn list(recipients: &[Mailbox]) -> String {
    recipients.iter().map(Mailbox::as_str).collect::<Vec<_>>().join(", ")
}

/// What becomes of the message for each recipient. `originals` stand in their order.
fn decide(
    ruling: &Ruling,
    message: &Arrived<'_>,
    (checked, scored, reading): (&Checked, &Scored, &Reading),
    originals: &[Option<Original>],
) -> Vec<(Mailbox, Decision)> {
    let recipients = message.envelope.recipients.iter().zip(originals);
    recipients
        .map(|(recipient, original)| {
            let facts = Facts {
                auth: Fact::Known(checked.facts()),
                score: Fact::Known(scored.score()),
                message: Fact::Known(reading),
                ..facts(message.client, &message.envelope, recipient, message.at)
            };
            (recipient.clone(), ruling.decide(&facts, Fact::Known(original.as_ref()), message.at))
        })
        .collect()
}

fn record(
    ruling: &Ruling,
    message: &Arrived<'_>,
    header: &Header,
    body: &StoredBody,
    (checked, scored, reading, notes): (&Checked, &Scored, &Reading, &[String]),
    id: MessageId,
) -> NewMessage {
    let client = Client { ptr: checked.ptr.clone(), ..message.client.clone() };
    let envelope = &message.envelope;
    let hostname = &ruling.session.hostname;
    let made_id = made_message_id(ruling, checked, id);
    let made_field = made_id.as_ref().map_or_else(String::new, |made| format!("Message-ID: {made}\r\n"));
    let prefix = stamp::common_prefix(hostname, &client, envelope, &checked.field, &made_field, id, message.at);
    NewMessage {
        id,
        received: message.at,
        listener: message.listener.to_owned(),
        client: client.ip,
        protocol: client.protocol(envelope.smtputf8),
        ptr: client.ptr,
        helo: client.helo,
        sender: envelope.sender.clone(),
        body_type: envelope.body,
        smtputf8: envelope.smtputf8,
        require_tls: envelope.require_tls,
        size: body.len(),
        from: header.from.clone(),
        subject: header.subject.clone(),
        message_id: made_id.unwrap_or_else(|| header.message_id.clone()),
        prefix,
        facts: recorded_facts(ruling, message, (checked, scored, reading), notes),
        rules_hash: ruling.rules.hash().to_owned(),
        body: body.clone(),
    }
}

/// The Message-ID that is added.
pub(super) fn made_message_id(ruling: &Ruling, checked: &Checked, id: MessageId) -> Option<String> {
    checked.needs_message_id.then(|| stamp::made_message_id(&ruling.session.hostname, id))
}

/// What the rules saw, for `explain`, `diff` and `redecide`.
fn recorded_facts(
    ruling: &Ruling,
    message: &Arrived<'_>,
    (checked, scored, reading): (&Checked, &Scored, &Reading),
    notes: &[String],
) -> String {
    let recipients: Vec<&str> = message.envelope.recipients.iter().map(Mailbox::as_str).collect();
    let mut facts = serde_json::json!({
        "client": message.client.ip,
        "helo": message.client.helo,
        "sender": message.envelope.sender.to_string(),
        "recipients": recipients,
        "authenticated": checked.authentication == Authentication::Proven,
        "auth": checked.record(),
        "spam": scored.record(),
        "notes": notes,
    });
    if !ruling.rules.wanted().is_nothing() {
        facts["message"] = reading.record();
    }
    if !checked.withheld.is_empty() {
        facts["withheld"] = serde_json::json!(checked.withheld);
    }
    facts.to_string()
}

fn new_leg(
    ruling: &Ruling,
    plan: &Planned,
    n: u16,
    record: &NewMessage,
    (checked, scored): (&Checked, &Scored),
    notices: Notices,
) -> NewLeg {
    let (target, authentication) = (&plan.leg.target, checked.authentication);
    let (sender, authorship) = match ruling.is_to_mailhost(&plan.leg) {
        // People are told by it who wrote to them, and their host knows us.
        true => (record.sender.clone(), None),
        false => ruling.reverse_path(&record.sender, target, record.received, authentication, plan.state),
    };
    let copy = stamp::Copy {
        alias: &plan.alias,
        target,
        forwarding: ruling.forwarding(&plan.alias, plan.leg.kind, record.received),
        spam: scored.field().filter(|_| plan.marked).unwrap_or_default(),
        mark: &ruling.loop_mark(&plan.alias, &plan.leg, &plan.rules, record.received),
        seal: &plan.seal,
        withheld: &checked.withheld,
    };
    NewLeg {
        n,
        alias: plan.alias.as_str().to_owned(),
        target: plan.leg.target.clone(),
        target_name: plan.leg.target_name.clone(),
        route: plan.leg.route.clone(),
        sender,
        state: plan.state,
        reason: plan.reason,
        detail: plan.detail.clone(),
        due: if plan.state == State::Queued { Some(record.received) } else { plan.due },
        prefix: copy.prefix(),
        cuts: checked.cuts.clone(),
        rules: plan.rules.clone(),
        notices,
        authorship,
        dedupe: None,
        errand: Errand::Deliver,
        handed_over: false,
    }
}

/// The hash of the body, where a route asks whether it had the same before.
async fn body_hash(
    ruling: &Ruling,
    planned: &[Planned],
    message: &Arrived<'_>,
    body: &StoredBody,
) -> Result<Option<[u8; 32]>, Refusal> {
    if !planned.iter().any(|plan| ruling.dedupe_window(&plan.leg).is_some()) {
        return Ok(None);
    }
    let hash = duplicates::body_hash(body, message.head.as_bytes().len()).await;
    hash.map(Some).map_err(|error| store_refusal(&error))
}

fn dedupe(ruling: &Ruling, plan: &Planned, message_id: &str, body: &[u8; 32]) -> Option<DedupeKey> {
    let window = ruling.dedupe_window(&plan.leg)?;
    let aliases = ruling.dedupe_aliases(&plan.leg);
    duplicates::key(message_id, body, &plan.leg.target, (&plan.alias, aliases), window)
}

/// Counts what rules on trial would have done.
fn tell_shadows(decided: &[(Mailbox, Decision)]) {
    for shadow in decided.iter().flat_map(|(_, decision)| &decision.shadows) {
        events::shadow_hit(&shadow.rule, shadow.action);
    }
}

/// Counts the legs that are on disk: what was not accepted is at no risk, and a duplicate goes nowhere.
fn tell_at_risk(queued: &Queued, planned: &[Planned]) {
    for (n, plan) in (1u16..).zip(planned) {
        if let Some(route) = plan.at_risk.as_ref().filter(|_| !queued.duplicates().contains(&n)) {
            events::dmarc_at_risk(route);
        }
    }
}

/// What the checks say that nobody gets. It does not stop what a vendor verifies an address by, and for the mailboxes of
/// people behind us DMARC is a mark.
fn set_aside(ruling: &Ruling, checked: &Checked, now: Timestamp, planned: &mut [Planned]) -> Result<(), Refusal> {
    if let Some(refusal) = &checked.refusal {
        if !planned.iter().any(|plan| ruling.is_to_mailhost(&plan.leg)) {
            return Err(refusal.clone());
        }
        // Somebody gets it, so nobody can be told that it is refused.
        let others = planned.iter_mut().filter(|plan| !ruling.is_to_mailhost(&plan.leg));
        others.for_each(|plan| plan.quarantine(Reason::Dmarc, &refusal.reply().to_string()));
    }
    let Some((reason, why)) = &checked.quarantine else { return Ok(()) };
    for plan in planned {
        let marks = *reason == Reason::Dmarc && ruling.is_to_mailhost(&plan.leg);
        if !marks && !ruling.onboards(&plan.leg, checked, now) {
            plan.quarantine(*reason, why);
        }
    }
    Ok(())
}

/// Refuses what no target takes for its size: its sender is told at once, whoever he is.
fn refuse_size(ruling: &Ruling, planned: &[Planned], size: u64) -> Result<(), Refusal> {
    if !planned.iter().all(Planned::goes_out) {
        return Ok(());
    }
    ruling.refuses_size(size, planned.iter().map(|plan| &plan.leg)).map_or(Ok(()), Err)
}

/// Whom the leg's end may be told.
fn notices(ruling: &Ruling, plan: &Planned, envelope: &Envelope, authentication: Authentication) -> Notices {
    let role = ruling.rules.role(plan.alias.domain());
    let admin = role.map(|leg| Admin { address: leg.target, route: leg.route });
    let at = envelope.recipients.iter().position(|recipient| *recipient == plan.alias);
    Notices {
        to: bounce::notice_to(plan.leg.bounces, &envelope.sender, authentication, admin),
        asked: at.map(|at| envelope.dsn.recipient(at)).unwrap_or_default(),
        ret: envelope.dsn.ret,
        envid: envelope.dsn.envid.clone(),
    }
}

/// Postfix's `in_flow_delay` is a second; a lane that moves at all has a place for us within a few milliseconds.
const SLOT_PATIENCE: Duration = Duration::from_millis(20);
/// RFC 5321 §6.3 wants at least 100 allowed; we sit last before the CRM, and forwarders loop faster than they differ.
const HOPS_MAX: usize = 50;
