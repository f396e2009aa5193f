//! Online acceptance: what ties a leg in a worker's hands to the client whose reply to the final dot waits for it.
//!
//! The message is on disk before anybody waits; a [`Ticket`] travels with the leg in memory, and is gone where the leg goes
//! back to the store. A refusal is passed on to the client only where he still waits, and only when the leg's end is
//! on disk: the worker claims the ticket first, and who has claimed it decides. So the client is never told 250 of a leg
//! that ends as refused, nor 5xx of one that goes on.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

/// What a refusal is about, in words of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// Larger than the target takes.
    TooLarge,
    /// What it says, looks like or carries.
    Content,
}

/// Travels with the leg.
#[derive(Clone, Debug)]
pub struct Ticket {
    claim: Arc<Mutex<Claim>>,
    told: Arc<watch::Sender<Option<Option<Why>>>>,
}

/// The client's end.
#[derive(Debug)]
pub struct Pending {
    claim: Arc<Mutex<Claim>>,
    told: watch::Receiver<Option<Option<Why>>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Claim {
    Waiting,
    /// Nobody waits any more: the queue's rules count.
    Over,
    Refusing(Why),
}

/// What the client is to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Heard {
    /// Delivered, or the queue's to deliver.
    Taken,
    /// The target refused it for good, and its leg has ended.
    Refused(Why),
    /// It was refused, and whether that is on disk is not known.
    Unknown,
}

/// A ticket for a leg, and the client's end of it.
#[must_use]
pub fn wait() -> (Ticket, Pending) {
    let claim = Arc::new(Mutex::new(Claim::Waiting));
    let (sender, told) = watch::channel(None);
    (Ticket { claim: Arc::clone(&claim), told: Arc::new(sender) }, Pending { claim, told })
}

impl Ticket {
    /// The target refused the message. True: the client waits, and hears it once [`Ticket::settled`] says that the leg has
    /// ended; false: he has had his 250.
    #[must_use]
    pub fn claim(&self, why: Why) -> bool {
        let mut claim = self.claim.lock().unwrap_or_else(PoisonError::into_inner);
        match *claim {
            Claim::Waiting => {
                *claim = Claim::Refusing(why);
                true
            }
            Claim::Over | Claim::Refusing(_) => false,
        }
    }

    /// What became of the leg is on disk.
    pub fn settled(&self) {
        let claim = *self.claim.lock().unwrap_or_else(PoisonError::into_inner);
        let why = match claim {
            Claim::Waiting | Claim::Over => None,
            Claim::Refusing(why) => Some(why),
        };
        self.told.send_replace(Some(why));
    }
}

impl Pending {
    /// Waits for the target's answer for up to `patience`, and where that is a refusal, `writing` more for its settlement.
    pub async fn heard(mut self, patience: Duration, writing: Duration) -> Heard {
        let told = timeout(patience, self.told.wait_for(Option::is_some)).await;
        if let Some(told) = told.ok().and_then(|told| told.ok().map(|told| *told)) {
            return heard(told);
        }
        {
            let mut claim = self.claim.lock().unwrap_or_else(PoisonError::into_inner);
            if *claim == Claim::Waiting {
                *claim = Claim::Over;
                return Heard::Taken;
            }
        }
        match timeout(writing, self.told.wait_for(Option::is_some)).await {
            Ok(Ok(told)) => heard(*told),
            Ok(Err(_)) | Err(_) => Heard::Unknown,
        }
    }
}

fn heard(told: Option<Option<Why>>) -> Heard {
    told.flatten().map_or(Heard::Taken, Heard::Refused)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);
    const WRITING: Duration = Duration::from_secs(10);

    #[tokio::test(start_paused = true)]
    async fn a_settlement_ends_the_wait_at_once() {
        let (ticket, pending) = wait();
        ticket.settled();
        let started = tokio::time::Instant::now();
        assert_eq!(pending.heard(PATIENCE, WRITING).await, Heard::Taken);
        assert_eq!(started.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_leg_that_goes_back_to_the_store_ends_the_wait_at_once() {
        let (ticket, pending) = wait();
        drop(ticket);
        let started = tokio::time::Instant::now();
        assert_eq!(pending.heard(PATIENCE, WRITING).await, Heard::Taken);
        assert_eq!(started.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn patience_ends_at_its_limit_and_a_later_refusal_is_the_queues() {
        let (ticket, pending) = wait();
        let started = tokio::time::Instant::now();
        assert_eq!(pending.heard(PATIENCE, WRITING).await, Heard::Taken);
        assert_eq!(started.elapsed(), PATIENCE);
        assert!(!ticket.claim(Why::Content));
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_is_told_only_when_it_is_on_disk() {
        let (ticket, pending) = wait();
        assert!(ticket.claim(Why::TooLarge) && !ticket.claim(Why::Content));
        let waiting = tokio::spawn(pending.heard(PATIENCE, WRITING));
        tokio::time::sleep(PATIENCE + WRITING / 2).await;
        assert!(!waiting.is_finished());
        ticket.settled();
        assert_eq!(waiting.await.unwrap(), Heard::Refused(Why::TooLarge));
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_of_which_nobody_knows_is_neither_yes_nor_no() {
        let (ticket, pending) = wait();
        assert!(ticket.claim(Why::Content));
        drop(ticket);
        assert_eq!(pending.heard(PATIENCE, WRITING).await, Heard::Unknown);
        let (ticket, pending) = wait();
        assert!(ticket.claim(Why::Content));
        assert_eq!(pending.heard(PATIENCE, WRITING).await, Heard::Unknown);
        drop(ticket);
    }
}
