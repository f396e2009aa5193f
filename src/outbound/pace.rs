//! Pace and ceilings: what a target's system, or the administrator, wants no more of in a time waits, and is never dropped.
//!
//! Looked at before each attempt, retries too, because a system that was away would else get at once what had piled up.
//! Whoever waits is given the time at which his place becomes free, so that a thousand identical mails cost a thousand
//! writes and not a thousand for each place. Who comes in between may take a promised place; then another is promised.
//!
//! Counts are kept in memory, in parts of a sixtieth of the window, so that what is admitted in any window never exceeds
//! the rate. A restart forgets them. So in the first window of a process a pace admits a quarter only: what the process
//! before it has sent and this are 1.25 times the rate together, which each documented limit bears (10 for 15, 40 for 50).
//! A ceiling is ours and begins anew.

use std::collections::{HashMap, VecDeque};
use std::sync::Mutex;
use std::time::Duration;

use aws_lc_rs::digest;

use crate::clock::Timestamp;
use crate::events;
use crate::message::{Head, Header, fields};
use crate::outbound::Shared;
use crate::queue::body::BodyReader;
use crate::queue::{Errand, OwnedLeg, Reason, Settlement, State};
use crate::relay::Route;
use crate::relay::profile::{Pace, Per, Rate};

/// What was sent lately.
pub(super) struct Pacer {
    /// When the process began to send (monotonic).
    began: Duration,
    windows: Mutex<HashMap<Key, Window>>,
}

/// A digest of what is counted together.
type Key = [u8; 32];

/// Why a leg waits, and for how long.
#[derive(Debug, PartialEq, Eq)]
enum Wait {
    Pace(Duration),
    Ceiling { wait: Duration, is_first: bool },
}

impl Pacer {
    pub(super) fn new(began: Duration) -> Pacer {
        Pacer { began, windows: Mutex::default() }
    }

    /// Counts a leg that may go now; else says how long it waits. `pace` and `ceiling` come with what is counted.
    fn admit(&self, pace: Option<(Key, Rate)>, ceiling: Option<(Key, Rate)>, now: Duration) -> Option<Wait> {
        let mut windows = self.windows.lock().expect("no code panics while it holds this lock");
        make_room(&mut windows, now);
        let pace = pace.map(|(key, rate)| (key, self.cautious(rate, now)));
        if let Some((key, rate)) = pace
            && let Some(wait) = windows.entry(key).or_default().full(rate, now)
        {
            return Some(Wait::Pace(wait));
        }
        if let Some((key, rate)) = ceiling {
            let window = windows.entry(key).or_default();
            if let Some(wait) = window.full(rate, now) {
                return Some(Wait::Ceiling { wait, is_first: window.tells(rate, now) });
            }
        }
        // Both are counted or none: a leg that waits for one must not use up the other.
        for (key, rate) in pace.into_iter().chain(ceiling) {
            windows.entry(key).or_default().count(rate, now);
        }
        None
    }

    /// Counts, and says whether this is the first of a window that is one too many.
    fn exceeds(&self, key: Key, rate: Rate, now: Duration) -> bool {
        let mut windows = self.windows.lock().expect("no code panics while it holds this lock");
        make_room(&mut windows, now);
        let window = windows.entry(key).or_default();
        if window.is_full(rate, now) {
            return window.tells(rate, now);
        }
        window.count(rate, now);
        false
    }

    fn cautious(&self, rate: Rate, now: Duration) -> Rate {
        if now.saturating_sub(self.began) >= rate.window {
            return rate;
        }
        Rate { count: (rate.count / FIRST_SHARE).max(1), window: rate.window }
    }
}

/// So many keys are counted; of more the oldest are forgotten. Whoever makes so many senders in a window has a ceiling
/// to fear and no pace.
fn make_room(windows: &mut HashMap<Key, Window>, now: Duration) {
    if windows.len() < KEYS_MAX {
        return;
    }
    windows.retain(|_, window| window.used > now.saturating_sub(WINDOW_MAX) && !window.parts.is_empty());
    if windows.len() < KEYS_MAX {
        return;
    }
    let mut used: Vec<Duration> = windows.values().map(|window| window.used).collect();
    let tenth = used.len() / 10;
    let (_, oldest, _) = used.select_nth_unstable(tenth);
    let oldest = *oldest;
    windows.retain(|_, window| window.used > oldest);
}

/// What was counted in the last window, and what places were promised.
#[derive(Default)]
struct Window {
    /// When a part ends, and how many were counted in it; at most [`PARTS`] and one.
    parts: VecDeque<(Duration, u32)>,
    /// When places become free that somebody waits for, and how many.
    promised: VecDeque<(Duration, u32)>,
    /// Until when it was told that it is full.
    told: Duration,
    used: Duration,
}

impl Window {
    fn is_full(&mut self, rate: Rate, now: Duration) -> bool {
        while self.parts.front().is_some_and(|(end, _)| *end + rate.window <= now) {
            self.parts.pop_front();
        }
        while self.promised.front().is_some_and(|(at, _)| *at <= now) {
            self.promised.pop_front();
        }
        let counted: u64 = self.parts.iter().map(|(_, count)| u64::from(*count)).sum();
        counted >= u64::from(rate.count)
    }

    /// How long to wait for a place, which is promised; `None` where there is one.
    fn full(&mut self, rate: Rate, now: Duration) -> Option<Duration> {
        if !self.is_full(rate, now) {
            return None;
        }
        let promised: u64 = self.promised.iter().map(|(_, count)| u64::from(*count)).sum();
        // After as many as the rate the places come around again.
        let (rounds, mut place) = (promised / u64::from(rate.count), promised % u64::from(rate.count));
        // Above the rate, where that was lowered meanwhile, places become free that nobody gets.
        place += self.parts.iter().map(|(_, count)| u64::from(*count)).sum::<u64>() - u64::from(rate.count);
        let free = self.parts.iter().find(|(_, count)| {
            let is_here = place < u64::from(*count);
            place = place.saturating_sub(u64::from(*count));
            is_here
        });
        let end = free.or(self.parts.back()).map_or(now, |(end, _)| *end);
        let rounds = u32::try_from(rounds).unwrap_or(ROUNDS_MAX).min(ROUNDS_MAX);
        // What goes in one round is counted to the end of its part.
        let at = end + rate.window + (rate.window + part(rate)) * rounds;
        let is_long = self.promised.len() >= PROMISES_MAX;
        match self.promised.back_mut() {
            Some((last, count)) if *last == at || is_long => {
                *count = count.saturating_add(1);
            }
            Some(_) | None => self.promised.push_back((at, 1)),
        }
        Some(at.saturating_sub(now).max(WAIT_MIN))
    }

    fn count(&mut self, rate: Rate, now: Duration) {
        self.used = now;
        let millis = part(rate).as_millis();
        let ended = u64::try_from((now.as_millis() / millis + 1) * millis).unwrap_or(u64::MAX);
        let end = Duration::from_millis(ended);
        match self.parts.back_mut() {
            Some((last, count)) if *last >= end => *count = count.saturating_add(1),
            Some(_) | None => self.parts.push_back((end, 1)),
        }
    }

    /// Whether it is time to tell somebody; once in a window.
    fn tells(&mut self, rate: Rate, now: Duration) -> bool {
        let is_time = self.told <= now;
        if is_time {
            self.told = now + rate.window;
        }
        is_time
    }
}

fn part(rate: Rate) -> Duration {
    // Whole milliseconds, so that the parts of a window meet.
    Duration::from_millis(u64::try_from(rate.window.as_millis()).unwrap_or(u64::MAX).div_ceil(u64::from(PARTS)))
}

/// What becomes of a leg whose turn has not come; `None` where it may go, and is counted.
pub(super) async fn hold_back(shared: &Shared, route: &Route, leg: &OwnedLeg) -> Option<Settlement> {
    if leg.errand != Errand::Deliver {
        return None;
    }
    let terms = route.terms(leg.target.domain());
    // An attempt that is made again is no further leg.
    let ceiling = terms.ceiling.filter(|_| leg.attempts == 0);
    let ceiling = ceiling.map(|rate| (digest_of(&[b"ceiling", route.name.as_bytes()]), rate));
    let pace = match terms.pace.value {
        Some(pace) => counted(leg, pace.per).await.map(|key| (key, pace.rate)),
        None => None,
    };
    let now = shared.monotonic();
    if let Some(alert) = terms.pace_alert.value.filter(|_| leg.attempts == 0)
        && let Some(key) = counted(leg, alert.per).await
        && shared.pacer.exceeds(digest_of(&[b"alert", &key]), alert.rate, now)
    {
        events::pace_exceeded(&leg.id, &route.name, &alert);
    }
    let wait = shared.pacer.admit(pace, ceiling, now)?;
    let at = shared.now();
    let (state, detail, wait) = match wait {
        Wait::Pace(wait) => {
            events::leg_paced(&route.name);
            let pace = terms.pace.value.as_ref().map(Pace::to_string).unwrap_or_default();
            (State::Queued, format!("it waits for its turn: {pace} ({})", terms.pace.basis), wait)
        }
        Wait::Ceiling { wait, is_first } => {
            let rate = terms.ceiling.as_ref().map(Rate::to_string).unwrap_or_default();
            events::ceiling_reached(&route.name, &rate, is_first);
            (State::Held, format!("the route's ceiling of {rate} is reached"), wait)
        }
    };
    Some(waiting(leg, at, state, detail, wait))
}

fn waiting(leg: &OwnedLeg, at: Timestamp, state: State, detail: String, wait: Duration) -> Settlement {
    Settlement {
        leg: leg.id,
        epoch: leg.epoch,
        at,
        state,
        reason: Reason::Rate,
        detail,
        due: Some(at.after(wait)),
        attempt: None,
        dsn: None,
        follow_ups: Vec::new(),
    }
}

/// What the leg is counted with. `None` where its body cannot be read: that comes out at its attempt.
async fn counted(leg: &OwnedLeg, per: Per) -> Option<Key> {
    let target = leg.target.key();
    if per == Per::Target {
        return Some(digest_of(&[target.as_bytes()]));
    }
    let beginning = beginning(leg).await?;
    let mut head = Head::default();
    head.push(&beginning);
    let sender = fields::sender(head.as_bytes()).unwrap_or_else(|| leg.sender.to_string());
    if per == Per::Sender {
        return Some(digest_of(&[target.as_bytes(), sender.as_bytes()]));
    }
    let subject = Header::index(head.as_bytes()).subject;
    let body = beginning.get(head.as_bytes().len()..).unwrap_or_default();
    let length = leg.body.len().saturating_sub(head.as_bytes().len() as u64).to_be_bytes();
    Some(digest_of(&[target.as_bytes(), sender.as_bytes(), subject.as_bytes(), body, &length]))
}

/// So much of the original as tells one from another.
async fn beginning(leg: &OwnedLeg) -> Option<Vec<u8>> {
    let mut body = BodyReader::new(&leg.body, &[]);
    let mut beginning = Vec::new();
    while beginning.len() < BEGINNING_OCTETS {
        let Some(piece) = body.next().await.ok()? else { break };
        beginning.extend_from_slice(&piece);
    }
    beginning.truncate(BEGINNING_OCTETS);
    Some(beginning)
}

fn digest_of(parts: &[&[u8]]) -> Key {
    let mut context = digest::Context::new(&digest::SHA256);
    for part in parts {
        context.update(&(part.len() as u64).to_be_bytes());
        context.update(part);
    }
    context.finish().as_ref().try_into().expect("SHA-256 has 32 octets")
}

/// In the first window of a process.
const FIRST_SHARE: u32 = 4;
/// Of a window.
const PARTS: u32 = 60;
/// Senders, messages and targets that are counted: at some 200 octets each, two megabytes.
const KEYS_MAX: usize = 10_000;
/// As `config` takes at the most.
const WINDOW_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// Times that places are promised for. Who waits behind them is promised another when he comes.
const PROMISES_MAX: usize = 1_000;
/// Windows ahead that places are promised for, likewise.
const ROUNDS_MAX: u32 = 100;
/// The clocks have milliseconds.
const WAIT_MIN: Duration = Duration::from_millis(1);
/// The largest header and as much of the body as a person reads.
const BEGINNING_OCTETS: usize = 320 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);
    const TEN: Rate = Rate { count: 10, window: MINUTE };
    const KEY: Key = [1; 32];

    /// One that has been there for a day.
    fn pacer() -> Pacer {
        Pacer::new(Duration::ZERO)
    }

    const START: Duration = Duration::from_secs(24 * 60 * 60);

    #[test]
    fn no_window_has_more_than_the_rate_and_all_go_in_the_end() {
        let pacer = pacer();
        // A hundred at once; each comes again when it was told to.
        let mut due: Vec<Duration> = vec![START; 100];
        let (mut sent, mut denials) = (Vec::new(), 0);
        while let Some(at) = due.iter().copied().min() {
            let first = due.iter().position(|time| *time == at).unwrap();
            due.swap_remove(first);
            match pacer.admit(Some((KEY, TEN)), None, at) {
                None => sent.push(at),
                Some(Wait::Pace(wait)) => {
                    denials += 1;
                    due.push(at + wait);
                }
                Some(Wait::Ceiling { .. }) => panic!("there is none"),
            }
        }
        assert_eq!(sent.len(), 100);
        for start in &sent {
            let in_window = sent.iter().filter(|time| **time >= *start && **time < *start + MINUTE).count();
            assert!(in_window <= 10, "{in_window} from {start:?}");
        }
        let took = *sent.last().unwrap() - START;
        assert!(took <= 9 * (MINUTE + 2 * MINUTE / PARTS), "{took:?}");
        assert!(denials <= 100, "{denials}: whoever waits is told the right time");
    }

    #[test]
    fn keys_do_not_wait_for_each_other() {
        let pacer = pacer();
        for n in 0..20u8 {
            assert_eq!(pacer.admit(Some(([n; 32], Rate { count: 1, ..TEN })), None, START), None);
        }
        assert!(pacer.admit(Some(([3; 32], Rate { count: 1, ..TEN })), None, START).is_some());
    }

    #[test]
    fn what_waits_for_one_uses_up_none_of_the_other() {
        let pacer = pacer();
        let one = Rate { count: 1, ..TEN };
        let ceiling = ([9; 32], Rate { count: 2, window: 60 * MINUTE });
        assert_eq!(pacer.admit(Some((KEY, one)), Some(ceiling), START), None);
        for _ in 0..5 {
            assert!(matches!(pacer.admit(Some((KEY, one)), Some(ceiling), START), Some(Wait::Pace(_))));
        }
        assert_eq!(pacer.admit(Some(([2; 32], one)), Some(ceiling), START), None);
        let third = || pacer.admit(Some(([3; 32], one)), Some(ceiling), START);
        assert!(matches!(third(), Some(Wait::Ceiling { is_first: true, .. })));
        assert!(matches!(third(), Some(Wait::Ceiling { is_first: false, .. })));
        assert_eq!(pacer.admit(Some(([3; 32], one)), None, START), None);
    }

    #[test]
    fn the_first_window_of_a_process_has_a_quarter() {
        let pacer = Pacer::new(START);
        let admitted = |now: Duration| (0..20).filter(|_| pacer.admit(Some((KEY, TEN)), None, now).is_none()).count();
        assert_eq!(admitted(START), 2);
        assert_eq!(admitted(START + 2 * MINUTE), 10);
    }

    #[test]
    fn an_alert_is_told_once_in_a_window() {
        let pacer = pacer();
        let told = |now: Duration| (0..30).filter(|_| pacer.exceeds(KEY, TEN, now)).count();
        assert_eq!(told(START), 1);
        assert_eq!(told(START + MINUTE / 2), 0);
        assert_eq!(told(START + 2 * MINUTE), 1);
    }

    #[test]
    fn the_table_is_bounded_and_the_newest_stay() {
        let pacer = pacer();
        let key = |n: usize| digest_of(&[&n.to_be_bytes()]);
        let one = Rate { count: 1, ..TEN };
        for n in 0..=KEYS_MAX {
            assert_eq!(pacer.admit(Some((key(n), one)), None, START + Duration::from_millis(n as u64)), None);
        }
        assert!(pacer.windows.lock().unwrap().len() <= KEYS_MAX);
        let now = START + Duration::from_millis(KEYS_MAX as u64);
        assert!(pacer.admit(Some((key(KEYS_MAX), one)), None, now).is_some());
        assert_eq!(pacer.admit(Some((key(0), one)), None, now), None, "it was forgotten");
    }
}
