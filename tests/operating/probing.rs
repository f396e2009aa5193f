//! Probes: one real message, and what became of it, without a trace at the CRM unless that is meant.

use std::process::{Command, Stdio};
use std::sync::{Mutex, mpsc};

use crate::harness::daemon::RULES;
use crate::harness::{Crm, Daemon, Setup, Stage, program, wait_for};

#[test]
fn a_probe_ends_at_the_answer_to_rcpt() {
    let (daemon, crm) = Daemon::with_crm();
    let said = daemon.cli(&["probe", "aide@solarmora.com"]).exits(0);
    let said =
        said.says(&["taken by listener mx as ", "to salesforce by route crm", "answered at rcpt: 250", "probe passed"]);
    assert!(!said.out.contains("case@mon-crm.com"), "the intake address is a secret: {}", said.out);
    let leg = daemon.rows(&["trace", "--recipient", "aide@solarmora.com"]).remove(0);
    assert_eq!((&leg["state"], &leg["reason"]), (&"discarded".into(), &"probe".into()));
    assert_eq!((&leg["sender"], &leg["subject"]), (&"postmaster@solarmora.com".into(), &"Pointsman probe".into()));
    // Both legs of an alias with a copy.
    let rows = daemon.rows(&["probe", "factures@solarmora.com", "--sender", "client@example.org"]);
    let legs: Vec<_> = rows.iter().filter(|row| row["stage"] == "rcpt").map(|row| &row["ok"]).collect();
    assert_eq!(legs, [&true, &true], "{rows:?}");
    assert_eq!(rows.last().unwrap()["ok"], true);
    // The session that was asked carries real mail afterwards.
    daemon.send("aide@solarmora.com");
    assert_eq!(crm.wait_for_mails(1).len(), 1);
    assert_eq!(crm.transactions().len(), 1, "no probe was handed over");
    daemon.cli(&["audit", "--action", "probe"]).exits(0).says(&["probe aide@solarmora.com: passed"]);
}

#[test]
fn a_probe_that_fails_says_where_and_leaves_nothing_behind() {
    let crm = Crm::start();
    let rules = RULES.replace("ventes   = { to", "ventes   = { quarantine = \"odd\", to");
    let daemon = Setup::new(crm.address()).rules(&rules).start();
    let open = || daemon.rows(&["queue", "list", "--state", "queued", "--state", "held", "--state", "quarantined"]);
    let failed = |alias: &str, words: &[&str]| {
        daemon.cli(&["probe", alias]).exits(1).says(words).says(&["probe failed"]);
        assert_eq!(open().len(), 0, "{alias}");
    };
    failed("personne@solarmora.com", &["not taken by listener mx: 550 5.1.1"]);
    failed("ventes@solarmora.com", &["quarantined (rule): odd"]);
    for reply in ["450 4.2.1 later", "550 5.1.1 unknown"] {
        crm.answer(Stage::Rcpt, reply);
        failed("aide@solarmora.com", &["answered at rcpt", reply]);
    }
    crm.take_all();
    daemon.cli(&["pause", "--route", "crm"]).exits(0);
    failed("aide@solarmora.com", &["waits: its route is paused"]);
    daemon.cli(&["resume", "--route", "crm"]).exits(0);
    crm.go_down();
    failed("aide@solarmora.com", &["at connect"]);
    daemon.cli(&["probe", "no address"]).exits(1).says(&["no address"]);
    assert!(crm.transactions().is_empty());
    daemon.kill9().cli(&["probe", "aide@solarmora.com"]).exits(3);
}

#[test]
fn a_probe_to_the_crm_opens_a_case() {
    let (daemon, crm) = Daemon::with_crm();
    daemon.cli(&["probe", "aide@solarmora.com", "--to-crm"]).exits(0).says(&["delivered (sent)", "probe passed"]);
    let mail = crm.wait_for_mails(1).remove(0);
    assert_eq!((mail.sender(), mail.recipients()), ("postmaster@solarmora.com", vec!["case@mon-crm.com"]));
    let text = String::from_utf8(mail.bytes).unwrap();
    assert!(
        text.contains("Subject: Pointsman probe\r\n") && text.contains("Auto-Submitted: auto-generated\r\n"),
        "{text}"
    );
    crm.answer(Stage::Dot, "451 4.3.0 later");
    daemon.cli(&["probe", "aide@solarmora.com", "--to-crm"]).exits(1).says(&["queued (tempfail)", "probe failed"]);
}

/// What a probe does stands in its leg's row: whatever restarts in between, nothing reaches the CRM.
#[test]
fn a_probe_that_a_crash_interrupted_is_not_delivered_afterwards() {
    let (daemon, crm) = Daemon::with_crm();
    // RCPT is answered when the test says so.
    let (let_go, wait) = mpsc::channel::<()>();
    let wait = Mutex::new(wait);
    crm.follow(move |stage, _| {
        if stage == Stage::Rcpt {
            let _ = wait.lock().unwrap().recv();
        }
        None
    });
    let config = daemon.config();
    let mut probe = Command::new(program());
    let probe = probe.args(["probe", "aide@solarmora.com", "--config"]).arg(config).stdout(Stdio::null());
    let mut probe = probe.spawn().unwrap();
    wait_for("the probe's leg", || daemon.rows(&["queue", "list"]).pop());
    let site = daemon.kill9();
    probe.wait().unwrap();
    crm.take_all();
    drop(let_go);
    let daemon = site.start();
    let leg = wait_for("the leg to end", || {
        daemon.rows(&["trace", "--recipient", "aide@solarmora.com"]).pop().filter(|leg| !leg["ended"].is_null())
    });
    assert_eq!((&leg["state"], &leg["reason"]), (&"discarded".into(), &"probe".into()));
    assert!(crm.transactions().is_empty());
}

/// What a stranger writes into a message does not make it a probe.
#[test]
fn a_message_that_calls_itself_a_probe_is_mail() {
    let (daemon, crm) = Daemon::with_crm();
    let id = daemon.send_bytes("aide@solarmora.com", b"Message-ID: <probe.0000@mx.solarmora.com>\r\n\r\nx\r\n");
    daemon.wait_for_leg(&format!("{id}.1"), "delivered");
    assert_eq!(crm.mails().len(), 1);
}
