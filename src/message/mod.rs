//! A message as its bytes: where the header ends, which fields it has and where each stands.
//!
//! Only the places of fields are kept: whatever is sent on is cut out of the original by byte ranges, never written again.
//! mail-parser decodes the Subject for people. `origin` reads Received fields, `content` what a reader would see, `fields` what
//! single fields say, `reading` what rules compare. The body
//! is not parsed for the index; it may be in a file already.

use std::ops::Range;

use mail_parser::{HeaderForm, HeaderName, MessageParser};

pub mod content;
pub mod fields;
pub mod origin;
pub mod reading;

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
    ///
    /// A field is a line with a name and a colon, and the lines behind it that begin with white space (RFC 5322 §2.2).
    /// Nothing but the end of `head` ends it: a parser that guesses more, such as that a line of white space is
    /// an empty one, would not see what somebody else sees below.
    #[must_use]
    pub fn index(head: &[u8]) -> Header {
        let mut header = Header::default();
        let mut start = 0;
        while start < head.len() {
            let end = end_of_field(head, start);
            let whole = &head[start..end];
            if let Some((name, value)) = split_field(whole) {
                let summary = match name.as_str() {
                    "from" => Some((&mut header.from, readable(&String::from_utf8_lossy(value)))),
                    "subject" => Some((&mut header.subject, readable(&decoded(whole)))),
                    "message-id" => Some((&mut header.message_id, readable(&String::from_utf8_lossy(value)))),
                    _ => None,
                };
                if let Some((place, text)) = summary
                    && place.is_empty()
                {
                    *place = text;
                }
                header.fields.push(Field { name, range: start as u64..end as u64 });
            }
            start = end;
        }
        header
    }

    /// How many servers say that they had this message already (RFC 5321 §6.3).
    #[must_use]
    pub fn hops(&self) -> usize {
        self.fields.iter().filter(|field| field.name == "received").count()
    }
}

/// Behind the line that begins at `start` and those that continue it.
fn end_of_field(head: &[u8], start: usize) -> usize {
    let mut end = start;
    while let Some(line) = memchr::memchr(b'\n', &head[end..]) {
        end += line + 1;
        if !matches!(head.get(end), Some(b' ' | b'\t')) {
            return end;
        }
    }
    head.len()
}

/// The name in lower case, and the value; none where the line is no field.
fn split_field(whole: &[u8]) -> Option<(String, &[u8])> {
    let colon = memchr::memchr2(b':', b'\n', whole).filter(|&at| whole[at] == b':')?;
    // RFC 5322 §4.5: white space may stand before the colon. Before the name it continues the line above.
    let name = whole[..colon].trim_ascii_end();
    let named = !name.is_empty() && !matches!(whole[0], b' ' | b'\t');
    named.then(|| (String::from_utf8_lossy(name).to_ascii_lowercase(), &whole[colon + 1..]))
}

/// A Subject field's text without its encodings (RFC 2047).
fn decoded(whole: &[u8]) -> String {
    let parser = MessageParser::new().header(HeaderName::Subject, HeaderForm::Text);
    let field = parser.parse_headers(whole);
    let subject = field.as_ref().and_then(|field| field.headers().iter().next()?.value().as_text());
    subject.unwrap_or_default().to_owned()
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

    fn names(head: &str) -> Vec<String> {
        let header = Header::index(head.as_bytes());
        header.fields.into_iter().map(|field| field.name).collect()
    }

    #[test]
    fn a_field_begins_a_line() {
        for head in ["\tReceived: a\r\nSubject: b\r\n", " Received: a\r\n b:\r\nSubject : b\r\n"] {
            assert_eq!(names(head), ["subject"], "{head:?}");
        }
    }

    #[test]
    fn a_line_of_white_space_hides_no_field_below_it() {
        for line in [" ", "\t", " \t ", "junk\r\n ", "junk\r\n \r\n ", ":", ": x", "junk", "Subject: b\r\n "] {
            let head = format!("{line}\r\nReceived: a\r\n\tb\r\nAuthentication-Results: c\r\n");
            let found = names(&head);
            assert_eq!(found[found.len() - 2..], ["received", "authentication-results"], "{head:?}");
        }
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
