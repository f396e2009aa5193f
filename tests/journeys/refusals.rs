//! What was refused: it is told to the client so that he hears it, and found again by who asks for it.

use serde_json::Value;

use crate::harness::{Client, Daemon, wait_for};

/// A client that is not in step with us goes on sending while we hang up. A socket that was simply closed would answer
/// that with a reset, which makes his sending fail before he has read our last reply. We read on for a second, which a
/// test may miss, but not in most cases.
#[test]
fn who_is_cut_off_hears_why_though_he_was_still_sending() {
    let (daemon, _crm) = Daemon::with_crm();
    let lines = b"sixteen octets\r\n".repeat(64);
    let sent_to_the_end = (0..10).filter(|_| {
        let mut client = Client::connect(daemon.smtp);
        let group = b"MAIL FROM:<a@example.org>\r\nRCPT TO:<aide@solarmora.com>\r\nDATA\r\n";
        client.send(&[&group[..], &lines].concat()).unwrap();
        assert_eq!((client.reply().code, client.reply().code), (250, 250));
        assert_eq!(client.reply().text, "5.5.1 you sent the message before the 354, closing");
        assert!(client.is_closed());
        (0..500).all(|_| client.send(&lines).is_ok())
    });
    assert!(sent_to_the_end.count() >= 5);
}

#[test]
fn a_message_that_the_protocol_refuses_is_logged_and_traced_with_its_envelope() {
    let (daemon, _crm) = Daemon::with_crm();
    let mut client = Client::connect(daemon.smtp);
    client.say("MAIL FROM:<client@example.org>");
    for recipient in ["aide@solarmora.com", "ventes@solarmora.com"] {
        assert_eq!(client.say(&format!("RCPT TO:<{recipient}>")).code, 250);
    }
    client.say("DATA");
    client.send(b"bare \n line feed\r\n.\r\n").unwrap();
    assert_eq!(client.reply().code, 554);
    let rows = refused(&daemon, &["--sender", "client@example.org"], 2);
    let recipients: Vec<&str> = rows.iter().map(|row| row["recipient"].as_str().unwrap()).collect();
    assert_eq!(recipients, ["ventes@solarmora.com", "aide@solarmora.com"]);
    for row in &rows {
        assert!(row["reply"].as_str().unwrap().contains("5.6.0"), "{row}");
    }
    let line = wait_for("the message's line", || {
        let log = daemon.log();
        log.lines().find(|line| line.contains(r#""event":"message""#)).map(str::to_owned)
    });
    let line: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(line["result"], "rejected");
    assert_eq!(line["sender"], "client@example.org");
    assert_eq!(line["recipients"], "aide@solarmora.com, ventes@solarmora.com");
}

#[test]
fn trace_finds_refusals_by_what_they_have_behind_a_hundred_others() {
    let (daemon, _crm) = Daemon::with_crm();
    let mut client = Client::connect(daemon.smtp);
    client.say("MAIL FROM:<Wanted@example.org>");
    client.say("RCPT TO:<personne@solarmora.com>");
    for session in 0..15 {
        let mut client = Client::connect(daemon.smtp);
        client.say("MAIL FROM:<other@example.org>");
        for n in 0..8 {
            client.say(&format!("RCPT TO:<nobody{session}-{n}@solarmora.com>"));
        }
    }
    let id = daemon.send("aide@solarmora.com");
    daemon.wait_for_leg(&format!("{id}.1"), "delivered");
    let row = refused(&daemon, &["--sender", "wanted@example.org"], 1).remove(0);
    assert_eq!(row["recipient"], "personne@solarmora.com");
    for key in ["id", "message", "target", "route", "reason"] {
        assert_eq!(row.get(key), Some(&Value::Null), "{key} in {row}");
    }
    assert_eq!((&row["state"], &row["attempts"]), (&"refused".into(), &0.into()));
    assert_eq!(refused(&daemon, &["--state", "refused", "--limit", "1000"], 121).len(), 121);
    assert!(daemon.rows(&["trace", "--until", "1h", "--state", "refused"]).is_empty());
    assert!(daemon.rows(&["trace", "--client", "192.0.2.9", "--state", "refused"]).is_empty());
    assert!(daemon.rows(&["trace", "--id", &id, "--state", "refused"]).is_empty());
    assert_eq!(daemon.rows(&["trace", "--sender", "client@example.org"]).len(), 1);
    daemon
        .cli(&["trace", "--state", "refused", "--sender", "wanted@example.org"])
        .succeeds()
        .says(&["refused", "5.1.1"]);
}

/// The rows of `trace`, once there are `count`: refusals are written in bulk.
fn refused(daemon: &Daemon, filter: &[&str], count: usize) -> Vec<Value> {
    let question: Vec<&str> = [&["trace"], filter].concat();
    wait_for("the refusals", || Some(daemon.rows(&question)).filter(|rows| rows.len() == count))
}
