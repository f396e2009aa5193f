//! Who sent it: what SPF, DKIM, DMARC, ARC and the client's name say, as values. Pure here.
//!
//! [`spf`] is ours; `verify` asks a library for the signatures and puts everything together; [`results`] writes
//! the report into a header field, [`cuts`] finds what a stranger wrote in our name and [`coverage`] what we must not add.
//! The words are RFC 8601's. A DNS failure is `temperror` throughout: it never becomes a verdict. [`sign`] is the other way
//! round: what we write ourselves says who we are.

use crate::address::ReversePath;

pub mod coverage;
pub mod cuts;
#[cfg(feature = "daemon")]
pub mod disposition;
#[cfg(feature = "daemon")]
pub mod key_file;
pub mod results;
#[cfg(feature = "daemon")]
pub mod seal;
#[cfg(feature = "daemon")]
pub mod sign;
pub mod spf;
#[cfg(feature = "daemon")]
pub mod verify;

pub use spf::{SpfResult, SpfVerdict};

/// What the checks found. A check that did not run is `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AuthReport {
    pub spf_helo: Option<SpfVerdict>,
    pub spf_mailfrom: Option<SpfVerdict>,
    /// One for each signature, at most [`verify::SIGNATURES_MAX`]; `Some` and empty where there is none.
    pub dkim: Option<Vec<DkimVerdict>>,
    pub dmarc: Option<DmarcVerdict>,
    pub arc: Option<ArcVerdict>,
    pub ptr: Option<PtrVerdict>,
}

/// A result of DKIM, DMARC, ARC or of the client's name (RFC 8601 §2.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    None,
    Pass,
    Fail,
    /// It verified, and our policy does not count it.
    Policy,
    Neutral,
    TempError,
    PermError,
}

/// One DKIM signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DkimVerdict {
    pub result: Word,
    /// `d=`, `s=`, `i=`, `a=` and the first characters of `b=` (RFC 6008); empty where the field cannot be read or has none.
    pub domain: String,
    pub selector: String,
    pub identity: String,
    pub algorithm: &'static str,
    pub signature_start: String,
    /// `h=`, in lower case: what must not be added, cut or changed while the signature counts.
    pub signed_fields: Vec<String>,
    /// Why it does not pass, in our words.
    pub reason: Option<&'static str>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DmarcVerdict {
    pub result: Word,
    /// What the domain's owner asks for where the result is `fail`.
    pub policy: Policy,
    /// The domain of From; none where From does not name exactly one.
    pub from_domain: Option<String>,
    /// The record that `policy` is of; none where none was found or read.
    pub record: Option<PolicyRecord>,
    pub reason: Option<&'static str>,
}

/// The policy record that a DMARC result rests on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyRecord {
    /// The domain that published it: that of From, or one above.
    pub domain: String,
    /// Its `p=`. What is asked for From's domain may be another: `sp=`, `np=` and `t=y` change it.
    pub policy: Policy,
}

/// RFC 9989 §4.7.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    None,
    Quarantine,
    Reject,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArcVerdict {
    pub result: Word,
    /// The domain that sealed last, if the chain was read.
    pub sealer: Option<String>,
    pub reason: Option<&'static str>,
}

/// Whether the client's address has a name that leads back to it (RFC 8601 §3, iprev).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PtrVerdict {
    pub result: Word,
    pub name: Option<String>,
}

impl Word {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Word::None => "none",
            Word::Pass => "pass",
            Word::Fail => "fail",
            Word::Policy => "policy",
            Word::Neutral => "neutral",
            Word::TempError => "temperror",
            Word::PermError => "permerror",
        }
    }

    /// Of several signatures, the one that says most about the message comes first.
    fn rank(self) -> u8 {
        match self {
            Word::Pass => 0,
            Word::TempError => 1,
            Word::Fail => 2,
            Word::Policy => 3,
            Word::PermError => 4,
            Word::Neutral => 5,
            Word::None => 6,
        }
    }
}

impl Policy {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Policy::None => "none",
            Policy::Quarantine => "quarantine",
            Policy::Reject => "reject",
        }
    }
}

impl AuthReport {
    /// SPF of MAIL FROM as one word, as rules compare it.
    #[must_use]
    pub fn spf_word(&self) -> Option<&'static str> {
        self.spf_mailfrom.as_ref().map(|spf| spf.result.word())
    }

    /// The best of the signatures' results; `none` without a signature.
    #[must_use]
    pub fn dkim_word(&self) -> Option<&'static str> {
        let best = |all: &Vec<DkimVerdict>| all.iter().map(|one| one.result).min_by_key(|word| word.rank());
        self.dkim.as_ref().map(|all| best(all).unwrap_or(Word::None).as_str())
    }

    #[must_use]
    pub fn dmarc_word(&self) -> Option<&'static str> {
        self.dmarc.as_ref().map(|dmarc| dmarc.result.as_str())
    }

    #[must_use]
    pub fn arc_word(&self) -> Option<&'static str> {
        self.arc.as_ref().map(|arc| arc.result.as_str())
    }

    /// The signatures that count.
    pub fn passing(&self) -> impl Iterator<Item = &DkimVerdict> {
        self.dkim.iter().flatten().filter(|one| one.result == Word::Pass)
    }

    /// A check could not be made for want of DNS: `on-temperror` decides.
    #[must_use]
    pub fn has_temperror(&self) -> bool {
        let spf = self.spf_mailfrom.as_ref().is_some_and(|spf| spf.result == SpfResult::TempError);
        let dmarc = self.dmarc.as_ref().is_some_and(|dmarc| dmarc.result == Word::TempError);
        // A signature nobody could check matters where nothing else says who it was.
        let dkim = self.dkim_word() == Some("temperror") && self.dmarc_word() != Some("pass");
        spf || dmarc || dkim
    }

    /// The signatures that count and are of From's domain, of one above it or of one below.
    pub fn aligned(&self) -> impl Iterator<Item = &DkimVerdict> {
        let from = self.dmarc.as_ref().and_then(|dmarc| dmarc.from_domain.as_deref());
        let is_aligned =
            move |one: &str| from.is_some_and(|from| is_at_or_below(from, one) || is_at_or_below(one, from));
        self.passing().filter(move |one| is_aligned(&one.domain))
    }

    /// A signature that counts and is aligned is of one of these domains or of one below it.
    #[must_use]
    pub fn is_signed_by(&self, domains: &[&str]) -> bool {
        self.aligned().any(|one| domains.iter().any(|domain| is_at_or_below(&one.domain, domain)))
    }

    /// The From domain asks others to distrust what is not aligned, and no aligned signature will hold at the next
    /// hop, where SPF names us: DMARC fails there.
    #[must_use]
    pub fn dmarc_at_risk(&self) -> bool {
        let Some(dmarc) = &self.dmarc else { return false };
        dmarc.from_domain.is_some() && dmarc.policy != Policy::None && self.aligned().next().is_none()
    }

    /// The MAIL FROM domain is known to have sent this, so that a notification harms nobody: SPF passed for it, or a
    /// passing signature is of the domain itself or of one above it. Never true for the null sender. From does not
    /// count here: who signs as himself could aim notifications at others. Nor does a domain below MAIL FROM's, whose
    /// keys may be a contractor's.
    #[must_use]
    pub fn authenticates(&self, sender: &ReversePath) -> bool {
        let ReversePath::Mailbox(sender) = sender else { return false };
        let domain = sender.domain().as_str();
        let spf = self.spf_mailfrom.as_ref();
        let by_spf = spf.is_some_and(|spf| spf.result == SpfResult::Pass && spf.domain.eq_ignore_ascii_case(domain));
        by_spf || self.passing().any(|one| one.domain.contains('.') && is_at_or_below(domain, &one.domain))
    }
}

fn is_at_or_below(name: &str, above: &str) -> bool {
    let Some(at) = name.len().checked_sub(above.len()) else { return false };
    let ends = name.get(at..).is_some_and(|end| end.eq_ignore_ascii_case(above));
    ends && !above.is_empty() && (at == 0 || name.as_bytes()[at - 1] == b'.')
}

#[cfg(test)]
pub(crate) mod fixtures {
    use super::*;

    pub(crate) fn dkim(result: Word, domain: &str) -> DkimVerdict {
        DkimVerdict {
            result,
            domain: domain.into(),
            selector: "s1".into(),
            identity: String::new(),
            algorithm: "rsa-sha256",
            signature_start: "Ab/d+f12".into(),
            signed_fields: vec!["from".into(), "x-spam-flag".into()],
            reason: None,
        }
    }

    pub(crate) fn spf(result: SpfResult, domain: &str) -> SpfVerdict {
        SpfVerdict { result, domain: domain.into(), reason: None, explanation: None }
    }

    pub(crate) fn dmarc(result: Word, policy: Policy, from: &str) -> DmarcVerdict {
        let record = PolicyRecord { domain: from.into(), policy };
        DmarcVerdict { result, policy, from_domain: Some(from.into()), record: Some(record), reason: None }
    }
}

#[cfg(test)]
mod tests {
    use super::fixtures::{dkim, dmarc, spf};
    use super::*;

    #[test]
    fn who_may_be_notified() {
        let sender = |text| ReversePath::parse(text).unwrap();
        for (report, from, want) in [
            (
                AuthReport { spf_mailfrom: Some(spf(SpfResult::Pass, "a.example")), ..Default::default() },
                "u@a.example",
                true,
            ),
            (AuthReport { spf_mailfrom: Some(spf(SpfResult::Pass, "a.example")), ..Default::default() }, "", false),
            (
                AuthReport { spf_mailfrom: Some(spf(SpfResult::Neutral, "a.example")), ..Default::default() },
                "u@a.example",
                false,
            ),
            (
                AuthReport { spf_helo: Some(spf(SpfResult::Pass, "a.example")), ..Default::default() },
                "u@a.example",
                false,
            ),
            (AuthReport { dkim: Some(vec![dkim(Word::Pass, "a.example")]), ..Default::default() }, "u@a.example", true),
            (
                AuthReport { dkim: Some(vec![dkim(Word::Pass, "a.example")]), ..Default::default() },
                "u@b.a.example",
                true,
            ),
            (
                AuthReport { dkim: Some(vec![dkim(Word::Pass, "b.a.example")]), ..Default::default() },
                "u@a.example",
                false,
            ),
            (
                AuthReport { dkim: Some(vec![dkim(Word::Pass, "evil.example")]), ..Default::default() },
                "u@a.example",
                false,
            ),
            (AuthReport { dkim: Some(vec![dkim(Word::Pass, "example")]), ..Default::default() }, "u@a.example", false),
            (
                AuthReport { dkim: Some(vec![dkim(Word::Policy, "a.example")]), ..Default::default() },
                "u@a.example",
                false,
            ),
            (
                AuthReport { dkim: Some(vec![dkim(Word::Pass, "a.example")]), ..Default::default() },
                "u@xa.example",
                false,
            ),
        ] {
            assert_eq!(report.authenticates(&sender(from)), want, "{from}: {report:?}");
        }
    }

    #[test]
    fn a_message_that_rests_on_spf_alone_is_at_risk() {
        let report = |dmarc, dkim| AuthReport { dmarc: Some(dmarc), dkim: Some(dkim), ..Default::default() };
        let strict = || dmarc(Word::Pass, Policy::Reject, "a.example");
        assert!(report(strict(), vec![]).dmarc_at_risk());
        assert!(report(strict(), vec![dkim(Word::Pass, "esp.example")]).dmarc_at_risk());
        assert!(!report(strict(), vec![dkim(Word::Pass, "a.example")]).dmarc_at_risk());
        assert!(!report(dmarc(Word::Pass, Policy::None, "a.example"), vec![]).dmarc_at_risk());
    }

    #[test]
    fn the_best_signature_speaks() {
        let words = |words: &[Word]| AuthReport {
            dkim: Some(words.iter().map(|word| dkim(*word, "a.example")).collect()),
            ..Default::default()
        };
        assert_eq!(words(&[]).dkim_word(), Some("none"));
        assert_eq!(words(&[Word::Fail, Word::Pass, Word::Neutral]).dkim_word(), Some("pass"));
        assert_eq!(words(&[Word::Fail, Word::TempError]).dkim_word(), Some("temperror"));
        assert!(words(&[Word::Fail, Word::TempError]).has_temperror());
        assert_eq!(AuthReport::default().dkim_word(), None);
    }
}
