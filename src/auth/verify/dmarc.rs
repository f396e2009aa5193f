//! DMARC (RFC 9989): the names that its tree walks visit are asked for here, the library walks.

use std::net::Ipv4Addr;
use std::sync::Arc;

use mail_auth::dkim::Signature;
use mail_auth::dmarc::verify::DmarcParameters;
use mail_auth::{AuthenticatedMessage, DkimOutput, DkimResult, DmarcResult, Error, MessageAuthenticator, Parameters};
use mail_auth::{SpfOutput, dmarc};

use super::answers::{Answers, Texts};
use super::at_once;
use crate::auth::spf::{SpfResult, SpfVerdict};
use crate::auth::{DkimVerdict, DmarcVerdict, Policy, Word, is_at_or_below};
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
        return DmarcVerdict {
            result: Word::PermError,
            policy: Policy::None,
            from_domain: None,
            reason: Some("From does not name one domain"),
        };
    };
    let mut answers = Answers::default();
    let mut policies = Vec::new();
    for (domain, texts) in &found {
        if answers.add_policy(&policy_name(domain), texts) {
            policies.push(domain.clone());
        }
    }
    let spf_domain = spf.map(|spf| spf.domain.to_ascii_lowercase()).unwrap_or_default();
    let counting: Vec<&DkimVerdict> =
        dkim.iter().filter(|one| matches!(one.result, Word::Pass | Word::TempError)).collect();

    // A relaxed alignment walks from the other domains too, where they are below a policy of the author's walk.
    let mut others: Vec<String> = Vec::new();
    for domain in counting.iter().map(|one| one.domain.as_str()).chain([spf_domain.as_str()]) {
        if policies.iter().any(|above| is_at_or_below(domain, above)) {
            let new = |name: &String| !others.contains(name) && found.iter().all(|(known, _)| known != name);
            let names: Vec<String> = walk(&domain.to_ascii_lowercase()).into_iter().filter(new).collect();
            others.extend(names);
        }
    }
    for (domain, texts) in look_up(dns, others).await {
        answers.add_policy(&policy_name(&domain), &texts);
    }
    if !policies.is_empty() && policies.iter().all(|domain| domain != from) {
        answers.add_existence(from, existence(dns, from).await);
    }
    apply(library, from, &answers, spf, &spf_domain, &counting)
}

fn apply(
    library: &MessageAuthenticator,
    from: &str,
    answers: &Answers,
    spf: Option<&SpfVerdict>,
    spf_domain: &str,
    counting: &[&DkimVerdict],
) -> DmarcVerdict {
    // From was read strictly before; what the library gets cannot be read in two ways.
    let header = format!("From: <author@{from}>\r\n\r\n");
    let signatures: Vec<(Signature, Word)> = counting
        .iter()
        .map(|one| (Signature { d: one.domain.to_ascii_lowercase(), ..Signature::default() }, one.result))
        .collect();
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
    let spf_output = SpfOutput::new(spf_domain.to_owned()).with_result(match spf.map(|spf| spf.result) {
        None | Some(SpfResult::None) => mail_auth::SpfResult::None,
        Some(SpfResult::Neutral) => mail_auth::SpfResult::Neutral,
        Some(SpfResult::Pass) => mail_auth::SpfResult::Pass,
        Some(SpfResult::Fail) => mail_auth::SpfResult::Fail,
        Some(SpfResult::SoftFail) => mail_auth::SpfResult::SoftFail,
        Some(SpfResult::TempError) => mail_auth::SpfResult::TempError,
        Some(SpfResult::PermError) => mail_auth::SpfResult::PermError,
    });
    let output = AuthenticatedMessage::parse(header.as_bytes()).and_then(|message| {
        let parameters = DmarcParameters::new(&message, &outputs, spf_domain, &spf_output);
        at_once(library.verify_dmarc(Parameters::new(parameters).with_cache(answers)))
    });
    let (result, policy, reason) = match &output {
        Some(output) => {
            let (result, reason) = match output.result() {
                DmarcResult::Pass => (Word::Pass, None),
                DmarcResult::Fail(_) => (Word::Fail, None),
                DmarcResult::TempError(_) => (Word::TempError, Some("DNS gave no answer")),
                DmarcResult::PermError(_) => (Word::PermError, Some("the policy cannot be read")),
                DmarcResult::None => (Word::None, None),
            };
            let policy = match output.policy() {
                dmarc::Policy::None | dmarc::Policy::Unspecified => Policy::None,
                dmarc::Policy::Quarantine => Policy::Quarantine,
                dmarc::Policy::Reject => Policy::Reject,
            };
            (result, policy, reason)
        }
        None => (Word::TempError, Policy::None, None),
    };
    DmarcVerdict { result, policy, from_domain: Some(from.to_owned()), reason }
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

async fn existence(dns: &dyn Dns, domain: &str) -> Result<Arc<[Ipv4Addr]>, DnsError> {
    dns.a(domain).await
}

fn policy_name(domain: &str) -> String {
    format!("_dmarc.{domain}")
}

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
