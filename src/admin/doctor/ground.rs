//! What mail stands on: the ledger, the disk, the clock, the certificate, the configuration, the legs that wait.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use rustix::process::{Resource, getrlimit};

use super::{Finding, Subject};
use crate::clock::{Clock, SystemClock, Timestamp};
use crate::config::Config;
use crate::queue::sqlite::Balance;
use crate::queue::{State, StoreError};
use crate::tls;

/// The ledger's sums, and when its newest message came.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    pub balance: Balance,
    pub newest: Option<Timestamp>,
}

pub(super) async fn look(subject: &Subject) -> Vec<Finding> {
    let data = subject.data.clone();
    let disk = tokio::task::spawn_blocking(move || disk(&data));
    let disk = match tokio::time::timeout(DISK_WAIT, disk).await {
        Ok(Ok(finding)) => finding,
        Ok(Err(_)) | Err(_) => {
            let what = format!("a sync was not done within {} s", DISK_WAIT.as_secs());
            Finding::fault("disk", subject.data.display().to_string(), what, SLOW)
        }
    };
    let mut found = vec![disk, space(subject), mode(subject), descriptors(), configuration(subject)];
    found.extend(certificate(subject));
    found.extend(waiting(subject));
    found
}

/// Whether all mail that was ever accepted is accounted for, and whether the clock is behind it.
pub async fn ledger(ask: impl Future<Output = Result<Ledger, StoreError>>, now: Timestamp) -> Vec<Finding> {
    let ledger = match tokio::time::timeout(LEDGER_WAIT, ask).await {
        Ok(Ok(ledger)) => ledger,
        Ok(Err(error)) => return vec![Finding::unknown("ledger", "", error.to_string())],
        Err(_) => {
            return vec![Finding::unknown("ledger", "", format!("not read within {} s", LEDGER_WAIT.as_secs()))];
        }
    };
    vec![balance(&ledger.balance), clock(ledger.newest, now)]
}

fn balance(balance: &Balance) -> Finding {
    let Balance { messages_accepted, legs_accepted, messages_swept, legs_swept, messages, legs, .. } = balance;
    let sums = format!(
        "accepted {messages_accepted} messages with {legs_accepted} legs, {messages_swept} with {legs_swept} are over \
         their retention, {messages} with {legs} are here"
    );
    if balance.holds() {
        return Finding::ok("ledger", "", sums);
    }
    let ids = |ids: Vec<String>| ids.into_iter().take(LISTED).collect::<Vec<_>>().join(" ");
    let miscounted = ids(balance.miscounted.iter().map(ToString::to_string).collect());
    let bodiless = ids(balance.bodiless.iter().map(ToString::to_string).collect());
    let mut what = sums;
    if !miscounted.is_empty() {
        what += &format!("; messages with legs missing: {miscounted}");
    }
    if !bodiless.is_empty() {
        what += &format!("; open legs without a body: {bodiless}");
    }
    Finding::fault(
        "ledger",
        "",
        what,
        "the sums do not agree: keep a copy of the data directory, look at these with `trace --id`, and report it",
    )
}

fn clock(newest: Option<Timestamp>, now: Timestamp) -> Finding {
    if let Some(newest) = newest.filter(|newest| newest.since(now) > CLOCK_SLACK) {
        let what = format!("it is {now}, and the newest message came at {newest}: the clock went back");
        return Finding::fault("clock", "", what, "set the clock and keep it by NTP: retries and retention follow it");
    }
    let keepers = [
        ("/run/systemd/timesync/synchronized", "systemd-timesyncd"),
        ("/run/chrony/chronyd.pid", "chrony"),
        ("/run/chronyd.pid", "chrony"),
        ("/run/ntpd.pid", "ntpd"),
    ];
    match keepers.iter().find(|(path, _)| Path::new(path).exists()) {
        Some((_, keeper)) => Finding::ok("clock", "", format!("{now}, kept by {keeper}")),
        None => Finding::unknown("clock", "", format!("{now}; nothing here says who keeps it: is NTP running?")),
    }
}

/// Kind of file system, and how long a sync takes: every message waits for one.
fn disk(data: &Path) -> Finding {
    let subject = data.display().to_string();
    let kind = match rustix::fs::statfs(data) {
        // The type's width differs between machines; the magic numbers are 32 bits everywhere.
        Ok(stat) => file_system(stat.f_type as u32),
        Err(error) => return Finding::unknown("disk", subject, error.to_string()),
    };
    let took = match syncs(data) {
        Ok(took) => took,
        Err(error) => return Finding::unknown("disk", subject, format!("{kind}; cannot write a test file: {error}")),
    };
    let what = format!("{kind}, a sync takes {:.1} ms", took.as_secs_f64() * 1e3);
    match kind {
        "tmpfs" | "ramfs" => {
            Finding::fault("disk", subject, what, "it is memory: mail is gone with a restart of the machine")
        }
        "overlay" => {
            Finding::fault("disk", subject, what, "it is a container's own layer, and goes with it: mount a volume")
        }
        _ if took > SYNC_SLOW => Finding::fault("disk", subject, what, SLOW),
        _ => Finding::ok("disk", subject, what),
    }
}

/// The median of some.
fn syncs(data: &Path) -> std::io::Result<Duration> {
    let path = data.join(format!(".doctor-{}", std::process::id()));
    let clock = SystemClock::new();
    let measure = || {
        let mut file = File::create(&path)?;
        let mut took = Vec::new();
        for _ in 0..SYNCS {
            let began = clock.monotonic();
            file.write_all(&[0; 4096])?;
            file.sync_data()?;
            took.push(clock.monotonic().saturating_sub(began));
        }
        took.sort();
        Ok(took[SYNCS / 2])
    };
    let took = measure();
    // Where it could not be made there is nothing to remove.
    let _ = fs::remove_file(&path);
    took
}

fn file_system(magic: u32) -> &'static str {
    match magic {
        0xef53 => "ext4",
        0x5846_5342 => "xfs",
        0x9123_683e => "btrfs",
        0x2fc1_2fc1 => "zfs",
        0xf2f5_2010 => "f2fs",
        0x0102_1994 => "tmpfs",
        0x8584_58f6 => "ramfs",
        0x794c_7630 => "overlay",
        0x6573_5546 => "fuse",
        _ => "another file system",
    }
}

fn space(subject: &Subject) -> Finding {
    let stat = match rustix::fs::statvfs(&subject.data) {
        Ok(stat) => stat,
        Err(error) => return Finding::unknown("space", "", error.to_string()),
    };
    let (free, floor) = (stat.f_bavail.saturating_mul(stat.f_frsize), subject.min_free);
    let what = format!("{} MiB free, new mail down to {} MiB", free >> 20, floor >> 20);
    match free {
        free if free <= floor => {
            Finding::fault("space", "", what, "new mail is answered 452: make room, or lower `queue.min-free`")
        }
        free if free / 2 <= floor => Finding::fault("space", "", what, "make room before new mail is refused"),
        _ if stat.f_files > 0 && stat.f_favail < INODES_MIN => {
            let what = format!("{} inodes free", stat.f_favail);
            Finding::fault("space", "", what, "large messages need a file each: remove what has many small files")
        }
        _ => Finding::ok("space", "", what),
    }
}

fn mode(subject: &Subject) -> Finding {
    let path = subject.data.display().to_string();
    match fs::metadata(&subject.data) {
        Ok(data) if data.mode() & 0o007 != 0 => {
            let what = format!("mode {:04o}: other users can enter it", data.mode() & 0o7777);
            Finding::fault("data", &path, what, format!("chmod 0750 {path}"))
        }
        Ok(data) => Finding::ok("data", path, format!("mode {:04o}, of uid {}", data.mode() & 0o7777, data.uid())),
        Err(error) => Finding::unknown("data", path, error.to_string()),
    }
}

fn descriptors() -> Finding {
    match getrlimit(Resource::Nofile).maximum {
        Some(most) if most < DESCRIPTORS_MIN => {
            let help = "raise it: LimitNOFILE= in the unit, or `ulimit -Hn`";
            Finding::fault("descriptors", "", format!("at most {most}: a session and a delivery need one each"), help)
        }
        most => Finding::ok("descriptors", "", most.map_or("no limit".to_owned(), |most| format!("at most {most}"))),
    }
}

/// What the next start would make of the files on disk.
fn configuration(subject: &Subject) -> Finding {
    let path = subject.config.display().to_string();
    match Config::load(&subject.config) {
        Ok((config, _)) if config.rules.hash() == subject.rules.hash() => {
            Finding::ok("configuration", path, format!("rule set {}", config.rules.short_hash()))
        }
        Ok((config, _)) => {
            let what =
                format!("on disk is rule set {}, at work {}", config.rules.short_hash(), subject.rules.short_hash());
            Finding::fault(
                "configuration",
                path,
                what,
                "`pointsman check` it, and make it serve by a reload or restart",
            )
        }
        Err(report) => {
            let what = format!("the files on disk have {} errors", report.errors());
            Finding::fault(
                "configuration",
                path,
                what,
                "`pointsman check` shows them; the next start would not take them",
            )
        }
    }
}

fn certificate(subject: &Subject) -> Vec<Finding> {
    let Some(files) = &subject.tls else {
        return vec![Finding::ok("certificate", "", "there is no [tls]: nothing is encrypted on the way in")];
    };
    let mut found = Vec::new();
    for path in [&files.certificate, &files.key] {
        if let Err(error) = subject.user.can_read(path) {
            let help =
                "the daemon must read it after each renewal: give its group read access to the file and its folders";
            found.push(Finding::fault("certificate", path.display().to_string(), error.to_string(), help));
        }
    }
    if !found.is_empty() {
        return found;
    }
    let path = files.certificate.display().to_string();
    let opened = tls::Server::open(files.clone()).map(|server| server.expires());
    match opened {
        Ok(None) => found.push(Finding::unknown("certificate", path, "its end cannot be read")),
        Ok(Some(expires)) => {
            let left = expires.since(subject.now);
            let what = format!("expires {expires}, in {} days", left.as_secs() / 86_400);
            let help = "renew it; the daemon notices the new file by itself";
            found.push(match left {
                left if left.is_zero() => Finding::fault("certificate", path, format!("expired {expires}"), help),
                left if left < EXPIRY_SOON => Finding::fault("certificate", path, what, help),
                _ => Finding::ok("certificate", path, what),
            });
        }
        Err(error) => found.push(Finding::fault("certificate", path, error.to_string(), "mend or renew the files")),
    }
    found
}

/// What nobody will see by itself: legs that wait for a person, routes that a person stopped.
fn waiting(subject: &Subject) -> Vec<Finding> {
    let mut found = Vec::new();
    for pause in &subject.paused {
        let what = format!("paused since {} by {}", pause.since, pause.actor);
        let help = format!("pointsman resume --route {}", pause.route);
        found.push(Finding::fault("pause", &pause.route, what, help));
    }
    let held = subject.open.iter().filter(|(_, state, legs)| *state == State::Held && *legs > 0);
    for (route, _, legs) in held {
        let help = format!("pointsman queue list --state held --route {route}");
        found.push(Finding::fault("legs", route, format!("{legs} are held"), help));
    }
    found
}

const SLOW: &str =
    "every message waits for a sync before its 250: use a disk of its own, or one with a protected cache";
/// At fifty syncs a second a group commit still takes hundreds of messages, but each waits that long.
const SYNC_SLOW: Duration = Duration::from_millis(20);
const SYNCS: usize = 15;
const DISK_WAIT: Duration = Duration::from_secs(15);
/// Millions of legs are read in seconds.
const LEDGER_WAIT: Duration = Duration::from_secs(60);
/// Clocks of machines that keep time differ by less.
const CLOCK_SLACK: Duration = Duration::from_secs(60);
/// The sessions that may be, and some.
const DESCRIPTORS_MIN: u64 = 16_384;
const INODES_MIN: u64 = 1_000;
/// Renewals are tried for a month; at two weeks they have failed for two.
const EXPIRY_SOON: Duration = Duration::from_secs(14 * 86_400);
const LISTED: usize = 5;
