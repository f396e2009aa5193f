//! Online acceptance: the reply to the final dot waits for the CRM's (`accept` of a route).

use std::thread;
use std::time::Duration;

use crate::harness::dns::Dns;
use crate::harness::{Answer, Client, Crm, Daemon, Setup, Stage, wait_for};

const MESSAGE: &[u8] = b"From: client@example.org\r\nSubject: panne\r\n\r\nAu secours.\r\n";

fn daemon(crm: &Crm, accept: &str) -> Daemon {
    Setup::new(crm.address()).route(&format!("accept = \"{accept}\"")).start()
}

fn deliver(daemon: &Daemon, recipients: &[&str]) -> crate::harness::client::Reply {
    Client::connect(daemon.smtp).deliver("client@example.org", recipients, MESSAGE)
}

#[test]
fn the_250_waits_for_the_crms() {
    let crm = Crm::start();
    let daemon = daemon(&crm, "online");
    let gate = crm.gate();
    thread::scope(|scope| {
        let reply = scope.spawn(|| deliver(&daemon, &["aide@solarmora.com"]));
        gate.reached();
        // It is stored, and nobody was told so.
        assert_eq!(daemon.rows(&["queue", "list"]).len(), 1);
        assert!(!reply.is_finished());
        drop(gate);
        let id = reply.join().unwrap().queued_as();
        let rows = daemon.rows(&["trace", "--id", &id]);
        assert_eq!(rows[0]["state"], "delivered", "the CRM has it by the time of the 250");
    });
}

#[test]
fn a_content_refusal_online_is_refused_in_our_own_words() {
    for (at, said, code, enhanced) in [
        (Stage::Rcpt, "550 5.7.1 case@mon-crm.com takes no spam", 550, "5.7.1"),
        (Stage::Dot, "554 5.7.0 case@mon-crm.com: a virus", 550, "5.7.1"),
        (Stage::Dot, "552 5.3.4 larger than case@mon-crm.com takes", 552, "5.3.4"),
        (Stage::Dot, "552 case@mon-crm.com too big", 552, "5.3.4"),
    ] {
        let crm = Crm::start();
        let daemon = daemon(&crm, "online");
        crm.answer(at, said);
        let reply = deliver(&daemon, &["aide@solarmora.com"]);
        assert!(reply.code == code && reply.text.starts_with(enhanced), "{said}: {reply:?}");
        assert!(!reply.text.contains("mon-crm") && !reply.text.contains("virus"), "{reply:?}");
        let row = daemon.rows(&["trace", "--state", "discarded"]).remove(0);
        assert_eq!((&row["reason"], &row["attempts"]), (&"remote-content".into(), &1.into()), "{row}");
        daemon.cli(&["trace", "--reveal", "--id", row["id"].as_str().unwrap()]).succeeds().says(&[said]);
        // The sender keeps it: nothing waits here, and nobody is written to.
        assert!(daemon.rows(&["queue", "list"]).is_empty() && daemon.rows(&["quarantine", "list"]).is_empty());
        assert_eq!(crm.mails().len(), 0);
        assert!(daemon.http("/metrics").1.contains("pointsman_messages_total{result=\"rejected\"} 1"));
    }
}

#[test]
fn any_other_answer_online_is_a_250_and_the_queues() {
    for (at, said, state, reason) in [
        (Stage::Dot, "451 4.3.0 later", "queued", "tempfail"),
        (Stage::Rcpt, "550 5.1.1 no such user", "held", "unknown-target"),
        (Stage::Mail, "550 5.7.1 not from you", "queued", "route"),
        (Stage::Dot, "554 5.6.0 I do not like it", "quarantined", "permfail"),
        (Stage::Dot, "550 5.7.26 DMARC", "quarantined", "remote-auth"),
    ] {
        let crm = Crm::start();
        let daemon = daemon(&crm, "online");
        crm.answer(at, said);
        let id = deliver(&daemon, &["aide@solarmora.com"]).queued_as();
        let row = daemon.rows(&["trace", "--id", &id]).remove(0);
        assert_eq!((&row["state"], &row["reason"]), (&state.into(), &reason.into()), "{said}");
    }
    // No host, and so no place in memory: nobody waits.
    let crm = Crm::start();
    let daemon = daemon(&crm, "online");
    crm.go_down();
    let id = deliver(&daemon, &["aide@solarmora.com"]).queued_as();
    assert_eq!(daemon.rows(&["trace", "--id", &id])[0]["state"], "queued");
    crm.come_up();
    daemon.cli(&["queue", "retry", "--route", "crm"]).succeeds();
    daemon.wait_for_leg(&format!("{id}.1"), "delivered");
}

#[test]
fn whoever_waits_for_20_seconds_gets_his_250_and_a_later_refusal_is_the_queues() {
    let crm = Crm::start();
    let daemon = daemon(&crm, "online");
    let (at_dot, reached) = std::sync::mpsc::channel();
    let (let_go, wait) = std::sync::mpsc::channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    crm.follow(move |stage, _| {
        (stage == Stage::Dot).then(|| {
            at_dot.send(()).unwrap();
            // Ends when the test has its 250.
            let _ = wait.lock().unwrap().recv();
            Answer::Say("550 5.7.1 spam".to_owned())
        })
    });
    let began = std::time::Instant::now();
    let id = deliver(&daemon, &["aide@solarmora.com"]).queued_as();
    reached.recv().unwrap();
    assert!(began.elapsed() >= Duration::from_secs(20), "{:?}", began.elapsed());
    drop(let_go);
    let row = daemon.wait_for_leg(&format!("{id}.1"), "quarantined");
    assert_eq!(row["reason"], "remote-content");
}

#[test]
fn two_legs_are_acknowledged_when_they_are_stored() {
    for (accept, recipients) in [
        ("online", &["factures@solarmora.com"][..]),
        ("online", &["aide@solarmora.com", "ventes@solarmora.com"]),
        ("store", &["aide@solarmora.com"]),
    ] {
        let crm = Crm::start();
        let daemon = daemon(&crm, accept);
        let gate = crm.gate();
        let id = deliver(&daemon, recipients).queued_as();
        gate.reached();
        assert!(daemon.rows(&["trace", "--id", &id]).iter().all(|row| row["state"] == "queued"), "{accept}");
        drop(gate);
    }
}

#[test]
fn auto_waits_for_those_alone_who_did_not_authenticate() {
    let dns = Dns::start("good.example TXT v=spf1 ip4:127.0.0.1 -all\nopen.example TXT v=spf1 ?all\n");
    let crm = Crm::start();
    crm.answer(Stage::Dot, "550 5.7.1 spam");
    let daemon =
        Setup::new(crm.address()).route("accept = \"auto\"").more(&format!("{}\n[auth]\n", dns.config())).start();
    let send = |domain: &str| {
        let message = format!("From: a@{domain}\r\nSubject: s\r\n\r\nHello.\r\n");
        Client::connect(daemon.smtp).deliver(&format!("a@{domain}"), &["aide@solarmora.com"], message.as_bytes())
    };
    assert_eq!(send("open.example").code, 550);
    let id = send("good.example").queued_as();
    assert_eq!(daemon.wait_for_leg(&format!("{id}.1"), "quarantined")["reason"], "remote-content");
}

#[test]
fn a_kill_while_a_client_waits_leaves_an_ordinary_queued_leg() {
    let crm = Crm::start();
    let daemon = daemon(&crm, "online");
    let gate = crm.gate();
    let address = daemon.smtp;
    let client = thread::spawn(move || {
        Client::connect(address).try_deliver("client@example.org", &["aide@solarmora.com"], MESSAGE)
    });
    gate.reached();
    let site = daemon.kill9();
    assert!(client.join().unwrap().is_err(), "nobody was told anything");
    drop(gate);
    crm.take_all();
    let daemon = site.start();
    wait_for("the leg to be delivered", || {
        let rows = daemon.rows(&["trace", "--state", "delivered"]);
        (rows.len() == 1).then_some(())
    });
    // The CRM had the message at the kill, and is asked once more.
    assert_eq!(crm.transactions().len(), 2);
    assert!(daemon.rows(&["queue", "list"]).is_empty());
}
