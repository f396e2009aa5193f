//! What goes back: rewritten senders and their returns, notifications, what was asked about them.

use pointsman::address::{Domain, Mailbox};
use pointsman::clock::{Clock, SystemClock};
use pointsman::srs::{Leads, Srs};

use super::MESSAGE;
use crate::harness::dns::Dns;
use crate::harness::{Answer, Client, Crm, Daemon, Setup, Stage, wait_for};

const SRS: &str = "[srs]\ndomain = \"srs.solarmora.com\"\nsecrets = [\"tops3cret\"]\n";

/// `good.example` may send from here; `a.example` has a key, so that its mail may come signed or not.
fn zone() -> String {
    "good.example TXT v=spf1 ip4:127.0.0.1 -all\n".to_owned() + include_str!("../../src/auth/verify/testdata/zone.txt")
}

/// A daemon that rewrites and checks, its CRM, and the name server that it asks.
fn checking() -> (Daemon, Crm, Dns) {
    let (dns, crm) = (Dns::start(&zone()), Crm::start());
    let daemon = Setup::new(crm.address()).more(&format!("{SRS}{}\n[auth]\ndmarc = \"mark\"\n", dns.config())).start();
    (daemon, crm, dns)
}

/// Sends `message`, and gives the return path that the CRM was told of it.
fn path_of(daemon: &Daemon, crm: &Crm, sender: &str, message: &[u8]) -> String {
    let before = crm.mails().len();
    Client::connect(daemon.smtp).deliver(sender, &["aide@solarmora.com"], message).queued_as();
    crm.wait_for_mails(before + 1).pop().unwrap().sender().to_owned()
}

/// Returns a message to `path`; gives its leg's id.
fn give_back(daemon: &Daemon, path: &str) -> String {
    Client::connect(daemon.smtp).deliver("", &[path], RETURNED).queued_as() + ".1"
}

const RETURNED: &[u8] = b"From: mailer-daemon@mon-crm.com\r\nSubject: failure\r\n\r\nIt failed.\r\n";

#[test]
fn without_checks_a_sender_is_rewritten_and_every_return_waits() {
    let crm = Crm::start();
    let daemon = Setup::new(crm.address()).more(SRS).start();
    let path = path_of(&daemon, &crm, "client@example.org", MESSAGE);
    let address = Mailbox::parse(&path).unwrap();
    let srs = Srs::new(Domain::parse("srs.solarmora.com").unwrap(), &[b"tops3cret".to_vec()]).unwrap();
    let read = srs.read(&address, SystemClock::new().now()).expect("the sender leads back");
    assert_eq!(read.leads, Leads::To(Mailbox::parse("client@example.org").unwrap()));

    let leg = daemon.wait_for_leg(&give_back(&daemon, &path), "quarantined");
    assert_eq!((&leg["target"], &leg["recipient"]), (&"client@example.org".into(), &path.as_str().into()));
    assert!(leg["detail"].as_str().unwrap().contains("did not authenticate"), "{leg}");
    let mut client = Client::connect(daemon.smtp);
    let forged = format!("SRS0=AAAA{}", &path["SRS0=HHHH".len()..]);
    assert_eq!(client.say("MAIL FROM:<>").code, 250);
    assert_eq!(client.say(&format!("RCPT TO:<{forged}>")).code, 550);
}

#[test]
fn what_is_returned_goes_on_to_a_sender_who_authenticated() {
    let (daemon, crm, _dns) = checking();
    let path = path_of(&daemon, &crm, "Client.Name@good.example", MESSAGE);
    // Some hosts fold the case, and some put another separator behind the tag.
    let folded = path.to_lowercase().replacen("srs0=", "srs0+", 1);
    for (n, path) in [&path, &folded].into_iter().enumerate() {
        daemon.wait_for_leg(&give_back(&daemon, path), "delivered");
        let mail = crm.wait_for_mails(n + 2).pop().unwrap();
        assert_eq!((mail.sender(), mail.recipients()[0].to_lowercase().as_str()), ("", "client.name@good.example"));
        assert!(mail.bytes.ends_with(RETURNED));
    }
    // A restart forgets nothing of it.
    let site = daemon.kill9();
    let daemon = site.start();
    daemon.wait_for_leg(&give_back(&daemon, &path), "delivered");
}

#[test]
fn what_somebody_may_have_written_in_a_sender_s_name_spoils_his_return_path_for_the_day() {
    let (daemon, crm, _dns) = checking();
    let signed = include_bytes!("../../src/auth/verify/testdata/dkimpy-relaxed.eml");
    let path = path_of(&daemon, &crm, "u@a.example", signed);
    daemon.wait_for_leg(&give_back(&daemon, &path), "delivered");
    // The next says the same of himself and proves nothing.
    crm.wait_for_mails(2);
    assert_eq!(path_of(&daemon, &crm, "u@a.example", MESSAGE), path);
    let waiting = give_back(&daemon, &path);
    let leg = daemon.wait_for_leg(&waiting, "quarantined");
    assert_eq!(leg["reason"], "rule");
    // Today's rules find nothing else; an operator may still let it go.
    daemon.cli(&["queue", "redecide", "--id", &waiting]).succeeds();
    daemon.wait_for_leg(&waiting, "quarantined");
    daemon.cli(&["quarantine", "release", "--id", &waiting]).succeeds();
    daemon.wait_for_leg(&waiting, "delivered");
}

#[test]
fn a_sender_gets_ten_returns_an_hour_and_the_others_wait() {
    let (daemon, crm, _dns) = checking();
    let path = path_of(&daemon, &crm, "client@good.example", MESSAGE);
    for _ in 0..10 {
        daemon.wait_for_leg(&give_back(&daemon, &path), "delivered");
    }
    let waiting = give_back(&daemon, &path);
    assert_eq!(daemon.wait_for_leg(&waiting, "quarantined")["reason"], "rate");
    let other = path_of(&daemon, &crm, "other@good.example", MESSAGE);
    daemon.wait_for_leg(&give_back(&daemon, &other), "delivered");
    // Its author is known: decided anew, it goes.
    daemon.cli(&["queue", "redecide", "--id", &waiting]).succeeds();
    daemon.wait_for_leg(&waiting, "delivered");
}

#[test]
fn a_sender_too_long_to_be_rewritten_is_kept_in_the_ledger_and_found_again() {
    let (daemon, crm, _dns) = checking();
    // `SRS0=HHHH=TT=good.example=` has 26 octets.
    for (octets, local) in [(38, 64), (39, 33)] {
        let before = crm.mails().len();
        let sender = format!("{}@good.example", "x".repeat(octets));
        let path = path_of(&daemon, &crm, &sender, MESSAGE);
        assert_eq!(path.split('@').next().unwrap().len(), local, "{path}");
        daemon.wait_for_leg(&give_back(&daemon, &path), "delivered");
        assert_eq!(crm.wait_for_mails(before + 2).pop().unwrap().recipients(), [sender.as_str()]);
    }
    // Nobody else's id, and nobody's under that secret.
    let guessed = "SRS0=AAAA=AA=AAAAAAAAAAAAAAAAAAAA@srs.solarmora.com";
    let mut client = Client::connect(daemon.smtp);
    assert_eq!(client.say("MAIL FROM:<>").code, 250);
    assert_eq!(client.say(&format!("RCPT TO:<{guessed}>")).code, 550);
}

#[test]
fn a_return_path_whose_sender_the_ledger_has_no_longer_waits_for_an_operator() {
    let (daemon, _crm, _dns) = checking();
    let srs = Srs::new(Domain::parse("srs.solarmora.com").unwrap(), &[b"tops3cret".to_vec()]).unwrap();
    let sender = Mailbox::parse(&format!("{}@good.example", "x".repeat(60))).unwrap();
    let path = srs.rewrite(&sender, SystemClock::new().now()).path;
    let waiting = give_back(&daemon, path.as_str());
    let leg = daemon.wait_for_leg(&waiting, "quarantined");
    assert!(leg["detail"].as_str().unwrap().contains("no longer"), "{leg}");
    // It is addressed to itself: released, it would come back.
    daemon.cli(&["quarantine", "release", "--id", &waiting]).says(&["would come back"]);
    daemon.wait_for_leg(&waiting, "quarantined");
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

/// A CRM that refuses everything for it, and takes what goes to senders.
fn refuse(crm: &Crm) {
    crm.follow(|stage, line| {
        let refused = stage == Stage::Rcpt && line.contains("case@mon-crm.com");
        refused.then(|| Answer::Say("554 5.3.0 cannot".into()))
    });
}

/// Hands in a message with these arguments to MAIL and RCPT; gives its leg's id.
fn deliver_asking(daemon: &Daemon, mail: &str, rcpt: &str, message: &[u8]) -> String {
    let commands = [format!("MAIL FROM:{mail}"), format!("RCPT TO:<aide@solarmora.com>{rcpt}")];
    let reply = Client::connect(daemon.smtp).try_transaction(&commands, message).unwrap();
    reply.queued_as() + ".1"
}

#[test]
fn what_mail_and_rcpt_asked_about_notifications_is_obeyed() {
    let (daemon, crm, _dns) = checking();
    refuse(&crm);
    let never = deliver_asking(&daemon, "<a@good.example>", " NOTIFY=NEVER", MESSAGE);
    assert_eq!(daemon.wait_for_leg(&never, "bounced")["dsn"], "suppressed");
    let asked = deliver_asking(
        &daemon,
        "<a@good.example> RET=FULL ENVID=QQ+2B314",
        " NOTIFY=FAILURE,DELAY ORCPT=rfc822;Aide+2Bx@solarmora.com",
        MESSAGE,
    );
    assert_eq!(daemon.wait_for_leg(&asked, "bounced")["dsn"], "sent");
    let notice = crm.wait_for_mails(1).remove(0);
    assert_eq!((notice.sender(), notice.recipients()), ("", vec!["a@good.example"]));
    let text = String::from_utf8(notice.bytes).unwrap();
    for line in [
        "Original-Envelope-Id: QQ+314",
        "Original-Recipient: rfc822;Aide+x@solarmora.com",
        "Final-Recipient: rfc822;aide@solarmora.com",
    ] {
        assert!(text.contains(&format!("{line}\r\n")), "no `{line}` in:\n{text}");
    }
    // Whatever RET asked for.
    assert!(!text.contains("Au secours."), "{text}");
    assert_eq!(crm.mails().len(), 1);
}

#[test]
fn a_signature_counts_for_the_reverse_path_and_not_for_the_author_alone() {
    let (daemon, crm, _dns) = checking();
    refuse(&crm);
    let signed = include_bytes!("../../src/auth/verify/testdata/dkimpy-relaxed.eml");
    // It is signed by a.example, which From names: whoever signs as himself could aim at anybody.
    for victim in ["<victim@b.example>", "<victim@xa.example>", "<>"] {
        let leg = deliver_asking(&daemon, victim, "", signed);
        assert_eq!(daemon.wait_for_leg(&leg, "quarantined")["dsn"], serde_json::Value::Null, "{victim}");
    }
    let leg = deliver_asking(&daemon, "<bounces@a.example>", "", signed);
    assert_eq!(daemon.wait_for_leg(&leg, "bounced")["dsn"], "sent");
    assert_eq!(crm.wait_for_mails(1)[0].recipients(), ["bounces@a.example"]);
    assert_eq!(crm.mails().len(), 1);
}
