//! A message as its bytes: where the header ends, which fields it has and where each stands.
//!
//! Only mail-parser reads the fields, and only their places are kept: whatever is sent on is cut out of the original
//! by byte ranges, never written again. `origin` reads Received fields, `content` what a reader would see. The body is not
//! parsed for the index; it may be in a file already.

use std::ops::Range;

use mail_parser::{HeaderForm, HeaderName, MessageParser};

pub mod content;
pub mod origin;

/// Takes a message's bytes as they arrive and keeps the header section (RFC 5322 §2.1), up to a limit.
#[derive(Debug, Default)]
pub struct Head {
    bytes: Vec<u8>,
    ended: bool,
}

impl Head {
    /// Takes the next bytes of the message; ignores those behind the header or above [`HEAD_OCTETS_MAX`].
    pub fn push(&mut self, chunk: &[u8]) {
        if self.ended {
            return;
        }
        let seen = self.bytes.len();
        let room = HEAD_OCTETS_MAX - seen;
        self.bytes.extend_from_slice(&chunk[..chunk.len().min(room)]);
        // The end may straddle two chunks: look again at the three octets before this one.
        let from = seen.saturating_sub(3);
        if self.bytes.starts_with(b"\r\n") {
            self.bytes.clear();
            self.ended = true;
        } else if let Some(at) = memchr::memmem::find(&self.bytes[from..], b"\r\n\r\n") {
            self.bytes.truncate(from + at + 2);
            self.ended = true;
        } else {
            self.ended = self.bytes.len() == HEAD_OCTETS_MAX;
        }
    }

    /// The header fields, without the empty line that ends them.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// The index of a message's header.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Header {
    pub fields: Vec<Field>,
    /// The first From, Subject and Message-ID for people to read: unfolded, Subject decoded, cut to
    /// [`SUMMARY_CHARS_MAX`]. Never for comparing.
    pub from: String,
    pub subject: String,
    pub message_id: String,
}

/// A header field: its name in lower case and the range of its bytes in the message, last CRLF included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    pub name: String,
    pub range: Range<u64>,
}

impl Header {
    /// Indexes a header section. Lines that are no fields are passed over, and stay in the message.
    #[must_use]
    pub fn index(head: &[u8]) -> Header {
        let parser = MessageParser::new()
            .unknown_headers(HeaderForm::Raw)
            .header(HeaderName::Received, HeaderForm::Raw)
            .header(HeaderName::From, HeaderForm::Raw)
            .header(HeaderName::Subject, HeaderForm::Text)
            .header(HeaderName::MessageId, HeaderForm::Raw);
        let Some(message) = parser.parse_headers(head) else {
            return Header::default();
        };
        let mut header = Header::default();
        for field in message.headers().iter() {
            let name = field.raw_name().trim_end().to_ascii_lowercase();
            let summary = match name.as_str() {
                "from" => Some((&mut header.from, readable(&String::from_utf8_lossy(field.raw_value())))),
                "subject" => Some((&mut header.subject, readable(field.value().as_text().unwrap_or_default()))),
                "message-id" => Some((&mut header.message_id, readable(&String::from_utf8_lossy(field.raw_value())))),
                _ => None,
            };
            if let Some((place, text)) = summary
                && place.is_empty()
            {
                *place = text;
            }
            let range = u64::from(field.offset_field())..u64::from(field.offset_end());
            header.fields.push(Field { name, range });
        }
        header
    }

    /// How many servers say that they had this message already (RFC 5321 §6.3).
    #[must_use]
    pub fn hops(&self) -> usize {
        self.fields.iter().filter(|field| field.name == "received").count()
    }
}

/// One line without control characters or outer spaces, cut.
fn readable(text: &str) -> String {
    let mut line = String::new();
    for word in text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty()) {
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
        if line.len() > SUMMARY_CHARS_MAX {
            break;
        }
    }
    line.char_indices().nth(SUMMARY_CHARS_MAX).map_or(line.clone(), |(end, _)| line[..end].to_owned())
}

/// The largest header section that is taken. Exchange takes 256 KiB, Postfix 100 KiB (`header_size_limit`).
pub const HEAD_OCTETS_MAX: usize = 256 * 1024;

/// Enough of a subject to recognise the message by.
const SUMMARY_CHARS_MAX: usize = 300;

#[cfg(test)]
mod tests {
    use super::*;

    fn head_of(message: &[u8], chunk: usize) -> Vec<u8> {
        let mut head = Head::default();
        message.chunks(chunk).for_each(|c| head.push(c));
        head.as_bytes().to_vec()
    }

    #[test]
    fn the_header_ends_at_the_empty_line_however_it_arrives() {
        for (message, want) in [
            (&b"A: 1\r\nB: 2\r\n\r\nbody\r\n\r\nmore"[..], &b"A: 1\r\nB: 2\r\n"[..]),
            (b"\r\nbody", b""),
            (b"A: 1\r\n", b"A: 1\r\n"),
            (b"", b""),
        ] {
            for chunk in 1..20 {
                assert_eq!(head_of(message, chunk), want, "{chunk}");
            }
        }
    }

    #[test]
    fn a_header_without_end_is_kept_up_to_its_limit() {
        let line = [b'x'; 1000];
        let mut head = Head::default();
        (0..300).for_each(|_| head.push(&line));
        assert_eq!(head.as_bytes().len(), HEAD_OCTETS_MAX);
    }

    #[test]
    fn fields_are_found_where_they_stand() {
        let head = b"Received: a\r\n\tb\r\nReceived: c\r\nFROM : x@y\r\nSubject: =?utf-8?q?caf=C3=A9?=\r\n =?utf-8?q?_noir?=\r\nMessage-ID: <1@z>\r\n";
        let header = Header::index(head);
        assert_eq!(header.hops(), 2);
        assert_eq!(header.subject, "café noir");
        assert_eq!(header.message_id, "<1@z>");
        assert_eq!(header.from, "x@y");
        let first = &header.fields[0].range;
        assert_eq!(&head[first.start as usize..first.end as usize], b"Received: a\r\n\tb\r\n");
        let last = header.fields.last().unwrap();
        assert_eq!(last.range.end, head.len() as u64);
    }

    #[test]
    fn a_subject_cannot_carry_a_line_end_into_the_log() {
        let header = Header::index(b"Subject: =?utf-8?q?x=0d=0aBcc:_e@v?=\r\n");
        assert_eq!(header.subject, "x Bcc: e@v");
    }

    #[test]
    fn a_summary_is_cut_at_its_limit() {
        let at = |n: usize| Header::index(format!("Subject: {}\r\n", "é".repeat(n)).as_bytes()).subject.chars().count();
        assert_eq!(at(SUMMARY_CHARS_MAX), SUMMARY_CHARS_MAX);
        assert_eq!(at(SUMMARY_CHARS_MAX + 1), SUMMARY_CHARS_MAX);
    }
}
