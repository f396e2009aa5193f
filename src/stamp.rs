//! The header fields that we add. Pure.
//!
//! A message gets one common prefix (Authentication-Results, Received, and a Message-ID where it has none), each copy its
//! own ([`Copy`]). Both are lines that end in CRLF, to be sent before the original bytes. The order is fixed in
//! `DESIGN`'s "What is stored, what is sent"; the rule's own fields are still to come, before the spam field. Whether a
//! field may be added is not known here: signatures decide it.

use crate::address::{Domain, Mailbox};
use crate::clock::Timestamp;
use crate::envelope::{Client, Envelope};
use crate::id::MessageId;
use crate::loops;
use crate::spam;

/// The fields that all copies of a message carry: `results`, our Authentication-Results field or nothing, Received
/// (RFC 5321 §4.4), and `message_id`, the field of [`message_id`] or nothing.
///
/// Received names the recipient only where the transaction had just one: otherwise a Bcc'd alias would be shown to
/// the others.
#[must_use]
pub fn common_prefix(
    hostname: &str,
    client: &Client,
    envelope: &Envelope,
    results: &str,
    message_id: &str,
    id: MessageId,
    now: Timestamp,
) -> Vec<u8> {
    // The DNS lets a name hold whatever can be seen, such as the end of a comment; a host has no such name.
    let name = client.ptr.as_deref().filter(|name| !name.starts_with('[') && Domain::parse(name).is_ok());
    let peer = match (name, client.ip) {
        (Some(name), ip) => format!("{name} [{}]", literal(ip)),
        (None, ip) => format!("[{}]", literal(ip)),
    };
    let recipient = match envelope.recipients.as_slice() {
        [only] => format!("\r\n\tfor <{only}>"),
        _ => String::new(),
    };
    format!(
        "{results}Received: from {helo} ({peer})\r\n\tby {hostname} (Pointsman) with {protocol} id {id}{recipient};\r\n\t{date}\r\n{message_id}",
        helo = client.helo,
        protocol = client.protocol(envelope.smtputf8),
        date = now.rfc5322(),
    )
    .into_bytes()
}

/// The Message-ID that a message without one gets: `<` its id in our queue `@` us `>`.
#[must_use]
pub fn made_message_id(hostname: &str, id: MessageId) -> String {
    format!("<{id}@{hostname}>")
}

/// What makes the fields of one copy.
pub struct Copy<'a> {
    /// As given at RCPT.
    pub alias: &'a Mailbox,
    pub target: &'a Mailbox,
    pub forwarding: Forwarding,
    /// The field that marks it as spam, or nothing.
    pub spam: &'a str,
    /// The field by which we know it again, or nothing.
    pub mark: &'a str,
    /// An ARC set, or nothing.
    pub seal: &'a str,
    /// The names that must not be added.
    pub withheld: &'a [&'a str],
}

/// Whether a copy names its target: an intake address is nothing for those who get a copy beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forwarding {
    Told,
    Untold,
}

impl Copy<'_> {
    /// The fields: the alias that it was addressed to and where it goes, unless the recipient is unchanged; then what marks
    /// it. None names another recipient.
    #[must_use]
    pub fn prefix(&self) -> Vec<u8> {
        let Copy { alias, target, forwarding, spam, mark, seal, withheld } = self;
        let mut fields = String::new();
        let mut add = |name: &str, value: std::fmt::Arguments<'_>| {
            if !withheld.contains(&name) {
                fields.push_str(&format!("{name}: {value}\r\n"));
            }
        };
        if alias != target {
            add(DELIVERED_TO, format_args!("{alias}"));
            add(X_ORIGINAL_TO, format_args!("{alias}"));
            // As Gmail writes them.
            if *forwarding == Forwarding::Told {
                add(X_FORWARDED_TO, format_args!("{target}"));
                add(X_FORWARDED_FOR, format_args!("{alias} {target}"));
            }
        }
        fields.push_str(spam);
        if !withheld.contains(&loops::FIELD) {
            fields.push_str(mark);
        }
        fields.push_str(seal);
        fields.into_bytes()
    }
}

/// The fields of one copy, out of all that stands before its message, as they are for another target.
#[must_use]
pub fn readdressed(prefix: &[u8], alias: &Mailbox, target: &Mailbox) -> Vec<u8> {
    let mut fields = Vec::with_capacity(prefix.len());
    for line in prefix.split_inclusive(|octet| *octet == b'\n') {
        let is_field = |name: &str| line.strip_prefix(name.as_bytes()).is_some_and(|rest| rest.starts_with(b":"));
        if is_field(AUTHENTICATION_RESULTS) || is_field("Received") {
            break;
        }
        if is_field(X_FORWARDED_TO) {
            fields.extend_from_slice(format!("{X_FORWARDED_TO}: {target}\r\n").as_bytes());
        } else if is_field(X_FORWARDED_FOR) {
            fields.extend_from_slice(format!("{X_FORWARDED_FOR}: {alias} {target}\r\n").as_bytes());
        } else {
            fields.extend_from_slice(line);
        }
    }
    fields
}

const DELIVERED_TO: &str = "Delivered-To";
const X_ORIGINAL_TO: &str = "X-Original-To";
const X_FORWARDED_TO: &str = "X-Forwarded-To";
const X_FORWARDED_FOR: &str = "X-Forwarded-For";
pub const AUTHENTICATION_RESULTS: &str = "Authentication-Results";

/// Every field that we add, but for Received, which no signature may cover (RFC 6376 §5.4.1), and Message-ID.
pub const FIELDS: &[&str] = &[
    DELIVERED_TO,
    X_ORIGINAL_TO,
    X_FORWARDED_TO,
    X_FORWARDED_FOR,
    spam::FIELD,
    loops::FIELD,
    "ARC-Seal",
    "ARC-Message-Signature",
    "ARC-Authentication-Results",
    AUTHENTICATION_RESULTS,
];

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
        received_from(&client(), recipients)
    }

    fn received_from(client: &Client, recipients: &[&str]) -> String {
        let prefix = common_prefix(
            "mx.solarmora.com",
            client,
            &envelope(recipients),
            "",
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
    fn a_name_of_the_client_cannot_leave_its_comment() {
        for (ptr, shown) in [
            ("mail.client.example", "(mail.client.example [IPv6:2001:db8::1])"),
            ("under_score.example", "(under_score.example [IPv6:2001:db8::1])"),
            ("a)(b", "([IPv6:2001:db8::1])"),
            ("a\\", "([IPv6:2001:db8::1])"),
            ("\"a\"", "([IPv6:2001:db8::1])"),
            ("[203.0.113.1]", "([IPv6:2001:db8::1])"),
        ] {
            let client = Client { ptr: Some(ptr.into()), ..client() };
            let text = received_from(&client, &["aide@solarmora.com"]);
            assert!(text.starts_with(&format!("Received: from mail.example {shown}\r\n")), "{text}");
        }
    }

    #[test]
    fn received_names_no_recipient_where_there_are_two() {
        assert!(!received(&["aide@solarmora.com", "bugs@solarmora.com"]).contains("for"));
    }

    #[test]
    fn a_message_id_stands_below_received() {
        let field = format!("Message-ID: {}\r\n", made_message_id("mx.solarmora.com", MessageId(0)));
        let (client, envelope) = (client(), envelope(&["aide@solarmora.com"]));
        let prefix = common_prefix("mx.solarmora.com", &client, &envelope, "", &field, MessageId(0), Timestamp(0));
        let text = String::from_utf8(prefix).unwrap();
        assert!(text.ends_with(" +0000\r\nMessage-ID: <0000000000000@mx.solarmora.com>\r\n"), "{text}");
    }

    #[test]
    fn a_copy_names_its_alias_and_an_unchanged_recipient_nothing() {
        let alias = Mailbox::parse("Aide@solarmora.com").unwrap();
        let target = Mailbox::parse("x@crm.example").unwrap();
        let prefix = |target: &Mailbox, forwarding, spam: &str, withheld: &[&str]| {
            let copy = Copy { alias: &alias, target, forwarding, spam, mark: "", seal: "", withheld };
            String::from_utf8(copy.prefix()).unwrap()
        };
        let names = "Delivered-To: Aide@solarmora.com\r\nX-Original-To: Aide@solarmora.com\r\n";
        let way = "X-Forwarded-To: x@crm.example\r\nX-Forwarded-For: Aide@solarmora.com x@crm.example\r\n";
        assert_eq!(prefix(&target, Forwarding::Told, "", &[]), format!("{names}{way}"));
        assert_eq!(prefix(&target, Forwarding::Told, "X: y\r\n", &[]), format!("{names}{way}X: y\r\n"));
        assert_eq!(prefix(&target, Forwarding::Untold, "X: y\r\n", &[]), format!("{names}X: y\r\n"));
        let without = prefix(&target, Forwarding::Told, "", &["X-Original-To", "X-Forwarded-To"]);
        assert_eq!(
            without,
            "Delivered-To: Aide@solarmora.com\r\nX-Forwarded-For: Aide@solarmora.com x@crm.example\r\n"
        );
        let whole = format!("{names}{way}ARC-Seal: i=1\r\n\tb=x\r\nReceived: from a\r\n\tby b\r\n");
        let other = Mailbox::parse("y@crm.example").unwrap();
        let want = format!("{names}{}ARC-Seal: i=1\r\n\tb=x\r\n", way.replace("x@crm", "y@crm"));
        assert_eq!(readdressed(whole.as_bytes(), &alias, &other), want.as_bytes());
        let unchanged = Mailbox::parse("aide@solarmora.com").unwrap();
        assert_eq!(prefix(&unchanged, Forwarding::Told, "", &[]), "");
        assert_eq!(prefix(&unchanged, Forwarding::Told, "X: y\r\n", &[]), "X: y\r\n");
    }
}
