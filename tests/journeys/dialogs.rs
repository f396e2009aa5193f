//! The dialog files over TCP against the real daemon, and what its CRM got of the messages that they hand in.
//!
//! A dialog may ask for limits of its own, so there is one daemon for each set of limits. What was accepted is read
//! from two places that must agree: the ledger, which counts, and the CRM, which has the octets.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use regex::bytes::Regex;
use rusqlite::{Connection, OpenFlags};

use crate::dialog::{Cut, Dialog, Peer, TcpPeer};
use crate::harness::{Crm, Daemon, Setup, wait_for};

#[test]
fn dialogs_against_the_daemon() {
    let mut by_limits: BTreeMap<String, Vec<Dialog>> = BTreeMap::new();
    for dialog in Dialog::load_all(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/dialogs")) {
        if dialog.machine_only.is_none() {
            by_limits.entry(limits(&dialog)).or_default().push(dialog);
        }
    }
    let mut failures = Vec::new();
    for (limits, dialogs) in by_limits {
        let crm = Crm::start();
        let daemon = Setup::new(crm.address()).more(&limits).start();
        let stage = Arc::new(Stage { crm, daemon });
        for dialog in &dialogs {
            for variant in &dialog.variants {
                failures.extend(stage.play(dialog, variant).err());
            }
        }
    }
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
}

/// The configuration that tests/dialogs/README.md names, with what the dialog wants otherwise.
fn limits(dialog: &Dialog) -> String {
    let size = dialog.message_size.map_or("50MiB".to_owned(), |octets| format!("{octets}B"));
    format!("[limits]\nmessage-size = \"{size}\"\nrecipients = {}\n", dialog.recipients.unwrap_or(100))
}

struct Stage {
    crm: Crm,
    daemon: Daemon,
}

impl Stage {
    fn play(self: &Arc<Stage>, dialog: &Dialog, variant: &[u8]) -> Result<(), String> {
        let before: BTreeSet<String> = self.messages().into_keys().collect();
        let stage = Arc::clone(self);
        let accepted = move || {
            let all = stage.messages().into_iter();
            all.filter(|(id, _)| !before.contains(id)).map(|(_, message)| message).collect()
        };
        let mut peer = TcpPeer::connect(self.daemon.smtp, Box::new(accepted));
        dialog.play(&mut peer, variant, Cut::AsWritten)?;
        peer.hang_up();
        match peer.line() {
            Some(line) => Err(format!("{}: unexpected at its end: {line}", dialog.name)),
            None => Ok(()),
        }
    }

    /// All messages in the ledger, by id, as the CRM got them, without the fields that the daemon put before them.
    fn messages(&self) -> BTreeMap<String, Vec<u8>> {
        let (messages, legs) = self.counts();
        let mails = wait_for("the CRM to have every leg of the ledger", || {
            Some(self.crm.mails()).filter(|mails| mails.len() >= legs)
        });
        // Our Received ends in a date, and a Message-ID of ours stands behind it where the message has none.
        let added = Regex::new(
            r"(?s-u)\A(?:[A-Z][A-Za-z-]+: .*?\r\n)*?Received: .*? id ([0-9a-z]{13})\b.*?;\s+[A-Z][^\r\n]+ [+-]\d{4}\r\n(?:Message-ID: <([0-9a-z]{13})@mx\.solarmora\.com>\r\n)?",
        );
        let added = added.expect("the expression is right");
        let mut originals = BTreeMap::new();
        for mail in mails {
            let found = added.captures(&mail.bytes).expect("the daemon puts a Received first");
            let id = String::from_utf8(found[1].to_vec()).expect("ids are ASCII");
            let original = mail.bytes[found[0].len()..].to_vec();
            let known = originals.entry(id).or_insert_with(|| original.clone());
            assert_eq!(*known, original, "two recipients of one message got different ones");
        }
        assert_eq!(originals.len(), messages, "messages at the CRM and in the ledger");
        originals
    }

    /// Messages and legs in the ledger: they are there before the 250 is said.
    fn counts(&self) -> (usize, usize) {
        let file = self.daemon.data().join("queue.db");
        let db = Connection::open_with_flags(file, OpenFlags::SQLITE_OPEN_READ_ONLY).expect("the queue can be read");
        let count = |table: &str| -> i64 {
            db.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).expect("the table is there")
        };
        let counts = (count("message"), count("leg"));
        (usize::try_from(counts.0).expect("a count"), usize::try_from(counts.1).expect("a count"))
    }
}
