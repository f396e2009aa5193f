//! A target that misbehaves at each stage of a session: nothing is lost, one message at the most comes twice where the outcome was
//! unknown, and mail by other routes goes on.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::harness::crm::EHLO;
use crate::harness::{Answer, Crm, Daemon, Setup, Stage, wait_for};

const STAGES: [Stage; 6] = [Stage::Connect, Stage::Ehlo, Stage::Mail, Stage::Rcpt, Stage::Data, Stage::Dot];

/// What a host may say that is no reply, or an odd one: how often the message may reach it, where that is at the dot.
const ODD: [(&str, &[u8]); 17] = [
    ("a code and nothing else", b"450\r\n"),
    ("a code, an enhanced one and nothing else", b"451 4.7.2\r\n"),
    ("two digits", b"25\r\n"),
    ("a code that is none", b"999 x\r\n"),
    ("a code in letters", b"2xx ok\r\n"),
    ("an empty line", b"\r\n"),
    ("NULs", b"450 \0\0\0\r\n"),
    ("octets beyond ASCII", b"450 d\xe9sol\xe9 \xff\r\n"),
    ("a bare LF", b"450 later\n"),
    ("bare CRs", b"450 la\rter\r\n"),
    ("no end of the line, and the end", b"450 lat"),
    ("mixed codes", b"450-no\r\n250 yes\r\n"),
    ("a dash and the end", b"450-\r\n"),
    ("a word for a terminal", b"450 \x1b[2J\x1b]0;x\x07\r\n"),
    ("a line of a megabyte", b"\x00MEGABYTE"),
    ("a hundred thousand lines", b"\x00LINES"),
    ("a reset", b""),
];

fn odd(said: &[u8]) -> Vec<u8> {
    match said {
        b"\x00MEGABYTE" => [b"450 ", "4".repeat(1 << 20).as_bytes(), b"\r\n"].concat(),
        b"\x00LINES" => b"450-4.2.0 x\r\n".repeat(100_000),
        said => said.to_vec(),
    }
}

#[test]
fn an_odd_reply_at_any_stage_loses_nothing_and_doubles_nothing() {
    thread::scope(|scope| {
        for stage in STAGES {
            scope.spawn(move || odd_replies(stage));
        }
    });
}

/// One daemon hears all of them, one after the other, each once.
fn odd_replies(at: Stage) {
    let crm = Crm::start();
    let daemon = Setup::new(crm.address()).retry("100ms").start();
    for (name, said) in ODD {
        let before = crm.transactions().len();
        let asked = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&asked);
        crm.follow(move |stage, _| {
            // The first time: these octets, and the end of the connection.
            let first = stage == at && counted.fetch_add(usize::from(stage == at), Ordering::SeqCst) == 0;
            first.then(|| Answer::Raw(odd(said)))
        });
        let id = daemon.send("aide@solarmora.com");
        let row = daemon.wait_for_leg(&format!("{id}.1"), "delivered");
        let seen = crm.transactions().len() - before;
        let most = if at == Stage::Dot { 2 } else { 1 };
        assert!((1..=most).contains(&seen), "{name} at {at:?}: the message came {seen} times: {row}");
        // A session that was kept is not used again for what has a new one: then the stage was never reached.
        let reached = asked.load(Ordering::SeqCst) > 0;
        assert!(reached || matches!(at, Stage::Connect | Stage::Ehlo), "{name} at {at:?} was not played");
    }
    let log = daemon.log();
    assert!(!log.contains('\u{1b}') && !log.contains('\0'), "a host writes no control characters into our log");
    assert!(log.lines().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()), "each line is one record");
}

#[test]
fn a_target_that_hangs_at_any_stage_holds_up_nobody_else() {
    thread::scope(|scope| {
        for stage in STAGES {
            scope.spawn(move || hang(stage));
        }
    });
}

fn hang(at: Stage) {
    let (crm, well) = (Crm::start(), Crm::start());
    let daemon = two_routes(&crm, &well);
    let (let_go, wait) = std::sync::mpsc::channel::<()>();
    let wait = Mutex::new(wait);
    crm.follow(move |stage, _| {
        if stage == at {
            // Ends when the test says so; one session after the other, and then none any more.
            let _ = wait.lock().unwrap().recv();
        }
        None
    });
    let stuck: Vec<String> = (0..20).map(|_| daemon.send("aide@solarmora.com")).collect();
    let mut slowest = Duration::ZERO;
    for _ in 0..20 {
        let began = Instant::now();
        let before = well.mails().len();
        daemon.send("archive@solarmora.com");
        well.wait_for_mails(before + 1);
        slowest = slowest.max(began.elapsed());
    }
    assert!(slowest < Duration::from_secs(10), "{at:?}: {slowest:?}");
    assert!(crm.mails().is_empty());
    assert_eq!(daemon.rows(&["queue", "list", "--route", "crm"]).len(), 20);
    drop(let_go);
    for id in &stuck {
        daemon.wait_for_leg(&format!("{id}.1"), "delivered");
    }
    assert_eq!(crm.mails().len(), 20, "{at:?}: each once");
}

fn two_routes(crm: &Crm, well: &Crm) -> Daemon {
    let rules = format!(
        "{}\narchive = {{ to = \"archive\" }}\n",
        crate::harness::daemon::RULES
            .replace("[target]\n", "[target]\narchive = { address = \"box@archive.example\", route = \"archive\" }\n")
    );
    let archive = format!("[route.archive]\nhosts = [\"{}\"]\ntls = \"off\"\n", well.address());
    Setup::new(crm.address()).rules(&rules).more(&archive).start()
}

#[test]
fn a_refused_leg_neither_delays_nor_repeats_another_of_its_message() {
    let crm = Crm::start();
    for (said, state) in [("450 4.2.1 later", "queued"), ("550 5.1.1 who?", "held"), ("554 5.7.1 no", "quarantined")] {
        let daemon = Setup::new(crm.address()).start();
        let before = crm.mails().len();
        crm.follow(move |stage, line| {
            (stage == Stage::Rcpt && line.contains("case@")).then(|| Answer::Say(said.to_owned()))
        });
        // Three legs: two to the one target, one to the other.
        let id = daemon.send("factures@solarmora.com");
        let rows = wait_for("both legs to be tried", || {
            let rows = daemon.rows(&["trace", "--id", &id, "--reveal"]);
            rows.iter().all(|row| row["attempts"] == 1).then_some(rows)
        });
        let of = |target: &str| rows.iter().find(|row| row["target"] == target).unwrap()["state"].clone();
        assert_eq!((of("case@mon-crm.com"), of("ventes@mon-crm.com")), (state.into(), "delivered".into()));
        crm.take_all();
        daemon.cli(&["queue", "retry", "--route", "crm"]);
        if state != "quarantined" {
            daemon.wait_for_leg(&format!("{id}.1"), "delivered");
        }
        let mails = crm.mails().split_off(before);
        assert_eq!(mails.iter().filter(|mail| mail.recipients() == ["ventes@mon-crm.com"]).count(), 1);
    }
}

#[test]
fn what_a_host_offers_may_change_from_session_to_session() {
    let crm = Crm::start();
    let daemon = Setup::new(crm.address()).concurrency(1).retry("100ms").start();
    let keywords: String = (0..10_000).map(|n| format!("250-X-KEYWORD-{n} a b c\r\n")).collect();
    for (name, said) in [
        ("nothing", "250 crm.example".to_owned()),
        ("all", EHLO.to_owned()),
        ("no pipelining", "250-crm.example\r\n250-SIZE 1000000\r\n250 8BITMIME".to_owned()),
        (
            "a size that is none",
            "250-crm.example\r\n250-SIZE\r\n250-SIZE x\r\n250 SIZE 99999999999999999999".to_owned(),
        ),
        ("words that nobody knows", "250-crm.example\r\n250-=\r\n250-PIPELINING extra\r\n250 \u{e9}".to_owned()),
    ] {
        let said = said.clone();
        // Each message in a session of its own.
        crm.follow(move |stage, _| match stage {
            Stage::Ehlo => Some(Answer::Say(said.clone())),
            Stage::Quit => Some(Answer::Hangup),
            _ => None,
        });
        crm.end_sessions();
        let id = daemon.send("aide@solarmora.com");
        let row = daemon.wait_for_leg(&format!("{id}.1"), "delivered");
        assert!(row["attempts"].as_u64().is_some_and(|n| n <= 2), "{name}: {row}");
    }
    // What would fill our memory is no greeting: the host is left alone, and what waits is kept.
    let flood = format!("250-crm.example\r\n{keywords}250 SIZE 1000000");
    crm.follow(move |stage, _| (stage == Stage::Ehlo).then(|| Answer::Say(flood.clone())));
    crm.end_sessions();
    let id = daemon.send("aide@solarmora.com");
    wait_for("the flood to be heard", || {
        let row = daemon.rows(&["trace", "--id", &id]).remove(0);
        (row["attempts"] != 0).then_some(())
    });
    crm.take_all();
    daemon.cli(&["queue", "retry", "--route", "crm"]).succeeds();
    daemon.wait_for_leg(&format!("{id}.1"), "delivered");
}

#[test]
fn a_yes_and_a_reset_is_a_yes() {
    let crm = Crm::start();
    let daemon = Setup::new(crm.address()).retry("100ms").start();
    crm.follow(|stage, _| (stage == Stage::Dot).then(|| Answer::Raw(b"250 2.0.0 taken\r\n".to_vec())));
    for _ in 0..3 {
        let id = daemon.send("aide@solarmora.com");
        daemon.wait_for_leg(&format!("{id}.1"), "delivered");
    }
    assert_eq!(crm.transactions().len(), 3);
}

#[test]
fn a_reply_that_comes_octet_by_octet_is_a_reply() {
    let crm = Crm::start();
    let daemon = Setup::new(crm.address()).start();
    crm.follow(|stage, _| (stage == Stage::Rcpt).then(|| Answer::Drip("250 2.1.5 ok".to_owned())));
    let id = daemon.send("aide@solarmora.com");
    daemon.wait_for_leg(&format!("{id}.1"), "delivered");
    assert_eq!(crm.mails().len(), 1);
}
