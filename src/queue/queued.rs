//! The proof that mail is on disk, which is what a 250 is made of.

use std::fmt;
use std::sync::Arc;

use super::OwnedLeg;
use crate::id::{LegId, MessageId};
use crate::reply::{DeliveryProof, Enhanced, Reply};

/// Proof that a message and its legs are on disk. The store alone makes it, after the sync.
///
/// It also carries the legs that were committed as ours: [`Queued::take_legs`] them into their slots. Those that are
/// still in it when it is dropped (the session is gone, a slot was lost) go back to the store as ownerless and due.
#[must_use]
pub struct Queued {
    id: MessageId,
    duplicates: Vec<u16>,
    legs: Vec<OwnedLeg>,
    give_back: Arc<dyn GiveBack>,
}

/// Takes back legs that nobody will attempt. Never waits.
pub(crate) trait GiveBack: Send + Sync {
    fn give_back(&self, legs: Vec<LegId>);
}

impl Queued {
    pub(in crate::queue) fn new(
        id: MessageId,
        duplicates: Vec<u16>,
        legs: Vec<OwnedLeg>,
        give_back: Arc<dyn GiveBack>,
    ) -> Queued {
        Queued { id, duplicates, legs, give_back }
    }

    /// The message's id.
    #[must_use]
    pub fn id(&self) -> MessageId {
        self.id
    }

    /// The legs that turned out to be duplicates, by their `n`: they are final and are not handed over.
    #[must_use]
    pub fn duplicates(&self) -> &[u16] {
        &self.duplicates
    }

    /// The legs that were committed as handed over, in the order of their `n`. Whoever takes them must attempt them
    /// or release them.
    #[must_use]
    pub fn take_legs(&mut self) -> Vec<OwnedLeg> {
        std::mem::take(&mut self.legs)
    }
}

impl Drop for Queued {
    fn drop(&mut self) {
        if !self.legs.is_empty() {
            self.give_back.give_back(self.legs.iter().map(|leg| leg.id).collect());
        }
    }
}

impl fmt::Debug for Queued {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queued").field("id", &self.id).field("duplicates", &self.duplicates).finish_non_exhaustive()
    }
}

impl DeliveryProof for Queued {
    fn reply(&self) -> Reply {
        Reply::with_text(250, Enhanced(2, 0, 0), &format!("queued as {}", self.id))
    }
}
