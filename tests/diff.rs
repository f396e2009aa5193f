//! `diff`: what other rules would have made of the mail that came, through the real daemon and its ledger.

use std::fs;

use serde_json::Value;

use crate::harness::daemon::RULES;
use crate::harness::{Client, Daemon, Site};

const MAIL: &[u8] = b"From: client@example.org\r\nSubject: panne\r\n\r\nAu secours.\r\n";

/// The rules of the tests with a change, as a file beside those in force.
fn other(site: &Site, from: &str, to: &str) -> String {
    assert!(RULES.contains(from), "{from}");
    let folder = site.path().join("new");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("r.toml"), RULES.replace(from, to)).unwrap();
    folder.join("*.toml").display().to_string()
}

fn summary(site: &Site, arguments: &[&str], code: i32) -> (Vec<Value>, Value) {
    let said = site.cli(&[arguments, &["--json"]].concat()).exits(code);
    let mut lines: Vec<Value> = said.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let last = lines.pop().expect("a summary");
    assert_eq!(last["summary"], true);
    (lines, last)
}

#[test]
fn diff_tells_whose_outcome_changes_beside_a_daemon_and_without_one() {
    let (daemon, _crm) = Daemon::with_crm();
    let mut ids = Vec::new();
    let mut client = Client::connect(daemon.smtp);
    for recipients in
        [&["aide@solarmora.com"][..], &["AIDE@solarmora.com", "factures@solarmora.com"], &["ventes@solarmora.com"]]
    {
        ids.push(client.deliver("client@example.org", recipients, MAIL).queued_as());
    }
    client.say("QUIT");
    let same = other(&daemon, "[domain", "# nothing else\n[domain");
    let said = daemon.cli(&["diff", "--rules", &same, "--since", "1h"]).succeeds();
    said.says(&["3 messages since", "4 recipients: 0 change, 4 do not, 0 cannot be decided"]);

    let new = other(&daemon, "to    = \"salesforce\"", "to    = \"ventes\"");
    let diff = ["diff", "--rules", &new];
    daemon.cli(&diff).exits(1).says(&[
        "aide@solarmora.com\n          2  salesforce by crm\n             -> ventes by crm\n",
        &format!("such as {}, {}", ids[0], ids[1]),
        "4 recipients: 2 change, 2 do not, 0 cannot be decided",
    ]);
    let (changes, last) = summary(&daemon, &diff, 1);
    assert_eq!(changes.len(), 1);
    assert_eq!((&changes[0]["recipient"], &changes[0]["count"]), (&"aide@solarmora.com".into(), &2.into()));
    assert_eq!((&last["messages"], &last["changed"]), (&3.into(), &2.into()));
    // The same without a daemon; and it changes nothing.
    let site = daemon.kill9();
    assert_eq!(summary(&site, &diff, 1).0, changes);
    site.cli(&["diff", "--rules", &new, "--until", "1h"]).succeeds().says(&["0 messages since"]);
}

#[test]
fn diff_masks_targets_unless_it_is_told_to_show_them() {
    let (daemon, _crm) = Daemon::with_crm();
    daemon.send("aide@solarmora.com");
    let new = other(&daemon, "\"case@mon-crm.com\"", "\"secret@key.mon-crm.com\"");
    let masked = daemon.cli(&["diff", "--rules", &new]).exits(1);
    assert!(!masked.out.contains("case@mon") && !masked.out.contains("secret@key"), "{}", masked.out);
    masked.says(&["salesforce <c***@mon-crm.com> by crm", "-> salesforce <s***@***.mon-crm.com> by crm"]);
    let shown = daemon.cli(&["diff", "--reveal", "--rules", &new]).exits(1);
    shown.says(&["salesforce <case@mon-crm.com>", "salesforce <secret@key.mon-crm.com>"]);
}

#[test]
fn diff_says_what_it_cannot_decide_and_what_it_cannot_read() {
    let (daemon, _crm) = Daemon::with_crm();
    daemon.send("aide@solarmora.com");
    daemon.reconfigure("[queue]", "[auth]\n\n[queue]");
    let asks = "when  = { recipient = \"aide@solarmora.com\", dmarc = \"pass\" }";
    let new = other(&daemon, "when  = { recipient = \"aide@solarmora.com\" }", asks);
    let (changes, last) = summary(&daemon, &["diff", "--rules", &new], 0);
    assert_eq!((changes.len(), &last["undecided"]), (0, &1.into()));
    daemon.cli(&["diff", "--rules", &new]).succeeds().says(&[
        "not decided: `aide to the CRM` asks for dmarc = \"pass\", which was not recorded",
        "1 cannot be decided",
    ]);
    let broken = other(&daemon, "to    = \"salesforce\"", "to    = \"nobody\"");
    daemon.cli(&["diff", "--rules", &broken]).exits(1).says(&["there is no target `nobody`"]);
    daemon.cli(&["diff", "--rules", "nowhere/*.toml"]).exits(1).says(&["no rules file matches `nowhere/*.toml`"]);
    daemon.cli(&["diff", "--rules", &new, "--since", "soon"]).exits(2).says(&["`soon` is no time"]);
    daemon.cli(&["diff"]).exits(2);
}
