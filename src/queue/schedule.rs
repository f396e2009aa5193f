//! When a leg is tried again, when it is given up, and when the wall clock cannot be trusted to say so. Pure.

use std::time::Duration;

use crate::clock::Timestamp;

/// When to try again after the attempt that ended at `now`. `attempts` counts those made, this one included; the
/// n-th wait follows the n-th attempt and the last value repeats. `jitter` in -1 … 1 moves the wait by up to ±10 %,
/// so that legs which failed together do not come back together. An empty `retry` waits an hour.
#[must_use]
pub fn next(retry: &[Duration], attempts: u32, now: Timestamp, jitter: f64) -> Timestamp {
    let at = usize::try_from(attempts.saturating_sub(1)).unwrap_or(usize::MAX);
    let wait = retry.get(at).or(retry.last()).copied().unwrap_or(RETRY_WITHOUT_SCHEDULE);
    let wait = wait.min(RETRY_MAX);
    now.after(wait.mul_f64(1.0 + JITTER_SHARE * jitter.clamp(-1.0, 1.0)))
}

/// Whether a leg received at `received` whose attempt failed at `now` is given up. Asked only after a failed attempt:
/// mail that slept through a long outage is always tried before it expires.
#[must_use]
pub fn expired(received: Timestamp, now: Timestamp, expire: Duration) -> bool {
    now.since(received) >= expire
}

/// Notices when the wall clock jumps against the monotonic one. While expiry is suspended nobody may be given up.
#[derive(Clone, Debug, Default)]
pub struct JumpWatch {
    last: Option<(Timestamp, Duration)>,
    suspended_until: Option<Duration>,
}

/// What the watch saw at one look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Jump {
    /// The clocks agree since the last look.
    None,
    /// The wall clock went ahead by `by` more than time did: expiry is suspended for an hour from now.
    Forward { by: Duration },
    /// The wall clock went back by `by`: expiry is suspended for an hour from now.
    Backward { by: Duration },
}

impl JumpWatch {
    /// Takes a reading of both clocks, made as one. The first reading is the base.
    pub fn look(&mut self, wall: Timestamp, monotonic: Duration) -> Jump {
        let Some((last_wall, last_monotonic)) = self.last.replace((wall, monotonic)) else {
            return Jump::None;
        };
        let elapsed = monotonic.saturating_sub(last_monotonic);
        let expected = last_wall.after(elapsed);
        let jump = if wall >= expected {
            Jump::Forward { by: wall.since(expected) }
        } else {
            Jump::Backward { by: expected.since(wall) }
        };
        match jump {
            Jump::Forward { by } | Jump::Backward { by } if by > JUMP_TOLERATED => {
                self.suspended_until = Some(monotonic + SUSPENSION);
                jump
            }
            Jump::None | Jump::Forward { .. } | Jump::Backward { .. } => Jump::None,
        }
    }

    /// Whether a failed attempt may end in `expired` at this monotonic time.
    #[must_use]
    pub fn may_expire(&self, monotonic: Duration) -> bool {
        self.suspended_until.is_none_or(|until| monotonic >= until)
    }
}

const JITTER_SHARE: f64 = 0.1;
// What the queue does where the configuration gives no waits at all.
const RETRY_WITHOUT_SCHEDULE: Duration = Duration::from_secs(3600);
// A year: beyond it a wait is a mistake, and f64 arithmetic on it must not overflow.
const RETRY_MAX: Duration = Duration::from_secs(365 * 24 * 3600);
// Daylight-saving mistakes move a wall clock by exactly an hour; an NTP step is far below it.
const JUMP_TOLERATED: Duration = Duration::from_secs(3600);
const SUSPENSION: Duration = Duration::from_secs(3600);

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);
    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn waits_follow_the_attempts_and_the_last_repeats() {
        let retry = [MINUTE, 5 * MINUTE, HOUR];
        let wait = |attempts| next(&retry, attempts, Timestamp(0), 0.0).since(Timestamp(0));
        for (attempts, expected) in [(0, MINUTE), (1, MINUTE), (2, 5 * MINUTE), (3, HOUR), (4, HOUR), (u32::MAX, HOUR)]
        {
            assert_eq!(wait(attempts), expected, "{attempts} attempts");
        }
    }

    #[test]
    fn jitter_moves_a_wait_by_a_tenth_at_the_most() {
        for (jitter, expected) in [(-1.0, 54_000), (0.0, 60_000), (1.0, 66_000), (9.0, 66_000), (-9.0, 54_000)] {
            assert_eq!(next(&[MINUTE], 1, Timestamp(0), jitter), Timestamp(expected), "{jitter}");
        }
    }

    #[test]
    fn no_schedule_and_absurd_schedules_still_give_a_time() {
        assert_eq!(next(&[], 1, Timestamp(0), 0.0), Timestamp(3_600_000));
        assert!(next(&[Duration::MAX], 1, Timestamp(i64::MAX), 1.0) <= Timestamp(i64::MAX));
    }

    #[test]
    fn a_leg_expires_at_its_age_and_not_before() {
        assert!(!expired(Timestamp(0), Timestamp(59_999), MINUTE));
        assert!(expired(Timestamp(0), Timestamp(60_000), MINUTE));
        assert!(!expired(Timestamp(60_000), Timestamp(0), MINUTE), "the clock went back");
    }

    #[test]
    fn a_jump_of_more_than_an_hour_suspends_expiry_for_an_hour() {
        let mut watch = JumpWatch::default();
        assert_eq!(watch.look(Timestamp(0), Duration::ZERO), Jump::None);
        assert_eq!(watch.look(Timestamp(0).after(MINUTE + HOUR), MINUTE), Jump::None, "an hour is tolerated");
        assert!(watch.may_expire(MINUTE));
        let wall = Timestamp(0).after(5 * HOUR);
        assert_eq!(watch.look(wall, 2 * MINUTE), Jump::Forward { by: 4 * HOUR - 2 * MINUTE });
        assert!(!watch.may_expire(2 * MINUTE));
        assert!(!watch.may_expire(HOUR + 2 * MINUTE - Duration::from_millis(1)));
        assert!(watch.may_expire(HOUR + 2 * MINUTE));
        assert_eq!(watch.look(Timestamp(0), 2 * MINUTE), Jump::Backward { by: 5 * HOUR });
        assert!(!watch.may_expire(HOUR + MINUTE));
    }
}
