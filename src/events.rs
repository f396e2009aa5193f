//! One function for each thing that happens: its log line and its metrics together, so that they agree.
//!
//! Adapters and conductors call it; steps and pure modules never do. What a peer said is escaped and cut before it
//! gets here or by the formatter; no label is chosen by a peer.

use std::fmt::Display;
use std::time::Duration;

// Outbound

/// One attempt to relay a leg, whole: the wide event of the way out.
#[derive(Clone, Copy)]
pub struct AttemptEnded<'a> {
    pub leg: &'a dyn Display,
    pub route: &'a str,
    pub alias: &'a str,
    /// Our name for the target where it has one: the address itself is a secret.
    pub target_name: Option<&'a str>,
    pub target: &'a str,
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
    let target = event.target_name.map_or_else(|| masked(event.target), str::to_owned);
    tracing::info!(
        leg = %event.leg,
        route = event.route,
        alias = event.alias,
        target,
        peer = event.peer,
        stage = event.stage,
        result = event.result,
        reply = scrubbed(event.reply, event.target),
        attempt = event.attempt,
        seconds = event.duration.as_secs_f64(),
        state = event.state,
        reason = event.reason,
        "attempt ended",
    );
}

/// A leg entered a state.
pub fn leg_settled(route: &str, state: &'static str, reason: &'static str) {
    metrics::counter!("pointsman_legs_total", "route" => route.to_owned(), "state" => state, "reason" => reason)
        .increment(1);
}

/// A leg was delivered, so long after its message was received.
pub fn leg_delivered(route: &str, since_received: Duration) {
    metrics::histogram!("pointsman_delivery_seconds", "route" => route.to_owned()).record(since_received.as_secs_f64());
}

/// A leg waits for an administrator: our configuration or our disk is wrong.
pub fn leg_held(leg: &dyn Display, route: &str, reason: &'static str, detail: &str) {
    tracing::warn!(%leg, route, reason, detail, "leg held");
}

/// No host of the route can be reached: `legs` legs share that answer, and nobody dials for `wait`.
pub fn lane_backed_off(route: &str, legs: usize, wait: Duration, why: &str) {
    tracing::warn!(route, legs, seconds = wait.as_secs_f64(), why, "route backs off");
}

/// A route that backed off is reached again.
pub fn lane_reopened(route: &str) {
    tracing::info!(route, "route reached again");
}

/// A worker's task panicked; its leg goes back to the queue.
pub fn worker_panicked(route: &str) {
    tracing::error!(route, "a relay worker panicked, its leg goes back to the queue");
}

/// The way out cannot use the store; it tries again.
pub fn outbound_store_failed(route: &str, what: &'static str, error: &dyn Display) {
    tracing::error!(route, what, %error, "the store failed");
}

/// A settlement found the leg in other hands or final already.
pub fn settlement_not_ours(leg: &dyn Display, route: &str) {
    tracing::warn!(%leg, route, "the leg had changed hands, its outcome was not written");
}

/// The wall clock left the monotonic one by `by`: for an hour no leg expires.
pub fn clock_jumped(by: Duration) {
    tracing::warn!(seconds = by.as_secs(), "the wall clock jumped, expiry is suspended for an hour");
}

/// `c***@domain`: enough to recognise, too little to write to.
fn masked(address: &str) -> String {
    let (local, domain) = address.rsplit_once('@').unwrap_or((address, ""));
    let first = local.chars().next().map(String::from).unwrap_or_default();
    format!("{first}***@{domain}")
}

/// A reply without the target's address, which remotes love to repeat.
fn scrubbed(reply: &str, target: &str) -> String {
    // ASCII lower case keeps the positions of octets.
    let (lower, wanted) = (reply.to_ascii_lowercase(), target.to_ascii_lowercase());
    if wanted.is_empty() || !lower.contains(&wanted) {
        return reply.to_owned();
    }
    let mut clean = String::with_capacity(reply.len());
    let mut copied = 0;
    for (at, _) in lower.match_indices(&wanted) {
        clean.push_str(&reply[copied..at]);
        clean.push_str(&masked(target));
        copied = at + wanted.len();
    }
    clean + &reply[copied..]
}

#[cfg(test)]
mod outbound_tests {
    use super::*;

    #[test]
    fn an_intake_address_does_not_reach_the_log() {
        assert_eq!(masked("cases-7f3a@crm.example"), "c***@crm.example");
        assert_eq!(masked("\"é b@c\"@crm.example"), "\"***@crm.example");
        assert_eq!(
            scrubbed("550 <Cases@CRM.example>: no, cases@crm.example", "cases@crm.example"),
            "550 <c***@crm.example>: no, c***@crm.example"
        );
        assert_eq!(scrubbed("250 ok", "cases@crm.example"), "250 ok");
    }
}
