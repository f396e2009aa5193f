//! Writes a notification: multipart/report (RFC 6522) with a text for people, RFC 3464's fields for programs, and the
//! header of the original.
//!
//! It is ASCII, but for an address in From and To that is not, so that it passes where nothing else would. The original comes back without its body whatever
//! RET asked for: a notification that carries other people's attachments to an address is worth forging. The host
//! that refused is not named (Remote-MTA): where it was found by the target's domain, its name tells that domain.

use std::fmt::Write as _;

use crate::address::Mailbox;
use crate::bounce::cause::Cause;
use crate::clock::Timestamp;
use crate::envelope::OriginalRecipient;
use crate::id::MessageId;
use crate::scrub::scrub;
use crate::smtp::xtext;

/// All that a notification says.
#[derive(Clone, Debug)]
pub struct Notice<'a> {
    /// Our name: Reporting-MTA, Message-ID.
    pub hostname: &'a str,
    /// The notification's own id.
    pub id: MessageId,
    pub at: Timestamp,
    /// Who signs it: the postmaster of the alias's domain.
    pub from: &'a Mailbox,
    pub to: &'a Mailbox,
    pub event: Reported,
    /// The address that the sender wrote to; the only recipient that is named.
    pub alias: &'a Mailbox,
    /// The target, to be kept out of everything.
    pub secret: &'a Mailbox,
    pub orcpt: Option<&'a OriginalRecipient>,
    pub envid: Option<&'a str>,
    pub cause: &'a Cause,
    pub original: Original<'a>,
}

/// What is reported, with what belongs to it alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reported {
    Failed,
    Delayed { until: Timestamp },
    Relayed,
}

impl Reported {
    /// RFC 3464 §2.3.3, the word behind Action.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Reported::Failed => "failed",
            Reported::Delayed { .. } => "delayed",
            Reported::Relayed => "relayed",
        }
    }
}

/// The message that it is about.
#[derive(Clone, Copy, Debug)]
pub struct Original<'a> {
    /// Its header as it arrived, without the empty line behind it.
    pub header: &'a [u8],
    pub arrived: Timestamp,
    pub attempted: Timestamp,
}

/// A notification, ready for the queue. Its reverse-path is the null sender.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Composed {
    pub bytes: Vec<u8>,
    pub subject: &'static str,
    /// With its angle brackets.
    pub message_id: String,
    /// The recipient's address needs it.
    pub smtputf8: bool,
}

/// Writes the notification. At most [`ORIGINAL_OCTETS_MAX`] of the original come back, three times that when encoded.
#[must_use]
pub fn compose(notice: &Notice<'_>) -> Composed {
    let remote = notice.cause.remote.as_deref().map(|text| scrub(text, notice.secret, notice.alias.as_str()));
    let text = part("text/plain", words(notice, remote.as_deref()).as_bytes(), Charset::Utf8);
    let status = format!("Content-Type: message/delivery-status\r\n\r\n{}", fields(notice, remote.as_deref()));
    let original = part("text/rfc822-headers", whole_fields(notice.original.header), Charset::None);
    let parts = [text, status, original];

    let mut boundary = format!("=_{}", notice.id);
    // Who could guess the id could close a part in a field of his own.
    while parts.iter().any(|part| part.contains(&boundary)) {
        boundary.push('_');
    }
    let message_id = format!("<{}@{}>", notice.id, notice.hostname);
    let subject = match notice.event {
        Reported::Failed => "Your message could not be delivered",
        Reported::Delayed { .. } => "Your message is delayed",
        Reported::Relayed => "Your message was passed on",
    };
    let mut out = format!(
        "From: Mail delivery <{from}>\r\nTo: <{to}>\r\nSubject: {subject}\r\nDate: {date}\r\nMessage-ID: {message_id}\r\n\
         Auto-Submitted: auto-replied\r\nMIME-Version: 1.0\r\n\
         Content-Type: multipart/report; report-type=delivery-status;\r\n\tboundary=\"{boundary}\"\r\n\r\n",
        from = notice.from,
        to = notice.to,
        date = notice.at.rfc5322(),
    );
    for part in &parts {
        write!(out, "--{boundary}\r\n{part}\r\n").expect("writing to memory does not fail");
    }
    write!(out, "--{boundary}--\r\n").expect("writing to memory does not fail");
    let smtputf8 = !(notice.to.is_ascii() && notice.from.is_ascii());
    Composed { bytes: out.into_bytes(), subject, message_id, smtputf8 }
}

/// What a person reads.
fn words(notice: &Notice<'_>, remote: Option<&str>) -> String {
    let alias = notice.alias;
    let own = &notice.cause.own;
    let mut text = match notice.event {
        Reported::Failed => format!(
            "Your message to {alias} could not be delivered, and will not be\r\ntried again.\r\n\r\nThe reason: {own}\r\n"
        ),
        Reported::Delayed { until } => format!(
            "Your message to {alias} has not been delivered yet.\r\nYou need not send it again: we go on trying until\r\n\
             {}.\r\n\r\nThe reason: {own}\r\n",
            until.rfc5322()
        ),
        Reported::Relayed => format!(
            "Your message to {alias} was handed to the system behind that\r\naddress, which does not tell what becomes \
             of it.\r\n"
        ),
    };
    if let Some(remote) = remote {
        write!(text, "\r\nThe other system's words:\r\n\r\n    {remote}\r\n").expect("writing to memory does not fail");
    }
    text.push_str("\r\nThe header of your message follows below.\r\n");
    text
}

/// RFC 3464 §2: the fields about the message, an empty line, and those about the recipient.
fn fields(notice: &Notice<'_>, remote: Option<&str>) -> String {
    let until = match notice.event {
        Reported::Delayed { until } => Some(until),
        Reported::Failed | Reported::Relayed => None,
    };
    let of_message = [
        ("Original-Envelope-Id", notice.envid.map(str::to_owned)),
        ("Reporting-MTA", Some(format!("dns; {}", notice.hostname))),
        ("Arrival-Date", Some(notice.original.arrived.rfc5322())),
    ];
    let of_recipient = [
        ("Original-Recipient", Some(original_recipient(notice))),
        ("Final-Recipient", Some(typed(notice.alias))),
        ("Action", Some(notice.event.as_str().to_owned())),
        ("Status", Some(notice.cause.status.to_string())),
        ("Diagnostic-Code", remote.map(|remote| format!("smtp; {remote}"))),
        ("Last-Attempt-Date", Some(notice.original.attempted.rfc5322())),
        ("Will-Retry-Until", until.map(Timestamp::rfc5322)),
    ];
    let lines = |group: &[(&str, Option<String>)]| -> String {
        group.iter().filter_map(|(name, value)| Some(format!("{name}: {}\r\n", value.as_ref()?))).collect()
    };
    format!("{}\r\n{}", lines(&of_message), lines(&of_recipient))
}

/// RFC 3464 §2.3.1. Without ORCPT it is the alias all the same: the sender wrote to that, and to nothing behind it.
fn original_recipient(notice: &Notice<'_>) -> String {
    match notice.orcpt {
        Some(orcpt) => format!("{};{}", orcpt.address_type, orcpt.address),
        None => typed(notice.alias),
    }
}

fn typed(address: &Mailbox) -> String {
    if address.is_ascii() {
        format!("rfc822;{address}")
    } else {
        format!("utf-8;{}", xtext::utf8_address(address.as_str()))
    }
}

/// As many whole header fields as fit, with CRLF behind the last.
fn whole_fields(header: &[u8]) -> &[u8] {
    let mut end = 0;
    let mut at = 0;
    while let Some(line) = memchr::memmem::find(&header[at..], b"\r\n") {
        at += line + 2;
        if at > ORIGINAL_OCTETS_MAX {
            break;
        }
        // A line that begins with white space belongs to the field before it (RFC 5322 §2.2.3).
        if !matches!(header.get(at), Some(b' ' | b'\t')) {
            end = at;
        }
    }
    &header[..end]
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Charset {
    /// The type has no such parameter.
    None,
    Utf8,
}

/// A part with its own header: as it is where it is short lines of ASCII, else quoted-printable (RFC 2045 §6.7).
fn part(kind: &str, octets: &[u8], charset: Charset) -> String {
    let charset = match (charset, octets.is_ascii()) {
        (Charset::None, _) => "",
        (Charset::Utf8, true) => "; charset=us-ascii",
        (Charset::Utf8, false) => "; charset=utf-8",
    };
    let short = |line: &&str| line.len() <= LINE_OCTETS_MAX && !line.contains(['\r', '\n', '\0']);
    match str::from_utf8(octets).ok().filter(|text| text.is_ascii() && text.split("\r\n").all(|line| short(&line))) {
        Some(text) => format!("Content-Type: {kind}{charset}\r\n\r\n{text}"),
        None => format!(
            "Content-Type: {kind}{charset}\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n{}",
            quoted_printable(octets)
        ),
    }
}

fn quoted_printable(octets: &[u8]) -> String {
    let mut out = String::with_capacity(octets.len() * 2);
    let mut column = 0;
    let mut rest = octets;
    while let Some((&octet, behind)) = rest.split_first() {
        if let Some(behind) = rest.strip_prefix(b"\r\n") {
            out.push_str("\r\n");
            (rest, column) = (behind, 0);
            continue;
        }
        let last = behind.is_empty() || behind.starts_with(b"\r\n");
        let plain = matches!(octet, b'!'..=b'~' if octet != b'=') || (matches!(octet, b' ' | b'\t') && !last);
        let width = if plain { 1 } else { 3 };
        // Room for the `=` of a soft line break.
        if column + width > QUOTED_LINE_OCTETS_MAX - 1 {
            out.push_str("=\r\n");
            column = 0;
        }
        column += width;
        if plain {
            out.push(char::from(octet));
        } else {
            write!(out, "={octet:02X}").expect("writing to memory does not fail");
        }
        rest = behind;
    }
    out
}

/// Of the original's header: more than people's mail has, and little enough that nobody forges us for the volume.
pub const ORIGINAL_OCTETS_MAX: usize = 32 * 1024;
/// RFC 5322 §2.1.1.
const LINE_OCTETS_MAX: usize = 998;
/// RFC 2045 §6.7.
const QUOTED_LINE_OCTETS_MAX: usize = 76;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::reply::Enhanced;

    #[test]
    fn the_original_is_cut_between_fields() {
        let field = |octets: usize| format!("A: {}\r\n", "x".repeat(octets - 5)).into_bytes();
        let folded = |octets: usize| format!("A: y\r\n {}\r\n", "x".repeat(octets - 9)).into_bytes();
        for make in [field as fn(usize) -> Vec<u8>, folded] {
            for (octets, kept) in [(ORIGINAL_OCTETS_MAX, true), (ORIGINAL_OCTETS_MAX + 1, false)] {
                let header = make(octets);
                assert_eq!(header.len(), octets);
                assert_eq!(whole_fields(&header).len(), if kept { octets } else { 0 });
            }
        }
        assert_eq!(whole_fields(b"A: b\r\nC: d\r\n cut"), b"A: b\r\n");
        assert_eq!(whole_fields(b""), b"");
    }

    #[test]
    fn quoted_printable_lines_are_short_and_say_the_same() {
        let text = format!("é{}\r\nend \r\n=\t\r\n", "x ".repeat(100));
        let encoded = quoted_printable(text.as_bytes());
        assert!(encoded.split("\r\n").all(|line| line.len() <= QUOTED_LINE_OCTETS_MAX));
        assert!(encoded.contains("end=20\r\n=3D=09\r\n"));
        assert_eq!(encoded.replace("=\r\n", "").matches("x ").count(), 99, "the last space is encoded");
    }

    proptest! {
        #[test]
        fn any_header_of_an_original_stays_ascii_and_inside_its_part(header in proptest::collection::vec(any::<u8>(), 0..500)) {
            let mailbox = |text| Mailbox::parse(text).unwrap();
            let (alias, secret) = (mailbox("aide@solarmora.com"), mailbox("case@mon-crm.com"));
            let composed = compose(&Notice {
                hostname: "mx.solarmora.com",
                id: MessageId(1),
                at: Timestamp(0),
                from: &mailbox("postmaster@solarmora.com"),
                to: &mailbox("client@example.org"),
                event: Reported::Failed,
                alias: &alias,
                secret: &secret,
                orcpt: None,
                envid: None,
                cause: &Cause { status: Enhanced(5, 0, 0), remote: None, own: "refused.".to_owned() },
                original: Original { header: &header, arrived: Timestamp(0), attempted: Timestamp(0) },
            });
            prop_assert!(composed.bytes.is_ascii());
            let text = String::from_utf8(composed.bytes).unwrap();
            prop_assert!(text.split("\r\n").all(|line| line.len() <= LINE_OCTETS_MAX));
            prop_assert_eq!(text.matches("\r\n--=_").count(), 4);
        }
    }
}
