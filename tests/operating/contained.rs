//! Panics, provoked: each stays where it happened, is counted, and loses nothing.

use crate::harness::{Client, Crm, Daemon, Setup, skip, wait_for};

/// A daemon that panics where `places` say; none where the program under test has no such places.
fn tripped(test: &str, crm: &Crm, places: &str) -> Option<Daemon> {
    if std::env::var_os("POINTSMAN_BIN").is_some() {
        skip(test, "a release build has no places that panic on demand");
        return None;
    }
    let mut site = Setup::new(crm.address()).retry("1s").site();
    site.set_environment("POINTSMAN_PANIC", places);
    Some(site.start())
}

fn wait_for_count(daemon: &Daemon, place: &str) {
    let series = format!("pointsman_panics_total{{place=\"{place}\"}} 1");
    wait_for(&series, || daemon.http("/metrics").1.contains(&series).then_some(()));
    wait_for("its line in the log", || daemon.log().contains("\"event\":\"panic\"").then_some(()));
}

#[test]
fn a_panic_in_a_session_ends_it_with_a_421_and_no_other() {
    let crm = Crm::start();
    let Some(daemon) = tripped("panic in a session", &crm, "session") else { return };
    let (mut victim, mut other) = (Client::connect(daemon.smtp), Client::connect(daemon.smtp));
    victim.say("MAIL FROM:<client@example.org>");
    victim.say("RCPT TO:<aide@solarmora.com>");
    let reply = victim.say("DATA");
    assert_eq!((reply.code, reply.text.as_str()), (421, "4.3.0 local error, closing, try again later"));
    assert!(victim.is_closed());
    wait_for_count(&daemon, "session");
    assert_eq!(other.deliver("client@example.org", &["aide@solarmora.com"], b"x\r\n").code, 250);
    assert_eq!(crm.wait_for_mails(1).len(), 1);
    other.say("QUIT");
    wait_for("no session to be counted", || {
        daemon.http("/metrics").1.contains("pointsman_sessions{listener=\"mx\"} 0").then_some(())
    });
}

/// The worst moment: the message is in the queue, and its client is told 421. He sends it again; nothing is lost.
#[test]
fn what_was_queued_before_a_panic_is_delivered_though_its_client_heard_421() {
    let crm = Crm::start();
    let Some(daemon) = tripped("panic behind the commit", &crm, "session-queued") else { return };
    let reply = Client::connect(daemon.smtp).deliver("client@example.org", &["aide@solarmora.com"], b"x\r\n");
    assert_eq!(reply.code, 421);
    assert_eq!(crm.wait_for_mails(1).len(), 1);
    wait_for("an empty queue", || daemon.rows(&["queue", "list"]).is_empty().then_some(()));
}

#[test]
fn a_panic_in_a_worker_holds_its_leg_and_the_next_one_goes() {
    for place in ["worker", "worker-sent"] {
        let crm = Crm::start();
        let Some(daemon) = tripped("panic in a worker", &crm, place) else { return };
        let id = daemon.send("aide@solarmora.com");
        let leg = daemon.wait_for_leg(&format!("{id}.1"), "held");
        assert_eq!(leg["reason"], "lost");
        assert!(leg["detail"].as_str().is_some_and(|detail| detail.contains("a fault of ours")), "{leg}");
        assert!(!leg["due"].is_null(), "it is tried again by itself: {leg}");
        wait_for_count(&daemon, "worker");
        let next = daemon.send("ventes@solarmora.com");
        daemon.wait_for_leg(&format!("{next}.1"), "delivered");
        daemon.cli(&["queue", "retry", "--id", &id]).exits(0);
        daemon.wait_for_leg(&format!("{id}.1"), "delivered");
    }
}

#[test]
fn a_panic_in_the_queue_s_writer_is_451_and_then_all_goes_on() {
    let crm = Crm::start();
    // The start itself, the housekeeper and the commands commit, too: by the twentieth pass the daemon serves.
    let Some(daemon) = tripped("panic in the writer", &crm, "writer:20") else { return };
    let mut acknowledged = 0;
    let mut refused = 0;
    wait_for("the writer's panic", || {
        let mut client = Client::connect(daemon.smtp);
        // Until the writer is back MAIL may be refused already.
        match client.try_deliver("client@example.org", &["aide@solarmora.com"], b"x\r\n").map(|reply| reply.code) {
            Ok(250) => acknowledged += 1,
            Ok(code) => {
                assert_eq!(code, 451);
                refused += 1;
            }
            Err(error) => {
                assert!(error.to_string().contains("code: 45"), "{error}");
                refused += 1;
            }
        }
        daemon.http("/metrics").1.contains("pointsman_panics_total{place=\"writer\"} 1").then_some(())
    });
    wait_for("readiness", || (daemon.http("/readyz").0 == 200).then_some(()));
    daemon.send("aide@solarmora.com");
    wait_for("an empty queue", || daemon.rows(&["queue", "list"]).is_empty().then_some(()));
    assert_eq!(crm.mails().len(), acknowledged + 1, "{refused} were refused");
}

#[test]
fn a_panic_beside_the_mail_is_begun_anew() {
    let crm = Crm::start();
    let Some(daemon) = tripped("panic beside the mail", &crm, "housekeeping:2,house:3,control,listener:2") else {
        return;
    };
    // The command's panic cuts its answer off; the next command is answered.
    daemon.cli(&["status"]).exits(1).says(&["broke off"]);
    daemon.cli(&["status"]).exits(0);
    let mut cut = Client::connect(daemon.smtp);
    assert!(Client::try_connect(daemon.smtp).is_err(), "the listener's panic drops the connection that it had");
    for place in ["control", "listener", "house", "housekeeping"] {
        wait_for_count(&daemon, place);
    }
    assert_eq!(cut.say("NOOP").code, 250, "open sessions go on");
    daemon.send("aide@solarmora.com");
    assert_eq!(crm.wait_for_mails(1).len(), 1);
}

/// A feeder cannot be begun anew, since its legs are in its hands: the daemon ends, and the next start has them.
#[test]
fn a_panic_in_a_feeder_ends_the_daemon_and_loses_nothing() {
    let crm = Crm::start();
    let gate = crm.gate();
    let Some(daemon) = tripped("panic in a feeder", &crm, "feeder:40") else { return };
    let mut ids = Vec::new();
    while let Ok(mut client) = Client::try_connect(daemon.smtp) {
        match client.try_deliver("client@example.org", &["aide@solarmora.com"], b"x\r\n") {
            Ok(reply) if reply.code == 250 => ids.push(reply.queued_as()),
            Ok(_) | Err(_) => break,
        }
    }
    let (mut site, status) = daemon.wait();
    assert_eq!(status.code(), Some(1), "whoever watches over it starts it again");
    drop(gate);
    crm.take_all();
    site.set_environment("POINTSMAN_PANIC", "");
    let daemon = site.start();
    for id in ids {
        daemon.wait_for_leg(&format!("{id}.1"), "delivered");
    }
}

#[test]
fn a_panic_in_a_reload_costs_that_reload_and_the_next_one_is_taken() {
    let crm = Crm::start();
    let Some(daemon) = tripped("panic in a reload", &crm, "reload") else { return };
    daemon.write_rules(&crate::harness::daemon::RULES.replace("factures", "invoices"));
    daemon.cli(&["reload"]).exits(1).says(&["a fault of its own"]);
    wait_for_count(&daemon, "reload");
    daemon.send("aide@solarmora.com");
    daemon.cli(&["reload"]).exits(0).says(&["added  alias invoices@solarmora.com"]);
    daemon.send("invoices@solarmora.com");
    assert_eq!(crm.wait_for_mails(2).len(), 2);
}
