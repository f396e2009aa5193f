//! The command line: what it says, and the exit codes that scripts rely on.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::harness::daemon::RULES;
use crate::harness::{Client, Crm, Daemon, PATIENCE, Setup, Site, Stage, program, wait_for};

#[test]
fn exit_codes_tell_done_findings_usage_and_not_running() {
    let crm = Crm::start();
    let site = Setup::new(crm.address()).site();
    site.cli(&["check"]).exits(0);
    site.cli(&["check", "--offline", "--json"]).exits(0);
    site.cli(&["explain", "--recipient", "personne@solarmora.com"]).exits(0);
    site.cli(&["no-such-command"]).exits(2);
    site.cli(&["queue", "list", "--no-such-filter"]).exits(2);
    for command in [&["queue", "retry"][..], &["status"], &["quarantine", "release", "--id", "0000000000001.1"]] {
        site.cli(command).exits(3);
    }
    site.write_rules(&RULES.replace("to    = \"salesforce\"", "to    = \"salesfroce\""));
    site.cli(&["check"]).exits(1).says(&["rules/solarmora.toml", "salesfroce", "salesforce"]);
    site.write_rules(&RULES.replace("[[rule]]", "[[rule]]\ncolour = \"red\""));
    site.cli(&["check"]).exits(1).says(&["colour", "^"]);
    let (_site, status) = site.try_start().err().expect("a daemon with broken rules does not start");
    assert_eq!(status.code(), Some(1));
}

#[test]
fn two_aliases_of_one_crm_are_warned_of_and_pass_the_check() {
    let crm = Crm::start();
    let site = Setup::new(crm.address()).site();
    site.write_rules(&format!("{RULES}\nventas = {{ to = \"ventes\" }}\n"));
    let said = site.cli(&["check"]).exits(0).says(&["warning: several aliases go to `ventes`", "ok, with 1 warning"]);
    assert!(!said.out.contains("lets one through"), "the duplicate window tells aliases apart: {}", said.out);
    let sum = site.rows(&["check"]).pop().expect("a summary");
    assert_eq!((&sum["warnings"], &sum["findings"]), (&1.into(), &0.into()));
    site.cli(&["check", "--strict"]).exits(1);
    // Any other warning is a finding.
    site.write_rules(&RULES.replace("role = \"admin@mon-crm.com\"", ""));
    site.cli(&["check"]).exits(1).says(&["warning: nobody reads postmaster@solarmora.com"]);
}

#[test]
fn the_queue_s_list_tells_of_what_is_quarantined() {
    let crm = Crm::start();
    let rules = RULES.replace("ventes   = { to = \"ventes\" }", "ventes   = { quarantine = \"odd\", to = \"ventes\" }");
    let daemon = Setup::new(crm.address()).rules(&rules).start();
    let id = daemon.send("ventes@solarmora.com");
    let told = "1 quarantined: see `pointsman quarantine list`";
    daemon.cli(&["queue", "list"]).exits(0).says(&["no legs", told]);
    daemon.cli(&["queue", "list", "--limit", "1"]).exits(0).says(&[told]);
    assert!(daemon.rows(&["queue", "list"]).is_empty(), "scripts get legs alone");
    for arguments in [&["queue", "list", "--recipient", "aide@solarmora.com"][..], &["quarantine", "list"]] {
        assert!(!daemon.cli(arguments).exits(0).out.contains("see `pointsman"), "{arguments:?}");
    }
    daemon.cli(&["quarantine", "release", "--id", &id]).succeeds();
    wait_for("the released leg", || daemon.rows(&["quarantine", "list"]).is_empty().then_some(()));
    assert!(!daemon.cli(&["queue", "list"]).exits(0).out.contains("quarantined"));
}

#[test]
fn the_log_names_what_is_without_function_and_whom_an_operator_meant() {
    let crm = Crm::start();
    crm.answer(Stage::Rcpt, "450 4.2.1 later");
    let daemon = Setup::new(crm.address()).more("[dns]\nvalidating = true\n").start();
    let lines = |event: &str| -> Vec<serde_json::Value> {
        let log = daemon.log();
        let lines = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        lines.filter(|line| line["event"] == event).collect()
    };
    let inert = wait_for("the line at the start", || lines("without-function").pop());
    assert!(inert["what"].as_str().unwrap().contains("dns.validating"), "{inert}");
    let id = daemon.send("aide@solarmora.com");
    wait_for("a deferred leg", || daemon.rows(&["queue", "list"]).pop().filter(|row| row["attempts"] == 1));
    daemon.cli(&["queue", "hold", "--id", &id]).succeeds();
    daemon.cli(&["queue", "release", "--target", "case@mon-crm.com", "--subject", "panne\u{1b}"]);
    let operated = wait_for("two operator lines", || Some(lines("operator")).filter(|lines| lines.len() == 2));
    let chosen: Vec<&str> = operated.iter().map(|line| line["chosen"].as_str().unwrap()).collect();
    assert_eq!(chosen, [&format!("--id {id}"), "--target c***@mon-crm.com --subject panne\\u{1b}"]);
}

#[test]
fn the_queue_can_be_read_without_a_daemon() {
    let (daemon, crm) = Daemon::with_crm();
    crm.answer(Stage::Rcpt, "450 4.2.1 later");
    let id = daemon.send("aide@solarmora.com");
    wait_for("a deferred leg", || daemon.rows(&["queue", "list"]).pop().filter(|row| row["attempts"] == 1));
    let site = daemon.kill9();
    let before = fingerprint(&site);
    let row = site.rows(&["queue", "list"]).pop().expect("the leg is still there");
    assert_eq!((&row["id"], &row["state"]), (&format!("{id}.1").into(), &"queued".into()));
    site.cli(&["queue", "show", "--id", &id]).exits(0);
    site.cli(&["trace", "--id", &id]).exits(0).says(&["450 4.2.1 later"]);
    site.cli(&["quarantine", "list"]).exits(0);
    for verb in ["retry", "hold", "release", "redecide", "bounce", "drop"] {
        site.cli(&["queue", verb, "--id", &id]).exits(3);
        site.cli(&["queue", verb, "--id", &id, "--dry-run"]).exits(3);
    }
    site.cli(&["queue", "retarget", "--to", "ventes", "--id", &id]).exits(3);
    site.cli(&["quarantine", "release", "--id", &id]).exits(3);
    site.cli(&["quarantine", "deny", "--id", &id]).exits(3);
    site.cli(&["status"]).exits(3);
    assert_eq!(fingerprint(&site), before, "looking has changed the queue");
    // Nothing there at all is told, too.
    let empty = Setup::new(crm.address()).site();
    for command in [&["queue", "list"][..], &["trace"]] {
        assert_ne!(empty.cli(command).code, Some(0), "{command:?} where no queue is");
    }
    assert!(!empty.data().exists(), "looking has made a queue");
}

/// What is in the data base and its log.
fn fingerprint(site: &Site) -> Vec<Vec<u8>> {
    ["queue.db", "queue.db-wal"].map(|name| fs::read(site.data().join(name)).unwrap()).into()
}

/// A CRM that never answers the final dot, hundreds of legs behind it, a large message half in: none of it is waited
/// for, none of it is lost.
#[test]
fn sigterm_ends_it_within_five_seconds_whatever_is_queued() {
    let crm = Crm::start();
    let gate = crm.gate();
    let daemon = Setup::new(crm.address()).retry("1s").start();
    let ids: Vec<String> = thread::scope(|scope| {
        let client = || {
            let mut client = Client::connect(daemon.smtp);
            let one = |_| client.deliver("client@example.org", &["aide@solarmora.com"], b"x\r\n").queued_as();
            (0..100).map(one).collect::<Vec<String>>()
        };
        let clients: Vec<_> = (0..5).map(|_| scope.spawn(client)).collect();
        clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
    });
    let mut half = Client::connect(daemon.smtp);
    for command in ["MAIL FROM:<client@example.org>", "RCPT TO:<aide@solarmora.com>", "DATA"] {
        half.say(command);
    }
    half.send(&b"half a line\r\n".repeat(100_000)).unwrap();
    let since = Instant::now();
    daemon.signal("TERM");
    let (site, status) = daemon.wait();
    let took = since.elapsed();
    println!("{took:?} from SIGTERM to the end");
    assert_eq!(status.code(), Some(0));
    assert!(took < Duration::from_secs(5), "{took:?}");
    drop(gate);
    crm.take_all();
    let daemon = site.start();
    wait_for("all to be delivered", || daemon.rows(&["queue", "list"]).is_empty().then_some(()));
    let delivered = daemon.rows(&["trace", "--since", "1h", "--state", "delivered", "--limit", "10000"]);
    let delivered: BTreeSet<&str> = delivered.iter().filter_map(|row| row["message"].as_str()).collect();
    assert_eq!(delivered, ids.iter().map(String::as_str).collect());
}

#[test]
fn a_sigterm_right_after_the_start_ends_it_cleanly() {
    let crm = Crm::start();
    for file in ["addresses.json", "control.sock"] {
        let site = Setup::new(crm.address()).site();
        let status = site.start_and_signal(file, "TERM");
        assert_eq!(status.code(), Some(0), "{file}: {status}\n{}", site.log());
    }
}

#[test]
fn trace_tells_the_whole_journey() {
    let (daemon, _crm) = Daemon::with_crm();
    let id = daemon.send("factures@solarmora.com");
    for n in 1..=2 {
        daemon.wait_for_leg(&format!("{id}.{n}"), "delivered");
    }
    let words = [&id, "client@example.org", "factures@solarmora.com", "panne", "127.0.0.1", "delivered", "case opened"];
    daemon.cli(&["trace", "--id", &id]).succeeds().says(&words);
    for filter in [
        ["--recipient", "factures@solarmora.com"],
        ["--sender", "client@example.org"],
        ["--from", "client@example.org"],
        ["--subject", "panne"],
        ["--message-id", "<1@example.org>"],
        ["--client", "127.0.0.1"],
        ["--since", "1h"],
        ["--state", "delivered"],
        ["--reason", "sent"],
    ] {
        assert_eq!(daemon.rows(&["trace", filter[0], filter[1]]).len(), 2, "{filter:?}");
    }
    for filter in [["--recipient", "aide@solarmora.com"], ["--state", "held"], ["--subject", "no such"]] {
        assert!(daemon.rows(&["trace", filter[0], filter[1]]).is_empty(), "{filter:?}");
    }
    for row in daemon.rows(&["trace", "--id", &id]) {
        for key in ["id", "message", "recipient", "target", "route", "state", "reason", "attempts"] {
            assert!(!row[key].is_null(), "no `{key}` in {row}");
        }
    }
}

#[test]
fn explain_says_which_rule_and_why_not_the_others() {
    let crm = Crm::start();
    let site = Setup::new(crm.address()).site();
    let why_not = "[[rule]]\nname = \"only for a friend\"\nwhen = { sender = \"ami@example.org\" }\nreject = \"no\"\n\n[[rule]]\nname  = \"aide";
    site.write_rules(&RULES.replacen("[[rule]]\nname  = \"aide", why_not, 1));
    let explain = ["explain", "--recipient", "aide@solarmora.com", "--sender", "client@example.org"];
    site.cli(&explain).exits(0).says(&["only for a friend", "client@example.org", "aide to the CRM", "crm"]);
    let message = site.path().join("m.eml");
    fs::write(&message, "From: client@example.org\r\nSubject: x\r\n\r\n").unwrap();
    let message = message.to_str().unwrap();
    site.cli(&["explain", "--recipient", "aide@solarmora.com", "--message", message])
        .exits(0)
        .says(&["aide to the CRM"]);
    let json: Vec<&str> = explain.iter().copied().chain(["--json"]).collect();
    let explained = site.cli(&json).exits(0);
    serde_json::from_str::<serde_json::Value>(&explained.out).expect("one JSON value");
    site.cli(&["explain", "--recipient", "personne@solarmora.com"]).exits(0).says(&["550 5.1.1"]);
}

#[test]
fn reroute_sends_legs_by_the_route_that_it_names() {
    let (daemon, crm) = Daemon::with_crm();
    crm.answer(Stage::Rcpt, "450 4.2.1 later");
    let leg = format!("{}.1", daemon.send("aide@solarmora.com"));
    wait_for("a deferred leg", || {
        daemon.rows(&["queue", "list", "--id", &leg]).pop().filter(|row| row["attempts"] == 1)
    });
    daemon.cli(&["queue", "reroute", "--id", &leg]).exits(2);
    daemon.cli(&["queue", "reroute", "--route", "nowhere", "--id", &leg]).exits(1).says(&["crm"]);
    let moved = daemon.rows(&["queue", "reroute", "--route", "default", "--on-route", "crm"]);
    assert_eq!((moved.len(), &moved[0]["route"]), (1, &"default".into()));
    assert!(daemon.rows(&["queue", "reroute", "--route", "default", "--on-route", "crm"]).is_empty());
    crm.take_all();
    daemon.cli(&["queue", "retry", "--id", &leg]);
    assert_eq!(daemon.wait_for_leg(&leg, "delivered")["route"], "default");
}

#[test]
fn an_operator_moves_legs() {
    let (daemon, crm) = Daemon::with_crm();
    crm.answer(Stage::Rcpt, "450 4.2.1 later");
    let deferred = || {
        let id = daemon.send("aide@solarmora.com");
        let leg = format!("{id}.1");
        wait_for("a deferred leg", || {
            daemon.rows(&["queue", "list", "--id", &leg]).pop().filter(|row| row["attempts"] == 1)
        });
        leg
    };
    let (held, dropped, bounced, moved, decided) = (deferred(), deferred(), deferred(), deferred(), deferred());

    // A dry run names what it would do, and does nothing.
    assert_eq!(daemon.rows(&["queue", "drop", "--id", &dropped, "--dry-run"]).len(), 1);
    daemon.wait_for_leg(&dropped, "queued");
    daemon.cli(&["queue", "drop", "--id", &dropped]).succeeds();
    daemon.wait_for_leg(&dropped, "discarded");
    daemon.cli(&["queue", "bounce", "--id", &bounced]).succeeds();
    daemon.wait_for_leg(&bounced, "bounced");
    daemon.cli(&["queue", "hold", "--id", &held]).succeeds();
    assert_eq!(daemon.wait_for_leg(&held, "held")["reason"], "operator");

    crm.take_all();
    daemon.cli(&["queue", "retarget", "--to", "ventes", "--id", &moved]).succeeds();
    daemon.cli(&["queue", "retry", "--id", &moved]).succeeds();
    daemon.wait_for_leg(&moved, "delivered");
    assert_eq!(crm.wait_for_mails(1)[0].recipients(), ["ventes@mon-crm.com"]);
    daemon.cli(&["queue", "redecide", "--id", &decided]).succeeds();
    daemon.cli(&["queue", "retry", "--id", &decided]);
    daemon.wait_for_leg(&decided, "delivered");
    daemon.cli(&["queue", "release", "--id", &held]).succeeds();
    daemon.wait_for_leg(&held, "delivered");
    assert_eq!(crm.mails().len(), 3);
    daemon.cli(&["status"]).succeeds();
}

#[test]
fn acting_on_everything_must_be_meant() {
    let (daemon, crm) = Daemon::with_crm();
    crm.answer(Stage::Rcpt, "450 4.2.1 later");
    let id = daemon.send("aide@solarmora.com");
    wait_for("a deferred leg", || daemon.rows(&["queue", "list"]).pop().filter(|row| row["attempts"] == 1));
    for verb in ["hold", "release", "bounce", "drop", "redecide"] {
        daemon.cli(&["queue", verb]).exits(2).says(&["--all"]);
    }
    for verb in ["release", "deny"] {
        daemon.cli(&["quarantine", verb]).exits(2).says(&["--all"]);
    }
    daemon.cli(&["queue", "retry"]).succeeds();
    wait_for("the second attempt", || daemon.rows(&["queue", "list"]).pop().filter(|row| row["attempts"] == 2));
    daemon.cli(&["queue", "hold", "--all"]).succeeds();
    daemon.wait_for_leg(&format!("{id}.1"), "held");
}

#[test]
fn an_id_that_does_not_exist_is_a_finding_and_a_filter_that_matches_nothing_is_none() {
    let (daemon, _crm) = Daemon::with_crm();
    let id = daemon.send("aide@solarmora.com");
    daemon.wait_for_leg(&format!("{id}.1"), "delivered");
    for verb in ["retry", "hold", "release", "drop", "redecide"] {
        daemon.cli(&["queue", verb, "--id", "0000000000001"]).exits(1).says(&["nothing found"]);
        daemon.cli(&["queue", verb, &format!("{id}.9")]).exits(1).says(&["nothing found"]);
        daemon.cli(&["queue", verb, "--route", "no-such-route"]).succeeds().says(&["0 of 0 legs"]);
        // It is there, and has ended: nothing is wrong.
        daemon.cli(&["queue", verb, "--id", &id]).succeeds().says(&["0 of 0 legs"]);
    }
}

#[test]
fn a_long_list_says_that_there_is_more() {
    let (daemon, _crm) = Daemon::with_crm();
    for _ in 0..3 {
        let id = daemon.send("aide@solarmora.com");
        daemon.wait_for_leg(&format!("{id}.1"), "delivered");
    }
    for (limit, more) in [("2", true), ("3", false), ("4", false)] {
        let told = daemon.cli(&["trace", "--limit", limit]).succeeds();
        assert_eq!(told.out.contains("… and more; use --limit"), more, "{}", told.out);
    }
    assert_eq!(daemon.rows(&["trace", "--limit", "2"]).len(), 2, "JSON is what was asked for");
}

#[test]
fn behind_a_crm_that_hangs_only_what_is_being_sent_cannot_be_moved() {
    let crm = Crm::start();
    let gate = crm.gate();
    let daemon = Setup::new(crm.address()).concurrency(1).start();
    let hanging = daemon.send("aide@solarmora.com");
    gate.reached();
    for _ in 0..30 {
        daemon.send("aide@solarmora.com");
    }
    let rows = daemon.rows(&["queue", "list"]);
    assert_eq!(rows.iter().filter(|row| row["in_flight"] == true).count(), 31, "all are in memory");
    daemon.cli(&["queue", "drop", "--recipient", "aide@solarmora.com", "--dry-run"]).exits(1).says(&["30 of 31"]);
    let dropped = daemon.cli(&["queue", "drop", "--recipient", "aide@solarmora.com"]).exits(1);
    dropped.says(&["30 of 31 legs changed", "in flight: its attempt is under way"]);
    drop(gate);
    daemon.wait_for_leg(&format!("{hanging}.1"), "delivered");
    // The lane goes on as before.
    let next = daemon.send("ventes@solarmora.com");
    daemon.wait_for_leg(&format!("{next}.1"), "delivered");
    assert_eq!(crm.mails().len(), 2);
}

#[test]
fn what_the_rules_sent_nowhere_is_retargeted_and_not_released() {
    let crm = Crm::start();
    // Who is refused beside somebody who is not waits in the quarantine, addressed to itself.
    let rules = format!(
        "{RULES}\n[[rule]]\nname = \"secret\"\nwhen = {{ recipient = \"secret@solarmora.com\", dmarc = \"pass\" }}\n\
         to = \"ventes\"\n"
    );
    let daemon = Setup::new(crm.address()).rules(&rules).start();
    let mut client = Client::connect(daemon.smtp);
    let recipients = ["aide@solarmora.com", "secret@solarmora.com"];
    let id = client.deliver("client@example.org", &recipients, b"Subject: panne\r\n\r\nAu secours.\r\n").queued_as();
    let leg = format!("{id}.2");
    assert_eq!(daemon.wait_for_leg(&leg, "quarantined")["reason"], "mixed-refusal");
    daemon.cli(&["quarantine", "release", "--id", &leg]).exits(1).says(&["redecide or retarget it"]);
    daemon.cli(&["queue", "retarget", "--to", "secret@solarmora.com", &leg]).exits(1).says(&["is an alias of ours"]);
    let shown = daemon.cli(&["queue", "retarget", "--to", "salesforce", "--id", &leg, "--dry-run"]).succeeds();
    shown.says(&["would be done: to salesforce by route crm"]);
    daemon.wait_for_leg(&leg, "quarantined");
    daemon.cli(&["queue", "retarget", "--to", "salesforce", "--id", &leg]).succeeds();
    assert_eq!(daemon.wait_for_leg(&leg, "delivered")["route"], "crm");
    let copies = crm.wait_for_mails(2);
    let retargeted = String::from_utf8_lossy(&copies[1].bytes);
    assert!(retargeted.starts_with("Delivered-To: secret@solarmora.com\r\n"), "{retargeted}");
}

#[test]
fn the_demo_needs_nothing_shows_a_journey_and_leaves_nothing() {
    let demo = Demo::start();
    let said = demo.says_all(&["delivered", "swaks", "/metrics"]);
    for word in ["S: 250", "queued as", "aide@solarmora.com", "opened case 00001", "opened case 00002", " ms  C: DATA"]
    {
        assert!(said.contains(word), "no `{word}` in:\n{said}");
    }
    assert_eq!(demo.left_behind(), 1, "its folder is there while it runs");
    demo.ends_on("INT");
}

#[test]
fn a_demo_that_is_interrupted_early_leaves_nothing() {
    for signal in ["INT", "TERM"] {
        let demo = Demo::start();
        demo.says_all(&["Pointsman listens on"]);
        demo.ends_on(signal);
    }
}

/// A running demo, in a temporary folder of its own.
struct Demo {
    child: Child,
    lines: mpsc::Receiver<String>,
    temporary: TempDir,
}

impl Demo {
    fn start() -> Demo {
        let temporary = tempfile::tempdir().unwrap();
        let mut demo = Command::new(program());
        let demo = demo.arg("demo").env("TMPDIR", temporary.path());
        let mut child =
            demo.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("it can be started");
        let output = BufReader::new(child.stdout.take().expect("it is piped"));
        let (heard, lines) = mpsc::channel();
        // The thread ends with the demo; a line that nobody waits for any more is read and dropped.
        thread::spawn(move || output.lines().map_while(Result::ok).for_each(|line| drop(heard.send(line))));
        Demo { child, lines, temporary }
    }

    /// Listens until all words were said: it stays up, so its output has no end.
    fn says_all(&self, words: &[&str]) -> String {
        let mut said = String::new();
        while !words.iter().all(|word| said.contains(word)) {
            let line = self.lines.recv_timeout(PATIENCE);
            said.push_str(&line.unwrap_or_else(|e| panic!("not all of {words:?} ({e}):\n{said}")));
            said.push('\n');
        }
        said
    }

    fn left_behind(&self) -> usize {
        fs::read_dir(self.temporary.path()).unwrap().count()
    }

    fn ends_on(mut self, signal: &str) {
        crate::harness::run(Command::new("sh").args(["-c", &format!("kill -{signal} {}", self.child.id())]));
        let status = wait_for("the demo to end", || self.child.try_wait().unwrap());
        assert_eq!(status.code(), Some(0), "{status}");
        assert_eq!(self.left_behind(), 0, "its folder stayed behind");
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        // Fails only where it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
