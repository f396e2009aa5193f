//! Legs that wait for an administrator.

use std::time::Duration;

use crate::clock::Timestamp;
use crate::queue::{Errand, OwnedLeg, Reason, Settlement, State};

/// A leg that waits an hour for an administrator to mend the configuration; a probe ends. No attempt was made.
pub(super) fn hold(leg: &OwnedLeg, now: Timestamp, reason: Reason, detail: &str) -> Settlement {
    let (state, reason) = match leg.errand {
        Errand::Deliver => (State::Held, reason),
        Errand::AskRcpt => (State::Discarded, Reason::Probe),
    };
    Settlement {
        leg: leg.id,
        epoch: leg.epoch,
        at: now,
        state,
        reason,
        detail: detail.to_owned(),
        due: Some(now.after(CONFIGURATION_WAIT)),
        attempt: None,
        dsn: None,
        follow_ups: Vec::new(),
    }
}

/// An administrator mends a configuration in hours, not in minutes.
pub(super) const CONFIGURATION_WAIT: Duration = Duration::from_secs(60 * 60);
