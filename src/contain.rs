//! Keeping a panic where it happened: a task that comes upon a fault of ours ends with a value, not with the process.
//!
//! A panic is a bug, and mail must not pay for it: whoever stands above the contained work says what becomes of it. What
//! holds a lock across no await and changes it in one step leaves it whole. [`trip`] is how the tests provoke one.

use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use crate::events;

/// The work panicked; the panic itself has been told by the hook ([`tell_panics`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Panicked;

/// Runs `future`, and counts and contains its panic as one of `place`.
pub async fn contain<F: Future>(place: &'static str, future: F) -> Result<F::Output, Panicked> {
    let mut future = pin!(future);
    poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx))) {
        Ok(poll) => poll.map(Ok),
        Err(_) => {
            events::panicked(place);
            Poll::Ready(Err(Panicked))
        }
    })
    .await
}

/// As [`contain`], for what does not wait.
pub fn contain_now<T>(place: &'static str, work: impl FnOnce() -> T) -> Result<T, Panicked> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|_| {
        events::panicked(place);
        Panicked
    })
}

/// Runs what `make` makes until it ends by itself; after a panic it is made anew, a moment later.
pub async fn supervise<F: Future<Output = ()>>(place: &'static str, make: impl Fn() -> F) {
    while contain(place, make()).await.is_err() {
        tokio::time::sleep(ANEW).await;
    }
}

/// From now on a panic is a line of the log, in the log's format, and not lines beside it.
pub fn tell_panics() {
    std::panic::set_hook(Box::new(|info| {
        let payload = info.payload();
        let text =
            payload.downcast_ref::<&str>().copied().or_else(|| payload.downcast_ref::<String>().map(String::as_str));
        let at = info.location().map_or_else(String::new, ToString::to_string);
        events::panic(text.unwrap_or("no words"), &at);
    }));
}

/// Panics where the variable `POINTSMAN_PANIC` names this place, and has it counted: `worker:2` means the second pass.
/// Only in builds with debug assertions: a release has no such place.
pub fn trip(place: &str) {
    #[cfg(debug_assertions)]
    wires::trip(place);
    #[cfg(not(debug_assertions))]
    let _ = place;
}

#[cfg(debug_assertions)]
mod wires {
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicI64, Ordering};

    /// A place, and how many passes it has left.
    struct Wire {
        place: String,
        left: AtomicI64,
    }

    static WIRES: LazyLock<Vec<Wire>> = LazyLock::new(|| {
        let wires = std::env::var("POINTSMAN_PANIC").unwrap_or_default();
        let wires = wires.split(',').filter(|word| !word.is_empty());
        wires
            .map(|word| {
                let (place, pass) = word.split_once(':').unwrap_or((word, "1"));
                Wire { place: place.to_owned(), left: AtomicI64::new(pass.parse().unwrap_or(1)) }
            })
            .collect()
    });

    pub(super) fn trip(place: &str) {
        for wire in WIRES.iter().filter(|wire| wire.place == place) {
            assert!(wire.left.fetch_sub(1, Ordering::Relaxed) != 1, "tripped at {place}");
        }
    }
}

/// Long enough for a fault that comes back at once not to fill the log.
const ANEW: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_panic_ends_the_work_and_nothing_else() {
        assert_eq!(contain("test", async { 7 }).await, Ok(7));
        let before = async {
            tokio::task::yield_now().await;
            panic!("behind an await");
        };
        assert_eq!(contain("test", before).await, Err::<(), _>(Panicked));
        assert_eq!(contain_now("test", || panic!("at once")), Err::<(), _>(Panicked));
        let times = AtomicU32::new(0);
        supervise("test", || async { assert!(times.fetch_add(1, Ordering::Relaxed) == 2, "twice") }).await;
        assert_eq!(times.load(Ordering::Relaxed), 3);
    }
}
