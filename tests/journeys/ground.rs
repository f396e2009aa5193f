//! What the daemon leaves on the disk: who may read it, and what is there when it has stopped.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::harness::{Client, Crm, Daemon, Setup, Stage, wait_for};

/// A directory that was made beforehand, with the usual mode, hides nothing by itself.
#[test]
fn in_a_directory_that_others_can_enter_they_can_read_nothing() {
    let crm = Crm::start();
    let site = Setup::new(crm.address()).site();
    fs::create_dir(site.data()).unwrap();
    fs::set_permissions(site.data(), fs::Permissions::from_mode(0o755)).unwrap();
    let daemon = site.start();
    crm.answer(Stage::Rcpt, "450 4.2.1 later");
    daemon.send_bytes("aide@solarmora.com", &b"one line of many\r\n".repeat(10_000));
    let files = files(daemon.data());
    for name in ["queue.db", "queue.db-wal", "refused.db", "addresses.json", "dkim.key"] {
        assert!(files.iter().any(|path| path.ends_with(name)), "no {name} in {files:?}");
    }
    assert!(files.iter().any(|path| path.starts_with(daemon.data().join("bodies"))), "no body in {files:?}");
    for path in files {
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o007, 0, "{} has {mode:o}", path.display());
    }
    wait_for("the warning", || daemon.log().contains("data-open-to-others").then_some(()));
}

#[test]
fn a_directory_that_is_closed_to_others_needs_no_warning() {
    let (daemon, _crm) = Daemon::with_crm();
    daemon.send("aide@solarmora.com");
    wait_for("the log", || daemon.log().contains("\"event\":\"message\"").then_some(()));
    assert!(!daemon.log().contains("data-open-to-others"));
}

/// With an empty log the data base can be copied as one file.
#[test]
fn a_clean_stop_leaves_no_log_beside_the_queue() {
    let (daemon, _crm) = Daemon::with_crm();
    let id = daemon.send("aide@solarmora.com");
    daemon.wait_for_leg(&format!("{id}.1"), "delivered");
    // A session that does not end by itself is cut off; it must not keep the queue open.
    let mut half = Client::connect(daemon.smtp);
    for command in ["MAIL FROM:<client@example.org>", "RCPT TO:<aide@solarmora.com>", "DATA"] {
        half.say(command);
    }
    half.send(b"half a line").unwrap();
    daemon.signal("TERM");
    let (site, status) = daemon.wait();
    assert_eq!(status.code(), Some(0));
    for name in ["queue.db-wal", "queue.db-shm", "refused.db-wal"] {
        assert!(!site.data().join(name).exists(), "{name} is still there");
    }
    assert_eq!(site.rows(&["trace", "--id", &id]).len(), 1);
    let daemon = site.start();
    assert_eq!(daemon.rows(&["trace", "--id", &id, "--state", "delivered"]).len(), 1);
}

/// All files below `folder`.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            found.extend(files(&entry.path()));
        } else {
            found.push(entry.path());
        }
    }
    found
}
