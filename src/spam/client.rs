//! What speaks against the client: its name, its greeting, and what SPF, DKIM and DMARC found. Pure.
//!
//! A check that was not made, or whose DNS gave no answer, says nothing.

use std::net::IpAddr;

use super::evidence::{Evidence, Found, Peer};
use crate::address::ReversePath;
use crate::auth::{AuthReport, Policy, SpfResult, Word};

pub(super) fn look(evidence: &Evidence<'_>) -> Found {
    let mut found = Found::default();
    let Some(peer) = evidence.client else { return found };
    let auth = evidence.auth;
    let spf = auth.spf_mailfrom.as_ref().map(|spf| spf.result);
    let dmarc = auth.dmarc.as_ref();
    found.note("dmarc-pass", -1.0, dmarc.is_some_and(|dmarc| dmarc.result == Word::Pass));
    // SPF breaks where mail is forwarded; what DMARC passes is not held against it.
    let proven = dmarc.is_some_and(|dmarc| dmarc.result == Word::Pass);
    found.note("spf-fail", 2.0, spf == Some(SpfResult::Fail) && !proven);
    found.note("spf-softfail", 1.0, spf == Some(SpfResult::SoftFail) && !proven);
    let failed = dmarc.filter(|dmarc| dmarc.result == Word::Fail);
    found.note("dmarc-fail", 1.0, failed.is_some_and(|dmarc| dmarc.policy == Policy::None));
    found.note("dmarc-fail-policy", 2.5, failed.is_some_and(|dmarc| dmarc.policy != Policy::None));
    name(&mut found, &peer, auth);
    greeting(&mut found, &peer, evidence);
    own_domain(&mut found, evidence);
    found
}

/// The name that the client's address has in DNS.
fn name(found: &mut Found, peer: &Peer<'_>, auth: &AuthReport) {
    let Some(ptr) = &auth.ptr else { return };
    // No name at all is `permerror` in RFC 8601 §2.7.3; one that does not lead back is `fail`.
    found.note("no-ptr", 2.0, ptr.result == Word::PermError || ptr.result == Word::None);
    found.note("ptr-astray", 1.0, ptr.result == Word::Fail);
    let dynamic = ptr.name.as_ref().is_some_and(|name| is_dynamic(name, peer.ip));
    found.note("dynamic-ptr", 1.0, dynamic);
}

/// The name holds the address's numbers, as an access provider names its customers: mail servers are called otherwise.
fn is_dynamic(name: &str, ip: IpAddr) -> bool {
    let IpAddr::V4(v4) = ip.to_canonical() else { return false };
    let wanted = v4.octets();
    let numbers: Vec<u32> =
        name.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect();
    let holds = |octets: &[u8]| {
        numbers.windows(octets.len()).any(|run| {
            let forward = run.iter().zip(octets).all(|(number, octet)| *number == u32::from(*octet));
            let backward = run.iter().zip(octets.iter().rev()).all(|(number, octet)| *number == u32::from(*octet));
            forward || backward
        })
    };
    holds(&wanted)
}

/// What the client calls itself (RFC 5321 §4.1.1.1 wants its name, or else its address in brackets).
fn greeting(found: &mut Found, peer: &Peer<'_>, evidence: &Evidence<'_>) {
    let helo = peer.helo.trim_end_matches('.');
    if helo.is_empty() {
        return;
    }
    let bare = helo.parse::<IpAddr>().is_ok();
    let literal = helo.starts_with('[');
    found.note("helo-address", 2.0, bare);
    found.note("helo-literal", 1.0, literal);
    found.note("helo-no-domain", 1.0, !bare && !literal && !helo.contains('.'));
    // Nobody else has our name: who says it hopes to be taken for us.
    let ours = helo.eq_ignore_ascii_case(evidence.hostname) || (evidence.is_ours)(helo);
    let by_spf = evidence.auth.spf_helo.as_ref().is_some_and(|spf| spf.result == SpfResult::Pass);
    found.note("helo-ours", 3.0, ours && !by_spf);
}

/// Mail from outside in the name of a domain of ours, which nothing proves.
fn own_domain(found: &mut Found, evidence: &Evidence<'_>) {
    let auth = evidence.auth;
    let (Some(spf), Some(_)) = (&auth.spf_mailfrom, &auth.dkim) else { return };
    if auth.has_temperror() {
        return;
    }
    let from =
        evidence.reading.content.from.iter().map(|author| author.domain()).find(|domain| (evidence.is_ours)(domain));
    let envelope = match evidence.sender {
        ReversePath::Mailbox(sender) => {
            Some(sender.domain().as_str().to_owned()).filter(|domain| (evidence.is_ours)(domain))
        }
        ReversePath::Null => None,
    };
    let Some(domain) = from.or(envelope) else { return };
    let below = |name: &str| {
        name.eq_ignore_ascii_case(&domain) || domain.to_lowercase().ends_with(&format!(".{}", name.to_lowercase()))
    };
    let by_dkim = auth.passing().any(|signature| below(&signature.domain));
    let by_spf = spf.result == SpfResult::Pass && below(&spf.domain);
    let forged = !by_dkim && !by_spf;
    // A domain that publishes nothing cannot be told from a forged one: that is its owner's, that is our administrator's, doing.
    let says_so = matches!(spf.result, SpfResult::Fail | SpfResult::SoftFail)
        || auth.dmarc.as_ref().is_some_and(|dmarc| dmarc.result == Word::Fail && dmarc.policy != Policy::None);
    found.note("own-domain-forged", 4.0, forged && says_so);
    found.note("own-domain-unproven", 2.0, forged && !says_so);
}
