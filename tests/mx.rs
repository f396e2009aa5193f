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
fn check_finds_a_target_whose_mail_would_come_back() {
    let table = "solarmora.com MX 10 mx.solarmora.com\nmx.solarmora.com A 192.0.2.25\nother.example MX 10 mx.there.example\n\
        mx.there.example A 9.9.9.9\nlame.example SERVFAIL\n";
    let dns = Dns::start(table);
    for (domain, errors, says) in [
        ("solarmora.com", 1, "mail for a target in `solarmora.com` would come back"),
        ("other.example", 0, "may come back to us"),
        // What nobody says is no finding of its own.
        ("lame.example", 0, "note: mail for targets in `lame.example` was not looked at"),
        ("nowhere.example", 0, "note: mail for targets in `nowhere.example` was not looked at"),
    ] {
        let rules = format!(
            "[domain.\"{domain}\"]\nrole = \"admin@mon-crm.com\"\n[target]\n\
             people = {{ address = \"people@{domain}\", route = \"found\" }}\n\
             [alias.\"{domain}\"]\naide = {{ to = \"people\" }}\n"
        );
        let more = format!("{}[route.found]\n", dns.config());
        let site = Setup::new("127.0.0.1:1".parse().unwrap()).rules(&rules).more(&more).site();
        // That it may come back is a warning in any case.
        site.cli(&["check"]).exits(1).says(&[says, &format!("{errors} error")]);
        site.cli(&["check", "--offline"]).exits(1).says(&["0 errors, 1 warning"]);
    }
    assert!(dns.asked() > 0);
}

#[test]
fn a_route_of_one_family_uses_no_address_of_the_other() {
    let (crm, dns) = (Crm::start(), Dns::start(TABLE));
    for (family, state) in [("ipv4", "delivered"), ("ipv6", "held")] {
        let rules = "[domain.\"solarmora.com\"]\nrole = \"admin@mon-crm.com\"\n[target]\n\
            plain = { address = \"case@plain.example\", route = \"found\" }\n\
            [alias.\"solarmora.com\"]\nplain = { to = \"plain\" }\n";
        let port = crm.address().port();
        let more =
            format!("{}[route.found]\nport = {port}\nprivate-networks = true\nfamily = \"{family}\"\n", dns.config());
        let daemon = Setup::new(crm.address()).rules(rules).more(&more).start();
        leg(&daemon, "plain", state);
    }
    assert_eq!(crm.mails().len(), 1);
}

/// What can never be delivered ends, by an attempt that was made too late, and its end is told or looked at.
#[test]
fn a_leg_that_is_held_for_its_domain_ends_when_it_is_too_old() {
    let (crm, dns) = (Crm::start(), Dns::start(&format!("{TABLE}good.example TXT v=spf1 ip4:127.0.0.1 -all\n")));
    let rules = "[domain.\"solarmora.com\"]\nrole = \"admin@mon-crm.com\"\n[target]\n\
        nowhere = { address = \"case@nowhere.example\", route = \"found\" }\n\
        [alias.\"solarmora.com\"]\nnowhere = { to = \"nowhere\" }\n";
    let more = format!("{}[auth]\n[route.found]\n", dns.config());
    let site = Setup::new(crm.address()).rules(rules).more(&more).site();
    site.reconfigure("[queue]\n", "[queue]\nexpire = \"1s\"\n");
    let daemon = site.start();
    for (sender, state, reason) in
        [("client@good.example", "expired", "expired"), ("stranger@bad.example", "quarantined", "unknown-target")]
    {
        let mut client = crate::harness::Client::connect(daemon.smtp);
        let id = client.deliver(sender, &["nowhere@solarmora.com"], b"Subject: x\r\n\r\nx\r\n").queued_as();
        daemon.wait_for_leg(&format!("{id}.1"), "held");
        let leg = crate::harness::wait_for("its end", || {
            daemon.cli(&["queue", "retry", "--id", &id]);
            daemon.rows(&["trace", "--id", &id]).into_iter().find(|row| row["state"] == state)
        });
        assert_eq!(leg["reason"], reason, "{leg}");
        assert!(leg["attempts"].as_u64() > Some(1), "{leg}");
    }
    let notice = crm.wait_for_mails(1).remove(0);
    assert_eq!((notice.sender(), notice.recipients()), ("", vec!["client@good.example"]));
}

#[test]
fn a_dead_domain_is_tried_again_and_delays_no_other() {
    let (daemon, _dns, _crm) = start();
    let id = daemon.send("dead@solarmora.com");
    let dead = || daemon.rows(&["trace", "--id", &id]).remove(0);
    crate::harness::wait_for("an attempt", || (dead()["attempts"] == 1).then_some(()));
    daemon.cli(&["status"]).succeeds().says(&["route inside, domain dead.example: backs off until "]);
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
        assert_eq!((&leg["reason"], &leg["attempts"]), (&reason.into(), &1.into()), "{leg}");
    }
    assert_eq!(crm.mails(), []);
    daemon.cli(&["explain", "--recipient", "null@solarmora.com"]).says(&["the MX of the target's domain"]);
}
