//! The queue, which is also the ledger: what was accepted, where it goes, how it ended.
//!
//! A *message* is stored once; each of its *legs* (one final recipient by one route) has a state of its own.
//! The model stands here, and [`Store`], the port through which the conductors reach it. `sqlite` is the one
//! real store. A leg that ends keeps its row until the retention sweeps it, so nothing ends in silence.

use std::fmt;
use std::future::Future;
use std::net::IpAddr;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use crate::address::{Mailbox, ReversePath};
use crate::clock::Timestamp;
use crate::envelope::{BodyType, RecipientDsn, Ret};
use crate::id::{LegId, MessageId};
use crate::srs::{Author, Original, Proof, ReturnPath};

mod queued;
pub mod budget;
pub mod body;
pub mod handover;
#[cfg(feature = "daemon")]
pub mod online;
pub mod schedule;
#[cfg(feature = "daemon")]
pub mod sqlite;

pub use body::{BodyReader, BodyWriter, StoredBody};
#[cfg(feature = "daemon")]
pub(crate) use queued::GiveBack;
pub use queued::Queued;

/// Where a leg stands. The first three are open, the others final.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    Queued,
    Held,
    Quarantined,
    Delivered,
    Bounced,
    Expired,
    Duplicate,
    Omitted,
    Discarded,
}

impl State {
    pub const ALL: [State; 9] = [
        State::Queued,
        State::Held,
        State::Quarantined,
        State::Delivered,
        State::Bounced,
        State::Expired,
        State::Duplicate,
        State::Omitted,
        State::Discarded,
    ];

    #[must_use]
    pub fn is_open(self) -> bool {
        matches!(self, State::Queued | State::Held | State::Quarantined)
    }

    /// Whether a leg in this state goes on by itself when it is due. Quarantine ends by an operator or by retention.
    #[must_use]
    pub fn can_be_due(self) -> bool {
        matches!(self, State::Queued | State::Held)
    }

    /// The word in tables, logs, metrics and JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            State::Queued => "queued",
            State::Held => "held",
            State::Quarantined => "quarantined",
            State::Delivered => "delivered",
            State::Bounced => "bounced",
            State::Expired => "expired",
            State::Duplicate => "duplicate",
            State::Omitted => "omitted",
            State::Discarded => "discarded",
        }
    }

    #[must_use]
    pub fn parse(word: &str) -> Option<State> {
        State::ALL.into_iter().find(|state| state.as_str() == word)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a leg is in its state: a closed list, which is also the metrics' label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// Accepted and on its way; nothing has gone wrong.
    Accepted,
    /// The target's host accepted it.
    Sent,
    Spam,
    Dmarc,
    Content,
    RemoteAuth,
    RemoteContent,
    UnknownTarget,
    /// The remote answered 4xx.
    Tempfail,
    /// The remote answered 5xx for good.
    Permfail,
    /// Larger than the remote takes.
    TooLarge,
    /// A header section or field longer than the target's system takes.
    HeaderSize,
    /// A machine wrote it.
    Automatic,
    /// No connection to any host of the route.
    Connect,
    Timeout,
    Tls,
    /// The connection broke; after the final dot the outcome is unknown.
    Lost,
    /// The route's own fault: a 5xx at the banner, EHLO, AUTH or MAIL.
    Route,
    /// No host of the target's domain has an address that the route may dial.
    NoHosts,
    Loop,
    LookAlike,
    MixedRefusal,
    Rate,
    /// A rule said so.
    Rule,
    /// An operator said so.
    Operator,
    /// Its stored body is damaged or missing.
    Damaged,
    /// The same message is already on its way to the same target.
    Duplicate,
    /// Deferred for longer than the queue's `expire`.
    Expired,
    /// The remote does not announce SMTPUTF8, which the addresses need.
    Smtputf8,
    /// The sender wants verified TLS all the way (RFC 8689), and this way has it not.
    RequireTls,
    /// A probe, which ends at the answer to RCPT.
    Probe,
}

impl Reason {
    pub const ALL: [Reason; 31] = [
        Reason::Accepted,
        Reason::Sent,
        Reason::Spam,
        Reason::Dmarc,
        Reason::Content,
        Reason::RemoteAuth,
        Reason::RemoteContent,
        Reason::UnknownTarget,
        Reason::Tempfail,
        Reason::Permfail,
        Reason::TooLarge,
        Reason::HeaderSize,
        Reason::Automatic,
        Reason::Connect,
        Reason::Timeout,
        Reason::Tls,
        Reason::Lost,
        Reason::Route,
        Reason::NoHosts,
        Reason::Loop,
        Reason::LookAlike,
        Reason::MixedRefusal,
        Reason::Rate,
        Reason::Rule,
        Reason::Operator,
        Reason::Damaged,
        Reason::Duplicate,
        Reason::Expired,
        Reason::Smtputf8,
        Reason::RequireTls,
        Reason::Probe,
    ];

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::Accepted => "accepted",
            Reason::Sent => "sent",
            Reason::Spam => "spam",
            Reason::Dmarc => "dmarc",
            Reason::Content => "content",
            Reason::RemoteAuth => "remote-auth",
            Reason::RemoteContent => "remote-content",
            Reason::UnknownTarget => "unknown-target",
            Reason::Tempfail => "tempfail",
            Reason::Permfail => "permfail",
            Reason::TooLarge => "too-large",
            Reason::HeaderSize => "header-size",
            Reason::Automatic => "automatic",
            Reason::Connect => "connect",
            Reason::Timeout => "timeout",
            Reason::Tls => "tls",
            Reason::Lost => "lost",
            Reason::Route => "route",
            Reason::NoHosts => "no-hosts",
            Reason::Loop => "loop",
            Reason::LookAlike => "look-alike",
            Reason::MixedRefusal => "mixed-refusal",
            Reason::Rate => "rate",
            Reason::Rule => "rule",
            Reason::Operator => "operator",
            Reason::Damaged => "damaged",
            Reason::Duplicate => "duplicate",
            Reason::Expired => "expired",
            Reason::Smtputf8 => "smtputf8",
            Reason::RequireTls => "require-tls",
            Reason::Probe => "probe",
        }
    }

    #[must_use]
    pub fn parse(word: &str) -> Option<Reason> {
        Reason::ALL.into_iter().find(|reason| reason.as_str() == word)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a leg is to do at its next hop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Errand {
    #[default]
    Deliver,
    /// A probe: hear the answer to RCPT, hand nothing over, and end, whatever the answer.
    AskRcpt,
}

/// A message as the session hands it to the queue. Its body is already synced where it stands in a file.
#[derive(Clone, Debug)]
pub struct NewMessage {
    pub id: MessageId,
    pub received: Timestamp,
    pub listener: String,
    pub client: IpAddr,
    pub ptr: Option<String>,
    pub helo: String,
    /// `ESMTP`, `ESMTPS` …, as in Received.
    pub protocol: &'static str,
    pub sender: ReversePath,
    pub body_type: BodyType,
    pub smtputf8: bool,
    /// RFC 8689: it must not go on without verified TLS.
    pub require_tls: bool,
    /// Size of the original in octets.
    pub size: u64,
    /// From, Subject and Message-ID as written, cut to a few hundred octets, for `trace`.
    pub from: String,
    pub subject: String,
    pub message_id: String,
    /// Header fields that every leg carries: Authentication-Results, Received. CRLF lines.
    pub prefix: Vec<u8>,
    /// What was known when the rules decided, as one JSON object, for `explain`, `diff` and `redecide`.
    pub facts: String,
    /// The hash of the rule set that decided.
    pub rules_hash: String,
    pub body: StoredBody,
}

/// A leg as the rules decided it.
#[derive(Clone, Debug)]
pub struct NewLeg {
    /// Counted from 1 within its message.
    pub n: u16,
    /// The alias as given at RCPT.
    pub alias: String,
    /// The final recipient.
    pub target: Mailbox,
    /// Our name for it in the rules, which masks the address in logs.
    pub target_name: Option<String>,
    pub route: String,
    /// The reverse-path that the next hop is told.
    pub sender: ReversePath,
    pub state: State,
    pub reason: Reason,
    /// A sentence for humans behind the reason; may be empty.
    pub detail: String,
    /// When the leg is due: now for a queued one; none for what waits for an operator; ignored for final states.
    pub due: Option<Timestamp>,
    /// Header fields of this copy alone: Delivered-To, X-Original-To. CRLF lines.
    pub prefix: Vec<u8>,
    /// Ranges of the original that are cut out of this copy: whole header fields, ascending, disjoint.
    pub cuts: Vec<Range<u64>>,
    /// The names of the rules that applied, in order.
    pub rules: Vec<String>,
    /// Whom its end may be told, and what was asked.
    pub notices: Notices,
    /// Present where `sender` is a return path of ours.
    pub authorship: Option<Authorship>,
    /// Present where the route suppresses duplicates: at most one queued, held or delivered leg has it at a time.
    pub dedupe: Option<DedupeKey>,
    pub errand: Errand,
    /// A slot is reserved for it: it is committed as ours, and handed over in memory.
    pub handed_over: bool,
}

/// Who is behind a leg's return path, and whether he proved it: kept for what comes back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authorship {
    pub author: Author,
    pub proof: Proof,
}

/// Whom the end of a leg may be told, and what its sender asked for. Decided at acceptance.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Notices {
    pub to: NoticeTo,
    /// What RCPT asked for.
    pub asked: RecipientDsn,
    /// What MAIL asked for.
    pub ret: Option<Ret>,
    pub envid: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum NoticeTo {
    /// Whoever is named as the sender may not be: what is refused waits in the quarantine.
    #[default]
    Nobody,
    /// The sender, who authenticated.
    Sender(Mailbox),
    /// Our administrator, by this route.
    Admin { address: Mailbox, route: String },
    /// A rule says that nobody is told.
    Suppressed,
}

/// What makes two legs the same case in a CRM. `hash` is a digest made by the caller; `window` how long it counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DedupeKey {
    pub hash: [u8; 32],
    pub window: Duration,
}

/// An open leg that this node owns, with all that an attempt needs.
#[derive(Clone, Debug)]
pub struct OwnedLeg {
    pub id: LegId,
    /// The owner's epoch: every settle checks it.
    pub epoch: u64,
    pub alias: String,
    pub target: Mailbox,
    pub target_name: Option<String>,
    pub route: String,
    pub sender: ReversePath,
    /// Attempts made so far.
    pub attempts: u32,
    pub received: Timestamp,
    /// Leg prefix and common prefix, in the order in which they are sent.
    pub prefix: Vec<u8>,
    pub cuts: Vec<Range<u64>>,
    pub notices: Notices,
    pub errand: Errand,
    pub body_type: BodyType,
    pub smtputf8: bool,
    pub require_tls: bool,
    pub body: StoredBody,
    /// A client waits for what becomes of it.
    #[cfg(feature = "daemon")]
    pub online: Option<online::Ticket>,
}

impl OwnedLeg {
    /// The leg as it is handed over in memory: what [`Store::claim`] would read back.
    pub(crate) fn new(message: &NewMessage, leg: &NewLeg, epoch: u64) -> OwnedLeg {
        OwnedLeg {
            id: LegId { message: message.id, n: leg.n },
            epoch,
            alias: leg.alias.clone(),
            target: leg.target.clone(),
            target_name: leg.target_name.clone(),
            route: leg.route.clone(),
            sender: leg.sender.clone(),
            attempts: 0,
            received: message.received,
            prefix: [&leg.prefix[..], &message.prefix].concat(),
            cuts: leg.cuts.clone(),
            notices: leg.notices.clone(),
            errand: leg.errand,
            body_type: message.body_type,
            smtputf8: message.smtputf8,
            require_tls: message.require_tls,
            body: message.body.clone(),
            #[cfg(feature = "daemon")]
            online: None,
        }
    }

    /// RFC 8689 §4.2.1: it may go over verified TLS only, to a host that offers REQUIRETLS. For a notification that is
    /// a wish: better told in clear text than not at all (RFC 8689 §5).
    #[must_use]
    pub fn needs_tls(&self) -> bool {
        self.require_tls && self.sender != ReversePath::Null
    }

    /// The target is the address that the sender wrote to.
    #[must_use]
    pub fn keeps_recipient(&self) -> bool {
        Mailbox::parse(&self.alias).is_ok_and(|alias| alias == self.target)
    }

    /// Octets that DATA will carry, before dot-stuffing.
    #[must_use]
    pub fn size(&self) -> u64 {
        let cut: u64 = self.cuts.iter().map(|range| range.end - range.start).sum();
        self.prefix.len() as u64 + self.body.len() - cut
    }
}

/// How an attempt, or an operator's word, moves a leg.
#[derive(Clone, Debug)]
pub struct Settlement {
    pub leg: LegId,
    pub epoch: u64,
    pub at: Timestamp,
    pub state: State,
    pub reason: Reason,
    pub detail: String,
    /// For an open state: when it is due next; `None` waits for an operator.
    pub due: Option<Timestamp>,
    /// An attempt was made; it is kept for `trace`.
    pub attempt: Option<Attempt>,
    /// For a leg that ends unsent: what its sender was told.
    pub dsn: Option<Dsn>,
    /// What this outcome causes, written in the same transaction.
    pub follow_ups: Vec<FollowUp>,
}

/// What became of the notification that a bounced or expired leg may cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dsn {
    Sent,
    /// To our administrator instead.
    Admin,
    Suppressed,
    None,
}

impl Dsn {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Dsn::Sent => "sent",
            Dsn::Admin => "admin",
            Dsn::Suppressed => "suppressed",
            Dsn::None => "none",
        }
    }
}

/// What an outcome causes.
#[derive(Clone, Debug)]
pub enum FollowUp {
    /// A message of its own, such as a DSN, with its legs.
    Message(Box<NewMessage>, Vec<NewLeg>),
    /// A further leg of the same message; its `n` is replaced by the next free one.
    Leg(Box<NewLeg>),
    /// The leg itself goes on to another target: it keeps its id and lists both.
    Redirect(Box<Redirect>),
}

/// Where a leg goes on to.
#[derive(Clone, Debug)]
pub struct Redirect {
    pub target: Mailbox,
    pub target_name: Option<String>,
    pub route: String,
    pub sender: ReversePath,
    /// Where `sender` is a return path of ours that was made for this.
    pub authorship: Option<Authorship>,
    /// The copy's header fields as they are for the new target; `None`: as they are.
    pub prefix: Option<Vec<u8>>,
}

/// One attempt to relay a leg, as `trace` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    pub started: Timestamp,
    pub duration: Duration,
    /// Host and address that were spoken to; empty where none answered.
    pub host: String,
    /// The stage that decided: connect, banner, ehlo, mail, rcpt, data, body, dot.
    pub stage: &'static str,
    /// ok, tempfail, permfail, timeout, tls, connect (the metric's label).
    pub result: &'static str,
    /// The remote's reply word for word (escaped and cut), or our own error.
    pub reply: String,
}

/// What became of a settlement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Settled {
    Done,
    /// The leg has another owner or epoch, or is final already: nothing was written.
    NotOurs,
}

/// How far a leg had come when it was given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GivenBack {
    /// Nobody had begun to send it.
    Unattempted,
    /// An attempt was under way and its outcome is not known: the ledger keeps that, because the target may get the
    /// message twice. `by` says what ended it.
    CutOff { by: &'static str },
}

/// A recipient refused at RCPT or a message refused at the dot, kept unsynced and in bulk for `trace`.
#[derive(Clone, Debug)]
pub struct Refused {
    pub at: Timestamp,
    pub listener: String,
    pub client: IpAddr,
    pub helo: String,
    pub sender: String,
    pub recipient: String,
    pub reply: String,
    /// Of a message that was refused at its end, as in [`NewMessage`]; empty where only a recipient was.
    pub from: String,
    pub subject: String,
    pub message_id: String,
}

/// Why the store could not do it. Whoever waits answers 451, or 452 for [`StoreError::Full`].
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    #[error("the disk is full or below its floor")]
    Full,
    #[error("cannot write the queue: {0}")]
    Write(Arc<str>),
    #[error("cannot read the queue: {0}")]
    Read(Arc<str>),
    #[error("the stored body is damaged or missing: {0}")]
    Damaged(Arc<str>),
    #[error("the queue is shutting down")]
    Closed,
}

/// A future of the store's.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// The port to the queue. Every method is safe to call from any task; the order of two calls that do not wait for
/// each other is not defined.
pub trait Store: Send + Sync + 'static {
    /// Begins a body; `finish` it before the commit that names it.
    fn write_body(&self) -> BodyWriter;

    /// Whether new mail may come in: the disk has more than its floor free and the last commit succeeded.
    fn accepting(&self) -> bool;

    /// Stores a message and all its legs in one synced transaction. A leg whose dedupe key is taken becomes a
    /// `duplicate`. Waits for the group commit. Dropping the future does not undo it.
    fn commit(&self, message: NewMessage, legs: Vec<NewLeg>) -> Answer<'_, Queued>;

    /// Moves legs in one synced transaction; answers in the same order.
    fn settle(&self, settlements: Vec<Settlement>) -> Answer<'_, Vec<Settled>>;

    /// Takes up to `limit` legs of `route` that are due at `now` and have no owner, oldest due first, and makes
    /// them ours. Held legs with a due time count as due, too. A leg whose body is damaged is held instead.
    fn claim(&self, route: &str, now: Timestamp, limit: usize) -> Answer<'_, Vec<OwnedLeg>>;

    /// Gives claimed legs back unsettled, due at `due`.
    fn release(&self, legs: Vec<LegId>, due: Timestamp, how: GivenBack) -> Answer<'_, ()>;

    /// For each route that has an ownerless leg with a due time: the earliest.
    fn next_due(&self) -> Answer<'_, Vec<(String, Timestamp)>>;

    /// What the ledger knows of the messages that went out with each of these return paths, in the same order.
    fn originals(&self, paths: Vec<ReturnPath>) -> Answer<'_, Vec<Option<Original>>>;

    /// Records refusals. Never waits for a disk; drops the oldest above its limit.
    fn record_refused(&self, refused: Refused);
}

#[cfg(test)]
pub(crate) mod fixtures {
    //! One constructor per thing; a test changes what matters to it.

    use super::*;

    pub(crate) fn message(id: i64) -> NewMessage {
        NewMessage {
            id: MessageId(id),
            received: Timestamp(1_000),
            listener: "mx".into(),
            client: "192.0.2.1".parse().unwrap(),
            ptr: None,
            helo: "client.example".into(),
            protocol: "ESMTP",
            sender: ReversePath::parse("client@example.org").unwrap(),
            body_type: BodyType::SevenBit,
            smtputf8: false,
            require_tls: false,
            size: 12,
            from: "Client <client@example.org>".into(),
            subject: "It is broken".into(),
            message_id: "<1@example.org>".into(),
            prefix: b"Received: from client.example\r\n".to_vec(),
            facts: "{}".into(),
            rules_hash: "0".into(),
            body: StoredBody::from_bytes(&b"A: b\r\n\r\nhello\r\n"[..]),
        }
    }

    pub(crate) fn leg(n: u16) -> NewLeg {
        NewLeg {
            n,
            alias: "aide@solarmora.com".into(),
            target: Mailbox::parse(&format!("case{n}@crm.example")).unwrap(),
            target_name: Some("salesforce".into()),
            route: "crm".into(),
            sender: ReversePath::parse("client@example.org").unwrap(),
            state: State::Queued,
            reason: Reason::Accepted,
            detail: String::new(),
            due: Some(Timestamp(1_000)),
            prefix: b"Delivered-To: aide@solarmora.com\r\n".to_vec(),
            cuts: Vec::new(),
            rules: vec!["aide to the CRM".into()],
            notices: Notices::default(),
            authorship: None,
            dedupe: None,
            errand: Errand::Deliver,
            handed_over: false,
        }
    }

    pub(crate) fn owned_leg(message_id: i64) -> OwnedLeg {
        OwnedLeg::new(&message(message_id), &leg(1), 1)
    }

    pub(crate) fn settlement(leg: &OwnedLeg, state: State) -> Settlement {
        Settlement {
            leg: leg.id,
            epoch: leg.epoch,
            at: Timestamp(2_000),
            state,
            reason: if state == State::Delivered { Reason::Sent } else { Reason::Tempfail },
            detail: String::new(),
            due: (state == State::Queued).then_some(Timestamp(60_000)),
            attempt: Some(Attempt {
                started: Timestamp(1_900),
                duration: Duration::from_millis(100),
                host: "crm.example [192.0.2.9]".into(),
                stage: "dot",
                result: if state == State::Delivered { "ok" } else { "tempfail" },
                reply: "250 2.0.0 ok".into(),
            }),
            dsn: None,
            follow_ups: Vec::new(),
        }
    }
}
