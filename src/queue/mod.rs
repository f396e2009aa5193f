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
use crate::envelope::BodyType;
use crate::id::{LegId, MessageId};
use crate::reply::{DeliveryProof, Enhanced, Reply};

pub mod body;
pub mod budget;
pub mod handover;
pub mod schedule;
pub mod sqlite;

pub use body::StoredBody;

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
    /// No connection to any host of the route.
    Connect,
    Timeout,
    Tls,
    /// The connection broke; after the final dot the outcome is unknown.
    Lost,
    /// The route's own fault: a 5xx at the banner, EHLO, AUTH or MAIL.
    Route,
    /// The route has no hosts that we can look up.
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
}

impl Reason {
    pub const ALL: [Reason; 27] = [
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
    /// Present where the route suppresses duplicates: at most one queued, held or delivered leg has it at a time.
    pub dedupe: Option<DedupeKey>,
    /// A slot is reserved for it: it is committed as ours, and handed over in memory.
    pub handed_over: bool,
}

/// What makes two legs the same case in a CRM. `hash` is a digest made by the caller; `window` how long it counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DedupeKey {
    pub hash: [u8; 32],
    pub window: Duration,
}

/// Proof that a message and its legs are on disk. The store alone makes it, after the sync.
#[derive(Debug)]
#[must_use]
pub struct Queued {
    id: MessageId,
    /// The legs that turned out to be duplicates, by their `n`: they are final and must not be handed over.
    duplicates: Vec<u16>,
}

impl Queued {
    /// The message's id.
    #[must_use]
    pub fn id(&self) -> MessageId {
        self.id
    }

    #[must_use]
    pub fn duplicates(&self) -> &[u16] {
        &self.duplicates
    }
}

impl DeliveryProof for Queued {
    fn reply(&self) -> Reply {
        Reply::with_text(250, Enhanced(2, 0, 0), &format!("queued as {}", self.id))
    }
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
    pub body_type: BodyType,
    pub smtputf8: bool,
    pub body: StoredBody,
}

impl OwnedLeg {
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
    #[error("the body of {0} is damaged or missing: {1}")]
    Damaged(MessageId, Arc<str>),
    #[error("the queue is shutting down")]
    Closed,
}

/// A future of the store's.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// The port to the queue. Every method is safe to call from any task; the order of two calls that do not wait for
/// each other is not defined.
pub trait Store: Send + Sync + 'static {
    /// Stores a message and all its legs in one synced transaction. A leg whose dedupe key is taken becomes a
    /// `duplicate`. Waits for the group commit.
    fn commit(&self, message: NewMessage, legs: Vec<NewLeg>) -> Answer<'_, Queued>;

    /// Moves legs in one synced transaction; answers in the same order.
    fn settle(&self, settlements: Vec<Settlement>) -> Answer<'_, Vec<Settled>>;

    /// Takes up to `limit` legs of `route` that are due at `now` and have no owner, oldest due first, and makes
    /// them ours. Held legs with a due time count as due, too. A leg whose body is damaged is held instead.
    fn claim(&self, route: &str, now: Timestamp, limit: usize) -> Answer<'_, Vec<OwnedLeg>>;

    /// Gives claimed legs back unattempted, due at `due`.
    fn release(&self, legs: Vec<LegId>, due: Timestamp) -> Answer<'_, ()>;

    /// For each route that has an ownerless leg with a due time: the earliest.
    fn next_due(&self) -> Answer<'_, Vec<(String, Timestamp)>>;

    /// Records refusals. Never waits for a disk; drops the oldest above its limit.
    fn record_refused(&self, refused: Refused);
}
