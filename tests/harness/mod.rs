//! What every black-box test stands on: a daemon of its own, peers to talk to, and patience with a limit.
//!
//! Nothing here sleeps and hopes. A wait names the state that it waits for, looks at that state, and fails with
//! its name when [`PATIENCE`] ends. Ports are the kernel's choice, directories are temporary.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

pub mod certificates;
pub mod client;
pub mod crm;
pub mod daemon;
pub mod disk;
pub mod dkim;
pub mod dns;
pub mod postfix;
pub mod postsrsd;
pub mod rspamd;

pub use certificates::Certificates;
pub use client::Client;
pub use crm::{Answer, Crm, Stage};
pub use daemon::{Daemon, Setup, Site};

/// How long a state may take to come about. Long, because a laptop's two cores run all tests at once; a test that
/// passes never waits for it.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// How often a state is looked at that nobody can announce to us.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Looks until there is something to see. Fails the test, naming `what`, when [`PATIENCE`] ends.
pub fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} in vain for: {what}");
        thread::sleep(LOOK_EVERY);
    }
}

/// Says loudly that a test did not run, and counts it where `tests/run` looks. With `POINTSMAN_STRICT` set, as in
/// CI, it fails instead: there nothing may be missing.
pub fn skip(test: &str, why: &str) {
    let line = format!("SKIPPED {test}: {why}\n");
    assert!(std::env::var_os("POINTSMAN_STRICT").is_none(), "{line}");
    // Not `eprint!`: the test harness would swallow it for a test that passes.
    std::io::stderr().write_all(line.as_bytes()).expect("standard error takes a line");
    if let Some(path) = std::env::var_os("POINTSMAN_SKIPS") {
        let file = fs::OpenOptions::new().create(true).append(true).open(path);
        file.and_then(|mut file| file.write_all(line.as_bytes())).expect("the list of skipped tests can be written");
    }
}

/// True where `program` can be run; else the test is skipped, loudly.
pub fn has(test: &str, program: &str) -> bool {
    let found = find(program).is_some();
    if !found {
        skip(test, &format!("{program} is not installed; tests/run installs it as root"));
    }
    found
}

/// True for root; else the test is skipped, loudly.
pub fn is_root(test: &str) -> bool {
    let root = user_ids("root").0 == own_uid();
    if !root {
        skip(test, "it needs root");
    }
    root
}

/// One heavy test at a time: they measure in wall-clock time, and two cores are few.
pub fn alone() -> MutexGuard<'static, ()> {
    static HEAVY: Mutex<()> = Mutex::new(());
    HEAVY.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Where a program stands; the directories of the system administrator are not in everybody's `PATH`.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':')
        .chain(["/usr/sbin", "/sbin"])
        .map(|folder| PathBuf::from(folder).join(program))
        .find(|file| file.is_file())
}

/// A user's and its group's number, from /etc/passwd.
pub fn user_ids(name: &str) -> (u32, u32) {
    let passwd = fs::read_to_string("/etc/passwd").expect("/etc/passwd can be read");
    let line = passwd.lines().find(|line| line.split(':').next() == Some(name));
    let line = line.unwrap_or_else(|| panic!("there is no user {name}"));
    let ids: Vec<u32> = line.split(':').skip(2).take(2).map(|id| id.parse().unwrap()).collect();
    (ids[0], ids[1])
}

fn own_uid() -> u32 {
    use std::os::unix::fs::MetadataExt;
    fs::metadata("/proc/self").expect("/proc is mounted").uid()
}

/// The program under test: the one that cargo built with these tests, or the one that `POINTSMAN_BIN` names, such as
/// a release build.
pub fn program() -> PathBuf {
    std::env::var_os("POINTSMAN_BIN").map_or_else(|| env!("CARGO_BIN_EXE_pointsman").into(), PathBuf::from)
}

/// Runs a command to its end; fails the test with its output where it fails.
pub fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("cannot run {command:?}: {e}"));
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {}\n{text}", output.status);
    text
}

/// Our Authentication-Results of a relayed message, unfolded; empty where there is none.
pub fn results(mail: &[u8]) -> String {
    let text = String::from_utf8_lossy(mail).replace("\r\n\t", " ").replace("\r\n ", " ");
    text.lines()
        .find(|line| line.starts_with("Authentication-Results: mx.solarmora.com"))
        .unwrap_or_default()
        .to_owned()
}
