//! Rules that look into the message, through the real daemon.

use std::fs;

use crate::harness::{Client, Crm, Setup, wait_for};

const RULES: &str = r#"
[domain."solarmora.com"]
role = "admin@mon-crm.com"

[target]
salesforce = { address = "case@mon-crm.com", route = "crm" }
ventes     = { address = "ventes@mon-crm.com", route = "crm" }

[[rule]]
name = "programs"
when = { any = [{ attachment = { name-matches = '\.exe$' } }, { attachment = { inside-matches = '\.exe$' } }] }
quarantine = "a program is attached"

[[rule]]
name = "notice given"
when = { recipient = "aide@solarmora.com", body-matches = 'kündig' }
to   = "ventes"

[[rule]]
name = "orders only"
when = { recipient = "shop@solarmora.com", subject-matches = '^order \d+' }
to   = "ventes"

[alias."solarmora.com"]
aide = { to = "salesforce" }
"#;

/// A zip archive with one empty member, `Setup.EXE`.
const ARCHIVE: &str = "UEsDBBQAAAAAAAAAIQAAAAAAAAAAAAAAAAAJAAAAU2V0dXAuRVhFUEsBAhQDFAAAAAAAAAAhAAAAAAAAAAAAAAAAAAkAAAAAAAAAAAAAAKSBAAAAAFNldHVwLkVYRVBLBQYAAAAAAQABADcAAAAnAAAAAAA=";

fn with_archive(filler: usize) -> Vec<u8> {
    let text = "0123456789abcdef\r\n".repeat(filler);
    format!(
        "From: a@else.example\r\nSubject: invoice\r\nMIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n\
         --b\r\nContent-Type: text/plain\r\n\r\n{text}\r\n--b\r\nContent-Type: application/pdf; name=\"invoice.pdf\"\r\n\
         Content-Transfer-Encoding: base64\r\n\r\n{ARCHIVE}\r\n--b--\r\n"
    )
    .into_bytes()
}

#[test]
fn what_a_message_says_decides_where_it_goes_and_its_octets_stay_as_they_are() {
    let crm = Crm::start();
    let daemon = Setup::new(crm.address()).rules(RULES).start();
    let mut client = Client::connect(daemon.smtp);
    // In quoted-printable, in Latin-1: it is compared as it is read.
    let notice = b"From: a@else.example\r\nSubject: Vertrag\r\nMIME-Version: 1.0\r\n\
        Content-Type: text/plain; charset=iso-8859-1\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n\
        Ich k=FCn=\r\ndige.\r\n";
    client.deliver("a@else.example", &["aide@solarmora.com"], notice).queued_as();
    let mail = crm.wait_for_mails(1).remove(0);
    assert_eq!(mail.recipients(), ["ventes@mon-crm.com"]);
    assert!(mail.bytes.ends_with(notice));
    // In memory, and in a file.
    for filler in [1, 20_000] {
        let id = client.deliver("a@else.example", &["aide@solarmora.com"], &with_archive(filler)).queued_as();
        let row = daemon.rows(&["trace", "--id", &id]).remove(0);
        assert_eq!((&row["state"], &row["reason"]), (&"quarantined".into(), &"rule".into()), "{row}");
        assert!(row["detail"].as_str().unwrap().contains("a program is attached"), "{row}");
    }
    assert_eq!(crm.mails().len(), 1);
}

#[test]
fn a_recipient_whom_only_the_message_can_name_is_refused_after_the_dot() {
    let crm = Crm::start();
    let daemon = Setup::new(crm.address()).rules(RULES).start();
    let mut client = Client::connect(daemon.smtp);
    let message = |subject: &str| format!("Subject: {subject}\r\n\r\nx\r\n").into_bytes();
    let taken = client.deliver("a@else.example", &["shop@solarmora.com"], &message("=?utf-8?q?Order_17?="));
    assert_eq!(taken.code, 250, "{taken:?}");
    let refused = client.deliver("a@else.example", &["shop@solarmora.com"], &message("an order 17"));
    assert_eq!((refused.code, refused.text.as_str()), (550, "5.1.1 no such address here"));
    client.say("MAIL FROM:<a@else.example>");
    assert_eq!(client.say("RCPT TO:<nobody@solarmora.com>").code, 550, "no message could help");
    assert_eq!(crm.wait_for_mails(1)[0].recipients(), ["ventes@mon-crm.com"]);
}

#[test]
fn explain_reads_a_message_and_says_what_each_condition_saw() {
    let daemon = Setup::new(Crm::start().address()).rules(RULES).start();
    let file = daemon.path().join("mail.eml");
    fs::write(&file, with_archive(1)).unwrap();
    let file = file.to_str().unwrap();
    daemon
        .cli(&["explain", "--recipient", "aide@solarmora.com", "--message", file])
        .exits(0)
        .says(&["+ programs", "quarantined: a program is attached"]);
    fs::write(daemon.path().join("mail.eml"), "Subject: hello\r\n\r\nx\r\n").unwrap();
    daemon.cli(&["explain", "--recipient", "shop@solarmora.com", "--message", file]).exits(0).says(&[
        "but saw nothing attached",
        "subject-matches = \"^order \\\\d+\", but saw hello",
        "rejected: 550 5.1.1",
    ]);
    // Without a message it is open.
    daemon.cli(&["explain", "--recipient", "shop@solarmora.com"]).exits(0).says(&["is not known yet", "undecided"]);
}

/// What the rules asked for when the message came is recorded; what they did not ask for cannot be asked afterwards.
#[test]
fn redecide_knows_the_subject_and_says_when_it_would_need_more() {
    let crm = Crm::start();
    let header_only = RULES.replace("[[rule]]\nname = \"programs\"", "[[rule]]\nname = \"held\"").replace(
        "when = { any = [{ attachment = { name-matches = '\\.exe$' } }, { attachment = { inside-matches = '\\.exe$' } }] }\nquarantine",
        "when = { subject-matches = 'wait' }\nhold",
    );
    let header_only = header_only.replace("body-matches = 'kündig'", "automatic = true");
    let daemon = Setup::new(crm.address()).rules(&header_only).start();
    let id = Client::connect(daemon.smtp)
        .deliver("a@else.example", &["aide@solarmora.com"], b"Subject: please wait\r\n\r\nx\r\n")
        .queued_as();
    daemon.wait_for_leg(&format!("{id}.1"), "held");
    daemon.write_rules(RULES);
    daemon.cli(&["reload"]).exits(0);
    daemon.cli(&["queue", "redecide", "--id", &id]).exits(1).says(&["was not recorded of the message"]);
    daemon.wait_for_leg(&format!("{id}.1"), "held");
    daemon.write_rules(
        &header_only.replace("'wait'", "'never'").replace("automatic = true", "subject-matches = 'please'"),
    );
    daemon.cli(&["reload"]).exits(0);
    daemon.cli(&["queue", "redecide", "--id", &id]).exits(0);
    wait_for("the mail", || crm.mails().pop().filter(|mail| mail.recipients() == ["ventes@mon-crm.com"]));
}

#[test]
fn a_shadow_rule_counts_what_it_would_have_done_and_does_nothing() {
    let crm = Crm::start();
    let shadow = RULES.replace(
        "name = \"programs\"",
        "name = \"no words\"\nwhen = { body-matches = 'geheim' }\nreject = \"no\"\nenabled = \"shadow\"\n\n[[rule]]\nname = \"programs\"",
    );
    let daemon = Setup::new(crm.address()).rules(&shadow).start();
    let mut client = Client::connect(daemon.smtp);
    for body in ["Ganz GEHEIM.", "Nichts."] {
        let message = format!("Subject: x\r\n\r\n{body}\r\n");
        client.deliver("a@else.example", &["aide@solarmora.com"], message.as_bytes()).queued_as();
    }
    assert_eq!(crm.wait_for_mails(2).len(), 2);
    let series = "pointsman_rule_shadow_hits_total{rule=\"no words\",action=\"reject\"} 1";
    wait_for(series, || daemon.http("/metrics").1.contains(series).then_some(()));
}
