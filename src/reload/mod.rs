//! Taking another configuration into service while mail goes on: read, checked, tested and built whole, then put in force
//! in one go, or nothing changes.
//!
//! One task owns all of it ([`Keeper`]), so that operators, SIGHUP, a confirmation that did not come and a renewed
//! certificate wait for each other. Whoever asks does so over [`Reloads`]. `live` builds and swaps, `accepted` keeps what
//! was accepted, `start` chooses what a start uses, `changes` says what differs.
//!
//! What is written before the swap is what the next start would use: whenever we are killed, a start finds either.

use std::path::PathBuf;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use crate::actor::Actor;
use crate::clock::Timestamp;
use crate::diagnostic::Report;

pub mod accepted;
mod changes;
pub mod live;
pub mod start;
mod keeper;

pub use changes::Changes;
pub use keeper::{Keeper, Parts};

use accepted::Entry;

/// What can be asked of the keeper.
#[derive(Debug)]
pub enum Ask {
    /// To take the files on the disk; `confirm`: for so long, unless they are confirmed.
    Reload { confirm: Option<Duration> },
    /// To keep what waits to be confirmed.
    Confirm,
    /// To bring back the accepted set whose hash begins so.
    RollBack { hash: String },
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Answer {
    pub result: Outcome,
    /// What was found in the files.
    pub report: Report,
    /// Between what was in force and what is; none where nothing was looked at.
    pub changes: Changes,
    /// What was in force before.
    pub before: Identity,
    /// What is in force now.
    pub now: Identity,
    /// What else there is to know or to do, a sentence each.
    pub notes: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is in force.
    Taken,
    /// It was in force already.
    Unchanged,
    /// Nothing was changed.
    Refused,
}

impl Outcome {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Outcome::Taken => "taken",
            Outcome::Unchanged => "unchanged",
            Outcome::Refused => "refused",
        }
    }
}

/// Which configuration it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// Of all files.
    pub hash: String,
    /// Of the rules alone.
    pub rule_set: String,
}

/// What is in force, for `status` and `rules history`.
#[derive(Clone, Debug, Default)]
pub struct Told {
    /// The main file.
    pub path: PathBuf,
    pub identity: Identity,
    pub since: Timestamp,
    /// Why it is not what the files on the disk say.
    pub stale: Option<String>,
    /// Unless it is confirmed by then, what was before comes back.
    pub confirm_by: Option<Timestamp>,
    /// Keys that wait for a restart.
    pub waits: Vec<&'static str>,
    /// Oldest first; the last is in force.
    pub history: Vec<Entry>,
}

/// The way to the keeper.
#[derive(Clone)]
pub struct Reloads {
    asks: mpsc::Sender<(Ask, Actor, oneshot::Sender<Answer>)>,
    told: Arc<RwLock<Told>>,
}

impl Reloads {
    /// Waits for its turn and for the answer. `None`: the daemon stops.
    pub async fn ask(&self, ask: Ask, by: Actor) -> Option<Answer> {
        let (answer, answered) = oneshot::channel();
        self.asks.send((ask, by, answer)).await.ok()?;
        answered.await.ok()
    }

    /// What is in force.
    #[must_use]
    pub fn told(&self) -> Told {
        self.told.read().expect("no code panics while it holds this lock").clone()
    }
}

/// How long a configuration may wait to be confirmed: whoever is away for longer has not confirmed it.
pub const CONFIRM_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// Shorter, and nobody can type it.
pub const CONFIRM_MIN: Duration = Duration::from_secs(1);
/// Asks that wait for their turn; further ones wait to ask.
const ASKS_MAX: usize = 16;
