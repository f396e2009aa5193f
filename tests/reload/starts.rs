//! A start with files that are not to be taken: broken, set aside, or half written when the power went.

use std::fs;
use std::io::Write;
use std::process::Command;
use std::thread;
use std::time::Duration;

use super::{history, stale, status, target, to_ventes};
use crate::harness::daemon::RULES;
use crate::harness::{Certificates, Client, Crm, Daemon, Setup, program, run, wait_for};

#[test]
fn broken_files_do_not_stop_a_start_once_something_was_accepted() {
    let crm = Crm::start();
    let secret = RULES.replace("\"case@mon-crm.com\"", "\"file:salesforce.address\"");
    let site = Setup::new(crm.address()).rules(&secret).site();
    let address = site.path().join("rules/salesforce.address");
    let config = site.config();
    // At the first start nothing was accepted yet.
    let (site, status_code) = site.try_start().err().expect("the address is missing");
    assert_eq!(status_code.code(), Some(1));
    assert!(site.log().contains("salesforce.address"), "{}", site.log());
    assert!(history(&site).is_empty());

    fs::write(&address, "secret@mon-crm.com\n").unwrap();
    let mut site = site.start().kill9();
    let sound = fs::read_to_string(&config).unwrap();
    let spoilt: [(&dyn Fn(), &str); 6] = [
        (&|| fs::remove_file(&address).unwrap(), "salesforce.address"),
        (&|| fs::write(&config, sound.replace("[queue]", "[queue]\ncolour = 1")).unwrap(), "colour"),
        (&|| fs::write(&config, sound.replace("[[listener]]", "[[listener]\n")).unwrap(), "pointsman.toml"),
        (&|| fs::write(&config, sound.replace("rules/*.toml", "elsewhere/x.toml")).unwrap(), "elsewhere"),
        (&|| fs::write(&config, sound.replace("hostname =", "hostname")).unwrap(), "pointsman.toml"),
        (&|| fs::write(&config, sound.replace("hostname", "\0")).unwrap(), "pointsman.toml"),
    ];
    for (spoil, word) in spoilt {
        spoil();
        let daemon = site.start();
        assert_eq!(target(&daemon, &crm), "secret@mon-crm.com");
        assert!(stale(&daemon));
        daemon.cli(&["status"]).exits(0).says(&["NOT WHAT", "refused at the start", word]);
        daemon.wait_for_log("configuration-stale");
        daemon.cli(&["check"]).exits(1).says(&["a start would use the configuration"]);
        assert_eq!(history(&daemon).len(), 1);
        // A reload says what is wrong, and changes nothing.
        daemon.cli(&["reload"]).exits(1);
        assert_eq!(target(&daemon, &crm), "secret@mon-crm.com");
        site = daemon.kill9();
        fs::write(&config, &sound).unwrap();
        fs::write(&address, "secret@mon-crm.com\n").unwrap();
    }
    let daemon = site.start();
    assert!(!stale(&daemon));
    assert_eq!(history(&daemon).len(), 1);
}

#[test]
fn a_start_before_the_confirmation_goes_back() {
    let (daemon, crm) = Daemon::with_crm();
    daemon.write_rules(&to_ventes());
    daemon.cli(&["reload", "--confirm", "1h"]).exits(0);
    assert_eq!(target(&daemon, &crm), "ventes@mon-crm.com");
    let daemon = daemon.kill9().start();
    assert_eq!(target(&daemon, &crm), "case@mon-crm.com");
    assert!(stale(&daemon));
    assert_eq!(history(&daemon)[0]["how"], "not confirmed");
    // And once more: it is settled.
    let daemon = daemon.kill9().start();
    assert_eq!(target(&daemon, &crm), "case@mon-crm.com");
    assert_eq!(history(&daemon).len(), 3);
}

#[test]
fn a_certificate_that_broke_costs_tls_and_no_mail() {
    let crm = Crm::start();
    let certificates = Certificates::new("mx.solarmora.com");
    let daemon = Setup::new(crm.address()).listener_tls("starttls", &certificates).start();
    let offers = |daemon: &Daemon| Client::connect(daemon.smtp).say("EHLO c.example").text.contains("STARTTLS");
    assert!(offers(&daemon));
    let key = fs::read(certificates.key()).unwrap();
    fs::write(certificates.key(), "no key\n").unwrap();
    daemon.cli(&["reload"]).exits(1).says(&["holds no private key"]);
    assert!(offers(&daemon), "the old one stays");

    let daemon = daemon.kill9().start();
    assert!(!offers(&daemon));
    assert_eq!(target(&daemon, &crm), "case@mon-crm.com");
    assert!(stale(&daemon));
    assert!(daemon.log().contains("certificate-missing"), "{}", daemon.log());
    fs::write(certificates.key(), key).unwrap();
    daemon.signal("HUP");
    wait_for("STARTTLS", || offers(&daemon).then_some(()));
    wait_for("agreement", || (!stale(&daemon)).then_some(()));
}

#[test]
fn a_kill_at_any_moment_of_a_reload_leaves_what_can_start() {
    let crm = Crm::start();
    let mut site = Setup::new(crm.address()).site();
    for round in 0..12u64 {
        let daemon = site.start();
        let found = target(&daemon, &crm);
        assert!(["case@mon-crm.com", "ventes@mon-crm.com"].contains(&found.as_str()), "{found}");
        let next = if found.starts_with("case") { to_ventes() } else { RULES.to_owned() };
        daemon.write_rules(&next);
        let mut asked = std::process::Command::new(program())
            .args(["reload", "--config"])
            .arg(daemon.config())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        // Not a wait for something: the moment of the kill is what is varied.
        thread::sleep(Duration::from_millis(round * 3));
        site = daemon.kill9();
        asked.wait().unwrap();
        // Whatever was being written, the files may be broken as well.
        if round % 3 == 2 {
            site.write_rules("[domain");
            let daemon = site.start();
            assert!(stale(&daemon));
            assert!(target(&daemon, &crm).ends_with("@mon-crm.com"));
            site = daemon.kill9();
            site.write_rules(&next);
        }
    }
    let daemon = site.start();
    let folder = daemon.data().join("accepted");
    assert!(fs::read_dir(folder).unwrap().all(|file| !file.unwrap().path().ends_with(".part")));
    assert!(!status(&daemon)["hash"].as_str().unwrap().is_empty());
}

/// Whoever renews a certificate says it at any time, and the default of that signal is death.
#[test]
fn a_hang_up_while_the_daemon_reads_its_files_does_not_end_it() {
    let crm = Crm::start();
    let secret = RULES.replace("\"case@mon-crm.com\"", "\"file:salesforce.address\"");
    let site = Setup::new(crm.address()).rules(&secret).site();
    let (address, config) = (site.path().join("rules/salesforce.address"), site.config());
    run(Command::new("mkfifo").arg(&address));
    let hang_up = thread::spawn(move || {
        // It opens when the daemon reads it.
        let mut pipe = fs::OpenOptions::new().write(true).open(&address).unwrap();
        run(Command::new("pkill").args(["-HUP", "-f"]).arg(format!("serve --config {}", config.display())));
        fs::remove_file(&address).unwrap();
        fs::write(&address, "secret@mon-crm.com\n").unwrap();
        pipe.write_all(b"secret@mon-crm.com\n").unwrap();
    });
    let daemon = site.start();
    hang_up.join().unwrap();
    assert_eq!(target(&daemon, &crm), "secret@mon-crm.com");
}
