//! Draining: no new mail, everything that can go goes, and when nothing is left to wait for the daemon ends.
//!
//! Waited for are open sessions and the queued legs of routes that go on. What is held, quarantined or paused waits for
//! an operator and stays in the queue for the next start. Once begun it goes on, whether the asker listens or not.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::json;
use tokio::sync::watch;

use super::control::{Asker, Control, Line, Stop};
use super::peer::Peer;
use crate::events;
use crate::inbound::Inbound;
use crate::queue::State;
use crate::queue::handover::Handover;
use crate::queue::sqlite::SqliteStore;

/// Why the daemon is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// An operator drained it.
    Drained,
    /// A part that cannot be replaced has ended: whoever watches over the process starts it anew.
    Fault,
}

/// How parts of the daemon say that it is to end.
#[derive(Debug)]
pub struct Ending {
    end: watch::Sender<Option<End>>,
    draining: AtomicBool,
    /// Askers who follow the drain and have not heard its end yet.
    followers: AtomicUsize,
}

/// One of them.
struct Follower<'a>(&'a AtomicUsize);

impl<'a> Follower<'a> {
    fn new(followers: &'a AtomicUsize) -> Follower<'a> {
        followers.fetch_add(1, Ordering::Relaxed);
        Follower(followers)
    }
}

impl Drop for Follower<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Default for Ending {
    fn default() -> Ending {
        Ending { end: watch::Sender::new(None), draining: AtomicBool::new(false), followers: AtomicUsize::new(0) }
    }
}

impl Ending {
    /// The first word counts.
    pub fn end(&self, end: End) {
        self.end.send_if_modified(|told| {
            let first = told.is_none();
            told.get_or_insert(end);
            first
        });
    }

    /// Waits until somebody says so.
    pub async fn wait(&self) -> End {
        let mut ends = self.end.subscribe();
        let told = ends.wait_for(Option::is_some).await;
        told.ok().and_then(|told| *told).unwrap_or(End::Fault)
    }
}

/// What a drain looks at.
#[derive(Clone)]
struct Drain {
    inbound: Arc<Inbound>,
    store: Arc<SqliteStore>,
    handover: Arc<Handover>,
}

/// What there still is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Left {
    sessions: usize,
    /// By routes that go on.
    queued: u64,
    paused: u64,
    held: u64,
    quarantined: u64,
}

impl Left {
    fn is_done(self) -> bool {
        self.sessions == 0 && self.queued == 0
    }

    fn line(self) -> Line {
        let Left { sessions, queued, paused, held, quarantined } = self;
        let mut text = format!("{queued} legs to deliver, {sessions} sessions");
        if paused + held + quarantined > 0 {
            text += &format!("; {paused} paused, {held} held and {quarantined} quarantined stay in the queue");
        }
        Line::Told {
            text: text + "\n",
            object: json!({
                "sessions": sessions, "queued": queued, "paused": paused, "held": held, "quarantined": quarantined,
                "done": self.is_done(),
            }),
        }
    }
}

impl Drain {
    fn left(&self) -> Left {
        let mut left = Left { sessions: self.inbound.sessions(), ..Left::default() };
        for (route, state, legs) in self.store.open_legs() {
            match state {
                State::Queued if self.handover.is_paused(&route) => left.paused += legs,
                State::Queued => left.queued += legs,
                State::Held => left.held += legs,
                State::Quarantined => left.quarantined += legs,
                State::Delivered
                | State::Bounced
                | State::Expired
                | State::Duplicate
                | State::Omitted
                | State::Discarded => {}
            }
        }
        left
    }

    async fn run(self, ending: Arc<Ending>) {
        while !self.left().is_done() {
            tokio::time::sleep(LOOK).await;
        }
        // Whoever follows is to hear the last of it; one who does not listen is not waited for.
        for _ in 0..FAREWELL_LOOKS {
            if ending.followers.load(Ordering::Relaxed) == 0 {
                break;
            }
            tokio::time::sleep(LOOK).await;
        }
        ending.end(End::Drained);
    }
}

impl Control {
    /// Begins to drain, and tells what is left until nothing is.
    pub(super) async fn drain(&self, asker: &mut Asker, peer: &Peer) -> Result<(), Stop> {
        let drain = Drain {
            inbound: Arc::clone(&self.inbound),
            store: Arc::clone(&self.store),
            handover: Arc::clone(&self.handover),
        };
        let _follower = Follower::new(&self.ending.followers);
        if !self.ending.draining.swap(true, Ordering::Relaxed) {
            // A disk on which nothing can be written must not keep the daemon from being stopped.
            let begun = self.audit_begin(peer, "drain", "").await.ok();
            events::drain_asked(&peer.to_string());
            self.inbound.stop_taking();
            // Who looks for the addresses of a daemon that takes mail must not find these.
            let _ = std::fs::remove_file(self.data.join("addresses.json"));
            tokio::spawn(drain.clone().run(Arc::clone(&self.ending)));
            if let Some(begun) = begun {
                self.audit_end(begun, "begun").await;
            }
        }
        let mut told = None;
        loop {
            let left = drain.left();
            if told != Some(left) {
                asker.tell([left.line()]).await?;
                told = Some(left);
            }
            if left.is_done() {
                return Ok(());
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// Often enough to look alive.
const LOOK: Duration = Duration::from_millis(250);
/// Two seconds.
const FAREWELL_LOOKS: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_word_about_the_end_counts() {
        let ending = Ending::default();
        ending.end(End::Fault);
        ending.end(End::Drained);
        assert_eq!(ending.wait().await, End::Fault);
    }

    #[test]
    fn what_waits_for_an_operator_is_not_waited_for() {
        assert!(Left { paused: 1, held: 2, quarantined: 3, ..Left::default() }.is_done());
        assert!(!Left { queued: 1, ..Left::default() }.is_done());
        assert!(!Left { sessions: 1, ..Left::default() }.is_done());
    }
}
