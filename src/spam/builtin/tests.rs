//! Each signal has a message that shows it and one beside it that does not; and what the score as a whole must keep.

use std::time::Instant;

use super::*;
use crate::address::ReversePath;
use crate::auth::fixtures::{dkim, dmarc, spf};
use crate::auth::{AuthReport, Policy, PtrVerdict, SpfResult, Word};
use crate::clock::Timestamp;
use crate::message::{Head, Header};
use crate::spam::evidence::{Peer, Reading};
use crate::spam::{Band, Bands};

/// 21 November 2026.
const NOW: Timestamp = Timestamp(1_795_292_431_000);
/// A header that nothing speaks against.
const HEAD: &str = "From: A Client <a@client.example>\nTo: aide@ours.example\nSubject: panne\n\
    Date: Sat, 21 Nov 2026 20:20:31 +0000\nMessage-ID: <1@client.example>\n";

/// What stands beside the message.
struct Around<'a> {
    ip: &'a str,
    helo: &'a str,
    sender: &'a str,
    auth: AuthReport,
    listed: usize,
}

fn around() -> Around<'static> {
    Around {
        ip: "7.7.7.9",
        helo: "mail.client.example",
        sender: "a@client.example",
        auth: AuthReport::default(),
        listed: 0,
    }
}

fn judge(message: &[u8], around: &Around<'_>) -> SpamReport {
    let mut head = Head::default();
    head.push(message);
    score(&Evidence {
        client: Some(Peer { ip: around.ip.parse().unwrap(), helo: around.helo }),
        sender: &ReversePath::parse(around.sender).unwrap(),
        auth: &around.auth,
        header: &Header::index(head.as_bytes()),
        reading: &Reading::of(message),
        listed: around.listed,
        hostname: "mx.ours.example",
        is_ours: &|domain| domain.eq_ignore_ascii_case("ours.example"),
        received: NOW,
    })
}

fn names(report: &SpamReport) -> Vec<&str> {
    report.signals.iter().map(|signal| signal.name.as_ref()).collect()
}

/// The signals of a message with this header and body.
fn found(head: &str, body: &str) -> String {
    let message = format!("{head}\n{body}").replace('\n', "\r\n");
    names(&judge(message.as_bytes(), &around())).join(" ")
}

/// The good header with one field replaced; an empty one takes it away.
fn with(name: &str, field: &str) -> String {
    let kept: String = HEAD.lines().filter(|line| !line.starts_with(name)).map(|line| format!("{line}\n")).collect();
    if field.is_empty() { kept } else { format!("{kept}{field}\n") }
}

#[test]
fn what_nothing_speaks_against_has_no_points() {
    let report = judge(format!("{HEAD}\nHello.\n").replace('\n', "\r\n").as_bytes(), &around());
    assert_eq!(report, SpamReport::default());
}

#[test]
fn the_form_of_a_header() {
    for (head, signals) in [
        (with("From", ""), "no-from"),
        (with("From", "From: nobody"), ""),
        (with("Message-ID", ""), "no-message-id"),
        (with("Message-ID", "Message-ID: <1>"), "odd-message-id"),
        (with("Message-ID", "Message-ID: <a b@client.example>"), "odd-message-id"),
        (with("Date", ""), "no-date"),
        (with("Date", "Date: yesterday"), "odd-date"),
        (with("Date", "Date: Mon, 23 Nov 2026 20:00:00 +0000"), ""),
        (with("Date", "Date: Tue, 24 Nov 2026 20:00:00 +0000"), "date-ahead"),
        (with("Date", "Date: Thu, 22 Aug 2002 08:00:00 +0000"), ""),
        (with("To", ""), "no-recipient"),
        (with("To", "Cc: aide@ours.example"), ""),
        (format!("{HEAD}Subject: another\n"), "field-twice"),
        (with("Subject", "Subject: FREE CABLE FOR EVERYBODY"), "subject-capitals"),
        (with("Subject", "Subject: RE: PROJ-117 VAT"), ""),
        (with("Subject", "Subject: URGENT: panne du CRM"), ""),
        (with("Subject", "Subject: =?utf-8?q?=C3=89T=C3=89_PROMOTION_GRATUITE?="), "subject-capitals"),
        (with("Subject", "Subject: lose weight                xkcd7"), "subject-gap"),
        (with("Subject", "Subject: order    four of them"), ""),
        (with("Subject", "Subject: win!! now"), "subject-shouts"),
        (with("From", "From: \"support@bank.example\" <a@client.example>"), "name-is-address"),
        (with("From", "From: \"a@client.example\" <a@client.example>"), ""),
        (with("From", "From: \"a@client.example\" <a@mail.client.example>"), ""),
        (format!("{}List-Id: <l.example>\n", with("From", "From: \"b@c.example via l\" <l@lists.example>")), ""),
        (format!("{HEAD}Reply-To: a.client@gmail.com\n"), "reply-elsewhere"),
        (format!("{HEAD}Reply-To: a@client.example\n"), ""),
        (format!("{HEAD}Reply-To: a@other.example\n"), ""),
    ] {
        assert_eq!(found(&head, "Hello.\n"), signals, "{head}");
    }
}

#[test]
fn what_a_message_says() {
    for (body, signals) in [
        ("My Viagra order has not come.", "pills"),
        ("I cannot lose\nweight", "pills"),
        ("Lose\n  weight now", "pills"),
        ("Bonjour, je ne peux plus me connecter. Merci de cliquer ici.", ""),
        ("Please refund my invoice; the offer was wrong and I want my money.", ""),
        ("We are next of kin of the late president and transfer the fund.", "fund"),
        ("http://7.7.7.9/x", "link-to-address"),
        ("http://bank.example@evil.example/", "link-hides-host"),
        ("https://example.org/users/a@b.example", ""),
        ("mail me: a@b.example, http://example.org/", ""),
    ] {
        assert_eq!(found(HEAD, &format!("{body}\n")), signals, "{body}");
    }
    assert_eq!(found(HEAD, &format!("{}\n", "THIS IS ALL IN CAPITALS ".repeat(12))), "body-shouts");
}

#[test]
fn what_a_message_carries() {
    let html = |html: &str| found(&format!("{HEAD}MIME-Version: 1.0\nContent-Type: text/html\n"), html);
    assert_eq!(html(&format!("<p>{}</p>", "a word ".repeat(30))), "html-only");
    assert_eq!(html("<img src='http://example.org/x.png'>"), "picture-only html-only");
    assert_eq!(html(&format!("<form action='x'>{}", "a word ".repeat(30))), "form html-only");
    let file = |name: &str| {
        let head = format!("{HEAD}MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=b\n");
        let part = format!("Content-Type: application/octet-stream; name=\"{name}\"\n\nx\n");
        found(&head, &format!("--b\n\nHello.\n--b\n{part}--b--\n"))
    };
    assert_eq!(file("invoice.pdf"), "");
    assert_eq!(file("invoice.pdf.EXE"), "executable");
    assert_eq!(file("=?utf-8?q?invoice=2Escr?="), "executable");
    let base64 = format!("{HEAD}MIME-Version: 1.0\nContent-Type: text/plain\nContent-Transfer-Encoding: base64\n");
    assert_eq!(
        found(&base64, "VGhlcmUgaXMgbm90aGluZyBpbiB0aGlzIHRleHQgdGhhdCBuZWVkcyBhbiBlbmNvZGluZy4=\n"),
        "ascii-in-base64"
    );
    // What a notification brings back is not its own word.
    let head = format!("{HEAD}MIME-Version: 1.0\nContent-Type: multipart/report; boundary=b\n");
    let original = "Content-Type: message/rfc822\n\nSubject: x\n\nviagra and a casino: you have won\n";
    assert_eq!(found(&head, &format!("--b\n\nIt could not be delivered.\n--b\n{original}--b--\n")), "");
}

#[test]
fn who_hands_it_in() {
    let ptr = |result, name: Option<&str>| Some(PtrVerdict { result, name: name.map(str::to_owned) });
    let checked = |auth: AuthReport| Around { auth, ..around() };
    let from_us = |spf_result, dkim_verdicts| {
        let auth = AuthReport {
            spf_mailfrom: Some(spf(spf_result, "ours.example")),
            dkim: Some(dkim_verdicts),
            ..Default::default()
        };
        Around { sender: "b@ours.example", ..checked(auth) }
    };
    for (around, signals) in [
        (
            checked(AuthReport { spf_mailfrom: Some(spf(SpfResult::Fail, "a.example")), ..Default::default() }),
            "spf-fail",
        ),
        (
            checked(AuthReport { spf_mailfrom: Some(spf(SpfResult::SoftFail, "a.example")), ..Default::default() }),
            "spf-softfail",
        ),
        (checked(AuthReport { spf_mailfrom: Some(spf(SpfResult::TempError, "a.example")), ..Default::default() }), ""),
        (
            checked(AuthReport { dmarc: Some(dmarc(Word::Fail, Policy::None, "a.example")), ..Default::default() }),
            "dmarc-fail",
        ),
        (
            checked(AuthReport { dmarc: Some(dmarc(Word::Fail, Policy::Reject, "a.example")), ..Default::default() }),
            "dmarc-fail-policy",
        ),
        (
            checked(AuthReport {
                dmarc: Some(dmarc(Word::TempError, Policy::Reject, "a.example")),
                ..Default::default()
            }),
            "",
        ),
        (
            checked(AuthReport {
                dmarc: Some(dmarc(Word::Pass, Policy::Reject, "a.example")),
                spf_mailfrom: Some(spf(SpfResult::Fail, "a.example")),
                ..Default::default()
            }),
            "dmarc-pass",
        ),
        (checked(AuthReport { ptr: ptr(Word::PermError, None), ..Default::default() }), "no-ptr"),
        (checked(AuthReport { ptr: ptr(Word::TempError, None), ..Default::default() }), ""),
        (checked(AuthReport { ptr: ptr(Word::Fail, None), ..Default::default() }), "ptr-astray"),
        (checked(AuthReport { ptr: ptr(Word::Pass, Some("mail.client.example")), ..Default::default() }), ""),
        (
            checked(AuthReport { ptr: ptr(Word::Pass, Some("9-7-7-7.dsl.example")), ..Default::default() }),
            "dynamic-ptr",
        ),
        (
            checked(AuthReport { ptr: ptr(Word::Pass, Some("host7.7.7.9.example")), ..Default::default() }),
            "dynamic-ptr",
        ),
        (Around { helo: "7.7.7.9", ..around() }, "helo-address"),
        (Around { helo: "[7.7.7.9]", ..around() }, "helo-literal"),
        (Around { helo: "localhost", ..around() }, "helo-no-domain"),
        (Around { helo: "", ..around() }, ""),
        (Around { helo: "MX.ours.example", ..around() }, "helo-ours"),
        (Around { helo: "ours.example", ..around() }, "helo-ours"),
        (Around { helo: "app.ours.example", ..around() }, ""),
        (from_us(SpfResult::Pass, vec![]), ""),
        (from_us(SpfResult::None, vec![]), "own-domain-unproven"),
        (from_us(SpfResult::Fail, vec![]), "own-domain-forged spf-fail"),
        (from_us(SpfResult::None, vec![dkim(Word::Pass, "ours.example")]), ""),
        (from_us(SpfResult::None, vec![dkim(Word::Pass, "evil.example")]), "own-domain-unproven"),
        (from_us(SpfResult::TempError, vec![]), ""),
        (Around { listed: 1, ..around() }, "listed"),
        (Around { listed: 3, ..around() }, "listed listed-more"),
    ] {
        let report = judge(format!("{HEAD}\nHello.\n").replace('\n', "\r\n").as_bytes(), &around);
        assert_eq!(names(&report).join(" "), signals);
    }
}

/// Everything at once, of the given kinds.
fn worst(client: bool, lists: bool, header: bool, body: bool) -> SpamReport {
    let auth = AuthReport {
        spf_mailfrom: Some(spf(SpfResult::Fail, "ours.example")),
        dkim: Some(vec![]),
        dmarc: Some(dmarc(Word::Fail, Policy::Reject, "ours.example")),
        ptr: Some(PtrVerdict { result: Word::PermError, name: None }),
        ..Default::default()
    };
    let plain = Around { listed: if lists { 10 } else { 0 }, ..around() };
    let around =
        if client { Around { helo: "mx.ours.example", sender: "b@ours.example", auth, ..plain } } else { plain };
    let head =
        if header { "Subject: WIN EVERYTHING NOW!!      x1\nSubject: y\nDate: never\nMessage-ID: x\n" } else { HEAD };
    let said =
        "viagra porn casino: you have won. next of kin. make money. this is not spam. bulk email. http://1.2.3.4/";
    let body = if body { said } else { "Hello." };
    judge(format!("{head}\n{body}\n").replace('\n', "\r\n").as_bytes(), &around)
}

#[test]
fn no_kind_of_evidence_quarantines_alone_and_no_two_refuse() {
    let bands = Bands::default();
    for set in 0u8..16 {
        let [client, lists, header, body] = [1, 2, 4, 8].map(|bit| set & bit != 0);
        let kinds = [client, lists, header, body].iter().filter(|kind| **kind).count();
        let report = worst(client, lists, header, body);
        let most = match kinds {
            0 => Band::Clean,
            1 => Band::Tag,
            2 => Band::Quarantine,
            _ => Band::Reject,
        };
        assert!(bands.of(&report) <= most, "{client} {lists} {header} {body}: {report:?}");
        let sum: f64 = report.signals.iter().map(|signal| signal.points).sum();
        let whole = report.signals.len() < crate::spam::SIGNALS_MAX;
        assert!(!whole || (sum - report.score).abs() < 0.06, "the signals add up: {report:?}");
    }
    assert_eq!(bands.of(&worst(true, true, true, true)), Band::Reject);
}

#[test]
fn the_string_that_is_made_for_trying_out_is_beyond_any_band() {
    let report = judge(format!("{HEAD}\n{GTUBE}\n").replace('\n', "\r\n").as_bytes(), &around());
    assert_eq!((report.score, names(&report)), (GTUBE_POINTS, vec!["gtube"]));
}

#[test]
fn what_stands_behind_the_limit_is_not_looked_at() {
    let at = |octets: usize| {
        let mut message = format!("{HEAD}\n").replace('\n', "\r\n").into_bytes();
        while message.len() < octets - 70 {
            message.extend_from_slice(b"a line of sixty octets, which says nothing in particular.\r\n");
        }
        message.resize(octets - GTUBE.len(), b' ');
        message.extend_from_slice(GTUBE.as_bytes());
        names(&judge(&message, &around())).contains(&"gtube")
    };
    assert!(at(crate::message::content::CONTENT_OCTETS_MAX));
    assert!(!at(crate::message::content::CONTENT_OCTETS_MAX + 1));
}

/// P19 of the promises: the time grows as the octets do.
#[test]
fn hostile_messages_cost_linear_time() {
    let head = HEAD.replace('\n', "\r\n");
    type Generator = fn(usize) -> String;
    let kinds: [(&str, Generator); 8] = [
        ("one long word", |n| format!("\r\n{}", "a".repeat(n))),
        ("many words", |n| format!("\r\n{}", "remove me from ".repeat(n / 15))),
        ("open tags", |n| format!("Content-Type: text/html\r\n\r\n{}", "<".repeat(n))),
        ("fonts", |n| format!("Content-Type: text/html\r\n\r\n{}", "<font ".repeat(n / 6))),
        ("comments", |n| format!("Content-Type: text/html\r\n\r\n{}", "a<!--".repeat(n / 5))),
        ("links", |n| format!("\r\n{}", "http://a%".repeat(n / 9))),
        ("parts", |n| format!("Content-Type: multipart/mixed; boundary=b\r\n\r\n{}", "--b\r\n\r\n".repeat(n / 7))),
        ("nests", |n| {
            let levels: String = (0..n / 60)
                .map(|level| format!("--b{level}\r\nContent-Type: multipart/mixed; boundary=b{}\r\n\r\n", level + 1))
                .collect();
            format!("Content-Type: multipart/mixed; boundary=b0\r\n\r\n{levels}")
        }),
    ];
    for (what, kind) in kinds {
        let took = |octets: usize| {
            let message = format!("{head}{}", kind(octets));
            let once = || {
                let before = Instant::now();
                drop(judge(message.as_bytes(), &around()));
                before.elapsed()
            };
            // The best of a few: the machine has other work.
            (0..5).map(|_| once()).min().unwrap()
        };
        let (half, whole) = (took(120_000), took(240_000));
        let ratio = whole.as_secs_f64() / half.as_secs_f64().max(0.000_5);
        assert!(ratio <= 3.0, "{what}: {half:?}, then {whole:?}");
    }
}
