//! Backups of a queue at work, and what a restored one does.

use std::fs;
use std::path::Path;

use crate::harness::{Client, Crm, Daemon, Setup, Stage, wait_for};

fn large() -> Vec<u8> {
    [&b"Subject: large\r\nMessage-ID: <large@example.org>\r\n\r\n"[..], &b"0123456789abcdef\r\n".repeat(10_000)]
        .concat()
}

fn path(dir: &Path) -> &str {
    dir.to_str().unwrap()
}

#[test]
fn a_backup_of_a_queue_at_work_is_whole_and_goes_on_where_it_was_made() {
    let crm = Crm::start();
    let gate = crm.gate();
    let daemon = Setup::new(crm.address()).concurrency(1).start();
    let first = daemon.send_bytes("aide@solarmora.com", &large());
    gate.reached();
    let second = daemon.send("ventes@solarmora.com");
    let third = daemon.send_bytes("aide@solarmora.com", &large());
    let copy = daemon.path().join("copy");
    daemon.cli(&["backup", path(&copy)]).exits(0).says(&["3 messages with 3 legs, 3 of them open, and 2 body files"]);
    daemon.cli(&["backup", path(&copy)]).exits(1).says(&["is not empty"]);
    assert!(fs::read_dir(copy.join("configuration")).unwrap().count() >= 2, "the configuration is in it");
    daemon.cli(&["restore", path(&copy)]).exits(1).says(&["the daemon runs"]);
    daemon.cli(&["restore", path(&copy), "--verify"]).exits(0).says(&["sound: 3 messages"]);
    // What is accepted and delivered afterwards is not in it.
    let late = daemon.send("ventes@solarmora.com");
    drop(gate);
    crm.take_all();
    for id in [&first, &second, &third, &late] {
        daemon.wait_for_leg(&format!("{id}.1"), "delivered");
    }
    daemon.signal("TERM");
    let (site, _) = daemon.wait();
    site.cli(&["restore", path(&copy)]).exits(1).says(&["is not empty"]);
    fs::rename(site.data(), site.path().join("old")).unwrap();
    let said = site.cli(&["restore", path(&copy)]).exits(0);
    said.says(&["restored: 3 messages", "arrive twice", "mail that came after the backup is not in it"]);
    let daemon = site.start();
    for id in [&first, &second, &third] {
        daemon.wait_for_leg(&format!("{id}.1"), "delivered");
    }
    assert_eq!(crm.wait_for_mails(7).len(), 7, "those of the backup a second time, as was said");
    assert!(daemon.rows(&["trace", "--id", &late]).is_empty());
    daemon.cli(&["doctor"]).says(&["ok       ledger"]);
}

#[test]
fn a_restored_queue_may_wait_for_an_operator() {
    let (daemon, crm) = Daemon::with_crm();
    crm.answer(Stage::Rcpt, "450 4.2.1 later");
    let id = daemon.send("aide@solarmora.com");
    wait_for("a deferred leg", || daemon.rows(&["queue", "list"]).pop().filter(|row| row["attempts"] == 1));
    // A copy can also be made of a queue that nobody serves.
    let site = daemon.kill9();
    let copy = site.path().join("copy");
    site.cli(&["backup", path(&copy), "--json"]).exits(0).says(&["\"open\":1"]);
    fs::rename(site.data(), site.path().join("old")).unwrap();
    site.cli(&["restore", path(&copy), "--hold"]).exits(0).says(&["1 legs are held"]);
    crm.take_all();
    let daemon = site.start();
    let leg = daemon.rows(&["queue", "list"]).pop().expect("the leg");
    assert_eq!((&leg["state"], &leg["due"]), (&"held".into(), &serde_json::Value::Null));
    daemon.cli(&["queue", "release", "--id", &id]).exits(0);
    daemon.wait_for_leg(&format!("{id}.1"), "delivered");
}

#[test]
fn a_damaged_backup_is_refused() {
    let (daemon, crm) = Daemon::with_crm();
    crm.answer(Stage::Rcpt, "450 4.2.1 later");
    daemon.send_bytes("aide@solarmora.com", &large());
    let copy = daemon.path().join("copy");
    daemon.cli(&["backup", path(&copy)]).exits(0);
    let site = daemon.kill9();
    fs::rename(site.data(), site.path().join("old")).unwrap();
    let shard = fs::read_dir(copy.join("data/bodies")).unwrap().next().unwrap().unwrap().path();
    let body = fs::read_dir(shard).unwrap().next().unwrap().unwrap().path();
    let whole = fs::read(&body).unwrap();
    let mut bent = whole.clone();
    bent[1000] ^= 1;
    for (what, octets) in [("bent", &bent[..]), ("cut", &whole[..100])] {
        fs::write(&body, octets).unwrap();
        site.cli(&["restore", path(&copy)]).exits(1).says(&["cannot be restored", "is not what its row says"]);
        assert!(!site.data().exists(), "{what}: nothing was put in place");
    }
    fs::write(&body, whole).unwrap();
    let queue = copy.join("data/queue.db");
    let torn = fs::read(&queue).unwrap();
    fs::write(&queue, &torn[..torn.len() / 2]).unwrap();
    site.cli(&["restore", path(&copy)]).exits(1);
    assert!(!site.data().exists());
    site.cli(&["restore", path(&site.path().join("nothing"))]).exits(1).says(&["there is no queue"]);
}

/// Bodies that end while they are being copied are the hard part: the copy must not miss one that its rows name.
#[test]
fn backups_amid_deliveries_are_sound() {
    let (daemon, _crm) = Daemon::with_crm();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let load = || {
            let mut client = Client::connect(daemon.smtp);
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                client.deliver("client@example.org", &["aide@solarmora.com"], &large());
            }
        };
        scope.spawn(load);
        scope.spawn(load);
        for n in 0..5 {
            let copy = daemon.path().join(format!("copy{n}"));
            daemon.cli(&["backup", path(&copy)]).exits(0).says(&["all read and sound"]);
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    wait_for("an empty queue", || daemon.rows(&["queue", "list"]).is_empty().then_some(()));
    let left = || {
        let shards = fs::read_dir(daemon.data().join("bodies")).unwrap();
        shards.map(|shard| fs::read_dir(shard.unwrap().path()).unwrap().count()).sum::<usize>()
    };
    wait_for("the bodies that were kept for a copy to be unlinked", || (left() == 0).then_some(()));
}
