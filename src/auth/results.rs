//! The Authentication-Results field (RFC 8601) of a report. Pure.
//!
//! Everything a peer chose (names, domains, selectors) goes through [`value`], which lets nothing out of its place: no
//! line end, no semicolon, no comment. One result stands on each line.

use std::net::IpAddr;

use super::{AuthReport, DkimVerdict, DmarcVerdict, SpfVerdict, Word};
use crate::address::ReversePath;

/// The field with its CRLF, for the server `authserv_id`; `ip` and `sender` are those of the transaction.
#[must_use]
pub fn field(report: &AuthReport, authserv_id: &str, ip: IpAddr, sender: &ReversePath) -> String {
    let mut results = Vec::new();
    if let Some(spf) = &report.spf_mailfrom {
        // RFC 7208 §2.4: without a reverse-path the identity is postmaster at the HELO name.
        let identity = sender.mailbox().map_or_else(|| format!("postmaster@{}", spf.domain), ToString::to_string);
        results.push(spf_result(spf, "smtp.mailfrom", &identity));
    }
    if let Some(spf) = &report.spf_helo {
        results.push(spf_result(spf, "smtp.helo", &spf.domain));
    }
    match report.dkim.as_deref() {
        None => {}
        Some([]) => results.push("dkim=none".into()),
        Some(signatures) => results.extend(signatures.iter().map(dkim_result)),
    }
    let ip = value(&ip.to_canonical().to_string());
    results.extend(report.dmarc.as_ref().map(dmarc_result));
    if let Some(arc) = &report.arc {
        // RFC 8617 §10.2; a message without a chain has nothing to say about it.
        let client = if arc.result == Word::None { String::new() } else { format!(" smtp.remote-ip={ip}") };
        let sealer = arc.sealer.as_deref().map(|sealer| format!(" header.d={}", value(sealer)));
        results.push(format!(
            "arc={}{}{client}{}",
            arc.result.as_str(),
            reason(arc.reason),
            sealer.unwrap_or_default()
        ));
    }
    if let Some(ptr) = &report.ptr {
        let name = ptr.name.as_deref().map(|name| format!(" policy.ptr={}", value(name)));
        results.push(format!("iprev={} policy.iprev={ip}{}", ptr.result.as_str(), name.unwrap_or_default()));
    }
    if results.is_empty() {
        // RFC 8601 §2.2, no-result.
        results.push("none".into());
    }
    format!("Authentication-Results: {authserv_id};\r\n\t{}\r\n", results.join(";\r\n\t"))
}

fn spf_result(spf: &SpfVerdict, property: &str, identity: &str) -> String {
    format!("spf={}{} {property}={}", spf.result.word(), reason(spf.reason), value(identity))
}

fn dkim_result(dkim: &DkimVerdict) -> String {
    let mut text = format!("dkim={}{}", dkim.result.as_str(), reason(dkim.reason));
    for (property, of) in [
        ("header.d", dkim.domain.as_str()),
        ("header.i", &dkim.identity),
        ("header.s", &dkim.selector),
        ("header.a", dkim.algorithm),
        ("header.b", &dkim.signature_start),
    ] {
        if !of.is_empty() {
            text.push_str(&format!(" {property}={}", value(of)));
        }
    }
    text
}

/// The comment has what is asked for this message, `polrec` what was published, and where if not by From's domain itself
/// (RFC 9989 §9.1).
fn dmarc_result(dmarc: &DmarcVerdict) -> String {
    let mut text = format!("dmarc={}{} (p={})", dmarc.result.as_str(), reason(dmarc.reason), dmarc.policy.as_str());
    if let Some(from) = &dmarc.from_domain {
        text.push_str(&format!(" header.from={}", value(from)));
    }
    if let Some(record) = &dmarc.record {
        text.push_str(&format!(" polrec.p={}", record.policy.as_str()));
        if dmarc.from_domain.as_ref() != Some(&record.domain) {
            text.push_str(&format!(" polrec.domain={}", value(&record.domain)));
        }
    }
    text
}

/// Our own words, which need no escaping.
fn reason(reason: Option<&'static str>) -> String {
    reason.map(|reason| format!(" reason=\"{reason}\"")).unwrap_or_default()
}

/// A `pvalue` (RFC 8601 §2.2): a name, a number or an address as it is, everything else as a quoted string of printable
/// ASCII, cut at [`VALUE_OCTETS_MAX`].
fn value(text: &str) -> String {
    let cut: String = text.chars().take(VALUE_OCTETS_MAX).collect();
    let is_plain = |part: &str| !part.is_empty() && part.bytes().all(is_plain_octet);
    let plain = match cut.split_once('@') {
        Some((local, domain)) => is_plain(local) && is_plain(domain),
        None => is_plain(&cut),
    };
    if plain {
        return cut;
    }
    let mut quoted = String::with_capacity(cut.len() + 2);
    quoted.push('"');
    for c in cut.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            ' '..='~' => quoted.push(c),
            // A field of printable ASCII is read alike by everybody.
            _ => quoted.push('?'),
        }
    }
    quoted.push('"');
    quoted
}

/// Less than a token allows (RFC 2045 §5.1): readers are known that take an apostrophe for a quotation mark.
fn is_plain_octet(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"-._+".contains(&b)
}

/// An address has at most 254 octets.
const VALUE_OCTETS_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use super::super::fixtures::{dkim, dmarc, spf};
    use super::super::{ArcVerdict, Policy, PolicyRecord, PtrVerdict, SpfResult, Word};
    use super::*;

    fn report() -> AuthReport {
        AuthReport {
            spf_helo: Some(spf(SpfResult::None, "mail.a.example")),
            spf_mailfrom: Some(spf(SpfResult::Pass, "a.example")),
            dkim: Some(vec![dkim(Word::Pass, "a.example")]),
            dmarc: Some(dmarc(Word::Pass, Policy::Reject, "a.example")),
            arc: Some(ArcVerdict { result: Word::None, sealer: None, reason: None }),
            ptr: Some(PtrVerdict { result: Word::Pass, name: Some("mail.a.example".into()) }),
        }
    }

    fn written(report: &AuthReport, sender: &str) -> String {
        field(report, "mx.solarmora.com", "192.0.2.1".parse().unwrap(), &ReversePath::parse(sender).unwrap())
    }

    #[test]
    fn all_methods_with_their_properties() {
        assert_eq!(
            written(&report(), "u@a.example"),
            "Authentication-Results: mx.solarmora.com;\r\n\
             \tspf=pass smtp.mailfrom=u@a.example;\r\n\
             \tspf=none smtp.helo=mail.a.example;\r\n\
             \tdkim=pass header.d=a.example header.s=s1 header.a=rsa-sha256 header.b=\"Ab/d+f12\";\r\n\
             \tdmarc=pass (p=reject) header.from=a.example polrec.p=reject;\r\n\
             \tarc=none;\r\n\
             \tiprev=pass policy.iprev=192.0.2.1 policy.ptr=mail.a.example\r\n"
        );
        assert_eq!(written(&AuthReport::default(), ""), "Authentication-Results: mx.solarmora.com;\r\n\tnone\r\n");
        let unsigned = AuthReport { dkim: Some(vec![]), ..Default::default() };
        assert_eq!(written(&unsigned, ""), "Authentication-Results: mx.solarmora.com;\r\n\tdkim=none\r\n");
    }

    #[test]
    fn properties_that_only_some_results_have() {
        let mut report = report();
        let signature = report.dkim.as_mut().unwrap().first_mut().unwrap();
        signature.identity = "u@b.a.example".into();
        let record = PolicyRecord { domain: "a.example".into(), policy: Policy::Reject };
        let from = dmarc(Word::Fail, Policy::Quarantine, "b.a.example");
        report.dmarc = Some(DmarcVerdict { record: Some(record), ..from });
        report.arc = Some(ArcVerdict { result: Word::Pass, sealer: Some("seal.example".into()), reason: None });
        let text = field(&report, "mx", "2001:db8::1".parse().unwrap(), &ReversePath::parse("u@a.example").unwrap());
        for part in [
            "header.d=a.example header.i=u@b.a.example header.s=s1",
            "dmarc=fail (p=quarantine) header.from=b.a.example polrec.p=reject polrec.domain=a.example;",
            "arc=pass smtp.remote-ip=\"2001:db8::1\" header.d=seal.example;",
            "policy.iprev=\"2001:db8::1\"",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn a_peer_cannot_leave_its_value() {
        for evil in [
            "a.example; dmarc=pass header.from=bank.example",
            "a.example\r\nAuthentication-Results: mx.solarmora.com; dmarc=pass",
            "a.example (",
            "a.example\" dmarc=pass",
            "a.example\\",
            "a.example'b.example",
            "a\0b",
            "café.example",
            "",
            "=?utf-8?q?x?=",
        ] {
            let mut report = report();
            report.dkim = Some(vec![dkim(Word::Fail, evil)]);
            report.spf_helo = Some(spf(SpfResult::None, evil));
            report.dmarc = Some(dmarc(Word::Fail, Policy::None, evil));
            report.ptr = Some(PtrVerdict { result: Word::Fail, name: Some(evil.into()) });
            let text = written(&report, "\"x;\\\"y\"@a.example");
            // Without its quoted strings the field has the shape that we gave it.
            let mut bare = String::new();
            let (mut quoted, mut chars) = (false, text.chars());
            while let Some(c) = chars.next() {
                match c {
                    '\\' if quoted => drop(chars.next()),
                    '"' => quoted = !quoted,
                    c if !quoted => bare.push(c),
                    _ => {}
                }
            }
            assert!(!quoted, "{text}");
            assert_eq!(bare.matches(';').count(), 6, "{text}");
            assert_eq!(text.matches("\r\n").count(), 7, "{text}");
            assert!(text.bytes().all(|b| matches!(b, b' '..=b'~' | b'\r' | b'\n' | b'\t')), "{text}");
            assert!(!bare.contains("bank.example"), "{text}");
        }
    }

    #[test]
    fn a_value_is_cut_at_its_limit() {
        assert_eq!(value(&"a".repeat(256)).len(), 256);
        assert_eq!(value(&"a".repeat(257)).len(), 256);
    }
}
