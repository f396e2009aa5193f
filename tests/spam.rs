//! The spam score through the real daemon: what each band does, with each `on-spam`, and who is spared.
//!
//! The bands are moved instead of the mail: a plain message has some points, or by the test string of spam filters a thousand.

use crate::harness::dns::Dns;
use crate::harness::{Client, Crm, Daemon, Setup, wait_for};

mod rspamd;

const RULES: &str = r#"
[domain."solarmora.com"]
role = "admin@mon-crm.com"

[target]
salesforce = { address = "case@mon-crm.com", route = "crm" }
ventes     = { address = "ventes@mon-crm.com", route = "crm" }
marked     = { address = "marked@mon-crm.com", route = "crm", on-spam = "tag" }
all        = { address = "all@mon-crm.com", route = "crm", on-spam = "deliver" }

[alias."solarmora.com"]
aide     = { to = "salesforce" }
factures = { to = "salesforce", also = ["ventes", "marked", "all"] }
marque   = { to = "marked" }
tout     = { to = "all" }
rien     = { to = "salesforce", on-spam = "omit" }
pose     = { hold = "the CRM moves house", to = "salesforce" }
copie    = { also = "ventes" }
noir     = { discard = "nobody reads it" }
"#;

const GTUBE: &str = concat!("XJS*C4JDBQADN1.NSBN3*2IDNEN*GTUBE-STANDARD-", "ANTI-UBE-TEST-EMAIL*C.34X");

/// Some two points of our own score: it has neither a date nor an id.
fn message(body: &str) -> Vec<u8> {
    format!(
        "X-Pointsman-Spam: no; score=-5\r\nFrom: a@b.example\r\nTo: aide@solarmora.com\r\nSubject: s\r\n\r\n{body}\r\n"
    )
    .into_bytes()
}

fn gtube() -> Vec<u8> {
    message(GTUBE)
}

fn with(crm: &Crm, spam: &str) -> Daemon {
    Setup::new(crm.address()).rules(RULES).more(&format!("[spam]\n{spam}\n")).start()
}

/// A daemon for which a thousand points are in this band.
fn in_band(crm: &Crm, band: &str) -> Daemon {
    with(
        crm,
        match band {
            "clean" => "tag = 2000\nquarantine = 2000\nreject = 2000",
            "tag" => "quarantine = 2000\nreject = 2000",
            "quarantine" => "reject = 2000",
            _ => "",
        },
    )
}

fn marks(mail: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(mail);
    let head = text.split("\r\n\r\n").next().unwrap();
    head.lines().filter(|line| line.starts_with("X-Pointsman-Spam:")).map(str::to_owned).collect()
}

/// State and reason of each leg of the message, by target.
fn legs(daemon: &Daemon, id: &str) -> Vec<(String, String, String)> {
    let word = |row: &serde_json::Value, key: &str| row[key].as_str().unwrap().to_owned();
    let settled = wait_for("no leg to be under way", || {
        let rows = daemon.rows(&["trace", "--reveal", "--id", id]);
        rows.iter().all(|row| row["state"] != "queued").then_some(rows)
    });
    let mut legs: Vec<_> =
        settled.iter().map(|row| (word(row, "target"), word(row, "state"), word(row, "reason"))).collect();
    legs.sort();
    legs
}

#[test]
fn each_band_does_what_it_says_with_each_on_spam() {
    let all = ["all@mon-crm.com", "case@mon-crm.com", "marked@mon-crm.com", "ventes@mon-crm.com"];
    for (band, states, marked) in [
        ("clean", ["delivered", "delivered", "delivered", "delivered"], &[][..]),
        ("tag", ["delivered", "delivered", "delivered", "delivered"], &["case", "marked", "ventes"]),
        ("quarantine", ["delivered", "quarantined", "delivered", "omitted"], &["marked"]),
        // One copy wants it whatever its score, so it is taken.
        ("reject", ["delivered", "quarantined", "quarantined", "omitted"], &[]),
    ] {
        let crm = Crm::start();
        let daemon = in_band(&crm, band);
        let id = daemon.send_bytes("factures@solarmora.com", &gtube());
        let found = legs(&daemon, &id);
        for ((target, state), leg) in all.iter().zip(states).zip(&found) {
            assert_eq!((leg.0.as_str(), leg.1.as_str()), (*target, state), "{band}: {found:?}");
            let reason = if state == "delivered" { "sent" } else { "spam" };
            assert_eq!(leg.2, reason, "{band}: {found:?}");
        }
        for mail in crm.mails() {
            let name = mail.recipients()[0].split('@').next().unwrap().to_owned();
            let expected = marked.contains(&name.as_str());
            let marks = marks(&mail.bytes);
            assert_eq!(marks.len(), usize::from(expected), "{band} {name}: {marks:?}");
            assert!(marks.iter().all(|mark| mark == "X-Pointsman-Spam: yes; score=1000.0;"), "{marks:?}");
            let text = String::from_utf8(mail.bytes).unwrap();
            let original = String::from_utf8(gtube()).unwrap();
            assert!(text.ends_with(original.split_once("\r\n").unwrap().1), "the rest is untouched: {text}");
            if expected {
                let (names, mark) = (text.find("X-Original-To:").unwrap(), text.find("X-Pointsman-Spam:").unwrap());
                assert!(names < mark && mark < text.find("Received:").unwrap(), "{text}");
            }
        }
    }
}

#[test]
fn the_reject_band_refuses_after_the_final_dot_and_tells_a_way_out() {
    let crm = Crm::start();
    let daemon = with(&crm, "");
    let mut client = Client::connect(daemon.smtp);
    for recipients in
        [&["aide@solarmora.com"][..], &["aide@solarmora.com", "marque@solarmora.com", "rien@solarmora.com"]]
    {
        let reply = client.deliver("client@example.org", recipients, &gtube());
        assert_eq!(reply.code, 550, "{reply:?}");
        assert!(reply.text.starts_with("5.7.1") && reply.text.contains("postmaster"), "{reply:?}");
    }
    wait_for("the refusal in the trace", || {
        daemon.cli(&["trace", "--recipient", "aide@solarmora.com"]).out.contains("looks like spam").then_some(())
    });
    assert_eq!(client.deliver("client@example.org", &["aide@solarmora.com"], &message("x")).code, 250);
    assert_eq!(crm.wait_for_mails(1).len(), 1);
}

#[test]
fn who_is_refused_beside_one_who_is_not_is_quarantined_for_his_target() {
    let crm = Crm::start();
    let daemon = with(&crm, "");
    let recipients = ["aide@solarmora.com", "tout@solarmora.com", "marque@solarmora.com"];
    let id = Client::connect(daemon.smtp).deliver("client@example.org", &recipients, &gtube()).queued_as();
    let of = |target: &str, state: &str, reason: &str| (target.to_owned(), state.to_owned(), reason.to_owned());
    let expected = [
        of("all@mon-crm.com", "delivered", "sent"),
        of("case@mon-crm.com", "quarantined", "spam"),
        of("marked@mon-crm.com", "quarantined", "spam"),
    ];
    assert_eq!(legs(&daemon, &id), expected);
    // An operator who thinks better of it sends it on, unmarked.
    daemon.cli(&["quarantine", "release", "--id", &id]).succeeds();
    assert!(crm.wait_for_mails(3).iter().all(|mail| marks(&mail.bytes).is_empty()));
}

#[test]
fn a_role_address_takes_spam_and_a_null_sender_is_never_refused_for_it() {
    let crm = Crm::start();
    let daemon = with(&crm, "");
    for role in ["postmaster@solarmora.com", "abuse@solarmora.com", "postmaster"] {
        let id = daemon.send_bytes(role, &gtube());
        assert_eq!(legs(&daemon, &id)[0].1, "delivered");
    }
    assert!(crm.mails().iter().all(|mail| marks(&mail.bytes).is_empty()));
    let id = Client::connect(daemon.smtp).deliver("", &["aide@solarmora.com"], &gtube()).queued_as();
    let leg = legs(&daemon, &id).remove(0);
    assert_eq!((leg.1.as_str(), leg.2.as_str()), ("quarantined", "spam"));
}

#[test]
fn what_a_rule_holds_or_discards_is_not_sent_for_its_score() {
    let crm = Crm::start();
    let daemon = in_band(&crm, "quarantine");
    for (recipient, state, reason) in [
        ("pose@solarmora.com", "quarantined", "spam"),
        ("noir@solarmora.com", "discarded", "rule"),
        ("rien@solarmora.com", "omitted", "spam"),
        // Copies are left out beside a mail that somebody gets: here there is none.
        ("copie@solarmora.com", "quarantined", "spam"),
    ] {
        let id = daemon.send_bytes(recipient, &gtube());
        let leg = legs(&daemon, &id).remove(0);
        assert_eq!((leg.1.as_str(), leg.2.as_str()), (state, reason), "{recipient}");
    }
    assert_eq!(crm.sessions(), 0);
}

#[test]
fn a_score_explains_itself_in_trace_metrics_and_field() {
    let crm = Crm::start();
    let daemon = with(&crm, "tag = 1\nquarantine = 50\nreject = 50");
    let id = daemon.send_bytes("aide@solarmora.com", &message("Hello."));
    let mail = crm.wait_for_mails(1).remove(0);
    let text = String::from_utf8(mail.bytes).unwrap();
    assert!(text.contains("\r\n\tno-date=1.0,\r\n\tno-message-id=0.5\r\n"), "{text}");
    let told = daemon.cli(&["trace", "--id", &id]).succeeds().says(&["no-date 1.0", "no-message-id 0.5"]);
    assert!(told.out.contains("spam score 1.5 (tag)"), "{}", told.out);
    let message = daemon.rows(&["queue", "show", "--id", &id]).remove(0);
    assert_eq!(message["facts"]["spam"]["score"], 1.5, "{message}");
    let metrics = daemon.http("/metrics").1;
    assert!(
        metrics.contains("pointsman_spam_score_count 1\n") && metrics.contains("pointsman_spam_score_sum 1.5\n"),
        "{metrics}"
    );
}

#[test]
fn without_the_section_or_with_engine_off_nothing_is_scored() {
    let crm = Crm::start();
    for more in ["", "[spam]\nengine = \"off\"\n"] {
        let daemon = Setup::new(crm.address()).rules(RULES).more(more).start();
        let id = daemon.send_bytes("aide@solarmora.com", &gtube());
        assert_eq!(legs(&daemon, &id)[0].1, "delivered");
        assert!(!daemon.cli(&["trace", "--id", &id]).out.contains("spam"));
    }
    assert!(crm.mails().iter().all(|mail| marks(&mail.bytes).is_empty()));
}

#[test]
fn a_rule_may_look_at_the_score() {
    let crm = Crm::start();
    let rules = format!(
        "[[rule]]\nname = \"nothing doubtful for the CRM\"\nwhen = {{ recipient = \"aide@solarmora.com\", score = 1.5 }}\n\
         to = \"ventes\"\n{RULES}"
    );
    let daemon = Setup::new(crm.address()).rules(&rules).more("[spam]\n").start();
    let doubtful = daemon.send_bytes("aide@solarmora.com", &message("Hello."));
    assert_eq!(legs(&daemon, &doubtful)[0].0, "ventes@mon-crm.com");
    let dated = b"Date: Thu, 26 Nov 2026 10:00:00 +0000\r\nMessage-ID: <1@b.example>\r\nFrom: a@b.example\r\nTo: aide@solarmora.com\r\n\r\n";
    let plain = daemon.send_bytes("aide@solarmora.com", dated);
    assert_eq!(legs(&daemon, &plain)[0].0, "case@mon-crm.com");
}

#[test]
fn a_leg_is_decided_anew_by_the_score_that_it_got() {
    let crm = Crm::start();
    let daemon = in_band(&crm, "quarantine");
    let id = daemon.send_bytes("aide@solarmora.com", &gtube());
    assert_eq!(legs(&daemon, &id)[0].1, "quarantined");
    // By the same rules nothing changes.
    daemon.cli(&["queue", "redecide", "--id", &id]).succeeds();
    assert_eq!(legs(&daemon, &id)[0].1, "quarantined");
    let site = daemon.kill9();
    site.write_rules(&RULES.replace("aide     = { to = \"salesforce\" }", "aide     = { to = \"marked\" }"));
    let daemon = site.start();
    daemon.cli(&["queue", "redecide", "--id", &id]).succeeds();
    let mail = crm.wait_for_mails(1).remove(0);
    assert_eq!(mail.recipients(), ["marked@mon-crm.com"]);
    assert_eq!(marks(&mail.bytes), ["X-Pointsman-Spam: yes; score=1000.0;"]);
}

#[test]
fn a_signature_that_passes_and_names_the_field_keeps_it_out() {
    let zone = include_str!("spam/zone.txt");
    let (dns, crm) = (Dns::start(zone), Crm::start());
    let more = format!("{}\n[auth]\n[spam]\ntag = -10\nquarantine = 50\nreject = 50\n", dns.config());
    let daemon = Setup::new(crm.address()).rules(RULES).more(&more).start();
    let id = daemon.send_bytes("aide@solarmora.com", include_bytes!("spam/signed-absent.eml"));
    let text = String::from_utf8(crm.wait_for_mails(1).remove(0).bytes).unwrap();
    assert!(text.contains("dkim=pass"), "{text}");
    assert!(!text.contains("\r\nX-Pointsman-Spam"), "{text}");
    daemon.cli(&["trace", "--id", &id]).succeeds().says(&["no header field says so"]);
}

#[test]
fn a_listed_client_is_told_from_one_whom_a_broken_list_names() {
    let sound = "2.0.0.127.sound.example A 127.0.0.2\n9.7.7.7.sound.example A 127.0.0.2\n";
    let wild =
        "2.0.0.127.wild.example A 127.0.0.2\n1.0.0.127.wild.example A 127.0.0.2\n9.7.7.7.wild.example A 127.0.0.2\n";
    let broken = "broken.example SERVFAIL\n2.0.0.127.broken.example SERVFAIL\n";
    let (dns, crm) = (Dns::start(&format!("{sound}{wild}{broken}")), Crm::start());
    let spam = "tag = 4\nquarantine = 50\nreject = 50\nblocklists = [\"sound.example\", \"wild.example\", \"broken.example\", \"dead.example\"]";
    let more = format!("{}\n[upstream]\nnetworks = [\"127.0.0.1\"]\n[spam]\n{spam}\n", dns.config());
    let daemon = Setup::new(crm.address()).rules(RULES).more(&more).start();
    let from = |ip: &str| {
        let received = format!("Received: from m.example (m.example [{ip}])\r\n\tby a.ours.example; date\r\n");
        [received.as_bytes(), &message("Hello.")].concat()
    };
    for (ip, listed) in [("7.7.7.9", true), ("7.7.7.8", false)] {
        let id = daemon.send_bytes("aide@solarmora.com", &from(ip));
        legs(&daemon, &id);
        let told = daemon.cli(&["trace", "--id", &id]).out;
        assert_eq!(told.contains("listed 4.0"), listed, "{ip}: {told}");
        assert!(!told.contains("listed-more"), "{told}");
    }
    let metrics = daemon.http("/metrics").1;
    for (list, ignored) in [("sound", 0), ("wild", 1), ("broken", 1), ("dead", 1)] {
        let line = format!("pointsman_blocklist_ignored{{list=\"{list}.example\"}} {ignored}\n");
        assert!(metrics.contains(&line), "no {line} in {metrics}");
    }
    for why in ["it lists everything", "it gives no answer", "it does not list its test address"] {
        assert!(daemon.log().contains(why), "nobody said that {why}");
    }
}
