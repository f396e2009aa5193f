//! What is done for the sake of the systems that mail goes to.

use std::fmt::Display;

use tracing::{info, warn};

use super::{paced, quoted};

/// A vendor's mail passed, past all that stops mail, because a rule says so for now.
pub fn onboarding_mail(alias: &str) {
    info!(event = "onboarding-mail", alias = %quoted(alias), "passed on, and to the role address");
}

/// A mail host was asked whether it has an address, and gave no answer; `why` may be its words.
pub fn mailhost_unsure(route: &str, why: &str) {
    warn!(event = "mailhost-unsure", route, why = %quoted(why), "a recipient is told to be tried again");
}

/// More addresses in Cc than the system at the end of the route takes.
pub fn too_many_cc(route: &str, count: usize, most: usize) {
    warn!(event = "too-many-cc", route, count, most, "the system takes fewer addresses in Cc");
}

/// A leg waits for its turn, because the system at the end of the route takes no more in a time.
pub fn leg_paced(route: &str) {
    paced(route, "deferred");
}

/// A leg is held for the route's ceiling; told in the log where it `is_first` in a window.
pub fn ceiling_reached(route: &str, ceiling: &str, is_first: bool) {
    paced(route, "held");
    if is_first {
        warn!(event = "ceiling-reached", route, ceiling, "legs are held until there is room");
    }
}

/// More came for one target in a time than its system likes; nothing else happens.
pub fn pace_exceeded(leg: &dyn Display, route: &str, pace: &dyn Display) {
    paced(route, "alert");
    warn!(event = "pace-exceeded", %leg, route, %pace, "more than the system likes");
}
