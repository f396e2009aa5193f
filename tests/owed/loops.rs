//! Loops: our own mark, hops, a CRM that answers itself.

use std::fs;

use crate::harness::crm::Mail;
use crate::harness::{Client, Crm, Daemon, Setup, wait_for};

const MESSAGE: &[u8] = b"From: a@a.example\r\nSubject: panne\r\nMessage-ID: <l@a.example>\r\n\r\nAu secours.\r\n";

/// Sends what the CRM got back to us, as it got it.
fn bounce_back(daemon: &Daemon, mail: &Mail, alias: &str) -> (u16, String) {
    let reply = Client::connect(daemon.smtp).deliver(mail.sender(), &[alias], &mail.bytes);
    (reply.code, reply.text)
}

fn loops(daemon: &Daemon, sign: &str) -> String {
    let metrics = daemon.http("/metrics").1;
    let start = format!("pointsman_loops_total{{sign=\"{sign}\"}} ");
    metrics.lines().find_map(|line| line.strip_prefix(&start)).unwrap_or("0").to_owned()
}

#[test]
fn our_own_signed_mark_seen_again_under_the_same_rule_is_refused() {
    let (daemon, crm) = Daemon::with_crm();
    daemon.send_bytes("aide@solarmora.com", MESSAGE);
    let mail = crm.wait_for_mails(1).remove(0);
    let again = bounce_back(&daemon, &mail, "aide@solarmora.com");
    assert_eq!(again, (554, "5.4.6 this message has been this way before: a mail loop".into()));
    // Another rule is another way: it goes on, and bears both marks.
    assert_eq!(bounce_back(&daemon, &mail, "ventes@solarmora.com").0, 250);
    let mail = crm.wait_for_mails(2).pop().unwrap();
    assert_eq!(String::from_utf8_lossy(&mail.bytes).matches("X-Pointsman-Loop: ").count(), 2);
    for alias in ["aide@solarmora.com", "ventes@solarmora.com"] {
        assert_eq!(bounce_back(&daemon, &mail, alias).0, 554, "{alias}");
    }
    assert_eq!(loops(&daemon, "mark"), "3");
    // Beside a recipient that is none of it, the loop's is kept for an operator.
    let reply = Client::connect(daemon.smtp).deliver("", &["aide@solarmora.com", "abuse@solarmora.com"], &mail.bytes);
    let id = reply.queued_as();
    assert_eq!(daemon.rows(&["trace", "--id", &id, "--reason", "mixed-refusal"]).len(), 1);
}

#[test]
fn a_forged_mark_refuses_nothing_and_is_cut() {
    let (daemon, crm) = Daemon::with_crm();
    daemon.send_bytes("aide@solarmora.com", MESSAGE);
    let mail = crm.wait_for_mails(1).remove(0);
    let text = String::from_utf8(mail.bytes).unwrap();
    let mark = text.lines().find(|line| line.starts_with("X-Pointsman-Loop: ")).unwrap();
    let mut sent = 1;
    // With one character of the hash changed, by another key, and nonsense.
    let last = if mark.ends_with('0') { "1" } else { "0" };
    let forged = format!("{}{last}", &mark[..mark.len() - 1]);
    for forged in [&forged, "X-Pointsman-Loop: 1 2 3", "x-pointsman-loop : aide to the CRM", "X-Pointsman-Loop:"] {
        let message = [forged.as_bytes(), b"\r\n", MESSAGE].concat();
        let reply = Client::connect(daemon.smtp).deliver("x@evil.example", &["aide@solarmora.com"], &message);
        assert_eq!(reply.code, 250, "{forged}");
        sent += 1;
        let text = String::from_utf8(crm.wait_for_mails(sent).pop().unwrap().bytes).unwrap();
        assert_eq!(text.to_lowercase().matches("x-pointsman-loop").count(), 1, "{text}");
        assert!(text.ends_with(str::from_utf8(MESSAGE).unwrap()), "{text}");
    }
    assert_eq!(loops(&daemon, "mark"), "0");
}

#[test]
fn the_key_of_the_marks_is_made_once_and_outlives_a_restart() {
    let (daemon, crm) = Daemon::with_crm();
    daemon.send_bytes("aide@solarmora.com", MESSAGE);
    let mail = crm.wait_for_mails(1).remove(0);
    let key = fs::read(daemon.data().join("loop.key")).unwrap();
    daemon.signal("TERM");
    let (site, _) = daemon.wait();
    let daemon = site.start();
    assert_eq!(fs::read(daemon.data().join("loop.key")).unwrap(), key);
    assert_eq!(bounce_back(&daemon, &mail, "aide@solarmora.com").0, 554);
    // What is no key is left as it is, and mail goes on.
    fs::write(daemon.data().join("loop.key"), "short\n").unwrap();
    daemon.signal("TERM");
    let (site, _) = daemon.wait();
    let daemon = site.start();
    wait_for("the word in the log", || daemon.log().contains("loop-key-unusable").then_some(()));
    assert_eq!(fs::read(daemon.data().join("loop.key")).unwrap(), b"short\n");
    assert_eq!(bounce_back(&daemon, &mail, "aide@solarmora.com").0, 250);
    assert!(!String::from_utf8_lossy(&crm.wait_for_mails(2)[1].bytes).contains("X-Pointsman-Loop"));
}

const CRM: &str = r#"
[domain."solarmora.com"]
role = "admin@mon-crm.com"
[target]
salesforce = { address = "case@mon-crm.com", route = "crm" }
other      = { address = "other@other-crm.example", route = "crm" }
[alias."solarmora.com"]
aide  = { to = "salesforce" }
bugs  = { to = "case.bugs@mon-crm.com", route = "crm" }
autre = { to = "other" }
"#;

#[test]
fn automatic_mail_whose_from_is_an_alias_of_the_same_crm_is_held() {
    let crm = Crm::start();
    let daemon = Setup::new(crm.address()).rules(CRM).start();
    let mut sent = 0;
    for (from, automatic, alias, held) in [
        ("aide@solarmora.com", "Auto-Submitted: auto-replied", "aide@solarmora.com", true),
        ("Aide <AIDE@solarmora.com>", "Precedence: bulk", "bugs@solarmora.com", true),
        // Another CRM, a person, and a stranger.
        ("aide@solarmora.com", "Auto-Submitted: auto-replied", "autre@solarmora.com", false),
        ("aide@solarmora.com", "Auto-Submitted: no", "aide@solarmora.com", false),
        ("absent@a.example", "Auto-Submitted: auto-replied", "aide@solarmora.com", false),
        ("nobody@solarmora.com", "Auto-Submitted: auto-replied", "aide@solarmora.com", false),
    ] {
        let message = format!("From: {from}\r\n{automatic}\r\nSubject: we got it\r\n\r\nx\r\n");
        let id = daemon.send_bytes(alias, message.as_bytes());
        let leg = daemon.wait_for_leg(&format!("{id}.1"), if held { "held" } else { "delivered" });
        if held {
            assert_eq!((&leg["reason"], &leg["due"]), (&"loop".into(), &serde_json::Value::Null), "{from}");
            daemon.cli(&["queue", "release", "--id", &id]).succeeds();
            daemon.wait_for_leg(&format!("{id}.1"), "delivered");
        }
        sent += 1;
    }
    // The null sender is a program, too.
    let message = b"From: aide@solarmora.com\r\nSubject: we got it\r\n\r\nx\r\n";
    let id = Client::connect(daemon.smtp).deliver("", &["aide@solarmora.com"], message).queued_as();
    daemon.wait_for_leg(&format!("{id}.1"), "held");
    assert_eq!((crm.mails().len(), loops(&daemon, "automatic")), (sent, "3".to_owned()));
}

#[test]
fn crm_fingerprints_that_come_back_are_held_and_counted() {
    let (daemon, crm) = Daemon::with_crm();
    for (n, field) in [
        "X-Mailer: Zendesk Mailer",
        "X-JIRA-FingerPrint: 0123456789abcdef",
        "X-SFDC-AutoResponse: 1",
        "X-RT-Loop-Prevention: rt.example",
    ]
    .into_iter()
    .enumerate()
    {
        let message = [field.as_bytes(), b"\r\n", MESSAGE].concat();
        let id = daemon.send_bytes("aide@solarmora.com", &message);
        let leg = daemon.wait_for_leg(&format!("{id}.1"), "held");
        assert_eq!((&leg["reason"], &leg["due"]), (&"loop".into(), &serde_json::Value::Null), "{field}");
        let name = field.split(':').next().unwrap();
        daemon.cli(&["trace", "--id", &id]).succeeds().says(&[name, "which a CRM writes", "waits for an operator"]);
        assert_eq!(loops(&daemon, "fingerprint"), (n + 1).to_string());
    }
    // A person's program, and a role's mail.
    let other = [b"X-Mailer: Zendesk Mailer of a friend\r\n", MESSAGE].concat();
    daemon.send_bytes("aide@solarmora.com", &other);
    daemon.send_bytes("postmaster@solarmora.com", &[b"X-Mailer: Zendesk Mailer\r\n", MESSAGE].concat());
    assert_eq!(crm.wait_for_mails(2).len(), 2);
}

#[test]
fn a_breaker_holds_what_one_sender_answers_too_fast() {
    let crm = Crm::start();
    let daemon = Setup::new(crm.address()).site();
    daemon.reconfigure("concurrency = 5", "concurrency = 5\nsender-rate = \"3/h\"");
    let daemon = daemon.start();
    let answer = b"From: a@a.example\r\nIn-Reply-To: <1@x>\r\nSubject: Re: panne\r\n\r\nx\r\n";
    let mut client = Client::connect(daemon.smtp);
    let mut send = |from: &str, alias: &str, message: &[u8], state: &str| {
        let id = client.deliver(from, &[alias], message).queued_as();
        daemon.wait_for_leg(&format!("{id}.1"), state)
    };
    for _ in 0..3 {
        send("a@a.example", "aide@solarmora.com", answer, "delivered");
    }
    let held = send("A@a.example", "aide@solarmora.com", answer, "held");
    assert_eq!(held["reason"], "rate");
    assert!(held["due"].is_string(), "it goes on by itself: {held}");
    // Another sender, another target, and what is no answer.
    send("b@a.example", "aide@solarmora.com", answer, "delivered");
    send("a@a.example", "ventes@solarmora.com", answer, "delivered");
    send("a@a.example", "aide@solarmora.com", MESSAGE, "delivered");
    assert_eq!(loops(&daemon, "rate"), "1");
}

#[test]
fn a_crm_that_answers_every_case_with_a_mail_to_the_alias_is_stopped() {
    let crm = Crm::start();
    let site = Setup::new(crm.address()).site();
    site.reconfigure("concurrency = 5", "concurrency = 5\nsender-rate = \"10/h\"");
    let daemon = site.start();
    daemon.send_bytes("aide@solarmora.com", MESSAGE);
    // It marks nothing as automatic, and each answer is a new message.
    let mut client = Client::connect(daemon.smtp);
    for n in 1.. {
        crm.wait_for_mails(n);
        let answer =
            format!("From: case@mon-crm.com\r\nSubject: case {n}\r\nMessage-ID: <{n}@mon-crm.com>\r\n\r\nx\r\n");
        let id = client.deliver("case@mon-crm.com", &["aide@solarmora.com"], answer.as_bytes()).queued_as();
        let row = daemon.rows(&["trace", "--id", &id]).remove(0);
        if row["state"] == "held" {
            assert_eq!((n, &row["reason"]), (11, &"rate".into()));
            return;
        }
        assert!(n < 20, "nothing stops it");
    }
}

const THERE: &str = r#"
[domain."solarmora.com"]
role = "admin@example.net"
[alias."solarmora.com"]
aide = { to = "case@mon-crm.com", route = "crm" }
"#;
const BACK: &str = r#"
[domain."mon-crm.com"]
role = "admin@example.net"
[alias."mon-crm.com"]
case = { to = "aide@solarmora.com", route = "crm" }
"#;

#[test]
fn two_pointsmen_that_route_to_each_other_end_their_loop() {
    let nobody = Crm::start();
    let site = Setup::new(nobody.address()).rules(BACK).site();
    site.reconfigure("hostname = \"mx.solarmora.com\"", "hostname = \"mx.mon-crm.com\"");
    let back = site.start();
    let there = Setup::new(back.smtp).rules(THERE).start();
    back.reconfigure(&nobody.address().to_string(), &there.smtp.to_string());
    back.cli(&["reload"]).succeeds();
    there.send_bytes("aide@solarmora.com", MESSAGE);
    // Each cuts the other's marks like anybody's; what stays is Received.
    wait_for("one of them to refuse it", || {
        let hops = [&there, &back].map(|daemon| loops(daemon, "hops"));
        (hops.iter().filter(|count| *count == "1").count() == 1).then_some(())
    });
    let legs: Vec<usize> = [&there, &back].map(|daemon| daemon.rows(&["trace"]).len()).into();
    assert!(legs.iter().sum::<usize>() <= 53 && legs.iter().all(|legs| *legs >= 25), "{legs:?}");
    // Nothing of it is lost: the last one waits for an operator, who is told why.
    let waits = |daemon: &Daemon| daemon.rows(&["quarantine", "list"]).into_iter().next();
    let last = wait_for("the last leg in the quarantine", || waits(&there).or_else(|| waits(&back)));
    assert!(last["reply"].as_str().unwrap().contains("5.4.6 too many Received fields"), "{last}");
}
