//! How much memory we have, and how much we use: whoever comes when it runs short is told 421, before the kernel ends us
//! and everybody's session with us.

use std::fs;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// What was resident when we last looked.
#[derive(Debug, Default)]
pub(super) struct Resident(Mutex<Option<(Duration, u64)>>);

impl Resident {
    /// Whether this process has more than `most` octets in memory. `now` is the monotonic clock's.
    pub(super) fn is_above(&self, most: u64, now: Duration) -> bool {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, octets)) = *last
            && now.saturating_sub(at) < LOOK
        {
            return octets > most;
        }
        // Who cannot look, for want of a descriptor say, has other worries.
        let octets = field("/proc/self/status", "VmRSS:").unwrap_or(0);
        *last = Some((now, octets));
        octets > most
    }
}

/// Octets that we may use unless the administrator says otherwise: four fifths of the machine's memory, or of what the
/// control groups allow that we are in (systemd's `MemoryMax`, a container's limit). `None`: nobody says how much there is.
#[must_use]
pub fn allowance() -> Option<u64> {
    let machine = field("/proc/meminfo", "MemTotal:");
    let least = machine.into_iter().chain(group_limits()).min()?;
    Some(least / 5 * 4)
}

/// The limits of our control group and of those that it is in (cgroup v2).
fn group_limits() -> Vec<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let Some(group) = groups.lines().find_map(|line| line.strip_prefix("0::/")) else { return Vec::new() };
    let limit = |group: &Path| fs::read_to_string(Path::new(GROUPS).join(group).join("memory.max")).ok();
    // «max» is no number, and no limit.
    Path::new(group).ancestors().filter_map(limit).filter_map(|text| text.trim().parse().ok()).collect()
}

/// A figure of a file of the kernel's, in octets. It counts in KiB.
fn field(file: &str, name: &str) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    let figure = text.lines().find_map(|line| line.strip_prefix(name))?;
    figure.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kib| kib * 1024)
}

/// So often at the most: a connection that is refused must cost less than one that is served.
const LOOK: Duration = Duration::from_millis(100);
const GROUPS: &str = "/sys/fs/cgroup";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_resident_is_more_than_nothing_and_looked_up_ten_times_a_second() {
        let resident = Resident::default();
        let at = Duration::from_secs(9);
        assert!(resident.is_above(1 << 20, at) && !resident.is_above(1 << 50, at));
        *resident.0.lock().unwrap() = Some((at, 5));
        assert!(resident.is_above(4, at) && !resident.is_above(5, at + LOOK / 2));
        assert!(resident.is_above(5, at + LOOK), "it is looked up again");
    }

    #[test]
    fn this_machine_says_how_much_it_has() {
        assert!(allowance().is_some_and(|octets| octets > 1 << 26));
    }
}
