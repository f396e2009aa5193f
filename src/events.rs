//! What happens, one function each: its log line and its metrics stand side by side, so that they cannot disagree.
//!
//! One wide line for each message and for each attempt, keyed by id. Text that a peer chose is escaped and cut
//! before it is logged ([`quoted`]); no metric label is chosen by a peer. A target's address is a write token of a CRM's:
//! it is masked, and cut out of what its host said ([`scrub`]). Metric names are an interface: README and `deploy/` rely
//! on them.

use std::fmt::{self, Display};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use metrics::{counter, gauge, histogram};
use tracing::{debug, info, warn};

use crate::address::Mailbox;
use crate::clock::Timestamp;
use crate::id::{LegId, MessageId};
use crate::reply::Reply;
use crate::scrub::scrub;

mod rules;
mod systems;

pub use rules::{rule_hit, rule_known, shadow_hit};
pub use systems::{ceiling_reached, leg_paced, mailhost_unsure, onboarding_mail, pace_exceeded, too_many_cc};

// Sessions

pub fn session_opened(listener: &str) {
    counter!("pointsman_connections_total", "listener" => listener.to_owned(), "result" => "accepted").increment(1);
    gauge!("pointsman_sessions", "listener" => listener.to_owned()).increment(1.0);
}

pub fn session_closed(listener: &str) {
    gauge!("pointsman_sessions", "listener" => listener.to_owned()).decrement(1.0);
}

/// How a session ended.
pub fn session_ended(listener: &str, client: IpAddr, why: &str) {
    debug!(event = "session", listener, %client, why);
}

/// A connection that got no session: `reply` says why.
pub fn connection_refused(listener: &str, client: IpAddr, reply: &Reply) {
    counter!("pointsman_connections_total", "listener" => listener.to_owned(), "result" => "refused").increment(1);
    info!(event = "connection-refused", listener, %client, %reply);
}

/// Accepting a connection failed, e.g. for want of file descriptors.
pub fn accept_failed(listener: &str, error: &std::io::Error) {
    counter!("pointsman_connections_total", "listener" => listener.to_owned(), "result" => "failed").increment(1);
    warn!(event = "accept-failed", listener, %error, "cannot accept a connection, trying again");
}

/// A handshake with a client ended: with the version, or why not.
pub fn tls_accepted(listener: &str, client: IpAddr, made: Result<&str, &String>) {
    let result = made.unwrap_or("failed").to_owned();
    counter!("pointsman_tls_handshakes_total", "listener" => listener.to_owned(), "result" => result).increment(1);
    match made {
        Ok(version) => debug!(event = "tls", listener, %client, version),
        Err(why) => info!(event = "tls-failed", listener, %client, why = %quoted(why)),
    }
}

/// When the certificate of a listener expires.
pub fn certificate_expiry(listener: &str, expires: Timestamp) {
    gauge!("pointsman_tls_certificate_expiry_timestamp_seconds", "listener" => listener.to_owned())
        .set((expires.0 / 1000) as f64);
}

/// The certificate in use has expired. It still encrypts for those who do not look.
pub fn certificate_expired(expires: Timestamp) {
    tracing::error!(event = "certificate-expired", %expires, "the TLS certificate has expired");
}

/// There is no certificate that could be used: TLS is not offered until there is.
pub fn certificate_missing(error: &dyn Display) {
    tracing::error!(event = "certificate-missing", %error, "the TLS certificate cannot be used, TLS is not offered");
}

/// The certificate was read anew.
pub fn certificate_reloaded(expires: Timestamp) {
    info!(event = "certificate-reloaded", %expires);
}

/// The certificate could not be read anew; the old one stays in use.
pub fn certificate_kept(error: &dyn Display) {
    tracing::error!(event = "certificate-kept", %error, "the new TLS certificate cannot be used, the old one stays");
}

// Recipients and messages

pub fn recipient_accepted() {
    counter!("pointsman_recipients_total", "result" => "accepted").increment(1);
}

/// A recipient was refused at RCPT.
pub fn recipient_refused(client: IpAddr, helo: &str, sender: &str, recipient: &str, reply: &Reply) {
    let result = if reply.is_transient() { "deferred" } else { "rejected" };
    counter!("pointsman_recipients_total", "result" => result).increment(1);
    info!(
        event = "recipient", result, %client, helo = %quoted(helo), sender = %quoted(sender),
        recipient = %quoted(recipient), %reply
    );
}

/// What the line of an accepted message says.
#[derive(Debug)]
pub struct MessageAccepted<'a> {
    pub id: &'a str,
    pub listener: &'a str,
    pub client: IpAddr,
    pub helo: &'a str,
    pub sender: &'a str,
    /// The aliases, separated by commas.
    pub recipients: &'a str,
    pub message_id: &'a str,
    pub size: u64,
    pub legs: usize,
    /// The rules that applied, separated by commas.
    pub rules: &'a str,
    /// From the final dot to the reply.
    pub took: Duration,
}

pub fn message_accepted(message: &MessageAccepted<'_>) {
    counter!("pointsman_messages_total", "result" => "accepted").increment(1);
    histogram!("pointsman_accept_seconds").record(message.took.as_secs_f64());
    info!(
        event = "message",
        result = "accepted",
        id = message.id,
        listener = message.listener,
        client = %message.client,
        helo = %quoted(message.helo),
        sender = %quoted(message.sender),
        recipients = %quoted(message.recipients),
        message_id = %quoted(message.message_id),
        size = message.size,
        legs = message.legs,
        rules = message.rules,
        took_ms = millis(message.took),
    );
}

/// A whole message was refused after its final dot.
pub fn message_refused(listener: &str, client: IpAddr, sender: &str, recipients: &str, size: u64, reply: &Reply) {
    let result = if reply.is_transient() { "deferred" } else { "rejected" };
    counter!("pointsman_messages_total", "result" => result).increment(1);
    info!(
        event = "message", result, listener, %client, sender = %quoted(sender), recipients = %quoted(recipients),
        size, %reply
    );
}

/// The client went away, or gave up, while it sent a message: nothing was stored.
pub fn message_aborted(listener: &str, client: IpAddr) {
    counter!("pointsman_messages_total", "result" => "aborted").increment(1);
    info!(event = "message", result = "aborted", listener, %client);
}

/// DNS was asked, past our cache: `result` is found, nothing or failed.
pub fn dns_answered(result: &'static str) {
    counter!("pointsman_dns_total", "result" => result).increment(1);
}

/// A check ended with this word of RFC 8601.
pub fn checked(check: &'static str, result: &'static str) {
    counter!("pointsman_auth_total", "check" => check, "result" => result).increment(1);
}

/// A message was scored.
pub fn scored(score: f64) {
    histogram!("pointsman_spam_score").record(score);
}

/// No score could be made; `why` may be another program's words.
pub fn score_failed(id: MessageId, result: &'static str, why: &dyn Display, on_error: &'static str) {
    counter!("pointsman_spam_errors_total", "result" => result).increment(1);
    warn!(event = "score-failed", message = %id, result, why = %quoted(&why.to_string()), on_error, "no spam score");
}

/// A DNS block list failed its probe: until it passes, nobody is judged by it. `list` is the configuration's word.
pub fn blocklist_ignored(list: &str, why: &'static str) {
    gauge!("pointsman_blocklist_ignored", "list" => list.to_owned()).set(1.0);
    warn!(event = "blocklist-ignored", list, why, "the block list is not believed");
}

/// A DNS block list passed its probe.
pub fn blocklist_used(list: &str) {
    gauge!("pointsman_blocklist_ignored", "list" => list.to_owned()).set(0.0);
    info!(event = "blocklist-used", list);
}

/// A leg was accepted whose DMARC will fail at the next hop.
pub fn dmarc_at_risk(route: &str) {
    counter!("pointsman_dmarc_at_risk_total", "route" => route.to_owned()).increment(1);
}

// Legs

/// A leg entered a state.
pub fn leg_entered(route: &str, state: &'static str, reason: &'static str) {
    counter!("pointsman_legs_total", "route" => route.to_owned(), "state" => state, "reason" => reason).increment(1);
}

/// Nobody released a quarantined leg in time.
pub fn quarantine_over(leg: &LegId, route: &str, state: &'static str, reason: &'static str) {
    leg_entered(route, state, reason);
    info!(event = "quarantine-over", %leg, route, state, reason, "nobody released the leg in time");
}

/// A notification was written about `leg`; it is queued where the leg's settlement is. `to` may be a target of ours.
pub fn notification_made(leg: &LegId, id: MessageId, action: &'static str, to: &str) {
    info!(event = "notification", %leg, message = %id, action, to = %quoted(&masked(to)), "notification made");
}

/// A notification goes out without a signature.
pub fn notification_unsigned(id: MessageId, error: &dyn Display) {
    warn!(event = "notification-unsigned", message = %id, %error, "a notification goes out unsigned");
}

/// The queue committed a group of `messages` in `took`.
pub fn group_committed(messages: usize, took: Duration) {
    histogram!("pointsman_commit_seconds").record(took.as_secs_f64());
    histogram!("pointsman_commit_batch_messages").record(messages as f64);
}

// Outbound

/// One attempt to relay a leg, whole: the wide event of the way out.
#[derive(Clone, Copy)]
pub struct AttemptEnded<'a> {
    pub leg: &'a dyn Display,
    pub route: &'a str,
    pub alias: &'a str,
    /// Our name for the target where it has one: the address itself is a secret.
    pub target_name: Option<&'a str>,
    pub target: &'a Mailbox,
    /// Host and address; empty where none answered.
    pub peer: &'a str,
    pub stage: &'a str,
    /// ok, tempfail, permfail, timeout, tls, connect.
    pub result: &'static str,
    pub reply: &'a str,
    /// Attempts so far, this one with them.
    pub attempt: u32,
    pub duration: Duration,
    pub state: &'static str,
    pub reason: &'static str,
}

pub fn attempt_ended(event: AttemptEnded<'_>) {
    metrics::counter!("pointsman_attempts_total", "route" => event.route.to_owned(), "result" => event.result)
        .increment(1);
    let target = event.target_name.map_or_else(|| masked(event.target.as_str()), str::to_owned);
    // A notification's own leg has no alias: its target stands there.
    let is_target = event.alias.eq_ignore_ascii_case(event.target.as_str());
    let alias = if is_target { masked(event.alias) } else { event.alias.to_owned() };
    info!(
        event = "attempt",
        leg = %event.leg,
        route = event.route,
        alias = %quoted(&alias),
        target = %quoted(&target),
        peer = %quoted(event.peer),
        stage = event.stage,
        result = event.result,
        reply = scrub(event.reply, event.target, &alias),
        attempt = event.attempt,
        took_ms = millis(event.duration),
        state = event.state,
        reason = event.reason,
    );
}

/// A host with which TLS failed is spoken to in clear text, as its route allows.
pub fn tls_given_up(route: &str, peer: &str, why: &str) {
    warn!(event = "tls-given-up", route, peer, why = %quoted(why), "TLS failed, going on in clear text");
}

/// A leg was delivered, so long after its message was received.
pub fn leg_delivered(route: &str, since_received: Duration) {
    metrics::histogram!("pointsman_delivery_seconds", "route" => route.to_owned()).record(since_received.as_secs_f64());
}

/// A leg waits for an administrator: our configuration or our disk is wrong. `detail` may be what the target's host said.
pub fn leg_held(leg: &dyn Display, route: &str, reason: &'static str, detail: &str, target: &Mailbox, alias: &str) {
    warn!(event = "leg-held", %leg, route, reason, detail = scrub(detail, target, alias));
}

/// A leg goes on to the fallback target of its route.
pub fn leg_diverted(
    leg: &LegId,
    from: &str,
    to: &str,
    target_name: Option<&str>,
    target: &Mailbox,
    reason: &'static str,
) {
    let target = target_name.map_or_else(|| masked(target.as_str()), str::to_owned);
    warn!(event = "leg-diverted", %leg, route = from, to, target = %quoted(&target), reason);
}

/// A leg was one too many in a time: deferred, held, or only told (alert).
fn paced(route: &str, action: &'static str) {
    counter!("pointsman_paced_total", "route" => route.to_owned(), "action" => action).increment(1);
}

/// Whether a route stands still (paused by an operator, or left alone), and whether its breaker is open.
pub fn route_standing(route: &str, still: bool, open: bool) {
    // The first that is given up must be seen to increase it.
    counter!("pointsman_legs_total", "route" => route.to_owned(), "state" => "expired", "reason" => "expired")
        .increment(0);
    for action in ["deferred", "held", "alert"] {
        counter!("pointsman_paced_total", "route" => route.to_owned(), "action" => action).increment(0);
    }
    gauge!("pointsman_route_paused", "route" => route.to_owned()).set(f64::from(u8::from(still)));
    gauge!("pointsman_route_breaker_open", "route" => route.to_owned()).set(f64::from(u8::from(open)));
}

/// An operator, or the end of the time that one gave, changed whether a route goes on.
pub fn route_pause(route: &str, by: &str, until: Option<Timestamp>, paused: bool) {
    let until = until.map_or_else(|| "an operator resumes it".to_owned(), |until| until.to_string());
    if paused {
        warn!(event = "route-paused", route, by = %quoted(by), until, "the route is paused: its legs wait");
    } else {
        info!(event = "route-resumed", route, by = %quoted(by));
    }
}

/// The breaker of a route is open: nobody sends for `wait`. `cause` is `unreachable` (no host gave a session; `legs`
/// legs share that answer) or `failing` (most attempts fail; `legs` legs went back to the store untried). `why` names no
/// target.
pub fn lane_backed_off(route: &str, cause: &'static str, legs: usize, wait: Duration, why: &str) {
    warn!(event = "route-backs-off", route, cause, legs, seconds = wait.as_secs_f64(), why);
}

/// The breaker of a route is closed again.
pub fn lane_reopened(route: &str) {
    info!(event = "route-reached-again", route);
}

/// As [`lane_backed_off`], for one domain of a route that looks hosts up.
pub fn domain_backed_off(route: &str, domain: &str, cause: &'static str, legs: usize, wait: Duration, why: &str) {
    warn!(event = "domain-backs-off", route, domain, cause, legs, seconds = wait.as_secs_f64(), why);
}

/// A domain that backed off is reached again.
pub fn domain_reopened(route: &str, domain: &str) {
    info!(event = "domain-reached-again", route, domain);
}

/// The way out cannot use the store; it tries again.
pub fn outbound_store_failed(route: &str, what: &'static str, error: &dyn Display) {
    tracing::error!(event = "store-failed", route, what, %error);
}

/// A settlement found the leg in other hands or final already.
pub fn settlement_not_ours(leg: &dyn Display, route: &str) {
    warn!(event = "leg-changed-hands", %leg, route, "the leg had changed hands, its outcome was not written");
}

/// The wall clock left the monotonic one by `by`: for an hour no leg expires.
pub fn clock_jumped(by: Duration) {
    warn!(event = "clock-jumped", seconds = by.as_secs(), "the wall clock jumped, expiry is suspended for an hour");
}

/// `c***@***.vendor.example`: enough to recognise, too little to write to. Of a domain the last two labels stay: those
/// before them hold the key with some CRMs.
#[must_use]
pub fn masked(address: &str) -> String {
    let (local, domain) = address.rsplit_once('@').unwrap_or((address, ""));
    let first = local.chars().next().map(String::from).unwrap_or_default();
    match domain.rmatch_indices('.').nth(1) {
        Some((at, _)) => format!("{first}***@***{}", &domain[at..]),
        None => format!("{first}***@{domain}"),
    }
}

// The daemon

pub fn serving(listeners: &str, admin: Option<SocketAddr>) {
    gauge!("pointsman_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    // A counter that began with its first event would hide it: what is not there before cannot increase.
    counter!("pointsman_store_failures_total").increment(0);
    let admin = admin.map_or_else(|| "off".to_owned(), |address| address.to_string());
    info!(event = "serving", version = env!("CARGO_PKG_VERSION"), listeners, admin);
}

/// The first start made a key for notifications; its record is not published yet.
pub fn dkim_key_made(path: &str, selector: &str) {
    info!(event = "dkim-key-made", path, selector, "made a DKIM key: `pointsman dns` prints the records to publish");
}

/// There is no key that we can sign with.
pub fn dkim_key_unusable(error: &dyn Display) {
    tracing::error!(event = "dkim-key-unusable", %error, "notifications go out unsigned");
}

/// An ARC set could not be made: the copies go out without.
pub fn unsealed(message: MessageId, error: &dyn Display) {
    tracing::error!(event = "unsealed", %message, %error);
}

/// There is no key that our copies could be known by.
pub fn loop_key_unusable(error: &dyn Display) {
    tracing::error!(event = "loop-key-unusable", %error, "mail that comes back is known by its hops alone");
}

/// Mail goes round in circles, or looks like it: mark, hops, fingerprint, automatic, rate.
pub fn loop_seen(sign: &'static str) {
    counter!("pointsman_loops_total", "sign" => sign).increment(1);
}

/// The queue can be written again, or no more: then new mail is answered 4xx.
pub fn store_ready(ready: bool) {
    if ready {
        info!(event = "store-ready", "the queue can be written again");
    } else {
        counter!("pointsman_store_failures_total").increment(1);
        tracing::error!(event = "store-failed", "the queue cannot be written: new mail is answered 451");
    }
}

/// The data directory's mode lets other users in.
pub fn data_is_open(path: &str, mode: u32) {
    let mode = format!("{mode:04o}");
    warn!(event = "data-open-to-others", path, mode, "other users can enter the data directory: make it 0750");
}

/// Gauges that are read from the store.
pub fn open_legs(route: &str, state: &'static str, legs: u64) {
    gauge!("pointsman_open_legs", "route" => route.to_owned(), "state" => state).set(legs as f64);
}

pub fn oldest_leg(route: &str, state: &'static str, age: Duration) {
    gauge!("pointsman_open_legs_oldest_seconds", "route" => route.to_owned(), "state" => state).set(age.as_secs_f64());
}

/// Whether new mail can be taken.
pub fn readiness(ready: bool) {
    gauge!("pointsman_ready").set(if ready { 1.0 } else { 0.0 });
}

pub fn data_free(bytes: u64) {
    gauge!("pointsman_data_free_bytes").set(bytes as f64);
}

/// The service manager could not be told how we are: it may think that we never started.
pub fn supervisor_unreachable(error: &dyn Display) {
    warn!(event = "supervisor-unreachable", %error, "cannot tell the service manager how the daemon is");
}

pub fn draining() {
    info!(event = "draining", "no new sessions; finishing what is under way");
}

pub fn stopped() {
    info!(event = "stopped");
}

/// What the configuration asks for and is not built yet: whoever reads the log later must not think that it is done.
pub fn without_function(what: &[String]) {
    if !what.is_empty() {
        warn!(event = "without-function", what = what.join("; "), "the configuration asks for what is not built yet");
    }
}

/// A configuration was put in force, or turned out to be the one that is: `result` is taken, unchanged or rolled-back.
pub fn configuration_taken(result: &'static str, by: &dyn Display, hash: &str, rule_set: &str, changes: &str) {
    counter!("pointsman_reloads_total", "result" => result).increment(1);
    info!(event = "configuration", result, %by, hash, rule_set, changes);
}

/// A configuration was refused; what is in force stays. `why` is the first of `errors`.
pub fn configuration_refused(by: &dyn Display, errors: usize, why: &str) {
    counter!("pointsman_reloads_total", "result" => "refused").increment(1);
    tracing::error!(
        event = "configuration", result = "refused", %by, errors, why = %quoted(why),
        "the configuration was refused, the one in force stays"
    );
}

/// What is in force is what the files on the disk say (`None`), or why it is not.
pub fn configuration_stale(why: Option<&str>) {
    gauge!("pointsman_config_stale").set(if why.is_some() { 1.0 } else { 0.0 });
    if let Some(why) = why {
        warn!(event = "configuration-stale", why = %quoted(why), "an accepted configuration serves, not the files on the disk");
    }
}

/// What the configuration wants and the running daemon cannot change.
pub fn waits_for_restart(keys: &str) {
    warn!(event = "waits-for-restart", keys, "the configuration changes what only a restart can change");
}

/// What was accepted cannot be kept for the next start.
pub fn configuration_not_kept(error: &dyn Display) {
    tracing::error!(event = "configuration-not-kept", %error, "the accepted configuration could not be kept");
}

/// Held legs go on, because their route is there again.
pub fn route_is_back(route: &str, legs: usize) {
    info!(event = "route-is-back", route, legs, "the route is there again, its held legs go on");
}

/// An operator changed legs over the control socket; `chosen` says how they were, as the command line would.
pub fn operated(by: &str, action: &str, chosen: &str, legs: usize) {
    info!(event = "operator", by, action, chosen = %quoted(chosen), legs);
}

/// A panic, in the words of whoever panicked. Where it was contained is counted by [`panicked`].
pub fn panic(text: &str, at: &str) {
    tracing::error!(event = "panic", text = %quoted(text), at, "a fault of ours: please report it");
}

/// A panic of this part was contained: it goes on, or is begun anew.
pub fn panicked(place: &'static str) {
    counter!("pointsman_panics_total", "place" => place).increment(1);
    tracing::error!(event = "panicked", place);
}

/// A part that cannot be begun anew has ended: the daemon ends, for whoever watches over it to start it again.
pub fn ends_by_fault(what: &str) {
    tracing::error!(event = "ends-by-fault", what, "a part of the daemon has ended, so it ends: start it again");
}

/// A leg whose attempt ended in a panic of ours.
pub fn leg_faulted(leg: &LegId, route: &str, state: &'static str, reason: &'static str) {
    leg_entered(route, state, reason);
    warn!(event = "leg-held", %leg, route, reason, detail = "a fault of ours ended its attempt");
}

/// How a command ended could not be written into the book of commands.
pub fn audit_failed(error: &dyn Display, outcome: &str) {
    tracing::error!(event = "audit-failed", %error, outcome = %quoted(outcome));
}

/// An operator wants the daemon to take no more mail, deliver what it has, and end.
pub fn drain_asked(by: &str) {
    info!(event = "drain", by = %quoted(by), "an operator drains: no new mail, and the end when nothing is left");
}

// Text that others chose

/// Escapes control and invisible characters of a peer's text and cuts it at [`PEER_TEXT_CHARS_MAX`].
#[must_use]
pub fn quoted(text: &str) -> Quoted<'_> {
    Quoted(text)
}

/// See [`quoted`].
#[derive(Clone, Copy, Debug)]
pub struct Quoted<'a>(&'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (count, c) in self.0.chars().enumerate() {
            if count == PEER_TEXT_CHARS_MAX {
                return f.write_str("…");
            }
            if is_hidden(c) {
                write!(f, "\\u{{{:x}}}", u32::from(c))?;
            } else {
                fmt::Write::write_char(f, c)?;
            }
        }
        Ok(())
    }
}

/// Controls, and what turns a line around, breaks it or cannot be seen: text with it may look like other text.
#[must_use]
pub fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{e0000}'..='\u{e007f}'
        )
}

fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

/// Longer than any address (254), so that nothing is cut without an attack.
const PEER_TEXT_CHARS_MAX: usize = 400;

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[test]
    fn peer_text_stays_on_its_line_and_is_cut() {
        assert_eq!(quoted("a\r\nb\u{1b}[2J\u{2028}").to_string(), "a\\u{d}\\u{a}b\\u{1b}[2J\\u{2028}");
        let at = |n: usize| quoted(&"x".repeat(n)).to_string().chars().count();
        assert_eq!(at(PEER_TEXT_CHARS_MAX), PEER_TEXT_CHARS_MAX);
        assert!(quoted(&"x".repeat(PEER_TEXT_CHARS_MAX + 1)).to_string().ends_with('…'));
    }

    #[test]
    fn a_masked_address_cannot_be_written_to() {
        for (address, want) in [
            ("cases-7f3a@crm.example", "c***@crm.example"),
            ("\"é b@c\"@crm.example", "\"***@crm.example"),
            ("support@a1b2c3.eu17.case.crm.example", "s***@***.crm.example"),
            ("x", "x***@"),
        ] {
            assert_eq!(masked(address), want);
        }
    }

    /// Where the lines of a test's own subscriber go.
    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// What is logged while `act` runs, at any level.
    fn logged(act: impl FnOnce()) -> String {
        let sink = Sink::default();
        let writer = sink.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::TRACE)
            .with_writer(move || writer.clone())
            .finish();
        tracing::subscriber::with_default(subscriber, act);
        String::from_utf8(sink.0.lock().unwrap().clone()).unwrap()
    }

    /// Every event that is told a target, or what a target's host said.
    #[test]
    fn an_intake_address_does_not_reach_the_log() {
        let target = Mailbox::parse("Cases-7f3a@k9x8y7.case.crm.example").unwrap();
        let leg = LegId { message: MessageId(1), n: 1 };
        let alias = "aide@solarmora.com";
        let said = "550 5.1.1 <cases-7F3A@k9x8y7.case.CRM.example> for aide@solarmora.com: 7f3a is no key of k9x8y7";
        let attempt = |alias, target_name| {
            attempt_ended(AttemptEnded {
                leg: &leg,
                route: "crm",
                alias,
                target_name,
                target: &target,
                peer: "crm.example [192.0.2.9]",
                stage: "rcpt",
                result: "permfail",
                reply: said,
                attempt: 1,
                duration: Duration::ZERO,
                state: "held",
                reason: "unknown-target",
            });
        };
        let events: [(&str, &dyn Fn()); 5] = [
            ("attempt", &|| attempt(alias, None)),
            ("attempt", &|| attempt(alias, Some("salesforce"))),
            // A notification's leg, which has no alias of its own.
            ("attempt", &|| attempt(target.as_str(), None)),
            ("leg-held", &|| leg_held(&leg, "crm", "unknown-target", said, &target, alias)),
            ("notification", &|| notification_made(&leg, MessageId(2), "failed", target.as_str())),
        ];
        for (name, event) in events {
            let line = logged(event).to_lowercase();
            assert!(line.contains(name), "{line}");
            for secret in ["cases", "7f3a", "k9x8y7", "case.crm"] {
                assert!(!line.contains(secret), "{line}");
            }
        }
    }
}
