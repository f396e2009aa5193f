//! A message that comes twice, on a route with `dedupe`.

use crate::harness::dns::Dns;
use crate::harness::{Client, Crm, Daemon, Setup, wait_for};

const RULES: &str = r#"
[domain."solarmora.com"]
role = "admin@mon-crm.com"

[target]
salesforce = { address = "case@mon-crm.com", route = "once" }

[alias."solarmora.com"]
aide = { to = "salesforce" }
bugs = { to = "salesforce" }
"#;

fn daemon(crm: &Crm, more: &str) -> Daemon {
    let route = format!("[route.once]\nhosts = [\"{}\"]\ntls = \"off\"\ndedupe = \"1h\"\n", crm.address());
    Setup::new(crm.address()).rules(RULES).more(&format!("{route}{more}")).start()
}

/// A message that came by way of `by`, with this body.
fn message(by: &str, body: &str) -> Vec<u8> {
    format!(
        "Received: from client.example by {by}; Sat, 21 Nov 2026 20:00:00 +0000\r\nFrom: a@good.example\r\n\
         Message-ID: <1@good.example>\r\n\r\n{body}\r\n"
    )
    .into_bytes()
}

#[test]
fn a_copy_that_came_another_way_is_a_duplicate() {
    let crm = Crm::start();
    let daemon = daemon(&crm, "");
    let send = |alias: &str, message: &[u8], state: &str| {
        let id = daemon.send_bytes(alias, message);
        daemon.wait_for_leg(&format!("{id}.1"), state);
    };
    send("aide@solarmora.com", &message("one.example", "Au secours."), "delivered");
    send("aide@solarmora.com", &message("another.example", "Au secours."), "duplicate");
    // Another body under the same Message-ID, and another alias, are other cases.
    send("aide@solarmora.com", &message("one.example", "Encore."), "delivered");
    send("bugs@solarmora.com", &message("one.example", "Au secours."), "delivered");
    // What stands in a file is compared as well.
    let large = "y".repeat(900) + "\r\n";
    send("aide@solarmora.com", &message("one.example", &large.repeat(100)), "delivered");
    send("aide@solarmora.com", &message("another.example", &large.repeat(100)), "duplicate");
    send("aide@solarmora.com", &message("another.example", &large.repeat(101)), "delivered");
    assert_eq!(crm.mails().len(), 5);
}

#[test]
fn without_a_message_id_nothing_is_a_duplicate_and_without_dedupe_nothing_is() {
    let crm = Crm::start();
    let daemon = daemon(&crm, "");
    for _ in 0..2 {
        let id = daemon.send_bytes("aide@solarmora.com", b"From: a@good.example\r\n\r\nAu secours.\r\n");
        daemon.wait_for_leg(&format!("{id}.1"), "delivered");
    }
    // A role goes by another route, which says nothing of duplicates.
    for _ in 0..2 {
        let id = daemon.send_bytes("postmaster@solarmora.com", &message("one.example", "x"));
        daemon.wait_for_leg(&format!("{id}.1"), "delivered");
    }
    assert_eq!(crm.mails().len(), 4);
}

#[test]
fn a_leg_suppresses_its_like_while_it_is_queued_held_or_delivered_and_no_longer() {
    let crm = Crm::start();
    let daemon = daemon(&crm, "");
    let send = |state: &str| {
        let id = daemon.send_bytes("aide@solarmora.com", &message("one.example", "Au secours."));
        daemon.wait_for_leg(&format!("{id}.1"), state);
        id
    };
    crm.go_down();
    let first = daemon.send_bytes("aide@solarmora.com", &message("one.example", "Au secours."));
    wait_for("the first to wait", || {
        daemon.rows(&["queue", "list", "--id", &first]).into_iter().find(|leg| leg["attempts"] == 1)
    });
    send("duplicate");
    daemon.cli(&["queue", "hold", "--id", &first]).succeeds();
    let told = send("duplicate");
    // It is answered 250, and the ledger says why nothing came of it.
    daemon.cli(&["trace", "--id", &told]).succeeds().says(&["=> duplicate (duplicate)"]);
    // Given up, it stands for nobody any more: the next one goes, and stands for all.
    daemon.cli(&["queue", "drop", "--id", &first]).succeeds();
    let second = daemon.send_bytes("aide@solarmora.com", &message("one.example", "Au secours."));
    crm.come_up();
    daemon.cli(&["queue", "retry", "--id", &second]).succeeds();
    daemon.wait_for_leg(&format!("{second}.1"), "delivered");
    send("duplicate");
    assert_eq!(crm.mails().len(), 1);
}

#[test]
fn dmarc_at_risk_is_counted_for_what_was_accepted_and_goes_out() {
    let dns = Dns::start("good.example TXT v=spf1 ip4:127.0.0.1 -all\n_dmarc.good.example TXT v=DMARC1; p=reject\n");
    let crm = Crm::start();
    let daemon = daemon(&crm, &format!("[limits]\nlegs = 1\n{}\n[auth]\n", dns.config()));
    let mut client = Client::connect(daemon.smtp);
    let both = ["aide@solarmora.com", "bugs@solarmora.com"];
    assert_eq!(client.deliver("a@good.example", &both, &message("one.example", "x")).code, 554);
    for by in ["one.example", "another.example"] {
        client.deliver("a@good.example", &both[..1], &message(by, "x")).queued_as();
    }
    let metrics = daemon.http("/metrics").1;
    assert!(metrics.contains("pointsman_dmarc_at_risk_total{route=\"once\"} 1\n"), "{metrics}");
}
