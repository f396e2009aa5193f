//! DMARC (RFC 9989): the names that its tree walks visit are asked for here, the library walks.

use std::sync::Arc;

use mail_auth::dkim::Signature;
use mail_auth::dmarc::DmarcRecord;
use mail_auth::dmarc::verify::DmarcParameters;
use mail_auth::{AuthenticatedMessage, DkimOutput, DkimResult, DmarcResult, Error, MessageAuthenticator, Parameters};
use mail_auth::{SpfOutput, dmarc};

use super::answers::{Answers, Texts};
use super::at_once;
use crate::auth::spf::{SpfResult, SpfVerdict};
use crate::auth::{DkimVerdict, DmarcVerdict, Policy, PolicyRecord, Word, is_at_or_below};
use crate::dns::{self, Dns, DnsError};

/// What stands on the walk from the author's domain up, by the domains of the walk.
pub(super) async fn author_walk(dns: &dyn Dns, from: Option<&str>) -> Vec<(String, Texts)> {
    match from {
        Some(from) => look_up(dns, walk(from)).await,
        None => Vec::new(),
    }
}

/// Evaluates the policy. `from` is the domain of From, where there is exactly one; `found` its walk.
pub(super) async fn evaluate(
    library: &MessageAuthenticator,
    dns: &dyn Dns,
    from: Option<&str>,
    found: Vec<(String, Texts)>,
    spf: Option<&SpfVerdict>,
    dkim: &[DkimVerdict],
) -> DmarcVerdict {
    let Some(from) = from else {
        // Whatever is said about one of several senders must not be taken for the other.
        return DmarcVerdict { reason: Some("From does not name one domain"), ..verdict(Word::PermError, None) };
    };
    let identities = identities(spf, dkim);
    // Who passes as the domain of From itself is aligned whatever stands above it.
    let is_itself = identities.iter().any(|one| one.result == Word::Pass && one.domain == from);
    let mut answers = Answers::default();
    let mut policies = Vec::new();
    for (domain, texts) in &found {
        let settled = is_itself && policies.first().is_some_and(|first| first == from);
        let texts = if settled && texts.is_err() { &NOTHING } else { texts };
        if answers.add_policy(&policy_name(domain), texts) {
            policies.push(domain.clone());
        }
    }
    let over_budget = match is_itself {
        true => false,
        false => add_other_walks(dns, &mut answers, &found, &policies, &identities).await,
    };
    let mut is_unsure = false;
    if !policies.is_empty() && policies.iter().all(|domain| domain != from) {
        let existence = dns.a(from).await;
        is_unsure = existence.as_ref().is_err_and(|error| !error.is_void());
        answers.add_existence(from, existence);
    }
    let (mut verdict, record) = apply(library, from, &answers, spf, &identities);
    // No verdict rests on what could not be looked up: neither whether `np` is meant, nor who is aligned.
    let unsure_policy = is_unsure && record.is_some_and(|record| record.np != record.sp);
    match verdict.result {
        Word::Fail if over_budget => (verdict.result, verdict.reason) = (Word::PermError, Some("too many look-ups")),
        Word::Fail if unsure_policy => (verdict.result, verdict.reason) = (Word::TempError, Some("DNS gave no answer")),
        _ => {}
    }
    verdict
}

/// A domain that authenticated or might have, for want of DNS.
struct Identity {
    domain: String,
    result: Word,
    is_spf: bool,
}

/// Those that count, the passing ones first: the look-ups that alignment takes are few.
fn identities(spf: Option<&SpfVerdict>, dkim: &[DkimVerdict]) -> Vec<Identity> {
    let spf = spf.and_then(|spf| {
        let result = match spf.result {
            SpfResult::Pass => Word::Pass,
            SpfResult::TempError => Word::TempError,
            SpfResult::None | SpfResult::Neutral | SpfResult::Fail | SpfResult::SoftFail | SpfResult::PermError => {
                return None;
            }
        };
        Some(Identity { domain: spf.domain.to_ascii_lowercase(), result, is_spf: true })
    });
    let dkim = dkim.iter().filter(|one| matches!(one.result, Word::Pass | Word::TempError));
    let dkim = dkim.map(|one| Identity { domain: one.domain.to_ascii_lowercase(), result: one.result, is_spf: false });
    let mut all: Vec<Identity> = spf.into_iter().chain(dkim).collect();
    all.sort_by_key(|one| one.result != Word::Pass);
    all
}

/// A relaxed alignment walks from the other domains too, where they are below a policy of the author's walk. True if
/// the budget did not reach for all of them.
async fn add_other_walks(
    dns: &dyn Dns,
    answers: &mut Answers,
    found: &[(String, Texts)],
    policies: &[String],
    identities: &[Identity],
) -> bool {
    let mut others: Vec<String> = Vec::new();
    for identity in identities {
        if policies.iter().any(|above| is_at_or_below(&identity.domain, above)) {
            let new = |name: &String| !others.contains(name) && found.iter().all(|(known, _)| known != name);
            let names: Vec<String> = walk(&identity.domain).into_iter().filter(new).collect();
            others.extend(names);
        }
    }
    let mut over_budget = false;
    for (domain, texts) in look_up(dns, others).await {
        over_budget |= texts == Err(DnsError::OverBudget);
        answers.add_policy(&policy_name(&domain), &texts);
    }
    over_budget
}

/// The library's verdict on the answers, and the record that it rests on.
fn apply(
    library: &MessageAuthenticator,
    from: &str,
    answers: &Answers,
    spf: Option<&SpfVerdict>,
    identities: &[Identity],
) -> (DmarcVerdict, Option<Arc<DmarcRecord>>) {
    // From was read strictly before; what the library gets cannot be read in two ways.
    let header = format!("From: <author@{from}>\r\n\r\n");
    let signed = identities.iter().filter(|one| !one.is_spf);
    let signatures: Vec<(Signature, Word)> =
        signed.map(|one| (Signature { d: one.domain.clone(), ..Signature::default() }, one.result)).collect();
    let outputs: Vec<DkimOutput<'_>> = signatures
        .iter()
        .map(|(signature, result)| {
            let result = match result {
                Word::Pass => DkimResult::Pass,
                _ => DkimResult::TempError(Error::Dns(mail_auth::DnsError::Resolver(String::new()))),
            };
            DkimOutput::from(result).with_signature(signature)
        })
        .collect();
    let spf_domain = spf.map(|spf| spf.domain.to_ascii_lowercase()).unwrap_or_default();
    let spf_output = SpfOutput::new(spf_domain.clone()).with_result(match spf.map(|spf| spf.result) {
        None | Some(SpfResult::None) => mail_auth::SpfResult::None,
        Some(SpfResult::Neutral) => mail_auth::SpfResult::Neutral,
        Some(SpfResult::Pass) => mail_auth::SpfResult::Pass,
        Some(SpfResult::Fail) => mail_auth::SpfResult::Fail,
        Some(SpfResult::SoftFail) => mail_auth::SpfResult::SoftFail,
        Some(SpfResult::TempError) => mail_auth::SpfResult::TempError,
        Some(SpfResult::PermError) => mail_auth::SpfResult::PermError,
    });
    let output = AuthenticatedMessage::parse(header.as_bytes()).and_then(|message| {
        let parameters = DmarcParameters::new(&message, &outputs, &spf_domain, &spf_output);
        at_once(library.verify_dmarc(Parameters::new(parameters).with_cache(answers)))
    });
    let Some(output) = output else { return (verdict(Word::TempError, Some(from)), None) };
    let (result, reason) = match output.result() {
        DmarcResult::Pass => (Word::Pass, None),
        DmarcResult::Fail(_) => (Word::Fail, None),
        DmarcResult::TempError(_) => (Word::TempError, Some("DNS gave no answer")),
        DmarcResult::PermError(_) => (Word::PermError, Some("the policy cannot be read")),
        DmarcResult::None => (Word::None, None),
    };
    let record = output.record().cloned();
    let described = record.as_ref().and_then(|record| {
        let domain = answers.place_of(record)?.strip_prefix("_dmarc.")?.to_owned();
        Some(PolicyRecord { domain, policy: policy(record.p) })
    });
    let policy = policy(output.policy());
    (DmarcVerdict { policy, record: described, reason, ..verdict(result, Some(from)) }, record)
}

fn verdict(result: Word, from: Option<&str>) -> DmarcVerdict {
    DmarcVerdict { result, policy: Policy::None, from_domain: from.map(str::to_owned), record: None, reason: None }
}

fn policy(policy: dmarc::Policy) -> Policy {
    match policy {
        dmarc::Policy::None | dmarc::Policy::Unspecified => Policy::None,
        dmarc::Policy::Quarantine => Policy::Quarantine,
        dmarc::Policy::Reject => Policy::Reject,
    }
}

/// RFC 9989 §4.10: the domain, then its parents, at most eight; names of more than eight labels jump to seven.
fn walk(domain: &str) -> Vec<String> {
    let labels: Vec<&str> = domain.split('.').filter(|label| !label.is_empty()).collect();
    if labels.len() < 2 {
        return Vec::new();
    }
    let mut names = vec![labels.join(".")];
    let mut keep = labels.len();
    while keep > 1 {
        keep = if keep >= WALK_MAX { WALK_MAX - 1 } else { keep - 1 };
        names.push(labels[labels.len() - keep..].join("."));
    }
    names
}

async fn look_up(dns: &dyn Dns, domains: Vec<String>) -> Vec<(String, Texts)> {
    let names: Vec<String> = domains.iter().map(|domain| policy_name(domain)).collect();
    let answers = dns::txt_each(dns, &names).await;
    domains.into_iter().zip(answers).collect()
}

fn policy_name(domain: &str) -> String {
    format!("_dmarc.{domain}")
}

const NOTHING: Texts = Err(DnsError::NotFound);
const WALK_MAX: usize = 8;

#[cfg(test)]
mod tests {
    use super::walk;

    #[test]
    fn section_4_10_the_walk_goes_up_in_at_most_eight_steps() {
        assert_eq!(walk("a.b.example"), ["a.b.example", "b.example", "example"]);
        assert!(walk("example").is_empty());
        assert_eq!(walk("a.b.c.d.e.f.g.example").len(), 8);
        assert_eq!(walk("z.a.b.c.d.e.f.g.example").len(), 8);
        let long = walk("a.b.c.d.e.f.g.h.i.j.mail.example.com");
        assert_eq!(long.len(), 8);
        assert_eq!(long[1], "g.h.i.j.mail.example.com");
    }
}
