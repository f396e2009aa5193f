//! Time, the only place that reads it.
//!
//! Everything that decides takes a [`Timestamp`] as an argument; only the conductors hold a [`Clock`].
//! The test-suite gives them one that follows tokio's paused time, so that a day of mail takes seconds.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A wall-clock instant in milliseconds since 1970-01-01 UTC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// This instant moved later by `wait`; saturates at the end of time.
    #[must_use]
    pub fn after(self, wait: Duration) -> Timestamp {
        Timestamp(self.0.saturating_add(i64::try_from(wait.as_millis()).unwrap_or(i64::MAX)))
    }

    /// The time from `earlier` to this instant; zero where the clock went backwards.
    #[must_use]
    pub fn since(self, earlier: Timestamp) -> Duration {
        Duration::from_millis(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// Days since 1970 that have begun, in UTC.
    #[must_use]
    pub fn day(self) -> u64 {
        self.since(Timestamp(0)).as_secs() / (24 * 60 * 60)
    }

    /// The date and time as RFC 5322 §3.3 writes it in a header field, in UTC.
    #[must_use]
    pub fn rfc5322(self) -> String {
        self.utc().strftime("%a, %d %b %Y %H:%M:%S +0000").to_string()
    }

    fn utc(self) -> jiff::Zoned {
        jiff::Timestamp::from_millisecond(self.0)
            .unwrap_or(jiff::Timestamp::UNIX_EPOCH)
            .to_zoned(jiff::tz::TimeZone::UTC)
    }
}

/// RFC 3339 with milliseconds in UTC, as logs and `trace` show it.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.utc().strftime("%Y-%m-%dT%H:%M:%S.%3fZ"))
    }
}

/// The port through which the conductors learn the time.
pub trait Clock: Send + Sync + 'static {
    /// The wall clock. It may jump in either direction.
    fn now(&self) -> Timestamp;
    /// Time since an arbitrary start. It never jumps.
    fn monotonic(&self) -> Duration;
}

/// The machine's clocks.
pub struct SystemClock {
    started: std::time::Instant,
}

impl SystemClock {
    #[must_use]
    pub fn new() -> SystemClock {
        SystemClock { started: std::time::Instant::now() }
    }
}

impl Default for SystemClock {
    fn default() -> SystemClock {
        SystemClock::new()
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp(i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX))
    }

    fn monotonic(&self) -> Duration {
        self.started.elapsed()
    }
}

/// A clock that follows tokio's time, which a test may pause and turn by hand.
pub struct TokioClock {
    epoch: Timestamp,
    started: tokio::time::Instant,
}

impl TokioClock {
    /// A clock that shows `epoch` now. Must be called inside a tokio runtime.
    #[must_use]
    pub fn starting_at(epoch: Timestamp) -> TokioClock {
        TokioClock { epoch, started: tokio::time::Instant::now() }
    }
}

impl Clock for TokioClock {
    fn now(&self) -> Timestamp {
        self.epoch.after(self.started.elapsed())
    }

    fn monotonic(&self) -> Duration {
        self.started.elapsed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_renderings_of_an_instant() {
        let at = Timestamp(1_795_292_431_042);
        assert_eq!(at.to_string(), "2026-11-21T20:20:31.042Z");
        assert_eq!(at.rfc5322(), "Sat, 21 Nov 2026 20:20:31 +0000");
    }

    #[test]
    fn a_day_begins_at_midnight() {
        assert_eq!([-1, 0, 86_399_999, 86_400_000].map(|at| Timestamp(at).day()), [0, 0, 0, 1]);
    }

    #[test]
    fn a_clock_that_went_backwards_gives_no_negative_wait() {
        assert_eq!(Timestamp(5).since(Timestamp(9)), Duration::ZERO);
    }
}
