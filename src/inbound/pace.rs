//! How slow a client may be. Pure.
//!
//! A limit on each read alone lets a client hold a session for ever by sending an octet now and then. So a message
//! must come at a rate that a modem reaches, and a session must bring a message in an hour.

use std::time::Duration;

/// The time that a session has used, measured from its last accepted message.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    since_message: Duration,
    message: Option<(Duration, u64)>,
}

impl Pace {
    /// A session that begins at `now`, on a clock that never jumps.
    pub(super) fn new(now: Duration) -> Pace {
        Pace { since_message: now, message: None }
    }

    /// The client was told to send its message.
    pub(super) fn message_begins(&mut self, now: Duration) {
        self.message = Some((now, 0));
    }

    pub(super) fn received(&mut self, octets: usize) {
        if let Some((_, total)) = &mut self.message {
            *total += octets as u64;
        }
    }

    /// The message ended; `accepted` starts the session's hour anew.
    pub(super) fn message_ends(&mut self, accepted: bool, now: Duration) {
        self.message = None;
        if accepted {
            self.since_message = now;
        }
    }

    /// How long the client may still take; zero when it is too slow.
    pub(super) fn left(&self, now: Duration) -> Duration {
        let (begun, allowed) = match self.message {
            Some((begun, octets)) => (begun, MESSAGE_GRACE + Duration::from_secs(octets / OCTETS_PER_SECOND_MIN)),
            None => (self.since_message, SESSION_WITHOUT_MESSAGE_MAX),
        };
        (begun + allowed).saturating_sub(now)
    }
}

/// As long as RFC 5321 §4.5.3.2 gives a client for its final dot.
const MESSAGE_GRACE: Duration = Duration::from_secs(10 * 60);
/// A tenth of a modem's rate: 50 MiB may take 14 hours, but an octet a second is over in ten minutes.
const OCTETS_PER_SECOND_MIN: u64 = 1024;
/// Pools of idle sessions are real; hours of NOOP are not.
const SESSION_WITHOUT_MESSAGE_MAX: Duration = Duration::from_secs(60 * 60);

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn an_octet_a_second_is_cut_off_after_ten_minutes() {
        let mut pace = Pace::new(Duration::ZERO);
        pace.message_begins(Duration::ZERO);
        pace.received(599);
        assert_eq!(pace.left(599 * SECOND), SECOND);
        pace.received(1);
        assert_eq!(pace.left(600 * SECOND), Duration::ZERO);
    }

    #[test]
    fn a_slow_but_steady_message_may_take_hours() {
        let mut pace = Pace::new(Duration::ZERO);
        pace.message_begins(Duration::ZERO);
        for second in 1..=10_000 {
            pace.received(1024);
            assert!(pace.left(second * SECOND) > Duration::ZERO);
        }
    }

    #[test]
    fn a_session_must_bring_a_message_in_an_hour() {
        let mut pace = Pace::new(Duration::ZERO);
        assert_eq!(pace.left(3599 * SECOND), SECOND);
        pace.message_begins(3599 * SECOND);
        pace.message_ends(true, 3600 * SECOND);
        assert_eq!(pace.left(3600 * SECOND), 3600 * SECOND);
        pace.message_begins(3700 * SECOND);
        pace.message_ends(false, 3800 * SECOND);
        assert_eq!(pace.left(3800 * SECOND), 3400 * SECOND);
    }
}
