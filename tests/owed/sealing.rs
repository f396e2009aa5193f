//! ARC seals: what dkimpy and we ourselves make of them behind us.

use crate::harness::dkim::{DkimKey, dkimpy_arc, dkimpy_seal, dkimpy_sign, has_dkimpy, zone_line};
use crate::harness::dns::Dns;
use crate::harness::{Client, Crm, Daemon, Setup, Site, results};

const MESSAGE: &[u8] =
    b"From: Claire <claire@a.example>\r\nTo: aide@solarmora.com\r\nSubject: panne  de\r\n\tcourant\r\n\
    Date: Sat, 21 Nov 2026 20:00:00 +0000\r\nMessage-ID: <1@a.example>\r\nX-Spam-Flag: NO\r\nMIME-Version: 1.0\r\n\
    Content-Type: text/plain; charset=us-ascii\r\n\r\nAu  secours. \r\n\t\r\n.point\r\n\r\n";

/// The TXT records that `pointsman dns` prints, as lines of a zone.
fn published(site: &Site) -> String {
    let rows = site.rows(&["dns"]);
    let texts = rows.iter().filter(|row| row["type"] == "TXT");
    texts.map(|row| zone_line(row["name"].as_str().unwrap(), row["value"].as_str().unwrap())).collect()
}

/// A daemon that seals what goes to `crm`, with a name server that knows `zone`.
fn sealing(crm: &Crm, zone: &str) -> (Daemon, Dns) {
    let dns = Dns::start(zone);
    let site = Setup::new(crm.address()).more(&format!("{}\n[auth]\n", dns.config())).site();
    site.reconfigure("concurrency = 5", "concurrency = 5\narc-seal = true");
    (site.start(), dns)
}

fn send(daemon: &Daemon, crm: &Crm, message: &[u8]) -> Vec<u8> {
    let before = crm.mails().len();
    Client::connect(daemon.smtp).deliver("claire@a.example", &["aide@solarmora.com"], message).queued_as();
    crm.wait_for_mails(before + 1).pop().unwrap().bytes
}

#[test]
fn arc_seal_per_route_is_verified_by_dkimpy_and_off_by_default() {
    let test = "arc_seal_per_route_is_verified_by_dkimpy_and_off_by_default";
    if !has_dkimpy(test) {
        return;
    }
    let author = DkimKey::rsa("s", "a.example");
    let crm = Crm::start();
    let (daemon, _dns) = sealing(&crm, &author.zone());
    let zone = author.zone() + &published(&daemon);
    let signed = dkimpy_sign(&author, "relaxed/simple", "rsa-sha256", MESSAGE);
    let large = [MESSAGE, "Une longue ligne.  \r\n".repeat(20_000).as_bytes()].concat();
    // Whole, large, without an end, without a body, without a Message-ID.
    let bare = String::from_utf8(MESSAGE.to_vec()).unwrap().replace("Message-ID: <1@a.example>\r\n", "");
    for message in [&signed[..], &large, b"From: a@a.example\r\n\r\nx", b"From: a@a.example\r\n\r\n", bare.as_bytes()] {
        let mail = send(&daemon, &crm, message);
        let text = String::from_utf8_lossy(&mail).into_owned();
        assert_eq!(dkimpy_arc(&zone, &mail), "pass", "{text:.3000}");
        let order: Vec<usize> = [
            "X-Pointsman-Loop:",
            "ARC-Seal: i=1; a=rsa-sha256; cv=none; d=solarmora.com;",
            "ARC-Message-Signature: i=1;",
            "ARC-Authentication-Results: i=1; mx.solarmora.com;",
            "Authentication-Results: mx.solarmora.com;",
            "Received:",
        ]
        .iter()
        .map(|start| text.find(&format!("\n{start}")).unwrap_or_else(|| panic!("no {start} in {text:.3000}")))
        .collect();
        assert!(order.is_sorted(), "{text:.3000}");
    }
    // What is altered behind us is seen.
    let mail = send(&daemon, &crm, &signed);
    let altered = String::from_utf8(mail).unwrap().replace("Au  secours", "Eu  secours");
    assert_eq!(dkimpy_arc(&zone, altered.as_bytes()), "fail");
    // Another route does not.
    daemon.send_bytes("postmaster@solarmora.com", MESSAGE);
    let usual = Setup::new(crm.address()).start();
    let before = crm.mails().len();
    usual.send_bytes("aide@solarmora.com", MESSAGE);
    assert!(!String::from_utf8_lossy(&crm.wait_for_mails(before + 1)[before].bytes).contains("ARC-"));
}

#[test]
fn an_arc_chain_of_two_passes_and_one_that_is_broken_is_not_vouched_for() {
    let test = "an_arc_chain_of_two_passes_and_one_that_is_broken_is_not_vouched_for";
    if !has_dkimpy(test) {
        return;
    }
    let (author, list) = (DkimKey::rsa("s", "a.example"), DkimKey::rsa("seal", "list.example"));
    let crm = Crm::start();
    let foreign = author.zone() + &list.zone();
    let (daemon, _dns) = sealing(&crm, &foreign);
    let zone = foreign + &published(&daemon);
    let signed = dkimpy_sign(&author, "relaxed/relaxed", "rsa-sha256", MESSAGE);
    let found = b"Authentication-Results: list.example; dkim=pass header.d=a.example\r\n".to_vec();
    let once = dkimpy_seal(&list, "list.example", &[found, signed].concat());
    let mail = send(&daemon, &crm, &once);
    let text = String::from_utf8_lossy(&mail).into_owned();
    assert!(text.contains("\r\nARC-Seal: i=2; a=rsa-sha256; cv=pass;"), "{text}");
    assert_eq!(dkimpy_arc(&zone, &mail), "pass", "{text}");
    // We verify our own as well: a daemon behind us, which knows our key.
    let (behind, _dns) = sealing(&crm, &zone);
    let twice = send(&behind, &crm, &mail);
    assert!(results(&twice).contains("arc=pass"), "{}", results(&twice));
    // A chain that breaks is said to have failed; who comes next adds nothing to it.
    let broken = String::from_utf8(once).unwrap().replace("Au  secours", "Eu  secours");
    let failed = send(&daemon, &crm, broken.as_bytes());
    assert!(String::from_utf8_lossy(&failed).contains("\r\nARC-Seal: i=2; a=rsa-sha256; cv=fail;"));
    assert_eq!(dkimpy_arc(&zone, &failed), "over");
    let over = send(&behind, &crm, &failed);
    assert!(!String::from_utf8_lossy(&over).contains("ARC-Seal: i=3"), "{}", String::from_utf8_lossy(&over));
}

#[test]
fn a_seal_that_cannot_be_made_is_named_by_check() {
    let crm = Crm::start();
    let site = Setup::new(crm.address()).site();
    site.reconfigure("concurrency = 5", "concurrency = 5\narc-seal = true");
    site.cli(&["check"]).exits(1).says(&["arc-seal", "needs `[auth]` with `arc`"]);
}
