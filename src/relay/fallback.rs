//! What a route does where its own hosts or its target will not do. Pure.
//!
//! There are two kinds. The hosts of another route stand in, within the same attempt, where none of the route's own gives a
//! session or all of them find fault with us: the leg stays on its route and goes to its target. Another *target* is
//! gone on to where the message is too old, or where its own refuses it for how its sender authenticated: the leg keeps its id, and lists both.

use std::time::Duration;

use crate::address::{Mailbox, ReversePath};
use crate::queue::{Errand, OwnedLeg, Reason};
use crate::relay::outcome::Outcome;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fallback {
    /// The route whose hosts stand in. It names hosts.
    pub route: Option<String>,
    pub to: Option<Diversion>,
}

/// The other target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diversion {
    pub target: Mailbox,
    /// Our name for it in the rules.
    pub target_name: Option<String>,
    pub route: String,
    /// Counted from the reception of the message, and asked when an attempt has failed.
    pub after: Duration,
    /// At once where the target refuses a message for how its sender authenticated.
    pub on_auth: bool,
}

impl Diversion {
    /// Whether a leg whose attempt ended so, so long after it was received, goes on.
    #[must_use]
    pub fn takes(&self, leg: &OwnedLeg, outcome: &Outcome, age: Duration) -> bool {
        let wanted = match outcome {
            // Nobody took it, and nobody ended it.
            Outcome::Retry(_) | Outcome::RouteFault | Outcome::Hold(..) => age >= self.after,
            Outcome::Quarantine(reason) => *reason == Reason::RemoteAuth && self.on_auth,
            Outcome::Delivered | Outcome::Bounce(_) => false,
        };
        wanted && self.is_open_to(leg)
    }

    /// Whether a leg that nobody tried for long, because its route is left alone, goes on.
    #[must_use]
    pub fn takes_untried(&self, leg: &OwnedLeg, age: Duration) -> bool {
        age >= self.after && self.is_open_to(leg)
    }

    fn is_open_to(&self, leg: &OwnedLeg) -> bool {
        // A notification of ours is for its recipient and nobody else.
        let is_notification = leg.sender == ReversePath::Null && leg.keeps_recipient();
        leg.errand == Errand::Deliver && !is_notification && leg.target != self.target
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::fixtures::owned_leg;

    #[test]
    fn who_goes_on_and_when() {
        let to = Diversion {
            target: Mailbox::parse("sales@other.example").unwrap(),
            target_name: None,
            route: "other".to_owned(),
            after: Duration::from_secs(60),
            on_auth: true,
        };
        let (early, late) = (Duration::from_secs(59), Duration::from_secs(60));
        let hold = Outcome::Hold(Reason::UnknownTarget, late);
        for (outcome, at_59, at_60) in [
            (Outcome::Retry(Reason::Tempfail), false, true),
            (Outcome::RouteFault, false, true),
            (hold, false, true),
            (Outcome::Quarantine(Reason::RemoteAuth), true, true),
            (Outcome::Quarantine(Reason::RemoteContent), false, false),
            (Outcome::Bounce(Reason::Permfail), false, false),
            (Outcome::Delivered, false, false),
        ] {
            let takes = |age| to.takes(&owned_leg(1), &outcome, age);
            assert_eq!((takes(early), takes(late)), (at_59, at_60), "{outcome:?}");
        }
        assert!(!Diversion { on_auth: false, ..to.clone() }.takes(
            &owned_leg(1),
            &Outcome::Quarantine(Reason::RemoteAuth),
            late
        ));
        let retry = Outcome::Retry(Reason::Tempfail);
        let there = OwnedLeg { target: to.target.clone(), ..owned_leg(1) };
        let probe = OwnedLeg { errand: Errand::AskRcpt, ..owned_leg(1) };
        let target = owned_leg(1).target.to_string();
        let notification = OwnedLeg { sender: ReversePath::Null, alias: target, ..owned_leg(1) };
        for stays in [there, probe, notification] {
            assert!(!to.takes(&stays, &retry, late) && !to.takes_untried(&stays, late), "{stays:?}");
        }
        assert!(to.takes_untried(&owned_leg(1), late) && !to.takes_untried(&owned_leg(1), early));
    }
}
