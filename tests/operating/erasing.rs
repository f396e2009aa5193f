//! Erasing what is kept of a person, and one message as text to hand over.

use std::fs;

use crate::harness::daemon::RULES;
use crate::harness::{Client, Crm, Daemon, Setup, Site, Stage, wait_for};

fn stands_in_the_files(site: &Site, word: &str) -> Vec<String> {
    let names = ["queue.db", "queue.db-wal", "refused.db", "refused.db-wal"];
    let holds = |name: &&str| {
        let octets = fs::read(site.data().join(name)).unwrap_or_default();
        octets.to_ascii_lowercase().windows(word.len()).any(|window| window == word.as_bytes())
    };
    names.iter().filter(|name| holds(name)).map(|name| (*name).to_owned()).collect()
}

#[test]
fn a_person_is_erased_from_ledger_refusals_bodies_and_book_and_nobody_else() {
    let crm = Crm::start();
    let daemon = Setup::new(crm.address()).more("[retention]\nbodies = \"7d\"\n").start();
    let mut client = Client::connect(daemon.smtp);
    let mail = |who: &str, n: u32| {
        format!("From: {who}\r\nSubject: panne\r\nMessage-ID: <{n}@example.org>\r\n\r\nAu secours.\r\n").into_bytes()
    };
    let mine =
        client.deliver("Jean.Dupont@example.org", &["aide@solarmora.com"], &mail("x@example.org", 1)).queued_as();
    let also = client.deliver("", &["aide@solarmora.com"], &mail("Jean <jean.dupont@EXAMPLE.org>", 2)).queued_as();
    let other = client.deliver("anna@example.org", &["aide@solarmora.com"], &mail("anna@example.org", 3)).queued_as();
    client.say("MAIL FROM:<jean.dupont@example.org>");
    assert_eq!(client.say("RCPT TO:<personne@solarmora.com>").code, 550);
    for id in [&mine, &also, &other] {
        daemon.wait_for_leg(&format!("{id}.1"), "delivered");
    }
    daemon.cli(&["queue", "drop", "--sender", "jean.dupont@example.org"]);
    let erase = ["erase", "--address", "jean.dupont@example.org"];
    daemon
        .cli(&[&erase[..], &["--dry-run"]].concat())
        .exits(0)
        .says(&["2 messages and 1 refusals would be erased, 0 stay", "not erased: backups, logs"]);
    assert_eq!(daemon.rows(&["trace", "--state", "delivered"]).len(), 3, "a dry run changes nothing");
    daemon.cli(&erase).exits(0).says(&[&mine, &also, "2 messages and 1 refusals erased"]);
    assert!(daemon.rows(&["trace", "--sender", "jean.dupont@example.org"]).is_empty());
    assert_eq!(daemon.rows(&["trace", "--state", "delivered"]).len(), 1);
    daemon.cli(&["trace", "--id", &other]).exits(0).says(&["anna@example.org"]);
    daemon.cli(&["doctor"]).says(&["ok       ledger"]);
    wait_for("the address to be gone from the files", || {
        stands_in_the_files(&daemon, "jean.dupont").is_empty().then_some(())
    });
    let book = daemon.cli(&["audit"]).exits(0);
    assert!(!book.out.contains("jean"), "{}", book.out);
    book.says(&["erase sha256:", "queue drop --sender sha256:"]);
    daemon.cli(&["erase"]).exits(2);
    daemon.cli(&["erase", "--address", "nobody"]).exits(1).says(&["is no address"]);
}

#[test]
fn what_is_still_owed_stays_unless_it_is_said() {
    let (daemon, crm) = Daemon::with_crm();
    crm.answer(Stage::Rcpt, "450 4.2.1 later");
    let id = daemon.send("aide@solarmora.com");
    wait_for("a deferred leg", || daemon.rows(&["queue", "list"]).pop().filter(|row| row["attempts"] == 1));
    daemon.cli(&["erase", "--id", &id]).exits(1).says(&["stays: a leg of it is open", "0 messages"]);
    assert_eq!(daemon.rows(&["queue", "list"]).len(), 1);
    daemon.cli(&["erase", "--message-id", "<1@example.org>", "--open"]).exits(0).says(&["1 messages"]);
    assert!(daemon.rows(&["queue", "list"]).is_empty());
    daemon.cli(&["status"]).exits(0).says(&["no open legs"]);
    daemon.cli(&["doctor"]).says(&["ok       ledger"]);
    daemon.kill9().cli(&["erase", "--id", &id]).exits(3);
}

#[test]
fn evidence_tells_a_message_whole_and_names_no_intake_address() {
    let crm = Crm::start();
    crm.answer(Stage::Rcpt, "450 4.2.1 <case@mon-crm.com> later");
    let rules = RULES.replacen(
        "[[rule]]",
        "[[rule]]\nname = \"a friend\"\nwhen = { sender = \"ami@example.org\" }\nto = \"ventes\"\n\n[[rule]]",
        1,
    );
    let daemon = Setup::new(crm.address()).rules(&rules).start();
    let id = daemon.send("aide@solarmora.com");
    wait_for("a deferred leg", || daemon.rows(&["queue", "list"]).pop().filter(|row| row["attempts"] == 1));
    crm.take_all();
    daemon.cli(&["queue", "retry", "--id", &id]).exits(0);
    daemon.wait_for_leg(&format!("{id}.1"), "delivered");
    let said = daemon.cli(&["trace", "--evidence", &id]).exits(0).says(&[
        &format!("Evidence of message {id}"),
        "MAIL FROM   <client@example.org>",
        "RCPT TO     <aide@solarmora.com>",
        "127.0.0.1",
        "Subject     panne",
        "Received: from client.example.org",
        "a friend: not: sender = \"ami@example.org\", and it was client@example.org",
        "aide to the CRM: applied, and ended the search",
        "salesforce <c***@mon-crm.com> by route crm",
        "attempt 1 at",
        "tempfail at rcpt: 450 4.2.1",
        "ok at dot: 250",
        "=> delivered (sent)",
    ]);
    assert!(!said.out.contains("case@"), "{}", said.out);
    daemon.cli(&["trace", "--evidence", &id, "--reveal"]).exits(0).says(&["<case@mon-crm.com>"]);
    // Other rules than those that decided explain nothing.
    daemon.write_rules(RULES);
    daemon.cli(&["trace", "--evidence", &id]).exits(0).says(&["the set in force now is another", "aide to the CRM"]);
    daemon.cli(&["trace", "--evidence"]).exits(2).says(&["name the message"]);
    daemon.cli(&["trace", "--evidence", "0000000000001"]).exits(1).says(&["nothing found"]);
    daemon.cli(&["trace", "--reveal", &id]).exits(0).says(&["<case@mon-crm.com>"]);
    daemon.kill9().cli(&["trace", "--evidence", &id]).exits(0).says(&["=> delivered (sent)"]);
}

#[test]
fn what_was_turned_away_at_its_end_is_found_by_its_header() {
    let (daemon, _crm) = Daemon::with_crm();
    let hops = "Received: from a.example by b.example; Sat, 21 Nov 2026 09:00:00 +0100\r\n".repeat(51);
    let message =
        format!("{hops}From: Anna <anna@example.org>\r\nSubject: tourne\r\nMessage-ID: <loop@x.example>\r\n\r\nx\r\n");
    let mut client = Client::connect(daemon.smtp);
    assert_eq!(client.deliver("client@example.org", &["aide@solarmora.com"], message.as_bytes()).code, 554);
    for filter in [
        ["--from", "anna@example.org"],
        ["--subject", "TOURNE"],
        ["--message-id", "loop@x.example"],
        ["--sender", "client@example.org"],
        ["--recipient", "aide@solarmora.com"],
        ["--client", "127.0.0.1"],
        ["--since", "1h"],
        ["--state", "refused"],
    ] {
        let rows = daemon.rows(&["trace", filter[0], filter[1]]);
        assert_eq!(rows.len(), 1, "{filter:?}: {rows:?}");
        assert!(rows[0]["reply"].as_str().is_some_and(|reply| reply.contains("5.4.6")), "{rows:?}");
    }
    for filter in [["--from", "jean"], ["--subject", "panne"], ["--message-id", "other@x.example"], ["--until", "1h"]] {
        assert!(daemon.rows(&["trace", filter[0], filter[1]]).is_empty(), "{filter:?}");
    }
}
