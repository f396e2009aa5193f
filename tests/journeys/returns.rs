//! What goes back: rewritten senders and their returns, notifications, what was asked about them.

use pointsman::address::{Domain, Mailbox};
use pointsman::clock::{Clock, SystemClock};
use pointsman::srs::Srs;

use super::MESSAGE;
use crate::harness::{Answer, Client, Crm, Setup, Stage, wait_for};

const SRS: &str = "[srs]\ndomain = \"srs.solarmora.com\"\nsecrets = [\"tops3cret\"]\n";

#[test]
fn a_sender_is_rewritten_and_its_return_waits_until_he_is_known_to_have_written() {
    let crm = Crm::start();
    let daemon = Setup::new(crm.address()).more(SRS).start();
    daemon.send_bytes("aide@solarmora.com", MESSAGE);
    let path = Mailbox::parse(crm.wait_for_mails(1)[0].sender()).unwrap();
    let srs = Srs::new(Domain::parse("srs.solarmora.com").unwrap(), &[b"tops3cret".to_vec()]).unwrap();
    let sender = srs.restore(&path, SystemClock::new().now()).expect("the sender leads back");
    assert_eq!(sender.as_str(), "client@example.org");

    let mut client = Client::connect(daemon.smtp);
    let id = client.deliver("", &[path.as_str()], MESSAGE).queued_as();
    let leg = daemon.wait_for_leg(&format!("{id}.1"), "quarantined");
    assert_eq!((&leg["target"], &leg["recipient"]), (&"client@example.org".into(), &path.as_str().into()));
    let forged = format!("SRS0=AAAA{}", &path.as_str()["SRS0=HHHH".len()..]);
    assert_eq!(client.say("MAIL FROM:<>").code, 250);
    assert_eq!(client.say(&format!("RCPT TO:<{forged}>")).code, 550);
}

#[test]
fn a_sender_of_ours_and_the_null_sender_are_not_rewritten() {
    let crm = Crm::start();
    let daemon = Setup::new(crm.address()).more(SRS).start();
    let mut client = Client::connect(daemon.smtp);
    client.deliver("ventes@solarmora.com", &["aide@solarmora.com"], MESSAGE);
    client.deliver("", &["aide@solarmora.com"], MESSAGE);
    let mut senders: Vec<String> = crm.wait_for_mails(2).iter().map(|mail| mail.sender().to_owned()).collect();
    senders.sort();
    assert_eq!(senders, ["", "ventes@solarmora.com"]);
}

const BOUNCES: &str = r#"
[domain."solarmora.com"]
role = "admin@mon-crm.com"

[target]
salesforce = { address = "case-k3y91@mon-crm.com", route = "crm" }

[alias."solarmora.com"]
aide = { to = "salesforce", bounces = "admin" }
muet = { to = "salesforce", bounces = "suppress" }
bugs = { to = "salesforce" }
"#;

#[test]
fn a_refused_message_is_told_to_the_administrator_or_nobody_and_never_to_a_stranger() {
    let crm = Crm::start();
    crm.follow(|stage, line| {
        let refused = stage == Stage::Rcpt && line.contains("case-k3y91@");
        refused.then(|| Answer::Say("554 5.3.0 <case-k3y91@mon-crm.com> cannot".into()))
    });
    let daemon = Setup::new(crm.address()).rules(BOUNCES).start();
    let leg = |alias: &str, state: &str| {
        let id = daemon.send_bytes(&format!("{alias}@solarmora.com"), MESSAGE);
        daemon.wait_for_leg(&format!("{id}.1"), state)
    };
    assert_eq!(leg("aide", "bounced")["dsn"], "admin");
    assert_eq!(leg("muet", "bounced")["dsn"], "suppressed");
    assert_eq!(leg("bugs", "quarantined")["dsn"], serde_json::Value::Null);

    let notice = crm.wait_for_mails(1).remove(0);
    assert_eq!((notice.sender(), notice.recipients()), ("", vec!["admin@mon-crm.com"]));
    let text = String::from_utf8(notice.bytes).unwrap();
    assert!(text.contains("Final-Recipient: rfc822;aide@solarmora.com\r\n"), "{text}");
    assert!(text.contains("Subject: panne\r\n") && !text.contains("k3y91"), "{text}");
    assert!(!text.contains("Au secours."), "it brings back more than the header:\n{text}");
    wait_for("an empty queue", || daemon.rows(&["queue", "list", "--state", "queued"]).is_empty().then_some(()));
    assert_eq!(crm.mails().len(), 1);
}
