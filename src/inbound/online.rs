//! Online acceptance: the reply to the final dot waits for the target's, where the route says so.
//!
//! The message and its leg are on disk by then. Only where the message has exactly one leg there is one answer to wait
//! for; and only so many wait at a time: all others are told 250 at once, as without it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::planned::Planned;
use super::{Inbound, Ruling};
use crate::bounce::Authentication;
use crate::queue::online::{self, Heard, Pending, Ticket, Why};
use crate::queue::{Errand, State};
use crate::relay::Accept;
use crate::reply::{self, Refusal};

/// A client whose reply waits.
pub(super) struct Waiting {
    pending: Pending,
    _place: OwnedSemaphorePermit,
}

/// The places for those who wait.
pub(super) struct Places(Arc<Semaphore>);

impl Default for Places {
    fn default() -> Places {
        Places(Arc::new(Semaphore::new(WAITING_MAX)))
    }
}

impl Inbound {
    /// A ticket for the message's leg where its client waits for the target's answer. `probe` is what a message of our own
    /// is to do.
    pub(super) fn online(
        &self,
        ruling: &Ruling,
        planned: &[Planned],
        authentication: Authentication,
        probe: Option<Errand>,
    ) -> Option<(Ticket, Waiting)> {
        let [only] = planned else { return None };
        let waits = match ruling.routes.get(&only.leg.route)?.accept {
            Accept::Store => false,
            Accept::Online => true,
            Accept::Auto => authentication == Authentication::Absent,
        };
        if !waits || probe.is_some() || only.state != State::Queued {
            return None;
        }
        let place = Arc::clone(&self.online.0).try_acquire_owned().ok()?;
        let (ticket, pending) = online::wait();
        Some((ticket, Waiting { pending, _place: place }))
    }
}

/// The target's answer as a client who waits is told it, in words of ours.
pub(super) async fn answer(waiting: Option<Waiting>) -> Result<(), Refusal> {
    let Some(waiting) = waiting else { return Ok(()) };
    match waiting.pending.heard(PATIENCE, WRITING_MAX).await {
        Heard::Taken => Ok(()),
        Heard::Refused(Why::Content) => Err(Refusal::new(reply::TARGET_REFUSES)),
        Heard::Refused(Why::TooLarge) => Err(Refusal::new(reply::TARGET_SIZE)),
        Heard::Unknown => Err(Refusal::new(reply::LOCAL_ERROR)),
    }
}

/// RFC 5321 §4.5.3.2.6 gives the reply ten minutes, and impatient clients give it thirty seconds.
const PATIENCE: Duration = Duration::from_secs(20);
/// One commit of a slow disk.
const WRITING_MAX: Duration = Duration::from_secs(5);
/// At one time. Each holds its session and a body; a target that answers in a second serves as many in each.
const WAITING_MAX: usize = 500;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_end_at_their_limit() {
        let places = Places::default();
        let taken: Vec<_> = (0..WAITING_MAX).map(|_| Arc::clone(&places.0).try_acquire_owned().unwrap()).collect();
        assert!(Arc::clone(&places.0).try_acquire_owned().is_err());
        drop(taken);
        assert!(Arc::clone(&places.0).try_acquire_owned().is_ok());
    }
}
