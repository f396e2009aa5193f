//! A message that was signed once and is sent again and again, by whoever got hold of it.

use std::fs;

use crate::harness::dns::Dns;
use crate::harness::{Client, Crm, Setup, alone, wait_for};

/// hostile.md, sender authentication: each of the copies is right in itself. They are counted, a route may suppress
/// them, and nothing that is kept for them grows with their number.
#[test]
fn aut_a_replayed_message_is_counted_suppressed_where_asked_and_grows_nothing() {
    const CLIENTS: usize = 100;
    const EACH: usize = 30;
    let _heavy = alone();
    let zone = include_str!("../../src/auth/verify/testdata/zone.txt");
    let signed = include_bytes!("../../src/auth/verify/testdata/dkimpy-relaxed.eml");
    let (dns, crm) = (Dns::start(zone), Crm::start());
    let site = Setup::new(crm.address()).more(&format!("{}[auth]\n", dns.config())).site();
    site.reconfigure("tls     = \"off\"", "tls     = \"off\"\nproxy   = [\"127.0.0.1\"]");
    site.reconfigure("[route.crm]", "[route.crm]\ndedupe = \"1h\"");
    let daemon = site.start();
    let resident = || {
        let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap().trim();
        line.trim_end_matches(" kB").parse::<usize>().unwrap()
    };
    let mut clients: Vec<Client> = (0..CLIENTS)
        .map(|n| {
            let mut client = daemon.client_from(&format!("198.51.100.{n}"));
            assert_eq!(client.reply().code, 220);
            assert_eq!(client.say("EHLO replay.example").code, 250);
            client
        })
        .collect();
    let mut round = || {
        for client in &mut clients {
            client.deliver("u@a.example", &["aide@solarmora.com"], signed).queued_as();
        }
    };
    round();
    let (asked, before) = (dns.asked(), resident());
    (1..EACH).for_each(|_| round());
    assert!(dns.asked() <= asked + CLIENTS, "{asked} questions for the first round, {} in all", dns.asked());
    assert!(resident() < before + (8 << 10), "{before} KiB after the first round, {} KiB in the end", resident());

    let metric = |series: &str| {
        let page = daemon.http("/metrics").1;
        let line =
            page.lines().find_map(|line| line.strip_prefix(series)).unwrap_or_else(|| panic!("{series}: {page}"));
        line.trim().parse::<f64>().unwrap()
    };
    let all = (CLIENTS * EACH) as f64;
    assert_eq!(metric("pointsman_auth_total{check=\"dkim\",result=\"pass\"}"), all);
    let duplicates = "pointsman_legs_total{route=\"crm\",state=\"duplicate\",reason=\"duplicate\"}";
    assert_eq!(metric(duplicates), all - 1.0);
    wait_for("the queue to be empty", || daemon.rows(&["queue", "list"]).is_empty().then_some(()));
    assert_eq!(crm.mails().len(), 1, "it is one case");
}
