//! The journeys of mail as a customer, a CRM and an administrator see them, through the real daemon.
//!
//! Each test hands in mail over SMTP, lets the CRM behave in one way, and asks the command line what became of it.
//! Golden mail folders (tests/mail) are in `golden`, the command line itself in `commands`, a CRM that
//! misbehaves in `remote`, chunks and load balancers in `framing`, what goes back to a sender in `returns`, what was
//! refused in `refusals`, what lies on the disk in `ground`.

use std::io::Write;
use std::net::{Shutdown, TcpStream};

use crate::harness::daemon::RULES;
use crate::harness::{Answer, Client, Crm, Daemon, Setup, Stage, wait_for};

mod commands;
mod framing;
mod dialogs;
mod duplicates;
mod golden;
mod ground;
mod limits;
mod refusals;
mod remote;
mod returns;

const MESSAGE: &[u8] =
    b"From: client@example.org\r\nSubject: panne\r\nMessage-ID: <j@example.org>\r\n\r\nAu secours.\r\n";

#[test]
fn mail_for_an_alias_reaches_the_crm() {
    let (daemon, crm) = Daemon::with_crm();
    let id = daemon.send_bytes("aide@solarmora.com", MESSAGE);
    let mail = crm.wait_for_mails(1).remove(0);
    assert_eq!((mail.sender(), mail.recipients()), ("client@example.org", vec!["case@mon-crm.com"]));
    assert!(mail.bytes.ends_with(MESSAGE));
    let leg = daemon.wait_for_leg(&format!("{id}.1"), "delivered");
    assert_eq!((&leg["message"], &leg["recipient"]), (&id.as_str().into(), &"aide@solarmora.com".into()));
    assert_eq!((&leg["route"], &leg["attempts"]), (&"crm".into(), &1.into()));
}

#[test]
fn a_transaction_with_many_recipients_makes_a_leg_for_each_target() {
    let (daemon, crm) = Daemon::with_crm();
    let mut client = Client::connect(daemon.smtp);
    let recipients = ["aide@solarmora.com", "factures@solarmora.com", "postmaster@solarmora.com"];
    let id = client.deliver("client@example.org", &recipients, MESSAGE).queued_as();
    let mut targets: Vec<String> = crm.wait_for_mails(4).iter().map(|mail| mail.recipients().join(" ")).collect();
    targets.sort();
    assert_eq!(targets, ["admin@mon-crm.com", "case@mon-crm.com", "case@mon-crm.com", "ventes@mon-crm.com"]);
    wait_for("four delivered legs", || {
        (daemon.rows(&["trace", "--id", &id, "--state", "delivered"]).len() == 4).then_some(())
    });
    // One alias is never disclosed to the reader of another's copy.
    for mail in crm.mails() {
        let text = String::from_utf8(mail.bytes).unwrap();
        let named = recipients.iter().filter(|recipient| text.contains(**recipient)).count();
        assert!(named <= 1, "{text}");
    }
}

#[test]
fn the_null_sender_stays_null() {
    let (daemon, crm) = Daemon::with_crm();
    Client::connect(daemon.smtp).deliver("", &["aide@solarmora.com"], MESSAGE);
    assert_eq!(crm.wait_for_mails(1)[0].sender(), "");
}

#[test]
fn a_recipient_that_nothing_names_is_refused_at_rcpt() {
    let (daemon, crm) = Daemon::with_crm();
    let mut client = Client::connect(daemon.smtp);
    client.say("MAIL FROM:<client@example.org>");
    for (recipient, code, enhanced) in [
        ("personne@solarmora.com", 550, "5.1.1"),
        ("aide@elsewhere.example", 550, "5.7.1"),
        ("aide%elsewhere.example@solarmora.com", 550, "5.1.1"),
        ("abuse@solarmora.com", 250, "2.1.5"),
        ("postmaster", 250, "2.1.5"),
        ("AIDE@SOLARMORA.COM", 250, "2.1.5"),
    ] {
        let reply = client.say(&format!("RCPT TO:<{recipient}>"));
        assert!(reply.code == code && reply.text.starts_with(enhanced), "{recipient}: {reply:?}");
    }
    client.say("RSET");
    assert_eq!(client.say("DATA").code, 503);
    assert_eq!(crm.sessions(), 0);
}

#[test]
fn a_crm_that_is_down_delays_and_loses_nothing() {
    let (daemon, crm) = Daemon::with_crm();
    crm.go_down();
    let ids: Vec<String> = (0..5).map(|_| daemon.send("aide@solarmora.com")).collect();
    for id in &ids {
        wait_for("the leg to be deferred", || {
            let row = daemon.rows(&["queue", "list", "--id", &format!("{id}.1")]).pop()?;
            (row["state"] == "queued" && row["reason"] == "connect").then_some(())
        });
    }
    crm.come_up();
    daemon.cli(&["queue", "retry", "--route", "crm"]).succeeds();
    for id in &ids {
        daemon.wait_for_leg(&format!("{id}.1"), "delivered");
    }
    assert_eq!(crm.mails().len(), ids.len(), "each exactly once");
}

#[test]
fn the_second_host_takes_over_from_a_dead_first_one() {
    let (dead, alive) = (Crm::start(), Crm::start());
    let address = dead.address();
    drop(dead);
    let daemon = Setup::new(address).host(alive.address()).start();
    daemon.send("aide@solarmora.com");
    assert_eq!(alive.wait_for_mails(1)[0].recipients(), ["case@mon-crm.com"]);
}

#[test]
fn one_failing_leg_does_not_delay_or_repeat_another() {
    let (daemon, crm) = Daemon::with_crm();
    crm.follow(|stage, line| {
        (stage == Stage::Rcpt && line.contains("ventes@")).then(|| Answer::Say("450 4.2.1 full".into()))
    });
    let id = daemon.send("factures@solarmora.com");
    let states = wait_for("one delivered and one deferred leg", || {
        let rows = daemon.rows(&["trace", "--id", &id]);
        let ended =
            rows.iter().any(|row| row["state"] == "delivered") && rows.iter().any(|row| row["reason"] == "tempfail");
        ended.then_some(rows)
    });
    let deferred = states.iter().find(|row| row["reason"] == "tempfail").unwrap();
    assert_eq!((&deferred["state"], &deferred["attempts"]), (&"queued".into(), &1.into()));
    crm.take_all();
    let leg = deferred["id"].as_str().unwrap();
    daemon.cli(&["queue", "retry", "--id", leg]).succeeds();
    daemon.wait_for_leg(leg, "delivered");
    let mut targets: Vec<String> = crm.mails().iter().map(|mail| mail.recipients().join(" ")).collect();
    targets.sort();
    assert_eq!(targets, ["case@mon-crm.com", "ventes@mon-crm.com"]);
}

#[test]
fn the_remotes_answer_decides_the_state() {
    let (daemon, crm) = Daemon::with_crm();
    for (stage, answer, state, reason) in [
        (Stage::Rcpt, "550 5.1.1 no such user", "held", "unknown-target"),
        (Stage::Rcpt, "451 4.3.0 later", "queued", "tempfail"),
        (Stage::Dot, "451 4.3.0 later", "queued", "tempfail"),
        (Stage::Dot, "550 5.7.1 looks like spam", "quarantined", "remote-content"),
        (Stage::Dot, "550 5.7.26 DMARC", "quarantined", "remote-auth"),
        (Stage::Mail, "550 5.7.1 your address is listed", "queued", "route"),
    ] {
        crm.answer(stage, answer);
        let id = daemon.send("aide@solarmora.com");
        let seen = wait_for(&format!("the outcome of `{answer}` at {stage:?}"), || {
            daemon.rows(&["trace", "--id", &format!("{id}.1")]).into_iter().find(|row| row["attempts"] != 0)
        });
        assert_eq!((&seen["state"], &seen["reason"]), (&state.into(), &reason.into()), "`{answer}` at {stage:?}");
        // What it was is told word for word.
        daemon.cli(&["trace", "--id", &format!("{id}.1")]).succeeds().says(&[answer]);
        // A route that was at fault backs off; the next case must not wait for it.
        crm.take_all();
        daemon.cli(&["queue", "drop", "--id", &format!("{id}.1")]).succeeds();
        let probe = daemon.send("ventes@solarmora.com");
        daemon.cli(&["queue", "retry", "--id", &format!("{probe}.1")]);
        daemon.wait_for_leg(&format!("{probe}.1"), "delivered");
    }
}

#[test]
fn a_connection_lost_after_the_dot_repeats_the_same_message_once() {
    let (daemon, crm) = Daemon::with_crm();
    crm.follow(|stage, _| (stage == Stage::Dot).then_some(Answer::Hangup));
    let id = daemon.send("aide@solarmora.com");
    crm.wait_for_transactions(1);
    wait_for("the leg to wait for its retry", || {
        daemon
            .rows(&["queue", "list", "--id", &id])
            .into_iter()
            .find(|row| row["reason"] == "lost" && row["state"] == "queued")
    });
    crm.take_all();
    daemon.cli(&["queue", "retry", "--id", &id]).succeeds();
    daemon.wait_for_leg(&format!("{id}.1"), "delivered");
    let mails = crm.mails();
    assert_eq!(mails.len(), 2);
    assert_eq!(mails[0].bytes, mails[1].bytes, "the CRM can see that it is the same message");
}

#[test]
fn sessions_to_the_crm_are_used_again() {
    let crm = Crm::start();
    let daemon = Setup::new(crm.address()).concurrency(1).start();
    let mut client = Client::connect(daemon.smtp);
    for n in 1..=20 {
        client.deliver("client@example.org", &["aide@solarmora.com"], MESSAGE);
        crm.wait_for_mails(n);
    }
    assert!(crm.sessions() <= 2, "{} sessions for 20 messages in a row", crm.sessions());
}

#[test]
fn a_quarantined_message_waits_for_a_release_or_a_denial() {
    let (daemon, crm) = with_rule(r#"quarantine = "looks odd""#);
    let (good, bad) = (daemon.send("aide@solarmora.com"), daemon.send("aide@solarmora.com"));
    for id in [&good, &bad] {
        let row = daemon.rows(&["quarantine", "list", "--id", id]).remove(0);
        assert_eq!((&row["state"], &row["reason"]), (&"quarantined".into(), &"rule".into()));
        daemon.cli(&["quarantine", "show", "--id", id]).succeeds().says(&["looks odd", "client@example.org", "panne"]);
    }
    daemon.cli(&["quarantine", "deny", "--id", &bad]).succeeds();
    daemon.wait_for_leg(&format!("{bad}.1"), "discarded");
    daemon.cli(&["quarantine", "release", "--id", &good]).succeeds();
    daemon.wait_for_leg(&format!("{good}.1"), "delivered");
    assert_eq!(crm.mails().len(), 1);
    assert!(daemon.rows(&["quarantine", "list"]).is_empty());
}

#[test]
fn a_held_message_waits_for_its_release() {
    let (daemon, crm) = with_rule(r#"hold = "the CRM moves house""#);
    let id = daemon.send("aide@solarmora.com");
    let row = daemon.rows(&["queue", "list", "--state", "held"]).remove(0);
    assert_eq!((&row["id"], &row["reason"]), (&format!("{id}.1").into(), &"rule".into()));
    daemon.cli(&["queue", "show", "--id", &id]).succeeds().says(&["the CRM moves house"]);
    assert!(crm.mails().is_empty());
    daemon.cli(&["queue", "release", "--id", &id]).succeeds();
    daemon.wait_for_leg(&format!("{id}.1"), "delivered");
}

#[test]
fn a_discarded_message_is_taken_written_down_and_not_sent() {
    let (daemon, crm) = with_rule(r#"discard = "nobody reads it""#);
    let id = daemon.send("aide@solarmora.com");
    daemon.wait_for_leg(&format!("{id}.1"), "discarded");
    assert_eq!(crm.sessions(), 0);
}

#[test]
fn a_rule_that_rejects_does_so_at_rcpt_in_its_own_words() {
    let (daemon, _crm) =
        with_rule(r#"reject = { code = 550, enhanced = "5.7.1", text = "write to aide-pro instead" }"#);
    let mut client = Client::connect(daemon.smtp);
    client.say("MAIL FROM:<client@example.org>");
    let reply = client.say("RCPT TO:<aide@solarmora.com>");
    assert_eq!((reply.code, reply.text.as_str()), (550, "5.7.1 write to aide-pro instead"));
    wait_for("the refusal in the trace", || {
        let traced = daemon.cli(&["trace", "--recipient", "aide@solarmora.com"]);
        traced.out.contains("write to aide-pro instead").then_some(())
    });
}

#[test]
fn sigterm_lets_go_of_everything_and_loses_nothing() {
    let (daemon, crm) = Daemon::with_crm();
    // One leg waits in the queue, one is at the CRM's final dot, one session is open, one is in the middle of DATA.
    crm.answer(Stage::Rcpt, "450 4.2.1 later");
    let deferred = daemon.send("aide@solarmora.com");
    wait_for("a deferred leg", || {
        daemon.rows(&["queue", "list", "--id", &deferred]).pop().filter(|row| row["attempts"] == 1)
    });
    let gate = crm.gate();
    let in_flight = daemon.send("ventes@solarmora.com");
    gate.reached();
    let mut idle = Client::connect(daemon.smtp);
    let mut half = Client::connect(daemon.smtp);
    for command in ["MAIL FROM:<client@example.org>", "RCPT TO:<aide@solarmora.com>", "DATA"] {
        half.say(command);
    }
    half.send(b"Subject: half\r\n").unwrap();
    daemon.signal("TERM");
    assert_eq!(idle.reply().code, 421);
    let smtp = daemon.smtp;
    wait_for("the port to refuse", || TcpStream::connect(smtp).is_err().then_some(()));
    drop(gate);
    let (site, status) = daemon.wait();
    assert_eq!(status.code(), Some(0), "{}", site.log());
    // The half message got no yes.
    assert!(half.try_reply().is_ok_and(|reply| reply.code == 421) || half.is_closed());
    crm.take_all();
    let daemon = site.start();
    daemon.wait_for_leg(&format!("{in_flight}.1"), "delivered");
    daemon.cli(&["queue", "retry", "--id", &deferred]).succeeds();
    daemon.wait_for_leg(&format!("{deferred}.1"), "delivered");
    assert_eq!(crm.mails().len(), 2, "each exactly once");
}

#[test]
fn a_restart_delivers_what_was_queued() {
    let crm = Crm::start();
    let daemon = Setup::new(crm.address()).retry("1s").start();
    crm.go_down();
    let large = [MESSAGE, "é".repeat(100_000).as_bytes(), b"\r\n"].concat();
    let small = daemon.send_bytes("factures@solarmora.com", MESSAGE);
    let big = daemon.send_bytes("aide@solarmora.com", &large);
    let site = daemon.kill9();
    crm.come_up();
    let daemon = site.start();
    for leg in [format!("{small}.1"), format!("{small}.2"), format!("{big}.1")] {
        daemon.wait_for_leg(&leg, "delivered");
    }
    assert!(crm.mails().iter().any(|mail| mail.bytes.ends_with(&large)));
}

#[test]
fn a_message_that_breaks_off_is_not_delivered() {
    let (daemon, crm) = Daemon::with_crm();
    let mut stream = TcpStream::connect(daemon.smtp).unwrap();
    let mut client = Client::connect(daemon.smtp);
    for command in ["MAIL FROM:<client@example.org>", "RCPT TO:<aide@solarmora.com>", "DATA"] {
        client.say(command);
    }
    client.send(MESSAGE).unwrap();
    drop(client);
    stream.write_all(b"EHLO x\r\nMAIL FROM:<a@example.org>\r\n").unwrap();
    stream.shutdown(Shutdown::Both).unwrap();
    // The next one is taken, and it alone.
    daemon.send("ventes@solarmora.com");
    assert_eq!(crm.wait_for_mails(1)[0].recipients(), ["ventes@mon-crm.com"]);
    assert_eq!(daemon.rows(&["trace", "--since", "1h"]).len(), 1);
}

#[test]
fn a_smuggled_message_stays_text_or_is_refused() {
    let (daemon, crm) = Daemon::with_crm();
    for end in ["\n.\n", "\n.\r\n", "\r.\r", "\r\n.\n", "\r\n.\r", "\r\n\0.\r\n", "\r\n..\r\n", "\r\n .\r\n"] {
        let mut client = Client::connect(daemon.smtp);
        for command in ["MAIL FROM:<client@example.org>", "RCPT TO:<aide@solarmora.com>", "DATA"] {
            client.say(command);
        }
        let smuggled = "MAIL FROM:<smuggled@example.org>\r\nRCPT TO:<ventes@solarmora.com>\r\nDATA\r\nx\r\n.\r\n";
        client.send(format!("Subject: first\r\n\r\nfirst{end}{smuggled}").as_bytes()).unwrap();
        let reply = client.reply();
        let bare = end.replace("\r\n", "").contains(['\r', '\n', '\0']);
        assert_eq!(reply.code, if bare { 554 } else { 250 }, "{end:?}: {reply:?}");
        assert_eq!(client.say("QUIT").code, 221, "{end:?}: one message has one reply");
    }
    assert!(crm.wait_for_mails(2).iter().all(|mail| mail.recipients() == ["case@mon-crm.com"]));
}

#[test]
fn message_size_limit_and_one_past_it() {
    let crm = Crm::start();
    let daemon = Setup::new(crm.address()).more("[limits]\nmessage-size = \"1MiB\"").start();
    let mut client = Client::connect(daemon.smtp);
    for (size, code) in [(1 << 20, 250), ((1 << 20) + 1, 552)] {
        let mut message = MESSAGE.to_vec();
        while message.len() < size - 2 {
            let room = (size - 2 - message.len()).min(998);
            message.extend(std::iter::repeat_n(b'x', room));
            if room == 998 && message.len() + 2 < size - 2 {
                message.extend_from_slice(b"\r\n");
            }
        }
        message.extend_from_slice(b"\r\n");
        assert_eq!(message.len(), size);
        assert_eq!(client.deliver("client@example.org", &["aide@solarmora.com"], &message).code, code, "{size}");
    }
    assert_eq!(client.say(&format!("MAIL FROM:<client@example.org> SIZE={}", (1 << 20) + 1)).code, 552);
    assert_eq!(crm.wait_for_mails(1).len(), 1);
}

#[test]
fn a_second_daemon_on_the_same_data_refuses() {
    let (daemon, _crm) = Daemon::with_crm();
    daemon.cli(&["serve"]).exits(1);
    // The first one is none the worse.
    daemon.send("aide@solarmora.com");
}

#[test]
fn metrics_and_health_tell_of_a_delivery() {
    let (daemon, crm) = Daemon::with_crm();
    let id = daemon.send("aide@solarmora.com");
    crm.wait_for_mails(1);
    daemon.wait_for_leg(&format!("{id}.1"), "delivered");
    for path in ["/healthz", "/readyz"] {
        assert_eq!(daemon.http(path).0, 200, "{path}");
    }
    let (code, metrics) = daemon.http("/metrics");
    assert_eq!(code, 200);
    for line in [
        "pointsman_messages_total{result=\"accepted\"} 1",
        "pointsman_recipients_total{",
        "pointsman_connections_total{",
        "pointsman_rule_hits_total{rule=\"aide to the CRM\"} 1",
        "pointsman_attempts_total{",
        "pointsman_legs_total{",
        "pointsman_open_legs{",
        "pointsman_commit_seconds",
        "pointsman_commit_batch_messages",
        "pointsman_accept_seconds",
        "pointsman_delivery_seconds",
        "pointsman_data_free_bytes",
        "pointsman_build_info{",
    ] {
        assert!(metrics.contains(line), "no `{line}` in:\n{metrics}");
    }
    // No address of a peer's, and not the intake's, in the log neither.
    assert!(!metrics.contains("example.org") && !metrics.contains("mon-crm.com"), "{metrics}");
    assert!(!daemon.log().contains("case@mon-crm.com"), "the intake address is a write token");
}

fn with_rule(action: &str) -> (Daemon, Crm) {
    let crm = Crm::start();
    let action =
        format!("name = \"first\"\nwhen = {{ recipient = \"aide@solarmora.com\" }}\n{action}\nto = \"salesforce\"\n");
    let action = if action.contains("\nreject") || action.contains("\ndiscard") {
        action.replace("to = \"salesforce\"\n", "")
    } else {
        action
    };
    let rules = RULES.replacen("[[rule]]", &format!("[[rule]]\n{action}\n[[rule]]"), 1);
    (Setup::new(crm.address()).rules(&rules).start(), crm)
}
