//! Names for messages and legs, and chance: the only place that rolls dice.
//!
//! A message's id is a number that grows with time, so that the queue's tables append at their end; it is
//! shown as thirteen letters and digits that survive being read over the telephone (Crockford's base 32).

use std::fmt;
use std::str::FromStr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::clock::Timestamp;

/// A message's name in the queue, logs and the 250 reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MessageId(pub i64);

/// A leg's name: `<message>.<n>`, counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LegId {
    pub message: MessageId,
    pub n: u16,
}

/// Why a text is not an id.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not an id: expected 13 letters and digits, and `.<number>` behind them for a leg")]
pub struct BadId(String);

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = [0u8; DIGITS];
        let mut rest = self.0;
        for digit in text.iter_mut().rev() {
            *digit = ALPHABET[(rest & 31) as usize];
            rest >>= 5;
        }
        f.write_str(std::str::from_utf8(&text).expect("the alphabet is ASCII"))
    }
}

impl FromStr for MessageId {
    type Err = BadId;

    fn from_str(text: &str) -> Result<MessageId, BadId> {
        if text.len() != DIGITS {
            return Err(BadId(text.to_owned()));
        }
        let mut value: u64 = 0;
        for byte in text.bytes() {
            let digit =
                ALPHABET.iter().position(|&d| d == byte.to_ascii_lowercase()).ok_or_else(|| BadId(text.to_owned()))?;
            value = (value << 5) | digit as u64;
        }
        i64::try_from(value).map(MessageId).map_err(|_| BadId(text.to_owned()))
    }
}

impl fmt::Display for LegId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.message, self.n)
    }
}

impl FromStr for LegId {
    type Err = BadId;

    fn from_str(text: &str) -> Result<LegId, BadId> {
        let bad = || BadId(text.to_owned());
        let (message, n) = text.split_once('.').ok_or_else(bad)?;
        Ok(LegId { message: message.parse().map_err(|_| bad())?, n: n.parse().map_err(|_| bad())? })
    }
}

/// Hands out message ids, each larger than the one before, also where the clock stands still or goes back.
pub struct Ids {
    last: Mutex<i64>,
}

impl Ids {
    /// Ids larger than `after`, the largest that the queue knows.
    #[must_use]
    pub fn after(after: MessageId) -> Ids {
        Ids { last: Mutex::new(after.0) }
    }

    #[must_use]
    pub fn next(&self, now: Timestamp, chance: &Chance) -> MessageId {
        // 20 low bits of chance: two nodes that start in the same millisecond do not meet.
        let fresh = (now.0.max(0) << 20 | (chance.next() & 0xf_ffff) as i64) & i64::MAX;
        let mut last = self.last.lock().expect("no code panics while it holds this lock");
        *last = fresh.max(last.saturating_add(1));
        MessageId(*last)
    }
}

/// A word that nobody can guess: 130 bits from the operating system.
#[must_use]
pub fn secret_word() -> String {
    let mut octets = [0u8; 26];
    aws_lc_rs::rand::fill(&mut octets).expect("the operating system gives random bytes");
    octets.iter().map(|octet| char::from(ALPHABET[usize::from(octet & 31)])).collect()
}

/// A stream of dice rolls (splitmix64). Not for secrets.
pub struct Chance {
    state: AtomicU64,
}

impl Chance {
    /// The same rolls at every run.
    #[must_use]
    pub fn seeded(seed: u64) -> Chance {
        Chance { state: AtomicU64::new(seed) }
    }

    /// Rolls that nobody has seen before.
    #[must_use]
    pub fn from_system() -> Chance {
        let mut seed = [0u8; 8];
        aws_lc_rs::rand::fill(&mut seed).expect("the operating system gives random bytes");
        Chance::seeded(u64::from_le_bytes(seed))
    }

    pub fn next(&self) -> u64 {
        let mut z = self.state.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number in `-1.0 .. 1.0`, for jitter.
    pub fn jitter(&self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }
}

const DIGITS: usize = 13;
const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read_back_as_written() {
        for value in [0, 1, 31, 32, 1_795_292_431_042 << 20, i64::MAX] {
            let id = MessageId(value);
            assert_eq!(id.to_string().parse::<MessageId>().unwrap(), id);
            let leg = LegId { message: id, n: 7 };
            assert_eq!(leg.to_string().parse::<LegId>().unwrap(), leg);
        }
    }

    #[test]
    fn what_is_no_id_is_refused() {
        for text in ["", "abc", "0000000000000u", "zzzzzzzzzzzzz", "0000000000000.1"] {
            assert!(text.parse::<MessageId>().is_err(), "{text}");
        }
        assert!("0000000000000".parse::<LegId>().is_err());
    }

    #[test]
    fn ids_grow_even_when_the_clock_goes_back() {
        let (ids, chance) = (Ids::after(MessageId(0)), Chance::seeded(1));
        let first = ids.next(Timestamp(1_000_000), &chance);
        let second = ids.next(Timestamp(10), &chance);
        assert!(second > first);
    }

    #[test]
    fn jitter_stays_within_one() {
        let chance = Chance::seeded(7);
        assert!((0..10_000).map(|_| chance.jitter()).all(|j| (-1.0..1.0).contains(&j)));
    }
}
