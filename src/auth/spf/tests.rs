//! `check_host()` against `vectors.txt`, and against DNS that fails in time.

use super::*;
use crate::dns::{Budget, zone::Zone};

/// One story: a zone, and the questions to it.
struct Vector {
    title: String,
    zone: String,
    questions: Vec<String>,
}

fn vectors() -> Vec<Vector> {
    let mut vectors: Vec<Vector> = Vec::new();
    for line in include_str!("vectors.txt").lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        if let Some(title) = line.strip_prefix("== ") {
            vectors.push(Vector { title: title.into(), zone: String::new(), questions: Vec::new() });
            continue;
        }
        let vector = vectors.last_mut().expect("a title comes first");
        match line.strip_prefix("? ") {
            Some(question) => vector.questions.push(question.into()),
            None => vector.zone.extend([line, "\n"]),
        }
    }
    vectors
}

async fn ask(zone: &Zone, ip: &str, helo: &str, sender: &str) -> SpfVerdict {
    let sender = ReversePath::parse(sender.trim_matches(['<', '>'])).unwrap();
    let now = Timestamp(1_795_292_431_000);
    let request = Request::mail_from(ip.parse().unwrap(), helo, &sender, "mx.solarmora.com", now);
    check_host(zone, &request).await
}

#[tokio::test]
async fn the_vectors() {
    let (mut count, mut wrong) = (0, Vec::new());
    for vector in vectors() {
        let zone = Zone::parse(&vector.zone);
        assert!(!vector.questions.is_empty(), "{}", vector.title);
        for question in &vector.questions {
            let (asked, want) = question.split_once(" -> ").unwrap_or_else(|| panic!("{question}"));
            let words: Vec<&str> = asked.splitn(3, ' ').collect();
            let [ip, helo, sender] = words[..] else { panic!("{question}") };
            let verdict = ask(&zone, ip, helo, sender).await;
            let explained = verdict.explanation.map(|text| format!(" {text}")).unwrap_or_default();
            let got = format!("{}{explained}", verdict.result.word());
            if got != want {
                wrong.push(format!("{}\n  {asked}: {got} ({:?}), not {want}", vector.title, verdict.reason));
            }
            count += 1;
        }
    }
    assert!(wrong.is_empty(), "{} of {count}:\n{}", wrong.len(), wrong.join("\n"));
}

#[tokio::test(start_paused = true)]
async fn section_4_6_4_twenty_seconds_are_a_temperror() {
    let zone = Zone::parse("a.example TXT v=spf1 a:silent.example -all\nsilent.example SILENT");
    let before = tokio::time::Instant::now();
    let verdict = ask(&zone, "192.0.2.1", "h.example", "u@a.example").await;
    assert_eq!(verdict.result, SpfResult::TempError);
    assert_eq!(before.elapsed().as_secs(), 20);
}

/// hostile.md, DNS: answers that drip in keep no session longer than the limit.
#[tokio::test(start_paused = true)]
async fn dns_ten_answers_of_nearly_five_seconds_are_cut_at_twenty() {
    let targets: String = (0..10).map(|n| format!(" a:slow{n}.example")).collect();
    let slow: String = (0..10).map(|n| format!("slow{n}.example SLOW 4900\nslow{n}.example A 192.0.2.9\n")).collect();
    let zone = Zone::parse(&format!("a.example TXT v=spf1{targets} +all\n{slow}"));
    let before = tokio::time::Instant::now();
    let verdict = ask(&zone, "192.0.2.1", "h.example", "u@a.example").await;
    assert_eq!((verdict.result, before.elapsed().as_secs()), (SpfResult::TempError, 20));
    assert_eq!(zone.asked(), 6, "the record and five names, the last of them in vain");
}

/// hostile.md, AUT, SPF: whatever a record's author asks for, we ask little.
#[tokio::test]
async fn aut_spf_a_thousand_mail_exchanges_are_a_permerror_unasked() {
    let exchanges: String =
        (0..1000).map(|n| format!("m.example MX {n} x{n}.example\nx{n}.example A 192.0.2.9\n")).collect();
    let zone = Zone::parse(&format!("a.example TXT v=spf1 mx:m.example +all\n{exchanges}"));
    assert_eq!(ask(&zone, "192.0.2.1", "h.example", "u@a.example").await.result, SpfResult::PermError);
    assert_eq!(zone.asked(), 2);
}

/// hostile.md, DNS: as a message's checks have it, where a thousand names cost ten look-ups of them.
#[tokio::test]
async fn dns_of_a_thousand_names_of_a_client_ten_are_looked_at() {
    let names: String = (0..1000).map(|n| format!("192.0.2.1 PTR x{n}.example\nx{n}.example A 192.0.2.9\n")).collect();
    let zone = Zone::parse(&format!("a.example TXT v=spf1 ptr:b.example exists:%{{p}}.a.example -all\n{names}"));
    assert_eq!(ask(&zone, "192.0.2.1", "h.example", "u@a.example").await.result, SpfResult::Fail);
    assert_eq!(zone.asked(), 13, "the record, PTR, ten names, and what unknown.a.example has");
}

/// hostile.md, DNS: 64 KiB of TXT in a thousand strings, which the resolver has joined.
#[tokio::test]
async fn dns_a_record_of_64_kib_is_read_whole_and_an_error_at_its_end_counts() {
    let networks: String = (0..3600).map(|n| format!(" ip4:10.{}.{}.0/24", n / 256, n % 256)).collect();
    let zone = Zone::parse(&format!("a.example TXT v=spf1{networks} -all\nb.example TXT v=spf1{networks} moo"));
    for (ip, sender, want) in [
        ("10.14.15.1", "u@a.example", SpfResult::Pass),
        ("192.0.2.1", "u@a.example", SpfResult::Fail),
        ("10.14.15.1", "u@b.example", SpfResult::PermError),
    ] {
        assert_eq!(ask(&zone, ip, "h.example", sender).await.result, want, "{ip} {sender}");
    }
}

#[tokio::test]
async fn a_used_up_budget_is_a_permerror() {
    let zone = Zone::parse("a.example TXT v=spf1 a a a a -all\na.example A 192.0.2.9");
    let sender = ReversePath::parse("u@a.example").unwrap();
    let request = Request::mail_from("192.0.2.1".parse().unwrap(), "h.example", &sender, "mx", Timestamp(0));
    for (questions, want) in [(5, SpfResult::Fail), (4, SpfResult::PermError)] {
        assert_eq!(check_host(&Budget::new(&zone, questions), &request).await.result, want, "{questions}");
    }
}

#[tokio::test]
async fn section_2_3_helo_is_an_identity_of_its_own() {
    let zone = Zone::parse("h.example TXT v=spf1 a -all\nh.example A 192.0.2.1\na.example TXT v=spf1 -all");
    let ip = "::ffff:192.0.2.1".parse().unwrap();
    let helo = check_host(&zone, &Request::helo(ip, "h.example", "mx", Timestamp(0))).await;
    assert_eq!((helo.result, helo.domain.as_str()), (SpfResult::Pass, "h.example"));
    for name in ["[192.0.2.1]", "localhost", "", "a..example", "b.example"] {
        let helo = check_host(&zone, &Request::helo(ip, name, "mx", Timestamp(0))).await;
        assert_eq!(helo.result, SpfResult::None, "{name}");
    }
}

#[tokio::test]
async fn an_explanation_is_cut_and_holds_no_control_characters() {
    let long = "x".repeat(64 * 1024);
    let zone = Zone::parse(&format!(
        "a.example TXT v=spf1 exp=e.%{{d}} -all\ne.a.example TXT {long}\nb.example TXT v=spf1 exp=e.%{{d}} -all\ne.b.example TXT no: %{{h}}"
    ));
    let cut = ask(&zone, "192.0.2.1", "h.example", "u@a.example").await;
    assert_eq!(cut.explanation.map(|text| text.len()), Some(300));
    let sane = ask(&zone, "192.0.2.1", "h\r\n250 ok", "u@b.example").await;
    assert_eq!(sane.explanation.as_deref(), Some("no: h250 ok"));
}
