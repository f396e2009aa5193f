//! DKIM between others and us: what dkimpy and opendkim sign passes here and still passes behind us, and what we sign passes
//! there. `pointsman dns` prints the records that they are given.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use serde_json::Value;

use crate::harness::dkim::{
    DkimKey, dkimpy_seal, dkimpy_sign, dkimpy_verifies, has_dkimpy, opendkim_sign, opendkim_verifies, zone_line,
};
use crate::harness::dns::Dns;
use crate::harness::{Answer, Client, Crm, Daemon, Setup, Site, Stage, has, results, wait_for};

/// Folded, with white space that relaxed canonicalization swallows and simple does not, and an empty line at its end.
const MESSAGE: &[u8] =
    b"From: Claire <claire@a.example>\r\nTo: aide@solarmora.com\r\nSubject: panne  de\r\n\tcourant\r\n\
    Date: Sat, 21 Nov 2026 20:00:00 +0000\r\nMessage-ID: <1@a.example>\r\nMIME-Version: 1.0\r\n\
    Content-Type: text/plain; charset=us-ascii\r\n\r\nAu  secours. \r\n.point\r\n\r\n";

/// The message with another first letter in its body.
fn broken(message: &[u8]) -> Vec<u8> {
    let text = String::from_utf8(message.to_vec()).unwrap();
    assert!(text.contains("Au  secours."));
    text.replace("Au  secours.", "Eu  secours.").into_bytes()
}

#[test]
fn what_dkimpy_and_opendkim_sign_passes_here_and_with_both_of_them_behind_us() {
    let test = "what_dkimpy_and_opendkim_sign_passes_here_and_with_both_of_them_behind_us";
    if !has_dkimpy(test) || !has(test, "opendkim") || !has(test, "opendkim-genkey") {
        return;
    }
    let (rsa, ed25519) = (DkimKey::rsa("rsa", "a.example"), DkimKey::ed25519("ed", "a.example"));
    let zone = rsa.zone() + &ed25519.zone();
    let (dns, crm) = (Dns::start(&zone), Crm::start());
    let daemon = Setup::new(crm.address()).more(&format!("{}\n[auth]\n", dns.config())).start();
    let mut client = Client::connect(daemon.smtp);
    let mut signed: Vec<(String, Vec<u8>, bool)> = Vec::new();
    for way in ["relaxed/relaxed", "relaxed/simple", "simple/relaxed", "simple/simple"] {
        signed.push((format!("dkimpy rsa {way}"), dkimpy_sign(&rsa, way, "rsa-sha256", MESSAGE), true));
        // opendkim in Debian knows no ed25519.
        signed.push((format!("dkimpy ed25519 {way}"), dkimpy_sign(&ed25519, way, "ed25519-sha256", MESSAGE), false));
        signed.push((format!("opendkim rsa {way}"), opendkim_sign(&rsa, way, MESSAGE), true));
    }
    for (n, (what, message, is_rsa)) in signed.iter().enumerate() {
        for (pass, message) in [(true, message.clone()), (false, broken(message))] {
            client.deliver("claire@a.example", &["aide@solarmora.com"], &message).queued_as();
            let mail = crm.wait_for_mails(n * 2 + 1 + usize::from(!pass)).pop().unwrap().bytes;
            let word = if pass { "dkim=pass" } else { "dkim=fail" };
            assert!(results(&mail).contains(word), "{what}: no {word} in {}", results(&mail));
            // At the CRM, with all that we put before it.
            assert_eq!(dkimpy_verifies(&zone, &mail), pass, "{what}: dkimpy behind us");
            if *is_rsa {
                assert_eq!(opendkim_verifies(&zone, &mail), pass, "{what}: opendkim behind us");
            }
        }
    }
}

#[test]
fn an_arc_set_that_dkimpy_sealed_passes_here() {
    let test = "an_arc_set_that_dkimpy_sealed_passes_here";
    if !has_dkimpy(test) || !has(test, "opendkim-genkey") {
        return;
    }
    let (author, sealer) = (DkimKey::rsa("s", "a.example"), DkimKey::rsa("seal", "list.example"));
    let (dns, crm) = (Dns::start(&(author.zone() + &sealer.zone())), Crm::start());
    let daemon = Setup::new(crm.address()).more(&format!("{}\n[auth]\n", dns.config())).start();
    let mut client = Client::connect(daemon.smtp);
    let signed = dkimpy_sign(&author, "relaxed/relaxed", "rsa-sha256", MESSAGE);
    let found = b"Authentication-Results: list.example; dkim=pass header.d=a.example\r\n".to_vec();
    let once = dkimpy_seal(&sealer, "list.example", &[found.clone(), signed].concat());
    let found_again = b"Authentication-Results: list.example; arc=pass; dkim=pass header.d=a.example\r\n".to_vec();
    let twice = dkimpy_seal(&sealer, "list.example", &[found_again, once.clone()].concat());
    for (n, (message, word)) in
        [(once.clone(), "arc=pass"), (twice, "arc=pass"), (broken(&once), "arc=fail")].into_iter().enumerate()
    {
        client.deliver("list@list.example", &["aide@solarmora.com"], &message).queued_as();
        let mail = crm.wait_for_mails(n + 1).pop().unwrap();
        assert!(results(&mail.bytes).contains(word), "no {word} in {}", results(&mail.bytes));
    }
}

const SPF: &str = "good.example TXT v=spf1 ip4:127.0.0.1 -all\n";

/// A site whose CRM refuses what is no notification, and the name server that vouches for the sender.
fn refusing(more: &str) -> (Site, Crm, Dns) {
    let (dns, crm) = (Dns::start(SPF), Crm::start());
    crm.follow(|stage, line| {
        let refuses = stage == Stage::Rcpt && line.contains("case@mon-crm.com");
        refuses.then(|| Answer::Say("550 5.6.0 no such form".into()))
    });
    let site = Setup::new(crm.address()).more(&format!("{}\n[auth]\n{more}", dns.config())).site();
    (site, crm, dns)
}

/// The notification that a refused message of a proven sender causes.
fn notification(daemon: &Daemon, crm: &Crm) -> Vec<u8> {
    let before = crm.mails().len();
    let message = b"From: a@good.example\r\nSubject: s\r\n\r\nHello.\r\n";
    let id = Client::connect(daemon.smtp).deliver("a@good.example", &["aide@solarmora.com"], message).queued_as();
    assert_eq!(daemon.wait_for_leg(&format!("{id}.1"), "bounced")["dsn"], "sent");
    let mail = crm.wait_for_mails(before + 1).pop().unwrap();
    assert_eq!((mail.sender(), mail.recipients()), ("", vec!["a@good.example"]));
    mail.bytes
}

/// The TXT records that `pointsman dns` prints, as lines of a zone.
fn published(site: &Site) -> String {
    let rows = site.rows(&["dns"]);
    let texts = rows.iter().filter(|row| row["type"] == "TXT");
    texts.map(|row| zone_line(row["name"].as_str().unwrap(), row["value"].as_str().unwrap())).collect()
}

#[test]
fn dkimpy_and_opendkim_verify_what_we_sign_by_the_record_that_dns_prints() {
    let test = "dkimpy_and_opendkim_verify_what_we_sign_by_the_record_that_dns_prints";
    if !has_dkimpy(test) || !has(test, "opendkim") {
        return;
    }
    let (site, crm, _dns) = refusing("");
    // Before the first start there is no key, and nobody but the daemon makes it.
    site.cli(&["dns"]).exits(1).says(&["pointsman._domainkey.solarmora.com.", "no DKIM key yet"]);
    let daemon = site.start();
    let mode = fs::metadata(daemon.data().join("dkim.key")).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o600, "{mode:o}");
    let zone = published(&daemon);
    let mail = notification(&daemon, &crm);
    let text = String::from_utf8(mail.clone()).unwrap();
    assert!(text.starts_with("DKIM-Signature: v=1; a=rsa-sha256; s=pointsman; d=solarmora.com;"), "{text}");
    assert!(text.contains("\r\nFrom: Mail delivery <postmaster@solarmora.com>\r\n"), "{text}");
    let altered = [
        text.replace("could not be delivered", "could now be delivered"),
        text.replacen("\r\nFrom: ", "\r\nFrom: <boss@solarmora.com>\r\nFrom: ", 1),
        text.replacen("\r\nMIME-Version", "\r\nContent-Type: text/html\r\nMIME-Version", 1),
    ];
    assert!(dkimpy_verifies(&zone, &mail) && opendkim_verifies(&zone, &mail), "{text}");
    for text in altered {
        assert!(!dkimpy_verifies(&zone, text.as_bytes()), "dkimpy takes: {text}");
        // opendkim refuses two From fields without a look at the signature.
        assert!(
            text.matches("\r\nFrom: ").count() > 1 || !opendkim_verifies(&zone, text.as_bytes()),
            "opendkim: {text}"
        );
    }
    // The next start has the same key.
    let (site, _) = {
        daemon.signal("TERM");
        daemon.wait()
    };
    let daemon = site.start();
    assert_eq!(published(&daemon), zone);
    assert!(dkimpy_verifies(&zone, &notification(&daemon, &crm)));
    assert_eq!(daemon.log().matches("dkim-key-made").count(), 1);
}

#[test]
fn a_key_and_a_selector_of_the_administrator_s_sign() {
    let test = "a_key_and_a_selector_of_the_administrator_s_sign";
    if !has_dkimpy(test) || !has(test, "opendkim-genkey") {
        return;
    }
    let key = DkimKey::rsa("mail.2026", "solarmora.com");
    let section = format!("[dkim]\nselector = \"mail.2026\"\nkey = \"{}\"\n", key.path().display());
    let (site, crm, _dns) = refusing(&section);
    let daemon = site.start();
    assert!(!daemon.data().join("dkim.key").exists());
    assert!(dkimpy_verifies(&key.zone(), &notification(&daemon, &crm)));
}

#[test]
fn without_a_key_that_can_be_used_notifications_go_out_unsigned_and_it_is_said() {
    let (site, crm, _dns) = refusing("");
    fs::create_dir(site.data()).unwrap();
    let file = site.data().join("dkim.key");
    fs::write(&file, "-----BEGIN NOTHING-----\n").unwrap();
    site.cli(&["check"]).exits(1).says(&["no DKIM key", "go out unsigned"]);
    let daemon = site.start();
    wait_for("the word in the log", || daemon.log().contains("dkim-key-unusable").then_some(()));
    let text = String::from_utf8(notification(&daemon, &crm)).unwrap();
    assert!(text.starts_with("From: Mail delivery"), "{text}");
    assert_eq!(fs::read(&file).unwrap(), b"-----BEGIN NOTHING-----\n");
}

#[test]
fn signing_can_be_switched_off() {
    let (site, crm, _dns) = refusing("[dkim]\nsign = \"off\"\n");
    let daemon = site.start();
    assert!(!daemon.data().join("dkim.key").exists());
    let text = String::from_utf8(notification(&daemon, &crm)).unwrap();
    assert!(text.starts_with("From: Mail delivery"), "{text}");
    assert!(!published(&daemon).contains("_domainkey"));
}

#[test]
fn dns_prints_a_zone_that_names_what_is_not_known() {
    let crm = Crm::start();
    let more = "[srs]\ndomain = \"srs.solarmora.com\"\nsecrets = [\"tops3cret\"]\n[route.other]\nhelo = \"out.solarmora.com\"\n\
                source = \"192.0.2.25\"\n";
    let daemon = Setup::new(crm.address()).more(more).start();
    let said = daemon.cli(&["dns"]).succeeds().out;
    for line in [
        "solarmora.com.\tIN\tMX\t10 mx.solarmora.com.",
        "srs.solarmora.com.\tIN\tMX\t10 mx.solarmora.com.",
        "srs.solarmora.com.\tIN\tTXT\t\"v=spf1 a:mx.solarmora.com a:out.solarmora.com ip4:192.0.2.25 -all\"",
        "mx.solarmora.com.\tIN\tTXT\t\"v=spf1 a ip4:192.0.2.25 -all\"",
        "; mx.solarmora.com.\tIN\tA\t…",
        "; _dmarc.solarmora.com.\tIN\tTXT\t\"v=DMARC1; p=none; rua=mailto:postmaster@solarmora.com\"",
        "pointsman._domainkey.solarmora.com.\tIN\tTXT\t(",
    ] {
        assert!(said.lines().any(|printed| printed == line), "no `{line}` in:\n{said}");
    }
    let rows = daemon.rows(&["dns"]);
    let key = rows.iter().find(|row| row["name"] == "pointsman._domainkey.solarmora.com").unwrap();
    let strings: Vec<&str> = key["strings"].as_array().unwrap().iter().map(|part| part.as_str().unwrap()).collect();
    assert_eq!(strings.concat(), key["value"].as_str().unwrap());
    assert!(strings.len() == 2 && strings[0].len() == 255, "{strings:?}");
    for string in &strings {
        assert!(said.contains(&format!("\"{string}\"")), "the zone has not the string {string}");
    }
    let address = rows.iter().find(|row| row["type"] == "A").unwrap();
    assert_eq!((&address["value"], &address["required"]), (&Value::Null, &true.into()));
}
