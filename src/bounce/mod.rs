//! Notifications about mail that did not arrive (RFC 3461, RFC 3464): who is told, when, and in which words. Pure.
//!
//! A notification to somebody who did not write is spam of our making. So whom to tell is decided at acceptance, where
//! it is known whether the sender authenticated for the domain of his reverse-path, and kept with the leg as a
//! [`NoticeTo`], which names a mailbox or nobody; the null sender has none, and nothing here can be given one. Whoever
//! is not told keeps his mail in the quarantine.
//!
//! `compose` writes the message, and keeps the target's address out of it: that address is a write token of the
//! CRM's, and the alias is all that a sender ever knew.

use std::time::Duration;

use crate::address::{Mailbox, ReversePath};
use crate::envelope::Notify;
use crate::queue::{NoticeTo, Notices};
use crate::rules::Bounces;

mod cause;
mod compose;

pub use cause::{Cause, cause};
pub use compose::{Composed, Notice, ORIGINAL_OCTETS_MAX, Original, Reported, compose};

/// What there is to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The message was refused for good, or given up.
    Failed,
    /// It has not arrived yet; we try on.
    Delayed,
    /// It was handed to a host that tells nothing, and its sender wants to know.
    Relayed,
}

/// Whether the sender is who the reverse-path says: SPF passed for its domain, or a valid signature is aligned with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Authentication {
    Proven,
    Absent,
}

/// Where a notification goes that the administrator gets: the role address of the alias's domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admin {
    pub address: Mailbox,
    pub route: String,
}

/// Whom the end of a leg may be told, by the rules' `bounces` and by what is known about the sender.
#[must_use]
pub fn notice_to(
    bounces: Bounces,
    sender: &ReversePath,
    authentication: Authentication,
    admin: Option<Admin>,
) -> NoticeTo {
    // A notification is no cause for another one, whoever would get it (RFC 5321 §4.5.5).
    let ReversePath::Mailbox(sender) = sender else { return NoticeTo::Nobody };
    match (bounces, authentication, admin) {
        (Bounces::Sender, Authentication::Proven, _) => NoticeTo::Sender(sender.clone()),
        (Bounces::Sender, Authentication::Absent, _) => NoticeTo::Nobody,
        // Our own people are told whoever wrote: no stranger gets anything.
        (Bounces::Admin, _, Some(admin)) => NoticeTo::Admin { address: admin.address, route: admin.route },
        (Bounces::Admin, _, None) => NoticeTo::Nobody,
        (Bounces::Suppress, _, _) => NoticeTo::Suppressed,
    }
}

/// Who is told of one event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told<'a> {
    Sender(&'a Mailbox),
    Admin {
        address: &'a Mailbox,
        route: &'a str,
    },
    /// There is somebody who could be told, and he or the administrator does not want it.
    Suppressed,
    /// There is nobody whom we may tell.
    Nobody,
}

/// Who is told of `event`, by what RCPT asked for (RFC 3461 §4.1). Who said nothing hears of failure and delay.
#[must_use]
pub fn told(notices: &Notices, event: Event) -> Told<'_> {
    let wanted = match (notices.asked.notify, event) {
        (None, Event::Failed | Event::Delayed) => true,
        (None, Event::Relayed) | (Some(Notify::Never), _) => false,
        (Some(Notify::On { failure, .. }), Event::Failed) => failure,
        (Some(Notify::On { delay, .. }), Event::Delayed) => delay,
        (Some(Notify::On { success, .. }), Event::Relayed) => success,
    };
    match (&notices.to, event) {
        (NoticeTo::Nobody, _) => Told::Nobody,
        (NoticeTo::Suppressed, _) => Told::Suppressed,
        (NoticeTo::Sender(sender), _) if wanted => Told::Sender(sender),
        (NoticeTo::Sender(_), _) => Told::Suppressed,
        (NoticeTo::Admin { address, route }, Event::Failed) => Told::Admin { address, route },
        // He has `status` and the metrics for what is only late.
        (NoticeTo::Admin { .. }, Event::Delayed | Event::Relayed) => Told::Suppressed,
    }
}

/// Whether the failed attempt with this number is the one whose failure is told as a delay: the first that the
/// schedule `retry` makes [`DELAY_TOLD_AFTER`] or later after the first. So it is told once, and nothing need be kept.
#[must_use]
pub fn delay_is_told(retry: &[Duration], attempt: u32) -> bool {
    let Some(&last) = retry.last() else { return false };
    let wait = |n: u32| retry.get(n as usize).copied().unwrap_or(last);
    let mut since_first = Duration::ZERO;
    for n in 0..ATTEMPTS_LOOKED_AT {
        if since_first >= DELAY_TOLD_AFTER {
            return attempt == n + 1;
        }
        since_first = since_first.saturating_add(wait(n));
    }
    false
}

/// Half a working day: less is usual (greylisting, a restart at night), and more leaves no time to telephone.
const DELAY_TOLD_AFTER: Duration = Duration::from_secs(4 * 60 * 60);
/// Waits so short that this many do not make [`DELAY_TOLD_AFTER`] are a test's.
const ATTEMPTS_LOOKED_AT: u32 = 1000;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::envelope::RecipientDsn;

    fn path(text: &str) -> ReversePath {
        ReversePath::parse(text).unwrap()
    }

    fn mailbox(text: &str) -> Mailbox {
        Mailbox::parse(text).unwrap()
    }

    fn admin() -> Admin {
        Admin { address: mailbox("admin@example.net"), route: "default".into() }
    }

    fn asked(to: NoticeTo, notify: Option<&str>) -> Notices {
        let notify = notify.map(|text| Notify::parse(text).unwrap());
        Notices { to, asked: RecipientDsn { notify, orcpt: None }, ..Notices::default() }
    }

    #[test]
    fn null_sender_never_gets_a_bounce() {
        for bounces in [Bounces::Sender, Bounces::Admin, Bounces::Suppress] {
            let to = notice_to(bounces, &path(""), Authentication::Proven, Some(admin()));
            assert_eq!(to, NoticeTo::Nobody, "{bounces:?}");
        }
    }

    #[test]
    fn only_a_sender_who_authenticated_is_told() {
        use Authentication::{Absent, Proven};
        let sender = path("client@example.org");
        let to_admin = NoticeTo::Admin { address: mailbox("admin@example.net"), route: "default".into() };
        for (bounces, authentication, role, want) in [
            (Bounces::Sender, Proven, None, NoticeTo::Sender(mailbox("client@example.org"))),
            (Bounces::Sender, Absent, Some(admin()), NoticeTo::Nobody),
            (Bounces::Admin, Absent, Some(admin()), to_admin.clone()),
            (Bounces::Admin, Proven, Some(admin()), to_admin),
            (Bounces::Admin, Proven, None, NoticeTo::Nobody),
            (Bounces::Suppress, Absent, None, NoticeTo::Suppressed),
        ] {
            assert_eq!(notice_to(bounces, &sender, authentication, role), want, "{bounces:?} {authentication:?}");
        }
    }

    #[test]
    fn what_rcpt_asked_for_is_what_is_told() {
        use Event::{Delayed, Failed, Relayed};
        for (notify, event, wanted) in [
            (None, Failed, true),
            (None, Delayed, true),
            (None, Relayed, false),
            (Some("NEVER"), Failed, false),
            (Some("NEVER"), Delayed, false),
            (Some("NEVER"), Relayed, false),
            (Some("FAILURE"), Failed, true),
            (Some("FAILURE"), Delayed, false),
            (Some("FAILURE"), Relayed, false),
            (Some("SUCCESS"), Failed, false),
            (Some("SUCCESS"), Relayed, true),
            (Some("DELAY"), Delayed, true),
        ] {
            let sender = mailbox("client@example.org");
            let notices = asked(NoticeTo::Sender(sender.clone()), notify);
            let want = if wanted { Told::Sender(&sender) } else { Told::Suppressed };
            assert_eq!(told(&notices, event), want, "{notify:?} {event:?}");
            assert_eq!(told(&asked(NoticeTo::Nobody, notify), event), Told::Nobody);
            assert_eq!(told(&asked(NoticeTo::Suppressed, notify), event), Told::Suppressed);
        }
    }

    #[test]
    fn an_administrator_hears_of_failures_whatever_the_sender_asked_for() {
        let to = || NoticeTo::Admin { address: mailbox("admin@example.net"), route: "default".into() };
        assert!(matches!(told(&asked(to(), Some("NEVER")), Event::Failed), Told::Admin { .. }));
        assert_eq!(told(&asked(to(), None), Event::Delayed), Told::Suppressed);
    }

    #[test]
    fn a_delay_is_told_once_after_four_hours() {
        let minutes = |list: &[u64]| list.iter().map(|m| Duration::from_secs(m * 60)).collect::<Vec<_>>();
        // The attempts are made after 0, 1, 6, 21, 51, 111, 171, 231 and 291 minutes.
        let told_at = |retry: &[Duration]| (0..5000).filter(|&n| delay_is_told(retry, n)).collect::<Vec<u32>>();
        assert_eq!(told_at(&minutes(&[1, 5, 15, 30, 60])), [9]);
        assert_eq!(told_at(&minutes(&[239, 1])), [3]);
        assert_eq!(told_at(&minutes(&[240])), [2]);
        assert_eq!(told_at(&minutes(&[600])), [2]);
        assert_eq!(told_at(&[]), [] as [u32; 0]);
        assert_eq!(told_at(&[Duration::from_secs(1)]), [] as [u32; 0]);
    }
}
