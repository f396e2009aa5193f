//! What intake systems need, through the real daemon: a test for each row of the table of profiles.
//!
//! Targets are in the systems' own domains; their routes lead to a stand-in.

use std::sync::atomic::{AtomicUsize, Ordering};

use pointsman::address::Domain;
use pointsman::auth::sign::{Key, Signer, record_name};
use serde_json::Value;

use crate::harness::dkim::zone_line;
use crate::harness::dns::Dns;
use crate::harness::{Client, Crm, Daemon, Setup, wait_for};

/// An alias for each profile, called like it.
const SYSTEMS: [(&str, &str); 15] = [
    ("salesforce", "case@key.org.eu1.case.salesforce.com"),
    ("zendesk", "support@solarmora.zendesk.com"),
    ("hubspot", "help@42.hubspot-inbox.com"),
    ("jsm", "help@solarmora.atlassian.net"),
    ("freshdesk", "help@solarmora.freshdesk.com"),
    ("helpscout", "help@solarmora.helpscoutapp.com"),
    ("front", "help-1@in.frontapp.com"),
    ("intercom", "help@incoming.intercom.io"),
    ("kayako", "help@solarmora.kayako.com"),
    ("zammad", "help@zammad.example"),
    ("osticket", "help@osticket.example"),
    ("rt", "help@rt.example"),
    ("mailbox", "cases@gmail.com"),
    ("generic", "help@generic.example"),
    ("people", "people@people.example"),
];

fn rules(more: &str) -> String {
    let mut targets = String::new();
    let mut aliases = String::new();
    for (name, address) in SYSTEMS {
        let route = match name {
            "zammad" | "osticket" | "rt" => name,
            _ => "systems",
        };
        targets.push_str(&format!("{name} = {{ address = \"{address}\", route = \"{route}\" }}\n"));
        aliases.push_str(&format!("{name} = {{ to = \"{name}\" }}\n"));
    }
    format!(
        "[domain.\"solarmora.com\"]\nrole = \"admin@mon-crm.com\"\n[target]\n{targets}[alias.\"solarmora.com\"]\n{aliases}{more}"
    )
}

fn setup(crm: &Crm, aliases: &str, more: &str) -> Setup {
    let route =
        |name: &str, more: &str| format!("[route.{name}]\nhosts = [\"{}\"]\ntls = \"off\"\n{more}\n", crm.address());
    let by_route = ["zammad", "osticket", "rt"].map(|name| route(name, &format!("profile = \"{name}\"")));
    let routes = format!("{}{}{}", by_route.concat(), route("small", "message-size = \"2KiB\""), route("systems", ""));
    Setup::new(crm.address()).rules(&rules(aliases)).more(&format!("{routes}{more}"))
}

fn start() -> (Daemon, Crm) {
    let crm = Crm::start();
    (setup(&crm, "", "").start(), crm)
}

fn explained(daemon: &Daemon, alias: &str) -> Value {
    let out = daemon.cli(&["explain", "--recipient", &format!("{alias}@solarmora.com"), "--json"]).succeeds().out;
    let explained: Value = serde_json::from_str(&out).unwrap();
    explained["systems"][0].clone()
}

/// The row's values as `explain` shows them, and its largest message as RCPT does.
fn row(daemon: &Daemon, name: &str, largest: u64, size_is: &str, values: &[(&str, &str)]) {
    let system = explained(daemon, name);
    assert_eq!(system["profile"], name);
    let written = system["values"]["message-size"]["basis"].as_str().unwrap();
    assert!(written.starts_with(size_is), "{name}: {written}");
    for (key, value) in values {
        assert_eq!(system["values"][key]["value"], *value, "{name} {key}");
    }
    let rcpt = format!("RCPT TO:<{name}@solarmora.com>");
    let mut client = Client::connect(daemon.smtp);
    for (size, code) in [(largest, 250), (largest + 1, 552)] {
        assert_eq!(client.say(&format!("MAIL FROM:<client@example.org> SIZE={size}")).code, 250);
        let reply = client.say(&rcpt);
        assert_eq!(reply.code, code, "{name} at {size}: {reply:?}");
        if code == 552 {
            assert!(reply.text.starts_with("5.3.4") && reply.text.contains(&largest.to_string()), "{reply:?}");
        }
        client.say("RSET");
    }
}

const NO_FIGURES: [(&str, &str); 5] = [
    ("header-size", "64000B"),
    ("pace", "off"),
    ("pace-alert", "off"),
    ("automatic", "taken"),
    ("dmarc-at-risk", "relay"),
];

/// Sends it from client@example.org; the leg, when it has come to this state.
fn sent(daemon: &Daemon, alias: &str, message: &str, state: &str) -> Value {
    sent_by(daemon, "client@example.org", alias, message, state)
}

fn sent_by(daemon: &Daemon, sender: &str, alias: &str, message: &str, state: &str) -> Value {
    let mut client = Client::connect(daemon.smtp);
    let id = client.deliver(sender, &[&format!("{alias}@solarmora.com")], message.as_bytes()).queued_as();
    daemon.wait_for_leg(&format!("{id}.1"), state)
}

/// Each another one.
fn mail(fields: &str) -> String {
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    let n = NUMBER.fetch_add(1, Ordering::Relaxed);
    format!(
        "From: client@example.org\r\nSubject: panne\r\nMessage-ID: <{n}@example.org>\r\n{fields}\r\nAu secours.\r\n"
    )
}

fn noted(daemon: &Daemon, leg: &Value) -> String {
    let trace = daemon.cli(&["trace", "--id", leg["message"].as_str().unwrap()]).succeeds().out;
    trace.lines().filter(|line| line.contains("noted: ")).map(str::trim).collect::<Vec<_>>().join("\n")
}

#[test]
fn salesforce() {
    let (daemon, crm) = start();
    let values = [("header-size", "30000B"), ("pace", "10/m per message"), ("dedupe", "1h")];
    row(&daemon, "salesforce", 35_000_000, "documented", &values);
    // Its own answer, coming back.
    let leg = sent(&daemon, "salesforce", &mail("X-SFDC-AutoResponse: true\r\n"), "discarded");
    assert_eq!(leg["reason"], "automatic");
    assert!(leg["detail"].as_str().unwrap().contains("salesforce wrote it itself"), "{leg}");
    // Other mail of machines is taken there.
    sent(&daemon, "salesforce", &mail("Auto-Submitted: auto-replied\r\nX-A: 1\r\n"), "delivered");
    assert_eq!(crm.mails().len(), 1);
    // What would bounce there.
    let many = |name: &str, chars: usize| {
        let line = format!("{}@example.org,\r\n ", "a".repeat(85));
        let lines = chars.div_ceil(line.len() - 2);
        format!("{name}: {}last@example.org\r\n", line.repeat(lines))
    };
    for (fields, why) in [(many("To", 4_000), "To has"), (many("Cc", 4_000), "Cc has")] {
        let leg = sent(&daemon, "salesforce", &mail(&fields), "quarantined");
        assert_eq!(leg["reason"], "header-size");
        assert!(leg["detail"].as_str().unwrap().starts_with(why), "{leg}");
    }
    let subject =
        format!("Subject: {}\r\n", "mot ".repeat(1_001).trim_end().replace("mot mot mot mot", "mot mot mot\r\n mot"));
    let leg = sent(&daemon, "salesforce", &mail(&subject), "quarantined");
    assert!(leg["detail"].as_str().unwrap().starts_with("Subject has"), "{leg}");
    // The header budget, ours counted with it.
    let filler = |octets: usize| format!("X-Filler: {}\r\n", "f".repeat(900)).repeat(octets / 912);
    let leg = sent(&daemon, "salesforce", &mail(&filler(31_000)), "quarantined");
    assert_eq!(leg["reason"], "header-size");
    assert!(leg["detail"].as_str().unwrap().contains("salesforce takes 30000"), "{leg}");
    sent(&daemon, "salesforce", &mail(&filler(28_000)), "delivered");
    let leg = sent(&daemon, "generic", &mail(&filler(31_000)), "delivered");
    assert_eq!(noted(&daemon, &leg), "");
}

#[test]
fn zendesk() {
    let crm = Crm::start();
    let aliases = "robots = { to = \"zendesk\", auto-target = \"generic\" }\n";
    let daemon = setup(&crm, aliases, "").start();
    let values =
        [("pace-alert", "15/h per sender"), ("pace", "off"), ("automatic", "suspended"), ("header-size", "64000B")];
    row(&daemon, "zendesk", 25_000_000, "conservative", &values);
    let robot = mail("Auto-Submitted: auto-generated\r\n");
    let leg = sent(&daemon, "robots", &robot, "delivered");
    assert_eq!(leg["target"], "help@generic.example");
    assert!(noted(&daemon, &leg).contains("to the `auto-target` instead of zendesk"), "{}", noted(&daemon, &leg));
    let leg = sent(&daemon, "zendesk", &robot, "delivered");
    assert!(noted(&daemon, &leg).contains("there is no `auto-target`"), "{}", noted(&daemon, &leg));
    assert_eq!(sent(&daemon, "robots", &mail(""), "delivered")["target"], "support@solarmora.zendesk.com");
    let targets: Vec<String> = crm.mails().iter().map(|mail| mail.recipients()[0].to_owned()).collect();
    assert_eq!(targets, ["help@generic.example", "support@solarmora.zendesk.com", "support@solarmora.zendesk.com"]);
    for (count, warns) in [(48, false), (49, true)] {
        let leg = sent(
            &daemon,
            "zendesk",
            &mail(&format!("Cc: {}\r\n", vec!["a@b.example"; count].join(",\r\n "))),
            "delivered",
        );
        assert_eq!(noted(&daemon, &leg).contains("Cc names 49 addresses, and zendesk takes 48"), warns, "{count}");
    }
    assert_eq!(daemon.log().matches("\"event\":\"too-many-cc\"").count(), 1);
}

#[test]
fn hubspot() {
    let (daemon, _crm) = start();
    row(&daemon, "hubspot", 25_000_000, "conservative", &NO_FIGURES);
    let own = "From: Help <HubSpot@solarmora.com>\r\nSubject: s\r\nMessage-ID: <1@x>\r\n\r\nx\r\n";
    let leg = sent(&daemon, "hubspot", own, "held");
    assert_eq!((&leg["reason"], &leg["due"]), (&"loop".into(), &Value::Null));
    let leg = sent(&daemon, "generic", &own.replace("HubSpot", "generic"), "delivered");
    assert_eq!(leg["reason"], "sent");
}

/// From's domain has p=reject, and nothing is signed: DMARC will fail behind us.
const AT_RISK: &str = "From: a@good.example\r\nSubject: s\r\nMessage-ID: <1@good.example>\r\n\r\nx\r\n";
const ZONE: &str = "good.example TXT v=spf1 ip4:127.0.0.1 -all\n_dmarc.good.example TXT v=DMARC1; p=reject\n";

#[test]
fn jsm() {
    let (crm, dns) = (Crm::start(), Dns::start(ZONE));
    let aliases = "spare = { to = \"jsm\", fallback-target = \"generic\", auto-target = \"front\" }\n";
    let daemon = setup(&crm, aliases, &format!("{}\n[auth]\n", dns.config())).start();
    let values = [("automatic", "dropped"), ("dmarc-at-risk", "fallback"), ("pace", "off"), ("header-size", "64000B")];
    row(&daemon, "jsm", 25_000_000, "documented", &values);
    let leg = sent_by(&daemon, "a@good.example", "jsm", AT_RISK, "quarantined");
    assert_eq!(leg["reason"], "dmarc");
    assert!(leg["detail"].as_str().unwrap().contains("no `fallback-target`"), "{leg}");
    let leg = sent_by(&daemon, "a@good.example", "spare", AT_RISK, "delivered");
    assert_eq!(leg["target"], "help@generic.example");
    assert!(noted(&daemon, &leg).contains("to the `fallback-target`"));
    let metrics = daemon.http("/metrics").1;
    assert!(metrics.contains("pointsman_dmarc_at_risk_total{route=\"systems\"} 2\n"), "{metrics}");
    // What it drops: the null sender's too.
    let mut client = Client::connect(daemon.smtp);
    let report = "From: a@b.example\r\nContent-Type: multipart/report; boundary=b\r\n\r\n--b--\r\n";
    let id = client.deliver("", &["spare@solarmora.com"], report.as_bytes()).queued_as();
    assert_eq!(daemon.wait_for_leg(&format!("{id}.1"), "delivered")["target"], "help-1@in.frontapp.com");
    let warned = daemon.cli(&["check"]).exits(1);
    assert!(warned.out.contains("jsm refuses mail whose sender is not rewritten"), "{}", warned.out);
}

#[test]
fn freshdesk() {
    let (daemon, _crm) = start();
    let values = [("pace", "40/30m per sender"), ("header-size", "64000B"), ("automatic", "taken")];
    row(&daemon, "freshdesk", 20_000_000, "documented", &values);
}

#[test]
fn helpscout() {
    let crm = Crm::start();
    let daemon = setup(&crm, "", "[spam]\ntag = 0.5\nquarantine = 900.0\nreject = 950.0\n").start();
    row(&daemon, "helpscout", 20_000_000, "conservative", &NO_FIGURES);
    // Some two points: neither a date nor an id.
    let doubtful = "From: a@b.example\r\nSubject: s\r\n\r\nx\r\n";
    assert_eq!(sent(&daemon, "helpscout", doubtful, "quarantined")["reason"], "spam");
    sent(&daemon, "generic", doubtful, "delivered");
    assert!(String::from_utf8(crm.mails().remove(0).bytes).unwrap().contains("X-Pointsman-Spam: yes"));
}

#[test]
fn front() {
    row(&start().0, "front", 20_000_000, "conservative", &NO_FIGURES);
}

#[test]
fn intercom() {
    let (daemon, crm) = start();
    row(&daemon, "intercom", 20_000_000, "conservative", &NO_FIGURES);
    let message = mail("");
    sent(&daemon, "intercom", &message, "delivered");
    assert!(crm.mails()[0].bytes.ends_with(message.as_bytes()), "From is as it was");
}

#[test]
fn kayako() {
    let (daemon, _crm) = start();
    row(&daemon, "kayako", 10 << 20, "documented", &[("automatic", "suspended"), ("pace", "off")]);
}

#[test]
fn zammad_osticket_and_rt_are_told_by_their_routes() {
    let (daemon, crm) = start();
    row(&daemon, "zammad", 10 << 20, "documented", &NO_FIGURES);
    row(&daemon, "osticket", 8 << 20, "conservative", &NO_FIGURES);
    row(&daemon, "rt", 10 << 20, "documented", &NO_FIGURES);
    assert_eq!(explained(&daemon, "rt")["chosen"], "by the route");
    sent(&daemon, "osticket", &mail(""), "delivered");
    let relayed = String::from_utf8(crm.mails().remove(0).bytes).unwrap();
    assert!(relayed.starts_with("Delivered-To: osticket@solarmora.com\r\n"), "{relayed}");
}

#[test]
fn mailbox() {
    row(&start().0, "mailbox", 25_000_000, "conservative", &[("pace", "50/m per target"), ("automatic", "taken")]);
}

#[test]
fn generic() {
    let (daemon, _crm) = start();
    row(&daemon, "generic", 25_000_000, "conservative", &NO_FIGURES);
    let check = daemon.cli(&["check"]).out;
    assert!(
        check.contains("salesforce by route systems: salesforce, by the target's domain; message-size 35000000B"),
        "{check}"
    );
}

#[test]
fn what_no_target_takes_is_refused_at_the_dot_and_what_one_takes_is_told_of_the_others() {
    let (crm, dns) = (Crm::start(), Dns::start(ZONE));
    let aliases = "petit = { to = \"small@crm.example\", route = \"small\" }\n";
    let daemon = setup(&crm, aliases, &format!("{}\n[auth]\ndmarc = \"off\"\n", dns.config())).start();
    let large = mail(&format!("X-Filler: {}\r\n", "f".repeat(900)).repeat(3));
    let mut client = Client::connect(daemon.smtp);
    let reply = client.deliver("a@good.example", &["petit@solarmora.com"], large.as_bytes());
    assert_eq!(reply.code, 552);
    assert_eq!(reply.text, "5.3.4 message too large, at most 2048 octets go to this address");
    let both = ["petit@solarmora.com", "generic@solarmora.com"];
    // Whoever is certain is told, with the limit; for whoever is not, it waits.
    let id = client.deliver("a@good.example", &both, large.as_bytes()).queued_as();
    let leg = daemon.wait_for_leg(&format!("{id}.1"), "bounced");
    assert_eq!((&leg["reason"], &leg["dsn"]), (&"too-large".into(), &"sent".into()));
    daemon.wait_for_leg(&format!("{id}.2"), "delivered");
    let notice = wait_for("the notification", || crm.mails().into_iter().find(|mail| mail.sender().is_empty()));
    let notice = String::from_utf8(notice.bytes).unwrap();
    assert!(notice.contains("5.3.4") && notice.contains("2048 octets"), "{notice}");
    let id = client.deliver("b@other.example", &both, large.as_bytes()).queued_as();
    let leg = daemon.wait_for_leg(&format!("{id}.1"), "quarantined");
    assert_eq!(leg["reason"], "too-large");
}

#[test]
fn dmarc_at_risk_is_met_as_the_route_says() {
    for (action, state, reason) in
        [("relay", "delivered", "sent"), ("hold", "held", "dmarc"), ("quarantine", "quarantined", "dmarc")]
    {
        let (crm, dns) = (Crm::start(), Dns::start(ZONE));
        let more = format!("dmarc-at-risk = \"{action}\"\n{}\n[auth]\n", dns.config());
        let daemon = setup(&crm, "", &more).start();
        assert_eq!(explained(&daemon, "generic")["values"]["dmarc-at-risk"]["basis"], "user");
        let leg = sent_by(&daemon, "a@good.example", "generic", AT_RISK, state);
        assert_eq!(leg["reason"], reason, "{action}");
        if action == "relay" {
            assert!(noted(&daemon, &leg).contains("DMARC will fail at generic"));
        }
    }
}

#[test]
fn a_vendor_s_verification_passes_until_its_day_and_nobody_else_s_does() {
    let key = Key::generate().unwrap();
    let (selector, vendor) = (Domain::parse("s1").unwrap(), Domain::parse("zendesk.com").unwrap());
    let zone = format!(
        "{}_dmarc.zendesk.com TXT v=DMARC1; p=reject\n_dmarc.other.example TXT v=DMARC1; p=none\n{}",
        zone_line(&record_name(&selector, &vendor), &key.record()),
        zone_line(&record_name(&selector, &Domain::parse("other.example").unwrap()), &key.record()),
    );
    let signer = Signer::new(key, selector);
    let signed = |domain: &str| {
        let message = format!(
            "From: Zendesk <noreply@{domain}>\r\nTo: accueil@solarmora.com\r\nSubject: verify\r\n\
             Date: Sat, 21 Nov 2026 20:00:00 +0000\r\nMessage-ID: <1@{domain}>\r\n\r\n{GTUBE}\r\n"
        );
        [signer.sign(&Domain::parse(domain).unwrap(), message.as_bytes()).unwrap(), message].concat()
    };
    let (crm, dns) = (Crm::start(), Dns::start(&zone));
    let aliases = "accueil = { to = \"zendesk\", onboarding-until = \"2999-12-31\" }\n\
                   fini = { to = \"zendesk\", onboarding-until = \"2020-12-31\" }\n";
    let more = format!("{}\n[auth]\n[spam]\nreject = 900.0\n", dns.config());
    let daemon = setup(&crm, aliases, &more).start();
    let mut client = Client::connect(daemon.smtp);
    let verification = signed("zendesk.com");
    for (alias, message, code) in [
        ("fini", &verification, 550),
        ("zendesk", &verification, 550),
        ("accueil", &signed("other.example"), 550),
        ("accueil", &verification.replace("verify", "verified"), 550),
        ("accueil", &verification, 250),
    ] {
        let reply = client.deliver("bounce@x.example", &[&format!("{alias}@solarmora.com")], message.as_bytes());
        assert_eq!(reply.code, code, "{alias}: {reply:?}");
    }
    let mails = crm.wait_for_mails(2);
    let mut targets: Vec<&str> = mails.iter().map(|mail| mail.recipients()[0]).collect();
    targets.sort_unstable();
    assert_eq!(targets, ["admin@mon-crm.com", "support@solarmora.zendesk.com"]);
    assert!(mails.iter().all(|mail| mail.bytes.ends_with(verification.as_bytes())));
    wait_for("the line in the log", || daemon.log().contains("\"event\":\"onboarding-mail\"").then_some(()));
}

const GTUBE: &str = concat!("XJS*C4JDBQADN1.NSBN3*2IDNEN*GTUBE-STANDARD-", "ANTI-UBE-TEST-EMAIL*C.34X");

#[test]
fn freshdesk_counts_by_who_stands_in_from() {
    let (daemon, _crm) = start();
    // The first half hour of a process has a quarter of the forty.
    let from = |who: &str, n: usize| format!("From: {who}@example.org\r\nSubject: {n}\r\n\r\nx\r\n");
    for n in 0..10 {
        sent(&daemon, "freshdesk", &from("jean", n), "delivered");
    }
    let id = daemon.send_bytes("freshdesk@solarmora.com", from("Jean", 10).as_bytes());
    let leg = wait_for("the eleventh to wait", || {
        daemon.rows(&["queue", "list", "--id", &id]).into_iter().find(|row| row["reason"] == "rate")
    });
    assert_eq!((&leg["state"], &leg["attempts"]), (&"queued".into(), &0.into()));
    assert!(leg["detail"].as_str().unwrap().contains("40/30m per sender (documented"), "{leg}");
    sent(&daemon, "freshdesk", &from("claire", 0), "delivered");
    let metrics = daemon.http("/metrics").1;
    assert!(metrics.contains("pointsman_paced_total{route=\"systems\",action=\"deferred\"} 1\n"), "{metrics}");
}

#[test]
fn zendesk_has_an_alert_at_fifteen_mails_of_a_sender_in_an_hour() {
    let (daemon, _crm) = start();
    let alerts = |count: &str| {
        let series = format!("pointsman_paced_total{{route=\"systems\",action=\"alert\"}} {count}\n");
        daemon.http("/metrics").1.contains(&series)
    };
    for n in 0..15 {
        sent(&daemon, "zendesk", &mail(&format!("X-N: {n}\r\n")), "delivered");
    }
    assert!(alerts("0"));
    for n in 15..20 {
        sent(&daemon, "zendesk", &mail(&format!("X-N: {n}\r\n")), "delivered");
    }
    assert!(alerts("1"), "once in an hour");
    daemon.wait_for_log("\"event\":\"pace-exceeded\"");
}
