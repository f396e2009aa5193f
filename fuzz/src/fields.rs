//! The header fields that we write: whatever strangers chose of their contents, they keep the shape that we gave them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use pointsman::address::Mailbox;
use pointsman::auth::{
    ArcVerdict, AuthReport, DkimVerdict, DmarcVerdict, Policy, PolicyRecord, PtrVerdict, SpfResult, SpfVerdict, Word,
    results,
};
use pointsman::clock::Timestamp;
use pointsman::envelope::{Client, Envelope};
use pointsman::id::MessageId;
use pointsman::smtp::command::{Command, Recipient, parse};
use pointsman::stamp::{self, Copy, Forwarding};

use super::input::Input;

pub fn check(data: &[u8]) {
    let mut input = Input::new(data);
    let ip: IpAddr = if input.flag() { Ipv4Addr::new(192, 0, 2, 1).into() } else { Ipv6Addr::LOCALHOST.into() };
    let pass = if input.flag() { Word::Pass } else { Word::Fail };
    // What a session has taken.
    let (hello, mail, rcpt) = (parse(input.line()), parse(input.line()), parse(input.line()));
    let (Ok(Command::Ehlo { name: helo }), Ok(Command::Mail { sender, parameters })) = (hello, mail) else { return };
    let Ok(Command::Rcpt { recipient: Recipient::Mailbox(recipient), .. }) = rcpt else { return };
    // What a signature and the DNS say, where a name is a name to RFC 1035: visible ASCII.
    let (domain, selector, ptr) = (input.text().to_owned(), input.text().to_owned(), input.text());
    let ptr = (!ptr.is_empty() && ptr.bytes().all(|b| b.is_ascii_graphic())).then(|| ptr.to_owned());
    let report = report(pass, &domain, &selector, ptr.clone());

    let field = results::field(&report, "mx.solarmora.com", ip, &sender);
    assert_results(&field);

    let client = Client { ip, ptr, helo: helo.clone(), extended: true, tls: true };
    let envelope = Envelope {
        sender,
        recipients: vec![recipient.clone()],
        body: parameters.body.unwrap_or_default(),
        smtputf8: parameters.smtputf8,
        declared_size: parameters.size,
        dsn: Default::default(),
        require_tls: false,
    };
    let prefix = stamp::common_prefix("mx.solarmora.com", &client, &envelope, "", "", MessageId(1), Timestamp(0));
    let received = String::from_utf8(prefix).expect("what came in was UTF-8");
    assert_received(&received, &helo, &recipient, ip);

    let target = Mailbox::parse("case@crm.example").expect("it is an address");
    let forwarding = Forwarding::Told;
    let copy = Copy { alias: &recipient, target: &target, forwarding, spam: "", mark: "", seal: "", withheld: &[] };
    let leg = String::from_utf8(copy.prefix()).expect("what came in was UTF-8");
    let lines: Vec<&str> = leg.split_terminator("\r\n").collect();
    let same = recipient == target;
    assert!(if same { lines.is_empty() } else { lines.len() == 4 }, "{leg:?}");
    let ends =
        [format!(": {recipient}"), format!(": {recipient}"), format!(": {target}"), format!(": {recipient} {target}")];
    assert!(lines.iter().zip(&ends).all(|(line, end)| line.ends_with(end) && !line.contains(char::is_control)));
}

fn report(pass: Word, domain: &str, selector: &str, ptr: Option<String>) -> AuthReport {
    let spf =
        SpfVerdict { result: SpfResult::Fail, domain: domain.to_owned(), reason: Some("time"), explanation: None };
    let dkim = DkimVerdict {
        result: pass,
        domain: domain.to_owned(),
        selector: selector.to_owned(),
        identity: format!("{selector}@{domain}"),
        algorithm: "rsa-sha256",
        signature_start: "Ab/d+f12".to_owned(),
        signed_fields: vec![],
        reason: None,
    };
    let from_domain = Some(domain.to_owned());
    let record = Some(PolicyRecord { domain: selector.to_owned(), policy: Policy::Reject });
    AuthReport {
        spf_helo: Some(spf.clone()),
        spf_mailfrom: Some(spf),
        dkim: Some(vec![dkim.clone(), dkim]),
        dmarc: Some(DmarcVerdict { result: Word::Fail, policy: Policy::Reject, from_domain, record, reason: None }),
        arc: Some(ArcVerdict { result: Word::Fail, sealer: Some(selector.to_owned()), reason: None }),
        ptr: Some(PtrVerdict { result: Word::Fail, name: ptr }),
    }
}

/// RFC 8601 §2.2: without quoted strings and comments it is what we wrote, and in a word of the seven results stands ours.
fn assert_results(field: &str) {
    assert!(field.bytes().all(|b| matches!(b, b' '..=b'~' | b'\r' | b'\n' | b'\t')) || !field.is_ascii(), "{field:?}");
    assert_eq!(field.matches("\r\n").count(), 8, "{field:?}");
    assert_eq!(field.matches("\r\n\t").count(), 7, "{field:?}");
    let bare = bare(field).unwrap_or_else(|| panic!("a quoted string or a comment has no end: {field:?}"));
    let parts: Vec<&str> = bare.split(';').map(str::trim).collect();
    let methods: Vec<&str> = parts.iter().skip(1).filter_map(|part| part.split('=').next()).collect();
    assert_eq!(methods, ["spf", "spf", "dkim", "dkim", "dmarc", "arc", "iprev"], "{field:?}");
    for part in &parts[1..] {
        for property in part.split_ascii_whitespace().skip(1) {
            let (name, _) = property.split_once('=').unwrap_or_else(|| panic!("{property:?} in {field:?}"));
            assert!(name == "reason" || PROPERTIES.contains(&name), "{name:?} in {field:?}");
        }
    }
}

/// RFC 5321 §4.4: `from`, a comment, `by`, a comment, `with`, `id`, `for`, a date; and the address that we saw.
fn assert_received(field: &str, helo: &str, recipient: &Mailbox, ip: IpAddr) {
    assert_eq!(field.matches("\r\n").count(), 4, "{field:?}");
    assert!(field.starts_with(&format!("Received: from {helo} (")) && field.ends_with(" +0000\r\n"), "{field:?}");
    assert!(!field.replace("\r\n\t", "").trim_end_matches("\r\n").contains(char::is_control), "{field:?}");
    let client = &field["Received: from ".len() + helo.len()..];
    let (client, rest) =
        client.split_once("\r\n\tby mx.solarmora.com (Pointsman) with ").expect("we come behind the client");
    let inside = client.trim().strip_prefix('(').and_then(|text| text.strip_suffix(')'));
    let inside = inside.unwrap_or_else(|| panic!("the client is a comment: {field:?}"));
    assert!(!inside.contains(['(', ')', '\\']), "nobody leaves his comment: {field:?}");
    let seen = inside.rsplit_once('[').map(|(_, seen)| seen.trim_start_matches("IPv6:").trim_end_matches(']'));
    assert_eq!(seen, Some(ip.to_string().as_str()), "{field:?}");
    assert_eq!(inside.matches('[').count(), 1, "one address: {field:?}");
    assert!(rest.contains(&format!(" id 0000000000001\r\n\tfor <{recipient}>;\r\n\t")), "{field:?}");
}

/// The text without quoted strings and comments; none where one has no end.
fn bare(text: &str) -> Option<String> {
    let (mut bare, mut depth, mut quoted) = (String::new(), 0usize, false);
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' if quoted || depth > 0 => drop(chars.next()?),
            '"' if depth == 0 => quoted = !quoted,
            '(' if !quoted => depth += 1,
            ')' if !quoted => depth = depth.checked_sub(1)?,
            c if !quoted && depth == 0 => bare.push(c),
            _ => {}
        }
    }
    (depth == 0 && !quoted).then_some(bare)
}

const PROPERTIES: &[&str] = &[
    "smtp.mailfrom",
    "smtp.helo",
    "header.d",
    "header.i",
    "header.s",
    "header.a",
    "header.b",
    "header.from",
    "policy.iprev",
    "policy.ptr",
    "polrec.p",
    "polrec.domain",
    "smtp.remote-ip",
];
