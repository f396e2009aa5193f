//! Memory has a ceiling that no load moves: large messages in parallel, and sessions that only stand there.
//!
//! What counts is the daemon's resident memory as the kernel tells it, so these tests read /proc, one at a time.

use std::fs;
use std::sync::Barrier;
use std::thread;

use crate::harness::daemon::RULES;
use crate::harness::{Client, Crm, Daemon, Setup, alone, wait_for};

const MIB: u64 = 1 << 20;

#[test]
fn fifty_large_messages_at_once_stay_within_the_budget() {
    const MESSAGES: usize = 50;
    let _heavy = alone();
    let crm = Crm::start();
    crm.keep_no_bodies();
    // Held first: then the two halves, taking and relaying, are at their worst one after the other.
    let held = RULES.replacen(
        "[[rule]]",
        "[[rule]]\nname = \"wait\"\nhold = \"until all are in\"\ncontinue = true\n\n[[rule]]",
        1,
    );
    let daemon = Setup::new(crm.address()).rules(&held).concurrency(20).start();
    daemon.send("ventes@solarmora.com");
    let idle = memory(&daemon, "VmRSS");

    let together = Barrier::new(MESSAGES);
    thread::scope(|scope| {
        for _ in 0..MESSAGES {
            scope.spawn(|| large_message(&daemon, &together));
        }
    });
    let taking = memory(&daemon, "VmHWM") - idle;
    daemon.cli(&["queue", "release", "--state", "held"]).succeeds();
    wait_for("all to be relayed", || daemon.rows(&["queue", "list"]).is_empty().then_some(()));
    let relaying = memory(&daemon, "VmHWM") - idle;
    println!("over idle: {} MiB taking, {} MiB taking and relaying", taking / MIB, relaying / MIB);
    assert!(
        relaying < 200 * MIB,
        "50 x 25 MiB: {} MiB over idle while taking, {} in all",
        taking / MIB,
        relaying / MIB
    );
    assert_eq!(crm.mails().len(), MESSAGES + 1);
}

/// Hands in 25 MiB whose every part waits for nobody, once all others stand behind their 354.
fn large_message(daemon: &Daemon, together: &Barrier) {
    let mut client = Client::connect(daemon.smtp);
    for command in ["MAIL FROM:<client@example.org>", "RCPT TO:<aide@solarmora.com>", "DATA"] {
        assert!(client.say(command).code < 400, "{command}");
    }
    together.wait();
    let line = format!("{}\r\n", "x".repeat(1022));
    let part = line.repeat(64);
    client.send(b"Subject: large\r\n\r\n").unwrap();
    for _ in 0..(25 << 20) / part.len() {
        client.send(part.as_bytes()).unwrap();
    }
    client.send(b".\r\n").unwrap();
    client.reply().queued_as();
}

#[test]
fn an_idle_connection_costs_little() {
    let _heavy = alone();
    // As many as the aim says, where the descriptors allow it; the cost of one is the same with fewer.
    let connections = descriptors_max().saturating_sub(500).min(10_000);
    assert!(connections >= 200, "raise `ulimit -n`: nothing can be measured with {connections} connections");
    let crm = Crm::start();
    let daemon = Setup::new(crm.address()).start();
    let warm: Vec<Client> = (0..50).map(|_| Client::connect(daemon.smtp)).collect();
    let before = memory(&daemon, "VmRSS");
    let idle: Vec<Client> = (0..connections).map(|_| Client::connect(daemon.smtp)).collect();
    let each = memory(&daemon, "VmRSS").saturating_sub(before) / connections;
    println!("{} octets for each of {connections} idle connections", each);
    assert!(each < 20 * 1024, "{each} octets for each of {connections} idle connections");
    // They are in nobody's way.
    daemon.send("aide@solarmora.com");
    crm.wait_for_mails(1);
    drop((warm, idle));
}

/// A line of /proc/<pid>/status, in octets.
fn memory(daemon: &Daemon, line: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).expect("the daemon runs");
    let line = status.lines().find_map(|text| text.strip_prefix(line)?.strip_prefix(':')).expect("the kernel tells it");
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number of kB");
    kib * 1024
}

/// The soft limit of open files, which the daemon inherits from us.
fn descriptors_max() -> u64 {
    let limits = fs::read_to_string("/proc/self/limits").expect("/proc is mounted");
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).expect("the kernel tells it");
    line.split_whitespace().next().and_then(|soft| soft.parse().ok()).unwrap_or(u64::MAX)
}
