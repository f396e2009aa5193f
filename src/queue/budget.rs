//! Byte budgets: how much memory a kind of thing may hold over the whole daemon.
//!
//! A [`Budget`] is a number of bytes; a [`Permit`] is a part of it that comes back when it is dropped. There are two
//! in the daemon: bodies that stand in memory over all sessions and hand-overs (who gets no permit writes to a file),
//! and whole messages read for verification (who gets no permit waits a bounded time, then answers 451).

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A number of bytes shared by all clones.
#[derive(Clone, Debug)]
pub struct Budget {
    free: Arc<Semaphore>,
    size: usize,
}

/// A part of a budget; dropping it gives it back.
#[derive(Debug)]
pub struct Permit {
    part: OwnedSemaphorePermit,
}

impl Budget {
    /// A budget of `bytes`; what a `u32` cannot count is cut to it, since permits are counted so.
    #[must_use]
    pub fn new(bytes: usize) -> Budget {
        let size = bytes.min(u32::MAX as usize);
        Budget { free: Arc::new(Semaphore::new(size)), size }
    }

    /// Takes `bytes` if they are free now.
    #[must_use]
    pub fn try_take(&self, bytes: usize) -> Option<Permit> {
        let count = self.countable(bytes)?;
        self.free.clone().try_acquire_many_owned(count).ok().map(|part| Permit { part })
    }

    /// Waits up to `wait` for `bytes`, first come first served. `None`: not in time, or more than the whole budget.
    pub async fn take(&self, bytes: usize, wait: Duration) -> Option<Permit> {
        let count = self.countable(bytes)?;
        let part = tokio::time::timeout(wait, self.free.clone().acquire_many_owned(count)).await.ok()?.ok()?;
        Some(Permit { part })
    }

    /// Makes `permit` larger by `bytes` if they are free now; says whether it did.
    #[must_use]
    pub fn try_grow(&self, permit: &mut Permit, bytes: usize) -> bool {
        match self.try_take(bytes) {
            Some(more) => {
                permit.part.merge(more.part);
                true
            }
            None => false,
        }
    }

    /// Bytes that nobody holds.
    #[must_use]
    pub fn free(&self) -> usize {
        self.free.available_permits()
    }

    fn countable(&self, bytes: usize) -> Option<u32> {
        if bytes <= self.size { u32::try_from(bytes).ok() } else { None }
    }
}

impl Permit {
    /// Bytes that it stands for.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.part.num_permits()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_gives_its_size_and_not_a_byte_more() {
        let budget = Budget::new(10);
        let all = budget.try_take(10).unwrap();
        assert!(budget.try_take(1).is_none());
        drop(all);
        assert!(budget.try_take(11).is_none());
        assert_eq!(budget.free(), 10);
    }

    #[test]
    fn a_permit_grows_only_by_what_is_free() {
        let budget = Budget::new(10);
        let mut permit = budget.try_take(4).unwrap();
        assert!(budget.try_grow(&mut permit, 6));
        assert!(!budget.try_grow(&mut permit, 1));
        assert_eq!(permit.bytes(), 10);
        drop(permit);
        assert_eq!(budget.free(), 10);
    }

    #[tokio::test]
    async fn waiting_ends_with_a_permit_or_with_time() {
        let budget = Budget::new(10);
        let held = budget.try_take(10).unwrap();
        assert!(budget.take(1, Duration::from_millis(1)).await.is_none());
        assert!(budget.take(11, Duration::from_secs(3600)).await.is_none(), "it could wait for ever");
        let waiting = tokio::spawn({
            let budget = budget.clone();
            async move { budget.take(10, Duration::from_secs(3600)).await.is_some() }
        });
        drop(held);
        assert!(waiting.await.unwrap());
        assert_eq!(budget.free(), 10);
    }
}
