//! The ground gives way: a full disk, one that turns read-only, a sync that fails, files that are damaged.
//!
//! What holds in all of it: no 250 for what is not on disk, no 5xx for what is our trouble, what was acknowledged
//! arrives, and the daemon finds back by itself within [`RECOVERY`] once the ground is firm again.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::harness::client::Reply;
use crate::harness::daemon::RULES;
use crate::harness::disk::Disk;
use crate::harness::{Client, Crm, Daemon, Setup, Stage, has, is_root, run, wait_for};

/// From firm ground to the next 250.
const RECOVERY: Duration = Duration::from_secs(30);

const MIB: u64 = 1 << 20;

#[test]
fn below_min_free_new_mail_waits_and_deliveries_go_on() {
    let Some(disk) = Disk::with_room("below_min_free_new_mail_waits_and_deliveries_go_on", 64) else { return };
    let crm = Crm::start();
    let daemon = Setup::new(crm.address()).data(&disk.mount.join("data")).min_free("16MiB").start();
    crm.answer(Stage::Rcpt, "450 4.2.1 later");
    let queued = daemon.send("aide@solarmora.com");
    wait_for("a deferred leg", || {
        daemon.rows(&["queue", "list", "--id", &queued]).pop().filter(|row| row["attempts"] == 1)
    });

    disk.fill(8 * MIB);
    let mail = || Client::connect(daemon.smtp).say("MAIL FROM:<client@example.org>");
    let refusal = wait_for("a refusal at MAIL", || Some(mail()).filter(|reply| reply.code != 250));
    assert_eq!(refusal.code, 452, "{refusal:?}");
    assert!(refusal.text.starts_with("4.3.1"), "{refusal:?}");
    let (code, why) = daemon.http("/readyz");
    assert!(code == 503 && why.contains("space"), "{code} {why}");
    assert_eq!(daemon.http("/healthz").0, 200);

    crm.take_all();
    daemon.cli(&["queue", "retry", "--id", &queued]).succeeds();
    daemon.wait_for_leg(&format!("{queued}.1"), "delivered");
    assert_eq!(mail().code, 452);

    // A start under these conditions is one, too, and is no moment in which mail gets in.
    crm.answer(Stage::Rcpt, "450 4.2.1 later");
    let daemon = daemon.kill9().start();
    assert_eq!(Client::connect(daemon.smtp).say("MAIL FROM:<client@example.org>").code, 452);

    disk.make_room();
    recovers(&daemon);
    assert_eq!(daemon.http("/readyz").0, 200);
}

#[test]
fn a_full_disk_gets_no_yes_no_5xx_and_loses_nothing() {
    let Some(disk) = Disk::with_room("a_full_disk_gets_no_yes_no_5xx_and_loses_nothing", 64) else { return };
    let crm = Crm::start();
    let daemon = Setup::new(crm.address()).rules(&held()).data(&disk.mount.join("data")).min_free("1KiB").start();
    let mut taken = vec![daemon.send("aide@solarmora.com")];
    disk.fill(4 * MIB);
    // In the data base, and in files of their own.
    let mut refusals = 0;
    for octets in [60 << 10, 1 << 20, 3 << 10].into_iter().cycle().take(400) {
        let reply = attempt(&daemon, &message(octets));
        assert!(reply.code == 250 || (400..500).contains(&reply.code), "{reply:?}");
        match reply.code {
            250 => taken.push(reply.queued_as()),
            _ => refusals += 1,
        }
        if refusals > 12 {
            break;
        }
    }
    assert!(refusals > 12, "the disk did not get full");
    assert_eq!(daemon.http("/healthz").0, 200);
    daemon.rows(&["queue", "list"]);

    // Also for one that is started on it, with just the room that its own start takes: an epoch and its addresses.
    let site = daemon.kill9();
    disk.make_room();
    disk.fill(512 << 10);
    let daemon = site.start();
    disk.make_room();
    taken.push(recovers(&daemon));
    daemon.cli(&["queue", "release", "--state", "held"]).succeeds();
    for id in &taken {
        daemon.wait_for_leg(&format!("{id}.1"), "delivered");
    }
    assert!(crm.mails().len() >= taken.len());
}

#[test]
fn a_delivery_whose_outcome_finds_no_room_is_not_repeated() {
    let Some(disk) = Disk::with_room("a_delivery_whose_outcome_finds_no_room_is_not_repeated", 64) else { return };
    let crm = Crm::start();
    let gate = crm.gate();
    let daemon = Setup::new(crm.address()).data(&disk.mount.join("data")).min_free("1KiB").retry("1s").start();
    let id = daemon.send("aide@solarmora.com");
    gate.reached();
    disk.fill(0);
    // Whatever room the log has left is used up first.
    let mut refused = 0;
    for _ in 0..400 {
        refused += usize::from(attempt(&daemon, &message(60 << 10)).code != 250);
        if refused > 4 {
            break;
        }
    }
    assert!(refused > 4, "the disk did not get full");
    drop(gate);
    crm.wait_for_transactions(1);
    // The CRM has it; the ledger finds room for that after all, or says that it does not.
    let written = wait_for("the outcome to be written, or to find no room", || {
        let delivered = daemon.rows(&["trace", "--id", &id])[0]["state"] == "delivered";
        (delivered || daemon.log().contains("\"store-failed\"")).then_some(delivered)
    });
    println!("the outcome was {}", if written { "written" } else { "kept in memory until there was room" });
    disk.make_room();
    recovers(&daemon);
    daemon.wait_for_leg(&format!("{id}.1"), "delivered");
    let own = crm.mails().iter().filter(|mail| contains(&mail.bytes, &format!(" id {id}"))).count();
    assert_eq!(own, 1);
}

#[test]
fn a_disk_that_turns_read_only_gets_no_yes_and_keeps_what_it_has() {
    let test = "a_disk_that_turns_read_only_gets_no_yes_and_keeps_what_it_has";
    let Some(disk) = Disk::with_room(test, 64) else { return };
    let crm = Crm::start();
    let daemon = Setup::new(crm.address()).rules(&held()).data(&disk.mount.join("data")).start();
    let mut taken: Vec<String> = (0..5).map(|_| daemon.send("aide@solarmora.com")).collect();
    let large = attempt(&daemon, &message(1 << 20));
    taken.push(large.queued_as());

    if !disk.turn_read_only(test) {
        return;
    }
    for octets in [3 << 10, 1 << 20, 3 << 10] {
        let reply = attempt(&daemon, &message(octets));
        assert!((400..500).contains(&reply.code), "{octets} octets: {reply:?}");
    }
    wait_for("readiness to go", || (daemon.http("/readyz").0 == 503).then_some(()));
    assert_eq!(daemon.http("/healthz").0, 200);

    let site = daemon.kill9();
    disk.mount_again();
    let daemon = site.start();
    daemon.cli(&["queue", "release", "--state", "held"]).succeeds();
    for id in &taken {
        daemon.wait_for_leg(&format!("{id}.1"), "delivered");
    }
}

#[test]
fn a_sync_that_fails_is_never_retried_into_a_yes() {
    let test = "a_sync_that_fails_is_never_retried_into_a_yes";
    if !is_root(test) || !has(test, "strace") {
        return;
    }
    let crm = Crm::start();
    let daemon = Setup::new(crm.address()).rules(&held()).start();
    let mut taken = vec![daemon.send("aide@solarmora.com")];
    for fault in ["fsync,fdatasync:error=EIO", "pwrite64:error=EIO", "pwrite64:error=ENOSPC"] {
        let broken = Injection::attach(&daemon, fault);
        for octets in [3 << 10, 1 << 20, 3 << 10] {
            let reply = attempt(&daemon, &message(octets));
            assert!((400..500).contains(&reply.code), "{fault}, {octets} octets: {reply:?}");
        }
        broken.detach();
        taken.push(recovers(&daemon));
    }
    daemon.cli(&["queue", "release", "--state", "held"]).succeeds();
    for id in &taken {
        daemon.wait_for_leg(&format!("{id}.1"), "delivered");
    }
    // What was refused may have reached the disk nevertheless; then it is delivered, and the sender's second try is a
    // duplicate. Nothing is there in part.
    for mail in crm.mails() {
        assert!(mail.bytes.ends_with(b"the end\r\n") || mail.bytes.ends_with(b"Au secours.\r\n"));
    }
}

#[test]
fn without_descriptors_nothing_is_lost_and_nothing_is_final() {
    let crm = Crm::start();
    let daemon = Setup::new(crm.address()).retry("1s").start();
    let mut taken = vec![daemon.send("aide@solarmora.com")];
    crm.wait_for_mails(1);
    // Every one that is left is taken by a client that only stands there; more wait to be accepted.
    const LEFT: usize = 30;
    let limit = fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap().count() + LEFT;
    run(Command::new("prlimit").args([&format!("--pid={}", daemon.pid()), &format!("--nofile={limit}:{limit}")]));
    let mut early: Vec<Client> = (0..LEFT / 2).map(|_| Client::connect(daemon.smtp)).collect();
    let idle: Vec<Client> = (0..LEFT * 2).map(|_| Client::try_raw(daemon.smtp).unwrap()).collect();
    wait_for("no descriptor to be left", || daemon.log().contains("\"accept-failed\"").then_some(()));
    for (n, client) in early.iter_mut().enumerate() {
        // In the data base, and in a file that cannot be opened.
        let octets = if n % 2 == 0 { 3 << 10 } else { 1 << 20 };
        let reply = deliver(client, &message(octets));
        assert!(reply.code == 250 || (400..500).contains(&reply.code), "{octets} octets: {reply:?}");
        if reply.code == 250 {
            taken.push(reply.queued_as());
        }
    }
    assert!(taken.len() > 2, "nothing at all was taken");
    drop((early, idle));
    taken.push(recovers(&daemon));
    for id in &taken {
        daemon.wait_for_leg(&format!("{id}.1"), "delivered");
    }
    assert_eq!(crm.mails().len(), taken.len());
}

#[test]
fn a_damaged_body_holds_its_own_leg_and_no_other() {
    let crm = Crm::start();
    let daemon = Setup::new(crm.address()).rules(&held()).start();
    type Damage = fn(&Path);
    let damages: [(&str, Damage); 4] = [
        ("changed in one octet", |file| {
            let mut bytes = fs::read(file).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            fs::write(file, bytes).unwrap();
        }),
        ("cut short", |file| fs::OpenOptions::new().write(true).open(file).unwrap().set_len(1000).unwrap()),
        ("gone", |file| fs::remove_file(file).unwrap()),
        ("emptied", |file| fs::write(file, "").unwrap()),
    ];
    let mut damaged = Vec::new();
    for (what, damage) in damages {
        let before = body_files(daemon.data());
        let id = attempt(&daemon, &message(1 << 20)).queued_as();
        let new: Vec<PathBuf> = body_files(daemon.data()).into_iter().filter(|file| !before.contains(file)).collect();
        assert_eq!(new.len(), 1, "{new:?}");
        damage(&new[0]);
        damaged.push((what, id));
    }
    let whole = attempt(&daemon, &message(1 << 20)).queued_as();
    daemon.cli(&["queue", "release", "--state", "held"]).succeeds();
    daemon.wait_for_leg(&format!("{whole}.1"), "delivered");
    for (what, id) in damaged {
        let row = wait_for(&format!("the leg whose body is {what} to be held"), || {
            daemon.rows(&["queue", "list", "--id", &id]).pop().filter(|row| row["reason"] == "damaged")
        });
        assert_eq!(row["state"], "held", "{what}");
        daemon.cli(&["queue", "show", "--id", &id]).succeeds();
    }
    assert_eq!(crm.mails().len(), 1, "no part of a damaged message is a message");
}

#[test]
fn a_damaged_data_base_is_refused_with_advice() {
    let crm = Crm::start();
    let daemon = Setup::new(crm.address()).rules(&held()).start();
    for _ in 0..30 {
        attempt(&daemon, &message(30 << 10)).queued_as();
    }
    daemon.signal("TERM");
    let (mut site, status) = daemon.wait();
    assert_eq!(status.code(), Some(0));
    let file = site.data().join("queue.db");
    // What stands in the log, too, would be read from there.
    let db = rusqlite::Connection::open(&file).unwrap();
    db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
    drop(db);
    let good = fs::read(&file).unwrap();
    type Damage = fn(&mut Vec<u8>);
    let damages: [(&str, Damage); 4] = [
        ("another header", |bytes| bytes[..16].fill(b'x')),
        ("no data base at all", |bytes| *bytes = b"Dear administrator,".repeat(1000)),
        ("cut in half", |bytes| bytes.truncate(bytes.len() / 2)),
        ("pages of noise", |bytes| bytes[4096..16 * 4096].fill(0xa5)),
    ];
    for (what, damage) in damages {
        let mut bytes = good.clone();
        damage(&mut bytes);
        fs::write(&file, &bytes).unwrap();
        let before = site.log().len();
        let Err((refused, status)) = site.try_start() else { panic!("{what}: the daemon serves on it") };
        site = refused;
        let said = site.log()[before..].to_owned();
        assert_eq!(status.code(), Some(1), "{what}: {said}");
        for word in ["queue.db", "damaged", "backup"] {
            assert!(said.contains(word), "{what}: no `{word}` in: {said}");
        }
        assert_eq!(fs::read(&file).unwrap(), bytes, "{what}: what is left was changed");
    }
    fs::write(&file, &good).unwrap();
    assert_eq!(site.start().rows(&["queue", "list"]).len(), 30);
}

/// The usual rules, with everything held first: then nothing but new mail touches the disk.
fn held() -> String {
    let rule = "[[rule]]\nname = \"wait\"\nhold = \"until the disk is well\"\ncontinue = true\n\n[[rule]]";
    RULES.replacen("[[rule]]", rule, 1)
}

fn message(octets: usize) -> Vec<u8> {
    let line = format!("{}\r\n", "x".repeat(76));
    format!("From: client@example.org\r\nSubject: large\r\n\r\n{}the end\r\n", line.repeat(octets / line.len())).into()
}

/// Hands in a message over a new session; the first refusal, or the answer to the final dot.
fn attempt(daemon: &Daemon, message: &[u8]) -> Reply {
    deliver(&mut Client::connect(daemon.smtp), message)
}

fn deliver(client: &mut Client, message: &[u8]) -> Reply {
    for command in ["MAIL FROM:<client@example.org>", "RCPT TO:<aide@solarmora.com>", "DATA"] {
        let reply = client.say(command);
        if reply.code >= 400 {
            return reply;
        }
    }
    client.send(&crate::harness::client::stuffed(message)).expect("the daemon reads on, whatever its disk does");
    client.reply()
}

/// Waits for the next 250, and fails where it takes longer than [`RECOVERY`] or a 5xx comes before it.
fn recovers(daemon: &Daemon) -> String {
    let since = Instant::now();
    let id = wait_for("a 250 again", || {
        let reply = attempt(daemon, &message(3 << 10));
        assert!(reply.code < 500, "{reply:?}");
        (reply.code == 250).then(|| reply.queued_as())
    });
    assert!(since.elapsed() < RECOVERY, "{:?} to recover", since.elapsed());
    id
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

fn body_files(data: &Path) -> Vec<PathBuf> {
    let shards = fs::read_dir(data.join("bodies")).unwrap().map(|shard| shard.unwrap().path());
    shards.flat_map(|shard| fs::read_dir(shard).unwrap().map(|file| file.unwrap().path())).collect()
}

/// System calls of a running daemon that fail, until it is detached.
struct Injection {
    strace: Child,
}

impl Injection {
    /// `fault` as strace's `inject` takes it. Comes back once every thread is under its eyes.
    fn attach(daemon: &Daemon, fault: &str) -> Injection {
        let calls = fault.split(':').next().expect("there is a first part");
        let mut strace = Command::new("strace")
            .args(["-f", "-p", &daemon.pid().to_string()])
            .args(["-e", &format!("trace={calls}"), "-e", &format!("inject={fault}")])
            .stderr(Stdio::piped())
            .spawn()
            .expect("strace can be started");
        let mut output = BufReader::new(strace.stderr.take().expect("it is piped"));
        let mut line = String::new();
        output.read_line(&mut line).expect("strace says what it does");
        assert!(line.contains("attached"), "{line}");
        // The rest is read, so that strace is never stopped by a full pipe.
        std::thread::spawn(move || output.read_to_end(&mut Vec::new()));
        Injection { strace }
    }

    fn detach(mut self) {
        // SIGINT lets strace detach; a kill would take the daemon's stopped threads with it.
        run(Command::new("sh").args(["-c", &format!("kill -INT {}", self.strace.id())]));
        self.strace.wait().expect("strace ends");
    }
}
