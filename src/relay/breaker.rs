//! The breaker of a destination: when it is left alone, for how long, and how it is tried again. Pure.
//!
//! | State | Until | Meanwhile |
//! |---|---|---|
//! | closed | no host can be reached, or most attempts of the last minutes fail | mail flows |
//! | open, unreachable | a session comes about | nobody dials before 1 s, 2 s, 4 s … 60 s have passed; then one does |
//! | open, failing | a leg goes through | nobody sends before the same waits have passed; then one leg is tried |
//!
//! One dial that fails on all hosts is proof enough. A host that answers is given [`ATTEMPTS_MIN`] attempts within
//! [`WINDOW`]; where [`ILL_PERCENT`] of them failed by its own fault it is failing. What the destination says of one
//! message or one mailbox is no fault of its own: a full mailbox must not stop its neighbours' mail.
//! Attempts that were under way when the first failure became known add nothing: a hundred workers that fail together are
//! one failure.

use std::collections::VecDeque;
use std::time::Duration;

/// What an attempt says of its destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// It works.
    Well,
    /// It spoke of the message or the mailbox, and may be ill or well.
    Unknown,
    /// It does not do its work: 4xx, silence, a broken session, a refusal of us.
    Ill,
}

/// What an attempt changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Change {
    Nothing,
    /// It is open from now on, or still: nobody sends before the wait is over.
    Opened {
        wait: Duration,
    },
    Closed,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Closed,
    Unreachable,
    Failing,
}

#[derive(Clone, Debug, Default)]
pub struct Breaker {
    state: State,
    /// In a row, since it opened.
    failures: u32,
    not_before: Duration,
    failed_at: Option<Duration>,
    /// When the last attempts ended, and whether ill. Invariant: [`RECENT_MAX`] at the most.
    recent: VecDeque<(Duration, bool)>,
}

impl Breaker {
    /// A dial that began at `began` has failed at `now` on all hosts (both monotonic). `Some`: how long nobody dials;
    /// `None`: it belongs to a failure that is known already.
    pub fn unreachable(&mut self, began: Duration, now: Duration) -> Option<Duration> {
        if self.is_known(began) {
            return None;
        }
        // Who was failing must still show that it takes a leg.
        if self.state == State::Closed {
            self.state = State::Unreachable;
        }
        Some(self.fail(now))
    }

    /// A session came about. Says whether the breaker closes with it.
    pub fn reached(&mut self) -> bool {
        match self.state {
            State::Closed | State::Unreachable => {
                let was_open = self.state == State::Unreachable;
                self.close();
                was_open
            }
            State::Failing => false,
        }
    }

    /// An attempt that began at `began` has ended at `now` (both monotonic).
    pub fn ended(&mut self, health: Health, began: Duration, now: Duration) -> Change {
        match (self.state, health) {
            (State::Closed, Health::Well | Health::Ill) => self.count(health == Health::Ill, now),
            // It says nothing of those that wait, or a session that lives on while no other comes about.
            (State::Closed, Health::Unknown) | (State::Unreachable, _) => Change::Nothing,
            (State::Failing, _) if self.is_known(began) => Change::Nothing,
            // Whoever judges a mailbox does its work.
            (State::Failing, Health::Well | Health::Unknown) => {
                self.close();
                Change::Closed
            }
            (State::Failing, Health::Ill) => Change::Opened { wait: self.fail(now) },
        }
    }

    fn count(&mut self, ill: bool, now: Duration) -> Change {
        while self.recent.len() >= RECENT_MAX || self.recent.front().is_some_and(|(at, _)| *at + WINDOW < now) {
            self.recent.pop_front();
        }
        self.recent.push_back((now, ill));
        let ills = self.recent.iter().filter(|(_, ill)| *ill).count();
        if !ill || self.recent.len() < ATTEMPTS_MIN || ills * 100 < self.recent.len() * ILL_PERCENT {
            return Change::Nothing;
        }
        self.state = State::Failing;
        self.recent.clear();
        // It answers, and was given twenty attempts: the first wait is a longer one.
        self.failures = FAILING_FROM;
        Change::Opened { wait: self.fail(now) }
    }

    fn fail(&mut self, now: Duration) -> Duration {
        let wait = (WAIT_FIRST * 2u32.saturating_pow(self.failures.min(10))).min(WAIT_MAX);
        self.failures = self.failures.saturating_add(1);
        self.failed_at = Some(now);
        self.not_before = now + wait;
        wait
    }

    fn close(&mut self) {
        self.state = State::Closed;
        self.failures = 0;
        // What fails from here on is news, whenever its dial began.
        self.failed_at = None;
    }

    fn is_known(&self, began: Duration) -> bool {
        self.failed_at.is_some_and(|failed_at| began <= failed_at)
    }

    /// Allows a dial or a leg at once. The failures still count: it is one, and the wait after it is no shorter.
    pub fn end_wait(&mut self) {
        self.not_before = Duration::ZERO;
    }

    /// How long from `now` until a dial or a leg is allowed; zero where it is.
    #[must_use]
    pub fn wait(&self, now: Duration) -> Duration {
        match self.state {
            State::Closed => Duration::ZERO,
            State::Unreachable | State::Failing => self.not_before.saturating_sub(now),
        }
    }

    /// One leg at a time is tried, and the others wait in the store.
    #[must_use]
    pub fn is_failing(&self) -> bool {
        self.state == State::Failing
    }

    /// Nothing is known that a new beginning would not know: the destination is well, or was not tried for long.
    #[must_use]
    pub fn is_past(&self, now: Duration) -> bool {
        let counts = self.recent.back().is_some_and(|(at, _)| *at + WINDOW >= now);
        (self.state == State::Closed && !counts) || (self.state != State::Closed && now >= self.not_before + MEMORY)
    }

    /// How many sessions the destination may have, where `open` are alive: while none comes about, one more than those.
    /// A server that refuses the eleventh session has not gone away.
    #[must_use]
    pub fn window(&self, concurrency: usize, open: usize) -> usize {
        let window = match self.state {
            State::Closed => concurrency,
            State::Unreachable | State::Failing => concurrency.min(open + 1),
        };
        window.max(1)
    }
}

/// A destination that has had fewer attempts has not shown what it is.
pub const ATTEMPTS_MIN: usize = 20;
/// Four of five: what a limit of rates lets through keeps it closed, and is slower than we are anyway.
const ILL_PERCENT: usize = 80;
/// Whoever was well five minutes ago, and has failed since, is seen by then at the rate of a small site.
const WINDOW: Duration = Duration::from_secs(5 * 60);
/// Of a busy destination: more would say the same.
const RECENT_MAX: usize = 200;
const WAIT_FIRST: Duration = Duration::from_secs(1);
/// The wait behind so many failures, 16 s, is the first of a destination that fails.
const FAILING_FROM: u32 = 4;
// An operator who mends a host sees mail flow within a minute.
const WAIT_MAX: Duration = Duration::from_secs(60);
/// A destination that is tried now and then is not tried every second again.
const MEMORY: Duration = Duration::from_secs(10 * 60);

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn waits_double_up_to_a_minute() {
        let mut breaker = Breaker::default();
        let mut now = Duration::ZERO;
        for seconds in [1, 2, 4, 8, 16, 32, 60, 60, 60] {
            now += at(100);
            assert_eq!(breaker.unreachable(now, now), Some(at(seconds)));
            assert_eq!(breaker.wait(now), at(seconds));
            assert_eq!(breaker.window(20, 0), 1);
            assert_eq!(breaker.window(20, 19), 20);
            assert_eq!(breaker.window(20, 20), 20);
        }
        assert!(breaker.reached());
        assert!(!breaker.reached());
        assert_eq!((breaker.wait(now), breaker.window(20, 0), breaker.window(0, 0)), (Duration::ZERO, 20, 1));
    }

    #[test]
    fn a_wait_that_is_ended_allows_one_dial_and_is_followed_by_a_longer_one() {
        let mut breaker = Breaker::default();
        for now in [100, 200, 300] {
            let _ = breaker.unreachable(at(now), at(now));
        }
        breaker.end_wait();
        assert_eq!((breaker.wait(at(301)), breaker.window(20, 0)), (Duration::ZERO, 1));
        assert_eq!(breaker.unreachable(at(301), at(302)), Some(at(8)));
    }

    #[test]
    fn dials_that_fail_together_are_one_failure() {
        let mut breaker = Breaker::default();
        assert!(breaker.unreachable(at(1), at(5)).is_some());
        assert_eq!(breaker.unreachable(at(2), at(6)), None);
        assert_eq!(breaker.unreachable(at(5), at(7)), None);
        assert_eq!(breaker.unreachable(at(8), at(9)), Some(at(2)));
        breaker.reached();
        assert_eq!(breaker.unreachable(at(8), at(9)), Some(at(1)));
    }

    /// So many attempts within the same second.
    fn attempts(breaker: &mut Breaker, health: Health, count: usize, now: Duration) -> Change {
        (0..count).map(|_| breaker.ended(health, now, now)).last().unwrap_or(Change::Nothing)
    }

    #[test]
    fn it_opens_at_the_least_number_of_attempts_and_not_one_before() {
        let mut breaker = Breaker::default();
        assert_eq!(attempts(&mut breaker, Health::Ill, ATTEMPTS_MIN - 1, at(1)), Change::Nothing);
        assert_eq!(breaker.ended(Health::Unknown, at(1), at(1)), Change::Nothing);
        assert_eq!(breaker.ended(Health::Ill, at(1), at(2)), Change::Opened { wait: at(16) });
        assert!(breaker.is_failing());
        assert_eq!((breaker.wait(at(2)), breaker.wait(at(18))), (at(16), Duration::ZERO));
    }

    #[test]
    fn it_opens_at_the_rate_and_not_below() {
        for (well, ill, opens) in [(20, 79, false), (20, 80, true), (5, 20, true), (6, 20, false), (100, 100, false)] {
            let mut breaker = Breaker::default();
            assert_eq!(attempts(&mut breaker, Health::Well, well, at(1)), Change::Nothing);
            let change = attempts(&mut breaker, Health::Ill, ill, at(1));
            assert_eq!(change != Change::Nothing, opens, "{well} well, {ill} ill");
        }
    }

    #[test]
    fn what_is_older_than_the_window_or_beyond_the_last_attempts_does_not_count() {
        let mut breaker = Breaker::default();
        let _ = attempts(&mut breaker, Health::Ill, ATTEMPTS_MIN - 1, at(1));
        assert_eq!(breaker.ended(Health::Ill, at(400), at(400)), Change::Nothing);
        let mut breaker = Breaker::default();
        let _ = attempts(&mut breaker, Health::Well, 10_000, at(1));
        assert_eq!(breaker.recent.len(), RECENT_MAX);
        let ill = (1..).find(|_| breaker.ended(Health::Ill, at(1), at(1)) != Change::Nothing);
        assert_eq!(ill, Some(RECENT_MAX * ILL_PERCENT / 100));
    }

    #[test]
    fn one_leg_closes_it_and_one_more_failure_waits_longer() {
        let mut breaker = Breaker::default();
        let _ = attempts(&mut breaker, Health::Ill, ATTEMPTS_MIN, at(10));
        // What was under way is no news, neither way.
        assert_eq!(breaker.ended(Health::Ill, at(9), at(11)), Change::Nothing);
        assert_eq!(breaker.ended(Health::Well, at(9), at(11)), Change::Nothing);
        assert!(!breaker.reached() && breaker.is_failing(), "a session says nothing of its work");
        assert_eq!(breaker.ended(Health::Ill, at(30), at(31)), Change::Opened { wait: at(32) });
        assert_eq!(breaker.unreachable(at(64), at(65)), Some(at(60)));
        assert!(breaker.is_failing());
        assert_eq!(breaker.ended(Health::Unknown, at(130), at(131)), Change::Closed);
        assert_eq!((breaker.wait(at(131)), breaker.window(20, 0)), (Duration::ZERO, 20));
        // It begins anew.
        assert_eq!(attempts(&mut breaker, Health::Ill, ATTEMPTS_MIN - 1, at(132)), Change::Nothing);
    }

    #[test]
    fn a_session_that_lives_on_does_not_say_that_another_can_be_had() {
        let mut breaker = Breaker::default();
        let _ = breaker.unreachable(at(1), at(1));
        assert_eq!(breaker.ended(Health::Well, at(2), at(3)), Change::Nothing);
        assert_eq!(breaker.wait(at(1)), at(1));
    }
}
