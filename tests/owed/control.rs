//! Control headers from outside: whoever obeys them behind us must be able to believe them.

use crate::harness::dkim::{DkimKey, dkimpy_sign_fields, has_dkimpy};
use crate::harness::dns::Dns;
use crate::harness::{Client, Crm, Setup, has};

const MESSAGE: &str = "From: a@a.example\r\nSubject: panne\r\nMessage-ID: <c@a.example>\r\n\r\nAu secours.\r\n";

/// Each name of the specification, as somebody would write it.
const CONTROL: &[&str] = &[
    "X-Zammad-Ticket-Owner",
    "X-OTRS-Queue",
    "X-RT-Command",
    "RT-Send-CC",
    "X-Gm-Spam",
    "X-Gm-Phishy",
    "X-Gm-Original-To",
    "X-Spam-Status",
    "Received-SPF",
    "X-Pointsman-Spam",
    "X-Pointsman-Loop",
    "X-Pointsman-Whatever",
];

#[test]
fn control_headers_from_outside_are_cut_each_by_its_name() {
    let (daemon, crm) = crate::harness::Daemon::with_crm();
    for (n, name) in CONTROL.iter().enumerate() {
        for (m, spelled) in
            [(*name).to_owned(), name.to_uppercase(), format!("{} ", name.to_lowercase())].iter().enumerate()
        {
            let message = format!("{spelled}: forged\r\n\tmore\r\n{MESSAGE}");
            daemon.send_bytes("aide@solarmora.com", message.as_bytes());
            let mail = String::from_utf8(crm.wait_for_mails(n * 3 + m + 1).pop().unwrap().bytes).unwrap();
            assert!(!mail.contains("forged") && mail.ends_with(MESSAGE), "{spelled}: {mail}");
        }
    }
}

#[test]
fn control_headers_that_a_passing_signature_covers_are_quarantined_as_look_alikes() {
    let test = "control_headers_that_a_passing_signature_covers_are_quarantined_as_look_alikes";
    if !has_dkimpy(test) || !has(test, "opendkim-genkey") {
        return;
    }
    let key = DkimKey::rsa("s", "a.example");
    let (dns, crm) = (Dns::start(&key.zone()), Crm::start());
    let daemon = Setup::new(crm.address()).more(&format!("{}\n[auth]\n", dns.config())).start();
    let mut client = Client::connect(daemon.smtp);
    for name in CONTROL {
        let message = format!("{name}: signed\r\n{MESSAGE}");
        let lower = name.to_lowercase();
        let signed = dkimpy_sign_fields(&key, &["from", "subject", &lower], message.as_bytes());
        let id = client.deliver("a@a.example", &["aide@solarmora.com"], &signed).queued_as();
        assert_eq!(daemon.wait_for_leg(&format!("{id}.1"), "quarantined")["reason"], "look-alike", "{name}");
        // A signature that does not count protects nothing.
        let broken = String::from_utf8(signed).unwrap().replace("Au secours", "Eu secours");
        let id = client.deliver("a@a.example", &["aide@solarmora.com"], broken.as_bytes()).queued_as();
        daemon.wait_for_leg(&format!("{id}.1"), "delivered");
    }
    // Results in our name are cut even if they are signed.
    let message = format!("Authentication-Results: mx.solarmora.com; dmarc=pass (forged)\r\n{MESSAGE}");
    let signed = dkimpy_sign_fields(&key, &["from", "authentication-results"], message.as_bytes());
    let id = client.deliver("a@a.example", &["aide@solarmora.com"], &signed).queued_as();
    daemon.wait_for_leg(&format!("{id}.1"), "delivered");
    for mail in crm.mails() {
        let text = String::from_utf8(mail.bytes).unwrap();
        assert!(!text.contains(": signed") && !text.contains("forged"), "{text}");
    }
}
