//! The doctor, with a daemon and without: what is well, what is wrong, and what nobody can know.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;

use serde_json::Value;

use crate::harness::dns::Dns;
use crate::harness::{Certificates, Crm, Setup, Site, Stage};

const ZONE: &str = "\
mx.solarmora.com A 127.0.0.1
solarmora.com MX 10 mx.solarmora.com
srs.solarmora.com TXT v=spf1 ip4:127.0.0.1 -all
";

/// Our address is one that the kernel has, so that it has a name and a policy in the zone.
fn site(crm: &Crm, zone: &str) -> (Site, Dns) {
    let dns = Dns::start(zone);
    let more = format!("{}[srs]\ndomain = \"srs.solarmora.com\"\nsecrets = [\"a secret\"]\n", dns.config());
    let site = Setup::new(crm.address()).more(&more).site();
    site.reconfigure("tls   = \"off\"", "tls   = \"off\"\nsource = \"127.0.0.1\"");
    site.reconfigure("concurrency =", "source      = \"127.0.0.1\"\nconcurrency =");
    (site, dns)
}

/// Findings by check and subject: (result, detail, help).
fn examine(site: &Site) -> BTreeMap<String, (String, String, String)> {
    let cli = site.cli(&["doctor", "--json"]);
    let rows: Vec<Value> = cli.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let word = |row: &Value, key: &str| row[key].as_str().unwrap().to_owned();
    let found: BTreeMap<_, _> = rows
        .iter()
        .map(|row| {
            let key = format!("{} {}", word(row, "check"), word(row, "subject"));
            (key.trim_end().to_owned(), (word(row, "result"), word(row, "detail"), word(row, "help")))
        })
        .collect();
    let any = found.values().any(|(result, ..)| result == "finding");
    assert_eq!(cli.code, Some(i32::from(any)), "{found:#?}");
    found
}

/// The checks that say so, as `check subject`.
fn with_result<'a>(found: &'a BTreeMap<String, (String, String, String)>, result: &str) -> Vec<&'a str> {
    found.iter().filter(|(_, (of, ..))| of == result).map(|(key, _)| key.as_str()).collect()
}

#[test]
fn a_healthy_daemon_has_no_findings_and_nothing_reaches_the_crm() {
    let crm = Crm::start();
    let (site, _dns) = site(&crm, ZONE);
    let daemon = site.start();
    daemon.send("aide@solarmora.com");
    crm.wait_for_mails(1);
    let found = examine(&daemon);
    // What this machine is short of is not the daemon's: its disk may be slow, its clock be kept by nobody we know.
    let of_the_machine =
        |check: &&str| ["disk", "descriptors", "clock", "space"].iter().any(|word| check.starts_with(word));
    let wrong: Vec<_> = with_result(&found, "finding").into_iter().filter(|check| !of_the_machine(check)).collect();
    assert!(wrong.is_empty(), "{found:#?}");
    for check in [
        "daemon",
        "ledger",
        "hostname mx.solarmora.com",
        "mx solarmora.com",
        "spf srs.solarmora.com",
        "route crm: salesforce (c***@mon-crm.com)",
        "route crm: ventes (v***@mon-crm.com)",
    ] {
        assert_eq!(found.get(check).map(|(result, ..)| result.as_str()), Some("ok"), "{check}: {found:#?}");
    }
    assert!(found["ledger"].1.contains("accepted 1 messages with 1 legs"), "{:?}", found["ledger"]);
    assert!(found.keys().any(|key| key.starts_with("disk ")), "{found:#?}");
    assert_eq!(crm.transactions().len(), 1, "the routes were asked up to RCPT");
    let text = daemon.cli(&["doctor"]).says(&["ok       ledger", "findings, "]).out;
    assert!(!text.contains("case@mon-crm.com"), "{text}");
}

#[test]
fn each_fault_is_found_with_what_to_do_and_silence_is_none() {
    let crm = Crm::start();
    let zone = "\
mx.solarmora.com A 127.0.0.9
solarmora.com MX 10 mx.elsewhere.example
mx.elsewhere.example A 192.0.2.77
srs.solarmora.com TXT v=spf1 ip4:192.0.2.1 -all
";
    let (site, _dns) = site(&crm, zone);
    let daemon = site.start();
    crm.answer(Stage::Rcpt, "550 5.1.1 <case@mon-crm.com> is not known here");
    daemon.cli(&["pause", "--route", "default"]).exits(0);
    fs::set_permissions(daemon.data(), fs::Permissions::from_mode(0o755)).unwrap();
    daemon.write_rules("broken [");
    let found = examine(&daemon);
    for (check, detail, help) in [
        ("mx solarmora.com", "mx.elsewhere.example", "its mail goes elsewhere"),
        ("spf srs.solarmora.com", "fail for 127.0.0.1", "v=spf1 ip4:127.0.0.1 -all"),
        ("route crm: salesforce (c***@mon-crm.com)", "at rcpt: 550 5.1.1", "ask whoever runs the host"),
        ("pause default", "paused since", "pointsman resume --route default"),
        (&format!("data {}", daemon.data().display()), "mode 0755", "chmod 0750"),
        (&format!("configuration {}", daemon.config().display()), "errors", "pointsman check"),
    ] {
        let Some((result, said, todo)) = found.get(check) else { panic!("{check} is not there: {found:#?}") };
        assert_eq!(result, "finding", "{check}: {said}");
        assert!(said.contains(detail) && todo.contains(help), "{check}: {said} -> {todo}");
        assert!(!said.contains("case@"), "{check}: {said}");
    }
    crm.go_down();
    let found = examine(&daemon);
    assert!(found["route crm: salesforce (c***@mon-crm.com)"].1.contains("refused"), "{found:#?}");
}

#[test]
fn what_nobody_answers_is_unknown_and_bounded_in_time() {
    let crm = Crm::start();
    let zone = "mx.solarmora.com SERVFAIL\nsolarmora.com SERVFAIL\nsrs.solarmora.com SERVFAIL\n";
    let (site, _dns) = site(&crm, zone);
    let daemon = site.start();
    let found = examine(&daemon);
    for check in ["hostname mx.solarmora.com", "mx solarmora.com", "spf srs.solarmora.com"] {
        assert_eq!(found[check].0, "unknown", "{check}: {found:#?}");
    }
    crm.answer(Stage::Rcpt, "450 4.2.1 greylisted");
    assert_eq!(examine(&daemon)["route crm: salesforce (c***@mon-crm.com)"].0, "unknown", "later is no fault");
}

#[test]
fn without_a_daemon_the_rest_is_looked_at_all_the_same() {
    let crm = Crm::start();
    let (site, _dns) = site(&crm, ZONE);
    let daemon = site.start();
    daemon.send("aide@solarmora.com");
    crm.wait_for_mails(1);
    daemon.signal("TERM");
    let (site, _) = daemon.wait();
    let found = examine(&site);
    assert_eq!(found["daemon"].0, "finding");
    assert!(found["daemon"].1.contains("not running"), "{found:#?}");
    for check in ["ledger", "mx solarmora.com", "route crm: salesforce (c***@mon-crm.com)"] {
        assert_eq!(found[check].0, "ok", "{check}: {found:#?}");
    }
    site.write_rules("broken [");
    let found = examine(&site);
    assert!(found.keys().any(|key| key.starts_with("configuration ")), "{found:#?}");
    assert_eq!(found.len(), 2, "without a configuration nothing else is known: {found:#?}");
}

#[test]
fn a_key_that_cannot_be_used_and_a_body_that_is_gone_are_found() {
    let crm = Crm::start();
    crm.answer(Stage::Rcpt, "450 4.2.1 later");
    let files = Certificates::new("mx.solarmora.com");
    let daemon = Setup::new(crm.address()).listener_tls("starttls", &files).start();
    let found = examine(&daemon);
    assert!(
        found.iter().any(|(key, (result, detail, _))| {
            key.starts_with("certificate ") && result == "ok" && detail.contains("expires")
        }),
        "{found:#?}"
    );
    fs::write(files.key(), "no key").unwrap();
    let body = [&b"Subject: large\r\n\r\n"[..], &b"0123456789abcdef\r\n".repeat(10_000)].concat();
    let id = daemon.send_bytes("aide@solarmora.com", &body);
    crate::harness::wait_for("a deferred leg", || {
        daemon.rows(&["queue", "list"]).pop().filter(|row| row["attempts"] == 1)
    });
    for shard in fs::read_dir(daemon.data().join("bodies")).unwrap() {
        for file in fs::read_dir(shard.unwrap().path()).unwrap() {
            fs::remove_file(file.unwrap().path()).unwrap();
        }
    }
    let found = examine(&daemon);
    assert_eq!(found["ledger"].0, "finding");
    assert!(found["ledger"].1.contains(&format!("open legs without a body: {id}.1")), "{:?}", found["ledger"]);
    assert!(
        found.iter().any(|(key, (result, ..))| key.starts_with("certificate ") && result == "finding"),
        "{found:#?}"
    );
}
