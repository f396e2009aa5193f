//! What the checks' results mean for a message, before any rule sees it. Pure.

use super::verify;
use super::{AuthReport, Policy, SpfResult, Word};
use crate::address::Domain;
use crate::reply::{self, Refusal, Reply};

/// What the administrator wants checked, and what shall come of it (`[auth]`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    pub checks: verify::Settings,
    pub dmarc: DmarcMode,
    pub on_temperror: OnTemperror,
    /// The domains whose ARC seal is believed: a DMARC fail under it is only recorded. Lists and forwarders break
    /// signatures, and say so.
    pub sealers: Vec<Domain>,
}

/// What a DMARC fail does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DmarcMode {
    /// Refused under p=reject, quarantined under p=quarantine.
    Enforce,
    /// Quarantined under both.
    Quarantine,
    /// Only recorded.
    Mark,
}

/// What a look-up that failed for the moment does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnTemperror {
    Accept,
    /// 451: the client shall try again.
    Defer,
}

/// What becomes of the message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Disposition {
    /// The rules decide.
    Take,
    /// Its legs are quarantined, for this reason.
    Quarantine(String),
    Refuse(Refusal),
}

/// Reads a report under the administrator's settings. A failure of the DNS is never a verdict: it defers at the most.
#[must_use]
pub fn dispose(report: &AuthReport, settings: &Settings) -> Disposition {
    if settings.on_temperror == OnTemperror::Defer && report.has_temperror() {
        return Disposition::Refuse(Refusal::new(reply::AUTH_UNKNOWN));
    }
    let Some(dmarc) = report.dmarc.as_ref().filter(|dmarc| dmarc.result == Word::Fail) else {
        return Disposition::Take;
    };
    if is_vouched_for(report, &settings.sealers) {
        return Disposition::Take;
    }
    let domain = dmarc.from_domain.as_deref().unwrap_or("its From domain");
    let quarantined =
        || Disposition::Quarantine(format!("DMARC fails and {domain} asks for {}", dmarc.policy.as_str()));
    match (settings.dmarc, dmarc.policy) {
        (DmarcMode::Mark, _) | (_, Policy::None) => Disposition::Take,
        (DmarcMode::Enforce, Policy::Reject) => Disposition::Refuse(Refusal::new(dmarc_failed(report))),
        (DmarcMode::Enforce, Policy::Quarantine) | (DmarcMode::Quarantine, Policy::Quarantine | Policy::Reject) => {
            quarantined()
        }
    }
}

/// The chain of seals holds, and its last sealer is one whom the administrator believes (RFC 8617 §5.2, §9.2).
fn is_vouched_for(report: &AuthReport, sealers: &[Domain]) -> bool {
    let arc = report.arc.as_ref().filter(|arc| arc.result == Word::Pass);
    let sealer = arc.and_then(|arc| arc.sealer.as_deref());
    sealer.is_some_and(|sealer| sealers.iter().any(|listed| listed.as_str().eq_ignore_ascii_case(sealer)))
}

/// The refusal, with what the MAIL FROM domain's owner tells those who fail SPF (RFC 7208 §6.2), marked as his words.
fn dmarc_failed(report: &AuthReport) -> Reply {
    let spf = report.spf_mailfrom.as_ref().filter(|spf| spf.result == SpfResult::Fail);
    let Some((spf, explanation)) = spf.and_then(|spf| Some((spf, spf.explanation.as_ref()?))) else {
        return reply::DMARC_FAILED;
    };
    let refusal = reply::DMARC_FAILED;
    let domain: String = spf.domain.chars().filter(char::is_ascii_graphic).take(DOMAIN_OCTETS_MAX).collect();
    let text = format!("{}; {domain} explains: {explanation}", refusal.text);
    Reply::with_text(refusal.code, reply::Enhanced(5, 7, 1), &text)
}

/// With the explanation's own limit of 300 octets the line stays below 512 (RFC 5321 §4.5.3.1.5).
const DOMAIN_OCTETS_MAX: usize = 100;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::fixtures::dmarc;
    use crate::auth::{ArcVerdict, SpfVerdict};

    fn report(result: Word, policy: Policy) -> AuthReport {
        AuthReport { dmarc: Some(dmarc(result, policy, "a.example")), ..AuthReport::default() }
    }

    fn settings(dmarc: DmarcMode, on_temperror: OnTemperror) -> Settings {
        let checks = verify::Settings { spf: true, dkim: true, dmarc: true, arc: true, ptr: true };
        Settings { checks, dmarc, on_temperror, sealers: vec![Domain::parse("seal.example").unwrap()] }
    }

    #[test]
    fn a_dmarc_fail_does_what_mode_and_policy_say() {
        for (mode, policy, wanted) in [
            (DmarcMode::Enforce, Policy::Reject, "refused"),
            (DmarcMode::Enforce, Policy::Quarantine, "quarantined"),
            (DmarcMode::Enforce, Policy::None, "taken"),
            (DmarcMode::Quarantine, Policy::Reject, "quarantined"),
            (DmarcMode::Quarantine, Policy::Quarantine, "quarantined"),
            (DmarcMode::Quarantine, Policy::None, "taken"),
            (DmarcMode::Mark, Policy::Reject, "taken"),
            (DmarcMode::Mark, Policy::Quarantine, "taken"),
            (DmarcMode::Mark, Policy::None, "taken"),
        ] {
            let got = match dispose(&report(Word::Fail, policy), &settings(mode, OnTemperror::Accept)) {
                Disposition::Take => "taken",
                Disposition::Quarantine(_) => "quarantined",
                Disposition::Refuse(refusal) => {
                    assert_eq!(refusal.reply().code, 550);
                    "refused"
                }
            };
            assert_eq!(got, wanted, "{mode:?} {policy:?}");
        }
    }

    #[test]
    fn the_refusal_passes_on_what_the_domain_explains_in_one_line() {
        for (result, domain, explanation, want) in [
            (SpfResult::Fail, "a.example", Some("ask us"), "; a.example explains: ask us"),
            (SpfResult::Fail, "a.example", None, ""),
            (SpfResult::SoftFail, "a.example", Some("ask us"), ""),
            (SpfResult::Fail, "a\r\n250 é.example", Some("x"), "; a250.example explains: x"),
        ] {
            let mut report = report(Word::Fail, Policy::Reject);
            let (domain, explanation) = (domain.to_owned(), explanation.map(str::to_owned));
            report.spf_mailfrom = Some(SpfVerdict { result, domain, reason: None, explanation });
            let text = dmarc_failed(&report).text;
            assert_eq!(text, format!("{}{want}", reply::DMARC_FAILED.text));
        }
        let mut report = report(Word::Fail, Policy::Reject);
        let (domain, explanation) = ("d".repeat(253), Some("x".repeat(300)));
        report.spf_mailfrom = Some(SpfVerdict { result: SpfResult::Fail, domain, reason: None, explanation });
        let mut line = Vec::new();
        dmarc_failed(&report).write(&mut line);
        assert!(line.len() <= 512, "{}", line.len());
    }

    #[test]
    fn a_listed_sealer_turns_a_fail_into_a_mark_and_nobody_else_does() {
        for (result, sealer, is_taken) in [
            (Word::Pass, Some("seal.example"), true),
            (Word::Pass, Some("Seal.Example"), true),
            (Word::Pass, Some("xseal.example"), false),
            (Word::Pass, Some("a.seal.example"), false),
            (Word::Pass, None, false),
            (Word::Fail, Some("seal.example"), false),
            (Word::TempError, Some("seal.example"), false),
            (Word::None, None, false),
        ] {
            let mut report = report(Word::Fail, Policy::Reject);
            report.arc = Some(ArcVerdict { result, sealer: sealer.map(str::to_owned), reason: None });
            let taken = dispose(&report, &settings(DmarcMode::Enforce, OnTemperror::Accept)) == Disposition::Take;
            assert_eq!(taken, is_taken, "{result:?} {sealer:?}");
        }
    }

    #[test]
    fn nothing_but_a_fail_is_held_against_a_message() {
        for result in [Word::None, Word::Pass, Word::TempError, Word::PermError, Word::Neutral, Word::Policy] {
            let report = report(result, Policy::Reject);
            assert_eq!(dispose(&report, &settings(DmarcMode::Enforce, OnTemperror::Accept)), Disposition::Take);
        }
    }

    #[test]
    fn a_dns_failure_defers_where_that_is_wanted_and_never_refuses_for_good() {
        let unknown = report(Word::TempError, Policy::None);
        let Disposition::Refuse(refusal) = dispose(&unknown, &settings(DmarcMode::Enforce, OnTemperror::Defer)) else {
            panic!("deferred");
        };
        assert_eq!(refusal.reply().code, 451);
    }
}
