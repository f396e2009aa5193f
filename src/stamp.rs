//! The header fields that we add. Pure.
//!
//! A message gets one common prefix (Received), each copy its own (Delivered-To, X-Original-To). Both are lines
//! that end in CRLF, to be sent before the original bytes. The order is fixed in `DESIGN`'s "What is stored, what
//! is sent"; the places of the fields that are still to come are named where they will stand.

use crate::address::Mailbox;
use crate::clock::Timestamp;
use crate::envelope::{Client, Envelope};
use crate::id::MessageId;

/// The fields that all copies of a message carry: `results`, our Authentication-Results field or nothing, and Received
/// (RFC 5321 §4.4).
///
/// Received names the recipient only where the transaction had just one: otherwise a Bcc'd alias would be shown to
/// the others.
#[must_use]
pub fn common_prefix(
    hostname: &str,
    client: &Client,
    envelope: &Envelope,
    results: &str,
    id: MessageId,
    now: Timestamp,
) -> Vec<u8> {
    let peer = match (&client.ptr, client.ip) {
        (Some(ptr), ip) => format!("{ptr} [{}]", literal(ip)),
        (None, ip) => format!("[{}]", literal(ip)),
    };
    let recipient = match envelope.recipients.as_slice() {
        [only] => format!("\r\n\tfor <{only}>"),
        _ => String::new(),
    };
    format!(
        "{results}Received: from {helo} ({peer})\r\n\tby {hostname} (Pointsman) with {protocol} id {id}{recipient};\r\n\t{date}\r\n",
        helo = client.helo,
        protocol = client.protocol(envelope.smtputf8),
        date = now.rfc5322(),
    )
    .into_bytes()
}

/// The fields of one copy: the alias that it was addressed to, unless the recipient is unchanged; and `spam`, the field that
/// marks it, or nothing.
#[must_use]
pub fn leg_prefix(alias: &Mailbox, target: &Mailbox, spam: &str) -> Vec<u8> {
    // X-Forwarded-To and -For, and the rule's fields, stand before the spam field; the loop mark behind it.
    if alias == target {
        return spam.as_bytes().to_vec();
    }
    format!("Delivered-To: {alias}\r\nX-Original-To: {alias}\r\n{spam}").into_bytes()
}

/// An address as RFC 5321 §4.1.3 writes it between brackets.
fn literal(ip: std::net::IpAddr) -> String {
    match ip {
        std::net::IpAddr::V4(v4) => v4.to_string(),
        std::net::IpAddr::V6(v6) => format!("IPv6:{v6}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::ReversePath;
    use crate::envelope::BodyType;

    fn envelope(recipients: &[&str]) -> Envelope {
        Envelope {
            sender: ReversePath::Null,
            recipients: recipients.iter().map(|r| Mailbox::parse(r).unwrap()).collect(),
            body: BodyType::SevenBit,
            smtputf8: false,
            declared_size: None,
            dsn: Default::default(),
            require_tls: false,
        }
    }

    fn client() -> Client {
        Client {
            ip: "2001:db8::1".parse().unwrap(),
            ptr: None,
            helo: "mail.example".into(),
            extended: true,
            tls: false,
        }
    }

    fn received(recipients: &[&str]) -> String {
        let prefix = common_prefix(
            "mx.solarmora.com",
            &client(),
            &envelope(recipients),
            "",
            MessageId(0),
            Timestamp(1_795_292_431_042),
        );
        String::from_utf8(prefix).unwrap()
    }

    #[test]
    fn received_names_the_only_recipient() {
        assert_eq!(
            received(&["aide@solarmora.com"]),
            "Received: from mail.example ([IPv6:2001:db8::1])\r\n\tby mx.solarmora.com (Pointsman) with ESMTP id \
             0000000000000\r\n\tfor <aide@solarmora.com>;\r\n\tSat, 21 Nov 2026 20:20:31 +0000\r\n"
        );
    }

    #[test]
    fn received_names_no_recipient_where_there_are_two() {
        assert!(!received(&["aide@solarmora.com", "bugs@solarmora.com"]).contains("for"));
    }

    #[test]
    fn a_copy_names_its_alias_and_an_unchanged_recipient_nothing() {
        let alias = Mailbox::parse("Aide@solarmora.com").unwrap();
        let target = Mailbox::parse("x@crm.example").unwrap();
        let prefix = |target: &Mailbox, spam: &str| String::from_utf8(leg_prefix(&alias, target, spam)).unwrap();
        let names = "Delivered-To: Aide@solarmora.com\r\nX-Original-To: Aide@solarmora.com\r\n";
        assert_eq!(prefix(&target, ""), names);
        assert_eq!(prefix(&target, "X: y\r\n"), format!("{names}X: y\r\n"));
        let unchanged = Mailbox::parse("aide@solarmora.com").unwrap();
        assert!(leg_prefix(&alias, &unchanged, "").is_empty());
        assert_eq!(prefix(&unchanged, "X: y\r\n"), "X: y\r\n");
    }
}
