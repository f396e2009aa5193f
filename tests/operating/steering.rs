//! Pauses that survive a restart, a drain that ends when nothing is left, and the book of who commanded what.

use std::process::{Command, Stdio};

use crate::harness::daemon::RULES;
use crate::harness::{Client, Crm, Daemon, Setup, Stage, program, wait_for};

fn paused(daemon: &Daemon) -> bool {
    daemon.http("/metrics").1.contains("pointsman_route_paused{route=\"crm\"} 1")
}

#[test]
fn a_paused_route_keeps_its_legs_through_a_restart_until_it_is_resumed() {
    let (daemon, crm) = Daemon::with_crm();
    assert!(!paused(&daemon));
    daemon.cli(&["pause", "--route", "crm"]).exits(0).says(&["route crm is paused until somebody resumes it"]);
    assert!(paused(&daemon));
    let id = daemon.send("aide@solarmora.com");
    daemon.cli(&["queue", "list"]).exits(0).says(&[&id, "queued", "route paused by root (uid 0)"]);
    let row = daemon.rows(&["queue", "list"]).pop().expect("the leg");
    assert!(row["paused"].as_str().is_some_and(|by| by.contains("uid 0")), "{row}");
    assert_eq!((&row["state"], &row["attempts"], &row["in_flight"]), (&"queued".into(), &0.into(), &false.into()));
    daemon.cli(&["trace", "--id", &id]).exits(0).says(&["its route is paused by root"]);
    daemon.cli(&["status"]).exits(0).says(&["route crm: paused since", "until somebody resumes it"]);
    // Neither an operator's impatience nor a restart sets it going.
    daemon.cli(&["queue", "retry", "--id", &id]).exits(0);
    daemon.signal("TERM");
    let (site, _) = daemon.wait();
    site.cli(&["queue", "list"]).exits(0).says(&[&id, "route paused"]);
    let daemon = site.start();
    assert!(paused(&daemon));
    let second = daemon.send("aide@solarmora.com");
    // Another route goes on: the role address's mail takes the default one.
    let other = daemon.send("postmaster@solarmora.com");
    daemon.wait_for_leg(&format!("{other}.1"), "delivered");
    assert_eq!(daemon.rows(&["queue", "list", "--route", "crm"]).len(), 2);
    assert_eq!(crm.mails().len(), 1, "only the other route's");
    daemon.cli(&["resume", "--route", "crm"]).exits(0).says(&["goes on"]);
    for id in [id, second] {
        daemon.wait_for_leg(&format!("{id}.1"), "delivered");
    }
    assert!(!paused(&daemon));
    daemon.cli(&["resume", "--route", "crm"]).exits(1).says(&["is not paused"]);
}

#[test]
fn a_pause_ends_by_itself_and_wrong_words_are_answered() {
    let (daemon, _crm) = Daemon::with_crm();
    daemon.cli(&["pause", "--route", "crn"]).exits(1).says(&["no route `crn`", "crm, default"]);
    daemon.cli(&["pause", "--route", "crm", "--for", "soon"]).exits(1).says(&["--for", "expected a duration"]);
    daemon.cli(&["pause", "--route", "crm", "--for", "0s"]).exits(1).says(&["expected more than no time"]);
    daemon
        .cli(&["pause", "--route", "crm", "--for", "1s", "--json"])
        .exits(0)
        .says(&["\"paused\":true", "\"until\":\""]);
    let id = daemon.send("aide@solarmora.com");
    daemon.wait_for_leg(&format!("{id}.1"), "delivered");
    assert!(!paused(&daemon));
}

/// Legs that wait in memory behind a slow CRM are what a pause is for.
#[test]
fn a_pause_takes_back_what_waits_in_memory_and_not_what_is_being_sent() {
    let crm = Crm::start();
    let gate = crm.gate();
    let daemon = Setup::new(crm.address()).concurrency(1).start();
    let ids: Vec<String> = (0..5).map(|_| daemon.send("aide@solarmora.com")).collect();
    gate.reached();
    daemon.cli(&["pause", "--route", "crm"]).exits(0);
    wait_for("four legs to be given back", || {
        let rows = daemon.rows(&["queue", "list"]);
        (rows.iter().filter(|row| row["in_flight"] == false).count() == 4).then_some(())
    });
    drop(gate);
    wait_for("the leg under way to end", || (daemon.rows(&["queue", "list"]).len() == 4).then_some(()));
    assert_eq!(crm.wait_for_mails(1).len(), 1);
    daemon.cli(&["resume", "--route", "crm"]).exits(0);
    for id in ids {
        daemon.wait_for_leg(&format!("{id}.1"), "delivered");
    }
    assert_eq!(crm.mails().len(), 5, "each once");
}

#[test]
fn a_drain_takes_no_mail_delivers_what_there_is_and_ends() {
    let crm = Crm::start();
    let gate = crm.gate();
    let rules = RULES.replace("ventes   = { to", "ventes   = { hold = \"later\", to");
    let daemon = Setup::new(crm.address()).rules(&rules).start();
    let held = daemon.send("ventes@solarmora.com");
    let id = daemon.send("aide@solarmora.com");
    gate.reached();
    let mut idle = Client::connect(daemon.smtp);
    let mut open = Client::connect(daemon.smtp);
    open.say("MAIL FROM:<client@example.org>");
    let mut drain = Command::new(program());
    let drain = drain.args(["drain", "--config"]).arg(daemon.config()).stdin(Stdio::null()).stdout(Stdio::piped());
    let drain = drain.spawn().expect("the program can be started");
    assert_eq!(idle.reply().code, 421, "who only waits is told to come back");
    let mut late = Client::try_raw(daemon.smtp).unwrap();
    let told = late.reply();
    assert_eq!((told.code, told.text.as_str()), (421, "4.3.2 shutting down, try again later"));
    assert_eq!(daemon.http("/readyz").0, 503);
    daemon.cli(&["status"]).exits(0).says(&["drains: takes no mail"]);
    assert!(!daemon.data().join("addresses.json").exists());
    drop(open);
    drop(gate);
    let (site, status) = daemon.wait();
    assert_eq!(status.code(), Some(0));
    let told = drain.wait_with_output().unwrap();
    let out = String::from_utf8(told.stdout).unwrap();
    assert_eq!(told.status.code(), Some(0), "{out}");
    assert!(
        out.contains("1 held and 0 quarantined stay in the queue") && out.contains("the daemon has ended"),
        "{out}"
    );
    assert_eq!(crm.mails().len(), 1);
    let legs = [(id, "delivered"), (held, "held")];
    for (id, state) in legs {
        assert_eq!(site.rows(&["trace", "--id", &id])[0]["state"], state);
    }
    site.cli(&["drain"]).exits(3);
}

#[test]
fn the_book_of_commands_says_who_did_what_and_what_came_of_it() {
    let (daemon, crm) = Daemon::with_crm();
    crm.answer(Stage::Rcpt, "450 4.2.1 later");
    let id = daemon.send("aide@solarmora.com");
    wait_for("a deferred leg", || daemon.rows(&["queue", "list"]).pop().filter(|row| row["attempts"] == 1));
    daemon.cli(&["queue", "list"]).exits(0);
    daemon.cli(&["queue", "hold", "--id", &id, "--dry-run"]).exits(0);
    assert!(daemon.rows(&["audit"]).is_empty(), "who only looks is not written down");
    daemon.cli(&["queue", "hold", "--target", "case@mon-crm.com"]).exits(0);
    daemon.cli(&["queue", "retarget", "--to", "nobody-knows", "--id", &id]).exits(1);
    daemon.cli(&["pause", "--route", "crm"]).exits(0);
    // Not only after a clean end.
    let daemon = daemon.kill9().start();
    let told: Vec<String> = daemon
        .rows(&["audit"])
        .iter()
        .map(|row| {
            assert_eq!((&row["uid"], &row["user"]), (&0.into(), &"root".into()));
            assert!(row["pid"].as_i64().is_some_and(|pid| pid > 0) && row["at"].is_string(), "{row}");
            let word = |key: &str| row[key].as_str().unwrap_or_default().to_owned();
            format!("{} {}: {}", word("action"), word("chosen"), word("outcome"))
        })
        .collect();
    assert_eq!(told.len(), 3, "{told:?}");
    assert_eq!(told[0], "pause --route crm: paused until somebody resumes it");
    assert!(told[1].starts_with(&format!("queue retarget --id {id}: 0 legs changed, then: ")), "{told:?}");
    assert_eq!(told[2], "queue hold --target c***@mon-crm.com: 1 legs changed", "intake addresses are masked");
    for (filter, count) in [
        (&["--action", "queue"][..], 2),
        (&["--action", "queue hold"], 1),
        (&["--action", "que"], 0),
        (&["--user", "root"], 3),
        (&["--user", "0"], 3),
        (&["--user", "jean"], 0),
        (&["--since", "1h"], 3),
        (&["--until", "1h"], 0),
        (&["--limit", "1"], 1),
    ] {
        let arguments: Vec<&str> = ["audit"].into_iter().chain(filter.iter().copied()).collect();
        assert_eq!(daemon.rows(&arguments).len(), count, "{filter:?}");
    }
    daemon.cli(&["audit"]).exits(0).says(&["root (uid 0), pid ", "pause --route crm: paused"]);
    daemon.cli(&["audit", "--user", "jean"]).exits(0).says(&["nothing found"]);
    daemon.kill9().cli(&["audit"]).exits(3);
}
