//! Secrecy: the address that a rule sends to is a write token of the CRM's, and is told nowhere, in whatever spelling its host
//! repeats it.

use std::sync::Mutex;

use crate::harness::dns::Dns;
use crate::harness::{Answer, Client, Crm, Daemon, Setup, Stage, wait_for};

const TARGET: &str = "Cases-7f3aK9@k9x8y7.org.case.mon-crm.com";
const RULES: &str = r#"
[domain."solarmora.com"]
role = "admin@mon-crm.com"
[target]
salesforce = { address = "Cases-7f3aK9@k9x8y7.org.case.mon-crm.com", route = "crm" }
[alias."solarmora.com"]
aide = { to = "salesforce" }
bugs = { to = "Cases-7f3aK9@k9x8y7.org.case.mon-crm.com", route = "crm" }
"#;
const MESSAGE: &[u8] = b"From: a@good.example\r\nSubject: panne\r\nMessage-ID: <s@good.example>\r\n\r\nx\r\n";

#[track_caller]
fn assert_silent(what: &str, text: &str) {
    let lower = text.to_lowercase();
    for secret in ["7f3ak9", "k9x8y7"] {
        assert!(!lower.contains(secret), "{what} tells `{secret}`:\n{text}");
    }
}

fn said(daemon: &Daemon, arguments: &[&str]) -> String {
    let cli = daemon.cli(arguments);
    format!("{}{}", cli.out, cli.err)
}

/// All that can be asked about a message, and all that is told unasked.
fn assert_nothing_tells(daemon: &Daemon, id: &str) {
    for arguments in [
        &["trace", "--id", id][..],
        &["trace", "--id", id, "--json"],
        &["trace", "--evidence", id],
        &["queue", "list", "--id", id],
        &["queue", "list", "--id", id, "--json"],
        &["queue", "show", "--id", id],
        &["queue", "show", "--id", id, "--json"],
        &["quarantine", "list", "--id", id, "--json"],
        &["queue", "retarget", "--to", TARGET, "--id", id, "--dry-run"],
        &["queue", "redecide", "--id", id, "--dry-run", "--json"],
        &["status"],
        &["status", "--json"],
        &["audit"],
    ] {
        assert_silent(&arguments.join(" ").replace(TARGET, "T"), &said(daemon, arguments));
    }
    assert_silent("the log", &daemon.log());
    assert_silent("the metrics", &daemon.http("/metrics").1);
}

#[test]
fn secrecy_the_intake_address_is_told_nowhere_however_its_host_spells_it() {
    let dns = Dns::start("good.example TXT v=spf1 ip4:127.0.0.1 -all\n");
    let crm = Crm::start();
    let daemon = Setup::new(crm.address()).rules(RULES).more(&format!("{}\n[auth]\n", dns.config())).start();
    for (n, spelled) in [
        "<Cases-7f3aK9@k9x8y7.org.case.mon-crm.com>",
        "CASES-7F3AK9@K9X8Y7.ORG.CASE.MON-CRM.COM",
        "cases-7f3aK9%40k9x8y7.org.case.mon-crm.com",
        "bounce+cases-7f3ak9=k9x8y7.org.case.mon-crm.com@relay.example",
        "SRS0=ab12=cd=k9x8y7.org.case.mon-crm.com=Cases-7f3aK9@relay.example",
        "\"Cases-7f3aK9\"@k9x8y7.org.case.mon-crm.com",
        "mailbox 7f3aK9 of k9x8y7",
    ]
    .into_iter()
    .enumerate()
    {
        for (stage, code, state) in [
            (Stage::Rcpt, "450 4.2.1", "queued"),
            (Stage::Rcpt, "550 5.1.1", "held"),
            (Stage::Dot, "550 5.7.1", "quarantined"),
            (Stage::Dot, "554 5.6.0", "bounced"),
        ] {
            let reply = format!("{code} {spelled} refused");
            // What goes back to the sender is taken.
            let is_for_target = Mutex::new(false);
            crm.follow(move |at, line| {
                let mut is_for_target = is_for_target.lock().unwrap();
                if at == Stage::Rcpt {
                    *is_for_target = line.contains("k9x8y7");
                }
                (at == stage && *is_for_target).then(|| Answer::Say(reply.clone()))
            });
            let alias = if n % 2 == 0 { "aide@solarmora.com" } else { "bugs@solarmora.com" };
            let id = Client::connect(daemon.smtp).deliver("a@good.example", &[alias], MESSAGE).queued_as();
            let leg = wait_for(&format!("{state} by {code} {spelled}"), || {
                let leg = daemon.rows(&["trace", "--id", &format!("{id}.1")]).pop()?;
                (leg["state"] == state && leg["attempts"] == 1).then_some(leg)
            });
            assert_eq!(leg["target"], "C***@***.mon-crm.com");
            assert_nothing_tells(&daemon, &id);
            crm.take_all();
            // A route that was at fault backs off.
            daemon.cli(&["queue", "drop", "--id", &id]);
            daemon.cli(&["queue", "retry", "--route", "crm"]);
        }
    }
    let notice = wait_for("a notification", || {
        crm.mails().into_iter().find(|mail| mail.sender().is_empty() && mail.recipients() == ["a@good.example"])
    });
    assert_silent("the notification", &String::from_utf8_lossy(&notice.bytes));
    assert_silent("doctor", &said(&daemon, &["doctor"]));
    assert_silent("probe", &said(&daemon, &["probe", "aide@solarmora.com"]));
    assert_silent("probe", &said(&daemon, &["probe", "bugs@solarmora.com", "--json"]));
    assert_silent("the log", &daemon.log());
}

#[test]
fn secrecy_ends_where_an_operator_says_reveal_and_where_the_rules_are_read() {
    let crm = Crm::start();
    let daemon = Setup::new(crm.address()).rules(RULES).start();
    crm.answer(Stage::Rcpt, "450 4.2.1 <cases-7f3ak9@k9x8y7.org.case.mon-crm.com> later");
    let id = daemon.send_bytes("bugs@solarmora.com", MESSAGE);
    wait_for("an attempt", || daemon.rows(&["trace", "--id", &id]).into_iter().find(|leg| leg["attempts"] == 1));
    for arguments in [
        &["trace", "--id", &id, "--reveal"][..],
        &["trace", "--id", &id, "--reveal", "--json"],
        &["trace", "--evidence", &id, "--reveal"],
        &["queue", "show", "--reveal", &id],
        &["queue", "list", "--reveal", "--json"],
        &["explain", "--recipient", "bugs@solarmora.com"],
    ] {
        daemon.cli(arguments).succeeds().says(&[TARGET]);
    }
    daemon.cli(&["trace", "--id", &id, "--reveal"]).says(&["<cases-7f3ak9@k9x8y7.org.case.mon-crm.com> later"]);
    // By the whole address a leg is found all the same, and without a daemon nothing else is shown.
    assert_eq!(daemon.rows(&["queue", "list", "--target", TARGET]).len(), 1);
    let site = daemon.kill9();
    assert_silent("the disk", &site.cli(&["trace", "--id", &id]).succeeds().out);
    site.cli(&["trace", "--id", &id, "--reveal"]).succeeds().says(&[TARGET]);
}
