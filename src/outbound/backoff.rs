//! How long a destination that cannot be reached is left alone. Pure.
//!
//! Closed (healthy) until no host answers; then one dial at a time, not before 1 s, 2 s, 4 s … 60 s have passed. A
//! session that comes about closes it again. Dials that were under way when the first failure became known add
//! nothing: a hundred workers that fail together are one failure.

use std::time::Duration;

#[derive(Clone, Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
    not_before: Duration,
    failed_at: Option<Duration>,
}

impl Backoff {
    /// A dial that began at `began` has failed at `now` (both monotonic). `Some`: how long nobody dials; `None`: it
    /// belongs to a failure that is known already.
    pub(super) fn failed(&mut self, began: Duration, now: Duration) -> Option<Duration> {
        if self.failed_at.is_some_and(|failed_at| began <= failed_at) {
            return None;
        }
        let wait = (WAIT_FIRST * 2u32.saturating_pow(self.failures.min(10))).min(WAIT_MAX);
        self.failures = self.failures.saturating_add(1);
        self.failed_at = Some(now);
        self.not_before = now + wait;
        Some(wait)
    }

    /// A session came about. Says whether that ends a back-off.
    pub(super) fn succeeded(&mut self) -> bool {
        let was_open = self.failures > 0;
        self.failures = 0;
        // What fails from here on is news, whenever its dial began.
        self.failed_at = None;
        was_open
    }

    /// Allows a dial at once. The failures still count: it is one dial, and the wait after it is no shorter.
    pub(super) fn end_wait(&mut self) {
        self.not_before = Duration::ZERO;
    }

    /// How long from `now` until a dial is allowed; zero where it is.
    #[must_use]
    pub(super) fn wait(&self, now: Duration) -> Duration {
        if self.failures == 0 { Duration::ZERO } else { self.not_before.saturating_sub(now) }
    }

    /// How many sessions the destination may have, where `open` are alive: while it backs off, one more than those.
    /// A server that refuses the eleventh session has not gone away.
    #[must_use]
    pub(super) fn window(&self, concurrency: usize, open: usize) -> usize {
        let window = if self.failures == 0 { concurrency } else { concurrency.min(open + 1) };
        window.max(1)
    }
}

const WAIT_FIRST: Duration = Duration::from_secs(1);
// An operator who mends a host sees mail flow within a minute.
const WAIT_MAX: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_minute() {
        let mut backoff = Backoff::default();
        let mut now = Duration::ZERO;
        for seconds in [1, 2, 4, 8, 16, 32, 60, 60, 60] {
            now += Duration::from_secs(100);
            assert_eq!(backoff.failed(now, now), Some(Duration::from_secs(seconds)));
            assert_eq!(backoff.wait(now), Duration::from_secs(seconds));
            assert_eq!(backoff.window(20, 0), 1);
            assert_eq!(backoff.window(20, 19), 20);
            assert_eq!(backoff.window(20, 20), 20);
        }
        assert!(backoff.succeeded());
        assert!(!backoff.succeeded());
        assert_eq!((backoff.wait(now), backoff.window(20, 0), backoff.window(0, 0)), (Duration::ZERO, 20, 1));
    }

    #[test]
    fn a_wait_that_is_ended_allows_one_dial_and_is_followed_by_a_longer_one() {
        let mut backoff = Backoff::default();
        let at = Duration::from_secs;
        for now in [100, 200, 300] {
            let _ = backoff.failed(at(now), at(now));
        }
        backoff.end_wait();
        assert_eq!((backoff.wait(at(301)), backoff.window(20, 0)), (Duration::ZERO, 1));
        assert_eq!(backoff.failed(at(301), at(302)), Some(at(8)));
    }

    #[test]
    fn dials_that_fail_together_are_one_failure() {
        let mut backoff = Backoff::default();
        let at = Duration::from_secs;
        assert!(backoff.failed(at(1), at(5)).is_some());
        assert_eq!(backoff.failed(at(2), at(6)), None);
        assert_eq!(backoff.failed(at(5), at(7)), None);
        assert_eq!(backoff.failed(at(8), at(9)), Some(at(2)));
        backoff.succeeded();
        assert_eq!(backoff.failed(at(8), at(9)), Some(at(1)));
    }
}
