//! Whole messages, checked.

use std::sync::Arc;

use super::*;
use crate::auth::{DmarcVerdict, Policy, SpfResult};
use crate::dns::zone::Zone;

mod hostile;
mod policies;
mod signing;

const ALL: Settings = Settings { spf: true, dkim: true, dmarc: true, arc: true, ptr: true };

/// The zone of the signed messages, and what a test adds.
fn zone(more: &str) -> Arc<Zone> {
    Arc::new(Zone::parse(&format!("{}\n{more}", include_str!("testdata/zone.txt"))))
}

fn signed(name: &str) -> Vec<u8> {
    std::fs::read(format!("{}/src/auth/verify/testdata/{name}.eml", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

async fn check(zone: &Arc<Zone>, message: &[u8]) -> AuthReport {
    let head = memchr::memmem::find(message, b"\r\n\r\n").map_or(message.len(), |at| at + 2);
    let subject = Subject {
        ip: "192.0.2.1".parse().unwrap(),
        helo: "mail.a.example",
        sender: &ReversePath::parse("bounce@a.example").unwrap(),
        hostname: "mx.solarmora.com",
        head,
        header: &Header::index(&message[..head]),
        message: message.to_vec().into(),
        now: Timestamp(1_795_400_000_000),
    };
    let dns: Arc<dyn Dns> = zone.clone();
    Checker::new(dns).unwrap().check(&ALL, &subject).await
}

/// `result reason` of each signature.
fn dkim(report: &AuthReport) -> Vec<String> {
    let line =
        |one: &DkimVerdict| format!("{} {}", one.result.as_str(), one.reason.unwrap_or_default()).trim().to_owned();
    report.dkim.iter().flatten().map(line).collect()
}

#[tokio::test(start_paused = true)]
async fn what_others_signed_verifies_here_and_what_does_not_count_does_not() {
    for (name, want) in [
        ("dkimpy-relaxed", &["pass"][..]),
        ("dkimpy-simple", &["pass"]),
        ("dkimpy-mixed", &["pass"]),
        ("dkimpy-ed25519", &["pass"]),
        ("dkimpy-both", &["pass", "pass"]),
        ("dkimpy-subdomain", &["pass"]),
        ("dkimpy-other", &["pass"]),
        ("dkimpy-length", &["policy only a part of the body is signed"]),
        ("dkimpy-short-key", &["policy the key is too short"]),
        ("dkimpy-sha1", &["policy rsa-sha1"]),
        ("opendkim", &["policy rsa-sha1"]),
        ("dkimpy-revoked", &["permerror the key is revoked"]),
        ("dkimpy-no-key", &["permerror no key"]),
        ("dkimpy-servfail", &["temperror DNS gave no answer"]),
        ("dkimpy-silent", &["temperror DNS gave no answer"]),
        ("arc-two", &["pass"]),
    ] {
        assert_eq!(dkim(&check(&zone(""), &signed(name)).await), want, "{name}");
    }
}

#[tokio::test]
async fn a_change_of_the_body_or_of_a_signed_field_is_seen() {
    let message = signed("dkimpy-relaxed");
    let text = String::from_utf8(message).unwrap();
    for (from, to, want) in [
        ("Hello", "Hallo", "fail the body was changed"),
        ("Subject: A", "Subject: B", "fail the signature does not verify"),
        ("To: aide", "To: bide", "fail the signature does not verify"),
        ("u@a.example>\r\n", "v@a.example>\r\n", "fail the signature does not verify"),
        // Relaxed canonicalization forgives this.
        ("Subject: A   folded\r\n\tsubject", "SUBJECT:A folded subject", "pass"),
        // A field above the signed ones is not covered.
        ("From: A", "X-New: 1\r\nFrom: A", "pass"),
    ] {
        assert!(text.contains(from), "{from}");
        let report = check(&zone(""), text.replacen(from, to, 1).as_bytes()).await;
        assert_eq!(dkim(&report), [want], "{from:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn dmarc_takes_what_is_aligned() {
    let policy = "_dmarc.a.example TXT v=DMARC1; p=reject";
    let strict = "_dmarc.a.example TXT v=DMARC1; p=reject; adkim=s; aspf=s";
    let spf = "a.example TXT v=spf1 ip4:192.0.2.1 -all";
    for (name, more, want) in [
        ("dkimpy-relaxed", policy, (Word::Pass, Policy::Reject)),
        ("dkimpy-relaxed", strict, (Word::Pass, Policy::Reject)),
        ("dkimpy-relaxed", "", (Word::None, Policy::None)),
        ("dkimpy-subdomain", policy, (Word::Pass, Policy::Reject)),
        ("dkimpy-subdomain", strict, (Word::Fail, Policy::Reject)),
        ("dkimpy-other", policy, (Word::Fail, Policy::Reject)),
        ("dkimpy-other", &format!("{policy}\n{spf}"), (Word::Pass, Policy::Reject)),
        ("dkimpy-short-key", policy, (Word::Fail, Policy::Reject)),
        ("dkimpy-length", policy, (Word::Fail, Policy::Reject)),
        ("dkimpy-servfail", policy, (Word::TempError, Policy::Reject)),
        ("dkimpy-silent", policy, (Word::TempError, Policy::Reject)),
        ("dkimpy-other", "_dmarc.a.example SERVFAIL", (Word::TempError, Policy::None)),
        ("dkimpy-other", &format!("{policy}\na.example SERVFAIL TXT"), (Word::TempError, Policy::Reject)),
        // Two records are none; a record of something else is none.
        ("dkimpy-other", &format!("{policy}\n{policy}"), (Word::None, Policy::None)),
        ("dkimpy-other", &format!("{policy}\n_dmarc.a.example TXT google-site=x"), (Word::Fail, Policy::Reject)),
        ("dkimpy-other", "_dmarc.a.example TXT v=DMARC1; p=quarantine; t=y", (Word::Fail, Policy::None)),
        // Where `example` is no public suffix, it is the organization of both.
        ("dkimpy-other", "_dmarc.example TXT v=DMARC1; p=reject; sp=quarantine", (Word::Pass, Policy::Quarantine)),
        (
            "dkimpy-other",
            "_dmarc.example TXT v=DMARC1; p=reject; sp=quarantine; psd=y",
            (Word::Fail, Policy::Quarantine),
        ),
    ] {
        let dmarc = check(&zone(more), &signed(name)).await.dmarc.unwrap();
        assert_eq!((dmarc.result, dmarc.policy), want, "{name} {more}");
        assert_eq!(dmarc.from_domain.as_deref(), Some("a.example"));
    }
}

#[tokio::test]
async fn a_second_from_is_no_dmarc_pass() {
    let policy = "_dmarc.a.example TXT v=DMARC1; p=reject";
    for above in ["From: ceo@bank.example\r\n", "From : ceo@bank.example\r\n", "from: u@a.example\r\n"] {
        let message = [above.as_bytes(), &signed("dkimpy-relaxed")].concat();
        let report = check(&zone(policy), &message).await;
        let dmarc = report.dmarc.unwrap();
        assert_eq!((dmarc.result, dmarc.from_domain), (Word::PermError, None), "{above:?}");
    }
}

#[tokio::test]
async fn chains_of_seals() {
    let arc = |report: &AuthReport| report.arc.as_ref().unwrap().clone();
    for (name, sealer) in [("arc-one", "seal.example"), ("arc-two", "two.example")] {
        let report = check(&zone(""), &signed(name)).await;
        let arc = arc(&report);
        assert_eq!((arc.result, arc.sealer.as_deref(), arc.reason), (Word::Pass, Some(sealer), None), "{name}");
    }
    assert_eq!(arc(&check(&zone(""), &signed("dkimpy-relaxed")).await).result, Word::None);
    let text = String::from_utf8(signed("arc-two")).unwrap();
    let first = &text[..text.find("\r\nAuthentication-Results").unwrap() + 2];
    for (what, forged) in [
        ("changed body", text.replace("Hello", "Hallo")),
        ("gap", text.replace("i=2", "i=3")),
        ("twice the same set", format!("{first}{text}")),
        ("51 sets", format!("{}{text}", "ARC-Seal: i=1; a=rsa-sha256; cv=none; d=x; s=y; b=AAAA\r\n".repeat(49))),
        ("a seal alone", "ARC-Seal: i=1; a=rsa-sha256; cv=none; d=x; s=y; b=AAAA\r\n\r\n".into()),
        ("garbage", "ARC-Seal: x\r\nARC-Message-Signature: y\r\nARC-Authentication-Results: z\r\n\r\n".into()),
        ("pass at the first", text.replace("cv=none", "cv=pass")),
    ] {
        assert_eq!(arc(&check(&zone(""), forged.as_bytes()).await).result, Word::Fail, "{what}");
    }
    let dead = Arc::new(Zone::parse("seal.example SERVFAIL\ns1._domainkey.seal.example SERVFAIL"));
    assert_eq!(arc(&check(&dead, &signed("arc-one")).await).result, Word::TempError);
}

#[tokio::test]
async fn the_name_of_the_client_is_confirmed_forward() {
    for (more, want, name) in [
        ("192.0.2.1 PTR mail.a.example\nmail.a.example A 192.0.2.1", Word::Pass, Some("mail.a.example")),
        ("192.0.2.1 PTR mail.a.example\nmail.a.example A 192.0.2.9", Word::Fail, None),
        ("192.0.2.1 PTR mail.a.example", Word::Fail, None),
        ("192.0.2.1 PTR mail.a.example\nmail.a.example SERVFAIL", Word::TempError, None),
        ("192.0.2.1 SERVFAIL", Word::TempError, None),
        ("", Word::PermError, None),
        (
            "192.0.2.1 PTR a.example\n192.0.2.1 PTR b.example\n192.0.2.1 PTR c.example\n192.0.2.1 PTR d.example\nd.example A 192.0.2.1",
            Word::Fail,
            None,
        ),
    ] {
        let ptr = check(&zone(more), b"Subject: x\r\n\r\n").await.ptr.unwrap();
        assert_eq!((ptr.result, ptr.name.as_deref()), (want, name), "{more}");
    }
}

#[tokio::test(start_paused = true)]
async fn silent_dns_ends_in_time_and_is_temperror_everywhere() {
    let names = [
        "a.example",
        "mail.a.example",
        "_dmarc.a.example",
        "s1._domainkey.a.example",
        "s1._domainkey.seal.example",
        "s1._domainkey.two.example",
    ];
    let lines: String = names.iter().map(|name| format!("{name} SILENT\n")).collect();
    let silent = Arc::new(Zone::parse(&format!("{lines}192.0.2.1 SILENT")));
    let before = tokio::time::Instant::now();
    let report = check(&silent, &signed("arc-two")).await;
    assert!(before.elapsed() <= CHECK_MAX, "{:?}", before.elapsed());
    assert_eq!(report.spf_mailfrom.as_ref().unwrap().result, SpfResult::TempError);
    assert_eq!(report.dkim_word(), Some("temperror"));
    assert_eq!(report.dmarc_word(), Some("temperror"));
    assert_eq!(report.arc_word(), Some("temperror"));
    assert_eq!(report.ptr.as_ref().unwrap().result, Word::TempError);
    assert!(report.has_temperror());
}

#[tokio::test]
async fn a_hostile_message_asks_at_most_sixty_questions() {
    let mut more = String::from("192.0.2.1 PTR a.example\n");
    for n in 0..40 {
        more.push_str(&format!("192.0.2.1 PTR p{n}.example\nm{n}.example A 192.0.2.9\n"));
        more.push_str(&format!("{}.example MX {n} m{n}.example\n", n / 8));
    }
    for domain in ["a.example", "mail.a.example"] {
        more.push_str(&format!(
            "{domain} TXT v=spf1 mx:0.example mx:1.example mx:2.example mx:3.example mx:4.example -all\n"
        ));
    }
    more.push_str("_dmarc.example TXT v=DMARC1; p=reject\n");
    let zone = zone(&more);
    let long = "A".repeat(172);
    let mut message = String::new();
    for n in 0..20 {
        message.push_str(&format!(
            "DKIM-Signature: v=1; a=rsa-sha256; d=x{n}.a.b.c.d.e.f.example; s=s{n}; h=from; bh=AAAA; b={long}\r\n"
        ));
    }
    message.push_str("From: u@a.b.c.d.e.f.g.h.i.example\r\n\r\nbody\r\n");
    let report = check(&zone, message.as_bytes()).await;
    assert!(zone.asked() <= QUESTIONS_MAX as usize, "{}", zone.asked());
    assert_eq!(report.dkim.as_ref().unwrap().len(), SIGNATURES_MAX);
    assert_eq!(report.spf_mailfrom.as_ref().unwrap().result, SpfResult::PermError);
}

#[tokio::test]
async fn a_large_message_is_hashed_beside_the_runtime_with_the_same_result() {
    let mut message = signed("dkimpy-relaxed");
    message.extend(b"x".repeat(INLINE_OCTETS_MAX));
    assert_eq!(dkim(&check(&zone(""), &message).await), ["fail the body was changed"]);
}

#[tokio::test]
async fn a_message_of_anything_is_survived() {
    for message in
        [&b""[..], b"\r\n", b"\r\nbody", b"no colon\r\n\r\n", b":\r\n\r\n", b"From: u@a.example", b"\0\xff\r\n\r\n\xff"]
    {
        let report = check(&zone(""), message).await;
        assert_eq!(report.dkim_word(), Some("none"), "{message:?}");
    }
}

/// The bounds of [`screen`] keep the search for signed fields small; without them this takes minutes.
#[tokio::test]
async fn ten_signatures_that_name_everything_over_a_full_header_end_soon() {
    let long = "A".repeat(172);
    let names: String = (0..SIGNED_NAMES_MAX - 1).map(|n| format!(":n{n}")).collect();
    let mut message = String::new();
    for n in 0..SIGNATURES_MAX {
        message.push_str(&format!(
            "DKIM-Signature: v=1; a=rsa-sha256; c=simple/simple; d=a.example; s=s1; t={n}; h=from{names};\r\n\tbh=frcCV1k9oG9oKj3dpUqdJg1PxRT2RSN/XKdLCPjaYaY=; b={long}\r\n"
        ));
    }
    message.push_str("From: u@a.example\r\n");
    (0..FIELDS_MAX - SIGNATURES_MAX - 1).for_each(|n| message.push_str(&format!("y{n}: x\r\n")));
    message.push_str("\r\n");
    let report = check(&zone(""), message.as_bytes()).await;
    assert_eq!(dkim(&report), ["fail the signature does not verify"; SIGNATURES_MAX]);
    let more = format!("z: x\r\n{message}");
    assert_eq!(dkim(&check(&zone(""), more.as_bytes()).await), ["policy too many header fields"; SIGNATURES_MAX]);
}
