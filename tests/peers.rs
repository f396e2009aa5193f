//! Real peers: swaks and smtp-source as clients, smtp-sink and Postfix as the CRM, Postfix in front of us.
//!
//! They were written by others and read the RFCs in their own way, which is what they are here for.

use std::process::Command;

use pointsman::address::{Domain, Mailbox};
use pointsman::clock::{Clock, SystemClock};
use pointsman::srs::{Leads, Srs};

use crate::harness::postfix::{Postfix, SmtpSink, smtp_source};
use crate::harness::postsrsd::Postsrsd;
use crate::harness::{Client, Crm, Daemon, Setup, has, is_root, run, wait_for};

const MESSAGE: &[u8] =
    "From: client@example.org\r\nDate: Sat, 21 Nov 2026 20:00:00 +0000\r\nSubject: panne\r\nMessage-ID: <peer@example.org>\r\n\r\n.point\r\nété\r\n\r\n..\r\n".as_bytes();

#[test]
fn the_tools_of_these_tests_understand_each_other() {
    let test = "the_tools_of_these_tests_understand_each_other";
    if !is_root(test) || !has(test, "postfix") || !has(test, "smtp-sink") {
        return;
    }
    let sink = SmtpSink::start(&[]);
    Client::connect(sink.address()).deliver("client@example.org", &["aide@solarmora.com"], MESSAGE);
    let dump = sink.wait_for_dumps(1).remove(0);
    assert_eq!(dump.sender, "<client@example.org>");
    assert_eq!(dump.recipients, ["<aide@solarmora.com>"]);
    assert_eq!(dump.message, lf(MESSAGE));

    let postfix = Postfix::as_crm();
    Client::connect(postfix.address()).deliver("client@example.org", &["case@mon-crm.com"], MESSAGE);
    let mail = String::from_utf8(postfix.wait_for_mails(1).remove(0)).unwrap();
    assert!(mail.ends_with(&lf(MESSAGE)), "{mail}");
}

#[test]
fn the_stand_in_crm_is_a_server_for_postfix() {
    let test = "the_stand_in_crm_is_a_server_for_postfix";
    if !is_root(test) || !has(test, "postfix") {
        return;
    }
    let crm = Crm::start();
    let upstream = Postfix::as_upstream(crm.address());
    Client::connect(upstream.address()).deliver("client@example.org", &["aide@solarmora.com"], MESSAGE);
    let mail = crm.wait_for_mails(1).remove(0);
    assert!(mail.bytes.ends_with(MESSAGE), "{}", String::from_utf8_lossy(&mail.bytes));
}

#[test]
fn swaks_is_a_client() {
    if !has("swaks_is_a_client", "swaks") {
        return;
    }
    let (daemon, crm) = Daemon::with_crm();
    let said = swaks(&daemon, &["--to", "aide@solarmora.com", "--body", "Au secours.\n.\nFin."]);
    assert!(said.contains("2.0.0 queued as "), "{said}");
    let mail = crm.wait_for_mails(1).remove(0);
    assert_eq!(mail.recipients(), ["case@mon-crm.com"]);
    let text = String::from_utf8(mail.bytes).unwrap();
    assert!(text.contains("\r\nAu secours.\r\n.\r\nFin."), "{text}");
    let said = swaks(&daemon, &["--to", "aide@solarmora.com,factures@solarmora.com", "--pipeline"]);
    assert!(said.contains("2.0.0 queued as "), "{said}");
    crm.wait_for_mails(4);
}

#[test]
fn smtp_source_is_a_client_and_nothing_is_doubled() {
    if !has("smtp_source_is_a_client", "smtp-source") {
        return;
    }
    let (daemon, crm) = Daemon::with_crm();
    // -d: the sessions stay open from message to message.
    let common = ["-d", "-s", "5", "-m", "100", "-l", "4096", "-f", "client@example.org", "-t", "aide@solarmora.com"];
    smtp_source(daemon.smtp, &common);
    crm.wait_for_mails(100);
    smtp_source(
        daemon.smtp,
        &["-s", "10", "-m", "200", "-l", "100000", "-f", "a@example.org", "-t", "aide@solarmora.com"],
    );
    crm.wait_for_mails(300);
    wait_for("an empty queue", || daemon.rows(&["queue", "list", "--state", "queued"]).is_empty().then_some(()));
    assert_eq!(crm.mails().len(), 300);
}

/// RFC 3461 §5.2.1: what was asked about notifications goes with the message; the next host, which takes it over, tells.
#[test]
fn postfix_is_told_what_was_asked_about_notifications() {
    if !is_root("postfix_is_told_what_was_asked") || !has("postfix_is_told_what_was_asked", "postfix") {
        return;
    }
    let postfix = Postfix::as_crm_with("virtual_mailbox_domains = mon-crm.com, solarmora.com\n");
    let rules = "[domain.\"solarmora.com\"]\nrole = \"admin@mon-crm.com\"\nmailboxes = \"crm\"\n";
    let daemon = Setup::new(postfix.address()).rules(rules).start();
    for (ret, notify, told) in [("HDRS", "SUCCESS", true), ("FULL", "SUCCESS,DELAY", true), ("HDRS", "NEVER", false)] {
        let before = postfix.mails().len();
        let commands = [
            // The name of each transaction is another: the notice of one must not stand for that of the next.
            format!("MAIL FROM:<client@mon-crm.com> RET={ret} ENVID=QQ+2B1+3D{before}"),
            format!("RCPT TO:<bob@solarmora.com> NOTIFY={notify} ORCPT=rfc822;Bob+2Bx@first.example"),
        ];
        let message = b"From: client@mon-crm.com\r\nSubject: asked\r\n\r\nthe body itself\r\n";
        let mut client = Client::connect(daemon.smtp);
        let id = client.try_transaction(&commands, message).unwrap().queued_as();
        daemon.wait_for_leg(&format!("{id}.1"), "delivered");
        let mails = postfix.wait_for_mails(before + 1 + usize::from(told));
        let texts: Vec<String> = mails.into_iter().map(|mail| String::from_utf8_lossy(&mail).into_owned()).collect();
        let envid = format!("Original-Envelope-Id: QQ+1={before}\n");
        let notice = texts.iter().find(|text| text.contains(&envid) && text.contains("Action: delivered"));
        assert_eq!(notice.is_some(), told, "{ret} {notify}: {texts:#?}");
        let Some(notice) = notice else { continue };
        assert!(notice.contains("Original-Recipient: rfc822;Bob+x@first.example"), "{notice}");
    }
}

#[test]
fn smtp_sink_is_the_crm() {
    if !is_root("smtp_sink_is_the_crm") || !has("smtp_sink_is_the_crm", "smtp-sink") {
        return;
    }
    // One that offers everything, and one that offers neither 8BITMIME nor pipelining nor ESMTP at all: 8-bit text
    // goes out as it is all the same, because changing it would break its signatures.
    for options in [&[][..], &["-8", "-p"], &["-e"]] {
        let sink = SmtpSink::start(options);
        let daemon = Setup::new(sink.address()).start();
        daemon.send_bytes("aide@solarmora.com", MESSAGE);
        let dump = sink.wait_for_dumps(1).remove(0);
        assert!(dump.recipients[0].starts_with("<case@mon-crm.com>"), "{dump:?}");
        assert!(dump.sender.starts_with("<client@example.org>"), "{dump:?}");
        assert!(dump.message.ends_with(&lf(MESSAGE)), "{options:?}: {}", dump.message);
    }
}

#[test]
fn postfix_is_the_crm() {
    if !is_root("postfix_is_the_crm") || !has("postfix_is_the_crm", "postfix") {
        return;
    }
    let postfix = Postfix::as_crm();
    let daemon = Setup::new(postfix.address()).start();
    let id = daemon.send_bytes("factures@solarmora.com", MESSAGE);
    let mails = postfix.wait_for_mails(2);
    for mail in &mails {
        let text = String::from_utf8_lossy(mail);
        assert!(text.ends_with(&lf(MESSAGE)), "{text}");
        assert!(text.contains("Delivered-To: factures@solarmora.com\n"), "{text}");
    }
    for n in 1..=2 {
        daemon.wait_for_leg(&format!("{id}.{n}"), "delivered");
    }
}

#[test]
fn postfix_in_front_of_us_relays_to_us() {
    if !is_root("postfix_in_front_of_us") || !has("postfix_in_front_of_us", "postfix") {
        return;
    }
    let (daemon, crm) = Daemon::with_crm();
    let upstream = Postfix::as_upstream(daemon.smtp);
    let mut client = Client::connect(upstream.address());
    for n in 1..=20 {
        let reply = client.deliver("client@example.org", &["aide@solarmora.com", "ventes@solarmora.com"], MESSAGE);
        assert_eq!(reply.code, 250, "message {n}: {reply:?}");
    }
    let mails = crm.wait_for_mails(40);
    assert_eq!(mails.len(), 40);
    assert!(mails.iter().all(|mail| mail.bytes.ends_with(MESSAGE)));
    // An address that we refuse comes back to Postfix as its bounce; we made none, and none was tried at the CRM.
    client.deliver("client@example.org", &["personne@solarmora.com"], MESSAGE);
    wait_for("Postfix to log our refusal", || upstream.log().contains("550 5.1.1").then_some(()));
    assert_eq!(crm.mails().len(), 40);
}

#[test]
fn postsrsd_and_we_restore_what_the_other_has_rewritten() {
    if !has("postsrsd_and_we_restore_what_the_other_has_rewritten", "postsrsd") {
        return;
    }
    let secrets = ["tops3cret", "an older one"];
    let peer = Postsrsd::start("srs.solarmora.com", &secrets);
    let domain = Domain::parse("srs.solarmora.com").unwrap();
    let srs = |secrets: &[&str]| {
        let secrets: Vec<Vec<u8>> = secrets.iter().map(|secret| secret.as_bytes().to_vec()).collect();
        Srs::new(domain.clone(), &secrets).unwrap()
    };
    let (both, old) = (srs(&secrets), srs(&secrets[1..]));
    let now = SystemClock::new().now();
    for text in [
        "client@example.org",
        "Client.Name+tag@example.org",
        "a=b-c@sub.example.org",
        "SRS0=HHHH=TT=orig.example=user@first.example",
        "SRS0+HHHH=TT=orig.example=user@first.example",
    ] {
        let sender = Mailbox::parse(text).unwrap();
        let theirs = peer.forward(text).unwrap_or_else(|| panic!("postsrsd does not rewrite {text}"));
        let read = both.read(&Mailbox::parse(&theirs).unwrap(), now).map(|read| read.leads);
        assert_eq!(read, Ok(Leads::To(sender.clone())), "{theirs}");
        for ours in [both.rewrite(&sender, now).path, old.rewrite(&sender, now).path] {
            assert_eq!(peer.reverse(ours.as_str()).as_deref(), Some(text), "{ours}");
        }
        // Another's secret is nobody's.
        let strange = srs(&["guessed"]).rewrite(&sender, now).path;
        assert_eq!(peer.reverse(strange.as_str()), None, "{strange}");
    }
    // What holds an id instead of a sender it takes for nobody's, though the secret is the same.
    let long = Mailbox::parse(&format!("{}@example.org", "x".repeat(60))).unwrap();
    let held = both.rewrite(&long, now);
    assert!(held.author.id.is_some());
    assert_eq!(peer.reverse(held.path.as_str()), None, "{}", held.path);
}

fn swaks(daemon: &Daemon, options: &[&str]) -> String {
    let mut command = Command::new("swaks");
    command.args(["--server", &daemon.smtp.ip().to_string(), "--port", &daemon.smtp.port().to_string()]);
    run(command.args(["--from", "client@example.org", "--helo", "client.example.org"]).args(options))
}

fn lf(message: &[u8]) -> String {
    String::from_utf8(message.to_owned()).unwrap().replace("\r\n", "\n")
}
