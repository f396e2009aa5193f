//! What the service manager is told of us (sd_notify(3)): ready, reloading, stopping, still alive.
//!
//! Where none listens (`NOTIFY_SOCKET` is not set) nothing is said. The only place that names sd-notify.

use std::time::Duration;

use sd_notify::NotifyState;

use crate::events;

/// Every port accepts. `status` is what `systemctl status` shows.
pub fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// A reload has begun; [`ready`] ends it, whether it was taken or not.
pub fn reloading() {
    // `Type=notify-reload` (systemd 253) wants the time with it; an older one does not look.
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => events::supervisor_unreachable(&error),
    }
}

/// No more mail is taken; the end follows.
pub fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("finishing what is under way")]);
}

/// Says that we are alive, as often as is wanted (`WatchdogSec=`), until the task is dropped. It is a task like those that
/// carry mail: where none of them runs any more, this one does not either, and the daemon is started anew.
pub async fn keep_alive() {
    let Some(limit) = sd_notify::watchdog_enabled() else { return };
    let mut beat = tokio::time::interval(beat(limit));
    loop {
        beat.tick().await;
        tell(&[NotifyState::Watchdog]);
    }
}

/// Three times within the limit, so that a late one is no end. Never zero, which no interval takes.
fn beat(limit: Duration) -> Duration {
    (limit / 3).max(Duration::from_millis(1))
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        events::supervisor_unreachable(&error);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_beat_fits_thrice_into_its_limit() {
        assert_eq!(beat(Duration::from_secs(90)), Duration::from_secs(30));
        assert_eq!(beat(Duration::ZERO), Duration::from_millis(1));
    }
}
