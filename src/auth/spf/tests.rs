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
