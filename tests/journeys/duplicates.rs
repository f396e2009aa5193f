//! A message that comes twice, on a route with `dedupe`.

use crate::harness::dns::Dns;
use crate::harness::{Client, Crm, Daemon, Setup};

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
