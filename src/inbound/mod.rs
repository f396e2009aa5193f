//! Receiving: listeners, sessions, and the way of a message from its final dot into the queue.
//!
//! This is one of the two conductors: it calls the steps in order, logs and counts; the steps do not know each
//! other. It runs on a clock, a store and a hand-over that are given to it. `connection` drives one session,
//! `journey` is the page of prose behind the final dot.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use tokio::sync::watch;

use crate::address::{Mailbox, ReversePath};
use crate::auth;
use crate::auth::sign::Signer;
use crate::auth::verify::Checker;
use crate::bounce::Authentication;
use crate::clock::{Clock, Timestamp};
use crate::contain::{Panicked, contain};
use crate::dns::Dns;
use crate::events;
use crate::id::{Chance, Ids};
use crate::loops::Marks;
use crate::network::Network;
use crate::queue::budget::Budget;
use crate::queue::handover::Handover;
use crate::queue::{Authorship, State, Store};
use crate::relay::Route;
use crate::reply;
use crate::reply::Refusal;
use crate::rules::{Action, Bounces, Decision, Fact, Facts, LegKind, LegPlan, RuleSet, Verdict};
use crate::smtp::settings::Settings;
use crate::srs::{Invalid, Original, Proof, Return, ReturnPath, Rewritten, Srs};
use crate::stamp::Forwarding;
use crate::tls::{self, ListenerTls};

mod listener;
pub mod memory;
pub mod probe;
mod balancer;
mod checks;
mod score;
mod terms;
pub mod mailhost;
mod pace;
mod duplicates;
mod loops;
mod seal;
mod returns;
mod online;
mod connection;
mod planned;
mod journey;

use duplicates::Aliases;
use listener::Shares;
use mailhost::Mailhosts;
use memory::Resident;
use probe::Probes;
pub use score::Scorer;

/// What a session decides by. A reload replaces the whole; a live session keeps the one that it began with.
pub struct Ruling {
    pub session: Arc<Settings>,
    pub rules: Arc<RuleSet>,
    pub routes: BTreeMap<String, Arc<Route>>,
    /// Legs that one message may have.
    pub legs_max: usize,
    /// By the name of the listener; one that is not there offers no TLS and has no balancer.
    pub listeners: BTreeMap<String, Manner>,
    /// Without it no listener offers TLS. A reload of the certificate alone happens inside it.
    pub tls: Option<Arc<tls::Server>>,
    /// Absent: no sender is rewritten.
    pub srs: Option<Arc<Srs>>,
    /// Absent: nothing is sealed.
    pub signer: Option<Arc<Signer>>,
    /// Absent: what comes back is not known again.
    pub marks: Option<Arc<Marks>>,
    /// Absent: nobody is checked.
    pub auth: Option<auth::disposition::Settings>,
    /// What block lists are asked through.
    pub dns: Arc<dyn Dns>,
    /// What asks the DNS who may send; needed where `auth` is.
    pub checker: Option<Arc<Checker>>,
    /// Absent: no score is made.
    pub spam: Option<Arc<Scorer>>,
    /// What mail hosts behind us are asked through; absent: nobody is asked.
    pub mailhosts: Option<Arc<Mailhosts>>,
    /// Hosts that hand us mail from outside: the client before them is checked.
    pub upstream: Vec<Network>,
    /// Sessions at one time over all listeners.
    pub sessions_max: usize,
    /// Sessions that one client may have at one time.
    pub client_sessions_max: usize,
    /// Octets that we may have in memory when another session begins.
    pub memory_max: u64,
}

/// How a listener receives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manner {
    pub tls: ListenerTls,
    /// The peers that must send a PROXY header.
    pub proxy: Vec<Network>,
}

impl Manner {
    /// In clear text, from anybody.
    pub const PLAIN: Manner = Manner { tls: ListenerTls::Off, proxy: Vec::new() };
}

impl Ruling {
    /// How a listener receives.
    #[must_use]
    pub fn manner(&self, listener: &str) -> Manner {
        self.listeners.get(listener).cloned().unwrap_or(Manner::PLAIN)
    }

    /// There is a certificate that can be shown.
    #[must_use]
    pub fn offers_tls(&self) -> bool {
        self.tls.as_ref().is_some_and(|server| server.expires().is_some())
    }

    /// The reverse-path that the next hop is told of mail from `sender` to `target`, and who is behind it where it is a
    /// return path of ours. `state` is where the leg starts: what waits for an operator has not gone out.
    #[must_use]
    pub fn reverse_path(
        &self,
        sender: &ReversePath,
        target: &Mailbox,
        now: Timestamp,
        authentication: Authentication,
        state: State,
    ) -> (ReversePath, Option<Authorship>) {
        let rewritten = self
            .srs
            .as_ref()
            .and_then(|srs| srs.reverse_path(sender, target, now, |domain| self.rules.is_ours(domain)));
        let (Some(Rewritten { path, author }), Some(mailbox)) = (rewritten, sender.mailbox()) else {
            return (sender.clone(), None);
        };
        // What another forwarder rewrote may lead to a third one, for whom the second cannot vouch.
        let his = author.sender.domain() == mailbox.domain();
        let proof = match (authentication, state) {
            (Authentication::Proven, _) if his => Proof::Proven,
            (Authentication::Proven | Authentication::Absent, State::Queued | State::Held) => Proof::Unproven,
            (Authentication::Proven | Authentication::Absent, _) => Proof::Withheld,
        };
        (ReversePath::Mailbox(path), Some(Authorship { author, proof }))
    }

    /// The return path of ours that `recipient` is, or why it leads nowhere. `None` where it is an address like others:
    /// the SRS domain may have people, too.
    #[must_use]
    pub fn return_path(&self, recipient: &Mailbox, now: Timestamp) -> Option<Result<ReturnPath, Invalid>> {
        let srs = self.srs.as_ref().filter(|srs| srs.domain() == recipient.domain())?;
        match srs.read(recipient, now) {
            Err(Invalid::Form) if self.rules.is_ours(srs.domain()) => None,
            read => Some(read),
        }
    }

    /// Whether a copy names its target. Only what a rule forwards does: a further copy, and what comes back by a return
    /// path of ours, go to people, and a mailbox has its own name.
    #[must_use]
    pub fn forwarding(&self, alias: &Mailbox, kind: LegKind, now: Timestamp) -> Forwarding {
        match kind {
            LegKind::To if self.return_path(alias, now).is_none() => Forwarding::Told,
            LegKind::To | LegKind::Also | LegKind::Mailbox | LegKind::Role => Forwarding::Untold,
        }
    }

    /// Whether a leg that goes to `target` by `route` would come back to us as new mail.
    #[must_use]
    pub fn comes_back(&self, recipient: &Mailbox, target: &Mailbox, route: &str) -> bool {
        let is_return_domain = self.srs.as_ref().is_some_and(|srs| srs.domain() == target.domain());
        let has_people = self.rules.is_ours(target.domain());
        (is_return_domain && !has_people) || self.rules.comes_back(recipient, target, route)
    }

    /// For how long a second copy of a message to this target is taken for a duplicate.
    fn dedupe_window(&self, leg: &LegPlan) -> Option<Duration> {
        self.terms(leg)?.dedupe.value
    }

    /// Whether the target's CRM makes one case of what came to two aliases.
    fn dedupe_aliases(&self, leg: &LegPlan) -> Aliases {
        match self.terms(leg).is_some_and(|terms| terms.profile.forces_dedupe()) {
            true => Aliases::Together,
            false => Aliases::Apart,
        }
    }

    /// What becomes of mail for one recipient: by the rules, or for a return path by what the ledger knows of its
    /// `original`, which is not asked at RCPT.
    pub fn decide(&self, facts: &Facts<'_>, original: Fact<Option<&Original>>, now: Timestamp) -> Decision {
        let path = match self.return_path(facts.recipient, now) {
            None => return self.rules.decide(facts),
            Some(Err(Invalid::Form | Invalid::Hash | Invalid::Age)) => {
                let verdict = Verdict::Reject(Refusal::new(reply::NO_SUCH_RECIPIENT));
                return Decision::of(verdict);
            }
            Some(Ok(path)) => path,
        };
        let original = match original {
            Fact::Known(original) => original,
            Fact::Unknown => return Decision::of(Verdict::Undecided),
        };
        let (action, target) = match path.judge(original) {
            Return::Relay(sender) => (Action::Relay, sender),
            Return::Quarantine { to, why } => (Action::Quarantine { why: why.to_owned() }, to),
            Return::Lost { why } => (Action::Quarantine { why: why.to_owned() }, facts.recipient.clone()),
        };
        // What comes back is told to nobody again.
        let leg = LegPlan { bounces: Bounces::Suppress, ..LegPlan::unrouted(target) };
        Decision::of(Verdict::Accept { action, legs: vec![leg] })
    }
}

/// The inbound conductor.
pub struct Inbound {
    pub clock: Arc<dyn Clock>,
    pub chance: Arc<Chance>,
    pub ids: Arc<Ids>,
    pub store: Arc<dyn Store>,
    pub handover: Arc<Handover>,
    /// Holds back large messages that want to be verified at the same time.
    verification: Budget,
    returns: returns::ReturnCounts,
    sender_counts: loops::SenderCounts,
    online: online::Places,
    ruling: RwLock<Arc<Ruling>>,
    sessions: AtomicUsize,
    shares: Shares,
    resident: Resident,
    /// Our own messages that are on their way in.
    pub probes: Probes,
    /// Turns true when no further mail is taken.
    draining: watch::Sender<bool>,
    /// Turns true when no further connection is taken either.
    closing: watch::Sender<bool>,
}

/// The parts that a conductor is made of.
pub struct Parts {
    pub clock: Arc<dyn Clock>,
    pub chance: Arc<Chance>,
    pub ids: Arc<Ids>,
    pub store: Arc<dyn Store>,
    pub handover: Arc<Handover>,
}

impl Inbound {
    #[must_use]
    pub fn new(parts: Parts, ruling: Ruling) -> Arc<Inbound> {
        show_rules(&ruling);
        Arc::new(Inbound {
            clock: parts.clock,
            chance: parts.chance,
            ids: parts.ids,
            store: parts.store,
            handover: parts.handover,
            verification: Budget::new(checks::VERIFICATION_OCTETS_MAX),
            returns: returns::ReturnCounts::default(),
            sender_counts: loops::SenderCounts::default(),
            online: online::Places::default(),
            ruling: RwLock::new(Arc::new(ruling)),
            sessions: AtomicUsize::new(0),
            shares: Shares::default(),
            resident: Resident::default(),
            probes: Probes::default(),
            draining: watch::Sender::new(false),
            closing: watch::Sender::new(false),
        })
    }

    /// What a session that begins now decides by.
    #[must_use]
    pub fn ruling(&self) -> Arc<Ruling> {
        Arc::clone(&self.ruling.read().expect("no code panics while it holds this lock"))
    }

    /// Sessions that begin from now on decide by `ruling`.
    pub fn rule(&self, ruling: Ruling) {
        show_rules(&ruling);
        *self.ruling.write().expect("no code panics while it holds this lock") = Arc::new(ruling);
    }

    /// The sessions that are open.
    #[must_use]
    pub fn sessions(&self) -> usize {
        self.sessions.load(Ordering::Relaxed)
    }

    /// Runs one session on `stream` to its end.
    pub async fn serve<S>(self: &Arc<Self>, mut stream: S, peer: SocketAddr, listener: &str)
    where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send,
    {
        let open = SessionOpen::new(listener);
        let ruling = self.ruling();
        let manner = ruling.manner(listener);
        let why = match balancer::client(&mut stream, &manner.proxy, peer).await {
            Some(client) => self.serve_client(ruling, stream, client, listener, manner.tls).await,
            None => "no-proxy-header",
        };
        open.close(peer.ip(), why);
    }

    /// A session with the client that a load balancer, if there is one, has named. Says how it ended.
    async fn serve_client<S>(
        self: &Arc<Self>,
        ruling: Arc<Ruling>,
        stream: S,
        client: SocketAddr,
        listener: &str,
        tls: ListenerTls,
    ) -> &'static str
    where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send,
    {
        let ip = client.ip().to_canonical();
        // Our own machine and the hosts that hand us everybody's mail have no share: theirs is that of all together.
        let shared = !ip.is_loopback() && !ruling.upstream.iter().any(|network| network.contains(ip));
        let share = if shared { self.shares.take(ip, ruling.client_sessions_max) } else { None };
        if shared && share.is_none() {
            events::connection_refused(listener, ip, &reply::TOO_MANY_CONNECTIONS);
            connection::turn_away(stream, reply::TOO_MANY_CONNECTIONS).await;
            return "too-many-of-one-client";
        }
        let mut connection = connection::Connection::new(self, ruling, stream, client, listener, tls);
        match contain("session", connection.run()).await {
            Ok(why) => why,
            Err(Panicked) => {
                connection.part().await;
                "panic"
            }
        }
    }

    /// Takes no further mail: new connections and idle sessions are told 421, open transactions may finish.
    pub fn stop_taking(&self) {
        self.draining.send_replace(true);
    }

    /// Whether no further mail is taken.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        *self.draining.borrow()
    }

    /// Takes no further connections, tells idle sessions 421 and lets open transactions finish, for `grace` at most.
    pub async fn drain(&self, grace: Duration) {
        self.closing.send_replace(true);
        self.stop_taking();
        let all_gone = async {
            while self.sessions() > 0 {
                tokio::time::sleep(DRAIN_LOOK).await;
            }
        };
        // Who is still in a transaction then is cut off; nothing of it was acknowledged.
        let _ = tokio::time::timeout(grace, all_gone).await;
    }
}

/// The count of open sessions, which goes down however a session ends.
struct SessionOpen<'a> {
    listener: &'a str,
}

impl<'a> SessionOpen<'a> {
    fn new(listener: &'a str) -> SessionOpen<'a> {
        events::session_opened(listener);
        SessionOpen { listener }
    }

    fn close(self, client: IpAddr, why: &str) {
        events::session_ended(self.listener, client, why);
    }
}

impl Drop for SessionOpen<'_> {
    fn drop(&mut self) {
        events::session_closed(self.listener);
    }
}

/// In the metrics, from the start.
fn show_rules(ruling: &Ruling) {
    ruling.rules.rule_names().take(RULES_SHOWN_MAX).for_each(events::rule_known);
}

/// Rules that the metrics show before they ever applied. Who has more has them from a machine, and pays for each series.
const RULES_SHOWN_MAX: usize = 1_000;
const DRAIN_LOOK: Duration = Duration::from_millis(20);
