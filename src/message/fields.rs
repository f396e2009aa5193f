//! What single header fields say, beyond where they stand: who wrote it, how long a field is, whether a machine wrote it.
//!
//! Read for judging only, and never sent on.

use mail_parser::MessageParser;

use super::{Field, Header, decoded};

/// A sign that no person wrote the message for this recipient, which intake systems go by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Machine {
    /// The null sender: a notification about another message (RFC 5321 §4.5.5).
    NullSender,
    /// Auto-Submitted is there and is not `no` (RFC 3834 §5).
    AutoSubmitted,
    /// Precedence: bulk, junk, list or auto_reply.
    Precedence,
    /// A multipart/report, such as a DSN (RFC 6522).
    Report,
    /// X-Auto-Response-Suppress, as Exchange marks what it writes itself.
    SuppressesAnswers,
    /// X-Autoreply, X-Autorespond or X-Autoresponse.
    AutoReply,
}

impl Machine {
    /// The sign that is most telling, where there is one.
    #[must_use]
    pub fn sign(head: &[u8], header: &Header, has_null_sender: bool) -> Option<Machine> {
        let says = |name: &str, is_it: &dyn Fn(&str) -> bool| {
            let mut fields = header.fields.iter().filter(|field| field.name == name);
            fields.any(|field| is_it(&value(head, field).to_ascii_lowercase()))
        };
        let first_word = |value: &str| value.split([';', ' ', '(']).next().unwrap_or_default().to_owned();
        if has_null_sender {
            Some(Machine::NullSender)
        } else if says("auto-submitted", &|value| !["", "no"].contains(&first_word(value).as_str())) {
            Some(Machine::AutoSubmitted)
        } else if says("content-type", &|value| first_word(value) == "multipart/report") {
            Some(Machine::Report)
        } else if says("precedence", &|value| PRECEDENCES.contains(&first_word(value).as_str())) {
            Some(Machine::Precedence)
        } else if ["x-autoreply", "x-autorespond", "x-autoresponse"].iter().any(|name| says(name, &|v| v != "no")) {
            Some(Machine::AutoReply)
        } else if says("x-auto-response-suppress", &|value| !["", "none"].contains(&value)) {
            Some(Machine::SuppressesAnswers)
        } else {
            None
        }
    }

    /// The word in `trace`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Machine::NullSender => "null sender",
            Machine::AutoSubmitted => "Auto-Submitted",
            Machine::Precedence => "Precedence",
            Machine::Report => "multipart/report",
            Machine::SuppressesAnswers => "X-Auto-Response-Suppress",
            Machine::AutoReply => "X-Autoreply",
        }
    }
}

/// The first address of From, in lower case; none where there is none that can be read.
#[must_use]
pub fn sender(head: &[u8]) -> Option<String> {
    let parsed = MessageParser::new().parse_headers(head)?;
    let address = parsed.from()?.first()?.address()?.trim().to_lowercase();
    (!address.is_empty()).then_some(address)
}

/// How many mailboxes the Cc fields name.
#[must_use]
pub fn cc_count(head: &[u8]) -> usize {
    let Some(parsed) = MessageParser::new().parse_headers(head) else { return 0 };
    parsed.all_cc().map(|list| list.mailboxes().count()).sum()
}

/// The characters of all fields of this name together, unfolded; Subject without its encodings.
#[must_use]
pub fn chars(head: &[u8], header: &Header, name: &str) -> usize {
    let fields = header.fields.iter().filter(|field| field.name == name);
    let length = |field: &Field| match name {
        "subject" => decoded(whole(head, field)).chars().count(),
        _ => value(head, field).chars().count(),
    };
    fields.map(length).sum()
}

/// The field's value in one line.
fn value(head: &[u8], field: &Field) -> String {
    let whole = whole(head, field);
    let colon = whole.iter().position(|octet| *octet == b':').map_or(whole.len(), |at| at + 1);
    String::from_utf8_lossy(&whole[colon..]).replace(['\r', '\n'], "").trim().to_owned()
}

fn whole<'h>(head: &'h [u8], field: &Field) -> &'h [u8] {
    let place = |at: u64| usize::try_from(at).unwrap_or(usize::MAX).min(head.len());
    &head[place(field.range.start)..place(field.range.end)]
}

const PRECEDENCES: [&str; 4] = ["bulk", "junk", "list", "auto_reply"];

#[cfg(test)]
mod tests {
    use super::*;

    fn sign(head: &str) -> Option<Machine> {
        Machine::sign(head.as_bytes(), &Header::index(head.as_bytes()), false)
    }

    #[test]
    fn machines_are_told_by_what_they_say() {
        for (head, found) in [
            ("Subject: x\r\n", None),
            ("Auto-Submitted: no\r\n", None),
            ("Auto-Submitted: No (person)\r\n", None),
            ("Auto-Submitted: auto-replied\r\n", Some(Machine::AutoSubmitted)),
            ("auto-submitted:\r\n Auto-Generated; owner-email=\"a@b\"\r\n", Some(Machine::AutoSubmitted)),
            ("Precedence: bulk\r\n", Some(Machine::Precedence)),
            ("Precedence: LIST\r\n", Some(Machine::Precedence)),
            ("Precedence: first-class\r\n", None),
            ("Content-Type: multipart/report; report-type=delivery-status; boundary=x\r\n", Some(Machine::Report)),
            ("Content-Type: multipart/mixed; boundary=\"multipart/report\"\r\n", None),
            ("X-Auto-Response-Suppress: All\r\n", Some(Machine::SuppressesAnswers)),
            ("X-Auto-Response-Suppress: None\r\n", None),
            ("X-Autoreply: yes\r\n", Some(Machine::AutoReply)),
            ("X-Autoreply: no\r\n", None),
        ] {
            assert_eq!(sign(head), found, "{head:?}");
        }
        assert_eq!(Machine::sign(b"", &Header::default(), true), Some(Machine::NullSender));
    }

    #[test]
    fn the_sender_is_who_from_names() {
        for (head, found) in [
            ("From: \"B, A\" <A@Example.org>\r\n", Some("a@example.org")),
            ("From: a@example.org (A)\r\n", Some("a@example.org")),
            ("From: nobody\r\n", None),
            ("", None),
        ] {
            assert_eq!(sender(head.as_bytes()).as_deref(), found, "{head:?}");
        }
    }

    #[test]
    fn fields_are_measured_as_a_reader_has_them() {
        let head = format!("To: {}\r\nTo: b@c\r\nSubject: =?utf-8?q?=C3=A9=C3=A9?=\r\n", "a@b,\r\n ".repeat(3));
        let header = Header::index(head.as_bytes());
        assert_eq!(chars(head.as_bytes(), &header, "to"), "a@b, a@b, a@b,".len() + "b@c".len());
        assert_eq!(chars(head.as_bytes(), &header, "subject"), 2);
        assert_eq!(chars(head.as_bytes(), &header, "cc"), 0);
        assert_eq!(cc_count(b"Cc: a@b, C <c@d>, g: e@f, g@h;\r\n"), 4);
        assert_eq!(cc_count(b"To: a@b\r\n"), 0);
    }
}
