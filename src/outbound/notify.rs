//! What a settlement tells: the notification that goes into the queue with it, in the same transaction.

use std::net::{IpAddr, Ipv4Addr};

use crate::address::{Domain, Mailbox, ReversePath};
use crate::bounce::{self, Event, Notice, Original, Reported, Told};
use crate::clock::Timestamp;
use crate::envelope::BodyType;
use crate::events;
use crate::id::MessageId;
use crate::message::Head;
use crate::outbound::Shared;
use crate::queue::body::BodyReader;
use crate::queue::{
    Dsn, Errand, FollowUp, NewLeg, NewMessage, Notices, OwnedLeg, Reason, Settlement, State, StoredBody,
};
use crate::smtp::client::Verdict;

/// Adds to `settlement` whom its outcome is told, and the notification itself. `dsn_passed_on` says that the host that
/// took the leg answers for it from now on.
pub(super) async fn tell(
    shared: &Shared,
    leg: &OwnedLeg,
    verdict: &Verdict,
    dsn_passed_on: bool,
    settlement: &mut Settlement,
) {
    let Some(event) = event(shared, leg, dsn_passed_on, settlement) else { return };
    let told = bounce::told(&leg.notices, event);
    if event == Event::Failed {
        settlement.dsn = Some(match told {
            Told::Sender(_) => Dsn::Sent,
            Told::Admin { .. } => Dsn::Admin,
            Told::Suppressed => Dsn::Suppressed,
            Told::Nobody => Dsn::None,
        });
    }
    let (to, route) = match told {
        Told::Sender(sender) => (sender, DEFAULT_ROUTE),
        Told::Admin { address, route } => (address, route),
        Told::Suppressed | Told::Nobody => return,
    };
    let header = header(leg).await;
    let Some(follow_up) = notification(shared, leg, verdict, event, to, route, settlement, &header) else { return };
    settlement.follow_ups.push(follow_up);
}

/// What there is to tell of an outcome; mostly nothing.
fn event(shared: &Shared, leg: &OwnedLeg, dsn_passed_on: bool, settlement: &Settlement) -> Option<Event> {
    match settlement.state {
        State::Bounced | State::Expired => Some(Event::Failed),
        State::Delivered if !dsn_passed_on => Some(Event::Relayed),
        State::Queued => {
            let attempt = leg.attempts.saturating_add(1);
            bounce::delay_is_told(&shared.ways().settings.retry, attempt).then_some(Event::Delayed)
        }
        State::Delivered | State::Held | State::Quarantined | State::Duplicate | State::Omitted | State::Discarded => {
            None
        }
    }
}

/// The original's header. Where the body cannot be read the notification goes without: it is owed all the same.
async fn header(leg: &OwnedLeg) -> Head {
    let mut head = Head::default();
    let mut body = BodyReader::new(&leg.body, &[]);
    let mut read = 0;
    while read <= bounce::ORIGINAL_OCTETS_MAX {
        let Ok(Some(piece)) = body.next().await else { break };
        read += piece.len();
        head.push(&piece);
    }
    head
}

#[expect(clippy::too_many_arguments, reason = "one call, and each is another thing")]
fn notification(
    shared: &Shared,
    leg: &OwnedLeg,
    verdict: &Verdict,
    event: Event,
    to: &Mailbox,
    route: &str,
    settlement: &Settlement,
    header: &Head,
) -> Option<FollowUp> {
    let at = settlement.at;
    let alias = Mailbox::parse(&leg.alias).ok()?;
    let from = Mailbox::parse(&format!("postmaster@{}", alias.domain())).ok()?;
    let id = shared.ports.ids.next(at, &shared.ports.chance);
    let ways = shared.ways();
    let reported = match event {
        Event::Failed => Reported::Failed,
        Event::Delayed => Reported::Delayed { until: leg.received.after(ways.settings.expire) },
        Event::Relayed => Reported::Relayed,
    };
    let given_up_after = (settlement.state == State::Expired).then_some(ways.settings.expire);
    let cause = bounce::cause(verdict, reported, given_up_after);
    let composed = bounce::compose(&Notice {
        hostname: &ways.settings.hostname,
        id,
        at,
        from: &from,
        to,
        event: reported,
        alias: &alias,
        secret: &leg.target,
        orcpt: leg.notices.asked.orcpt.as_ref(),
        envid: leg.notices.envid.as_deref(),
        cause: &cause,
        original: Original { header: header.as_bytes(), arrived: leg.received, attempted: at },
    });
    events::notification_made(&leg.id, id, reported.as_str(), to.as_str());
    let body = StoredBody::from_bytes(signed(shared, id, from.domain(), composed.bytes));
    let message = NewMessage {
        id,
        received: at,
        listener: INTERNAL.to_owned(),
        client: IpAddr::V4(Ipv4Addr::LOCALHOST),
        ptr: None,
        helo: ways.settings.hostname.clone(),
        protocol: INTERNAL,
        sender: ReversePath::Null,
        body_type: BodyType::SevenBit,
        smtputf8: composed.smtputf8,
        require_tls: leg.require_tls,
        size: body.len(),
        from: from.to_string(),
        subject: composed.subject.to_owned(),
        message_id: composed.message_id,
        prefix: Vec::new(),
        facts: "{}".to_owned(),
        rules_hash: String::new(),
        body,
    };
    Some(FollowUp::Message(Box::new(message), vec![leg_to(to, route, at)]))
}

/// The notification with our signature before it. Where it cannot be made the notification is owed all the same.
fn signed(shared: &Shared, id: MessageId, domain: &Domain, message: Vec<u8>) -> Vec<u8> {
    let ways = shared.ways();
    let Some(signer) = &ways.settings.signer else { return message };
    match signer.sign(domain, &message) {
        Ok(field) => [field.into_bytes(), message].concat(),
        Err(error) => {
            events::notification_unsigned(id, &error);
            message
        }
    }
}

/// The notification's own leg. What becomes of it is told to nobody.
fn leg_to(to: &Mailbox, route: &str, at: Timestamp) -> NewLeg {
    NewLeg {
        n: 1,
        alias: to.as_str().to_owned(),
        target: to.clone(),
        target_name: None,
        route: route.to_owned(),
        sender: ReversePath::Null,
        state: State::Queued,
        reason: Reason::Accepted,
        detail: String::new(),
        due: Some(at),
        prefix: Vec::new(),
        cuts: Vec::new(),
        rules: Vec::new(),
        notices: Notices::default(),
        authorship: None,
        dedupe: None,
        errand: Errand::Deliver,
        handed_over: false,
    }
}

/// The MX of the recipient's domain.
const DEFAULT_ROUTE: &str = "default";
/// Stands where a message that came in has its listener.
const INTERNAL: &str = "internal";
