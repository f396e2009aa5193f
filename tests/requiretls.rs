//! REQUIRETLS (RFC 8689) through the real daemon: what is taken with it goes on over verified TLS to a host that offers it
//! too, or not at all. A second daemon of ours is the CRM that offers it, Postfix one that does not.

use crate::harness::daemon::{CRM_RULES, RULES};
use crate::harness::dns::Dns;
use crate::harness::postfix::Postfix;
use crate::harness::{Certificates, Client, Crm, Daemon, Setup, has, is_root, wait_for};

const MESSAGE: &[u8] =
    b"From: client@good.example\r\nSubject: secret\r\nMessage-ID: <r@good.example>\r\n\r\nAu secours.\r\n";

/// Hands a message in with REQUIRETLS, inside TLS; gives its id.
fn send(daemon: &Daemon, certificates: &Certificates, more: &str) -> String {
    let mut client = Client::connect_tls(daemon.smtp, "mx.solarmora.com", certificates);
    let mail = format!("MAIL FROM:<client@good.example> REQUIRETLS{more}");
    let commands = [mail, "RCPT TO:<aide@solarmora.com>".to_owned()];
    client.try_transaction(&commands, MESSAGE).expect("the message is taken").queued_as()
}

#[test]
fn requiretls_is_passed_on_to_who_offers_it_and_to_nobody_else() {
    let (ours, theirs) = (Certificates::new("mx.solarmora.com"), Certificates::new("127.0.0.1"));
    let inbox = Crm::start();
    let crm = Setup::new(inbox.address()).rules(CRM_RULES).listener_tls("starttls", &theirs).start();
    let daemon = Setup::new(crm.smtp).listener_tls("starttls", &ours).route_tls("verify", &theirs).start();
    let id = send(&daemon, &ours, "");
    daemon.wait_for_leg(&format!("{id}.1"), "delivered");
    daemon.cli(&["trace", "--id", &id]).succeeds().says(&["sent with REQUIRETLS"]);

    // The CRM has been told, and has nobody to pass it to: its own inbox knows no TLS.
    let leg = wait_for("the CRM's leg", || crm.rows(&["quarantine", "list"]).pop());
    assert_eq!(leg["reason"], "require-tls", "{leg}");
    crm.cli(&["quarantine", "list"]).succeeds();
    let shown = crm.cli(&["trace", "--id", leg["message"].as_str().unwrap()]).succeeds();
    shown.says(&["sent with REQUIRETLS", "the route says `tls = \"off\"`"]);

    // What came without it goes on as ever, in the same sessions.
    let id = daemon.send("aide@solarmora.com");
    daemon.wait_for_leg(&format!("{id}.1"), "delivered");
    let mail = inbox.wait_for_mails(1).remove(0);
    assert!(!String::from_utf8(mail.bytes).unwrap().contains("Subject: secret"));
    assert_eq!(inbox.mails().len(), 1);
}

#[test]
fn a_host_without_requiretls_gets_other_mail_only_and_the_sender_hears_why() {
    if !is_root("a_host_without_requiretls_gets_other_mail_only")
        || !has("a_host_without_requiretls_gets_other_mail_only", "postfix")
    {
        return;
    }
    let (ours, theirs) = (Certificates::new("mx.solarmora.com"), Certificates::new("127.0.0.1"));
    let postfix = Postfix::as_crm_with(&format!(
        "virtual_mailbox_domains = mon-crm.com, good.example\nsmtpd_tls_security_level = may\n\
         smtpd_discard_ehlo_keywords = REQUIRETLS\nsmtpd_tls_chain_files = {}, {}\n",
        theirs.key().display(),
        theirs.certificate().display()
    ));
    let dns = Dns::start("good.example TXT v=spf1 ip4:127.0.0.1 -all\n");
    let site = Setup::new(postfix.address())
        .listener_tls("starttls", &ours)
        .route_tls("verify", &theirs)
        .also(&format!("{}[auth]\n", dns.config()))
        .site();
    let daemon = site.start();
    let id = send(&daemon, &ours, "");
    let leg = daemon.wait_for_leg(&format!("{id}.1"), "bounced");
    assert_eq!((&leg["reason"], &leg["dsn"]), (&"require-tls".into(), &"sent".into()), "{leg}");
    // The notification is for the sender; here every way leads to the same Postfix.
    let notice = String::from_utf8(postfix.wait_for_mails(1).remove(0)).unwrap();
    for word in ["Status: 5.7.30", "REQUIRETLS", "Subject: secret", "Final-Recipient: rfc822;aide@solarmora.com"] {
        assert!(notice.contains(word), "no {word} in:\n{notice}");
    }
    assert!(!notice.contains("Au secours."), "RFC 8689 §5 allows the header only:\n{notice}");
    let id = daemon.send("aide@solarmora.com");
    daemon.wait_for_leg(&format!("{id}.1"), "delivered");
    assert_eq!(postfix.mails().len(), 2);
}

#[test]
fn a_route_in_clear_text_and_a_forgeable_host_are_no_way_for_it() {
    let ours = Certificates::new("mx.solarmora.com");
    let crm = Crm::start();
    let dns = Dns::start("mon-crm.com MX 10 here.example\nhere.example A 127.0.0.1\n");
    let looked_up = RULES.replace("route = \"crm\"", "route = \"found\"");
    for (rules, why) in [(RULES, "the route says `tls = \"off\"`"), (&looked_up, "which anybody may forge")] {
        let route =
            format!("{}[route.found]\nport = {}\nprivate-networks = true\n", dns.config(), crm.address().port());
        let daemon = Setup::new(crm.address()).rules(rules).listener_tls("starttls", &ours).also(&route).start();
        let id = send(&daemon, &ours, "");
        let leg = daemon.wait_for_leg(&format!("{id}.1"), "quarantined");
        assert_eq!(leg["reason"], "require-tls", "{leg}");
        daemon.cli(&["trace", "--id", &id]).says(&[why]);
        let id = daemon.send("aide@solarmora.com");
        daemon.wait_for_leg(&format!("{id}.1"), "delivered");
    }
    assert_eq!(crm.mails().len(), 2);
    assert!(crm.mails().iter().all(|mail| mail.sender() == "client@example.org"));
}

#[test]
fn requiretls_survives_a_restart_and_one_such_leg_delays_nobody() {
    let (ours, theirs) = (Certificates::new("mx.solarmora.com"), Certificates::new("127.0.0.1"));
    let crm = Crm::start();
    let setup = Setup::new(crm.address()).listener_tls("starttls", &ours).route_tls("opportunistic", &theirs);
    let daemon = setup.start();
    crm.go_down();
    let id = send(&daemon, &ours, "");
    wait_for("an attempt", || daemon.rows(&["trace", "--id", &id]).pop().filter(|leg| leg["attempts"] == 1));
    let daemon = daemon.kill9().start();
    crm.come_up();
    daemon.cli(&["queue", "retry", "--id", &id]).succeeds();
    let leg = wait_for("the second attempt", || {
        daemon.rows(&["trace", "--id", &id]).pop().filter(|leg| leg["attempts"] == 2)
    });
    assert_eq!((&leg["state"], &leg["reason"]), (&"queued".into(), &"tls".into()), "{leg}");
    assert!(crm.mails().is_empty(), "nothing of it was said in clear text");
    // It failed for what it alone demands: the route is open.
    let other = daemon.send("aide@solarmora.com");
    daemon.wait_for_leg(&format!("{other}.1"), "delivered");
    assert!(daemon.http("/metrics").1.contains("pointsman_route_paused{route=\"crm\"} 0"));
}

#[test]
fn tls_required_no_relaxes_nothing_that_the_administrator_wants() {
    let certificates = Certificates::new("127.0.0.1");
    let message = [b"TLS-Required: No\r\n", MESSAGE].concat();
    for (tls, state) in [("opportunistic", "delivered"), ("require", "queued")] {
        let crm = Crm::start();
        let daemon = Setup::new(crm.address()).route_tls(tls, &certificates).start();
        let id = daemon.send_bytes("aide@solarmora.com", &message);
        let leg =
            wait_for("an attempt", || daemon.rows(&["trace", "--id", &id]).pop().filter(|leg| leg["attempts"] == 1));
        assert_eq!(leg["state"], state, "{tls}: {leg}");
        // Where REQUIRETLS is said as well, the field counts for nothing (RFC 8689 §4.1); the field itself is kept.
        assert!(crm.mails().iter().all(|mail| mail.bytes.ends_with(&message)), "{tls}");
    }
}
