//! What stands in where a route's hosts or its target will not do (`fallback`).

use crate::harness::{Answer, Client, Crm, Daemon, Setup, Stage, wait_for};

const RULES: &str = r#"
[domain."solarmora.com"]
role = "admin@mon-crm.com"

[target]
salesforce = { address = "case@mon-crm.com", route = "crm" }
ventes     = { address = "sales@other.example", route = "other" }
elsewhere  = { address = "box@third.example", route = "other" }

[alias."solarmora.com"]
aide    = { to = "salesforce" }
archive = { to = "elsewhere" }
"#;

/// A daemon whose route `crm` has this fallback, beside a route `other`.
fn daemon(crm: &Crm, other: &Crm, fallback: &str) -> Daemon {
    Setup::new(crm.address())
        .rules(RULES)
        .retry("1s")
        .route(&format!("fallback = {fallback}"))
        .more(&format!("[route.other]\nhosts = [\"{}\"]\ntls = \"off\"\n", other.address()))
        .start()
}

#[test]
fn the_hosts_of_another_route_stand_in_within_the_same_attempt() {
    for fault in [None, Some((Stage::Connect, "554 5.7.1 not you")), Some((Stage::Mail, "550 5.7.1 not from you"))] {
        let (crm, other) = (Crm::start(), Crm::start());
        match fault {
            None => crm.go_down(),
            Some((stage, said)) => crm.answer(stage, said),
        }
        let daemon = daemon(&crm, &other, "\"other\"");
        let id = daemon.send("aide@solarmora.com");
        let row = daemon.wait_for_leg(&format!("{id}.1"), "delivered");
        assert_eq!((&row["route"], &row["attempts"]), (&"crm".into(), &1.into()), "{fault:?}");
        assert_eq!(other.wait_for_mails(1)[0].recipients(), ["case@mon-crm.com"]);
        assert_eq!(crm.mails().len(), 0);
        let paused = "pointsman_route_breaker_open{route=\"crm\"} 0";
        assert!(daemon.http("/metrics").1.contains(paused), "the route works");
    }
}

#[test]
fn after_the_stated_time_a_leg_goes_on_to_the_fallback_target() {
    for (at, said) in [
        (Stage::Dot, "451 4.3.0 later"),
        (Stage::Rcpt, "550 5.1.1 no such user"),
        (Stage::Mail, "550 5.7.1 not from you"),
    ] {
        let (crm, other) = (Crm::start(), Crm::start());
        crm.answer(at, said);
        let daemon = daemon(&crm, &other, "{ to = \"ventes\", after = \"1s\" }");
        let id = daemon.send("aide@solarmora.com");
        // What is held comes back in an hour; an operator need not wait for it.
        let row = wait_for("the leg to go on", || {
            daemon.cli(&["queue", "retry", "--route", "crm"]);
            daemon.rows(&["trace", "--id", &id, "--reveal"]).into_iter().find(|row| row["state"] == "delivered")
        });
        assert_eq!((&row["id"], &row["route"]), (&format!("{id}.1").into(), &"other".into()), "{said}: {row}");
        assert_eq!(row["target"], "sales@other.example");
        let story = daemon.cli(&["trace", "--id", &id, "--reveal"]).succeeds().out;
        assert!(story.contains("case@mon-crm.com") && story.contains("fallback"), "it lists both:\n{story}");
        let mail = other.wait_for_mails(1).remove(0);
        assert_eq!(mail.recipients(), ["sales@other.example"]);
        let text = String::from_utf8(mail.bytes).unwrap();
        assert_eq!(text.matches("Delivered-To: aide@solarmora.com").count(), 1, "{text}");
        assert_eq!(crm.mails().len(), 0);
        daemon.wait_for_log("leg-diverted");
        assert!(!daemon.log().contains("sales@other.example"), "the log names no target");
    }
}

#[test]
fn a_dead_route_sends_what_waits_on_to_the_fallback_target_and_nothing_twice() {
    let (crm, other) = (Crm::start(), Crm::start());
    crm.go_down();
    let daemon = daemon(&crm, &other, "{ to = \"ventes\", after = \"3s\" }");
    for _ in 0..40 {
        daemon.send("aide@solarmora.com");
    }
    let id = daemon.send("archive@solarmora.com");
    daemon.wait_for_leg(&format!("{id}.1"), "delivered");
    let mails = other.wait_for_mails(41);
    assert_eq!(mails.iter().filter(|mail| mail.recipients() == ["sales@other.example"]).count(), 40);
    assert!(daemon.rows(&["queue", "list"]).is_empty());
}

/// forwarding.md: 5.7.x authentication: quarantine, count, optional fallback target.
#[test]
fn an_authentication_refusal_goes_on_to_the_fallback_target_where_the_route_says_so() {
    for (on_auth, state) in [("true", "delivered"), ("false", "quarantined")] {
        let (crm, other) = (Crm::start(), Crm::start());
        crm.answer(Stage::Dot, "550 5.7.26 DMARC says no");
        let daemon = daemon(&crm, &other, &format!("{{ to = \"ventes\", on-auth = {on_auth} }}"));
        let id = daemon.send("aide@solarmora.com");
        daemon.wait_for_leg(&format!("{id}.1"), state);
        assert_eq!(other.mails().len(), usize::from(on_auth == "true"));
    }
}

#[test]
fn a_lost_answer_and_a_fallback_give_each_target_one_at_the_most() {
    let (crm, other) = (Crm::start(), Crm::start());
    crm.follow(|stage, _| (stage == Stage::Dot).then_some(Answer::Hangup));
    let daemon = daemon(&crm, &other, "{ to = \"ventes\", after = \"0s\" }");
    let id = daemon.send("aide@solarmora.com");
    daemon.wait_for_leg(&format!("{id}.1"), "delivered");
    assert_eq!((crm.mails().len(), other.mails().len()), (1, 1));
    daemon.cli(&["trace", "--id", &id]).succeeds().says(&["the outcome is unknown"]);
}

#[test]
fn a_sender_is_rewritten_where_the_mail_leaves_our_domains_only_now() {
    let (crm, other) = (Crm::start(), Crm::start());
    crm.answer(Stage::Dot, "451 4.3.0 later");
    let rules = RULES.replace("case@mon-crm.com", "case@intern.example")
        + "[domain.\"intern.example\"]\nrole = \"r@mon-crm.com\"\n";
    let more = format!(
        "[route.other]\nhosts = [\"{}\"]\ntls = \"off\"\n[srs]\ndomain = \"srs.solarmora.com\"\nsecrets = [\"word\"]\n",
        other.address()
    );
    let daemon = Setup::new(crm.address())
        .rules(&rules)
        .retry("1s")
        .route("fallback = { to = \"ventes\", after = \"1s\" }")
        .more(&more)
        .start();
    let id = daemon.send("aide@solarmora.com");
    daemon.wait_for_leg(&format!("{id}.1"), "delivered");
    let path = other.wait_for_mails(1)[0].sender().to_owned();
    assert!(path.starts_with("SRS0=") && path.ends_with("=example.org=client@srs.solarmora.com"), "{path}");
    assert_eq!(crm.transactions()[0].sender(), "client@example.org");
    // What comes back by it is known: nobody proved that he sent, so it waits.
    let reply = Client::connect(daemon.smtp).deliver("", &[&path], b"Subject: back\r\n\r\nx\r\n");
    let row = daemon.wait_for_leg(&format!("{}.1", reply.queued_as()), "quarantined");
    assert_eq!(row["target"], "client@example.org", "{row}");
}
