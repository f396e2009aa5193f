//! The remote's answer, and what we do: a test for each row of the table, through the real daemon against a scripted CRM.
//!
//! The schedule itself, days of it, passes on a virtual clock (`src/outbound/tests.rs`, `day.rs`); here is what an
//! administrator sees of each answer.

use serde_json::Value;

use crate::harness::crm::EHLO;
use crate::harness::dns::Dns;
use crate::harness::{Answer, Client, Crm, Daemon, Setup, Stage, wait_for};

/// Authenticates by SPF.
const PROVEN: &str = "a@good.example";
/// Does not.
const UNPROVEN: &str = "a@open.example";
const NULL: &str = "";

const ZONE: &str = "good.example TXT v=spf1 ip4:127.0.0.1 -all\nopen.example TXT v=spf1 ?all\n";

struct World {
    daemon: Daemon,
    crm: Crm,
    _dns: Dns,
}

impl World {
    fn new() -> World {
        World::of(|setup| setup)
    }

    fn of(change: impl FnOnce(Setup) -> Setup) -> World {
        let (crm, dns) = (Crm::start(), Dns::start(ZONE));
        let setup = change(Setup::new(crm.address()).more(&format!("{}\n[auth]\n", dns.config())));
        World { daemon: setup.start(), crm, _dns: dns }
    }

    /// Hands in a message while the CRM answers so to what goes to its case address; gives its leg after the attempt.
    fn answered(&self, at: Stage, said: &'static str, sender: &str) -> Value {
        self.crm.follow(move |stage, line| {
            // What notifies the sender goes to the same server, and is taken.
            let ours = !matches!(stage, Stage::Rcpt | Stage::Dot) || line.contains("case@mon-crm.com");
            (stage == at && ours).then(|| Answer::Say(said.to_owned()))
        });
        self.attempted(sender, b"")
    }

    fn attempted(&self, sender: &str, more: &[u8]) -> Value {
        let domain = sender.split_once('@').map_or("open.example", |(_, domain)| domain);
        let head = format!("From: A <a@{domain}>\r\nSubject: panne\r\nMessage-ID: <7@{domain}>\r\n\r\nAu secours.\r\n");
        let message = [head.as_bytes(), more].concat();
        let id = Client::connect(self.daemon.smtp).deliver(sender, &["aide@solarmora.com"], &message).queued_as();
        let leg = format!("{id}.1");
        wait_for(&format!("an attempt for {leg}"), || {
            let row = self.daemon.rows(&["trace", "--id", &leg]).into_iter().find(|row| row["id"] == leg.as_str())?;
            (row["attempts"] != 0).then_some(row)
        })
    }

    /// How many notifications there are to this address, delivered or not.
    fn told(&self, sender: &str) -> usize {
        self.daemon.rows(&["trace", "--recipient", sender]).len()
    }
}

/// Each answer, in one daemon one after the other: state, reason and whether a sender who authenticated is told.
fn check(cases: &[(Stage, &'static str, &str, &str, bool)]) {
    let world = World::new();
    for (at, said, state, reason, told) in cases {
        let before = world.told(PROVEN);
        let row = world.answered(*at, said, PROVEN);
        assert_eq!((&row["state"], &row["reason"]), (&(*state).into(), &(*reason).into()), "{at:?} {said}: {row}");
        assert_eq!(world.told(PROVEN) - before, usize::from(*told), "{at:?} {said}");
        let words = if *state == "delivered" { "" } else { said };
        world.daemon.cli(&["trace", "--id", row["message"].as_str().unwrap()]).succeeds().says(&[words]);
    }
}

/// 4xx, timeout, TLS failure: retry 1, 5, 15, 30, 60 minutes …, expire after 5 days; delay DSN to authenticated senders only.
#[test]
fn row_4xx_timeout_and_tls_failure_are_retried_and_expire() {
    check(&[
        (Stage::Rcpt, "450 4.2.1 greylisted", "queued", "tempfail", false),
        (Stage::Data, "451 4.3.0 local error", "queued", "tempfail", false),
        (Stage::Dot, "452 4.3.1 no room", "queued", "tempfail", false),
        (Stage::Mail, "421 4.3.2 closing", "queued", "tempfail", false),
        (Stage::Connect, "421 4.3.2 busy", "queued", "tempfail", false),
    ]);
    // The first wait is a minute, unless the configuration says otherwise.
    let world = World::of(|setup| setup.retry("1m"));
    let row = world.answered(Stage::Dot, "451 4.3.0 later", PROVEN);
    let due = row["due"].as_str().unwrap_or_default().to_owned();
    assert!(!due.is_empty() && row["attempts"] == 1, "{row}");
    // A host that cannot do the TLS that its route wants is no different.
    let crm = Crm::start();
    let certificates = crate::harness::Certificates::new("crm.example");
    let daemon = Setup::new(crm.address()).route_tls("require", &certificates).start();
    let id = daemon.send("aide@solarmora.com");
    let row =
        wait_for("an attempt", || daemon.rows(&["trace", "--id", &id]).into_iter().find(|row| row["attempts"] == 1));
    assert_eq!((&row["state"], &row["reason"]), (&"queued".into(), &"tls".into()), "{row}");
    // The end of it, and who is told.
    for (sender, told) in [(PROVEN, 1), (UNPROVEN, 0)] {
        let world = World::of(|setup| setup.retry("1s"));
        world.daemon.reconfigure("[queue]\n", "[queue]\nexpire = \"2s\"\n");
        world.daemon.cli(&["reload"]).succeeds();
        let row = world.answered(Stage::Dot, "451 4.3.0 later", sender);
        world.daemon.wait_for_leg(row["id"].as_str().unwrap(), "expired");
        assert_eq!(world.told(sender), told, "{sender}");
    }
}

/// 5.1.x, 551 "no such user" at the target: hold and alert, retry hourly, no DSN before the hold ends.
#[test]
fn row_no_such_user_at_the_target_is_held_and_told_to_nobody() {
    check(&[
        (Stage::Rcpt, "550 5.1.1 no such user", "held", "unknown-target", false),
        (Stage::Rcpt, "551 5.7.1 moved", "held", "unknown-target", false),
        (Stage::Dot, "550 5.1.6 moved", "held", "unknown-target", false),
    ]);
    let world = World::new();
    let row = world.answered(Stage::Rcpt, "550 5.1.1 no such user", PROVEN);
    assert!(row["due"].is_string(), "it is tried again within the hour: {row}");
    world.daemon.wait_for_log("\"event\":\"leg-held\"");
    let metrics = world.daemon.http("/metrics").1;
    assert!(
        metrics.contains("pointsman_open_legs{route=\"crm\",state=\"held\"} 1"),
        "the alert stands on it: {metrics}"
    );
    // The administrator has mended the CRM.
    world.crm.take_all();
    world.daemon.cli(&["queue", "retry", "--route", "crm"]).succeeds();
    world.daemon.wait_for_leg(row["id"].as_str().unwrap(), "delivered");
}

/// 5.3.4, 552 too large: DSN that names the limit.
#[test]
fn row_too_large_is_told_with_the_limit() {
    check(&[
        (Stage::Dot, "552 5.3.4 too large", "bounced", "too-large", true),
        (Stage::Rcpt, "552 5.2.3 too large for this mailbox", "bounced", "too-large", true),
    ]);
    // Our own look at SIZE: the limit is known before anything is sent.
    let world = World::new();
    let said = EHLO.replace("104857600", "2000");
    world.crm.follow(move |stage, _| (stage == Stage::Ehlo).then(|| Answer::Say(said.clone())));
    let row = world.attempted(PROVEN, "x".repeat(3_000).as_bytes());
    assert_eq!((&row["state"], &row["reason"]), (&"bounced".into(), &"too-large".into()), "{row}");
    let mail = world.crm.wait_for_mails(1).remove(0);
    let text = String::from_utf8(mail.bytes).unwrap();
    assert!(mail.rcpts[0].contains(PROVEN) && text.contains("2000"), "{text}");
    assert!(!text.contains("mon-crm"), "the intake address stays secret: {text}");
    assert!(world.daemon.rows(&["queue", "list"]).is_empty());
}

/// 5.7.x authentication: quarantine, count, optional fallback target (`fallback.rs`).
#[test]
fn row_an_authentication_refusal_is_quarantined_and_counted() {
    check(&[
        (Stage::Dot, "550 5.7.26 unauthenticated", "quarantined", "remote-auth", false),
        (Stage::Rcpt, "550 5.7.23 SPF", "quarantined", "remote-auth", false),
        (Stage::Dot, "550 5.7.1 rejected by the DMARC policy", "quarantined", "remote-auth", false),
    ]);
    let world = World::new();
    world.answered(Stage::Dot, "550 5.7.26 unauthenticated", PROVEN);
    let metrics = world.daemon.http("/metrics").1;
    let series = "pointsman_legs_total{route=\"crm\",state=\"quarantined\",reason=\"remote-auth\"} 1";
    assert!(metrics.contains(series), "{metrics}");
}

/// 5.7.x spam, content: quarantine, never a DSN.
#[test]
fn row_a_content_refusal_is_quarantined_and_never_told() {
    check(&[
        (Stage::Dot, "554 5.7.1 spam", "quarantined", "remote-content", false),
        (Stage::Dot, "552 5.7.0 an attachment that is a program", "quarantined", "remote-content", false),
        (Stage::Rcpt, "550 5.7.1 not for you", "quarantined", "remote-content", false),
    ]);
}

/// Any other 5xx: DSN if the sender authenticated, else quarantine; a null sender's: quarantine.
#[test]
fn row_any_other_5xx_is_told_to_whom_it_may_be_told_and_else_waits() {
    check(&[
        (Stage::Dot, "554 5.6.0 not like this", "bounced", "permfail", true),
        (Stage::Data, "554 5.5.0 no valid data", "bounced", "permfail", true),
        (Stage::Rcpt, "554 5.2.1 mailbox disabled", "bounced", "permfail", true),
    ]);
    let world = World::new();
    for sender in [UNPROVEN, NULL] {
        let row = world.answered(Stage::Dot, "554 5.6.0 not like this", sender);
        assert_eq!((&row["state"], &row["reason"]), (&"quarantined".into(), &"permfail".into()), "{sender}: {row}");
        assert_eq!(world.told(sender), 0);
    }
}

/// 5xx at banner, EHLO, STARTTLS, AUTH or MAIL, or one that names our address or a block list: the route's fault: next host, then
/// defer and alert; never a DSN.
#[test]
fn row_the_routes_fault_goes_to_the_next_host_and_is_never_told() {
    for (at, said) in [
        (Stage::Connect, "554 5.7.1 no"),
        (Stage::Ehlo, "550 5.7.1 who are you"),
        (Stage::Mail, "550 5.7.1 not from you"),
        (Stage::Rcpt, "554 5.7.1 [127.0.0.1] refused"),
        (Stage::Rcpt, "550 5.7.1 listed at zen.spamhaus.org"),
    ] {
        let next = Crm::start();
        let world = World::of(|setup| setup.host(next.address()));
        let row = world.answered(at, said, PROVEN);
        assert_eq!((&row["state"], &row["attempts"]), (&"delivered".into(), &1.into()), "{at:?} {said}: {row}");
        assert_eq!((world.crm.mails().len(), next.mails().len()), (0, 1), "{at:?} {said}");

        let world = World::new();
        let row = world.answered(at, said, PROVEN);
        assert_eq!(row["state"], "queued", "{at:?} {said}: {row}");
        // At HELO a refusal is tried once more in older words, and is no session then.
        let reasons = ["route", "connect"];
        assert!(reasons.iter().any(|reason| row["reason"] == *reason), "{at:?} {said}: {row}");
        assert_eq!(world.told(PROVEN), 0);
    }
}

/// No enhanced code: RCPT 550/551/553 = 5.1.1; 552 = 5.3.4; 550/554 after the final dot = any other 5xx.
#[test]
fn row_without_an_enhanced_code_the_stage_decides() {
    check(&[
        (Stage::Rcpt, "550 no", "held", "unknown-target", false),
        (Stage::Rcpt, "551 no", "held", "unknown-target", false),
        (Stage::Rcpt, "553 no", "held", "unknown-target", false),
        (Stage::Rcpt, "552 no", "bounced", "too-large", true),
        (Stage::Dot, "552 no", "bounced", "too-large", true),
        (Stage::Dot, "550 no", "bounced", "permfail", true),
        (Stage::Dot, "554 no", "bounced", "permfail", true),
    ]);
}

/// Connection lost after the final dot: outcome unknown: retry with the same Message-ID, and say so in the trace.
#[test]
fn row_a_connection_lost_after_the_final_dot_repeats_the_message_and_says_so() {
    let world = World::of(|setup| setup.retry("1s"));
    let lost = std::sync::atomic::AtomicBool::new(false);
    world.crm.follow(move |stage, _| {
        let first = stage == Stage::Dot && !lost.swap(true, std::sync::atomic::Ordering::SeqCst);
        first.then_some(Answer::Hangup)
    });
    let row = world.attempted(PROVEN, b"");
    let message = row["message"].as_str().unwrap();
    world.daemon.wait_for_leg(row["id"].as_str().unwrap(), "delivered");
    let mails = world.crm.mails();
    assert_eq!(mails.len(), 2);
    assert_eq!(mails[0].bytes, mails[1].bytes, "the same message, octet for octet, and so the same Message-ID");
    assert!(String::from_utf8_lossy(&mails[1].bytes).contains("Message-ID: <7@good.example>"));
    world.daemon.cli(&["trace", "--id", message]).succeeds().says(&["the outcome is unknown"]);
}
