//! What comes back by a return path of ours: the ledger is asked who is behind it, and nobody gets more than so much.
//!
//! At RCPT only hash and age are looked at, which costs no disk; whether the return goes on is decided at the final
//! dot. A return that goes on reaches somebody who wrote to us, but what stands in it is whatever the other side chose: so
//! the returns to each are counted, in memory, and those above the limit wait in the quarantine.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use super::journey::{Arrived, store_refusal};
use super::planned::Planned;
use super::{Inbound, Ruling};
use crate::address::Mailbox;
use crate::queue::{Reason, State};
use crate::reply::Refusal;
use crate::srs::Original;

impl Inbound {
    /// What the ledger knows of each recipient's return path, where he is one; in the order of the recipients.
    pub(super) async fn originals(
        &self,
        ruling: &Ruling,
        message: &Arrived<'_>,
    ) -> Result<Vec<Option<Original>>, Refusal> {
        let recipients = &message.envelope.recipients;
        let mut originals = vec![None; recipients.len()];
        let read = |recipient| ruling.return_path(recipient, message.at).and_then(Result::ok);
        let (places, paths): (Vec<usize>, Vec<_>) =
            recipients.iter().enumerate().filter_map(|(at, recipient)| Some((at, read(recipient)?))).unzip();
        if paths.is_empty() {
            return Ok(originals);
        }
        let known = self.store.originals(paths).await.map_err(|error| store_refusal(&error))?;
        for (at, original) in places.into_iter().zip(known) {
            originals[at] = original;
        }
        Ok(originals)
    }

    /// Puts returns above the limit into the quarantine.
    pub(super) fn pace_returns(&self, ruling: &Ruling, message: &Arrived<'_>, planned: &mut [Planned]) {
        let now = self.clock.monotonic();
        for plan in planned.iter_mut().filter(|plan| plan.state == State::Queued) {
            if ruling.return_path(&plan.alias, message.at).is_some_and(|path| path.is_ok())
                && !self.returns.takes(&plan.leg.target, now)
            {
                plan.quarantine(Reason::Rate, TOO_MANY);
            }
        }
    }
}

/// How many returns each sender had of late. A restart forgets it.
#[derive(Debug, Default)]
pub(super) struct ReturnCounts {
    /// When the sender's hour began, and how many returns it has had.
    senders: Mutex<HashMap<String, (Duration, u32)>>,
}

impl ReturnCounts {
    /// Whether a further return may go to `sender`; then it is counted.
    fn takes(&self, sender: &Mailbox, now: Duration) -> bool {
        let mut senders = self.senders.lock().expect("no code panics while it holds this lock");
        let key = sender.key();
        if !senders.contains_key(&key) && senders.len() >= SENDERS_MAX {
            senders.retain(|_, (began, _)| now.saturating_sub(*began) < HOUR);
            // Whoever fills the table in an hour must not get past the limit by it.
            if senders.len() >= SENDERS_MAX {
                return false;
            }
        }
        let (began, count) = senders.entry(key).or_insert((now, 0));
        if now.saturating_sub(*began) >= HOUR {
            (*began, *count) = (now, 0);
        }
        *count += 1;
        *count <= RETURNS_MAX
    }
}

/// Returns to one sender in an hour. Who writes to us ten times an hour and fails each time gets them all; above it a CRM
/// has run wild, or somebody makes it.
const RETURNS_MAX: u32 = 10;
/// Senders that are counted: at some 100 octets each, a megabyte.
const SENDERS_MAX: usize = 10_000;
const HOUR: Duration = Duration::from_secs(60 * 60);
const TOO_MANY: &str = "more returns to this sender within the hour than are passed on";

#[cfg(test)]
mod tests {
    use super::*;

    fn sender(n: usize) -> Mailbox {
        Mailbox::parse(&format!("client{n}@example.org")).unwrap()
    }

    #[test]
    fn each_sender_gets_so_many_returns_an_hour_and_no_more() {
        let counts = ReturnCounts::default();
        let at = |minutes: u64| Duration::from_secs(minutes * 60);
        for n in 1..=RETURNS_MAX {
            assert!(counts.takes(&sender(1), at(u64::from(n))), "{n}");
        }
        assert!(!counts.takes(&sender(1), at(59)));
        assert!(!counts.takes(&Mailbox::parse("CLIENT1@Example.org").unwrap(), at(60)));
        assert!(counts.takes(&sender(2), at(60)));
        assert!(counts.takes(&sender(1), at(61)));
    }

    #[test]
    fn a_full_table_lets_nobody_new_past_until_an_hour_is_over() {
        let counts = ReturnCounts::default();
        for n in 0..SENDERS_MAX {
            assert!(counts.takes(&sender(n), Duration::ZERO), "{n}");
        }
        assert!(!counts.takes(&sender(SENDERS_MAX), HOUR - Duration::from_secs(1)));
        assert!(counts.takes(&sender(0), Duration::from_secs(1)));
        assert!(counts.takes(&sender(SENDERS_MAX), HOUR));
        assert_eq!(counts.senders.lock().unwrap().len(), 1);
    }
}
