//! The header fields that are added: which copy gets which, and what signatures forbid.

use crate::harness::daemon::RULES;
use crate::harness::dkim::{DkimKey, dkimpy_sign, dkimpy_sign_fields, dkimpy_verifies, has_dkimpy, opendkim_verifies};
use crate::harness::dns::Dns;
use crate::harness::{Client, Crm, Daemon, Setup, has};

const MESSAGE: &[u8] = b"From: a@a.example\r\nSubject: panne\r\nMessage-ID: <f@a.example>\r\n\r\nAu secours.\r\n";

/// The names of the fields that stand before the message, in their order.
fn added(mail: &[u8], message: &[u8]) -> Vec<String> {
    let fields = mail.strip_suffix(message).expect("the message as it came");
    let text = String::from_utf8(fields.to_vec()).unwrap();
    let lines = text.lines().filter(|line| !line.starts_with(['\t', ' ']));
    lines.map(|line| line.split_once(':').expect("a field").0.to_owned()).collect()
}

fn value(mail: &[u8], name: &str) -> Option<String> {
    let text = String::from_utf8_lossy(mail).into_owned();
    let lines = text.lines().take_while(|line| !line.is_empty());
    let start = format!("{name}: ");
    lines.filter_map(|line| line.strip_prefix(&start)).next().map(str::to_owned)
}

#[test]
fn original_recipient_is_told_in_each_copy_and_the_way_only_in_the_one_that_was_forwarded() {
    let (daemon, crm) = Daemon::with_crm();
    let mut client = Client::connect(daemon.smtp);
    let recipients = ["Factures@solarmora.com", "aide@solarmora.com", "postmaster@solarmora.com"];
    client.deliver("a@a.example", &recipients, MESSAGE).queued_as();
    let all = ["Delivered-To", "X-Original-To", "X-Forwarded-To", "X-Forwarded-For", "X-Pointsman-Loop", "Received"];
    let mut seen = 0;
    for mail in crm.wait_for_mails(4) {
        let (target, alias) = (mail.recipients()[0].to_owned(), value(&mail.bytes, "Delivered-To").unwrap());
        assert_eq!(value(&mail.bytes, "X-Original-To"), Some(alias.clone()));
        let text = String::from_utf8_lossy(&mail.bytes);
        for other in recipients.iter().filter(|other| **other != alias) {
            assert!(!text.contains(other), "{alias} discloses {other}:\n{text}");
        }
        match target.as_str() {
            "case@mon-crm.com" => {
                assert_eq!(added(&mail.bytes, MESSAGE), all);
                assert_eq!(value(&mail.bytes, "X-Forwarded-To"), Some(target.clone()));
                assert_eq!(value(&mail.bytes, "X-Forwarded-For"), Some(format!("{alias} {target}")));
                seen += 1;
            }
            // A copy, and a role's mail, are for people: no intake address is named there.
            _ => {
                let names: Vec<String> =
                    added(&mail.bytes, MESSAGE).into_iter().filter(|name| name != "X-Pointsman-Loop").collect();
                assert_eq!(names, [all[0], all[1], all[5]], "{target}");
                assert!(!text.contains("case@mon-crm.com"), "{text}");
            }
        }
    }
    assert_eq!(seen, 2);
}

#[test]
fn original_recipient_is_not_told_where_it_is_unchanged() {
    let crm = Crm::start();
    let rules = RULES.replacen("role = ", "mailboxes = \"crm\"\nrole = ", 1);
    let daemon = Setup::new(crm.address()).rules(&rules).start();
    daemon.send_bytes("somebody@solarmora.com", MESSAGE);
    let mail = crm.wait_for_mails(1).remove(0);
    assert_eq!(mail.recipients(), ["somebody@solarmora.com"]);
    assert_eq!(added(&mail.bytes, MESSAGE), ["Received"]);
}

#[test]
fn from_message_id_references_subject_are_never_changed_and_a_missing_message_id_is_added() {
    let (daemon, crm) = Daemon::with_crm();
    for (n, (head, wants)) in [
        ("From: a@a.example\r\nSubject: x\r\nReferences: <1@x>\r\n", true),
        // Any signature, whatever it is worth, may cover it.
        ("DKIM-Signature: v=1; d=a.example; h=from:\r\n\tmessage-id; b=x\r\nFrom: a@a.example\r\n", false),
        ("DKIM-Signature: v=1; d=a.example; h=from:subject; b=x\r\nFrom: a@a.example\r\n", true),
        ("From: a@a.example\r\nMessage-Id:\r\n", false),
        ("From: a@a.example\r\nmessage-id : <x@a.example>\r\n", false),
    ]
    .into_iter()
    .enumerate()
    {
        let message = format!("{head}\r\nAu secours.\r\n");
        let id = daemon.send_bytes("aide@solarmora.com", message.as_bytes());
        let mail = crm.wait_for_mails(n + 1).pop().unwrap().bytes;
        let names = added(&mail, message.as_bytes());
        let made = format!("<{id}@mx.solarmora.com>");
        match wants {
            true => {
                assert_eq!(names[names.len() - 2..], ["Received", "Message-ID"], "{head}");
                assert_eq!(value(&mail, "Message-ID"), Some(made.clone()));
            }
            false => assert_eq!(names.last().unwrap(), "Received", "{head}"),
        }
        // Who sees it in a case finds its story by it.
        assert_eq!(daemon.rows(&["trace", "--message-id", &made]).len(), usize::from(wants));
        for name in ["Resent-To", "Resent-From", "Reply-To", "Sender", "List-Id", "Return-Path"] {
            assert!(!names.contains(&name.to_owned()), "{names:?}");
        }
    }
}

#[test]
fn adding_any_header_breaks_no_signature_and_what_is_left_out_is_told() {
    let test = "adding_any_header_breaks_no_signature_and_what_is_left_out_is_told";
    if !has_dkimpy(test) || !has(test, "opendkim-genkey") || !has(test, "opendkim") {
        return;
    }
    let key = DkimKey::rsa("s", "a.example");
    let (dns, crm) = (Dns::start(&key.zone()), Crm::start());
    let daemon = Setup::new(crm.address()).more(&format!("{}\n[auth]\n", dns.config())).start();
    let there = [b"Delivered-To: b@b.example\r\n".as_slice(), MESSAGE].concat();
    let usual = ["from", "subject", "message-id"];
    for (n, (names, message, left_out)) in [
        (&["delivered-to"][..], MESSAGE, "Delivered-To"),
        (
            &["X-Original-To", "x-forwarded-for", "x-pointsman-loop"],
            MESSAGE,
            "X-Original-To, X-Forwarded-For, X-Pointsman-Loop",
        ),
        (&["authentication-results"], MESSAGE, "Authentication-Results"),
        // The one that is there is signed; those above it are nobody's.
        (&["delivered-to"], &there, ""),
        (&["delivered-to", "delivered-to"], &there, "Delivered-To"),
    ]
    .into_iter()
    .enumerate()
    {
        let signed = dkimpy_sign_fields(&key, &[&usual[..], names].concat(), message);
        let id = Client::connect(daemon.smtp).deliver("a@a.example", &["aide@solarmora.com"], &signed).queued_as();
        let mail = crm.wait_for_mails(n + 1).pop().unwrap().bytes;
        assert!(dkimpy_verifies(&key.zone(), &mail), "{names:?}:\n{}", String::from_utf8_lossy(&mail));
        assert!(opendkim_verifies(&key.zone(), &mail), "{names:?}");
        let here = added(&mail, &signed);
        assert!(left_out.split(", ").all(|name| !here.contains(&name.to_owned())), "{here:?}");
        let told = daemon.cli(&["trace", "--id", &id]).succeeds();
        match left_out {
            "" => assert!(!told.out.contains("not added"), "{}", told.out),
            names => drop(told.says(&[&format!("not added, since a signature says that they are absent: {names}")])),
        }
    }
}

#[test]
fn adding_any_header_is_not_forbidden_by_a_signature_that_does_not_count() {
    let test = "adding_any_header_is_not_forbidden_by_a_signature_that_does_not_count";
    if !has_dkimpy(test) || !has(test, "opendkim-genkey") {
        return;
    }
    let key = DkimKey::rsa("s", "a.example");
    let (dns, crm) = (Dns::start(&key.zone()), Crm::start());
    let daemon = Setup::new(crm.address()).more(&format!("{}\n[auth]\n", dns.config())).start();
    let signed = dkimpy_sign_fields(&key, &["from", "delivered-to"], MESSAGE);
    let broken = String::from_utf8(signed).unwrap().replace("Au secours", "Eu secours").into_bytes();
    daemon.send_bytes("aide@solarmora.com", &broken);
    daemon.send_bytes("aide@solarmora.com", &dkimpy_sign(&key, "relaxed/relaxed", "rsa-sha256", MESSAGE));
    for mail in crm.wait_for_mails(2) {
        assert!(value(&mail.bytes, "Delivered-To").is_some());
    }
}

#[test]
fn envelope_sender_is_rewritten_only_when_the_mail_leaves_our_domains_and_the_sender_is_not_ours() {
    let crm = Crm::start();
    let rules = RULES.replacen("role = ", "mailboxes = \"crm\"\nrole = ", 1);
    let srs = "[srs]\ndomain = \"srs.solarmora.com\"\nsecrets = [\"tops3cret\"]\n";
    let daemon = Setup::new(crm.address()).rules(&rules).more(srs).start();
    let mut client = Client::connect(daemon.smtp);
    for (n, (sender, recipient, rewritten)) in [
        ("client@example.org", "aide@solarmora.com", true),
        ("Client@Example.org", "postmaster@solarmora.com", true),
        // Of ours, and to ours.
        ("ventes@solarmora.com", "aide@solarmora.com", false),
        ("ventes@SOLARMORA.com", "aide@solarmora.com", false),
        ("client@example.org", "somebody@solarmora.com", false),
        ("", "aide@solarmora.com", false),
    ]
    .into_iter()
    .enumerate()
    {
        client.deliver(sender, &[recipient], MESSAGE).queued_as();
        let mail = crm.wait_for_mails(n + 1).pop().unwrap();
        match rewritten {
            true => assert!(mail.sender().starts_with("SRS0=") && mail.sender().ends_with("@srs.solarmora.com")),
            false => assert_eq!(mail.sender(), sender),
        }
        // What its author wrote of himself is not touched.
        assert!(mail.bytes.ends_with(MESSAGE), "{sender}");
    }
}
