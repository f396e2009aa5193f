//! The rules: any text is a rule set or a report, a set decides alike each time, and what is said at RCPT, before the message
//! is there, no message can prove wrong.

use std::collections::BTreeMap;
use std::sync::Arc;

use pointsman::address::{Mailbox, ReversePath};
use pointsman::clock::Timestamp;
use pointsman::diagnostic::{Report, Source};
use pointsman::message::reading::{Reading, Wanted};
use pointsman::reply::NOT_OURS;
use pointsman::rules::{
    Action, AuthFacts, Consideration, Decision, Fact, Facts, LegKind, RuleSet, Surroundings, Verdict, parse,
};
use pointsman::spam::Bands;

use super::input::Input;

pub fn check(data: &[u8]) {
    let mut input = Input::new(data);
    let (recipient, sender, helo) = (input.text(), input.text(), input.text());
    let Ok(text) = std::str::from_utf8(input.rest()) else { return };
    let (Some(rules), report) = read(&[text]) else { return };
    assert_eq!(report.errors(), 0);
    drop(rules.run_tests(&Bands::default()));

    let sender = ReversePath::parse(sender).unwrap_or(ReversePath::Null);
    let strict = read(&[REJECT_ALL, text]).0;
    let named = rules.rule_names().chain([recipient]).filter_map(|name| Mailbox::parse(name).ok());
    for recipient in named.chain(rules.postmaster()).take(RECIPIENTS_MAX) {
        let client = Some("192.0.2.7".parse().expect("it is an address"));
        let facts = Facts { client, helo: Some(helo), ..Facts::of(&recipient, &sender, AT) };
        assert_decisions(&rules, &facts, text);
        if let Some(strict) = strict.as_ref().filter(|_| !is_role(&recipient)) {
            // A reject wins over whatever else applies.
            assert!(matches!(strict.decide(&facts).verdict, Verdict::Reject(_)), "{recipient}");
        }
    }
}

/// The set, where the files are one; what is wrong with them is drawn in any case.
fn read(texts: &[&str]) -> (Option<RuleSet>, Report) {
    let routes = BTreeMap::from([("default", false), ("crm", true), ("google", true)].map(|(n, h)| (n.to_owned(), h)));
    let file = |_: &str, name: &str| match name.ends_with(".address") {
        true => Ok("case@salesforce.example\n".to_owned()),
        false => Err("no such file".to_owned()),
    };
    let sources: Vec<Arc<Source>> =
        texts.iter().enumerate().map(|(n, text)| Source::new(format!("{n}.toml"), *text)).collect();
    let surroundings = Surroundings {
        routes: &routes,
        looks_up_mx: true,
        checks: [true; 4],
        scores: true,
        now: Timestamp(0),
        read: &file,
    };
    let mut report = Report::default();
    let parsed = parse(&sources, &surroundings, &mut report);
    assert_eq!(parsed.is_none(), report.errors() > 0);
    assert!(report.is_empty() || !report.render(false).is_empty());
    assert_eq!(report.json_lines().lines().count(), report.diagnostics().len());
    (parsed.map(|parsed| parsed.rules), report)
}

fn assert_decisions(rules: &RuleSet, before: &Facts<'_>, text: &str) {
    let recipient = before.recipient;
    let at_rcpt = rules.decide(before);
    assert_eq!(rules.decide(before), at_rcpt);
    assert_sound(rules, recipient, &at_rcpt);
    let words: Vec<Option<&'static str>> = WORDS
        .iter()
        .map(|word| Some(*word))
        .filter(|word| word.is_some_and(|word| text.contains(word)))
        .chain([None])
        .collect();
    let readings = readings(text);
    // Enough of them is enough.
    let words = &words[words.len().saturating_sub(WORDS_MAX)..];
    let mut refusals = 0;
    let all = words.len().pow(4) * SCORES.len();
    for n in 0..all {
        let word = |check: u32| words[n / words.len().pow(check) % words.len()];
        let auth = AuthFacts { spf: word(0), dkim: word(1), dmarc: word(2), arc: word(3) };
        let score = SCORES[n / words.len().pow(4)];
        let facts = Facts {
            auth: Fact::Known(auth),
            score: Fact::Known(score),
            message: Fact::Known(&readings[n % readings.len()]),
            ..before.clone()
        };
        let after = rules.decide(&facts);
        refusals += usize::from(matches!(after.verdict, Verdict::Reject(_)));
        match &at_rcpt.verdict {
            Verdict::Reject(_) => {
                assert!(matches!(after.verdict, Verdict::Reject(_)), "{recipient} is refused: {after:?}")
            }
            Verdict::Accept { .. } | Verdict::Defer(_) => assert_eq!(after.verdict, at_rcpt.verdict, "{recipient}"),
            Verdict::Undecided => assert_ne!(after.verdict, Verdict::Undecided, "{recipient}, and all is known"),
        }
        if n == 0 || n == all - 1 {
            assert_sound(rules, recipient, &after);
            let explanation = rules.explain(&facts);
            assert_eq!(explanation.decision, after);
            // Every rule was tried, not only those that the index finds.
            let applied =
                explanation.considered.iter().filter(|one| matches!(one.result, Consideration::Applied { .. }));
            assert!(applied.map(|one| &one.rule).eq(&after.rules), "{recipient}: {explanation:?}");
            assert!(!explanation.render().is_empty());
        }
    }
    // A bound of the score may lie between those that were tried, a key may be written with escapes, and nobody
    // tries all messages.
    let complete =
        words.len() < WORDS_MAX && !text.contains("score") && !text.contains('\\') && rules.wanted().is_nothing();
    assert!(at_rcpt.verdict != Verdict::Undecided || refusals < all || !complete, "{recipient} can be refused at RCPT");
}

fn assert_sound(rules: &RuleSet, recipient: &Mailbox, decision: &Decision) {
    match &decision.verdict {
        Verdict::Reject(refusal) => assert!(refusal.reply().is_permanent()),
        Verdict::Defer(refusal) => assert!(refusal.reply().is_transient()),
        Verdict::Undecided => {}
        Verdict::Accept { action, legs } => {
            assert!(!legs.is_empty(), "{recipient} is accepted and goes nowhere");
            for (at, leg) in legs.iter().enumerate() {
                let same = |other: &&pointsman::rules::LegPlan| other.target == leg.target && other.route == leg.route;
                assert_eq!(legs.iter().find(same), Some(&legs[at]), "each copy once");
                // RFC 5321 §3.9: what a rule made is not given to the rules again.
                let is_held = matches!(action, Action::Hold { .. });
                let is_final =
                    is_held || leg.kind == LegKind::Mailbox || leg.target == *recipient || !rules.is_alias(&leg.target);
                assert!(is_final, "{recipient} goes to the alias {}", leg.target);
            }
        }
    }
    if !rules.is_ours(recipient.domain()) {
        assert!(matches!(&decision.verdict, Verdict::Reject(refusal) if *refusal.reply() == NOT_OURS), "an open relay");
    }
}

/// A message of nothing, and one that says what the rules say.
fn readings(text: &str) -> [Reading; 2] {
    let head = format!("From: a@example.org\r\nSubject: {}\r\nPrecedence: bulk\r\n", text.replace(['\r', '\n'], " "));
    let wanted = Wanted { header: true, fields: true, text: true, attachments: true };
    let message = format!("{head}\r\n{text}");
    [Reading::default(), Reading::of(head.as_bytes(), message.as_bytes(), message.len() as u64, wanted)]
}

/// RFC 5321 §4.5.1 and RFC 2142: these are taken whatever the rules say of everybody.
fn is_role(recipient: &Mailbox) -> bool {
    let local = recipient.plain_local().to_lowercase();
    let untagged = local.split('+').next().unwrap_or_default();
    matches!(untagged, "postmaster" | "abuse")
}

const AT: Timestamp = Timestamp(1_800_000_000_000);
const REJECT_ALL: &str = "[[rule]]\nname = 'the first rule'\ncontinue = true\nreject = 'no'\n";
const WORDS: &[&str] = &["none", "pass", "fail", "softfail", "neutral", "policy", "temperror", "permerror"];
const WORDS_MAX: usize = 4;
/// Below all bounds that are likely, between them, above them.
const SCORES: [Option<f64>; 3] = [None, Some(5.0), Some(100.0)];
const RECIPIENTS_MAX: usize = 6;
