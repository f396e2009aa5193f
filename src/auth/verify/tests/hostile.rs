//! The rows of hostile.md's table of attacks on sender authentication, each a test with its required outcome.

use super::signing::{Key, sign_rsa};
use super::*;
use crate::address::Domain;
use crate::auth::results;
use crate::clock::{Clock, SystemClock};

/// As long ago as the signatures of [`Key`] were made just now.
fn today() -> i64 {
    SystemClock::new().now().0
}

struct Letter<'a> {
    helo: &'a str,
    sender: &'a str,
    at: i64,
}

/// A message of the attacker: his domain passes SPF for the client, and he has a key.
const ATTACK: &str = "\
attack.com TXT v=spf1 ip4:192.0.2.1 -all
_dmarc.attack.com TXT v=DMARC1; p=reject
legitimate.com TXT v=spf1 ip4:203.0.113.1 -all
_dmarc.legitimate.com TXT v=DMARC1; p=reject
";

async fn check_as(letter: &Letter<'_>, more: &str, message: &[u8]) -> AuthReport {
    let zone: Arc<dyn Dns> = Arc::new(Zone::parse(&format!("{ATTACK}{more}")));
    let head = memchr::memmem::find(message, b"\r\n\r\n").map_or(message.len(), |at| at + 2);
    let subject = Subject {
        ip: "192.0.2.1".parse().unwrap(),
        helo: letter.helo,
        sender: &ReversePath::parse(letter.sender).unwrap(),
        hostname: "mx.solarmora.com",
        head,
        header: &Header::index(&message[..head]),
        message: message.to_vec().into(),
        now: Timestamp(letter.at),
    };
    Checker::new(zone).unwrap().check(&ALL, &subject).await
}

async fn attacked(sender: &str, more: &str, message: &[u8]) -> AuthReport {
    check_as(&Letter { helo: "attack.com", sender, at: today() }, more, message).await
}

/// The one signature's `result reason`.
fn only(report: &AuthReport) -> String {
    let all = dkim(report);
    assert_eq!(all.len(), 1, "{all:?}");
    all[0].clone()
}

const BODY: &str = "To: <victim@victim.com>\r\nSubject: hello\r\n\r\nHi, this is a test.\r\n";

/// A1 to A19 of Chen, Paxson and Jiang, "Composition Kills" (2020), as the tool `espoofer` sends them to a server.
#[tokio::test]
async fn aut_espoofer_a1_to_a19_none_passes_for_the_legitimate_domain() {
    let key = Key::new();
    let zone = format!(
        "selector._domainkey.legitimate.com'a.attack.com TXT {0}\nselector._domainkey.attack.com TXT {0}\n",
        key.record()
    );
    let plain = format!("From: <admin@legitimate.com>\r\n{BODY}");
    let signed =
        |domain: &str, selector: &str| format!("{}{plain}", key.sign(domain, selector, &["From"], plain.as_bytes()));
    let from = |field: &str| format!("{field}\r\n{BODY}");
    for (case, sender, message) in [
        ("A1 a subdomain that does not exist", "any@mailfrom.notexist.legitimate.com", plain.clone()),
        (
            "A3 NUL in the selector",
            "any@33.attack.com",
            signed("legitimate.com", "selector._domainkey.attack.com.\0.any"),
        ),
        ("A4 an apostrophe in d=", "any@attack.com", signed("legitimate.com'a.attack.com", "selector")),
        // The session drops the route.
        ("A7 a route in MAIL FROM", "'any@attack.com", plain.clone()),
        ("A8 two From", "any@attack.com", from("From: <first@attack.com>\r\nFrom: <admin@legitimate.com>")),
        ("A9 a space before From", "any@attack.com", from(" From: <first@attack.com>\r\nFrom: <admin@legitimate.com>")),
        (
            "A10 a space behind From",
            "any@attack.com",
            from("From: <first@attack.com>\r\nFrom : <admin@legitimate.com>"),
        ),
        ("A11 a folded name", "any@attack.com", from("From\r\n : <first@attack.com>\r\nFrom: <admin@legitimate.com>")),
        ("A14 two addresses", "any@attack.com", from("From: <first@attack.com>, <admin@legitimate.com>")),
        (
            "A15 an encoded address",
            "any@attack.com",
            from("From:=?utf-8?B?PGFkbWluQGxlZ2l0aW1hdGUuY29tPg==?=,<second@attack.com>"),
        ),
        ("A16 a route in From", "any@attack.com", from("From: <@attack.com,@any.com:admin@legitimate.com>")),
        ("A17 a quoted pair", "any@attack.com", from("From: <admin@legitimate.com>\\,<second@attack.com>")),
        ("A18 precedence", "any@attack.com", from("From: admin@legitimate.com,<second@attack.com>")),
        ("A19 text behind the address", "any@attack.com", from("From: <any@attack.com>admin@legitimate.com")),
    ] {
        let report = attacked(sender, &zone, message.as_bytes()).await;
        let dmarc = report.dmarc.as_ref().unwrap();
        assert_ne!(dmarc.result, Word::Pass, "{case}: {report:?}");
        let field = results::field(
            &report,
            "mx.solarmora.com",
            "192.0.2.1".parse().unwrap(),
            &ReversePath::parse(sender).unwrap(),
        );
        assert!(!field.contains("dmarc=pass"), "{case}: {field}");
        assert!(!field.contains("=legitimate.com'") && !field.contains('\0'), "{case}: {field}");
    }
    // A12 and A13 name the attacker in From, by a folded name, and the victim in Sender and Resent-From.
    for other in ["Sender", "Resent-From"] {
        let message = from(&format!("From\r\n : <first@attack.com>\r\n{other}: <admin@legitimate.com>"));
        let dmarc = attacked("any@attack.com", &zone, message.as_bytes()).await.dmarc.unwrap();
        assert!(dmarc.from_domain.as_deref().is_none_or(|from| from == "attack.com"), "{other}: {dmarc:?}");
    }
    // A2, A5 and A6: what is no address never becomes a sender.
    for sender in ["(any@legitimate.com", "any@legitimate.com(a.attack.com", "any@legitimate.com'@any.attack.com"] {
        assert!(ReversePath::parse(sender).is_err(), "{sender}");
    }
}

#[tokio::test]
async fn aut_from_of_every_odd_kind_is_no_dmarc_pass() {
    for from in [
        "",
        "From: u@attack.com\r\nFrom: u@attack.com\r\n",
        "From: u@attack.com, v@attack.com\r\n",
        "From: u@attack.com, v@legitimate.com\r\n",
        "From: Group: u@attack.com;\r\n",
        "From: =?utf-8?q?u=40attack=2Ecom?=\r\n",
        " From: u@attack.com\r\n",
        "X: y\r\n From: u@attack.com\r\n",
        "From : u@attack.com\r\nfrom\t: u@attack.com\r\n",
        "Resent-From: u@attack.com\r\n",
        "Sender: u@attack.com\r\n",
    ] {
        let message = format!("{from}{BODY}");
        let dmarc = attacked("u@attack.com", "", message.as_bytes()).await.dmarc.unwrap();
        assert_ne!(dmarc.result, Word::Pass, "{from:?}");
    }
    // The control: SPF is aligned where From is plain.
    let plain = format!("From: u@attack.com\r\n{BODY}");
    assert_eq!(attacked("u@attack.com", "", plain.as_bytes()).await.dmarc.unwrap().result, Word::Pass);
}

#[tokio::test]
async fn aut_dkim_a_length_that_leaves_room_is_no_pass() {
    let key = Key::new();
    let zone = format!("s1._domainkey.attack.com TXT {}\n", key.record());
    let message = format!("From: u@attack.com\r\n{BODY}");
    let signature = mail_auth::headers::HeaderWriter::to_header(&key.sign_length("attack.com", message.as_bytes()));
    assert!(signature.contains("l="), "{signature}");
    for appended in ["", "<html>more</html>\r\n"] {
        let report = attacked("u@x.example", &zone, format!("{signature}{message}{appended}").as_bytes()).await;
        assert_eq!(only(&report), "policy only a part of the body is signed");
        assert_eq!(report.dmarc.unwrap().result, Word::Fail);
    }
    // l=0 signs no body at all.
    let bodiless = "From: u@attack.com\r\n\r\n";
    let signature = key.sign("attack.com", "s1", &["From"], bodiless.as_bytes()).replacen("v=1;", "v=1; l=0;", 1);
    let report = attacked("u@x.example", &zone, format!("{signature}{bodiless}<html>\r\n").as_bytes()).await;
    assert_eq!(report.dmarc.unwrap().result, Word::Fail);
}

/// A signature covers the lowest of several equal fields, a reader is shown the highest.
#[tokio::test]
async fn aut_dkim_a_signed_field_that_stands_again_is_no_pass() {
    let key = Key::new();
    let zone = format!("s1._domainkey.attack.com TXT {}\n", key.record());
    let message = format!("From: u@attack.com\r\n{BODY}");
    let once = key.sign("attack.com", "s1", &["From", "To", "Subject"], message.as_bytes());
    let no_less = key.sign("attack.com", "s1", &["From"], message.as_bytes());
    let over = once.replacen("h=", "h=Subject:To:", 1);
    let want = "policy a signed field stands again unsigned";
    for (signature, above, want) in [
        (&once, "", "pass"),
        (&once, "Subject: You won\r\n", want),
        (&once, "subject : You won\r\n", want),
        (&once, "To: all\r\n", want),
        (&once, "From: ceo@legitimate.com\r\n", want),
        (&once, "Content-Type: text/html\r\n", "pass"),
        (&once, "Received: by x\r\nReceived: by y\r\n", "pass"),
        (&no_less, "Subject: You won\r\n", "pass"),
        (&over, "Subject: You won\r\n", "fail the signature does not verify"),
    ] {
        let report = attacked("u@x.example", &zone, format!("{above}{signature}{message}").as_bytes()).await;
        assert_eq!(only(&report), want, "{above:?}");
        assert_eq!(report.dmarc.unwrap().result == Word::Pass, want == "pass", "{above:?}");
    }
}

#[tokio::test]
async fn aut_dkim_expired_and_from_the_future() {
    let key = Key::new();
    let zone = format!("s1._domainkey.attack.com TXT {}\n", key.record());
    let message = format!("From: u@attack.com\r\n{BODY}");
    let signed = format!("{}{message}", key.sign_until("attack.com", 600, message.as_bytes()));
    let (second, hour) = (1000, 3_600_000);
    for (later, want) in [
        (0, "pass"),
        (590 * second, "pass"),
        (610 * second, "policy expired"),
        (-hour + 30 * second, "pass"),
        (-hour - 30 * second, "policy signed in the future"),
    ] {
        let letter = Letter { helo: "attack.com", sender: "u@x.example", at: today() + later };
        assert_eq!(only(&check_as(&letter, &zone, signed.as_bytes()).await), want, "{later} ms later");
    }
    // It ends before it begins.
    let upside_down = signed.replacen("x=", "x=1; y=", 1);
    assert_eq!(only(&attacked("u@x.example", &zone, upside_down.as_bytes()).await), "policy expired");
}

#[tokio::test]
async fn aut_dkim_keys_that_are_wrong_or_for_something_else() {
    let key = Key::new();
    let message = format!("From: u@attack.com\r\n{BODY}");
    let signed = format!("{}{message}", key.sign("attack.com", "s1", &["From"], message.as_bytes()));
    let p = &key.public;
    let unusable = "permerror the key cannot be used";
    for (record, want) in [
        (format!("k=ed25519; p={p}"), "pass"),
        (format!("v=DKIM1; k=ed25519; s=email; h=sha256; p={p}"), "pass"),
        (format!("v=DKIM1; k=ed25519; s=other:*; h=sha1:sha256; t=y; p={p}"), "pass"),
        (format!("v=DKIM1; k=ed25519; s=tlsrpt; p={p}"), unusable),
        (format!("v=DKIM1; k=ed25519; h=sha1; p={p}"), unusable),
        (format!("v=DKIM1; k=mystery; p={p}"), unusable),
        (format!("v=DKIM1; k=ed25519; p={}", &p[..40]), unusable),
        (format!("v=DKIM1; k=ed25519; p=AAAA{p}"), unusable),
        (format!("v=DKIM2; k=ed25519; p={p}"), "permerror no key"),
        ("v=DKIM1; k=ed25519; p=".to_owned(), "permerror the key is revoked"),
        ("v=DKIM1; k=ed25519".to_owned(), "permerror no key"),
        // k=rsa, which is the default, does not verify what Ed25519 signed.
        (format!("v=DKIM1; p={p}"), "fail the signature does not verify"),
    ] {
        let zone = format!("s1._domainkey.attack.com TXT {record}\n");
        assert_eq!(only(&attacked("u@x.example", &zone, signed.as_bytes()).await), want, "{record}");
    }
    let (rsa, record) = sign_rsa("attack.com", message.as_bytes());
    let signed = format!("{rsa}{message}");
    let zone = |record: &str| format!("rsa._domainkey.attack.com TXT {record}\n");
    assert_eq!(only(&attacked("u@x.example", &zone(&record), signed.as_bytes()).await), "pass");
    let as_ed25519 = record.replace("v=DKIM1;", "v=DKIM1; k=ed25519;");
    assert_eq!(only(&attacked("u@x.example", &zone(&as_ed25519), signed.as_bytes()).await), unusable);
}

#[tokio::test]
async fn aut_dkim_signatures_that_say_two_things_or_nothing() {
    let key = Key::new();
    let zone = format!(
        "s1._domainkey.attack.com TXT {0}\ns1._domainkey.legitimate.com TXT v=DKIM1; p=\ns1._domainkey.com TXT {0}\n",
        key.record()
    );
    let message = format!("From: u@attack.com\r\n{BODY}");
    let good = key.sign("attack.com", "s1", &["From"], message.as_bytes());
    let identified = |i: &str| good.replacen("v=1;", &format!("v=1; i={i};"), 1);
    for (signature, want) in [
        (good.clone(), "pass"),
        (good.replacen("v=1;", "", 1), "permerror no version"),
        (good.replacen("v=1;", "v=2;", 1), "neutral cannot be read"),
        (good.replacen("v=1;", "v=1; d=legitimate.com;", 1), "permerror a tag stands twice"),
        (good.replacen("v=1;", "v=1; H=to;", 1), "permerror a tag stands twice"),
        (good.replacen("d=attack.com", "d=legitimate.com\0.attack.com", 1), "permerror d= is no domain"),
        (good.replacen("d=attack.com", "d=legitimate.com(.attack.com", 1), "permerror d= is no domain"),
        (good.replacen("s=s1", "s=s1.\0", 1), "permerror s= is no selector"),
        (good.replacen("d=attack.com", "d=com", 1), "permerror d= is no domain"),
        (good.replacen("d=attack.com", "d=.attack.com", 1), "permerror d= is no domain"),
        (good.replacen("h=From", "h=To", 1), "policy From is not signed"),
        (identified("u@legitimate.com"), "permerror i= is not of d="),
        (identified("u@xattack.com"), "permerror i= is not of d="),
        (
            format!(
                "DKIM-Signature: v=1; a=rsa-sha256; d=attack.com; s=s1; h=from; bh=AAAA; b={}\r\n",
                "A".repeat(65_536)
            ),
            "policy the key is too long",
        ),
        ("DKIM-Signature: x\r\n".into(), "neutral cannot be read"),
        ("DKIM-Signature:\r\n".into(), "neutral cannot be read"),
    ] {
        let report = attacked("u@x.example", &zone, format!("{signature}{message}").as_bytes()).await;
        assert_eq!(only(&report), want, "{signature:.200}");
        assert_eq!(report.dmarc.unwrap().result == Word::Pass, want == "pass");
    }
}

#[tokio::test]
async fn aut_dkim_a_hundred_and_ten_thousand_signatures_cost_ten() {
    let key = Key::new();
    let zone = format!("s1._domainkey.attack.com TXT {}\n", key.record());
    let message = format!("From: u@attack.com\r\n{BODY}");
    let good = key.sign("attack.com", "s1", &["From"], message.as_bytes());
    for (count, want) in [(100, "pass"), (10_000, "policy too many header fields")] {
        let report = attacked("u@x.example", &zone, format!("{}{message}", good.repeat(count)).as_bytes()).await;
        assert_eq!(dkim(&report), [want; SIGNATURES_MAX], "{count}");
    }
    // Behind ten bad ones a good one is not looked at.
    let bad = good.replace("s=s1", "s=s2");
    let report = attacked("u@x.example", &zone, format!("{}{good}{message}", bad.repeat(10)).as_bytes()).await;
    assert_eq!(dkim(&report), ["permerror no key"; SIGNATURES_MAX]);
    assert_eq!(report.dmarc.unwrap().result, Word::Fail);
}

/// Where one reader sees the end of the header and another does not, nothing is verified.
#[tokio::test]
async fn aut_dkim_header_and_body_have_one_boundary() {
    let key = Key::new();
    let zone = format!("s1._domainkey.attack.com TXT {}\n", key.record());
    let message = format!("From: u@attack.com\r\n{BODY}");
    let good = format!("{}{message}", key.sign("attack.com", "s1", &["From"], message.as_bytes()));
    for (boundary, want) in [
        ("\r\n\r\n", "pass"),
        ("\r\n \r\n", "fail the body was changed"),
        ("\r\nX-More: yes\r\n\r\nFrom: u@legitimate.com\r\n\r\n", "fail the body was changed"),
    ] {
        let report = attacked("u@x.example", &zone, good.replacen("\r\n\r\n", boundary, 1).as_bytes()).await;
        assert_eq!(only(&report).contains("pass"), want == "pass", "{boundary:?}: {report:?}");
        assert_eq!(report.dmarc.unwrap().result == Word::Pass, want == "pass", "{boundary:?}");
    }
}

#[tokio::test]
async fn aut_arc_fifty_sets_pass_and_fifty_one_fail() {
    let key = Key::new();
    let zone = format!("s1._domainkey.seal.example TXT {}\n", key.record());
    let mut message = format!("From: u@legitimate.com\r\n{BODY}").into_bytes();
    for n in 1..=51 {
        message = key.seal("seal.example", &message);
        if ![1, 2, 50, 51].contains(&n) {
            continue;
        }
        let report = attacked("u@attack.com", &zone, &message).await;
        let arc = report.arc.unwrap();
        let want = if n <= 50 { (Word::Pass, None) } else { (Word::Fail, Some("the chain is too long")) };
        assert_eq!((arc.result, arc.reason), want, "{n}");
        // A chain says nothing about From.
        assert_eq!(report.dmarc.unwrap().result, Word::Fail, "{n}");
    }
}

#[tokio::test]
async fn aut_arc_forged_chains_fail() {
    let key = Key::new();
    let zone = format!("s1._domainkey.seal.example TXT {}\n", key.record());
    let message = format!("From: u@legitimate.com\r\n{BODY}").into_bytes();
    let one = String::from_utf8(key.seal("seal.example", &message)).unwrap();
    let two = String::from_utf8(key.seal("seal.example", one.as_bytes())).unwrap();
    let first_set = &one[..one.len() - message.len()];
    let filler = "X: y\r\n".repeat(10_000);
    let forged = "ARC-Seal: i=1; a=rsa-sha256; t=1; cv=none; d=google.com; s=arc; b=AAAA\r\n\
        ARC-Message-Signature: i=1; a=rsa-sha256; c=relaxed/relaxed; d=google.com; s=arc; h=from; bh=AAAA; b=AAAA\r\n\
        ARC-Authentication-Results: i=1; mx.google.com; dmarc=pass\r\n";
    for (what, text) in [
        ("a forged first set", format!("{forged}{}", String::from_utf8(message.clone()).unwrap())),
        ("a gap", two.replace("i=2", "i=3")),
        ("an instance that stands twice", format!("{first_set}{two}")),
        ("pass at the first", one.replace("cv=none", "cv=pass")),
        ("none at the second", two.replace("cv=pass", "cv=none")),
        ("fail at the second", two.replace("cv=pass", "cv=fail")),
        ("instance 51", one.replace("i=1", "i=51")),
        ("instance 0", one.replace("i=1", "i=0")),
        ("no instance", one.replace("i=1; ", "")),
        ("a changed subject", two.replace("Subject: hello", "Subject: hallo")),
        ("a changed seal", two.replacen("ARC-Seal:", "ARC-Seal: x=y;", 1)),
        ("ten thousand fields", format!("{filler}{two}")),
    ] {
        let report = attacked("u@attack.com", &zone, text.as_bytes()).await;
        assert_eq!(report.arc.unwrap().result, Word::Fail, "{what}");
        assert_eq!(report.dmarc.unwrap().result, Word::Fail, "{what}");
    }
    assert_eq!(attacked("u@attack.com", &zone, two.as_bytes()).await.arc.unwrap().result, Word::Pass, "the control");
}

/// A key under a name in U-labels is asked for in A-labels (RFC 8616).
#[tokio::test]
async fn a_domain_beyond_ascii_signs_and_is_aligned() {
    let key = Key::new();
    let a_label = Domain::parse("exämple.fr").unwrap().as_str().to_owned();
    let zone = format!("s1._domainkey.{a_label} TXT {}\n_dmarc.{a_label} TXT v=DMARC1; p=reject\n", key.record());
    let message = format!("From: u@exämple.fr\r\n{BODY}");
    let signed = format!("{}{message}", key.sign("exämple.fr", "s1", &["From"], message.as_bytes()));
    let report = attacked("u@x.example", &zone, signed.as_bytes()).await;
    assert_eq!(only(&report), "pass");
    assert_eq!(report.dmarc.unwrap().result, Word::Pass);
}

/// As many signatures and sets as are looked at, and a name server that takes nearly five seconds for each answer. What
/// that costs the processor is in benches/checks.rs.
#[tokio::test(start_paused = true)]
async fn aut_ten_signatures_fifty_sets_and_slow_dns_end_within_the_limit() {
    let mut zone = String::from("a.slow.example TXT v=spf1");
    (0..10).for_each(|n| zone.push_str(&format!(" a:n{n}.slow.example")));
    zone.push_str(" -all\nslow.example TXT v=spf1 redirect=a.slow.example\n");
    let mut slow = |name: &str| zone.push_str(&format!("{name} SLOW 4900\n"));
    ["slow.example", "a.slow.example", "_dmarc.slow.example", "_dmarc.example", "192.0.2.1"]
        .into_iter()
        .for_each(&mut slow);
    let (mut message, long) = (String::new(), "A".repeat(172));
    for n in 0..10 {
        slow(&format!("n{n}.slow.example"));
        slow(&format!("s{n}._domainkey.d{n}.slow.example"));
        slow(&format!("s._domainkey.seal{n}.slow.example"));
        message.push_str(&format!(
            "DKIM-Signature: v=1; a=rsa-sha256; d=d{n}.slow.example; s=s{n}; h=from; bh=AAAA; b={long}\r\n"
        ));
    }
    for i in 1..=50 {
        let seal = format!("i={i}; a=rsa-sha256; d=seal{}.slow.example; s=s; b={long}", i % 8);
        let cv = if i == 1 { "none" } else { "pass" };
        message.push_str(&format!(
            "ARC-Seal: cv={cv}; {seal}\r\nARC-Message-Signature: {seal}; h=from; bh=AAAA\r\n\
             ARC-Authentication-Results: i={i}; x\r\n"
        ));
    }
    message.push_str(&format!("From: u@slow.example\r\n{BODY}"));
    let before = tokio::time::Instant::now();
    let report = attacked("u@slow.example", &zone, message.as_bytes()).await;
    assert!(before.elapsed() <= CHECK_MAX, "{:?}", before.elapsed());
    assert_eq!(report.spf_word(), Some("temperror"));
    assert_eq!(dkim(&report).len(), SIGNATURES_MAX);
    assert_ne!(report.arc_word(), Some("pass"));
    assert_ne!(report.dmarc_word(), Some("pass"));
}
