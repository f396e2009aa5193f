//! Who made the daemon do something: a peer of the control socket, a signal, a clock, or its own start.

use std::fmt;

/// Whoever acts. It is recorded with what it did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Actor {
    /// As the kernel vouches for it (SO_PEERCRED, at the time of its connect).
    Peer {
        who: String,
        pid: Option<i32>,
    },
    Signal(&'static str),
    /// Time was up.
    Timer,
    /// The daemon started.
    Start,
}

impl Actor {
    /// Its name without the process: `uid 0`, `SIGHUP`.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Actor::Peer { who, .. } => who.clone(),
            Actor::Signal(signal) => (*signal).to_owned(),
            Actor::Timer => "timer".to_owned(),
            Actor::Start => "start".to_owned(),
        }
    }

    #[must_use]
    pub fn pid(&self) -> Option<i32> {
        match self {
            Actor::Peer { pid, .. } => *pid,
            Actor::Signal(_) | Actor::Timer | Actor::Start => None,
        }
    }
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pid() {
            Some(pid) => write!(f, "{} (pid {pid})", self.name()),
            None => f.write_str(&self.name()),
        }
    }
}
