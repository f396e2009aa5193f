//! Cutting replies out of the octets that a server sends, strictly and within limits.
//!
//! A reply is trusted for its code only. What departs from RFC 5321 §4.2:
//! - a line may end in LF alone, and may hold any octet: what cannot be shown becomes `?`, and is never echoed;
//! - a line of three digits without text is a reply (RFC 5321 §4.2 asks us to take it);
//! - a multi-line reply whose codes differ, a code outside 200 to 599, or any other first octets cannot be
//!   understood: the session ends, and after the final dot the outcome is unknown.

use std::borrow::Cow;

use crate::reply::{Enhanced, Reply};

/// Cuts replies out of the octets that a server sends.
#[derive(Debug, Default)]
pub struct ReplyReader {
    buffer: Vec<u8>,
    read: usize,
    partial: Option<Partial>,
}

/// A multi-line reply of which not all lines are here.
#[derive(Debug)]
struct Partial {
    code: u16,
    enhanced: Option<Enhanced>,
    text: String,
    lines: usize,
}

/// Why octets are no reply. The session cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadReply {
    #[error("a line does not begin with a reply code")]
    Code,
    #[error("the codes of a multi-line reply differ")]
    Mixed,
    #[error("a reply line is too long")]
    LongLine,
    #[error("a reply has too many lines")]
    ManyLines,
}

impl BadReply {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            BadReply::Code => "a line does not begin with a reply code",
            BadReply::Mixed => "the codes of a multi-line reply differ",
            BadReply::LongLine => "a reply line is too long",
            BadReply::ManyLines => "a reply has too many lines",
        }
    }
}

impl ReplyReader {
    /// Where octets from the server are appended: at most [`REPLY_READ_OCTETS`] between two calls of `next_reply`.
    pub fn space(&mut self) -> &mut Vec<u8> {
        if self.read == self.buffer.len() {
            self.buffer.clear();
            self.read = 0;
        } else if self.read > 0 {
            self.buffer.drain(..self.read);
            self.read = 0;
        }
        self.buffer.reserve(REPLY_READ_OCTETS);
        &mut self.buffer
    }

    /// Nothing is here that was not read: no server spoke out of turn.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.read == self.buffer.len() && self.partial.is_none()
    }

    /// The next whole reply, or `None` where more octets are needed.
    pub fn next_reply(&mut self) -> Result<Option<Reply>, BadReply> {
        loop {
            let rest = &self.buffer[self.read..];
            let Some(end) = memchr::memchr(b'\n', rest) else {
                return if rest.len() > REPLY_LINE_OCTETS_MAX { Err(BadReply::LongLine) } else { Ok(None) };
            };
            if end >= REPLY_LINE_OCTETS_MAX {
                return Err(BadReply::LongLine);
            }
            let line = &rest[..end];
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            let (code, last, text) = split_line(line).ok_or(BadReply::Code)?;
            let partial = match &mut self.partial {
                Some(partial) if partial.code != code => return Err(BadReply::Mixed),
                Some(partial) if partial.lines == REPLY_LINES_MAX => return Err(BadReply::ManyLines),
                Some(partial) => partial,
                none => none.insert(Partial { code, enhanced: None, text: String::new(), lines: 0 }),
            };
            partial.add(text);
            self.read += end + 1;
            if last && let Some(whole) = self.partial.take() {
                return Ok(Some(Reply { code: whole.code, enhanced: whole.enhanced, text: Cow::Owned(whole.text) }));
            }
        }
    }
}

impl Partial {
    fn add(&mut self, text: &[u8]) {
        let (enhanced, text) = split_enhanced(self.code, text);
        self.enhanced = self.enhanced.or(enhanced);
        self.lines += 1;
        let room = REPLY_TEXT_OCTETS_MAX.saturating_sub(self.text.len());
        if text.is_empty() || room == 0 {
            return;
        }
        if !self.text.is_empty() {
            self.text.push(' ');
        }
        append_shown(&text[..text.len().min(room)], &mut self.text);
    }
}

/// Appends peer text so that it can stand in a log, a table and a terminal: one line, nothing invisible.
fn append_shown(text: &[u8], out: &mut String) {
    for chunk in text.utf8_chunks() {
        let hidden = |c: char| c.is_control() || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        out.extend(chunk.valid().chars().map(|c| if hidden(c) { '?' } else { c }));
        if !chunk.invalid().is_empty() {
            out.push('?');
        }
    }
}

/// Code, whether it is the reply's last line, and text.
fn split_line(line: &[u8]) -> Option<(u16, bool, &[u8])> {
    let digits = line.get(..3).filter(|d| d.iter().all(u8::is_ascii_digit))?;
    let code = digits.iter().fold(0, |code, &d| code * 10 + u16::from(d - b'0'));
    if !(200..600).contains(&code) {
        return None;
    }
    match line.get(3) {
        None => Some((code, true, b"")),
        Some(b' ') => Some((code, true, &line[4..])),
        Some(b'-') => Some((code, false, &line[4..])),
        Some(_) => None,
    }
}

/// RFC 2034 §4: the status code stands first in the text, and its class is the reply code's. Else it is text.
fn split_enhanced(code: u16, text: &[u8]) -> (Option<Enhanced>, &[u8]) {
    let end = memchr::memchr(b' ', text).unwrap_or(text.len());
    let parsed = || {
        let word = std::str::from_utf8(&text[..end]).ok()?;
        let mut numbers = word.split('.').map(|n| {
            let plain = (1..=3).contains(&n.len()) && n.bytes().all(|b| b.is_ascii_digit());
            plain.then(|| n.parse::<u16>().ok()).flatten()
        });
        let (class, subject, detail) = (numbers.next()??, numbers.next()??, numbers.next()??);
        let matches = class == code / 100 && numbers.next().is_none();
        matches.then_some(Enhanced(u8::try_from(class).ok()?, subject, detail))
    };
    match parsed() {
        Some(enhanced) => (Some(enhanced), text.get(end + 1..).unwrap_or_default()),
        None => (None, text),
    }
}

/// RFC 5321 §4.5.3.1.5 has 512 octets; four times that forgives a talkative server.
pub const REPLY_LINE_OCTETS_MAX: usize = 2048;
/// Real servers explain themselves in ten lines at most.
pub const REPLY_LINES_MAX: usize = 100;
/// What is kept of a reply's text; the rest is counted and dropped.
pub const REPLY_TEXT_OCTETS_MAX: usize = 1024;
/// Replies to a pipelined group fit in it by far.
pub const REPLY_READ_OCTETS: usize = 4096;

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::smtp) fn read_all(octets: &[u8]) -> Result<Vec<Reply>, BadReply> {
        let mut reader = ReplyReader::default();
        let mut replies = Vec::new();
        for piece in octets.chunks(REPLY_READ_OCTETS) {
            reader.space().extend_from_slice(piece);
            while let Some(reply) = reader.next_reply()? {
                replies.push(reply);
            }
        }
        Ok(replies)
    }

    #[test]
    fn replies_that_are_replies() {
        let long = format!("250 {}\r\n", "x".repeat(REPLY_LINE_OCTETS_MAX - 6));
        let many = "250-x\r\n".repeat(REPLY_LINES_MAX - 1) + "250 x\r\n";
        let cases: [(&[u8], &str); 12] = [
            (b"250 ok\r\n", "250 ok"),
            (b"250\r\n", "250 "),
            (b"250 2.1.0 ok\r\n", "250 2.1.0 ok"),
            (b"550 5.7.2\r\n", "550 5.7.2 "),
            (b"550 2.7.2 x\r\n", "550 2.7.2 x"),
            (b"550 5.1111.2 x\r\n", "550 5.1111.2 x"),
            (b"250 lf\n", "250 lf"),
            (b"550-5.1.1 no\r\n550 5.1.1 such\r\n", "550 5.1.1 no such"),
            (b"550-no\r\n550 5.1.1 such\r\n", "550 5.1.1 no such"),
            (b"451 a\rb\x1b[31m\0\xff\xe2\x80\xa8\r\n", "451 a?b?[31m???"),
            (b"250-\r\n250\r\n", "250 "),
            (b"250 \xc3\xa9\r\n", "250 \u{e9}"),
        ];
        for (octets, want) in cases {
            let replies = read_all(octets).unwrap_or_else(|e| panic!("{}: {e}", octets.escape_ascii()));
            assert_eq!(replies.len(), 1, "{}", octets.escape_ascii());
            assert_eq!(replies[0].to_string(), want, "{}", octets.escape_ascii());
        }
        assert_eq!(read_all(long.as_bytes()).unwrap()[0].text.len(), REPLY_TEXT_OCTETS_MAX);
        assert_eq!(read_all(many.as_bytes()).unwrap().len(), 1);
    }

    #[test]
    fn octets_that_are_no_reply() {
        let long = format!("250 {}\r\n", "x".repeat(REPLY_LINE_OCTETS_MAX - 5));
        let many = "250-x\r\n".repeat(REPLY_LINES_MAX) + "250 x\r\n";
        let endless = "x".repeat(10_000_000);
        for (octets, want) in [
            ("25\r\n", BadReply::Code),
            ("999 x\r\n", BadReply::Code),
            ("199 x\r\n", BadReply::Code),
            ("2xx\r\n", BadReply::Code),
            ("\r\n", BadReply::Code),
            ("250_x\r\n", BadReply::Code),
            ("2500 x\r\n", BadReply::Code),
            ("\x00250 x\r\n", BadReply::Code),
            ("250-a\r\n550 b\r\n", BadReply::Mixed),
            (&long, BadReply::LongLine),
            (&endless, BadReply::LongLine),
            (&many, BadReply::ManyLines),
        ] {
            assert_eq!(read_all(octets.as_bytes()).unwrap_err(), want, "{}", &octets[..octets.len().min(40)]);
        }
    }

    #[test]
    fn octets_behind_a_reply_are_noticed() {
        let mut reader = ReplyReader::default();
        reader.space().extend_from_slice(b"250 ok\r\n250 ex");
        assert!(reader.next_reply().unwrap().is_some());
        assert!(!reader.is_empty());
        assert_eq!(reader.next_reply(), Ok(None));
        reader.space().extend_from_slice(b"tra\r\n");
        assert_eq!(reader.next_reply().unwrap().unwrap().text, "extra");
        assert!(reader.is_empty());
    }
}
