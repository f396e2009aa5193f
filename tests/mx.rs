//! Routes without hosts: a target's domain says where its mail goes, asked of a name server of the test's own.

use std::fmt::Write as _;

use serde_json::Value;

use crate::harness::dns::Dns;
use crate::harness::{Crm, Daemon, Setup};

const TABLE: &str = "
two.example MX 20 here.example
two.example MX 10 gone.example
here.example A 127.0.0.1
gone.example A 127.0.0.2
plain.example A 127.0.0.1
dead.example MX 10 gone.example
null.example MX 0 .
inner.example MX 10 gone.example
loop.example MX 10 mx.solarmora.com
flaky.example SERVFAIL
";

/// By alias: where it leads, and by which route.
const TARGETS: [(&str, &str, &str); 8] = [
    ("two", "case@two.example", "inside"),
    ("plain", "case@plain.example", "inside"),
    ("dead", "case@dead.example", "inside"),
    ("null", "case@null.example", "inside"),
    ("nowhere", "case@nowhere.example", "inside"),
    ("inner", "case@inner.example", "outside"),
    ("loop", "case@loop.example", "inside"),
    ("flaky", "case@flaky.example", "inside"),
];

/// A daemon whose routes look up their hosts, the name server that it asks, and the CRM at 127.0.0.1.
fn start() -> (Daemon, Dns, Crm) {
    let (crm, dns) = (Crm::start(), Dns::start(TABLE));
    let mut rules = "[domain.\"solarmora.com\"]\nrole = \"admin@mon-crm.com\"\n[target]\n".to_owned();
    for (alias, address, route) in TARGETS {
        writeln!(rules, "{alias} = {{ address = \"{address}\", route = \"{route}\" }}").unwrap();
    }
    rules += "[alias.\"solarmora.com\"]\n";
    for (alias, ..) in TARGETS {
        writeln!(rules, "{alias} = {{ to = \"{alias}\" }}").unwrap();
    }
    let (dns_section, port) = (dns.config(), crm.address().port());
    let more = format!(
        "{dns_section}\
         [route.inside]\nport = {port}\nprivate-networks = true\n\
         [route.outside]\nport = {port}\n"
    );
    (Setup::new(crm.address()).rules(&rules).more(&more).start(), dns, crm)
}

fn leg(daemon: &Daemon, alias: &str, state: &str) -> Value {
    let id = daemon.send(&format!("{alias}@solarmora.com"));
    daemon.wait_for_leg(&format!("{id}.1"), state)
}

#[test]
fn mail_finds_the_hosts_of_its_domain() {
    let (daemon, _dns, crm) = start();
    for alias in ["two", "plain"] {
        let leg = leg(&daemon, alias, "delivered");
        assert_eq!(leg["attempts"], 1, "a dead host before it is no attempt: {leg}");
        let mails = crm.wait_for_mails(1);
        let address = TARGETS.iter().find(|(name, ..)| *name == alias).unwrap().1;
        assert_eq!(mails.last().unwrap().recipients(), [address]);
    }
}

#[test]
fn a_dead_domain_is_tried_again_and_delays_no_other() {
    let (daemon, _dns, _crm) = start();
    let id = daemon.send("dead@solarmora.com");
    let dead = || daemon.rows(&["trace", "--id", &id]).remove(0);
    crate::harness::wait_for("an attempt", || (dead()["attempts"] == 1).then_some(()));
    assert_eq!((&dead()["state"], &dead()["reason"]), (&"queued".into(), &"connect".into()));
    let flaky = daemon.send("flaky@solarmora.com");
    leg(&daemon, "plain", "delivered");
    crate::harness::wait_for("an attempt", || {
        (daemon.rows(&["trace", "--id", &flaky])[0]["attempts"] == 1).then_some(())
    });
    let (_, metrics) = daemon.http("/metrics");
    assert!(metrics.contains("pointsman_route_paused{route=\"inside\"} 0"), "{metrics}");
}

#[test]
fn a_domain_without_a_host_for_us_is_held() {
    let (daemon, _dns, crm) = start();
    for (alias, reason) in
        [("null", "unknown-target"), ("nowhere", "unknown-target"), ("inner", "no-hosts"), ("loop", "loop")]
    {
        let leg = leg(&daemon, alias, "held");
        assert_eq!((&leg["reason"], &leg["attempts"]), (&reason.into(), &0.into()), "{leg}");
    }
    assert_eq!(crm.mails(), []);
    daemon.cli(&["explain", "--recipient", "null@solarmora.com"]).says(&["the MX of the target's domain"]);
}
