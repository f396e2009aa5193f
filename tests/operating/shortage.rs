//! Descriptors that run out on the live daemon, and a client that wants more sessions than its share: 4xx for those who
//! ask for more than there is, everybody else is served, and what was short is used again when it is back.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::harness::{Client, Crm, Daemon, Setup, Stage, has, run, wait_for};

/// How many descriptors the daemon may have open from now on.
fn limit_descriptors(daemon: &Daemon, limit: usize) {
    run(Command::new("prlimit").arg(format!("--pid={}", daemon.pid())).arg(format!("--nofile={limit}:")));
}

fn descriptors(daemon: &Daemon) -> usize {
    let numbers = fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap();
    let highest = numbers.filter_map(|entry| entry.unwrap().file_name().to_str()?.parse::<usize>().ok()).max();
    highest.unwrap() + 1
}

#[test]
fn without_descriptors_clients_are_told_421_or_451_and_all_goes_on_when_they_are_back() {
    if !has("descriptors that run out", "prlimit") {
        return;
    }
    let crm = Crm::start();
    let daemon = Setup::new(crm.address()).start();
    let mut small = Client::connect(daemon.smtp);
    let mut large = Client::connect(daemon.smtp);
    // The limit is on the highest number, so no gap below it may be left.
    let mut fillers = Vec::new();
    let highest = descriptors(&daemon);
    while fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap().count() < highest {
        fillers.push(Client::connect(daemon.smtp));
    }
    limit_descriptors(&daemon, descriptors(&daemon));
    let told = Client::try_raw(daemon.smtp).unwrap().reply();
    assert_eq!((told.code, told.text.as_str()), (421, "4.7.0 too many connections, try again later"));
    let body = [&b"Subject: large\r\n\r\n"[..], &b"0123456789abcdef\r\n".repeat(10_000)].concat();
    let reply = large.deliver("client@example.org", &["aide@solarmora.com"], &body);
    assert_eq!(reply.code, 451, "its body needs a file: {reply:?}");
    // A small one needs none, so it is taken, and waits: nothing can be dialled.
    let id = small.deliver("client@example.org", &["aide@solarmora.com"], b"Subject: small\r\n\r\nx\r\n").queued_as();
    let back = Instant::now();
    limit_descriptors(&daemon, 4096);
    let leg = daemon.wait_for_leg(&format!("{id}.1"), "delivered");
    assert!(back.elapsed() < Duration::from_secs(30), "{:?}", back.elapsed());
    assert_eq!(leg["attempts"], 1, "our own want is nobody's failed attempt: {leg}");
    daemon.send_bytes("aide@solarmora.com", &body);
    assert_eq!(crm.wait_for_mails(2).len(), 2);
    assert!(!daemon.log().contains("\"event\":\"panic\""));
}

#[test]
fn a_client_has_its_share_of_sessions_and_not_one_more() {
    let crm = Crm::start();
    let site = Setup::new(crm.address()).more("[limits]\nsessions-per-client = 3\n").site();
    site.reconfigure("tls     = \"off\"", "tls     = \"off\"\nproxy   = [\"127.0.0.1\"]");
    let daemon = site.start();
    for (clients, other) in [
        (["198.51.100.7", "198.51.100.7", "198.51.100.7", "198.51.100.7"], "198.51.100.8"),
        // A subscriber has a whole network of them.
        (["2001:db8::1", "2001:db8::2", "2001:db8::3", "2001:db8::ffff:1"], "2001:db8:0:1::1"),
    ] {
        let mut open: Vec<Client> = clients[..3].iter().map(|client| daemon.client_from(client)).collect();
        for session in &mut open {
            assert_eq!(session.reply().code, 220);
        }
        let mut past = daemon.client_from(clients[3]);
        let told = past.reply();
        assert_eq!((told.code, told.text.as_str()), (421, "4.7.0 too many connections, try again later"));
        assert!(past.is_closed());
        assert_eq!(daemon.client_from(other).reply().code, 220, "others are not touched");
        open.pop().unwrap().say("QUIT");
        wait_for("the place that was left", || (daemon.client_from(clients[3]).reply().code == 220).then_some(()));
    }
}

#[test]
fn below_min_free_new_mail_is_452_while_deliveries_and_the_ledger_go_on() {
    let crm = Crm::start();
    crm.answer(Stage::Rcpt, "450 4.2.1 later");
    let daemon = Setup::new(crm.address()).start();
    let id = daemon.send("aide@solarmora.com");
    wait_for("a deferred leg", || daemon.rows(&["queue", "list"]).pop().filter(|row| row["attempts"] == 1));
    daemon.signal("TERM");
    let (site, _) = daemon.wait();
    site.reconfigure("min-free = \"1MiB\"", "min-free = \"1000TiB\"");
    crm.take_all();
    let daemon = site.start();
    let told = Client::connect(daemon.smtp).say("MAIL FROM:<client@example.org>");
    assert_eq!((told.code, told.text.as_str()), (452, "4.3.1 insufficient storage, try again later"));
    assert_eq!(daemon.http("/readyz").0, 503);
    daemon.cli(&["queue", "retry", "--id", &id]).exits(0);
    daemon.wait_for_leg(&format!("{id}.1"), "delivered");
    daemon.cli(&["doctor"]).exits(1).says(&["FINDING  space", "new mail is answered 452"]);
}

#[test]
fn short_of_memory_clients_are_told_421_and_all_goes_on_when_it_is_back() {
    let crm = Crm::start();
    let site = Setup::new(crm.address()).more("[limits]\nmemory = \"4GiB\"\n").site();
    let daemon = site.start();
    let mut open = Client::connect(daemon.smtp);
    // Any daemon has more than that: it is what one of another size has under load.
    daemon.reconfigure("memory = \"4GiB\"", "memory = \"1MiB\"");
    daemon.cli(&["reload"]).exits(0);
    let told = Client::try_raw(daemon.smtp).unwrap().reply();
    assert_eq!((told.code, told.text.as_str()), (421, "4.3.2 not enough memory, try again later"));
    let first = open.deliver("client@example.org", &["aide@solarmora.com"], b"Subject: open\r\n\r\nx\r\n").queued_as();
    daemon.wait_for_leg(&format!("{first}.1"), "delivered");
    assert!(daemon.http("/metrics").1.contains("pointsman_connections_total{listener=\"mx\",result=\"refused\"} 1"));
    daemon.reconfigure("memory = \"1MiB\"", "memory = \"4GiB\"");
    daemon.cli(&["reload"]).exits(0);
    daemon.send("aide@solarmora.com");
    assert_eq!(crm.wait_for_mails(2).len(), 2);
}
