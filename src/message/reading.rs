//! What rules compare of a message: its fields, its text, what is attached, and whether a machine wrote it.
//!
//! Decoded for comparing only, and never sent on. Of the text the first [`TEXT_OCTETS_MAX`] octets count; it is said when
//! there was more. What is inside a message inside the message is none of its own words, but what is attached there is
//! attached all the same.

use std::io::Cursor;

use mail_parser::{HeaderForm, MessageParser, MessagePart, PartKind};

use serde_json::{Value, json};

use crate::address::Mailbox;

use super::Header;

/// A message as rules see it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// The addresses of From, at most [`AUTHORS_MAX`]; what is no address is none.
    pub from: Vec<Mailbox>,
    /// Names in lower case, values decoded and unfolded, at most [`FIELDS_MAX`] of them.
    pub fields: Vec<(String, String)>,
    /// The first Subject, decoded.
    pub subject: String,
    /// All text parts, decoded, and HTML as a reader sees it.
    pub text: String,
    /// There was more text than that.
    pub text_is_cut: bool,
    /// Octets of the whole message as it came.
    pub size: u64,
    /// At most [`ATTACHMENTS_MAX`].
    pub attachments: Vec<Attachment>,
    /// A program wrote it (RFC 3834 §5, and what was usual before).
    pub automatic: bool,
    /// It came over a mailing list (RFC 2919, RFC 2369).
    pub list: bool,
}

/// A part that is attached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attachment {
    /// In lower case; empty where it has none.
    pub name: String,
    /// As it is declared, `application/pdf`, in lower case.
    pub kind: String,
    /// What its first octets say that it is.
    pub detected: Option<&'static str>,
    /// Decoded octets.
    pub size: u64,
    /// The names inside a zip archive, in lower case, at most [`NAMES_MAX`].
    pub inside: Vec<String>,
}

/// How much of a message rules ask for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Authors, subject, size, automatic, list: what is recorded of a message whose rules ask for any of it.
    pub header: bool,
    /// Header fields of any name.
    pub fields: bool,
    pub text: bool,
    pub attachments: bool,
}

impl Wanted {
    #[must_use]
    pub fn is_nothing(self) -> bool {
        self == Wanted::default()
    }

    /// With what `other` wants.
    #[must_use]
    pub fn with(self, other: Wanted) -> Wanted {
        Wanted {
            header: self.header || other.header,
            fields: self.fields || other.fields,
            text: self.text || other.text,
            attachments: self.attachments || other.attachments,
        }
    }

    /// Whether what is recorded of a message is enough ([`Reading::recorded`]).
    #[must_use]
    pub fn is_recorded(self) -> bool {
        !(self.fields || self.text || self.attachments)
    }

    /// Whether the octets behind the header are looked at.
    #[must_use]
    pub fn needs_body(self) -> bool {
        self.text || self.attachments
    }
}

impl Reading {
    /// Reads a message with this header section. `message` is all of it where text or attachments are wanted, else it may
    /// be empty; `size` is that of the whole.
    #[must_use]
    pub fn of(head: &[u8], message: &[u8], size: u64, wanted: Wanted) -> Reading {
        let mut reading = Reading { size, ..Reading::default() };
        reading.header(head);
        if !wanted.needs_body() {
            return reading;
        }
        let parser = MessageParser::new().max_depth(DEPTH_MAX).max_parts(PARTS_MAX);
        let Some(parsed) = parser.parse(message) else { return reading };
        for part in parsed.parts() {
            if wanted.text && part.message().id() == parsed.root().id() {
                reading.add_text(&part);
            }
            if wanted.attachments && reading.attachments.len() < ATTACHMENTS_MAX && is_attached(&part) {
                reading.attachments.push(attachment(&part));
            }
        }
        reading
    }

    /// What is kept of it with the message, for decisions of other rules: a JSON object.
    #[must_use]
    pub fn record(&self) -> Value {
        let from: Vec<&str> = self.from.iter().map(Mailbox::as_str).collect();
        let subject: String = self.subject.chars().take(RECORDED_CHARS_MAX).collect();
        json!({ "from": from, "subject": subject, "size": self.size, "automatic": self.automatic, "list": self.list })
    }

    /// What [`Reading::record`] kept; none of another shape.
    #[must_use]
    pub fn recorded(record: &Value) -> Option<Reading> {
        let from = record["from"].as_array()?.iter().filter_map(Value::as_str);
        Some(Reading {
            from: from.filter_map(|from| Mailbox::parse(from).ok()).collect(),
            subject: record["subject"].as_str()?.to_owned(),
            size: record["size"].as_u64()?,
            automatic: record["automatic"].as_bool()?,
            list: record["list"].as_bool()?,
            ..Reading::default()
        })
    }

    fn header(&mut self, head: &[u8]) {
        for field in Header::index(head).fields.into_iter().take(FIELDS_MAX) {
            let range = field.range.start as usize..field.range.end as usize;
            let whole = &head[range];
            if field.name == "from" {
                self.from.extend(addresses(whole).into_iter().take(AUTHORS_MAX.saturating_sub(self.from.len())));
            }
            self.fields.push((field.name, text(whole)));
        }
        let subject = self.fields.iter().find(|(name, _)| name == "subject");
        self.subject = subject.map_or_else(String::new, |(_, value)| value.clone());
        self.automatic = self.is_automatic();
        self.list = ["list-id", "list-post", "list-unsubscribe"].iter().any(|name| self.has(name, |_| true))
            || self.has("precedence", |value| value.eq_ignore_ascii_case("list"));
    }

    fn has(&self, name: &str, holds: impl Fn(&str) -> bool) -> bool {
        self.fields.iter().any(|(other, value)| other == name && holds(value.trim()))
    }

    /// The null sender is no part of the message, and a condition of its own.
    fn is_automatic(&self) -> bool {
        let first_word = |value: &str| value.split([';', ' ', '\t']).next().unwrap_or_default().to_ascii_lowercase();
        self.has("auto-submitted", |value| first_word(value) != "no")
            || self.has("precedence", |value| matches!(first_word(value).as_str(), "bulk" | "junk" | "auto_reply"))
            || self.has("content-type", |value| first_word(value) == "multipart/report")
            || self.fields.iter().any(|(name, _)| AUTOMATIC_FIELDS.contains(&name.as_str()))
    }

    fn add_text(&mut self, part: &MessagePart<'_>) {
        let is_html = match part.kind() {
            PartKind::Text => false,
            PartKind::Html => true,
            PartKind::Binary | PartKind::InlineBinary | PartKind::Multipart | PartKind::Message(_) => return,
        };
        let room = TEXT_OCTETS_MAX.saturating_sub(self.text.len());
        let Some(text) = part.text() else { return };
        let shown = if is_html { mail_parser::html_to_text(&text) } else { text.into_owned() };
        self.text_is_cut |= shown.len() > room;
        self.text.push_str(&shown[..shown.floor_char_boundary(room)]);
        if room > shown.len() {
            self.text.push('\n');
        }
    }
}

fn is_attached(part: &MessagePart<'_>) -> bool {
    match part.kind() {
        PartKind::Multipart => false,
        PartKind::Binary | PartKind::InlineBinary | PartKind::Message(_) => true,
        PartKind::Text | PartKind::Html => part.attachment_name().is_some(),
    }
}

fn attachment(part: &MessagePart<'_>) -> Attachment {
    let decoded = part.decoded();
    let kind = part.content_type().map_or_else(String::new, |kind| {
        format!("{}/{}", kind.ctype(), kind.subtype().unwrap_or_default()).to_ascii_lowercase()
    });
    Attachment {
        name: part.attachment_name().unwrap_or_default().trim().to_lowercase(),
        kind,
        detected: infer::get(&decoded).map(|found| found.mime_type()),
        size: decoded.len() as u64,
        inside: names_inside(&decoded),
    }
}

/// The directory of a zip archive, which stands at its end. What is no archive, or a broken one, has no names.
fn names_inside(octets: &[u8]) -> Vec<String> {
    if !octets.starts_with(b"PK") {
        return Vec::new();
    }
    let archive = zip::ZipArchive::new(Cursor::new(octets));
    let names = |archive: zip::ZipArchive<_>| {
        let names = archive.file_names().take(NAMES_MAX).filter_map(Result::ok);
        names.map(|name| name.to_lowercase()).collect()
    };
    archive.map(names).unwrap_or_default()
}

/// A field's value without folding and encodings (RFC 2047).
fn text(whole: &[u8]) -> String {
    let parser = MessageParser::new();
    let parsed = parser.parse_headers(whole);
    let value = parsed.as_ref().and_then(|parsed| {
        let field = parsed.headers().iter().next()?.parse_as(HeaderForm::Text);
        field.value().as_text().map(str::to_owned)
    });
    value.unwrap_or_default()
}

/// The mailboxes of a field; what is no address is left out.
fn addresses(whole: &[u8]) -> Vec<Mailbox> {
    let parser = MessageParser::new();
    let Some(parsed) = parser.parse_headers(whole) else { return Vec::new() };
    let Some(field) = parsed.headers().iter().next() else { return Vec::new() };
    let value = field.parse_as(HeaderForm::Addresses);
    let list = value.value().as_address();
    let mailboxes = list.iter().flat_map(|list| list.mailboxes());
    mailboxes.filter_map(|mailbox| Mailbox::parse(mailbox.address()?.trim()).ok()).collect()
}

/// What vacation programs and ticket systems put into their answers.
const AUTOMATIC_FIELDS: [&str; 5] =
    ["x-autoreply", "x-autorespond", "x-auto-response-suppress", "x-sfdc-autoresponse", "x-autorespond-id"];
/// What Gmail's content rules look at is as much.
pub const TEXT_OCTETS_MAX: usize = 1024 * 1024;
/// Mail programs make five or six levels.
const DEPTH_MAX: usize = 20;
/// A gallery of pictures has dozens.
const PARTS_MAX: usize = 500;
const AUTHORS_MAX: usize = 5;
const FIELDS_MAX: usize = 2_000;
const ATTACHMENTS_MAX: usize = 200;
const NAMES_MAX: usize = 1_000;
/// More than any program shows of a subject.
const RECORDED_CHARS_MAX: usize = 1_000;

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Wanted = Wanted { header: true, fields: true, text: true, attachments: true };

    fn read(message: &str) -> Reading {
        let head = message.find("\r\n\r\n").map_or(message, |at| &message[..at + 2]);
        Reading::of(head.as_bytes(), message.as_bytes(), message.len() as u64, ALL)
    }

    #[test]
    fn fields_are_decoded_unfolded_and_in_order() {
        let reading = read(
            "From: \"A, B\" <a@d.example>, x <b@E.example>\r\nSubject: =?utf-8?q?D=C3=A9j=C3=A0?=\r\n vu\r\n\
             X-Order: 12\r\n \r\nX-Hidden: seen\r\n\r\nbody\r\n",
        );
        assert_eq!(reading.from.iter().map(Mailbox::as_str).collect::<Vec<_>>(), ["a@d.example", "b@E.example"]);
        assert_eq!(reading.subject, "Déjà vu");
        let field = |name: &str| reading.fields.iter().find(|(other, _)| other == name).map(|(_, v)| v.as_str());
        assert_eq!((field("x-order"), field("x-hidden")), (Some("12"), Some("seen")));
        assert_eq!((reading.text.as_str(), reading.automatic, reading.list), ("body\r\n\n", false, false));
    }

    #[test]
    fn what_machines_write_is_automatic_and_what_lists_send_is_list_mail() {
        for (field, automatic, list) in [
            ("Auto-Submitted: auto-replied", true, false),
            ("Auto-Submitted: no", false, false),
            ("Auto-Submitted: NO (really)", false, false),
            ("Precedence: bulk", true, false),
            ("Precedence: list", false, true),
            ("Precedence: first-class", false, false),
            ("Content-Type: multipart/report; report-type=delivery-status", true, false),
            ("X-Auto-Response-Suppress: All", true, false),
            ("List-Id: <a.example>", false, true),
            ("X-Nothing: x", false, false),
        ] {
            let reading = read(&format!("{field}\r\n\r\nx\r\n"));
            assert_eq!((reading.automatic, reading.list), (automatic, list), "{field}");
        }
    }

    #[test]
    fn text_is_what_a_reader_sees_and_ends_at_its_limit() {
        let html = "Content-Type: text/html\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n<p>caf=C3=A9 <b>now</b></p>\r\n";
        assert!(read(html).text.contains("caf") && !read(html).text.contains('<'));
        let plain = |octets: usize| read(&format!("A: b\r\n\r\n{}", "x".repeat(octets)));
        assert!(!plain(TEXT_OCTETS_MAX).text_is_cut);
        assert!(plain(TEXT_OCTETS_MAX + 1).text_is_cut && plain(TEXT_OCTETS_MAX + 1).text.len() == TEXT_OCTETS_MAX);
        let inner = "Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\nours\r\n--b\r\nContent-Type: message/rfc822\r\n\r\n\
            Subject: x\r\n\r\ntheirs\r\n--b--\r\n";
        assert!(read(inner).text.contains("ours") && !read(inner).text.contains("theirs"));
    }

    #[test]
    fn attachments_have_a_name_a_declared_and_a_detected_type_a_size_and_names_inside() {
        // An empty archive member called `Setup.EXE`.
        let zip = "UEsDBBQAAAAAAAAAIQAAAAAAAAAAAAAAAAAJAAAAU2V0dXAuRVhFUEsBAhQDFAAAAAAAAAAhAAAAAAAAAAAAAAAAAAkAAAAAAAAAAAAAAKSB\
            AAAAAFNldHVwLkVYRVBLBQYAAAAAAQABADcAAAAnAAAAAAA=";
        let reading = read(&format!(
            "Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\nContent-Type: text/plain\r\n\r\nhi\r\n--b\r\n\
             Content-Type: application/pdf; name=\"Invoice.PDF\"\r\nContent-Transfer-Encoding: base64\r\n\r\n{zip}\r\n--b--\r\n"
        ));
        let [attachment] = &reading.attachments[..] else { panic!("{reading:?}") };
        assert_eq!((attachment.name.as_str(), attachment.kind.as_str()), ("invoice.pdf", "application/pdf"));
        assert_eq!((attachment.detected, attachment.size), (Some("application/zip"), 116));
        assert_eq!(attachment.inside, ["setup.exe"]);
        assert!(read("A: b\r\n\r\ntext alone\r\n").attachments.is_empty());
    }
}
