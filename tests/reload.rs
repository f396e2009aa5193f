//! Another configuration for the running daemon: taken whole or not at all, while mail goes on; and what a start does
//! with files that are not to be taken.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::daemon::RULES;
use crate::harness::{Certificates, Client, Crm, Daemon, Setup, Site, program, run, wait_for};

mod lanes;
mod starts;

/// The metric's value, 0 where it is not there.
fn metric(daemon: &Daemon, name: &str) -> f64 {
    let text = daemon.http("/metrics").1;
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("pointsman_{name} ")));
    line.map_or(0.0, |value| value.parse().expect("a number"))
}

fn stale(daemon: &Daemon) -> bool {
    metric(daemon, "config_stale") == 1.0
}

/// What `reload --json` says; it must end with `code`.
fn reload(site: &Site, code: i32) -> Value {
    serde_json::from_str(&site.cli(&["reload", "--json"]).exits(code).out).expect("one object")
}

fn history(site: &Site) -> Vec<Value> {
    site.rows(&["rules", "history"])
}

fn status(site: &Site) -> Value {
    site.rows(&["status"]).remove(0)["configuration"].take()
}

/// Where the next mail for aide@ goes.
fn target(daemon: &Daemon, crm: &Crm) -> String {
    let before = crm.mails().len();
    let id = daemon.send("aide@solarmora.com");
    let target = crm.wait_for_mails(before + 1)[before].recipients()[0].to_owned();
    // Else a kill would have it delivered once more.
    daemon.wait_for_leg(&format!("{id}.1"), "delivered");
    target
}

fn to_ventes() -> String {
    RULES.replace("to    = \"salesforce\"", "to    = \"ventes\"")
}

#[test]
fn a_reload_takes_the_files_whole_and_says_what_changed() {
    let (daemon, crm) = Daemon::with_crm();
    assert_eq!(target(&daemon, &crm), "case@mon-crm.com");
    let rules = to_ventes().replace("factures = ", "presse   = { to = \"ventes\" }\nbugs = ");
    daemon.write_rules(&rules);
    let before = status(&daemon);
    daemon.cli(&["reload"]).exits(0).says(&[
        "retargeted  aide to the CRM: salesforce -> ventes",
        "added  alias presse@solarmora.com",
        "removed  alias factures@solarmora.com",
        &before["hash"].as_str().unwrap()[..12],
    ]);
    assert_eq!(target(&daemon, &crm), "ventes@mon-crm.com");
    let now = status(&daemon);
    assert_ne!((&now["hash"], &now["rule_set"]), (&before["hash"], &before["rule_set"]));
    assert_eq!(metric(&daemon, "reloads_total{result=\"taken\"}"), 1.0);

    // Once more changes nothing, and is no further acceptance.
    assert_eq!(reload(&daemon, 0)["result"], "unchanged");
    let accepted = history(&daemon);
    let told: Vec<(&str, bool)> =
        accepted.iter().map(|entry| (entry["how"].as_str().unwrap(), entry["current"] == true)).collect();
    assert_eq!(told, [("reload", true), ("start", false)]);
    assert!(accepted[0]["by"].as_str().unwrap().contains("uid ") && accepted[0]["pid"].as_i64().unwrap() > 1);
    assert_eq!(accepted[0]["hash"], now["hash"]);
    // Nobody else can read what may hold intake addresses and keys.
    let folder = daemon.data().join("accepted");
    assert_eq!(fs::metadata(&folder).unwrap().permissions().mode() & 0o777, 0o700);
    for file in fs::read_dir(folder).unwrap() {
        assert_eq!(file.unwrap().metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }
    daemon.signal("TERM");
    let (site, _) = daemon.wait();
    assert_eq!(history(&site).len(), 2, "it is told without a daemon, too");
    site.cli(&["reload"]).exits(3);
    site.cli(&["rules", "rollback", "abc"]).exits(3);
}

#[test]
fn files_that_are_wrong_change_nothing_and_are_drawn() {
    let (daemon, crm) = Daemon::with_crm();
    let rules = daemon.path().join("rules/solarmora.toml");
    let huge = || fs::File::create(&rules).unwrap().set_len((128 << 20) + 1).unwrap();
    let cyclic = || {
        fs::remove_file(&rules).unwrap();
        std::os::unix::fs::symlink("solarmora.toml", &rules).unwrap();
    };
    let failing = format!(
        "{RULES}\n[[test]]\nname = 't'\ngiven = {{ recipient = 'aide@solarmora.com' }}\nexpect = {{ legs = ['ventes'] }}\n"
    );
    let cases: [(&dyn Fn(), &[&str]); 8] = [
        (&|| daemon.write_rules("[domain"), &["error: ", "solarmora.toml:1:", "^"]),
        (&|| daemon.write_rules(&RULES.replace("role =", "rolle =")), &["did you mean `role`?"]),
        (&|| daemon.write_rules(&failing), &["the rule test `t` failed"]),
        (&|| fs::write(&rules, [0xff, 0xfe, 0]).unwrap(), &["cannot read", "UTF-8"]),
        (&huge, &["the file is over"]),
        (&cyclic, &["cannot read", "symbolic links"]),
        (&|| fs::remove_file(&rules).unwrap(), &["no rules file matches", "every recipient would be refused"]),
        (&|| daemon.reconfigure("[queue]", "[queue]\nurl = 'postgres'"), &["postgres", "sqlite"]),
    ];
    let hash = status(&daemon)["hash"].clone();
    for (n, (spoil, words)) in cases.into_iter().enumerate() {
        spoil();
        daemon.cli(&["reload"]).exits(1).says(words).says(&["nothing was changed", "stays in force"]);
        assert_eq!(target(&daemon, &crm), "case@mon-crm.com");
        assert!(stale(&daemon) && status(&daemon)["hash"] == hash);
        assert_eq!(metric(&daemon, "reloads_total{result=\"refused\"}"), (n + 1) as f64);
        // The command line goes on finding the daemon.
        daemon.cli(&["status"]).exits(0).says(&["NOT WHAT", "were refused"]);
        if n < 7 {
            let _ = fs::remove_file(&rules);
            daemon.write_rules(RULES);
        }
    }
    assert_eq!(reload(&daemon, 1)["findings"][0]["severity"], "error");
    daemon.reconfigure("[queue]\nurl = 'postgres'", "[queue]");
    assert_eq!(reload(&daemon, 0)["result"], "unchanged");
    assert!(!stale(&daemon));
}

#[test]
fn the_command_line_finds_the_daemon_while_its_file_is_no_toml() {
    let (daemon, _crm) = Daemon::with_crm();
    daemon.reconfigure("[[listener]]", "[[listener]\n");
    daemon.cli(&["reload"]).exits(1).says(&["pointsman.toml:"]);
    daemon.cli(&["queue", "list"]).exits(0);
    daemon.cli(&["status"]).exits(0).says(&["NOT WHAT"]);
}

#[test]
fn a_session_keeps_the_rules_that_it_began_with() {
    let (daemon, crm) = Daemon::with_crm();
    let mut before = Client::connect(daemon.smtp);
    before.say("MAIL FROM:<client@example.org>");
    daemon.write_rules(&to_ventes());
    daemon.reconfigure("mx.solarmora.com", "mx2.solarmora.com");
    reload(&daemon, 0);
    assert_eq!(before.say("RCPT TO:<aide@solarmora.com>").code, 250);
    assert_eq!(before.say("DATA").code, 354);
    before.send(b"Subject: x\r\n\r\nx\r\n.\r\n").unwrap();
    assert_eq!(before.reply().code, 250);
    let text = String::from_utf8(crm.wait_for_mails(1)[0].bytes.clone()).unwrap();
    assert_eq!(crm.mails()[0].recipients(), ["case@mon-crm.com"]);
    assert!(text.contains("by mx.solarmora.com"), "{text}");
    assert_eq!(before.deliver("client@example.org", &["aide@solarmora.com"], b"x").code, 250);
    assert_eq!(crm.wait_for_mails(2)[1].recipients(), ["case@mon-crm.com"]);

    let mut banner = Client::try_raw(daemon.smtp).unwrap();
    assert!(banner.reply().text.starts_with("mx2.solarmora.com "));
    assert_eq!(target(&daemon, &crm), "ventes@mon-crm.com");
}

#[test]
fn limits_checks_and_the_log_change_live_and_addresses_wait_for_a_restart() {
    let (daemon, _crm) = Daemon::with_crm();
    daemon.reconfigure("[queue]", "[limits]\nmessage-size = \"100KiB\"\nrecipients = 1\n[auth]\n[queue]");
    daemon.reconfigure("format = \"json\"", "format = \"text\"");
    daemon.reconfigure("min-free = \"1MiB\"", "min-free = \"1000000GiB\"");
    daemon.cli(&["reload"]).exits(0).says(&["changed  limits, auth, queue, log"]);
    let mut client = Client::connect(daemon.smtp);
    assert!(client.say("EHLO c.example").text.contains("SIZE 102400"));
    assert_eq!(client.say("MAIL FROM:<client@example.org>").code, 452, "there is less free");
    assert!(daemon.http("/readyz").0 == 503);
    let last = wait_for("a line of text", || {
        let log = daemon.log();
        let line = log.lines().last()?.to_owned();
        (!line.starts_with('{')).then_some(line)
    });
    assert!(last.contains("INFO") || last.contains("WARN"), "{last}");

    daemon.reconfigure("1000000GiB", "1MiB");
    daemon.reconfigure("127.0.0.1:0\"\ntls ", "127.0.0.2:0\"\ntls ");
    daemon.cli(&["reload"]).exits(0).says(&["note: `listener`", "waits for a restart"]);
    daemon.cli(&["status"]).exits(0).says(&["wait for a restart: listener"]);
    let mut client = Client::connect(daemon.smtp);
    client.say("MAIL FROM:<client@example.org>");
    assert_eq!(client.say("RCPT TO:<aide@solarmora.com>").code, 250);
    assert_eq!(client.say("RCPT TO:<ventes@solarmora.com>").code, 452, "one recipient at a time");
    daemon.signal("TERM");
    let daemon = daemon.wait().0.start();
    assert_eq!(daemon.smtp.ip().to_string(), "127.0.0.2");
    assert_eq!(status(&daemon)["waits_for_restart"], serde_json::json!([]));
}

#[test]
fn what_is_not_confirmed_goes_back_by_itself_and_stays_back() {
    let (daemon, crm) = Daemon::with_crm();
    daemon.cli(&["rules", "confirm"]).exits(1).says(&["nothing waits"]);
    daemon.write_rules(&to_ventes());
    daemon.cli(&["reload", "--confirm", "1h"]).exits(0).says(&["pointsman rules confirm", "comes back"]);
    daemon.cli(&["status"]).exits(0).says(&["goes back at"]);
    daemon.cli(&["rules", "confirm"]).exits(0).says(&["is confirmed and stays"]);
    assert!(status(&daemon)["confirm_by"].is_null());

    daemon.write_rules(RULES);
    daemon.cli(&["reload", "--confirm", "1s"]).exits(0);
    wait_for("the rollback", || (metric(&daemon, "reloads_total{result=\"rolled-back\"}") == 1.0).then_some(()));
    assert_eq!(target(&daemon, &crm), "ventes@mon-crm.com");
    assert!(stale(&daemon));
    assert_eq!(history(&daemon)[0]["how"], "not confirmed");

    // Neither a signal nor a start takes the files that were not confirmed; an operator does.
    daemon.signal("HUP");
    wait_for("the daemon to say so", || daemon.log().contains("the files are set aside").then_some(()));
    assert_eq!(target(&daemon, &crm), "ventes@mon-crm.com");
    let daemon = daemon.kill9().start();
    assert!(stale(&daemon));
    assert_eq!(target(&daemon, &crm), "ventes@mon-crm.com");
    daemon.cli(&["check"]).says(&["set aside", "pointsman reload"]);
    daemon.cli(&["reload"]).exits(0);
    assert!(!stale(&daemon));
    assert_eq!(target(&daemon, &crm), "case@mon-crm.com");
}

#[test]
fn a_rollback_survives_a_restart_until_the_files_change() {
    let (daemon, crm) = Daemon::with_crm();
    let first = status(&daemon)["hash"].as_str().unwrap().to_owned();
    let rule_set = status(&daemon)["rule_set"].as_str().unwrap().to_owned();
    daemon.write_rules(&to_ventes());
    reload(&daemon, 0);
    daemon.cli(&["rules", "rollback", "zz"]).exits(1).says(&["no accepted set begins with `zz`"]);
    daemon.cli(&["rules", "rollback", &rule_set[..8]]).exits(0).says(&[
        "retargeted",
        "ventes -> salesforce",
        "until they change",
    ]);
    assert_eq!(target(&daemon, &crm), "case@mon-crm.com");
    assert!(stale(&daemon));
    assert_eq!(history(&daemon)[0]["how"], "rollback");

    let daemon = daemon.kill9().start();
    assert_eq!(status(&daemon)["hash"], first.as_str());
    assert_eq!(target(&daemon, &crm), "case@mon-crm.com");
    assert!(stale(&daemon));
    daemon.cli(&["status"]).exits(0).says(&["rolled back by"]);
    let site = daemon.kill9();
    site.write_rules(&(to_ventes() + "\n# mended\n"));
    let daemon = site.start();
    assert!(!stale(&daemon));
    assert_eq!(target(&daemon, &crm), "ventes@mon-crm.com");
    // Back to what the files say is no disagreement.
    let newest = status(&daemon)["hash"].as_str().unwrap().to_owned();
    daemon.cli(&["rules", "rollback", &first]).exits(0);
    assert!(stale(&daemon));
    daemon.cli(&["rules", "rollback", &newest]).exits(0);
    assert!(!stale(&daemon));
    // The book of commands tells who did it, in whatever way it ended.
    let book: Vec<String> = daemon
        .rows(&["audit"])
        .iter()
        .map(|row| format!("{}: {}", row["action"].as_str().unwrap(), row["outcome"].as_str().unwrap()))
        .collect();
    let told = |of: &str, outcome: &str, hash: &str| format!("{of}: {outcome}: {}", &hash[..12]);
    assert_eq!(book[..2], [told("rules rollback", "taken", &newest), told("rules rollback", "taken", &first)]);
    assert_eq!(book[2], told("rules rollback", "taken", &first), "before the daemon was killed");
    assert!(book[3].starts_with("rules rollback: refused: ") && book[4].starts_with("reload: taken: "), "{book:?}");
    assert_eq!(book.len(), 5);
}

#[test]
fn a_thousand_hang_ups_and_reloads_side_by_side_cost_no_mail() {
    let (daemon, crm) = Daemon::with_crm();
    let stop = AtomicBool::new(false);
    let sent = thread::scope(|scope| {
        let senders: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    let (mut client, mut sent) = (Client::connect(daemon.smtp), 0);
                    while !stop.load(Ordering::Relaxed) {
                        let reply =
                            client.deliver("client@example.org", &["aide@solarmora.com"], b"Subject: x\r\n\r\nx\r\n");
                        assert_eq!(reply.code, 250, "{reply:?}");
                        sent += 1;
                        if sent % 20 == 0 {
                            client = Client::connect(daemon.smtp);
                        }
                    }
                    sent
                })
            })
            .collect();
        let reloads: Vec<_> = (0..4).map(|_| scope.spawn(|| daemon.cli(&["reload"]).exits(0))).collect();
        let hang_up = format!("for i in $(seq 1000); do kill -HUP {}; done", daemon.pid());
        run(Command::new("sh").args(["-c", &hang_up]));
        for n in 0..10 {
            daemon.write_rules(&if n % 2 == 0 { to_ventes() } else { RULES.to_owned() });
            daemon.cli(&["reload"]).exits(0);
        }
        reloads.into_iter().for_each(|reload| drop(reload.join().unwrap()));
        stop.store(true, Ordering::Relaxed);
        senders.into_iter().map(|sender| sender.join().unwrap()).sum::<usize>()
    });
    assert!(sent > 0);
    assert_eq!(crm.wait_for_mails(sent).len(), sent);
    assert!(history(&daemon).len() <= 50);
}

#[test]
fn ten_thousand_rules_take_effect_within_a_second() {
    let (daemon, crm) = Daemon::with_crm();
    let aliases: String = (0..10_000).map(|n| format!("a{n} = {{ to = \"ventes\" }}\n")).collect();
    daemon.write_rules(&format!("{RULES}{aliases}"));
    let began = Instant::now();
    daemon.cli(&["reload"]).exits(0).says(&["added  … and 9980 more"]);
    let took = began.elapsed();
    println!("10,000 rules in force after {took:?}");
    daemon.send("a9999@solarmora.com");
    assert_eq!(crm.wait_for_mails(1)[0].recipients(), ["ventes@mon-crm.com"]);
    // A program that was not optimised, on a machine that does other things, has more time.
    let limit = if std::env::var_os("POINTSMAN_BIN").is_some() { 1 } else { 20 };
    assert!(took < Duration::from_secs(limit), "{took:?}");
}

#[test]
fn the_hook_of_certbot_brings_a_renewed_key_to_the_daemon() {
    let lineage = Certificates::new("mx.solarmora.com");
    let live = tempfile::tempdir().unwrap();
    let place = tempfile::tempdir().unwrap();
    let hook = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/certbot-hook");
    let renew = |pid: u32| {
        // As certbot has them: for root alone.
        fs::copy(lineage.certificate(), live.path().join("fullchain.pem")).unwrap();
        fs::copy(lineage.key(), live.path().join("privkey.pem")).unwrap();
        fs::set_permissions(live.path().join("privkey.pem"), fs::Permissions::from_mode(0o600)).unwrap();
        let group = run(Command::new("id").arg("-gn"));
        let mut command = Command::new(hook);
        command.env("RENEWED_LINEAGE", live.path()).env("RENEWED_DOMAINS", "mx.solarmora.com www.solarmora.com");
        command.env("POINTSMAN_TLS", place.path()).env("POINTSMAN_GROUP", group.trim());
        command.env("POINTSMAN_HUP", if pid == 0 { "true".to_owned() } else { format!("kill -HUP {pid}") });
        run(&mut command)
    };
    renew(0);
    let mode = |name: &str| fs::metadata(place.path().join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("fullchain.pem"), mode("privkey.pem")), (0o644, 0o640));
    let (certificate, key) = (place.path().join("fullchain.pem"), place.path().join("privkey.pem"));
    let tls = format!("[tls]\ncertificate = '{}'\nkey = '{}'\n", certificate.display(), key.display());
    let daemon = Setup::new(Crm::start().address()).more(&tls).start();
    let expires = "tls_certificate_expiry_timestamp_seconds{listener=\"mx\"}";
    let daemon = {
        daemon.reconfigure("tls     = \"off\"", "tls     = \"starttls\"");
        reload(&daemon, 0);
        daemon
    };
    assert_eq!(metric(&daemon, expires), 3_981_398_400.0);
    lineage.issue("mx.solarmora.com", 2095);
    renew(daemon.pid());
    wait_for("the renewed certificate", || (metric(&daemon, expires) == 3_949_776_000.0).then_some(()));
    // Another lineage is none of ours.
    let mut other = Command::new(hook);
    other.env("RENEWED_LINEAGE", "/nonexistent").env("RENEWED_DOMAINS", "www.example.net");
    other.env("POINTSMAN_TLS", place.path()).env("POINTSMAN_DOMAIN", "mx.solarmora.com").env("POINTSMAN_HUP", "false");
    run(&mut other);
    assert!(program().exists());
}
