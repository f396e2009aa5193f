//! What a reload does to the ways out: routes that come, go and change while mail is on them.

use super::{metric, reload};
use crate::harness::daemon::RULES;
use crate::harness::{Crm, Daemon, Setup, wait_for};

/// Rules whose alias aide@ goes by the route `late`.
fn by_late() -> String {
    RULES.replace("address = \"case@mon-crm.com\", route = \"crm\"", "address = \"case@mon-crm.com\", route = \"late\"")
}

fn with_late(daemon: &Daemon, crm: &Crm) {
    let route = format!("[route.late]\nhosts = [\"{}\"]\ntls = \"off\"\n[queue]", crm.address());
    daemon.reconfigure("[queue]", &route);
    daemon.write_rules(&by_late());
}

fn without_late(daemon: &Daemon, crm: &Crm) {
    daemon.reconfigure(&format!("[route.late]\nhosts = [\"{}\"]\ntls = \"off\"\n", crm.address()), "");
    daemon.write_rules(RULES);
}

#[test]
fn a_new_route_is_gone_by_at_once() {
    let (daemon, crm) = Daemon::with_crm();
    let late = Crm::start();
    with_late(&daemon, &late);
    daemon.cli(&["reload"]).exits(0).says(&["added  route late", "changed  target salesforce"]);
    let id = daemon.send("aide@solarmora.com");
    assert_eq!(daemon.wait_for_leg(&format!("{id}.1"), "delivered")["route"], "late");
    assert_eq!((late.mails().len(), crm.mails().len()), (1, 0));
    assert_eq!(metric(&daemon, "route_paused{route=\"late\"}"), 0.0);
}

#[test]
fn a_route_that_goes_strands_no_mail() {
    let (daemon, _crm) = Daemon::with_crm();
    let late = Crm::start();
    with_late(&daemon, &late);
    reload(&daemon, 0);
    // One leg at its final dot, one behind it, one that waits for its next attempt.
    late.go_down();
    let deferred = daemon.send("aide@solarmora.com");
    daemon.wait_for_leg(&format!("{deferred}.1"), "queued");
    wait_for("the first attempt", || (daemon.rows(&["trace", "--id", &deferred])[0]["attempts"] == 1).then_some(()));
    late.come_up();
    daemon.cli(&["queue", "retry", "--id", &deferred]).exits(0);
    daemon.wait_for_leg(&format!("{deferred}.1"), "delivered");
    let gate = late.gate();
    let in_flight = daemon.send("aide@solarmora.com");
    gate.reached();

    without_late(&daemon, &late);
    daemon.cli(&["reload"]).exits(0).says(&["removed  route late", "there is no route `late` any more", "reroute"]);
    // What is under way ends as it began.
    drop(gate);
    daemon.wait_for_leg(&format!("{in_flight}.1"), "delivered");
}

#[test]
fn legs_of_a_route_that_is_gone_are_held_and_go_on_when_it_is_back() {
    let (daemon, crm) = Daemon::with_crm();
    let late = Crm::start();
    with_late(&daemon, &late);
    reload(&daemon, 0);
    let gate = late.gate();
    // More than the route's sessions: some are in flight, the others wait.
    let ids: Vec<String> = (0..30).map(|_| daemon.send("aide@solarmora.com")).collect();
    gate.reached();
    without_late(&daemon, &late);
    daemon.cli(&["reload"]).exits(0).says(&["there is no route `late` any more"]);
    let held = wait_for("held legs", || {
        let rows = daemon.rows(&["queue", "list", "--state", "held"]);
        (rows.len() >= 10).then_some(rows)
    });
    assert!(
        held.iter().all(|row| row["reason"] == "route" && row["detail"] == "the configuration has no route `late`")
    );
    // The rest goes on as it was.
    let other = daemon.send("aide@solarmora.com");
    daemon.wait_for_leg(&format!("{other}.1"), "delivered");
    assert_eq!(crm.mails().len(), 1);

    with_late(&daemon, &late);
    reload(&daemon, 0);
    drop(gate);
    for id in &ids {
        daemon.wait_for_leg(&format!("{id}.1"), "delivered");
    }
    assert_eq!(late.mails().len(), ids.len(), "each once");
}

#[test]
fn a_route_that_changes_its_hosts_takes_along_what_waits() {
    let (old, new) = (Crm::start(), Crm::start());
    let daemon = Setup::new(old.address()).concurrency(1).start();
    let gate = old.gate();
    let ids: Vec<String> = (0..8).map(|_| daemon.send("aide@solarmora.com")).collect();
    gate.reached();
    daemon.reconfigure(&old.address().to_string(), &new.address().to_string());
    daemon.cli(&["reload"]).exits(0).says(&["changed  route crm", "changed  route default"]);
    // The others do not wait for the one that is under way.
    new.wait_for_mails(7);
    drop(gate);
    for id in &ids {
        daemon.wait_for_leg(&format!("{id}.1"), "delivered");
    }
    assert_eq!((old.mails().len(), new.mails().len()), (1, 7));
}

#[test]
fn a_route_that_backed_off_is_tried_anew_when_it_changes() {
    let (old, new) = (Crm::start(), Crm::start());
    let daemon = Setup::new(old.address()).start();
    old.go_down();
    let id = daemon.send("aide@solarmora.com");
    wait_for("the back-off", || (metric(&daemon, "route_paused{route=\"crm\"}") == 1.0).then_some(()));
    daemon.reconfigure(&old.address().to_string(), &new.address().to_string());
    reload(&daemon, 0);
    assert_eq!(metric(&daemon, "route_paused{route=\"crm\"}"), 0.0);
    daemon.send("aide@solarmora.com");
    new.wait_for_mails(1);
    daemon.cli(&["queue", "retry", "--id", &id]).exits(0);
    new.wait_for_mails(2);
}
