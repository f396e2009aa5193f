//! DMARC by the sections of RFC 9989, and its row of hostile input.

use super::*;
use crate::auth::fixtures::{dkim, spf};

/// What DMARC says of a message from `u@from`, with SPF for one domain and DKIM for others; `temp:` before a domain
/// means that DNS gave no answer.
async fn evaluate(zone: &Zone, from: &str, spf_domain: &str, dkim_domains: &[&str]) -> DmarcVerdict {
    let result = |domain: &str| if domain.starts_with("temp:") { Word::TempError } else { Word::Pass };
    let bare = |domain: &str| domain.trim_start_matches("temp:").to_owned();
    let spf_result = match result(spf_domain) {
        Word::Pass => SpfResult::Pass,
        _ => SpfResult::TempError,
    };
    let spf = (!spf_domain.is_empty()).then(|| spf(spf_result, &bare(spf_domain)));
    let dkim: Vec<_> = dkim_domains.iter().map(|domain| dkim(result(domain), &bare(domain))).collect();
    let checker = Checker::new(Arc::new(Zone::parse(""))).unwrap();
    let budget = Budget::new(zone, DMARC_QUESTIONS_MAX);
    let found = dmarc::author_walk(&budget, Some(from)).await;
    dmarc::evaluate(&checker.library, &budget, Some(from), found, spf.as_ref(), &dkim).await
}

/// `zone lines`, From, SPF's domain, DKIM's domains -> result, policy, the record's domain.
type Case<'a> = (&'a str, &'a str, &'a str, &'a [&'a str], Word, Policy, Option<&'a str>);

async fn hold(cases: &[Case<'_>]) {
    for (lines, from, spf, dkim, result, policy, place) in cases {
        let verdict = evaluate(&Zone::parse(lines), from, spf, dkim).await;
        let got = (verdict.result, verdict.policy, verdict.record.as_ref().map(|record| record.domain.as_str()));
        assert_eq!(got, (*result, *policy, *place), "{lines:?} {from} {spf} {dkim:?}");
    }
}

const REJECT: &str = "_dmarc.b.example TXT v=DMARC1; p=reject";

#[tokio::test]
async fn section_4_10_1_which_record_decides() {
    use Policy::{None as Nothing, Quarantine, Reject};
    hold(&[
        (REJECT, "b.example", "", &[], Word::Fail, Reject, Some("b.example")),
        (REJECT, "a.b.example", "", &[], Word::Fail, Reject, Some("b.example")),
        ("", "b.example", "", &["b.example"], Word::None, Nothing, None),
        // The author's own before all others; without it the highest, not one between.
        (
            "_dmarc.a.b.example TXT v=DMARC1; p=none\n_dmarc.b.example TXT v=DMARC1; p=reject",
            "a.b.example",
            "",
            &[],
            Word::Fail,
            Nothing,
            Some("a.b.example"),
        ),
        (
            "_dmarc.b.c.example TXT v=DMARC1; p=none\n_dmarc.c.example TXT v=DMARC1; p=reject",
            "a.b.c.example",
            "",
            &[],
            Word::Fail,
            Reject,
            Some("c.example"),
        ),
        // A record without a usable policy ends the search.
        (
            "_dmarc.a.b.example TXT v=DMARC1; adkim=s\n_dmarc.b.example TXT v=DMARC1; p=reject",
            "a.b.example",
            "",
            &[],
            Word::None,
            Nothing,
            None,
        ),
        // Several records at a name are none, at the author's name and above.
        (
            "_dmarc.a.b.example TXT v=DMARC1; p=reject\n_dmarc.a.b.example TXT v=DMARC1; p=none\n\
             _dmarc.b.example TXT v=DMARC1; p=none; sp=quarantine",
            "a.b.example",
            "",
            &[],
            Word::Fail,
            Quarantine,
            Some("b.example"),
        ),
        (
            "_dmarc.b.example TXT some token\n_dmarc.b.example TXT v=spf1 -all\n_dmarc.b.example TXT v=DMARC1; p=reject",
            "b.example",
            "",
            &[],
            Word::Fail,
            Reject,
            Some("b.example"),
        ),
    ])
    .await;
}

#[tokio::test]
async fn section_4_10_2_who_is_aligned() {
    use Policy::{None as Nothing, Quarantine, Reject};
    let strict = "_dmarc.b.example TXT v=DMARC1; p=reject; adkim=S; aspf=s";
    let bank = "_dmarc.bank.example TXT v=DMARC1; p=reject; sp=quarantine; psd=y";
    let giant = &format!("{bank}\n_dmarc.giant.bank.example TXT v=DMARC1; p=quarantine");
    let own = "_dmarc.a.b.example TXT v=DMARC1; p=reject; psd=n\n_dmarc.b.example TXT v=DMARC1; p=reject";
    hold(&[
        (REJECT, "b.example", "", &["b.example"], Word::Pass, Reject, Some("b.example")),
        (REJECT, "b.example", "b.example", &[], Word::Pass, Reject, Some("b.example")),
        (REJECT, "b.example", "", &["a.b.example"], Word::Pass, Reject, Some("b.example")),
        (REJECT, "a.b.example", "c.b.example", &[], Word::Pass, Reject, Some("b.example")),
        (REJECT, "a.b.example", "", &["B.Example"], Word::Pass, Reject, Some("b.example")),
        (REJECT, "b.example", "other.example", &["xb.example", "example"], Word::Fail, Reject, Some("b.example")),
        (strict, "b.example", "a.b.example", &["a.b.example"], Word::Fail, Reject, Some("b.example")),
        (strict, "b.example", "a.b.example", &["b.example"], Word::Pass, Reject, Some("b.example")),
        // Without a record above, the author's domain is its own organization.
        (
            "_dmarc.a.b.example TXT v=DMARC1; p=reject",
            "a.b.example",
            "c.b.example",
            &["b.example"],
            Word::Fail,
            Reject,
            Some("a.b.example"),
        ),
        // psd=n makes an organization of a name, and ends the walk.
        (own, "a.b.example", "", &["b.example"], Word::Fail, Reject, Some("a.b.example")),
        (own, "c.a.b.example", "", &["a.b.example"], Word::Pass, Reject, Some("a.b.example")),
        // psd=y: the organization is one label below; two customers of the same suffix are two.
        (
            giant,
            "giant.bank.example",
            "mail.giant.bank.example",
            &["mail.mega.bank.example"],
            Word::Pass,
            Quarantine,
            Some("giant.bank.example"),
        ),
        (
            giant,
            "giant.bank.example",
            "",
            &["mail.mega.bank.example"],
            Word::Fail,
            Quarantine,
            Some("giant.bank.example"),
        ),
        (
            bank,
            "giant.bank.example",
            "bank.example",
            &["mega.bank.example"],
            Word::Fail,
            Quarantine,
            Some("bank.example"),
        ),
        (bank, "mail.giant.bank.example", "", &["giant.bank.example"], Word::Pass, Quarantine, Some("bank.example")),
        (bank, "bank.example", "mail.bank.example", &[], Word::Fail, Reject, Some("bank.example")),
        (
            "_dmarc.example TXT v=DMARC1; p=reject; psd=y\n_dmarc.foo.example TXT v=DMARC1; p=none",
            "foo.example",
            "",
            &[],
            Word::Fail,
            Nothing,
            Some("foo.example"),
        ),
    ])
    .await;
}

/// hostile.md, DMARC: `np` is for names that do not exist, `sp` for those that do.
#[tokio::test]
async fn section_4_7_np_and_sp() {
    use Policy::{None as Nothing, Quarantine, Reject};
    let np = "_dmarc.b.example TXT v=DMARC1; p=reject; sp=none; np=quarantine";
    let with = |line: &str| format!("{np}\n{line}");
    let (a, mx, below) =
        (with("a.b.example A 192.0.2.1"), with("a.b.example MX 1 m.example"), with("x.a.b.example A 192.0.2.1"));
    hold(&[
        (np, "a.b.example", "", &[], Word::Fail, Quarantine, Some("b.example")),
        (&a, "a.b.example", "", &[], Word::Fail, Nothing, Some("b.example")),
        (&mx, "a.b.example", "", &[], Word::Fail, Nothing, Some("b.example")),
        (&below, "a.b.example", "", &[], Word::Fail, Nothing, Some("b.example")),
        (np, "b.example", "", &[], Word::Fail, Reject, Some("b.example")),
        (
            "_dmarc.b.example TXT v=DMARC1; p=quarantine; np=reject",
            "a.b.example",
            "",
            &[],
            Word::Fail,
            Reject,
            Some("b.example"),
        ),
        (
            "_dmarc.gov.example TXT v=DMARC1; p=reject; sp=none; np=reject; psd=y",
            "fake.gov.example",
            "",
            &[],
            Word::Fail,
            Reject,
            Some("gov.example"),
        ),
    ])
    .await;
}

/// hostile.md, DMARC: t=y takes one step back, p may be missing, v has its letters, three strings are one.
#[tokio::test]
async fn section_4_7_test_mode_and_what_records_may_lack() {
    use Policy::{None as Nothing, Quarantine, Reject};
    let b = Some("b.example");
    hold(&[
        ("_dmarc.b.example TXT v=DMARC1; p=reject; t=y", "b.example", "", &[], Word::Fail, Quarantine, b),
        ("_dmarc.b.example TXT v=DMARC1; p=quarantine; t=Y", "b.example", "", &[], Word::Fail, Nothing, b),
        ("_dmarc.b.example TXT v=DMARC1; p=reject; sp=quarantine; t=y", "a.b.example", "", &[], Word::Fail, Nothing, b),
        ("_dmarc.b.example TXT v=DMARC1; p=reject; t=n; pct=0", "b.example", "", &[], Word::Fail, Reject, b),
        ("_dmarc.b.example TXT v=DMARC1; rua=mailto:d@b.example", "b.example", "", &[], Word::Fail, Nothing, b),
        (
            "_dmarc.b.example TXT v=DMARC1; rua=mailto:d@b.example",
            "b.example",
            "",
            &["b.example"],
            Word::Pass,
            Nothing,
            b,
        ),
        ("_dmarc.b.example TXT v=DMARC1; adkim=s", "b.example", "", &[], Word::None, Nothing, None),
        ("_dmarc.b.example TXT v=dmarc1; p=reject", "b.example", "", &[], Word::None, Nothing, None),
        (
            "_dmarc.b.example TXT v=DMARC1; p=reject; adkim=oops",
            "b.example",
            "",
            &["a.b.example"],
            Word::Pass,
            Reject,
            b,
        ),
    ])
    .await;
}

#[tokio::test]
async fn a_failing_dns_is_no_verdict_and_hides_none() {
    use Policy::{None as Nothing, Reject};
    let above = &format!("{REJECT}\n_dmarc.example SERVFAIL");
    let below = &format!("{REJECT}\n_dmarc.a.b.example SERVFAIL");
    let strict = "_dmarc.b.example TXT v=DMARC1; p=reject; adkim=s; aspf=s\n_dmarc.a.b.example SERVFAIL";
    let np = "_dmarc.b.example TXT v=DMARC1; p=reject; np=none\na.b.example SERVFAIL A";
    let same = "_dmarc.b.example TXT v=DMARC1; p=reject\na.b.example SERVFAIL A";
    hold(&[
        ("_dmarc.b.example SERVFAIL", "b.example", "", &["b.example"], Word::TempError, Nothing, None),
        ("_dmarc.b.example SERVFAIL", "a.b.example", "", &[], Word::TempError, Nothing, None),
        // Who passes as the author's domain itself needs nothing from above.
        (above, "b.example", "", &["b.example"], Word::Pass, Reject, Some("b.example")),
        (above, "b.example", "b.example", &[], Word::Pass, Reject, Some("b.example")),
        (above, "b.example", "", &["a.b.example"], Word::TempError, Nothing, None),
        (above, "b.example", "", &[], Word::TempError, Nothing, None),
        (below, "b.example", "", &["a.b.example"], Word::TempError, Reject, Some("b.example")),
        (below, "b.example", "c.b.example", &["a.b.example"], Word::Pass, Reject, Some("b.example")),
        (strict, "b.example", "", &["a.b.example"], Word::Fail, Reject, Some("b.example")),
        (REJECT, "b.example", "", &["temp:b.example"], Word::TempError, Reject, Some("b.example")),
        (REJECT, "b.example", "temp:b.example", &["other.example"], Word::TempError, Reject, Some("b.example")),
        (REJECT, "b.example", "temp:other.example", &["temp:other.example"], Word::Fail, Reject, Some("b.example")),
        (REJECT, "b.example", "temp:b.example", &["b.example"], Word::Pass, Reject, Some("b.example")),
        // Whether the name exists is unknown: which policy is meant as well.
        (np, "a.b.example", "", &[], Word::TempError, Reject, Some("b.example")),
        (np, "a.b.example", "b.example", &[], Word::Pass, Reject, Some("b.example")),
        (same, "a.b.example", "", &[], Word::Fail, Reject, Some("b.example")),
    ])
    .await;
}

/// hostile.md, DMARC: the walk asks at most eight times, and all of it at most ten.
#[tokio::test]
async fn the_walk_is_bounded_and_what_lies_beyond_the_budget_is_no_verdict() {
    let zone = Zone::parse("");
    evaluate(&zone, "a.b.c.d.e.f.g.h.i.j.k.b.example", "", &[]).await;
    assert_eq!(zone.asked(), 8);

    let signers: Vec<String> = (0..10).map(|n| format!("s{n}.b.example")).collect();
    let signers: Vec<&str> = signers.iter().map(String::as_str).collect();
    let zone = Zone::parse(REJECT);
    let verdict = evaluate(&zone, "b.example", "bounce.b.example", &signers).await;
    assert_eq!((verdict.result, zone.asked()), (Word::Pass, DMARC_QUESTIONS_MAX as usize));

    // Each of these is an organization of its own, so that nobody is aligned; the last ones nobody could look up.
    let own: String = signers.iter().map(|signer| format!("_dmarc.{signer} TXT v=DMARC1; p=none; psd=n\n")).collect();
    let zone = Zone::parse(&format!("{REJECT}\n{own}"));
    let verdict = evaluate(&zone, "b.example", "", &signers).await;
    assert_eq!((verdict.result, verdict.reason), (Word::PermError, Some("too many look-ups")));
    let verdict = evaluate(&zone, "b.example", "", &signers[..3]).await;
    assert_eq!((verdict.result, verdict.policy), (Word::Fail, Policy::Reject));
}
